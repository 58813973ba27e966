//! Padding: from the range a caller asks for to the blocks a driver takes, and back.
//!
//! Whole blocks go to and from the caller's memory; only the first and the last block pass through a
//! bounce buffer. Invariant: `aligned == range.expand(align)`, and `head`/`tail` hold one block each.

use crate::buf::{IoBuf, IoVec};
use crate::error::Result;
use crate::limits::BlockLimits;
use crate::range::{Alignment, ByteRange, to_usize};

/// A request that does not start or end at a block's border, with the blocks it needs there.
pub(crate) struct Padding {
    range: ByteRange,
    aligned: ByteRange,
    align: Alignment,
    /// The block in which the range starts, if it does not start at its border.
    head: Option<IoBuf>,
    /// The block in which the range ends, if not at its border and not in the block of `head`.
    tail: Option<IoBuf>,
}

/// For which ends of the range a read of bounce blocks is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Edges {
    /// What is before it in the first block.
    Head,
    /// What is behind it in the last block.
    Tail,
    /// Both.
    Both,
}

impl Edges {
    /// The events before the read.
    pub(crate) fn before(self) -> &'static [&'static str] {
        match self {
            Self::Head => &["pwritev_rmw_head"],
            Self::Tail => &["pwritev_rmw_tail"],
            Self::Both => &["pwritev_rmw_head", "pwritev_rmw_tail"],
        }
    }

    /// The events after the read.
    pub(crate) fn after(self) -> &'static [&'static str] {
        match self {
            Self::Head => &["pwritev_rmw_after_head"],
            Self::Tail => &["pwritev_rmw_after_tail"],
            Self::Both => &["pwritev_rmw_after_head", "pwritev_rmw_after_tail"],
        }
    }
}

impl Padding {
    /// Bounce buffers for `range`, which must not be aligned or empty.
    pub(crate) fn new(range: ByteRange, limits: &BlockLimits) -> Result<Self> {
        let align = limits.request_alignment;
        let aligned = range.expand(align);
        let block = || IoBuf::zeroed(to_usize(align.bytes()), limits.opt_mem_alignment);
        let one_block = aligned.len() == align.bytes();
        let head = (one_block || range.offset() != aligned.offset()).then(block).transpose()?;
        let tail = (!one_block && range.end() != aligned.end()).then(block).transpose()?;
        Ok(Self { range, aligned, align, head, tail })
    }

    /// The blocks that hold the range.
    pub(crate) fn aligned(&self) -> ByteRange {
        self.aligned
    }

    /// The range of the block in `head`, and the block.
    fn head(&self) -> Option<(ByteRange, &IoBuf)> {
        Some((self.aligned.first(self.align.bytes()), self.head.as_ref()?))
    }

    /// The range of the block in `tail`, and the block.
    fn tail(&self) -> Option<(ByteRange, &IoBuf)> {
        let start = self.aligned.len() - self.align.bytes();
        Some((self.aligned.split_at(start).1, self.tail.as_ref()?))
    }

    /// What must be read before the blocks can be written: one request where both blocks touch.
    pub(crate) fn reads(&self) -> impl Iterator<Item = (Edges, ByteRange, IoVec)> {
        let with = |edges| move |(range, iov)| (edges, range, iov);
        let (first, second) = match (self.head(), self.tail()) {
            (Some((head, a)), Some((tail, b))) if head.end() == tail.offset() => {
                let both = [a.clone(), b.clone()].into_iter().collect();
                (Some((Edges::Both, self.aligned, both)), None)
            }
            (Some((block, _)), None) => {
                let edges = match (block.offset() < self.range.offset(), self.range.end()) {
                    (true, end) if end < block.end() => Edges::Both,
                    (true, _) => Edges::Head,
                    (false, _) => Edges::Tail,
                };
                (self.head_block().map(with(edges)), None)
            }
            _ => {
                (self.head_block().map(with(Edges::Head)), self.tail_block().map(with(Edges::Tail)))
            }
        };
        first.into_iter().chain(second)
    }

    /// The memory of the padded request: bounce blocks around the caller's whole blocks.
    pub(crate) fn splice(&self, iov: &IoVec) -> IoVec {
        let mut padded = IoVec::new();
        padded.extend(self.head.clone());
        let middle = self.middle();
        padded
            .extend(iov.slice(self.in_iov(middle), to_usize(middle.len())).bufs().iter().cloned());
        padded.extend(self.tail.clone());
        padded
    }

    /// After a read: the bounced bytes go to the caller.
    pub(crate) fn copy_out(&self, iov: &IoVec) {
        self.for_each_bounced(|block, at, within, len| {
            let mut bytes = vec![0; len];
            block.copy_to(within, &mut bytes);
            iov.copy_from(at, &bytes);
        });
    }

    /// Before a write: the caller's bytes go over what was read.
    pub(crate) fn copy_in(&self, iov: &IoVec) {
        self.for_each_bounced(|block, at, within, len| {
            let mut bytes = vec![0; len];
            iov.copy_to(at, &mut bytes);
            block.copy_from(within, &bytes);
        });
    }

    /// Before a zero write: zeroes go over what was read.
    pub(crate) fn zero_in(&self) {
        self.for_each_bounced(|block, _, within, len| block.slice(within, len).fill(0));
    }

    /// The first block and its memory, if it goes through a bounce buffer.
    pub(crate) fn head_block(&self) -> Option<(ByteRange, IoVec)> {
        self.head().map(|(range, block)| (range, block.clone().into()))
    }

    /// The last block and its memory, if it goes through a bounce buffer of its own.
    pub(crate) fn tail_block(&self) -> Option<(ByteRange, IoVec)> {
        self.tail().map(|(range, block)| (range, block.clone().into()))
    }

    /// The whole blocks that do not go through a bounce buffer.
    pub(crate) fn middle(&self) -> ByteRange {
        let block = self.align.bytes();
        let head = if self.head.is_some() { block } else { 0 };
        let tail = if self.tail.is_some() { block } else { 0 };
        self.aligned.split_at(head).1.first(self.aligned.len() - head - tail)
    }

    /// Where the first byte of `part` stands in the caller's memory.
    fn in_iov(&self, part: ByteRange) -> usize {
        to_usize(part.offset().saturating_sub(self.range.offset()).min(self.range.len()))
    }

    /// `visit(block, offset in the caller's memory, offset in the block, length)`.
    fn for_each_bounced(&self, mut visit: impl FnMut(&IoBuf, usize, usize, usize)) {
        for (range, block) in self.head().into_iter().chain(self.tail()) {
            let part = range.intersect(self.range);
            let within = to_usize(part.offset() - range.offset());
            visit(block, self.in_iov(part), within, to_usize(part.len()));
        }
    }
}
