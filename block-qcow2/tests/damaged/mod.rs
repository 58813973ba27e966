//! Images with everything in them, made by the peer, and the damages that are done to them by name.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::ops::Range;
use std::sync::Arc;

use block_core::ability::{CheckReport, Finding, Repair};
use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Node, OpenError, Result};
use block_testkit::check::check_node;
use block_testkit::naive;
use block_testkit::peer::ImageDir;
use futures::executor::block_on;

use crate::support::open_driver;

pub const COPIED: u64 = 1 << 63;
pub const COMPRESSED: u64 = 1 << 62;
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Creation options of the images.
pub const SHAPES: [&str; 10] = [
    "compat=0.10,cluster_size=4k",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=4k,lazy_refcounts=on",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=4k,refcount_bits=2",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,compression_type=zstd",
    "cluster_size=4k,data_file=data.raw",
];
/// The same with clusters so large that only a few damages are tried.
pub const LARGE: &str = "cluster_size=2M";

/// The guest cluster that damages hit: plain data that no snapshot shares.
pub const DATA: u64 = 1;
/// Its neighbour, alike.
pub const NEXT: u64 = 2;
/// A compressed cluster that nothing shares (without a data file).
pub const PACKED: u64 = 8;
/// A cluster that reads as zeroes by its flag, without a host cluster (in version 3).
pub const ZERO: u64 = 6;
/// A cluster that was never written.
pub const EMPTY: u64 = 12;
/// Clusters of every disk.
pub const CLUSTERS: u64 = 26;

/// An image, and where its tables are.
#[derive(Clone)]
pub struct Sample {
    pub shape: &'static str,
    pub bytes: Vec<u8>,
    /// Of the data file, where there is one.
    pub data: Option<Vec<u8>>,
    pub cluster: u64,
    pub version: u64,
    pub entry_size: u64,
    pub refcount_bits: u64,
    pub l1: u64,
    pub l2: u64,
    pub reftable: u64,
    pub refblock: u64,
    pub snapshots: u64,
    pub disk_len: u64,
}

impl Sample {
    /// Makes the image in `dir` as `x.qcow2`.
    pub fn make(dir: &ImageDir, shape: &'static str) -> Self {
        let probe = |option: &str| shape.contains(option);
        let cluster = if probe("cluster_size=512") {
            512
        } else if probe("=4k") {
            4096
        } else if probe("=16k") {
            16384
        } else if probe("=2M") {
            2 << 20
        } else {
            65536
        };
        let disk_len = cluster * CLUSTERS;
        let size = disk_len.to_string();
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", shape, "x.qcow2", &size]).unwrap();
        let at = |n: u64| n * cluster;
        let shares = !probe("refcount_bits=1") && !probe("data_file");
        let write =
            |pattern: u8, n: u64, count: u64| format!("write -P {pattern} {} {}", at(n), at(count));
        let packed = format!("write -c -P 7 {} {}", at(PACKED), at(1));
        let zero = format!("write -z {} {}", at(ZERO), at(1));
        let commands = [write(1, 0, 5), zero, write(5, 20, 4)];
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        dir.qemu_io("x.qcow2", &commands).unwrap();
        if shares {
            dir.qemu_img(&["snapshot", "-c", "first", "x.qcow2"]).unwrap();
            dir.qemu_img(&["snapshot", "-c", "second", "x.qcow2"]).unwrap();
        }
        dir.qemu_io("x.qcow2", &[&write(2, DATA, 1), &write(3, NEXT, 1)]).unwrap();
        if !probe("data_file") {
            dir.qemu_io("x.qcow2", &[&packed]).unwrap();
        }
        if !probe("0.10") {
            let granularity = if cluster < 4096 { "512" } else { "65536" };
            let args = ["bitmap", "--add", "--enable", "-g", granularity, "x.qcow2", "dirty"];
            dir.qemu_img(&args).unwrap();
            dir.qemu_io("x.qcow2", &[&write(6, 21, 1)]).unwrap();
        }
        let data = probe("data_file").then(|| dir.bytes("data.raw").unwrap());
        Self::read(shape, dir.bytes("x.qcow2").unwrap(), data)
    }

