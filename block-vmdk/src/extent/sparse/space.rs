//! Free space of an extent's file; pure.
//!
//! Nothing is asked of the file: the next free grain is kept in memory, from the end of the highest
//! grain or table that is referenced. **Invariants.** What is given out was referenced by nothing, in
//! memory or in the file, and is given out once; every place ends at or below `limit`.

use std::collections::BTreeMap;
use std::ops::Range;

use block_core::{Error, Result};

/// Sectors beyond this have no number that fits an entry.
pub(super) const SECTORS_MAX: u64 = 1 << 32;

/// A place for grains.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// First sector of the file.
    pub(super) sector: u64,
    /// Grains, one after the other.
    pub(super) grains: u64,
    /// It reads as zeroes: nothing was ever written there.
    pub(super) fresh: bool,
}

/// Free sectors of a file.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Sectors of a grain.
    grain: u64,
    /// From here on everything is free.
    next: u64,
    /// From here on nothing was ever written.
    fresh_from: u64,
    limit: u64,
    /// What was given back: first sector and how many, whole grains that do not adjoin.
    returned: BTreeMap<u64, u64>,
    /// What is left of the last piece taken for tables.
    tables: Range<u64>,
}

impl Space {
    /// Everything from sector `next` on is free, to sector `limit`; from `fresh_from` on it reads as
    /// zeroes.
    pub(super) fn new(grain: u64, next: u64, fresh_from: u64, limit: u64) -> Self {
        let limit = limit.min(SECTORS_MAX);
        Self { grain, next, fresh_from, limit, returned: BTreeMap::new(), tables: 0..0 }
    }

    /// The sector behind all that was ever given out.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    /// A place for up to `wanted` grains, at least one.
    ///
    /// # Errors
    /// `EFBIG` where entries can name no further sector, `ENOSPC` where the file cannot grow.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Place> {
        let first = self.returned.first_key_value().map(|(_, count)| count / self.grain);
        if let Some(grains) = first.map(|count| wanted.min(count))
            && let Some(sector) = self.take_returned(grains * self.grain)
        {
            return Ok(Place { sector, grains, fresh: false });
        }
        let sector = self.next.next_multiple_of(self.grain);
        let room = self.limit.saturating_sub(sector) / self.grain;
        let grains = wanted.min(room);
        self.take(sector, grains * self.grain)?;
        let fresh = sector >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(self.next);
        Ok(Place { sector, grains, fresh })
    }

    /// A place for a table of `sectors`, which the caller writes as a whole. Grains that were given back are
    /// taken for it where there is no other room.
    pub(super) fn allocate_table(&mut self, sectors: u64) -> Result<u64> {
        if self.tables.end - self.tables.start < sectors {
            // Whole grains, so that those that follow stay aligned.
            let count = sectors.next_multiple_of(self.grain);
            let start = self.next.next_multiple_of(self.grain);
            let start = match self.take(start, count) {
                Ok(()) => start,
                Err(full) => self.take_returned(count).ok_or(full)?,
            };
            self.tables = start..start + count;
            self.fresh_from = self.fresh_from.max(self.next);
        }
        let sector = self.tables.start;
        self.tables.start += sectors;
        Ok(sector)
    }

    /// Takes `sectors` in a row that were given back.
    fn take_returned(&mut self, sectors: u64) -> Option<u64> {
        let (&sector, &count) = self.returned.iter().find(|(_, count)| **count >= sectors)?;
        self.returned.remove(&sector);
        if sectors < count {
            self.returned.insert(sector + sectors, count - sectors);
        }
        Some(sector)
    }

    fn take(&mut self, sector: u64, sectors: u64) -> Result<()> {
        let end = sector.saturating_add(sectors);
        if sectors == 0 || end > self.limit {
            let full = self.limit >= SECTORS_MAX;
            return Err(if full { Error::Os(libc::EFBIG) } else { Error::NO_SPACE });
        }
        self.next = end;
        Ok(())
    }

    /// Takes back `sectors`, whole grains, that nobody refers to or uses.
    pub(super) fn give_back(&mut self, sector: u64, sectors: u64) {
        let (mut start, mut end) = (sector, sector + sectors);
        if let Some((&before, &count)) = self.returned.range(..start).next_back()
            && before + count == start
        {
            start = before;
        }
        if let Some(&count) = self.returned.get(&end) {
            self.returned.remove(&end);
            end += count;
        }
        self.returned.remove(&start);
        if end == self.next {
            self.next = start;
        } else {
            self.returned.insert(start, end - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u64),
        Table,
        GiveBack(usize),
    }

    proptest! {
        /// No sector is given out twice, and what is fresh was never given out.
        #[test]
        fn every_sector_has_one_owner(
            grain in prop_oneof![Just(1u64), Just(8), Just(128)],
            next in 0u64..300,
            ahead in 0u64..300,
            room in 0u64..4000,
            steps in prop::collection::vec(prop_oneof![
                (1u64..6).prop_map(Step::Allocate),
                Just(Step::Table),
                (0usize..20).prop_map(Step::GiveBack)], 0..80),
        ) {
            let mut space = Space::new(grain, next, next + ahead, next + room);
            let (mut owned, mut ever) = (BTreeSet::new(), BTreeSet::new());
            let mut places = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(count) => match space.allocate(count) {
                        Ok(place) => {
                            prop_assert!((1..=count).contains(&place.grains));
                            for sector in place.sector..place.sector + place.grains * grain {
                                prop_assert!(sector >= next && sector < next + room);
                                prop_assert!(owned.insert(sector), "sector {}", sector);
                                let first = ever.insert(sector);
                                prop_assert!(!place.fresh || first && sector >= next + ahead);
                            }
                            places.push(place);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, Error::NO_SPACE);
                            let start = space.end().next_multiple_of(grain);
                            prop_assert!(start + grain > next + room);
                        }
                    },
                    Step::Table => if let Ok(start) = space.allocate_table(4) {
                        for sector in start..start + 4 {
                            prop_assert!(owned.insert(sector) && sector < next + room);
                            ever.insert(sector);
                        }
                    },
                    Step::GiveBack(n) => if !places.is_empty() {
                        let place = places.swap_remove(n % places.len());
                        let sectors = place.grains * grain;
                        (place.sector..place.sector + sectors).for_each(|s| assert!(owned.remove(&s)));
                        space.give_back(place.sector, sectors);
                    },
                }
            }
            for place in places {
                space.give_back(place.sector, place.grains * grain);
            }
        }
    }

    #[test]
    fn numbers_of_sectors_end_at_32_bits() {
        let mut space = Space::new(128, SECTORS_MAX - 200, 0, u64::MAX);
        assert_eq!(space.allocate(5).map(|place| place.grains), Ok(1));
        assert_eq!(space.allocate(1), Err(Error::Os(libc::EFBIG)));
    }
}
