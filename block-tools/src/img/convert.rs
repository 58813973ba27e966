//! `convert`: copies one image, or several joined, to another.
//!
//! Invariant: when it ends, by whatever way but a second interrupt, every image is closed and no lock
//! is held; a target that was not finished is left as it is.

use block_core::flags::Support;
use block_core::job::copy::{
    Copied, CopyOptions, CopySource, Layers, MAX_PARALLEL, MAX_SPARSE_BYTES, Offload, OnReadError,
    Sparseness, TargetContents, WriteOrder,
};
use block_core::job::{CopyError, copy};
use block_core::{ByteRange, Cancel, Node, OpenFlags, Options, RequestFlags, graph};
use block_vmdk::stream::ReadInto;

use crate::open::{CacheMode, ImageSpec, block_on, open};

use super::backing::{beside, chain, find_in_chain};
use super::bitmaps::{self, Broken};
use super::common::{SECTOR, cache_mode, cannot_open, open_image, sector_len, size_argument};
use super::compression;
use super::create::{format_of, option_list, print_help, wants_help};
use super::interrupt::{self, cancel_on_signal};
use super::pipe_source::is_pipe;
use super::progress::{Outcome, Progress};
use super::source_snapshot;
use super::stream;
use super::target::Target;
use super::vmdk_source::VmdkSource;
use super::watch::{Rate, Watch};
use super::{Failure, Output};

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
    /// Name or id of the snapshot of the source to copy, or snapshot.id=ID, snapshot.name=NAME.
    #[arg(short = 'l', long, alias = "snapshot", value_name = "SNAPSHOT_PARAMS")]
    source_snapshot: Option<String>,
    /// Format of the target image (default: raw).
    #[arg(
        short = 'O',
        long,
        alias = "output-format",
        value_name = "TGT_FMT",
        conflicts_with = "target_image_opts"
    )]
    target_format: Option<String>,
    /// The target name is options (needs -n).
    #[arg(long)]
    target_image_opts: bool,
    /// Options of the target format.
    #[arg(short = 'o', long, alias = "options", value_name = "TGT_OPTS")]
    target_options: Vec<String>,
    /// Cache mode of the target image (default: unsafe).
    #[arg(short = 't', long, value_name = "TGT_CACHE")]
    target_cache: Option<String>,
    /// Backing file of the target; only what the source holds above it is copied.
    #[arg(short = 'B', long, alias = "backing", value_name = "BACKING_FILENAME")]
    target_backing: Option<String>,
    /// Format of the backing file of the target.
    #[arg(short = 'F', long, value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Write into an image that exists.
    #[arg(short, long)]
    no_create: bool,
    /// The target reads as zeroes all over (needs -n).
    #[arg(long)]
    target_is_zero: bool,
    /// Shortest run of zeroes inside of data that becomes a hole (default 4k); 0: allocate everything.
    #[arg(short = 'S', long, value_name = "SPARSE_SIZE")]
    sparse_size: Option<String>,
    /// Write compressed clusters. -o compression_level=N and compression_window=4k or 32k then say how.
    #[arg(short, long)]
    compress: bool,
    /// Let the file system copy where it can (copy_file_range).
    #[arg(short = 'C', long = "copy-range-offloading")]
    copy_offload: bool,
    /// Open the sources without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Requests in flight, 1 to 16.
    #[arg(short = 'm', long, value_name = "NUM", default_value = "8")]
    parallel: String,
    /// Write as data arrives, not in order.
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Bytes a second that are written at most.
    #[arg(short = 'r', long, value_name = "RATE")]
    rate: Option<String>,
    /// Copy what can be read; the rest is zero in the target.
    #[arg(long)]
    salvage: bool,
    /// Copy the persistent bitmaps too.
    #[arg(long)]
    bitmaps: bool,
    /// Leave out bitmaps that are inconsistent (needs --bitmaps).
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Source images ('-': standard input, for a streamOptimized vmdk with -f vmdk), then the target ('-': standard
    /// output, for qcow2, raw and vmdk with -o subformat=streamOptimized).
    #[arg(value_name = "SRC_FILENAME... TGT_FILENAME")]
    files: Vec<String>,
}

impl Args {
    fn target_format(&self) -> &str {
        self.target_format.as_deref().unwrap_or("raw")
    }
}

