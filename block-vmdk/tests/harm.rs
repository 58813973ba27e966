//! Disks that are damaged, files that two extents have, updates that fail or are given up half-way: what
//! stands beside is not harmed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod damaged;
mod kit;

use std::ops::Range;
use std::sync::Arc;

use block_core::ability::Repair;
use block_core::driver::BlockDriver;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::range::to_u64;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, Problem, RequestFlags, graph,
};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::{Exec, poll_times, yield_now};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{NAME, Redundant, Tables};
use block_testkit::op::contents;
use damaged::{DATA, EMPTY, NEXT, Sample, sample, samples};
use kit::setups::{BASE, Setup, setup};
use kit::{Disks, World, index, judge, memory};

fn range(of: Range<u64>) -> ByteRange {
    ByteRange::from_bounds(of.start, of.end).unwrap()
}

async fn put(node: &Node, op: u32, at: ByteRange) -> Result<(), Error> {
    let buf = IoBuf::zeroed(index(at.len()), Alignment::PAGE).unwrap();
    buf.copy_from(0, &contents(op, at));
    node.write(at, buf.into(), RequestFlags::empty()).await
}

async fn take(node: &Node, at: ByteRange) -> Result<Vec<u8>, Error> {
    let buf = IoBuf::zeroed(index(at.len()), Alignment::PAGE).unwrap();
    node.read(at, buf.clone().into()).await.map(|()| buf.to_vec())
}

/// How a grain is let go.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum LetGo {
    Discard,
    Zero,
    MakeEmpty,
}

/// Lets go the grain `NEXT` of the disk, whose entry is wrong, and uses what may have become free.
fn let_go(sample: &Sample, way: LetGo, flags: OpenFlags) -> Files {
    let disks = Disks::new(sample.files.clone(), |bytes| MemConfig::file().holding(&bytes));
    let world = disks.world(&sample.setup, |disk| disk);
    let grain = range(sample.guest(NEXT));
    block_on(async {
        let node = world.open_with(flags).await.unwrap();
        match way {
            LetGo::Discard => node.discard(grain).await.unwrap(),
            LetGo::Zero => node.write_zeroes(grain, RequestFlags::MAY_UNMAP).await.unwrap(),
            LetGo::MakeEmpty => {
                node.driver().as_rebase().unwrap().make_empty().await.unwrap();
            }
        }
        // What is let go is free after this.
        for _ in 0..3 {
            put(&node, 7, range(sample.guest(EMPTY))).await.unwrap();
            node.flush().await.unwrap();
            let free = range(sample.guest(EMPTY + 1));
            put(&node, 7, free).await.unwrap();
            node.flush().await.unwrap();
            node.discard(free).await.ok();
            node.flush().await.unwrap();
        }
        graph::close(&node).await.unwrap();
    });
    disks.bytes(MemDisk::to_vec)
}

/// An entry that points into metadata is taken away, and what it points at stays as it is.
#[test]
fn metadata_under_a_grain_that_is_let_go_stays() {
    let keep = OpenFlags { unmap: false, ..OpenFlags::READ_WRITE };
    let mut tried = 0;
    for good in samples().into_iter().filter(|sample| !sample.is_stream()) {
        // The slot of a grain that holds a table, so that its entry looks like any other.
        let target = good.table(good.gd(), 0) / good.grain() * good.grain();
        if target < 2 {
            continue;
        }
        let mut bad = good.clone();
        bad.set(NEXT, target);
        for way in [LetGo::Discard, LetGo::Zero, LetGo::MakeEmpty] {
            if way == LetGo::MakeEmpty && good.setup.backing.is_none() {
                continue;
            }
            for flags in [OpenFlags::READ_WRITE, keep] {
                if way != LetGo::MakeEmpty && flags == keep {
                    // The layer keeps it.
                    continue;
                }
                let place = format!("{}, {way:?}, {flags:?}", good.setup.name);
                let after = let_go(&bad, way, flags);
                let judged = judge(&good.setup, &after).unwrap_or_else(|e| panic!("{place}: {e}"));
                judged.no_errors().unwrap_or_else(|e| panic!("{place}: {e}"));
                let kept = good.guest(DATA);
                let kept = index(kept.start)..index(kept.end);
                let before = judge(&good.setup, &good.files).unwrap().contents;
                let expected = match (way, good.setup.backing_contents()) {
                    (LetGo::MakeEmpty, Some(backing)) => backing[kept.clone()].to_vec(),
                    _ => before[kept.clone()].to_vec(),
                };
                assert!(judged.contents[kept] == expected, "{place}: other data");
                tried += 1;
            }
        }
    }
    assert!(tried >= 12, "{tried}");
}

