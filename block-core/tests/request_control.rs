//! Draining, reopening, events, and what writes leave behind: dirty bits, the write threshold.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::dirty::{BitmapId, DirtyBitmap, Granularity};
use block_core::driver::{Exactness, NodeEvent, Prealloc, ReopenOptions};
use block_core::filter::blkverify::BlkverifyDriver;
use block_core::format::raw::RawDriver;
use block_core::node::NodeOptions;
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, Error, Node, RequestFlags, graph};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::mem::Reopen;
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::{Exec, poll_times, yield_now};
use block_testkit::model::bitmap::BitmapModel;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::{Op, OpSpace};
use block_testkit::play::{Played, Player};
use parking_lot::Mutex;
use proptest::prelude::*;
use request_support::{buffer, cases, data, node_of, node_on, recorded, shape, span, tapped};

const NONE: RequestFlags = RequestFlags::empty();

async fn turns(count: usize) {
    for _ in 0..count {
        yield_now().await;
    }
}

#[test]
fn while_a_node_is_drained_nothing_is_in_the_driver_and_what_arrives_goes_on_afterwards() {
    Exec::run(1, |exec| async move {
        let (hold, record) = (Hold::new(), Record::new());
        let shape = shape("sectors");
        let below = Tapped::new(shape.config.clone().build(), hold.clone());
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(0, 512);
        let first = exec.spawn("first", node.write(range, data(&node, 1, range), NONE));
        hold.arrived(1).await;
        let drain = exec.spawn("drain", {
            let node = node.clone();
            async move { graph::drain(&node).await }
        });
        turns(20).await;
        hold.release_all();
        let guard = drain.await;
        assert_eq!((first.await, record.in_flight()), (Ok(()), 0));
        record.take();
        // Requests of every kind wait.
        let buf = buffer(&node, range);
        let late = [
            exec.spawn("write", node.write(range, data(&node, 2, range), NONE)),
            exec.spawn("unaligned write", node.write(span(1, 9), data(&node, 3, span(1, 9)), NONE)),
            exec.spawn("read", node.read(range, buf)),
            exec.spawn("zero", node.write_zeroes(range, NONE)),
            exec.spawn("discard", node.discard(range)),
            exec.spawn("flush", node.flush()),
            exec.spawn("truncate", node.truncate(20_000, Exactness::Exact, Prealloc::Off)),
        ];
        turns(50).await;
        assert_eq!(record.take_text(), "", "drained");
        drop(guard);
        for request in late {
            assert_eq!(request.await, Ok(()));
        }
    });
}

#[test]
fn a_close_waits_for_what_its_sender_has_dropped() {
    Exec::run(1, |exec| async move {
        let (hold, record) = (Hold::new(), Record::new());
        let shape = shape("sectors");
        let below = Tapped::new(shape.config.clone().build(), hold.clone());
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(0, 512);
        let write = node.write(range, data(&node, 1, range), NONE);
        assert!(poll_times(Box::pin(write), 1).await.is_none(), "it is held, and dropped");
        let close = exec.spawn("close", {
            let node = node.clone();
            async move { graph::close(&node).await }
        });
        turns(50).await;
        assert_eq!(record.count(Kind::FlushToDisk), 0, "the write may still land");
        hold.release_all();
        assert_eq!(close.await, Ok(()));
        assert_eq!((record.in_flight(), record.count(Kind::FlushToDisk)), (0, 1));
    });
}

#[test]
fn what_waits_for_a_reopen_is_aligned_to_what_holds_afterwards() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let mut bytes = shape("bytes");
        bytes.config.reopen = Reopen::Aligns(Alignment::new(4096).unwrap());
        let (_, node) = tapped(&bytes, &hold);
        hold.hold(Point::Before, |call| call.kind == Kind::Read);
        let first = span(0, 512);
        let held = exec.spawn("held", node.read(first, buffer(&node, first)));
        let number = hold.arrived(1).await[0].number;
        let reopen = exec.spawn("reopen", {
            let changes = [(node.clone(), ReopenOptions::default())];
            async move { graph::reopen(&changes).await.map_err(|error| error.to_string()) }
        });
        turns(20).await;
        // Of one block afterwards: neither may write back what it read of the other's bytes.
        let (range, near) = (span(1001, 1011), span(2001, 2011));
        let write = exec.spawn("write", node.write(range, data(&node, 1, range), NONE));
        let other = exec.spawn("near", node.write(near, data(&node, 2, near), NONE));
        let zero = exec.spawn("zero", node.write_zeroes(span(5000, 5010), NONE));
        let discard = exec.spawn("discard", node.discard(span(8192, 8704)));
        let read = exec.spawn("read", node.read(range, buffer(&node, range)));
        turns(20).await;
        hold.hold(Point::After, move |call| call.kind == Kind::Read && call.number != number);
        hold.release(number);
        assert_eq!((held.await, reopen.await), (Ok(()), Ok(())));
        turns(50).await;
        hold.release_all();
        for late in [write, other, zero, discard, read] {
            assert_eq!(late.await, Ok(()));
        }
        for (id, range) in [(1, range), (2, near)] {
            let into = buffer(&node, range);
            assert_eq!(node.read(range, into.clone()).await, Ok(()));
            assert_eq!(into.to_vec(), data(&node, id, range).to_vec(), "write {id}");
        }
    });
}

