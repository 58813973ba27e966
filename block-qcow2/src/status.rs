//! Block status: the mapping, as the layer wants to hear it.
//!
//! An image that was made with all its metadata has data clusters over holes of its file, so there
//! the file is asked too; elsewhere that would cost a system call an extent and find nothing.

use std::sync::Arc;

use block_core::request::status::{DriverStatus, StatusDetail, StatusFlags};
use block_core::{ByteRange, Node, Result};

use crate::driver::Qcow2Driver;
use crate::map::Kind;
use crate::mapping::words;
use crate::metadata_io::read_bytes;
use crate::spec::refcount::{refcount, table_entry};
use crate::units::{GuestOffset, HostOffset};

impl Qcow2Driver {
    /// How the first bytes of `range` are stored.
    pub(crate) async fn status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        let inside = range.intersect(ByteRange::up_to(self.disk_len()));
        if inside.is_empty() {
            return Ok(DriverStatus::zero(range.len()));
        }
        let offset = GuestOffset::new(inside.offset());
        let first = self.extent(offset, inside.len()).await?;
        let mut len = first.len;
        // Further slices are looked at only if they are at hand.
        while len < inside.len() {
            let next = GuestOffset::new(inside.offset() + len);
            match self.extent_at_once(next, inside.len() - len) {
                Some(Ok(next)) if continues(first.kind, len, next.kind) => len += next.len,
                _ => break,
            }
        }
        let (flags, host) = match first.kind {
            Kind::Unallocated(host) => (StatusFlags::empty(), host),
            Kind::Zero(host) => (StatusFlags::ZERO | StatusFlags::ALLOCATED, host),
            Kind::Data(host) => (StatusFlags::DATA | StatusFlags::ALLOCATED, Some(host)),
            Kind::Compressed { .. } => {
                let data = StatusFlags::DATA | StatusFlags::ALLOCATED;
                (data | StatusFlags::COMPRESSED, None)
            }
        };
        let mut status = DriverStatus::of(len, flags);
        if let (Some(host), Some(data)) = (host, &self.data) {
            status = status.at(data.clone(), host.bytes());
            status.recurse = matches!(first.kind, Kind::Data(_))
                && detail == StatusDetail::Zeroes
                && self.is_preallocated().await;
        }
        Ok(status)
    }

    /// Whether the file holds noticeably less than the refcounts claim.
    async fn is_preallocated(&self) -> bool {
        if let Some(known) = self.preallocated.get() {
            return *known;
        }
        // A refcount that cannot be read says nothing about the mapping: the plain answer is right.
        let found = self.find_preallocation().await.unwrap_or(false);
        *self.preallocated.get_or_init(|| found)
    }

    async fn find_preallocation(&self) -> Result<bool> {
        let geometry = self.geometry();
        let Some(held) = actual_size(&self.file) else {
            return Ok(false);
        };
        let held = held / geometry.cluster_size();
        // A tenth and two clusters more than the file holds is more than rounding.
        let enough = (held.saturating_mul(10) / 9).max(held + 2);
        let in_file = self.file.len().div_ceil(geometry.cluster_size());
        if in_file < enough {
            return Ok(false);
        }
        let table = self.header.with(|parts| parts.header.refcount_table);
        let bytes = u64::from(table.count) * geometry.cluster_size();
        let table = self.read_within_file(table.offset, bytes).await?;
        let (mut claimed, mut first) = (0, 0);
        for raw in words(&table) {
            if first >= in_file || claimed >= enough {
                break;
            }
            let per_block = geometry.refcounts_per_block();
            if let Some(block) = table_entry(geometry, raw)? {
                let block = self.read_within_file(block, geometry.cluster_size()).await?;
                let count = per_block.min(in_file - first);
                let used = (0..count)
                    .filter(|i| refcount(geometry, &block, *i).is_some_and(|count| count != 0));
                claimed += block_core::range::to_u64(used.count());
            }
            first = first.saturating_add(per_block);
        }
        Ok(claimed >= enough)
    }

    /// The part of `len` bytes at `offset` that is inside of the file.
    async fn read_within_file(&self, offset: HostOffset, len: u64) -> Result<block_core::OwnedBuf> {
        let range = ByteRange::new(offset.bytes(), len)?;
        let inside = range.intersect(ByteRange::up_to(self.file.len()));
        read_bytes(&self.file, inside).await
    }
}

/// Whether `next`, `len` bytes after `kind`, is told the same way.
fn continues(kind: Kind, len: u64, next: Kind) -> bool {
    let compressed = |kind| matches!(kind, Kind::Compressed { .. });
    kind.continues_in(len, next) || (compressed(kind) && compressed(next))
}

/// Bytes that the storage holds for a node, or for what it stands on.
fn actual_size(node: &Node) -> Option<u64> {
    let own = node.driver().info().actual_size;
    own.or_else(|| actual_size(&node.children().first()?.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::entry::Payload;

    #[test]
    fn compressed_clusters_are_told_together() {
        let kind = |skip| Kind::Compressed {
            payload: Payload { offset: HostOffset::new(skip * 7), len: 512 },
            skip,
        };
        assert!(continues(kind(0), 100, kind(3)));
        assert!(!continues(kind(0), 100, Kind::Zero(None)));
        let data = |at| Kind::Data(HostOffset::new(at));
        assert!(continues(data(0), 100, data(100)) && !continues(data(0), 100, data(99)));
    }
}
