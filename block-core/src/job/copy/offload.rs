//! Copies of pieces inside of the storage: where a piece is, and whether all of it could be copied.

use crate::driver::CopySource;
use crate::node::Node;
use crate::range::ByteRange;
use crate::request::status::{BlockStatus, Mapping, StatusDetail, StatusFlags};

use super::scan::Piece;

/// What became of an attempt.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The target has the piece.
    Copied,
    /// Not this piece: some of it is compressed, reads as zeroes whatever stands there, or is nowhere in a
    /// file. Some of it may be copied.
    NotHere,
    /// These two cannot, or failed: reading and writing will tell more. Some of it may be copied.
    Refused,
}

/// Copies a piece of `source` to `target` without reading it.
pub(super) async fn copy(source: &Node, target: &Node, piece: &Piece) -> Outcome {
    let mut rest = piece.from;
    while !rest.is_empty() {
        let found = source.block_status_above(None, rest, StatusDetail::Allocation).await;
        let Some((len, mapping)) = found.ok().and_then(data_at) else { return Outcome::NotHere };
        let (here, after) = rest.split_at(len);
        let to = piece.to.offset() + (here.offset() - piece.from.offset());
        let from = CopySource::new(mapping.node, mapping.offset);
        let copied = match ByteRange::new(to, here.len()) {
            Ok(range) if !range.is_empty() => target.copy_from(range, from).await.is_ok(),
            _ => false,
        };
        if !copied {
            return Outcome::Refused;
        }
        rest = after;
    }
    Outcome::Copied
}

/// How much data there is, and where it stands as it is read.
fn data_at(found: BlockStatus) -> Option<(u64, Mapping)> {
    let kinds = StatusFlags::DATA | StatusFlags::ZERO | StatusFlags::COMPRESSED;
    let plain = found.flags & kinds == StatusFlags::DATA;
    Some((found.len, found.mapping.filter(|_| plain)?))
}
