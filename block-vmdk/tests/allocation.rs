//! What the allocation of grains asks of the file, and what it never does.
//!
//! Requests to the files are recorded: each test says which of them a piece of work may cost.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::range::to_u64;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, graph};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Call, Kind, Tapped};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{
    Grain, NAME, Redundant, Shape, Subformat, Tables, ZeroedGrains,
};
use block_testkit::op::contents;
use kit::setups::{BASE, Filled};
use kit::{Disks, Setup, World, index, judge};

const GRAIN: u64 = 64 << 10;

/// Whether a file grows when it is written to.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Growth {
    Grows,
    Fixed,
}

/// An open disk, and what its files were asked.
struct Scene {
    setup: Setup,
    disks: Disks<MemDisk>,
    /// By file, the descriptor or the only file first.
    records: Vec<Arc<Record>>,
    fault: Arc<Fault>,
    node: Node,
}

fn setup(shape: Shape) -> Setup {
    let (filled, max_request) = (Filled::Empty, shape.size);
    Setup {
        name: "",
        shape,
        filled,
        backing: None,
        options: &[],
        align: 1,
        budget: None,
        room: None,
        max_request,
    }
}

impl Scene {
    fn open(setup: Setup) -> Self {
        let files = setup.make();
        Self::of(setup, files, Growth::Grows)
    }

    fn of(setup: Setup, files: Files, growth: Growth) -> Self {
        let disks = Disks::new(files, |bytes| {
            let mut config = MemConfig { step: None, ..MemConfig::file() };
            config.capabilities.grows_on_write = growth == Growth::Grows;
            config.holding(&bytes)
        });
        let (mut records, fault) = (Vec::new(), Fault::new());
        let mut below: Vec<Arc<dyn BlockDriver>> = Vec::new();
        for (_, disk) in &disks.0 {
            let record = Record::new();
            let tapped = Tapped::new(disk.clone(), Arc::clone(&record));
            below.push(Tapped::new(tapped, Arc::clone(&fault)));
            records.push(record);
        }
        let node = block_on(World::new(&setup, below).open()).unwrap();
        Self { setup, disks, records, fault, node }
    }

    fn write(&self, op: u32, offset: u64, len: u64) -> Result<(), Error> {
        let range = ByteRange::new(offset, len).unwrap();
        let buf = IoBuf::zeroed(index(len), Alignment::PAGE).unwrap();
        buf.copy_from(0, &contents(op, range));
        block_on(self.node.write(range, buf.into(), RequestFlags::empty()))
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let buf = IoBuf::zeroed(index(len), Alignment::PAGE).unwrap();
        let range = ByteRange::new(offset, len).unwrap();
        block_on(self.node.read(range, buf.clone().into())).unwrap();
        buf.to_vec()
    }

    fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> Result<(), Error> {
        block_on(self.node.write_zeroes(ByteRange::new(offset, len).unwrap(), flags))
    }

    fn flush(&self) {
        block_on(self.node.flush()).unwrap();
    }

    /// What the extent's file was asked since the last look.
    fn asked(&self) -> Vec<Call> {
        self.records.last().unwrap().take()
    }

    /// Closes the disk; its files have no errors and hold what `expected` says of their ranges.
    fn finish(self, expected: &[(u64, &[u8])]) -> Files {
        block_on(graph::close(&self.node)).unwrap();
        let files = self.disks.bytes(MemDisk::to_vec);
        let judged = judge(&self.setup, &files).unwrap();
        judged.clean().unwrap();
        for (offset, bytes) in expected {
            let there = &judged.contents[index(*offset)..][..bytes.len()];
            assert!(there == *bytes, "contents at {offset:#x}");
        }
        files
    }
}

fn bytes(op: u32, offset: u64, len: u64) -> Vec<u8> {
    contents(op, ByteRange::new(offset, len).unwrap())
}

fn count(calls: &[Call], kind: Kind) -> usize {
    calls.iter().filter(|call| call.kind == kind).count()
}

