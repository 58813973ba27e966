//! The two headers of space-efficient sparse extents of ESX, and the entries of their tables.
//!
//! The constant header is sector 0 of the file and never changes; it names the volatile header, which
//! does. [`SeSparseHeader::parse`] and [`VolatileHeader::parse`] are the only ways from bytes to the
//! types. They keep: grains of [`GRAIN_SECTORS`] and tables of [`GT_SECTORS`] sectors, a grain directory
//! that covers the capacity and has at most [`GD_SECTORS_MAX`] sectors, every place above sector 0 and,
//! with what stands there, at or below [`block_core::range::MAX_LEN`]; a journal that need not be
//! replayed. Reserved fields and padding are zero, so `parse(x).to_bytes() == x`.
//!
//! Entries have 64 bits. What they hold is an index into an area that the header names, not a place:
//! [`SeSparseHeader::grain_table`] and [`SeSparseHeader::grain`] say where that is.

use block_core::range::MAX_LEN;
use block_core::{Error, Problem};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::sparse::{HeaderError, SectorRange, field};
use crate::units::{GrainIndex, Sector, SectorCount};

/// The first eight bytes, as a number.
pub const MAGIC: u64 = 0xcafe_babe;
/// The first eight bytes of the volatile header, as a number.
pub const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
/// Length of either header in bytes.
pub const HEADER_LEN: usize = 512;
/// Sectors of a grain: 4 KiB.
pub const GRAIN_SECTORS: u64 = 8;
/// Sectors of a grain table.
pub const GT_SECTORS: u64 = 64;
/// Entries of a grain table.
pub const GTES_PER_GT: u64 = GT_SECTORS * ENTRIES_PER_SECTOR;
/// Most sectors of a grain directory: what the longest disk of the format (64 TiB) needs.
pub const GD_SECTORS_MAX: u64 = 1 << 16;

/// Version 2.1.
const VERSION: u64 = 0x2_0000_0001;
const ENTRIES_PER_SECTOR: u64 = 64;

/// The upper half of an entry of the grain directory that names a table.
const GDE_ALLOCATED: u64 = 0x1000_0000;

/// The constant header as it stands in the file; all numbers little-endian.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U64,
    capacity: U64,
    grain_size: U64,
    grain_table_size: U64,
    flags: U64,
    reserved: [U64; 4],
    areas: [RawArea; AREAS],
    padding: [u8; 304],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// A place in the file and its length, in sectors.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawArea {
    start: U64,
    count: U64,
}

/// The volatile header as it stands in the file; all numbers little-endian.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawVolatile {
    magic: U64,
    free_gt_number: U64,
    next_txn_seq_number: U64,
    replay_journal: U64,
    padding: [u8; 480],
}

const _: () = assert!(size_of::<RawVolatile>() == HEADER_LEN);

/// Areas that the constant header names.
const AREAS: usize = 8;

/// Their names, in order, and whether a reader needs them.
const AREA_NAMES: [(&str, Need); AREAS] = [
    ("volatileHeaderOffset", Need::Always),
    ("journalHeaderOffset", Need::Never),
    ("journalOffset", Need::Never),
    ("grainDirOffset", Need::Always),
    ("grainTablesOffset", Need::Always),
    ("freeBitmapOffset", Need::Never),
    ("backMapOffset", Need::Never),
    ("grainsOffset", Need::Always),
];

const VOLATILE: usize = 0;
const GRAIN_DIR: usize = 3;
const GRAIN_TABLES: usize = 4;
const GRAINS: usize = 7;

/// Whether a reader needs an area.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Need {
    Always,
    Never,
}

/// A checked constant header. See the module for what holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeSparseHeader {
    capacity: SectorCount,
    areas: [SectorRange; AREAS],
}