/// A descriptor of these extent lines, and one extent file for all of them.
fn described(lines: &str, extent: &[u8]) -> Files {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentSparse\"\n{lines}\n"
    );
    [(NAME.to_owned(), text.into_bytes()), ("x.vmdk".to_owned(), extent.to_vec())].into()
}

fn open_described(files: &Files, flags: OpenFlags) -> Result<Node, OpenError> {
    let disks = Disks::new(files.clone(), |bytes| MemConfig::file().holding(&bytes));
    block_on(disks.world(&setup("flat"), |disk| disk).open_with(flags))
}

/// Two extents of one file are served where none of them is written to, or where they are apart.
#[test]
fn extents_do_not_write_to_the_same_part_of_a_file() {
    let split = setup("split 4k").make();
    let sparse = split.iter().find(|(name, _)| *name != NAME).unwrap().1;
    let flat = vec![0; 64 << 10];
    let cases: [(&str, &[u8], Option<&str>); 8] = [
        ("RW 8 SPARSE \"x.vmdk\"\nRW 8 SPARSE \"x.vmdk\"", sparse, Some("number of an extent")),
        ("RDONLY 8 SPARSE \"x.vmdk\"\nRDONLY 8 SPARSE \"x.vmdk\"", sparse, None),
        ("RW 8 SPARSE \"x.vmdk\"\nRDONLY 8 SPARSE \"x.vmdk\"", sparse, Some("number of an extent")),
        ("RW 8 SPARSE \"x.vmdk\"\nRW 8 FLAT \"x.vmdk\" 64", sparse, Some("number of an extent")),
        ("RW 8 FLAT \"x.vmdk\" 0\nRW 8 FLAT \"x.vmdk\" 8", &flat, None),
        ("RW 8 FLAT \"x.vmdk\" 8\nRW 8 FLAT \"x.vmdk\" 0", &flat, None),
        ("RW 8 FLAT \"x.vmdk\" 0\nRW 8 FLAT \"x.vmdk\" 7", &flat, Some("number of an extent")),
        ("RDONLY 8 FLAT \"x.vmdk\" 0\nRDONLY 8 FLAT \"x.vmdk\" 7", &flat, None),
    ];
    let check = OpenFlags { check: true, ..OpenFlags::READ_WRITE };
    for (lines, extent, refused) in cases {
        let files = described(lines, extent);
        for flags in [OpenFlags::READ_ONLY, check] {
            open_described(&files, flags).unwrap_or_else(|error| panic!("{lines}: {error}"));
        }
        match (open_described(&files, OpenFlags::READ_WRITE), refused) {
            (Ok(_), None) => {}
            (Err(OpenError::Child { name, source, .. }), Some(wanted)) => match *source {
                OpenError::Field { field, value, problem: Problem::Contradicts(_), .. } => {
                    assert_eq!((&*name, field, value), ("x.vmdk", wanted, 1), "{lines}");
                }
                other => panic!("{lines}: {other}"),
            },
            (other, _) => panic!("{lines}: {:?}", other.map(|node| node.len())),
        }
    }
}

/// A sparse extent of as many tables as there may be, each for one grain of 4 KiB; nothing is in them.
fn huge_extent() -> Vec<u8> {
    let mut head = setup("4k lone tables").make().remove(NAME).unwrap();
    head.resize(512, 0);
    head[12..20].copy_from_slice(&(1u64 << 28).to_le_bytes());
    head[44..48].copy_from_slice(&1u32.to_le_bytes());
    head[28..44].fill(0);
    head[56..64].copy_from_slice(&8u64.to_le_bytes());
    head[64..72].copy_from_slice(&((1u64 << 18) + 8).to_le_bytes());
    head
}

