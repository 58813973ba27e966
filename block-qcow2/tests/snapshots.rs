//! Internal snapshots: what is taken here is what the peer finds, and the reverse; applying and deleting
//! leave an image without errors and leaks; a snapshot has all of a write or nothing; what cannot be done
//! is refused with nothing changed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod kit;
mod support;

use std::sync::Arc;

use async_trait::async_trait;
use block_core::ability::NewSnapshot;
use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, Node, OpenError, Options, Registry, RequestFlags, Result,
};
use block_qcow2::Qcow2Factory;
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped};
use block_testkit::exec::Exec;
use block_testkit::naive::qcow2::Image;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::io_vec;
use block_testkit::peer::{ImageDir, Verdict};
use kit::{Setup, World, judge as judge_bytes, setups};
use parking_lot::Mutex;
use support::{contents, open_driver};

const STEP: u64 = 1 << 20;

fn open_with(
    dir: &ImageDir,
    name: &str,
    flags: OpenFlags,
    options: Options,
) -> Result<Node, OpenError> {
    let registry = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    let options =
        options.with("driver", "qcow2").with("filename", dir.path(name).to_str().unwrap());
    // Nothing here must survive a crash of the machine.
    let flags = OpenFlags { no_flush: true, ..flags };
    block_on(OpenContext::new(Arc::new(registry), flags).open(options))
}

fn open(dir: &ImageDir, name: &str) -> Node {
    open_with(dir, name, OpenFlags::READ_WRITE, Options::new()).unwrap()
}

/// The contents of a snapshot as this driver reads it.
fn view(dir: &ImageDir, name: &str, option: &str, snapshot: &str) -> Vec<u8> {
    let options = Options::new().with(option, snapshot);
    let node = open_with(dir, name, OpenFlags::READ_ONLY, options).unwrap();
    contents(&node, STEP)
}

fn snapshot(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.to_owned(), date_seconds: 1_600_000_000, date_nanoseconds: 5 }
}

fn create(node: &Node, name: &str) -> Result<()> {
    block_on(node.driver().as_snapshots().unwrap().create(&snapshot(name)))
}

fn apply(node: &Node, which: &str) -> Result<()> {
    block_on(node.driver().as_snapshots().unwrap().apply(which))
}

fn delete(node: &Node, which: &str) -> Result<()> {
    block_on(node.driver().as_snapshots().unwrap().delete(which))
}

fn write(node: &Node, byte: u8, offset: u64, len: u64) {
    let bytes = vec![byte; usize::try_from(len).unwrap()];
    let range = ByteRange::new(offset, len).unwrap();
    let iov = io_vec(&bytes, Alignment::PAGE, 1);
    block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
}

fn zero(node: &Node, offset: u64, len: u64) {
    let range = ByteRange::new(offset, len).unwrap();
    block_on(node.write_zeroes(range, RequestFlags::MAY_UNMAP)).unwrap();
}

fn discard(node: &Node, offset: u64, len: u64) {
    block_on(node.discard(ByteRange::new(offset, len).unwrap())).unwrap();
}

fn truncate(node: &Node, len: u64) -> Result<()> {
    block_on(node.truncate(len, Exactness::Exact, Prealloc::Off))
}

fn close(node: &Node) {
    block_on(block_core::graph::close(node)).unwrap();
}

/// Both checkers find nothing, and the peer reads what is expected.
fn judge(dir: &ImageDir, name: &str, expect: &[u8], what: &str) {
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean, "{what}");
    let bytes = dir.bytes(name).unwrap();
    let report = Image::open(&bytes).unwrap().check().unwrap();
    assert!(report.is_clean(), "{what}: {report}");
    assert!(dir.raw_contents(name, &[]).unwrap() == expect, "contents of {what}");
}

