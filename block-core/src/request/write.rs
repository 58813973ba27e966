//! Writes: padding by read-modify-write, zero detection, FUA.

use std::sync::Arc;

use crate::buf::IoVec;
use crate::driver::{Exactness, Prealloc};
use crate::error::{Error, Result};
use crate::flags::{RequestFlags, Support};
use crate::limits::{BlockLimits, IOV_MAX};
use crate::node::{DetectZeroes, Node};
use crate::range::{ByteRange, MAX_LEN, to_u64};

use super::fragment;
use super::pad::Padding;
use super::tracked::{Claim, Place, Ticket};
use super::{flush, zeroes};

/// Flags that a write may carry.
const KNOWN: RequestFlags = RequestFlags::FUA
    .union(RequestFlags::NO_FALLBACK)
    .union(RequestFlags::SERIALISING)
    .union(RequestFlags::WRITE_UNCHANGED)
    .union(RequestFlags::COMPRESSED)
    .union(RequestFlags::NO_WAIT);

/// A place among the tracked requests, if the driver takes the write as it is.
pub(super) fn fast(
    node: &Node,
    range: ByteRange,
    iov: &IoVec,
    flags: RequestFlags,
) -> Option<Place> {
    let plain = (flags - RequestFlags::FUA).is_empty();
    if !plain || node.options().detect_zeroes != DetectZeroes::Off {
        return None;
    }
    let place = node.tracker().try_enter(Claim::shared(range))?;
    // Looked at from the place: a truncate is serialising, and a reopen drains.
    let facts = node.facts();
    let native_fua = facts.capabilities.write_fua == Support::Native;
    let fits = (flags.is_empty() || native_fua) && fragment::fits(&facts.limits, range, iov);
    if fits && range.end() <= node.len() && !node.is_read_only() {
        return Some(place);
    }
    node.tracker().end(&place);
    None
}

impl Node {
    /// Writes `iov` to `range` within this call, if that takes no waiting: see
    /// [`BlockDriver::write_now`](crate::BlockDriver::write_now). `None`: send a [`Node::write`].
    pub fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let fits = self.options().detect_zeroes == DetectZeroes::Off
            && to_u64(iov.len()) == range.len()
            && iov.bufs().len() <= IOV_MAX;
        if !fits {
            return None;
        }
        let _inline = self.tracker().try_inline()?;
        // Looked at once it is counted: a truncate is serialising, and a reopen drains.
        if !self.may_go_inline(range) || range.end() > self.len() || self.is_read_only() {
            return None;
        }
        let written = self.driver().write_now(range, iov)?;
        self.finish_write(range, RequestFlags::empty());
        Some(written)
    }
}

/// Step 1 of everything that writes to `range`.
pub(super) fn check(node: &Node, range: ByteRange, flags: RequestFlags) -> Result<()> {
    let unchanged = flags.contains(RequestFlags::WRITE_UNCHANGED) && !node.is_corrupt();
    if node.is_read_only() && !unchanged {
        return Err(Error::ReadOnly);
    }
    if range.end() > node.len() && !node.capabilities().grows_on_write {
        return Err(Error::OutOfRange { range, len: node.len() });
    }
    Ok(())
}

pub(super) async fn write(
    node: &Node,
    range: ByteRange,
    iov: IoVec,
    flags: RequestFlags,
) -> Result<()> {
    if to_u64(iov.len()) != range.len() || !KNOWN.contains(flags) {
        return Err(Error::Invalid);
    }
    check(node, range, flags)?;
    Way::of(node, range, flags)?;
    if range.is_empty() {
        return Ok(());
    }
    if flags.contains(RequestFlags::COMPRESSED) {
        check_compressed(&node.limits(), range, node.len())?;
    }
    // A growing write that may have to cut off its own padding owns everything behind it, and so does
    // one that may become a growing zero write.
    let detects = node.options().detect_zeroes != DetectZeroes::Off;
    let grows = || grows_to_a_ragged_end(node, range) || (detects && range.end() > node.len());
    let (_ticket, ragged) = begin(node, range, flags, grows).await?;
    check(node, range, flags)?;
    // Another one than before if the node was reopened meanwhile.
    let Way { unaligned, emulate_fua } = Way::of(node, range, flags)?;
    let detected = is_detected_zero(node, &iov, unaligned);
    let result = if detected {
        let may_unmap = match node.options().detect_zeroes {
            DetectZeroes::Unmap => RequestFlags::MAY_UNMAP,
            _ => RequestFlags::empty(),
        };
        let flags = (flags & (RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED)) | may_unmap;
        zeroes::aligned(node, range, flags, &zeroes::Progress::untold()).await
    } else if unaligned {
        padded(node, range, &iov, flags, ragged).await
    } else {
        blocks(node, range, &iov, flags).await
    };
    node.finish_write(range, flags);
    result?;
    let emulate_fua = emulate_fua || (detected && zeroes::needs_flush(node, flags));
    if emulate_fua { flush::flush_node(node).await } else { Ok(()) }
}

/// What there is to do that the driver does not.
struct Way {
    unaligned: bool,
    emulate_fua: bool,
}

