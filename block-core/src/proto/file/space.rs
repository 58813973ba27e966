//! The space that a file takes: zeroes, discards, holes, length.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::FileDriver;
use super::source::FileKind;
use crate::buf::{IoBuf, IoVec, OwnedBuf};
use crate::driver::{BlockDriver, Exactness, Prealloc};
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::io::{Durability, Fallocate, Handle, pool};
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::request::status::DriverStatus;

/// Makes `range` read as zeroes without writing them, or answers `Unsupported` with what was there
/// unchanged. What lies beyond the end becomes a hole.
pub(super) async fn write_zeroes(
    driver: &FileDriver,
    range: ByteRange,
    flags: RequestFlags,
) -> Result<()> {
    let handle = driver.writable()?;
    let len = driver.len();
    let inside = range.intersect(ByteRange::up_to(len));
    if !inside.is_empty() {
        zero_inside(driver, &handle, inside, flags).await?;
    }
    if range.end() > len && driver.kind == FileKind::Regular {
        grow(driver, handle, range).await?;
    }
    Ok(())
}

/// Zeroes a range inside of the file.
async fn zero_inside(
    driver: &FileDriver,
    handle: &Arc<Handle>,
    range: ByteRange,
    flags: RequestFlags,
) -> Result<()> {
    let may_unmap = flags.contains(RequestFlags::MAY_UNMAP);
    if may_unmap && fallocate(driver, handle, range, Fallocate::PunchHole).await? {
        return Ok(());
    }
    let device = driver.kind == FileKind::Device;
    if device && flags.contains(RequestFlags::NO_FALLBACK) {
        // The kernel would write the zeroes of a device that knows no better.
        return Err(Error::Unsupported);
    }
    if fallocate(driver, handle, range, Fallocate::ZeroRange).await? {
        return Ok(());
    }
    // A hole that is allocated again is the same. Asked for first, so as not to end with a hole
    // that nobody allowed.
    if !device
        && fallocate(driver, handle, range, Fallocate::Allocate).await?
        && fallocate(driver, handle, range, Fallocate::PunchHole).await?
    {
        fallocate(driver, handle, range, Fallocate::Allocate).await?;
        return Ok(());
    }
    Err(Error::Unsupported)
}

/// Makes the file reach to the end of `range` by a write of zeroes to its last block: unlike a
/// truncate, this cannot cut off what another request has written behind it meanwhile.
async fn grow(driver: &FileDriver, handle: Arc<Handle>, range: ByteRange) -> Result<()> {
    let align = driver.opened.load().align;
    let block = align.request.bytes().min(range.len());
    let buf = IoBuf::zeroed(to_usize(block), align.memory)?;
    let offset = range.end() - block;
    driver.engine.write(handle, offset, IoVec::from(buf), Durability::Cached).await?;
    driver.grow_to(range.end());
    Ok(())
}

/// Gives the space of `range` back, or answers `Unsupported`.
pub(super) async fn discard(driver: &FileDriver, range: ByteRange) -> Result<()> {
    let handle = driver.writable()?;
    let range = range.intersect(ByteRange::up_to(driver.len()));
    if range.is_empty() {
        return Ok(());
    }
    if driver.kind == FileKind::Device {
        return pool::run(move || discard_device(&handle, range)).await;
    }
    if fallocate(driver, &handle, range, Fallocate::PunchHole).await? {
        Ok(())
    } else {
        Err(Error::Unsupported)
    }
}

