//! Images on devices: their length is fixed, they hold anything at first, and when they are full, they are
//! full.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, Result, graph};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::Kind;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::io_vec;
use block_testkit::race::Taps;
use futures::executor::block_on;
use kit::setups::{Setup, empty, setup};
use kit::{World, judge};

const CLUSTER: u64 = 4096;
/// What the devices are full of.
const STALE: u8 = 0xcc;

/// An open image on a device.
struct Scene {
    setup: Setup,
    disk: Arc<MemDisk>,
    fault: Arc<Fault>,
    record: Arc<Record>,
    node: Node,
}

impl Scene {
    /// An empty image on a device that has room for `free` clusters more.
    fn new(setup: Setup, free: u64) -> Self {
        let mut bytes = setup.make().file;
        bytes.resize(bytes.len() + kit::index(free * CLUSTER), STALE);
        Self::on(setup, MemConfig::device(0).holding(&bytes))
    }

    fn on(setup: Setup, disk: Arc<MemDisk>) -> Self {
        let (Taps { fault, record, .. }, below) = Taps::on(Arc::clone(&disk) as _);
        let node = block_on(World::new(&setup, below, None).open()).unwrap();
        Self { setup, disk, fault, record, node }
    }

    fn put(&self, offset: u64, bytes: &[u8], flags: RequestFlags) -> Result<()> {
        let range = ByteRange::new(offset, u64::try_from(bytes.len()).unwrap()).unwrap();
        block_on(self.node.write(range, io_vec(bytes, Alignment::PAGE, 1), flags))
    }

    fn write(&self, offset: u64, len: u64, byte: u8) -> Result<()> {
        self.put(offset, &vec![byte; kit::index(len)], RequestFlags::empty())
    }

    /// Writes a cluster compressed, to three quarters of its length.
    fn pack(&self, cluster: u64) -> Result<()> {
        let mut state = cluster.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        });
        let mut bytes: Vec<u8> = noise.take(kit::index(CLUSTER * 3 / 4)).collect();
        bytes.resize(kit::index(CLUSTER), 0);
        self.put(cluster * CLUSTER, &bytes, RequestFlags::COMPRESSED)
    }

    fn discard(&self, offset: u64, len: u64) {
        block_on(self.node.discard(ByteRange::new(offset, len).unwrap())).unwrap();
    }

    fn flush(&self) {
        block_on(self.node.flush()).unwrap();
    }

    fn truncate(&self, len: u64) {
        block_on(self.node.truncate(len, Exactness::Exact, Prealloc::Off)).unwrap();
    }

    fn reads_as(&self, offset: u64, len: u64, byte: u8) {
        let buf = IoBuf::zeroed(kit::index(len), Alignment::PAGE).unwrap();
        let range = ByteRange::new(offset, len).unwrap();
        block_on(self.node.read(range, buf.clone().into())).unwrap();
        let wrong = buf.to_vec().iter().position(|b| *b != byte);
        assert_eq!(wrong, None, "{offset:#x} and on is not {byte:#x}");
    }

    /// Closes it: there is no error and no leak.
    fn close(self) {
        block_on(graph::close(&self.node)).unwrap();
        let made = Made { file: self.disk.to_vec(), data: Vec::new() };
        judge(&self.setup, &made).unwrap().clean().unwrap();
    }
}

#[test]
fn what_a_shrink_frees_is_not_zero() {
    let scene = Scene::new(empty(&[]), 64);
    scene.write(32 * CLUSTER, 32 * CLUSTER, 1).unwrap();
    scene.truncate(32 * CLUSTER);
    scene.write(8 * CLUSTER, 512, 2).unwrap();
    scene.reads_as(8 * CLUSTER, 512, 2);
    scene.reads_as(8 * CLUSTER + 512, CLUSTER - 512, 0);
    scene.close();
}

#[test]
fn what_emptying_frees_is_not_zero() {
    let scene = Scene::new(empty(&[]), 64);
    scene.write(0, 32 * CLUSTER, 1).unwrap();
    block_on(scene.node.driver().as_rebase().unwrap().make_empty()).unwrap();
    scene.write(8 * CLUSTER, 512, 2).unwrap();
    scene.reads_as(8 * CLUSTER + 512, CLUSTER - 512, 0);
    scene.close();
}

