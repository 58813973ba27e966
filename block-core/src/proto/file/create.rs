//! Making raw files.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use super::lock::{Claims, ImageLock, Locking};
use super::source::{FileKind, Source, refused};
use super::space::{self, Added};
use crate::driver::Prealloc;
use crate::error::{Error, OpenError};
use crate::io::pool;
use crate::made::MadeFiles;
use crate::range::{to_u64, to_usize};

/// What a new file asks of its file system. One that knows nothing of it is not told.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// Allocates in pieces of so many bytes.
    pub extent_size: Option<u32>,
    /// Writes in place where it would write elsewhere.
    pub no_cow: bool,
}

/// Makes the file `path` of `len` zero bytes, in place of what it held. A device keeps its length,
/// which must be at least `len`, and its contents.
///
/// Fails with [`OpenError::Locked`], and changes nothing, while somebody else uses the image.
pub async fn create(path: &Path, len: u64, prealloc: Prealloc) -> Result<(), OpenError> {
    create_with(path, len, prealloc, Hints::default()).await
}

/// [`create`] with hints for the file system.
pub async fn create_with(
    path: &Path,
    len: u64,
    prealloc: Prealloc,
    hints: Hints,
) -> Result<(), OpenError> {
    create_recorded(path, len, prealloc, hints, MadeFiles::default()).await
}

/// [`create_with`]; a file that it has made or emptied is among `made`, also when it fails.
pub(super) async fn create_recorded(
    path: &Path,
    len: u64,
    prealloc: Prealloc,
    hints: Hints,
    made: MadeFiles,
) -> Result<(), OpenError> {
    let owned = path.to_owned();
    let done = pool::run(move || Ok(create_blocking(&owned, len, prealloc, hints, &made))).await;
    done.unwrap_or_else(|error| Err(refused(path, error)))
}

fn create_blocking(
    path: &Path,
    len: u64,
    prealloc: Prealloc,
    hints: Hints,
    made: &MadeFiles,
) -> Result<(), OpenError> {
    let (source, before) = Source::open_or_create(path)?;
    let failed = |error| refused(path, error);
    let lock_fd = source.fd.try_clone().map_err(|err| failed(err.into()))?;
    let _lock = ImageLock::acquire(lock_fd, path, Locking::Auto, Claims::WRITER)?;
    if source.kind == FileKind::Device {
        let old = source.len().map_err(failed)?;
        return check_device(old, len);
    }
    let file = source.fd.try_clone().map(File::from);
    let metadata = file.and_then(|file| file.metadata());
    made.add(path, &metadata.map_err(|err| failed(err.into()))?, before);
    let fd = source.fd.as_fd();
    rustix::fs::ftruncate(fd, 0).map_err(|err| failed(err.into()))?;
    hints.tell(fd).map_err(failed)?;
    if space::truncate(fd, 0, len, prealloc).map_err(failed)? == Added::Written {
        rustix::fs::fdatasync(fd).map_err(|err| failed(err.into()))?;
    }
    if matches!(prealloc, Prealloc::Off | Prealloc::Metadata) {
        allocate_first_block(fd, len).map_err(|err| failed(err.into()))?;
    }
    Ok(())
}

/// Refuses a device of `old` bytes for an image of `len`.
fn check_device(old: u64, len: u64) -> Result<(), OpenError> {
    if len <= old {
        return Ok(());
    }
    let problem = format!("Cannot grow device files: it has {old} bytes, and {len} are needed");
    Err(OpenError::Text { format: "host_device", what: "length", problem })
}

/// Writes zeroes to the first block: who opens the file with O_DIRECT learns its alignment by reading
/// there, and file systems answer reads of a hole whatever their alignment.
fn allocate_first_block(fd: BorrowedFd<'_>, len: u64) -> rustix::io::Result<()> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let wanted = to_usize(len.min(to_u64(ZEROES.len())));
    // A short write has allocated the block, too.
    rustix::io::pwrite(fd, &ZEROES[..wanted], 0).map(drop)
}

/// `struct fsxattr` of the kernel.
#[repr(C)]
#[derive(Default)]
struct FsxAttr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const _: () = assert!(size_of::<FsxAttr>() == 28);

/// `_IOR('X', 31, struct fsxattr)` and `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
/// The extent size of `fsxattr` counts.
const FS_XFLAG_EXTSIZE: u32 = 0x800;

impl Hints {
    /// Tells the file system of an empty file.
    fn tell(self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        if self.no_cow {
            // Where the flag means nothing it is refused, with one error or another.
            if let Ok(flags) = rustix::fs::ioctl_getflags(fd) {
                let _ = rustix::fs::ioctl_setflags(fd, flags | rustix::fs::IFlags::NOCOW);
            }
        }
        match self.extent_size {
            None | Some(0) => Ok(()),
            Some(bytes) => match set_extent_size(fd, bytes) {
                // The file system has no such thing, or does not like the size.
                Err(Error::Os(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL)) => Ok(()),
                told => told,
            },
        }
    }
}

fn set_extent_size(fd: BorrowedFd<'_>, bytes: u32) -> Result<(), Error> {
    let mut attributes = FsxAttr::default();
    let done = |result| match result {
        0 => Ok(()),
        _ => Err(Error::from(std::io::Error::last_os_error())),
    };
    // SAFETY: both take a pointer to a `struct fsxattr`; the first writes all of it, the second only reads.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) })?;
    attributes.xflags |= FS_XFLAG_EXTSIZE;
    attributes.extsize = bytes;
    // SAFETY: as above.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) })
}
