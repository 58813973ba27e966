//! Images that are written as a stream: read back by the naive reader, which shares no code with the
//! writer, and checked by the naive checker.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::job::copy::{Progress, Watch};
use block_core::job::stream::StreamError as CoreError;
use block_core::range::{to_u64, to_usize};
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    BlockLimits, ByteRange, Cancel, Capabilities, Error, IoVec, Node, RequestFlags, Result,
};
use block_qcow2::compress::Window;
use block_qcow2::create::CreateOptions;
use block_qcow2::geometry::Version;
use block_qcow2::spec::header::Compression;
use block_qcow2::stream::{StreamError, StreamWriter};
use block_testkit::naive::qcow2::Image;
use futures::executor::block_on;
use futures::io::AsyncWrite;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A disk whose contents the test changes while it is read, and that counts.
struct Source {
    bytes: Mutex<Vec<u8>>,
    /// Reads of bytes from here on fail.
    fails_from: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// Bytes of a hole that the source knows of.
const HOLE: u64 = 64 << 10;

impl Source {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            fails_from: AtomicU64::new(u64::MAX),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        })
    }

    fn node(self: &Arc<Self>) -> Node {
        Node::new(Arc::clone(self) as Arc<dyn BlockDriver>, Default::default())
    }
}

#[async_trait]
impl BlockDriver for Source {
    fn name(&self) -> &'static str {
        "source"
    }

    fn len(&self) -> u64 {
        to_u64(self.bytes.lock().len())
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(range.len(), Ordering::Relaxed);
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        // Others begin meanwhile.
        let mut waits = 3;
        futures::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            waits -= 1;
            if waits == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if range.end() > self.fails_from.load(Ordering::Relaxed) {
            return Err(Error::IO);
        }
        let bytes = self.bytes.lock();
        let end = to_usize(range.end()).min(bytes.len());
        iov.copy_from(0, bytes.get(to_usize(range.offset())..end).unwrap_or_default());
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let bytes = self.bytes.lock();
        let end = (range.offset() / HOLE * HOLE + HOLE).min(range.end());
        let found = bytes.get(to_usize(range.offset())..to_usize(end).min(bytes.len()));
        let len = end - range.offset();
        let is_zero = found.is_none_or(|found| found.iter().all(|byte| *byte == 0));
        Ok(if is_zero { DriverStatus::zero(len) } else { DriverStatus::data(len) })
    }
}

/// A sink that takes a few bytes at a time, waits now and then, and fails at a byte if it is told to.
struct Sink {
    bytes: Vec<u8>,
    fails_at: usize,
    failed: bool,
    turn: usize,
}

impl Sink {
    fn new(fails_at: usize) -> Self {
        Self { bytes: Vec::new(), fails_at, failed: false, turn: 0 }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.failed, "written to after an error");
        self.turn += 1;
        if self.turn.is_multiple_of(5) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let room = self.fails_at - self.bytes.len();
        if room == 0 {
            self.failed = true;
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(1 + self.turn * 7919 % 100_000).min(room);
        self.bytes.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("closed")
    }
}

fn quiet(_: Progress) {}

/// The image that the writer makes; its length must be the one that was measured.
fn image_of(writer: &StreamWriter) -> Vec<u8> {
    block_on(async {
        let measured = writer.clone().measure(&Cancel::new(), quiet).await.unwrap();
        let mut image = Vec::new();
        let len = measured.write_to(&mut image, &Cancel::new(), quiet).await.unwrap();
        assert_eq!((len, measured.file_len()), (to_u64(image.len()), to_u64(image.len())));
        image
    })
}

/// The image is clean and holds `contents`, followed by zeroes up to a whole sector.
fn assert_holds(image: &[u8], contents: &[u8]) {
    let naive = Image::open(image).unwrap();
    let report = naive.check().unwrap();
    assert!(report.is_clean(), "{report}");
    let mut expect = contents.to_vec();
    expect.resize(contents.len().next_multiple_of(512), 0);
    assert!(naive.contents().unwrap() == expect, "contents differ");
    assert!(to_u64(image.len()).is_multiple_of(1 << naive.header().cluster_bits));
}

