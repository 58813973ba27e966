//! Filling new clusters: what the guest does not write itself is copied, or is zero already.
//!
//! Old contents are read through the mapping, which still shows them: where they are (backing file,
//! compressed cluster, cluster of a snapshot) makes no difference here.

use std::sync::Arc;

use block_core::range::to_usize;
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, Error, IoBuf, IoVec, Node, RequestFlags, Result};

use crate::alloc::Place;
use crate::driver::Qcow2Driver;
use crate::map::Kind;
use crate::plan::Allocation;
use crate::reload::from_below;
use crate::units::GuestOffset;
use crate::write::Payload;

/// Most zero bytes that are written beside the data rather than by a zero write of their own.
const ZERO_BUFFER_MAX: u64 = 128 << 10;

impl Qcow2Driver {
    /// Writes `data` to its place in an allocation, with all else that must be there.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        allocation: &Allocation,
        place: Place,
        data: Payload,
    ) -> Result<()> {
        let Allocation { write, fill, .. } = *allocation;
        let head = ByteRange::from_bounds(fill.offset(), write.offset())?;
        let tail = ByteRange::from_bounds(write.end(), fill.end())?;
        let whole = self.host_range(allocation, place, fill)?;
        self.writer()?.overlap.check_data(whole).map_err(|fault| self.fault(fault))?;
        let node = self.data.clone().ok_or(Error::Unsupported)?;
        if self.reads_zero(head).await? && self.reads_zero(tail).await? {
            let gap = head.len() + tail.len();
            if gap > 0 {
                self.event("cow_write");
            }
            let there = place.fresh || gap == 0;
            if there || (gap > ZERO_BUFFER_MAX && self.zeroed_at_once(&node, whole).await?) {
                let range = self.host_range(allocation, place, write)?;
                self.event("write_aio");
                return data.put(&node, range).await;
            }
            let iov = joined(zeroes(head)?, data.in_memory()?, zeroes(tail)?);
            self.event("write_aio");
            return from_below(node.write(whole, iov, RequestFlags::empty()).await);
        }
        let data = data.in_memory()?;
        self.event("cow_read");
        let (before, after) = (zeroes(head)?, zeroes(tail)?);
        let reads = futures::future::join(
            Arc::clone(self).read(head, one(&before)),
            Arc::clone(self).read(tail, one(&after)),
        );
        let (first, second) = reads.await;
        first.and(second)?;
        self.event("cow_write");
        self.event("write_aio");
        let all = joined(before, data, after);
        from_below(node.write(whole, all, RequestFlags::empty()).await)
    }

    /// Zeroes `range` if that is quicker than writing zeroes; says whether it was.
    async fn zeroed_at_once(&self, node: &Node, range: ByteRange) -> Result<bool> {
        self.event("cluster_alloc_space");
        match from_below(node.write_zeroes(range, RequestFlags::NO_FALLBACK).await) {
            Ok(()) => Ok(true),
            Err(Error::Unsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where a part of an allocation goes.
    pub(crate) fn host_range(
        &self,
        allocation: &Allocation,
        place: Place,
        guest: ByteRange,
    ) -> Result<ByteRange> {
        let host = place.host.plus(guest.offset() - allocation.clusters.offset());
        Ok(ByteRange::new(host.bytes(), guest.len())?)
    }

    /// Whether the tables, here and below, say that all of `range` reads as zeroes. No data is read.
    pub(crate) async fn reads_zero(&self, range: ByteRange) -> Result<bool> {
        let mut rest = self.part_with_meaning(range);
        let is_state = range.offset() >= self.vm_state_start();
        while !rest.is_empty() {
            let extent = self.extent(GuestOffset::new(rest.offset()), rest.len()).await?;
            let (here, after) = rest.split_at(extent.len);
            let zero = match extent.kind {
                Kind::Zero(_) => true,
                Kind::Unallocated(_) => is_state || self.below_reads_zero(here).await?,
                Kind::Data(_) | Kind::Compressed { .. } => false,
            };
            if !zero {
                return Ok(false);
            }
            rest = after;
        }
        Ok(true)
    }

    /// Whether `range` of the backing file reads as zeroes, as far as can be told from tables.
    pub(crate) async fn below_reads_zero(&self, range: ByteRange) -> Result<bool> {
        let Some(backing) = &self.backing else { return Ok(true) };
        let mut rest = range.intersect(ByteRange::up_to(backing.len()));
        while !rest.is_empty() {
            let status = backing.block_status_above(None, rest, StatusDetail::Zeroes);
            let status = from_below(status.await)?;
            if !status.is_zero() || status.len == 0 {
                return Ok(false);
            }
            rest = rest.split_at(status.len).1;
        }
        Ok(true)
    }
}

/// A zeroed buffer of the length of `range`.
fn zeroes(range: ByteRange) -> Result<Option<IoBuf>> {
    match to_usize(range.len()) {
        0 => Ok(None),
        len => IoBuf::zeroed(len, Alignment::PAGE).map(Some),
    }
}

fn one(buf: &Option<IoBuf>) -> IoVec {
    buf.iter().cloned().collect()
}

fn joined(head: Option<IoBuf>, data: IoVec, tail: Option<IoBuf>) -> IoVec {
    head.into_iter().chain(data.bufs().iter().cloned()).chain(tail).collect()
}