/// 256 grains cost one data write each and nothing else; a flush writes each table and its copy once.
#[test]
fn a_new_grain_costs_one_write_and_the_tables_wait_for_the_flush() {
    let scene = Scene::open(setup(Shape::new(64 << 20)));
    scene.write(1, 0, GRAIN).unwrap();
    scene.flush();
    scene.asked();
    for grain in 1..257 {
        scene.write(1, grain * GRAIN, GRAIN).unwrap();
    }
    let asked = scene.asked();
    let written = |call: &&Call| call.kind == Kind::Write && call.range.len() == GRAIN;
    assert_eq!(asked.iter().filter(written).count(), 256);
    // The rest makes room ahead, ever more of it.
    assert!(asked.len() <= 256 + 16, "{asked:?}");
    assert!(asked.iter().all(|call| call.kind == Kind::Write), "no truncate, no length, no flush");
    scene.flush();
    let asked = scene.asked();
    assert_eq!((count(&asked, Kind::Write), count(&asked, Kind::FlushToDisk)), (2, 2), "{asked:?}");
    // To where a grain is already, nothing but the data goes.
    scene.write(2, 5 * GRAIN + 512, 4096).unwrap();
    scene.flush();
    let asked = scene.asked();
    assert_eq!((count(&asked, Kind::Write), count(&asked, Kind::FlushToDisk)), (1, 1), "{asked:?}");
    scene.finish(&[(0, &bytes(1, 0, GRAIN)), (5 * GRAIN + 512, &bytes(2, 5 * GRAIN + 512, 4096))]);
}

/// A large write is one request to the file, whatever the number of its grains.
#[test]
fn several_grains_are_allocated_in_one_go() {
    let scene = Scene::open(setup(Shape::new(64 << 20)));
    scene.write(1, 0, GRAIN).unwrap();
    scene.asked();
    scene.write(2, 5 * GRAIN + 512, 9 * GRAIN).unwrap();
    let asked = scene.asked();
    let data: Vec<_> = asked.iter().filter(|call| call.range.len() > 4096).collect();
    assert_eq!(data.len(), 1, "{asked:?}");
    scene.finish(&[(5 * GRAIN + 512, &bytes(2, 5 * GRAIN + 512, 9 * GRAIN))]);
}

/// Head and tail come from the backing file at the offset of the disk, in one write with the data; what
/// the guest writes is not read.
#[test]
fn head_and_tail_are_one_write_with_the_data() {
    let extents = vec![(1 << 20) / 512, (1 << 20) / 512];
    let shape = Shape {
        subformat: Subformat::TwoGbSparse(extents),
        backing: Some((BASE.0.to_owned(), BASE.1)),
        ..Shape::new(2 << 20)
    };
    let setup = Setup { backing: Some(2 << 20), ..setup(shape) };
    let base = setup.backing_contents().unwrap();
    let scene = Scene::open(setup);
    // Another grain first, so that the tables are known and the file has room.
    scene.write(1, (1 << 20) + 8 * GRAIN, GRAIN).unwrap();
    scene.asked();
    let at = (1 << 20) + 3 * GRAIN;
    scene.write(2, at + 4096, 8192).unwrap();
    let asked = scene.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0].kind, asked[0].range.len(), asked[0].buffers), (Kind::Write, GRAIN, 3));
    let (at, grain) = (index(at), index(GRAIN));
    scene.finish(&[
        (to_u64(at), &base[at..at + 4096]),
        (to_u64(at) + 4096, &bytes(2, to_u64(at) + 4096, 8192)),
        (to_u64(at) + 12288, &base[at + 12288..at + grain]),
    ]);
}

/// Grains may be large: they are filled in pieces of at most a megabyte, whatever their length.
#[test]
fn a_huge_grain_is_filled_in_bounded_pieces() {
    let shape = Shape {
        grain_sectors: 0x4000,
        gtes_per_gt: 4,
        tables: Tables::OnDemand,
        redundant: Redundant::None,
        backing: Some((BASE.0.to_owned(), BASE.1)),
        ..Shape::new(8 << 20)
    };
    let setup = Setup { backing: Some(7 << 20), ..setup(shape) };
    let base = setup.backing_contents().unwrap();
    let scene = Scene::open(setup);
    scene.write(1, (3 << 20) + 512, 4096).unwrap();
    let asked = scene.asked();
    let longest = asked.iter().map(|call| call.range.len()).max().unwrap();
    assert!(longest <= (2 << 20) + 4096, "{asked:?}");
    let expected = base[..(3 << 20) + 512].to_vec();
    scene.finish(&[(0, &expected), ((3 << 20) + 512, &bytes(1, (3 << 20) + 512, 4096))]);
}

