//! `commit`: moves what an image holds into its backing file.

use std::io::Write;
use std::ops::Range;

use block_core::job::CopyError;
use block_core::job::commit::{Afterwards, CommitError, CommitOptions, commit};
use block_core::job::copy::{Copied, CopyOptions};
use block_core::{Cancel, OpenFlags, RequestFlags, graph};

use crate::open::{CacheMode, ImageSpec, block_on};

use super::backing::{beside, chain, find_in_chain};
use super::common::{cache_mode, one_image, open_image};
use super::interrupt::{self, cancel_on_signal};
use super::progress::{Outcome, Progress};
use super::watch::{Rate, Watch};
use super::{Failure, Output};

/// Move what an image holds into its backing file.
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
    /// Cache mode of the image and of its backing files (default: writeback).
    #[arg(short = 't', long, value_name = "CACHE_MODE")]
    cache: Option<String>,
    /// The backing file to commit to, if not the nearest; the image keeps its data then.
    #[arg(short, long, value_name = "BASE_IMG")]
    base: Option<String>,
    /// Let the image keep its data.
    #[arg(short, long)]
    drop: bool,
    /// Bytes a second that are written at most.
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Commits.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("commit", &args.files)?;
    let cache =
        cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid cache option: {}")?;
    let cancel = Cancel::new();
    let rate = Rate::parse(args.rate.as_deref(), &cancel)?;
    let _listening = cancel_on_signal(&cancel)?;
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        cache,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let writable_backing_depths = depths_to_write(args, &spec).await?;
        let spec = ImageSpec { flags: OpenFlags::READ_WRITE, writable_backing_depths, ..spec };
        let mut progress = Progress::new(args.progress && !args.quiet, out);
        let watch = Watch { progress: &mut progress, out, quiet: args.quiet, rate };
        let result = commit_to(args, &spec, &cancel, watch).await;
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Stopped };
        progress.finish(outcome, out);
        result?;
        if !args.quiet {
            writeln!(out, "Image committed.")?;
        }
        Ok(0)
    })
}

/// The depths of the backing files that the commit writes to. The base is the last; the image above it is among
/// them if it names the base's state.
async fn depths_to_write(args: &Args, spec: &ImageSpec) -> Result<Range<usize>, Failure> {
    let node = open_image(spec, 1).await?;
    let depth = match &args.base {
        None => chain(&node).next().map(|_| 1),
        Some(base) => {
            let found = find_in_chain(&node, base);
            found
                .or_else(|| find_in_chain(&node, &beside(&spec.name, base)))
                .map(|(_, depth)| depth)
        }
    };
    let has_backing = node.backing().is_some();
    let above = depth.and_then(|depth| chain(&node).nth(depth.checked_sub(2)?));
    let names_state = above
        .is_some_and(|above| above.driver().as_rebase().is_some_and(|rebase| rebase.names_state()));
    graph::close(&node).await.map_err(Failure::new)?;
    let Some(depth) = depth else {
        let name = &spec.name;
        return Err(match &args.base {
            Some(base) if has_backing => {
                Failure::new(format_args!("Did not find '{base}' in the backing chain of '{name}'"))
            }
            _ => Failure::new("Image does not have a backing file"),
        });
    };
    Ok(depth - usize::from(names_state)..depth + 1)
}

/// Opens the image with its base writable, commits and closes.
async fn commit_to(
    args: &Args,
    spec: &ImageSpec,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<Copied, Failure> {
    let top = open_image(spec, 1).await?;
    let afterwards = match args.drop || args.base.is_some() {
        true => Afterwards::Keep,
        false => Afterwards::Empty,
    };
    let write_flags = match spec.cache.writethrough {
        true => RequestFlags::FUA,
        false => RequestFlags::empty(),
    };
    let copy = CopyOptions { write_flags, ..CopyOptions::default() };
    let options = CommitOptions { copy, afterwards };
    // The chain begins with the image at depth 1, and the base is the last of those that are written to.
    let result = match chain(&top).nth(spec.writable_backing_depths.end - 2) {
        Some(base) => commit(&top, &base, options, cancel, watch).await,
        None => Err(CommitError::NotInChain),
    };
    let closed = graph::close(&top).await;
    let copied = result.map_err(|error| match error {
        CommitError::Copy(CopyError::Cancelled { .. }) => {
            Failure::new("interrupted").with_status(interrupt::status())
        }
        other => Failure::new(other),
    })?;
    closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
    Ok(copied)
}