/// The files of a disk of extents that have a directory of the greatest length.
fn huge(lines: &str, records: &mut Vec<Arc<Record>>) -> World {
    let len = (1u64 << 27) + 4096;
    let text = described(lines, &[]).remove(NAME).unwrap();
    let files = std::iter::once(memory(&text)).chain((0..2).map(|_| {
        let disk = MemConfig { len, step: None, ..MemConfig::file() }.build();
        disk.load(0, &huge_extent());
        let record = Record::new();
        records.push(Arc::clone(&record));
        Tapped::new(disk, record) as Arc<dyn BlockDriver>
    }));
    World::new(&setup("flat"), files.collect())
}

/// What a directory says of what the disk does not have is not read; all directories together are bounded.
#[test]
fn directories_take_memory_for_what_the_disk_has_of_them() {
    let mut records = Vec::new();
    let lines = "RDONLY 8 SPARSE \"x.vmdk\"\n".repeat(20);
    let node = block_on(huge(&lines, &mut records).open_with(OpenFlags::READ_ONLY)).unwrap();
    let read: u64 = records[0].take().iter().map(|call| call.range.len()).sum();
    assert!(read < 1 << 20, "{read} bytes");
    assert_eq!(block_on(take(&node, ByteRange::up_to(8192))), Ok(vec![0; 8192]));

    let lines = "RW 8 SPARSE \"x.vmdk\"\nRW 8 SPARSE \"y.vmdk\"";
    match block_on(huge(lines, &mut records).open_with(OpenFlags::READ_WRITE)) {
        Err(OpenError::Field { field, value, problem: Problem::Above(_), .. }) => {
            assert_eq!((field, value), ("grain directory entries of all extents", 2 << 25));
        }
        other => panic!("{:?}", other.map(|node| node.len())),
    }
}

/// Damage of the parent is the parent's: the overlay goes on.
#[test]
fn a_damaged_parent_leaves_the_overlay_writable() {
    let over = sample("4k longer backing");
    let base: Files = [(NAME.to_owned(), over.setup.base().unwrap().to_vec())].into();
    let mut base = Sample { setup: setup("4k"), files: base, name: NAME.to_owned() };
    let gd = base.gd();
    base.put32(base.gde(gd, 0), u64::from(u32::MAX));
    let disks = Disks::new(over.files.clone(), |bytes| MemConfig::file().holding(&bytes));
    let mut world = disks.world(&over.setup, |disk| disk);
    world.base = Some(memory(base.file()));
    block_on(async {
        let node = world.open().await.unwrap();
        let empty = range(over.guest(EMPTY));
        assert!(take(&node, empty).await.is_err());
        assert!(put(&node, 3, empty.first(512)).await.is_err(), "the rest of the grain is lost");
        put(&node, 3, empty).await.unwrap();
        assert_eq!(take(&node, empty).await.unwrap(), contents(3, empty));
        graph::close(&node).await.unwrap();
    });
}

