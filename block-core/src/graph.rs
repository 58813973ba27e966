//! The control plane: what is done to several nodes at once. Draining, reopening, closing.
//!
//! **Invariant:** parents are quiesced before their children, so that a request which a parent has in
//! flight still reaches them; a reopen changes either every node it names or none.

use crate::driver::{ChildRole, ReopenOptions, ReopenState};
use crate::error::{Error, OpenError, Result};
use crate::io::exec::to_the_end;
use crate::node::Node;
use crate::request::flush::flush_node;

/// A node and everything below it, parents before children, each once.
pub fn subtree(root: &Node) -> Vec<Node> {
    subtree_by(root, |_| true)
}

/// The same without the children whose role `goes_down` does not want.
fn subtree_by(root: &Node, goes_down: fn(ChildRole) -> bool) -> Vec<Node> {
    let mut nodes = Vec::new();
    visit(root, goes_down, &mut nodes);
    nodes.reverse();
    nodes
}

/// Appends children before parents.
fn visit(node: &Node, goes_down: fn(ChildRole) -> bool, nodes: &mut Vec<Node>) {
    if nodes.iter().any(|seen| seen.same(node)) {
        return;
    }
    for child in node.children().iter().filter(|child| goes_down(child.role)) {
        visit(&child.node, goes_down, nodes);
    }
    nodes.push(node.clone());
}

/// While it lives, no request is in flight on the drained nodes; requests that arrive wait for its end.
#[must_use = "dropping the guard ends the drain"]
pub struct DrainGuard {
    nodes: Vec<Node>,
}

/// Waits until nothing is in flight on `root` and everything below it, and keeps it so.
///
/// Dropping the future ends what of the drain had begun.
pub async fn drain(root: &Node) -> DrainGuard {
    let mut guard = DrainGuard { nodes: Vec::new() };
    for node in subtree(root) {
        node.tracker().drain_begin();
        guard.nodes.push(node.clone());
        node.tracker().idle().await;
    }
    guard
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        // Children first: a parent that goes on needs them.
        for node in self.nodes.iter().rev() {
            node.tracker().drain_end();
        }
    }
}

/// Loads the dirty bitmaps of the image into those of `node`. [`crate::Registry`] does it for the nodes
/// that it opens.
pub async fn load_bitmaps(node: &Node) -> Result<(), OpenError> {
    match node.driver().as_bitmaps() {
        Some(storage) => storage.load(node.dirty_bitmaps()).await,
        None => Ok(()),
    }
}

/// Writes the persistent dirty bitmaps of `node` to its image, once nothing is in flight on the node.
/// Does nothing where the format has none or the node is read-only. [`Node::close`] does it. Once polled it
/// runs to its end, as requests do.
pub async fn store_bitmaps(node: &Node) -> Result<()> {
    let node = node.clone();
    to_the_end(async move {
        match node.driver().as_bitmaps() {
            Some(storage) if !node.is_read_only() => {
                let _drained = drain_own(&node).await;
                node.follow_len();
                storage.store(node.dirty_bitmaps()).await
            }
            _ => Ok(()),
        }
    })
    .await
}

/// Makes the disk what it was when the snapshot `which` (an id or a name) was taken.
///
/// Refused with `Busy` while the node has dirty bitmaps: they would not know what changed. Once polled it
/// runs to its end, as requests do.
pub async fn apply_snapshot(node: &Node, which: &str) -> Result<()> {
    let (node, which) = (node.clone(), which.to_owned());
    to_the_end(async move {
        let snapshots = node.driver().as_snapshots().ok_or(Error::Unsupported)?;
        if !node.dirty_bitmaps().list().is_empty() {
            return Err(Error::Busy);
        }
        let _drained = drain_own(&node).await;
        snapshots.apply(&which).await
    })
    .await
}

/// Changes how nodes are opened: all of them, or, on the first error, none.
///
/// Each node is drained from before its driver prepares until all have committed, and flushed once it is
/// drained: it may take no flush afterwards. Parents come first in `changes`, before any of their children,
/// or a flush waits for a child that is drained already. Once polled it runs to its end, as requests do.
pub async fn reopen(changes: &[(Node, ReopenOptions)]) -> Result<(), OpenError> {
    let changes = changes.to_vec();
    to_the_end(async move { reopen_all(&changes).await }).await
}

async fn reopen_all(changes: &[(Node, ReopenOptions)]) -> Result<(), OpenError> {
    let mut guards = Vec::new();
    let mut prepared: Vec<(&Node, ReopenOptions, ReopenState)> = Vec::new();
    for (node, options) in changes {
        // Before its children are: a driver that prepares may have something to write to them.
        guards.push(drain_own(node).await);
        match prepare(node, options).await {
            Ok(state) => prepared.push((node, *options, state)),
            Err(error) => {
                for (node, _, state) in prepared.into_iter().rev() {
                    node.driver().reopen_abort(state);
                }
                return Err(error);
            }
        }
    }
    for (node, options, state) in prepared {
        node.driver().reopen_commit(state);
        if let Some(no_flush) = options.no_flush {
            node.set_never_flushed(no_flush);
        }
        match options.read_only {
            Some(true) => node.dirty_bitmaps().make_read_only(),
            Some(false) => node.dirty_bitmaps().make_writable(),
            None => {}
        }
    }
    // Limits merge upwards: those of children have to be right first.
    for node in changes.iter().rev().map(|(node, _)| node) {
        node.refresh_facts();
    }
    Ok(())
}

/// Flushes a drained node and prepares its driver. One that will not write any more stores its bitmaps
/// first.
async fn prepare(node: &Node, options: &ReopenOptions) -> Result<ReopenState, OpenError> {
    if !node.is_read_only() {
        let what = "flush before reopen";
        flush_node(node).await.map_err(|error| OpenError::Request { what, error })?;
    }
    if options.read_only == Some(true)
        && !node.is_read_only()
        && let Some(storage) = node.driver().as_bitmaps()
    {
        node.follow_len();
        let what = "dirty bitmaps";
        let stored = storage.store(node.dirty_bitmaps()).await;
        stored.map_err(|error| OpenError::Request { what, error })?;
    }
    node.driver().clone().reopen_prepare(options).await
}

/// The same change for `root` and everything below it but backing files, parents first, each once: what a
/// user means who reopens an image.
pub fn image_changes(root: &Node, options: ReopenOptions) -> Vec<(Node, ReopenOptions)> {
    let nodes = subtree_by(root, |role| role != ChildRole::Cow);
    nodes.into_iter().map(|node| (node, options)).collect()
}

/// Drains one node alone: its driver may still send requests to its children while it prepares.
pub(crate) async fn drain_own(node: &Node) -> DrainGuard {
    node.tracker().drain_begin();
    let guard = DrainGuard { nodes: vec![node.clone()] };
    node.tracker().idle().await;
    guard
}

/// Closes a node and everything below it, parents first. Every node is closed whatever happens; the
/// first error is returned.
pub async fn close(root: &Node) -> Result<()> {
    let mut result = Ok(());
    for node in subtree(root) {
        result = result.and(node.close().await);
    }
    result
}

/// Forgets what was read from the storage below `root`, which another host may have changed.
/// Children first, so that a parent reads what is new. Once polled it runs to its end, as requests do.
pub async fn invalidate_cache(root: &Node) -> Result<()> {
    let root = root.clone();
    to_the_end(async move {
        for node in subtree(&root).into_iter().rev() {
            let _drained = drain_own(&node).await;
            node.driver().clone().invalidate_cache().await?;
            node.refresh_facts();
        }
        Ok(())
    })
    .await
}