impl SeSparseHeader {
    /// Reads and checks the constant header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated { len: bytes.len() };
        let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| truncated)?;
        let fixed = [
            ("magic", raw.magic, MAGIC),
            ("version", raw.version, VERSION),
            ("grainSize", raw.grain_size, GRAIN_SECTORS),
            ("grainTableSize", raw.grain_table_size, GT_SECTORS),
            ("flags", raw.flags, 0),
        ];
        for (name, found, expected) in fixed {
            if found.get() != expected {
                return Err(field(name, found.get(), Problem::Unknown));
            }
        }
        for word in raw.reserved {
            reserved("reserved", word.get())?;
        }
        padding(&raw.padding)?;
        let areas = raw.areas.map(|area| SectorRange {
            start: Sector(area.start.get()),
            count: SectorCount(area.count.get()),
        });
        let header = Self { capacity: SectorCount(raw.capacity.get()), areas };
        header.check()?;
        Ok(header)
    }

    /// The header as bytes: those that it was parsed from.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            capacity: self.capacity.0.into(),
            grain_size: GRAIN_SECTORS.into(),
            grain_table_size: GT_SECTORS.into(),
            flags: 0.into(),
            reserved: [0.into(); 4],
            areas: self
                .areas
                .map(|area| RawArea { start: area.start.0.into(), count: area.count.0.into() }),
            padding: [0; 304],
        };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks what a reader needs of the header's places against the length of the file, in bytes.
    ///
    /// Grain tables and grains are there as far as the entries that name them go.
    pub fn check_file_len(&self, len: u64) -> Result<(), HeaderError> {
        let sectors = SectorCount::of_bytes(len);
        for index in [VOLATILE, GRAIN_DIR] {
            let (area, (name, _)) = (self.areas[index], AREA_NAMES[index]);
            if area.start.0.saturating_add(area.count.0) > sectors.0 {
                return Err(field(name, area.start.0, Problem::Truncated(sectors.0)));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), HeaderError> {
        for (area, (name, need)) in self.areas.iter().zip(AREA_NAMES) {
            let start = area.start;
            if start.0 == 0 && need == Need::Always {
                return Err(field(name, start.0, Problem::Zero));
            }
            if start.plus(area.count).is_none() {
                return Err(field(name, start.0, Problem::Above(MAX_LEN / 512)));
            }
        }
        if self.volatile_header().count.0 == 0 {
            return Err(field("volatileHeaderSize", 0u64, Problem::Zero));
        }
        let size = self.grain_directory().count.0;
        if size > GD_SECTORS_MAX {
            return Err(field("grainDirSize", size, Problem::Above(GD_SECTORS_MAX)));
        }
        let covered = size * ENTRIES_PER_SECTOR * GTES_PER_GT * GRAIN_SECTORS;
        if self.capacity.0 > covered {
            return Err(field("capacity", self.capacity.0, Problem::Above(covered)));
        }
        Ok(())
    }

    /// Length of the extent.
    pub fn capacity(&self) -> SectorCount {
        self.capacity
    }

    /// Where the volatile header is.
    pub fn volatile_header(&self) -> SectorRange {
        self.areas[VOLATILE]
    }

    /// Where the grain directory is.
    pub fn grain_directory(&self) -> SectorRange {
        self.areas[GRAIN_DIR]
    }

    /// Entries of the grain directory: as many as the capacity needs, or more.
    pub fn gd_entries(&self) -> u64 {
        self.grain_directory().count.0 * ENTRIES_PER_SECTOR
    }

    /// Where the grain tables are.
    pub fn grain_tables(&self) -> SectorRange {
        self.areas[GRAIN_TABLES]
    }

    /// Where the grains are.
    pub fn grains(&self) -> SectorRange {
        self.areas[GRAINS]
    }

    /// All areas that the header names, with the names of the fields.
    pub fn areas(&self) -> impl Iterator<Item = (&'static str, SectorRange)> + '_ {
        AREA_NAMES.iter().zip(self.areas).map(|((name, _), area)| (*name, area))
    }

    /// Where the grain table of this index is; `None` if it would end beyond the area of tables.
    pub fn grain_table(&self, index: u32) -> Option<Sector> {
        let (tables, index) = (self.grain_tables(), u64::from(index));
        let inside = (index + 1) * GT_SECTORS <= tables.count.0;
        inside.then(|| Sector(tables.start.0 + index * GT_SECTORS))
    }

    /// Where the grain of this index is; `None` if it would end beyond the longest disk.
    ///
    /// The size of the area does not matter: a file grows grain by grain.
    pub fn grain(&self, index: u64) -> Option<Sector> {
        let start = self.grains().start.plus(SectorCount(index.checked_mul(GRAIN_SECTORS)?))?;
        start.plus(SectorCount(GRAIN_SECTORS)).map(|_| start)
    }

    /// The grain that holds `sector` of the extent; `None` beyond its end.
    pub fn grain_of(&self, sector: Sector) -> Option<GrainIndex> {
        (sector.0 < self.capacity.0).then_some(GrainIndex(sector.0 / GRAIN_SECTORS))
    }
}

/// A checked volatile header: its journal need not be replayed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct VolatileHeader {
    /// The next grain table that is free.
    pub free_gt_number: u64,
    /// The number of the next transaction.
    pub next_txn_seq_number: u64,
}

impl VolatileHeader {
    /// Reads and checks the volatile header that `bytes` start with.
    ///
    /// Refused if the journal is to be replayed: without that the tables are not what they should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated { len: bytes.len() };
        let (raw, _) = RawVolatile::read_from_prefix(bytes).map_err(|_| truncated)?;
        if raw.magic.get() != VOLATILE_MAGIC {
            return Err(field("volatileHeader.magic", raw.magic.get(), Problem::Unknown));
        }
        let replay = raw.replay_journal.get();
        if replay != 0 {
            return Err(field("volatileHeader.replayJournal", replay, Problem::Above(0)));
        }
        padding(&raw.padding)?;
        Ok(Self {
            free_gt_number: raw.free_gt_number.get(),
            next_txn_seq_number: raw.next_txn_seq_number.get(),
        })
    }

    /// The header as bytes: those that it was parsed from.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let raw = RawVolatile {
            magic: VOLATILE_MAGIC.into(),
            free_gt_number: self.free_gt_number.into(),
            next_txn_seq_number: self.next_txn_seq_number.into(),
            replay_journal: 0.into(),
            padding: [0; 480],
        };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