/// Bytes of all buffers of a conversion.
const MEMORY_BYTES: u64 = 64 << 20;

/// What the arguments mean.
struct Plan<'a> {
    sources: &'a [String],
    target: &'a str,
    source_cache: CacheMode,
    target_cache: CacheMode,
    /// Options of creation, without those in `open_options`.
    options: Options,
    /// Options of how the target is opened.
    open_options: Options,
    /// The backing file that the target gets, or that an existing one has.
    backing: Option<String>,
    bitmaps: Option<Broken>,
    copy: CopyOptions,
}

/// Converts.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    if wants_help(&args.target_options) {
        let target = args.files.last().map(String::as_str);
        return print_help(args.target_format(), target, out).map_err(Failure::new);
    }
    let plan = plan(args)?;
    let cancel = Cancel::new();
    let rate = Rate::parse(args.rate.as_deref(), &cancel)?;
    let _listening = cancel_on_signal(&cancel)?;
    block_on(async {
        let mut nodes = Vec::new();
        let result = convert(args, &plan, &cancel, rate, &mut nodes, out).await;
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
    let (sparse, parallel) = (sparse_bytes(args)?, parallel(args)?);
    check_combinations(args, sources.len())?;
    // A format that is not known is refused where it is needed.
    let factory = format_of(args.target_format());
    let known = factory.as_ref().map_or(&[][..], |factory| factory.create_options());
    let mut options = option_list(&args.target_options, known).map_err(Failure::new)?;
    if let (false, Some(option)) = (args.compress, compression::option_in(&options)) {
        return Err(Failure::new(format_args!("-o {option} requires use of -c flag")));
    }
    let open_options = compression::take_options(&mut options);
    if args.no_create && !options.is_empty() {
        return Err(Failure::new("-o has no effect when skipping image creation"));
    }
    let target_cache =
        cache_mode(args.target_cache.as_deref(), CacheMode::UNSAFE, "Invalid cache option: {}")?;
    let source_cache = cache_mode(
        args.source_cache.as_deref(),
        CacheMode::WRITEBACK,
        "Invalid source cache option: {}",
    )?;
    let mut write_flags = RequestFlags::empty();
    write_flags.set(RequestFlags::FUA, target_cache.writethrough);
    write_flags.set(RequestFlags::COMPRESSED, args.compress);
    let copy = CopyOptions {
        parallel,
        order: if args.oob_writes { WriteOrder::Any } else { WriteOrder::InOrder },
        sparseness: match sparse {
            0 => Sparseness::Full,
            min_bytes => Sparseness::Holes { min_bytes },
        },
        target: TargetContents::Unknown,
        memory_bytes: MEMORY_BYTES,
        on_read_error: if args.salvage { OnReadError::Salvage } else { OnReadError::Fail },
        write_flags,
        offload: if args.copy_offload { Offload::WherePossible } else { Offload::Never },
    };
    let backing = backing(args, &options);
    if backing.is_some() && sources.len() > 1 {
        return Err(Failure::new(
            "Having a backing file for the target makes no sense when concatenating multiple input \
             images",
        ));
    }
    let bitmaps = args.bitmaps.then_some(match args.skip_broken_bitmaps {
        true => Broken::Skip,
        false => Broken::Refuse,
    });
    Ok(Plan {
        sources,
        target,
        source_cache,
        target_cache,
        options,
        open_options,
        backing,
        bitmaps,
        copy,
    })
}

/// Shortest run of zeroes that becomes a hole (`-S`); zero: none does.
fn sparse_bytes(args: &Args) -> Result<u64, Failure> {
    let sparse_size = args.sparse_size.as_deref().unwrap_or("4k");
    size_argument("buffer size for sparse output", sparse_size, 0, MAX_SPARSE_BYTES)
        .ok()
        .filter(|bytes| bytes % SECTOR == 0)
        .ok_or_else(|| {
            Failure::new(format_args!(
                "Invalid buffer size for sparse output specified. Valid sizes are multiples of \
                 {SECTOR} up to {MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully \
                 allocates output)."
            ))
        })
}

/// Requests in flight (`-m`).
fn parallel(args: &Args) -> Result<usize, Failure> {
    let parallel = args.parallel.parse().ok().filter(|n| (1..=MAX_PARALLEL).contains(n));
    parallel.ok_or_else(|| {
        Failure::new(format_args!(
            "Invalid number of coroutines specified. Must be between 1 and {MAX_PARALLEL}."
        ))
    })
}

/// Refuses options that need others, or cannot stand beside them.
fn check_combinations(args: &Args, sources: usize) -> Result<(), Failure> {
    if args.copy_offload && args.compress {
        return Err(Failure::new("Cannot enable copy offloading when -c is used"));
    }
    if args.copy_offload && args.sparse_size.is_some() {
        return Err(Failure::new("Cannot enable copy offloading when -S is used"));
    }
    let needs = |option| Err(Failure::new(format_args!("--{option} requires use of -n flag")));
    if args.target_image_opts && !args.no_create {
        return needs("target-image-opts");
    }
    if args.target_is_zero && !args.no_create {
        return needs("target-is-zero");
    }
    if args.skip_broken_bitmaps && !args.bitmaps {
        return Err(Failure::new("Use of --skip-broken-bitmaps requires --bitmaps"));
    }
    if args.bitmaps && sources > 1 {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    }
    if args.source_snapshot.is_some() && sources > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    Ok(())
}

/// The backing file that `-B` or `-o` names.
fn backing(args: &Args, options: &Options) -> Option<String> {
    let given = args.target_backing.as_deref();
    given.or_else(|| options.peek("backing_file")).map(str::to_owned)
}

/// Opens the images into `nodes` and copies.
async fn convert(
    args: &Args,
    plan: &Plan<'_>,
    cancel: &Cancel,
    rate: Option<Rate>,
    nodes: &mut Vec<Node>,
    out: &mut Output,
) -> Result<u8, Failure> {
    if let Some(name) = piped_source(args, plan) {
        return convert_piped(name, args, plan, cancel, rate, nodes, out).await;
    }
    let stream = stream_target(args, plan);
    if let Some(stream) = &stream {
        stream::check(stream, &unfit_for_streams(args), out)?;
    }
    let sources = open_sources(args, plan, nodes).await?;
    match &stream {
        Some(stream) if plan.target == stream::STDOUT => {
            return stream::write(stream, sources, cancel, rate).await;
        }
        Some(stream) => {
            let file = stream_file(plan, nodes).await?;
            let mut progress = Progress::new(stream.progress, out);
            let watch = Watch { progress: &mut progress, out, quiet: args.quiet, rate };
            let flags = plan.copy.write_flags - RequestFlags::COMPRESSED;
            let written = stream::write_file(stream, sources, &file, flags, cancel, watch).await;
            let outcome = if written.is_ok() { Outcome::Done } else { Outcome::Stopped };
            progress.finish(outcome, out);
            return written.map(|()| 0);
        }
        None => {}
    }
    if let (Some(broken), Some(source)) = (plan.bitmaps, sources.first()) {
        bitmaps::check_source(&source.node, broken)?;
    }
    let total = sources.iter().map(|source| source.len).fold(0, u64::saturating_add);
    let (target, contents) = open_target(args, plan, total, nodes).await?;
    if plan.bitmaps.is_some() {
        bitmaps::check_target(&target)?;
    }
    let options = CopyOptions { target: contents, ..plan.copy };
    let source = sources.first().map(|source| source.node.clone());

    let mut progress = Progress::new(args.progress && !args.quiet, out);
    let watch = Watch { progress: &mut progress, out, quiet: args.quiet, rate };
    let copied = copy(sources, &target, options, cancel, watch).await;
    let finished = finish(&target, copied, total).await;
    let outcome = if finished.is_ok() { Outcome::Done } else { Outcome::Stopped };
    progress.finish(outcome, out);
    finished?;
    if let (Some(broken), Some(source)) = (plan.bitmaps, source) {
        bitmaps::copy(&source, &target, broken)?;
    }
    Ok(0)
}

/// The name of the source, if it is a VMDK that comes from a pipe.
fn piped_source<'a>(args: &Args, plan: &Plan<'a>) -> Option<&'a str> {
    let is_vmdk = !args.image_opts && args.source_format.as_deref() == Some("vmdk");
    plan.sources.iter().map(String::as_str).find(|name| is_vmdk && is_pipe(name))
}

