//! Reads what can be read of a part of a source that could not be read as a whole.
//!
//! Invariants: what is reported as unreadable is zero in the buffer, everything else is what the source
//! holds; no part that is reported is longer than one block of the source.

use crate::buf::IoBuf;
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_usize};

use super::Unreadable;

/// Reads `range` of the source `source_index` into `buf`, which is as long, in ever smaller parts where
/// they fail.
pub(super) async fn read(
    node: &Node,
    source_index: usize,
    range: ByteRange,
    buf: &IoBuf,
) -> Vec<Unreadable> {
    let block = node.limits().request_alignment.max(Alignment::SECTOR);
    let mut unreadable = Vec::new();
    // The part that comes first lies on top.
    let mut parts = vec![range];
    while let Some(part) = parts.pop() {
        let at = to_usize(part.offset() - range.offset());
        let into = buf.slice(at, to_usize(part.len()));
        let Err(error) = node.read(part, into.clone().into()).await else {
            continue;
        };
        match halves(part, block) {
            Some((first, second)) => parts.extend([second, first]),
            None => {
                into.fill(0);
                unreadable.push(Unreadable { source_index, range: part, error });
            }
        }
    }
    unreadable
}

/// Cuts a range in two at a multiple of `block`; `None` if it lies within one.
fn halves(range: ByteRange, block: Alignment) -> Option<(ByteRange, ByteRange)> {
    let middle = block.round_up(range.offset() + range.len() / 2);
    let first_boundary = block.round_up(range.offset() + 1);
    let cut = if middle < range.end() { middle } else { first_boundary };
    if cut >= range.end() {
        return None;
    }
    let first = ByteRange::from_bounds(range.offset(), cut).ok()?;
    let second = ByteRange::from_bounds(cut, range.end()).ok()?;
    Some((first, second))
}