/// Clusters of every kind, by the peer.
fn scribble(dir: &ImageDir, name: &str, cluster: u64) {
    let at = |n: u64| n * cluster;
    let commands = [
        format!("write -P 1 0 {}", at(5)),
        format!("write -z {} {cluster}", at(1)),
        format!("write -P 2 {} {cluster}", at(7) + 512),
        format!("write -z -u {} {cluster}", at(3)),
        format!("discard {} {cluster}", at(4)),
        format!("write -P 3 {} {cluster}", at(70)),
    ];
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    dir.qemu_io(name, &commands).unwrap();
}

/// Shapes of images: options of creation, length of a cluster.
const SHAPES: [(&str, u64); 9] = [
    ("", 65536),
    ("compat=0.10", 65536),
    ("compat=0.10,cluster_size=512", 512),
    ("cluster_size=512,refcount_bits=64", 512),
    ("refcount_bits=4,cluster_size=4096", 4096),
    ("refcount_bits=4,lazy_refcounts=on", 65536),
    ("refcount_bits=8,cluster_size=1k", 1024),
    ("extended_l2=on,cluster_size=16k", 16384),
    ("extended_l2=on,refcount_bits=32,cluster_size=64k", 65536),
];

fn made(dir: &ImageDir, name: &str, options: &str, cluster: u64) {
    let size = (cluster * 80).to_string();
    let options = if options.is_empty() { "cluster_size=64k" } else { options };
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, &size]).unwrap();
    scribble(dir, name, cluster);
}

#[test]
fn snapshots_taken_here_are_those_that_the_peer_finds() {
    let dir = ImageDir::new().unwrap();
    for (options, cluster) in SHAPES {
        let name = format!("{options}.qcow2").replace('=', "-");
        made(&dir, &name, options, cluster);
        let node = open(&dir, &name);
        let one = contents(&node, STEP);
        create(&node, "one").unwrap();
        write(&node, 7, cluster * 2 + 100, cluster * 3);
        zero(&node, cluster * 70, cluster);
        let two = contents(&node, STEP);
        create(&node, "two").unwrap();
        discard(&node, 0, cluster);
        write(&node, 8, cluster * 69, cluster * 2);
        let now = contents(&node, STEP);
        let ids = node.driver().as_snapshots().unwrap().list();
        let ids: Vec<_> = ids.into_iter().map(|s| (s.id, s.name, s.disk_len)).collect();
        let len = Some(cluster * 80);
        let expect = [("1".into(), "one".into(), len), ("2".into(), "two".into(), len)];
        assert_eq!(ids, expect);
        close(&node);
        judge(&dir, &name, &now, options);
        let list = dir.qemu_img(&["snapshot", "-l", &name]).unwrap();
        assert!(
            list.contains("one") && list.contains("two") && list.contains("2020-09-13"),
            "{list}"
        );
        for (which, expect) in [("one", &one), ("two", &two)] {
            assert!(dir.raw_contents(&name, &["-l", which]).unwrap() == *expect, "{options}");
            assert!(view(&dir, &name, "snapshot.name", which) == *expect, "{options}");
        }
        let node = open(&dir, &name);
        apply(&node, "1").unwrap();
        assert!(contents(&node, STEP) == one, "{options}");
        write(&node, 9, cluster * 3, cluster);
        let mixed = contents(&node, STEP);
        close(&node);
        judge(&dir, &name, &mixed, options);
        assert!(
            view(&dir, &name, "snapshot", "1") == one && view(&dir, &name, "snapshot", "2") == two
        );

        let node = open(&dir, &name);
        delete(&node, "one").unwrap();
        assert_eq!(delete(&node, "one"), Err(Error::Os(2)));
        write(&node, 10, cluster * 7, cluster);
        delete(&node, "2").unwrap();
        // What is referenced once again is written in place.
        write(&node, 11, cluster * 7, cluster);
        let last = contents(&node, STEP);
        close(&node);
        judge(&dir, &name, &last, options);
        assert_eq!(dir.qemu_img(&["snapshot", "-l", &name]).unwrap(), "");
    }
}

