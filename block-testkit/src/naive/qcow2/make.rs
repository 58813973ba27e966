//! Images made from the format's description alone, to start tests from.
//!
//! [`Shape::make`] lays clusters one behind the other: header, L1 table, L2 tables and what they map,
//! the snapshot's tables, and at the end the refcount blocks and the refcount table. Every refcount is
//! the number of references that were made, so the image is free of errors and leaks by construction;
//! the checker and `qemu-img check` have the last word in the tests.
//!
//! What the format does not allow together (zero clusters in version 2, compressed clusters with a data
//! file, shared clusters with refcounts of one bit) is a panic: the test asked for the impossible.

use std::collections::BTreeMap;
use std::io::Write as _;

use block_core::range::{to_u64, to_usize};

use super::header::Compression;

/// What an image is like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// Whether L2 entries have subclusters.
    pub l2_entries: L2Entries,
    /// Length of the disk in bytes.
    pub size: u64,
    /// Name and format of the backing file.
    pub backing: Option<(String, String)>,
    /// Name of the data file.
    pub data_file: Option<String>,
    /// How compressed clusters are compressed.
    pub compression: Compression,
}

/// Which L2 entries an image has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum L2Entries {
    /// Of 8 bytes.
    Standard,
    /// Of 16 bytes, with subclusters.
    Extended,
}

/// What a guest cluster holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cluster {
    /// These bytes, a whole cluster of them.
    Data(Vec<u8>),
    /// Zeroes that take no space.
    Zero,
    /// Zeroes, with a host cluster that holds this byte.
    ZeroOver(u8),
    /// These bytes, compressed. They should repeat within 4 KiB, which is as far back as readers look.
    Compressed(Vec<u8>),
    /// Some subclusters of these bytes, by the bits of the first mask, and zeroes by those of the second.
    Subclusters(Vec<u8>, u32, u32),
}

/// An image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// The image file.
    pub file: Vec<u8>,
    /// The data file; empty where there is none.
    pub data: Vec<u8>,
}

impl Shape {
    /// Version 3 with 64 KiB clusters, refcounts of 16 bits, and nothing else.
    pub fn new(size: u64) -> Self {
        Self {
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            l2_entries: L2Entries::Standard,
            size,
            backing: None,
            data_file: None,
            compression: Compression::Zlib,
        }
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_coverage(&self) -> u64 {
        self.cluster_size() / self.entry_bytes() * self.cluster_size()
    }

    /// An image that holds nothing.
    pub fn empty(&self) -> Made {
        self.make(&BTreeMap::new(), None)
    }

    /// An image of these guest clusters, by their numbers, and with a snapshot of this name that shares
    /// them all.
    ///
    /// # Panics
    /// If the format does not allow it.
    pub fn make(&self, clusters: &BTreeMap<u64, Cluster>, snapshot: Option<&str>) -> Made {
        let mut maker = Maker {
            shape: self,
            users: if snapshot.is_some() { 2 } else { 1 },
            file: Vec::new(),
            data: Vec::new(),
            refcounts: Vec::new(),
            free: 0..0,
        };
        maker.allocate(1, 1);
        let l1 = maker.l1(clusters);
        let l1_offset = maker.l1_table(&l1);
        let snapshots = snapshot.map(|name| maker.snapshot(name, &l1));
        let (table, table_clusters) = maker.refcount_structure();
        maker.header([u64::from(self.l1_size()), l1_offset, table, table_clusters], snapshots);
        Made { file: maker.file, data: maker.data }
    }

    fn entry_bytes(&self) -> u64 {
        match self.l2_entries {
            L2Entries::Standard => 8,
            L2Entries::Extended => 16,
        }
    }

    fn l1_size(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.l2_coverage())).unwrap_or(u32::MAX)
    }
}

struct Maker<'a> {
    shape: &'a Shape,
    /// How many L1 tables refer to each L2 table.
    users: u64,
    file: Vec<u8>,
    data: Vec<u8>,
    /// Of each cluster of the file.
    refcounts: Vec<u64>,
    /// Bytes that the next compressed cluster may take.
    free: std::ops::Range<u64>,
}

