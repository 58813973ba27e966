//! The header of hosted sparse extents (magic `KDMV`), sector 0 of the file.
//!
//! [`SparseHeader::parse`] is the only way from bytes to a [`SparseHeader`], which keeps:
//! `grain_size` is a power of two with `8 <= grain_size <= 0x20_0000`, `1 <= gtes_per_gt <= 512`,
//! `gd_entries() <= GD_ENTRIES_MAX`, and every place it names, with what stands there, ends at or
//! below [`block_core::range::MAX_LEN`]. What depends on the length of the file is checked by
//! [`SparseHeader::check_file_len`]. Sector 0 is the header, so no structure may start there.

use block_core::Problem;
use block_core::range::MAX_LEN;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::{GrainIndex, Sector, SectorCount};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 512;
/// Where in the header the byte stands that says that the file is being changed.
pub const UNCLEAN_SHUTDOWN_AT: usize = 72;
/// Smallest grain: 4 KiB.
pub const GRAIN_SECTORS_MIN: u64 = 8;
/// Largest grain: 1 GiB.
pub const GRAIN_SECTORS_MAX: u64 = 0x20_0000;
/// Most entries of a grain table.
pub const GTES_PER_GT_MAX: u32 = 512;
/// Most entries of a grain directory.
pub const GD_ENTRIES_MAX: u64 = 32 << 20;
/// Longest embedded descriptor, in sectors: 1 MiB.
pub const DESCRIPTOR_SECTORS_MAX: u64 = 2048;

/// What a transfer that mangles line ends does to these bytes shows that it happened.
const CHECK_BYTES: [u8; 4] = [0x0a, 0x20, 0x0d, 0x0a];
const GD_AT_END: u64 = u64::MAX;

const FLAG_CHECK_BYTES: u32 = 1 << 0;
const FLAG_REDUNDANT_GD: u32 = 1 << 1;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

/// The header as it stands in the file; all numbers little-endian.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    capacity: U64,
    grain_size: U64,
    descriptor_offset: U64,
    descriptor_size: U64,
    gtes_per_gt: U32,
    rgd_offset: U64,
    gd_offset: U64,
    overhead: U64,
    unclean_shutdown: u8,
    check_bytes: [u8; 4],
    compression: U16,
    padding: [u8; 433],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// Why bytes are not the header of a sparse extent, of any kind, that can be used.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than a header has.
    #[error("the header has {HEADER_LEN} bytes, only {len} are there")]
    Truncated {
        /// How many bytes there are.
        len: usize,
    },
    /// Not this kind of file.
    #[error("magic is {found:02x?}, not \"{}\"", expected.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
        /// What they would be.
        expected: [u8; 4],
    },
    /// The file was changed by a transfer that took it for text.
    #[error("check bytes are {found:02x?}: the file was transferred as text")]
    CheckBytes {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A field holds a value that the format does not allow.
    #[error("{field} is {value:#x}: {problem}")]
    Field {
        /// The field, in the format's words.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// Where the grain directory is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum GrainDirectory {
    /// At this sector of the file.
    At(Sector),
    /// The footer at the end of the file says where (streamOptimized).
    InFooter,
}

/// A place in the file and how much stands there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SectorRange {
    /// First sector.
    pub start: Sector,
    /// How many sectors.
    pub count: SectorCount,
}

/// What a new header says; see [`SparseHeader::hosted`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct HostedPlaces {
    /// Length of the extent.
    pub capacity: SectorCount,
    /// Length of a grain.
    pub grain_size: SectorCount,
    /// Where the embedded descriptor is, if there is one.
    pub descriptor: Option<SectorRange>,
    /// Where the redundant grain directory is.
    pub redundant_gd: Sector,
    /// Where the grain directory is.
    pub gd: Sector,
    /// Sectors before the first grain.
    pub overhead: SectorCount,
}

/// Whether a grain table entry of 1 stands for a grain of zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum ZeroedGrains {
    /// It does not.
    #[default]
    No,
    /// It does.
    Yes,
}

/// A checked header. See the module for what holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SparseHeader {
    version: u32,
    flags: u32,
    capacity: SectorCount,
    grain_size: SectorCount,
    descriptor: Option<SectorRange>,
    gtes_per_gt: u32,
    redundant_gd: Option<Sector>,
    gd: GrainDirectory,
    overhead: SectorCount,
    unclean_shutdown: bool,
}

