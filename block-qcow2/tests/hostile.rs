//! Images that are made to hurt whoever writes to them: each is refused with an error that names the
//! field and its value, and nothing that the request did not name is changed.
//!
//! Where the image opens, the request that meets the damage fails, one event is sent, the node takes no
//! more writes, and the image says so to whoever opens it next; a repair mends what can be mended.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::ability::{NewSnapshot, Repair};
use block_core::driver::{BlockDriver, NodeEvent};
use block_core::error::Problem;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, OpenFlags, Options, RequestFlags,
};
use block_core::{Result, graph};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::naive::qcow2::Image;
use block_testkit::naive::qcow2::make::{Cluster, Made};
use block_testkit::op::{contents, io_vec};
use futures::executor::block_on;
use kit::setups::{Filled, SNAPSHOT, Setup, setup};
use kit::{World, judge};
use parking_lot::Mutex;

const CLUSTER: u64 = 4096;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn plain() -> Setup {
    let mut setup = setup("4k tiny");
    setup.filled = Filled::Empty;
    setup.options = &[];
    setup.shape.size = 64 * CLUSTER;
    setup
}

/// An image in bytes, and where its tables are.
#[derive(Clone)]
struct Bytes {
    all: Vec<u8>,
    setup: Setup,
}

/// What the images of these tests hold: data in clusters 2 to 4, and a compressed cluster 5.
fn good() -> Bytes {
    of(&plain(), None)
}

fn of(setup: &Setup, snapshot: Option<&str>) -> Bytes {
    let data = |at| (at, Cluster::Data(kit::cluster_bytes(0, at, CLUSTER)));
    let packed = (5, Cluster::Compressed(vec![9; 4096]));
    let clusters: BTreeMap<_, _> = [data(2), data(3), data(4), packed].into();
    let made = setup.shape.make(&clusters, snapshot);
    judge(setup, &made).unwrap().clean().unwrap();
    Bytes { all: made.file, setup: setup.clone() }
}

impl Bytes {
    fn word(&self, at: u64) -> u64 {
        let at = kit::index(at);
        u64::from_be_bytes(self.all[at..at + 8].try_into().unwrap())
    }

    fn put(mut self, at: u64, word: u64) -> Self {
        let at = kit::index(at);
        self.all[at..at + 8].copy_from_slice(&word.to_be_bytes());
        self
    }

    fn l1(&self) -> u64 {
        self.word(40)
    }

    fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    fn refcount_block(&self) -> u64 {
        self.word(self.refcount_table())
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & OFFSET
    }

    /// Where the L2 entry of a guest cluster is.
    fn entry(&self, cluster: u64) -> u64 {
        self.l2() + cluster * 8
    }

    /// The host cluster of a guest cluster.
    fn host(&self, cluster: u64) -> u64 {
        self.word(self.entry(cluster)) & OFFSET
    }

    /// The same with another refcount of the host cluster at `offset`.
    fn count(mut self, offset: u64, count: u16) -> Self {
        let at = kit::index(self.refcount_block() + offset / CLUSTER * 2);
        self.all[at..at + 2].copy_from_slice(&count.to_be_bytes());
        self
    }

    fn option(mut self, options: &'static [(&'static str, &'static str)]) -> Self {
        self.setup.options = options;
        self
    }

