//! A check of a hostile image ends, and takes no more memory than its bounds allow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;
mod damaged;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::ability::{CheckReport, Repair};
use block_core::driver::BlockDriver;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, IoBuf, RequestFlags};
use counting::{HELD, MOST};
use damaged::open_for_check;
use futures::executor::block_on;

/// The most that a check of these images may take: tables of the header, a cache of blocks, counts.
const CAP: usize = 96 << 20;

const L1: u64 = 1 << 30;
const REFTABLE: u64 = 2 << 30;
const SNAPSHOTS: u64 = 3 << 30;
const L2: u64 = 4 << 30;
const BLOCK: u64 = 5 << 30;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

struct Hostile {
    disk: Arc<MemDriver>,
}

impl Hostile {
    /// A sparse file of 64 GiB, with a version 3 header.
    fn new(cluster_bits: u32, refcount_order: u32, snapshots: u32) -> Self {
        let disk = Arc::new(MemDriver::new(1 << 36));
        let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
        head.extend([0; 12]);
        head.extend(cluster_bits.to_be_bytes());
        head.extend((1u64 << 30).to_be_bytes());
        head.extend([0; 4]);
        head.extend((1u32 << 13).to_be_bytes());
        head.extend(L1.to_be_bytes());
        head.extend(REFTABLE.to_be_bytes());
        head.extend(((8u32 << 20) >> cluster_bits).to_be_bytes());
        head.extend(snapshots.to_be_bytes());
        head.extend(SNAPSHOTS.to_be_bytes());
        head.extend([0; 24]);
        head.extend(refcount_order.to_be_bytes());
        head.extend(104u32.to_be_bytes());
        let hostile = Self { disk };
        hostile.write(0, &head);
        hostile
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let buf = IoBuf::zeroed(bytes.len(), Alignment::ONE).unwrap();
        buf.copy_from(0, bytes);
        let range = ByteRange::new(offset, u64::try_from(bytes.len()).unwrap()).unwrap();
        block_on(Arc::clone(&self.disk).pwritev(range, buf.into(), RequestFlags::empty())).unwrap();
    }

    fn words(&self, offset: u64, words: impl Iterator<Item = u64>) {
        self.write(offset, &words.flat_map(u64::to_be_bytes).collect::<Vec<_>>());
    }

    /// Every L1 entry points at one L2 table.
    fn cross_linked(self) -> Self {
        self.words(L1, (0..1 << 13).map(|_| L2 | COPIED));
        self
    }

    /// Every entry of the refcount table points at one block.
    fn one_block(self) -> Self {
        self.words(REFTABLE, (0..1 << 18).map(|_| BLOCK));
        self
    }

    /// Every snapshot has the disk's L1 table, the largest that there can be.
    fn same_snapshots(self, count: u64) -> Self {
        let entry = [L1.to_be_bytes(), (0x40_0000u64 << 32).to_be_bytes(), [0; 8], [0; 8], [0; 8]];
        let entries = (0..count).flat_map(|_| entry.concat()).collect::<Vec<_>>();
        self.write(SNAPSHOTS, &entries);
        self
    }

    /// An L2 table of which every entry is `entry` of its index.
    fn l2(self, count: u64, entry: impl Fn(u64) -> u64) -> Self {
        self.words(L2, (0..count).map(entry));
        self
    }

    /// Checks; what was found, and the most memory above what was held before.
    fn check(&self, repair: Repair) -> (Option<CheckReport>, usize) {
        let node = open_for_check(Arc::clone(&self.disk) as _).expect("a header that opens");
        let held_by_disk = || to_usize(self.disk.info().actual_size.unwrap());
        let (before, disk) = (HELD.load(Ordering::Relaxed), held_by_disk());
        MOST.store(before, Ordering::Relaxed);
        let check = node.driver().as_check().unwrap();
        let report = block_on(check.check(repair, Arc::new(|_| ())));
        // What a repair writes takes memory too, but it is the disk's.
        let most = MOST.load(Ordering::Relaxed) - before;
        (report.ok(), most.saturating_sub(held_by_disk() - disk))
    }
}

// One test: the counters are the process's.
#[test]
fn no_image_costs_more_than_the_cap() {
    let far = |n: u64| ((n << 21) % (1 << 36)) | COPIED;
    let packed = |n: u64| COMPRESSED | 0xff << 54 | (n * 791) << 13;
    let cases = [
        ("cross-linked, far apart", Hostile::new(16, 4, 0).cross_linked().l2(8192, far)),
        ("cross-linked, compressed", Hostile::new(16, 4, 0).cross_linked().l2(8192, packed)),
        ("an L2 table of itself", Hostile::new(16, 4, 0).cross_linked().l2(8192, |_| L2 | COPIED)),
        ("large clusters", Hostile::new(21, 6, 0).cross_linked().l2(1 << 15, far)),
        ("one block", Hostile::new(16, 0, 0).one_block().l2(8192, |_| u64::MAX)),
        ("many snapshots", Hostile::new(16, 4, 65536).cross_linked().same_snapshots(65536)),
        ("snapshots in a hole", Hostile::new(16, 4, 65536)),
    ];
    for (name, hostile) in cases {
        let (report, most) = hostile.check(Repair::Nothing);
        assert!(most <= CAP, "{name}: {most} bytes");
        let report = report.expect("a check that ends");
        assert!(report.corruptions > 0, "{name}: nothing was found");
        let (report, most) = hostile.check(Repair::All);
        assert!(most <= CAP, "{name}: a repair took {most} bytes");
        assert!(report.is_some(), "{name}: the repair failed");
    }
}