#[test]
fn a_reopen_that_nobody_waits_for_goes_on() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let (disk, node) = tapped(&shape("sectors"), &hold);
        hold.hold(Point::Before, |call| call.kind == Kind::Read);
        let range = span(0, 512);
        let held = exec.spawn("held", node.read(range, buffer(&node, range)));
        hold.arrived(1).await;
        let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
        let changes = [(node.clone(), options)];
        assert!(poll_times(Box::pin(graph::reopen(&changes)), 5).await.is_none());
        hold.release_all();
        assert_eq!(held.await, Ok(()));
        turns(50).await;
        assert_eq!((disk.reopens(), node.is_read_only()), ((1, 0), true));
        assert_eq!(node.read(range, buffer(&node, range)).await, Ok(()), "the drain has ended");
    });
}

#[test]
fn a_status_that_nobody_waits_for_is_over_before_a_drain_is() {
    Exec::run(1, |exec| async move {
        let (hold, record) = (Hold::new(), Record::new());
        let shape = shape("sectors");
        let below = Tapped::new(shape.config.clone().build(), hold.clone());
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        hold.hold(Point::Before, |call| call.kind == Kind::Status);
        let status = node.block_status(span(0, 512), StatusDetail::Zeroes);
        assert!(poll_times(Box::pin(status), 3).await.is_none(), "it is held, and dropped");
        let drain = exec.spawn("drain", {
            let node = node.clone();
            async move { drop(graph::drain(&node).await) }
        });
        turns(20).await;
        assert_eq!(record.in_flight(), 1);
        hold.release_all();
        drain.await;
        assert_eq!(record.in_flight(), 0, "the driver has done it to its end");
    });
}

#[test]
fn a_reopened_node_flushes_as_it_was_told() {
    Exec::run(1, |_| async move {
        let mut shape = shape("sectors");
        shape.options.no_flush = true;
        let (disk, file, record) = recorded(&shape);
        let node = node_on(Arc::new(RawDriver::new(file)), &shape.options);
        let reopen = |no_flush| {
            let options = ReopenOptions { no_flush: Some(no_flush), ..ReopenOptions::default() };
            let changes = graph::image_changes(&node, options);
            async move { graph::reopen(&changes).await.map_err(|error| error.to_string()) }
        };
        let (first, second) = (span(0, 512), span(512, 1024));
        node.write(first, data(&node, 1, first), NONE).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 0);
        reopen(false).await.unwrap();
        node.write(second, data(&node, 2, second), NONE).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!((record.count(Kind::FlushToDisk), disk.unstable()), (1, vec![]));
        reopen(true).await.unwrap();
        node.write(first, data(&node, 3, first), NONE).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 1);
    });
}

#[test]
fn a_node_below_two_others_is_reopened_once_and_after_both() {
    Exec::run(1, |_| async move {
        let shape = shape("sectors");
        let (disk, file) = node_of(&shape);
        let raw = || node_on(Arc::new(RawDriver::new(file.clone())), &shape.options);
        // One path to the file is longer than the other.
        let longer = node_on(Arc::new(RawDriver::new(raw())), &shape.options);
        let top = node_on(Arc::new(BlkverifyDriver::new(raw(), longer)), &shape.options);
        let range = span(0, 512);
        top.write(range, data(&top, 1, range), NONE).await.unwrap();
        let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
        let changes = graph::image_changes(&top, options);
        assert_eq!(changes.len(), 5);
        graph::reopen(&changes).await.unwrap();
        assert_eq!((disk.reopens(), disk.unstable()), ((1, 0), vec![]));
        assert!(changes.iter().all(|(node, _)| node.is_read_only()));
    });
}

