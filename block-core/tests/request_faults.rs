//! Injected errors at every kind of request leave old or new data in the range asked for, and nothing
//! else changed; afterwards the node works.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Error, Node, RequestFlags};
use block_testkit::disk::MemDisk;
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::{Discards, Op, OpSpace, contents};
use block_testkit::play::{Played, Player};
use proptest::prelude::*;
use request_support::{Shape, cases, data, node_on, shape, shapes, span, tapped};

const KINDS: [Kind; 6] =
    [Kind::Read, Kind::Write, Kind::Zero, Kind::Discard, Kind::FlushToOs, Kind::FlushToDisk];

fn rule() -> impl Strategy<Value = Rule> {
    let effect = proptest::sample::select(vec![Effect::Nothing, Effect::Half, Effect::All]);
    let kind = proptest::sample::select(KINDS.to_vec());
    let error = proptest::sample::select(vec![Error::IO, Error::NO_SPACE, Error::Unsupported]);
    (kind, 0..5u64, any::<bool>(), effect, error).prop_map(|(kind, skip, once, effect, error)| {
        // Only for these is `Unsupported` an answer that a driver may give.
        let may_refuse = matches!(kind, Kind::Zero | Kind::Discard);
        let error = if error == Error::Unsupported && !may_refuse { Error::IO } else { error };
        let rule = Rule::new(kind).skip(skip).effect(effect).error(error);
        if once { rule.once() } else { rule }
    })
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_failure_leaves_old_or_new_data_in_the_range_and_nothing_else_changed(
        (shape, ops, after) in game(),
        rules in proptest::collection::vec(rule(), 1..4),
        depth in 1..=4usize,
        seed: u64,
    ) {
        let failed = Exec::run(seed, |exec| async move {
            let fault = Fault::new();
            let (disk, node) = tapped(&shape, &fault);
            let all = ByteRange::up_to(shape.config.len);
            disk.load(0, &contents(0, all));
            let player = Player::new(exec, node, DiskModel::new(all.len(), Source::Op(0)));
            rules.into_iter().for_each(|rule| fault.add(rule));
            player.play(&ops, depth).await;
            fault.clear();
            player.check_all().await;
            let played = player.play(&after, depth).await;
            player.check_all().await;
            played.into_iter().filter(|played| *played != Played::Returned(Ok(()))).count()
        });
        prop_assert_eq!(failed, 0, "requests failed after the faults were gone");
    }
}

/// A disk, operations while requests fail, and operations afterwards.
fn game() -> impl Strategy<Value = (Shape, Vec<Op>, Vec<Op>)> {
    proptest::sample::select(shapes()).prop_flat_map(|shape| {
        let space = OpSpace {
            zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP,
            discards: Discards::Sometimes,
            ..OpSpace::new(shape.config.len, &shape.edges)
        };
        (Just(shape), space.ops(12), space.ops(6))
    })
}

/// A disk of sectors with a fault rule, full of known bytes; what arrives is recorded.
fn faulty(rule: Rule) -> (Arc<MemDisk>, Node, Arc<Record>) {
    let shape = shape("sectors");
    let (fault, record) = (Fault::new(), Record::new());
    fault.add(rule);
    let disk = shape.config.clone().build();
    disk.load(0, &contents(0, ByteRange::up_to(shape.config.len)));
    let below = Tapped::new(disk.clone(), fault);
    let node = node_on(Tapped::new(below, record.clone()), &shape.options);
    (disk, node, record)
}

#[test]
fn a_failed_read_in_a_read_modify_write_fails_the_write_and_nothing_is_written() {
    // The head block, the tail block, both in one read.
    for (range, bad) in [
        (span(600, 3000), span(512, 1024)),
        (span(600, 3000), span(2560, 3072)),
        (span(600, 1500), span(1024, 1536)),
        (span(600, 700), span(512, 1024)),
    ] {
        let (disk, node, record) = faulty(Rule::new(Kind::Read).at(bad));
        let before = disk.to_vec();
        let written = Exec::run(1, |_| {
            let node = node.clone();
            async move { node.write(range, data(&node, 1, range), RequestFlags::empty()).await }
        });
        assert_eq!((written, record.count(Kind::Write)), (Err(Error::IO), 0), "write {range}");
        let zeroed =
            Exec::run(1, |_| async move { node.write_zeroes(range, RequestFlags::empty()).await });
        let changes = record.count(Kind::Write) + record.count(Kind::Zero);
        assert_eq!((zeroed, changes), (Err(Error::IO), 0), "zero write {range}");
        assert_eq!(disk.to_vec(), before);
    }
}

