//! Under any network every acknowledged write is readable, no command runs twice that must not, and all
//! commands end.

use std::cell::RefCell;

use block_testkit::campaign::{self, Campaign};
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

/// Plays the games of a campaign, of so many commands each; what happened in all of them.
fn play_all(campaign: &Campaign, commands: u64) -> Outcome {
    let all = RefCell::new(Outcome::default());
    let make = |seed| campaign::Game { setup: (), ops: Vec::new(), depth: 1, seed };
    campaign.run_until(make, |game| {
        let outcome = play(game.seed, commands);
        let mut all = all.borrow_mut();
        all.done += outcome.done;
        all.unknown += outcome.unknown;
        all.attentions += outcome.attentions;
        all.losses += outcome.losses;
        all.ghosts += outcome.ghosts;
        all.silent += outcome.silent;
        all.refused += outcome.refused;
        all.jumps += outcome.jumps;
        Ok(outcome.done)
    });
    println!("{all:?}");
    all.into_inner()
}

#[test]
fn whatever_the_network_does_writes_are_kept_and_commands_end_once() {
    let campaign = Campaign::new("commands", 40);
    let cases = campaign.seeds().end - campaign.seeds().start;
    let all = play_all(&campaign, 100);
    if cases >= 40 {
        assert!(all.losses > cases && all.unknown > 0 && all.attentions > 0, "{all:?}");
        assert!(all.ghosts > 0 && all.silent > 0 && all.refused > 0 && all.jumps > 0, "{all:?}");
    }
}

/// Long games, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_network() {
    play_all(&Campaign::soak("commands"), 400);
}