/// Whether `what` was done; `false` where the file system refuses it, which is remembered.
async fn fallocate(
    driver: &FileDriver,
    handle: &Arc<Handle>,
    range: ByteRange,
    what: Fallocate,
) -> Result<bool> {
    let bit = match what {
        Fallocate::PunchHole => 1,
        Fallocate::ZeroRange => 2,
        Fallocate::Allocate => 4,
    };
    if driver.refused.load(Ordering::Relaxed) & bit != 0 {
        return Ok(false);
    }
    match driver.engine.fallocate(Arc::clone(handle), range, what).await {
        Ok(()) => Ok(true),
        Err(error) if is_refusal(error) => {
            driver.refused.fetch_or(bit, Ordering::Relaxed);
            Ok(false)
        }
        // Not this range: a device's blocks, a file system's whim.
        Err(Error::Os(libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an error means that the storage has no such operation.
fn is_refusal(error: Error) -> bool {
    matches!(error, Error::Os(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV))
}

fn discard_device(handle: &Handle, range: ByteRange) -> Result<()> {
    let bounds = [range.offset(), range.len()];
    // SAFETY: BLKDISCARD takes a pointer to two 64-bit numbers, offset and length, and only reads.
    let result = unsafe { libc::ioctl(handle.as_fd().as_raw_fd(), BLKDISCARD, bounds.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    match Error::from(std::io::Error::last_os_error()) {
        error if is_refusal(error) => Err(Error::Unsupported),
        Error::Os(libc::EINVAL) => Err(Error::Unsupported),
        error => Err(error),
    }
}

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = if cfg!(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc64"
)) {
    0x2000_1277
} else {
    0x1277
};

/// How the first bytes of `range` are stored, by `SEEK_DATA` and `SEEK_HOLE`. All data where the
/// file system does not say.
pub(super) fn status(fd: BorrowedFd<'_>, range: ByteRange) -> Result<DriverStatus> {
    let offset = range.offset();
    let data = match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(data) => data,
        // No data from here to the end.
        Err(Errno::NXIO) => return Ok(DriverStatus::zero(range.len())),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => offset,
        Err(err) => return Err(err.into()),
    };
    if data > offset {
        return Ok(DriverStatus::zero(range.len().min(data - offset)));
    }
    let hole = match rustix::fs::seek(fd, SeekFrom::Hole(offset)) {
        // A hole where there was data: the file is changing under us, and data is never wrong.
        Ok(hole) if hole > offset => hole,
        _ => range.end(),
    };
    Ok(DriverStatus::data(range.len().min(hole - offset)))
}

/// The length of a device is what it is.
pub(super) fn truncate_device(old: u64, len: u64, exactness: Exactness) -> Result<()> {
    match exactness {
        _ if len > old => Err(Error::Invalid),
        Exactness::Exact if len < old => Err(Error::Unsupported),
        _ => Ok(()),
    }
}

/// Changes the length of a file from `old`; blocks. After an error with `prealloc` the file has its
/// old length again, unless even that fails.
pub(super) fn truncate(
    fd: BorrowedFd<'_>,
    old: u64,
    len: u64,
    prealloc: Prealloc,
) -> Result<Added> {
    let added = ByteRange::from_bounds(old, len).ok().filter(|added| !added.is_empty());
    let result = match (prealloc, added) {
        (Prealloc::Off, _) | (Prealloc::Falloc | Prealloc::Full, None) => {
            rustix::fs::ftruncate(fd, len)?;
            return Ok(Added::Asked);
        }
        // A file has no metadata of its own to allocate.
        (Prealloc::Metadata, _) => return Err(Error::Unsupported),
        (Prealloc::Falloc, Some(added)) => {
            let mode = FallocateFlags::empty();
            match rustix::fs::fallocate(fd, mode, added.offset(), added.len()) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(fd, added),
                other => other.map(|()| Added::Asked).map_err(Error::from),
            }
        }
        (Prealloc::Full, Some(added)) => fill(fd, added),
    };
    if result.is_err() {
        // The error to report is the first one.
        let _ = rustix::fs::ftruncate(fd, old);
    }
    result
}

/// How a file became longer.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Added {
    /// The file system was asked for it, and has answered.
    Asked,
    /// By writes, which fail for want of room as late as when they are made stable.
    Written,
}

/// Writes zeroes to all of `range`, at and behind the end of the file.
fn fill(fd: BorrowedFd<'_>, range: ByteRange) -> Result<Added> {
    // Sets the length, so that a last partial block needs no direct write of its own.
    rustix::fs::ftruncate(fd, range.end())?;
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let zeroes = OwnedBuf::zeroed(FILL_BYTES, Alignment::PAGE)?;
    let direct = flags.contains(rustix::fs::OFlags::DIRECT);
    let whole = if direct { range.shrink(Alignment::PAGE) } else { range };
    let mut rest = whole;
    while !rest.is_empty() {
        let (piece, _) = rest.split_at(to_u64(zeroes.len()));
        match rustix::io::pwrite(fd, &zeroes[..to_usize(piece.len())], piece.offset()) {
            Ok(0) => return Err(Error::NO_SPACE),
            Ok(n) => rest = rest.split_at(to_u64(n)).1,
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(Added::Written)
}

/// Bytes written at once to preallocate.
const FILL_BYTES: usize = 1 << 20;
