//! Reads: run by run, several at once.
//!
//! Invariants: runs cover the range without overlap; at most [`AT_ONCE`] are in flight; when the read
//! answers, none is any more, also after an error.

use std::sync::Arc;

use block_core::metadata::steps;
use block_core::range::to_usize;
use block_core::{ByteRange, IoVec, Node, Result};
use futures::{FutureExt, stream};

use super::SparseExtent;
use super::lookup::{Kind, Run};
use crate::extent::compressed::{GrainPlace, read_grain};

/// Most runs of one read in flight.
const AT_ONCE: usize = 8;

impl SparseExtent {
    /// Reads `range`, which lies inside of the extent.
    pub(crate) async fn read(self: &Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.run(range).await?;
        if first.len == range.len() {
            return self.read_run(first, range, iov).await;
        }
        let iov = &iov;
        let runs = stream::unfold(range, |rest| async move {
            if rest.is_empty() {
                return None;
            }
            match self.run(rest).await {
                Ok(run) => {
                    let (here, after) = rest.split_at(run.len);
                    let skip = to_usize(here.offset() - range.offset());
                    let iov = iov.slice(skip, to_usize(here.len()));
                    Some((Ok(self.read_run(run, here, iov)), after))
                }
                Err(error) => Some((Err(error), ByteRange::default())),
            }
        });
        steps::run(AT_ONCE, runs).await
    }

    async fn read_run(self: &Arc<Self>, run: Run, range: ByteRange, iov: IoVec) -> Result<()> {
        match run.kind {
            Kind::Zero => {
                iov.fill(0, iov.len(), 0);
                Ok(())
            }
            Kind::Unallocated => {
                let offset = self.start + range.offset();
                read_node(self.backing.as_ref(), offset, iov).await
            }
            Kind::Data(at) => read_node(Some(&self.file), at, iov).await,
            Kind::Compressed { grain, skip } => {
                let whole = self.inflated(grain, range.offset() - skip).await?;
                let (start, len) = (to_usize(skip), iov.len());
                iov.copy_from(0, whole.get(start..start + len).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// The contents of the compressed grain whose marker stands at `at`, and which starts at `offset` of
    /// the extent.
    async fn inflated(&self, at: u64, offset: u64) -> Result<Arc<block_core::OwnedBuf>> {
        let load = || {
            let (file, grain_size) = (self.file.clone(), self.geometry.grain_size());
            let len = grain_size.min(self.geometry.len() - offset);
            async move {
                let place = GrainPlace { at, offset, grain_size, len };
                read_grain(&file, place).await.map(Arc::new)
            }
            .boxed()
        };
        match self.grains.peek(at) {
            Some(grain) => Ok(grain),
            None => self.grains.peek_or_load(at, load).await,
        }
    }

    /// Whether the tables, here and below, say that all of `range` reads as zeroes. No data is read.
    pub(super) async fn reads_zero(&self, range: ByteRange) -> Result<bool> {
        let mut rest = range.intersect(ByteRange::up_to(self.geometry.len()));
        while !rest.is_empty() {
            let run = self.run(rest).await?;
            let (here, after) = rest.split_at(run.len);
            let zero = match run.kind {
                Kind::Zero => true,
                Kind::Unallocated => self.below_reads_zero(here).await?,
                Kind::Data(_) | Kind::Compressed { .. } => false,
            };
            if !zero {
                return Ok(false);
            }
            rest = after;
        }
        Ok(true)
    }

    /// Whether the backing file reads as zeroes under `range`, as far as can be told from tables.
    pub(super) async fn below_reads_zero(&self, range: ByteRange) -> Result<bool> {
        use block_core::request::status::StatusDetail;
        let Some(backing) = &self.backing else { return Ok(true) };
        let below = range.shifted(self.start)?;
        let mut rest = below.intersect(ByteRange::up_to(backing.len()));
        while !rest.is_empty() {
            let status = backing.block_status_above(None, rest, StatusDetail::Zeroes).await?;
            if !status.is_zero() || status.len == 0 {
                return Ok(false);
            }
            rest = rest.split_at(status.len).1;
        }
        Ok(true)
    }
}

/// Reads from `offset` of `node`; what is beyond its end, or of no node, is zero.
pub(crate) async fn read_node(node: Option<&Node>, offset: u64, iov: IoVec) -> Result<()> {
    let len = iov.len();
    let inside = node.map_or(0, |node| node.len().saturating_sub(offset));
    let stored = to_usize(inside).min(len);
    iov.fill(stored, len - stored, 0);
    match node {
        Some(node) if stored > 0 => {
            let range = ByteRange::new(offset, block_core::range::to_u64(stored))?;
            node.read(range, iov.slice(0, stored)).await
        }
        _ => Ok(()),
    }
}
