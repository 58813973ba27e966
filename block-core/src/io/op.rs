//! One operation for the kernel: what it is told, and the memory that it may touch meanwhile.
//!
//! Invariant: the submission entry of an [`Op`] points only into memory that the `Op` owns (its
//! buffers, by reference count, and its boxed array of addresses), so it stays valid wherever the
//! `Op` is moved, and for as long as it is kept.

use std::sync::Arc;

#[cfg(feature = "io-uring")]
use io_uring::{opcode, squeue, types};

#[cfg(feature = "io-uring")]
use super::handle::RW_MAX;
use super::handle::{Handle, iovecs};
use crate::buf::IoVec;
use crate::range::ByteRange;

/// An operation and all that it needs.
pub(super) struct Op {
    file: Arc<Handle>,
    kind: Kind,
    /// Addresses of the buffers where there are several.
    #[cfg_attr(not(feature = "io-uring"), allow(dead_code, reason = "only a ring is told"))]
    vecs: Addresses,
}

#[cfg_attr(not(feature = "io-uring"), allow(dead_code, reason = "only a ring is told"))]
enum Kind {
    Read(u64, IoVec),
    Write(u64, IoVec, libc::c_int),
    Sync,
    Fallocate(ByteRange, libc::c_int),
}

#[cfg_attr(not(feature = "io-uring"), allow(dead_code, reason = "only a ring is told"))]
struct Addresses(Option<Box<[libc::iovec]>>);

// SAFETY: plain numbers for the kernel; nothing in this process dereferences them.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Op {
    pub(super) fn read(file: Arc<Handle>, offset: u64, iov: IoVec) -> Self {
        let vecs = Addresses::of(&iov);
        Self { file, kind: Kind::Read(offset, iov), vecs }
    }

    /// `flags` are those of `pwritev2`.
    pub(super) fn write(file: Arc<Handle>, offset: u64, iov: IoVec, flags: libc::c_int) -> Self {
        let vecs = Addresses::of(&iov);
        Self { file, kind: Kind::Write(offset, iov, flags), vecs }
    }

    /// `fdatasync`.
    pub(super) fn sync(file: Arc<Handle>) -> Self {
        Self { file, kind: Kind::Sync, vecs: Addresses(None) }
    }

    pub(super) fn fallocate(file: Arc<Handle>, range: ByteRange, mode: libc::c_int) -> Self {
        Self { file, kind: Kind::Fallocate(range, mode), vecs: Addresses(None) }
    }

    /// The file, and the buffers of a read or write.
    pub(super) fn into_parts(self) -> (Arc<Handle>, IoVec) {
        let iov = match self.kind {
            Kind::Read(_, iov) | Kind::Write(_, iov, _) => iov,
            Kind::Sync | Kind::Fallocate(..) => IoVec::new(),
        };
        (self.file, iov)
    }

    #[cfg(feature = "io-uring")]
    /// The submission entry. To be kept by the kernel no longer than `self` is kept here.
    pub(super) fn entry(&self) -> squeue::Entry {
        let fd = types::Fd(self.file.raw_fd());
        match (&self.kind, &self.vecs.0) {
            (Kind::Read(offset, _), Some(vecs)) => {
                opcode::Readv::new(fd, vecs.as_ptr(), count(vecs)).offset(*offset).build()
            }
            (Kind::Read(offset, iov), None) => {
                let (ptr, len) = only_buf(iov);
                opcode::Read::new(fd, ptr, len).offset(*offset).build()
            }
            (Kind::Write(offset, _, flags), Some(vecs)) => {
                opcode::Writev::new(fd, vecs.as_ptr(), count(vecs))
                    .offset(*offset)
                    .rw_flags(*flags)
                    .build()
            }
            (Kind::Write(offset, iov, flags), None) => {
                let (ptr, len) = only_buf(iov);
                opcode::Write::new(fd, ptr, len).offset(*offset).rw_flags(*flags).build()
            }
            (Kind::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Kind::Fallocate(range, mode), _) => {
                opcode::Fallocate::new(fd, range.len()).offset(range.offset()).mode(*mode).build()
            }
        }
    }
}

impl Addresses {
    fn of(iov: &IoVec) -> Self {
        Self((iov.bufs().len() > 1).then(|| iovecs(iov).into_vec().into_boxed_slice()))
    }
}

#[cfg(feature = "io-uring")]
/// Address and length of the only buffer; what does not fit in one call comes with the next.
fn only_buf(iov: &IoVec) -> (*mut u8, u32) {
    match iov.bufs().first() {
        Some(buf) => (buf.as_ptr(), u32::try_from(buf.len().min(RW_MAX)).unwrap_or(0)),
        None => (std::ptr::null_mut(), 0),
    }
}

#[cfg(feature = "io-uring")]
fn count(vecs: &[libc::iovec]) -> u32 {
    u32::try_from(vecs.len()).unwrap_or(0)
}
