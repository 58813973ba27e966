//! An open file as the engines see it, and the system calls they make on it.
//!
//! Bytes move between a file and an [`IoVec`] by address, never by slice: the memory may be shared
//! with whoever else holds the buffers. Every call here takes the `IoVec` by reference, so the
//! memory outlives it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_int;
use smallvec::SmallVec;

use crate::buf::{IoBuf, IoVec};
use crate::error::{Error, Result};
use crate::limits::IOV_MAX;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};

/// Most bytes that Linux moves in one call.
#[cfg(feature = "io-uring")]
pub(super) const RW_MAX: usize = 0x7fff_f000;

/// An open file. Requests in flight hold it by `Arc`, so that its descriptor outlives them.
#[derive(Debug)]
pub struct Handle {
    fd: OwnedFd,
    /// Offsets and lengths of direct I/O are multiples of this; `None`: through the page cache.
    direct: Option<Alignment>,
    /// Cleared when the file system refuses `RWF_NOWAIT`.
    nowait: AtomicBool,
    /// Held across a write through the page cache that the pool makes. The kernel lets only one of them
    /// at a file in at a time; more threads would only spin there.
    pub(super) writing: futures::lock::Mutex<()>,
}

impl Handle {
    /// A file that is read and written through the page cache.
    pub fn buffered(fd: OwnedFd) -> Self {
        Self { fd, direct: None, nowait: AtomicBool::new(true), writing: Default::default() }
    }

    /// A file that was opened with `O_DIRECT` and takes requests of this alignment.
    pub fn direct(fd: OwnedFd, request_alignment: Alignment) -> Self {
        Self {
            fd,
            direct: Some(request_alignment),
            nowait: AtomicBool::new(false),
            writing: Default::default(),
        }
    }

