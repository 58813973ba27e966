//! What a write needs, from the entries of a table; pure.
//!
//! Invariant: a step begins where the range begins; it is in place, or allocates for every grain that it
//! touches; all its grains are mapped by one table.

use block_core::{ByteRange, Error, Result};

use super::lookup::{Kind, run_in};
use crate::extent::geometry::{Entry, EntryFormat, Geometry};

/// The start of a write.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// To where the grains are, one after the other in the file.
    InPlace {
        /// Bytes.
        len: u64,
        /// Byte of the file.
        at: u64,
    },
    /// To new grains.
    Allocate(Allocation),
}

/// Grains that get a place, and what of them is written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Allocation {
    /// Whole grains; the last one may reach beyond the extent.
    pub(super) grains: ByteRange,
    /// What the guest writes.
    pub(super) write: ByteRange,
    /// What must hold the right bytes before the grains are linked: all that the extent has of them.
    pub(super) fill: ByteRange,
}

/// The first step of a write of `range`, which lies in what the table of `entries` maps.
pub(super) fn plan(
    geometry: Geometry,
    format: EntryFormat,
    entries: &[u64],
    range: ByteRange,
) -> Result<Step> {
    let run = run_in(geometry, format, entries, range)?;
    if let Kind::Data(at) = run.kind {
        return Ok(Step::InPlace { len: run.len, at });
    }
    let mut len = run.len;
    while len < range.len() {
        let next = run_in(geometry, format, entries, range.split_at(len).1)?;
        if let Kind::Data(_) = next.kind {
            break;
        }
        len += next.len;
    }
    Ok(Step::Allocate(allocation(geometry, range.first(len))))
}

/// The grains of `write`, all of which get a place.
pub(super) fn allocation(geometry: Geometry, write: ByteRange) -> Allocation {
    let grains = write.expand(geometry.grain_alignment());
    let fill = grains.intersect(ByteRange::up_to(geometry.len()));
    Allocation { grains, write, fill }
}

/// Puts the grains of `allocation`, which none of `entries` maps yet, at `sector` and what follows.
pub(super) fn link(
    geometry: Geometry,
    format: EntryFormat,
    entries: &mut [u64],
    allocation: &Allocation,
    sector: u64,
) -> Result<()> {
    let first = geometry.entry_of(allocation.grains.offset());
    let grain_sectors = geometry.grain_size() / crate::extent::geometry::SECTOR;
    let count = geometry.grain_alignment().count_up(allocation.grains.len());
    let last = first.checked_add(block_core::range::to_usize(count)).ok_or(Error::Invalid)?;
    let changed = entries.get_mut(first..last).ok_or(Error::Invalid)?;
    for word in changed.iter() {
        if let Entry::At(at) = format.decode(*word)? {
            return Err(Error::Corrupt { what: "grain that is allocated twice", value: at });
        }
    }
    for (word, n) in changed.iter_mut().zip(0..) {
        *word = sector + n * grain_sectors;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::geometry::{SECTOR, ZeroedGrains};
    use crate::units::SectorCount;
    use proptest::prelude::*;

    const FORMAT: EntryFormat = EntryFormat::Sectors { zeroed: ZeroedGrains::Known };

    proptest! {
        /// Writing by steps changes the entries of the grains touched that had no place, and no others.
        #[test]
        fn steps_cover_the_write_and_link_what_had_no_place(
            entries in prop::collection::vec(prop_oneof![
                Just(0u64), Just(1), (1u64..20).prop_map(|n| n * 8)], 8),
            start in 0u64..8 * 4096 - 1,
            len in 1u64..8 * 4096,
            short in 0u64..4096,
        ) {
            let capacity = SectorCount(64 - short / SECTOR);
            let geometry = Geometry::new(capacity, SectorCount(8), 8).unwrap();
            let end = (start + len).min(geometry.len());
            prop_assume!(start < end);
            let mut rest = ByteRange::from_bounds(start, end).unwrap();
            let (mut now, mut next) = (entries.clone(), 1000);
            while !rest.is_empty() {
                let done = match plan(geometry, FORMAT, &now, rest).unwrap() {
                    Step::InPlace { len, at } => {
                        let index = geometry.entry_of(rest.offset());
                        prop_assert_eq!(at, now[index] * SECTOR + rest.offset() % 4096);
                        len
                    }
                    Step::Allocate(allocation) => {
                        prop_assert_eq!(allocation.write.offset(), rest.offset());
                        prop_assert!(allocation.fill.contains(allocation.write));
                        prop_assert!(allocation.fill.end() <= geometry.len());
                        link(geometry, FORMAT, &mut now, &allocation, next).unwrap();
                        next += allocation.grains.len() / SECTOR;
                        allocation.write.len()
                    }
                };
                prop_assert!(done > 0);
                rest = rest.split_at(done).1;
            }
            for (index, (old, new)) in (0u64..).zip(entries.iter().zip(&now)) {
                let touched = index * 4096 < end && (index + 1) * 4096 > start;
                prop_assert_eq!(old != new, touched && *old < 2, "entry {}", index);
            }
        }
    }
}
