//! Any interleaving of operations on a disk of any shape equals the flat disk; once it is closed, its files
//! have no errors, the naive reader and `qemu-img` see the same, and the descriptor differs in the content
//! id only.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_core::graph;
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::peer::{ImageDir, Verdict};
use block_testkit::play::{Complaint, Player};
use kit::setups::BASE;
use kit::{Disks, Judged, Setup, World, judge, known, ops, setups, unexpected};

/// A file in memory that grows, as tests want it: it tears what overlaps, and discards leave junk.
fn file(bytes: &[u8], setup: &Setup) -> Arc<MemDisk> {
    let mut config = MemConfig::file();
    if (bytes.len() as u64).is_multiple_of(setup.align) {
        config = config.aligned(setup.align);
    }
    config.step = Some(setup.shape.grain_size().max(2048) / 2);
    config.capabilities.grows_on_write = setup.room.is_none();
    config.holding(bytes)
}

fn world(disks: &Disks<MemDisk>, setup: &Setup) -> World {
    disks.world(setup, |disk| Tapped::new(disk, Inline::all_but_every(3)))
}

/// The last files of a game, and what is known of them.
fn play(game: &Game<Setup>) -> Result<(Files, Judged), String> {
    let setup = game.setup.clone();
    let made = setup.make();
    let start = judge(&setup, &made)?;
    start.clean()?;
    let disks = Arc::new(Disks::new(made.clone(), |bytes| file(&bytes, &setup)));
    let (ops, depth, contents) = (game.ops.clone(), game.depth, start.contents.clone());
    let complaint = Complaint::default();
    let (seen, heard) = (Arc::clone(&disks), complaint.clone());
    let mut model = Exec::run(game.seed, move |exec| async move {
        let world = world(&seen, &setup);
        let node = world.open().await.unwrap_or_else(|error| panic!("open: {error}"));
        let model = DiskModel::new(setup.shape.size, known(&contents));
        let (again, may_fill) = (heard.clone(), setup.may_fill());
        let player = Player::new(exec, node, model)
            .cutting()
            .discards_leave(setup.discarded())
            .reopening(move || {
                let judged = judge(&setup, &seen.bytes(MemDisk::to_vec));
                again.hear(judged.and_then(|judged| judged.clean()));
                world.open()
            });
        let played = player.play(&ops, depth).await;
        let mut failed = unexpected(&ops, &played);
        let full = |text: &String| may_fill && text.contains(NO_SPACE);
        FULL.fetch_add(failed.iter().filter(|text| full(text)).count(), Ordering::Relaxed);
        failed.retain(|text| !full(text));
        heard.hear(if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) });
        player.check_all().await;
        let closed = graph::close(&player.node()).await;
        heard.hear(closed.map_err(|error| format!("close: {error}")));
        player.model().lock().clone()
    });
    complaint.result()?;
    let files = disks.bytes(MemDisk::to_vec);
    let judged = judge(&game.setup, &files)?;
    judged.clean()?;
    judged.same_text(&start)?;
    model.check(0, &judged.contents).map_err(|wrong| format!("naive reader: {wrong}"))?;
    if game.ops.iter().all(kit::only_looks) && files != made {
        return Err("a disk that was only read has changed".to_owned());
    }
    if game.ops.iter().any(kit::writes) && judged.cid == start.cid {
        return Err("the content id is still the old one".to_owned());
    }
    let tidy = game.setup.room.is_none() && !game.ops.iter().any(kit::frees);
    if tidy && judged.report.leaks > 0 {
        return Err(format!("writes have leaked: {}", judged.report));
    }
    Ok((files, judged))
}

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

/// How an operation ends that finds no place on a device.
const NO_SPACE: &str = "Err(Os(28))";
/// How often one did.
static FULL: AtomicUsize = AtomicUsize::new(0);

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
    let campaign = Campaign::new("model", 6 * setups.len() as u64);
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
