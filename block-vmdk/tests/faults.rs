//! One request to a file of the disk, or of its parent, fails: the operation that needed it says so,
//! nothing outside of its range changes, the same operation works when it is sent again, and once the disk
//! is closed it has no damage, and no more lost space than that operation had grains.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use std::collections::BTreeSet;
use std::sync::Arc;

use block_core::error::Error;
use block_core::{Alignment, ByteRange, RequestFlags, graph};
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::MemDisk;
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Call, Kind, Tapped};
use block_testkit::op::{Op, contents, io_vec};
use futures::executor::block_on;
use games::faults::{Plan, Then, Told, file, quick_setups, run};
use kit::{Disks, Setup, judge, ops, setups::setup};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
