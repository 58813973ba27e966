//! Copies inside of the storage: the bytes are not read, the rules of requests hold, and what cannot be
//! copied that way is read and written.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use block_core::dirty::Granularity;
use block_core::driver::{BlockDriver, CopySource};
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::job::copy::{CopyOptions, CopySource as Source, Offload, Progress, copy};
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemDriver;
use block_core::registry::OpenContext;
use block_core::request::status::{DriverStatus, StatusDetail, StatusFlags};
use block_core::{BlockLimits, ByteRange, Cancel, Capabilities, Error, IoVec, Node, OpenFlags};
use block_core::{Options, Registry, RequestFlags, Result, graph};
use futures::FutureExt;

/// A view of a node that says where everything is and reads nothing, but of `zero`: what stands there is old.
struct Unread {
    node: Node,
    zero: ByteRange,
}

#[async_trait]
impl BlockDriver for Unread {
    fn name(&self) -> &'static str {
        "unread"
    }

    fn len(&self) -> u64 {
        self.node.len()
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let zero = self.zero.intersect(range);
        if zero.is_empty() {
            return Err(Error::IO);
        }
        self.node.read(range, iov.clone()).await?;
        let start = usize::try_from(zero.offset() - range.offset()).unwrap();
        iov.fill(start, usize::try_from(zero.len()).unwrap(), 0);
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let (zero, end) = (self.zero.intersect(range), range.end());
        let (flags, end) = match zero.offset() == range.offset() {
            _ if zero.is_empty() => (StatusFlags::DATA, end),
            true => (StatusFlags::ZERO, zero.end()),
            false => (StatusFlags::DATA, zero.offset()),
        };
        let status = DriverStatus::of(end - range.offset(), flags | StatusFlags::ALLOCATED);
        Ok(status.at(self.node.clone(), range.offset()))
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at / 512 % 251 + 1).unwrap()).collect()
}

fn open(path: &Path, driver: &str) -> Node {
    let registry = Registry::new().with(FileFactory).with(RawFactory);
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    let options = Options::filename(path.to_str().unwrap()).with("driver", driver);
    block_on(context.open(options)).unwrap()
}

/// What `future` comes to, which must not take for ever.
fn soon<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(block_on(future)));
    told.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

#[test]
fn files_are_copied_without_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let contents = bytes(3 << 20);
    std::fs::write(&from, &contents).unwrap();
    std::fs::write(&to, vec![0; contents.len()]).unwrap();
    let (source, target) = (open(&from, "file"), open(&to, "raw"));
    let unread = Unread { node: source.clone(), zero: ByteRange::default() };
    let unread = Node::new(Arc::new(unread), Default::default());
    let options = CopyOptions { offload: Offload::WherePossible, ..CopyOptions::default() };
    let sources = vec![Source::new(unread.clone(), source.len())];
    let watch = |_: Progress| ();
    let copied = block_on(copy(sources.clone(), &target, options, &Cancel::new(), watch)).unwrap();
    assert_eq!(copied.data, source.len());
    assert!(std::fs::read(&to).unwrap() == contents);
    // To see that it was this way: without it, the source would have been read.
    let failed = block_on(copy(sources, &target, CopyOptions::default(), &Cancel::new(), watch));
    assert!(failed.is_err());
    block_on(graph::close(&target)).unwrap();
}

#[test]
fn what_reads_as_zeroes_is_not_copied_from_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut contents = bytes(1 << 20);
    std::fs::write(&from, &contents).unwrap();
    std::fs::write(&to, vec![0; contents.len()]).unwrap();
    let (source, target) = (open(&from, "file"), open(&to, "raw"));
    // Less than what a copy takes for one piece.
    let unread = Unread { node: source.clone(), zero: range(512 << 10, 512) };
    let unread = Node::new(Arc::new(unread), Default::default());
    let options = CopyOptions { offload: Offload::WherePossible, ..CopyOptions::default() };
    let sources = vec![Source::new(unread, source.len())];
    block_on(copy(sources, &target, options, &Cancel::new(), |_: Progress| ())).unwrap();
    contents[512 << 10..][..512].fill(0);
    assert!(std::fs::read(&to).unwrap() == contents);
}