impl Way {
    /// Fails if the request forbids it, or if it cannot be done.
    fn of(node: &Node, range: ByteRange, flags: RequestFlags) -> Result<Self> {
        let (limits, capabilities) = (node.limits(), node.capabilities());
        let unaligned = !range.is_aligned(limits.request_alignment);
        let emulate_fua =
            flags.contains(RequestFlags::FUA) && capabilities.write_fua != Support::Native;
        let forbidden = flags.contains(RequestFlags::NO_FALLBACK) && (unaligned || emulate_fua);
        let compressed = flags.contains(RequestFlags::COMPRESSED);
        if forbidden || (compressed && capabilities.compressed_write != Support::Native) {
            return Err(Error::Unsupported);
        }
        Ok(Self { unaligned, emulate_fua })
    }
}

/// Whole clusters only, the last one of the disk as far as it goes: what is compressed is a cluster.
fn check_compressed(limits: &BlockLimits, range: ByteRange, len: u64) -> Result<()> {
    let cluster = limits.compressed_write_alignment.unwrap_or(limits.request_alignment);
    let whole = ByteRange::from_bounds(range.offset(), cluster.round_up(range.end()));
    match whole {
        Ok(whole) if range.end() == len && whole.is_aligned(cluster) => Ok(()),
        _ if range.is_aligned(cluster) => Ok(()),
        _ => Err(Error::Invalid),
    }
}

/// Step 3 of what writes to `range`: a ticket, and whether `grows` is true under it. A request that
/// grows the disk claims everything to the end.
///
/// The length may change while the request waits, or the alignment by a reopen, and a claim never does: if
/// the request turns out to grow, or to be cut at other places, it gives its ticket back and queues again
/// as a younger one, with the right claim.
pub(super) async fn begin(
    node: &Node,
    range: ByteRange,
    flags: RequestFlags,
    grows: impl Fn() -> bool,
) -> Result<(Ticket, bool)> {
    loop {
        let align = node.limits().request_alignment;
        let serialising = !range.is_aligned(align) || flags.contains(RequestFlags::SERIALISING);
        let claims_end = grows();
        let claim = if claims_end {
            Claim::serialising(to_the_end(range, node))
        } else {
            Claim { range: range.expand(align), serialising }
        };
        let ticket = node.begin(claim, flags).await?;
        let grows = grows();
        if align == node.limits().request_alignment && (claims_end || !grows) {
            return Ok((ticket, grows));
        }
    }
}

/// Writes whole blocks; a FUA that the driver lacks is left to the caller's flush.
async fn blocks(node: &Node, range: ByteRange, iov: &IoVec, flags: RequestFlags) -> Result<()> {
    fragment::write(node, range, iov, driver_flags(node, flags)).await
}

/// The flags that the driver declared that it takes.
pub(super) fn driver_flags(node: &Node, flags: RequestFlags) -> RequestFlags {
    let mut down = flags & (RequestFlags::COMPRESSED | RequestFlags::WRITE_UNCHANGED);
    if node.capabilities().write_fua == Support::Native {
        down |= flags & RequestFlags::FUA;
    }
    down
}

/// Read-modify-write. A read that fails fails the write, before anything has changed.
async fn padded(
    node: &Node,
    range: ByteRange,
    iov: &IoVec,
    flags: RequestFlags,
    ragged: bool,
) -> Result<()> {
    let padding = Padding::new(range, &node.limits())?;
    read_blocks(node, &padding).await?;
    padding.copy_in(iov);
    let len = node.len().max(range.end());
    blocks(node, padding.aligned(), &padding.splice(iov), flags).await?;
    if ragged { cut_padding(node, len).await } else { Ok(()) }
}

/// Fills the bounce blocks with what the disk holds there (zeroes beyond its end).
pub(super) async fn read_blocks(node: &Node, padding: &Padding) -> Result<()> {
    let end = node.limits().request_alignment.round_up(node.len());
    let driver = node.driver();
    for (edges, range, iov) in padding.reads() {
        edges.before().iter().for_each(|event| driver.event(event));
        let inside = range.intersect(ByteRange::up_to(end));
        let part = iov.slice(0, crate::range::to_usize(inside.len()));
        fragment::read(node, inside, &part).await?;
        edges.after().iter().for_each(|event| driver.event(event));
    }
    Ok(())
}

/// Whether padding a write to `range` would leave the disk longer than the write says.
pub(super) fn grows_to_a_ragged_end(node: &Node, range: ByteRange) -> bool {
    let padded_end = range.expand(node.limits().request_alignment).end();
    padded_end != range.end() && padded_end > node.len()
}

/// Everything from the first block of `range`, or from the end of the disk if that is before it.
pub(super) fn to_the_end(range: ByteRange, node: &Node) -> ByteRange {
    let start = range.offset().min(node.len());
    let start = node.limits().request_alignment.round_down(start);
    ByteRange::from_bounds(start, MAX_LEN).unwrap_or(range)
}

/// Takes off the padding beyond the end that a growing write has left.
pub(super) async fn cut_padding(node: &Node, len: u64) -> Result<()> {
    if node.len() <= len || node.capabilities().truncate != Support::Native {
        return Ok(());
    }
    Arc::clone(node.driver()).truncate(len, Exactness::AtLeast, Prealloc::Off).await
}

/// Step 4: whether to turn the write into a zero write.
fn is_detected_zero(node: &Node, iov: &IoVec, unaligned: bool) -> bool {
    node.options().detect_zeroes != DetectZeroes::Off
        && !unaligned
        && node.capabilities().write_zeroes == Support::Native
        && iov.is_zero()
}
