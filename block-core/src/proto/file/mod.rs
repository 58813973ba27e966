//! `file` and `host_device`: a file or device of the host, through the page cache or past it.
//!
//! What the page cache holds is read inline, small buffered writes are written inline, all else goes
//! to an engine of [`crate::io`]. Holes come from `SEEK_HOLE`, zeroes and discards are `fallocate`, and
//! image locks exclude other writers, QEMU among them (see `lock`).
//!
//! Invariants:
//! * `len` is what the file was found or made to have; it follows writes of this node, and nobody
//!   else's until [`BlockDriver::invalidate_cache`].
//! * `fallocate` never goes beyond the end: a file grows by writes and truncates only. File systems
//!   have lost data where the two met behind the end.
//! * Once a flush has failed, every later one does, until the file is opened again: the kernel
//!   reports lost pages once and then counts them clean.
//! * What requests see of an open file changes as a whole, by `FileDriver::opened`; a request in
//!   flight keeps the one that it began with.

mod create;
mod factory;
mod lock;
mod reopen;
mod source;
mod space;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;

pub use create::{Hints, create, create_with};
pub use factory::{FileFactory, HostDeviceFactory};

use crate::buf::IoVec;
use crate::driver::{BlockDriver, CopySource, Exactness, Prealloc, ReopenOptions, ReopenState};
use crate::error::{Error, OpenError, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::info::{DriverInfo, InfoValue};
use crate::io::{self, Durability, Engine, Handle, pool};
use crate::limits::BlockLimits;
use crate::range::{Alignment, ByteRange, to_u64};
use crate::request::status::{DriverStatus, StatusDetail};
use lock::ImageLock;
use source::{Access, FileKind, IoAlignment, Source};
use space::Added;

/// A file or device of the host.
pub struct FileDriver {
    /// The name that the user gave.
    filename: String,
    path: PathBuf,
    engine: Engine,
    kind: FileKind,
    opened: ArcSwap<Opened>,
    len: AtomicU64,
    /// Kinds of `fallocate` that the file system has refused, see [`space`].
    refused: AtomicU8,
    /// Guards the locks that are held; never across an await.
    lock: Mutex<ImageLock>,
}

/// What a reopen exchanges.
struct Opened {
    handle: Arc<Handle>,
    access: Access,
    align: IoAlignment,
    /// Why writes are lost, as in `errno`; 0 if none are. The system tells of them once, and takes them for
    /// clean from then on; every flush that follows has to fail.
    flush_error: AtomicI32,
}

impl Opened {
    fn new(source: Source) -> Self {
        Self {
            access: source.access,
            align: source.align,
            flush_error: AtomicI32::new(0),
            handle: Arc::new(source.into_handle()),
        }
    }

    /// Writes are lost. The first error stays: it is the one that they had.
    fn keep_loss(&self, error: &Error) {
        let (cell, order) = (&self.flush_error, Ordering::AcqRel);
        let _ = cell.compare_exchange(0, error.errno(), order, Ordering::Relaxed);
    }

    /// Fails if writes are lost.
    fn check_loss(&self) -> Result<()> {
        match self.flush_error.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(Error::Os(errno)),
        }
    }
}