impl SparseHeader {
    /// Reads and checks the header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated { len: bytes.len() };
        let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| truncated)?;
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic { found: raw.magic, expected: MAGIC });
        }
        let flags = raw.flags.get();
        if flags & FLAG_CHECK_BYTES != 0 && raw.check_bytes != CHECK_BYTES {
            return Err(HeaderError::CheckBytes { found: raw.check_bytes });
        }
        let version = raw.version.get();
        if !(1..=3).contains(&version) {
            return Err(field("version", version, Problem::Unknown));
        }
        check_compression(&raw)?;
        let redundant_gd = match flags & FLAG_REDUNDANT_GD {
            0 => None,
            _ => Some(Sector(raw.rgd_offset.get())),
        };
        let gd = match raw.gd_offset.get() {
            GD_AT_END => GrainDirectory::InFooter,
            sector => GrainDirectory::At(Sector(sector)),
        };
        let header = Self {
            version,
            flags,
            capacity: SectorCount(raw.capacity.get()),
            grain_size: SectorCount(raw.grain_size.get()),
            descriptor: descriptor(&raw)?,
            gtes_per_gt: raw.gtes_per_gt.get(),
            redundant_gd,
            gd,
            overhead: SectorCount(raw.overhead.get()),
            unclean_shutdown: match raw.unclean_shutdown {
                0 => false,
                1 => true,
                other => return Err(field("uncleanShutdown", other, Problem::Above(1))),
            },
        };
        header.check_geometry()?;
        header.check_places()?;
        Ok(header)
    }

    /// The header of an extent that is written in place: version 1, or 2 for grains of zeroes, with tables
    /// of 512 entries, all of them there from the start and all of them twice.
    pub fn hosted(places: HostedPlaces, zeroed_grains: ZeroedGrains) -> Result<Self, HeaderError> {
        let (version, flag) = match zeroed_grains {
            ZeroedGrains::No => (1, 0),
            ZeroedGrains::Yes => (2, FLAG_ZEROED_GRAINS),
        };
        let header = Self {
            version,
            flags: FLAG_CHECK_BYTES | FLAG_REDUNDANT_GD | flag,
            capacity: places.capacity,
            grain_size: places.grain_size,
            descriptor: places.descriptor,
            gtes_per_gt: GTES_PER_GT_MAX,
            redundant_gd: Some(places.redundant_gd),
            gd: GrainDirectory::At(places.gd),
            overhead: places.overhead,
            unclean_shutdown: false,
        };
        header.check_geometry()?;
        header.check_places()?;
        Ok(header)
    }

    /// The header of a streamOptimized extent: version 3, compressed, with markers and tables of 512 entries. The
    /// descriptor ends before the first marker, at `overhead`.
    pub fn stream_optimized(
        capacity: SectorCount,
        grain_size: SectorCount,
        descriptor: SectorRange,
        overhead: SectorCount,
        gd: GrainDirectory,
    ) -> Result<Self, HeaderError> {
        let header = Self {
            version: 3,
            flags: FLAG_CHECK_BYTES | FLAG_COMPRESSED | FLAG_MARKERS,
            capacity,
            grain_size,
            descriptor: Some(descriptor),
            gtes_per_gt: GTES_PER_GT_MAX,
            redundant_gd: None,
            gd,
            overhead,
            unclean_shutdown: false,
        };
        header.check_geometry()?;
        header.check_places()?;
        Ok(header)
    }

    /// The header as bytes; parsing them gives this header again.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let (offset, size) = match self.descriptor {
            Some(range) => (range.start.0, range.count.0),
            None => (0, 0),
        };
        let raw = RawHeader {
            magic: MAGIC,
            version: self.version.into(),
            flags: self.flags.into(),
            capacity: self.capacity.0.into(),
            grain_size: self.grain_size.0.into(),
            descriptor_offset: offset.into(),
            descriptor_size: size.into(),
            gtes_per_gt: self.gtes_per_gt.into(),
            rgd_offset: self.redundant_gd.unwrap_or_default().0.into(),
            gd_offset: match self.gd {
                GrainDirectory::At(sector) => sector.0.into(),
                GrainDirectory::InFooter => GD_AT_END.into(),
            },
            overhead: self.overhead.0.into(),
            unclean_shutdown: u8::from(self.unclean_shutdown),
            check_bytes: CHECK_BYTES,
            compression: u16::from(self.is_compressed()).into(),
            padding: [0; 433],
        };
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks what the header names against the length of its file, in bytes.
    pub fn check_file_len(&self, len: u64) -> Result<(), HeaderError> {
        let sectors = SectorCount::of_bytes(len);
        let inside = |name, start: Sector, count: SectorCount| {
            let end = start.0.saturating_add(count.0);
            if end > sectors.0 {
                return Err(field(name, start.0, Problem::Truncated(sectors.0)));
            }
            Ok(())
        };
        if let Some(range) = self.descriptor {
            inside("descriptorOffset", range.start, range.count)?;
        }
        let entries = self.gd_sectors();
        if let GrainDirectory::At(start) = self.gd {
            inside("gdOffset", start, entries)?;
        }
        if let Some(start) = self.redundant_gd {
            inside("rgdOffset", start, entries)?;
        }
        // The tables are before the grains: a file that ends among them has lost some.
        if self.overhead.0 > sectors.0 {
            return Err(field("overHead", self.overhead.0, Problem::Truncated(sectors.0)));
        }
        Ok(())
    }

    fn check_geometry(&self) -> Result<(), HeaderError> {
        let grain = self.grain_size.0;
        let bad_grain = |problem| Err(field("grainSize", grain, problem));
        if !grain.is_power_of_two() {
            return bad_grain(Problem::NotPowerOfTwo);
        }
        if grain < GRAIN_SECTORS_MIN {
            return bad_grain(Problem::Below(GRAIN_SECTORS_MIN));
        }
        if grain > GRAIN_SECTORS_MAX {
            return bad_grain(Problem::Above(GRAIN_SECTORS_MAX));
        }
        if self.gtes_per_gt == 0 {
            return Err(field("numGTEsPerGT", 0u32, Problem::Zero));
        }
        if self.gtes_per_gt > GTES_PER_GT_MAX {
            let problem = Problem::Above(u64::from(GTES_PER_GT_MAX));
            return Err(field("numGTEsPerGT", self.gtes_per_gt, problem));
        }
        let covered = GD_ENTRIES_MAX.saturating_mul(self.gt_coverage().0).min(MAX_LEN / 512);
        if self.capacity.0 > covered {
            return Err(field("capacity", self.capacity.0, Problem::Above(covered)));
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), HeaderError> {
        let place = |name, start: Sector, count: SectorCount| {
            if start.0 == 0 {
                return Err(field(name, start.0, Problem::Zero));
            }
            match start.plus(count) {
                Some(_) => Ok(()),
                None => Err(field(name, start.0, Problem::Above(MAX_LEN / 512))),
            }
        };
        if let Some(range) = self.descriptor {
            place("descriptorOffset", range.start, range.count)?;
        }
        if let Some(start) = self.redundant_gd {
            place("rgdOffset", start, self.gd_sectors())?;
        }
        if let GrainDirectory::At(start) = self.gd {
            place("gdOffset", start, self.gd_sectors())?;
        }
        match self.overhead.bytes() {
            Some(_) => Ok(()),
            None => Err(field("overHead", self.overhead.0, Problem::Above(MAX_LEN / 512))),
        }
    }

    /// Version of the format, 1 to 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Length of the extent.
    pub fn capacity(&self) -> SectorCount {
        self.capacity
    }

    /// Length of a grain.
    pub fn grain_size(&self) -> SectorCount {
        self.grain_size
    }

    /// Where the embedded descriptor is.
    pub fn descriptor(&self) -> Option<SectorRange> {
        self.descriptor
    }

    /// Entries of a grain table.
    pub fn gtes_per_gt(&self) -> u32 {
        self.gtes_per_gt
    }

    /// Where the grain directory is.
    pub fn grain_directory(&self) -> GrainDirectory {
        self.gd
    }

    /// Where the redundant grain directory is, if it is used.
    pub fn redundant_grain_directory(&self) -> Option<Sector> {
        self.redundant_gd
    }

    /// Sectors before the first grain.
    pub fn overhead(&self) -> SectorCount {
        self.overhead
    }

    /// Whether the file was not closed properly.
    pub fn unclean_shutdown(&self) -> bool {
        self.unclean_shutdown
    }

    /// Whether a grain table entry of 1 stands for a grain of zeroes.
    pub fn has_zeroed_grains(&self) -> bool {
        self.flags & FLAG_ZEROED_GRAINS != 0
    }

    /// Whether grains are compressed (zlib streams).
    pub fn is_compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    /// Whether markers stand before grains and metadata.
    pub fn has_markers(&self) -> bool {
        self.flags & FLAG_MARKERS != 0
    }

    /// Sectors of the extent that one grain table maps.
    pub fn gt_coverage(&self) -> SectorCount {
        SectorCount(self.grain_size.0 * u64::from(self.gtes_per_gt))
    }

    /// Entries of the grain directory.
    pub fn gd_entries(&self) -> u64 {
        self.capacity.0.div_ceil(self.gt_coverage().0)
    }

    /// Sectors of the grain directory.
    fn gd_sectors(&self) -> SectorCount {
        SectorCount::of_bytes(self.gd_entries() * 4)
    }

    /// The grain that holds `sector` of the extent; `None` beyond its end.
    pub fn grain_of(&self, sector: Sector) -> Option<GrainIndex> {
        (sector.0 < self.capacity.0).then_some(GrainIndex(sector.0 / self.grain_size.0))
    }
}

fn descriptor(raw: &RawHeader) -> Result<Option<SectorRange>, HeaderError> {
    let count = raw.descriptor_size.get();
    if count > DESCRIPTOR_SECTORS_MAX {
        return Err(field("descriptorSize", count, Problem::Above(DESCRIPTOR_SECTORS_MAX)));
    }
    // An offset of zero means that the descriptor is a file of its own.
    Ok(match raw.descriptor_offset.get() {
        0 => None,
        start => Some(SectorRange { start: Sector(start), count: SectorCount(count) }),
    })
}

fn check_compression(raw: &RawHeader) -> Result<(), HeaderError> {
    let flagged = raw.flags.get() & FLAG_COMPRESSED != 0;
    match (raw.compression.get(), flagged) {
        (0, false) | (1, true) => Ok(()),
        (0 | 1, _) => {
            let problem = Problem::Contradicts("flags");
            Err(field("compressAlgorithm", raw.compression.get(), problem))
        }
        (other, _) => Err(field("compressAlgorithm", other, Problem::Unknown)),
    }
}

pub(super) fn field(field: &'static str, value: impl Into<u64>, problem: Problem) -> HeaderError {
    HeaderError::Field { field, value: value.into(), problem }
}

#[cfg(test)]
mod tests;
