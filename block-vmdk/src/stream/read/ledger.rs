//! What a stream has shown so far, and whether its tables say the same.
//!
//! Invariants: no grain comes twice; a grain table names grains of one table that came before it, all of
//! them, each where it stood; the grain directory names the tables that came, and no others. Memory has a
//! bound: a bit or some bytes for each grain that came, and some bytes for each that no table has named yet
//! and for each table; what passes it is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use block_core::range::to_u64;
use roaring::RoaringTreemap;

use super::front::not_a_grain;
use super::{ReadError, TableProblem};
use crate::spec::sparse::SparseHeader;
use crate::units::{GrainIndex, Sector};

/// Grains after which it is looked at how much memory the bitmap takes.
const LOOK_EVERY: u64 = 4096;
/// How much more memory than in a file the bitmap takes at most: what is scattered has a head for each part.
const SPARSE_FACTOR: u64 = 4;
/// Bytes of a grain that no table has named yet.
const PENDING_BYTES: u64 = 32;
/// Bytes of a table.
const TABLE_BYTES: u64 = 48;

/// Grains and tables of a stream.
pub(super) struct Ledger {
    seen: RoaringTreemap,
    count: u64,
    seen_bytes: u64,
    /// Grains that no table has named yet, by where they stand.
    pending: HashMap<u64, GrainIndex>,
    /// Of each table, how many of its grains no table has named yet.
    unnamed: BTreeMap<u64, u64>,
    /// Where the tables stand.
    tables: BTreeMap<u64, Sector>,
    /// And those without grains, which may be anybody's.
    empty: BTreeSet<u64>,
    /// Not 0.
    gtes_per_gt: u64,
    /// The largest entry of a table that names no grain.
    not_a_grain: u32,
    budget: u64,
}

impl Ledger {
    /// Nothing was shown yet, and all of it may take `budget` bytes.
    pub(super) fn new(header: &SparseHeader, budget: u64) -> Self {
        Self::with(header.gtes_per_gt(), not_a_grain(header), budget)
    }

    fn with(gtes_per_gt: u32, not_a_grain: u32, budget: u64) -> Self {
        Self {
            seen: RoaringTreemap::new(),
            count: 0,
            seen_bytes: 0,
            pending: HashMap::new(),
            unnamed: BTreeMap::new(),
            tables: BTreeMap::new(),
            empty: BTreeSet::new(),
            gtes_per_gt: u64::from(gtes_per_gt),
            not_a_grain,
            budget,
        }
    }

    /// How many grains came.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// A grain came. `named` says whether a table has named it before.
    pub(super) fn grain(
        &mut self,
        grain: GrainIndex,
        at: Sector,
        named: Named,
    ) -> Result<(), ReadError> {
        if !self.seen.insert(grain.0) {
            return Err(ReadError::Repeated { grain: grain.0, sector: at.0 });
        }
        self.count += 1;
        if self.count.is_multiple_of(LOOK_EVERY) {
            self.seen_bytes = to_u64(self.seen.serialized_size()).saturating_mul(SPARSE_FACTOR);
        }
        if named == Named::No {
            self.pending.insert(at.0, grain);
            *self.unnamed.entry(grain.0 / self.gtes_per_gt).or_default() += 1;
        }
        self.check_budget()
    }

    /// A grain table came, which starts at `at`.
    pub(super) fn table(&mut self, at: Sector, entries: &[u8]) -> Result<(), ReadError> {
        let bad = |problem| ReadError::Table { sector: at.0, problem };
        let mut index = None;
        for (slot, sector) in (0..self.gtes_per_gt).zip(numbers(entries)) {
            if sector <= self.not_a_grain {
                continue;
            }
            let entry = |problem: fn(u64) -> TableProblem| bad(problem(u64::from(sector)));
            let grain = self.pending.remove(&u64::from(sector));
            let grain = grain.ok_or_else(|| entry(TableProblem::NoGrain))?;
            let table = grain.0 / self.gtes_per_gt;
            if grain.0 % self.gtes_per_gt != slot || *index.get_or_insert(table) != table {
                return Err(entry(TableProblem::OtherGrain));
            }
            if let Some(left) = self.unnamed.get_mut(&table) {
                *left -= 1;
            }
        }
        let Some(index) = index else {
            // It says nothing, and nobody has to name it.
            self.empty.insert(at.0);
            return self.check_budget();
        };
        if self.unnamed.remove(&index).is_some_and(|left| left > 0) {
            return Err(bad(TableProblem::GrainLeftOut));
        }
        if self.tables.insert(index, at).is_some() {
            return Err(bad(TableProblem::Second(index)));
        }
        self.check_budget()
    }

    /// Entries of the grain directory came, of which the first is that of table `first`.
    pub(super) fn directory(&mut self, first: u64, entries: &[u8]) -> Result<(), ReadError> {
        for (index, sector) in (first..).zip(numbers(entries)) {
            let sector = u64::from(sector);
            let is_right = match self.tables.remove(&index) {
                Some(came) => came.0 == sector,
                None => sector == 0 || self.empty.contains(&sector),
            };
            if !is_right {
                return Err(ReadError::Table { sector, problem: TableProblem::Elsewhere(index) });
            }
        }
        Ok(())
    }