/// A failed write gives its grain back: the next one gets the same place, and nothing leaks.
#[test]
fn a_failed_write_gives_its_grain_back() {
    let scene = Scene::open(setup(Shape::new(16 << 20)));
    scene.write(1, 0, GRAIN).unwrap();
    scene.asked();
    scene.fault.add(Rule::new(Kind::Write).after_event("cow_write").once());
    assert_eq!(scene.write(2, 4 * GRAIN, GRAIN), Err(Error::IO));
    assert_eq!(scene.read(4 * GRAIN, GRAIN), vec![0; index(GRAIN)]);
    scene.asked();
    scene.write(3, 9 * GRAIN, GRAIN).unwrap();
    let place = scene.asked().pop().unwrap().range;
    scene.write(4, 10 * GRAIN, GRAIN).unwrap();
    let next = scene.asked().pop().unwrap().range;
    assert_eq!(next.offset(), place.end(), "one after the other: there is no gap to fill");
    let files = scene.finish(&[(9 * GRAIN, &bytes(3, 9 * GRAIN, GRAIN))]);
    assert_eq!(to_u64(files[NAME].len()), next.end());
}

/// A file that cannot grow is used from the highest grain on to its end, and no further; what was let go
/// is used again.
#[test]
fn a_device_is_used_to_its_end() {
    let shape = Shape { zeroed_grains: ZeroedGrains::Yes, ..Shape::new(16 << 20) };
    let setup = setup(shape);
    let mut files = setup.shape.make(&BTreeMap::from([(3, Grain::Data(vec![7; index(GRAIN)]))]));
    let file = files.get_mut(NAME).unwrap();
    let end = file.len().next_multiple_of(index(GRAIN)) + 2 * index(GRAIN) + 1536;
    file.resize(end, 0xee);
    let scene = Scene::of(setup, files, Growth::Fixed);
    scene.write(1, 512, 4096).unwrap();
    assert_eq!(scene.read(0, 512), vec![0; 512], "what was there before shows nowhere");
    scene.write(2, GRAIN, GRAIN).unwrap();
    assert_eq!(scene.write(3, 8 * GRAIN, 512), Err(Error::NO_SPACE));
    scene.zero(GRAIN, GRAIN, RequestFlags::MAY_UNMAP).unwrap();
    scene.write(4, 8 * GRAIN, 512).unwrap();
    scene.finish(&[
        (0, &[0; 512]),
        (512, &bytes(1, 512, 4096)),
        (3 * GRAIN, &[7; 65536]),
        (8 * GRAIN, &bytes(4, 8 * GRAIN, 512)),
        (8 * GRAIN + 512, &[0; 4096]),
    ]);
}

/// What was let go is punched out of the file by the second flush behind it, also where nothing else is changed.
#[test]
fn what_was_let_go_is_free_after_two_flushes() {
    let shape = Shape { zeroed_grains: ZeroedGrains::Yes, ..Shape::new(16 << 20) };
    let scene = Scene::open(setup(shape));
    scene.write(1, 0, 4 * GRAIN).unwrap();
    scene.zero(0, 2 * GRAIN, RequestFlags::MAY_UNMAP).unwrap();
    scene.flush();
    let count = |kind| scene.asked().iter().filter(|call| call.kind == kind).count();
    assert_eq!(count(Kind::Discard), 0, "a crash may bring the old table back");
    scene.flush();
    assert_eq!(count(Kind::Discard), 1, "one run is punched out");
    scene.flush();
    let changes = |call: &Call| matches!(call.kind, Kind::Write | Kind::Discard);
    assert_eq!(scene.asked().into_iter().find(changes), None, "nothing is left to be done");
    scene.write(2, 8 * GRAIN, GRAIN).unwrap();
    scene.finish(&[
        (0, &[0; 131_072]),
        (2 * GRAIN, &bytes(1, 2 * GRAIN, GRAIN)),
        (8 * GRAIN, &bytes(2, 8 * GRAIN, GRAIN)),
    ]);
}

