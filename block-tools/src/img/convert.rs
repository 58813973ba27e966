//! `convert`: copies one image, or several joined, to another.
//!
//! Invariant: when it ends, by whatever way but a second interrupt, every image is closed and no lock
//! is held; a target that was not finished is left as it is.

use block_core::job::copy::{
    CopyOptions, CopySource, MAX_PARALLEL, MAX_SPARSE_BYTES, Sparseness, TargetContents, WriteOrder,
};
use block_core::job::{CopyError, copy};
use block_core::{Cancel, Node, OpenFlags, RequestFlags, graph};

use crate::open::{CacheMode, ImageSpec, block_on, open};
use crate::spec::SpecError;

use super::common::{SECTOR, cache_mode, cannot_open, open_image, sector_len, size_argument};
use super::create::{CreateError, NewImage, format_of};
use super::interrupt::{INTERRUPTED, cancel_on_signal};
use super::progress::{Outcome, Progress};
use super::{Failure, Output, PROGRAM};

/// Copy one image, or several joined, to another.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Show the progress.
    #[arg(short, long)]
    progress: bool,
    /// Format of the source images (default: probed).
    #[arg(short = 'f', long, value_name = "SRC_FMT", conflicts_with = "image_opts")]
    source_format: Option<String>,
    /// The source names are options (driver=...,file.filename=...).
    #[arg(long, alias = "source-image-opts")]
    image_opts: bool,
    /// Cache mode of the source images.
    #[arg(short = 'T', long, value_name = "SRC_CACHE")]
    source_cache: Option<String>,
    /// Format of the target image (default: raw).
    #[arg(short = 'O', long, value_name = "TGT_FMT", conflicts_with = "target_image_opts")]
    target_format: Option<String>,
    /// The target name is options (needs -n).
    #[arg(long)]
    target_image_opts: bool,
    /// Options of the target format.
    #[arg(short = 'o', long, value_name = "TGT_OPTS")]
    target_options: Vec<String>,
    /// Cache mode of the target image (default: unsafe).
    #[arg(short = 't', long, value_name = "TGT_CACHE")]
    target_cache: Option<String>,
    /// Write into an image that exists.
    #[arg(short, long)]
    no_create: bool,
    /// The target reads as zeroes all over (needs -n).
    #[arg(long)]
    target_is_zero: bool,
    /// Shortest run of zeroes inside of data that becomes a hole; 0: allocate everything.
    #[arg(short = 'S', long, value_name = "SPARSE_SIZE", default_value = "4k")]
    sparse_size: String,
    /// Open the sources without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Requests in flight, 1 to 16.
    #[arg(short = 'm', long, value_name = "NUM", default_value = "8")]
    parallel: String,
    /// Write as data arrives, not in order.
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Source images, then the target.
    #[arg(value_name = "SRC_FILENAME... TGT_FILENAME")]
    files: Vec<String>,
}

/// Bytes of all buffers of a conversion.
const MEMORY_BYTES: u64 = 64 << 20;

/// What the arguments mean.
struct Plan<'a> {
    sources: &'a [String],
    target: &'a str,
    source_cache: CacheMode,
    target_cache: CacheMode,
    copy: CopyOptions,
}

/// Converts.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let plan = plan(args)?;
    let cancel = Cancel::new();
    cancel_on_signal(&cancel)?;
    block_on(async {
        let mut nodes = Vec::new();
        let result = convert(args, &plan, &cancel, &mut nodes, out).await;
        // Everything is closed, whatever happened: the last chance to hear of lost data.
        let mut closed = Ok(());
        for node in nodes {
            closed = closed.and(graph::close(&node).await);
        }
        let status = result?;
        match closed {
            Err(error) if status == 0 => {
                Err(Failure::new(format_args!("error while closing '{}': {error}", plan.target)))
            }
            _ => Ok(status),
        }
    })
}

/// Checks the arguments that need no image.
fn plan(args: &Args) -> Result<Plan<'_>, Failure> {
    let Some((target, sources)) = args.files.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(Failure::new("Must specify image file name"));
    };
    let sparse =
        size_argument("buffer size for sparse output", &args.sparse_size, 0, MAX_SPARSE_BYTES)
            .ok()
            .filter(|bytes| bytes % SECTOR == 0)
            .ok_or_else(|| {
                Failure::new(format_args!(
                    "Invalid buffer size for sparse output specified. Valid sizes are multiples of \
                 {SECTOR} up to {MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully \
                 allocates output)."
                ))
            })?;
    let parallel = args.parallel.parse().ok().filter(|n| (1..=MAX_PARALLEL).contains(n));
    let parallel = parallel.ok_or_else(|| {
        Failure::new(format_args!(
            "Invalid number of coroutines specified. Must be between 1 and {MAX_PARALLEL}."
        ))
    })?;
    let needs = |option| Failure::new(format_args!("--{option} requires use of -n flag"));
    if args.target_image_opts && !args.no_create {
        return Err(needs("target-image-opts"));
    }
    if args.target_is_zero && !args.no_create {
        return Err(needs("target-is-zero"));
    }
    if args.no_create && !args.target_options.is_empty() {
        eprintln!("{PROGRAM}: warning: -o has no effect when skipping image creation");
    }
    let target_cache =
        cache_mode(args.target_cache.as_deref(), CacheMode::UNSAFE, "Invalid cache option: {}")?;
    let source_cache = cache_mode(
        args.source_cache.as_deref(),
        CacheMode::WRITEBACK,
        "Invalid source cache option: {}",
    )?;
    let copy = CopyOptions {
        parallel,
        order: if args.oob_writes { WriteOrder::Any } else { WriteOrder::InOrder },
        sparseness: match sparse {
            0 => Sparseness::Full,
            min_bytes => Sparseness::Holes { min_bytes },
        },
        target: TargetContents::Unknown,
        memory_bytes: MEMORY_BYTES,
        write_flags: match target_cache.writethrough {
            true => RequestFlags::FUA,
            false => RequestFlags::empty(),
        },
    };
    Ok(Plan { sources, target, source_cache, target_cache, copy })
}

