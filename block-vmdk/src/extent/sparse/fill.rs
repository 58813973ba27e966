//! Filling new grains: what the guest does not write itself is copied from below, or is zero.
//!
//! Only head and tail are filled, and what was there is read through the tables, which still show it: the
//! backing file at the offset of the *disk*, or zeroes. What lies next to the guest's data is written
//! with it, in one write; what is farther off than [`NEAR`] is copied in pieces of that length.

use std::sync::Arc;

use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, Error, IoBuf, IoVec, RequestFlags, Result};

use super::SparseExtent;
use super::plan::Allocation;
use super::space::Place;
use crate::extent::geometry::SECTOR;

/// Most bytes of a head or a tail that are held in memory.
const NEAR: u64 = 1 << 20;
/// Most zero bytes that are written beside the data rather than by a zero write of their own.
const ZERO_BUFFER_MAX: u64 = 128 << 10;

impl SparseExtent {
    /// Writes `data` to its place in an allocation, with all else that must be there.
    pub(super) async fn fill(
        self: &Arc<Self>,
        allocation: &Allocation,
        place: Place,
        data: IoVec,
    ) -> Result<()> {
        let Allocation { write, fill, .. } = *allocation;
        let head = ByteRange::from_bounds(fill.offset(), write.offset())?;
        let tail = ByteRange::from_bounds(write.end(), fill.end())?;
        let whole = self.host_range(allocation, place, fill)?;
        self.writer()?.check_data(whole)?;
        self.event("cow_write");
        let (head_zero, tail_zero) = (self.reads_zero(head).await?, self.reads_zero(tail).await?);
        if head_zero && tail_zero && (place.fresh || self.zeroed(head, tail, whole).await?) {
            let range = self.host_range(allocation, place, write)?;
            self.event("write_aio");
            return self.file.write(range, data, RequestFlags::empty()).await;
        }
        let far_head = head.first(head.len().saturating_sub(NEAR));
        let (near_tail, far_tail) = tail.split_at(NEAR.min(tail.len()));
        for far in [far_head, far_tail] {
            self.copy_far(allocation, place, far).await?;
        }
        let near_head = head.split_at(far_head.len()).1;
        let near = ByteRange::from_bounds(near_head.offset(), near_tail.end())?;
        let (before, after) = (buffer(near_head)?, buffer(near_tail)?);
        if !(head_zero && tail_zero) {
            self.event("cow_read");
            let reads = futures::future::join(
                self.read_old(near_head, &before),
                self.read_old(near_tail, &after),
            );
            let (first, second) = reads.await;
            first.and(second)?;
        }
        let iov: IoVec =
            before.into_iter().chain(data.bufs().iter().cloned()).chain(after).collect();
        let range = self.host_range(allocation, place, near)?;
        self.event("write_aio");
        self.file.write(range, iov, RequestFlags::empty()).await
    }

    async fn read_old(self: &Arc<Self>, range: ByteRange, buf: &Option<IoBuf>) -> Result<()> {
        match buf {
            Some(buf) => self.read(range, buf.clone().into()).await,
            None => Ok(()),
        }
    }

    /// Copies `far`, a part of a head or a tail, piece by piece.
    async fn copy_far(
        self: &Arc<Self>,
        allocation: &Allocation,
        place: Place,
        far: ByteRange,
    ) -> Result<()> {
        let mut rest = far;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(NEAR.min(rest.len()));
            let host = self.host_range(allocation, place, piece)?;
            if !self.reads_zero(piece).await? {
                let buf = IoBuf::zeroed(to_usize(piece.len()), Alignment::PAGE)?;
                self.read(piece, buf.clone().into()).await?;
                self.file.write(host, buf.into(), RequestFlags::empty()).await?;
            } else if !place.fresh {
                self.file.write_zeroes(host, RequestFlags::empty()).await?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Zeroes `whole` if head and tail are long and that is quicker than writing zeroes; says whether
    /// nothing more is to be filled.
    async fn zeroed(&self, head: ByteRange, tail: ByteRange, whole: ByteRange) -> Result<bool> {
        let gap = head.len() + tail.len();
        if gap <= ZERO_BUFFER_MAX {
            return Ok(gap == 0);
        }
        match self.file.write_zeroes(whole, RequestFlags::NO_FALLBACK).await {
            Ok(()) => Ok(true),
            Err(Error::Unsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where a part of an allocation goes.
    fn host_range(
        &self,
        allocation: &Allocation,
        place: Place,
        part: ByteRange,
    ) -> Result<ByteRange> {
        let skip = part.offset() - allocation.grains.offset();
        let start = place.sector * SECTOR + skip;
        Ok(ByteRange::new(start, part.len())?)
    }
}

/// A zeroed buffer of the length of `range`.
fn buffer(range: ByteRange) -> Result<Option<IoBuf>> {
    match to_usize(range.len()) {
        0 => Ok(None),
        len => IoBuf::zeroed(len, Alignment::PAGE).map(Some),
    }
}
