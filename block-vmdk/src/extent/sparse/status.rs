//! Block status: the tables, as the layer wants to hear it.

use std::sync::Arc;

use block_core::request::status::{DriverStatus, StatusFlags};
use block_core::{ByteRange, Result};

use super::SparseExtent;
use super::lookup::{Kind, Run};

impl SparseExtent {
    /// How the first bytes of `range`, which lies inside of the extent, are stored.
    pub(crate) async fn status(self: &Arc<Self>, range: ByteRange) -> Result<DriverStatus> {
        let first = self.run(range).await?;
        let mut len = first.len;
        // Further tables are looked at only if they are at hand.
        while len < range.len() {
            match self.run_at_once(range.split_at(len).1) {
                Some(Ok(next)) if continues(first, len, next) => len += next.len,
                _ => break,
            }
        }
        let data = StatusFlags::DATA | StatusFlags::ALLOCATED;
        Ok(match first.kind {
            Kind::Unallocated => DriverStatus::unallocated(len),
            Kind::Zero => DriverStatus::zero(len),
            Kind::Compressed { .. } => DriverStatus::of(len, data | StatusFlags::COMPRESSED),
            Kind::Data(at) => DriverStatus::of(len, data).at(self.file.clone(), at),
        })
    }
}

/// Whether `next`, `len` bytes after the start of `first`, is told the same way.
fn continues(first: Run, len: u64, next: Run) -> bool {
    match (first.kind, next.kind) {
        (Kind::Data(at), Kind::Data(next)) => at.checked_add(len) == Some(next),
        (Kind::Compressed { .. }, Kind::Compressed { .. }) => true,
        (first, next) => first == next,
    }
}
