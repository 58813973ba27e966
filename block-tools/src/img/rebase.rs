//! `rebase`: gives an image another backing file, or none.
//!
//! By default the image reads the same afterwards: where the old and the new backing file differ, it
//! gets the old contents itself. With `-u` only the header is changed.

use block_core::job::rebase::{NewBacking, RebaseError, RebaseOptions, rebase};
use block_core::{Cancel, Node, OpenFlags, RequestFlags, graph};

use crate::open::{CacheMode, ImageSpec, block_on, open, registry};

use super::backing::{find_in_chain, relative_to, spec_of_path};
use super::common::{cache_mode, one_image, open_image};
use super::compression;
use super::interrupt::{self, cancel_on_signal};
use super::progress::{Outcome, Progress};
use super::{Failure, Output};

/// Give an image another backing file.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Show the progress.
    #[arg(short, long)]
    progress: bool,
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Compress what is written to the image.
    #[arg(short, long)]
    compress: bool,
    /// Cache mode of the image (default: writeback).
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// The new backing file, seen from where the image is; empty: none.
    #[arg(short, long, value_name = "BACKING_FILENAME")]
    backing: Option<String>,
    /// Format of the new backing file.
    #[arg(short = 'F', long, value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Cache mode of the new backing file (default: writeback).
    #[arg(short = 'T', long, value_name = "BACKING_CACHE")]
    backing_cache: Option<String>,
    /// Only change the header: whatever the new backing file holds shows from now on.
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Open the backing files without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Rebases.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("rebase", &args.files)?;
    if args.backing.is_none() && !args.backing_unsafe {
        let what = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(Failure::usage("rebase", what));
    }
    let cache =
        cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid cache option: {}")?;
    let backing_cache = cache_mode(
        args.backing_cache.as_deref(),
        CacheMode::WRITEBACK,
        "Invalid source cache option: {}",
    )?;
    if let Some(format) = &args.backing_format {
        let invalid = |_| Failure::new(format_args!("Invalid format name: '{format}'"));
        registry().get(format).map_err(invalid)?;
    }
    let cancel = Cancel::new();
    let _listening = cancel_on_signal(&cancel)?;
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        cache,
        flags: OpenFlags { no_backing: args.backing_unsafe, ..OpenFlags::READ_WRITE },
        ..ImageSpec::new(name)
    };
    block_on(async {
        let overlay = open_image(&spec, 1).await?;
        let mut nodes = vec![overlay];
        let result = if args.backing_unsafe {
            // Nothing is written that could be compressed.
            change_header(args, &nodes).await
        } else {
            rebase_safely(args, &spec, backing_cache, &cancel, &mut nodes, out).await
        };
        let mut closed = Ok(());
        for node in nodes {
            closed = closed.and(graph::close(&node).await);
        }
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        Ok(0)
    })
}

/// Name and format for the header. A name without a format would leave the next one to open it to
/// guess.
fn names(args: &Args) -> Result<(Option<&str>, Option<&str>), Failure> {
    let name = args.backing.as_deref().filter(|name| !name.is_empty());
    let format = args.backing_format.as_deref();
    match (name, format) {
        (Some(name), None) => Err(Failure::new(format_args!(
            "Could not change the backing file to '{name}': backing format must be specified"
        ))),
        (Some(_), Some(_)) => Ok((name, format)),
        (None, _) => Ok((None, None)),
    }
}

/// Changes the header of the first of `nodes` and nothing else.
async fn change_header(args: &Args, nodes: &[Node]) -> Result<(), Failure> {
    let (name, format) = names(args)?;
    let failed = |error: &dyn std::fmt::Display| {
        let name = name.unwrap_or_default();
        Failure::new(format_args!("Could not change the backing file to '{name}': {error}"))
    };
    for node in nodes {
        let rebase = node.driver().as_rebase();
        let rebase = rebase.ok_or_else(|| failed(&"Operation not supported"))?;
        rebase.change_backing(name, format).await.map_err(|error| failed(&error))?;
        node.flush().await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Opens the new backing file, into `nodes`, behind the overlay, and runs the job.
async fn rebase_safely(
    args: &Args,
    spec: &ImageSpec,
    cache: CacheMode,
    cancel: &Cancel,
    nodes: &mut Vec<Node>,
    out: &mut Output,
) -> Result<(), Failure> {
    let Some(overlay) = nodes.first().cloned() else {
        return Ok(());
    };
    if args.compress {
        compression::check_node(&overlay)?;
    }
    let (name, format) = names(args)?;
    let mut backing = NewBacking {
        name: name.map(str::to_owned),
        format: format.map(str::to_owned),
        ..NewBacking::default()
    };
    if let Some(name) = name {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format_args!("Could not open new backing file '{name}': {error}"))
        };
        let path = relative_to(&overlay, name).map_err(|error| failed(&error))?;
        backing.in_chain = find_in_chain(&overlay, &path).map(|(node, _)| node);
        let force_share = args.force_share;
        let new = ImageSpec { force_share, ..spec_of_path(path, format, cache) };
        let node = open(&new).await.map_err(|error| failed(&error))?;
        nodes.push(node.clone());
        backing.node = Some(node);
    }
    let mut write_flags = RequestFlags::empty();
    write_flags.set(RequestFlags::FUA, spec.cache.writethrough);
    write_flags.set(RequestFlags::COMPRESSED, args.compress);
    let options = RebaseOptions { write_flags, ..RebaseOptions::default() };
    let mut progress = Progress::new(args.progress && !args.quiet, out);
    let show = |p: block_core::job::copy::Progress| progress.show(p.done, p.total, out);
    let result = rebase(&overlay, &backing, options, cancel, show).await;
    let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Stopped };
    progress.finish(outcome, out);
    match result {
        Ok(_) => Ok(()),
        Err(RebaseError::Cancelled) => {
            Err(Failure::new("interrupted").with_status(interrupt::status()))
        }
        Err(error) => Err(Failure::new(error)),
    }
}
