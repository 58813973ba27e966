//! Writes that allocate a cluster within one call: where that is done, and where it must not be.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::sync::Arc;

use block_core::Result;
use block_core::ability::NewSnapshot;
use block_core::driver::BlockDriver;
use block_core::format::raw::RawFactory;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemDriver;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, Options, Registry, RequestFlags, graph,
};
use block_qcow2::Qcow2Factory;
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::inline::Inline;
use block_testkit::disk::{Kind, Tap, Tapped};
use block_testkit::peer::{ImageDir, Verdict};
use futures::FutureExt;
use futures::executor::block_on;
use support::{open_driver, read};

const CLUSTER: u64 = 64 << 10;
const RW: OpenFlags = OpenFlags::READ_WRITE;

/// An image, open in a file of the host: the page cache answers at once.
fn open(dir: &ImageDir, name: &str, options: Options) -> Node {
    let registry = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    let path = dir.path(name);
    let filename = Options::filename(path.to_str().unwrap());
    let options = options.iter().fold(filename, |all, (name, value)| all.with(name, value));
    let options = options.with("driver", "qcow2");
    block_on(OpenContext::new(Arc::new(registry), RW).open(options)).unwrap()
}

fn create(dir: &ImageDir, args: &[&str]) {
    dir.qemu_img(&[&["create", "-q", "-f", "qcow2"], args].concat()).unwrap();
}

fn filled(byte: u8, len: u64) -> IoBuf {
    let buf = IoBuf::zeroed(usize::try_from(len).unwrap(), Alignment::PAGE).unwrap();
    buf.fill(byte);
    buf
}

/// A write of some sectors in the middle of a cluster, within one call if that is possible.
fn now(node: &Node, cluster: u64, byte: u8) -> Option<Result<()>> {
    let range = ByteRange::new(cluster * CLUSTER + 8192, 4096).unwrap();
    node.write_now(range, &filled(byte, 4096).into())
}

fn write(node: &Node, offset: u64, len: u64, byte: u8) {
    let range = ByteRange::new(offset, len).unwrap();
    block_on(node.write(range, filled(byte, len).into(), RequestFlags::empty())).unwrap();
}

/// Fails unless a cluster holds what [`now`] wrote to it, and `around` elsewhere.
fn assert_holds(node: &Node, cluster: u64, byte: u8, around: u8) {
    let mut expected = vec![around; 65536];
    expected[8192..12288].fill(byte);
    assert!(read(node, cluster * CLUSTER, CLUSTER).unwrap() == expected, "cluster {cluster}");
}

fn close_clean(dir: &ImageDir, node: &Node, name: &str) {
    block_on(graph::close(node)).unwrap();
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean);
}

#[test]
fn a_cluster_without_a_place_gets_one_within_one_call() {
    for options in ["compat=1.1", "compat=0.10", "extended_l2=on", "refcount_bits=1"] {
        let dir = ImageDir::new().unwrap();
        create(&dir, &["-o", options, "x", "64M"]);
        let node = open(&dir, "x", Options::new());
        assert_eq!(now(&node, 0, 1), None, "there is no L2 table: {options}");
        write(&node, 0, 4096, 9);
        for cluster in 1..12 {
            assert_eq!(now(&node, cluster, 2), Some(Ok(())), "{options}");
            assert_holds(&node, cluster, 2, 0);
        }
        // Now there is a place, which the next write uses.
        let in_use = std::fs::metadata(dir.path("x")).unwrap().len();
        assert_eq!(now(&node, 5, 3), Some(Ok(())));
        assert_eq!(std::fs::metadata(dir.path("x")).unwrap().len(), in_use);
        assert_holds(&node, 5, 3, 0);
        let ends = |end: u64| ByteRange::new(20 * CLUSTER + 512, end - 512).unwrap();
        let two = ends(CLUSTER + 512);
        assert_eq!(node.write_now(two, &filled(1, two.len()).into()), None, "two clusters");
        let one = ends(CLUSTER);
        assert_eq!(node.write_now(one, &filled(1, one.len()).into()), Some(Ok(())));
        close_clean(&dir, &node, "x");
        let node = open(&dir, "x", Options::new());
        assert_holds(&node, 5, 3, 0);
        assert_holds(&node, 6, 2, 0);
        assert_eq!(read(&node, 0, 4096).unwrap(), [9; 4096]);
        assert_eq!(read(&node, 21 * CLUSTER, CLUSTER).unwrap(), [0; 65536]);
    }
}

