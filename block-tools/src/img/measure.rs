//! `measure`: how large an image would be, empty or with the contents of another.

use std::io::Write;

use block_core::ability::Measurement;
use block_core::registry::DriverFactory;
use block_core::{Node, OpenError, Options, graph};

use crate::open::{ImageSpec, block_on};

use super::common::{OutputFormat, open_image, size_argument};
use super::create::{CreateError, format_of, known_options, parse_options};
use super::json::Json;
use super::{Failure, Output, source_snapshot};

/// Calculate the size that a new image would need.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the image to convert (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Options of the new image, as `create` takes them.
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Format of the new image.
    #[arg(
        short = 'O',
        long,
        alias = "output-format",
        value_name = "OUTPUT_FMT",
        default_value = "raw"
    )]
    target_format: String,
    /// Length of the disk, for an image that holds nothing.
    #[arg(short = 's', long, value_name = "SIZE")]
    size: Option<String>,
    /// Snapshot of the image to convert, by id or name, in place of its disk.
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Layout of the output.
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Open the image without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image to convert.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Measures.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let max = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let size = match &args.size {
        Some(text) => Some(size_argument("image size", text, 0, max)?),
        None => None,
    };
    let source = match (args.files.as_slice(), size) {
        ([_, _, ..], _) => return Err(Failure::new("At most one filename argument is allowed.")),
        ([_], Some(_)) => {
            return Err(Failure::new("--size N cannot be used together with a filename."));
        }
        ([], None) => {
            return Err(Failure::new("Either --size N or one filename must be specified."));
        }
        ([], Some(_)) if args.image_opts || args.format.is_some() || args.snapshot.is_some() => {
            return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
        }
        ([], Some(_)) => None,
        ([name], None) => Some(name),
    };
    let factory = format_of(&args.target_format).map_err(Failure::new)?;
    let known = known_options(&*factory, Some("")).map_err(Failure::new)?;
    let mut options = parse_options(&known, &args.options).map_err(Failure::new)?;
    // What only the protocol has does not change how large the image is.
    for option in known.iter().skip(factory.create_options().len()) {
        options.take(option.name);
    }
    if let Some(size) = size {
        options.set("size", size.to_string());
    }
    let measured = block_on(measure(args, &*factory, options, source))?;
    show(measured, args.output, out)?;
    Ok(0)
}

async fn measure(
    args: &Args,
    factory: &dyn DriverFactory,
    options: Options,
    source: Option<&String>,
) -> Result<Measurement, Failure> {
    let node = match source {
        Some(name) => Some(open_source(args, name).await?),
        None => None,
    };
    let measured = factory.measure(options, node.clone()).await;
    let closed = match node {
        Some(node) => graph::close(&node).await,
        None => Ok(()),
    };
    let measured = measured.map_err(|error: OpenError| Failure::new(CreateError::from(error)))?;
    closed.map_err(Failure::new)?;
    Ok(measured)
}

async fn open_source(args: &Args, name: &str) -> Result<Node, Failure> {
    let mut spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..ImageSpec::new(name)
    };
    if let Some(snapshot) = &args.snapshot {
        source_snapshot::select(&mut spec, snapshot).await?;
    }
    open_image(&spec, 1).await
}

fn show(measured: Measurement, output: OutputFormat, out: &mut Output) -> Result<(), Failure> {
    let Measurement { required, fully_allocated, bitmaps } = measured;
    match output {
        OutputFormat::Human => {
            writeln!(out, "required size: {required}")?;
            writeln!(out, "fully allocated size: {fully_allocated}")?;
            if let Some(bitmaps) = bitmaps {
                writeln!(out, "bitmaps size: {bitmaps}")?;
            }
        }
        OutputFormat::Json => {
            let mut all = vec![
                ("required", Json::Int(required)),
                ("fully-allocated", Json::Int(fully_allocated)),
            ];
            if let Some(bitmaps) = bitmaps {
                all.insert(0, ("bitmaps", Json::Int(bitmaps)));
            }
            writeln!(out, "{}", Json::Map(all).to_pretty())?;
        }
    }
    Ok(())
}
