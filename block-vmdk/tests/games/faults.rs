//! Operations one by one, of which one meets a request that fails: nothing outside of its range changes, it works
//! when it is sent again, and the disk has no damage and has lost no more space than that operation had grains.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::Error;
use block_core::graph;
use block_testkit::campaign::Game;
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::op::Op;
use block_testkit::play::{Played, Player};
use parking_lot::Mutex;

use super::kit::{self, Disks, Setup, World, judge, known, setups, unexpected};

/// What fails: one request, so many after that event has come so often; from the start where it has no name.
#[derive(Copy, Clone, Debug)]
pub struct Plan {
    pub event: &'static str,
    pub nth: u64,
    pub kind: Kind,
    pub skip: u64,
    pub effect: Effect,
    pub then: Then,
}

/// What the guest does about an operation that failed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Then {
    /// Sends it again.
    Again,
    /// Goes on with the next one.
    On,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Told {
    /// The events that came, and how often.
    pub events: BTreeMap<&'static str, u64>,
    pub injected: u64,
    /// The operation that failed.
    pub failed: Option<Op>,
}

/// Sees the errors that files give to the disk.
struct Errors {
    disk: Arc<MemDisk>,
    /// Lengths of the file when requests arrived.
    lens: Mutex<BTreeMap<u64, u64>>,
    growth: Arc<Mutex<u64>>,
}

#[async_trait]
impl Tap for Errors {
    async fn before(&self, call: &Call) -> Verdict {
        self.lens.lock().insert(call.number, self.disk.len());
        Verdict::Pass
    }

    async fn after(&self, call: &Call, result: block_core::Result<()>) {
        let len = self.lens.lock().remove(&call.number).unwrap_or(0);
        // A sector far beyond the end makes the file longer in advance. It may fail.
        if call.kind == Kind::Write && call.range.offset() > len + GROWTH && result.is_err() {
            *self.growth.lock() += 1;
        }
    }
}

/// No grain is as far behind the end of a file as this.
const GROWTH: u64 = 512 << 10;

pub fn file(bytes: &[u8]) -> Arc<MemDisk> {
    MemConfig { step: None, ..MemConfig::file() }.holding(bytes)
}

/// The disk on files, and a parent, that fail by the rules.
fn world(
    setup: &Setup,
    disks: &Disks<MemDisk>,
    rules: &Arc<Fault>,
    growth: &Arc<Mutex<u64>>,
) -> World {
    let mut world = disks.world(setup, |disk| {
        let errors =
            Errors { disk: Arc::clone(&disk), lens: Mutex::default(), growth: Arc::clone(growth) };
        Tapped::new(Tapped::new(disk, Arc::clone(rules)), Arc::new(errors))
    });
    let base = world.base.take();
    world.base = base.map(|base| -> Arc<dyn BlockDriver> { Tapped::new(base, Arc::clone(rules)) });
    world
}

/// Plays the operations one after the other.
async fn play(player: &Player, ops: &[Op], fault: &Fault, then: Then) -> Result<Told, String> {
    let mut told = Told::default();
    for op in ops {
        let before = fault.injected();
        let played = player.play(std::slice::from_ref(op), 1).await[0];
        let hit = fault.injected() > before;
        let failed = !unexpected(std::slice::from_ref(op), &[played]).is_empty();
        if failed && !hit {
            return Err(format!("{op:?} failed without a reason: {played:?}"));
        }
        if failed && played != Played::Returned(Err(Error::IO)) {
            return Err(format!("{op:?} failed with another error: {played:?}"));
        }
        if !failed {
            continue;
        }
        told.failed = Some(op.clone());
        player.check_all().await;
        if then == Then::On {
            continue;
        }
        let again = player.play(std::slice::from_ref(op), 1).await;
        let failed = unexpected(std::slice::from_ref(op), &again);
        if !failed.is_empty() {
            return Err(format!("{op:?} fails again: {again:?}"));
        }
    }
    Ok(told)
}

/// A game with a fault; what came of it.
pub fn run(game: &Game<Setup>, plan: Option<Plan>) -> Result<Told, String> {
    let setup = game.setup.clone();
    let made = setup.make();
    let start = judge(&setup, &made)?;
    let disks = Arc::new(Disks::new(made, |bytes| file(&bytes)));
    let (fault, growth) = (Fault::new(), Arc::<Mutex<u64>>::default());
    let (below, rules, grown) = (Arc::clone(&disks), Arc::clone(&fault), Arc::clone(&growth));
    let (ops, contents) = (game.ops.clone(), start.contents.clone());
    let then = plan.map_or(Then::Again, |plan| plan.then);
    let (mut model, mut told) = Exec::run(game.seed, move |exec| async move {
        let world = world(&setup, &below, &rules, &grown);
        let node = world.open().await.map_err(|error| format!("open: {error}"))?;
        if let Some(plan) = plan {
            let mut rule = Rule::new(plan.kind);
            if !plan.event.is_empty() {
                rule = rule.after_nth_event(plan.event, plan.nth);
            }
            rules.add(rule.skip(plan.skip).once().effect(plan.effect));
        }
        let model = DiskModel::new(setup.shape.size, known(&contents));
        let player = Player::new(exec, node, model).cutting().discards_leave(setup.discarded());
        let mut told = play(&player, &ops, &rules, then).await?;
        let before = rules.injected();
        if let Err(error) = graph::close(&player.node()).await {
            if rules.injected() == before {
                return Err(format!("close failed without a reason: {error}"));
            }
            told.failed = Some(Op::Reopen);
            graph::close(&player.node()).await.map_err(|e| format!("close fails again: {e}"))?;
        }
        told.events = rules.events();
        let model = player.model().lock().clone();
        Ok::<_, String>((model, told))
    })?;
    told.injected = fault.injected();
    let judged = judge(&game.setup, &disks.bytes(MemDisk::to_vec))?;
    // A mark that was made although its write failed stays, if nobody comes again.
    let marked = judged.report.unclean && told.failed.is_some();
    if marked && judged.report.redundant.is_empty() {
        judged.no_errors()?
    } else {
        judged.clean()?
    }
    judged.same_text(&start)?;
    model.check(0, &judged.contents).map_err(|wrong| format!("naive reader: {wrong}"))?;
    // Holes that are not made, and a file that is not made longer in advance, cost nobody anything.
    let grew = *growth.lock() > 0;
    let silent = grew || plan.is_some_and(|plan| plan.kind == Kind::Discard);
    if told.injected > 0 && told.failed.is_none() && !silent {
        return Err("a request failed and nobody heard of it".to_owned());
    }
    let leaks = judged.report.leaks;
    let most = told.failed.as_ref().map_or(0, |op| may_leak(&game.setup, op));
    if leaks > most && !grew && !game.ops.iter().any(kit::frees) {
        return Err(format!("{leaks} leaks of at most {most}: {}", judged.report));
    }
    Ok(told)
}

/// The grains of an operation: of its data, and of the tables that map them.
fn may_leak(setup: &Setup, op: &Op) -> u64 {
    let grain = setup.shape.grain_size();
    let range = op.range().expand(kit::alignment(grain));
    range.len() / grain + 2
}

/// The setups on which an operation does not take long.
pub fn quick_setups() -> Vec<Setup> {
    let quick =
        |setup: &Setup| setup.shape.size < 1 << 20 && setup.align == 1 && setup.room.is_none();
    setups().into_iter().filter(quick).collect()
}
