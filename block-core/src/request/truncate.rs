//! Changes of length. Serialises with every request in the part that comes or goes.

use std::sync::Arc;

use crate::driver::{Exactness, Prealloc};
use crate::error::{Error, Result};
use crate::flags::{RequestFlags, Support};
use crate::node::Node;
use crate::range::{ByteRange, MAX_LEN};

use super::tracked::{Claim, Ticket};
use super::zeroes;

pub(super) async fn truncate(
    node: &Node,
    len: u64,
    exactness: Exactness,
    prealloc: Prealloc,
) -> Result<()> {
    if len > MAX_LEN {
        return Err(Error::Invalid);
    }
    if node.is_read_only() {
        return Err(Error::ReadOnly);
    }
    if node.capabilities().truncate != Support::Native {
        return Err(Error::Unsupported);
    }
    let _ticket = begin(node, len).await?;
    let old = node.len();
    let result = Arc::clone(node.driver()).truncate(len, exactness, prealloc).await;
    let result = match result {
        Ok(()) => hide_backing(node, old).await,
        failed => failed,
    };
    node.finish_truncate(old);
    result
}

/// A ticket for everything that comes or goes. The length may change while the request waits: if more is
/// concerned than was claimed, it queues again.
async fn begin(node: &Node, len: u64) -> Result<Ticket> {
    let first = || node.limits().request_alignment.round_down(len.min(node.len()));
    loop {
        let start = first();
        let claim = Claim::serialising(ByteRange::from_bounds(start, MAX_LEN)?);
        let ticket = node.begin(claim, RequestFlags::empty()).await?;
        if start <= first() {
            return Ok(ticket);
        }
    }
}

/// Zeroes what a longer backing file would show in the new part.
async fn hide_backing(node: &Node, old: u64) -> Result<()> {
    let Some(backing) = node.backing() else { return Ok(()) };
    let align = node.limits().request_alignment;
    // The rest of the block that holds the old end is the driver's: it reads as zeroes by contract.
    let shown = ByteRange::from_bounds(align.round_up(old), node.len().min(backing.len()));
    match shown {
        Ok(shown) if !shown.is_empty() => {
            let nobody = zeroes::Progress::untold();
            zeroes::aligned(node, shown.expand(align), RequestFlags::empty(), &nobody).await
        }
        _ => Ok(()),
    }
}