#[test]
fn snapshots_of_the_peer_are_read_applied_and_deleted() {
    let dir = ImageDir::new().unwrap();
    for (options, cluster) in SHAPES {
        let name = format!("{options}.qcow2").replace('=', "-");
        made(&dir, &name, options, cluster);
        let one = dir.raw_contents(&name, &[]).unwrap();
        dir.qemu_img(&["snapshot", "-c", "one", &name]).unwrap();
        let commands = [format!("write -P 7 {} {}", cluster * 2 + 512, cluster * 3)];
        dir.qemu_io(&name, &[&commands[0]]).unwrap();
        let two = dir.raw_contents(&name, &[]).unwrap();
        dir.qemu_img(&["snapshot", "-c", "two", &name]).unwrap();
        assert!(view(&dir, &name, "snapshot", "one") == one, "{options}");
        assert!(view(&dir, &name, "snapshot.id", "2") == two, "{options}");
        let node = open(&dir, &name);
        apply(&node, "one").unwrap();
        close(&node);
        judge(&dir, &name, &one, options);
        // The peer goes on with it.
        dir.qemu_img(&["snapshot", "-a", "two", &name]).unwrap();
        judge(&dir, &name, &two, options);
        let node = open(&dir, &name);
        delete(&node, "two").unwrap();
        delete(&node, "one").unwrap();
        close(&node);
        judge(&dir, &name, &two, options);
    }
}

#[test]
fn compressed_clusters_are_counted_wherever_they_touch() {
    let dir = ImageDir::new().unwrap();
    let mut bytes = Vec::new();
    for at in 0..40u64 {
        bytes.extend((0..65536u64).map(|n| (n * (at + 3) / 19 % 253) as u8));
    }
    dir.write("raw", &bytes).unwrap();
    dir.qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "c"]).unwrap();
    let node = open(&dir, "c");
    create(&node, "one").unwrap();
    write(&node, 1, 65536 * 3, 65536 * 5);
    create(&node, "two").unwrap();
    write(&node, 2, 65536 * 20, 1000);
    let now = contents(&node, STEP);
    close(&node);
    judge(&dir, "c", &now, "compressed");
    assert!(view(&dir, "c", "snapshot", "one") == bytes);
    let node = open(&dir, "c");
    delete(&node, "two").unwrap();
    apply(&node, "one").unwrap();
    delete(&node, "one").unwrap();
    close(&node);
    judge(&dir, "c", &bytes, "compressed, one applied");
}

#[test]
fn clusters_over_a_backing_file_stay_apart() {
    let dir = ImageDir::new().unwrap();
    dir.write("base", &[9; 600 << 10]).unwrap();
    let create_args = ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "1M"];
    dir.qemu_img(&create_args).unwrap();
    let node = open(&dir, "top");
    write(&node, 1, 1000, 100_000);
    let one = contents(&node, STEP);
    create(&node, "one").unwrap();
    zero(&node, 0, 200 << 10);
    let now = contents(&node, STEP);
    close(&node);
    judge(&dir, "top", &now, "overlay");
    assert!(view(&dir, "top", "snapshot", "one") == one);
    let node = open(&dir, "top");
    apply(&node, "one").unwrap();
    delete(&node, "one").unwrap();
    close(&node);
    judge(&dir, "top", &one, "overlay, applied");
}

#[test]
fn a_snapshot_keeps_the_length_of_the_disk() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a", "200k"]).unwrap();
    let node = open(&dir, "a");
    write(&node, 1, 100 << 10, 100 << 10);
    create(&node, "small").unwrap();
    truncate(&node, 1 << 20).unwrap();
    write(&node, 2, 900 << 10, 1000);
    create(&node, "large").unwrap();
    let large = contents(&node, STEP);
    apply(&node, "small").unwrap();
    assert_eq!(node.len(), 200 << 10);
    truncate(&node, 50 << 10).unwrap();
    close(&node);
    judge(&dir, "a", &[0; 50 << 10], "shrunk");
    assert!(view(&dir, "a", "snapshot", "large") == large);
    assert_eq!(view(&dir, "a", "snapshot", "small").len(), 200 << 10);
    let node = open(&dir, "a");
    apply(&node, "large").unwrap();
    delete(&node, "large").unwrap();
    delete(&node, "small").unwrap();
    close(&node);
    judge(&dir, "a", &large, "grown again");
}

