//! Zero writes: the metadata fast path, a bounded fallback, and cancellation between pieces.
//!
//! The range is cut at the driver's zero alignment (which need not be a power of two) and at
//! `max_pwrite_zeroes`. A piece that the driver answers with `Unsupported` is written from one zero
//! buffer of at most `min(max_transfer, 16 MiB)`, allocated when first needed and used again for
//! every piece of the request. Data afterwards is guaranteed to read as zeroes: this is no discard.
//!
//! Without a fallback the driver gets the whole range at once, if it takes so much: its refusal of a piece
//! would come after others have been zeroed.

use std::sync::Arc;

use crate::buf::{IoBuf, IoVec};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::flags::{RequestFlags, Support};
use crate::limits::{BlockLimits, MAX_BOUNCE};
use crate::node::Node;
use crate::range::{Alignment, ByteRange, MAX_LEN, to_usize};

use super::pad::Padding;
use super::{flush, fragment, write};

/// Longest piece that the driver gets at once where somebody may cancel: 4 GiB.
const MAX_PIECE: u64 = 4 << 30;

/// Flags that a zero write may carry.
const KNOWN: RequestFlags = RequestFlags::FUA
    .union(RequestFlags::MAY_UNMAP)
    .union(RequestFlags::NO_FALLBACK)
    .union(RequestFlags::SERIALISING)
    .union(RequestFlags::WRITE_UNCHANGED)
    .union(RequestFlags::NO_WAIT);

/// Who wants to know how far it got, and may stop it.
pub(super) struct Progress {
    cancel: Option<Cancel>,
    range: ByteRange,
}

impl Progress {
    /// Nobody.
    pub(super) fn untold() -> Self {
        Self { cancel: None, range: ByteRange::default() }
    }

    /// Everything below `offset` is done: tells, and fails if the request shall stop here.
    fn reached(&self, offset: u64) -> Result<()> {
        let Some(cancel) = &self.cancel else { return Ok(()) };
        cancel.set_done(offset - self.range.offset());
        let over = offset >= self.range.end();
        if cancel.is_cancelled() && !over { Err(Error::Cancelled) } else { Ok(()) }
    }
}

pub(super) async fn zeroes(
    node: &Node,
    range: ByteRange,
    flags: RequestFlags,
    cancel: Option<Cancel>,
) -> Result<()> {
    if !KNOWN.contains(flags) {
        return Err(Error::Invalid);
    }
    write::check(node, range, flags)?;
    if range.is_empty() {
        return Ok(());
    }
    check_fallback(node, range, flags)?;
    // Growing by zeroes owns everything behind the end: file systems have lost data where a
    // fallocate beyond the end ran beside writes there.
    let grows = || range.end() > node.len() || write::grows_to_a_ragged_end(node, range);
    let (_ticket, _) = write::begin(node, range, flags, grows).await?;
    write::check(node, range, flags)?;
    // A reopen may have come in between.
    check_fallback(node, range, flags)?;
    let unaligned = !range.is_aligned(node.limits().request_alignment);
    let progress = Progress { cancel, range };
    let result = match progress.reached(range.offset()) {
        Err(cancelled) => return Err(cancelled),
        Ok(()) if unaligned => unaligned_zeroes(node, range, flags, &progress).await,
        Ok(()) => aligned(node, range, flags, &progress).await,
    };
    node.finish_write(range, flags);
    result?;
    let finished = progress.cancel.iter();
    finished.for_each(|cancel| cancel.set_done(range.len()));
    if needs_flush(node, flags) { flush::flush_node(node).await } else { Ok(()) }
}

/// Refuses what the driver cannot do alone, if it has to.
fn check_fallback(node: &Node, range: ByteRange, flags: RequestFlags) -> Result<()> {
    let alone = range.is_aligned(node.limits().request_alignment)
        && node.capabilities().zeroes_no_fallback == Support::Native;
    let forbidden = flags.contains(RequestFlags::NO_FALLBACK);
    if forbidden && !alone { Err(Error::Unsupported) } else { Ok(()) }
}

