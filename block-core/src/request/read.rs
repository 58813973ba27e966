//! Reads. What is beyond the end of the disk reads as zeroes, so that a short backing file is no
//! special case; devices that must refuse it do so in [`BlockBackend`](crate::BlockBackend).

use crate::buf::IoVec;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::limits::{BlockLimits, IOV_MAX};
use crate::node::Node;
use crate::range::{ByteRange, to_u64, to_usize};

use super::fragment;
use super::pad::Padding;
use super::tracked::{Claim, Place, Ticket};

/// A place among the tracked requests, if the driver takes the read as it is.
pub(super) fn fast(
    node: &Node,
    range: ByteRange,
    iov: &IoVec,
    flags: RequestFlags,
) -> Option<Place> {
    if !flags.is_empty() {
        return None;
    }
    let place = node.tracker().try_enter(Claim::shared(range))?;
    // Looked at from the place: a truncate is serialising, and a reopen drains.
    if range.end() <= node.len() && fragment::fits(&node.facts().limits, range, iov) {
        return Some(place);
    }
    node.tracker().end(&place);
    None
}

impl Node {
    /// Reads `range` into `iov` within this call, if that takes no waiting: see
    /// [`BlockDriver::read_now`](crate::BlockDriver::read_now). `None`: send a [`Node::read`].
    pub fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        if to_u64(iov.len()) != range.len() || iov.bufs().len() > IOV_MAX {
            return None;
        }
        let _inline = self.tracker().try_inline()?;
        // As above.
        if !self.may_go_inline(range) || range.end() > self.len() {
            return None;
        }
        self.driver().read_now(range, iov)
    }
}

pub(super) async fn read(
    node: &Node,
    range: ByteRange,
    iov: IoVec,
    flags: RequestFlags,
) -> Result<()> {
    let known = RequestFlags::SERIALISING | RequestFlags::NO_WAIT;
    if to_u64(iov.len()) != range.len() || !known.contains(flags) {
        return Err(Error::Invalid);
    }
    if range.is_empty() {
        return Ok(());
    }
    let (_ticket, limits) = begin(node, range, flags).await?;
    // The length is looked at under the ticket: a truncate is serialising.
    let inside = range.intersect(ByteRange::up_to(node.len()));
    let readable = to_usize(inside.len());
    if inside.is_aligned(limits.request_alignment) {
        fragment::read(node, inside, &iov.slice(0, readable)).await?;
    } else if !inside.is_empty() {
        let padding = Padding::new(inside, &limits)?;
        let part = iov.slice(0, readable);
        fragment::read(node, padding.aligned(), &padding.splice(&part)).await?;
        padding.copy_out(&part);
    }
    iov.fill(readable, iov.len() - readable, 0);
    Ok(())
}

/// A ticket for the blocks of `range`, and the limits that hold under it: a reopen while the request waits
/// may change the alignment that it was claimed with.
async fn begin(
    node: &Node,
    range: ByteRange,
    flags: RequestFlags,
) -> Result<(Ticket, BlockLimits)> {
    let serialising = flags.contains(RequestFlags::SERIALISING);
    loop {
        let align = node.limits().request_alignment;
        let ticket = node.begin(Claim { range: range.expand(align), serialising }, flags).await?;
        let limits = node.limits();
        if limits.request_alignment == align {
            return Ok((ticket, limits));
        }
    }
}