#[test]
fn a_failed_fragment_ends_the_write_and_later_ones_are_not_sent() {
    let rule = Rule::new(Kind::Write).skip(1).once();
    let (_, node, record) = faulty(rule);
    let range = span(0, 16_384);
    let written = Exec::run(1, |_| async move {
        node.write(range, data(&node, 1, range), RequestFlags::FUA).await
    });
    assert_eq!(written, Err(Error::IO));
    assert_eq!(record.take_text(), "write 0x0+0x1000\nwrite 0x1000+0x1000: Input/output error\n");
}

#[test]
fn a_failed_flush_is_not_forgotten() {
    let (_, node, record) = faulty(Rule::new(Kind::FlushToDisk).once());
    let results = Exec::run(1, |_| async move {
        let range = span(0, 512);
        node.write(range, data(&node, 1, range), RequestFlags::empty()).await.unwrap();
        (node.flush().await, node.flush().await, node.flush().await)
    });
    // The failed one made nothing stable, so the second is sent; the third has nothing to do.
    assert_eq!(results, (Err(Error::IO), Ok(()), Ok(())));
    assert_eq!(record.count(Kind::FlushToDisk), 2);
}

#[test]
fn an_unsupported_discard_is_success_and_other_errors_are_not() {
    for (error, expected, calls) in
        [(Error::Unsupported, Ok(()), 3), (Error::IO, Err(Error::IO), 1)]
    {
        let mut shape = shape("bytes");
        shape.config = shape.config.aligned(512);
        shape.config.len = 8192;
        shape.config.limits.max_pdiscard = Some(1024);
        let (fault, record) = (Fault::new(), Record::new());
        fault.add(Rule::new(Kind::Discard).error(error));
        let below = Tapped::new(shape.config.clone().build(), fault);
        let node = node_on(Tapped::new(below, record.clone()), &shape.options);
        let result = Exec::run(1, |_| async move { node.discard(span(0, 3072)).await });
        assert_eq!((result, record.count(Kind::Discard)), (expected, calls));
    }
}

#[test]
fn a_failed_truncate_or_status_is_an_error_and_the_disk_is_as_it_was() {
    for kind in [Kind::Truncate, Kind::Status] {
        let (disk, node, record) = faulty(Rule::new(kind).once());
        let before = disk.to_vec();
        Exec::run(1, |_| async move {
            let truncate = || node.truncate(512, Exactness::Exact, Prealloc::Off);
            let status = || node.block_status(span(0, 512), StatusDetail::Zeroes);
            if kind == Kind::Truncate {
                assert_eq!(truncate().await, Err(Error::IO));
            } else {
                assert_eq!(status().await.unwrap_err(), Error::IO);
            }
            assert_eq!((node.len(), disk.to_vec()), (32_768, before));
            assert!(status().await.is_ok());
            assert_eq!((truncate().await, node.len()), (Ok(()), 512));
        });
        assert_eq!(record.count(kind), 2);
    }
}

#[test]
fn a_growing_write_whose_padding_cannot_be_cut_off_says_so() {
    let mut shape = shape("bytes");
    shape.config.len = 1000;
    shape.config = shape.config.aligned(512);
    shape.config.capabilities.grows_on_write = true;
    let fault = Fault::new();
    fault.add(Rule::new(Kind::Truncate));
    let (disk, node) = tapped(&shape, &fault);
    let range = span(1000, 1100);
    let written = Exec::run(1, |_| async move {
        node.write(range, data(&node, 1, range), RequestFlags::empty()).await
    });
    assert_eq!((written, fault.injected()), (Err(Error::IO), 1));
    assert_eq!(disk.to_vec()[..1000], [0; 1000], "nothing else changed");
}

/// A rule hits the request it is meant for, and does what it says.
#[test]
fn faults_hit_what_they_are_meant_for() {
    let fault = Fault::new();
    fault.add(Rule::new(Kind::Write).skip(1).once().effect(Effect::Half));
    let mut shape = shape("sectors");
    shape.config.limits.max_transfer = None;
    let (disk, node) = tapped(&shape, &fault);
    let results = Exec::run(1, |_| async move {
        let range = span(0, 2048);
        let mut results = Vec::new();
        for id in 1..=3 {
            results.push(node.write(range, data(&node, id, range), RequestFlags::empty()).await);
            if id == 2 {
                let seen = disk.to_vec();
                assert_eq!(seen[..1024], contents(2, span(0, 1024)));
                assert_eq!(seen[1024..2048], contents(1, span(1024, 2048)));
            }
        }
        results
    });
    assert_eq!(results, [Ok(()), Err(Error::IO), Ok(())]);
    assert_eq!(fault.injected(), 1);
}
