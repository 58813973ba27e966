//! Operations against the flat disk: whatever their order, the node reads as it does, and once it is closed, the
//! image has neither errors nor leaks.

use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::graph;
use block_testkit::campaign::Game;
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::play::{Complaint, Player};

use super::kit::{Judged, Setup, World, judge, known, unexpected};

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
    fn new(setup: &Setup, made: &Made) -> Self {
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
pub fn play(game: &Game<Setup>) -> Result<(Made, Judged), String> {
    play_on(game, &game.setup.make())
}

/// The same on other files than those that the setup makes.
pub fn play_on(game: &Game<Setup>, made: &Made) -> Result<(Made, Judged), String> {
    let setup = game.setup.clone();
    let start = judge(&setup, made)?;
    start.clean()?;
    let files = Arc::new(Files::new(&setup, made));
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
