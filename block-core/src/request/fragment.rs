//! Fragments: aligned requests cut to what the driver takes, with bounce buffers where the caller's
//! memory does not suit it. Calls the driver; tracks nothing.

use std::sync::Arc;

use crate::buf::{IoBuf, IoVec};
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::limits::{BlockLimits, MAX_BOUNCE};
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};

/// Whether the driver takes this memory as it is.
pub(crate) fn suits(limits: &BlockLimits, iov: &IoVec) -> bool {
    let memory = limits.min_mem_alignment;
    // Buffers of odd lengths only matter to hardware that also minds their addresses.
    let length = if memory == Alignment::ONE { Alignment::ONE } else { limits.request_alignment };
    iov.bufs().len() <= limits.max_iov && iov.is_aligned(memory, length)
}

/// Whether the driver takes a read or write as it is: nothing to pad, to split or to bounce.
pub(crate) fn fits(limits: &BlockLimits, range: ByteRange, iov: &IoVec) -> bool {
    !range.is_empty()
        && to_u64(iov.len()) == range.len()
        && range.is_aligned(limits.request_alignment)
        && limits.max_transfer.is_none_or(|max| range.len() <= max)
        && suits(limits, iov)
}

/// The pieces of an aligned request and their memory.
fn pieces<'a>(
    range: ByteRange,
    iov: &'a IoVec,
    max: u64,
) -> impl Iterator<Item = (ByteRange, IoVec)> + 'a {
    let mut rest = range;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let done = rest.offset() - range.offset();
        let (piece, tail) = rest.split_at(max);
        rest = tail;
        Some((piece, iov.slice(to_usize(done), to_usize(piece.len()))))
    })
}

/// Reads aligned blocks.
pub(crate) async fn read(node: &Node, range: ByteRange, iov: &IoVec) -> Result<()> {
    let limits = node.limits();
    let bounce = bounce_size(&limits);
    for (piece, part) in pieces(range, iov, limits.max_transfer.unwrap_or(u64::MAX)) {
        if suits(&limits, &part) {
            Arc::clone(node.driver()).preadv(piece, part).await?;
            continue;
        }
        for (piece, part) in pieces(piece, &part, bounce) {
            let buf = IoBuf::zeroed(to_usize(piece.len()), limits.opt_mem_alignment)?;
            Arc::clone(node.driver()).preadv(piece, buf.clone().into()).await?;
            copy_across(&buf, &part);
        }
    }
    Ok(())
}

/// Writes aligned blocks. The flags are the driver's: what it lacks is the caller's business.
pub(crate) async fn write(
    node: &Node,
    range: ByteRange,
    iov: &IoVec,
    flags: RequestFlags,
) -> Result<()> {
    let limits = node.limits();
    let bounce = bounce_size(&limits);
    for (piece, part) in pieces(range, iov, limits.max_transfer.unwrap_or(u64::MAX)) {
        if suits(&limits, &part) {
            Arc::clone(node.driver()).pwritev(piece, part, flags).await?;
            continue;
        }
        if flags.contains(RequestFlags::NO_FALLBACK) {
            return Err(Error::Unsupported);
        }
        for (piece, part) in pieces(piece, &part, bounce) {
            let buf = IoBuf::zeroed(to_usize(piece.len()), limits.opt_mem_alignment)?;
            copy_into(&part, &buf);
            Arc::clone(node.driver()).pwritev(piece, buf.into(), flags).await?;
        }
    }
    Ok(())
}

fn bounce_size(limits: &BlockLimits) -> u64 {
    limits.request_alignment.round_down(MAX_BOUNCE).max(limits.request_alignment.bytes())
}

/// Copies a bounce buffer to the caller, a page at a time on the stack.
fn copy_across(from: &IoBuf, to: &IoVec) {
    let mut page = [0; 4096];
    let mut done = 0;
    while done < from.len() {
        let n = page.len().min(from.len() - done);
        from.copy_to(done, &mut page[..n]);
        to.copy_from(done, &page[..n]);
        done += n;
    }
}

/// Copies the caller's memory to a bounce buffer.
fn copy_into(from: &IoVec, to: &IoBuf) {
    let mut page = [0; 4096];
    let mut done = 0;
    while done < to.len() {
        let n = page.len().min(to.len() - done);
        from.copy_to(done, &mut page[..n]);
        to.copy_from(done, &page[..n]);
        done += n;
    }
}
