//! `amend`: changes the options that an image was made with.

use std::sync::Mutex;

use block_core::{OpenFlags, graph};

use crate::open::{CacheMode, ImageSpec, block_on};
use crate::spec::image_opts;

use super::common::{cache_mode, one_image, open_image};
use super::progress::{Outcome, Progress};
use super::{Failure, Output};

/// Change the options that an image was made with.
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
    /// Cache mode of the image (default: writeback).
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Allow what may lose access to data; no format here has such a change.
    #[arg(long)]
    force: bool,
    /// The options and their new values.
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Amends.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    if args.options.is_empty() {
        return Err(Failure::usage("amend", "Must specify options (-o)"));
    }
    let name = one_image("amend", &args.files)?;
    let options = image_opts::parse(&args.options.join(",")).map_err(Failure::new)?;
    let cache =
        cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid cache option: {}")?;
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        cache,
        flags: OpenFlags::READ_WRITE,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        let mut progress = Progress::new(args.progress && !args.quiet, out);
        progress.show(0, 1, out);
        let shown = Mutex::new((&mut progress, &mut *out));
        let show = |done: u64, total: u64| {
            // Poisoned only if showing has panicked.
            if let Ok(mut shown) = shown.lock() {
                let (progress, out) = &mut *shown;
                progress.show(done, total, out);
            }
        };
        let result = match node.driver().as_amend() {
            Some(amend) => amend.amend(options, &show).await.map_err(Failure::new),
            None => Err(Failure::new(format_args!(
                "Format driver '{}' does not support option amendment",
                node.driver().name()
            ))),
        };
        let flushed = match result {
            Ok(()) => node.flush().await,
            Err(_) => Ok(()),
        };
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Stopped };
        progress.finish(outcome, out);
        let closed = flushed.and(graph::close(&node).await);
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        Ok(0)
    })
}
