//! The bits of a bitmap as they stand in its clusters, and the entries of its table. Pure.
//!
//! Bit `n` stands for the guest bytes from `n * granularity` on, and is bit `n % 8` of byte `n / 8`.

use block_core::ByteRange;
use block_core::dirty::Granules;
use block_core::range::to_usize;

use crate::geometry::Geometry;
use crate::spec::Fault;
use crate::units::HostOffset;

/// An entry that says: all bits of the cluster are set.
pub(super) const ALL_ONES: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the bits of a cluster of a bitmap are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Cluster {
    /// Nowhere: none is set.
    Zeroes,
    /// Nowhere: all are set.
    Ones,
    /// There.
    At(HostOffset),
}

/// Clusters of a bitmap for a disk of `disk_len` bytes.
pub(super) fn table_entries(geometry: Geometry, disk_len: u64, granularity: u64) -> u64 {
    disk_len.div_ceil(granularity).div_ceil(8).div_ceil(geometry.cluster_size())
}

/// Guest bytes that `len` bytes of bits stand for.
pub(super) fn covered(len: u64, granularity: u64) -> u64 {
    len.saturating_mul(8).saturating_mul(granularity)
}

/// Reads a table entry.
pub(super) fn parse_entry(geometry: Geometry, raw: u64) -> Result<Cluster, Fault> {
    let offset = raw & OFFSET;
    let reserved = raw & !OFFSET & !(if offset == 0 { ALL_ONES } else { 0 });
    if reserved != 0 {
        return Err(Fault::new("reserved bits of bitmap table entry", raw));
    }
    if geometry.offset_in_cluster(offset) != 0 {
        return Err(Fault::new("offset of bitmap table entry", raw));
    }
    Ok(match (offset, raw & ALL_ONES) {
        (0, 0) => Cluster::Zeroes,
        (0, _) => Cluster::Ones,
        _ => Cluster::At(HostOffset::new(offset)),
    })
}

/// The bits of the granules of `range`, which starts at the border of a cluster of the bitmap: appended
/// to `into` as a cluster of `len` bytes, unless all are the same.
pub(super) fn append(
    granules: &Granules,
    range: ByteRange,
    len: usize,
    into: &mut Vec<u8>,
) -> Cluster {
    let Some(mut area) = granules.next_dirty_area(range, range.len()) else {
        return Cluster::Zeroes;
    };
    if area == range {
        return Cluster::Ones;
    }
    let from = into.len();
    into.resize(from + len, 0);
    let bits = into.get_mut(from..).unwrap_or_default();
    let granularity = granules.granularity().bytes();
    loop {
        let bit = |offset: u64| offset.saturating_sub(range.offset());
        set_bits(bits, bit(area.offset()) / granularity, bit(area.end()).div_ceil(granularity));
        let rest = ByteRange::from_bounds(area.end(), range.end()).ok();
        match rest.and_then(|rest| granules.next_dirty_area(rest, rest.len())) {
            Some(next) => area = next,
            // The place is not known yet.
            None => return Cluster::At(HostOffset::new(0)),
        }
    }
}

fn set_bits(bytes: &mut [u8], first: u64, end: u64) {
    let mut bit = first;
    while bit < end {
        let Some(byte) = bytes.get_mut(to_usize(bit / 8)) else { return };
        if bit.is_multiple_of(8) && end - bit >= 8 {
            *byte = 0xff;
            bit += 8;
        } else {
            *byte |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use block_core::dirty::Granularity;
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};

    #[test]
    fn entries_are_read_and_reserved_bits_are_named() {
        let location = DataLocation::Image;
        let geometry = Geometry::new(Version::V3, 16, 4, L2Format::Standard, location).unwrap();
        assert_eq!(parse_entry(geometry, 0), Ok(Cluster::Zeroes));
        assert_eq!(parse_entry(geometry, 1), Ok(Cluster::Ones));
        let at = Cluster::At(HostOffset::new(0x5_0000));
        assert_eq!(parse_entry(geometry, 0x5_0000), Ok(at));
        for raw in [2, 0x5_0001, 0x5_0200, 1 << 56, u64::MAX] {
            assert_eq!(parse_entry(geometry, raw).unwrap_err().value, raw);
        }
        assert_eq!(table_entries(geometry, 1 << 40, 65536), 32);
        assert_eq!(table_entries(geometry, 1, 512), 1);
    }

    proptest! {
        #[test]
        fn what_is_appended_is_read_again(
            areas in prop::collection::vec((0u64..70_000, 1u64..9_000), 0..12),
            len in 1u64..80_000,
        ) {
            let mut granules = Granules::new(Granularity::MIN, len).unwrap();
            for (offset, len) in areas {
                granules.set(ByteRange::new(offset, len).unwrap());
            }
            let mut bytes = vec![7];
            let range = ByteRange::up_to(len);
            let read = match append(&granules, range, 24, &mut bytes) {
                Cluster::Zeroes => Vec::new(),
                Cluster::Ones => vec![range],
                Cluster::At(_) => {
                    prop_assert_eq!(bytes.len(), 25);
                    let mut read = Granules::new(Granularity::MIN, len).unwrap();
                    read.set_bits(0, &bytes[1..]);
                    read.areas().collect()
                }
            };
            prop_assert_eq!(read, granules.areas().collect::<Vec<_>>());
        }
    }
}