    fn read(shape: &'static str, bytes: Vec<u8>, data: Option<Vec<u8>>) -> Self {
        let image = naive::qcow2::Image::open(&bytes).unwrap();
        let header = image.header().clone();
        let word = |at: u64| take(&bytes, at, 8);
        let l1 = header.l1_table_offset;
        Self {
            shape,
            cluster: header.cluster_size(),
            version: header.version.into(),
            entry_size: header.l2_entry_size(),
            refcount_bits: header.refcount_bits().into(),
            l1,
            l2: word(l1) & OFFSET,
            reftable: header.refcount_table_offset,
            refblock: word(header.refcount_table_offset),
            snapshots: header.snapshots_offset,
            disk_len: header.size,
            data,
            bytes,
        }
    }

    pub fn has_snapshots(&self) -> bool {
        self.word(60) >> 32 != 0
    }

    pub fn is_extended(&self) -> bool {
        self.entry_size == 16
    }

    pub fn word(&self, at: u64) -> u64 {
        take(&self.bytes, at, 8)
    }

    pub fn put(&mut self, at: u64, value: u64) {
        self.put_bytes(at, &value.to_be_bytes());
    }

    pub fn put_bytes(&mut self, at: u64, value: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// Where the L2 entry of a guest cluster is.
    pub fn entry(&self, guest: u64) -> u64 {
        self.l2 + guest * self.entry_size
    }

    /// Where the host cluster of a guest cluster is.
    pub fn host(&self, guest: u64) -> u64 {
        self.word(self.entry(guest)) & OFFSET
    }

    /// Changes the entry of a guest cluster; its bytes, which may be lost by that.
    pub fn change(&mut self, guest: u64, to: impl Fn(u64) -> u64) -> Lost {
        let at = self.entry(guest);
        self.put(at, to(self.word(at)));
        Lost::Guest(guest * self.cluster..(guest + 1) * self.cluster)
    }

    pub fn end(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap().next_multiple_of(self.cluster)
    }

    /// Sets the refcount of the cluster at `offset`, which the first block covers.
    pub fn set_refcount(&mut self, offset: u64, value: u64) {
        let (index, bits) = (offset / self.cluster, self.refcount_bits);
        let at = self.refblock + index * bits / 8;
        if bits < 8 {
            let shift = index * bits % 8;
            let mask = ((1u64 << bits) - 1) << shift;
            let old = take(&self.bytes, at, 1);
            let new = u8::try_from(old & !mask | value << shift).unwrap();
            self.put_bytes(at, &[new]);
        } else {
            let value = value.to_be_bytes();
            let width = usize::try_from(bits / 8).unwrap();
            self.put_bytes(at, &value[8 - width..]);
        }
    }

    /// Where the bitmap directory is.
    pub fn bitmap_directory(&self) -> Option<u64> {
        let kind = 0x2385_2875u32.to_be_bytes();
        let at = self.bytes[..512].windows(4).position(|w| w == kind)?;
        Some(take(&self.bytes, u64::try_from(at).unwrap() + 24, 8))
    }

    pub fn naive(&self) -> naive::qcow2::Image<'_> {
        let image = naive::qcow2::Image::open(&self.bytes).unwrap();
        match &self.data {
            Some(data) => image.with_data_file(data),
            None => image,
        }
    }
}