/// A zero write that needs a place for a table gets that of a grain that was let go, as data does.
#[test]
fn zeroes_too_wait_for_room_on_a_full_device() {
    let shape = Shape {
        gtes_per_gt: 4,
        tables: Tables::OnDemand,
        zeroed_grains: ZeroedGrains::Yes,
        backing: Some((BASE.0.to_owned(), BASE.1)),
        ..Shape::new(4 << 20)
    };
    let setup = Setup { backing: Some(4 << 20), ..setup(shape) };
    let base = setup.backing_contents().unwrap();
    let scene = Scene::open(setup.clone());
    scene.write(9, 0, 4 * GRAIN).unwrap();
    let mut files = scene.finish(&[]);
    let file = files.get_mut(NAME).unwrap();
    file.resize(file.len().next_multiple_of(index(GRAIN)), 0);
    let scene = Scene::of(setup, files, Growth::Fixed);
    let zero = |grain: u64| scene.zero(grain * GRAIN, 2 * GRAIN, RequestFlags::empty());
    assert_eq!(zero(8), Err(Error::NO_SPACE), "there is no table");
    // The table of these has a place.
    zero(1).unwrap();
    zero(8).unwrap();
    assert_eq!(scene.write(1, 9 * GRAIN, GRAIN), Ok(()), "the other grain");
    assert_eq!(zero(16), Ok(()), "the rest of the tables' grain");
    assert_eq!(scene.write(2, 10 * GRAIN, GRAIN), Err(Error::NO_SPACE));
    let at = index(10 * GRAIN);
    scene.finish(&[
        (0, &bytes(9, 0, GRAIN)),
        (GRAIN, &[0; 131_072]),
        (3 * GRAIN, &bytes(9, 3 * GRAIN, GRAIN)),
        (8 * GRAIN, &[0; 65536]),
        (9 * GRAIN, &bytes(1, 9 * GRAIN, GRAIN)),
        (10 * GRAIN, &base[at..at + index(GRAIN)]),
        (16 * GRAIN, &[0; 131_072]),
    ]);
}

/// Tables that were made in advance are mostly holes of the file, which are not read before the first change;
/// but what a redundant table holds against a hole is mended.
#[test]
fn tables_in_holes_are_not_read() {
    const CHUNK: u64 = 1 << 20;
    let setup = setup(Shape { grain_sectors: 8, gtes_per_gt: 1, ..Shape::new(16 << 20) });
    let made = setup.shape.make(&BTreeMap::from([(3, Grain::Data(vec![7; 4096]))]));
    let word = |at: usize| u32::from_le_bytes(made[NAME][at..at + 4].try_into().unwrap());
    let redundant = index(u64::from(word(48)) * 512);
    let stale = index(u64::from(word(redundant + 4000 * 4)) * 512);
    for unclean in [false, true] {
        let mut files = made.clone();
        let file = files.get_mut(NAME).unwrap();
        if unclean {
            file[72] = 1;
            file[stale] = 9;
        }
        let scene = Scene::of(setup.clone(), files, Growth::Grows);
        scene.asked();
        scene.write(1, 9 * 4096, 4096).unwrap();
        let asked = scene.asked();
        let reads = asked.iter().filter(|call| call.kind == Kind::Read);
        let bytes_read: u64 = reads.clone().map(|call| call.range.len()).sum();
        assert!(reads.clone().any(|call| call.range.len() == CHUNK), "one piece of two: {asked:?}");
        assert!(bytes_read < CHUNK + (16 << 10), "{bytes_read} bytes in {}", reads.count());
        let files = scene.finish(&[(3 * 4096, &[7; 4096]), (9 * 4096, &bytes(1, 9 * 4096, 4096))]);
        assert_eq!(files[NAME][stale], 0);
    }
}

