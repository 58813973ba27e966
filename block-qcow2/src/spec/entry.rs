//! L1 and L2 entries: what one 64-bit word (two, where extended) says of a cluster.
//!
//! Invariants of what is returned: host offsets are multiples of the cluster size; `alloc & zero == 0`;
//! a subcluster marked in `alloc` has a host offset. Bits that the format reserves are faults: an
//! image that uses them in a new way would carry an incompatible feature bit.

use crate::geometry::{DataLocation, Geometry, L2Format, Version};
use crate::spec::Fault;
use crate::units::{GuestOffset, HostOffset};

/// Bits of an entry that hold a host offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is referenced exactly once.
const COPIED: u64 = 1 << 63;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3, standard entries).
const ZERO: u64 = 1;
const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);
const L2_RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);

/// What an L1 entry points at: the offset of an L2 table, if there is one.
pub fn l1_entry(geometry: Geometry, raw: u64) -> Result<Option<HostOffset>, Fault> {
    if raw & L1_RESERVED != 0 {
        return Err(Fault::new("L1 entry with reserved bits", raw));
    }
    let offset = raw & OFFSET_MASK;
    if geometry.offset_in_cluster(offset) != 0 {
        return Err(Fault::new("unaligned L2 table offset", offset));
    }
    Ok((offset != 0).then_some(HostOffset::new(offset)))
}

/// The payload of a compressed cluster. It may be followed by bytes of others, up to `len`.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Payload {
    /// First byte, at any offset.
    pub offset: HostOffset,
    /// Bytes until the last sector that the payload touches ends.
    pub len: u64,
}

impl Payload {
    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset.bytes().saturating_add(self.len)
    }
}

/// What an L2 entry says of its cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Cluster {
    /// Compressed as a whole.
    Compressed(Payload),
    /// Not compressed. Bit i of the masks is subcluster i; bit 0 is all there is in a standard entry.
    Plain {
        /// Host cluster that holds what is allocated, or is kept for it.
        host: Option<HostOffset>,
        /// Subclusters that stand in the host cluster.
        alloc: u32,
        /// Subclusters that read as zeroes.
        zero: u32,
    },
}

/// Parses an L2 entry. `bitmap` is the second word of an extended entry, 0 for a standard one.
pub fn l2_entry(geometry: Geometry, raw: u64, bitmap: u64) -> Result<Cluster, Fault> {
    if raw & COMPRESSED != 0 {
        return compressed_entry(geometry, raw, bitmap);
    }
    let extended = geometry.l2_format() == L2Format::Extended;
    if raw & L2_RESERVED != 0 || (extended && raw & ZERO != 0) {
        return Err(Fault::new("L2 entry with reserved bits", raw));
    }
    let offset = raw & OFFSET_MASK;
    if geometry.offset_in_cluster(offset) != 0 {
        return Err(Fault::new("unaligned cluster offset", offset));
    }
    // Offset 0 means "none", but in a data file, which has no header, a cluster may stand there:
    // the COPIED flag, which every cluster of a data file has, tells the two apart.
    let at_zero = geometry.data_location() == DataLocation::DataFile && raw & COPIED != 0;
    let host = (offset != 0 || at_zero).then_some(HostOffset::new(offset));
    let (alloc, zero) = if extended {
        let (alloc, zero) = halves(bitmap);
        if alloc & zero != 0 {
            return Err(Fault::new("subcluster both allocated and zero", bitmap));
        }
        if alloc != 0 && host.is_none() {
            return Err(Fault::new("subclusters without a host cluster", bitmap));
        }
        (alloc, zero)
    } else if raw & ZERO != 0 {
        if geometry.version() == Version::V2 {
            return Err(Fault::new("zero cluster in a version 2 image", raw));
        }
        (0, 1)
    } else {
        (u32::from(host.is_some()), 0)
    };
    Ok(Cluster::Plain { host, alloc, zero })
}