/// Opens the images into `nodes` and copies.
async fn convert(
    args: &Args,
    plan: &Plan<'_>,
    cancel: &Cancel,
    nodes: &mut Vec<Node>,
    out: &mut Output,
) -> Result<u8, Failure> {
    let mut sources = Vec::new();
    for name in plan.sources {
        let spec = ImageSpec {
            format: args.source_format.clone(),
            image_opts: args.image_opts,
            cache: plan.source_cache,
            force_share: args.force_share,
            ..ImageSpec::new(name)
        };
        let node = open_image(&spec, 1).await?;
        nodes.push(node.clone());
        sources.push(CopySource { len: sector_len(&node), node });
    }
    let total = sources.iter().map(|source| source.len).fold(0, u64::saturating_add);
    let (target, contents) = open_target(args, plan, total).await?;
    nodes.push(target.clone());
    let options = CopyOptions { target: contents, ..plan.copy };

    let mut progress = Progress::new(args.progress && !args.quiet, out);
    let show = |p: copy::Progress| progress.show(p.done, p.total, out);
    let copied = copy(sources, &target, options, cancel, show).await;
    let flushed = match copied {
        Ok(_) => target.flush().await,
        Err(_) => Ok(()),
    };
    let outcome = if copied.is_ok() { Outcome::Done } else { Outcome::Stopped };
    progress.finish(outcome, out);
    match copied {
        Ok(_) => {}
        Err(CopyError::Cancelled { done }) => {
            let text = format_args!("interrupted after {done} of {total} bytes");
            return Err(Failure::new(text).with_status(INTERRUPTED));
        }
        Err(error) => return Err(Failure::new(error)),
    }
    match flushed {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::new(format_args!("error while flushing: {error}"))),
    }
}

/// Makes or opens the target; says what is known of its contents.
async fn open_target(
    args: &Args,
    plan: &Plan<'_>,
    total: u64,
) -> Result<(Node, TargetContents), Failure> {
    let name = plan.target;
    let format = args.target_format.as_deref().unwrap_or("raw");
    if args.no_create {
        return open_existing(args, plan, total).await;
    }
    let mut new = NewImage::new(format, name, &args.target_options).map_err(Failure::new)?;
    new.set_size(total);
    let fail = |error: CreateError| {
        Failure::new(format_args!("{name}: error while converting {format}: {error}"))
    };
    new.create().await.map_err(fail)?;
    let node = open_made(format, plan).await.map_err(|error| fail(error.into()))?;
    let contents = match node.capabilities().has_zero_init {
        true => TargetContents::Zeroes,
        false => TargetContents::Unknown,
    };
    Ok((node, contents))
}

/// Opens the image that was made.
async fn open_made(format: &str, plan: &Plan<'_>) -> Result<Node, SpecError> {
    let spec = ImageSpec {
        format: Some(format.to_owned()),
        flags: OpenFlags::READ_WRITE,
        cache: plan.target_cache,
        ..ImageSpec::new(plan.target)
    };
    open(&spec).await
}

/// Opens a target that exists (`-n`).
async fn open_existing(
    args: &Args,
    plan: &Plan<'_>,
    total: u64,
) -> Result<(Node, TargetContents), Failure> {
    let format = args.target_format.as_deref().unwrap_or("raw");
    if !args.target_image_opts {
        format_of(format).map_err(Failure::new)?;
    }
    let spec = ImageSpec {
        format: (!args.target_image_opts).then(|| format.to_owned()),
        image_opts: args.target_image_opts,
        flags: OpenFlags::READ_WRITE,
        cache: plan.target_cache,
        ..ImageSpec::new(plan.target)
    };
    let node = open(&spec).await.map_err(|error| cannot_open(plan.target, &error))?;
    if node.len() < total {
        // Not kept open on the way out: the caller closes only what it was given.
        let _ = graph::close(&node).await;
        return Err(Failure::new("output file is smaller than input file"));
    }
    let contents = match args.target_is_zero {
        true => TargetContents::Zeroes,
        false => TargetContents::Unknown,
    };
    Ok((node, contents))
}