#[test]
fn refcounts_that_are_too_narrow_refuse_and_nothing_changes() {
    let dir = ImageDir::new().unwrap();
    for (bits, possible) in [(1, 0), (2, 2)] {
        let name = format!("{bits}");
        let options = format!("refcount_bits={bits},cluster_size=4096");
        made(&dir, &name, &options, 4096);
        let node = open(&dir, &name);
        let before = contents(&node, STEP);
        for n in 0..possible {
            create(&node, &format!("{n}")).unwrap();
        }
        assert_eq!(create(&node, "too many"), Err(Error::Os(22)));
        assert_eq!(node.driver().as_snapshots().unwrap().list().len(), possible);
        assert!(contents(&node, STEP) == before);
        close(&node);
        judge(&dir, &name, &before, &options);
        // A disk without clusters has nothing to count.
        let empty = format!("{bits}-empty");
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, &empty, "1M"]).unwrap();
        let node = open(&dir, &empty);
        for n in 0..4 {
            create(&node, &format!("{n}")).unwrap();
        }
        close(&node);
        judge(&dir, &empty, &[0; 1 << 20], "empty");
    }
}

#[test]
fn a_broken_snapshot_is_refused_and_nothing_changes() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4096", 4096);
    let expect = dir.raw_contents("a", &[]).unwrap();
    dir.qemu_img(&["snapshot", "-c", "one", "a"]).unwrap();
    let good = dir.bytes("a").unwrap();
    let word = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    let table = usize::try_from(word(64)).unwrap();
    let l1 = usize::try_from(word(table)).unwrap();
    let patches: [(&str, usize, Vec<u8>); 5] = [
        ("misaligned", table, (word(table) + 512).to_be_bytes().to_vec()),
        ("beyond the file", table, (1u64 << 40).to_be_bytes().to_vec()),
        ("too many entries", table + 8, 0x7fff_ffffu32.to_be_bytes().to_vec()),
        ("reserved bits", l1, (word(l1) | 1).to_be_bytes().to_vec()),
        ("a table beyond the file", l1, (1u64 << 40).to_be_bytes().to_vec()),
    ];
    for (what, at, bytes) in patches {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        dir.write("bad", &bad).unwrap();
        let node = open(&dir, "bad");
        assert!(matches!(apply(&node, "one"), Err(Error::Corrupt { .. })), "{what}");
        assert!(matches!(delete(&node, "one"), Err(Error::Corrupt { .. })), "{what}");
        assert!(contents(&node, STEP) == expect, "{what}");
        close(&node);
        let now = dir.bytes("bad").unwrap();
        assert_eq!(now[72..80], good[72..80], "no bit says that the disk is damaged: {what}");
        assert!(now[table..table + 60] == bad[table..table + 60], "{what}");
        let options = Options::new().with("snapshot", "one");
        let opened = open_with(&dir, "bad", OpenFlags::READ_ONLY, options);
        // A table that cannot be read shows when it is read.
        assert_eq!(opened.is_err(), what != "a table beyond the file", "{what}");
    }
    judge(&dir, "a", &expect, "the good one");
}

