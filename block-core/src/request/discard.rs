//! Discards: advisory, split to what the driver does something with, serialising by cluster.
//!
//! A discard of less than a request alignment block, or on a driver that discards nothing, succeeds
//! and does nothing. Contents afterwards are unknown unless the driver promises more.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::flags::{RequestFlags, Support};
use crate::node::Node;
use crate::range::{Alignment, ByteRange, MAX_LEN};

use super::tracked::{Claim, Ticket};
use super::zeroes::{common_multiple, longest_piece, next_piece};

pub(super) async fn discard(node: &Node, range: ByteRange) -> Result<()> {
    if range.end() > node.len() {
        return Err(Error::OutOfRange { range, len: node.len() });
    }
    if !node.options().unmap || node.capabilities().discard != Support::Native {
        return Ok(());
    }
    if node.is_read_only() {
        return Err(Error::ReadOnly);
    }
    let _ticket = begin(node, range).await?;
    if node.is_read_only() {
        return Err(Error::ReadOnly);
    }
    let limits = node.limits();
    let align = common_multiple(limits.request_alignment, limits.pdiscard_alignment);
    let blocks = range.intersect(ByteRange::up_to(node.len())).shrink(limits.request_alignment);
    if blocks.is_empty() {
        return Ok(());
    }
    let max = limits.max_pdiscard.unwrap_or(MAX_LEN);
    let max = longest_piece(max, limits.request_alignment, align);
    let result = pieces(node, blocks, align, max).await;
    node.finish_write(blocks, RequestFlags::empty());
    result
}

/// A ticket for the granules of `range`, whole ones: a cluster that is given back must not be in use by
/// anybody. A reopen while the request waits may change what they are.
async fn begin(node: &Node, range: ByteRange) -> Result<Ticket> {
    let granule = || {
        let limits = node.limits();
        let align = common_multiple(limits.request_alignment, limits.pdiscard_alignment);
        common_multiple(align, limits.pwrite_zeroes_alignment)
    };
    loop {
        let claimed = granule();
        let claim = Claim::serialising(range.expand(claimed));
        let ticket = node.begin(claim, RequestFlags::empty()).await?;
        if granule() == claimed {
            return Ok(ticket);
        }
    }
}

/// The pieces in order: up to the alignment, whole multiples of it, the rest.
async fn pieces(node: &Node, range: ByteRange, align: Alignment, max: u64) -> Result<()> {
    let mut rest = range;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(next_piece(rest, align, max));
        match Arc::clone(node.driver()).pdiscard(piece).await {
            // This piece stays as it is: a discard is advice.
            Ok(()) | Err(Error::Unsupported) => {}
            Err(error) => return Err(error),
        }
        rest = after;
    }
    Ok(())
}
