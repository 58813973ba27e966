//! Where every guest byte is, and what it holds.

use block_core::range::{to_u64, to_usize};

use super::error::BadImage;
use super::sparse::{Entry, SECTOR};
use super::text::Access;
use super::{Content, Extent, Image};

/// Most bytes that one read returns.
pub const MAX_CONTENTS: u64 = 1 << 30;

/// Most pieces that one map returns.
pub const MAX_PIECES: u64 = 1 << 24;

/// Where the bytes of a piece are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Not in this disk: in its parent, or nowhere.
    Unallocated,
    /// Nowhere: they are zeroes.
    Zero,
    /// In the extent's file, from this byte on.
    Data {
        /// Where.
        offset: u64,
    },
    /// In the compressed grain of this number, which starts at this byte of the extent's file.
    Compressed {
        /// Number of the grain in its extent.
        grain: u64,
        /// Where.
        offset: u64,
    },
}

/// A grain, or the part of it that is inside the extent; an extent without grains.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First guest byte.
    pub guest: u64,
    /// Length in bytes.
    pub len: u64,
    /// Number of the extent.
    pub extent: usize,
    /// Where its bytes are.
    pub place: Place,
}

impl Image<'_> {
    /// All that the guest sees.
    pub fn contents(&self) -> Result<Vec<u8>, BadImage> {
        self.read(0, self.len())
    }

    /// What the guest sees in `[offset, offset + len)`, with zeroes beyond the end of the disk.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, BadImage> {
        if len > MAX_CONTENTS {
            let limit = MAX_CONTENTS;
            return Err(BadImage::TooLarge { what: "bytes to read", value: len, limit });
        }
        let mut out = vec![0; to_usize(len)];
        let mut rest = &mut out[..];
        let mut at = offset;
        while !rest.is_empty()
            && let Some(piece) = self.piece_at(at)?
        {
            let skip = at - piece.guest;
            let step = to_usize(piece.len - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(step);
            self.read_piece(&piece, skip, now)?;
            at += to_u64(step);
            rest = later;
        }
        Ok(out)
    }

    /// Where every grain is, in guest order, without gaps.
    pub fn map(&self) -> Result<Vec<Piece>, BadImage> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(piece) = self.piece_at(at)? {
            at += piece.len;
            pieces.push(piece);
            if to_u64(pieces.len()) > MAX_PIECES {
                let value = to_u64(pieces.len());
                let limit = MAX_PIECES;
                return Err(BadImage::TooLarge { what: "pieces of the disk", value, limit });
            }
        }
        Ok(pieces)
    }

    /// The piece that holds the guest byte `offset`; `None` beyond the end of the disk.
    pub fn piece_at(&self, offset: u64) -> Result<Option<Piece>, BadImage> {
        let sector = offset / SECTOR;
        let holds =
            |extent: &Extent<'_>| extent.start <= sector && sector - extent.start < extent.sectors;
        let Some((number, extent)) = self.extents.iter().enumerate().find(|(_, e)| holds(e)) else {
            return Ok(None);
        };
        if extent.access == Access::None {
            return Err(BadImage::NoAccess { extent: number });
        }
        let within = sector - extent.start;
        let (start, count, place) = match &extent.content {
            Content::Zero => (0, extent.sectors, Place::Zero),
            Content::Flat { offset, .. } => {
                (0, extent.sectors, Place::Data { offset: offset.saturating_mul(SECTOR) })
            }
            Content::Sparse(sparse) => {
                let grain = within / sparse.grain;
                let place = match sparse.grain_at(grain)? {
                    Entry::Unallocated => Place::Unallocated,
                    Entry::Zero => Place::Zero,
                    Entry::At(at) if sparse.compressed => {
                        Place::Compressed { grain, offset: at.saturating_mul(SECTOR) }
                    }
                    Entry::At(at) => Place::Data { offset: at.saturating_mul(SECTOR) },
                };
                (grain * sparse.grain, sparse.grain, place)
            }
        };
        let count = count.min(extent.sectors - start);
        let guest = (extent.start + start).saturating_mul(SECTOR);
        let len = count.saturating_mul(SECTOR);
        Ok(Some(Piece { guest, len, extent: number, place }))
    }

    /// Fills `out` with the bytes of `piece` from its byte `skip` on.
    fn read_piece(&self, piece: &Piece, skip: u64, out: &mut [u8]) -> Result<(), BadImage> {
        let extent = self.extents.get(piece.extent).map(|extent| &extent.content);
        match (piece.place, extent) {
            (Place::Data { offset }, Some(Content::Flat { file, .. })) => {
                file.0.copy_to(offset.saturating_add(skip), out);
            }
            (Place::Data { offset }, Some(Content::Sparse(sparse))) => {
                sparse.file.copy_to(offset.saturating_add(skip), out);
            }
            (Place::Compressed { grain, offset }, Some(Content::Sparse(sparse))) => {
                let packed = sparse.unpack(grain, offset / SECTOR)?;
                let from = to_usize(skip);
                let found = packed.bytes.get(from..from + out.len()).unwrap_or_default();
                out.copy_from_slice(found);
            }
            (Place::Unallocated, _) => match self.backing {
                Some(backing) => backing.copy_to(piece.guest + skip, out),
                None => out.fill(0),
            },
            _ => out.fill(0),
        }
        Ok(())
    }
}
