//! Cuts the sources into pieces by asking them how they are stored.
//!
//! Invariants: pieces follow each other without gap from the start of the target to the end of the
//! last source; pieces of data are at most `piece_bytes` long (plain ones shorter) and end at a multiple of it, at the end
//! of their source, or where something else begins; every boundary inside of a source is a multiple of
//! the grain (counted in the target), for which data grows and everything else shrinks.

use crate::range::{ByteRange, MAX_LEN};
use crate::request::status::{StatusDetail, StatusFlags};

use super::{CopyError, CopySource, Layers, OnReadError, PLAIN_PIECE_BYTES, Plan, Sparseness};

/// Longest piece of zeroes: bounds how long a cancel waits where the target has to write them out.
const ZERO_PIECE_BYTES: u64 = 256 << 20;

/// A part of the target and where its contents come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Index of the source.
    pub(super) source_index: usize,
    /// Where in the source.
    pub(super) from: ByteRange,
    /// Where in the target; as long.
    pub(super) to: ByteRange,
    /// What the source says of it.
    pub(super) kind: Kind,
}

/// What a source says of a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// It has to be read.
    Data,
    /// It reads as zeroes.
    Zero,
    /// No layer that is copied holds it.
    Below,
}

/// What was learned about the bytes at the scanner's position.
#[derive(Clone, Copy)]
struct Known {
    /// Up to here, counted in the source.
    end: u64,
    kind: Kind,
    /// Reading it takes inflating.
    is_compressed: bool,
}

/// Position in the sources.
pub(super) struct Scanner {
    sources: Vec<CopySource>,
    plan: Plan,
    index: usize,
    /// Position in the source `index`.
    offset: u64,
    /// Where that source starts in the target.
    base: u64,
    known: Option<Known>,
}

impl Scanner {
    pub(super) fn new(sources: Vec<CopySource>, plan: Plan) -> Self {
        Self { sources, plan, index: 0, offset: 0, base: 0, known: None }
    }

    /// The next piece, and the scanner behind it; `None` at the end.
    pub(super) async fn next(mut self) -> Result<Option<(Piece, Self)>, CopyError> {
        let Some(len) = self.skip_finished() else {
            return Ok(None);
        };
        let start = self.offset;
        let Known { mut end, kind, is_compressed } = self.look(start, len).await?;
        let longest = self.longest(kind, is_compressed);
        let limit = self.cut(start, len, longest);
        // Neighbours of one kind become one piece: a fragmented image reports many small ones.
        while end < limit {
            let next = self.look(end, len).await?;
            if next.kind != kind {
                break;
            }
            end = next.end;
        }
        let end = end.min(limit);
        self.offset = end;
        let (Ok(from), Ok(to)) = (
            ByteRange::from_bounds(start, end),
            ByteRange::from_bounds(self.base + start, self.base + end),
        ) else {
            return Err(CopyError::Option {
                what: "length of all sources",
                min: 0,
                max: MAX_LEN,
                value: self.base + end,
            });
        };
        let piece = Piece { source_index: self.index, from, to, kind };
        Ok(Some((piece, self)))
    }

    /// Moves on to the next source with bytes left and gives its length.
    fn skip_finished(&mut self) -> Option<u64> {
        loop {
            let len = self.sources.get(self.index)?.len;
            if self.offset < len {
                return Some(len);
            }
            self.base += len;
            self.offset = 0;
            self.index += 1;
            self.known = None;
        }
    }

    fn longest(&self, kind: Kind, is_compressed: bool) -> u64 {
        match kind {
            Kind::Below => ZERO_PIECE_BYTES,
            // Fully allocated targets get their zeroes from a buffer like any data.
            Kind::Zero if self.plan.options.sparseness != Sparseness::Full => ZERO_PIECE_BYTES,
            Kind::Data if is_compressed => self.plan.piece_bytes,
            _ => self.plan.piece_bytes.min(PLAIN_PIECE_BYTES),
        }
    }

    /// Where a piece that starts at `start` ends at the latest: at a multiple of `longest` in the
    /// target or at the end of the source.
    fn cut(&self, start: u64, len: u64, longest: u64) -> u64 {
        let at = self.base + start;
        let room = longest - at % longest;
        len.min(start + room)
    }

    /// What is at `offset` of the source, whose length is `len`.
    async fn look(&mut self, offset: u64, len: u64) -> Result<Known, CopyError> {
        match self.known {
            Some(known) if offset < known.end => return Ok(known),
            _ => {}
        }
        let asked = self.ask(offset, len).await?;
        // In the target's grain: whole blocks are of one kind, and data wins.
        let grain = self.plan.grain;
        let end = self.base + asked.end;
        let known = if asked.end >= len {
            Known { end: len, ..asked }
        } else if asked.kind == Kind::Data {
            let up = grain.round_up(end) - self.base;
            Known { end: up.min(len), ..asked }
        } else {
            match grain.round_down(end).checked_sub(self.base) {
                Some(down) if down > offset => Known { end: down, ..asked },
                _ => {
                    let up = grain.round_up(self.base + offset + 1) - self.base;
                    Known { end: up.min(len), kind: Kind::Data, ..asked }
                }
            }
        };
        self.known = Some(known);
        Ok(known)
    }

    /// What the source says of the bytes at `offset`.
    async fn ask(&self, offset: u64, len: u64) -> Result<Known, CopyError> {
        let to = |end, kind| Ok(Known { end, kind, is_compressed: false });
        let Some(source) = self.sources.get(self.index) else {
            return to(len, Kind::Zero);
        };
        let inside = ByteRange::up_to(source.node.len().min(len));
        let range = match ByteRange::from_bounds(offset, inside.end()) {
            Ok(range) if !range.is_empty() => range,
            // Beyond the end of the node.
            _ => return to(len, Kind::Zero),
        };
        let base = match &source.layers {
            Layers::All => None,
            Layers::Above(base) => Some(base),
        };
        let asked = source.node.block_status_above(base, range, StatusDetail::Zeroes).await;
        let status = match asked {
            Ok(status) => status,
            // What cannot be told is read.
            Err(_) if self.plan.options.on_read_error == OnReadError::Salvage => {
                return to(range.end().min(offset.saturating_add(PLAIN_PIECE_BYTES)), Kind::Data);
            }
            Err(error) => {
                return Err(CopyError::Status { source_index: self.index, offset, error });
            }
        };
        if status.len == 0 {
            // The node became shorter.
            return to(len, Kind::Zero);
        }
        let held = StatusFlags::DATA | StatusFlags::ZERO | StatusFlags::ALLOCATED;
        let kind = if status.is_zero() {
            Kind::Zero
        } else if base.is_some() && !status.flags.intersects(held) {
            Kind::Below
        } else {
            Kind::Data
        };
        Ok(Known {
            end: offset + status.len.min(range.len()),
            kind,
            is_compressed: status.flags.contains(StatusFlags::COMPRESSED),
        })
    }
}
