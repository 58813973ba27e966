//! A check of a hostile extent ends, and takes no more memory than its bounds allow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;
mod damaged;
mod kit;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use block_core::ability::{CheckReport, Repair};
use block_core::driver::BlockDriver;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, IoBuf, RequestFlags};
use counting::{HELD, MOST};
use damaged::open_for_check;
use futures::executor::block_on;
use kit::Disks;
use kit::setups::setup;

/// The most that a check of these extents may take: two directories of 64 KiB, and bits for each grain.
const CAP: usize = 8 << 20;
/// Far more than a check of these takes.
const LONGEST: Duration = Duration::from_secs(40);

const GD: u64 = 1 << 12;
const RGD: u64 = 1 << 14;
const TABLES: u32 = 1 << 14;
/// Entries of a table: what takes one sector.
const GTES: u32 = 128;

/// A sparse file of 64 GiB whose header has two directories.
struct Hostile {
    disk: Arc<MemDriver>,
}

impl Hostile {
    fn new() -> Self {
        let disk = Arc::new(MemDriver::new(1 << 36));
        let mut head = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
        head.extend((u64::from(TABLES) * u64::from(GTES) * 8).to_le_bytes());
        head.extend(8u64.to_le_bytes());
        head.extend([0; 16]);
        head.extend(GTES.to_le_bytes());
        for place in [RGD, GD, 1 << 16] {
            head.extend(place.to_le_bytes());
        }
        head.extend(b"\0\n \r\n");
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

    fn words(self, sector: u64, words: impl Iterator<Item = u32>) -> Self {
        self.write(sector * 512, &words.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        self
    }

    /// Checks; what was found, and the most memory above what was held before.
    fn check(&self, repair: Repair) -> (Option<CheckReport>, usize) {
        let disks = Disks(vec![("v.vmdk".to_owned(), Arc::clone(&self.disk))]);
        let held_by_disk = || to_usize(self.disk.info().actual_size.unwrap());
        let (before, disk) = (HELD.load(Ordering::Relaxed), held_by_disk());
        MOST.store(before, Ordering::Relaxed);
        let node = open_for_check(&setup("4k"), &disks).expect("a header that opens");
        let start = Instant::now();
        let report = check_counting(&node, repair);
        assert!(start.elapsed() < LONGEST, "{:?}", start.elapsed());
        // What a repair writes takes memory too, but it is the disk's.
        let most = MOST.load(Ordering::Relaxed) - before;
        (report, most.saturating_sub(held_by_disk().saturating_sub(disk)))
    }
}

/// A check whose findings nobody keeps.
fn check_counting(node: &block_core::Node, repair: Repair) -> Option<CheckReport> {
    let check = node.driver().as_check().unwrap();
    block_on(check.check(repair, Arc::new(|_| ()))).ok()
}

// One test: the counters are the process's.
#[test]
fn no_extent_costs_more_than_the_cap() {
    let table = 1u32 << 16;
    let all = || 0..TABLES;
    let same =
        |hostile: Hostile| hostile.words(GD, all().map(|_| table)).words(RGD, all().map(|_| table));
    let own = |hostile: Hostile| {
        hostile
            .words(GD, all().map(|n| table + n))
            .words(RGD, all().map(|n| 2 * TABLES + table + n))
    };
    let cases = [
        ("one table for all", same(Hostile::new()).words(table.into(), (0..GTES).map(|n| n << 20))),
        ("tables in holes", own(Hostile::new())),
        ("a table of itself", same(Hostile::new()).words(table.into(), (0..GTES).map(|_| table))),
        (
            "the directory is a table",
            Hostile::new().words(GD, all().map(|_| u32::try_from(GD).unwrap())),
        ),
        (
            "far apart",
            own(Hostile::new()).words(table.into(), (0..1 << 15).map(|n| (1 << 20) | (n * 997))),
        ),
        (
            "beyond the end",
            own(Hostile::new()).words(table.into(), (0..1 << 15).map(|n| u32::MAX - n)),
        ),
        (
            "words of junk",
            own(Hostile::new()).words(GD, all().map(|n| n.wrapping_mul(0x9e37_79b9))),
        ),
    ];
    for (name, hostile) in cases {
        let (report, most) = hostile.check(Repair::Nothing);
        assert!(most <= CAP, "{name}: {most} bytes");
        let report = report.expect("a check that ends");
        assert!(report.corruptions + report.leaks > 0, "{name}: nothing was found");
    }
    let junk = own(Hostile::new()).words(table.into(), (0..1 << 10).map(|n| n * 997));
    let (report, most) = junk.check(Repair::All);
    assert!(most <= CAP, "a repair took {most} bytes");
    assert_eq!(report.expect("a repair that ends").corruptions, 0);
}