/// What was let go is used after the next opening too: a device has no other room.
#[test]
fn a_device_is_used_between_its_grains() {
    let setup = setup(Shape::new(16 << 20));
    let grains = (0..4).map(|n| (n, Grain::Data(vec![7; index(GRAIN)])));
    let mut files = setup.shape.make(&grains.collect());
    let file = files.get_mut(NAME).unwrap();
    file.resize(file.len().next_multiple_of(index(GRAIN)), 0);
    let scene = Scene::of(setup.clone(), files, Growth::Fixed);
    assert_eq!(scene.write(1, 8 * GRAIN, GRAIN), Err(Error::NO_SPACE));
    scene.zero(GRAIN, 2 * GRAIN, RequestFlags::MAY_UNMAP).unwrap();
    let files = scene.finish(&[(GRAIN, &[0; 131_072]), (3 * GRAIN, &[7; 65536])]);
    let scene = Scene::of(setup, files, Growth::Fixed);
    scene.write(2, 8 * GRAIN, GRAIN).unwrap();
    scene.write(3, 9 * GRAIN, 512).unwrap();
    assert_eq!(scene.write(4, 10 * GRAIN, 512), Err(Error::NO_SPACE));
    scene.finish(&[
        (0, &[7; 65536]),
        (GRAIN, &[0; 131_072]),
        (3 * GRAIN, &[7; 65536]),
        (8 * GRAIN, &bytes(2, 8 * GRAIN, GRAIN)),
        (9 * GRAIN, &bytes(3, 9 * GRAIN, 512)),
        (9 * GRAIN + 512, &[0; 4096]),
    ]);
}

/// Grains that were let go wait for the tables to be written, in lists that take memory: before these are too
/// long, the tables are written without a flush of the guest.
#[test]
fn what_waits_to_be_free_is_bounded() {
    const WAITING: u64 = 64 << 10;
    let len = 2 * (WAITING + 64) * 512;
    let subformat = Subformat::Cowd(vec![len / 512]);
    let scene = Scene::open(setup(Shape { subformat, grain_sectors: 1, ..Shape::new(len) }));
    scene.write(1, 0, len).unwrap();
    scene.flush();
    scene.asked();
    // Every second one, so that no two adjoin.
    for n in 0..WAITING {
        block_on(scene.node.discard(ByteRange::new(n * 1024, 512).unwrap())).unwrap();
    }
    assert_eq!(count(&scene.asked(), Kind::Write), 0, "they wait");
    for n in WAITING..WAITING + 2 {
        block_on(scene.node.discard(ByteRange::new(n * 1024, 512).unwrap())).unwrap();
    }
    let asked = scene.asked();
    assert!(count(&asked, Kind::Write) > 0 && count(&asked, Kind::FlushToDisk) > 0, "{asked:?}");
    scene.finish(&[(0, &[0; 512]), (512, &bytes(1, 0, len)[512..1024])]);
}

/// A file may end anywhere, after a crash: new grains are whole sectors, and what is there stays.
#[test]
fn a_file_that_ends_inside_of_a_sector_is_no_trouble() {
    let setup = setup(Shape::new(16 << 20));
    let mut files = setup.shape.make(&BTreeMap::from([(3, Grain::Data(vec![7; index(GRAIN)]))]));
    let file = files.get_mut(NAME).unwrap();
    file.truncate(file.len() - 1000);
    let scene = Scene::of(setup, files, Growth::Grows);
    scene.write(1, 8 * GRAIN, GRAIN).unwrap();
    let mut old = vec![7; index(GRAIN) - 1000];
    old.resize(index(GRAIN), 0);
    scene.finish(&[(3 * GRAIN, &old), (8 * GRAIN, &bytes(1, 8 * GRAIN, GRAIN))]);
}

/// Directories without a table, primary or redundant: tables are made, and the header is not touched
/// but for its mark.
#[test]
fn missing_tables_are_made() {
    for redundant in [Redundant::None, Redundant::Kept, Redundant::Holes, Redundant::Spare] {
        let shape = Shape {
            gtes_per_gt: 8,
            tables: Tables::OnDemand,
            redundant,
            zeroed_grains: ZeroedGrains::Yes,
            ..Shape::new(8 << 20)
        };
        let scene = Scene::open(setup(shape));
        let before = scene.disks.bytes(MemDisk::to_vec)[NAME][..512].to_vec();
        scene.write(1, 20 * GRAIN + 512, 1024).unwrap();
        scene.zero(60 * GRAIN, GRAIN, RequestFlags::empty()).unwrap();
        let files = scene.finish(&[(20 * GRAIN + 512, &bytes(1, 20 * GRAIN + 512, 1024))]);
        assert_eq!(files[NAME][..512], before, "{redundant:?}");
    }
}