impl FileDriver {
    fn new(
        filename: String,
        path: PathBuf,
        engine: Engine,
        source: Source,
        lock: ImageLock,
    ) -> Result<Self> {
        Ok(Self {
            filename,
            path,
            engine,
            kind: source.kind,
            len: AtomicU64::new(source.len()?),
            opened: ArcSwap::from_pointee(Opened::new(source)),
            refused: AtomicU8::new(0),
            lock: Mutex::new(lock),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What moves the bytes that are not moved inline.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.opened.load().handle)
    }

    /// The file for a request that changes it.
    fn writable(&self) -> Result<Arc<Handle>> {
        let opened = self.opened.load();
        if opened.access.writable { Ok(Arc::clone(&opened.handle)) } else { Err(Error::ReadOnly) }
    }

    /// Notes that the file reaches to `end` at least.
    fn grow_to(&self, end: u64) {
        if end > self.len.load(Ordering::Relaxed) {
            self.len.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Looks at the length again.
    fn update_len(&self) -> Result<()> {
        let len = source::file_len(self.opened.load().handle.as_fd(), self.kind)?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    async fn write(&self, range: ByteRange, iov: IoVec, flags: RequestFlags) -> Result<()> {
        let Some((handle, done)) = self.write_inline(range, &iov, flags)? else { return Ok(()) };
        let (offset, iov) = rest_of(range, iov, done);
        let durability =
            if flags.contains(RequestFlags::FUA) { Durability::Stable } else { Durability::Cached };
        // Boxed, so that requests which need no engine do not carry its state.
        Box::pin(self.engine.write(handle, offset, iov, durability)).await
    }

    /// Finds out what a write that failed has changed. A stable one, of the bytes `stable`, may have failed
    /// because earlier writes are lost: then it succeeds if nothing is to be stable.
    async fn handle_failed_write(&self, range: ByteRange, stable: Option<IoVec>, error: &Error) {
        let opened = self.opened.load_full();
        if let Some(iov) = stable {
            let handle = Arc::clone(&opened.handle);
            if self.engine.write(handle, range.offset(), iov, Durability::Cached).await.is_ok() {
                opened.keep_loss(error);
            }
        }
        // Some of it may have made the file longer.
        if let Ok(len) = source::file_len(opened.handle.as_fd(), self.kind) {
            self.grow_to(len);
        }
    }

    /// Reads what needs no waiting; the rest for the engine, if there is one.
    fn read_inline(&self, range: ByteRange, iov: &IoVec) -> Result<Option<(Arc<Handle>, usize)>> {
        let opened = self.opened.load();
        let done = io::read_cached(&opened.handle, range.offset(), iov)?;
        Ok((done < iov.len()).then(|| (Arc::clone(&opened.handle), done)))
    }

    /// Writes what is quickest written at once; the rest for the engine, if there is one.
    fn write_inline(
        &self,
        range: ByteRange,
        iov: &IoVec,
        flags: RequestFlags,
    ) -> Result<Option<(Arc<Handle>, usize)>> {
        let opened = self.opened.load();
        if !opened.access.writable {
            return Err(Error::ReadOnly);
        }
        let done = if flags.contains(RequestFlags::FUA) {
            0
        } else {
            io::write_cached(&opened.handle, range.offset(), iov)?
        };
        Ok((done < iov.len()).then(|| (Arc::clone(&opened.handle), done)))
    }
}

/// What is left of a request after its first `done` bytes.
fn rest_of(range: ByteRange, iov: IoVec, done: usize) -> (u64, IoVec) {
    match done {
        0 => (range.offset(), iov),
        _ => (range.offset() + to_u64(done), iov.slice(done, iov.len() - done)),
    }
}

#[async_trait]
impl BlockDriver for FileDriver {
    fn name(&self) -> &'static str {
        match self.kind {
            FileKind::Regular => "file",
            FileKind::Device => "host_device",
        }
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn limits(&self) -> BlockLimits {
        let align = self.opened.load().align;
        let block = Some(align.block).filter(|block| *block > align.request);
        BlockLimits {
            request_alignment: align.request,
            min_mem_alignment: align.memory,
            opt_mem_alignment: align.memory.max(Alignment::PAGE),
            pwrite_zeroes_alignment: block,
            pdiscard_alignment: block,
            ..BlockLimits::default()
        }
    }

    fn capabilities(&self) -> Capabilities {
        let regular = self.kind == FileKind::Regular;
        Capabilities {
            write_fua: Support::Native,
            write_zeroes: Support::Native,
            zeroes_may_unmap: Support::Native,
            zeroes_no_fallback: Support::Native,
            discard: Support::Native,
            truncate: Support::Native,
            grows_on_write: regular,
            has_zero_init: regular,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        !self.opened.load().access.writable
    }

    fn info(&self) -> DriverInfo {
        DriverInfo {
            filename: Some(self.filename.clone()),
            actual_size: source::allocated_len(self.opened.load().handle.as_fd()).ok(),
            specific: vec![("aio", InfoValue::Text(self.engine.name().to_owned()))],
            ..DriverInfo::default()
        }
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let opened = self.opened.load();
        if opened.handle.is_direct() {
            return None;
        }
        match io::read_cached(&opened.handle, range.offset(), iov) {
            Ok(done) if done < iov.len() => None,
            read => Some(read.map(|_| ())),
        }
    }

    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let opened = self.opened.load();
        if opened.handle.is_direct() || !opened.access.writable {
            return None;
        }
        io::write_all_cached(&opened.handle, range.offset(), iov)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        match self.read_inline(range, &iov)? {
            None => Ok(()),
            Some((handle, done)) => {
                let (offset, iov) = rest_of(range, iov, done);
                // Boxed, so that requests which need no engine do not carry its state.
                Box::pin(self.engine.read(handle, offset, iov)).await
            }
        }
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let stable = flags.contains(RequestFlags::FUA).then(|| iov.clone());
        let written = self.write(range, iov, flags).await;
        match &written {
            Ok(()) => self.grow_to(range.end()),
            Err(error) => Box::pin(self.handle_failed_write(range, stable, error)).await,
        }
        written
    }

    async fn copy_from(self: Arc<Self>, range: ByteRange, source: CopySource) -> Result<()> {
        let to = self.writable()?;
        let from = source.node().driver().host_file().ok_or(Error::Unsupported)?;
        let (start, len) = (range.offset(), range.len());
        let copied = pool::run(move || to.copy_blocking(&from, source.offset(), start, len)).await;
        match &copied {
            Ok(()) => self.grow_to(range.end()),
            Err(error) => self.handle_failed_write(range, None, error).await,
        }
        copied
    }

    fn host_file(&self) -> Option<Arc<Handle>> {
        Some(self.handle())
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        space::write_zeroes(&self, range, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        space::discard(&self, range).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        if detail == StatusDetail::Allocation || self.kind == FileKind::Device {
            return Ok(DriverStatus::data(range.len()));
        }
        space::status(self.opened.load().handle.as_fd(), range)
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        let opened = self.opened.load_full();
        opened.check_loss()?;
        match self.engine.sync(Arc::clone(&opened.handle)).await {
            // A character device that keeps nothing back has nothing to sync.
            Ok(()) | Err(Error::Os(libc::EINVAL)) => {}
            Err(error) => opened.keep_loss(&error),
        }
        // Another flush may have taken the report of what this one was to make stable.
        opened.check_loss()
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        let handle = self.writable()?;
        let old = self.len();
        if self.kind == FileKind::Device {
            return space::truncate_device(old, len, exactness);
        }
        let fd = Arc::clone(&handle);
        let added = pool::run(move || space::truncate(fd.as_fd(), old, len, prealloc)).await;
        let result = match added {
            Ok(Added::Written) => {
                let stable = Arc::clone(&self).flush_to_disk().await;
                if stable.is_err() {
                    // The error to report is the first one.
                    let cut = move || Ok(rustix::fs::ftruncate(handle.as_fd(), old)?);
                    let _ = pool::run(cut).await;
                }
                stable
            }
            other => other.map(drop),
        };
        // Also after a failure, which may have left the file in between.
        self.update_len().and(result)
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        reopen::prepare(self, *options).await
    }

    fn reopen_commit(&self, state: ReopenState) {
        reopen::commit(self, state);
    }

    fn reopen_abort(&self, state: ReopenState) {
        reopen::abort(self, state);
    }

    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        let handle = self.handle();
        if !handle.is_direct() {
            pool::run(move || {
                let advice = rustix::fs::Advice::DontNeed;
                Ok(rustix::fs::fadvise(handle.as_fd(), 0, None, advice)?)
            })
            .await?;
        }
        self.update_len()
    }

    async fn close(self: Arc<Self>) -> Result<()> {
        *self.lock.lock() = ImageLock::none();
        self.opened.load().check_loss()
    }
}
