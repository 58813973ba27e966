//! What the write cache promises, one promise a test, on disks that record, hold and fail requests.

mod errors;
mod model;
mod races;
mod room;
mod writes;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use block_core::node::NodeOptions;
use block_core::range::{to_u64, to_usize};
use block_core::{BlockDriver, Error};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::record::Record;
use block_testkit::disk::{Kind, MemConfig, MemDisk, Tapped};
use futures::FutureExt;
use futures::executor::block_on;

use super::*;
use crate::geometry::{DataLocation, Geometry, L2Format, Version};
use crate::overlap::{Guarded, Section};

const BITS: u32 = 16;
const SIZE: u64 = 1 << BITS;
const FILE: u64 = 64 * SIZE;

/// A cache and all that looks at what it does.
struct Rig {
    disk: Arc<MemDisk>,
    record: Arc<Record>,
    fault: Arc<Fault>,
    hold: Arc<Hold>,
    node: Node,
    overlap: Arc<OverlapMap>,
    budget: Arc<MemoryBudget>,
    cache: WriteCache,
}

impl Rig {
    /// A cache of 64 KiB clusters before a disk with 4 KiB blocks, with memory for eight.
    fn new() -> Self {
        Self::with(BITS, 8 * SIZE, MemoryBudget::new(1 << 30), 4096)
    }

    fn with(bits: u32, max_bytes: u64, budget: Arc<MemoryBudget>, request_alignment: u64) -> Self {
        let disk = MemConfig::new(FILE).aligned(request_alignment).build();
        let (record, fault, hold) = (Record::new(), Fault::new(), Hold::new());
        let driver: Arc<dyn BlockDriver> = Arc::clone(&disk) as Arc<dyn BlockDriver>;
        let driver = Tapped::new(driver, Arc::clone(&hold));
        let driver = Tapped::new(driver, Arc::clone(&fault));
        let driver = Tapped::new(driver, Arc::clone(&record));
        let node = Node::new(driver, NodeOptions::default());
        let geometry = Geometry::new(Version::V3, bits, 4, L2Format::Standard, DataLocation::Image);
        let overlap = Arc::new(OverlapMap::new(geometry.unwrap(), Guarded::ALL));
        let (map, shared) = (Arc::clone(&overlap), Arc::clone(&budget));
        let cache = WriteCache::new(node.clone(), bits, map, shared, max_bytes);
        Self { disk, record, fault, hold, node, overlap, budget, cache }
    }

    /// Expects and puts.
    fn store(&self, stored: Stored) -> Result<()> {
        self.cache.expect(stored).unwrap();
        self.put(stored)
    }

    /// Expects and puts, and goes away before anything is written.
    fn store_early(&self, stored: Stored) {
        self.cache.expect(stored).unwrap();
        let put = self.cache.inner.change(|state| state.try_put(stored, &bytes_of(stored)));
        assert!(matches!(put, PutAttempt::Put));
    }

    fn put(&self, stored: Stored) -> Result<()> {
        block_on(self.cache.put(stored, &bytes_of(stored)))
    }

    fn flush(&self) -> Result<()> {
        block_on(self.cache.flush())
    }

    fn in_file(&self, stored: Stored) -> bool {
        let start = to_usize(stored.offset.bytes());
        self.disk.to_vec()[start..start + to_usize(stored.len)] == bytes_of(stored)
    }

    /// Whether a read finds the bytes here.
    fn in_cache(&self, stored: Stored) -> bool {
        match self.cache.read(stored.offset) {
            None => false,
            Some(bytes) => {
                assert_eq!(bytes, bytes_of(stored));
                true
            }
        }
    }

    /// Requests that reached the file since the last time.
    fn requests(&self) -> String {
        self.record.take_text()
    }

    /// Fails writes to `cluster` from now on.
    fn fail_writes(&self, cluster: u64) {
        self.fault.add(Rule::new(Kind::Write).at(ByteRange::new(cluster * SIZE, SIZE).unwrap()));
    }

    /// Holds writes from now on.
    fn hold_writes(&self) {
        self.hold.hold(Point::Before, |call| call.kind == Kind::Write);
    }

    fn held(&self) -> usize {
        self.hold.held().len()
    }

    /// Host clusters in memory.
    fn count(&self) -> usize {
        self.cache.inner.count.load(Ordering::Acquire)
    }

    fn used(&self) -> u64 {
        self.cache.inner.state.lock().used()
    }
}

/// A compressed cluster at byte `at` of host cluster `cluster`.
fn stored(cluster: u64, at: u64, len: u64) -> Stored {
    Stored { offset: HostOffset::new(cluster * SIZE + at), len }
}

fn host(cluster: u64) -> HostOffset {
    HostOffset::new(cluster * SIZE)
}

/// Bytes that tell where they belong, none of them zero.
fn bytes_of(stored: Stored) -> Vec<u8> {
    let start = stored.offset.bytes();
    let byte = |at: u64| u8::try_from((at.wrapping_mul(0x9e37_79b9) >> 11) % 255).unwrap() + 1;
    (start..start + stored.len).map(byte).collect()
}

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    fn wakes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls once, and counts wakes there.
fn poll_counted<F: Future + Unpin>(future: &mut F, count: &Arc<Count>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(count));
    future.poll_unpin(&mut Context::from_waker(&waker))
}