/// The same for the deltas of ESX, whose directories are empty at first.
#[test]
fn a_delta_without_tables_is_written_to() {
    let shape = Shape {
        subformat: Subformat::Cowd(vec![(1 << 20) / 512]),
        grain_sectors: 1,
        tables: Tables::OnDemand,
        ..Shape::new(1 << 20)
    };
    let scene = Scene::open(setup(shape));
    scene.write(1, 77 * 512, 5 * 512).unwrap();
    scene.finish(&[(77 * 512, &bytes(1, 77 * 512, 5 * 512)), (82 * 512, &[0; 512])]);
}

/// A request across extents whose lengths are no multiples of the grain changes both.
#[test]
fn a_request_is_split_where_an_extent_ends() {
    let extents = vec![(1 << 20) / 512 + 3, (1 << 20) / 512 - 3];
    let subformat = Subformat::TwoGbSparse(extents);
    let scene = Scene::open(setup(Shape { subformat, ..Shape::new(2 << 20) }));
    let at = (1 << 20) - 4096;
    scene.write(1, at, 3 * GRAIN).unwrap();
    scene.write(2, (1 << 20) + 3 * 512 - 512, 1024).unwrap();
    let mut expected = bytes(1, at, 3 * GRAIN);
    expected[4096 + 1024..4096 + 2048].copy_from_slice(&bytes(2, (1 << 20) + 1024, 1024));
    assert_eq!(scene.read(at, 3 * GRAIN), expected);
    scene.finish(&[(at, &expected)]);
}

/// A part of a grain of zeroes is written: the rest stays zero, whatever the backing file has there.
#[test]
fn a_zeroed_grain_is_filled_with_zeroes_and_not_from_below() {
    let backing = Some((BASE.0.to_owned(), BASE.1));
    let zeroed_grains = ZeroedGrains::Yes;
    let setup = setup(Shape { backing, zeroed_grains, ..Shape::new(1 << 20) });
    let setup = Setup { backing: Some(1 << 20), ..setup };
    let scene = Scene::open(setup);
    scene.zero(2 * GRAIN, 2 * GRAIN, RequestFlags::NO_FALLBACK).unwrap();
    scene.write(1, 2 * GRAIN + 512, 512).unwrap();
    scene.finish(&[
        (2 * GRAIN, &[0; 512]),
        (2 * GRAIN + 512, &bytes(1, 2 * GRAIN + 512, 512)),
        (2 * GRAIN + 1024, &[0; 64000]),
    ]);
}

/// Zeroes over zeroes change nothing, in memory or in the file.
#[test]
fn zeroes_over_zeroes_write_no_table() {
    let scene =
        Scene::open(setup(Shape { zeroed_grains: ZeroedGrains::Yes, ..Shape::new(1 << 20) }));
    scene.zero(0, 4 * GRAIN, RequestFlags::empty()).unwrap();
    scene.flush();
    scene.asked();
    scene.zero(GRAIN, 2 * GRAIN, RequestFlags::empty()).unwrap();
    scene.zero(GRAIN + 512, 512, RequestFlags::NO_FALLBACK).unwrap();
    scene.flush();
    assert_eq!(count(&scene.asked(), Kind::Write), 0);
    scene.finish(&[]);
}

/// A table that could not be read is read again, not remembered as something else.
#[test]
fn a_table_that_could_not_be_read_is_read_again() {
    let setup = setup(Shape::new(16 << 20));
    let files = setup.shape.make(&BTreeMap::from([(3, Grain::Data(vec![7; index(GRAIN)]))]));
    let scene = Scene::of(setup, files, Growth::Grows);
    scene.fault.add(Rule::new(Kind::Read).once());
    let buf = IoBuf::zeroed(512, Alignment::PAGE).unwrap();
    let range = ByteRange::new(3 * GRAIN, 512).unwrap();
    assert_eq!(block_on(scene.node.read(range, buf.into())), Err(Error::IO));
    assert_eq!(scene.read(3 * GRAIN, GRAIN), vec![7; index(GRAIN)]);
    scene.finish(&[(3 * GRAIN, &[7; 65536])]);
}