#[test]
fn what_no_snapshot_can_be_read_by_is_refused() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4096", 4096);
    dir.qemu_img(&["snapshot", "-c", "one", "a"]).unwrap();
    let open = |flags, options| open_with(&dir, "a", flags, options).map(drop);
    let one = Options::new().with("snapshot", "one");
    let writable = open(OpenFlags::READ_WRITE, one).unwrap_err().to_string();
    assert!(writable.contains("'snapshot': contradicts opening for writing"), "{writable}");
    let two = Options::new().with("snapshot", "two");
    let missing = open(OpenFlags::READ_ONLY, two).unwrap_err().to_string();
    assert_eq!(missing, "Invalid option 'snapshot': is missing");

    let options = "data_file=d";
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "b", "1M"]).unwrap();
    let node = self::open(&dir, "b");
    assert_eq!(create(&node, "one"), Err(Error::Unsupported));
    close(&node);
}

#[test]
fn unknown_extra_data_is_kept() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4096", 4096);
    dir.qemu_img(&["snapshot", "-c", "one", "a"]).unwrap();
    let mut bytes = dir.bytes("a").unwrap();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let table = usize::try_from(table).unwrap();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    // Eight more bytes of extra data, before id and name.
    let rest = bytes[table + 64..table + 72].to_vec();
    bytes[table + 39] = 32;
    bytes[table + 64..table + 72].copy_from_slice(b"whatever");
    bytes[table + 72..table + 80].copy_from_slice(&rest);
    dir.write("a", &bytes).unwrap();
    let before = dir.raw_contents("a", &[]).unwrap();
    let node = open(&dir, "a");
    create(&node, "two").unwrap();
    close(&node);
    judge(&dir, "a", &before, "unknown extra data");
    let bytes = dir.bytes("a").unwrap();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let table = usize::try_from(table).unwrap();
    assert_eq!(bytes[table + 39], 32);
    assert_eq!(&bytes[table + 64..table + 76], b"whatever1one");
}

/// An image of the peer in memory, seen through a tap.
fn held() -> (Arc<MemDisk>, Arc<Hold>, Arc<dyn BlockDriver>) {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4096", 4096);
    let bytes = dir.bytes("a").unwrap();
    let disk = MemConfig::file().holding(&bytes);
    let hold = Hold::new();
    let driver = Tapped::new(disk.clone(), Arc::clone(&hold));
    (disk, hold, driver)
}

/// A write whose data is on its way holds a snapshot up, and is in it as a whole.
#[test]
fn a_snapshot_during_a_write_waits_for_it() {
    // In place, and to a new cluster.
    for (seed, offset) in [(1, 0u64), (2, 4096 * 30), (3, 4096 * 2 + 100)] {
        let (disk, hold, driver) = held();
        let node = open_driver(driver, OpenFlags::READ_WRITE).unwrap();
        let marker = 0xa5;
        Exec::run(seed, move |exec| async move {
            hold.hold(Point::Before, |call| call.kind == Kind::Write);
            let range = ByteRange::new(offset, 4096 * 2).unwrap();
            let iov = io_vec(&[marker; 8192], Alignment::PAGE, 1);
            let (writer, snapshots) = (node.clone(), node.clone());
            let write = exec.spawn("write", async move {
                writer.write(range, iov, RequestFlags::empty()).await
            });
            let before = hold.arrived(1).await;
            assert!(!before.is_empty(), "the write is held");
            hold.stop_holding();
            let (sender, receiver) = futures::channel::oneshot::channel();
            let take = exec.spawn("snapshot", async move {
                let taken = snapshots.driver().as_snapshots().unwrap().create(&snapshot("s")).await;
                let _ = sender.send(());
                taken
            });
            let mut done = receiver;
            for _ in 0..200 {
                block_testkit::exec::yield_now().await;
                assert_eq!(done.try_recv(), Ok(None), "the snapshot waits");
            }
            // So does a write that comes later.
            let later = node.clone();
            let iov = io_vec(&[1; 4096], Alignment::PAGE, 1);
            let after = exec.spawn("later", async move {
                let range = ByteRange::new(offset, 4096).unwrap();
                later.write(range, iov, RequestFlags::empty()).await
            });
            for _ in 0..50 {
                block_testkit::exec::yield_now().await;
            }
            hold.release_all();
            write.await.unwrap();
            take.await.unwrap();
            after.await.unwrap();
            block_core::graph::close(&node).await.unwrap();
        });
        let bytes = disk.to_vec();
        let image = Image::open(&bytes).unwrap();
        let report = image.check().unwrap();
        assert!(report.is_clean(), "{report}");
        let list = image.snapshots().unwrap();
        let frozen = image.snapshot_contents(&list[0]).unwrap();
        let at = usize::try_from(offset).unwrap();
        assert!(
            frozen[at..at + 8192] == [marker; 8192],
            "all of the write, nothing of the later one"
        );
        assert!(image.contents().unwrap()[at..at + 4096] == [1; 4096]);
    }
}

