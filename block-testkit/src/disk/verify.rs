//! A mirror that sends every request to two nodes and compares what they read: a format against a
//! raw file, a new engine against an old one.
//!
//! A difference is a panic that says where it starts. Both nodes must be the same when the mirror is
//! made. Writes that overlap in time may end up in a different order on the two nodes, which would be
//! reported: use it with requests that do not overlap.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Child, ChildRole, Children, Exactness, Prealloc};
use block_core::error::Result;
use block_core::flags::Support;
use block_core::{BlockLimits, ByteRange, Capabilities, IoBuf, IoVec, Node, RequestFlags};

/// The mirror.
pub struct Verify {
    test: Node,
    reference: Node,
}

impl Verify {
    /// Checks `test` against `reference`, which must have the same length.
    pub fn new(test: Node, reference: Node) -> Arc<Self> {
        Arc::new(Self { test, reference })
    }
}

#[async_trait]
impl BlockDriver for Verify {
    fn name(&self) -> &'static str {
        "test-verify"
    }

    fn len(&self) -> u64 {
        self.test.len().min(self.reference.len())
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default().merge(&self.test.limits())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            write_fua: Support::Native,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Native,
            zeroes_may_unmap: Support::Native,
            truncate: Support::Native,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.test.is_read_only() || self.reference.is_read_only()
    }

    fn children(&self) -> Children {
        let child = |name, node: &Node| Child { name, role: ChildRole::Data, node: node.clone() };
        [child("test", &self.test), child("reference", &self.reference)].into_iter().collect()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.test.read(range, iov.clone()).await?;
        let expected = IoBuf::zeroed(iov.len(), self.reference.limits().opt_mem_alignment)?;
        self.reference.read(range, expected.clone().into()).await?;
        let (got, expected) = (iov.to_vec(), expected.to_vec());
        if let Some(at) = got.iter().zip(&expected).position(|(a, b)| a != b) {
            let offset = range.offset() + u64::try_from(at).unwrap_or(u64::MAX);
            panic!("{:#04x} read at {offset:#x}, expected {:#04x}", got[at], expected[at]);
        }
        Ok(())
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.test.write(range, iov.clone(), flags).await?;
        self.reference.write(range, iov, flags).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.test.write_zeroes(range, flags).await?;
        self.reference.write_zeroes(range, flags).await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.test.truncate(len, exactness, prealloc).await?;
        self.reference.truncate(len, exactness, prealloc).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::MemConfig;
    use block_core::node::NodeOptions;
    use futures::executor::block_on;

    #[test]
    #[should_panic(expected = "0x00 read at 0x205, expected 0x07")]
    fn a_difference_is_reported_where_it_starts() {
        let (test, reference) = (MemConfig::new(4096).build(), MemConfig::new(4096).build());
        reference.load(0x205, &[7]);
        let node = |disk| Node::new(disk, NodeOptions::default());
        let mirror = node(Verify::new(node(test), node(reference)) as Arc<dyn BlockDriver>);
        let read = |offset| {
            let buf = IoBuf::zeroed(512, block_core::Alignment::PAGE).unwrap();
            block_on(mirror.read(ByteRange::new(offset, 512).unwrap(), buf.into()))
        };
        assert_eq!(read(0), Ok(()));
        let _ = read(512);
    }
}
