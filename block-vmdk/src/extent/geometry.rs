//! Where a byte of a sparse extent is in its tables; pure, no I/O.
//!
//! Invariant: `grain_size` is a power of two; `table_count * coverage >= len`; everything here counts
//! bytes from the start of the extent, never of the disk.

use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, Error, Result};

use crate::spec::sesparse::{SeGrain, decode_gte};
use crate::units::SectorCount;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = block_core::range::SECTOR_SIZE;

/// The shape of a sparse extent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    len: u64,
    grain: Alignment,
    gtes_per_gt: u64,
}

impl Geometry {
    /// `None` if no extent has this shape.
    pub(crate) fn new(capacity: SectorCount, grain: SectorCount, gtes_per_gt: u64) -> Option<Self> {
        let grain = Alignment::new(grain.bytes()?).filter(|grain| grain.is_power_of_two())?;
        grain.bytes().checked_mul(gtes_per_gt).filter(|coverage| *coverage > 0)?;
        Some(Self { len: capacity.bytes()?, grain, gtes_per_gt })
    }

    /// Length of the extent.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of a grain.
    pub(crate) fn grain_size(&self) -> u64 {
        self.grain.bytes()
    }

    /// The same, to align with.
    pub(crate) fn grain_alignment(&self) -> Alignment {
        self.grain
    }

    /// Entries of a table.
    pub(crate) fn gtes_per_gt(&self) -> u64 {
        self.gtes_per_gt
    }

    /// Bytes of the extent that one table maps.
    pub(crate) fn coverage(&self) -> u64 {
        self.grain.bytes() * self.gtes_per_gt
    }

    /// Tables that map the extent.
    pub(crate) fn table_count(&self) -> u64 {
        self.len.div_ceil(self.coverage())
    }

    /// The table that maps `offset`.
    pub(crate) fn table_of(&self, offset: u64) -> u64 {
        offset / self.coverage()
    }

    /// What of the extent a table maps.
    pub(crate) fn table_range(&self, table: u64) -> ByteRange {
        let start = table.saturating_mul(self.coverage()).min(self.len);
        let end = start.saturating_add(self.coverage()).min(self.len);
        ByteRange::from_bounds(start, end).unwrap_or_default()
    }

    /// Which entry of its table maps `offset`.
    pub(crate) fn entry_of(&self, offset: u64) -> usize {
        to_usize(offset % self.coverage() / self.grain.bytes())
    }
}

/// How the entries of a format's tables are read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum EntryFormat {
    /// 32-bit sector numbers; 1 stands for zeroes where the header says so.
    Sectors {
        /// Whether it does.
        zeroed: ZeroedGrains,
    },
    /// 64-bit entries of seSparse extents, whose grains start at this byte.
    SeSparse {
        /// Byte of the file at which grain 0 starts.
        grains_at: u64,
        /// Bytes of a grain.
        grain_size: u64,
    },
}

/// Whether an entry of 1 stands for a grain of zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum ZeroedGrains {
    /// It does.
    Known,
    /// It would be sector 1.
    Unknown,
}

/// What a table says of a grain.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// It is not here: the backing file shows, or zeroes.
    Unallocated,
    /// It is all zeroes.
    Zeroed,
    /// It stands at this byte of the file.
    At(u64),
}

/// The entry of a grain that is not allocated.
pub(crate) const UNALLOCATED: u64 = 0;
/// The entry of a grain of zeroes, where there is one.
pub(crate) const ZEROED: u64 = 1;

impl EntryFormat {
    /// Bytes of an entry in the file.
    pub(crate) fn entry_bytes(self) -> u64 {
        match self {
            Self::Sectors { .. } => 4,
            Self::SeSparse { .. } => 8,
        }
    }

    /// What an entry of a table says.
    pub(crate) fn decode(self, word: u64) -> Result<Entry> {
        let corrupt = || Error::Corrupt { what: "grain table entry", value: word };
        match self {
            Self::Sectors { zeroed } => Ok(match (word, zeroed) {
                (UNALLOCATED, _) => Entry::Unallocated,
                (ZEROED, ZeroedGrains::Known) => Entry::Zeroed,
                (sector, _) => Entry::At(sector.checked_mul(SECTOR).ok_or_else(corrupt)?),
            }),
            Self::SeSparse { grains_at, grain_size } => match decode_gte(word) {
                Ok(SeGrain::Unallocated) => Ok(Entry::Unallocated),
                Ok(SeGrain::Unmapped | SeGrain::Zero) => Ok(Entry::Zeroed),
                Ok(SeGrain::At(index)) => {
                    let at = index.checked_mul(grain_size).and_then(|at| at.checked_add(grains_at));
                    at.map(Entry::At).ok_or_else(corrupt)
                }
                Err(_) => Err(corrupt()),
            },
        }
    }
}
