//! One request to a file of the disk, or of its parent, fails: the operation that needed it says so,
//! nothing outside of its range changes, the same operation works when it is sent again, and once the disk
//! is closed it has no damage, and no more lost space than that operation had grains.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::Error;
use block_core::{Alignment, ByteRange, RequestFlags, graph};
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_testkit::exec::Exec;
use block_testkit::model::disk::DiskModel;
use block_testkit::op::{Op, contents, io_vec};
use block_testkit::play::{Played, Player};
use futures::executor::block_on;
use kit::{Disks, Setup, World, judge, known, ops, setups, setups::setup, unexpected};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What fails: one request, so many after that event has come so often; from the start where it has no name.
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

fn file(bytes: &[u8]) -> Arc<MemDisk> {
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
fn run(game: &Game<Setup>, plan: Option<Plan>) -> Result<Told, String> {
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
    let mut events: Vec<_> = told.events.iter().map(|(name, times)| (*name, *times)).collect();
    events.push(("", 1));
    let plan = |rng: &mut ChaCha8Rng| {
        let (event, times) = events[rng.random_range(0..events.len())];
        let skip =
            if event.is_empty() { rng.random_range(0..12) } else { rng.random_range(0..3) / 2 };
        Plan {
            event,
            nth: rng.random_range(0..times),
            kind: KINDS[rng.random_range(0..KINDS.len())],
            skip,
            effect: [Effect::Nothing, Effect::Half, Effect::All][rng.random_range(0..3)],
            then: [Then::Again, Then::On][rng.random_range(0..2)],
        }
    };
    (0..count).map(|_| plan(rng)).collect()
}

/// The setups on which an operation does not take long.
fn quick_setups() -> Vec<Setup> {
    let quick =
        |setup: &Setup| setup.shape.size < 1 << 20 && setup.align == 1 && setup.room.is_none();
    setups().into_iter().filter(quick).collect()
}

fn make(setups: &[Setup], seed: u64, most: usize) -> Game<Setup> {
    let setup = setups[kit::index(seed % setups.len() as u64)].clone();
    let mut ops = ops(&setup, seed, most);
    ops.retain(|op| *op != Op::Reopen);
    if seed / setups.len() as u64 % 2 == 1 {
        ops.retain(|op| !kit::frees(op));
    }
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
    let campaign = Campaign::new("faults", 4 * setups.len() as u64);
    let hit = std::cell::RefCell::new(BTreeSet::new());
    campaign.run(
        |seed| make(&setups, seed, 14),
        |game| {
            hit.borrow_mut().extend(faults(game, 12)?);
            Ok(())
        },
    );
    println!("faults after {:?}", hit.borrow());
    if campaign.seeds().count() >= 4 * setups.len() {
        assert!(hit.borrow().len() > 6, "only after {:?}", hit.borrow());
    }
}

/// Fails every request of these kinds after the event, each in a game of its own; how many there were.
fn each_in_turn(name: &str, ops: &[Op], event: &'static str, kinds: &[Kind]) -> u64 {
    let game = Game { depth: 1, setup: setup(name), ops: ops.to_vec(), seed: 0 };
    let mut injected = 0;
    for kind in kinds.iter().copied() {
        for effect in [Effect::Nothing, Effect::Half, Effect::All] {
            for then in [Then::Again, Then::On] {
                for skip in 0.. {
                    let plan = Plan { event, nth: 0, kind, skip, effect, then };
                    let told =
                        run(&game, Some(plan)).unwrap_or_else(|why| panic!("{plan:?}: {why}"));
                    if told.injected == 0 {
                        break;
                    }
                    injected += told.injected;
                }
            }
        }
    }
    injected
}

fn write(offset: u64, len: u64) -> Op {
    let range = ByteRange::new(offset, len).unwrap();
    Op::Write { range, flags: RequestFlags::empty(), buffers: 1 }
}

/// From the new content id on, over the mark in the header, to the last change of a table.
#[test]
fn every_request_of_a_first_write_may_fail() {
    let ops = [write(0x4100, 0x3000), Op::Flush, write(0x8000, 0x100)];
    for (name, least) in [("8k empty directory", 60), ("cowd", 40), ("4k shorter backing", 60)] {
        let injected = each_in_turn(name, &ops, "", &CHANGES);
        assert!(injected > least, "{injected} faults on {name:?}");
    }
}

/// Both extents get new tables, and a grain at the border is short.
#[test]
fn every_request_of_a_write_across_extents_may_fail() {
    let setup = setup("split longer backing");
    let border = setup.shape.extents()[0] * 512;
    let ops = [write(border - 0x900, 0x2000), Op::Flush];
    let kinds = [Kind::Write, Kind::FlushToDisk, Kind::Read];
    let injected = each_in_turn(setup.name, &ops, "", &kinds);
    assert!(injected > 80, "{injected} faults");
}

/// The error of one extent is not covered by the others' success.
#[test]
fn every_request_of_a_discard_across_extents_may_fail() {
    let discard = Op::Discard { range: ByteRange::new(0xf000, 0x19000).unwrap() };
    let kinds = [Kind::Write, Kind::FlushToDisk, Kind::Read];
    let injected = each_in_turn("split 4k zeroed", &[discard, Op::Flush], "", &kinds);
    assert!(injected > 60, "{injected} faults");
}

#[test]
fn every_request_of_a_zero_write_may_fail() {
    let range = ByteRange::new(0x1000, 0xa000).unwrap();
    let zero = Op::Zero { range, flags: RequestFlags::MAY_UNMAP };
    let ops = [zero, Op::Flush, write(0x3000, 0x1000), Op::Flush];
    for name in ["4k zeroed", "4k longer backing", "cowd 4k"] {
        let injected = each_in_turn(name, &ops, "", &CHANGES);
        assert!(injected > 30, "{injected} faults on {name:?}");
    }
}

/// The grain of a write that failed goes to the next one.
#[test]
fn a_failed_write_gives_its_grain_back() {
    let setup = setup("4k");
    let (disks, fault, record) =
        (Disks::new(setup.make(), |bytes| file(&bytes)), Fault::new(), Record::new());
    let world = disks.world(&setup, |disk| {
        Tapped::new(Tapped::new(disk, Arc::clone(&fault)), Arc::clone(&record))
    });
    block_on(async {
        let node = world.open().await.unwrap();
        let place = async |grain: u64| {
            record.take();
            let range = ByteRange::new(grain * 4096, 4096).unwrap();
            let iov = io_vec(&contents(1, range), Alignment::ONE, 1);
            let result = node.write(range, iov, RequestFlags::empty()).await;
            let calls = record.take();
            let data = |call: &&Call| call.kind == Kind::Write && call.range.len() == 4096;
            (result, calls.iter().rfind(data).unwrap().range)
        };
        // The first write does everything that comes once.
        let first = place(1).await.1;
        fault.add(Rule::new(Kind::Write).once());
        let (result, lost) = place(2).await;
        assert_eq!(result, Err(Error::IO));
        assert_eq!(lost.offset(), first.end());
        assert_eq!(place(9).await, (Ok(()), lost));
        assert_eq!(place(2).await.1.offset(), lost.end());
        graph::close(&node).await.unwrap();
    });
    let judged = judge(&setup, &disks.bytes(MemDisk::to_vec)).unwrap();
    judged.clean().unwrap();
    assert_eq!((judged.report.leaks, judged.report.grains), (0, 3));
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
