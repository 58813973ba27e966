//! Flushes: one in flight, skipped when nothing was written since, and write generations that are
//! right when a write completes during a flush. FUA is stable when it returns, whatever the driver.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::flags::Support;
use block_core::node::DetectZeroes;
use block_core::{ByteRange, Node, RequestFlags};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::{Exec, yield_now};
use block_testkit::op::{Op, OpSpace};
use parking_lot::Mutex;
use proptest::prelude::*;
use request_support::{buffer, cases, data, node_of, node_on, recorded, shape, span};

const NONE: RequestFlags = RequestFlags::empty();

#[test]
fn a_flush_is_skipped_when_nothing_was_written_since() {
    Exec::run(1, |_| async move {
        let (disk, node, record) = recorded(&shape("sectors"));
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 0, "nothing was ever written");
        let range = span(0, 512);
        node.write(range, data(&node, 1, range), NONE).await.unwrap();
        node.flush().await.unwrap();
        node.read(range, buffer(&node, range)).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 1, "a read needs no flush");
        assert_eq!(disk.unstable(), []);
        node.write_zeroes(range, NONE).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 2, "a zero write does");
    });
}

#[test]
fn a_failed_write_is_flushed_too() {
    use block_testkit::disk::fault::{Effect, Fault, Rule};
    Exec::run(1, |_| async move {
        let (fault, record) = (Fault::new(), Record::new());
        fault.add(Rule::new(Kind::Write).effect(Effect::Half));
        let shape = shape("sectors");
        let below = Tapped::new(shape.config.clone().build(), fault);
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        let range = span(0, 2048);
        assert!(node.write(range, data(&node, 1, range), NONE).await.is_err());
        node.flush().await.unwrap();
        assert_eq!(record.count(Kind::FlushToDisk), 1, "it may have changed something");
    });
}

#[test]
fn one_flush_is_in_flight_and_serves_those_that_wait() {
    Exec::run(1, |exec| async move {
        let (hold, record) = (Hold::new(), Record::new());
        let shape = shape("sectors");
        let below = Tapped::new(shape.config.clone().build(), hold.clone());
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        let range = span(0, 512);
        node.write(range, data(&node, 1, range), NONE).await.unwrap();
        hold.hold(Point::Before, |call| call.kind == Kind::FlushToDisk);
        let flushes: Vec<_> =
            (0..4).map(|n| exec.spawn(format!("flush {n}"), node.flush())).collect();
        hold.arrived(1).await;
        for _ in 0..50 {
            yield_now().await;
        }
        assert_eq!(hold.held().len(), 1, "only one at a time");
        hold.release_all();
        for flush in flushes {
            assert_eq!(flush.await, Ok(()));
        }
        assert_eq!(record.count(Kind::FlushToDisk), 1, "nothing was written in between");
    });
}

#[test]
fn a_write_that_completes_during_a_flush_is_not_taken_for_flushed() {
    // The write completes while the flush is before, and after, its work.
    for point in [Point::Before, Point::After] {
        Exec::run(1, |exec| async move {
            let hold = Hold::new();
            let shape = shape("sectors");
            let disk = shape.config.clone().build();
            let node = node_on(Tapped::new(disk.clone(), hold.clone()), &shape.options);
            let write = |id, range| node.write(range, data(&node, id, range), NONE);
            write(1, span(0, 512)).await.unwrap();
            hold.hold(point, |call| call.kind == Kind::FlushToDisk);
            let flush = exec.spawn("flush", node.flush());
            hold.arrived(1).await;
            write(2, span(512, 1024)).await.unwrap();
            let second = exec.spawn("second flush", node.flush());
            for _ in 0..50 {
                yield_now().await;
            }
            hold.release_all();
            assert_eq!((flush.await, second.await), (Ok(()), Ok(())));
            assert_eq!(disk.unstable(), [], "the second flush began after the second write");
        });
    }
}

