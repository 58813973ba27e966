//! Reads: piece by piece, several at once.
//!
//! Invariants: pieces cover the range without overlap; at most [`AT_ONCE`] are in flight; when the read
//! answers, none is any more, also after an error.

use std::sync::Arc;

use block_core::metadata::steps;
use block_core::range::to_usize;
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Error, IoVec, Node, Result};
use futures::{FutureExt, stream};

use super::SparseExtent;
use super::lookup::{Kind, Run};
use crate::compress::{StoredGrain, Wanted};
use crate::extent::geometry::SECTOR;
use crate::units::Sector;

/// Most pieces of one read in flight.
const AT_ONCE: usize = 8;
/// Most bytes of compressed grains that are one piece.
const COMPRESSED_PIECE: u64 = 1 << 20;

/// A part of a read.
enum Piece {
    /// A run that is stored plainly, or not at all.
    Run(Run, ByteRange),
    /// Compressed grains, one after the other.
    Compressed(ByteRange, Vec<(StoredGrain, ByteRange)>),
}

impl Piece {
    fn range(&self) -> ByteRange {
        match self {
            Self::Run(_, range) | Self::Compressed(range, _) => *range,
        }
    }
}

impl SparseExtent {
    /// Reads `range`, which lies inside of the extent.
    pub(crate) async fn read(self: &Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.next_piece(range).await?;
        if first.range() == range {
            return self.read_piece(first, iov).await;
        }
        let iov = &iov;
        let pieces = stream::unfold((Some(first), range), |(planned, rest)| async move {
            if rest.is_empty() {
                return None;
            }
            let piece = match planned {
                Some(piece) => Ok(piece),
                None => self.next_piece(rest).await,
            };
            match piece {
                Ok(piece) => {
                    let here = piece.range();
                    let skip = to_usize(here.offset() - range.offset());
                    let iov = iov.slice(skip, to_usize(here.len()));
                    let rest = rest.split_at(here.len()).1;
                    Some((Ok(self.read_piece(piece, iov)), (None, rest)))
                }
                Err(error) => Some((Err(error), (None, ByteRange::default()))),
            }
        });
        steps::run(AT_ONCE, pieces).await
    }

    /// The first piece of `rest`.
    async fn next_piece(&self, rest: ByteRange) -> Result<Piece> {
        let run = self.run(rest).await?;
        let here = rest.first(run.len);
        let Kind::Compressed { grain, skip } = run.kind else {
            return Ok(Piece::Run(run, here));
        };
        let mut grains = vec![(self.stored(grain, here, skip), here)];
        let mut end = here.end();
        while end < rest.end() && end - rest.offset() < COMPRESSED_PIECE {
            let next = ByteRange::from_bounds(end, rest.end())?;
            match self.run_at_once(next) {
                Some(Ok(Run { len, kind: Kind::Compressed { grain, skip } })) => {
                    let here = next.first(len);
                    grains.push((self.stored(grain, here, skip), here));
                    end = here.end();
                }
                _ => break,
            }
        }
        Ok(Piece::Compressed(ByteRange::from_bounds(rest.offset(), end)?, grains))
    }

    /// The compressed grain at byte `at` of the file, of which `here` is a part.
    fn stored(&self, at: u64, here: ByteRange, skip: u64) -> StoredGrain {
        StoredGrain { at: Sector(at / SECTOR), lba: Sector((here.offset() - skip) / SECTOR) }
    }

    async fn read_piece(self: &Arc<Self>, piece: Piece, iov: IoVec) -> Result<()> {
        let (run, range) = match piece {
            Piece::Compressed(range, grains) => return self.inflate(range, grains, iov).await,
            Piece::Run(run, range) => (run, range),
        };
        match run.kind {
            Kind::Zero => {
                iov.fill(0, iov.len(), 0);
                Ok(())
            }
            Kind::Unallocated => {
                let offset = self.start + range.offset();
                self.event("read_backing_aio");
                read_node(self.backing.as_ref(), offset, iov).await.map_err(of_backing)
            }
            Kind::Data(at) => {
                self.event("read_aio");
                read_node(Some(&self.file), at, iov).await
            }
            Kind::Compressed { .. } => Err(Error::Invalid),
        }
    }