impl Maker<'_> {
    /// Takes `count` clusters at the end of the file, zeroed, and gives the offset of the first.
    fn allocate(&mut self, count: u64, refcount: u64) -> u64 {
        let offset = to_u64(self.file.len());
        let len = to_usize(count * self.shape.cluster_size());
        self.file.resize(self.file.len() + len, 0);
        self.refcounts.resize(self.refcounts.len() + to_usize(count), refcount);
        offset
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = to_usize(offset);
        self.file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn copied(&self) -> u64 {
        if self.users == 1 { COPIED } else { 0 }
    }

    /// Writes the L2 tables and what they map; the L1 entries.
    fn l1(&mut self, clusters: &BTreeMap<u64, Cluster>) -> Vec<u64> {
        let per_table = self.shape.cluster_size() / self.shape.entry_bytes();
        let mut l1 = vec![0; to_usize(u64::from(self.shape.l1_size()))];
        for (index, entry) in (0..).zip(&mut l1) {
            let mapped = clusters.range(index * per_table..(index + 1) * per_table);
            let mapped: Vec<_> = mapped.map(|(at, cluster)| (*at, cluster)).collect();
            if mapped.is_empty() {
                continue;
            }
            let table = self.allocate(1, self.users);
            *entry = table | self.copied();
            for (guest, cluster) in mapped {
                let words = self.cluster(guest, cluster);
                let at = table + guest % per_table * self.shape.entry_bytes();
                self.put(at, &words[0].to_be_bytes());
                if self.shape.l2_entries == L2Entries::Extended {
                    self.put(at + 8, &words[1].to_be_bytes());
                }
            }
        }
        l1
    }

    /// Writes a guest cluster; its L2 entry and subcluster bitmap.
    fn cluster(&mut self, guest: u64, cluster: &Cluster) -> [u64; 2] {
        let extended = self.shape.l2_entries == L2Entries::Extended;
        let all = u64::from(u32::MAX);
        let zero_flag = u64::from(!extended);
        let zeroes = matches!(cluster, Cluster::Zero | Cluster::ZeroOver(_));
        assert!(!zeroes || self.shape.version > 2, "zero clusters in version 2");
        match cluster {
            Cluster::Data(bytes) => [self.host(guest, bytes) | self.copied(), all],
            Cluster::Zero => [zero_flag, all << 32],
            Cluster::ZeroOver(byte) => {
                let bytes = vec![*byte; to_usize(self.shape.cluster_size())];
                [self.host(guest, &bytes) | self.copied() | zero_flag, all << 32]
            }
            Cluster::Compressed(bytes) => [self.compressed(bytes), 0],
            Cluster::Subclusters(bytes, allocated, zero) => {
                assert!(extended && allocated & zero == 0, "subclusters");
                let bitmap = u64::from(*zero) << 32 | u64::from(*allocated);
                [self.host(guest, bytes) | self.copied(), bitmap]
            }
        }
    }

    /// Puts the bytes of a guest cluster in a host cluster, or in the data file.
    fn host(&mut self, guest: u64, bytes: &[u8]) -> u64 {
        assert_eq!(to_u64(bytes.len()), self.shape.cluster_size(), "bytes of a cluster");
        if self.shape.data_file.is_none() {
            let offset = self.allocate(1, self.users);
            self.put(offset, bytes);
            return offset;
        }
        assert_eq!(self.users, 1, "a snapshot with a data file");
        let offset = guest * self.shape.cluster_size();
        let end = to_usize(offset) + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[to_usize(offset)..end].copy_from_slice(bytes);
        offset
    }

    /// Packs a compressed cluster behind the one before; its L2 entry.
    fn compressed(&mut self, bytes: &[u8]) -> u64 {
        assert!(self.shape.data_file.is_none(), "compressed clusters with a data file");
        let cluster = self.shape.cluster_size();
        let packed = match self.shape.compression {
            Compression::Zlib => deflate(bytes),
            Compression::Zstd => ruzstd::encoding::compress_to_vec(
                bytes,
                ruzstd::encoding::CompressionLevel::Fastest,
            ),
        };
        let len = to_u64(packed.len());
        let most = match self.shape.refcount_order {
            6 => u64::MAX,
            order => (1 << (1u64 << order)) - 1,
        };
        let full = self.refcounts.get(to_usize(self.free.start / cluster));
        let full = full.is_none_or(|refcount| refcount + self.users > most);
        if full || self.free.end - self.free.start < len {
            let offset = self.allocate(len.div_ceil(cluster), 0);
            self.free = offset..to_u64(self.file.len());
        }
        let offset = self.free.start;
        self.put(offset, &packed);
        self.free.start += len;
        for index in offset / cluster..=(offset + len - 1) / cluster {
            self.refcounts[to_usize(index)] += self.users;
        }
        let shift = 62 - (self.shape.cluster_bits - 8);
        let more_sectors = (offset + len - 1) / 512 - offset / 512;
        COMPRESSED | more_sectors << shift | offset
    }

    fn l1_table(&mut self, l1: &[u64]) -> u64 {
        let bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let offset =
            self.allocate(to_u64(bytes.len()).div_ceil(self.shape.cluster_size()).max(1), 1);
        self.put(offset, &bytes);
        offset
    }

    /// Writes a snapshot with a copy of `l1`, and the snapshot table; the table's offset.
    fn snapshot(&mut self, name: &str, l1: &[u64]) -> u64 {
        assert!(self.shape.refcount_order > 0, "a snapshot with refcounts of one bit");
        let l1_offset = self.l1_table(l1);
        let mut entry = Vec::new();
        entry.extend(l1_offset.to_be_bytes());
        entry.extend(self.shape.l1_size().to_be_bytes());
        entry.extend([0, 1]);
        entry.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
        // Date, guest clock, and the size of a machine state that there is none of.
        entry.extend([0; 20]);
        entry.extend(16u32.to_be_bytes());
        entry.extend([0; 8]);
        entry.extend(self.shape.size.to_be_bytes());
        entry.extend(b"1");
        entry.extend(name.as_bytes());
        let offset = self.allocate(to_u64(entry.len()).div_ceil(self.shape.cluster_size()), 1);
        self.put(offset, &entry);
        offset
    }

    /// Writes refcount blocks and the refcount table, which count themselves; the table's offset and
    /// clusters.
    fn refcount_structure(&mut self) -> (u64, u64) {
        let cluster = self.shape.cluster_size();
        let bits = 1u64 << self.shape.refcount_order;
        let per_block = cluster * 8 / bits;
        let used = to_u64(self.refcounts.len());
        let (mut blocks, mut tables) = (1, 1);
        loop {
            let total = used + blocks + tables;
            let wanted = (total.div_ceil(per_block), (blocks * 8).div_ceil(cluster));
            if wanted == (blocks, tables) {
                break;
            }
            (blocks, tables) = (wanted.0.max(blocks), wanted.1.max(tables));
        }
        let (first, table) = (self.allocate(blocks, 1), self.allocate(tables, 1));
        for block in 0..blocks {
            self.put(table + block * 8, &(first + block * cluster).to_be_bytes());
        }
        let start = to_usize(first);
        for (index, refcount) in (0..).zip(self.refcounts.clone()) {
            put_refcount(&mut self.file[start..], index, bits, refcount);
        }
        (table, tables)
    }

    fn header(&mut self, tables: [u64; 4], snapshots: Option<u64>) {
        let shape = self.shape;
        let [l1_size, l1_offset, table, table_clusters] = tables;
        let half = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
        let mut header = Vec::new();
        header.extend(MAGIC.to_be_bytes());
        header.extend(shape.version.to_be_bytes());
        header.extend([0; 12]);
        header.extend(shape.cluster_bits.to_be_bytes());
        header.extend(shape.size.to_be_bytes());
        header.extend([0; 4]);
        header.extend(half(l1_size));
        header.extend(l1_offset.to_be_bytes());
        header.extend(table.to_be_bytes());
        header.extend(half(table_clusters));
        header.extend(u32::from(snapshots.is_some()).to_be_bytes());
        header.extend(snapshots.unwrap_or(0).to_be_bytes());
        if shape.version > 2 {
            let data_file = if shape.data_file.is_some() { DATA_FILE } else { 0 };
            let extended = if shape.l2_entries == L2Entries::Extended { EXTENDED_L2 } else { 0 };
            let zstd = shape.compression == Compression::Zstd;
            let compression = if zstd { COMPRESSION_TYPE } else { 0 };
            header.extend((data_file | extended | compression).to_be_bytes());
            header.extend([0; 16]);
            header.extend(shape.refcount_order.to_be_bytes());
            header.extend(112u32.to_be_bytes());
            header.extend([u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]);
        } else {
            let plain = shape.refcount_order == 4
                && shape.data_file.is_none()
                && shape.compression == Compression::Zlib
                && shape.l2_entries == L2Entries::Standard;
            assert!(plain, "version 2 has none of that");
        }
        if let Some((_, format)) = &shape.backing {
            extension(&mut header, EXT_BACKING_FORMAT, format);
        }
        if let Some(name) = &shape.data_file {
            extension(&mut header, EXT_DATA_FILE, name);
        }
        header.extend([0; 8]);
        if let Some((name, _)) = &shape.backing {
            let offset = to_u64(header.len());
            header[8..16].copy_from_slice(&offset.to_be_bytes());
            header[16..20].copy_from_slice(&half(to_u64(name.len())));
            header.extend(name.as_bytes());
        }
        assert!(to_u64(header.len()) <= shape.cluster_size(), "names too long for the header");
        self.put(0, &header);
    }
}

/// Appends a header extension, padded.
fn extension(header: &mut Vec<u8>, kind: u32, text: &str) {
    header.extend(kind.to_be_bytes());
    header.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    header.extend(text.as_bytes());
    header.resize(header.len().next_multiple_of(8), 0);
}

/// Sets entry `index` of refcount blocks that follow each other.
fn put_refcount(blocks: &mut [u8], index: u64, bits: u64, refcount: u64) {
    let at = to_usize(index * bits / 8);
    if bits >= 8 {
        let len = to_usize(bits / 8);
        blocks[at..at + len].copy_from_slice(&refcount.to_be_bytes()[8 - len..]);
    } else {
        let value = refcount << (index * bits % 8);
        blocks[at] |= u8::try_from(value).unwrap_or(u8::MAX);
    }
}

/// Raw deflate.
fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

const MAGIC: u32 = 0x5146_49fb;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_DATA_FILE: u32 = 0x4441_5441;