#[test]
fn clusters_that_read_as_zeroes_by_their_entry_do_too_unless_they_have_a_place() {
    let dir = ImageDir::new().unwrap();
    create(&dir, &["x", "64M"]);
    dir.qemu_io("x", &["write -P 7 0 128k", "write -z 256k 64k", "write -z 0 64k"]).unwrap();
    let node = open(&dir, "x", Options::new());
    // Reads the slice.
    assert_holds(&node, 0, 0, 0);
    assert_eq!(now(&node, 0, 1), None, "a place is kept");
    // The file is made longer by the usual way.
    write(&node, 2 * CLUSTER, 4096, 1);
    assert_eq!(now(&node, 4, 1), Some(Ok(())));
    assert_holds(&node, 4, 1, 0);
    close_clean(&dir, &node, "x");
}

#[test]
fn old_contents_that_must_be_copied_take_the_usual_way() {
    let dir = ImageDir::new().unwrap();
    dir.write("base", &vec![5; 1 << 20]).unwrap();
    create(&dir, &["-b", "base", "-F", "raw", "x", "64M"]);
    dir.qemu_io("x", &["write -P 6 0 64k", "write -c -P 7 64k 64k"]).unwrap();
    let node = open(&dir, "x", Options::new());
    write(&node, 40 * CLUSTER, 4096, 1);
    assert_eq!(now(&node, 2, 1), None, "the backing file has it");
    assert_eq!(now(&node, 15, 1), None, "the backing file ends with it");
    assert_eq!(now(&node, 1, 1), None, "it is compressed");
    assert_eq!(now(&node, 16, 1), Some(Ok(())), "behind the end of the backing file");
    for (cluster, around) in [(2, 5), (1, 7)] {
        write(&node, cluster * CLUSTER + 8192, 4096, 1);
        assert_holds(&node, cluster, 1, around);
    }
    assert_holds(&node, 16, 1, 0);
    let snapshots = node.driver().as_snapshots().unwrap();
    block_on(snapshots.create(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }))
        .unwrap();
    assert_eq!(now(&node, 20, 2), None, "the table is the snapshot's, too");
    write(&node, 30 * CLUSTER, 4096, 1);
    assert_eq!(now(&node, 16, 2), None, "the cluster is the snapshot's, too");
    assert_eq!(now(&node, 20, 2), Some(Ok(())), "this one is nobody's");
    assert_holds(&node, 16, 1, 0);
    close_clean(&dir, &node, "x");
}

#[test]
fn crowded_caches_are_relieved_first() {
    let dir = ImageDir::new().unwrap();
    create(&dir, &["-o", "cluster_size=512", "x", "1M"]);
    let options = Options::new().with("l2-cache-size", "2048");
    let node = open(&dir, "x", options);
    // A table for every 32 KiB.
    let range =
        |table: u64, cluster: u64| ByteRange::new((table << 15) + cluster * 512, 512).unwrap();
    (0..12).for_each(|table| write(&node, range(table, 0).offset(), 512, 1));
    block_on(node.flush()).unwrap();
    let mut answers = Vec::new();
    for table in 0..12 {
        // Reads the slice.
        read(&node, range(table, 0).offset(), 512).unwrap();
        let answer = node.write_now(range(table, 1), &filled(2, 512).into());
        answers.push(answer.is_some());
    }
    let taken = answers.iter().filter(|taken| **taken).count();
    assert!((2..12).contains(&taken), "{answers:?}");
    assert!(answers.ends_with(&[false; 4]), "{answers:?}");
    write(&node, range(13, 0).offset(), 512, 1);
    read(&node, range(3, 0).offset(), 512).unwrap();
    assert_eq!(node.write_now(range(3, 2), &filled(3, 512).into()), Some(Ok(())), "relieved");
    close_clean(&dir, &node, "x");
}

