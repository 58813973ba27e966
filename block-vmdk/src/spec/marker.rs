//! The markers of streamOptimized extents: what stands before each grain and before each table.
//!
//! A marker is a sector. That of a grain has its place on the disk, the length of the zlib stream, and then the
//! stream itself, from byte [`PAYLOAD_OFFSET`] on, padded to whole sectors. That of metadata has a length of zero,
//! how many sectors follow, and of which kind they are.
//!
//! [`Marker::parse`] knows no image. [`GrainMarker::check`] holds a grain's marker against the extent: its grain is
//! one of the extent, and marker and stream together take at most two grains, so `12 + len <= 2 * grain`.

use block_core::Problem;
use block_core::range::{MAX_LEN, SECTOR_SIZE, to_u64};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::{GrainIndex, Sector, SectorCount};

/// Where the zlib stream starts in a grain's marker.
pub const PAYLOAD_OFFSET: usize = 12;
/// Bytes that say what a marker is.
pub const MARKER_LEN: usize = 16;
/// Length of a marker of metadata.
pub const MARKER_SECTOR_LEN: usize = 512;

/// A marker as it stands in the file; all numbers little-endian. `kind` is the start of the stream in a grain's.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMarker {
    value: U64,
    size: U32,
    kind: U32,
}

const _: () = assert!(size_of::<RawMarker>() == MARKER_LEN);

/// Why bytes are not a marker, or not one of this extent.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkerError {
    /// Fewer bytes than a marker has.
    #[error("a marker has {MARKER_LEN} bytes, only {len} are there")]
    Truncated {
        /// How many bytes there are.
        len: usize,
    },
    /// A field holds a value that the format or the extent does not allow.
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

/// What a marker says.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Marker {
    /// A compressed grain.
    Grain(GrainMarker),
    /// Metadata follows.
    Metadata(MetadataMarker),
}

/// The marker of a compressed grain.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct GrainMarker {
    /// Where the grain starts in the extent.
    pub lba: Sector,
    /// Length of the zlib stream in bytes; not 0.
    pub len: u32,
}

/// The marker of metadata.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MetadataMarker {
    /// What follows.
    pub kind: MetadataKind,
    /// How much of it; 0 at the end of the stream.
    pub sectors: SectorCount,
}

/// What follows a marker of metadata.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MetadataKind {
    /// Nothing.
    EndOfStream,
    /// A grain table.
    GrainTable,
    /// The grain directory.
    GrainDirectory,
    /// The footer: the header again, with the place of the grain directory.
    Footer,
}

impl MetadataKind {
    const ALL: [Self; 4] =
        [Self::EndOfStream, Self::GrainTable, Self::GrainDirectory, Self::Footer];

    /// Its number in a marker.
    pub fn number(self) -> u32 {
        match self {
            Self::EndOfStream => 0,
            Self::GrainTable => 1,
            Self::GrainDirectory => 2,
            Self::Footer => 3,
        }
    }
}

impl Marker {
    /// Reads the marker that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, MarkerError> {
        let truncated = MarkerError::Truncated { len: bytes.len() };
        let (raw, _) = RawMarker::read_from_prefix(bytes).map_err(|_| truncated)?;
        let (value, kind) = (raw.value.get(), raw.kind.get());
        if raw.size.get() != 0 {
            let lba = Sector(value);
            if lba.offset().is_none() {
                return Err(field(
                    "grain marker LBA",
                    value,
                    Problem::Above(MAX_LEN / SECTOR_SIZE),
                ));
            }
            return Ok(Self::Grain(GrainMarker { lba, len: raw.size.get() }));
        }
        let known = MetadataKind::ALL.into_iter().find(|known| known.number() == kind);
        let kind = known.ok_or_else(|| field("marker type", kind, Problem::Unknown))?;
        let sectors = SectorCount(value);
        match kind {
            MetadataKind::EndOfStream if value != 0 => {
                Err(field("end-of-stream marker sectors", value, Problem::Above(0)))
            }
            _ if sectors.bytes().is_none() => {
                Err(field("marker sectors", value, Problem::Above(MAX_LEN / SECTOR_SIZE)))
            }
            _ => Ok(Self::Metadata(MetadataMarker { kind, sectors })),
        }
    }
}

impl GrainMarker {
    /// The longest zlib stream that a grain may have: more than any compressor makes of it.
    pub fn payload_max(grain: SectorCount) -> u64 {
        let room = grain.bytes().unwrap_or(0).saturating_mul(2);
        room.saturating_sub(to_u64(PAYLOAD_OFFSET))
    }

    /// Which grain it is of an extent of `capacity` with grains of `grain`, which is not 0.
    pub fn check(
        self,
        grain: SectorCount,
        capacity: SectorCount,
    ) -> Result<GrainIndex, MarkerError> {
        let (lba, len) = (self.lba.0, u64::from(self.len));
        if lba >= capacity.0 {
            return Err(field(
                "grain marker LBA",
                lba,
                Problem::Above(capacity.0.saturating_sub(1)),
            ));
        }
        if !lba.is_multiple_of(grain.0) {
            return Err(field("grain marker LBA", lba, Problem::Misaligned(grain.0)));
        }
        let max = Self::payload_max(grain);
        if len == 0 {
            return Err(field("grain marker size", len, Problem::Zero));
        }
        if len > max {
            return Err(field("grain marker size", len, Problem::Above(max)));
        }
        Ok(GrainIndex(lba / grain.0))
    }

    /// Bytes of the file that marker and stream take without their padding.
    pub fn stored_len(self) -> u64 {
        to_u64(PAYLOAD_OFFSET) + u64::from(self.len)
    }

    /// Sectors of the file that marker and stream take.
    pub fn stored_sectors(self) -> SectorCount {
        SectorCount(self.stored_len().div_ceil(SECTOR_SIZE))
    }

    /// What stands before the stream.
    pub fn to_bytes(self) -> [u8; PAYLOAD_OFFSET] {
        let mut bytes = [0; PAYLOAD_OFFSET];
        let (lba, len) = bytes.split_at_mut(size_of::<U64>());
        lba.copy_from_slice(&self.lba.0.to_le_bytes());
        len.copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

impl MetadataMarker {
    /// A marker before `sectors` of metadata.
    pub fn new(kind: MetadataKind, sectors: SectorCount) -> Self {
        Self { kind, sectors }
    }

    /// The marker as a sector; parsing it gives this marker again.
    pub fn to_sector(self) -> [u8; MARKER_SECTOR_LEN] {
        let (value, kind) = (self.sectors.0.into(), self.kind.number().into());
        let raw = RawMarker { value, size: 0.into(), kind };
        let mut sector = [0; MARKER_SECTOR_LEN];
        sector[..MARKER_LEN].copy_from_slice(raw.as_bytes());
        sector
    }
}

fn field(field: &'static str, value: impl Into<u64>, problem: Problem) -> MarkerError {
    MarkerError::Field { field, value: value.into(), problem }
}

#[cfg(test)]
mod tests;
