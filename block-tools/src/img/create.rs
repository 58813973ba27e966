//! `create`: a new raw image. `convert` makes its target here too.
//!
//! Invariant: a file that somebody else has open as an image is not changed.

use std::io::Write;
use std::path::Path;

use block_core::driver::Prealloc;
use block_core::proto::file;
use block_core::range::{Alignment, MAX_LEN};
use block_core::{OpenError, Options};

use crate::open::{block_on, registry};
use crate::spec::{SpecError, image_opts};

use super::common::size_argument;
use super::{Failure, Output};

/// Create a new image file.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Do not print what is made.
    #[arg(short, long)]
    quiet: bool,
    /// Format of the new image.
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format: size, preallocation (off, falloc, full).
    #[arg(short, long, value_name = "FMT_OPTS")]
    options: Vec<String>,
    /// File to create, which is overwritten if it exists, and size of the disk, with an optional
    /// suffix (b, k, M, G, T, P, E: multiples of 1024).
    #[arg(value_name = "FILENAME [SIZE]", allow_negative_numbers = true)]
    files: Vec<String>,
}

/// Creates the image.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let (name, size) = match args.files.as_slice() {
        [] => return Err(Failure::usage("create", "Expecting image file name")),
        [name] => (name, None),
        [name, size] => (name, Some(size)),
        [_, _, more, ..] => {
            return Err(Failure::usage("create", format_args!("Unexpected argument: {more}")));
        }
    };
    let fail = |error: CreateError| Failure::new(format_args!("{name}: {error}"));
    let max = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let size = match size {
        Some(text) => Some(size_argument("image size", text, 0, max)?),
        None => None,
    };
    check_format(&args.format).map_err(fail)?;
    let mut options = parse_options(&args.options).map_err(fail)?;
    if let Some(size) = size {
        if options.size.is_some() {
            return Err(fail(CreateError::TwoSizes));
        }
        options.size = Some(size);
    }
    let size = options.size.ok_or(CreateError::NoSize).map_err(fail)?;
    if size > MAX_LEN {
        return Err(fail(CreateError::TooLarge(args.format.clone())));
    }
    if !args.quiet {
        write!(out, "Formatting '{name}', fmt={} size={size}", args.format)?;
        if let Some(preallocation) = &options.preallocation {
            write!(out, " preallocation={preallocation}")?;
        }
        writeln!(out)?;
    }
    let prealloc = options.prealloc().map_err(fail)?;
    block_on(create_raw(name, size, prealloc)).map_err(|error| match error {
        CreateError::Open(SpecError::Open(OpenError::File { error, .. })) => {
            Failure::new(format_args!("{name}: Could not create '{name}': {error}"))
        }
        other => fail(other),
    })?;
    Ok(0)
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// A format that can be read, but not made.
    #[error("Format '{0}' can be read, but images of it cannot be made or written yet (use raw)")]
    ReadOnlyFormat(String),
    /// A format that nobody knows.
    #[error("Unknown file format '{0}'")]
    UnknownFormat(String),
    /// An option that the format does not have.
    #[error("Invalid parameter '{0}'")]
    UnknownOption(String),
    /// An option with a value that it cannot have.
    #[error("invalid parameter value: {0}")]
    OptionValue(String),
    /// `SIZE` beside `-o size=`.
    #[error("The image size must be specified only once")]
    TwoSizes,
    /// Neither.
    #[error("Image creation needs a size parameter")]
    NoSize,
    /// Longer than any disk.
    #[error("The image size is too large for file format '{0}'")]
    TooLarge(String),
    /// The options cannot be read, or the file cannot be made.
    #[error(transparent)]
    Open(#[from] SpecError),
}

/// Fails unless images of this format can be made.
pub(super) fn check_format(format: &str) -> Result<(), CreateError> {
    match format {
        "raw" => Ok(()),
        known if registry().get(known).is_ok() => {
            Err(CreateError::ReadOnlyFormat(known.to_owned()))
        }
        unknown => Err(CreateError::UnknownFormat(unknown.to_owned())),
    }
}

/// Options of `-o` for raw images.
#[derive(Default)]
pub(super) struct RawOptions {
    /// `size`, in bytes.
    pub(super) size: Option<u64>,
    preallocation: Option<String>,
}

impl RawOptions {
    /// How much is allocated at once.
    pub(super) fn prealloc(&self) -> Result<Prealloc, CreateError> {
        Ok(match self.preallocation.as_deref() {
            None | Some("off") => Prealloc::Off,
            Some("falloc") => Prealloc::Falloc,
            Some("full") => Prealloc::Full,
            Some(other) => return Err(CreateError::OptionValue(other.to_owned())),
        })
    }
}

/// Reads the values of all `-o`.
pub(super) fn parse_options(texts: &[String]) -> Result<RawOptions, CreateError> {
    let mut options: Options = image_opts::parse(&texts.join(","))?;
    let parsed = RawOptions {
        size: options.take_size("size").map_err(SpecError::from)?,
        preallocation: options.take("preallocation"),
    };
    match options.iter().next() {
        None => Ok(parsed),
        Some((name, _)) => Err(CreateError::UnknownOption(name.to_owned())),
    }
}

/// Makes a raw image of `size` bytes that reads as zeroes, in place of what `name` held. A device keeps
/// its length, which must suffice, and its contents.
pub(super) async fn create_raw(
    name: &str,
    size: u64,
    prealloc: Prealloc,
) -> Result<(), CreateError> {
    let path = Path::new(name.strip_prefix("file:").unwrap_or(name));
    let size = Alignment::SECTOR.round_up(size);
    Ok(file::create(path, size, prealloc).await.map_err(SpecError::from)?)
}
