//! Operations on disks that crash: whatever is left opens for writing, has leaks at most, and holds everything
//! that was acknowledged before the last flush that succeeded.

use std::sync::{Arc, Weak};

use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, graph};
use block_testkit::campaign::Game;
use block_testkit::disk::crash::{CrashDisk, Flushes};
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::Discarded;
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::durable::DurableModel;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::play::Player;
use futures::executor::block_on;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kit::{self, Setup, World, judge, known, setups, unexpected};

/// What a crash has left, and what it must have left.
pub struct Shot {
    left: Made,
    /// What became of the requests that were pending, for the message.
    story: String,
    model: DurableModel,
}

/// Takes shots at random moments.
struct Camera {
    image: Weak<CrashDisk>,
    data: Weak<CrashDisk>,
    model: Arc<Mutex<DurableModel>>,
    rng: ChaCha8Rng,
    shots: Vec<Shot>,
}

impl Camera {
    fn click(&mut self) {
        let (Some(image), Some(data)) = (self.image.upgrade(), self.data.upgrade()) else { return };
        let pending = image.pending() + data.pending();
        if self.shots.len() >= MOST_SHOTS || self.rng.random_range(0..3) > 0 {
            return;
        }
        let model = self.model.lock().clone();
        let times = pending.clamp(1, 4);
        for _ in 0..times {
            let (file, guest) = (image.crash(&mut self.rng), data.crash(&mut self.rng));
            let story = format!("image: {file}\ndata: {guest}");
            let left = Made { file: file.bytes, data: guest.bytes };
            self.shots.push(Shot { left, story, model: model.clone() });
        }
    }
}

/// Plays the game on disks that can crash, and gives the shots.
pub fn shoot(game: &Game<Setup>, flushes: Flushes) -> Result<Vec<Shot>, String> {
    let setup = game.setup.clone();
    let made = setup.make();
    let start = judge(&setup, &made)?;
    let source = known(&start.contents);
    let mut durable = DurableModel::new(setup.shape.size, source.clone(), 512);
    let model = DiskModel::new(setup.shape.size, source);
    let mut snapshots = Vec::new();
    for (name, contents) in &start.snapshots {
        let frozen = Frozen::filled(contents.len() as u64, known(contents));
        durable = durable.holding(name, frozen.clone());
        snapshots.push((name.clone(), frozen));
    }
    let durable = Arc::new(Mutex::new(durable));
    let disk = |bytes| CrashDisk::with(bytes, Discarded::Zeroes, flushes);
    let (image, data) = (disk(made.file), disk(made.data));
    let camera = Arc::new(Mutex::new(Camera {
        image: Arc::downgrade(&image),
        data: Arc::downgrade(&data),
        model: Arc::clone(&durable),
        rng: ChaCha8Rng::seed_from_u64(game.seed),
        shots: Vec::new(),
    }));
    for disk in [&image, &data] {
        let camera = Arc::clone(&camera);
        disk.watch(move |_| camera.lock().click());
    }
    let (ops, depth) = (game.ops.clone(), game.depth);
    // The camera looks at both, whether the image has a data file or not.
    let both = (Arc::clone(&image), Arc::clone(&data));
    let failed = Exec::run(game.seed, move |exec| async move {
        let data: Arc<dyn BlockDriver> = data;
        let world = World::new(&setup, Tapped::new(image, Inline::all_but_every(3)), Some(data));
        let node = world.open().await.unwrap_or_else(|error| panic!("open: {error}"));
        let mut player = Player::new(exec, node, model)
            .telling(durable)
            .cutting()
            .discards_leave(setup.discarded())
            .reopening(move || world.open());
        for (name, frozen) in snapshots {
            player = player.holding(&name, frozen);
        }
        let played = player.play(&ops, depth).await;
        player.check_all().await;
        graph::close(&player.node()).await.unwrap_or_else(|error| panic!("close: {error}"));
        unexpected(&setup, &ops, &played)
    });
    if !failed.is_empty() {
        return Err(failed.join("; "));
    }
    drop(both);
    let shots = std::mem::take(&mut camera.lock().shots);
    Ok(shots)
}

/// Opens what is left, and holds it against what must be there.
pub fn check(setup: &Setup, shot: &Shot) -> Result<(), String> {
    let before = judge(setup, &shot.left).map_err(|why| format!("before it is opened: {why}"))?;
    if !before.dirty {
        before.survived(setup).map_err(|why| format!("before it is opened: {why}"))?;
    }
    let image = Arc::new(MemDriver::from_bytes(&shot.left.file).unwrap());
    let data = Arc::new(MemDriver::from_bytes(&shot.left.data).unwrap());
    let below: Arc<dyn BlockDriver> = data.clone();
    let world = World::new(setup, image.clone(), Some(below));
    let contents = block_on(async {
        let node = world.open().await.map_err(|error| format!("open: {error}"))?;
        let range = ByteRange::up_to(node.len());
        let buf = IoBuf::zeroed(kit::index(range.len()), Alignment::PAGE).unwrap();
        let read = node.read(range, buf.clone().into()).await;
        read.map_err(|error| format!("read: {error}"))?;
        let longer = grow(&node).await?;
        graph::close(&node).await.map_err(|error| format!("close: {error}"))?;
        Ok::<_, String>((buf.to_vec(), longer))
    })?;
    let (mut contents, len) = contents;
    shot.model.check(&contents).map_err(|loss| loss.to_string())?;
    let after = Made { file: image.to_bytes(), data: data.to_bytes() };
    let after = judge(setup, &after).map_err(|why| format!("after it was opened: {why}"))?;
    after.survived(setup).map_err(|why| format!("after it was opened: {why}"))?;
    // What came up is zero, whatever an interrupted change of the length has left behind the end.
    contents.resize(kit::index(len), 0);
    if after.contents != contents {
        return Err("the naive reader sees something else".to_owned());
    }
    shot.model.check_snapshots(&after.snapshots).map_err(|loss| loss.to_string())
}

/// Makes the disk longer, where that can be; its length.
async fn grow(node: &Node) -> Result<u64, String> {
    let longer = (node.len() + (20 << 10)).next_multiple_of(512);
    match node.truncate(longer, Exactness::Exact, Prealloc::Off).await {
        Ok(()) => Ok(longer),
        Err(Error::Unsupported) => Ok(node.len()),
        Err(error) => Err(format!("grow: {error}")),
    }
}

/// Plays a game and looks at all of its shots; how many there were.
pub fn play(game: &Game<Setup>) -> Result<u64, String> {
    let shots = shoot(game, Flushes::Kept)?;
    for shot in &shots {
        check(&game.setup, shot).map_err(|why| format!("{why}\n{}", shot.story))?;
    }
    Ok(shots.len() as u64)
}

/// The setups whose images are small enough to be copied thousands of times.
pub fn small_setups() -> Vec<Setup> {
    let small = |setup: &Setup| setup.make().file.len() <= 400 << 10 && setup.align == 1;
    let mut setups: Vec<_> = setups().into_iter().filter(small).collect();
    for setup in &mut setups {
        // Large requests fill the image quickly and leave little to be torn.
        setup.max_request = setup.max_request.min(24 << 10);
    }
    setups
}

/// Shots of one game.
const MOST_SHOTS: usize = 150;
