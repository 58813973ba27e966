//! Whatever a crash leaves of a disk: it opens for reading and for writing, has no damage (redundant tables
//! may be behind in a file that is marked as not closed), and holds everything that was acknowledged before
//! the last flush that succeeded. After it was written to and closed, nothing is behind any more in the files that
//! were changed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::crash::Flushes;
use block_testkit::op::Op;
use games::crash::{Met, check, play, shoot, small_setups};
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
fn a_crash_leaves_no_damage_and_what_was_flushed() {
    let setups = small_setups();
    assert!(setups.len() > 12, "{} setups", setups.len());
    let met = Met::default();
    let campaign = Campaign::until("crash images", 1200);
    campaign.run_until(|seed| make(&setups, seed, 24), |game| play(game, &met));
    println!("{met:?}");
    if campaign.seeds().count() > 10 {
        let all = [&met.unclean, &met.closed, &met.behind, &met.leaks, &met.repaired];
        assert!(all.iter().all(|cell| cell.get() > 20), "crashes that say nothing");
    }
}

/// Crash images of longer games, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_crash() {
    let (setups, met) = (small_setups(), Met::default());
    let campaign = Campaign::soak("crash images");
    campaign.run_until(|seed| make(&setups, seed, 40), |game| play(game, &met));
}

/// A check that cannot fail checks nothing.
#[test]
fn disks_whose_flushes_do_nothing_are_caught() {
    let setups = small_setups();
    let caught = (0..16).filter(|seed| {
        let game = make(&setups, *seed, 24);
        let shots = shoot(&game, Flushes::Lost).unwrap();
        shots.iter().any(|shot| check(&game.setup, shot, &Met::default()).is_err())
    });
    let caught = caught.count();
    assert!(caught > 8, "{caught} of 16");
}
