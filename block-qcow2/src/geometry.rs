//! The arithmetic of an image, on one `Copy` value.
//!
//! Invariants: `9 <= cluster_bits <= 21` (at least 14 with extended L2 entries), `refcount_order <= 6`.
//! So a cluster is at most 2 MiB, an L2 table maps at most 2^39 bytes, and no shift here overflows.

use std::sync::atomic::{AtomicU32, Ordering};

use block_core::error::Problem;
use block_core::{Alignment, OpenError};

use crate::spec::bad_field;
use crate::units::{GuestOffset, HostOffset};

/// Smallest cluster: 512 bytes.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Smallest cluster of an image with extended L2 entries: 16 KiB.
pub const MIN_CLUSTER_BITS_EXTENDED: u32 = 14;
/// Largest cluster: 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Widest refcount: 64 bits.
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// Subclusters of a cluster where L2 entries are extended.
pub const SUBCLUSTERS: u32 = 32;

/// Version of the format.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// 2, which tools call `0.10`.
    V2,
    /// 3, which tools call `1.1`.
    V3,
}

/// What an L2 entry looks like.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum L2Format {
    /// 8 bytes; a cluster is allocated as a whole.
    Standard,
    /// 16 bytes; each of 32 subclusters is allocated by itself.
    Extended,
}

/// Where the host clusters of guest data are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DataLocation {
    /// In the image file.
    Image,
    /// In an external data file, whose first cluster is at offset 0.
    DataFile,
}

/// A geometry that changes while it is read: amending changes version and refcount width, and
/// nothing else. Reading it costs one plain load.
#[derive(Debug)]
pub(crate) struct GeometryCell {
    fixed: Geometry,
    /// `refcount_order * 2 + (version == V3)`.
    changing: AtomicU32,
}

impl GeometryCell {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { fixed: geometry, changing: AtomicU32::new(Self::pack(geometry)) }
    }

    #[inline]
    pub(crate) fn load(&self) -> Geometry {
        let changing = self.changing.load(Ordering::Relaxed);
        let version = if changing & 1 == 1 { Version::V3 } else { Version::V2 };
        Geometry { version, refcount_order: changing >> 1, ..self.fixed }
    }

    /// Takes over version and refcount width. Called while no request is inside.
    pub(crate) fn store(&self, geometry: Geometry) {
        self.changing.store(Self::pack(geometry), Ordering::Relaxed);
    }

    fn pack(geometry: Geometry) -> u32 {
        geometry.refcount_order << 1 | u32::from(geometry.version == Version::V3)
    }
}

/// Sizes of an image and the arithmetic on them.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    version: Version,
    l2_format: L2Format,
    data_location: DataLocation,
}

impl Geometry {
    /// Checks the numbers of a header.
    pub fn new(
        version: Version,
        cluster_bits: u32,
        refcount_order: u32,
        l2_format: L2Format,
        data_location: DataLocation,
    ) -> Result<Self, OpenError> {
        let min = match l2_format {
            L2Format::Standard => MIN_CLUSTER_BITS,
            L2Format::Extended => MIN_CLUSTER_BITS_EXTENDED,
        };
        check_between("cluster bits", cluster_bits, min, MAX_CLUSTER_BITS)?;
        check_between("refcount order", refcount_order, 0, MAX_REFCOUNT_ORDER)?;
        Ok(Self { cluster_bits, refcount_order, version, l2_format, data_location })
    }

    /// The same in another version of the format.
    #[must_use]
    pub(crate) const fn with_version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// The same with refcounts of `1 << order` bits; `order` is at most [`MAX_REFCOUNT_ORDER`].
    #[must_use]
    pub(crate) const fn with_refcount_order(self, order: u32) -> Self {
        Self { refcount_order: order, ..self }
    }

    /// Version of the format.
    pub const fn version(self) -> Version {
        self.version
    }

    /// What an L2 entry looks like.
    pub const fn l2_format(self) -> L2Format {
        self.l2_format
    }

    /// Where the host clusters of guest data are.
    pub const fn data_location(self) -> DataLocation {
        self.data_location
    }

    /// Logarithm of the cluster size.
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The cluster size as an alignment.
    pub const fn cluster_alignment(self) -> Alignment {
        match Alignment::new(self.cluster_size()) {
            Some(align) => align,
            None => Alignment::ONE,
        }
    }

    /// Offset inside of its cluster.
    pub const fn offset_in_cluster(self, bytes: u64) -> u64 {
        bytes & (self.cluster_size() - 1)
    }

    /// Logarithm of the size of an L2 entry. Everything on the way of a read shifts: divisions there
    /// were a tenth of its cost.
    pub const fn l2_entry_bits(self) -> u32 {
        match self.l2_format {
            L2Format::Standard => 3,
            L2Format::Extended => 4,
        }
    }

    /// Bytes of an L2 entry.
    pub const fn l2_entry_size(self) -> u64 {
        1 << self.l2_entry_bits()
    }

    /// 64-bit words of an L2 entry.
    pub const fn l2_entry_words(self) -> usize {
        match self.l2_format {
            L2Format::Standard => 1,
            L2Format::Extended => 2,
        }
    }

    /// Entries of an L2 table, which fills one cluster.
    pub const fn l2_entries(self) -> u64 {
        1 << (self.cluster_bits - self.l2_entry_bits())
    }

