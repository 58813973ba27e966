//! One request to the image file fails: the operation that needed it says so, nothing outside of its range
//! changes, the same operation works when it is sent again, and once the image is closed it has no error
//! and no leak but of the clusters of that one operation.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod games;
mod kit;

use std::collections::BTreeSet;
use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::format::raw::RawDriver;
use block_core::node::NodeOptions;
use block_core::proto::mem::MemDriver;
use block_core::range::to_u64;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, graph};
use block_testkit::campaign::{Campaign, Game};
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::mem::MemConfig;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::{Op, contents};
use futures::executor::block_on;
use games::faults::{Plan, Then, Told, quick_setups, run};
use kit::setups::{Filled, TINY, empty, setup, setups};
use kit::{Setup, World, judge, ops};
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
    let campaign = Campaign::new("faults", 3 * setups.len() as u64);
    let hit = std::cell::RefCell::new(BTreeSet::new());
    campaign.run(
        |seed| make(&setups, seed, 14),
        |game| {
            hit.borrow_mut().extend(faults(game, 12)?);
            Ok(())
        },
    );
    println!("faults after {:?}", hit.borrow());
    if campaign.seeds().count() >= 3 * setups.len() {
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

/// A table that was written and is not in use after all: who gets its place reads nothing of it.
#[test]
fn where_a_refcount_table_did_not_get_to_only_the_guest_has_written() {
    let mut setup = setup("512 full");
    setup.filled = Filled::Empty;
    setup.shape.size = 16 << 20;
    let made = setup.make();
    for (kind, effect) in CHANGES.into_iter().zip([Effect::Nothing, Effect::All]) {
        let mut skip = 0;
        while beside_a_table(&setup, &made, Rule::new(kind).skip(skip).effect(effect)) {
            skip += 1;
        }
        assert!(skip > 1, "{skip} faults of {kind}");
    }
}

/// Fails one request of a move of the refcount table, and has a part of a cluster written then; whether the
/// request came.
fn beside_a_table(setup: &Setup, made: &Made, rule: Rule) -> bool {
    let place = format!("{rule:?}");
    let disk = MemConfig { step: None, ..MemConfig::file() }.holding(&made.file);
    let faults = Fault::new();
    let world = World::new(setup, Tapped::new(Arc::clone(&disk) as _, Arc::clone(&faults)), None);
    let (large, small) = (8 << 20, 9 << 20);
    block_on(async {
        let node = world.open().await.unwrap();
        let range = |offset, len| ByteRange::new(offset, len).unwrap();
        let none = RequestFlags::empty();
        let write = |range: ByteRange, byte| {
            let buf = IoBuf::zeroed(kit::index(range.len()), Alignment::ONE).unwrap();
            buf.fill(byte);
            node.write(range, buf.into(), none)
        };
        // Tables for what comes, and no cluster left that the refcounts cover.
        for start in [large, small] {
            node.write_zeroes(range(start, 32 << 10), none).await.unwrap();
        }
        write(range(0, 3958 * 512), 0xaa).await.unwrap();
        faults.add(rule.after_event("reftable_grow").once());
        let _ = write(range(large, 32 << 10), 1).await;
        faults.clear();
        write(range(small + 256, 10), 2).await.unwrap();
        graph::close(&node).await.unwrap();
    });
    let judged = judge(setup, &Made { file: disk.to_vec(), data: Vec::new() }).unwrap();
    judged.no_errors().unwrap_or_else(|why| panic!("{place}: {why}"));
    let mut wanted = [0; 512];
    wanted[256..266].fill(2);
    let small = kit::index(small);
    assert!(judged.contents[small..small + 512] == wanted, "{place}: beside what was written");
    faults.injected() > 0
}

/// Clusters that got a place with a longer disk are inside of the file, whatever fails then.
#[test]
fn what_is_preallocated_is_inside_of_the_file_after_any_error() {
    let setup = empty(TINY);
    let made = setup.make();
    let kinds = [Kind::Write, Kind::Read, Kind::Truncate, Kind::FlushToDisk];
    for (kind, times) in
        kinds.into_iter().flat_map(|kind| [(kind, Times::Once), (kind, Times::Ever)])
    {
        let mut skip = 0;
        while preallocate(&setup, &made, kind, skip, times) {
            skip += 1;
        }
        assert!(skip > 4, "{skip} faults of {kind}");
    }
}

/// How often a request fails.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Times {
    Once,
    /// As do all of its kind from then on, until the disk is closed.
    Ever,
}