/// Whether FUA was asked for and some way that the pieces may have gone lacks it.
pub(super) fn needs_flush(node: &Node, flags: RequestFlags) -> bool {
    let capabilities = node.capabilities();
    flags.contains(RequestFlags::FUA)
        && (capabilities.zeroes_fua != Support::Native || capabilities.write_fua != Support::Native)
}

/// Read-modify-write of the blocks that are only partly zeroed, and the whole blocks between them.
async fn unaligned_zeroes(
    node: &Node,
    range: ByteRange,
    flags: RequestFlags,
    progress: &Progress,
) -> Result<()> {
    let len = node.len().max(range.end());
    let ragged = write::grows_to_a_ragged_end(node, range);
    let padding = Padding::new(range, &node.limits())?;
    write::read_blocks(node, &padding).await?;
    padding.zero_in();
    let down = write::driver_flags(node, flags);
    if let Some((block, iov)) = padding.head_block() {
        fragment::write(node, block, &iov, down).await?;
        progress.reached(block.end().min(range.end()))?;
    }
    aligned(node, padding.middle(), flags, progress).await?;
    if let Some((block, iov)) = padding.tail_block() {
        fragment::write(node, block, &iov, down).await?;
    }
    if ragged { write::cut_padding(node, len).await } else { Ok(()) }
}

/// Zeroes whole blocks, piece by piece. Begins and finishes nothing.
pub(super) async fn aligned(
    node: &Node,
    range: ByteRange,
    flags: RequestFlags,
    progress: &Progress,
) -> Result<()> {
    let (limits, capabilities) = (node.limits(), node.capabilities());
    let align = common_multiple(limits.request_alignment, limits.pwrite_zeroes_alignment);
    let heard = if progress.cancel.is_some() { MAX_PIECE } else { MAX_LEN };
    let most = limits.max_pwrite_zeroes.unwrap_or(heard).min(heard);
    let max = longest_piece(most, limits.request_alignment, align);
    let mut zeroes = ZeroBuffer::new(&limits);
    let native = capabilities.write_zeroes == Support::Native;
    let down = driver_flags(node, flags);
    let at_once = flags.contains(RequestFlags::NO_FALLBACK) && range.len() <= most;
    let mut rest = range;
    if flags.contains(RequestFlags::NO_FALLBACK) && !at_once {
        rest = ragged_end_first(node, range, align, down).await?;
    }
    while !rest.is_empty() {
        let len = if at_once { rest.len() } else { next_piece(rest, align, max) };
        let (piece, after) = rest.split_at(len);
        let done = if native {
            Arc::clone(node.driver()).pwrite_zeroes(piece, down).await
        } else {
            Err(Error::Unsupported)
        };
        match done {
            Err(Error::Unsupported) if !flags.contains(RequestFlags::NO_FALLBACK) => {
                let write_flags = write::driver_flags(node, flags);
                zeroes.write(node, piece, write_flags, progress).await?;
            }
            done => {
                done?;
                progress.reached(piece.end())?;
            }
        }
        rest = after;
    }
    Ok(())
}

/// Without a fallback, a refusal must come before anything has changed, though it takes several calls.
/// What a driver refuses then is what is no multiple of its alignment: so such an end goes first, and a
/// range that also has such a start is refused here. Gives the rest of the range.
async fn ragged_end_first(
    node: &Node,
    range: ByteRange,
    align: Alignment,
    down: RequestFlags,
) -> Result<ByteRange> {
    let whole = align.round_down(range.end());
    let (rest, tail) = range.split_at(whole.saturating_sub(range.offset()));
    if rest.is_empty() || tail.is_empty() {
        return Ok(range);
    }
    if !align.is_aligned(rest.offset()) {
        return Err(Error::Unsupported);
    }
    Arc::clone(node.driver()).pwrite_zeroes(tail, down).await?;
    Ok(rest)
}

/// `max` in multiples of `align`, or, where it is less than one of these, of the request alignment.
pub(super) fn longest_piece(max: u64, request: Alignment, align: Alignment) -> u64 {
    match align.round_down(max) {
        0 => request.round_down(max).max(request.bytes()),
        whole => whole,
    }
}

