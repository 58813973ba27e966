//! What a game is played with: a session and a target that offer one thing or another, and a network.

use std::time::Duration;

use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::session::SessionConfig;
use block_testkit::iscsi::pair::Network;
use rand::{Rng, RngCore};

use super::game::Plan;
use super::side::{Net, config, target, up};

/// Both ends after a login, and what is played over the network between them.
pub(crate) fn random(rng: &mut dyn RngCore, seed: u64, commands: u64) -> (Net, Plan) {
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
    let plan =
        Plan { commands, depth: rng.random_range(1..20), network, jumps: rng.random_range(0..60) };
    (up(config, target, seed), plan)
}
