//! Opening files, and what there is to know of them: kind, length, alignment.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::buf::OwnedBuf;
use crate::error::{Error, OpenError, Result};
use crate::io::Handle;
use crate::made::Before;
use crate::range::{Alignment, MAX_LEN, to_usize};

/// What is behind a name.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum FileKind {
    /// A regular file, which can grow.
    Regular,
    /// A block or character device of fixed length.
    Device,
}

/// How a file is opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Access {
    /// For writing, too.
    pub(super) writable: bool,
    /// Past the page cache.
    pub(super) direct: bool,
}

/// What requests must be multiples of.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct IoAlignment {
    /// Offsets and lengths.
    pub(super) request: Alignment,
    /// Addresses.
    pub(super) memory: Alignment,
    /// Zero writes and discards that are to do something.
    pub(super) block: Alignment,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) kind: FileKind,
    pub(super) access: Access,
    pub(super) align: IoAlignment,
}

impl Source {
    /// Opens what `path` names. Pipes, sockets and directories are refused, without waiting for
    /// anybody at the other end.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        Self::open_flags(path, access, OFlags::empty()).map_err(|error| refused(path, error))
    }

    /// [`Source::open`], which makes an empty file if there is none.
    pub(super) fn open_or_create(path: &Path) -> Result<(Self, Before), OpenError> {
        let access = Access { writable: true, direct: false };
        let opened = match Self::open_flags(path, access, OFlags::CREATE | OFlags::EXCL) {
            Err(Error::Os(libc::EEXIST)) => {
                Self::open_flags(path, access, OFlags::CREATE).map(|source| (source, Before::There))
            }
            made => made.map(|source| (source, Before::Missing)),
        };
        opened.map_err(|error| refused(path, error))
    }

    /// Opens the same file again in another way, though its name may lead elsewhere by now.
    pub(super) fn open_again(
        fd: BorrowedFd<'_>,
        path: &Path,
        access: Access,
    ) -> Result<Self, OpenError> {
        let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let again = Self::open_flags(&link, access, OFlags::empty())
            // Without /proc the name must do.
            .or_else(|_| Self::open_flags(path, access, OFlags::empty()))
            .map_err(|error| refused(path, error))?;
        match is_same_file(fd, again.fd.as_fd()) {
            Ok(true) => Ok(again),
            Ok(false) => Err(refused(path, Error::Os(libc::ESTALE))),
            Err(error) => Err(refused(path, error)),
        }
    }

    fn open_flags(path: &Path, access: Access, more: OFlags) -> Result<Self> {
        // NONBLOCK keeps the open itself from waiting for a peer of a pipe; it must not stay, since
        // io_uring takes it for a wish not to wait for the disk.
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | more;
        flags |= if access.writable { OFlags::RDWR } else { OFlags::RDONLY };
        if access.direct {
            flags |= OFlags::DIRECT;
        }
        let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
        let stat = rustix::fs::fstat(&fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::BlockDevice | FileType::CharacterDevice => FileKind::Device,
            FileType::Directory => return Err(Error::Os(libc::EISDIR)),
            _ => return Err(Error::Os(libc::ESPIPE)),
        };
        let now = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, now.difference(OFlags::NONBLOCK))?;
        let align = alignment(fd.as_fd(), kind, access.direct)?;
        Ok(Self { fd, kind, access, align })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> Result<u64> {
        file_len(self.fd.as_fd(), self.kind)
    }

    /// As the engines take it.
    pub(super) fn into_handle(self) -> Handle {
        if self.access.direct {
            Handle::direct(self.fd, self.align.request)
        } else {
            Handle::buffered(self.fd)
        }
    }
}

/// The system's refusal of `path`.
pub(super) fn refused(path: &Path, error: Error) -> OpenError {
    OpenError::File { path: path.to_owned(), error }
}

/// Length in bytes of an open file or device.
pub(super) fn file_len(fd: BorrowedFd<'_>, kind: FileKind) -> Result<u64> {
    let len = match kind {
        FileKind::Regular => u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0),
        FileKind::Device => match rustix::fs::seek(fd, SeekFrom::End(0)) {
            // A device that cannot seek has no length.
            Err(Errno::SPIPE | Errno::INVAL) => 0,
            len => len?,
        },
    };
    if len <= MAX_LEN { Ok(len) } else { Err(Error::Os(libc::EFBIG)) }
}

/// Bytes that the file system holds for an open file.
pub(super) fn allocated_len(fd: BorrowedFd<'_>) -> Result<u64> {
    // The unit is 512 bytes whatever the file system's block size.
    Ok(u64::try_from(rustix::fs::fstat(fd)?.st_blocks).unwrap_or(0).saturating_mul(512))
}

fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok(one.st_dev == other.st_dev && one.st_ino == other.st_ino && one.st_rdev == other.st_rdev)
}