/// `len` bytes in runs of zeroes, of text, and of noise.
fn some_contents(rng: &mut impl Rng, len: usize, run: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let run = rng.random_range(1..=run);
        match rng.random_range(0..5) {
            0 | 1 => bytes.resize(bytes.len() + run, 0),
            2 => {
                let start = bytes.len();
                bytes.resize(start + run, 0);
                rng.fill(&mut bytes[start..]);
            }
            3 => bytes.resize(bytes.len() + run, rng.random()),
            _ => {
                let word: [u8; 90] = std::array::from_fn(|_| rng.random());
                bytes.extend_from_slice(&word.repeat(run.div_ceil(90)));
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// Options that go together.
fn some_options(rng: &mut impl Rng, cluster_bits: u32) -> CreateOptions {
    let options = CreateOptions::new(0).cluster_size(1 << cluster_bits);
    if rng.random_ratio(1, 4) {
        return options.version(Version::V2);
    }
    let mut options = options.refcount_bits(1 << rng.random_range(0..=6));
    if cluster_bits >= 14 && rng.random() {
        options = options.extended_l2();
    }
    if rng.random() {
        options = options.compression(Compression::Zstd);
    }
    if rng.random_ratio(1, 4) { options.lazy_refcounts() } else { options }
}

#[test]
fn any_disk_with_any_options_is_a_clean_image_with_the_same_contents() {
    let mut compressed_clusters = 0;
    for seed in 0..30 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bits = [9, 10, 12, 14, 16, 21][to_usize(seed % 6)];
        let len = if bits == 21 { 5 << 20 } else { (1 << bits) * 10 + 100_000 };
        let len = rng.random_range(0..len);
        let contents = some_contents(&mut rng, len, (3 << bits).min(len.max(1)));
        let options = some_options(&mut rng, bits);
        println!("seed {seed}: {len} bytes, {options:?}");
        let plain = StreamWriter::new(Source::new(contents.clone()).node()).options(options);
        let image = image_of(&plain);
        assert_holds(&image, &contents);
        let compressed = image_of(&plain.compressed(None, Window::Small));
        assert_holds(&compressed, &contents);
        compressed_clusters += u64::from(compressed.len() < image.len());
    }
    assert!(compressed_clusters > 12, "{compressed_clusters}");
}

#[test]
fn an_empty_disk_and_a_disk_of_zeroes_have_no_data() {
    for len in [0, 1, 512, 1 << 20] {
        let source = Source::new(vec![0; len]);
        let image = image_of(&StreamWriter::new(source.node()).compressed(None, Window::Small));
        assert_holds(&image, &vec![0; len]);
        assert_eq!(image.len(), if len == 0 { 3 << 16 } else { 4 << 16 });
        assert_eq!(source.reads.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_sparse_disk_is_read_where_it_has_data() {
    let mut contents = vec![0; 16 << 20];
    contents[10 << 20] = 1;
    let source = Source::new(contents.clone());
    let writer = StreamWriter::new(source.node()).options(CreateOptions::new(0).cluster_size(4096));
    let image = image_of(&writer);
    assert_holds(&image, &contents);
    // Each pass reads the part that is no hole.
    assert_eq!(source.read_bytes.load(Ordering::Relaxed), 2 * HOLE);
}

#[test]
fn a_disk_that_is_far_larger_than_its_file_can_be_is_no_trouble() {
    // Fully allocated this would pass what refcounts of 64 bits reach in clusters of 512 bytes.
    let disk = block_core::proto::mem::MemDriver::new(100 << 30);
    let node = Node::new(Arc::new(disk), Default::default());
    let data = block_core::IoBuf::zeroed(4096, block_core::Alignment::PAGE).unwrap();
    data.fill(9);
    for offset in [0, 50 << 30, (100 << 30) - 4096] {
        let range = ByteRange::new(offset, 4096).unwrap();
        block_on(node.write(range, data.clone().into(), RequestFlags::empty())).unwrap();
    }
    let options = CreateOptions::new(0).cluster_size(512).refcount_bits(64);
    let image = image_of(&StreamWriter::new(node).options(options).compressed(None, Window::Small));
    let naive = Image::open(&image).unwrap();
    for offset in [0, 50 << 30, (100 << 30) - 4096] {
        assert_eq!(naive.read(offset, 4096).unwrap(), vec![9; 4096]);
    }
    assert_eq!(naive.read(70 << 30, 4096).unwrap(), vec![0; 4096]);
}

#[test]
fn the_bytes_depend_on_nothing_but_source_and_options() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let contents = some_contents(&mut rng, 2 << 20, 300_000);
    for compression in [Compression::Deflate, Compression::Zstd] {
        let source = Source::new(contents.clone());
        let options = CreateOptions::new(0).compression(compression);
        let writer =
            StreamWriter::new(source.node()).options(options).compressed(None, Window::Small);
        let image = image_of(&writer);
        assert!(source.most_in_flight.load(Ordering::Relaxed) > 1);
        source.most_in_flight.store(0, Ordering::Relaxed);
        assert!(image_of(&writer.memory_bytes(1)) == image);
        assert_eq!(source.most_in_flight.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_sink_sees_each_byte_once_whatever_it_takes_at_a_time() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let source = Source::new(some_contents(&mut rng, 3 << 20, 300_000));
    let writer = StreamWriter::new(source.node()).compressed(None, Window::Small);
    let image = image_of(&writer);
    let mut sink = Sink::new(usize::MAX);
    let mut seen = Vec::new();
    let watch = |progress: Progress| seen.push(progress);
    let len = block_on(writer.write_to(&mut sink, &Cancel::new(), watch)).unwrap();
    assert!(sink.bytes == image && len == to_u64(image.len()) && sink.turn > 20);
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert!(seen.iter().all(|progress| progress.total == 6 << 20));
    assert!(seen.iter().any(|progress| progress.done < 3 << 20));
    assert!(seen.iter().any(|progress| progress.done > 3 << 20));
}

#[test]
fn a_sink_that_fails_ends_the_write() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let source = Source::new(some_contents(&mut rng, 2 << 20, 300_000));
    let writer = StreamWriter::new(source.node());
    let image = image_of(&writer);
    let measured = block_on(writer.measure(&Cancel::new(), quiet)).unwrap();
    for fails_at in [0, 1, 70_000, image.len() / 2, image.len() - 1] {
        let mut sink = Sink::new(fails_at);
        let error = block_on(measured.write_to(&mut sink, &Cancel::new(), quiet)).unwrap_err();
        assert!(error.is_broken_pipe() && sink.failed, "{error}");
        assert!(sink.bytes[..] == image[..fails_at]);
        assert_eq!(source.in_flight.load(Ordering::Relaxed), 0);
    }
    // What was measured can be written again.
    let mut again = Vec::new();
    block_on(measured.write_to(&mut again, &Cancel::new(), quiet)).unwrap();
    assert!(again == image);
}

#[test]
fn a_source_that_changes_between_the_passes_is_an_error_or_no_matter() {
    const CLUSTER: usize = 65536;
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut contents = vec![0; 40 * CLUSTER];
    for cluster in [3, 4, 5, 20, 21] {
        contents[cluster * CLUSTER..][..CLUSTER].fill(b'x');
    }
    rng.fill(&mut contents[5 * CLUSTER..6 * CLUSTER]);
    type Change = (&'static str, usize, fn(&mut [u8]), Option<usize>);
    let changes: [Change; 6] = [
        ("a hole gets data before all others", 1, |c| c[0] = 1, Some(1)),
        ("a hole gets data behind all others", 30, |c| c[0] = 1, Some(30)),
        ("data becomes a hole", 4, |c| c.fill(0), Some(4)),
        ("data is compressed to another length", 20, |c| c[..999].fill(b'y'), Some(20)),
        ("noise becomes compressible", 5, |c| c.fill(1), Some(5)),
        ("other noise of the same length", 5, |c| c.reverse(), None),
    ];
    for (what, cluster, change, expect) in changes {
        let source = Source::new(contents.clone());
        let writer = StreamWriter::new(source.node()).compressed(None, Window::Small);
        let measured = block_on(writer.measure(&Cancel::new(), quiet)).unwrap();
        change(&mut source.bytes.lock()[cluster * CLUSTER..][..CLUSTER]);
        let mut image = Vec::new();
        let written = block_on(measured.write_to(&mut image, &Cancel::new(), quiet));
        match (written, expect) {
            (Err(StreamError::Changed { offset }), Some(expect)) => {
                assert_eq!(offset, to_u64(expect * CLUSTER), "{what}");
                assert!(to_u64(image.len()) < measured.file_len(), "{what}");
            }
            (Ok(_), None) => assert_holds(&image, &source.bytes.lock()),
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_source_that_cannot_be_read_is_an_error_of_the_pass_that_meets_it() {
    let source = Source::new(vec![5; 3 << 20]);
    let writer = StreamWriter::new(source.node());
    let measured = block_on(writer.clone().measure(&Cancel::new(), quiet)).unwrap();
    source.fails_from.store(2 << 20, Ordering::Relaxed);
    let error = block_on(writer.measure(&Cancel::new(), quiet)).unwrap_err();
    assert!(
        matches!(
            error,
            StreamError::Stream(CoreError::Read { offset: 0x20_0000, error: Error::IO })
        ),
        "{error}"
    );
    let error = block_on(measured.write_to(Vec::new(), &Cancel::new(), quiet)).unwrap_err();
    assert!(
        matches!(
            error,
            StreamError::Stream(CoreError::Read { offset: 0x20_0000, error: Error::IO })
        ),
        "{error}"
    );
    assert_eq!(source.in_flight.load(Ordering::Relaxed), 0);
}

#[test]
fn a_cancel_ends_either_pass() {
    let source = Source::new(vec![5; 8 << 20]);
    for stop_at in [1, 9 << 20] {
        let cancel = Cancel::new();
        let handle = cancel.clone();
        let mut sink = Vec::new();
        let watch = move |progress: Progress| {
            if progress.done >= stop_at {
                handle.cancel();
            }
        };
        let writer = StreamWriter::new(source.node()).memory_bytes(1);
        let error = block_on(writer.write_to(&mut sink, &cancel, watch)).unwrap_err();
        assert!(matches!(error, StreamError::Stream(CoreError::Cancelled)), "{error}");
        assert_eq!(sink.is_empty(), stop_at == 1);
        assert!(sink.len() < 8 << 20);
        assert_eq!(source.in_flight.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_cancel_is_seen_while_zeroes_are_skipped() {
    // A hole in parts of 64 KiB each, which nobody reads.
    let source = Source::new(vec![0; 32 << 20]);
    let cancel = Cancel::new();
    let measured = StreamWriter::new(source.node()).measure(&cancel, quiet);
    let mut measured = std::pin::pin!(measured);
    let polled = block_on(futures::future::poll_fn(|cx| {
        Poll::Ready(measured.as_mut().poll(cx).is_pending())
    }));
    assert!(polled, "it had its turn before the end");
    cancel.cancel();
    assert!(matches!(block_on(measured), Err(StreamError::Stream(CoreError::Cancelled))));
}

/// Notes how much it lets through.
struct Toll(Arc<AtomicU64>);

impl Watch for Toll {
    fn progress(&mut self, _: Progress) {}

    fn before_write(&mut self, bytes: u64) -> Option<futures::future::BoxFuture<'static, ()>> {
        let passed = Arc::clone(&self.0);
        Some(Box::pin(async move {
            passed.fetch_add(bytes, Ordering::Relaxed);
        }))
    }
}

#[test]
fn a_rate_can_be_kept_because_every_byte_is_announced() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let source = Source::new(some_contents(&mut rng, 2 << 20, 300_000));
    let passed = Arc::new(AtomicU64::new(0));
    let watch = Toll(Arc::clone(&passed));
    let cancel = Cancel::new();
    let written = StreamWriter::new(source.node()).write_to(Vec::new(), &cancel, watch);
    assert_eq!(block_on(written).unwrap(), passed.load(Ordering::Relaxed));
}

#[test]
fn several_disks_are_joined_at_whole_sectors() {
    let parts = [vec![1; 1000], Vec::new(), vec![2; 70_000], vec![3; 300_001]];
    let mut expect = Vec::new();
    for part in &parts {
        expect.extend_from_slice(part);
        expect.resize(expect.len().next_multiple_of(512), 0);
    }
    let [first, rest @ ..] = parts;
    let mut writer = StreamWriter::new(Source::new(first).node());
    for part in rest {
        writer = writer.followed_by(Source::new(part).node());
    }
    assert_holds(&image_of(&writer), &expect);
    assert_holds(&image_of(&writer.compressed(None, Window::Small)), &expect);
}

#[test]
fn a_list_that_does_not_fit_is_an_error_that_says_so() {
    let source = Source::new(vec![7; 2 << 20]);
    let options = CreateOptions::new(0).cluster_size(512);
    let writer = StreamWriter::new(source.node()).options(options).compressed(None, Window::Small);
    let error = block_on(writer.list_bytes(1000).measure(&Cancel::new(), quiet)).unwrap_err();
    assert!(matches!(error, StreamError::ListMemory { budget: 1000 }), "{error}");
}

#[test]
fn what_a_stream_cannot_have_is_refused_by_name_before_anything_is_read() {
    let new = || CreateOptions::new(0);
    let cases = [
        ("data_file", new().data_file("x")),
        ("backing_file", new().backing("x", "raw")),
        ("preallocation", new().preallocation(block_core::driver::Prealloc::Full)),
        ("cluster_size", new().cluster_size(1000)),
        ("compression_type", new().version(Version::V2).compression(Compression::Zstd)),
    ];
    for (name, options) in cases {
        let source = Source::new(vec![7; 2 << 20]);
        let writer = StreamWriter::new(source.node()).options(options);
        let error = block_on(writer.measure(&Cancel::new(), quiet)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(source.reads.load(Ordering::Relaxed), 0);
    }
}
