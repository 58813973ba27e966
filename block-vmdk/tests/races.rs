//! Races that have a name, each reached on purpose: one request of a file is held at a point, the other half
//! of the race is played, and the test asserts that it was there.
//!
//! Every test plays its race under several seeds, so that everything around the point that is held comes
//! in many orders. At the end the disk is closed: its files must be without damage, and what the guest sees
//! must be what the finished requests say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::io::exec::block_on;
use block_core::{ByteRange, Error, RequestFlags, Result, graph};
use block_testkit::disk::fault::Rule;
use block_testkit::disk::hold::Point;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_testkit::exec::{Exec, JoinHandle};
use block_testkit::naive::vmdk::make::{Grain, NAME, Redundant, Subformat, Tables, ZeroedGrains};
use block_testkit::naive::vmdk::{Content, Entry, Files, Image};
use block_testkit::op::contents;
use block_testkit::peer::{self, ImageDir};
use block_testkit::race::{Expected, HELD, Reused, Scene, Taps, check_contents, hammer};
use kit::setups::{BASE, Filled, Setup, setup};
use kit::{Disks, judge};
use parking_lot::Mutex;

/// Orders in which each race is played.
const SEEDS: u64 = 8;
/// Bytes of a grain where a test does not say otherwise.
const GRAIN: u64 = 4096;

/// A disk of one file with 64 grains of 4 KiB and nothing in them.
fn plain() -> Setup {
    let mut setup = setup("4k");
    setup.shape.size = 64 * GRAIN;
    setup
}

/// The same without any grain table, each for 8 grains.
fn empty_directory() -> Setup {
    let mut setup = plain();
    setup.shape.gtes_per_gt = 8;
    setup.shape.tables = Tables::OnDemand;
    setup
}

/// The same on a parent.
fn child() -> Setup {
    let mut setup = plain();
    setup.backing = Some(40 * GRAIN);
    setup.shape.backing = Some((BASE.0.to_owned(), BASE.1));
    setup
}

/// A COWD extent without any grain table.
fn cowd() -> Setup {
    let mut setup = empty_directory();
    setup.shape.subformat = Subformat::Cowd(vec![64 * GRAIN / 512]);
    setup
}

/// Two extents, the first of which ends inside of a grain.
fn split() -> Setup {
    let mut setup = plain();
    setup.shape.subformat = Subformat::TwoGbSparse(vec![101, 64 * 8 - 101]);
    setup
}

/// A file in memory: discards leave junk, and data moves in steps.
fn disk(bytes: &[u8]) -> Arc<MemDisk> {
    MemConfig { step: Some(GRAIN / 2), ..MemConfig::file() }.holding(bytes)
}

/// Plays a race on a disk of these grains under every seed, and judges what is left. The first file that has
/// grains is the one that is looked at and held.
fn race<F>(
    setup: &Setup,
    grains: &[(u64, Grain)],
    play: impl Fn(Scene) -> F + Copy + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let grains: BTreeMap<u64, Grain> = grains.iter().cloned().collect();
    let made = setup.shape.make(&grains);
    let start = judge(setup, &made).unwrap();
    start.clean().unwrap();
    for seed in 0..SEEDS {
        let disks = Arc::new(Disks::new(made.clone(), |bytes| disk(&bytes)));
        let expected = Arc::new(Mutex::new(start.contents.iter().copied().map(Some).collect()));
        let (setup_here, below, wanted) =
            (setup.clone(), Arc::clone(&disks), Arc::clone(&expected));
        Exec::run(seed, move |exec| async move {
            let scene = open(&setup_here, exec, &below, wanted, |disk| disk).await;
            play(scene.clone()).await;
            assert_eq!(scene.hold.held(), [], "seed {seed}: something is still held");
            graph::close(&scene.node).await.unwrap();
        });
        check_files(setup, &disks.bytes(MemDisk::to_vec), &expected.lock(), seed);
    }
}

