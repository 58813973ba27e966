//! An overlay for the writes of one session, which leaves no trace: its file has no name any more once it
//! is open.

use std::ffi::OsString;
use std::path::PathBuf;

use block_core::registry::OpenContext;
use block_core::{Error, Node, OpenError, OpenFlags, Options, graph};

use crate::open::{ImageSpec, Writes, open_in};
use crate::spec::SpecError;

/// The format of the overlay.
const FORMAT: &str = "qcow2";

/// Where the overlay is made unless `TMPDIR` says otherwise: not in memory, as it may become large.
const DIRECTORY: &str = "/var/tmp";

/// Opens the image for reading, and an empty overlay over it, for writing if the image was to be.
pub(crate) async fn open(context: OpenContext, spec: &ImageSpec) -> Result<Node, SpecError> {
    let flags = OpenFlags { writable: false, ..spec.flags };
    let below = ImageSpec { writes: Writes::Image, flags, ..spec.clone() };
    let len = len_of(context.clone(), &below).await?;

    let directory = std::env::var_os("TMPDIR").filter(|name| !name.is_empty());
    let directory = PathBuf::from(directory.unwrap_or_else(|| OsString::from(DIRECTORY)));
    let failed =
        |error: std::io::Error| OpenError::File { path: directory.clone(), error: error.into() };
    // Says what is wrong with it; the error below would not.
    std::fs::metadata(&directory).map_err(failed)?;
    let file = tempfile::Builder::new().prefix("block-").tempfile_in(&directory);
    let file = file.map_err(failed)?;
    let name =
        file.path().to_str().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;

    let factory = context.registry.get(FORMAT)?.clone();
    let new = Options::filename(name).with("size", len.to_string());
    let mut made = context.clone();
    made.flags = OpenFlags::READ_WRITE;
    factory.create(new, made).await?;

    let mut options = Options::new()
        .with("driver", FORMAT)
        .with("file.driver", "file")
        .with("file.filename", name)
        // Nobody can ask for it after a crash.
        .with("cache.no-flush", "on");
    for (name, value) in below.node_options()?.iter() {
        options.set(format!("backing.{name}"), value);
    }
    let mut overlay = context;
    overlay.flags.writable = spec.flags.writable;
    let node = overlay.open(options).await?;
    // Only the open file is left; what its descriptor holds goes when it is closed.
    file.close().map_err(failed)?;
    Ok(node)
}

/// Length of the image.
async fn len_of(context: OpenContext, spec: &ImageSpec) -> Result<u64, SpecError> {
    let node = Box::pin(open_in(context, spec)).await?;
    let len = node.len();
    let closed = graph::close(&node).await;
    closed.map_err(|error: Error| OpenError::Request { what: "closing", error })?;
    Ok(len)
}
