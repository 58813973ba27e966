//! Operations on disks that crash: whatever is left opens, has no damage, and holds everything that was acknowledged
//! before the last flush that succeeded.

use std::cell::Cell;
use std::sync::{Arc, Weak};

use super::kit::{self, Disks, Setup, judge, known, setups, unexpected};
use block_core::ability::{Repair, Severity};
use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, IoBuf, Node, RequestFlags, graph};
use block_testkit::campaign::Game;
use block_testkit::disk::crash::{CrashDisk, Flushes};
use block_testkit::disk::inline::Inline;
use block_testkit::disk::mem::Discarded;
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::durable::DurableModel;
use block_testkit::naive::vmdk::Files;
use block_testkit::op::{contents, io_vec};
use block_testkit::play::Player;
use futures::executor::block_on;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a crash has left, and what it must have left.
pub struct Shot {
    left: Files,
    /// What became of the requests that were pending, for the message.
    story: String,
    model: DurableModel,
}

/// Takes shots at random moments.
struct Camera {
    files: Vec<(String, Weak<CrashDisk>)>,
    model: Arc<Mutex<DurableModel>>,
    rng: ChaCha8Rng,
    shots: Vec<Shot>,
}

impl Camera {
    fn click(&mut self) {
        let upgraded = self.files.iter().map(|(_, disk)| disk.upgrade());
        let Some(disks) = upgraded.collect::<Option<Vec<_>>>() else { return };
        let pending: usize = disks.iter().map(|disk| disk.pending()).sum();
        if self.shots.len() >= MOST_SHOTS || self.rng.random_range(0..3) > 0 {
            return;
        }
        let model = self.model.lock().clone();
        for _ in 0..pending.clamp(1, 4) {
            let (mut left, mut story) = (Files::new(), String::new());
            for ((name, _), disk) in self.files.iter().zip(&disks) {
                let image = disk.crash(&mut self.rng);
                story += &format!("{name}: {image}\n");
                left.insert(name.clone(), image.bytes);
            }
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
    let durable = DurableModel::new(setup.shape.size, source.clone(), 512);
    let durable = Arc::new(Mutex::new(durable));
    let model = DiskModel::new(setup.shape.size, source);
    let disk = |bytes| CrashDisk::with(bytes, Discarded::Zeroes, flushes);
    let disks = Arc::new(Disks::new(made, disk));
    let camera = Arc::new(Mutex::new(Camera {
        files: disks.0.iter().map(|(name, disk)| (name.clone(), Arc::downgrade(disk))).collect(),
        model: Arc::clone(&durable),
        rng: ChaCha8Rng::seed_from_u64(game.seed),
        shots: Vec::new(),
    }));
    for (_, disk) in &disks.0 {
        let camera = Arc::clone(&camera);
        disk.watch(move |_| camera.lock().click());
    }
    let (ops, depth) = (game.ops.clone(), game.depth);
    // The camera looks at all of them until the end.
    let all = Arc::clone(&disks);
    let failed = Exec::run(game.seed, move |exec| async move {
        let world = disks.world(&setup, |disk| Tapped::new(disk, Inline::all_but_every(3)));
        let node = world.open().await.unwrap_or_else(|error| panic!("open: {error}"));
        let player = Player::new(exec, node, model)
            .telling(durable)
            .cutting()
            .discards_leave(setup.discarded())
            .reopening(move || world.open());
        let played = player.play(&ops, depth).await;
        player.check_all().await;
        graph::close(&player.node()).await.unwrap_or_else(|error| panic!("close: {error}"));
        unexpected(&ops, &played)
    });
    if !failed.is_empty() {
        return Err(failed.join("; "));
    }
    drop(all);
    let shots = std::mem::take(&mut camera.lock().shots);
    Ok(shots)
}

/// What was met among the shots.
#[derive(Default, Debug)]
pub struct Met {
    pub unclean: Cell<u64>,
    pub closed: Cell<u64>,
    pub behind: Cell<u64>,
    pub leaks: Cell<u64>,
    pub repaired: Cell<u64>,
}

/// Opens what is left, and holds it against what must be there.
pub fn check(setup: &Setup, shot: &Shot, met: &Met) -> Result<(), String> {
    let before = judge(setup, &shot.left).map_err(|why| format!("before it is opened: {why}"))?;
    before.no_errors().map_err(|why| format!("before it is opened: {why}"))?;
    let count = |cell: &Cell<u64>, what: bool| cell.set(cell.get() + u64::from(what));
    count(&met.unclean, before.report.unclean);
    count(&met.behind, !before.report.redundant.is_empty());
    count(&met.leaks, before.report.leaks > 0);
    let disks =
        Disks::new(shot.left.clone(), |bytes| Arc::new(MemDriver::from_bytes(&bytes).unwrap()));
    let world = disks.world(setup, |disk| -> Arc<dyn BlockDriver> { disk });
    let (mut contents, changed) = block_on(async {
        let node = world.open_with(OpenFlags::READ_ONLY).await;
        let node = node.map_err(|error| format!("open for reading: {error}"))?;
        let contents = read(&node).await?;
        graph::close(&node).await.map_err(|error| format!("close: {error}"))?;
        let node = world.open().await.map_err(|error| format!("open for writing: {error}"))?;
        if read(&node).await? != contents {
            return Err("what is there depends on how it is opened".to_owned());
        }
        let changed = change(setup, &node).await?;
        graph::close(&node).await.map_err(|error| format!("close: {error}"))?;
        Ok::<_, String>((contents, changed))
    })?;
    shot.model.check(&contents).map_err(|loss| loss.to_string())?;
    let after = disks.bytes(|disk| disk.to_bytes());
    let after = judge(setup, &after).map_err(|why| format!("after it was written to: {why}"))?;
    after.no_errors().map_err(|why| format!("after it was written to: {why}"))?;
    after.same_text(&before)?;
    // A file that needed no change but of data stays as the crash has left it.
    let marked = after.report.unclean && !before.report.unclean;
    if marked || after.report.stale > before.report.stale {
        return Err(format!("it was not closed: {}", after.report));
    }
    count(&met.closed, before.report.unclean && !after.report.unclean);
    for (range, bytes) in changed {
        contents[kit::index(range.offset())..kit::index(range.end())].copy_from_slice(&bytes);
    }
    match after.contents.iter().zip(&contents).position(|(is, want)| is != want) {
        None => Ok(()),
        Some(at) => Err(format!("the naive reader sees something else at {at:#x}")),
    }
}

/// Repairs what is left: nothing is lost by it, and nothing is behind afterwards.
pub fn check_repair(setup: &Setup, shot: &Shot, met: &Met) -> Result<(), String> {
    let before = judge(setup, &shot.left)?;
    let disks =
        Disks::new(shot.left.clone(), |bytes| Arc::new(MemDriver::from_bytes(&bytes).unwrap()));
    let world = disks.world(setup, |disk| -> Arc<dyn BlockDriver> { disk });
    let [found, again] = block_on(async {
        let mut said = [Vec::new(), Vec::new()];
        for (repair, said) in [Repair::All, Repair::Nothing].into_iter().zip(&mut said) {
            let flags =
                OpenFlags { no_backing: true, no_io: true, check: true, ..OpenFlags::READ_WRITE };
            let node = world.open_with(flags).await;
            let node = node.map_err(|error| format!("open for a check: {error}"))?;
            let checked = block_testkit::check::check_node(&node, repair).await;
            let (_, found) = checked.map_err(|error| format!("repair: {error}"))?;
            // Space that is lost in the middle of a file stays lost, and harms nobody.
            let found = found.into_iter().filter(|finding| finding.severity != Severity::Leak);
            said.extend(found.map(|finding| finding.text));
            graph::close(&node).await.map_err(|error| format!("close: {error}"))?;
        }
        Ok::<_, String>(said)
    })?;
    if !again.is_empty() {
        return Err(format!("a repaired disk is not whole: {again:?}; before: {found:?}"));
    }
    met.repaired.set(met.repaired.get() + u64::from(!found.is_empty()));
    let after = judge(setup, &disks.bytes(|disk| disk.to_bytes()))?;
    after.clean().map_err(|why| format!("after a repair of {found:?}: {why}"))?;
    if after.contents != before.contents {
        return Err(format!("a repair of {found:?} has changed the disk"));
    }
    Ok(())
}

async fn read(node: &Node) -> Result<Vec<u8>, String> {
    let range = ByteRange::up_to(node.len());
    let buf = IoBuf::zeroed(kit::index(range.len()), Alignment::PAGE).unwrap();
    node.read(range, buf.clone().into()).await.map_err(|error| format!("read: {error}"))?;
    Ok(buf.to_vec())
}

/// Writes to some places all over the disk, as somebody does who goes on after the crash.
async fn change(setup: &Setup, node: &Node) -> Result<Vec<(ByteRange, Vec<u8>)>, String> {
    let mut changed = Vec::new();
    for (number, part) in (0u32..).zip(0..7) {
        let offset = setup.shape.size / 7 * part + 100;
        let range = ByteRange::new(offset, 700).unwrap().intersect(ByteRange::up_to(node.len()));
        let bytes = contents(900 + number, range);
        let iov = io_vec(&bytes, Alignment::ONE, 1);
        let written = node.write(range, iov, RequestFlags::empty()).await;
        written.map_err(|error| format!("write {range}: {error}"))?;
        changed.push((range, bytes));
    }
    Ok(changed)
}

/// Plays a game and looks at all of its shots; how many there were.
pub fn play(game: &Game<Setup>, met: &Met) -> Result<u64, String> {
    let shots = shoot(game, Flushes::Kept)?;
    for (number, shot) in shots.iter().enumerate() {
        check(&game.setup, shot, met).map_err(|why| format!("{why}\n{}", shot.story))?;
        if number % 4 == 0 {
            check_repair(&game.setup, shot, met).map_err(|why| format!("{why}\n{}", shot.story))?;
        }
    }
    Ok(shots.len() as u64)
}

/// The setups whose files are small enough to be copied thousands of times.
pub fn small_setups() -> Vec<Setup> {
    let len = |setup: &Setup| setup.make().values().map(Vec::len).sum::<usize>();
    let small = |setup: &Setup| len(setup) <= 400 << 10 && setup.align == 1;
    let mut setups: Vec<_> = setups().into_iter().filter(small).collect();
    for setup in &mut setups {
        // Large requests fill the disk quickly and leave little to be torn.
        setup.max_request = setup.max_request.min(24 << 10);
    }
    setups
}

/// Shots of one game.
const MOST_SHOTS: usize = 60;