/// The sector numbers of entries go to 32 bits: places beyond a terabyte are right, and the first that
/// has no number is refused.
#[test]
fn places_beyond_a_terabyte_are_right_and_end_at_32_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("far.vmdk");
    let setup = setup(Shape::new(16 << 20));
    let file = setup.make().remove(NAME).unwrap();
    std::fs::write(&path, &file).unwrap();
    // The entry of grain 0 in the first table, and its copy.
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let directories = [word(48), word(56)];
    for (sector, grains) in [(1u32 << 31, 3u64), (u32::MAX - 383, 2)] {
        use std::os::unix::fs::FileExt;
        let raw = std::fs::OpenOptions::new().write(true).read(true).open(&path).unwrap();
        for directory in directories {
            let table = word(index(u64::from(directory) * 512));
            raw.write_all_at(&sector.to_le_bytes(), u64::from(table) * 512).unwrap();
        }
        raw.write_all_at(&[9; 65536], u64::from(sector) * 512).unwrap();
        let registry = block_core::Registry::new()
            .with(block_vmdk::VmdkFactory)
            .with(block_core::proto::file::FileFactory);
        let context =
            block_core::registry::OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
        let options = block_core::Options::filename(path.to_str().unwrap()).with("driver", "vmdk");
        let node = block_on(context.open(options)).unwrap();
        let write = |grain: u64| {
            let range = ByteRange::new(grain * GRAIN, GRAIN).unwrap();
            let buf = IoBuf::zeroed(index(GRAIN), Alignment::PAGE).unwrap();
            buf.fill(grain.to_le_bytes()[0]);
            block_on(node.write(range, buf.into(), RequestFlags::empty()))
        };
        let written = (1..5).take_while(|grain| write(*grain) == Ok(())).count();
        if grains == 2 {
            assert_eq!(written, 2, "two more grains have a number");
            assert_eq!(write(3), Err(Error::Os(rustix::io::Errno::FBIG.raw_os_error())));
        }
        for grain in 0..=grains {
            let range = ByteRange::new(grain * GRAIN, GRAIN).unwrap();
            let buf = IoBuf::zeroed(index(GRAIN), Alignment::PAGE).unwrap();
            block_on(node.read(range, buf.clone().into())).unwrap();
            let expected = if grain == 0 { 9 } else { grain.to_le_bytes()[0] };
            assert_eq!(buf.to_vec(), vec![expected; index(GRAIN)], "grain {grain} at {sector:#x}");
        }
        block_on(graph::close(&node)).unwrap();
        std::fs::write(&path, &file).unwrap();
    }
}

/// Only the digits of the content id change, wherever it stands and however long the descriptor is.
#[test]
fn a_new_content_id_changes_its_digits_only() {
    let setup = setup(Shape { subformat: Subformat::MonolithicFlat, ..Shape::new(1 << 20) });
    let mut files = setup.make();
    let text = String::from_utf8(files[NAME].clone()).unwrap();
    let lines: String = (0..2000).map(|n| format!("# a comment of line {n}\n")).collect();
    let swapped = text.replacen("CID=1234abcd\nparentCID=ffffffff", "parentCID=ffffffff\nCID=1", 1);
    assert_ne!(swapped, text);
    let start = format!("{swapped}\n\n{lines}ddb.longContentID = \"CID=1\"\n");
    assert!(start.len() > 20 << 10);
    files.insert(NAME.to_owned(), start.clone().into_bytes());
    let scene = Scene::of(setup, files, Growth::Grows);
    scene.write(1, 4096, 512).unwrap();
    scene.write(2, 8192, 512).unwrap();
    let files = scene.finish(&[(4096, &bytes(1, 4096, 512))]);
    let after = String::from_utf8(files[NAME].clone()).unwrap();
    let (before, rest) = start.split_once("\nCID=1\n").unwrap();
    let digits = after.strip_prefix(before).unwrap().strip_suffix(rest).unwrap();
    let digits = digits.strip_prefix("\nCID=").unwrap().strip_suffix('\n').unwrap();
    assert!(digits.len() == 8 && digits != "00000001", "{digits}");
}
