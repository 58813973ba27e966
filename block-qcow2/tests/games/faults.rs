//! Operations one by one, of which one meets a request that fails: nothing outside of its range changes, it works
//! when it is sent again, and the image has no error and no leak but of its clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::error::Error;
use block_core::{ByteRange, graph};
use block_testkit::campaign::Game;
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::Op;
use block_testkit::play::{Played, Player};

use super::kit::{self, Setup, World, judge, known, setups, unexpected};

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
    /// An operation that the image refuses anyhow was hit, and returned that error.
    pub refused: Option<Op>,
}

fn file(bytes: &[u8]) -> Arc<MemDisk> {
    MemConfig { step: None, ..MemConfig::file() }.holding(bytes)
}

/// Plays the operations one after the other.
async fn play(
    player: &Player,
    setup: &Setup,
    ops: &[Op],
    fault: &Fault,
    then: Then,
) -> Result<Told, String> {
    let mut told = Told::default();
    for op in ops {
        let before = fault.injected();
        let played = player.play(std::slice::from_ref(op), 1).await[0];
        let hit = fault.injected() > before;
        let failed = !unexpected(setup, std::slice::from_ref(op), &[played]).is_empty();
        if failed && !hit {
            return Err(format!("{op:?} failed without a reason: {played:?}"));
        }
        if failed && played != Played::Returned(Err(Error::IO)) {
            return Err(format!("{op:?} failed with another error: {played:?}"));
        }
        if !failed {
            // A snapshot too many for narrow refcounts: its own error stands before that of taking back.
            if hit && matches!(played, Played::Returned(Err(_))) {
                told.refused = Some(op.clone());
            }
            continue;
        }
        told.failed = Some(op.clone());
        player.check_all().await;
        if then == Then::On {
            continue;
        }
        let again = player.play(std::slice::from_ref(op), 1).await;
        let failed = unexpected(setup, std::slice::from_ref(op), &again);
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
    let (image, data) = (file(&made.file), file(&made.data));
    let fault = Fault::new();
    let (below, guest, rules) = (Arc::clone(&image), Arc::clone(&data), Arc::clone(&fault));
    let ops = game.ops.clone();
    let then = plan.map_or(Then::Again, |plan| plan.then);
    let (mut model, snapshots, mut told) = Exec::run(game.seed, move |exec| async move {
        let tapped = Tapped::new(below, Arc::clone(&rules));
        let world = World::new(&setup, tapped, Some(guest));
        let node = world.open().await.map_err(|error| format!("open: {error}"))?;
        if let Some(plan) = plan {
            let mut rule = Rule::new(plan.kind);
            if !plan.event.is_empty() {
                rule = rule.after_nth_event(plan.event, plan.nth);
            }
            rules.add(rule.skip(plan.skip).once().effect(plan.effect));
        }
        let model = DiskModel::new(setup.shape.size, known(&start.contents));
        let mut player = Player::new(exec, node, model).cutting().discards_leave(setup.discarded());
        for (name, contents) in &start.snapshots {
            let frozen = Frozen::filled(contents.len() as u64, known(contents));
            player = player.holding(name, frozen);
        }
        let mut told = play(&player, &setup, &ops, &rules, then).await?;
        let before = rules.injected();
        if let Err(error) = graph::close(&player.node()).await {
            if rules.injected() == before {
                return Err(format!("close failed without a reason: {error}"));
            }
            told.failed = Some(Op::Reopen);
            graph::close(&player.node()).await.map_err(|e| format!("close fails again: {e}"))?;
        }
        told.events = rules.events();
        told.injected = rules.injected();
        let model = player.model().lock().clone();
        Ok::<_, String>((model, player.snapshots(), told))
    })?;
    let judged = judge(&game.setup, &Made { file: image.to_vec(), data: data.to_vec() })?;
    judged.survived(&game.setup)?;
    // Holes that are not made, and a file that stays longer than it must, cost nobody anything.
    let silent = plan.is_some_and(|plan| matches!(plan.kind, Kind::Discard | Kind::Truncate));
    let heard = told.failed.as_ref().or(told.refused.as_ref());
    if told.injected > 0 && heard.is_none() && !silent {
        return Err("a request failed and nobody heard of it".to_owned());
    }
    let leaks = judged.report.leaks();
    let most = heard.map_or(0, |op| may_leak(&game.setup, op));
    if leaks > most {
        return Err(format!("{leaks} leaks of at most {most}: {}", judged.report));
    }
    model.check(0, &judged.contents).map_err(|wrong| format!("naive reader: {wrong}"))?;
    judged.holds(&snapshots)?;
    told.injected = fault.injected();
    Ok(told)
}

/// The clusters of an operation: of its data, and of the tables that map them. A snapshot, and a change of
/// the length, are about all of them.
fn may_leak(setup: &Setup, op: &Op) -> u64 {
    let cluster = setup.shape.cluster_size();
    let range = match op {
        Op::Snapshot(_) | Op::Truncate { .. } => ByteRange::up_to(setup.shape.size * 2),
        op => op.range(),
    };
    let range = range.expand(kit::alignment(cluster));
    range.len() / cluster + range.len() / setup.shape.l2_coverage() + 3
}
/// The setups on which an operation does not take long.
pub fn quick_setups() -> Vec<Setup> {
    setups().into_iter().filter(|setup| setup.shape.cluster_bits < 21 && setup.align == 1).collect()
}
