//! Converts a disk to another format, shows how far it is, and can be stopped.
//!
//! `convert IMAGE TARGET FORMAT [STOP_AT]` copies `IMAGE`, of any format, to the new image `TARGET` of `FORMAT`
//! (`raw`, `qcow2` or `vmdk`). Ctrl-C stops it, and so does coming to byte `STOP_AT`; what was begun is removed.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use block_core::format::raw::RawFactory;
use block_core::graph;
use block_core::io::exec::block_on;
use block_core::job::copy::{CopyError, CopyOptions, CopySource, Progress, TargetContents, copy};
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{Cancel, OpenFlags, Options, Registry};
use block_qcow2::Qcow2Factory;
use block_vmdk::VmdkFactory;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("convert: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (image, target, format, stop_at) = match arguments.as_slice() {
        [image, target, format] => (image, target, format, u64::MAX),
        [image, target, format, stop_at] => (image, target, format, stop_at.parse()?),
        _ => return Err("convert IMAGE TARGET FORMAT [STOP_AT]".into()),
    };
    // Clones share what they stand for.
    let cancel = Cancel::new();
    let on_signal = cancel.clone();
    ctrlc::set_handler(move || on_signal.cancel())?;
    let converted = block_on(convert(image, target, format, stop_at, &cancel));
    match converted {
        Err(Stopped::At(done)) => {
            // Half a disk is of no use to anybody.
            std::fs::remove_file(target)?;
            Err(format!("stopped after {done} bytes").into())
        }
        Err(Stopped::By(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Why there is no converted disk.
enum Stopped {
    /// Somebody wanted it so; the first bytes of the disk were copied.
    At(u64),
    By(Box<dyn Error>),
}

impl<E: Error + 'static> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::By(error.into())
    }
}

async fn convert(
    image: &str,
    target: &str,
    format: &str,
    stop_at: u64,
    cancel: &Cancel,
) -> std::result::Result<(), Stopped> {
    let drivers = Registry::new().with(RawFactory).with(Qcow2Factory).with(VmdkFactory);
    let drivers = Arc::new(drivers.with(FileFactory));
    let reading = OpenContext::new(Arc::clone(&drivers), OpenFlags::READ_ONLY);
    // No driver is named, so the format is guessed.
    let source = reading.open(Options::filename(image)).await?;
    let len = source.len();

    let writing = OpenContext::new(Arc::clone(&drivers), OpenFlags::READ_WRITE);
    let new = Options::filename(target).with("size", len.to_string());
    drivers.get(format)?.create(new, writing.clone()).await?;
    let disk = writing.open(Options::filename(target).with("driver", format)).await?;

    let options = CopyOptions {
        // A fresh image reads as zeroes, so that zeroes need not be written.
        target: TargetContents::Zeroes,
        ..CopyOptions::default()
    };
    // Called after every piece, in the copy's own thread: it should be quick.
    let watch = |Progress { done, total }: Progress| {
        print!("\r{done} of {total} bytes");
        let _shown = std::io::stdout().flush();
        if done >= stop_at {
            cancel.cancel();
        }
    };
    let sources = vec![CopySource::new(source.clone(), len)];
    let copied = copy(sources, &disk, options, cancel, watch).await;
    println!();
    // Closing flushes: only then is the copy safe.
    let closed = graph::close(&disk).await;
    graph::close(&source).await?;
    match copied {
        Err(CopyError::Cancelled { done }) => return Err(Stopped::At(done)),
        copied => {
            let copied = copied?;
            println!("{} bytes of data, {} left out as zeroes", copied.data, copied.skipped);
        }
    }
    Ok(closed?)
}