/// What an entry of a grain table says of its grain.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SeGrain {
    /// Nothing: the parent shows, or zeroes.
    Unallocated,
    /// The guest gave it back: zeroes.
    Unmapped,
    /// Zeroes.
    Zero,
    /// It is the grain of this index, below `1 << 60`.
    At(u64),
}

/// Reads an entry of the grain directory: the index of a grain table, if there is one.
pub fn decode_gde(raw: u64) -> Result<Option<u32>, Error> {
    let corrupt = Error::Corrupt { what: "grain directory entry", value: raw };
    match (raw, raw >> 32) {
        (0, _) => Ok(None),
        (_, GDE_ALLOCATED) => u32::try_from(raw & 0xffff_ffff).map(Some).map_err(|_| corrupt),
        _ => Err(corrupt),
    }
}

/// Reads an entry of a grain table. The lowest 12 bits of an index are bits 48 to 59 of the entry.
pub fn decode_gte(raw: u64) -> Result<SeGrain, Error> {
    let payload = raw & 0x0fff_ffff_ffff_ffff;
    match (raw >> 60, payload) {
        (0, 0) => Ok(SeGrain::Unallocated),
        (1, _) => Ok(SeGrain::Unmapped),
        (2, _) => Ok(SeGrain::Zero),
        (3, _) => Ok(SeGrain::At(payload >> 48 | (payload & 0xffff_ffff_ffff) << 12)),
        _ => Err(Error::Corrupt { what: "grain table entry", value: raw }),
    }
}

fn reserved(name: &'static str, value: u64) -> Result<(), HeaderError> {
    match value {
        0 => Ok(()),
        _ => Err(field(name, value, Problem::Reserved(u64::MAX))),
    }
}

fn padding(bytes: &[u8]) -> Result<(), HeaderError> {
    match bytes.iter().find(|byte| **byte != 0) {
        None => Ok(()),
        Some(byte) => Err(field("padding", *byte, Problem::Reserved(0xff))),
    }
}

#[cfg(test)]
mod tests;