/// Length of the first piece: up to the alignment, then whole multiples of it, then the rest; never
/// more than `max`.
pub(super) fn next_piece(rest: ByteRange, align: Alignment, max: u64) -> u64 {
    let misaligned = rest.offset() % align.bytes();
    let whole = align.round_down(rest.len());
    let len = if misaligned > 0 {
        rest.len().min(align.bytes() - misaligned)
    } else if whole == 0 {
        rest.len()
    } else {
        whole
    };
    len.min(max)
}

/// The flags of a zero write that the driver declared that it takes.
fn driver_flags(node: &Node, flags: RequestFlags) -> RequestFlags {
    let capabilities = node.capabilities();
    let mut down = flags & RequestFlags::WRITE_UNCHANGED;
    if capabilities.zeroes_fua == Support::Native {
        down |= flags & RequestFlags::FUA;
    }
    if node.options().unmap && capabilities.zeroes_may_unmap == Support::Native {
        down |= flags & RequestFlags::MAY_UNMAP;
    }
    if capabilities.zeroes_no_fallback == Support::Native {
        down |= flags & RequestFlags::NO_FALLBACK;
    }
    down
}

/// The smallest multiple of both, or the first alone if that is too large to be of use.
pub(super) fn common_multiple(a: Alignment, b: Option<Alignment>) -> Alignment {
    let Some(b) = b else { return a };
    let (mut x, mut y) = (a.bytes(), b.bytes());
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a.bytes() / x).checked_mul(b.bytes()).and_then(Alignment::new).unwrap_or(a)
}

/// The one buffer of the fallback.
struct ZeroBuffer {
    size: u64,
    align: Alignment,
    buf: Option<IoBuf>,
}

impl ZeroBuffer {
    fn new(limits: &BlockLimits) -> Self {
        let size = limits.max_transfer.unwrap_or(MAX_LEN).min(MAX_BOUNCE);
        let block = limits.request_alignment;
        let size = block.round_down(size).max(block.bytes());
        Self { size, align: limits.opt_mem_alignment, buf: None }
    }

    /// At least `len` zero bytes, `len <= size`.
    fn take(&mut self, len: u64) -> Result<IoBuf> {
        match &self.buf {
            Some(buf) if buf.len() >= to_usize(len) => Ok(buf.clone()),
            _ => {
                let buf = IoBuf::zeroed(to_usize(len), self.align)?;
                self.buf = Some(buf.clone());
                Ok(buf)
            }
        }
    }

    /// Writes zeroes to `range`, hearing a cancel between the writes.
    async fn write(
        &mut self,
        node: &Node,
        range: ByteRange,
        flags: RequestFlags,
        progress: &Progress,
    ) -> Result<()> {
        let mut rest = range;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.size);
            let buf = self.take(piece.len())?;
            let iov = IoVec::from(buf.slice(0, to_usize(piece.len())));
            fragment::write(node, piece, &iov, flags).await?;
            progress.reached(piece.end())?;
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_multiple_need_not_be_a_power_of_two() {
        let align = |n| Alignment::new(n).unwrap();
        assert_eq!(common_multiple(align(512), Some(align(1536))), align(1536));
        assert_eq!(common_multiple(align(4096), Some(align(1536))), align(12288));
        assert_eq!(common_multiple(align(512), None), align(512));
        // 2^29 and an odd number near 2^29 have no common multiple that anybody aligns to.
        assert_eq!(common_multiple(align(1 << 29), Some(align((1 << 29) - 1))), align(1 << 29));
    }

    #[test]
    fn pieces_cover_the_range_and_are_aligned_in_the_middle() {
        let align = Alignment::new(1536).unwrap();
        let mut rest = ByteRange::new(512, 10_240).unwrap();
        let mut lens = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(next_piece(rest, align, 3072));
            lens.push(piece.len());
            rest = after;
        }
        assert_eq!(lens, [1024, 3072, 3072, 3072]);
    }
}