#[test]
fn fua_is_stable_when_it_returns_whatever_the_driver_can_do() {
    use Support::{Emulated, Native};
    for (write_fua, zeroes_fua, write_zeroes) in [
        (Native, Native, Native),
        (Native, Emulated, Native),
        (Emulated, Native, Native),
        (Emulated, Emulated, Native),
        (Native, Native, Emulated),
        (Emulated, Emulated, Emulated),
    ] {
        for detect_zeroes in [DetectZeroes::Off, DetectZeroes::On] {
            Exec::run(1, |_| async move {
                let mut shape = shape("sectors");
                shape.options.detect_zeroes = detect_zeroes;
                shape.config.capabilities.write_fua = write_fua;
                shape.config.capabilities.zeroes_fua = zeroes_fua;
                shape.config.capabilities.write_zeroes = write_zeroes;
                let (disk, node) = node_of(&shape);
                let what =
                    format!("{write_fua:?} {zeroes_fua:?} {write_zeroes:?} {detect_zeroes:?}");
                for range in [span(0, 512), span(100, 200), span(100, 9000), span(0, 16_384)] {
                    let flags = RequestFlags::FUA;
                    node.write(range, data(&node, 1, range), flags).await.unwrap();
                    assert_eq!(disk.unstable(), [], "write {range}: {what}");
                    node.write_zeroes(range, flags).await.unwrap();
                    assert_eq!(disk.unstable(), [], "zero write {range}: {what}");
                    node.write(range, buffer(&node, range), flags).await.unwrap();
                    assert_eq!(disk.unstable(), [], "write of zeroes {range}: {what}");
                }
            });
        }
    }
}

#[test]
fn a_flush_waits_for_no_write_and_a_plain_write_is_not_stable_by_itself() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let shape = shape("sectors");
        let disk = shape.config.clone().build();
        let node = node_on(Tapped::new(disk.clone(), hold.clone()), &shape.options);
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(0, 512);
        let write = exec.spawn("write", node.write(range, data(&node, 1, range), NONE));
        hold.arrived(1).await;
        assert_eq!(node.flush().await, Ok(()));
        hold.release_all();
        assert_eq!(write.await, Ok(()));
        assert_eq!(disk.unstable(), [range]);
    });
}

proptest! {
    #![proptest_config(cases(150))]

    /// In any order of writes and flushes, a write that returned before a flush was sent is stable
    /// when that returns. Each writer has an area of its own, so that its fragments are known.
    #[test]
    fn flushes_cover_what_was_written_before_them(
        ops in proptest::collection::vec(OpSpace::new(4096, &[512]).ops(8), 1..4),
        seed: u64,
    ) {
        Exec::run(seed, |exec| async move {
            let (disk, node) = node_of(&shape("sectors"));
            let returned: Arc<Mutex<Vec<u64>>> = Arc::new(Mutex::new(vec![0; ops.len()]));
            let writers: Vec<_> = ops.into_iter().enumerate().map(|(area, ops)| {
                let (disk, node, returned) = (disk.clone(), node.clone(), Arc::clone(&returned));
                exec.spawn(format!("writer {area}"), async move {
                    for op in ops {
                        send(&node, &op, area_of(area).offset()).await;
                        returned.lock()[area] = disk.finished_writes();
                    }
                })
            }).collect();
            for _ in 0..6 {
                for _ in 0..exec.random(40) {
                    yield_now().await;
                }
                let returned = returned.lock().clone();
                node.flush().await.unwrap();
                for (area, count) in returned.into_iter().enumerate() {
                    let mut lost = disk.unstable_up_to(count);
                    lost.retain(|range| range.overlaps(area_of(area)));
                    assert_eq!(lost, [], "written before the flush, and not stable after it");
                }
            }
            futures::future::join_all(writers).await;
        });
    }
}

fn area_of(index: usize) -> ByteRange {
    ByteRange::new(u64::try_from(index).unwrap() * 4096, 4096).unwrap()
}

/// Sends what an operation writes, moved up by `offset` bytes.
async fn send(node: &Node, op: &Op, offset: u64) {
    let range = op.range().shifted(offset).unwrap();
    match op {
        Op::Write { flags, .. } => node.write(range, data(node, 1, range), *flags).await.unwrap(),
        Op::Zero { flags, .. } => node.write_zeroes(range, *flags).await.unwrap(),
        _ => yield_now().await,
    }
}