/// A device that the metadata and these clusters of data fill.
fn full(clusters: u64) -> Scene {
    let scene = Scene::new(empty(&[]), 1 + clusters);
    scene.write(0, clusters * CLUSTER, 1).unwrap();
    assert_eq!(scene.write(clusters * CLUSTER, CLUSTER, 2), Err(Error::NO_SPACE));
    scene
}

#[test]
fn what_was_discarded_is_free_after_two_flushes() {
    let scene = full(8);
    scene.discard(0, 4 * CLUSTER);
    scene.flush();
    scene.record.take();
    scene.flush();
    assert_eq!(scene.record.count(Kind::Discard), 1, "one run is punched out");
    // The refcounts follow, and then nothing is left to be done.
    scene.flush();
    scene.record.take();
    scene.flush();
    assert_eq!(scene.record.count(Kind::Write), 0);
    assert!(scene.record.count(Kind::FlushToDisk) <= 1);
    scene.write(32 * CLUSTER, 4 * CLUSTER, 3).unwrap();
    scene.reads_as(32 * CLUSTER, 4 * CLUSTER, 3);
    scene.close();
}

#[test]
fn what_was_discarded_makes_room_where_there_is_none() {
    for flushes in 0..3 {
        let scene = full(8);
        scene.discard(0, 6 * CLUSTER);
        for _ in 0..flushes {
            scene.flush();
        }
        scene.write(32 * CLUSTER, 2 * CLUSTER, 3).unwrap();
        scene.pack(40).unwrap();
        // The cluster behind the compressed one, too.
        scene.write(20 * CLUSTER, 3 * CLUSTER, 4).unwrap();
        scene.reads_as(32 * CLUSTER, 2 * CLUSTER, 3);
        scene.reads_as(6 * CLUSTER, 2 * CLUSTER, 1);
        scene.reads_as(0, 6 * CLUSTER, 0);
        assert_eq!(scene.write(50 * CLUSTER, CLUSTER, 2), Err(Error::NO_SPACE));
        scene.close();
    }
}

#[test]
fn compressed_clusters_go_on_elsewhere_at_the_end_of_a_device() {
    let scene = Scene::new(empty(&[]), 8);
    scene.write(0, 6 * CLUSTER, 1).unwrap();
    // Into the last cluster.
    scene.pack(20).unwrap();
    scene.discard(0, 2 * CLUSTER);
    scene.flush();
    scene.flush();
    scene.pack(21).unwrap();
    scene.pack(22).unwrap();
    scene.reads_as(2 * CLUSTER, 4 * CLUSTER, 1);
    scene.close();
}

#[test]
fn a_place_that_could_not_be_prepared_is_given_back() {
    let scene = Scene::new(empty(&[]), 100);
    // The L2 table is there, so the first zero write is one for the new clusters.
    scene.write(0, CLUSTER, 1).unwrap();
    scene.fault.add(Rule::new(Kind::Zero).once());
    let len = scene.node.len() * 2;
    let grown = block_on(scene.node.truncate(len, Exactness::Exact, Prealloc::Metadata));
    assert_eq!((grown, scene.fault.injected()), (Err(Error::IO), 1));
    scene.close();
}

#[test]
fn lazy_refcounts_are_written_when_there_are_too_many() {
    let mut setup = setup("512 tiny");
    setup.options = &[("lazy-refcounts", "on"), ("refcount-cache-size", "1k")];
    setup.shape.refcount_order = 6;
    setup.shape.size = 300 << 10;
    let disk = MemConfig::file().holding(&setup.make().file);
    let scene = Scene::on(setup, disk);
    let clusters = scene.node.len() / 512;
    for cluster in 0..clusters {
        scene.write(cluster * 512, 512, 1).unwrap();
    }
    let flushes = scene.record.count(Kind::FlushToDisk);
    assert!(flushes < 100, "{flushes} flushes for {clusters} clusters");
    scene.close();
}
