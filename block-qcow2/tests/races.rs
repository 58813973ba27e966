//! Races that have a name, each reached on purpose: one request of the image file is held at a point,
//! the other half of the race is played, and the test asserts that it was there.
//!
//! Every test plays its race under several seeds, so that everything around the point that is held comes
//! in many orders. At the end the image is closed: it must have neither errors nor leaks, and what the
//! guest sees must be what the finished requests say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use block_core::ability::NewSnapshot;
use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::io::exec::block_on;
use block_core::{ByteRange, Error, RequestFlags, Result, graph};
use block_testkit::disk::fault::Rule;
use block_testkit::disk::hold::Point;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_testkit::exec::Exec;
use block_testkit::naive::qcow2::make::{Cluster, L2Entries, Made};
use block_testkit::op::contents;
use block_testkit::peer::{self, ImageDir};
use block_testkit::race::{Expected, HELD, Reused, Scene, Taps, check_contents, hammer};
use kit::setups::{Filled, Setup, setup};
use kit::{World, judge};
use parking_lot::Mutex;

/// Orders in which each race is played.
const SEEDS: u64 = 8;
/// Bytes of a cluster where a test does not say otherwise.
const CLUSTER: u64 = 4096;

/// A setup with 64 clusters of 4 KiB and nothing in it.
fn plain() -> Setup {
    let mut setup = setup("4k tiny");
    setup.filled = Filled::Empty;
    setup.options = &[];
    setup.shape.size = 64 * CLUSTER;
    setup
}

/// An image file in memory: discards leave junk, and data moves in steps.
fn disk(bytes: &[u8]) -> Arc<MemDisk> {
    MemConfig { step: Some(CLUSTER / 2), ..MemConfig::file() }.holding(bytes)
}

/// Plays a race on an image of these clusters under every seed, and judges what is left.
fn race<F>(
    setup: &Setup,
    clusters: &[(u64, Cluster)],
    play: impl Fn(Scene) -> F + Copy + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let clusters: BTreeMap<u64, Cluster> = clusters.iter().cloned().collect();
    let made = setup.shape.make(&clusters, None);
    let start = judge(setup, &made).unwrap();
    start.clean().unwrap();
    for seed in 0..SEEDS {
        let disk = disk(&made.file);
        let expected = Arc::new(Mutex::new(start.contents.iter().copied().map(Some).collect()));
        let (setup_here, below, wanted) = (setup.clone(), Arc::clone(&disk), Arc::clone(&expected));
        Exec::run(seed, move |exec| async move {
            let scene = open(&setup_here, exec, below, wanted).await;
            play(scene.clone()).await;
            assert_eq!(scene.hold.held(), [], "seed {seed}: something is still held");
            graph::close(&scene.node).await.unwrap();
        });
        check_file(setup, &disk, &expected.lock(), seed);
    }
}

/// The image in the file has neither errors nor leaks, and holds what is expected.
fn check_file(setup: &Setup, disk: &MemDisk, expected: &[Option<u8>], seed: u64) {
    let made = Made { file: disk.to_vec(), data: Vec::new() };
    let judged = judge(setup, &made).unwrap();
    judged.clean().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    check_contents(&judged.contents, expected, seed);
    if seed == 0 {
        let dir = ImageDir::new().unwrap();
        dir.write("x.qcow2", &made.file).unwrap();
        assert_eq!(dir.check("x.qcow2").unwrap(), peer::Verdict::Clean);
    }
}

/// Opens the image in `below`.
async fn open(setup: &Setup, exec: Exec, below: Arc<dyn BlockDriver>, expected: Expected) -> Scene {
    let (taps, below) = Taps::on(below);
    let node = World::new(setup, below, None).open().await.unwrap();
    Scene::new(exec, taps, node, setup.shape.cluster_size(), expected)
}

fn data(op: u32, cluster: u64) -> (u64, Cluster) {
    (cluster, Cluster::Data(kit::cluster_bytes(op, cluster, CLUSTER)))
}