/// Parses the L2 entry that maps the cluster at `guest`. In a data file a cluster stands at its guest offset
/// and nowhere else.
pub fn mapping_entry(
    geometry: Geometry,
    raw: u64,
    bitmap: u64,
    guest: GuestOffset,
) -> Result<Cluster, Fault> {
    let cluster = l2_entry(geometry, raw, bitmap)?;
    match cluster {
        Cluster::Plain { host: Some(host), .. }
            if geometry.data_location() == DataLocation::DataFile
                && host.bytes() != guest.bytes() =>
        {
            Err(Fault::new("data file offset of L2 entry", raw))
        }
        _ => Ok(cluster),
    }
}

/// Whether an L1 or L2 entry says that what it points at is referenced exactly once.
pub const fn is_copied(raw: u64) -> bool {
    raw & COPIED != 0
}

/// The same entry with the COPIED flag set or cleared.
#[must_use]
pub const fn with_copied(raw: u64, copied: Copied) -> u64 {
    match copied {
        Copied::Yes => raw | COPIED,
        Copied::No => raw & !COPIED,
    }
}

/// Whether what an entry points at is referenced exactly once.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Copied {
    /// Once: it may be written in place.
    Yes,
    /// Perhaps more than once: a write needs a copy.
    No,
}

/// The L1 entry of an L2 table.
pub const fn encode_l1(table: HostOffset, copied: Copied) -> u64 {
    with_copied(table.bytes() & OFFSET_MASK, copied)
}

/// The words of an L2 entry of a cluster that is not compressed; the second one is 0 where entries
/// are standard. The reverse of [`l2_entry`].
pub fn encode_plain(
    geometry: Geometry,
    host: Option<HostOffset>,
    alloc: u32,
    zero: u32,
    copied: Copied,
) -> (u64, u64) {
    let offset = host.map_or(0, |h| h.bytes() & OFFSET_MASK);
    let copied = if host.is_some() { copied } else { Copied::No };
    let raw = with_copied(offset, copied);
    match geometry.l2_format() {
        L2Format::Standard => (if zero != 0 { raw | ZERO } else { raw }, 0),
        L2Format::Extended => (raw, u64::from(zero) << 32 | u64::from(alloc)),
    }
}

/// The words of the L2 entry of a compressed cluster whose payload is the `len` bytes at `offset`:
/// `1 <= len <= cluster size`, and `offset` is at most [`Geometry::max_payload_offset`]. COPIED is
/// never set: a compressed cluster is not written in place.
pub fn encode_compressed(geometry: Geometry, offset: HostOffset, len: u64) -> (u64, u64) {
    (COMPRESSED | geometry.compressed_descriptor(offset, len), 0)
}

fn compressed_entry(geometry: Geometry, raw: u64, bitmap: u64) -> Result<Cluster, Fault> {
    if geometry.data_location() == DataLocation::DataFile {
        return Err(Fault::new("compressed cluster in an image with a data file", raw));
    }
    if bitmap != 0 {
        return Err(Fault::new("subclusters of a compressed cluster", bitmap));
    }
    let (offset, len) = geometry.compressed_payload(raw & (COMPRESSED - 1));
    Ok(Cluster::Compressed(Payload { offset, len }))
}

