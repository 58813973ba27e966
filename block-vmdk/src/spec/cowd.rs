//! The header of sparse extents of ESX (magic `COWD`), sector 0 of the file.
//!
//! [`CowdHeader::parse`] is the only way from bytes to a [`CowdHeader`], which keeps: `grain_size` is a
//! power of two with `1 <= grain_size <= 0x20_0000`, the grain directory does not start in sector 0,
//! `gd_entries() * 4096 * grain_size >= capacity` and `gd_entries() <= GD_ENTRIES_MAX`. Every number
//! has 32 bits, so every place ends far below [`block_core::range::MAX_LEN`]. What depends on the length
//! of the file is checked by [`CowdHeader::check_file_len`].
//!
//! The format goes on for three more sectors with names and a generation, which nobody here reads;
//! what of them stands in sector 0 is kept byte for byte, so `parse(x).to_bytes() == x`.
//!
//! A grain table has [`GTES_PER_GT`] entries of 32 bits; 0 stands for a grain that is not allocated,
//! anything else is a sector. There is one copy of each table, and no entry for grains of zeroes.

use block_core::Problem;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::sparse::{HeaderError, field};
use crate::units::{Geometry, GrainIndex, Sector, SectorCount};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"COWD";
/// Length in bytes of what is read here: one sector.
pub const HEADER_LEN: usize = 512;
/// Sectors that the whole header takes: no grain directory of a new file starts before.
pub const HEADER_SECTORS: u64 = 4;
/// Largest grain: 1 GiB.
pub const GRAIN_SECTORS_MAX: u32 = 0x20_0000;
/// Entries of a grain table.
pub const GTES_PER_GT: u32 = 4096;
/// Most entries of a grain directory: what the longest extent needs with the smallest grain.
pub const GD_ENTRIES_MAX: u32 = 1 << 20;

/// Where in the header the number of 32 bits stands that says that the file was not closed; beyond what is read here.
pub const UNCLEAN_SHUTDOWN_AT: usize = 1648;

const VERSION: u32 = 1;
/// The flags that every known writer sets.
const FLAGS_NEW: u32 = 3;

/// The header as it stands in the file; all numbers little-endian.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    capacity: U32,
    grain_size: U32,
    gd_offset: U32,
    gd_entries: U32,
    free_sector: U32,
    rest: [u8; 480],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// A checked header. See the module for what holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CowdHeader {
    flags: u32,
    capacity: u32,
    grain_size: u32,
    gd_offset: u32,
    gd_entries: u32,
    free_sector: u32,
    rest: [u8; 480],
}