/// A write in place is under way while its cluster is dropped by `drop_it`: nobody may get its host
/// cluster before the write has ended, and then somebody does.
async fn write_in_place_meets<F: Future<Output = ()>>(
    scene: Scene,
    drop_it: impl FnOnce(Scene) -> F,
) {
    scene.hold(Kind::Write);
    let write = scene.start_write(HELD, scene.part(3, 512, 1024));
    let host = scene.host(scene.held().await.range.offset());
    drop_it(scene.clone()).await;
    assert_eq!(scene.churn(16, 26, host).await, Reused::No);
    assert_eq!(scene.hold.held().len(), 1, "the write is still on its way");
    assert_eq!(scene.read(scene.whole(3)).await, [0; 4096]);
    scene.hold.release_all();
    write.await.unwrap();
    assert_eq!(scene.churn(26, 34, host).await, Reused::Yes);
}

#[test]
fn write_against_discard_and_reallocation() {
    race(&plain(), &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        write_in_place_meets(scene, |scene| async move {
            scene.discard(scene.whole(3)).await;
        })
        .await;
    });
}

#[test]
fn write_against_unmapping_zero_write_and_reallocation() {
    race(&plain(), &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        write_in_place_meets(scene, |scene| async move {
            let range = scene.whole(3);
            scene.node.write_zeroes(range, RequestFlags::MAY_UNMAP).await.unwrap();
            scene.expect_zeroes(range);
        })
        .await;
    });
}

#[test]
fn compressed_read_against_rewrite_and_reuse() {
    let packed = |at: u64, byte| (at, Cluster::Compressed(vec![byte; 4096]));
    race(&plain(), &[packed(3, 7), data(0, 4)], |scene| async move {
        scene.hold(Kind::Read);
        let reader = scene.clone();
        let whole = scene.whole(3);
        let read = scene.exec.spawn_labelled(HELD, "read", async move { reader.read(whole).await });
        // The first read may be that of the L2 table.
        let mut held = scene.hold.arrived(1).await.pop().unwrap();
        if held.range.len() == CLUSTER && held.range.offset() % CLUSTER == 0 {
            scene.hold.release(held.number);
            held = scene.hold.arrived(1).await.pop().unwrap();
        }
        scene.hold.stop_holding();
        let host = scene.host(held.range.offset());
        scene.write(whole).await;
        assert_eq!(scene.churn(16, 26, host).await, Reused::No);
        assert_eq!(scene.hold.held().len(), 1, "the read is still on its way");
        scene.hold.release_all();
        assert_eq!(read.await, [7; 4096], "what was there when it began");
        assert_eq!(scene.churn(26, 34, host).await, Reused::Yes);
        assert_ne!(scene.read(whole).await[..512], [7; 512], "no inflated copy is left");
    });
}

/// A new L2 table that could not be written is stable before the L1 table names it, also in the flush
/// that comes after.
#[test]
fn after_a_failed_flush_new_tables_still_come_before_what_names_them() {
    race(&plain(), &[], |scene| async move {
        scene.write(scene.whole(3)).await;
        scene.fault.add(Rule::new(Kind::Write).after_event("l2_update").once());
        assert_eq!(scene.node.flush().await, Err(Error::IO));
        assert_eq!(scene.fault.injected(), 1);
        scene.record.take();
        scene.node.flush().await.unwrap();
        let sent = scene.record.take();
        let is = |kind| move |call: &Call| call.kind == kind;
        let l1 = sent.iter().rposition(is(Kind::Write)).unwrap();
        let l2 = sent[..l1].iter().rposition(is(Kind::Write)).unwrap();
        assert_eq!(sent[l1].range.len(), 8, "the L1 table is last: {sent:?}");
        assert!(sent[l2..l1].iter().any(is(Kind::FlushToDisk)), "{sent:?}");
    });
}

