//! Cuts the sources into pieces by asking them how they are stored.
//!
//! Invariants: pieces follow each other without gap from the start of the target to the end of the
//! last source; pieces of data are at most `piece_bytes` long (plain ones shorter) and end at a multiple
//! of it, at the end of their source, or where something else begins; every boundary inside of a source
//! is a multiple of the grain (counted in the target), for which data grows and everything else shrinks.
//! For compressed writes every boundary but the last is a multiple of the grain: what two or more
//! sources share of one is a piece of its own, and data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Where in the source. Shorter than `to` in a cluster that sources share: the rest stands at the
    /// start of those that follow.
    pub(super) from: ByteRange,
    /// Where in the target.
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
    /// Length of all sources.
    total: u64,
    index: usize,
    /// Position in the source `index`.
    offset: u64,
    /// Where that source starts in the target.
    base: u64,
    known: Option<Known>,
    cut: Cut,
    /// Nothing more is begun.
    stop: Arc<AtomicBool>,
}

/// How long pieces may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// As long as they are copied.
    ToCopy,
    /// As long as what is stored alike, within [`COUNTED_BYTES`].
    ToCount,
}

/// Longest piece that is only counted.
const COUNTED_BYTES: u64 = 64 << 30;

impl Scanner {
    /// At the start, to be stopped by `stop`.
    pub(super) fn new(sources: Vec<CopySource>, plan: Plan, stop: Arc<AtomicBool>) -> Self {
        let total = sources.iter().map(|source| source.len).sum();
        let cut = Cut::ToCopy;
        Self { sources, plan, total, index: 0, offset: 0, base: 0, known: None, cut, stop }
    }

    /// A scanner whose pieces are to be counted, not copied, and are as long as may be.
    pub(super) fn to_count(sources: Vec<CopySource>, plan: Plan) -> Self {
        Self { cut: Cut::ToCount, ..Self::new(sources, plan, Arc::default()) }
    }

    /// The next piece, and the scanner behind it; `None` at the end or when it is stopped.
    pub(super) async fn next(mut self) -> Result<Option<(Piece, Self)>, CopyError> {
        let Some(len) = self.skip_finished().filter(|_| !self.is_stopped()) else {
            return Ok(None);
        };
        let start = self.offset;
        let own = self.own_end(len);
        if start >= own {
            let piece = self.shared(len)?;
            return Ok(Some((piece, self)));
        }
        let Known { mut end, kind, is_compressed } = self.look(start, len).await?;
        let longest = self.longest(kind, is_compressed);
        let limit = self.cut(start, own, longest);
        // Neighbours of one kind become one piece: a fragmented image reports many small ones.
        while end < limit && !self.is_stopped() {
            let next = self.look(end, len).await?;
            if next.kind != kind {
                break;
            }
            end = next.end;
        }
        let end = end.min(limit);
        self.offset = end;
        let piece = self.piece(start, end, end, kind)?;
        Ok(Some((piece, self)))
    }

    /// The piece of the source from `start` to `end` that fills the target up to `to_end`, counted like
    /// the others.
    fn piece(&self, start: u64, end: u64, to_end: u64, kind: Kind) -> Result<Piece, CopyError> {
        let from = ByteRange::from_bounds(start, end);
        let to = ByteRange::from_bounds(self.base + start, self.base + to_end);
        match (from, to) {
            (Ok(from), Ok(to)) => Ok(Piece { source_index: self.index, from, to, kind }),
            _ => Err(CopyError::Option {
                what: "length of all sources",
                min: 0,
                max: MAX_LEN,
                value: self.base + to_end,
            }),
        }
    }

    /// Up to where the source, whose length is `len`, fills the target without sharing a grain with the
    /// next one, where that matters.
    fn own_end(&self, len: u64) -> u64 {
        let end = self.base + len;
        if self.plan.cluster.is_none() || end >= self.total {
            return len;
        }
        self.plan.grain.round_down(end).saturating_sub(self.base)
    }

    /// The grain at the position, which the source, whose length is `len`, shares with those that follow.
    fn shared(&mut self, len: u64) -> Result<Piece, CopyError> {
        let start = self.offset;
        let end = self.plan.grain.round_up(self.base + start + 1).min(self.total) - self.base;
        let piece = self.piece(start, len, end, Kind::Data)?;
        // Beyond the end of the source: the next call finds out in which one.
        self.offset = end;
        self.known = None;
        Ok(piece)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Moves on to the next source with bytes left and gives its length.
    fn skip_finished(&mut self) -> Option<u64> {
        loop {
            let len = self.sources.get(self.index)?.len;
            if self.offset < len {
                return Some(len);
            }
            self.base += len;
            self.offset -= len;
            self.index += 1;
            self.known = None;
        }
    }

    fn longest(&self, kind: Kind, is_compressed: bool) -> u64 {
        let zeroes = self.plan.grain.round_up(ZERO_PIECE_BYTES);
        match kind {
            _ if self.cut == Cut::ToCount => self.plan.grain.round_up(COUNTED_BYTES),
            Kind::Below => zeroes,
            // Fully allocated targets get their zeroes from a buffer like any data.
            Kind::Zero if self.plan.options.sparseness != Sparseness::Full => zeroes,
            // Inflating or deflating: there is something to compute meanwhile.
            _ if is_compressed || self.plan.cluster.is_some() => self.plan.piece_bytes,
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
