//! Requests that are answered within one call keep the rules of all others: none while the node is
//! drained, none beyond the end, none that needs padding; what a write leaves behind is the same.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::sync::Arc;

use block_core::dirty::{DirtyBitmap, Granularity};
use block_core::driver::ReopenOptions;
use block_core::format::raw::{RawDriver, RawFactory};
use block_core::proto::file::FileFactory;
use block_core::proto::null::NullDriver;
use block_core::registry::OpenContext;
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node, OpenFlags, Options, Registry, graph};
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
fn writes_answered_inline_keep_the_rules_and_leave_the_same_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 8192]).unwrap();
    let context = |flags| {
        let registry = Registry::new().with(FileFactory).with(RawFactory);
        OpenContext::new(Arc::new(registry), flags)
    };
    let options = || {
        let file = Options::filename(path.to_str().unwrap());
        file.with("driver", "raw").with("detect-zeroes", "off")
    };
    let node = block_on(context(OpenFlags::READ_WRITE).open(options())).unwrap();
    let granularity = Granularity::new(512).unwrap();
    let bitmap = node.dirty_bitmaps().create(None, granularity).unwrap();
    let range = |offset, len| ByteRange::new(offset, len).unwrap();
    assert_eq!(node.write_now(range(512, 512), &iov(512)), Some(Ok(())));
    assert_eq!(std::fs::read(&path).unwrap()[512..1024], [0xee; 512]);
    let dirty = node.dirty_bitmaps().with(bitmap, |bitmap| bitmap.count()).unwrap();
    assert_eq!(dirty, 512, "a dirty bit is set");
    assert_eq!(node.write_now(range(8192, 512), &iov(512)), None, "beyond the end");
    assert_eq!(node.write_now(range(0, 512), &iov(511)), None);
    let guard = block_on(graph::drain(&node));
    assert_eq!(node.write_now(range(512, 512), &iov(512)), None);
    drop(guard);
    let flags = ReopenOptions { read_only: Some(true), ..Default::default() };
    block_on(graph::reopen(&graph::image_changes(&node, flags))).unwrap();
    assert_eq!(node.write_now(range(512, 512), &iov(512)), None, "read-only");
}

#[test]
fn a_bitmap_that_cannot_record_keeps_inline_writes_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, [0; 8192]).unwrap();
    let registry = Registry::new().with(FileFactory);
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    let options = Options::filename(path.to_str().unwrap()).with("driver", "file");
    let node = block_on(context.open(options)).unwrap();
    let range = ByteRange::new(512, 512).unwrap();
    assert_eq!(node.write_now(range, &iov(512)), Some(Ok(())));
    let mut loaded = DirtyBitmap::new(Some("loaded"), Granularity::MIN, node.len()).unwrap();
    loaded.make_read_only();
    node.dirty_bitmaps().insert(loaded).unwrap();
    assert_eq!(node.write_now(range, &iov(512)), None);
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