/// The disk in the files has no damage, and holds what is expected.
fn check_files(setup: &Setup, files: &Files, expected: &[Option<u8>], seed: u64) {
    let judged = judge(setup, files).unwrap();
    judged.clean().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    check_contents(&judged.contents, expected, seed);
    if seed == 0 {
        let dir = ImageDir::new().unwrap();
        for (name, bytes) in files {
            dir.write(name, bytes).unwrap();
        }
        if let Some(base) = setup.base() {
            dir.write(BASE.0, &base).unwrap();
        }
        assert_eq!(dir.check(NAME).unwrap(), peer::Verdict::Clean);
    }
}

/// Opens the disk; `below` goes between the file that is looked at and the taps on it.
async fn open(
    setup: &Setup,
    exec: Exec,
    disks: &Disks<MemDisk>,
    expected: Expected,
    below: impl Fn(Arc<dyn BlockDriver>) -> Arc<dyn BlockDriver>,
) -> Scene {
    let mut world = disks.world(setup, |disk| -> Arc<dyn BlockDriver> { disk });
    let tapped = usize::from(world.files.len() > 1);
    let (taps, file) = Taps::on(below(Arc::clone(&world.files[tapped])));
    world.files[tapped] = file;
    let node = world.open().await.unwrap();
    Scene::new(exec, taps, node, GRAIN, expected)
}

/// Starts a zero write at the driver: the layer would wait for what runs in the range.
fn start_zero(scene: &Scene, label: u64, range: ByteRange) -> JoinHandle<Result<()>> {
    let driver = Arc::clone(scene.node.driver());
    let zero = driver.pwrite_zeroes(range, RequestFlags::MAY_UNMAP);
    scene.exec.spawn_labelled(label, format!("zero {range}"), zero)
}

async fn zero(scene: &Scene, range: ByteRange) {
    start_zero(scene, HELD + 1, range).await.unwrap();
    scene.expect_zeroes(range);
}

/// Does what comes once in an open disk: content id, mark, growth of the file.
async fn warm_up(scene: &Scene) {
    scene.write(scene.part(60, 0, 512)).await;
    scene.node.flush().await.unwrap();
    scene.record.take();
}

fn data(op: u32, grain: u64) -> (u64, Grain) {
    let range = ByteRange::new(grain * GRAIN, GRAIN).unwrap();
    (grain, Grain::Data(contents(op, range)))
}

#[test]
fn two_writes_into_one_unallocated_grain() {
    for setup in [plain(), child(), empty_directory(), cowd()] {
        race(&setup, &[], |scene| async move {
            warm_up(&scene).await;
            scene.hold(Kind::Write);
            let first = scene.start_write(HELD, scene.part(3, 0, 1024));
            let host = scene.host(scene.held().await.range.offset());
            let second = scene.start_write(HELD + 1, scene.part(3, 2048, 1000));
            scene.idle().await;
            let sent = scene.record.take();
            let writes = |call: &&Call| call.kind == Kind::Write;
            assert_eq!(sent.iter().filter(writes).count(), 0, "the second waits: {sent:?}");
            scene.hold.release_all();
            first.await.unwrap();
            second.await.unwrap();
            let sent = scene.record.take();
            let there = sent.iter().filter(|call| host.contains(call.range));
            assert_eq!(there.filter(writes).count(), 2, "one place for both: {sent:?}");
        });
    }
}

#[test]
fn writes_into_different_grains_wait_for_nothing() {
    for setup in [plain(), child(), empty_directory(), cowd()] {
        race(&setup, &[data(0, 9)], |scene| async move {
            warm_up(&scene).await;
            scene.hold(Kind::Write);
            let first = scene.start_write(HELD, scene.part(3, 0, 1024));
            scene.held().await;
            for range in [scene.part(4, 100, 1024), scene.part(9, 0, 5000), scene.whole(20)] {
                scene.write(range).await;
                assert_eq!(scene.read(range).await, scene.expected(range));
            }
            scene.node.flush().await.unwrap();
            assert_eq!(scene.hold.held().len(), 1, "the first write is still on its way");
            scene.hold.release_all();
            first.await.unwrap();
        });
    }
}