#[test]
fn two_allocating_writes_into_one_cluster() {
    race(&plain(), &[data(0, 4)], |scene| async move {
        scene.hold(Kind::Write);
        let first = scene.start_write(HELD, scene.part(3, 0, 1024));
        let host = scene.host(scene.held().await.range.offset());
        scene.record.take();
        let second = scene.start_write(HELD + 1, scene.part(3, 2048, 1024));
        scene.idle().await;
        let sent = scene.record.take();
        assert!(!sent.iter().any(|call| call.kind == Kind::Write), "the second waits: {sent:?}");
        scene.hold.release_all();
        first.await.unwrap();
        second.await.unwrap();
        let sent = scene.record.take();
        let there = |label| move |c: &&Call| c.label == Some(label) && host.contains(c.range);
        assert_eq!(sent.iter().filter(there(HELD)).count(), 1, "{sent:?}");
        assert_eq!(sent.iter().filter(there(HELD + 1)).count(), 1, "{sent:?}");
    });
}

#[test]
fn three_subcluster_writes_into_one_cluster() {
    let mut setup = plain();
    setup.shape.cluster_bits = 14;
    setup.shape.size = 64 << 14;
    setup.shape.l2_entries = L2Entries::Extended;
    race(&setup, &[], |scene| async move {
        scene.hold(Kind::Write);
        // Subclusters are of 512 bytes; the last write ends within one.
        let first = scene.start_write(HELD, scene.part(3, 0, 512));
        let host = scene.host(scene.held().await.range.offset());
        let second = scene.start_write(HELD + 1, scene.part(3, 5 * 512, 1024));
        let third = scene.start_write(HELD + 2, scene.part(3, 31 * 512, 100));
        scene.idle().await;
        scene.record.take();
        scene.hold.release_all();
        for write in [first, second, third] {
            write.await.unwrap();
        }
        let sent = scene.record.take();
        let there = sent.iter().filter(|call| host.contains(call.range));
        assert_eq!(there.count(), 3, "one host cluster for all: {sent:?}");
    });
}

#[test]
fn discard_whose_punch_comes_late() {
    race(&plain(), &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        scene.discard(scene.whole(3)).await;
        scene.hold.hold(Point::Before, |call| call.kind == Kind::Discard);
        let flusher = scene.clone();
        let flushes = scene.exec.spawn("flushes", async move {
            for cluster in 16..20 {
                flusher.write(flusher.whole(cluster)).await;
                flusher.node.flush().await.unwrap();
            }
        });
        let host = scene.host(scene.held().await.range.offset());
        scene.record.take();
        for cluster in 20..30 {
            scene.write(scene.whole(cluster)).await;
        }
        assert_eq!(scene.hold.held().len(), 1, "the punch is still on its way");
        assert_eq!(scene.reused(host), Reused::No);
        scene.hold.release_all();
        flushes.await;
        for cluster in 30..34 {
            scene.write(scene.whole(cluster)).await;
            scene.node.flush().await.unwrap();
        }
        assert_eq!(scene.reused(host), Reused::Yes);
    });
}

#[test]
fn discard_that_keeps_its_cluster_whose_punch_comes_late() {
    let mut setup = plain();
    setup.options = &[("discard-no-unref", "on")];
    race(&setup, &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        scene.hold(Kind::Discard);
        let (discarder, whole) = (scene.clone(), scene.whole(3));
        let discard = scene
            .exec
            .spawn_labelled(HELD, "discard", async move { discarder.discard(whole).await });
        let host = scene.host(scene.held().await.range.offset());
        scene.record.take();
        let late = scene.clone();
        let write = scene.exec.spawn("late write", async move {
            late.write(late.part(3, 512, 512)).await;
        });
        scene.idle().await;
        assert_eq!(scene.reused(host), Reused::No, "the write waits for the punch");
        scene.hold.release_all();
        discard.await;
        write.await;
        assert_eq!(scene.reused(host), Reused::Yes, "the cluster was kept");
        // Both ended; the write began later than the discard's change of the mapping.
        let bytes = scene.read(whole).await;
        scene.expect(whole, bytes.iter().copied().map(Some));
        assert!(bytes[..512].iter().chain(&bytes[1024..]).all(|byte| *byte == 0));
        assert!(bytes[512..1024].iter().all(|byte| *byte != 0));
    });
}

