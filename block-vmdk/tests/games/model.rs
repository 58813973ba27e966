//! Operations against the flat disk: whatever their order, the node reads as it does, and once it is closed, its
//! files have no errors, and the descriptor differs in the content id only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_core::graph;
use block_testkit::campaign::Game;
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::naive::vmdk::Files;
use block_testkit::play::{Complaint, Player};

use super::kit::{self, Disks, Judged, Setup, World, judge, known, unexpected};

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
pub fn play(game: &Game<Setup>) -> Result<(Files, Judged), String> {
    play_on(game, &game.setup.make())
}

/// The same on other files than those that the setup makes.
pub fn play_on(game: &Game<Setup>, made: &Files) -> Result<(Files, Judged), String> {
    let setup = game.setup.clone();
    let start = judge(&setup, made)?;
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
    if game.ops.iter().all(kit::only_looks) && files != *made {
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

/// How an operation ends that finds no place on a device.
const NO_SPACE: &str = "Err(Os(28))";
/// How often one did.
pub static FULL: AtomicUsize = AtomicUsize::new(0);
