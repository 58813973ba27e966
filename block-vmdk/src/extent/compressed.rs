//! Reading one compressed grain: its marker, then a zlib stream.
//!
//! Invariant: no more is read than two grains and a sector, whatever the marker says.

use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, Error, Node, OwnedBuf, Result};

use super::file_io::read_bytes;
use super::geometry::SECTOR;
use crate::compress::inflate;
use crate::spec::marker::{GrainMarker, Marker, PAYLOAD_OFFSET};

/// A compressed grain.
#[derive(Copy, Clone, Debug)]
pub(crate) struct GrainPlace {
    /// Byte of the file where its marker stands.
    pub(crate) at: u64,
    /// Byte of the extent where it starts.
    pub(crate) offset: u64,
    /// Bytes of a grain.
    pub(crate) grain_size: u64,
    /// Bytes of this grain that are inside of the extent.
    pub(crate) len: u64,
}

/// Reads and inflates a grain.
pub(crate) async fn read_grain(file: &Node, place: GrainPlace) -> Result<OwnedBuf> {
    let GrainPlace { at, offset, grain_size, len } = place;
    let corrupt = |what, value| Error::Corrupt { what, value };
    // Most streams are shorter than their grain: one read brings all of it.
    let guess = grain_size.min(file.len().saturating_sub(at));
    let first = ByteRange::new(at, guess).map_err(|_| corrupt("grain table entry", at / SECTOR))?;
    let mut bytes = read_bytes(file, first).await?;
    let marker = match Marker::parse(&bytes) {
        Ok(Marker::Grain(marker)) => marker,
        _ => return Err(corrupt("grain marker", at)),
    };
    if marker.lba.offset() != Some(offset) {
        return Err(corrupt("grain marker LBA", marker.lba.0));
    }
    let (stored, most) = (marker.stored_len(), GrainMarker::payload_max(grain_sectors(grain_size)));
    if u64::from(marker.len) > most || stored > file.len().saturating_sub(at) {
        return Err(corrupt("grain marker size", marker.len.into()));
    }
    if stored > to_u64(bytes.len()) {
        let rest = ByteRange::new(at + to_u64(bytes.len()), stored - to_u64(bytes.len()))?;
        bytes.extend(read_bytes(file, rest).await?);
    }
    let stream = bytes.get(PAYLOAD_OFFSET..to_usize(stored)).unwrap_or_default();
    let mut grain = OwnedBuf::zeroed(to_usize(grain_size), Alignment::ONE)?;
    inflate(stream, &mut grain, to_usize(len)).map_err(|_| corrupt("compressed grain", at))?;
    Ok(grain)
}

fn grain_sectors(bytes: u64) -> crate::units::SectorCount {
    crate::units::SectorCount(bytes / SECTOR)
}
