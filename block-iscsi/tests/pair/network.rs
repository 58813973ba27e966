//! Under any network every acknowledged write is readable, no command runs twice that must not, and all
//! commands end.
//!
//! `BLOCK_SEED` plays the game of that seed only, `BLOCK_CASES` says how many games there are.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::game::{Game, Outcome};
use super::plan;

/// What follows from a seed.
fn play(seed: u64, commands: u64) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (pair, plan) = plan::random(&mut rng, seed, commands);
    Game::play(pair, plan, Box::new(ChaCha8Rng::seed_from_u64(seed)))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn campaign(cases: u64, commands: u64) -> Outcome {
    let first = variable("BLOCK_SEED").or(variable("BLOCK_FIRST")).unwrap_or(0);
    let cases = variable("BLOCK_SEED").map_or(cases, |_| 1);
    let mut all = Outcome::default();
    for seed in first..first + cases {
        let played = catch_unwind(AssertUnwindSafe(|| play(seed, commands)));
        let Ok(outcome) = played else { panic!("BLOCK_SEED={seed} fails") };
        all.done += outcome.done;
        all.unknown += outcome.unknown;
        all.attentions += outcome.attentions;
        all.losses += outcome.losses;
        all.ghosts += outcome.ghosts;
        all.silent += outcome.silent;
        all.refused += outcome.refused;
        all.jumps += outcome.jumps;
    }
    println!("{cases} games from seed {first} on: {all:?}");
    all
}

#[test]
fn whatever_the_network_does_writes_are_kept_and_commands_end_once() {
    let cases = variable("BLOCK_CASES").unwrap_or(40);
    let all = campaign(cases, 100);
    if variable("BLOCK_SEED").is_none() {
        assert!(all.losses > cases && all.unknown > 0 && all.attentions > 0, "{all:?}");
        assert!(all.ghosts > 0 && all.silent > 0 && all.refused > 0 && all.jumps > 0, "{all:?}");
    }
}

#[test]
#[ignore = "for cargo xtask soak"]
fn soak_network() {
    let target = variable("BLOCK_TARGET").unwrap_or(1_000_000);
    campaign(target.div_ceil(400), 400);
}