#[test]
fn reads_during_a_copy_of_a_grain_see_what_was_there() {
    race(&child(), &[], |scene| async move {
        warm_up(&scene).await;
        let old = scene.expected(scene.whole(3));
        scene.hold(Kind::Write);
        let write = scene.start_write(HELD, scene.part(3, 1000, 1024));
        let call = scene.held().await;
        assert_eq!(call.range.len(), GRAIN, "head, data and tail are one write");
        assert_eq!(scene.read(scene.whole(3)).await, old);
        scene.hold.release_all();
        write.await.unwrap();
        assert_eq!(scene.read(scene.whole(3)).await, scene.expected(scene.whole(3)));
    });
}

/// A zero write of grains one of which is being allocated waits for that, and is the last word.
#[test]
fn zero_write_against_an_allocating_write() {
    let mut zeroed = child();
    zeroed.shape.zeroed_grains = ZeroedGrains::Yes;
    for setup in [plain(), zeroed] {
        race(&setup, &[data(0, 2), data(0, 4)], |scene| async move {
            warm_up(&scene).await;
            scene.hold(Kind::Write);
            let write = scene.start_write(HELD, scene.part(3, 1024, 1024));
            scene.held().await;
            let range = scene.part(2, 0, 3 * GRAIN);
            let zero = start_zero(&scene, HELD + 1, range);
            scene.idle().await;
            assert_eq!(scene.hold.held().len(), 1, "the write is still on its way");
            scene.hold.release_all();
            write.await.unwrap();
            zero.await.unwrap();
            scene.expect_zeroes(range);
            assert_eq!(scene.read(range).await, scene.expected(range));
        });
    }
}

/// A write in place is under way while its grain is dropped by `drop_it`: nobody may get its place before
/// the write has ended, and then somebody does.
async fn write_in_place_meets<F: Future<Output = ()>>(
    scene: Scene,
    drop_it: impl FnOnce(Scene) -> F,
) {
    warm_up(&scene).await;
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
fn write_against_zero_write_and_reuse() {
    race(&plain(), &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        write_in_place_meets(scene, |scene| async move {
            zero(&scene, scene.whole(3)).await;
        })
        .await;
    });
}

#[test]
fn write_against_discard_and_reuse() {
    let mut zeroed = child();
    zeroed.shape.zeroed_grains = ZeroedGrains::Yes;
    for setup in [plain(), zeroed] {
        race(&setup, &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
            write_in_place_meets(scene, |scene| async move {
                scene.discard(scene.whole(3)).await;
            })
            .await;
        });
    }
}

#[test]
fn read_against_discard_and_reuse() {
    race(&plain(), &[data(0, 3), data(0, 4)], |scene| async move {
        warm_up(&scene).await;
        let old = scene.expected(scene.whole(3));
        scene.hold(Kind::Read);
        let reader = scene.clone();
        let whole = scene.whole(3);
        let read = scene.exec.spawn_labelled(HELD, "read", async move { reader.read(whole).await });
        let host = scene.host(scene.held().await.range.offset());
        scene.discard(whole).await;
        assert_eq!(scene.churn(16, 26, host).await, Reused::No);
        assert_eq!(scene.hold.held().len(), 1, "the read is still on its way");
        scene.hold.release_all();
        assert_eq!(read.await, old, "what was there when it began");
        assert_eq!(scene.churn(26, 34, host).await, Reused::Yes);
    });
}