    fn open(&self) -> Opened {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Opened, OpenError> {
        let disk = MemConfig::file().holding(&self.all);
        let world = World::new(&self.setup, disk.clone(), None);
        let node = block_on(world.open())?;
        let events: Arc<Mutex<Vec<NodeEvent>>> = Arc::default();
        let sink = Arc::clone(&events);
        node.on_event(move |event| sink.lock().push(event));
        Ok(Opened { node, disk, world, events, before: self.all.clone() })
    }

    /// Opening it for writing is refused because of this field.
    fn is_refused(&self, name: &str, number: u64) {
        match self.try_open().map(|_| ()) {
            Err(OpenError::Field { field, value, .. }) => {
                assert_eq!((field, value), (name, number))
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// An open image.
struct Opened {
    node: Node,
    disk: Arc<MemDisk>,
    world: World,
    events: Arc<Mutex<Vec<NodeEvent>>>,
    /// What the file held at first.
    before: Vec<u8>,
}

/// What a guest does.
#[derive(Copy, Clone, Debug)]
enum Act {
    /// Writes the second sector of a cluster.
    Part(u64),
    /// Writes all of a cluster.
    Whole(u64),
    /// Discards a cluster.
    Discard(u64),
    /// Zeroes a cluster, which need not keep its host cluster.
    Unmap(u64),
}

impl Opened {
    fn act(&self, act: Act) -> Result<()> {
        let range = |cluster, start, len| ByteRange::new(cluster * CLUSTER + start, len).unwrap();
        let write = |range| {
            let iov = io_vec(&contents(7, range), Alignment::ONE, 1);
            block_on(self.node.write(range, iov, RequestFlags::empty()))
        };
        match act {
            Act::Part(cluster) => write(range(cluster, 512, 512)),
            Act::Whole(cluster) => write(range(cluster, 0, CLUSTER)),
            Act::Discard(cluster) => block_on(self.node.discard(range(cluster, 0, CLUSTER))),
            Act::Unmap(cluster) => {
                let range = range(cluster, 0, CLUSTER);
                block_on(self.node.write_zeroes(range, RequestFlags::MAY_UNMAP))
            }
        }
    }

    fn read(&self, cluster: u64) -> Result<Vec<u8>> {
        let buf = IoBuf::zeroed(kit::index(CLUSTER), Alignment::ONE).unwrap();
        let range = ByteRange::new(cluster * CLUSTER, CLUSTER).unwrap();
        block_on(self.node.read(range, buf.clone().into()))?;
        Ok(buf.to_vec())
    }

    fn flush(&self) -> Result<()> {
        block_on(self.node.flush())
    }

    /// `act` fails because of this field; everything that must follow, does.
    fn meets(self, act: Act, what: &'static str, value: u64) -> Self {
        let error = Error::Corrupt { what, value };
        assert_eq!(self.act(act), Err(error), "{act:?}");
        self.is_shut(what, value);
        self
    }

    /// Damage was met: told once, marked in the file, and nothing is written any more.
    fn is_shut(&self, what: &'static str, value: u64) {
        assert_eq!(*self.events.lock(), [NodeEvent::Corrupted { what, value }]);
        assert!(self.node.is_read_only());
        assert_eq!(self.act(Act::Whole(40)), Err(Error::ReadOnly));
        assert_eq!(self.events.lock().len(), 1);
        let marked = self.disk.to_vec();
        assert_eq!(marked[79] & 2, 2, "the corrupt bit");
        let again = Bytes { all: marked, setup: plain() };
        again.is_refused("corrupt bit", 1);
    }

    /// Closes it; nothing but the corrupt bit has changed.
    fn unchanged(self) -> Self {
        let this = self.closed();
        let mut now = this.disk.to_vec();
        now[79] &= !2;
        let changed = now.iter().zip(&this.before).position(|(now, before)| now != before);
        assert_eq!(changed, None, "changed from there on");
        assert_eq!(now.len(), this.before.len());
        this
    }

    /// Closes it; that may fail.
    fn closed(self) -> Self {
        let _ = block_on(graph::close(&self.node));
        self
    }

    /// A repair mends it: no errors are left, it can be written again, and `kept` read as before.
    fn check_mended(self, kept: &[u64]) {
        let flags = OpenFlags { check: true, ..OpenFlags::READ_WRITE };
        let node = block_on(self.world.open_with(flags)).unwrap();
        let driver = Arc::clone(node.driver());
        let check = driver.as_check().unwrap();
        let report = block_on(check.check(Repair::All, Arc::new(|_| ()))).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{report:?}");
        let after = Bytes { all: self.disk.to_vec(), setup: plain() };
        let opened = after.open();
        for cluster in kept {
            let range = ByteRange::new(cluster * CLUSTER, CLUSTER).unwrap();
            assert_eq!(opened.read(*cluster).unwrap(), contents(0, range), "cluster {cluster}");
        }
        opened.act(Act::Whole(40)).unwrap();
        block_on(graph::close(&opened.node)).unwrap();
        let made = Made { file: opened.disk.to_vec(), data: Vec::new() };
        judge(&after.setup, &made).unwrap().no_errors().unwrap();
    }
}

#[test]
fn the_header_without_a_refcount() {
    let bytes = good().count(0, 0);
    bytes.is_refused("refcount of the header's cluster", 0);
    let Err(error) = bytes.try_open().map(|_| ()) else { unreachable!() };
    assert!(matches!(error, OpenError::Field { problem: Problem::Zero, .. }));
}

/// An image with a snapshot, whose active L2 table is its own; and where the snapshot's is.
fn with_snapshot() -> (Bytes, u64) {
    let mut bytes = of(&plain(), Some(SNAPSHOT));
    let (shared, new) = (bytes.l2(), bytes.all.len() as u64);
    let table = bytes.all[kit::index(shared)..kit::index(shared + CLUSTER)].to_vec();
    bytes.all.extend(table);
    let l1 = bytes.l1();
    let bytes = bytes.put(l1, new | COPIED).count(new, 1).count(shared, 1);
    let made = Made { file: bytes.all.clone(), data: Vec::new() };
    judge(&plain(), &made).unwrap().clean().unwrap();
    (bytes, shared)
}

/// Every kind of metadata that an image can have but the bitmap directory: what a fault calls a write
/// into it, and where it is.
fn places() -> (Bytes, Vec<(&'static str, u64)>) {
    let (bytes, inactive) = with_snapshot();
    let snapshots = bytes.word(64);
    let places = vec![
        ("write into the active L1 table at", bytes.l1()),
        ("write into an active L2 table at", bytes.l2()),
        ("write into the refcount table at", bytes.refcount_table()),
        ("write into a refcount block at", bytes.refcount_block()),
        ("write into the snapshot table at", snapshots),
        ("write into an inactive L1 table at", bytes.word(snapshots)),
        ("write into an inactive L2 table at", inactive),
    ];
    (bytes, places)
}

const ALL: &[(&str, &str)] = &[("overlap-check", "all")];

#[test]
fn data_writes_into_every_kind_of_metadata() {
    let (bytes, places) = places();
    for (what, place) in places {
        for act in [Act::Part(3), Act::Whole(3)] {
            let opened = bytes.clone().option(ALL).put(bytes.entry(3), place | COPIED).open();
            opened.meets(act, what, place).unchanged();
            // When the table is in the cache, a write in place goes a shorter way.
            let opened = bytes.clone().option(ALL).put(bytes.entry(3), place | COPIED).open();
            opened.read(2).unwrap();
            opened.meets(act, what, place).unchanged();
        }
        // A zero cluster that keeps its host cluster.
        let opened = bytes.clone().option(ALL).put(bytes.entry(3), place | COPIED | 1).open();
        opened.meets(Act::Part(3), what, place).unchanged();
    }
}

#[test]
fn a_repair_mends_entries_at_metadata() {
    let bytes = good();
    let places = [bytes.l1(), bytes.l2(), bytes.refcount_table(), bytes.refcount_block()];
    for place in places {
        let opened = bytes.clone().put(bytes.entry(3), place | COPIED).open();
        assert!(matches!(opened.act(Act::Part(3)), Err(Error::Corrupt { .. })));
        opened.unchanged().check_mended(&[2, 4]);
    }
}

#[test]
fn metadata_is_never_given_back_as_data() {
    let (bytes, places) = places();
    for (_, place) in places {
        for entry in [place | COPIED, COMPRESSED | place] {
            for act in [Act::Discard(3), Act::Unmap(3), Act::Whole(3)] {
                let damaged = bytes.clone().option(ALL).put(bytes.entry(3), entry);
                if matches!(act, Act::Whole(_)) && entry & COMPRESSED == 0 {
                    continue;
                }
                let opened = damaged.open();
                opened.meets(act, "metadata to be given back at", place).unchanged();
            }
        }
        // The cluster would be kept, and punched out.
        let keep = [("overlap-check", "all"), ("discard-no-unref", "on")];
        let damaged = bytes.clone().option(Box::leak(Box::new(keep)));
        let opened = damaged.put(bytes.entry(3), place | COPIED).open();
        opened.meets(Act::Discard(3), "metadata to be given back at", place).unchanged();
    }
}

#[test]
fn what_each_overlap_check_catches() {
    let (bytes, places) = places();
    let levels = ["none", "constant", "cached", "all"];
    // From which level on each kind is guarded, in the order of `places`.
    let least = [1, 2, 1, 2, 1, 2, 3];
    for ((what, place), least) in places.into_iter().zip(least) {
        for (level, name) in levels.into_iter().enumerate() {
            let options: &'static [_; 1] = Box::leak(Box::new([("overlap-check", name)]));
            let damaged = bytes.clone().option(options).put(bytes.entry(3), place | COPIED);
            let opened = damaged.open();
            if level >= least {
                opened.meets(Act::Part(3), what, place).unchanged();
            } else {
                assert_eq!(opened.act(Act::Part(3)), Ok(()), "{name}: {what}");
                assert_eq!(*opened.events.lock(), []);
            }
        }
    }
}

#[test]
fn single_overlap_checks_add_and_take_away() {
    let (bytes, places) = places();
    let names = ["active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table"];
    for ((what, place), name) in places.into_iter().zip(names) {
        let name: &'static str = Box::leak(format!("overlap-check.{name}").into_boxed_str());
        for (template, single) in [("none", "on"), ("all", "off")] {
            let options = [("overlap-check.template", template), (name, single)];
            let damaged = bytes.clone().option(Box::leak(Box::new(options)));
            let opened = damaged.put(bytes.entry(3), place | COPIED).open();
            if single == "on" {
                opened.meets(Act::Part(3), what, place).unchanged();
            } else {
                assert_eq!(opened.act(Act::Part(3)), Ok(()), "{name}");
            }
        }
    }
}

#[test]
fn refcount_blocks_that_are_something_else() {
    let bytes = good();
    let table = bytes.refcount_table();
    for (what, place) in [
        ("write into the active L1 table at", bytes.l1()),
        ("write into an active L2 table at", bytes.l2()),
        ("write into the refcount table at", table),
    ] {
        bytes.clone().put(table, place).is_refused(what, place);
    }
    let block = bytes.refcount_block();
    bytes.clone().put(table + 8, block).is_refused("refcount block used twice", block);
    bytes
        .clone()
        .put(table + 8, block + 512)
        .is_refused("unaligned refcount block offset", block + 512);
    bytes
        .clone()
        .put(table + 8, 5 << 12 | 1)
        .is_refused("refcount table entry with reserved bits", 5 << 12 | 1);
    let beyond = 1 << 40;
    bytes
        .clone()
        .put(table, beyond)
        .is_refused("refcount block beyond the end of the file", beyond);
}

/// All clusters that the first refcount block counts are in use.
fn full() -> Bytes {
    let bytes = good();
    let free = bytes.all.len() as u64..2048 * CLUSTER;
    free.step_by(kit::index(CLUSTER)).fold(bytes, |bytes, offset| bytes.count(offset, 1))
}

#[test]
fn a_later_refcount_block_beyond_the_end() {
    let bytes = full();
    let opened = bytes.clone().put(bytes.refcount_table() + 8, 1 << 40).open();
    let what = "refcount block beyond the end of the file";
    opened.meets(Act::Whole(20), what, 1 << 40).unchanged().check_mended(&[2, 3, 4]);
}

#[test]
fn a_refcount_table_beyond_the_end() {
    let bytes = good();
    let beyond = (bytes.all.len() as u64).next_multiple_of(CLUSTER);
    bytes.clone().put(48, beyond).is_refused("refcount table offset", beyond);
    bytes.clone().put(48, 1 << 62).is_refused("refcount table offset", 1 << 62);
}

#[test]
fn metadata_that_looks_free_is_not_given_out() {
    let (bytes, places) = places();
    for (_, place) in places {
        let opened = bytes.clone().option(ALL).count(place, 0).open();
        // Clusters that were free before the file ended come first: none.
        opened.meets(Act::Whole(20), "refcount 0 of metadata at", place).unchanged();
    }
    let opened = good();
    let opened = opened.clone().count(opened.l2(), 0).open();
    let met = opened.meets(Act::Whole(20), "refcount 0 of metadata at", good().l2());
    met.unchanged().check_mended(&[2, 3, 4]);
}

#[test]
fn l1_entries_that_no_table_can_have() {
    let bytes = good();
    let (l1, l2) = (bytes.l1(), bytes.l2());
    for (what, entry, value) in [
        ("unaligned L2 table offset", l2 | 0x200 | COPIED, l2 | 0x200),
        ("L1 entry with reserved bits", l2 | 1, l2 | 1),
        ("L2 table beyond the end of the file", 1 << 40 | COPIED, 1 << 40),
        ("L2 table beyond the end of the file", 1 << 40, 1 << 40),
    ] {
        for act in [Act::Part(3), Act::Whole(20), Act::Discard(3), Act::Unmap(3)] {
            bytes.clone().put(l1, entry).open().meets(act, what, value).unchanged();
        }
    }
}

#[test]
fn l1_entries_at_other_metadata() {
    let bytes = good();
    for place in [bytes.l1(), bytes.refcount_table(), bytes.refcount_block()] {
        let opened = match bytes.clone().put(bytes.l1(), place | COPIED).try_open() {
            Ok(opened) => opened,
            // The block cannot be loaded.
            Err(OpenError::Field { value, .. }) if value == place => continue,
            Err(error) => panic!("{error}"),
        };
        let results = [opened.act(Act::Whole(40)), opened.flush()];
        let met = results.iter().any(|result| matches!(result, Err(Error::Corrupt { .. })));
        assert!(met, "{place:#x}: {results:?}");
        assert_eq!(opened.events.lock().len(), 1);
        assert!(opened.node.is_read_only());
        let table = kit::index(place)..kit::index(place + CLUSTER);
        let opened = opened.closed();
        assert_eq!(opened.disk.to_vec()[table.clone()], opened.before[table]);
    }
}

#[test]
fn a_snapshot_whose_l1_table_is_the_active_one() {
    let bytes = of(&plain(), Some(SNAPSHOT));
    let (l1, snapshots) = (bytes.l1(), bytes.word(64));
    let opened = bytes.put(snapshots, l1).open();
    // The L2 table is shared, so that its copy changes the L1 table.
    opened.act(Act::Part(3)).unwrap();
    let what = "write into an inactive L1 table at";
    assert_eq!(opened.flush(), Err(Error::Corrupt { what, value: l1 }));
    opened.is_shut(what, l1);
    let table = kit::index(l1)..kit::index(l1 + 8);
    let opened = opened.closed();
    assert_eq!(opened.disk.to_vec()[table.clone()], opened.before[table]);
}

#[test]
fn snapshots_whose_l1_tables_overlap_other_metadata() {
    let (bytes, _) = with_snapshot();
    let snapshots = bytes.word(64);
    for place in [bytes.l2(), bytes.refcount_block(), bytes.refcount_table(), snapshots] {
        // Who refuses it first is of no matter; nothing of it may change.
        let Ok(opened) = bytes.clone().option(ALL).put(snapshots, place).try_open() else {
            continue;
        };
        let results = [opened.act(Act::Part(3)), opened.flush()];
        if place == bytes.l2() {
            assert!(results.iter().any(|result| result.is_err()), "{place:#x}: {results:?}");
        }
        let opened = opened.closed();
        let table = kit::index(place)..kit::index(place + 64);
        assert_eq!(opened.disk.to_vec()[table.clone()], opened.before[table], "{place:#x}");
    }
}

#[test]
fn a_refcount_that_would_fall_below_zero() {
    let bytes = good();
    let host = bytes.host(3);
    let opened = bytes.count(host, 0).open();
    opened.act(Act::Discard(3)).unwrap();
    let what = "refcount 0 of a cluster in use at";
    // Given back when tables without it are stable.
    let results: Vec<_> = (0..3)
        .map(|_| {
            opened.act(Act::Discard(4)).and_then(|()| opened.act(Act::Part(2))).ok();
            let _ = opened.act(Act::Unmap(2));
            opened.flush()
        })
        .collect();
    assert!(results.contains(&Err(Error::Corrupt { what, value: host })), "{results:?}");
    opened.is_shut(what, host);
    opened.closed();
}

#[test]
fn a_compressed_cluster_beyond_the_end() {
    let bytes = good();
    let opened = bytes.clone().put(bytes.entry(5), COMPRESSED | 1 << 40).open();
    assert!(matches!(opened.act(Act::Part(5)), Err(Error::Corrupt { .. })));
    assert!(opened.node.is_read_only());
    let opened = opened.unchanged();
    opened.check_mended(&[2, 3, 4]);
    // Nothing of the old contents is needed, but they cannot be given back.
    let opened = bytes.clone().put(bytes.entry(5), COMPRESSED | 1 << 40).open();
    opened.act(Act::Whole(5)).unwrap();
    let closed = block_on(graph::close(&opened.node));
    let what = "refcount 0 of a cluster in use at";
    assert_eq!(closed, Err(Error::Corrupt { what, value: 1 << 40 }));
    let image = opened.disk.to_vec();
    let range = ByteRange::new(5 * CLUSTER, CLUSTER).unwrap();
    let image = Image::open(&image).unwrap();
    assert_eq!(image.read(range.offset(), CLUSTER).unwrap(), contents(7, range));
}

#[test]
fn sizes_that_no_image_has() {
    let bytes = good();
    // The disk, the L1 table, the refcount table, the snapshots.
    let huge = [(24, u64::MAX >> 1), (24, 1 << 56), (36, u64::MAX << 32 | bytes.l1() >> 32)];
    for (at, word) in huge {
        let Err(error) = bytes.clone().put(at, word).try_open().map(|_| ()) else {
            panic!("{at}: {word:#x} was opened");
        };
        assert!(matches!(error, OpenError::Field { .. }), "{error}");
    }
    for (at, count) in [(56, u32::MAX), (60, u32::MAX), (60, 65536)] {
        let mut damaged = bytes.clone();
        damaged.all[at..at + 4].copy_from_slice(&count.to_be_bytes());
        let Err(error) = damaged.try_open().map(|_| ()) else { panic!("{at}: opened") };
        assert!(matches!(error, OpenError::Field { .. }), "{error}");
    }
    // A snapshot with more L1 entries than the file has, all of them to be guarded.
    let mut damaged = of(&plain(), Some(SNAPSHOT)).option(ALL);
    let entry = kit::index(damaged.word(64));
    damaged.all[entry + 8..entry + 12].copy_from_slice(&(4u32 << 20).to_be_bytes());
    let Err(error) = damaged.try_open().map(|_| ()) else { panic!("opened") };
    assert!(matches!(error, OpenError::Field { .. }), "{error}");
}

/// What a damaged image answers whose entry of cluster 3 no image has.
fn damaged_below() -> Arc<dyn BlockDriver> {
    let bytes = good();
    let entry = bytes.entry(3);
    let damaged = bytes.put(entry, 0x200 | COPIED).open();
    assert!(matches!(damaged.read(3), Err(Error::Corrupt { .. })));
    Arc::clone(damaged.node.driver())
}

/// Opens an image above or beside this one.
fn open_on(setup: &Setup, disk: &Arc<MemDisk>, world: World) -> Opened {
    let node = block_on(world.open()).unwrap();
    let events: Arc<Mutex<Vec<NodeEvent>>> = Arc::default();
    let sink = Arc::clone(&events);
    node.on_event(move |event| sink.lock().push(event));
    assert_eq!(setup.shape.cluster_size(), CLUSTER);
    Opened { node, disk: disk.clone(), world, events, before: disk.to_vec() }
}

#[test]
fn damage_of_the_backing_file_is_not_that_of_the_overlay() {
    let mut setup = plain();
    setup.backing = Some(setup.shape.size);
    setup.shape.backing = Some(("base".to_owned(), "qcow2".to_owned()));
    let disk = MemConfig::file().holding(&setup.shape.empty().file);
    let mut world = World::new(&setup, disk.clone(), None);
    world.backing = Some(damaged_below());
    let opened = open_on(&setup, &disk, world);
    let range = ByteRange::new(0, 8 * CLUSTER).unwrap();
    let all = IoBuf::zeroed(kit::index(range.len()), Alignment::ONE).unwrap();
    let results = [
        opened.read(3).map(drop),
        block_on(opened.node.read(range, all.into())),
        opened.act(Act::Part(3)),
        block_on(
            opened
                .node
                .write_zeroes(ByteRange::new(3 * CLUSTER, 512).unwrap(), RequestFlags::NO_FALLBACK),
        ),
    ];
    assert_eq!(results, [Err(Error::IO); 4]);
    assert_eq!(*opened.events.lock(), []);
    opened.act(Act::Whole(3)).unwrap();
    opened.flush().unwrap();
    block_on(graph::close(&opened.node)).unwrap();
    assert_eq!(opened.disk.to_vec()[79] & 2, 0, "the corrupt bit");
}

#[test]
fn damage_below_a_data_file_is_not_that_of_the_image() {
    let setup = setup("data file");
    let made = setup.make();
    let disk = MemConfig::file().holding(&made.file);
    let fault = Fault::new();
    let data = Tapped::new(MemConfig::file().holding(&made.data), Arc::clone(&fault));
    let opened = open_on(&setup, &disk, World::new(&setup, disk.clone(), Some(data)));
    for kind in [Kind::Read, Kind::Write, Kind::Zero, Kind::Discard, Kind::FlushToDisk] {
        fault.add(Rule::new(kind).error(Error::Corrupt { what: "something", value: 1 }));
    }
    assert_eq!(opened.read(0), Err(Error::IO));
    assert_eq!(opened.act(Act::Part(0)), Err(Error::IO));
    assert_eq!(opened.act(Act::Whole(7)), Err(Error::IO));
    assert!(opened.flush().is_err());
    fault.clear();
    assert_eq!(*opened.events.lock(), []);
    opened.act(Act::Part(0)).unwrap();
    block_on(graph::close(&opened.node)).unwrap();
    assert_eq!(opened.disk.to_vec()[79] & 2, 0, "the corrupt bit");
}

#[test]
fn entries_of_a_data_file_that_are_not_at_their_guest_offset() {
    let setup = setup("data file");
    let made = setup.make();
    let good = Bytes { all: made.file, setup: setup.clone() };
    assert_eq!(good.host(6), 6 * CLUSTER);
    let other = 8 * CLUSTER;
    for wrong in [other | COPIED, other | COPIED | 1, other, COPIED] {
        for act in [Act::Part(6), Act::Whole(6), Act::Unmap(6), Act::Discard(6)] {
            let bytes = good.clone().put(good.entry(6), wrong);
            let disk = MemConfig::file().holding(&bytes.all);
            let data = MemConfig::file().holding(&made.data);
            let world = World::new(&setup, disk.clone(), Some(data.clone()));
            let opened = open_on(&setup, &disk, world);
            assert!(opened.read(0).is_ok());
            let error = Err(Error::Corrupt { what: "data file offset of L2 entry", value: wrong });
            assert_eq!(opened.read(6).map(drop), error);
            assert!(matches!(opened.act(act), Err(Error::Corrupt { .. } | Error::ReadOnly)));
            let opened = opened.closed();
            assert_eq!(data.to_vec(), made.data, "{act:?} of {wrong:#x}");
            assert_eq!(opened.disk.to_vec()[79] & 2, 2, "the corrupt bit");
        }
    }
}

/// Deletes the snapshot, which must be refused, with nothing changed but the marks of damage.
fn deletion_is_refused(opened: Opened, which: &str, what: &'static str, value: u64) {
    let deleted = block_on(opened.node.driver().as_snapshots().unwrap().delete(which));
    assert_eq!(deleted, Err(Error::Corrupt { what, value }));
    opened.unchanged();
}

#[test]
fn a_snapshot_whose_l1_table_is_not_its_own_is_not_deleted() {
    let (bytes, _) = with_snapshot();
    let (l1, snapshots) = (bytes.l1(), bytes.word(64));
    let own = bytes.word(snapshots);
    let what = "write into the active L1 table at";
    let opened = bytes.clone().put(snapshots, l1).count(l1, 2).open();
    deletion_is_refused(opened, SNAPSHOT, what, l1);
    let opened = bytes.clone().count(own, 0).open();
    deletion_is_refused(opened, SNAPSHOT, "refcount 0 of a cluster in use at", own);
}

#[test]
fn snapshots_of_one_l1_table_are_not_deleted() {
    let opened = with_snapshot().0.open();
    let driver = Arc::clone(opened.node.driver());
    let second = NewSnapshot { name: "second".to_owned(), date_seconds: 1, date_nanoseconds: 0 };
    block_on(driver.as_snapshots().unwrap().create(&second)).unwrap();
    let bytes = Bytes { all: opened.closed().disk.to_vec(), setup: plain() };
    let snapshots = bytes.word(64);
    let first = bytes.word(snapshots);
    // The second entry follows the first, whose parts have their lengths in its fixed part.
    let extra = bytes.word(snapshots + 32) & 0xffff_ffff;
    let names = bytes.word(snapshots + 8);
    let second = (40 + extra + (names >> 16 & 0xffff) + (names & 0xffff)).next_multiple_of(8);
    let what = "L1 table of two snapshots at";
    let same_l1 = bytes.put(snapshots + second, first);
    deletion_is_refused(same_l1.clone().open(), SNAPSHOT, what, first);
    // Also where their ids are the same: the id follows the fixed part and what is extra.
    let id = kit::index(snapshots + 40 + extra);
    let mut same_id = same_l1;
    same_id.all[id + kit::index(second)] = same_id.all[id];
    deletion_is_refused(same_id.open(), SNAPSHOT, what, first);
}

#[test]
fn a_stray_refcount_does_not_cut_the_file() {
    let mut setup = setup("2m");
    setup.filled = Filled::Empty;
    setup.shape.refcount_order = 0;
    setup.shape.size = 16 << 20;
    let cluster = setup.shape.cluster_size();
    let per_block = cluster * 8;
    let mut bytes = Bytes { all: setup.make().file, setup: setup.clone() };
    // A table of three clusters, and a block behind it that says 1 of one cluster which no file reaches.
    let (block, table) = (bytes.refcount_block(), bytes.all.len() as u64);
    bytes.all.resize(kit::index(table + 4 * cluster), 0);
    let used = bytes.all.len() as u64 / cluster;
    bytes.all[kit::index(block)..kit::index(block + 2)]
        .copy_from_slice(&((1u16 << used) - 1).to_le_bytes());
    let stray = (1 << 43) + 3;
    let far = table + 3 * cluster;
    bytes.all[kit::index(far)] = 1 << (stray % per_block);
    bytes.all[56..60].copy_from_slice(&3u32.to_be_bytes());
    let bytes = bytes.put(48, table).put(table, block).put(table + stray / per_block * 8, far);
    let disk = MemConfig { step: None, ..MemConfig::file() }.holding(&bytes.all);
    let node = block_on(World::new(&setup, disk.clone(), None).open()).unwrap();
    let range = ByteRange::new(0, 8 << 20).unwrap();
    let data = contents(7, range);
    let iov = io_vec(&data, Alignment::ONE, 1);
    block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
    block_on(graph::close(&node)).unwrap();
    assert!(disk.to_vec().len() >= bytes.all.len() + data.len(), "the file was cut");
}

/// Autoclear bits vouch for what a writer may not know; a reader leaves them alone.
#[test]
fn autoclear_bits_that_are_not_known_go_before_a_write() {
    const UNKNOWN: u64 = 1 << 40;
    type Change = fn(&Node);
    let changes: [(&str, Change); 7] = [
        ("snapshot", |node| {
            let new = NewSnapshot { name: "new".to_owned(), date_seconds: 1, date_nanoseconds: 0 };
            block_on(node.driver().as_snapshots().unwrap().create(&new)).unwrap();
        }),
        ("apply", |node| {
            block_on(node.driver().as_snapshots().unwrap().apply(SNAPSHOT)).unwrap();
        }),
        ("delete", |node| {
            block_on(node.driver().as_snapshots().unwrap().delete(SNAPSHOT)).unwrap();
        }),
        ("amend", |node| {
            let options = Options::new().with("lazy_refcounts", "on");
            block_on(node.driver().as_amend().unwrap().amend(options, Arc::new(|_, _| ())))
                .unwrap();
        }),
        ("rebase", |node| {
            let driver = Arc::clone(node.driver());
            let changed = driver.as_rebase().unwrap().change_backing(Some("b"), Some("raw"));
            block_on(changed).unwrap();
        }),
        ("write to what was read again", |node| {
            block_on(graph::invalidate_cache(node)).unwrap();
            let iov = io_vec(&[1; 512], Alignment::PAGE, 1);
            let range = ByteRange::up_to(512);
            block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
        }),
        ("nothing", |_| ()),
    ];
    let bytes = with_snapshot().0.put(88, UNKNOWN);
    for (name, change) in changes {
        let opened = bytes.open();
        change(&opened.node);
        let opened = opened.closed();
        let after = Bytes { all: opened.disk.to_vec(), setup: plain() };
        assert_eq!(after.word(88), if name == "nothing" { UNKNOWN } else { 0 }, "{name}");
    }
}
