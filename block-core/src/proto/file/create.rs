//! Making raw files.

use std::os::fd::AsFd;
use std::path::Path;

use super::lock::{Claims, ImageLock, Locking};
use super::source::{FileKind, Source, refused};
use super::space;
use crate::driver::{Exactness, Prealloc};
use crate::error::OpenError;
use crate::io::pool;

/// Makes the file `path` of `len` zero bytes, in place of what it held. A device keeps its length,
/// which must be at least `len`, and its contents.
///
/// Fails with [`OpenError::Locked`], and changes nothing, while somebody else uses the image.
pub async fn create(path: &Path, len: u64, prealloc: Prealloc) -> Result<(), OpenError> {
    let owned = path.to_owned();
    let done = pool::run(move || Ok(create_blocking(&owned, len, prealloc))).await;
    done.unwrap_or_else(|error| Err(refused(path, error)))
}

fn create_blocking(path: &Path, len: u64, prealloc: Prealloc) -> Result<(), OpenError> {
    let source = Source::open_or_create(path)?;
    let failed = |error| refused(path, error);
    let lock_fd = source.fd.try_clone().map_err(|err| failed(err.into()))?;
    let _lock = ImageLock::acquire(lock_fd, path, Locking::Auto, Claims::WRITER)?;
    if source.kind == FileKind::Device {
        let old = source.len().map_err(failed)?;
        return space::truncate_device(old, len, Exactness::AtLeast).map_err(failed);
    }
    let fd = source.fd.as_fd();
    rustix::fs::ftruncate(fd, 0).map_err(|err| failed(err.into()))?;
    space::truncate(fd, 0, len, prealloc).map_err(failed)
}
