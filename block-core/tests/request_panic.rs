//! A driver that panics fails its own request and no other: its place among the tracked requests is
//! given back.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, IoBuf, IoVec, Node, RequestFlags, Result,
    graph,
};
use futures::FutureExt;
use futures::executor::block_on;

struct Panics;

#[async_trait]
impl BlockDriver for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn len(&self) -> u64 {
        1 << 20
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { request_alignment: Alignment::SECTOR, ..BlockLimits::default() }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, _: ByteRange, _: IoVec) -> Result<()> {
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        panic!("this panic is part of the test");
    }
}

#[test]
fn the_place_of_a_request_whose_driver_panicked_is_free_again() {
    let node = Node::new(Arc::new(Panics), Default::default());
    // One on the fast path, one that is padded.
    for (offset, len) in [(0, 512), (1, 100)] {
        let buf = IoBuf::zeroed(len, Alignment::ONE).unwrap();
        let range = ByteRange::new(offset, len as u64).unwrap();
        let write = node.write(range, buf.into(), RequestFlags::empty());
        let panicked = block_on(AssertUnwindSafe(write).catch_unwind());
        assert!(panicked.is_err());
    }
    // Would wait for ever if a place were still taken.
    let drained = block_on(graph::drain(&node));
    drop(drained);
}