/// The disk is cut to 16 clusters while a write to cluster `at` is held.
async fn shrink_meets_write(scene: Scene, at: u64) {
    scene.hold(Kind::Write);
    let write = scene.start_write(HELD, scene.whole(at));
    scene.held().await;
    scene.record.take();
    let driver = Arc::clone(scene.node.driver());
    let len = 16 * CLUSTER;
    let cut = driver.truncate(len, Exactness::Exact, Prealloc::Off);
    let cut = scene.exec.spawn_labelled(HELD + 1, "shrink", cut);
    scene.idle().await;
    let late = scene.start_write(HELD + 2, scene.whole(at + 1));
    scene.idle().await;
    let sent = scene.record.take();
    assert!(sent.is_empty(), "the shrink waits for the write, and later writes for it: {sent:?}");
    assert_eq!(scene.hold.held().len(), 1, "the write is still on its way");
    scene.hold.release_all();
    for done in [write, cut, late] {
        done.await.unwrap();
    }
    scene.expected.lock().truncate(kit::index(len));
}

#[test]
fn shrink_against_write_in_place() {
    race(&plain(), &[data(0, 2), data(0, 30)], |scene| shrink_meets_write(scene, 30));
}

#[test]
fn shrink_against_allocating_write() {
    race(&plain(), &[data(0, 2)], |scene| shrink_meets_write(scene, 30));
}

#[test]
fn error_of_one_of_two_racing_allocations() {
    race(&plain(), &[data(0, 4)], |scene| async move {
        scene.hold(Kind::Write);
        let lost = scene.part(3, 0, 1024);
        let first = scene.start_write(HELD, lost);
        let call = scene.held().await;
        let second = scene.start_write(HELD + 1, scene.part(3, 2048, 1024));
        let other = scene.start_write(HELD + 2, scene.whole(5));
        scene.idle().await;
        scene.fault.add(Rule::new(Kind::Write).at(call.range).once());
        scene.hold.release_all();
        assert_eq!(first.await, Err(Error::IO));
        scene.expect_zeroes(lost);
        second.await.unwrap();
        other.await.unwrap();
        assert_eq!(scene.fault.injected(), 1);
        // What the error freed can be given out again.
        let host = scene.host(call.range.offset());
        scene.record.take();
        scene.churn(16, 24, host).await;
    });
}

#[test]
fn snapshot_during_writes() {
    race(&plain(), &[data(0, 2), data(0, 3)], |scene| async move {
        scene.hold(Kind::Write);
        let in_place = scene.start_write(HELD, scene.part(3, 512, 512));
        let allocating = scene.start_write(HELD, scene.part(9, 0, 512));
        scene.hold.arrived(2).await;
        scene.hold.stop_holding();
        let driver = Arc::clone(scene.node.driver());
        let take = scene.exec.spawn("snapshot", async move {
            let new = NewSnapshot { name: "s".to_owned(), ..NewSnapshot::default() };
            driver.as_snapshots().unwrap().create(&new).await
        });
        scene.idle().await;
        let then = scene.expected.lock().clone();
        scene.record.take();
        let late = scene.start_write(HELD + 1, scene.part(3, 0, 2048));
        scene.idle().await;
        let sent = scene.record.take();
        assert!(sent.is_empty(), "the snapshot waits, and later writes for it: {sent:?}");
        scene.hold.release_all();
        for write in [in_place, allocating, take, late] {
            write.await.unwrap();
        }
        scene.write(scene.whole(10)).await;
        let now: Vec<_> = scene.read(scene.whole(3)).await.into_iter().map(Some).collect();
        assert_eq!(now, scene.expected.lock()[kit::index(3 * CLUSTER)..][..4096]);
        // The snapshot has what began before it, and nothing else.
        scene.node.driver().as_snapshots().unwrap().apply("s").await.unwrap();
        *scene.expected.lock() = then;
    });
}

