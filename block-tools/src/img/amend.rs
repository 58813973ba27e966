//! `amend`: changes the options that an image was made with.

use std::future::poll_fn;
use std::io::Write;
use std::sync::Arc;

use block_core::error::Problem;
use block_core::{OpenError, OpenFlags, graph};
use parking_lot::Mutex;

use crate::open::{CacheMode, ImageSpec, block_on};
use crate::program;

use super::common::{cache_mode, one_image, open_image};
use super::create::{format_of, list, option_list, wants_help};
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
    if let (true, Some(format)) = (wants_help(&args.options), &args.format) {
        return print_help(format, out);
    }
    let name = one_image("amend", &args.files)?;
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
        let format = node.driver().name();
        if wants_help(&args.options) {
            graph::close(&node).await.map_err(Failure::new)?;
            return print_help(format, out);
        }
        let factory = format_of(format).map_err(Failure::new)?;
        let options = option_list(&args.options, factory.create_options()).map_err(Failure::new)?;
        let mut progress = Progress::new(args.progress && !args.quiet, out);
        progress.show(0, 1, out);
        let so_far = Arc::new(Mutex::new((0, 1)));
        let sink = Arc::clone(&so_far);
        let sink = Arc::new(move |done, total| *sink.lock() = (done, total));
        let result = match node.driver().as_amend() {
            Some(amend) => {
                let mut amending = amend.amend(options, sink);
                let watched = poll_fn(|cx| {
                    let polled = amending.as_mut().poll(cx);
                    let (done, total) = *so_far.lock();
                    progress.show(done, total, out);
                    polled
                });
                watched.await.map_err(refused)
            }
            None => Err(unsupported(format)),
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

/// Lists the options of a format that can be amended.
fn print_help(format: &str, out: &mut Output) -> Result<u8, Failure> {
    /// All formats here that amend anything.
    const AMENDABLE: &[(&str, &[&str])] = &[(
        "qcow2",
        &[
            "backing_file",
            "backing_fmt",
            "compat",
            "data_file",
            "data_file_raw",
            "lazy_refcounts",
            "refcount_bits",
            "size",
        ],
    )];
    let factory = format_of(format).map_err(Failure::new)?;
    let amendable = AMENDABLE.iter().find(|(name, _)| *name == factory.name());
    let (_, names) = amendable.ok_or_else(|| unsupported(factory.name()))?;
    let options = factory.create_options().iter().filter(|option| names.contains(&option.name));
    let title = format!("Amend options for '{}':", factory.name());
    out.write_all(list(&title, options.copied().collect()).as_bytes())?;
    Ok(0)
}

fn unsupported(format: &str) -> Failure {
    Failure::new(format_args!("Format driver '{format}' does not support option amendment"))
}

fn refused(error: OpenError) -> Failure {
    match error {
        OpenError::Option { option, problem: Problem::Contradicts(_) }
            if matches!(option.as_str(), "backing_file" | "backing_fmt") =>
        {
            let program = program::name();
            Failure::new(format_args!(
                "Cannot amend the backing file\nYou can use '{program} rebase' instead."
            ))
        }
        error => Failure::new(error),
    }
}