impl CowdHeader {
    /// Reads and checks the header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated { len: bytes.len() };
        let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| truncated)?;
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic { found: raw.magic, expected: MAGIC });
        }
        if raw.version.get() != VERSION {
            return Err(field("version", raw.version.get(), Problem::Unknown));
        }
        let header = Self {
            flags: raw.flags.get(),
            capacity: raw.capacity.get(),
            grain_size: raw.grain_size.get(),
            gd_offset: raw.gd_offset.get(),
            gd_entries: raw.gd_entries.get(),
            free_sector: raw.free_sector.get(),
            rest: raw.rest,
        };
        header.check()?;
        Ok(header)
    }

    /// The header of a new extent without a table: its directory follows the header, and is followed by the
    /// first free sector. `geometry` is that of a disk that has no parent.
    pub fn new(
        capacity: SectorCount,
        grain_size: SectorCount,
        geometry: Option<Geometry>,
    ) -> Result<Self, HeaderError> {
        let number = |name, value: u64| {
            let above = |_| field(name, value, Problem::Above(u32::MAX.into()));
            u32::try_from(value).map_err(above)
        };
        let capacity = number("numSectors", capacity.0)?;
        let grain_size = number("grainSize", grain_size.0)?;
        let coverage = u64::from(grain_size).max(1) * u64::from(GTES_PER_GT);
        let gd_entries = number("numGDEntries", u64::from(capacity).div_ceil(coverage))?;
        let gd_offset = number("gdOffset", HEADER_SECTORS)?;
        let mut header = Self {
            flags: FLAGS_NEW,
            capacity,
            grain_size,
            gd_offset,
            gd_entries,
            free_sector: gd_offset,
            rest: [0; 480],
        };
        header.free_sector = number("freeSector", HEADER_SECTORS + header.gd_sectors().0)?;
        if let Some(geometry) = geometry {
            let numbers = [geometry.cylinders, geometry.heads.into(), geometry.sectors.into()];
            for (place, value) in header.rest.chunks_exact_mut(4).zip(numbers) {
                place.copy_from_slice(&number("geometry", value)?.to_le_bytes());
            }
        }
        header.check()?;
        Ok(header)
    }

    /// The header as bytes: those that it was parsed from, but for what was set since.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            flags: self.flags.into(),
            capacity: self.capacity.into(),
            grain_size: self.grain_size.into(),
            gd_offset: self.gd_offset.into(),
            gd_entries: self.gd_entries.into(),
            free_sector: self.free_sector.into(),
            rest: self.rest,
        };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks what the header names against the length of its file, in bytes.
    pub fn check_file_len(&self, len: u64) -> Result<(), HeaderError> {
        let sectors = SectorCount::of_bytes(len);
        // Both numbers have 32 bits at most.
        if u64::from(self.gd_offset) + self.gd_sectors().0 > sectors.0 {
            return Err(field("gdOffset", self.gd_offset, Problem::Truncated(sectors.0)));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), HeaderError> {
        let bad_grain = |problem| Err(field("grainSize", self.grain_size, problem));
        if !self.grain_size.is_power_of_two() {
            return bad_grain(Problem::NotPowerOfTwo);
        }
        if self.grain_size > GRAIN_SECTORS_MAX {
            return bad_grain(Problem::Above(GRAIN_SECTORS_MAX.into()));
        }
        if self.gd_offset == 0 {
            return Err(field("gdOffset", self.gd_offset, Problem::Zero));
        }
        let needed = u64::from(self.capacity).div_ceil(self.gt_coverage().0);
        let bad_entries = |problem| Err(field("numGDEntries", self.gd_entries, problem));
        if self.gd_entries() < needed {
            return bad_entries(Problem::Below(needed));
        }
        if self.gd_entries > GD_ENTRIES_MAX {
            return bad_entries(Problem::Above(GD_ENTRIES_MAX.into()));
        }
        Ok(())
    }

    /// Length of the extent.
    pub fn capacity(&self) -> SectorCount {
        SectorCount(self.capacity.into())
    }

    /// Length of a grain.
    pub fn grain_size(&self) -> SectorCount {
        SectorCount(self.grain_size.into())
    }

    /// Where the grain directory is.
    pub fn gd_offset(&self) -> Sector {
        Sector(self.gd_offset.into())
    }

    /// Entries of the grain directory: as many as the capacity needs, or more.
    pub fn gd_entries(&self) -> u64 {
        self.gd_entries.into()
    }

    /// The first sector that is free, as the last writer left it: not checked against anything.
    pub fn free_sector(&self) -> Sector {
        Sector(self.free_sector.into())
    }

    /// The same header with this first free sector; `None` if the field cannot hold it.
    pub fn with_free_sector(&self, free: Sector) -> Option<Self> {
        let free_sector = u32::try_from(free.0).ok()?;
        Some(Self { free_sector, ..self.clone() })
    }

    /// Sectors of the extent that one grain table maps.
    pub fn gt_coverage(&self) -> SectorCount {
        SectorCount(u64::from(self.grain_size) * u64::from(GTES_PER_GT))
    }

    /// Sectors of the grain directory.
    pub fn gd_sectors(&self) -> SectorCount {
        SectorCount::of_bytes(self.gd_entries() * 4)
    }

    /// The grain that holds `sector` of the extent; `None` beyond its end.
    pub fn grain_of(&self, sector: Sector) -> Option<GrainIndex> {
        let inside = sector.0 < self.capacity().0;
        inside.then_some(GrainIndex(sector.0 / u64::from(self.grain_size)))
    }
}

#[cfg(test)]
mod tests;