/// Copies a VMDK that comes from a pipe; the target is made when its header was read.
async fn convert_piped(
    name: &str,
    args: &Args,
    plan: &Plan<'_>,
    cancel: &Cancel,
    rate: Option<Rate>,
    nodes: &mut Vec<Node>,
    out: &mut Output,
) -> Result<u8, Failure> {
    let Sparseness::Holes { min_bytes } = plan.copy.sparseness else {
        return Err(Failure::new("-S 0 cannot be used when the source is a pipe"));
    };
    let unfit = unfit_for_piped_sources(args, plan);
    let source = VmdkSource::open(name, &unfit, cancel).await?;
    let (target, contents) = open_target(args, plan, source.disk_len(), nodes).await?;
    let options = ReadInto {
        target: contents,
        min_zero_bytes: min_bytes,
        write_flags: plan.copy.write_flags,
    };
    let mut progress = Progress::new(args.progress && !args.quiet, out);
    let watch = Watch { progress: &mut progress, out, quiet: args.quiet, rate };
    let written = source.write_to(&target, options, cancel, watch).await;
    let outcome = if written.is_ok() { Outcome::Done } else { Outcome::Stopped };
    progress.finish(outcome, out);
    written.map(|()| 0)
}

/// What cannot be done with a source that is read from its first byte to its last, and whether it is wanted.
fn unfit_for_piped_sources(args: &Args, plan: &Plan<'_>) -> [(&'static str, bool); 8] {
    [
        ("More than one source", plan.sources.len() > 1),
        ("A target that is a pipe or streamOptimized", stream_target(args, plan).is_some()),
        ("-T", args.source_cache.is_some()),
        ("-l", args.source_snapshot.is_some()),
        ("A backing file of the target", plan.backing.is_some()),
        ("-C", args.copy_offload),
        ("--salvage", args.salvage),
        ("--bitmaps", args.bitmaps),
    ]
}

