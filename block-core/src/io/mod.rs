//! The engines under the `file` driver, and the executor that waits in them.
//!
//! Nothing here knows of nodes or images: an engine moves bytes between an open file and an
//! [`IoVec`], whoever polls, on whatever executor:
//! * [`Engine::IoUring`]: operations go to the io_uring of the thread that runs
//!   [`exec::block_on`], else to one that all other threads share;
//! * [`Engine::Threads`]: operations block threads of a small pool, where io_uring is refused or the
//!   feature `io-uring` is off.
//!
//! Reads that the page cache holds, and small writes to it, need no engine: [`read_cached`] and
//! [`write_cached`] serve them inline.
//!
//! Invariants: an operation that was started runs to its end, and its buffers and its file live until
//! then, even if its future is dropped; when its future is ready, nobody but the caller holds them.

pub mod exec;
mod handle;
mod op;
mod park;
pub(crate) mod pool;
#[cfg(feature = "net")]
mod race;
#[cfg(feature = "net")]
pub mod socket;
mod thread;
#[cfg(feature = "net")]
pub mod timer;
#[cfg(feature = "io-uring")]
mod uring;
#[cfg(not(feature = "io-uring"))]
#[path = "no_uring.rs"]
mod uring;

use std::sync::Arc;

pub use handle::Handle;

use crate::buf::IoVec;
use crate::error::{Error, Result};
use crate::range::{ByteRange, to_u64};
use handle::{Cached, after_write};
use op::Op;

/// Longest buffered write that is done inline, in bytes.
///
/// Copying this much costs less than handing it to another thread and back, since two processors that
/// fill the page cache of one file hinder each other; io_uring would hand it to a worker thread of the
/// kernel.
pub const INLINE_WRITE_MAX: usize = 256 << 10;

/// What moves the bytes of requests that cannot be served inline.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Threads that block.
    Threads,
    /// io_uring.
    IoUring,
}

/// When a write counts as done.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Durability {
    /// When the operating system has it.
    Cached,
    /// When it is on stable storage (FUA).
    Stable,
}

/// What `fallocate` does to a range. The file's length never changes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Deallocates: reads as zeroes, takes no space.
    PunchHole,
    /// Reads as zeroes and stays (or becomes) allocated.
    ZeroRange,
    /// Allocates what is not; contents stay.
    Allocate,
}

/// Reads what the page cache holds of the start of a range into `iov`, without waiting. Returns how
/// many bytes that were; beyond the end of the file all of them are read, as zeroes.
pub fn read_cached(file: &Handle, offset: u64, iov: &IoVec) -> Result<usize> {
    Ok(match file.read_cached(offset, iov)? {
        Cached::Part(n) => n,
        Cached::End => {
            iov.fill(0, iov.len(), 0);
            iov.len()
        }
    })
}

/// Writes `iov` to the page cache if it is short enough for that to be the quickest way. Returns how
/// many bytes were written; the rest, often all, is the engine's.
pub fn write_cached(file: &Handle, offset: u64, iov: &IoVec) -> Result<usize> {
    if file.is_direct() || iov.len() > INLINE_WRITE_MAX {
        return Ok(0);
    }
    match file.pwritev(offset, iov, 0) {
        Err(Error::Os(libc::EINTR | libc::EAGAIN)) => Ok(0),
        other => other,
    }
}

/// Writes all of `iov` as [`write_cached`] does. `None` if that would not be the quickest way: nothing
/// was written then.
pub fn write_all_cached(file: &Handle, offset: u64, iov: &IoVec) -> Option<Result<()>> {
    match write_cached(file, offset, iov) {
        Ok(0) => None,
        Ok(done) if done < iov.len() => {
            // There was no room for the rest. Whoever asks again hears why.
            let rest = iov.slice(done, iov.len() - done);
            Some(file.write_blocking(offset.saturating_add(to_u64(done)), rest, 0))
        }
        written => Some(written.map(|_| ())),
    }
}

impl Engine {
    /// The quickest engine that this system allows.
    pub fn best() -> Self {
        if Self::IoUring.is_available() { Self::IoUring } else { Self::Threads }
    }

