//! The disk that is read: one node or several joined, cut into pieces.
//!
//! Invariants: pieces ascend and do not overlap; each starts at a unit and ends at one or at the end
//! of the disk, and is at most `piece_bytes` long; what is in no piece reads as zeroes.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use super::StreamError;
use crate::buf::IoBuf;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::request::status::StatusDetail;

/// Nodes, one after the other, each as long as its whole sectors were when it was added.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    node: Node,
    start: u64,
    len: u64,
}

/// What is known of a part of the disk.
#[derive(Copy, Clone, Debug)]
struct Known {
    end: u64,
    is_zero: bool,
}

/// A part of the disk that has data.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

impl Disk {
    /// Adds a node at the end.
    pub fn push(&mut self, node: Node) {
        let (start, len) = (self.len(), Alignment::SECTOR.round_up(node.len()));
        self.parts.push(Part { node, start, len });
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.start.saturating_add(part.len))
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The alignment that the nodes want of memory.
    pub(super) fn memory_alignment(&self) -> Alignment {
        let wanted = self.parts.iter().map(|part| part.node.limits().opt_mem_alignment);
        wanted.fold(Alignment::PAGE, Alignment::max)
    }

    /// Fills `buf` from `offset` on; what is beyond the end of the disk is left as it is.
    pub(super) async fn read(&self, offset: u64, buf: &IoBuf) -> Result<()> {
        let wanted = ByteRange::new(offset, to_u64(buf.len()))?;
        for part in &self.parts {
            let found = ByteRange::new(part.start, part.len)?.intersect(wanted);
            if found.is_empty() {
                continue;
            }
            let at = to_usize(found.offset() - offset);
            let slice = buf.slice(at, to_usize(found.len()));
            let range = found.relative_to(part.start).ok_or(Error::Invalid)?;
            part.node.read(range, slice.into()).await?;
        }
        Ok(())
    }

    /// What is at `offset`, which is inside of the disk.
    async fn look(&self, offset: u64) -> Result<Known> {
        let part = self.parts.iter().find(|p| (p.start..p.start + p.len).contains(&offset));
        let Some(part) = part else {
            return Ok(Known { end: self.len(), is_zero: true });
        };
        let end = part.start + part.len;
        let inside = part.node.len().min(part.len);
        let rest = match ByteRange::from_bounds(offset - part.start, inside) {
            Ok(rest) if !rest.is_empty() => rest,
            // Beyond the end of the node.
            _ => return Ok(Known { end, is_zero: true }),
        };
        let status = part.node.block_status_above(None, rest, StatusDetail::Zeroes).await?;
        if status.len == 0 {
            // The node became shorter.
            return Ok(Known { end, is_zero: true });
        }
        let found = offset + status.len.min(rest.len());
        // What is behind the node's end in its last sector goes with it.
        let end = if found == part.start + inside { end } else { found };
        Ok(Known { end, is_zero: status.is_zero() })
    }
}

/// Position on the disk.
pub(super) struct Scanner {
    disk: Disk,
    unit: u64,
    piece_bytes: u64,
    offset: u64,
    known: Option<Known>,
    cancel: Cancel,
    /// Nothing more is begun.
    stop: Arc<AtomicBool>,
}

/// Runs of zeroes after which others have their turn.
const RUNS_A_TURN: u32 = 64;

impl Scanner {
    /// At the start, to be stopped by `stop`. `piece_bytes` is a multiple of the unit.
    pub(super) fn new(
        disk: Disk,
        unit: u64,
        piece_bytes: u64,
        cancel: Cancel,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { disk, unit, piece_bytes, offset: 0, known: None, cancel, stop }
    }

    /// The next piece with data; `None` at the end or when it is stopped.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, StreamError> {
        let len = self.disk.len();
        let mut runs = 0;
        loop {
            if self.offset >= len || self.is_stopped() {
                return Ok(None);
            }
            if self.cancel.is_cancelled() {
                return Err(StreamError::Cancelled);
            }
            runs += 1;
            if runs % RUNS_A_TURN == 0 {
                // A sparse disk may have millions, none of which has anything to wait for.
                turn().await;
            }
            match self.zeroes_at(self.offset).await? {
                Some(end) => self.offset = end,
                None => break,
            }
        }
        let start = self.offset;
        let limit = (start - start % self.piece_bytes + self.piece_bytes).min(len);
        let mut end = (start + self.unit).min(limit);
        while end < limit && !self.is_stopped() && self.zeroes_at(end).await?.is_none() {
            let known = self.known.filter(|known| !known.is_zero).map_or(end, |known| known.end);
            let next = known.max(end + 1).next_multiple_of(self.unit);
            end = next.min(limit);
        }
        self.offset = end;
        Ok(Some(Piece { start, end }))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Where the units end that are known to be zero from `offset` on, the start of a unit; `None`
    /// if the one at `offset` is not.
    async fn zeroes_at(&mut self, offset: u64) -> Result<Option<u64>, StreamError> {
        let len = self.disk.len();
        let known = match self.known {
            Some(known) if offset < known.end => known,
            _ => {
                let looked = self.disk.look(offset).await;
                looked.map_err(|error| StreamError::Status { offset, error })?
            }
        };
        self.known = Some(known);
        if !known.is_zero {
            return Ok(None);
        }
        let end = if known.end >= len { len } else { known.end - known.end % self.unit };
        Ok((end > offset).then_some(end))
    }
}

/// Lets the executor look at others.
async fn turn() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
