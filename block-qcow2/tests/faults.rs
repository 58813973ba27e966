//! One request to the image file fails: the operation that needed it says so, nothing outside of its range
//! changes, the same operation works when it is sent again, and once the image is closed it has no error
//! and no leak but of the clusters of that one operation.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block_core::error::Error;
use block_core::{ByteRange, RequestFlags, graph};
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::Op;
use block_testkit::play::{Played, Player};
use kit::{Setup, World, judge, known, ops, setups, setups::setup, unexpected};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What fails: one request, so many after that event has come so often.
#[derive(Copy, Clone, Debug)]
struct Plan {
    event: &'static str,
    nth: u64,
    kind: Kind,
    skip: u64,
    effect: Effect,
    then: Then,
}

/// What the guest does about an operation that failed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Then {
    /// Sends it again.
    Again,
    /// Goes on with the next one.
    On,
}

/// What happened.
#[derive(Debug, Default)]
struct Told {
    /// The events that came, and how often.
    events: BTreeMap<&'static str, u64>,
    injected: u64,
    /// The operation that failed.
    failed: Option<Op>,
    /// An operation that the image refuses anyhow was hit, and returned that error.
    refused: Option<Op>,
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
fn run(game: &Game<Setup>, plan: Option<Plan>) -> Result<Told, String> {
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
            let rule = Rule::new(plan.kind).after_nth_event(plan.event, plan.nth);
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

/// Random faults in a game whose events are known.
fn plans(told: &Told, rng: &mut ChaCha8Rng, count: usize) -> Vec<Plan> {
    const KINDS: [Kind; 8] = [
        Kind::Write,
        Kind::Write,
        Kind::Write,
        Kind::Read,
        Kind::FlushToDisk,
        Kind::Truncate,
        Kind::Zero,
        Kind::Discard,
    ];
    let events: Vec<_> = told.events.iter().collect();
    if events.is_empty() {
        return Vec::new();
    }
    let plan = |rng: &mut ChaCha8Rng| {
        let (event, times) = events[rng.random_range(0..events.len())];
        Plan {
            event,
            nth: rng.random_range(0..*times),
            kind: KINDS[rng.random_range(0..KINDS.len())],
            skip: rng.random_range(0..3) / 2,
            effect: [Effect::Nothing, Effect::Half, Effect::All][rng.random_range(0..3)],
            then: [Then::Again, Then::On][rng.random_range(0..2)],
        }
    };
    (0..count).map(|_| plan(rng)).collect()
}

/// The setups on which an operation does not take long.
fn quick_setups() -> Vec<Setup> {
    setups().into_iter().filter(|setup| setup.shape.cluster_bits < 21 && setup.align == 1).collect()
}

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let setup = setups[kit::index(seed % setups.len() as u64)].clone();
    let mut ops = ops(&setup, seed, most);
    ops.retain(|op| *op != Op::Reopen);
    Game { depth: 1, setup, ops, seed }
}

/// Plays a game with faults; which events were followed by one that hit.
fn faults(game: &Game<Setup>, count: usize) -> Result<BTreeSet<&'static str>, String> {
    let told = run(game, None)?;
    let mut rng = ChaCha8Rng::seed_from_u64(game.seed);
    let mut hit = BTreeSet::new();
    for plan in plans(&told, &mut rng, count) {
        let told = run(game, Some(plan)).map_err(|why| format!("{plan:?}: {why}"))?;
        if told.injected > 0 {
            hit.insert(plan.event);
        }
    }
    Ok(hit)
}

#[test]
fn one_failed_request_harms_one_operation_only() {
    let setups = quick_setups();
    let campaign = Campaign::new("faults", 5 * setups.len() as u64);
    let hit = std::cell::RefCell::new(BTreeSet::new());
    campaign.run(
        |seed| make(&setups, seed, 14),
        |game| {
            hit.borrow_mut().extend(faults(game, 12)?);
            Ok(())
        },
    );
    println!("faults after {:?}", hit.borrow());
    if campaign.seeds().count() >= 5 * setups.len() {
        assert!(hit.borrow().len() > 8, "only after {:?}", hit.borrow());
    }
}

/// Fails every request of these kinds after the event, each in a game of its own; how many there were.
fn each_in_turn(name: &str, op: Op, event: &'static str, kinds: &[Kind]) -> u64 {
    let game = Game { depth: 1, setup: setup(name), ops: vec![op], seed: 0 };
    let mut injected = 0;
    for kind in kinds.iter().copied() {
        for (effect, then) in [(Effect::Nothing, Then::Again), (Effect::All, Then::On)] {
            for skip in 0.. {
                let plan = Plan { event, nth: 0, kind, skip, effect, then };
                let told = run(&game, Some(plan)).unwrap_or_else(|why| panic!("{plan:?}: {why}"));
                if told.injected == 0 {
                    break;
                }
                injected += told.injected;
            }
        }
    }
    injected
}

/// Once the header points at the longer table it is the table, whatever fails then.
#[test]
fn an_l1_table_that_moved_is_given_back_once() {
    let longer = Op::Truncate { len: 0x28_0000 };
    let injected = each_in_turn("512 full", longer, "l1_grow_alloc_table", &CHANGES);
    assert!(injected > 10, "{injected} faults");
}

#[test]
fn a_refcount_table_that_moved_is_given_back_once() {
    let range = ByteRange::new(0x1f_0000, 0x1_0000).unwrap();
    let write = Op::Write { range, flags: RequestFlags::empty(), buffers: 1 };
    let injected = each_in_turn("512 full", write, "reftable_grow", &CHANGES);
    assert!(injected > 4, "{injected} faults");
}

#[test]
fn a_refcount_that_cannot_be_read_is_heard_of() {
    let range = ByteRange::new(0x1_b600, 0x1_0000).unwrap();
    let zero = Op::Zero { range, flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP };
    let injected = each_in_turn("512 full", zero, "refblock_load", &[Kind::Read]);
    assert!(injected > 4, "{injected} faults");
}

/// Faults at many places of each game, for a time.
#[test]
#[ignore = "for cargo xtask soak"]
fn soak_faults() {
    let setups = quick_setups();
    Campaign::soak("faults")
        .run_until(|seed| make(&setups, seed, 24), |game| faults(game, 40).map(|_| 40));
}

/// Requests by which an operation changes the file, and whose errors it must answer with.
const CHANGES: [Kind; 2] = [Kind::Write, Kind::FlushToDisk];
