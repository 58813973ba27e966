//! Where metadata is: directories, the places of tables in them, and who claims which sectors.
//!
//! Invariants: a sector is claimed once; a table whose place is bad is not followed.

use block_core::Problem;
use block_core::range::to_usize;
use roaring::RoaringBitmap;

use crate::extent::geometry::SECTOR;
use crate::extent::layout::SparseLayout;
use crate::units::Sector;

/// One of the two directories of an extent.
pub(super) struct Directory {
    pub(super) name: &'static str,
    /// Where it starts.
    pub(super) place: Sector,
    /// The sector of each table; 0: there is none.
    pub(super) tables: Vec<u32>,
    /// Tables at places where no table can be.
    pub(super) bad: RoaringBitmap,
}

impl Directory {
    /// The place of the table `number`, if it has one that is not bad.
    pub(super) fn table(&self, number: u32) -> Option<u32> {
        self.entry(number).filter(|sector| *sector != 0 && !self.bad.contains(number))
    }

    /// The entry of the table `number`.
    pub(super) fn entry(&self, number: u32) -> Option<u32> {
        self.tables.get(to_usize(number.into())).copied()
    }

    /// How many tables stand one after the other from the table `number` on, `most` at most.
    pub(super) fn run(&self, number: u32, sectors: u64, most: u64) -> u64 {
        let first = u64::from(self.table(number).unwrap_or(0));
        let follows = |n: &u64| {
            let next = u32::try_from(*n).ok().and_then(|n| number.checked_add(n));
            let next = next.and_then(|number| self.table(number));
            next.is_some_and(|sector| u64::from(sector) == first + n * sectors)
        };
        1 + block_core::range::to_u64((1..most).take_while(follows).count())
    }
}

/// Sectors of the file that are claimed.
#[derive(Clone, Default)]
pub(super) struct Claims {
    sectors: RoaringBitmap,
    /// Sectors that more than one wanted.
    contested: RoaringBitmap,
}

impl Claims {
    /// Claims sectors; `false`, and nothing is claimed, if somebody has one of them.
    pub(super) fn claim(&mut self, start: u64, count: u64) -> bool {
        let Some((first, last)) = bounds(start, count) else { return true };
        if self.sectors.range_cardinality(first..=last) > 0 {
            self.contested.insert_range(first..=last);
            return false;
        }
        self.sectors.insert_range(first..=last);
        true
    }

    /// Whether somebody has one of these sectors.
    pub(super) fn overlaps(&self, start: u64, count: u64) -> bool {
        self.count(start, count) > 0
    }

    /// How many of these sectors somebody has.
    pub(super) fn count(&self, start: u64, count: u64) -> u64 {
        bounds(start, count).map_or(0, |(first, last)| self.sectors.range_cardinality(first..=last))
    }

    /// Whether more than one wanted one of these sectors.
    pub(super) fn is_contested(&self, start: u64, count: u64) -> bool {
        !self.contested.is_empty()
            && bounds(start, count)
                .is_some_and(|(a, b)| self.contested.range_cardinality(a..=b) > 0)
    }

    pub(super) fn has_contests(&self) -> bool {
        !self.contested.is_empty()
    }

    pub(super) fn sectors(&self) -> &RoaringBitmap {
        &self.sectors
    }

    /// The sector behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.sectors.max().map_or(0, |last| u64::from(last) + 1)
    }
}

/// The first and last sector. `None`: no entry can name them, so that nothing else is there.
fn bounds(start: u64, count: u64) -> Option<(u32, u32)> {
    let first = u32::try_from(start).ok()?;
    let last = start.checked_add(count.checked_sub(1)?)?;
    Some((first, u32::try_from(last).unwrap_or(u32::MAX)))
}

/// Why there is no table at `sector`; `file_len` is in bytes.
pub(super) fn table_problem(
    layout: &SparseLayout,
    fixed: &Claims,
    sector: u32,
    file_len: u64,
) -> Option<Problem> {
    let start = u64::from(sector);
    if start * SECTOR + layout.table_bytes() > file_len {
        Some(Problem::Truncated(file_len.div_ceil(SECTOR)))
    } else if fixed.overlaps(start, layout.table_sectors().0) {
        Some(Problem::Overlap)
    } else {
        None
    }
}
