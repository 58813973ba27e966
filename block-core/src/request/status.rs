//! Block status: how a range is stored, through the layers of a chain.
//!
//! **Invariant:** an answer covers at least one byte unless the range is empty or beyond the end; it
//! never covers a byte beyond the range or the end; `ZERO` is only ever said of bytes that read as
//! zeroes now.

use std::sync::Arc;

use bitflags::bitflags;
use futures::future::BoxFuture;

use crate::driver::ChildRole;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::io::exec::to_the_end;
use crate::node::Node;
use crate::range::ByteRange;

use super::tracked::Claim;

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
    /// The mapped node's answer is the whole answer: this driver passes requests through.
    pub filtered: bool,
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
        Self { filtered: true, ..Self::data(len).at(node, offset) }
    }

    /// With these flags.
    pub fn of(len: u64, flags: StatusFlags) -> Self {
        Self { len, flags, mapping: None, recurse: false, filtered: false }
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

impl Node {
    /// How the first bytes of `range` are stored, in this layer only: no backing file is asked, but
    /// what no layer can hold is `ZERO`.
    pub async fn block_status(
        &self,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<BlockStatus> {
        let range = range.intersect(ByteRange::up_to(self.len()));
        let mut status = self.layer_status(range, detail).await?;
        if !status.is_allocated() && status.len > 0 {
            // Nobody below holds what is beyond the end of the backing file.
            let below = self.backing().map_or(0, |backing| backing.len());
            match below.checked_sub(range.offset()) {
                Some(held) if held > 0 => status.len = status.len.min(held),
                _ => status.flags |= StatusFlags::ZERO,
            }
        }
        if range.offset() + status.len >= self.len() {
            status.flags |= StatusFlags::EOF;
        }
        Ok(status)
    }

    /// How the first bytes of `range` are stored, down the chain of backing files to `base`
    /// (not included; `None`: to the end). `depth` says in which layer the answer was found.
    ///
    /// What no layer above `base` holds is neither `DATA` nor `ZERO` if there is a base, and `ZERO`
    /// if there is none.
    pub async fn block_status_above(
        &self,
        base: Option<&Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<BlockStatus> {
        let mut rest = range.intersect(ByteRange::up_to(self.len()));
        let mut layer = self.clone();
        let mut depth = 0;
        loop {
            let inside = rest.intersect(ByteRange::up_to(layer.len()));
            let mut status = if inside.is_empty() && !rest.is_empty() {
                // A short layer: what it does not reach, it makes read as zeroes.
                let flags = StatusFlags::ZERO | StatusFlags::ALLOCATED;
                BlockStatus { len: rest.len(), flags, mapping: None, depth }
            } else {
                layer.layer_status(inside, detail).await?
            };
            status.depth = depth;
            let next = layer.backing();
            let at_base = base.is_some_and(|base| next.as_ref().is_some_and(|n| n.same(base)));
            if next.is_none() && !status.is_allocated() {
                status.flags |= StatusFlags::ZERO;
            }
            if rest.offset() + status.len >= self.len() {
                status.flags |= StatusFlags::EOF;
            }
            match next {
                Some(next) if !status.is_allocated() && status.len > 0 && !at_base => {
                    rest = rest.first(status.len);
                    layer = next;
                    depth += 1;
                }
                _ => return Ok(status),
            }
        }
    }

    /// Whether this layer decides the contents of the first byte of `range`, and for how many bytes
    /// the answer is the same.
    pub async fn is_allocated(&self, range: ByteRange) -> Result<(bool, u64)> {
        let status = self.block_status(range, StatusDetail::Allocation).await?;
        Ok((status.is_allocated(), status.len))
    }

    /// Whether any layer from this one to `base` (not included) decides the contents of the first
    /// byte of `range`, and for how many bytes the answer is the same.
    pub async fn is_allocated_above(
        &self,
        base: Option<&Self>,
        range: ByteRange,
    ) -> Result<(bool, u64)> {
        let status = self.block_status_above(base, range, StatusDetail::Allocation).await?;
        Ok((status.is_allocated(), status.len))
    }

    /// The driver's answer, cut to `range` (inside the disk), with the holes that its file knows.
    async fn layer_status(&self, range: ByteRange, detail: StatusDetail) -> Result<BlockStatus> {
        if range.is_empty() {
            return Ok(BlockStatus { len: 0, flags: StatusFlags::EOF, mapping: None, depth: 0 });
        }
        let aligned = range.expand(self.limits().request_alignment);
        let node = self.clone();
        let asked = to_the_end(async move {
            // Counted as in flight, for drains; conflicts with nothing.
            let nothing = Claim::shared(ByteRange::default());
            let _ticket = node.begin(nothing, RequestFlags::empty()).await?;
            Arc::clone(node.driver()).block_status(aligned, detail).await
        });
        let answer = asked.await?;
        let before = range.offset() - aligned.offset();
        let len = answer.len.checked_sub(before).filter(|len| *len > 0);
        let wrong = Error::Corrupt { what: "length of a block status", value: answer.len };
        let mut status = BlockStatus {
            len: len.ok_or(wrong)?.min(range.len()),
            flags: answer.flags,
            mapping: answer.mapping,
            depth: 0,
        };
        if let Some(mapping) = &mut status.mapping {
            mapping.offset += before;
        } else if self.is_storage() {
            status.mapping = Some(Mapping { node: self.clone(), offset: range.offset() });
        }
        let ask_below = answer.filtered || (answer.recurse && detail == StatusDetail::Zeroes);
        match status.mapping.clone() {
            Some(below) if ask_below => add_holes(status, &below, answer.filtered, detail).await,
            _ => Ok(status),
        }
    }

    /// Whether the bytes stand here and in no child.
    fn is_storage(&self) -> bool {
        self.children().iter().all(|child| child.role == ChildRole::Cow)
    }
}

/// What the node that holds the bytes adds: holes, and for a filter the whole answer.
fn add_holes(
    mut status: BlockStatus,
    below: &Mapping,
    filtered: bool,
    detail: StatusDetail,
) -> BoxFuture<'_, Result<BlockStatus>> {
    Box::pin(async move {
        let range = ByteRange::new(below.offset, status.len)?;
        // Whoever passes requests through reads what the whole chain below reads as.
        let found = match filtered {
            true => below.node.block_status_above(None, range, detail).await?,
            false => below.node.block_status(range, detail).await?,
        };
        if found.len == 0 {
            // Beyond the end of the file.
            status.flags.insert(StatusFlags::ZERO);
            if filtered {
                status.flags.remove(StatusFlags::DATA);
            }
            return Ok(status);
        }
        status.len = status.len.min(found.len);
        if filtered {
            status.flags = found.flags - StatusFlags::EOF;
            status.mapping = found.mapping;
        } else {
            status.flags |= found.flags & StatusFlags::ZERO;
        }
        Ok(status)
    })
}