    /// Whether this program was built with it: io_uring needs the feature `io-uring`.
    pub fn is_built(self) -> bool {
        match self {
            Self::Threads => true,
            Self::IoUring => cfg!(feature = "io-uring"),
        }
    }

    /// Whether it is built in and this system allows it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Threads => true,
            Self::IoUring => uring::is_available(),
        }
    }

    /// Name as users write it in the option `aio`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::IoUring => "io_uring",
        }
    }

    /// Fills `iov` from `offset` on; what is beyond the end of the file reads as zeroes.
    pub async fn read(self, mut file: Arc<Handle>, mut offset: u64, mut iov: IoVec) -> Result<()> {
        while let Some(ring) = self.ring() {
            let (result, op) = ring.run(Op::read(file, offset, iov)).await;
            (file, iov) = op.into_parts();
            match result {
                Err(err) if is_transient(err) => break,
                Err(err) => return Err(err),
                Ok(n) => match file.after_read(n, &iov) {
                    Some(rest) => (offset, iov) = (offset + to_u64(n), rest),
                    None => return Ok(()),
                },
            }
        }
        pool::run(move || file.read_blocking(offset, iov)).await
    }

    /// Writes `iov` at `offset`.
    pub async fn write(
        self,
        mut file: Arc<Handle>,
        mut offset: u64,
        mut iov: IoVec,
        durability: Durability,
    ) -> Result<()> {
        let flags = match durability {
            Durability::Cached => 0,
            Durability::Stable => libc::RWF_DSYNC,
        };
        // A buffered write would only be handed on to a worker thread of the kernel.
        while let (true, Some(ring)) = (file.is_direct(), self.ring()) {
            let (result, op) = ring.run(Op::write(file, offset, iov, flags)).await;
            (file, iov) = op.into_parts();
            match result {
                Err(err) if is_transient(err) => break,
                Err(err) => return Err(err),
                Ok(n) => match after_write(n, &iov)? {
                    Some(rest) => (offset, iov) = (offset + to_u64(n), rest),
                    None => return Ok(()),
                },
            }
        }
        if file.is_direct() {
            return pool::run(move || file.write_blocking(offset, iov, flags)).await;
        }
        let turn = Arc::clone(&file);
        let _turn = turn.writing.lock().await;
        pool::run(move || file.write_blocking(offset, iov, flags)).await
    }

    /// Makes what was written before stable (`fdatasync`).
    pub async fn sync(self, mut file: Arc<Handle>) -> Result<()> {
        if let Some(ring) = self.ring() {
            let (result, op) = ring.run(Op::sync(file)).await;
            (file, _) = op.into_parts();
            match result {
                Err(err) if is_transient(err) => {}
                other => return other.map(|_| ()),
            }
        }
        pool::run(move || file.sync_blocking()).await
    }

    /// Changes how a range is allocated; the range must be inside of the file.
    pub async fn fallocate(
        self,
        mut file: Arc<Handle>,
        range: ByteRange,
        what: Fallocate,
    ) -> Result<()> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let mode = match what {
            Fallocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | keep,
            Fallocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | keep,
            Fallocate::Allocate => keep,
        };
        if let Some(ring) = self.ring() {
            let (result, op) = ring.run(Op::fallocate(file, range, mode)).await;
            (file, _) = op.into_parts();
            match result {
                Err(err) if is_transient(err) => {}
                other => return other.map(|_| ()),
            }
        }
        pool::run(move || file.fallocate_blocking(range, mode)).await
    }

    fn ring(self) -> Option<Arc<uring::Ring>> {
        match self {
            Self::Threads => None,
            Self::IoUring => thread::ring(),
        }
    }
}

/// Whether an operation failed without having been tried: interrupted, or cancelled because the
/// thread that submitted it ended. The pool then does it, which waits as long as it takes.
fn is_transient(err: Error) -> bool {
    matches!(err, Error::Os(libc::EINTR | libc::EAGAIN | libc::ECANCELED))
}