/// What the disk held after each change.
struct Shots {
    disk: Arc<MemDisk>,
    taken: Mutex<Vec<Vec<u8>>>,
}

#[async_trait]
impl Tap for Shots {
    async fn after(&self, call: &Call, _: Result<()>) {
        if call.kind.is_change() {
            self.taken.lock().push(self.disk.to_vec());
        }
    }
}

#[test]
fn a_return_that_was_cut_off_leaves_the_snapshot_its_tables() {
    let dir = ImageDir::new().unwrap();
    // Version 2 has no dirty bit that makes the next one look at everything.
    made(&dir, "a", "compat=0.10,cluster_size=4096", 4096);
    dir.qemu_img(&["snapshot", "-c", "one", "a"]).unwrap();
    dir.qemu_io("a", &["write -P 9 0 8k"]).unwrap();
    let disk = MemConfig::file().holding(&dir.bytes("a").unwrap());
    let shots = Arc::new(Shots { disk: disk.clone(), taken: Mutex::default() });
    let node = open_driver(Tapped::new(disk, Arc::clone(&shots)), OpenFlags::READ_WRITE).unwrap();
    apply(&node, "one").unwrap();
    close(&node);
    let taken = std::mem::take(&mut *shots.taken.lock());
    assert!(taken.len() > 2, "{} changes", taken.len());
    for (number, bytes) in taken.iter().enumerate() {
        let frozen = |bytes: &[u8]| {
            let image = Image::open(bytes).unwrap();
            image.snapshot_contents(&image.snapshots().unwrap()[0]).unwrap()
        };
        let disk = MemConfig::file().holding(bytes);
        let node = open_driver(disk.clone(), OpenFlags::READ_WRITE).unwrap();
        write(&node, 8, 4096 * 2, 4096);
        write(&node, 8, 4096 * 75, 512);
        close(&node);
        assert!(frozen(&disk.to_vec()) == frozen(bytes), "after change {number}");
    }
}

/// Numbers from a seed, good enough to choose with.
struct Choice(u64);

impl Choice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(u64::try_from(bound).unwrap())).unwrap()
    }

    /// A range of the disk whose borders are borders of something.
    fn range(&mut self, setup: &Setup, len: u64) -> ByteRange {
        let cluster = setup.shape.cluster_size();
        let unit = [1, 512, cluster, cluster][usize::try_from(self.below(4)).unwrap()];
        let start = self.below(len) / unit * unit;
        let most = setup.max_request.min(len - start);
        let end = start + (1 + self.below(most)).next_multiple_of(unit).min(most);
        ByteRange::from_bounds(start, end).unwrap()
    }
}

/// The disk and its snapshots as whole copies.
struct Copies {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    made: u64,
}

impl Copies {
    fn part(&mut self, range: ByteRange) -> &mut [u8] {
        let [start, end] = [range.offset(), range.end()].map(|n| usize::try_from(n).unwrap());
        &mut self.disk[start..end]
    }
}

