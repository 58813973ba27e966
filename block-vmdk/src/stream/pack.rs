//! What becomes of the grains of a piece: those that hold data, compressed, behind their markers.

use block_core::job::stream::{Pack, Piece, is_zero};
use block_core::range::{SECTOR_SIZE, to_u64, to_usize};

use super::GRAIN;
use crate::compress::{Level, deflate};
use crate::spec::marker::{GrainMarker, PAYLOAD_OFFSET};
use crate::units::Sector;

/// Bytes of a grain.
const GRAIN_BYTES: u64 = GRAIN.0 * SECTOR_SIZE;

/// How grains are packed.
#[derive(Copy, Clone, Debug)]
pub(super) struct Grains {
    pub(super) level: Level,
}

/// The grains of a piece.
#[derive(Default)]
pub(super) struct Packed {
    /// Where each is on the disk, and its bytes in the file.
    stored: Vec<(Sector, usize)>,
    bytes: Vec<u8>,
}

impl Packed {
    /// The grains in order: where each is on the disk, and what the file holds of it, in whole sectors.
    pub(super) fn grains(&self) -> impl Iterator<Item = (Sector, &[u8])> + Send {
        let mut rest = self.bytes.as_slice();
        self.stored.iter().map(move |(lba, len)| {
            let (first, behind) = rest.split_at_checked(*len).unwrap_or_default();
            rest = behind;
            (*lba, first)
        })
    }
}

impl Pack for Grains {
    type Packed = Packed;

    fn unit(&self) -> u64 {
        GRAIN_BYTES
    }

    fn memory(&self, piece_bytes: usize) -> Packed {
        Packed { stored: Vec::new(), bytes: Vec::with_capacity(piece_bytes) }
    }

    /// The last grain of a disk goes on with zeroes: every reader has room for a whole grain, and not every one takes
    /// less.
    fn pack(&self, piece: Piece, plain: &[u8], packed: &mut Packed) {
        packed.stored.clear();
        packed.bytes.clear();
        let first = piece.start / GRAIN_BYTES;
        for (index, grain) in (first..).zip(plain.chunks(to_usize(GRAIN_BYTES))) {
            if is_zero(grain) {
                continue;
            }
            let lba = Sector(index * GRAIN.0);
            let start = packed.bytes.len();
            packed.bytes.extend([0; PAYLOAD_OFFSET]);
            let len = deflate(self.level, grain, &mut packed.bytes);
            // A stream is not much longer than a grain.
            let marker = GrainMarker { lba, len: u32::try_from(len).unwrap_or(u32::MAX) };
            if let Some(place) = packed.bytes.get_mut(start..start + PAYLOAD_OFFSET) {
                place.copy_from_slice(&marker.to_bytes());
            }
            let stored = to_u64(packed.bytes.len() - start).next_multiple_of(SECTOR_SIZE);
            packed.bytes.resize(start + to_usize(stored), 0);
            packed.stored.push((lba, to_usize(stored)));
        }
    }
}