/// Makes the disk longer, with places for its clusters, while requests fail; whether any did.
fn preallocate(setup: &Setup, made: &Made, kind: Kind, skip: u64, times: Times) -> bool {
    let place = format!("{kind} {skip}, {times:?}");
    let disk = MemConfig { step: None, ..MemConfig::file() }.holding(&made.file);
    let faults = Fault::new();
    let world = World::new(setup, Tapped::new(Arc::clone(&disk) as _, Arc::clone(&faults)), None);
    let check = |when: &str| {
        let judged = judge(setup, &Made { file: disk.to_vec(), data: Vec::new() }).unwrap();
        judged.no_errors().unwrap_or_else(|why| panic!("{place}, {when}: {why}"));
        assert!(judged.contents.iter().all(|byte| *byte == 0), "{place}, {when}: contents");
    };
    block_on(async {
        let node = world.open().await.unwrap();
        let rule = Rule::new(kind).skip(skip);
        faults.add(if times == Times::Once { rule.once() } else { rule });
        let _ = node.truncate(5 << 20, Exactness::Exact, Prealloc::Metadata).await;
        check("at once");
        faults.clear();
        graph::close(&node).await.unwrap();
    });
    check("closed");
    faults.injected() > 0
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

/// Writes all over a disk whose file ends `more` bytes behind its last cluster and cannot grow; how many
/// requests found no room.
fn fill(setup: &Setup, more: usize, seed: u64) -> usize {
    let place = format!("{}, {more} bytes more, seed {seed}", setup.name);
    let mut made = setup.make();
    let mut model = judge(setup, &made).unwrap().contents;
    made.file.resize(made.file.len() + more, 0);
    let disk = Arc::new(MemDriver::from_bytes(&made.file).unwrap());
    let file = Node::new(disk.clone(), NodeOptions::default());
    let device = RawDriver::part(file, 0, Some(to_u64(made.file.len()))).unwrap();
    let world = World::new(setup, Arc::new(device), None);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut full = 0;
    block_on(async {
        let node = world.open().await.unwrap();
        for op in 1..100 {
            let at = rng.random_range(0..setup.shape.size / 512) * 512;
            let len = rng.random_range(1..=4 * setup.shape.cluster_size() / 512) * 512;
            let range = ByteRange::new(at, len.min(setup.shape.size - at)).unwrap();
            let here = kit::index(range.offset())..kit::index(range.end());
            let buf = IoBuf::zeroed(here.len(), Alignment::ONE).unwrap();
            let done = match rng.random_range(0..10) {
                0 => node.flush().await.map(|()| model[here.clone()].to_vec()),
                1 => {
                    let zeroed = node.write_zeroes(range, RequestFlags::MAY_UNMAP).await;
                    zeroed.map(|()| vec![0; here.len()])
                }
                _ => {
                    let bytes = contents(op, range);
                    buf.copy_from(0, &bytes);
                    let written = node.write(range, buf.clone().into(), RequestFlags::empty());
                    written.await.map(|()| bytes)
                }
            };
            node.read(range, buf.clone().into()).await.unwrap();
            let now = buf.to_vec();
            match done {
                Ok(bytes) => assert!(bytes == now, "{place}: {range:?} after operation {op}"),
                Err(error) => {
                    assert_eq!(error, Error::NO_SPACE, "{place}: operation {op}");
                    full += 1;
                }
            }
            model[here].copy_from_slice(&now);
        }
        graph::close(&node).await.unwrap();
    });
    let judged = judge(setup, &Made { file: disk.to_bytes(), data: Vec::new() }).unwrap();
    assert!(judged.contents == model, "{place}: contents");
    judged.clean().unwrap_or_else(|why| panic!("{place}: {why}"));
    full
}

#[test]
fn a_device_that_is_full_says_so_and_goes_on() {
    for setup in setups().iter().filter(|setup| setup.shape.data_file.is_none()) {
        let full = [0, 10].map(|clusters| {
            let more = clusters * kit::index(setup.shape.cluster_size()) + 512 * clusters;
            fill(setup, more, to_u64(clusters))
        });
        assert!(full[0] > 0, "{}: {full:?} requests found no room", setup.name);
    }
}