#[test]
fn what_was_written_when_a_node_became_read_only_is_flushed() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let shape = shape("sectors");
        let (disk, file) = tapped(&shape, &hold);
        let node = node_on(Arc::new(RawDriver::new(file)), &shape.options);
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(0, 512);
        let write = exec.spawn("write", node.write(range, data(&node, 1, range), NONE));
        hold.arrived(1).await;
        let reopen = exec.spawn("reopen", {
            let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
            let changes = graph::image_changes(&node, options);
            async move { graph::reopen(&changes).await.map_err(|error| error.to_string()) }
        });
        turns(20).await;
        hold.release_all();
        assert_eq!((write.await, reopen.await), (Ok(()), Ok(())));
        assert_eq!(node.flush().await, Ok(()));
        assert_eq!((disk.finished_writes(), disk.unstable()), (1, vec![]));
    });
}

#[test]
fn a_truncate_that_waited_owns_what_it_adds() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let (disk, node) = tapped(&shape("sectors"), &hold);
        let truncate = |len| node.truncate(len, Exactness::Exact, Prealloc::Off);
        let len = node.len();
        hold.hold(Point::Before, |call| call.kind == Kind::Truncate);
        let shrink = exec.spawn("shrink", truncate(4096));
        let shrinking = hold.arrived(1).await[0].number;
        // It adds nothing when it is sent, but when its turn comes.
        let grow = exec.spawn("grow", truncate(len));
        turns(20).await;
        hold.hold(Point::After, move |call| {
            call.kind == Kind::Truncate && call.number != shrinking
        });
        hold.release(shrinking);
        assert_eq!(shrink.await, Ok(()));
        hold.arrived(1).await;
        assert_eq!(node.len(), len);
        let range = span(8192, 8704);
        let write = exec.spawn("write", node.write(range, data(&node, 1, range), NONE));
        turns(50).await;
        let written = disk.finished_writes();
        hold.release_all();
        assert_eq!((grow.await, write.await), (Ok(()), Ok(())));
        assert_eq!(written, 0, "written before the truncate had ended");
    });
}

#[test]
fn a_filter_flushes_what_a_corrupt_image_still_holds() {
    Exec::run(1, |_| async move {
        let (disk, below, record) = recorded(&shape("sectors"));
        let node = Node::new(Arc::new(RawDriver::new(below.clone())), NodeOptions::default());
        let range = span(0, 512);
        node.write(range, data(&node, 1, range), NONE).await.unwrap();
        disk.report(NodeEvent::Corrupted { what: "L2 entry", value: 7 });
        assert_eq!(node.flush().await, Ok(()));
        assert_eq!((record.count(Kind::FlushToDisk), disk.unstable()), (1, vec![]));
        let again = node.write(range, data(&node, 1, range), RequestFlags::WRITE_UNCHANGED).await;
        assert_eq!(again, Err(Error::ReadOnly));
        assert_eq!(graph::close(&node).await, Ok(()));
    });
}

#[test]
fn a_drain_reaches_the_nodes_below_and_lets_requests_from_above_finish() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let (_, file) = tapped(&shape("sectors"), &hold);
        let raw = Node::new(Arc::new(RawDriver::new(file.clone())), NodeOptions::default());
        // A read-modify-write: it still has to write when the drain begins.
        hold.hold(Point::Before, |call| call.kind == Kind::Read);
        let range = span(100, 200);
        let write = exec.spawn("write", raw.write(range, data(&raw, 1, range), NONE));
        hold.arrived(1).await;
        let drain = exec.spawn("drain", {
            let raw = raw.clone();
            async move { graph::drain(&raw).await }
        });
        turns(20).await;
        hold.release_all();
        let guard = drain.await;
        assert_eq!(write.await, Ok(()));
        let below = exec.spawn("below", file.write(range, data(&file, 2, range), NONE));
        hold.hold(Point::Before, |_| true);
        turns(20).await;
        assert_eq!(hold.held(), [], "the node below is drained too");
        drop(guard);
        hold.arrived(1).await;
        hold.release_all();
        assert_eq!(below.await, Ok(()));
    });
}

