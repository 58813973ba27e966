//! Whatever a crash leaves of an image: it opens for writing, has leaks at most, and holds everything that
//! was acknowledged before the last flush that succeeded.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::graph;
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::crash::{CrashDisk, Flushes};
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::Op;
use futures::executor::block_on;
use games::crash::{check, play, shoot, small_setups};
use kit::setups::{TINY, empty};
use kit::{Setup, World, judge, ops};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let setup = setups[kit::index(seed % setups.len() as u64)].clone();
    let mut ops = ops(&setup, seed, most);
    // Flushes are what it is about.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for at in (0..ops.len()).rev().filter(|_| rng.random_range(0..4) == 0) {
        ops.insert(at, Op::Flush);
    }
    Game { depth: 1 + kit::index(seed / 5 % 8), setup, ops, seed }
}

#[test]
fn a_crash_leaves_leaks_at_most_and_what_was_flushed() {
    let setups = small_setups();
    assert!(setups.len() > 8, "{} setups", setups.len());
    let campaign = Campaign::until("crash images", 1500);
    campaign.run_until(|seed| make(&setups, seed, 24), play);
}

/// Clusters that get a place with a longer disk are inside of the file before any table shows them.
#[test]
fn a_crash_while_a_longer_disk_is_preallocated_leaves_leaks_at_most() {
    let setup = empty(TINY);
    let disk = CrashDisk::new(setup.make().file);
    let shots = Arc::new(Mutex::new(Vec::new()));
    let (weak, taken) = (Arc::downgrade(&disk), Arc::clone(&shots));
    let rng = Mutex::new(ChaCha8Rng::seed_from_u64(0));
    disk.watch(move |_| {
        let Some(disk) = weak.upgrade() else { return };
        taken.lock().extend((0..3).map(|_| disk.crash(&mut *rng.lock()).bytes));
    });
    let world = World::new(&setup, disk, None);
    block_on(async {
        let node = world.open().await.unwrap();
        node.truncate(5 << 20, Exactness::Exact, Prealloc::Metadata).await.unwrap();
        graph::close(&node).await.unwrap();
    });
    let shots = std::mem::take(&mut *shots.lock());
    assert!(shots.len() > 100, "{} shots", shots.len());
    for file in shots {
        let judged = judge(&setup, &Made { file, data: Vec::new() }).unwrap();
        judged.survived(&setup).unwrap();
        assert!(judged.contents.iter().all(|byte| *byte == 0));
    }
}

/// Crash images of longer games, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_crash() {
    let setups = small_setups();
    Campaign::soak("crash images").run_until(|seed| make(&setups, seed, 40), play);
}

/// A check that cannot fail checks nothing.
#[test]
fn a_disk_whose_flushes_do_nothing_is_caught() {
    let setups = small_setups();
    let caught = (0..16).filter(|seed| {
        let game = make(&setups, *seed, 24);
        let shots = shoot(&game, Flushes::Lost).unwrap();
        shots.iter().any(|shot| check(&game.setup, shot).is_err())
    });
    let caught = caught.count();
    assert!(caught > 8, "{caught} of 16");
}