    /// Guest bytes that one L2 table maps.
    pub const fn l2_coverage(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Which L1 entry maps `offset`.
    pub const fn l1_index(self, offset: GuestOffset) -> u64 {
        offset.bytes() >> (self.cluster_bits - self.l2_entry_bits() + self.cluster_bits)
    }

    /// Which entry of its L2 table maps `offset`.
    pub const fn l2_index(self, offset: GuestOffset) -> u64 {
        (offset.bytes() >> self.cluster_bits) & (self.l2_entries() - 1)
    }

    /// L1 entries that a disk of `len` bytes needs.
    pub const fn l1_entries_for(self, len: u64) -> u64 {
        len.div_ceil(self.l2_coverage())
    }

    /// Subclusters of a cluster: 32, or the cluster itself.
    pub const fn subclusters(self) -> u32 {
        match self.l2_format {
            L2Format::Standard => 1,
            L2Format::Extended => SUBCLUSTERS,
        }
    }

    /// Logarithm of the size of a subcluster.
    pub const fn subcluster_bits(self) -> u32 {
        match self.l2_format {
            L2Format::Standard => self.cluster_bits,
            L2Format::Extended => self.cluster_bits - SUBCLUSTERS.ilog2(),
        }
    }

    /// Bytes of a subcluster.
    pub const fn subcluster_size(self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// Bits of a refcount.
    pub const fn refcount_bits(self) -> u64 {
        1 << self.refcount_order
    }

    /// Refcounts in one block, which fills one cluster.
    pub const fn refcounts_per_block(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Where the sector count starts in the descriptor of a compressed cluster.
    const fn compressed_shift(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }

    /// Byte offset and length in bytes of the payload that a compressed descriptor (the low 62 bits
    /// of its L2 entry) means. What follows the payload inside of the length may belong to others.
    pub const fn compressed_payload(self, descriptor: u64) -> (HostOffset, u64) {
        let shift = self.compressed_shift();
        let offset = descriptor & ((1 << shift) - 1);
        let extra_sectors = (descriptor >> shift) & ((1 << (self.cluster_bits - 8)) - 1);
        let len = (extra_sectors + 1) * 512 - (offset & 511);
        (HostOffset::new(offset), len)
    }

    /// The descriptor of a payload of `len` bytes at `offset`: the reverse of
    /// [`Geometry::compressed_payload`], up to the end of the last sector. `1 <= len` and at most a
    /// cluster; what of the offset does not fit ([`Geometry::max_payload_offset`]) is cut off.
    pub(crate) const fn compressed_descriptor(self, offset: HostOffset, len: u64) -> u64 {
        let first = offset.bytes() / 512;
        let last = offset.plus(len.saturating_sub(1)).bytes() / 512;
        (last - first) << self.compressed_shift() | (offset.bytes() & self.max_payload_offset())
    }

    /// Last byte at which the payload of a compressed cluster can start.
    pub const fn max_payload_offset(self) -> u64 {
        (1 << self.compressed_shift()) - 1
    }
}

fn check_between(field: &'static str, value: u32, min: u32, max: u32) -> Result<(), OpenError> {
    let problem = if value < min {
        Problem::Below(min.into())
    } else if value > max {
        Problem::Above(max.into())
    } else {
        return Ok(());
    };
    Err(bad_field(field, value.into(), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(bits: u32, l2_format: L2Format) -> Geometry {
        Geometry::new(Version::V3, bits, 4, l2_format, DataLocation::Image).unwrap()
    }

    #[test]
    fn a_64k_image_has_the_sizes_of_the_format() {
        let g = geometry(16, L2Format::Standard);
        assert_eq!((g.l2_entries(), g.l2_coverage()), (8192, 512 << 20));
        assert_eq!((g.refcount_bits(), g.refcounts_per_block()), (16, 32768));
        assert_eq!(g.l1_entries_for(0), 0);
        assert_eq!(g.l1_entries_for((512 << 20) + 1), 2);
        let offset = GuestOffset::new((512 << 20) + (3 << 16) + 5);
        assert_eq!((g.l1_index(offset), g.l2_index(offset)), (1, 3));
        let g = geometry(16, L2Format::Extended);
        assert_eq!((g.l2_entries(), g.subcluster_size()), (4096, 2048));
    }

    #[test]
    fn compressed_payloads_end_at_a_sector_and_stay_below_two_clusters() {
        for bits in MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS {
            let g = geometry(bits, L2Format::Standard);
            let (offset, len) = g.compressed_payload((1 << 62) - 1);
            assert_eq!((offset.bytes() + len) % 512, 0);
            assert!(len <= 2 * g.cluster_size());
            assert_eq!(g.compressed_payload(0), (HostOffset::new(0), 512));
        }
        // 64 KiB clusters: 54 bits of offset, then the number of additional sectors.
        let g = geometry(16, L2Format::Standard);
        let (offset, len) = g.compressed_payload((2 << 54) | 0x50_0123);
        assert_eq!((offset.bytes(), len), (0x50_0123, 3 * 512 - 0x123));
    }

    #[test]
    fn sizes_out_of_bounds_are_named() {
        for (bits, order, format) in [(8, 4, "cluster"), (22, 4, "cluster"), (16, 7, "refcount")] {
            let err =
                Geometry::new(Version::V3, bits, order, L2Format::Standard, DataLocation::Image);
            assert!(err.unwrap_err().to_string().contains(format));
        }
    }
}