#[test]
fn drains_nest_and_a_drain_that_is_given_up_ends() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let (_, node) = tapped(&shape("sectors"), &hold);
        let (first, second) = (graph::drain(&node).await, graph::drain(&node).await);
        let range = span(0, 512);
        let write = exec.spawn("write", node.write(range, data(&node, 1, range), NONE));
        drop(first);
        turns(20).await;
        hold.hold(Point::Before, |_| true);
        turns(20).await;
        assert_eq!(hold.held(), []);
        drop(second);
        hold.arrived(1).await;
        // This one waits for the write and is given up.
        let given_up = poll_times(Box::pin(graph::drain(&node)), 3).await;
        assert!(given_up.is_none());
        hold.release_all();
        assert_eq!(write.await, Ok(()));
        assert_eq!(node.read(range, buffer(&node, range)).await, Ok(()));
    });
}

#[test]
fn a_reopen_is_made_on_all_nodes_or_on_none() {
    for fails in [false, true] {
        Exec::run(1, |_| async move {
            let (first, one) = node_of(&shape("sectors"));
            let mut other = shape("sectors");
            other.config.reopen = if fails { Reopen::Fails } else { Reopen::Works };
            let (second, two) = node_of(&other);
            let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
            let changes = [(one.clone(), options), (two.clone(), options)];
            let result = graph::reopen(&changes).await;
            assert_eq!(result.is_err(), fails);
            let done = u64::from(!fails);
            assert_eq!(first.reopens(), (done, 1 - done));
            assert_eq!(second.reopens(), (done, 0), "what was not prepared is not aborted");
            let range = span(0, 512);
            let expected = if fails { Ok(()) } else { Err(Error::ReadOnly) };
            for node in [&one, &two] {
                let written = node.write(range, data(node, 1, range), NONE).await;
                assert_eq!((written, node.is_read_only()), (expected, !fails));
                // The drain has ended.
                assert_eq!(node.read(range, buffer(node, range)).await, Ok(()));
            }
        });
    }
}

#[test]
fn a_read_only_node_refuses_every_change_and_nothing_arrives() {
    Exec::run(1, |_| async move {
        let (_, node, record) = recorded(&shape("bytes"));
        let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
        graph::reopen(&[(node.clone(), options)]).await.unwrap();
        record.take();
        let range = span(0, 512);
        let truncate = node.truncate(9, Exactness::Exact, Prealloc::Off);
        for request in [
            node.write(range, data(&node, 1, range), NONE),
            node.write(span(1, 2), data(&node, 1, span(1, 2)), NONE),
            node.write_zeroes(range, NONE),
            node.discard(range),
            truncate,
        ] {
            assert_eq!(request.await, Err(Error::ReadOnly));
        }
        let unchanged = node.write(range, data(&node, 1, range), RequestFlags::WRITE_UNCHANGED);
        assert_eq!(unchanged.await, Ok(()), "copy on read may write");
        assert_eq!(record.take_text(), "write 0x0+0x200 WRITE_UNCHANGED\n");
    });
}

