//! The extents of a disk: which part of it stands where, and how.
//!
//! **Invariant.** Extents follow one another without gaps, from the start of the disk to its end, and
//! none is empty. A request that crosses the end of one is split there, whatever its grains.

pub(crate) mod geometry;
pub(crate) mod layout;
pub(crate) mod sparse;
pub(crate) mod words;

use std::sync::Arc;

use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{ByteRange, Error, IoVec, Node, RequestFlags, Result, Support};

use crate::descriptor::Access;
use sparse::SparseExtent;

/// One extent of an open disk.
pub(crate) struct DiskExtent {
    /// What of the disk it is.
    pub(crate) range: ByteRange,
    pub(crate) access: Access,
    pub(crate) body: Body,
}

/// How an extent is stored.
pub(crate) enum Body {
    /// Not at all: it is zeroes.
    Zero,
    /// As it is, from an offset of a file on.
    Flat { node: Node, offset: u64 },
    /// In grains.
    Sparse(Arc<SparseExtent>),
}

/// A part of a request that lies in one extent.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) extent: &'a DiskExtent,
    /// Counted from the start of the extent.
    pub(crate) range: ByteRange,
    /// Bytes of the request before it.
    pub(crate) skip: u64,
}

/// The parts of `range`, which lies inside of the disk, in order.
pub(crate) fn parts(extents: &[DiskExtent], range: ByteRange) -> impl Iterator<Item = Part<'_>> {
    let first = extents.partition_point(|extent| extent.range.end() <= range.offset());
    let touched = extents.get(first..).unwrap_or_default().iter();
    touched.map_while(move |extent| {
        let part = extent.range.intersect(range);
        if part.is_empty() {
            return None;
        }
        let relative = part.relative_to(extent.range.offset())?;
        Some(Part { extent, range: relative, skip: part.offset() - range.offset() })
    })
}

impl DiskExtent {
    /// Refuses what the extent's access mode does not allow.
    pub(crate) fn check_access(&self, wanted: Access) -> Result<()> {
        match (self.access, wanted) {
            (Access::None, _) => Err(Error::Os(libc::EACCES)),
            (Access::ReadOnly, Access::ReadWrite) => Err(Error::ReadOnly),
            _ => Ok(()),
        }
    }

    pub(crate) async fn read(&self, range: ByteRange, iov: IoVec) -> Result<()> {
        match &self.body {
            Body::Zero => {
                iov.fill(0, iov.len(), 0);
                Ok(())
            }
            Body::Flat { node, offset } => {
                sparse::read_node(Some(node), offset + range.offset(), iov).await
            }
            Body::Sparse(sparse) => {
                let _pass = sparse.enter().await;
                sparse.read(range, iov).await
            }
        }
    }

    /// Reads within this call, if that takes no waiting.
    pub(crate) fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        match &self.body {
            Body::Zero => {
                iov.fill(0, iov.len(), 0);
                Some(Ok(()))
            }
            Body::Flat { node, offset } => {
                let there = range.shifted(*offset).ok()?;
                (there.end() <= node.len()).then(|| node.read_now(there, iov))?
            }
            Body::Sparse(sparse) => sparse.read_now(range, iov),
        }
    }

    /// Writes within this call, if that takes no waiting.
    pub(crate) fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        match &self.body {
            Body::Zero => None,
            Body::Flat { node, offset } => {
                let there = range.shifted(*offset).ok()?;
                (there.end() <= node.len()).then(|| node.write_now(there, iov))?
            }
            Body::Sparse(sparse) => sparse.write_now(range, iov),
        }
    }

    pub(crate) async fn write(&self, range: ByteRange, iov: IoVec) -> Result<()> {
        match &self.body {
            Body::Zero => Err(Error::ReadOnly),
            Body::Flat { node, offset } => {
                node.driver().event("write_aio");
                node.write(range.shifted(*offset)?, iov, RequestFlags::empty()).await
            }
            Body::Sparse(sparse) => sparse.write(range, iov).await,
        }
    }

    /// Whether a zero write of `range` would be done as asked; changes nothing.
    pub(crate) async fn can_zero(&self, range: ByteRange, flags: RequestFlags) -> Result<bool> {
        match &self.body {
            Body::Zero => Ok(true),
            Body::Flat { node, .. } => {
                let quick = node.capabilities().zeroes_no_fallback == Support::Native;
                Ok(quick || !flags.contains(RequestFlags::NO_FALLBACK))
            }
            Body::Sparse(sparse) => sparse.can_zero(range, flags).await,
        }
    }

    /// Makes `range` read as zeroes, after [`DiskExtent::can_zero`] said so.
    pub(crate) async fn zero(&self, range: ByteRange, flags: RequestFlags) -> Result<()> {
        match &self.body {
            Body::Zero => Ok(()),
            Body::Flat { node, offset } => node.write_zeroes(range.shifted(*offset)?, flags).await,
            Body::Sparse(sparse) => sparse.zero(range, flags).await,
        }
    }

    pub(crate) async fn discard(&self, range: ByteRange) -> Result<()> {
        match &self.body {
            Body::Zero => Ok(()),
            Body::Flat { node, offset } => node.discard(range.shifted(*offset)?).await,
            Body::Sparse(sparse) => sparse.discard(range).await,
        }
    }

    /// Lets all data of the extent go, so that the backing file shows.
    pub(crate) async fn make_empty(&self) -> Result<()> {
        match &self.body {
            Body::Sparse(sparse) => sparse.make_empty().await,
            Body::Zero | Body::Flat { .. } => Err(Error::Unsupported),
        }
    }

    /// How the first bytes of `range` are stored.
    pub(crate) async fn status(
        &self,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        match &self.body {
            // Nobody may know: who asks finds out when reading it.
            _ if self.access == Access::None => Ok(DriverStatus::data(range.len())),
            Body::Zero => Ok(DriverStatus::zero(range.len())),
            Body::Flat { node, offset } => {
                let mut status = DriverStatus::data(range.len());
                status = status.at(node.clone(), offset + range.offset());
                status.recurse = detail == StatusDetail::Zeroes;
                Ok(status)
            }
            Body::Sparse(sparse) => {
                let _pass = sparse.enter().await;
                sparse.status(range).await
            }
        }
    }

    /// The file, where there is one.
    pub(crate) fn node(&self) -> Option<&Node> {
        match &self.body {
            Body::Zero => None,
            Body::Flat { node, .. } => Some(node),
            Body::Sparse(sparse) => Some(&sparse.file),
        }
    }
}
