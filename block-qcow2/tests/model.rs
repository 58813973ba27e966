//! Any interleaving of operations on an image of any geometry equals the flat disk; once it is closed, the
//! image has neither errors nor leaks, and the naive reader and `qemu-img` see the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use block_testkit::campaign::{Campaign, Game};
use block_testkit::naive::qcow2::make::Made;
use block_testkit::peer::{ImageDir, Verdict};
use games::model::play;
use kit::{Judged, Setup, judge, ops, setups};

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let setup = setups[kit::index(seed % setups.len() as u64)].clone();
    let ops = ops(&setup, seed, most);
    Game { depth: 1 + kit::index(seed / 7 % 8), setup, ops, seed }
}

/// What the peer says of an image.
fn compare_with_peer(dir: &ImageDir, setup: &Setup, made: &Made, judged: &Judged) {
    dir.write("v", &made.file).unwrap();
    dir.write("data", &made.data).unwrap();
    dir.write("base", &setup.backing_contents().unwrap_or_default()).unwrap();
    assert_eq!(dir.check("v").unwrap(), Verdict::Clean, "{setup:?}");
    let mut ours = judged.contents.clone();
    ours.resize(ours.len().next_multiple_of(512), 0);
    assert!(dir.raw_contents("v", &["-f", "qcow2"]).unwrap() == ours, "{setup:?}");
    for (name, contents) in &judged.snapshots {
        let theirs = dir.raw_contents("v", &["-f", "qcow2", "-l", name]).unwrap();
        // The peer converts as many bytes as the disk has now.
        let len = theirs.len().min(contents.len());
        assert!(theirs[..len] == contents[..len], "snapshot {name} of {setup:?}");
    }
}

#[test]
fn the_images_to_start_from_are_clean() {
    for setup in setups() {
        let judged = judge(&setup, &setup.make()).unwrap();
        judged.clean().unwrap();
    }
}

#[test]
fn any_interleaving_on_any_image_equals_the_flat_disk() {
    let setups = setups();
    let dir = ImageDir::new().unwrap();
    let campaign = Campaign::new("model", 4 * setups.len() as u64);
    campaign.run(
        |seed| make(&setups, seed, 40),
        |game| {
            let (made, judged) = play(game)?;
            if game.seed.is_multiple_of(9) {
                compare_with_peer(&dir, &game.setup, &made, &judged);
            }
            Ok(())
        },
    );
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
