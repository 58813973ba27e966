//! The images that games start from.

use std::collections::BTreeMap;

use block_core::{ByteRange, Options, RequestFlags};
use block_testkit::naive::qcow2::Compression;
use block_testkit::naive::qcow2::make::{Cluster, L2Entries, Made, Shape};
use block_testkit::op::{Discards, OpSpace, Reopens, Snapshots, contents};
use block_testkit::play::Discarded;

use super::cluster_bytes;

/// The snapshot that an image has from the start.
pub const SNAPSHOT: &str = "first";

/// An image at the start, and how it is opened.
#[derive(Clone, Debug)]
pub struct Setup {
    pub name: &'static str,
    pub shape: Shape,
    /// What is in it.
    pub filled: Filled,
    /// Length of the backing file.
    pub backing: Option<u64>,
    /// Options for opening it.
    pub options: &'static [(&'static str, &'static str)],
    /// Request alignment of its file.
    pub align: u64,
    /// Longest request.
    pub max_request: u64,
    pub snapshots: Snapshots,
}

/// What is in an image at the start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Filled {
    /// Nothing.
    Empty,
    /// Clusters of every kind that the format allows.
    Mixed,
    /// The same, shared with the snapshot [`SNAPSHOT`].
    Shared,
    /// So much data that the refcount table is nearly full.
    Full,
}

/// All of them.
pub fn setups() -> Vec<Setup> {
    let of = |name, cluster_bits, refcount_order, size| {
        let shape = Shape { cluster_bits, refcount_order, ..Shape::new(size) };
        let max_request = (size / 3).min(1 << 18).max(2 << cluster_bits).min(size);
        Setup {
            name,
            shape,
            filled: Filled::Empty,
            backing: None,
            options: &[],
            align: 1,
            max_request,
            snapshots: if refcount_order > 0 { Snapshots::Sometimes } else { Snapshots::Never },
        }
    };
    let mut setups = vec![
        of("512", 9, 4, 100 << 10),
        Setup { filled: Filled::Mixed, ..of("512 narrow", 9, 0, 100 << 10) },
        Setup { filled: Filled::Full, max_request: 64 << 10, ..of("512 full", 9, 6, 2 << 20) },
        Setup { filled: Filled::Shared, ..of("4k shared", 12, 4, 300 << 10) },
        Setup { filled: Filled::Mixed, align: 512, ..of("4k by sectors", 12, 3, 300 << 10) },
        Setup { align: 4096, ..of("64k by pages", 16, 4, 1 << 20) },
        Setup { options: TINY, filled: Filled::Mixed, ..of("4k tiny", 12, 4, 5 << 19) },
        Setup { options: TINY, ..of("512 tiny", 9, 5, 200 << 10) },
        Setup { options: LAZY, filled: Filled::Shared, ..of("4k lazy", 12, 4, 300 << 10) },
        Setup { options: PACKED, filled: Filled::Shared, ..of("4k packed", 12, 4, 300 << 10) },
        Setup { options: PACKED, align: 4096, ..of("16k packed by pages", 14, 2, 500 << 10) },
        Setup { filled: Filled::Mixed, ..of("64k", 16, 4, (1 << 20) + 1536) },
        Setup { filled: Filled::Mixed, ..of("2m", 21, 1, 5 << 20) },
        Setup { backing: Some(400 << 10), ..of("4k longer backing", 12, 3, 300 << 10) },
        Setup {
            backing: Some(77 << 10),
            filled: Filled::Shared,
            ..of("1k backing", 10, 5, 200 << 10)
        },
    ];
    let mut zstd = of("8k zstd, packed", 13, 3, 300 << 10);
    zstd.shape.compression = Compression::Zstd;
    setups.push(Setup { options: PACKED, filled: Filled::Mixed, ..zstd });
    for (name, bits, order, size) in [
        ("16k subclusters", 14, 2, 500 << 10),
        ("64k subclusters, backing", 16, 4, (1 << 20) + 512),
        ("2m subclusters", 21, 3, 5 << 20),
    ] {
        let mut setup = of(name, bits, order, size);
        setup.shape.l2_entries = L2Entries::Extended;
        setup.filled = if bits == 14 { Filled::Shared } else { Filled::Mixed };
        setup.backing = (bits == 16).then_some(700 << 10);
        setups.push(setup);
    }
    for (name, bits, size) in [("v2 1k", 10, 150 << 10), ("v2 64k, backing", 16, 700 << 10)] {
        let mut setup = of(name, bits, 4, size);
        setup.shape.version = 2;
        setup.filled = Filled::Shared;
        setup.backing = (bits == 16).then_some(300 << 10);
        setups.push(setup);
    }
    for (name, bits, l2_entries) in [
        ("data file", 12, L2Entries::Standard),
        ("data file, subclusters", 14, L2Entries::Extended),
    ] {
        let mut setup = of(name, bits, 4, 300 << 10);
        setup.shape.data_file = Some("data".to_owned());
        setup.shape.l2_entries = l2_entries;
        setup.filled = Filled::Mixed;
        setup.snapshots = Snapshots::Never;
        setups.push(setup);
    }
    for setup in setups.iter_mut().filter(|setup| setup.backing.is_some()) {
        setup.shape.backing = Some(("base".to_owned(), "raw".to_owned()));
    }
    setups
}