    /// The grain directory has come: everything must have been named.
    pub(super) fn check_all_named(&self) -> Result<(), ReadError> {
        if let Some((index, _)) = self.unnamed.first_key_value() {
            return Err(ReadError::Table { sector: 0, problem: TableProblem::Missing(*index) });
        }
        match self.tables.first_key_value() {
            None => Ok(()),
            Some((index, at)) => {
                Err(ReadError::Table { sector: at.0, problem: TableProblem::Elsewhere(*index) })
            }
        }
    }

    fn check_budget(&self) -> Result<(), ReadError> {
        let tables = self.tables.len() + self.unnamed.len() + self.empty.len();
        let tables = to_u64(tables);
        let bytes =
            self.seen_bytes + to_u64(self.pending.len()) * PENDING_BYTES + tables * TABLE_BYTES;
        if bytes > self.budget {
            return Err(ReadError::Memory { budget: self.budget });
        }
        Ok(())
    }
}

/// Whether a table has named a grain before it came.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Named {
    /// One has: the tables stand at the front.
    Yes,
    /// None has: they come later.
    No,
}

/// The 32-bit numbers of a table.
pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|number| u32::from_le_bytes(number.first_chunk().copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        for (slot, sector) in entries {
            bytes[slot * 4..slot * 4 + 4].copy_from_slice(&sector.to_le_bytes());
        }
        bytes
    }

    fn ledger(grains: &[(u64, u64)]) -> Ledger {
        let mut ledger = Ledger::with(512, 0, 1 << 20);
        for (grain, at) in grains {
            ledger.grain(GrainIndex(*grain), Sector(*at), Named::No).unwrap();
        }
        ledger
    }

    fn problem(result: Result<(), ReadError>) -> TableProblem {
        match result {
            Err(ReadError::Table { problem, .. }) => problem,
            other => panic!("no table is wrong: {other:?}"),
        }
    }

    #[test]
    fn tables_and_directory_that_fit_are_taken() {
        let mut ledger = ledger(&[(3, 128), (511, 130), (1024, 140)]);
        ledger.table(Sector(150), &table(&[(3, 128), (511, 130)])).unwrap();
        assert_eq!(problem(ledger.check_all_named()), TableProblem::Missing(2));
        ledger.table(Sector(160), &table(&[(0, 140)])).unwrap();
        ledger.table(Sector(170), &table(&[])).unwrap();
        // The second table has no grain: it may be named.
        ledger.directory(0, &table(&[(0, 150), (1, 170), (2, 160)])[..16]).unwrap();
        ledger.check_all_named().unwrap();
        assert_eq!(ledger.count(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let grains = [(3, 128), (4, 130), (600, 140)];
        let wrong = [
            (vec![(3, 128), (4, 131)], TableProblem::NoGrain(131)),
            (vec![(3, 128), (5, 130)], TableProblem::OtherGrain(130)),
            (vec![(3, 128), (88, 140)], TableProblem::OtherGrain(140)),
            (vec![(3, 128)], TableProblem::GrainLeftOut),
        ];
        for (entries, expect) in wrong {
            let mut ledger = ledger(&grains);
            assert_eq!(problem(ledger.table(Sector(150), &table(&entries))), expect);
        }
        let mut ledger = ledger(&grains);
        ledger.table(Sector(150), &table(&[(3, 128), (4, 130)])).unwrap();
        let again = ledger.grain(GrainIndex(3), Sector(155), Named::No);
        assert!(matches!(again, Err(ReadError::Repeated { grain: 3, sector: 155 })));
        ledger.grain(GrainIndex(5), Sector(156), Named::No).unwrap();
        let second = ledger.table(Sector(160), &table(&[(5, 156)]));
        assert_eq!(problem(second), TableProblem::Second(0));
        ledger.table(Sector(170), &table(&[(88, 140)])).unwrap();
        let directory = ledger.directory(0, &table(&[(0, 160), (1, 171)])[..8]);
        assert_eq!(problem(directory), TableProblem::Elsewhere(1));
        // A table that did not come.
        let directory = ledger.directory(2, &table(&[(0, 100)])[..4]);
        assert_eq!(problem(directory), TableProblem::Elsewhere(2));
        assert_eq!(problem(self::ledger(&[(0, 1)]).check_all_named()), TableProblem::Missing(0));
    }

    #[test]
    fn memory_has_a_bound() {
        let mut ledger = Ledger::with(512, 0, 100_000);
        let mut full = None;
        for grain in 0..1_000_000 {
            full = ledger.grain(GrainIndex(grain * 70_000), Sector(grain), Named::Yes).err();
            if full.is_some() {
                break;
            }
        }
        assert!(matches!(full, Some(ReadError::Memory { budget: 100_000 })));
        assert!(ledger.count() < 20_000, "{}", ledger.count());
        let mut ledger = Ledger::with(512, 0, 100_000);
        let full = (0..).find_map(|n| ledger.grain(GrainIndex(n), Sector(n), Named::No).err());
        assert!(matches!(full, Some(ReadError::Memory { .. })));
        assert!(ledger.count() < 4000, "{}", ledger.count());
    }
}