fn alignment(fd: BorrowedFd<'_>, kind: FileKind, direct: bool) -> Result<IoAlignment> {
    let block = match kind {
        FileKind::Regular => Alignment::ONE,
        FileKind::Device => logical_block(fd),
    };
    if !direct {
        return Ok(IoAlignment { request: Alignment::ONE, memory: Alignment::ONE, block });
    }
    let (request, memory) = match told_alignment(fd)? {
        Some(told) => told,
        // What a device takes is known to follow from its block size.
        None if kind == FileKind::Device => (block, block),
        None => probed_alignment(fd)?,
    };
    Ok(IoAlignment { request, memory, block: block.max(request) })
}

/// Logical block size of a device; one sector where it does not say.
fn logical_block(fd: BorrowedFd<'_>) -> Alignment {
    let told = rustix::fs::ioctl_blksszget(fd).ok();
    told.and_then(|bytes| power_of_two(u64::from(bytes))).unwrap_or(Alignment::SECTOR)
}

/// Request and memory alignment of direct I/O as the file system tells them (Linux 6.1); `None` if
/// it does not.
fn told_alignment(fd: BorrowedFd<'_>) -> Result<Option<(Alignment, Alignment)>> {
    let Ok(stat) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(None);
    };
    if !StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
        return Ok(None);
    }
    let (request, memory) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align);
    match (power_of_two(u64::from(request)), power_of_two(u64::from(memory))) {
        (Some(request), Some(memory)) => Ok(Some((request, memory))),
        // Zero: there is no direct I/O on this file.
        _ => Err(Error::Os(libc::EINVAL)),
    }
}

/// Request and memory alignment of direct I/O, found by trying reads.
fn probed_alignment(fd: BorrowedFd<'_>) -> Result<(Alignment, Alignment)> {
    // A read at the end succeeds however it is aligned, so nothing is learned from a short file.
    if file_len(fd, FileKind::Regular)? < Alignment::PAGE.bytes() {
        return Ok((Alignment::PAGE, Alignment::PAGE));
    }
    let mut buf = OwnedBuf::zeroed(2 * to_usize(Alignment::PAGE.bytes()), Alignment::PAGE)?;
    let mut works = |len: u64, address: u64| {
        let (start, len) = (to_usize(address), to_usize(len));
        match rustix::io::pread(fd, &mut buf[start..start + len], 0) {
            Ok(_) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(err) => Err(Error::from(err)),
        }
    };
    let request = smallest(|len| works(len, 0))?.ok_or(Error::Os(libc::EINVAL))?;
    let page = Alignment::PAGE.bytes();
    let memory = smallest(|address| works(request.bytes(), address % page))?;
    Ok((request, memory.unwrap_or(request)))
}

/// The smallest alignment from a sector to a page that works.
fn smallest(mut works: impl FnMut(u64) -> Result<bool>) -> Result<Option<Alignment>> {
    for align in [512, 1024, 2048, 4096] {
        if works(align)? {
            return Ok(power_of_two(align));
        }
    }
    Ok(None)
}

/// `bytes` as an alignment, if it is one that masks can handle.
fn power_of_two(bytes: u64) -> Option<Alignment> {
    Alignment::new(bytes).filter(|align| align.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_find_out_is_no_stricter_than_a_page_and_at_least_what_is_told() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let path = directory.path().join("probe");
        std::fs::write(&path, vec![1; 1 << 16]).unwrap();
        let Ok(source) = Source::open(&path, Access { writable: false, direct: true }) else {
            // Nothing to compare on a file system without direct I/O.
            return;
        };
        let (request, memory) = probed_alignment(source.fd.as_fd()).unwrap();
        assert!(request <= Alignment::PAGE && memory <= Alignment::PAGE);
        if let Some((told, _)) = told_alignment(source.fd.as_fd()).unwrap() {
            assert!(request >= told.min(Alignment::PAGE), "{request:?} is below {told:?}");
        }
        std::fs::write(&path, []).unwrap();
        assert_eq!(probed_alignment(source.fd.as_fd()), Ok((Alignment::PAGE, Alignment::PAGE)));
    }

    #[test]
    fn only_files_and_devices_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let access = Access { writable: false, direct: false };
        let err = Source::open(directory.path(), access).unwrap_err();
        assert!(matches!(err, OpenError::File { error: Error::Os(libc::EISDIR), .. }), "{err}");
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        // Opening it for reading would wait for a writer.
        let err = Source::open(&pipe, access).unwrap_err();
        assert!(matches!(err, OpenError::File { error: Error::Os(libc::ESPIPE), .. }), "{err}");
    }

    #[test]
    fn a_file_is_opened_again_even_if_its_name_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        let access = Access { writable: false, direct: false };
        let source = Source::open(&path, access).unwrap();
        std::fs::rename(&path, directory.path().join("b")).unwrap();
        std::fs::write(&path, b"another").unwrap();
        let access = Access { writable: true, ..access };
        let again = Source::open_again(source.fd.as_fd(), &path, access).unwrap();
        assert_eq!(again.len(), Ok(3));
    }
}