    /// Reads compressed grains. One of which only a part is wanted is kept, as the next read may want
    /// another part of it.
    async fn inflate(
        &self,
        range: ByteRange,
        grains: Vec<(StoredGrain, ByteRange)>,
        iov: IoVec,
    ) -> Result<()> {
        let reader = self.compressed.as_ref().ok_or(Error::Invalid)?;
        self.event("read_compressed");
        let grain_size = self.geometry.grain_size();
        let mut whole = Vec::new();
        for (grain, here) in grains {
            let iov = iov.slice(to_usize(here.offset() - range.offset()), to_usize(here.len()));
            let skip = to_usize(here.offset() % grain_size);
            let is_whole = here.len() == grain_size || here.end() == self.geometry.len();
            if skip == 0 && is_whole {
                whole.push(Wanted { grain, skip, iov });
                continue;
            }
            let load = || {
                let reader = reader.clone();
                async move { reader.whole(grain).await }.boxed()
            };
            let bytes = match self.grains.peek(grain.at.0) {
                Some(bytes) => bytes,
                None => self.grains.peek_or_load(grain.at.0, load).await?,
            };
            iov.copy_from(0, bytes.get(skip..skip + iov.len()).unwrap_or_default());
        }
        if whole.is_empty() { Ok(()) } else { reader.fill(whole).await }
    }

    /// Whether the tables, here and below, say that all of `range` reads as zeroes. No data is read.
    pub(super) async fn reads_zero(&self, range: ByteRange) -> Result<bool> {
        let mut rest = range.intersect(ByteRange::up_to(self.geometry.len()));
        while !rest.is_empty() {
            let run = self.run(rest).await?;
            let (here, after) = rest.split_at(run.len);
            let zero = match run.kind {
                Kind::Zero => true,
                Kind::Unallocated => self.below_reads_zero(here).await?,
                Kind::Data(_) | Kind::Compressed { .. } => false,
            };
            if !zero {
                return Ok(false);
            }
            rest = after;
        }
        Ok(true)
    }

    /// Whether the backing file reads as zeroes under `range`, as far as can be told from tables.
    pub(super) async fn below_reads_zero(&self, range: ByteRange) -> Result<bool> {
        let Some(backing) = &self.backing else { return Ok(true) };
        let below = range.shifted(self.start)?;
        let mut rest = below.intersect(ByteRange::up_to(backing.len()));
        while !rest.is_empty() {
            let status = backing.block_status_above(None, rest, StatusDetail::Zeroes).await;
            let status = status.map_err(of_backing)?;
            if !status.is_zero() || status.len == 0 {
                return Ok(false);
            }
            rest = rest.split_at(status.len).1;
        }
        Ok(true)
    }
}

/// What an error of the backing file is here: its damage is its own, and told by its own node.
pub(super) fn of_backing(error: Error) -> Error {
    match error {
        Error::Corrupt { .. } => Error::IO,
        other => other,
    }
}

/// Reads from `offset` of `node`; what is beyond its end, or of no node, is zero.
pub(crate) async fn read_node(node: Option<&Node>, offset: u64, iov: IoVec) -> Result<()> {
    let len = iov.len();
    let inside = node.map_or(0, |node| node.len().saturating_sub(offset));
    let stored = to_usize(inside).min(len);
    iov.fill(stored, len - stored, 0);
    match node {
        Some(node) if stored > 0 => {
            let range = ByteRange::new(offset, block_core::range::to_u64(stored))?;
            node.read(range, iov.slice(0, stored)).await
        }
        _ => Ok(()),
    }
}