/// The future of a change is dropped at each of its polls: nothing that it had in hand is lost, and what it
/// began does not come after what is done later.
#[test]
fn what_is_given_up_half_way_is_finished() {
    let holes = |name: &str| {
        let mut setup = setup(name);
        setup.filled = kit::setups::Filled::Empty;
        setup.shape.tables = Tables::OnDemand;
        if !matches!(setup.shape.redundant, Redundant::None) {
            setup.shape.redundant = Redundant::Holes;
        }
        setup
    };
    for setup in [holes("4k holes"), holes("cowd 4k")] {
        for what in [Given::Check, Given::Close, Given::Reopen, Given::Empty] {
            let mut polls = 0;
            while !give_up(&setup, what, polls) {
                polls += 1;
                assert!(polls < 1000, "it never ends");
            }
            assert!(polls > 3, "{what:?} of {}: {polls} polls", setup.name);
        }
    }
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Given {
    Check,
    Close,
    Reopen,
    Empty,
}

/// Gives up after so many polls, and goes on with the disk; whether it was done before.
fn give_up(setup: &Setup, what: Given, polls: usize) -> bool {
    let files = setup.make();
    let disks = Arc::new(Disks::new(files, |bytes| {
        MemConfig { step: Some(512), ..MemConfig::file() }.holding(&bytes)
    }));
    let world = disks.world(setup, |disk| disk);
    let grain = setup.shape.grain_size();
    let table = grain * setup.shape.gtes_per_gt;
    let (early, late) =
        (ByteRange::new(0, grain).unwrap(), ByteRange::new(2 * grain, grain).unwrap());
    let other = ByteRange::new(table % setup.shape.size / grain * grain + grain, grain).unwrap();
    let done = Exec::run(to_u64(polls), move |_| async move {
        let mut node = world.open().await.unwrap();
        put(&node, 1, early).await.unwrap();
        put(&node, 1, other).await.unwrap();
        if what == Given::Empty {
            // For what it knows of its tables nothing would be read.
            graph::close(&node).await.unwrap();
            node = world.open().await.unwrap();
        }
        let driver = Arc::clone(node.driver());
        let done = match what {
            Given::Check => {
                let check = driver.as_check().unwrap();
                let checked = check.check(Repair::Nothing, Arc::new(|_| ()));
                poll_times(checked, polls).await.is_some()
            }
            Given::Close => poll_times(Arc::clone(&driver).close(), polls).await.is_some(),
            Given::Reopen => {
                let options = block_core::driver::ReopenOptions {
                    read_only: Some(true),
                    ..Default::default()
                };
                let prepare = Arc::clone(&driver).reopen_prepare(&options);
                poll_times(prepare, polls).await.is_some()
            }
            Given::Empty => {
                let emptied = driver.as_rebase().unwrap().make_empty();
                poll_times(emptied, polls).await.is_some()
            }
        };
        put(&node, 2, late).await.unwrap();
        node.flush().await.unwrap();
        for _ in 0..64 {
            yield_now().await;
        }
        done
    });
    // As if the machine had stopped behind the flush.
    let judged = judge(setup, &disks.bytes(MemDisk::to_vec)).unwrap();
    judged.no_errors().unwrap_or_else(|why| panic!("{what:?} after {polls}: {why}"));
    let emptied = what == Given::Empty && polls > 0;
    for (op, at) in [(1, early), (1, other), (2, late)] {
        let there = &judged.contents[index(at.offset())..index(at.end())];
        let right = match op == 1 && emptied {
            true => there.iter().all(|byte| *byte == 0),
            false => there == contents(op, at),
        };
        assert!(right, "{what:?} after {polls}: {at:?} is lost");
    }
    done
}

/// After an update of the descriptor that failed somewhere, the next one leaves no mixture of two texts.
#[test]
fn a_descriptor_is_written_whole_after_a_failure() {
    let mut hit = 0;
    for name in ["4k shorter backing", "split longer backing"] {
        for skip in 0..8 {
            for kind in [Kind::Write, Kind::FlushToDisk, Kind::Truncate] {
                hit += half_a_descriptor(name, kind, skip);
            }
        }
    }
    assert!(hit >= 4, "{hit} faults");
}

/// The request of this kind that comes after `skip` others fails, once; how many did.
fn half_a_descriptor(name: &str, kind: Kind, skip: u64) -> u64 {
    let setup = setup(name);
    let disks = Disks::new(setup.make(), |bytes| MemConfig::file().holding(&bytes));
    let fault = Fault::new();
    let mut below = Vec::new();
    for (number, (_, disk)) in disks.0.iter().enumerate() {
        let disk: Arc<dyn BlockDriver> = disk.clone();
        below.push(match number {
            0 => Tapped::new(disk, Arc::clone(&fault)),
            _ => disk,
        });
    }
    let world = World::new(&setup, below);
    let before = judge(&setup, &disks.bytes(MemDisk::to_vec)).unwrap();
    block_on(async {
        let node = world.open().await.unwrap();
        let rebase = node.driver().as_rebase().unwrap();
        fault.add(Rule::new(kind).skip(skip).once());
        // A shorter text, which moves what follows.
        let changed = rebase.change_backing(None, None).await;
        fault.clear();
        if changed.is_err() {
            put(&node, 1, ByteRange::up_to(512)).await.unwrap();
        }
        graph::close(&node).await.unwrap();
        if changed.is_err() {
            let after = judge(&setup, &disks.bytes(MemDisk::to_vec)).unwrap();
            after
                .same_text(&before)
                .unwrap_or_else(|why| panic!("{name}, {kind:?}, {skip}: {why}"));
            assert_eq!(after.parent, Some(BASE.1), "{name}, {kind:?}, {skip}");
        }
    });
    fault.injected()
}
