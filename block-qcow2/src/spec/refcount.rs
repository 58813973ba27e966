//! Refcounts: the entries of the refcount table, and counts of 1 to 64 bits in a block.
//!
//! Counts of less than a byte fill it from the lowest bit up; wider ones are big-endian.

use crate::geometry::Geometry;
use crate::spec::Fault;
use crate::units::HostOffset;

const OFFSET_MASK: u64 = !0x1ff;

/// What an entry of the refcount table points at: a block, if there is one.
pub fn table_entry(geometry: Geometry, raw: u64) -> Result<Option<HostOffset>, Fault> {
    if raw & !OFFSET_MASK != 0 {
        return Err(Fault::new("refcount table entry with reserved bits", raw));
    }
    if geometry.offset_in_cluster(raw) != 0 {
        return Err(Fault::new("unaligned refcount block offset", raw));
    }
    Ok((raw != 0).then_some(HostOffset::new(raw)))
}

/// The refcount number `index` of a block; `None` if the block does not hold it.
pub fn refcount(geometry: Geometry, block: &[u8], index: u64) -> Option<u64> {
    let bits = geometry.refcount_bits();
    if bits < 8 {
        let per_byte = 8 / bits;
        let byte = *block.get(usize::try_from(index / per_byte).ok()?)?;
        let shift = (index % per_byte) * bits;
        return Some((u64::from(byte) >> shift) & ((1 << bits) - 1));
    }
    let size = usize::try_from(bits / 8).ok()?;
    let start = usize::try_from(index).ok()?.checked_mul(size)?;
    let bytes = block.get(start..start.checked_add(size)?)?;
    Some(bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
}

/// Largest refcount that fits.
pub const fn max_refcount(geometry: Geometry) -> u64 {
    u64::MAX >> (64 - geometry.refcount_bits())
}

/// Sets refcount number `index` of a block. `None`, and nothing changed, if the block does not hold
/// it or the value does not fit.
#[must_use]
pub fn set_refcount(geometry: Geometry, block: &mut [u8], index: u64, value: u64) -> Option<()> {
    if value > max_refcount(geometry) {
        return None;
    }
    let bits = geometry.refcount_bits();
    if bits < 8 {
        let per_byte = 8 / bits;
        let byte = block.get_mut(usize::try_from(index / per_byte).ok()?)?;
        let shift = (index % per_byte) * bits;
        let mask = ((1u64 << bits) - 1) << shift;
        *byte = u8::try_from(u64::from(*byte) & !mask | value << shift).ok()?;
        return Some(());
    }
    let size = usize::try_from(bits / 8).ok()?;
    let start = usize::try_from(index).ok()?.checked_mul(size)?;
    let place = block.get_mut(start..start.checked_add(size)?)?;
    place.copy_from_slice(value.to_be_bytes().get(8 - size..)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};
    use proptest::prelude::*;

    fn geometry(order: u32) -> Geometry {
        Geometry::new(Version::V3, 9, order, L2Format::Standard, DataLocation::Image).unwrap()
    }

    #[test]
    fn every_width_is_read() {
        let block = [0b1110_0100, 0x21, 0, 0, 0, 0, 0, 7];
        let at = |order, index| refcount(geometry(order), &block, index);
        assert_eq!([at(0, 0), at(0, 2), at(0, 7)], [Some(0), Some(1), Some(1)]);
        assert_eq!([at(1, 0), at(1, 1), at(1, 3)], [Some(0), Some(1), Some(3)]);
        assert_eq!([at(2, 2), at(2, 3)], [Some(1), Some(2)]);
        assert_eq!([at(3, 1), at(3, 8)], [Some(0x21), None]);
        assert_eq!([at(4, 3), at(5, 1), at(5, 2)], [Some(7), Some(7), None]);
        assert_eq!(at(6, 0), Some(0xe421_0000_0000_0007));
    }

    proptest! {
        #[test]
        fn what_is_set_is_read_and_nothing_else_changes(
            order in 0u32..=6,
            block in prop::collection::vec(any::<u8>(), 64),
            index in 0u64..600,
            value: u64,
        ) {
            let g = geometry(order);
            let value = value & max_refcount(g);
            let mut changed = block.clone();
            let there = refcount(g, &block, index).is_some();
            prop_assert_eq!(set_refcount(g, &mut changed, index, value).is_some(), there);
            for n in 0..600 {
                let expect = refcount(g, &block, n).map(|old| if n == index { value } else { old });
                prop_assert_eq!(refcount(g, &changed, n), expect);
            }
            if order < 6 {
                prop_assert_eq!(set_refcount(g, &mut changed, 0, max_refcount(g) + 1), None);
            }
        }

        #[test]
        fn any_block_and_entry(
            order in 0u32..=6,
            block in prop::collection::vec(any::<u8>(), 0..64),
            index: u64,
            raw: u64,
        ) {
            let _ = refcount(geometry(order), &block, index);
            let _ = table_entry(geometry(order), raw);
        }
    }
}
