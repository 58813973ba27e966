//! Extents with grain tables: their headers, and what an entry says.
//!
//! Three kinds of files have the same idea: a directory of tables, a table of grains. They differ in the
//! header, in the width of entries, and in how an entry says where.

use block_core::Problem;

use super::error::{BadImage, field};
use crate::naive::bytes::Bytes;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Most bytes of a grain, in sectors: 1 GiB.
const MAX_GRAIN: u64 = 1 << 21;
/// Most entries of a directory.
const MAX_TABLES: u64 = 1 << 25;
/// Instead of a place: the directory's place is in the footer.
const AT_END: u64 = u64::MAX;

/// The kinds of files.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of hosted products; magic `KDMV`.
    Hosted,
    /// Of ESX; magic `COWD`.
    Cowd,
    /// Of ESX, with tables of 64-bit entries.
    SeSparse,
}

/// What an entry of a grain table says.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The grain is not here.
    Unallocated,
    /// It reads as zeroes.
    Zero,
    /// It starts at this sector of the file.
    At(u64),
}

/// The part of the file that something takes, in sectors.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Area {
    /// First sector.
    pub start: u64,
    /// How many.
    pub count: u64,
}

/// A file with grain tables.
#[derive(Clone, Debug)]
pub struct Sparse<'a> {
    pub(super) file: Bytes<'a>,
    /// What it is.
    pub kind: Kind,
    /// Version of its format.
    pub version: u64,
    /// Length of the extent in sectors.
    pub capacity: u64,
    /// Length of a grain in sectors.
    pub grain: u64,
    /// Entries of a grain table.
    pub gtes_per_gt: u64,
    /// Where the grain directory starts.
    pub directory: u64,
    /// Where the redundant one starts.
    pub redundant: Option<u64>,
    /// What must hold nothing but metadata, in sectors from the start.
    pub overhead: u64,
    /// Where the embedded descriptor is.
    pub descriptor: Option<Area>,
    /// Whether entries of 1 stand for zeroes.
    pub zeroed: bool,
    /// Whether grains are compressed.
    pub compressed: bool,
    /// Whether grains and tables have markers.
    pub markers: bool,
    /// Whether the place of the directory is in the footer.
    pub footer: bool,
    /// The first sector that a COWD file calls free.
    pub free: Option<u64>,
    /// Whether it was not closed.
    pub unclean: bool,
    /// Where a seSparse file has its tables and its grains.
    places: [u64; 2],
    /// Other areas that the header names.
    others: Vec<Area>,
}

