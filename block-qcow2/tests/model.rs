//! Any interleaving of operations on an image of any geometry equals the flat disk; once it is closed, the
//! image has neither errors nor leaks, and the naive reader and `qemu-img` see the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::graph;
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::peer::{ImageDir, Verdict};
use block_testkit::play::{Complaint, Player};
use kit::{Judged, Setup, World, judge, known, ops, setups, unexpected};

/// A file in memory that grows, as tests want it: it tears what overlaps, and discards leave junk.
fn file(bytes: &[u8], setup: &Setup) -> Arc<MemDisk> {
    let mut config = MemConfig::file().aligned(setup.align);
    config.step = Some(setup.shape.cluster_size().max(2048) / 2);
    config.holding(bytes)
}

struct Files {
    image: Arc<MemDisk>,
    data: Arc<MemDisk>,
}

impl Files {
    fn new(setup: &Setup) -> Self {
        let made = setup.make();
        Self { image: file(&made.file, setup), data: file(&made.data, setup) }
    }

    fn bytes(&self) -> Made {
        Made { file: self.image.to_vec(), data: self.data.to_vec() }
    }

    fn world(&self, setup: &Setup) -> World {
        let data: Arc<dyn BlockDriver> = self.data.clone();
        let image = Tapped::new(self.image.clone(), Inline::all_but_every(3));
        World::new(setup, image, Some(data))
    }
}

/// The last image of a game, and what is known of it.
fn play(game: &Game<Setup>) -> Result<(Made, Judged), String> {
    let setup = game.setup.clone();
    let start = judge(&setup, &setup.make())?;
    start.clean()?;
    let files = Arc::new(Files::new(&setup));
    let (ops, depth) = (game.ops.clone(), game.depth);
    let complaint = Complaint::default();
    let (seen, heard) = (Arc::clone(&files), complaint.clone());
    let (mut model, snapshots) = Exec::run(game.seed, move |exec| async move {
        let world = seen.world(&setup);
        let node = world.open().await.unwrap_or_else(|error| panic!("open: {error}"));
        let model = DiskModel::new(setup.shape.size, known(&start.contents));
        let (again, reopened) = (heard.clone(), setup.clone());
        let mut player = Player::new(exec, node, model)
            .cutting()
            .discards_leave(setup.discarded())
            .reopening(move || {
                let judged = judge(&reopened, &seen.bytes());
                again.hear(judged.and_then(|judged| judged.clean()));
                world.open()
            });
        for (name, contents) in &start.snapshots {
            let frozen = Frozen::filled(contents.len() as u64, known(contents));
            player = player.holding(name, frozen);
        }
        let played = player.play(&ops, depth).await;
        let failed = unexpected(&setup, &ops, &played);
        heard.hear(if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) });
        player.check_all().await;
        let closed = graph::close(&player.node()).await;
        heard.hear(closed.map_err(|error| format!("close: {error}")));
        (player.model().lock().clone(), player.snapshots())
    });
    complaint.result()?;
    let made = files.bytes();
    let judged = judge(&game.setup, &made)?;
    judged.clean()?;
    model.check(0, &judged.contents).map_err(|wrong| format!("naive reader: {wrong}"))?;
    judged.holds(&snapshots)?;
    Ok((made, judged))
}

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
    let campaign = Campaign::new("model", 6 * setups.len() as u64);
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
