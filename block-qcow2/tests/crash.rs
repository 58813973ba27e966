//! Whatever a crash leaves of an image: it opens for writing, has leaks at most, and holds everything that
//! was acknowledged before the last flush that succeeded.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::crash::Flushes;
use block_testkit::op::Op;
use games::crash::{check, play, shoot, small_setups};
use kit::{Setup, ops};
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