    /// Whether requests bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Reads what the page cache holds of the start of a range, without waiting: bytes read, or
    /// `None` where that cannot be told.
    pub(super) fn read_cached(&self, offset: u64, iov: &IoVec) -> Result<Cached> {
        if !self.nowait.load(Ordering::Relaxed) {
            return Ok(Cached::Part(0));
        }
        match self.preadv(offset, iov, libc::RWF_NOWAIT) {
            Ok(0) => Ok(Cached::End),
            Ok(n) => Ok(Cached::Part(n)),
            Err(Error::Os(libc::EAGAIN | libc::EINTR)) => Ok(Cached::Part(0)),
            Err(Error::Os(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
                self.nowait.store(false, Ordering::Relaxed);
                Ok(Cached::Part(0))
            }
            Err(err) => Err(err),
        }
    }

    /// One `preadv2`.
    pub(super) fn preadv(&self, offset: u64, iov: &IoVec, flags: c_int) -> Result<usize> {
        let offset = file_offset(offset)?;
        with_iovecs(iov, |ptr, count| {
            // SAFETY: `ptr` describes memory that `iov` keeps alive and that is only ever accessed
            // by address or atomically, so the kernel may write to it.
            unsafe { libc::preadv2(self.raw_fd(), ptr, count, offset, flags) }
        })
    }

    /// One `pwritev2`.
    pub(super) fn pwritev(&self, offset: u64, iov: &IoVec, flags: c_int) -> Result<usize> {
        let offset = file_offset(offset)?;
        with_iovecs(iov, |ptr, count| {
            // SAFETY: `ptr` describes memory that `iov` keeps alive; the kernel only reads it.
            unsafe { libc::pwritev2(self.raw_fd(), ptr, count, offset, flags) }
        })
    }

    /// Reads until `iov` is full; what is beyond the end of the file reads as zeroes.
    pub(super) fn read_blocking(&self, mut offset: u64, mut iov: IoVec) -> Result<()> {
        loop {
            match self.preadv(offset, &iov, 0) {
                Err(Error::Os(libc::EINTR | libc::EAGAIN)) => {}
                Err(err) => return Err(err),
                Ok(n) => match self.after_read(n, &iov) {
                    Some(rest) => (offset, iov) = (offset + to_u64(n), rest),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Writes all of `iov`.
    pub(super) fn write_blocking(
        &self,
        mut offset: u64,
        mut iov: IoVec,
        flags: c_int,
    ) -> Result<()> {
        loop {
            match self.pwritev(offset, &iov, flags) {
                Err(Error::Os(libc::EINTR | libc::EAGAIN)) => {}
                Err(err) => return Err(err),
                Ok(n) => match after_write(n, &iov)? {
                    Some(rest) => (offset, iov) = (offset + to_u64(n), rest),
                    None => return Ok(()),
                },
            }
        }
    }

    /// What is left to read of `iov` after a read of `n` bytes. At the end of the file the rest is
    /// filled with zeroes and nothing is left.
    pub(super) fn after_read(&self, n: usize, iov: &IoVec) -> Option<IoVec> {
        if n >= iov.len() {
            return None;
        }
        let ended = match self.direct {
            // A direct read stops inside a block only at the end of the file, and could not go on
            // from there.
            Some(align) => n == 0 || !align.is_aligned(to_u64(n)),
            None => n == 0,
        };
        if ended {
            iov.fill(n, iov.len() - n, 0);
            return None;
        }
        Some(iov.slice(n, iov.len() - n))
    }

    /// Copies `len` bytes of `source` from `from` on to offset `to` within the kernel. `Unsupported` where
    /// it cannot, or the source ends before.
    pub(crate) fn copy_blocking(
        &self,
        source: &Self,
        mut from: u64,
        mut to: u64,
        len: u64,
    ) -> Result<()> {
        use rustix::io::Errno;
        let mut rest = to_usize(len);
        while rest > 0 {
            let (input, output) = (Some(&mut from), Some(&mut to));
            match rustix::fs::copy_file_range(&source.fd, input, &self.fd, output, rest) {
                Ok(0) => return Err(Error::Unsupported),
                Ok(done) => rest -= done.min(rest),
                Err(Errno::INTR) => {}
                Err(
                    Errno::XDEV
                    | Errno::INVAL
                    | Errno::OPNOTSUPP
                    | Errno::NOSYS
                    | Errno::BADF
                    | Errno::TXTBSY
                    | Errno::PERM,
                ) => return Err(Error::Unsupported),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `fdatasync`.
    pub(super) fn sync_blocking(&self) -> Result<()> {
        retry(|| rustix::fs::fdatasync(&self.fd))
    }

    /// `fallocate`.
    pub(super) fn fallocate_blocking(&self, range: ByteRange, mode: c_int) -> Result<()> {
        let mode = rustix::fs::FallocateFlags::from_bits_retain(u32::try_from(mode).unwrap_or(0));
        retry(|| rustix::fs::fallocate(&self.fd, mode, range.offset(), range.len()))
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How much of a read the page cache answered.
pub(super) enum Cached {
    /// This many bytes, perhaps none, perhaps all.
    Part(usize),
    /// The read starts at or beyond the end of the file.
    End,
}

/// What is left to write of `iov` after a write of `n` bytes.
pub(super) fn after_write(n: usize, iov: &IoVec) -> Result<Option<IoVec>> {
    match n {
        // Nothing written and no error: the device has no room and will not say so.
        0 if !iov.is_empty() => Err(Error::NO_SPACE),
        n if n >= iov.len() => Ok(None),
        n => Ok(Some(iov.slice(n, iov.len() - n))),
    }
}

/// Runs a call again while signals interrupt it.
fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// The memory of `iov` as the kernel takes it, as much as fits in one call.
///
/// Valid while `iov` lives.
pub(super) fn iovecs(iov: &IoVec) -> SmallVec<[libc::iovec; 8]> {
    iov.bufs().iter().take(IOV_MAX).map(iovec).collect()
}

fn iovec(buf: &IoBuf) -> libc::iovec {
    libc::iovec { iov_base: buf.as_ptr().cast(), iov_len: buf.len() }
}

/// Makes a vectored system call with the memory of `iov`, and turns its result into ours.
fn with_iovecs(
    iov: &IoVec,
    call: impl FnOnce(*const libc::iovec, c_int) -> isize,
) -> Result<usize> {
    let n = match iov.bufs() {
        // Most requests: nothing to collect.
        [buf] => {
            let vec = iovec(buf);
            call(&raw const vec, 1)
        }
        _ => {
            let vecs = iovecs(iov);
            call(vecs.as_ptr(), c_int::try_from(vecs.len()).unwrap_or(c_int::MAX))
        }
    };
    usize::try_from(n).map_err(|_| std::io::Error::last_os_error().into())
}

fn file_offset(offset: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| Error::Invalid)
}
