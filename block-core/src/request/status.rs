//! Block status: how a range is stored, through the layers of a chain.

use bitflags::bitflags;

use crate::node::Node;

bitflags! {
    /// How a piece of a disk is stored. Neither `DATA` nor `ZERO`: the contents are unknown.
    #[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Hash)]
    pub struct StatusFlags: u32 {
        /// Reading it takes a read of stored bytes.
        const DATA = 1 << 0;
        /// It reads as zeroes.
        const ZERO = 1 << 1;
        /// This layer decides its contents (not a backing file below).
        const ALLOCATED = 1 << 2;
        /// The piece is compressed.
        const COMPRESSED = 1 << 3;
        /// The piece ends at the end of the disk.
        const EOF = 1 << 4;
    }
}

/// How much work an answer may take.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum StatusDetail {
    /// Find holes too, at the cost of asking the storage.
    Zeroes,
    /// Only which layer holds the data.
    Allocation,
}

/// Where the bytes of a piece stand.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The node that holds them.
    pub node: Node,
    /// Offset of the first byte in that node.
    pub offset: u64,
}

/// A driver's answer for the first `len` bytes of the range it was asked about.
#[derive(Clone, Debug)]
pub struct DriverStatus {
    /// Bytes that the answer covers; at least one, at most what was asked.
    pub len: u64,
    /// How they are stored.
    pub flags: StatusFlags,
    /// Where, if they stand there unchanged.
    pub mapping: Option<Mapping>,
    /// Ask the mapped node too: it may know of holes.
    pub recurse: bool,
}

impl DriverStatus {
    /// Stored by this driver, in no place that has an offset.
    pub fn data(len: u64) -> Self {
        Self::of(len, StatusFlags::DATA | StatusFlags::ALLOCATED)
    }

    /// Reads as zeroes, decided by this driver.
    pub fn zero(len: u64) -> Self {
        Self::of(len, StatusFlags::ZERO | StatusFlags::ALLOCATED)
    }

    /// Not in this layer.
    pub fn unallocated(len: u64) -> Self {
        Self::of(len, StatusFlags::empty())
    }

    /// Whatever the byte at `offset` of `node` is: a filter's answer.
    pub fn recurse(len: u64, node: Node, offset: u64) -> Self {
        Self {
            recurse: true,
            ..Self::data(len).at(node, offset)
        }
    }

    /// With these flags.
    pub fn of(len: u64, flags: StatusFlags) -> Self {
        Self {
            len,
            flags,
            mapping: None,
            recurse: false,
        }
    }

    /// Standing at `offset` of `node`.
    #[must_use]
    pub fn at(mut self, node: Node, offset: u64) -> Self {
        self.mapping = Some(Mapping { node, offset });
        self
    }
}

/// A node's answer for the first `len` bytes of the range it was asked about.
#[derive(Clone, Debug)]
pub struct BlockStatus {
    /// Bytes that the answer covers; zero only if the range was empty or beyond the end.
    pub len: u64,
    /// How they are stored.
    pub flags: StatusFlags,
    /// Where they stand, at the lowest node that holds them unchanged.
    pub mapping: Option<Mapping>,
    /// How many backing files down the data was found (0: this node).
    pub depth: usize,
}

impl BlockStatus {
    /// Whether it reads as zeroes.
    pub fn is_zero(&self) -> bool {
        self.flags.contains(StatusFlags::ZERO)
    }

    /// Whether reading it takes a read of stored bytes.
    pub fn is_data(&self) -> bool {
        self.flags.contains(StatusFlags::DATA)
    }

    /// Whether the layer that was asked decides its contents.
    pub fn is_allocated(&self) -> bool {
        self.flags.contains(StatusFlags::ALLOCATED)
    }
}
