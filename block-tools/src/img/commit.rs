//! `commit`: moves what an image holds into its backing file.

use std::io::Write;

use block_core::job::CopyError;
use block_core::job::commit::{Afterwards, CommitError, CommitOptions, commit};
use block_core::job::copy::{Copied, CopyOptions};
use block_core::{Cancel, Node, OpenFlags, RequestFlags, graph};

use crate::open::{CacheMode, ImageSpec, block_on, open};

use super::backing::{beside, chain, find_in_chain, spec_of_path};
use super::common::{cache_mode, one_image, open_image};
use super::info::storage_name;
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
        let depth = depth_of_base(args, &spec).await?;
        let spec =
            ImageSpec { flags: OpenFlags::READ_WRITE, writable_backing_depth: Some(depth), ..spec };
        let mut progress = Progress::new(args.progress && !args.quiet, out);
        let watch = Watch { progress: &mut progress, out, quiet: args.quiet, rate };
        let result = commit_to(args, &spec, depth, &cancel, watch).await;
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Stopped };
        progress.finish(outcome, out);
        result?;
        if !args.quiet {
            writeln!(out, "Image committed.")?;
        }
        Ok(0)
    })
}

/// How many images are above the base.
async fn depth_of_base(args: &Args, spec: &ImageSpec) -> Result<usize, Failure> {
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
    Ok(depth)
}

/// Opens the image with its base writable, commits and closes.
async fn commit_to(
    args: &Args,
    spec: &ImageSpec,
    depth: usize,
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
    let result = match chain(&top).nth(depth - 1) {
        Some(base) => commit(&top, &base, options, cancel, watch).await,
        None => Err(CommitError::NotInChain),
    };
    // The top looks after itself.
    let above = depth.checked_sub(2).and_then(|above| chain(&top).nth(above));
    let stale = above.as_ref().and_then(Stale::of);
    let closed = graph::close(&top).await;
    drop((top, above));
    let named = match stale {
        Some(stale) => stale.name_again(spec.cache).await,
        None => Ok(()),
    };
    let copied = result.map_err(|error| match error {
        CommitError::Copy(CopyError::Cancelled { .. }) => {
            Failure::new("interrupted").with_status(interrupt::status())
        }
        other => Failure::new(other),
    })?;
    closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
    named.map(|()| copied)
}

/// The image directly above the base, below the top, where it names a state of the base that is gone now.
/// Without being told, it would not open, nor would the top.
struct Stale {
    path: String,
    format: &'static str,
    backing: String,
    backing_format: Option<String>,
}

impl Stale {
    /// `None` if the image can do without.
    fn of(node: &Node) -> Option<Self> {
        let driver = node.driver();
        driver.as_rebase().filter(|rebase| rebase.names_state())?;
        let info = driver.info();
        Some(Self {
            path: storage_name(node)?,
            format: driver.name(),
            backing: info.backing_filename?,
            backing_format: info.backing_format,
        })
    }

    async fn name_again(&self, cache: CacheMode) -> Result<(), Failure> {
        let path = &self.path;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format_args!("Could not name the backing file of '{path}' again: {error}"))
        };
        let spec = ImageSpec {
            flags: OpenFlags { no_backing: true, ..OpenFlags::READ_WRITE },
            ..spec_of_path(path.clone(), Some(self.format), cache)
        };
        let node = open(&spec).await.map_err(|error| failed(&error))?;
        let changed = match node.driver().as_rebase() {
            Some(rebase) => {
                rebase.change_backing(Some(&self.backing), self.backing_format.as_deref()).await
            }
            None => Ok(()),
        };
        let closed = graph::close(&node).await;
        changed.map_err(|error| failed(&error))?;
        closed.map_err(|error| failed(&error))
    }
}