/// A grain that was let go and has a new place: the write to the old one does not show.
#[test]
fn write_to_the_old_place_of_a_grain_that_has_a_new_one() {
    race(&plain(), &[data(0, 3), data(0, 4)], |scene| async move {
        warm_up(&scene).await;
        scene.hold(Kind::Write);
        let write = scene.start_write(HELD, scene.part(3, 512, 1024));
        let host = scene.host(scene.held().await.range.offset());
        scene.discard(scene.whole(3)).await;
        scene.write(scene.part(3, 0, 2048)).await;
        scene.node.flush().await.unwrap();
        assert_eq!(scene.hold.held().len(), 1, "the first write is still on its way");
        assert_eq!(scene.churn(16, 26, host).await, Reused::No);
        scene.hold.release_all();
        write.await.unwrap();
        assert_eq!(scene.read(scene.whole(3)).await, scene.expected(scene.whole(3)));
    });
}

#[test]
fn discard_whose_punch_comes_late() {
    race(&plain(), &[data(0, 2), data(0, 3), data(0, 4)], |scene| async move {
        warm_up(&scene).await;
        scene.discard(scene.whole(3)).await;
        scene.hold.hold(Point::Before, |call| call.kind == Kind::Discard);
        let flusher = scene.clone();
        let flushes = scene.exec.spawn("flushes", async move {
            for grain in 16..20 {
                flusher.write(flusher.whole(grain)).await;
                flusher.node.flush().await.unwrap();
            }
        });
        let host = scene.host(scene.held().await.range.offset());
        scene.record.take();
        for grain in 20..30 {
            scene.write(scene.whole(grain)).await;
        }
        assert_eq!(scene.hold.held().len(), 1, "the punch is still on its way");
        assert_eq!(scene.reused(host), Reused::No);
        scene.hold.release_all();
        flushes.await;
        for grain in 30..34 {
            scene.write(scene.whole(grain)).await;
            scene.node.flush().await.unwrap();
        }
        assert_eq!(scene.reused(host), Reused::Yes);
    });
}

#[test]
fn error_of_one_of_two_racing_allocations() {
    for setup in [plain(), child()] {
        race(&setup, &[data(0, 4)], |scene| async move {
            warm_up(&scene).await;
            scene.hold(Kind::Write);
            let lost = scene.part(3, 0, 1024);
            let before = scene.expected(lost);
            let first = scene.start_write(HELD, lost);
            let call = scene.held().await;
            let second = scene.start_write(HELD + 1, scene.part(3, 2048, 1024));
            let other = scene.start_write(HELD + 2, scene.whole(5));
            scene.idle().await;
            scene.fault.add(Rule::new(Kind::Write).at(call.range).once());
            scene.hold.release_all();
            assert_eq!(first.await, Err(Error::IO));
            scene.expect(lost, before.into_iter().map(Some));
            second.await.unwrap();
            other.await.unwrap();
            assert_eq!(scene.fault.injected(), 1);
            assert_eq!(scene.read(scene.whole(3)).await, scene.expected(scene.whole(3)));
        });
    }
}

/// The first two writes of an open disk: there is one new content id, and no data before it is there.
#[test]
fn two_first_writes() {
    race(&plain(), &[data(0, 4)], |scene| async move {
        let descriptor = ByteRange::new(512, 20 * 512).unwrap();
        scene.hold(Kind::Write);
        let first = scene.start_write(HELD, scene.whole(3));
        let call = scene.held().await;
        assert!(descriptor.contains(call.range), "the content id comes first: {call:?}");
        let others = [scene.whole(4), scene.part(5, 0, 512)];
        let others = others.map(|range| scene.start_write(HELD + 1, range));
        scene.idle().await;
        let sent = scene.record.take();
        assert!(!sent.iter().any(|call| call.kind == Kind::Write), "others wait: {sent:?}");
        scene.hold.release_all();
        first.await.unwrap();
        for other in others {
            other.await.unwrap();
        }
        let sent = scene.record.take();
        let writes: Vec<_> = sent.iter().filter(|call| call.kind == Kind::Write).collect();
        let ids = writes.iter().filter(|call| descriptor.contains(call.range));
        assert_eq!(ids.count(), 1, "{sent:?}");
        let marks = writes.iter().filter(|call| call.range.offset() == 0);
        assert_eq!(marks.count(), 1, "{sent:?}");
        let stable = sent.iter().position(|call| call.kind == Kind::FlushToDisk).unwrap();
        let data = sent.iter().position(|c| c.kind == Kind::Write && c.range.len() >= GRAIN);
        assert!(stable < data.unwrap(), "{sent:?}");
    });
}