pub fn take(bytes: &[u8], at: u64, width: u64) -> u64 {
    let (at, width) = (usize::try_from(at).unwrap(), usize::try_from(width).unwrap());
    bytes[at..at + width].iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

/// What a damage may cost when it is mended.
#[derive(Clone, Debug)]
pub enum Lost {
    Nothing,
    /// These bytes of the disk.
    Guest(Range<u64>),
    /// All that the disk has.
    Disk,
    /// Snapshots.
    Snapshots,
    /// Bitmaps.
    Bitmaps,
}

/// Whether the peer counts as we do.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// It does.
    Same,
    /// The verdict is the same, the numbers are not.
    Counts(&'static str),
    /// It says something else altogether.
    Other(&'static str),
}

/// A damage by name. `None`: the image has nothing that could be damaged so.
pub struct Damage {
    pub name: &'static str,
    pub peer: Peer,
    pub apply: fn(&mut Sample) -> Option<Lost>,
}

const fn damage(name: &'static str, peer: Peer, apply: fn(&mut Sample) -> Option<Lost>) -> Damage {
    Damage { name, peer, apply }
}

const OVERLAP: Peer = Peer::Counts("an overlap is one more error");
const ROUNDED: Peer = Peer::Counts("an unaligned entry counts for one cluster, not for two");
const FOLLOWED: Peer = Peer::Counts("metadata is not followed as if it were an L2 table");
const ONCE: Peer = Peer::Counts("an entry of a shared L2 table counts once");
const BLOCKS: Peer = Peer::Other("without a block refcounts are zero, which can be said");

pub fn damages() -> Vec<Damage> {
    vec![
        damage("refcount too low", Peer::Same, |s| {
            let host = if s.data.is_some() { s.l2 } else { s.host(DATA) };
            s.set_refcount(host, 0);
            Some(Lost::Nothing)
        }),
        damage("refcount too high", Peer::Same, |s| {
            let host = if s.data.is_some() { s.l2 } else { s.host(DATA) };
            (s.refcount_bits > 1).then(|| s.set_refcount(host, 3))?;
            Some(Lost::Nothing)
        }),
        damage("refcount of the header is zero", Peer::Same, |s| {
            s.set_refcount(0, 0);
            Some(Lost::Nothing)
        }),
        damage("refcount of a shared cluster too low", Peer::Same, |s| {
            s.has_snapshots().then(|| s.set_refcount(s.host(20), 1))?;
            Some(Lost::Nothing)
        }),
        damage("leak", Peer::Same, |s| {
            let end = s.end();
            s.bytes.resize(usize::try_from(end + s.cluster).unwrap(), 0);
            s.set_refcount(end, 1);
            Some(Lost::Nothing)
        }),
        damage("leak beyond the end", Peer::Other("it looks inside of the file only"), |s| {
            s.set_refcount(s.end() + 3 * s.cluster, 1);
            Some(Lost::Nothing)
        }),
        damage("COPIED missing", Peer::Same, |s| {
            s.change(DATA, |e| e & !COPIED);
            // In a data file the flag tells the cluster at offset 0 from none.
            Some(Lost::Nothing)
        }),
        damage("COPIED of a shared cluster", Peer::Same, |s| {
            s.has_snapshots().then(|| s.change(20, |e| e | COPIED))?;
            Some(Lost::Nothing)
        }),
        damage("COPIED of L1 missing", Peer::Same, |s| {
            s.put(s.l1, s.word(s.l1) & !COPIED);
            Some(Lost::Nothing)
        }),
        damage("COPIED of a compressed cluster", Peer::Same, |s| {
            s.data.is_none().then(|| s.change(PACKED, |e| e | COPIED))?;
            Some(Lost::Nothing)
        }),
        damage("reserved bits of L1", Peer::Same, |s| {
            s.put(s.l1, s.word(s.l1) | 1 << 60);
            Some(Lost::Nothing)
        }),
        damage("reserved bits of L2", Peer::Same, |s| {
            s.change(DATA, |e| e | 4);
            Some(Lost::Nothing)
        }),
        damage("reserved bits of the refcount table", Peer::Other("it cannot mend it"), |s| {
            s.put(s.reftable, s.refblock | 8);
            Some(Lost::Nothing)
        }),
        damage("unaligned L1 entry", FOLLOWED, |s| {
            (s.cluster > 512).then(|| s.put(s.l1, s.word(s.l1) | 512))?;
            Some(Lost::Nothing)
        }),
        damage("unaligned L2 entry", ROUNDED, |s| {
            (s.cluster > 512).then(|| s.change(DATA, |e| e | 512))?;
            Some(Lost::Nothing)
        }),
        damage("unaligned refcount block", BLOCKS, |s| {
            (s.cluster > 512).then(|| s.put(s.reftable, s.refblock | 512))?;
            Some(Lost::Nothing)
        }),
        damage("L2 table beyond the end", Peer::Same, |s| {
            s.put(s.l1, 1 << 40 | COPIED);
            Some(Lost::Disk)
        }),
        damage("L1 entry to a refcount block", FOLLOWED, |s| {
            s.put(s.l1, s.refblock | COPIED);
            Some(Lost::Disk)
        }),
        damage("L1 entry to the header", FOLLOWED, |s| {
            s.put(s.l1 + 8, 0);
            s.put(s.l1, s.l1 | COPIED);
            Some(Lost::Disk)
        }),
        damage("data beyond the end", Peer::Same, |s| {
            s.data.is_none().then(|| s.change(DATA, |_| 1 << 40 | COPIED))
        }),
        damage("compressed data beyond the end", Peer::Same, |s| {
            s.data.is_none().then(|| s.change(PACKED, |_| COMPRESSED | 1 << 30))
        }),
        damage("data on an L2 table", OVERLAP, |s| {
            let l2 = s.l2;
            s.data.is_none().then(|| s.change(DATA, |_| l2 | COPIED))
        }),
        damage("data on the refcount block", OVERLAP, |s| {
            let block = s.refblock;
            s.data.is_none().then(|| s.change(DATA, |_| block | COPIED))
        }),
        damage("data on compressed data", OVERLAP, |s| {
            let host = s.host(PACKED) / s.cluster * s.cluster;
            s.data.is_none().then(|| s.change(DATA, |_| host | COPIED))
        }),
        damage("compressed data on the L1 table", OVERLAP, |s| {
            let l1 = s.l1;
            s.data.is_none().then(|| s.change(PACKED, |_| COMPRESSED | l1))
        }),
        damage("two entries for one cluster", Peer::Same, |s| {
            let host = s.host(NEXT);
            s.data.is_none().then(|| s.change(DATA, |_| host | COPIED))
        }),
        damage("no refcount block", Peer::Same, |s| {
            s.put(s.reftable, 0);
            Some(Lost::Nothing)
        }),
        damage("refcount block beyond the end", Peer::Same, |s| {
            s.put(s.reftable, 1 << 40);
            Some(Lost::Nothing)
        }),
        damage("refcount block named twice", Peer::Same, |s| {
            s.put(s.reftable + 8, s.refblock);
            Some(Lost::Nothing)
        }),
        damage("the refcount table is its own block", Peer::Same, |s| {
            s.put(s.reftable, s.reftable);
            Some(Lost::Nothing)
        }),
        damage("refcount block on an L2 table", OVERLAP, |s| {
            s.put(s.reftable + 8, s.l2);
            Some(Lost::Nothing)
        }),
        damage("subcluster allocated and zero", Peer::Same, |s| {
            let at = s.entry(DATA) + 8;
            s.is_extended().then(|| s.put(at, s.word(at) | 1 << 33))?;
            Some(Lost::Nothing)
        }),
        damage("subclusters without a cluster", Peer::Same, |s| {
            s.is_extended().then(|| s.put(s.entry(EMPTY) + 8, 5))?;
            Some(Lost::Nothing)
        }),
        damage("subclusters of a compressed cluster", Peer::Other("it leaves it out"), |s| {
            s.is_extended().then(|| s.put(s.entry(PACKED) + 8, 5))?;
            Some(Lost::Nothing)
        }),
        damage("compressed cluster beside a data file", Peer::Same, |s| {
            s.data.is_some().then(|| s.change(DATA, |_| COMPRESSED | 65536))
        }),
        damage("data file cluster elsewhere", Peer::Other("it does not look"), |s| {
            let cluster = s.cluster;
            s.data.is_some().then(|| s.change(DATA, |e| e + cluster))?;
            Some(Lost::Nothing)
        }),
        damage("zero flag in version 2", Peer::Other("it takes the flag"), |s| {
            (s.version == 2).then(|| s.change(EMPTY, |_| 1))?;
            Some(Lost::Nothing)
        }),
        damage("reserved bits in a shared L2 table", ONCE, |s| {
            let l1 = s.has_snapshots().then(|| s.word(s.snapshots))?;
            let shared = s.word(l1) & OFFSET;
            let at = shared + DATA * s.entry_size;
            s.put(at, s.word(at) | 4);
            Some(Lost::Nothing)
        }),
        damage("L1 table of a snapshot too large", Peer::Other("it cannot open it"), |s| {
            let at = s.snapshots + 8;
            s.has_snapshots().then(|| s.put_bytes(at, &0x0100_0000u32.to_be_bytes()))?;
            Some(Lost::Snapshots)
        }),
        damage("L1 table of a snapshot beyond the end", Peer::Counts("not followed"), |s| {
            s.has_snapshots().then(|| s.put(s.snapshots, 1 << 40))?;
            Some(Lost::Snapshots)
        }),
        damage("L1 table of a snapshot on the disk's", Peer::Counts("not followed"), |s| {
            s.has_snapshots().then(|| s.put(s.snapshots, s.l1))?;
            Some(Lost::Snapshots)
        }),
        damage("extra data of a snapshot too long", Peer::Other("it cannot open it"), |s| {
            let at = s.snapshots + 36;
            s.has_snapshots().then(|| s.put_bytes(at, &0xffffu32.to_be_bytes()))?;
            Some(Lost::Snapshots)
        }),
        damage("snapshot table beyond the end", Peer::Other("it cannot open it"), |s| {
            s.has_snapshots().then(|| s.put(64, 1 << 40))?;
            Some(Lost::Snapshots)
        }),
        damage("bitmap table beyond the end", Peer::Other("it counts otherwise"), |s| {
            let at = s.bitmap_directory()?;
            s.put(at, 1 << 40);
            Some(Lost::Bitmaps)
        }),
        damage("bitmap table on the L1 table", Peer::Other("it counts otherwise"), |s| {
            let at = s.bitmap_directory()?;
            s.put(at, s.l1);
            Some(Lost::Bitmaps)
        }),
        damage("bitmap of an unknown type", Peer::Other("it counts otherwise"), |s| {
            let at = s.bitmap_directory()?;
            s.put_bytes(at + 16, &[9]);
            Some(Lost::Bitmaps)
        }),
        damage("bitmap of a wrong size", Peer::Other("it counts otherwise"), |s| {
            let at = s.bitmap_directory()?;
            s.put_bytes(at + 8, &77u32.to_be_bytes());
            Some(Lost::Bitmaps)
        }),
    ]
}

/// A check of the image in `driver`: what it reports and says.
pub fn check_driver(
    driver: Arc<dyn BlockDriver>,
    repair: Repair,
) -> Result<(CheckReport, Vec<Finding>)> {
    let node = open_for_check(driver).expect("an image that opens");
    block_on(check_node(&node, repair))
}

/// Opens the image for a check, without its data file.
pub fn open_for_check(driver: Arc<dyn BlockDriver>) -> std::result::Result<Node, OpenError> {
    let flags = OpenFlags { no_backing: true, no_io: true, check: true, ..OpenFlags::READ_WRITE };
    open_driver(driver, flags)
}

/// Checks and mends bytes; what they are afterwards.
pub fn check_bytes(bytes: &[u8], repair: Repair) -> (CheckReport, Vec<Finding>, Vec<u8>) {
    let disk = Arc::new(MemDriver::from_bytes(bytes).expect("memory for an image"));
    let (report, found) = check_driver(Arc::clone(&disk) as _, repair).expect("a check that ends");
    (report, found, disk.to_bytes())
}
