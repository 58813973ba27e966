//! The whole driver against the flat disk: random requests in random interleavings, on units of many
//! kinds, while the unit is reset, says that things have changed, and somebody else writes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod games;
mod kit;

use std::sync::atomic::Ordering;

use block_testkit::campaign::{Campaign, Game, seeded};
use games::{FREE, Setup, play, setups};

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let count = setups.len() as u64;
    let setup = setups[usize::try_from(seed % count).unwrap()].clone();
    let max_request = [300 << 10, 40 << 10, 12 << 10][usize::try_from(seed % 3).unwrap()];
    let mut ops = seeded(&setup.space(max_request).ops(most), seed);
    setup.fit(&mut ops);
    let depth = [6, 2, 16, 1][usize::try_from(seed / count % 4).unwrap()];
    Game { depth, setup, ops, seed }
}

#[test]
fn any_interleaving_on_any_unit_equals_the_flat_disk() {
    let setups = setups();
    let campaign = Campaign::new("iscsi model", 4 * setups.len() as u64);
    campaign.run(|seed| make(&setups, seed, 80), play);
    if campaign.seeds().count() >= 4 * setups.len() {
        println!("{} disks were read without the target", FREE.load(Ordering::Relaxed));
    }
}

#[test]
#[ignore = "for cargo xtask soak"]
fn soak_iscsi_model() {
    let setups = setups();
    Campaign::soak("operations").run_until(
        |seed| make(&setups, seed, 200),
        |game| play(game).map(|()| game.ops.len() as u64),
    );
}
