//! Reads that are answered within one call keep the rules of all others: none while the node is
//! drained, none beyond the end, none that needs padding.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::sync::Arc;

use block_core::format::raw::RawDriver;
use block_core::proto::null::NullDriver;
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node, graph};
use futures::FutureExt;
use futures::executor::block_on;

fn iov(len: usize) -> IoVec {
    let buf = IoBuf::zeroed(len, Alignment::PAGE).unwrap();
    buf.fill(0xee);
    buf.into()
}

#[test]
fn no_read_is_answered_inline_while_the_node_is_drained() {
    let file = Node::new(Arc::new(NullDriver::new(1 << 20, true)), Default::default());
    let node = Node::new(Arc::new(RawDriver::new(file.clone())), Default::default());
    let range = ByteRange::new(512, 512).unwrap();
    let memory = iov(512);
    assert_eq!(node.read_now(range, &memory), Some(Ok(())));
    assert!(memory.is_zero());
    // The node itself, and one whose child alone is drained.
    for drained in [&node, &file] {
        let guard = block_on(graph::drain(drained));
        assert_eq!(node.read_now(range, &memory), None);
        let mut waits = node.read(range, memory.clone());
        assert!((&mut waits).now_or_never().is_none());
        drop(guard);
        assert_eq!(block_on(waits), Ok(()));
    }
}

#[test]
fn what_is_no_plain_read_takes_the_steps() {
    let node = Node::new(Arc::new(NullDriver::new(1000, true)), Default::default());
    let range = |offset, len| ByteRange::new(offset, len).unwrap();
    assert_eq!(node.read_now(range(0, 0), &iov(0)), None);
    assert_eq!(node.read_now(range(900, 101), &iov(101)), None);
    assert_eq!(node.read_now(range(0, 10), &iov(9)), None);
    assert_eq!(node.read_now(range(900, 100), &iov(100)), Some(Ok(())));
}