/// Two writes whose grains are mapped by one table that the file has not got.
#[test]
fn two_writes_that_need_one_new_table() {
    for redundant in [Redundant::None, Redundant::Kept] {
        let mut setup = empty_directory();
        setup.shape.redundant = redundant;
        race(&setup, &[], |scene| async move {
            warm_up(&scene).await;
            scene.hold.hold(Point::Before, |call| call.kind == Kind::Write);
            let writes = [3, 5].map(|grain| scene.start_write(HELD, scene.part(grain, 0, 512)));
            assert_eq!(scene.hold.arrived(2).await.len(), 2, "both have their grains");
            scene.hold.release_all();
            for write in writes {
                write.await.unwrap();
            }
            scene.record.take();
            scene.node.flush().await.unwrap();
            let sent = scene.record.take();
            let written = sent.iter().filter(|call| call.kind == Kind::Write).count();
            // A table and its directory, and the redundant ones.
            assert!(written == 2 || written == 4, "{sent:?}");
        });
    }
}

/// A write across the border of two extents, of which the first one waits.
#[test]
fn write_across_extents_one_of_which_is_slow() {
    race(&split(), &[], |scene| async move {
        let border = 101 * 512;
        scene.write(ByteRange::new(border - 9000, 18_000).unwrap()).await;
        scene.hold(Kind::Write);
        let across = ByteRange::new(border - 700, 3000).unwrap();
        let write = scene.start_write(HELD, across);
        let call = scene.held().await;
        assert_eq!(call.range.len(), 700, "what the first extent has of it");
        scene.idle().await;
        let behind = ByteRange::from_bounds(border, across.end()).unwrap();
        assert_eq!(scene.read(behind).await, scene.expected(behind), "the second extent is done");
        scene.hold.release_all();
        write.await.unwrap();
        assert_eq!(scene.read(across).await, scene.expected(across));
    });
}

/// What a file held, and what of it was not stable.
type Before = (Vec<u8>, Vec<ByteRange>);

/// Looks at every write to metadata: grains that it shows the world must be stable.
struct Links {
    disk: Arc<MemDisk>,
    /// What the file held, and what of it was not stable, when a write arrived.
    before: Mutex<BTreeMap<u64, Before>>,
    /// Grains that were linked, and by which directory.
    linked: Mutex<BTreeSet<(bool, u64)>>,
}

impl Links {
    fn new(disk: Arc<MemDisk>) -> Arc<Self> {
        Arc::new(Self { disk, before: Mutex::default(), linked: Mutex::default() })
    }

    /// Where the grains are that either directory of the file shows.
    fn shown(bytes: &[u8]) -> BTreeMap<(bool, u64), u64> {
        let files = Files::from([(NAME.to_owned(), bytes.to_vec())]);
        let image = Image::open(&files, NAME).unwrap();
        let Content::Sparse(sparse) = &image.extents()[0].content else { panic!("no grains") };
        let mut shown = BTreeMap::new();
        let directories = [Some(sparse.directory), sparse.redundant];
        for (which, directory) in [false, true].into_iter().zip(directories) {
            for grain in 0..sparse.grains() {
                let table = directory.map(|at| sparse.table(at, grain / sparse.gtes_per_gt));
                let Some(Some(table)) = table.map(|table| table.unwrap()) else { continue };
                let entry = sparse.entry(table, grain % sparse.gtes_per_gt).unwrap();
                if let Entry::At(sector) = entry {
                    shown.insert((which, grain), sector);
                }
            }
        }
        shown
    }

