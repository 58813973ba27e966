//! Cancelling zero writes between pieces, refusals without a fallback, and requests whose futures
//! are dropped in the middle: nothing is held afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::flags::Support;
use block_core::{ByteRange, Cancel, Error, Node, RequestFlags};
use block_testkit::disk::MemDisk;
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::tap::Kind;
use block_testkit::exec::{Exec, poll_times};
use block_testkit::op::contents;
use request_support::{Shape, align, buffer, data, shape, span, tapped};

const NONE: RequestFlags = RequestFlags::empty();

/// Zero writes in pieces of 4096 bytes, by the driver or by the layer's buffer.
fn pieces(zeroes: Support) -> Shape {
    let mut shape = shape("sectors");
    shape.config.capabilities.write_zeroes = zeroes;
    shape.config.limits.pwrite_zeroes_alignment = Some(align(4096));
    shape.config.limits.max_pwrite_zeroes = Some(4096);
    shape
}

fn held_disk(shape: &Shape) -> (Arc<MemDisk>, Node, Arc<Hold>) {
    let hold = Hold::new();
    let (disk, node) = tapped(shape, &hold);
    disk.load(0, &contents(0, ByteRange::up_to(shape.config.len)));
    (disk, node, hold)
}

#[test]
fn a_cancel_stops_between_two_pieces_and_says_how_far_it_got() {
    for zeroes in [Support::Native, Support::Emulated] {
        // Aligned, and with a head block that is read, changed and written first.
        for start in [0, 100] {
            Exec::run(1, |exec| async move {
                let (disk, node, hold) = held_disk(&pieces(zeroes));
                let range = span(start, 20_480);
                let cancel = Cancel::new();
                hold.hold(Point::Before, |call| {
                    call.kind.is_change() && call.range.overlaps(span(8192, 8193))
                });
                let request = node.write_zeroes_cancellable(range, NONE, &cancel);
                let task = exec.spawn("zeroes", request);
                hold.arrived(1).await;
                // In the middle of a piece: what is before it is reported as done.
                let so_far = start + cancel.done();
                assert!(so_far > start && so_far <= 8192, "done up to {so_far}");
                cancel.cancel();
                hold.release_all();
                assert_eq!(task.await, Err(Error::Cancelled));
                let done = start + cancel.done();
                assert!(done > 8192 && done < range.end(), "done up to {done}");
                let bytes = disk.to_vec();
                let (start, done) =
                    (usize::try_from(start).unwrap(), usize::try_from(done).unwrap());
                assert!(bytes[start..done].iter().all(|byte| *byte == 0));
                let rest = ByteRange::up_to(u64::try_from(bytes.len()).unwrap());
                assert_eq!(bytes[done..], contents(0, rest)[done..], "nothing beyond is touched");
                assert_eq!(bytes[..start], contents(0, rest)[..start]);
                // No ticket is held: an overlapping serialising write goes on at once.
                let again = span(start as u64, 20_000);
                let flags = RequestFlags::SERIALISING | RequestFlags::NO_WAIT;
                let next = node.write(again, data(&node, 1, again), flags);
                assert_eq!(next.await, Ok(()));
            });
        }
    }
}

#[test]
fn a_cancel_before_the_first_piece_changes_nothing() {
    Exec::run(1, |_| async move {
        let (disk, node, _) = held_disk(&pieces(Support::Native));
        let before = disk.to_vec();
        let cancel = Cancel::new();
        cancel.cancel();
        let request = node.write_zeroes_cancellable(span(0, 20_480), NONE, &cancel);
        assert_eq!((request.await, cancel.done()), (Err(Error::Cancelled), 0));
        assert_eq!(disk.to_vec(), before);
    });
}

#[test]
fn a_zero_write_that_is_not_cancelled_reports_all_of_it() {
    Exec::run(1, |_| async move {
        for range in [span(0, 20_480), span(100, 20_000), span(10, 20), span(512, 512)] {
            let (_, node, _) = held_disk(&pieces(Support::Native));
            let cancel = Cancel::new();
            let request = node.write_zeroes_cancellable(range, NONE, &cancel);
            assert_eq!((request.await, cancel.done()), (Ok(()), range.len()));
        }
    });
}

#[test]
fn what_was_done_before_a_cancel_counts_as_written() {
    Exec::run(1, |exec| async move {
        let (_, node, hold) = held_disk(&pieces(Support::Native));
        let bitmaps = node.dirty_bitmaps();
        let granularity = block_core::dirty::Granularity::MIN;
        let id = bitmaps.create(Some("b"), granularity).unwrap();
        hold.hold(Point::After, |call| call.range.offset() == 4096);
        let cancel = Cancel::new();
        let request = node.write_zeroes_cancellable(span(0, 16_384), NONE, &cancel);
        let task = exec.spawn("zeroes", request);
        hold.arrived(1).await;
        cancel.cancel();
        hold.release_all();
        assert_eq!(task.await, Err(Error::Cancelled));
        let covered = bitmaps.with(id, |b| b.next_zero(0).unwrap_or(b.len())).unwrap();
        assert!(covered >= cancel.done() && cancel.done() == 8192, "{covered} {}", cancel.done());
    });
}

