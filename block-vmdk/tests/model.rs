//! Any interleaving of operations on a disk of any shape equals the flat disk; once it is closed, its files
//! have no errors, the naive reader and `qemu-img` see the same, and the descriptor differs in the content
//! id only.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use std::sync::atomic::Ordering;

use block_testkit::campaign::{Campaign, Game};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::peer::{ImageDir, Verdict};
use games::model::{FULL, play};
use kit::setups::BASE;
use kit::{Judged, Setup, judge, ops, setups};

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let setup = setups[kit::index(seed % setups.len() as u64)].clone();
    let mut ops = ops(&setup, seed, most);
    match seed / setups.len() as u64 % 8 {
        3 => ops.retain(|op| !kit::frees(op)),
        5 => ops.retain(kit::only_looks),
        _ => {}
    }
    Game { depth: 1 + kit::index(seed / 7 % 8), setup, ops, seed }
}

/// Where the peer goes on reading in a grain although its extent has ended: behind each extent that is no
/// multiple of a grain. What it sees there is not compared.
fn misread(setup: &Setup) -> Vec<std::ops::Range<usize>> {
    let shape = &setup.shape;
    let cut = shape.grains().into_iter().filter(|place| place.len < shape.grain_size());
    cut.map(|place| {
        let end = (place.offset + shape.grain_size()).min(shape.size);
        kit::index(place.offset + place.len)..kit::index(end)
    })
    .collect()
}

/// What the peer says of a disk.
fn compare_with_peer(setup: &Setup, files: &Files, judged: &Judged) {
    let dir = ImageDir::new().unwrap();
    for (name, bytes) in files {
        dir.write(name, bytes).unwrap();
    }
    if let Some(base) = setup.base() {
        dir.write(BASE.0, &base).unwrap();
    }
    assert_eq!(dir.check(NAME).unwrap(), Verdict::Clean, "{setup:?}");
    let mut theirs = dir.raw_contents(NAME, &["-f", "vmdk"]).unwrap();
    for part in misread(setup) {
        theirs[part.clone()].copy_from_slice(&judged.contents[part]);
    }
    let wrong = judged.contents.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
    assert_eq!((wrong, judged.contents.len()), (None, theirs.len()), "{setup:?}");
}

#[test]
fn the_disks_to_start_from_are_clean() {
    for setup in setups() {
        let files = setup.make();
        let judged = judge(&setup, &files).unwrap();
        judged.clean().unwrap();
        assert_eq!(judged.report.leaks > 0, setup.room.is_some(), "{setup:?}");
        compare_with_peer(&setup, &files, &judged);
    }
}

#[test]
fn any_interleaving_on_any_disk_equals_the_flat_disk() {
    let setups = setups();
    let campaign = Campaign::new("model", 4 * setups.len() as u64);
    campaign.run(
        |seed| make(&setups, seed, 40),
        |game| {
            let (files, judged) = play(game)?;
            if game.seed.is_multiple_of(5) {
                compare_with_peer(&game.setup, &files, &judged);
            }
            Ok(())
        },
    );
    if campaign.seeds().count() >= 3 * setups.len() {
        let full = FULL.load(Ordering::Relaxed);
        assert!(full > 10, "a full device was met {full} times");
    }
}

/// Long lists of operations, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_model() {
    let setups = setups();
    Campaign::soak("operations").run_until(
        |seed| make(&setups, seed, 240),
        |game| play(game).map(|_| game.ops.len() as u64),
    );
}