    /// What a write has linked.
    fn check(&self, old: &[u8], new: &[u8], unstable: &[ByteRange]) {
        let before = Self::shown(old);
        for (key, sector) in Self::shown(new) {
            if before.get(&key) == Some(&sector) {
                continue;
            }
            let data = ByteRange::new(sector * 512, GRAIN).unwrap();
            let early = unstable.iter().find(|range| range.overlaps(data));
            assert_eq!(early, None, "grain {} is linked before it is stable", key.1);
            self.linked.lock().insert(key);
        }
    }
}

#[async_trait]
impl Tap for Links {
    async fn before(&self, call: &Call) -> Verdict {
        // Tables and directories are no longer than this; a guest's write of as much is none of them.
        if call.kind == Kind::Write && call.range.len() <= 2048 {
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

/// Holds request number `point` of a flush while a write links a new grain. Says whether the flush had that
/// many.
fn flush_meets_link(setup: &Setup, seed: u64, point: usize) -> bool {
    let made = setup.shape.make(&[data(0, 4)].into());
    let disks = Arc::new(Disks::new(made, |bytes| disk(&bytes)));
    let links = Links::new(Arc::clone(&disks.0[0].1));
    let start = judge(setup, &disks.bytes(MemDisk::to_vec)).unwrap();
    let expected = Arc::new(Mutex::new(start.contents.into_iter().map(Some).collect::<Vec<_>>()));
    let (wanted, setup_here, below) = (Arc::clone(&expected), setup.clone(), Arc::clone(&disks));
    let reached = Exec::run(seed, move |exec| async move {
        let tap = |disk| -> Arc<dyn BlockDriver> { Tapped::new(disk, Arc::clone(&links)) };
        let scene = open(&setup_here, exec, &below, wanted, tap).await;
        warm_up(&scene).await;
        scene.write(scene.whole(5)).await;
        let count = AtomicUsize::new(0);
        scene.hold.hold(Point::Before, move |call| {
            call.label == Some(HELD) && count.fetch_add(1, Ordering::Relaxed) == point
        });
        let before = links.linked.lock().len();
        let node = scene.node.clone();
        let flush = scene.exec.spawn_labelled(HELD, "flush", async move { node.flush().await });
        scene.idle().await;
        let reached = !scene.hold.held().is_empty();
        scene.write(scene.whole(6)).await;
        scene.write(scene.part(17, 0, 512)).await;
        zero(&scene, scene.whole(4)).await;
        scene.hold.release_all();
        flush.await.unwrap();
        assert!(links.linked.lock().len() > before, "the flush has linked what was there");
        scene.node.flush().await.unwrap();
        let directories = if setup_here.shape.redundant == Redundant::None { 1 } else { 2 };
        assert_eq!(links.linked.lock().len() - before, 3 * directories);
        graph::close(&scene.node).await.unwrap();
        reached
    });
    check_files(setup, &disks.bytes(MemDisk::to_vec), &expected.lock(), seed);
    reached
}

#[test]
fn flush_against_a_write_that_links_between_its_phases() {
    for (setup, least) in [(plain(), 3), (empty_directory(), 5)] {
        for seed in 0..SEEDS {
            let points = (0..).take_while(|at| flush_meets_link(&setup, seed, *at)).count();
            // A barrier, the tables (and directories, where they are new), and the flush itself.
            assert!(points >= least, "{points} points");
        }
    }
}

#[test]
fn threads_on_different_grains_of_one_disk() {
    let mut setup = empty_directory();
    setup.filled = Filled::Empty;
    setup.shape.size = 1024 * GRAIN;
    for zeroed_grains in [ZeroedGrains::No, ZeroedGrains::Yes] {
        setup.shape.zeroed_grains = zeroed_grains;
        let disks = Disks::new(setup.make(), |bytes| disk(&bytes));
        let world = disks.world(&setup, |disk| -> Arc<dyn BlockDriver> { disk });
        let node = block_on(world.open()).unwrap();
        let expected = hammer(&node, GRAIN, 1200);
        block_on(graph::close(&node)).unwrap();
        check_files(&setup, &disks.bytes(MemDisk::to_vec), &expected, 0);
    }
}