/// One random change of the image and of the copies.
fn change(node: &Node, setup: &Setup, copies: &mut Copies, choice: &mut Choice) {
    let range = choice.range(setup, node.len());
    let snapshots = node.driver().as_snapshots().unwrap();
    let some = choice.index(copies.snapshots.len());
    match choice.below(12) {
        0..=4 => {
            let byte = 1 + u8::try_from(choice.below(255)).unwrap();
            write(node, byte, range.offset(), range.len());
            copies.part(range).fill(byte);
        }
        5 => {
            let flags = [RequestFlags::empty(), RequestFlags::MAY_UNMAP][choice.index(2)];
            block_on(node.write_zeroes(range, flags)).unwrap();
            copies.part(range).fill(0);
        }
        6 => {
            block_on(node.discard(range)).unwrap();
            let found = support::read(node, range.offset(), range.len()).unwrap();
            let hides = setup.shape.version > 2 || setup.backing.is_none();
            for (now, old) in found.iter().zip(copies.part(range)) {
                assert!(*now == *old || *now == 0 || !hides);
                *old = *now;
            }
        }
        7 | 8 => {
            let name = format!("s{}", copies.made);
            let taken = block_on(snapshots.create(&snapshot(&name)));
            if setup.shape.refcount_order <= 2 && taken == Err(Error::Os(22)) {
                return;
            }
            taken.unwrap();
            copies.made += 1;
            copies.snapshots.push((name, copies.disk.clone()));
        }
        9 if !copies.snapshots.is_empty() => {
            let (name, contents) = copies.snapshots[some].clone();
            let applied = block_on(snapshots.apply(&name));
            if setup.shape.refcount_order <= 2 && applied == Err(Error::Os(22)) {
                return;
            }
            applied.unwrap();
            copies.disk = contents;
        }
        10 if !copies.snapshots.is_empty() => {
            let (name, _) = copies.snapshots.remove(some);
            block_on(snapshots.delete(&name)).unwrap();
        }
        11 if setup.shape.version > 2 => {
            let len = (1 + choice.below(setup.shape.size * 5 / 4 / 512)) * 512;
            truncate(node, len).unwrap();
            copies.disk.resize(usize::try_from(len).unwrap(), 0);
        }
        _ => {}
    }
}

fn play(setup: &Setup, seed: u64, turns: u64) {
    let mut made = setup.make();
    let start = judge_bytes(setup, &made).unwrap();
    let snapshots = start.snapshots.into_iter().collect();
    let mut copies = Copies { disk: start.contents, snapshots, made: 0 };
    let mut choice = Choice(seed);
    for _ in 0..3 {
        let disk = MemConfig::file().holding(&made.file);
        let node = block_on(World::new(setup, disk.clone(), None).open()).unwrap();
        for _ in 0..turns {
            change(&node, setup, &mut copies, &mut choice);
            if choice.below(4) == 0 {
                assert!(contents(&node, STEP) == copies.disk);
            }
        }
        assert!(contents(&node, STEP) == copies.disk, "before it is closed");
        close(&node);
        made = Made { file: disk.to_vec(), data: Vec::new() };
        let judged = judge_bytes(setup, &made).unwrap();
        judged.clean().unwrap();
        assert!(judged.contents == copies.disk, "naive reader");
        assert_eq!(judged.snapshots.len(), copies.snapshots.len());
        for (name, contents) in &copies.snapshots {
            assert!(judged.snapshots[name] == *contents, "snapshot {name}");
        }
    }
}

#[test]
fn any_history_of_snapshots_equals_whole_copies() {
    let setups: Vec<_> = setups().into_iter().filter(|s| s.shape.data_file.is_none()).collect();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("BLOCK_SEED").unwrap_or(0);
    let count = number("BLOCK_CASES").unwrap_or(2 * setups.len() as u64);
    for seed in first..first + count {
        let setup = &setups[usize::try_from(seed).unwrap() % setups.len()];
        let played = std::panic::catch_unwind(|| play(setup, seed, 12));
        assert!(played.is_ok(), "BLOCK_SEED={seed} fails on {}", setup.name);
    }
}
