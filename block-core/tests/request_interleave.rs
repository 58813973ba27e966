//! Any interleaving of requests on a node over limits of all kinds equals the flat disk; requests
//! that conflict never run together; all of them finish, also those whose futures were dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::node::{DetectZeroes, NodeOptions};
use block_core::{Node, RequestFlags};
use block_testkit::campaign::{self, Campaign, seeded};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::disk::watch::Watch;
use block_testkit::exec::{Exec, yield_now};
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::model::overlap::{Claim, Overlap};
use block_testkit::op::{Op, OpId, OpSpace, contents};
use block_testkit::play::{Played, Player};
use proptest::prelude::*;
use request_support::games::{self, Game};
use request_support::{buffer, cases, data, node_of, shapes, span, tapped};

fn game() -> impl Strategy<Value = Game> {
    proptest::sample::select(shapes()).prop_flat_map(|shape| {
        let ops = games::space(&shape).ops(24);
        (Just(shape), ops, 1..=8usize, any::<u64>()).prop_map(|(shape, ops, depth, seed)| Game {
            shape,
            ops,
            depth,
            seed,
            drop_one_in: 0,
        })
    })
}

/// Long lists of operations, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_layer() {
    let shapes = shapes();
    Campaign::soak("operations").run_until(
        |seed| {
            let at = usize::try_from(seed % shapes.len() as u64).unwrap();
            let setup = shapes[at].clone();
            let depth = 1 + usize::try_from(seed / 7 % 8).unwrap();
            let ops = seeded(&games::space(&setup).ops(120), seed);
            campaign::Game { ops, setup, depth, seed }
        },
        |game| {
            let campaign::Game { setup, ops, depth, seed } = game.clone();
            let count = ops.len() as u64;
            games::flat(&Game { shape: setup, ops, depth, seed, drop_one_in: 0 }).map(|()| count)
        },
    );
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_interleaving_equals_the_flat_disk(game in game()) {
        prop_assert_eq!(games::flat(&game), Ok(()));
    }

    #[test]
    fn a_growing_node_equals_the_flat_disk(
        ops in OpSpace::new(12_000, &[512, 4096]).ops(16),
        depth in 1..=8usize,
        seed: u64,
        align in proptest::sample::select(vec![1u64, 512, 4096]),
        len in proptest::sample::select(vec![0u64, 1, 512, 700, 4096, 8192]),
    ) {
        prop_assert_eq!(games::growing(&ops, len, align, depth, seed), Ok(()));
    }

    #[test]
    fn lengths_change_between_requests(
        parts in proptest::collection::vec(
            (OpSpace::new(12_000, &[512, 1000]).ops(6), 0..16_000u64), 1..5),
        seed: u64,
        align in proptest::sample::select(vec![1u64, 512]),
    ) {
        Exec::run(seed, |exec| async move {
            let mut shape = request_support::shape("bytes");
            shape.config.len = 12_000;
            shape.config = shape.config.aligned(align);
            let (_, node) = node_of(&shape);
            let player = Player::new(exec, node, DiskModel::new(12_000, Source::Zero));
            for (ops, len) in parts {
                // Requests beyond the end are refused; reads there give zeroes.
                player.play(&ops, 4).await;
                let played = player.play(&[Op::Truncate { len }], 1).await;
                assert_eq!(played, [Played::Returned(Ok(()))]);
                player.check_all().await;
            }
        });
    }

    #[test]
    fn conflicting_requests_never_run_together_and_all_finish(
        game in game(),
        drop_one_in in proptest::sample::select(vec![0u64, 3]),
    ) {
        prop_assert_eq!(games::conflicts(&Game { drop_one_in, ..game }), Ok(()));
    }
}

/// The check above would mean nothing if requests never met at the driver.
#[test]
fn requests_of_the_game_do_meet_at_the_driver() {
    let ops: Vec<Op> = (0..8)
        .map(|n| Op::Write {
            range: span(512 * n, 512 * n + 4096),
            flags: RequestFlags::empty(),
            buffers: 1,
        })
        .collect();
    let overlap = Arc::new(Overlap::new());
    let seen = Arc::clone(&overlap);
    Exec::run(1, |exec| async move {
        let shape = request_support::shape("sectors");
        let watched = Tapped::new(shape.config.build(), Watch::new(Arc::clone(&seen)));
        let node = Node::new(watched, NodeOptions::default());
        let model = DiskModel::new(node.len(), Source::Zero);
        let announced = Arc::clone(&seen);
        let player = Player::new(exec, node, model)
            .announcing(move |id: OpId, _| announced.declare(u64::from(id), Claim::Shared));
        player.play(&ops, 8).await;
    });
    assert!(overlap.met() > 8, "{} pairs met", overlap.met());
}

/// Whether a zero write beyond the end comes from the caller or was detected in a write.
#[test]
fn zeroes_that_grow_the_disk_have_everything_behind_the_end_to_themselves() {
    for detected in [false, true] {
        Exec::run(1, |exec| async move {
            let hold = Hold::new();
            let mut shape = request_support::shape("bytes");
            shape.config.len = 4096;
            shape.config.capabilities.grows_on_write = true;
            if detected {
                shape.options.detect_zeroes = DetectZeroes::On;
            }
            let (disk, node) = tapped(&shape, &hold);
            hold.hold(Point::Before, |call| call.range.end() > 4096);
            let range = span(8192, 12_288);
            let zeroes = if detected {
                node.write(range, buffer(&node, range), RequestFlags::empty())
            } else {
                node.write_zeroes(range, RequestFlags::empty())
            };
            let zeroes = exec.spawn("zeroes", zeroes);
            assert_eq!(hold.arrived(1).await[0].kind, Kind::Zero);
            let range = span(4096, 5120);
            let write = node.write(range, data(&node, 1, range), RequestFlags::empty());
            let write = exec.spawn("write", write);
            for _ in 0..50 {
                yield_now().await;
            }
            assert_eq!(hold.held().len(), 1, "a write behind the end ran beside it");
            hold.release_all();
            assert_eq!((zeroes.await, write.await), (Ok(()), Ok(())));
            assert_eq!(disk.to_vec()[4096..5120], contents(1, range));
        });
    }
}

#[test]
fn a_truncate_waits_for_writes_in_the_part_that_it_cuts_off() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let mut shape = request_support::shape("bytes");
        shape.config.len = 12_288;
        let (disk, node) = tapped(&shape, &hold);
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let range = span(8192, 12_288);
        let write = node.write(range, data(&node, 1, range), RequestFlags::empty());
        let write = exec.spawn("write", write);
        assert_eq!(hold.arrived(1).await[0].kind, Kind::Write);
        let truncate = node.truncate(4096, Exactness::Exact, Prealloc::Off);
        let truncate = exec.spawn("truncate", truncate);
        for _ in 0..50 {
            yield_now().await;
        }
        assert_eq!(disk.to_vec().len(), 12_288, "the end was cut off beside the write");
        hold.release_all();
        assert_eq!((write.await, truncate.await), (Ok(()), Ok(())));
        assert_eq!(disk.to_vec().len(), 4096);
    });
}
