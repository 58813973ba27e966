//! Making raw files.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::lock::{Claims, ImageLock, Locking};
use super::source::{FileKind, Source, refused};
use super::space;
use crate::driver::{Exactness, Prealloc};
use crate::error::OpenError;
use crate::io::pool;
use crate::range::{to_u64, to_usize};

/// Makes the file `path` of `len` zero bytes, in place of what it held. A device keeps its length,
/// which must be at least `len`, and its contents.
///
/// Fails with [`OpenError::Locked`], and changes nothing, while somebody else uses the image.
pub async fn create(path: &Path, len: u64, prealloc: Prealloc) -> Result<(), OpenError> {
    create_hinted(path, len, prealloc, Hints::default()).await
}

/// What is asked of the file system for a new file. One that knows nothing of it does as it always does.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Hints {
    /// Bytes by which the file is extended at a time; 0 leaves that to the file system.
    pub(super) extent_size: u32,
    /// Data is written in place (btrfs).
    pub(super) no_cow: bool,
}

/// [`create`] with hints for the file system.
pub(super) async fn create_hinted(
    path: &Path,
    len: u64,
    prealloc: Prealloc,
    hints: Hints,
) -> Result<(), OpenError> {
    let owned = path.to_owned();
    let done = pool::run(move || Ok(create_blocking(&owned, len, prealloc, hints))).await;
    done.unwrap_or_else(|error| Err(refused(path, error)))
}

fn create_blocking(
    path: &Path,
    len: u64,
    prealloc: Prealloc,
    hints: Hints,
) -> Result<(), OpenError> {
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
    if hints.extent_size > 0 {
        let _ = space::hint_extent_size(fd, hints.extent_size);
    }
    if hints.no_cow
        && let Ok(flags) = rustix::fs::ioctl_getflags(fd)
    {
        let _ = rustix::fs::ioctl_setflags(fd, flags | rustix::fs::IFlags::NOCOW);
    }
    space::truncate(fd, 0, len, prealloc).map_err(failed)?;
    if matches!(prealloc, Prealloc::Off | Prealloc::Metadata) {
        allocate_first_block(fd, len).map_err(|err| failed(err.into()))?;
    }
    Ok(())
}

/// Writes zeroes to the first block: who opens the file with O_DIRECT learns its alignment by reading
/// there, and file systems answer reads of a hole whatever their alignment.
fn allocate_first_block(fd: BorrowedFd<'_>, len: u64) -> rustix::io::Result<()> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let wanted = to_usize(len.min(to_u64(ZEROES.len())));
    // A short write has allocated the block, too.
    rustix::io::pwrite(fd, &ZEROES[..wanted], 0).map(drop)
}