impl<'a> Sparse<'a> {
    /// The extent in `bytes`; `None` if they begin otherwise.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Option<Self>, BadImage> {
        let file = Bytes::new(bytes);
        let extent = match (file.slice(0, 4), file.le_u64(0)) {
            (b"KDMV", _) => Self::hosted(file)?,
            (b"COWD", _) => Self::cowd(file),
            (_, SE_MAGIC) => Self::sesparse(file)?,
            _ => return Ok(None),
        };
        extent.check_numbers()?;
        Ok(Some(extent))
    }

    fn hosted(file: Bytes<'a>) -> Result<Self, BadImage> {
        let header = Bytes::new(file.slice(0, SECTOR));
        let version = header.le_u32(4);
        if !(1..=3).contains(&version) {
            return Err(field("version", version, Problem::Unknown));
        }
        let flags = header.le_u32(8);
        if flags & 1 != 0 && header.slice(73, 4) != b"\n \r\n" {
            return Err(field("check bytes", header.u32(73), Problem::Unknown));
        }
        let footer = header.le_u64(56) == AT_END;
        let directory = if footer { Self::footer(file)?.le_u64(56) } else { header.le_u64(56) };
        let compression = header.le_u16(77);
        if compression > 1 || (compression == 1) != (flags & 1 << 16 != 0) {
            return Err(field("compressAlgorithm", compression, Problem::Contradicts("flags")));
        }
        let descriptor = Area { start: header.le_u64(28), count: header.le_u64(36) };
        Ok(Self {
            file,
            kind: Kind::Hosted,
            version: version.into(),
            capacity: header.le_u64(12),
            grain: header.le_u64(20),
            gtes_per_gt: header.le_u32(44).into(),
            directory,
            redundant: (flags & 2 != 0).then(|| header.le_u64(48)),
            overhead: header.le_u64(64),
            descriptor: (descriptor.start != 0).then_some(descriptor),
            zeroed: flags & 4 != 0,
            compressed: compression == 1,
            markers: flags & 1 << 17 != 0,
            footer,
            free: None,
            unclean: header.slice(72, 1) != [0],
            places: [0; 2],
            others: Vec::new(),
        })
    }

    /// The sector of the footer, between its marker and the last one.
    fn footer(file: Bytes<'a>) -> Result<Bytes<'a>, BadImage> {
        let sectors = file.len() / SECTOR;
        let start = sectors.saturating_sub(3) * SECTOR;
        let found = Bytes::new(file.slice(start, 3 * SECTOR));
        let ends = file.len().is_multiple_of(SECTOR)
            && (found.le_u64(0), found.le_u32(8), found.le_u32(12)) == (1, 0, 3)
            && found.slice(2 * SECTOR, SECTOR).iter().all(|b| *b == 0);
        if !ends || found.slice(SECTOR, 4) != b"KDMV" {
            return Err(field("footer", start, Problem::Missing));
        }
        Ok(Bytes::new(found.slice(SECTOR, SECTOR)))
    }

    fn cowd(file: Bytes<'a>) -> Self {
        let number = |index: u64| u64::from(file.le_u32(index * 4));
        let gtes_per_gt = 4096;
        let entries = number(3).div_ceil(number(4).max(1) * gtes_per_gt);
        Self {
            file,
            kind: Kind::Cowd,
            version: number(1),
            capacity: number(3),
            grain: number(4),
            gtes_per_gt,
            directory: number(5),
            redundant: None,
            overhead: number(5).saturating_add((entries * 4).div_ceil(SECTOR)),
            descriptor: None,
            zeroed: false,
            compressed: false,
            markers: false,
            footer: false,
            free: Some(number(7)),
            unclean: file.le_u32(1648) != 0,
            places: [0; 2],
            others: Vec::new(),
        }
    }

    fn sesparse(file: Bytes<'a>) -> Result<Self, BadImage> {
        let number = |index: u64| file.le_u64(index * 8);
        let volatile = number(10).saturating_mul(SECTOR);
        if file.le_u64(volatile) != SE_VOLATILE_MAGIC {
            return Err(field("volatile header", file.le_u64(volatile), Problem::Unknown));
        }
        let replay = file.le_u64(volatile.saturating_add(24));
        if replay != 0 {
            return Err(field("replayJournal", replay, Problem::Unknown));
        }
        Ok(Self {
            file,
            kind: Kind::SeSparse,
            version: number(1),
            capacity: number(2),
            grain: number(3),
            gtes_per_gt: number(4).saturating_mul(SECTOR / 8),
            directory: number(16),
            redundant: None,
            overhead: number(24),
            descriptor: None,
            zeroed: false,
            compressed: false,
            markers: false,
            footer: false,
            free: None,
            unclean: false,
            places: [number(18), number(24)],
            // Volatile header, journal header, journal, free bitmap and backmap.
            others: [10, 12, 14, 20, 22]
                .map(|at| Area { start: number(at), count: number(at + 1) })
                .into(),
        })
    }

    fn check_numbers(&self) -> Result<(), BadImage> {
        if !self.grain.is_power_of_two() {
            return Err(field("grainSize", self.grain, Problem::NotPowerOfTwo));
        }
        if self.grain > MAX_GRAIN {
            return Err(field("grainSize", self.grain, Problem::Above(MAX_GRAIN)));
        }
        if self.gtes_per_gt == 0 {
            return Err(field("numGTEsPerGT", 0u64, Problem::Zero));
        }
        if self.gtes_per_gt > 1 << 16 {
            return Err(field("numGTEsPerGT", self.gtes_per_gt, Problem::Above(1 << 16)));
        }
        if self.tables() > MAX_TABLES {
            return Err(field("capacity", self.capacity, Problem::Above(MAX_TABLES)));
        }
        for (name, start) in [("gdOffset", Some(self.directory)), ("rgdOffset", self.redundant)] {
            let Some(start) = start else { continue };
            if start == 0 {
                return Err(field(name, start, Problem::Zero));
            }
            let end = start.saturating_add(self.directory_sectors());
            if end > self.sectors() {
                return Err(field(name, start, Problem::Truncated(self.sectors())));
            }
        }
        Ok(())
    }

    /// Sectors of the file, a partial last one counted.
    pub fn sectors(&self) -> u64 {
        self.file.len().div_ceil(SECTOR)
    }

    /// Grains of the extent, a partial last one counted.
    pub fn grains(&self) -> u64 {
        self.capacity.div_ceil(self.grain)
    }

    /// Entries of a directory.
    pub fn tables(&self) -> u64 {
        self.grains().div_ceil(self.gtes_per_gt)
    }

    /// Sectors of a directory.
    pub fn directory_sectors(&self) -> u64 {
        (self.tables() * self.width()).div_ceil(SECTOR)
    }

    /// Sectors of a grain table.
    pub fn table_sectors(&self) -> u64 {
        (self.gtes_per_gt * self.width()).div_ceil(SECTOR)
    }

    /// Bytes of an entry.
    fn width(&self) -> u64 {
        if self.kind == Kind::SeSparse { 8 } else { 4 }
    }

    fn word(&self, start: u64, index: u64) -> u64 {
        let at = start.saturating_mul(SECTOR).saturating_add(index * self.width());
        match self.kind {
            Kind::SeSparse => self.file.le_u64(at),
            Kind::Hosted | Kind::Cowd => self.file.le_u32(at).into(),
        }
    }

    /// Where the grain table `index` of the directory at sector `directory` is; `None`: there is none.
    pub fn table(&self, directory: u64, index: u64) -> Result<Option<u64>, BadImage> {
        let value = self.word(directory, index);
        let bad = |problem| BadImage::Entry { table: "grain directory", index, value, problem };
        if value == 0 {
            return Ok(None);
        }
        let start = match self.kind {
            Kind::Hosted | Kind::Cowd => value,
            Kind::SeSparse if value >> 32 != 0x1000_0000 => {
                return Err(bad(Problem::Reserved(!0 << 32)));
            }
            Kind::SeSparse => {
                let number = value & u64::from(u32::MAX);
                self.places[0].saturating_add(number * self.table_sectors())
            }
        };
        if start.saturating_add(self.table_sectors()) > self.sectors() {
            return Err(bad(Problem::Truncated(self.sectors())));
        }
        Ok(Some(start))
    }

    /// The entry `index` of the grain table at sector `table`.
    pub fn entry(&self, table: u64, index: u64) -> Result<Entry, BadImage> {
        let value = self.word(table, index);
        match (self.kind, value) {
            (_, 0) => Ok(Entry::Unallocated),
            (Kind::SeSparse, _) => self.wide_entry(index, value),
            (_, 1) if self.zeroed => Ok(Entry::Zero),
            (_, start) => Ok(Entry::At(start)),
        }
    }

    /// An entry of 64 bits: its kind is in the upper four, and the number of the grain is split.
    fn wide_entry(&self, index: u64, value: u64) -> Result<Entry, BadImage> {
        let low = value & ((1 << 48) - 1);
        match value >> 60 {
            0 => Ok(Entry::Unallocated),
            1 | 2 => Ok(Entry::Zero),
            3 => {
                let number = value >> 48 & 0xfff | low << 12;
                Ok(Entry::At(self.places[1].saturating_add(number.saturating_mul(self.grain))))
            }
            _ => Err(BadImage::Entry {
                table: "grain table",
                index,
                value,
                problem: Problem::Unknown,
            }),
        }
    }

    /// Areas that hold neither tables nor grains nor the descriptor.
    pub(super) fn other_areas(&self) -> &[Area] {
        &self.others
    }

    /// What the tables say of a grain of the extent.
    pub fn grain_at(&self, grain: u64) -> Result<Entry, BadImage> {
        match self.table(self.directory, grain / self.gtes_per_gt)? {
            None => Ok(Entry::Unallocated),
            Some(table) => self.entry(table, grain % self.gtes_per_gt),
        }
    }
}

pub(super) const SE_MAGIC: u64 = 0xcafe_babe;
pub(super) const SE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;
