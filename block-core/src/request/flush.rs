//! Flushes: one in flight on a node, skipped where nothing was written since the last one.
//!
//! Every finished write raises the node's write generation. A flush remembers the generation at which
//! it began; once it succeeds, everything up to there is stable. **Invariant:** a flush that returns
//! `Ok` covers every write that had completed before it was first polled.

use std::sync::Arc;

use crate::driver::ChildRole;
use crate::error::Result;
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::ByteRange;

use super::tracked::Claim;

pub(super) async fn flush(node: &Node) -> Result<()> {
    let nothing = Claim::shared(ByteRange::default());
    let _ticket = node.begin(nothing, RequestFlags::empty()).await?;
    flush_node(node).await
}

/// A flush inside of something that holds a ticket already (FUA) or has drained the node (closing).
pub(crate) async fn flush_node(node: &Node) -> Result<()> {
    let wanted = node.write_generation();
    let mut flushed = node.flush_lock().await;
    // Somebody else's flush that began after our writes had completed will do; but the driver may
    // hold back things that are no writes of ours, so it is asked all the same.
    let current = node.write_generation();
    Arc::clone(node.driver()).flush_to_os().await?;
    if node.is_never_flushed() {
        return Ok(());
    }
    if *flushed < wanted {
        Arc::clone(node.driver()).flush_to_disk().await?;
    }
    for child in node.children() {
        // One that takes no more writes may still hold earlier ones.
        if child.role != ChildRole::Cow && !child.node.driver().is_read_only() {
            child.node.flush().await?;
        }
    }
    if *flushed < wanted {
        *flushed = current;
    }
    Ok(())
}