#[test]
fn refcount_table_that_moves_while_it_is_written() {
    // A table of 64 entries, of which 62 are in use; a block counts 64 clusters of 512 bytes.
    let mut setup = setup("512 full");
    setup.filled = Filled::Empty;
    setup.shape.size = 4096 << 9;
    let data = |at| (at, Cluster::Data(kit::cluster_bytes(0, at, 512)));
    let clusters: Vec<_> = (0..3840).map(data).collect();
    let made = setup.shape.make(&clusters.iter().cloned().collect(), None);
    let table = ByteRange::new(word(&made.file, 48), 512).unwrap();
    race(&setup, &clusters, move |scene| async move {
        scene.write(scene.part(3840, 0, 40 * 512)).await;
        scene.hold.hold(Point::Before, move |call| {
            call.kind == Kind::Write && call.label == Some(HELD) && table.contains(call.range)
        });
        let node = scene.node.clone();
        let flush = scene.exec.spawn_labelled(HELD, "flush", async move { node.flush().await });
        scene.held().await;
        scene.record.take();
        // Not so many L2 tables that they would be written back.
        for at in (3880..4032).step_by(8) {
            scene.write(scene.part(at, 0, 8 * 512)).await;
        }
        let header = ByteRange::up_to(512);
        let moved =
            scene.record.take().iter().any(|c| c.kind == Kind::Write && c.range.overlaps(header));
        assert!(moved, "the table has moved");
        assert_eq!(scene.hold.held().len(), 1, "its old place is still being written");
        scene.hold.release_all();
        flush.await.unwrap();
    });
}

#[test]
fn discard_that_keeps_clusters_of_a_data_file() {
    // Offsets of the data file are none of the image's: nothing may be punched out of the image.
    let mut setup = setup("data file");
    setup.options = &[("discard-no-unref", "on")];
    let made = setup.make();
    let (image, data) = (disk(&made.file), disk(&made.data));
    let file: Arc<dyn BlockDriver> = data.clone();
    let record = Record::new();
    let node = World::new(&setup, Tapped::new(image.clone(), record.clone()), Some(file)).open();
    let node = block_on(node).unwrap();
    block_on(node.discard(ByteRange::up_to(16 * CLUSTER))).unwrap();
    block_on(graph::close(&node)).unwrap();
    assert_eq!(record.count(Kind::Discard), 0);
    let made = Made { file: image.to_vec(), data: data.to_vec() };
    judge(&setup, &made).unwrap().clean().unwrap();
}

/// What a file held, and what of it was not stable.
type Before = (Vec<u8>, Vec<ByteRange>);

/// Looks at every write to an L2 table: what it links must be stable, data and refcount.
struct Links {
    disk: Arc<MemDisk>,
    /// The L2 table.
    table: ByteRange,
    /// What the file held, and what of it was not stable, when a write arrived.
    before: Mutex<BTreeMap<u64, Before>>,
    /// Host clusters that were linked.
    linked: Mutex<Vec<u64>>,
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = kit::index(at);
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Links {
    fn new(disk: Arc<MemDisk>) -> Arc<Self> {
        let bytes = disk.to_vec();
        let table = ByteRange::new(word(&bytes, word(&bytes, 40)) & OFFSET, CLUSTER).unwrap();
        Arc::new(Self { disk, table, before: Mutex::default(), linked: Mutex::default() })
    }

    /// What a write of the table, from `old` to `new`, has linked.
    fn check(&self, old: &[u8], new: &[u8], unstable: &[ByteRange]) {
        // All clusters are counted in the first block, by 16 bits each.
        let block = word(new, word(new, 48));
        for at in (self.table.offset()..self.table.end()).step_by(8) {
            let host = word(new, at) & OFFSET;
            if host == 0 || word(old, at) & OFFSET == host {
                continue;
            }
            let count = ByteRange::new(block + host / CLUSTER * 2, 2).unwrap();
            let counted = &new[kit::index(count.offset())..kit::index(count.end())];
            assert_ne!(counted, [0, 0], "{host:#x} is linked and not counted");
            let data = ByteRange::new(host, CLUSTER).unwrap();
            let early = unstable.iter().find(|u| u.overlaps(data) || u.overlaps(count));
            assert_eq!(early, None, "{host:#x} is linked before that is stable");
            self.linked.lock().push(host);
        }
    }
}

#[async_trait]
impl Tap for Links {
    async fn before(&self, call: &Call) -> Verdict {
        if call.kind == Kind::Write && call.range.overlaps(self.table) {
            let state = (self.disk.to_vec(), self.disk.unstable());
            self.before.lock().insert(call.number, state);
        }
        Verdict::Pass
    }