/// The setup of this name.
pub fn setup(name: &str) -> Setup {
    setups().into_iter().find(|setup| setup.name == name).expect("a setup")
}

/// 64 clusters of 4 KiB and nothing in them.
pub fn empty(options: &'static [(&'static str, &'static str)]) -> Setup {
    let mut setup = setup("4k tiny");
    setup.filled = Filled::Empty;
    setup.options = options;
    setup.shape.size = 64 << 12;
    setup
}

pub const TINY: &[(&str, &str)] =
    &[("l2-cache-size", "1k"), ("l2-cache-entry-size", "512"), ("refcount-cache-size", "1k")];
const PACKED: &[(&str, &str)] = &[("compressed-cache-size", "32k")];
const LAZY: &[(&str, &str)] = &[("lazy-refcounts", "on")];

impl Setup {
    /// The options for opening it.
    pub fn open_options(&self) -> Options {
        let options = self.options.iter();
        options.fold(Options::new(), |all, (name, value)| all.with(*name, *value))
    }

    /// What the backing file holds.
    pub fn backing_contents(&self) -> Option<Vec<u8>> {
        Some(contents(0, ByteRange::up_to(self.backing?)))
    }

    /// The image. The data file has the length of the disk.
    pub fn make(&self) -> Made {
        let snapshot = (self.filled == Filled::Shared).then_some(SNAPSHOT);
        let mut made = self.shape.make(&self.clusters(), snapshot);
        if self.shape.data_file.is_some() {
            made.data.resize(super::index(self.shape.size), 0);
        }
        made
    }

    fn clusters(&self) -> BTreeMap<u64, Cluster> {
        let size = self.shape.cluster_size();
        let count = self.shape.size.div_ceil(size);
        let kind = |at: u64| {
            let data = cluster_bytes(0, at, size);
            let zeroes = self.shape.version > 2;
            let compressed = self.shape.data_file.is_none();
            let extended = self.shape.l2_entries == L2Entries::Extended;
            match (self.filled, at % 8) {
                (Filled::Empty, _) => None,
                (Filled::Full, _) => (at < FULL).then_some(Cluster::Data(data)),
                (_, 0 | 6) => Some(Cluster::Data(data)),
                (_, 1) if zeroes => Some(Cluster::Zero),
                (_, 2) if zeroes => Some(Cluster::ZeroOver(0xee)),
                (_, 3 | 4) if compressed => {
                    let byte = u8::try_from(at % 200 + 3).unwrap_or(3);
                    Some(Cluster::Compressed(vec![byte; data.len()]))
                }
                (_, 5) if extended => Some(Cluster::Subclusters(data, 0x00ff_0f01, 0x3300_0010)),
                _ => None,
            }
        };
        (0..count).filter_map(|at| Some((at, kind(at)?))).collect()
    }

    /// What a discard leaves of this image.
    pub fn discarded(&self) -> Discarded {
        // Version 2 cannot say zero, so the backing file shows.
        if self.shape.version == 2 && self.backing.is_some() {
            Discarded::Anything
        } else {
            Discarded::OldOrZero
        }
    }

    /// Random operations on it.
    pub fn space(&self) -> OpSpace {
        let cluster = self.shape.cluster_size();
        let mut edges = vec![512, cluster, cluster * 3];
        if self.shape.l2_entries == L2Entries::Extended {
            edges.push(cluster / 32);
        }
        // Slices of 512 bytes, and whole tables.
        edges.extend(
            [cluster * 64, self.shape.l2_coverage()].iter().filter(|e| **e < self.shape.size),
        );
        OpSpace {
            max_request: self.max_request,
            zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK,
            discards: Discards::Sometimes,
            truncates: Some(self.shape.size + self.shape.size / 4),
            snapshots: self.snapshots,
            reopens: Reopens::Sometimes,
            compressed: Some(cluster),
            ..OpSpace::new(self.shape.size, &edges)
        }
    }
}

/// Clusters of data that nearly fill a refcount table of one 512-byte cluster with refcounts of 64 bits.
const FULL: u64 = 3900;
