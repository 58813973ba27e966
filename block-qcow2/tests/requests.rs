//! Which requests reach the image file, and what happens when they fail or wait.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, Options};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::record::Record;
use block_testkit::disk::{Kind, MemConfig, Tap, Tapped};
use block_testkit::peer::ImageDir;
use futures::executor::block_on;
use futures::future::join_all;
use support::{contents, open_driver, read};

/// An image whose first megabyte is one run, and whose second is compressed.
fn sample() -> Vec<u8> {
    let dir = ImageDir::new().unwrap();
    let half = vec![b'a'; 1 << 20];
    dir.write("half.raw", &[vec![0; 1 << 20], half].concat()).unwrap();
    let args = ["convert", "-c", "-O", "qcow2", "half.raw", "x.qcow2"];
    dir.qemu_img(&args).unwrap();
    dir.qemu_io("x.qcow2", &["write -P 1 0 1M"]).unwrap();
    dir.bytes("x.qcow2").unwrap()
}

fn tapped<T: Tap>(bytes: &[u8], tap: &Arc<T>) -> Node {
    let disk = Arc::new(MemDriver::from_bytes(bytes).unwrap());
    let disk: Arc<dyn BlockDriver> = Tapped::new(disk, Arc::clone(tap));
    open_driver(disk, OpenFlags::READ_ONLY).unwrap()
}

#[test]
fn a_run_is_one_request_and_a_mapping_is_read_once() {
    let record = Record::new();
    let node = tapped(&sample(), &record);
    record.take();
    assert_eq!(read(&node, 5, 1).unwrap(), [1]);
    // The slice, and the byte.
    assert_eq!(record.take().len(), 2);
    assert!(read(&node, 100, 900_000).unwrap().iter().all(|b| *b == 1));
    let calls = record.take();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(calls[0].range.len(), 900_000);
}

#[test]
fn compressed_clusters_that_follow_each_other_are_read_together() {
    let record = Record::new();
    let node = tapped(&sample(), &record);
    read(&node, 0, 1).unwrap();
    record.take();
    assert!(read(&node, 1 << 20, 1 << 20).unwrap().iter().all(|b| *b == b'a'));
    assert_eq!(record.take().len(), 1);
    // Small reads of one cluster read and inflate it once.
    for offset in (0..65536).step_by(4096) {
        assert_eq!(read(&node, (1 << 20) + offset, 4096).unwrap(), [b'a'; 4096]);
    }
    assert_eq!(record.take().len(), 1);
}

#[test]
fn a_slice_that_many_miss_is_read_once() {
    let bytes = sample();
    let hold = Hold::new();
    let record = Record::new();
    let disk: Arc<dyn BlockDriver> = Arc::new(MemDriver::from_bytes(&bytes).unwrap());
    let disk: Arc<dyn BlockDriver> = Tapped::new(disk, Arc::clone(&record));
    let disk: Arc<dyn BlockDriver> = Tapped::new(disk, Arc::clone(&hold));
    let node = open_driver(disk, OpenFlags::READ_ONLY).unwrap();
    record.take();
    hold.hold(Point::Before, |call| call.kind == Kind::Read);
    let bufs: Vec<_> = (0..20).map(|_| IoBuf::zeroed(512, Alignment::ONE).unwrap()).collect();
    let reads = bufs
        .iter()
        .zip(0..)
        .map(|(buf, n)| node.read(ByteRange::new(n * 4096, 512).unwrap(), buf.clone().into()));
    let mut all = Box::pin(join_all(reads));
    block_on(async {
        assert!(futures::poll!(&mut all).is_pending());
        assert_eq!(hold.held().len(), 1, "all wait for one read of the slice");
        hold.stop_holding();
        hold.release_all();
        assert!((&mut all).await.iter().all(Result::is_ok));
    });
    assert!(bufs.iter().all(|buf| buf.to_vec() == [1; 512]));
    assert_eq!(record.take().len(), 21);
}

#[test]
fn a_failed_read_fails_the_request_and_the_next_one_works() {
    let bytes = sample();
    // The n-th read of the file: the slice, the data, the payloads.
    for skip in 0..3 {
        let fault = Fault::new();
        let node = tapped(&bytes, &fault);
        fault.add(Rule::new(Kind::Read).skip(skip).once());
        let results = [0, 1 << 20].map(|offset| read(&node, offset, 200_000));
        let failed = results.iter().filter(|r| **r == Err(Error::IO)).count();
        assert_eq!((failed, fault.injected()), (1, 1), "fault {skip} was not met");
        fault.clear();
        assert_eq!(contents(&node, 1 << 20).len(), 2 << 20);
    }
}

#[test]
fn a_file_with_sectors_gets_whole_sectors() {
    let bytes = sample();
    let expect = {
        let disk = Arc::new(MemDriver::from_bytes(&bytes).unwrap());
        contents(&open_driver(disk, OpenFlags::READ_ONLY).unwrap(), 1 << 20)
    };
    let len = bytes.len().next_multiple_of(4096);
    // This disk refuses whatever is not aligned in offset, length or memory.
    let disk = MemConfig::new(u64::try_from(len).unwrap()).aligned(4096).build();
    disk.load(0, &bytes);
    let node = open_driver(disk, OpenFlags::READ_ONLY).unwrap();
    assert_eq!(node.limits().request_alignment, Alignment::PAGE);
    assert!(contents(&node, 100_000) == expect);
}

#[test]
fn readers_on_several_threads_agree() {
    let bytes = sample();
    let disk = Arc::new(MemDriver::from_bytes(&bytes).unwrap());
    let node = open_driver(disk, OpenFlags::READ_ONLY).unwrap();
    let expect = contents(&node, 1 << 20);
    let len = node.len();
    std::thread::scope(|scope| {
        for thread in 1..5u64 {
            let (node, expect) = (&node, &expect);
            scope.spawn(move || {
                let mut seed = thread;
                for n in 0..60 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = (seed >> 33) % len;
                    let size = ((seed >> 13) % 300_000 + 1).min(len - offset);
                    let found = read(node, offset, size).unwrap();
                    let start = usize::try_from(offset).unwrap();
                    let same = found == expect[start..start + found.len()];
                    assert!(same, "thread {thread}, read {n}: {offset}+{size}");
                }
            });
        }
    });
}

/// `cache-clean-interval`: memory of tables that nobody uses goes back, also while nobody asks for
/// anything; what is used again is read again.
#[test]
fn tables_that_nobody_uses_give_their_memory_back() {
    let dir = ImageDir::new().unwrap();
    let options = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "x", "1G"];
    dir.qemu_img(&options).unwrap();
    let context = support::context(OpenFlags::READ_ONLY);
    let options = Options::filename(dir.path("x").to_str().unwrap()).with("driver", "qcow2");
    let options = options.with("l2-cache-entry-size", "512").with("cache-clean-interval", "1");
    let node = block_on(context.open(options)).unwrap();
    for step in 0..256u64 {
        assert_eq!(read(&node, step << 22, 512).unwrap(), [0; 512]);
    }
    let held = context.budget.used();
    assert!(held >= 100 * 512, "{held} bytes are held by the cache");
    let start = std::time::Instant::now();
    while context.budget.used() > 4096 {
        let waited = start.elapsed();
        assert!(waited.as_secs() < 30, "{} bytes after {waited:?}", context.budget.used());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(read(&node, 1 << 22, 512).unwrap(), [0; 512]);
}