/// The allocated and the zero subclusters of an extended entry's second word.
fn halves(bitmap: u64) -> (u32, u32) {
    let low = u32::try_from(bitmap & 0xffff_ffff).unwrap_or(u32::MAX);
    let high = u32::try_from(bitmap >> 32).unwrap_or(u32::MAX);
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(version: Version, l2_format: L2Format, data_location: DataLocation) -> Geometry {
        Geometry::new(version, 16, 4, l2_format, data_location).unwrap()
    }

    fn v3() -> Geometry {
        geometry(Version::V3, L2Format::Standard, DataLocation::Image)
    }

    fn plain(host: Option<u64>, alloc: u32, zero: u32) -> Result<Cluster, Fault> {
        let host = host.map(HostOffset::new);
        Ok(Cluster::Plain { host, alloc, zero })
    }

    #[test]
    fn standard_entries() {
        assert_eq!(l2_entry(v3(), 0, 0), plain(None, 0, 0));
        assert_eq!(l2_entry(v3(), 0x5_0000, 0), plain(Some(0x5_0000), 1, 0));
        assert_eq!(l2_entry(v3(), COPIED | 0x5_0000, 0), plain(Some(0x5_0000), 1, 0));
        assert_eq!(l2_entry(v3(), 1, 0), plain(None, 0, 1));
        assert_eq!(l2_entry(v3(), 0x5_0001, 0), plain(Some(0x5_0000), 0, 1));
        assert!(l2_entry(v3(), 0x5_0200, 0).unwrap_err().what.contains("unaligned"));
        assert!(l2_entry(v3(), 0x5_0002, 0).unwrap_err().what.contains("reserved"));
        let v2 = geometry(Version::V2, L2Format::Standard, DataLocation::Image);
        assert!(l2_entry(v2, 1, 0).unwrap_err().what.contains("version 2"));
    }

    #[test]
    fn the_first_cluster_of_a_data_file_is_a_cluster() {
        let g = geometry(Version::V3, L2Format::Standard, DataLocation::DataFile);
        assert_eq!(l2_entry(g, COPIED, 0), plain(Some(0), 1, 0));
        assert_eq!(l2_entry(g, 0, 0), plain(None, 0, 0));
        assert_eq!(l2_entry(v3(), COPIED, 0), plain(None, 0, 0));
        assert!(l2_entry(g, COMPRESSED, 0).is_err());
    }

    #[test]
    fn extended_entries() {
        let g = geometry(Version::V3, L2Format::Extended, DataLocation::Image);
        assert_eq!(l2_entry(g, 0x5_0000, 3 << 32 | 4), plain(Some(0x5_0000), 4, 3));
        assert_eq!(l2_entry(g, 0, 1 << 32), plain(None, 0, 1));
        for (raw, bitmap) in [(0x5_0000, 1 << 32 | 1), (0, 1), (1, 0), (COMPRESSED, 1)] {
            assert!(l2_entry(g, raw, bitmap).is_err(), "{raw:#x} {bitmap:#x}");
        }
    }

    #[test]
    fn l1_entries() {
        assert_eq!(l1_entry(v3(), 0), Ok(None));
        assert_eq!(l1_entry(v3(), COPIED | 0x3_0000), Ok(Some(HostOffset::new(0x3_0000))));
        assert!(l1_entry(v3(), 0x3_0200).is_err());
        assert!(l1_entry(v3(), 0x3_0001).is_err());
        assert!(l1_entry(v3(), 0x3_0000 | 1 << 60).is_err());
    }

    proptest! {
        #[test]
        fn a_compressed_entry_names_the_sectors_of_its_payload(
            bits in 9u32..=21,
            ext: bool,
            offset: u64,
            len: u64,
        ) {
            let format = if ext && bits >= 14 { L2Format::Extended } else { L2Format::Standard };
            let g = Geometry::new(Version::V3, bits, 4, format, DataLocation::Image).unwrap();
            let offset = HostOffset::new(offset & g.max_payload_offset());
            let len = 1 + len % g.cluster_size();
            let (raw, bitmap) = encode_compressed(g, offset, len);
            prop_assert!(!is_copied(raw));
            let Ok(Cluster::Compressed(payload)) = l2_entry(g, raw, bitmap) else {
                panic!("{raw:#x} is not compressed");
            };
            prop_assert_eq!(payload.offset, offset);
            prop_assert_eq!(payload.end(), (offset.bytes() + len).next_multiple_of(512));
        }

        #[test]
        fn any_entry_is_checked(raw: u64, bitmap: u64, bits in 14u32..=21, ext: bool, df: bool) {
            let format = if ext { L2Format::Extended } else { L2Format::Standard };
            let place = if df { DataLocation::DataFile } else { DataLocation::Image };
            let g = Geometry::new(Version::V3, bits, 4, format, place).unwrap();
            let bitmap = if ext { bitmap } else { 0 };
            if let Ok(Cluster::Plain { host, alloc, zero }) = l2_entry(g, raw, bitmap) {
                prop_assert_eq!(alloc & zero, 0);
                prop_assert!(alloc == 0 || host.is_some());
                prop_assert!(host.is_none_or(|h| g.offset_in_cluster(h.bytes()) == 0));
                let copied = if is_copied(raw) { Copied::Yes } else { Copied::No };
                let (again, bits) = encode_plain(g, host, alloc, zero, copied);
                prop_assert_eq!(l2_entry(g, again, bits), l2_entry(g, raw, bitmap));
            }
            let _ = l1_entry(g, raw);
        }
    }
}
