//! What stands before the grains: the descriptor, and the tables of an image that has them there.

use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use futures::io::AsyncRead;

use super::input::Input;
use super::ledger::numbers;
use super::{ReadError, TableProblem};
use crate::spec::sparse::{HEADER_LEN, SectorRange, SparseHeader};
use crate::units::{GrainIndex, Sector};

/// The sectors from the first to that of the first grain; the header is left out.
pub(super) struct Front {
    bytes: Vec<u8>,
    gd: Sector,
    gd_entries: u64,
    gtes_per_gt: u64,
    /// Grains that the tables name.
    named: u64,
}

impl Front {
    /// Reads up to `end`, at most `budget` bytes.
    pub(super) async fn read<R: AsyncRead + Unpin + Send>(
        input: &mut Input<R>,
        end: Sector,
        budget: u64,
    ) -> Result<Self, ReadError> {
        let len = end.offset().filter(|len| *len <= budget);
        let len = to_usize(len.ok_or(ReadError::Memory { budget })?);
        let mut bytes = vec![0; HEADER_LEN];
        while bytes.len() < len {
            let now = (len - bytes.len()).min(PIECE_BYTES);
            bytes.extend_from_slice(input.take(now, "what stands before the grains").await?);
        }
        Ok(Self { bytes, gd: Sector(0), gd_entries: 0, gtes_per_gt: 1, named: 0 })
    }

    /// A part of it, which must be behind the header.
    pub(super) fn bytes(&self, place: SectorRange) -> Result<&[u8], ReadError> {
        self.part(place.start, place.count.bytes().unwrap_or(u64::MAX))
    }

    /// With the tables that the directory at `gd` names.
    pub(super) fn with_tables(
        mut self,
        gd: Sector,
        header: &SparseHeader,
    ) -> Result<Self, ReadError> {
        (self.gd, self.gd_entries) = (gd, header.gd_entries());
        self.gtes_per_gt = u64::from(header.gtes_per_gt());
        let directory = self.part(gd, self.gd_entries * 4)?;
        let tables = to_u64(numbers(directory).filter(|at| *at != 0).count());
        if tables * self.gtes_per_gt * 4 > to_u64(self.bytes.len()) {
            // Some are the same, and reading them would take long.
            return Err(ReadError::Table { sector: gd.0, problem: TableProblem::Place });
        }
        let mut named = 0;
        for at in numbers(directory).filter(|at| *at != 0) {
            let table = self.part(Sector(u64::from(at)), self.gtes_per_gt * 4)?;
            named += to_u64(numbers(table).filter(|entry| *entry > not_a_grain(header)).count());
        }
        self.named = named;
        Ok(self)
    }

    /// How many grains the tables name.
    pub(super) fn named(&self) -> u64 {
        self.named
    }

    /// Where the tables say that a grain is.
    pub(super) fn place_of(&self, grain: GrainIndex) -> Option<Sector> {
        let directory = self.part(self.gd, self.gd_entries * 4).ok()?;
        let number = |bytes: &[u8], index: u64| numbers(bytes.get(to_usize(index * 4)..)?).next();
        let table = number(directory, grain.0 / self.gtes_per_gt).filter(|at| *at != 0)?;
        let table = self.part(Sector(u64::from(table)), self.gtes_per_gt * 4).ok()?;
        number(table, grain.0 % self.gtes_per_gt).map(|at| Sector(u64::from(at)))
    }

    fn part(&self, start: Sector, len: u64) -> Result<&[u8], ReadError> {
        let outside = ReadError::Table { sector: start.0, problem: TableProblem::Place };
        let from = start.offset().filter(|from| *from >= SECTOR_SIZE);
        let range = from.and_then(|from| Some(to_usize(from)..to_usize(from.checked_add(len)?)));
        range.and_then(|range| self.bytes.get(range)).ok_or(outside)
    }
}

/// Bytes that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// The largest entry that names no grain: 1 stands for zeroes where the header says so.
pub(super) fn not_a_grain(header: &SparseHeader) -> u32 {
    u32::from(header.has_zeroed_grains())
}
