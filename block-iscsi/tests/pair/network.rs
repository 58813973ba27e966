//! Under any network every acknowledged write is readable, no command runs twice that must not, and all
//! commands end.

use std::cell::RefCell;
use std::time::Duration;

use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::session::SessionConfig;
use block_testkit::campaign::{self, Campaign};
use block_testkit::iscsi::pair::Network;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::game::{Game, Outcome, Plan};
use crate::side::{config, target, up};

/// What follows from a seed.
fn play(seed: u64, commands: u64) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kinds = |on: bool| vec![if on { DigestKind::Crc32c } else { DigestKind::None }];
    let max_burst_len = rng.random_range(512..20_000);
    let offer = Offer {
        header_digest: kinds(rng.random()),
        data_digest: kinds(rng.random()),
        initial_r2t: rng.random(),
        immediate_data: rng.random(),
        max_recv_data_segment_len: rng.random_range(512..10_000),
        max_burst_len,
        first_burst_len: rng.random_range(512..=max_burst_len),
        max_outstanding_r2t: rng.random_range(1..5),
        ..Offer::default()
    };
    let depth = rng.random_range(1..33);
    let config = SessionConfig { offer, depth, ..config() };
    let target = target(|config| {
        config.seed = seed;
        config.limits.window = rng.random_range(1..40);
        config.limits.max_recv_data_segment_len = rng.random_range(512..10_000);
    });
    let slowest = Duration::from_micros(10 << rng.random_range(0..16));
    let network = Network {
        latency: slowest / 10..=slowest,
        piece: if seed.is_multiple_of(16) { 3 } else { 1 << rng.random_range(6..16) },
        cut_after: Some(1..=1 << rng.random_range(9..17)),
        refused: rng.random_range(0..60),
        silent: if rng.random() { 20 } else { 0 },
        half_open: slowest * rng.random_range(0..20),
        misfortunes: rng.random_range(0..20),
    };
    let commands = if network.piece < 64 { commands / 5 } else { commands };
    let plan = Plan {
        seed,
        commands,
        depth: rng.random_range(1..20),
        network,
        jumps: rng.random_range(0..60),
    };
    Game::play(up(config, target, seed), plan)
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
