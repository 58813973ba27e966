//! What a device or a tool holds: a node, and the rules that the outside world is held to.
//!
//! A node reads zeroes beyond its end and grows where its driver can, because formats need that of
//! their files. A device must do neither: here every range outside of the disk is an error. A disk that
//! is counted in sectors ends with a whole one ([`BlockBackend::in_sectors`]).

use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::driver::{Exactness, Prealloc};
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{Alignment, ByteRange};
use crate::request::Request;

/// When a write counts as done.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum WriteCache {
    /// When the node has it; stable after a flush.
    #[default]
    Writeback,
    /// When it is stable: every write carries FUA.
    Writethrough,
}

/// A device's or tool's handle on a node.
#[derive(Clone, Debug)]
pub struct BlockBackend {
    node: Node,
    cache: WriteCache,
    /// The disk ends at a multiple of it.
    unit: Alignment,
}

impl BlockBackend {
    /// A backend on `node`.
    pub fn new(node: Node, cache: WriteCache) -> Self {
        Self { node, cache, unit: Alignment::ONE }
    }

    /// The same, of a disk that is counted in sectors: behind the end of a node that ends inside of one,
    /// the rest of the sector reads as zeroes, and a write to it makes the node longer, where it can grow.
    #[must_use]
    pub fn in_sectors(self) -> Self {
        Self { unit: Alignment::SECTOR, ..self }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.unit.round_up(self.node.len())
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.node.is_empty()
    }

    /// Reads `range` into `iov`. `OutOfRange` if any of it is beyond the end.
    pub fn read(&self, range: ByteRange, iov: IoVec) -> Result<Request> {
        Ok(self.node.read(self.checked(range)?, iov))
    }

    /// Writes `iov` to `range`. `OutOfRange` if any of it is beyond the end.
    pub fn write(&self, range: ByteRange, iov: IoVec, flags: RequestFlags) -> Result<Request> {
        Ok(self.node.write(self.checked(range)?, iov, self.with_cache(flags)))
    }

    /// Makes `range` read as zeroes; see [`Node::write_zeroes_cancellable`].
    pub fn write_zeroes(
        &self,
        range: ByteRange,
        flags: RequestFlags,
        cancel: &Cancel,
    ) -> Result<Request> {
        let flags = self.with_cache(flags);
        Ok(self.node.write_zeroes_cancellable(self.checked(range)?, flags, cancel))
    }

    /// Says that the contents of `range` are not needed any more; see [`Node::discard`].
    pub fn discard(&self, range: ByteRange) -> Result<Request> {
        Ok(self.node.discard(self.checked(range)?))
    }

    /// Makes every write that completed before the call stable.
    pub fn flush(&self) -> Request {
        self.node.flush()
    }

    /// Changes the length; see [`Node::truncate`].
    pub fn truncate(&self, len: u64, exactness: Exactness, prealloc: Prealloc) -> Request {
        self.node.truncate(len, exactness, prealloc)
    }

    fn checked(&self, range: ByteRange) -> Result<ByteRange> {
        let len = self.len();
        if range.end() > len { Err(Error::OutOfRange { range, len }) } else { Ok(range) }
    }

    fn with_cache(&self, flags: RequestFlags) -> RequestFlags {
        match self.cache {
            WriteCache::Writeback => flags,
            WriteCache::Writethrough => flags | RequestFlags::FUA,
        }
    }
}