#[test]
fn without_a_fallback_it_is_done_or_nothing_has_changed() {
    let cases = [
        // Not a multiple of the request alignment, so it would take a read-modify-write.
        (Support::Native, Support::Native, span(100, 8192)),
        // The driver cannot promise it, or has no zero writes at all.
        (Support::Native, Support::None, span(0, 8192)),
        (Support::Emulated, Support::None, span(0, 8192)),
    ];
    for (zeroes, no_fallback, range) in cases {
        Exec::run(1, |_| async move {
            let mut shape = pieces(zeroes);
            shape.config.capabilities.zeroes_no_fallback = no_fallback;
            let (disk, node, _) = held_disk(&shape);
            let before = disk.to_vec();
            let request = node.write_zeroes(range, RequestFlags::NO_FALLBACK);
            assert_eq!(request.await, Err(Error::Unsupported));
            assert_eq!(disk.to_vec(), before);
        });
    }
    Exec::run(1, |_| async move {
        let (disk, node, _) = held_disk(&pieces(Support::Native));
        assert_eq!(node.write_zeroes(span(0, 8192), RequestFlags::NO_FALLBACK).await, Ok(()));
        assert!(disk.to_vec()[..8192].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_dropped_request_runs_to_its_end_and_keeps_its_place_until_then() {
    // Dropped while it reads the head block, and while it writes.
    for kind in [Kind::Read, Kind::Write] {
        Exec::run(1, |exec| async move {
            let (disk, node, hold) = held_disk(&shape("sectors"));
            hold.hold(Point::Before, move |call| call.kind == kind);
            let range = span(600, 700);
            let request = node.write(range, data(&node, 1, range), NONE);
            let dropped = poll_times(request, 50);
            let dropped = exec.spawn("to be dropped", dropped);
            assert_eq!(hold.arrived(1).await[0].kind, kind);
            assert_eq!(dropped.await, None, "the race was not reached");
            // An overlapping read waits for the detached write.
            let buf = buffer(&node, span(512, 1024));
            let mut read = node.read(span(512, 1024), buf.clone());
            for _ in 0..20 {
                assert!(poll_once(&mut read).await.is_none(), "it overtook the detached write");
            }
            hold.release_all();
            assert_eq!(read.await, Ok(()));
            let mut expected = contents(0, span(512, 1024));
            expected[88..188].copy_from_slice(&contents(1, range));
            assert_eq!(buf.to_vec(), expected);
            assert_eq!(disk.to_vec()[600..700], contents(1, range));
        });
    }
}

/// One poll, and a turn for the others.
async fn poll_once(request: &mut block_core::request::Request) -> Option<block_core::Result<()>> {
    poll_times(request, 1).await
}

#[test]
fn a_request_that_was_never_polled_does_nothing() {
    Exec::run(1, |_| async move {
        let (disk, node, _) = held_disk(&shape("sectors"));
        let before = disk.to_vec();
        drop(node.write(span(0, 512), data(&node, 1, span(0, 512)), NONE));
        drop(node.write_zeroes(span(0, 4096), NONE));
        assert_eq!(node.flush().await, Ok(()));
        assert_eq!(disk.to_vec(), before);
    });
}

#[test]
fn a_request_that_is_dropped_while_it_waits_does_not_stop_those_behind_it() {
    Exec::run(1, |exec| async move {
        let (disk, node, hold) = held_disk(&shape("sectors"));
        hold.hold(Point::Before, |call| call.kind == Kind::Write && call.label.is_none());
        let first = span(100, 200);
        let first = exec.spawn("first", node.write(first, data(&node, 1, first), NONE));
        hold.arrived(1).await;
        let second = span(150, 300);
        let second = node.write(second, data(&node, 2, second), NONE);
        assert_eq!(poll_times(second, 5).await, None, "it waits");
        let third = span(400, 500);
        let third = exec.spawn("third", node.write(third, data(&node, 3, third), NONE));
        hold.release_all();
        assert_eq!((first.await, third.await), (Ok(()), Ok(())));
        let buf = buffer(&node, span(0, 512));
        assert_eq!(node.read(span(0, 512), buf).await, Ok(()));
        let bytes = disk.to_vec();
        assert_eq!(bytes[100..150], contents(1, span(100, 150)));
        assert_eq!(bytes[150..300], contents(2, span(150, 300)));
        assert_eq!(bytes[400..500], contents(3, span(400, 500)));
    });
}

#[test]
fn no_wait_gives_busy_instead_of_waiting() {
    Exec::run(1, |exec| async move {
        let (_, node, hold) = held_disk(&shape("sectors"));
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(0, 512);
        let first = exec.spawn("first", node.write(range, data(&node, 1, range), NONE));
        hold.arrived(1).await;
        let flags = RequestFlags::SERIALISING | RequestFlags::NO_WAIT;
        let busy = node.write(range, data(&node, 2, range), flags);
        assert_eq!(busy.await, Err(Error::Busy));
        hold.release_all();
        assert_eq!(first.await, Ok(()));
        assert_eq!(node.write(range, data(&node, 2, range), flags).await, Ok(()));
    });
}

#[test]
fn a_cancel_that_comes_with_the_last_piece_is_too_late() {
    Exec::run(1, |exec| async move {
        let (_, node, hold) = held_disk(&pieces(Support::Native));
        let range = span(0, 8192);
        let cancel = Cancel::new();
        hold.hold(Point::Before, |call| call.kind.is_change() && call.range.offset() == 4096);
        let request = node.write_zeroes_cancellable(range, NONE, &cancel);
        let task = exec.spawn("zeroes", request);
        hold.arrived(1).await;
        cancel.cancel();
        hold.release_all();
        assert_eq!(task.await, Ok(()));
        assert_eq!(cancel.done(), range.len());
    });
}
