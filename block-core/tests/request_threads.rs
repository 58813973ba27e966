//! The same requests from real threads, under executors that know nothing of each other: writes to
//! neighbouring bytes of shared blocks all arrive, whoever polls them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::{ByteRange, Node, RequestFlags};
use block_testkit::disk::MemDisk;
use block_testkit::exec::poll_times;
use block_testkit::op::contents;
use request_support::{buffer, data, node_of, shape, span};

/// Bytes of a stripe: several in each block of 512, some in two.
const STRIPE: u64 = 100;
const STRIPES: u64 = 160;
const WRITERS: u64 = 4;

fn stripe(index: u64) -> ByteRange {
    ByteRange::new(index * STRIPE, STRIPE).unwrap()
}

/// Writes every stripe of `writer`, reads it back, and drops some requests in the middle.
async fn write_stripes(node: Node, writer: u64) {
    let id = u32::try_from(writer + 1).unwrap();
    for index in (writer..STRIPES).step_by(usize::try_from(WRITERS).unwrap()) {
        let range = stripe(index);
        let write = || node.write(range, data(&node, id, range), RequestFlags::empty());
        if index % 3 == 0 {
            // The rest of it runs elsewhere; the same write again waits for it.
            let _ = poll_times(write(), 2).await;
        }
        write().await.unwrap();
        let buf = buffer(&node, range);
        node.read(range, buf.clone()).await.unwrap();
        assert_eq!(buf.to_vec(), contents(id, range), "stripe {index}");
    }
}

fn check(disk: &MemDisk) {
    let bytes = disk.to_vec();
    for index in 0..STRIPES {
        let range = stripe(index);
        let id = u32::try_from(index % WRITERS + 1).unwrap();
        let (start, end) =
            (usize::try_from(range.offset()).unwrap(), usize::try_from(range.end()).unwrap());
        assert_eq!(bytes[start..end], contents(id, range), "stripe {index}");
    }
    let end = usize::try_from(STRIPES * STRIPE).unwrap();
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
}

fn sectors() -> (Arc<MemDisk>, Node) {
    let mut shape = shape("sectors");
    shape.config.limits.max_transfer = Some(512);
    node_of(&shape)
}

#[test]
fn threads_that_block_on_their_requests() {
    let (disk, node) = sectors();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let node = node.clone();
            scope.spawn(move || futures::executor::block_on(write_stripes(node, writer)));
        }
    });
    // A request that was dropped may still run: this waits behind all of them.
    let all = node.read_with(
        ByteRange::up_to(node.len()),
        buffer(&node, span(0, node.len())),
        RequestFlags::SERIALISING,
    );
    futures::executor::block_on(all).unwrap();
    check(&disk);
}

#[test]
fn the_executor_of_this_crate() {
    let (disk, node) = sectors();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let node = node.clone();
            scope.spawn(move || block_core::io::exec::block_on(write_stripes(node, writer)));
        }
    });
    let all = node.read_with(
        ByteRange::up_to(node.len()),
        buffer(&node, span(0, node.len())),
        RequestFlags::SERIALISING,
    );
    block_core::io::exec::block_on(all).unwrap();
    check(&disk);
}

#[test]
fn tokio_with_many_threads() {
    let (disk, node) = sectors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write_stripes(node.clone(), writer))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let all = ByteRange::up_to(node.len());
        let buf = buffer(&node, all);
        node.read_with(all, buf, RequestFlags::SERIALISING).await.unwrap();
    });
    check(&disk);
}

#[test]
fn smol() {
    let (disk, node) = sectors();
    smol::block_on(async {
        let tasks: Vec<_> =
            (0..WRITERS).map(|writer| smol::spawn(write_stripes(node.clone(), writer))).collect();
        futures::future::join_all(tasks).await;
        let all = ByteRange::up_to(node.len());
        let buf = buffer(&node, all);
        node.read_with(all, buf, RequestFlags::SERIALISING).await.unwrap();
    });
    check(&disk);
}