    async fn after(&self, call: &Call, _: Result<()>) {
        let before = self.before.lock().remove(&call.number);
        if let Some((old, unstable)) = before {
            self.check(&old, &self.disk.to_vec(), &unstable);
        }
    }
}

/// Holds request number `point` of a flush while a write links a new cluster. Says whether the flush
/// had that many.
fn flush_meets_link(seed: u64, point: usize) -> bool {
    let setup = plain();
    let made = setup.shape.make(&[data(0, 4)].into(), None);
    let disk = disk(&made.file);
    let links = Links::new(Arc::clone(&disk));
    let below = Tapped::new(disk.clone(), Arc::clone(&links));
    let expected = Arc::new(Mutex::new(vec![Some(0); kit::index(setup.shape.size)]));
    let (wanted, setup_here) = (Arc::clone(&expected), setup.clone());
    let reached = Exec::run(seed, move |exec| async move {
        let scene = open(&setup_here, exec, below, wanted).await;
        let old = scene.whole(4);
        scene.expect(old, contents(0, old).into_iter().map(Some));
        scene.write(scene.whole(5)).await;
        let count = AtomicUsize::new(0);
        scene.hold.hold(Point::Before, move |call| {
            call.label == Some(HELD) && count.fetch_add(1, Ordering::Relaxed) == point
        });
        let node = scene.node.clone();
        let flush = scene.exec.spawn_labelled(HELD, "flush", async move { node.flush().await });
        scene.idle().await;
        let reached = !scene.hold.held().is_empty();
        scene.write(scene.whole(6)).await;
        scene.write(scene.part(7, 0, 512)).await;
        scene.hold.release_all();
        flush.await.unwrap();
        let first = links.linked.lock().len();
        assert!(first >= 1, "the flush has linked what was there when it began");
        scene.node.flush().await.unwrap();
        assert_eq!(links.linked.lock().len(), 3);
        graph::close(&scene.node).await.unwrap();
        reached
    });
    check_file(&setup, &disk, &expected.lock(), seed);
    reached
}

#[test]
fn flush_against_a_write_that_links_between_its_phases() {
    for seed in 0..SEEDS {
        let points = (0..).take_while(|point| flush_meets_link(seed, *point)).count();
        // Refcounts, a barrier of at least one flush, the L2 table, and the flush itself.
        assert!(points >= 4, "{points} points");
    }
}

/// Hammers an image from several threads and judges what is left; how many reads its file got.
fn threads(setup: &Setup, rounds: u32) -> usize {
    let disk = disk(&setup.make().file);
    let record = Record::new();
    let below = Tapped::new(disk.clone(), Arc::clone(&record));
    let node = block_on(World::new(setup, below, None).open()).unwrap();
    let expected = hammer(&node, setup.shape.cluster_size(), rounds);
    block_on(graph::close(&node)).unwrap();
    check_file(setup, &disk, &expected, 0);
    record.count(Kind::Read)
}

#[test]
fn dirty_slices_leave_the_smallest_cache_under_threads() {
    // 64 slices of 512 bytes, of which the cache holds two.
    let mut setup = setup("512 tiny");
    setup.shape.size = 2 << 20;
    let reads = threads(&setup, 600);
    assert!(reads > 600, "only {reads} reads: slices stayed in memory");
}

#[test]
fn threads_on_different_clusters_of_one_image() {
    let mut setup = plain();
    setup.shape.size = 1024 * CLUSTER;
    threads(&setup, 1200);
}