#[test]
fn a_copy_keeps_the_rules_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, bytes(8192)).unwrap();
    std::fs::write(&to, vec![0; 4096]).unwrap();
    let (source, target) = (open(&from, "file"), open(&to, "file"));
    let part = |offset| CopySource::new(source.clone(), offset);
    assert_eq!(block_on(target.copy_from(range(512, 1024), part(4096))), Ok(()));
    assert!(std::fs::read(&to).unwrap()[512..1536] == bytes(8192)[4096..5120]);
    // It grows what grows.
    assert_eq!(block_on(target.copy_from(range(4096, 512), part(0))), Ok(()));
    assert_eq!(target.len(), 4608);
    // Not beyond the end of the source, and not from what is no file.
    let beyond = block_on(target.copy_from(range(0, 1024), part(7680)));
    assert_eq!(beyond, Err(Error::Unsupported));
    let memory = Node::new(Arc::new(MemDriver::new(8192)), Default::default());
    let from_memory = CopySource::new(memory.clone(), 0);
    let refused = block_on(target.copy_from(range(0, 512), from_memory));
    assert_eq!(refused, Err(Error::Unsupported));
    assert_eq!(block_on(memory.copy_from(range(0, 512), part(0))), Err(Error::Unsupported));
    // Not while the target is drained.
    let guard = block_on(graph::drain(&target));
    let mut waits = target.copy_from(range(0, 512), part(0));
    assert!((&mut waits).now_or_never().is_none());
    drop(guard);
    assert_eq!(block_on(waits), Ok(()));
}

#[test]
fn what_is_copied_is_dirty() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, bytes(8192)).unwrap();
    std::fs::write(&to, vec![0; 8192]).unwrap();
    let (source, target) = (open(&from, "file"), open(&to, "file"));
    let bitmaps = target.dirty_bitmaps();
    let id = bitmaps.create(Some("test"), Granularity::MIN).unwrap();
    let copied = target.copy_from(range(512, 1024), CopySource::new(source, 0));
    assert_eq!(block_on(copied), Ok(()));
    let areas: Vec<_> = bitmaps.with(id, |bitmap| bitmap.areas().collect()).unwrap();
    assert_eq!(areas, [range(512, 1024)]);
}

/// Passes copies on, once it is let.
struct Gated {
    node: Node,
    gate: futures::lock::Mutex<()>,
}

#[async_trait]
impl BlockDriver for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn len(&self) -> u64 {
        self.node.len()
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.node.read(range, iov).await
    }

    async fn pwritev(self: Arc<Self>, range: ByteRange, iov: IoVec, f: RequestFlags) -> Result<()> {
        self.node.write(range, iov, f).await
    }

    async fn copy_from(self: Arc<Self>, range: ByteRange, source: CopySource) -> Result<()> {
        drop(self.gate.lock().await);
        self.node.copy_from(range, source).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        Ok(DriverStatus::data(range.len()))
    }
}

/// A copy on its way through several drivers is one request of its source.
#[test]
fn a_drain_lets_copies_that_are_under_way_finish() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, bytes(4096)).unwrap();
    std::fs::write(&to, vec![0; 4096]).unwrap();
    let (source, file) = (open(&from, "file"), open(&to, "file"));
    let gated = Arc::new(Gated { node: file, gate: Default::default() });
    let target = Node::new(gated.clone(), Default::default());
    let closed = gated.gate.try_lock().unwrap();
    let mut copied = target.copy_from(range(0, 4096), CopySource::new(source.clone(), 0));
    assert!((&mut copied).now_or_never().is_none());
    let mut drained = Box::pin(async move { drop(graph::drain(&source).await) });
    assert!((&mut drained).now_or_never().is_none());
    drop(closed);
    let (copied, ()) = soon(futures::future::join(copied, drained));
    assert_eq!(copied, Ok(()));
    assert!(std::fs::read(&to).unwrap() == bytes(4096));
}

/// Neither of the two nodes keeps others waiting while the other is waited for.
#[test]
fn a_copy_that_waits_for_one_node_lets_the_other_be_drained() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, bytes(4096)).unwrap();
    std::fs::write(&to, vec![0; 4096]).unwrap();
    let (source, target) = (open(&from, "file"), open(&to, "file"));
    for [first, second] in [[&source, &target], [&target, &source]] {
        let guard = block_on(graph::drain(first));
        let mut copied = target.copy_from(range(0, 4096), CopySource::new(source.clone(), 0));
        assert!((&mut copied).now_or_never().is_none());
        let second = second.clone();
        soon(async move { drop(graph::drain(&second).await) });
        drop(guard);
        assert_eq!(soon(copied), Ok(()));
    }
}