/// An image of 64 MiB with one cluster, in memory.
fn in_memory(dir: &ImageDir) -> Arc<MemDriver> {
    create(dir, &["x", "64M"]);
    dir.qemu_io("x", &["write -P 1 0 64k"]).unwrap();
    Arc::new(MemDriver::from_bytes(&dir.bytes("x").unwrap()).unwrap())
}

fn close_memory(dir: &ImageDir, node: &Node, memory: &MemDriver) {
    block_on(graph::close(node)).unwrap();
    dir.write("x", &memory.to_bytes()).unwrap();
    assert_eq!(dir.check("x").unwrap(), Verdict::Clean);
}

#[test]
fn a_failed_write_gives_its_cluster_back() {
    let dir = ImageDir::new().unwrap();
    let memory = in_memory(&dir);
    let inline = Inline::all();
    let below: Arc<dyn BlockDriver> = memory.clone();
    let node = open_driver(Tapped::new(below, Arc::clone(&inline)), RW).unwrap();
    write(&node, CLUSTER, 4096, 1);
    assert_eq!(now(&node, 2, 2), Some(Ok(())));
    inline.fail_next(Error::NO_SPACE);
    assert_eq!(now(&node, 3, 3), Some(Err(Error::NO_SPACE)));
    assert_holds(&node, 3, 0, 0);
    // What it left where it was is nobody's.
    (4..8).for_each(|cluster| assert_eq!(now(&node, cluster, 4), Some(Ok(()))));
    (4..8).for_each(|cluster| assert_holds(&node, cluster, 4, 0));
    // No allocation is left running.
    assert_eq!(now(&node, 3, 5), Some(Ok(())));
    assert_holds(&node, 3, 5, 0);
    close_memory(&dir, &node, &memory);
}

#[test]
fn where_the_file_declines_nothing_has_happened() {
    let dir = ImageDir::new().unwrap();
    let memory = in_memory(&dir);
    let inline = Inline::all_but_every(1);
    let below: Arc<dyn BlockDriver> = memory.clone();
    let node = open_driver(Tapped::new(below, Arc::clone(&inline)), RW).unwrap();
    write(&node, CLUSTER, 4096, 1);
    block_on(node.flush()).unwrap();
    let before = memory.to_bytes();
    assert_eq!(now(&node, 2, 2), None);
    block_on(node.flush()).unwrap();
    assert!(memory.to_bytes() == before);
    close_memory(&dir, &node, &memory);
}

/// Answers small writes within one call.
struct Small;

impl Tap for Small {
    fn answers_now(&self, range: ByteRange) -> bool {
        range.len() <= 4096
    }
}

#[test]
fn a_running_allocation_of_the_cluster_is_not_overtaken() {
    let dir = ImageDir::new().unwrap();
    let memory = in_memory(&dir);
    let hold = Hold::new();
    let below: Arc<dyn BlockDriver> = Tapped::new(memory.clone(), Arc::clone(&hold));
    let node = open_driver(Tapped::new(below, Arc::new(Small)), RW).unwrap();
    write(&node, CLUSTER, 4096, 1);
    // Two clusters take the usual way.
    let range = ByteRange::new(2 * CLUSTER, 2 * CLUSTER).unwrap();
    hold.hold(Point::Before, |call| call.kind == Kind::Write);
    let mut both = node.write(range, filled(7, range.len()).into(), RequestFlags::empty());
    assert!((&mut both).now_or_never().is_none());
    assert_eq!(hold.held().len(), 1, "its data is on the way");
    hold.stop_holding();
    assert_eq!(now(&node, 2, 2), None);
    assert_eq!(now(&node, 3, 2), None);
    assert_eq!(now(&node, 4, 2), Some(Ok(())), "another cluster");
    hold.release_all();
    block_on(both).unwrap();
    assert_eq!(now(&node, 3, 2), Some(Ok(())), "in place");
    assert_holds(&node, 3, 2, 7);
    assert_holds(&node, 4, 2, 0);
    close_memory(&dir, &node, &memory);
}