#[test]
fn the_write_threshold_is_reported_once() {
    Exec::run(1, |_| async move {
        let (_, node) = node_of(&shape("sectors"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        node.on_event(move |event| seen.lock().push(event));
        node.set_write_threshold(Some(4096));
        for (start, end) in [(0, 4096), (3500, 4608), (8192, 16_384)] {
            let range = span(start, end);
            node.write(range, data(&node, 1, range), NONE).await.unwrap();
        }
        let expected = NodeEvent::WriteThreshold { threshold: 4096, exceeded: 512 };
        assert_eq!(*events.lock(), [expected]);
    });
}

#[test]
fn a_node_whose_driver_finds_corruption_takes_no_more_writes() {
    Exec::run(1, |_| async move {
        let (disk, node) = node_of(&shape("sectors"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        node.on_event(move |event| seen.lock().push(event));
        let range = span(0, 512);
        node.write(range, data(&node, 1, range), NONE).await.unwrap();
        let corrupted = NodeEvent::Corrupted { what: "L2 entry", value: 7 };
        disk.report(corrupted);
        assert_eq!(*events.lock(), [corrupted]);
        assert!(node.is_read_only());
        let written = node.write(range, data(&node, 2, range), NONE).await;
        assert_eq!(written, Err(Error::ReadOnly));
        assert_eq!(node.write_zeroes(range, NONE).await, Err(Error::ReadOnly));
        assert_eq!(node.read(range, buffer(&node, range)).await, Ok(()));
    });
}

fn bitmap(node: &Node) -> BitmapId {
    node.dirty_bitmaps().create(Some("test"), Granularity::MIN).unwrap()
}

fn areas(node: &Node, id: BitmapId) -> Vec<ByteRange> {
    node.dirty_bitmaps().with(id, |bitmap| bitmap.areas().collect()).unwrap()
}

#[test]
fn failed_writes_are_dirty_and_unchanged_ones_are_not() {
    // As they are, and with a block that is read, changed and written.
    for align in [1, 4096] {
        Exec::run(1, |_| async move {
            let fault = Fault::new();
            let mut shape = shape("bytes");
            shape.config = shape.config.aligned(align);
            shape.config.len = 65_536;
            let (_, node) = tapped(&shape, &fault);
            let id = bitmap(&node);
            for (kind, range) in [
                (Kind::Write, span(0, 1024)),
                (Kind::Zero, span(6144, 18_432)),
                (Kind::Discard, span(20_480, 28_672)),
            ] {
                fault.add(Rule::new(kind).once().effect(Effect::Half));
                let request = match kind {
                    Kind::Write => node.write(range, data(&node, 1, range), NONE),
                    Kind::Zero => node.write_zeroes(range, NONE),
                    _ => node.discard(range),
                };
                assert_eq!(request.await, Err(Error::IO), "{kind} {range}");
            }
            let range = span(40_960, 41_984);
            let unchanged = node.write(range, data(&node, 1, range), RequestFlags::WRITE_UNCHANGED);
            assert_eq!(unchanged.await, Ok(()));
            let expected = [span(0, 1024), span(6144, 18_432), span(20_480, 28_672)];
            assert_eq!(areas(&node, id), expected);
        });
    }
}

#[test]
fn what_grows_a_node_is_dirty() {
    Exec::run(1, |_| async move {
        let mut shape = shape("bytes");
        shape.config.len = 1024;
        shape.config.capabilities.grows_on_write = true;
        let (_, node) = node_of(&shape);
        let id = bitmap(&node);
        let range = span(2048, 4096);
        node.write(range, data(&node, 1, range), NONE).await.unwrap();
        let dirty = areas(&node, id);
        assert!(dirty.iter().any(|area| area.contains(range)), "after a growing write: {dirty:?}");
        node.write_zeroes(span(8192, 9216), NONE).await.unwrap();
        let dirty = areas(&node, id);
        let zeroed = span(8192, 9216);
        assert!(dirty.iter().any(|area| area.contains(zeroed)), "after growing zeroes: {dirty:?}");
        node.truncate(600, Exactness::Exact, Prealloc::Off).await.unwrap();
        assert_eq!(areas(&node, id), []);
        node.truncate(2048, Exactness::Exact, Prealloc::Off).await.unwrap();
        let dirty = areas(&node, id);
        assert!(
            dirty.iter().any(|area| area.contains(span(1024, 2048))),
            "after growing: {dirty:?}"
        );
    });
}

#[test]
fn a_read_only_bitmap_keeps_writes_away() {
    Exec::run(1, |_| async move {
        let (_, node, record) = recorded(&shape("bytes"));
        let mut loaded = DirtyBitmap::new(Some("loaded"), Granularity::MIN, node.len()).unwrap();
        loaded.make_read_only();
        node.dirty_bitmaps().insert(loaded).unwrap();
        let range = span(0, 512);
        for request in [
            node.write(range, data(&node, 1, range), NONE),
            node.write(span(5, 9), data(&node, 1, span(5, 9)), NONE),
            node.write_zeroes(range, NONE),
            node.discard(range),
        ] {
            assert_eq!(request.await, Err(Error::ReadOnly));
        }
        assert_eq!(record.take_text(), "");
    });
}

proptest! {
    #![proptest_config(cases(100))]

    /// Every byte that a request may have changed is dirty, whatever runs beside it, and nothing else
    /// is: the bits are those of the granules that the requests touched.
    #[test]
    fn dirty_bits_are_those_of_the_requests(
        ops in OpSpace::new(16_384, &[512, 1000]).ops(16),
        depth in 1..=6usize,
        seed: u64,
    ) {
        Exec::run(seed, |exec| async move {
            let mut shape = shape("sectors");
            shape.config.len = 16_384;
            let (_, node) = node_of(&shape);
            let id = bitmap(&node);
            let player = Player::new(exec, node.clone(), DiskModel::new(16_384, Source::Zero));
            let played = player.play(&ops, depth).await;
            let mut model = BitmapModel::new(512, 16_384);
            for (op, played) in ops.iter().zip(played) {
                assert_eq!(played, Played::Returned(Ok(())));
                if !matches!(op, Op::Read { .. }) {
                    model.set(op.range());
                }
            }
            assert_eq!(areas(&node, id), model.areas());
        });
    }
}
