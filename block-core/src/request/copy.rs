//! Copies inside of the storage: no byte of them passes through memory.
//!
//! Advice to the driver more than a request: there is no fallback here, as the caller has a buffer or has
//! not, and knows what else to do meanwhile. **Invariant:** `Unsupported` leaves old or new data in the
//! range, nothing else.

use std::sync::Arc;

use crate::driver::CopySource;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::ByteRange;

use super::tracked::{Claim, Ticket};
use super::write;

pub(super) async fn copy(node: &Node, range: ByteRange, source: CopySource) -> Result<()> {
    write::check(node, range, RequestFlags::empty())?;
    let from = ByteRange::new(source.offset(), range.len())?;
    let aligned = || range.is_aligned(node.limits().request_alignment);
    if !aligned() || from.end() > source.node().len() {
        return Err(Error::Unsupported);
    }
    if range.is_empty() {
        return Ok(());
    }
    let (_writing, source) = begin(node, range, from, source).await;
    write::check(node, range, RequestFlags::empty())?;
    // A reopen may have come in between.
    if !aligned() {
        return Err(Error::Unsupported);
    }
    let result = Arc::clone(node.driver()).copy_from(range, source).await;
    node.finish_write(range, RequestFlags::empty());
    result
}

/// A turn at both nodes. None is held while the other is waited for: who drains the one may have drained the
/// other already. The copies of the drivers below have the source's.
async fn begin(
    node: &Node,
    range: ByteRange,
    from: ByteRange,
    source: CopySource,
) -> (Ticket, CopySource) {
    let (reading, writing) = (Claim::shared(from), Claim::shared(range));
    loop {
        let turn = node.tracker().begin(writing).await;
        if source.has_turn() {
            return (turn, source);
        }
        if let Ok(reading) = source.node().tracker().begin_or_busy(reading) {
            return (turn, source.with_turn(reading));
        }
        drop(turn);
        drop(source.node().tracker().begin(reading).await);
    }
}
