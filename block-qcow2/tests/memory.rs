//! Hostile headers cost no more memory than the caps of the format allow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, IoBuf, RequestFlags};
use counting::{HELD, MOST};
use futures::executor::block_on;
use support::{open_driver, read};

/// The most that an image may cost while it is opened and read a little.
const CAP: usize = 64 << 20;

/// A version 3 header of which every field is given; the rest of a huge file is zeroes.
struct Hostile {
    cluster_bits: u32,
    disk_size: u64,
    l1_size: u32,
    refcount_clusters: u32,
    snapshots: u32,
    /// Bytes that start at the end of the header.
    extensions: Vec<u8>,
}

impl Hostile {
    fn new(cluster_bits: u32) -> Self {
        Self {
            cluster_bits,
            disk_size: 1 << 30,
            l1_size: 0x40_0000,
            refcount_clusters: (8 << 20) >> cluster_bits,
            snapshots: 0,
            extensions: Vec::new(),
        }
    }

    fn disk(&self) -> Arc<MemDriver> {
        let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
        let place = |n: u64| (n << 30).to_be_bytes();
        head.extend([0; 12]);
        head.extend(self.cluster_bits.to_be_bytes());
        head.extend(self.disk_size.to_be_bytes());
        head.extend([0; 4]);
        head.extend(self.l1_size.to_be_bytes());
        head.extend(place(1));
        head.extend(place(2));
        head.extend(self.refcount_clusters.to_be_bytes());
        head.extend(self.snapshots.to_be_bytes());
        head.extend(place(3));
        head.extend([0; 16]);
        // The bitmaps extension is up to date.
        head.extend(1u64.to_be_bytes());
        head.extend(4u32.to_be_bytes());
        head.extend(104u32.to_be_bytes());
        head.extend(&self.extensions);
        let disk = Arc::new(MemDriver::new(1 << 40));
        let buf = IoBuf::zeroed(head.len(), Alignment::ONE).unwrap();
        buf.copy_from(0, &head);
        let range = ByteRange::new(0, u64::try_from(head.len()).unwrap()).unwrap();
        block_on(Arc::clone(&disk).pwritev(range, buf.into(), RequestFlags::empty())).unwrap();
        disk
    }
}

fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&kind.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn bitmaps(count: u32, size: u64) -> Vec<u8> {
    let place = (4u64 << 30).to_be_bytes();
    let parts = [&count.to_be_bytes()[..], &[0; 4], &size.to_be_bytes(), &place];
    extension(0x2385_2875, &parts.concat())
}

/// Opens and reads a little; whether it opened, and the most memory above what was held before.
fn cost(hostile: &Hostile) -> (bool, usize) {
    let disk = hostile.disk();
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let opened = open_driver(disk, OpenFlags::READ_ONLY);
    if let Ok(node) = &opened {
        let _ = read(node, 0, 4096);
        let _ = read(node, node.len().saturating_sub(4096), 4096);
    }
    (opened.is_ok(), MOST.load(Ordering::Relaxed) - before)
}

// One test: the counters are the process's.
#[test]
fn no_header_costs_more_than_the_cap() {
    let mut opened = 0;
    for bits in [9, 12, 16, 21] {
        let plain = || Hostile::new(bits);
        // The longest disk that the largest L1 table maps.
        let coverage = 1u64 << (2 * bits - 3);
        let longest = coverage.saturating_mul(0x40_0000).min(1 << 62);
        let cases = [
            plain(),
            Hostile { disk_size: longest, ..plain() },
            Hostile { disk_size: u64::MAX, ..plain() },
            Hostile { l1_size: u32::MAX, ..plain() },
            Hostile { refcount_clusters: u32::MAX, ..plain() },
            Hostile { snapshots: 65536, ..plain() },
            Hostile { snapshots: u32::MAX, ..plain() },
            Hostile { extensions: bitmaps(65535, 65535 * 1024), ..plain() },
            Hostile { extensions: bitmaps(u32::MAX, u64::MAX), ..plain() },
            Hostile { extensions: extension(1, &vec![7; 300]), ..plain() },
            Hostile { extensions: vec![0xff; 350], ..plain() },
        ];
        for (number, hostile) in cases.iter().enumerate() {
            let (ok, most) = cost(hostile);
            opened += usize::from(ok);
            assert!(most <= CAP, "case {number} with {bits} cluster bits took {most} bytes");
        }
    }
    assert!(opened >= 8, "only {opened} images opened: the cases do not reach the tables");
}