/// The target, if it is one that is written from its first byte to its last.
fn stream_target<'a>(args: &'a Args, plan: &Plan<'a>) -> Option<stream::Target<'a>> {
    let format = args.target_format();
    if plan.target != stream::STDOUT && !stream::is_forward(format, &plan.options) {
        return None;
    }
    Some(stream::Target {
        name: plan.target,
        format,
        options: plan.options.clone(),
        compress: args.compress.then(|| plan.open_options.clone()),
        progress: args.progress && !args.quiet,
        parallel: plan.copy.parallel,
    })
}

/// Makes the file of a target that is written forward, into `nodes`; it is empty.
async fn stream_file(plan: &Plan<'_>, nodes: &mut Vec<Node>) -> Result<Node, Failure> {
    let file = Target::new(plan.target, "raw", &Options::new(), 0)?;
    let node = file.make(plan.target_cache).await?;
    nodes.push(node.clone());
    match node.len() {
        0 => Ok(node),
        // Its end is not where the image ends.
        _ => Err(Failure::new(format_args!(
            "'{}': a streamOptimized image is written to a regular file or a pipe only",
            plan.target
        ))),
    }
}

/// The options that a target cannot have which is written from its first byte to its last, and whether
/// they are given.
fn unfit_for_streams(args: &Args) -> [(&'static str, bool); 9] {
    [
        ("-n", args.no_create),
        ("--target-image-opts", args.target_image_opts),
        (
            "-t",
            args.target_cache.is_some() && args.files.last().is_some_and(|f| f == stream::STDOUT),
        ),
        ("-B", args.target_backing.is_some()),
        ("-F", args.backing_format.is_some()),
        ("-S", args.sparse_size.is_some()),
        ("-C", args.copy_offload),
        ("--salvage", args.salvage),
        ("--bitmaps", args.bitmaps),
    ]
}

/// What became of the copy, and of the flush behind it.
async fn finish(
    target: &Node,
    copied: Result<Copied, CopyError>,
    total: u64,
) -> Result<(), Failure> {
    match copied {
        Ok(_) => {}
        Err(CopyError::Cancelled { done }) => {
            let text = format_args!("interrupted after {done} of {total} bytes");
            return Err(Failure::new(text).with_status(interrupt::status()));
        }
        Err(error) => return Err(Failure::new(error)),
    }
    let flushed = target.flush().await;
    flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
}

/// Opens the sources, with those of their layers that are copied.
async fn open_sources(
    args: &Args,
    plan: &Plan<'_>,
    nodes: &mut Vec<Node>,
) -> Result<Vec<CopySource>, Failure> {
    let mut sources = Vec::new();
    for name in plan.sources {
        let mut spec = ImageSpec {
            format: args.source_format.clone(),
            image_opts: args.image_opts,
            cache: plan.source_cache,
            force_share: args.force_share,
            ..ImageSpec::new(name)
        };
        if let Some(snapshot) = &args.source_snapshot {
            source_snapshot::select(&mut spec, snapshot).await?;
        }
        let node = open_image(&spec, 1).await?;
        nodes.push(node.clone());
        let layers = match &plan.backing {
            None => Layers::All,
            Some(backing) => layers_above(&node, &beside(plan.target, backing)),
        };
        let len = sector_len(&node);
        sources.push(CopySource { layers, ..CopySource::new(node, len) });
    }
    Ok(sources)
}

/// The layers of `source` that a target over `path` needs: those above that file, or, if it is
/// another one with the same contents, above the source's own backing file.
fn layers_above(source: &Node, path: &str) -> Layers {
    let found = find_in_chain(source, path).map(|(node, _)| node);
    match found.or_else(|| chain(source).next()) {
        Some(base) => Layers::Above(base),
        None => Layers::All,
    }
}

/// Makes or opens the target, into `nodes`; says what is known of its contents.
async fn open_target(
    args: &Args,
    plan: &Plan<'_>,
    total: u64,
    nodes: &mut Vec<Node>,
) -> Result<(Node, TargetContents), Failure> {
    let format = args.target_format();
    if args.no_create {
        return open_existing(args, plan, total, nodes).await;
    }
    if args.compress {
        compression::check_format(format, &plan.options)?;
    }
    let mut new = Target::new(plan.target, format, &plan.options, total)?;
    new.set_backing(args.target_backing.as_deref(), args.backing_format.as_deref())?;
    new.set_open_options(plan.open_options.clone());
    let node = new.make(plan.target_cache).await?;
    nodes.push(node.clone());
    if args.compress {
        compression::check_node(&node)?;
    }
    let is_zero = plan.backing.is_none()
        && (node.capabilities().has_zero_init || empties(plan, &node, total).await);
    let contents = if is_zero { TargetContents::Zeroes } else { TargetContents::Unknown };
    Ok((node, contents))
}

/// Whether a raw target could be made to read as zeroes at once, and does: a device that is thin can.
async fn empties(plan: &Plan<'_>, target: &Node, total: u64) -> bool {
    let capabilities = target.capabilities();
    let fast = [capabilities.zeroes_no_fallback, capabilities.zeroes_may_unmap];
    let wanted = target.driver().name() == "raw"
        && plan.copy.sparseness != Sparseness::Full
        && fast == [Support::Native; 2];
    let flags = RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK;
    let len = target.limits().request_alignment.round_up(total).min(target.len());
    match ByteRange::new(0, len) {
        // What cannot be done at once is done hole by hole.
        Ok(all) if wanted => target.write_zeroes(all, flags).await.is_ok(),
        _ => false,
    }
}

/// Opens a target that exists (`-n`), into `nodes`.
async fn open_existing(
    args: &Args,
    plan: &Plan<'_>,
    total: u64,
    nodes: &mut Vec<Node>,
) -> Result<(Node, TargetContents), Failure> {
    let format = args.target_format();
    if !args.target_image_opts {
        format_of(format).map_err(Failure::new)?;
    }
    let spec = ImageSpec {
        format: (!args.target_image_opts).then(|| format.to_owned()),
        image_opts: args.target_image_opts,
        flags: OpenFlags::READ_WRITE,
        cache: plan.target_cache,
        options: plan.open_options.clone(),
        ..ImageSpec::new(plan.target)
    };
    let node = open(&spec).await.map_err(|error| cannot_open(plan.target, &error))?;
    nodes.push(node.clone());
    if args.compress {
        compression::check_node(&node)?;
    }
    if sector_len(&node) < total {
        return Err(Failure::new("output file is smaller than input file"));
    }
    if args.target_is_zero && (node.backing().is_some() || plan.backing.is_some()) {
        return Err(Failure::new(
            "Cannot use --target-is-zero when the destination image has a backing file",
        ));
    }
    let contents = match args.target_is_zero {
        true => TargetContents::Zeroes,
        false => TargetContents::Unknown,
    };
    Ok((node, contents))
}
