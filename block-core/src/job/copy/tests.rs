//! The promises of a copy, over disks in memory that answer late, out of order, or not at all.

mod compressed;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::executor::block_on;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{
    Copied, CopyError, CopyOptions, CopySource, Layers, OnReadError, PLAIN_PIECE_BYTES, Progress,
    Sparseness, TargetContents, Unreadable, Watch, WriteOrder, copy,
};
use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::driver::{BlockDriver, Child, ChildRole, Children};
use crate::error::{Error, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::limits::BlockLimits;
use crate::node::{Node, NodeOptions};
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::request::status::{DriverStatus, StatusDetail};

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    Compressed,
    Zeroes,
    Status,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Stored {
    Data,
    /// Data that happens to be zero.
    HiddenZero,
    Zero,
    Below,
}

/// A disk that yields a while before it answers, keeps a log, and fails where it is told to.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// End of each area and how it is stored.
    areas: Vec<(u64, Stored)>,
    backing: Option<Node>,
    alignment: Alignment,
    /// Takes compressed writes of multiples of this.
    cluster: Option<Alignment>,
    /// Seed of the delays; 0: none.
    delay: u64,
    /// How many requests have to be in flight before the first one is answered.
    gather: usize,
    fail: Option<(Kind, u64)>,
    log: Mutex<Vec<(Kind, ByteRange)>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

struct Started<'a>(&'a Disk);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Disk {
    fn new(bytes: Vec<u8>, areas: Vec<(u64, Stored)>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            areas,
            backing: None,
            alignment: Alignment::ONE,
            cluster: None,
            delay: 0,
            gather: 0,
            fail: None,
            log: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        }
    }

    /// A target of `len` bytes, all `fill`.
    fn target(len: usize, fill: u8) -> Self {
        Self::new(vec![fill; len], vec![(to_u64(len), Stored::Data)])
    }

    /// All data, each block of 512 bytes different.
    fn data(len: usize) -> Self {
        let blocks = (0..len).map(|i| u8::try_from((i / 512) % 255 + 1).unwrap());
        Self::new(blocks.collect(), vec![(to_u64(len), Stored::Data)])
    }

    async fn start(&self, kind: Kind, range: ByteRange) -> Result<Started<'_>> {
        self.log.lock().push((kind, range));
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        let started = Started(self);
        let mixed = (range.offset() ^ self.delay).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        for _ in 0..mixed * u64::from(self.delay != 0) {
            yield_once().await;
        }
        for _ in 0..10_000 {
            if self.most_in_flight.load(Ordering::Relaxed) >= self.gather {
                break;
            }
            yield_once().await;
        }
        match self.fail {
            Some((k, at)) if k == kind && range.offset() <= at && at < range.end() => {
                Err(Error::IO)
            }
            _ => Ok(started),
        }
    }

    fn logged(&self, kind: Kind) -> Vec<ByteRange> {
        let log = self.log.lock();
        log.iter().filter(|(k, _)| *k == kind).map(|(_, range)| *range).collect()
    }
}

async fn yield_once() {
    let mut yielded = false;
    futures::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn span(range: ByteRange) -> std::ops::Range<usize> {
    to_usize(range.offset())..to_usize(range.end())
}

#[async_trait]
impl BlockDriver for Disk {
    fn name(&self) -> &'static str {
        "test"
    }
    fn len(&self) -> u64 {
        to_u64(self.bytes.lock().len())
    }
    fn limits(&self) -> BlockLimits {
        BlockLimits {
            request_alignment: self.alignment,
            compressed_write_alignment: self.cluster,
            ..BlockLimits::default()
        }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            write_zeroes: Support::Native,
            zeroes_may_unmap: Support::Native,
            compressed_write: self.cluster.map_or(Support::None, |_| Support::Native),
            ..Capabilities::default()
        }
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn children(&self) -> Children {
        let child =
            |node: &Node| Child { name: "backing", role: ChildRole::Cow, node: node.clone() };
        self.backing.iter().map(child).collect()
    }
    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let _started = self.start(Kind::Read, range).await?;
        let mut at = range.offset();
        while at < range.end() {
            let (end, stored) = *self.areas.iter().find(|(end, _)| at < *end).unwrap();
            let part = ByteRange::from_bounds(at, end.min(range.end())).unwrap();
            let (done, len) = (to_usize(at - range.offset()), to_usize(part.len()));
            match (stored, &self.backing) {
                (Stored::Below, Some(backing)) => backing.read(part, iov.slice(done, len)).await?,
                (Stored::Data, _) => iov.copy_from(done, &self.bytes.lock()[span(part)]),
                _ => iov.fill(done, len, 0),
            }
            at = part.end();
        }
        Ok(())
    }
    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let compressed = flags.contains(RequestFlags::COMPRESSED);
        let kind = if compressed { Kind::Compressed } else { Kind::Write };
        let _started = self.start(kind, range).await?;
        iov.copy_to(0, &mut self.bytes.lock()[span(range)]);
        Ok(())
    }
    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, _: RequestFlags) -> Result<()> {
        let _started = self.start(Kind::Zeroes, range).await?;
        self.bytes.lock()[span(range)].fill(0);
        Ok(())
    }
    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let _started = self.start(Kind::Status, range).await?;
        let area = self.areas.iter().find(|(end, _)| range.offset() < *end);
        let (end, stored) = *area.unwrap();
        let len = (end - range.offset()).min(range.len());
        Ok(match stored {
            Stored::Data | Stored::HiddenZero => DriverStatus::data(len),
            Stored::Zero => DriverStatus::zero(len),
            Stored::Below => DriverStatus::unallocated(len),
        })
    }
}

impl std::fmt::Debug for Disk {
    /// The contents follow from the length.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Disk({} bytes, delay {}, {:?})", self.len(), self.delay, self.areas)
    }
}

fn node(disk: &Arc<Disk>) -> Node {
    Node::new(disk.clone(), NodeOptions { unmap: true, ..NodeOptions::default() })
}

fn source(disk: &Arc<Disk>) -> CopySource {
    CopySource::new(node(disk), disk.len())
}

/// What a guest reads.
fn contents(node: &Node, len: u64) -> Vec<u8> {
    let buf = crate::IoBuf::zeroed(to_usize(len), Alignment::ONE).unwrap();
    block_on(node.read(ByteRange::up_to(len), buf.clone().into())).unwrap();
    buf.to_vec()
}

fn stored() -> impl Strategy<Value = Stored> {
    prop_oneof![
        3 => Just(Stored::Data),
        1 => Just(Stored::HiddenZero),
        1 => Just(Stored::Zero),
        1 => Just(Stored::Below),
    ]
}

/// Areas of whole sectors, the disk's end perhaps in the middle of one.
fn disk() -> impl Strategy<Value = Disk> {
    let area = (prop_oneof![1..16u64, 1..300u64], stored());
    (prop::collection::vec(area, 1..12), 0..512u64, 0..4u64).prop_map(|(areas, cut, delay)| {
        let mut at = 0;
        let mut ends: Vec<_> = areas
            .into_iter()
            .map(|(sectors, stored)| {
                at += sectors * 512;
                (at, stored)
            })
            .collect();
        let len = to_usize(at - cut);
        ends.last_mut().unwrap().0 = at - cut;
        let bytes = (0..len).map(|i| u8::try_from((i * 7 + i / 512) % 255 + 1).unwrap()).collect();
        Disk { delay, ..Disk::new(bytes, ends) }
    })
}

fn options() -> impl Strategy<Value = CopyOptions> {
    (
        1..=16usize,
        prop_oneof![Just(WriteOrder::InOrder), Just(WriteOrder::Any)],
        prop_oneof![
            Just(Sparseness::Full),
            Just(Sparseness::Holes { min_bytes: 4096 }),
            Just(Sparseness::Holes { min_bytes: 512 }),
            Just(Sparseness::Holes { min_bytes: 16 << 20 }),
        ],
        prop_oneof![Just(TargetContents::Zeroes), Just(TargetContents::Unknown)],
        prop_oneof![Just(0u64), Just(1 << 20), Just(64 << 20)],
    )
        .prop_map(|(parallel, order, sparseness, target, memory_bytes)| CopyOptions {
            parallel,
            order,
            sparseness,
            target,
            memory_bytes,
            ..CopyOptions::default()
        })
}

fn alignment() -> impl Strategy<Value = Alignment> {
    prop_oneof![Just(Alignment::ONE), Just(Alignment::SECTOR), Just(Alignment::PAGE)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_target_reads_like_the_sources(
        top in disk(),
        base in disk(),
        second in disk(),
        options in options(),
        target_alignment in alignment(),
        delay in 0..4u64,
        longer in 0..3000u64,
    ) {
        let base = Arc::new(base);
        let top = Arc::new(Disk { backing: Some(node(&base)), ..top });
        let second = Arc::new(second);
        let (top_len, second_len) = (top.len(), second.len() + longer);
        let mut expect = contents(&node(&top), top_len);
        expect.extend(contents(&node(&second), second_len));
        let fill = if options.target == TargetContents::Zeroes { 0 } else { 0xee };
        let room = expect.len().next_multiple_of(4096);
        let target = Arc::new(Disk { delay, alignment: target_alignment, ..Disk::target(room, fill) });
        top.log.lock().clear();
        let sources = vec![
            CopySource::new(node(&top), top_len),
            CopySource::new(node(&second), second_len),
        ];
        let total = to_u64(expect.len());
        let mut seen = Vec::new();
        let copied = block_on(copy(sources, &node(&target), options, &Cancel::new(), |p| seen.push(p)))
            .unwrap();

        prop_assert!(target.bytes.lock()[..expect.len()] == expect[..]);
        prop_assert_eq!(copied.data + copied.zeroes + copied.skipped, total);
        prop_assert_eq!(seen.first(), Some(&Progress { done: 0, total }));
        prop_assert_eq!(seen.last(), Some(&Progress { done: total, total }));
        prop_assert!(seen.is_sorted_by_key(|p| p.done));
        for disk in [&top, &second, &target] {
            prop_assert_eq!(disk.in_flight.load(Ordering::Relaxed), 0);
            // One more: the scanner asks for the status of what comes next.
            prop_assert!(disk.most_in_flight.load(Ordering::Relaxed) <= options.parallel + 1);
        }
        if options.target == TargetContents::Zeroes {
            prop_assert!(target.logged(Kind::Zeroes).is_empty());
        }
        if options.sparseness == Sparseness::Full {
            prop_assert_eq!(copied.data, total);
        }
        let longest = (options.memory_bytes / to_u64(options.parallel)).max(64 << 10);
        prop_assert!(top.logged(Kind::Read).iter().all(|range| range.len() <= longest));
    }

    #[test]
    fn copying_the_layers_above_a_base_onto_the_base_gives_what_the_top_reads_as(
        top in disk(),
        middle in disk(),
        base in disk(),
        options in options(),
    ) {
        // The target holds what the base reads as, and is long enough.
        let base = Arc::new(base);
        let middle = Arc::new(Disk { backing: Some(node(&base)), ..middle });
        let middle_node = node(&middle);
        let base_node = middle_node.backing().unwrap();
        let top = Arc::new(Disk { backing: Some(middle_node), ..top });
        let len = top.len();
        let expect = contents(&node(&top), len);
        let room = to_usize(len.max(base.len())).next_multiple_of(4096);
        let mut before = contents(&base_node, base.len());
        before.resize(room, 0);
        let target = Arc::new(Disk { bytes: Mutex::new(before.clone()), ..Disk::target(room, 0) });
        let options = CopyOptions { target: TargetContents::Unknown, ..options };
        let layers = Layers::Above(base_node);
        let sources = vec![CopySource { layers, ..CopySource::new(node(&top), len) }];
        let copied =
            block_on(copy(sources, &node(&target), options, &Cancel::new(), |_| ())).unwrap();

        let after = target.bytes.lock();
        prop_assert!(after[..expect.len()] == expect[..]);
        prop_assert!(after[expect.len()..] == before[expect.len()..]);
        prop_assert_eq!(copied.data + copied.zeroes + copied.below, len);
    }

    #[test]
    fn in_order_writes_begin_in_order(source_disk in disk(), parallel in 1..=16usize, delay in 1..4u64) {
        let source_disk = Arc::new(source_disk);
        let len = to_usize(source_disk.len());
        let target = Arc::new(Disk { delay, ..Disk::target(len.next_multiple_of(4096), 1) });
        let options = CopyOptions { parallel, memory_bytes: 0, ..CopyOptions::default() };
        block_on(copy(vec![source(&source_disk)], &node(&target), options, &Cancel::new(), |_| ()))
            .unwrap();
        // The runs inside of a piece follow one another; pieces may overlap in time.
        let mut starts = std::collections::BTreeMap::new();
        for (index, (_, range)) in target.log.lock().iter().enumerate() {
            starts.entry(range.offset() / (64 << 10)).or_insert(index);
        }
        prop_assert!(starts.values().is_sorted());
    }

    #[test]
    fn a_cancelled_copy_says_how_far_it_got(
        source_disk in disk(), options in options(), after in 0..12usize, delay in 0..4u64,
    ) {
        let source_disk = Arc::new(source_disk);
        let expect = contents(&node(&source_disk), source_disk.len());
        let target = Arc::new(Disk { delay, ..Disk::target(expect.len().next_multiple_of(4096), 0xee) });
        let options = CopyOptions { target: TargetContents::Unknown, ..options };
        let cancel = Cancel::new();
        let (handle, mut events) = (cancel.clone(), 0);
        let result = block_on(copy(vec![source(&source_disk)], &node(&target), options, &cancel, |_| {
            if events == after {
                handle.cancel();
            }
            events += 1;
        }));
        match result {
            Ok(_) => prop_assert_eq!(cancel.done(), to_u64(expect.len())),
            Err(CopyError::Cancelled { done }) => {
                prop_assert_eq!(cancel.done(), done);
                let done = to_usize(done);
                prop_assert!(target.bytes.lock()[..done] == expect[..done]);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        for disk in [&source_disk, &target] {
            prop_assert_eq!(disk.in_flight.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn an_error_is_reported_where_it_happened_and_nothing_is_left_in_flight(
        options in options(),
        kind in prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Zeroes), Just(Kind::Status)],
        at in 0..2_000_000u64,
        delay in 0..4u64,
    ) {
        let mut sources = Disk::data(2_000_000);
        let ends = [(500_000, Stored::Data), (900_000, Stored::Zero), (2_000_000, Stored::Data)];
        sources.areas = ends.to_vec();
        let mut target = Disk { delay, ..Disk::target(2_000_000, 0xee) };
        let failing = if matches!(kind, Kind::Read | Kind::Status) { &mut sources } else { &mut target };
        failing.fail = Some((kind, at));
        let (sources, target) = (Arc::new(sources), Arc::new(target));
        let options = CopyOptions { target: TargetContents::Unknown, ..options };
        let cancel = Cancel::new();
        let result = block_on(copy(vec![source(&sources)], &node(&target), options, &cancel, |_| ()));
        for disk in [&sources, &target] {
            prop_assert_eq!(disk.in_flight.load(Ordering::Relaxed), 0);
        }
        let reached = target.log.lock().iter().any(|(k, range)| *k == kind && span(*range).contains(&to_usize(at)))
            || sources.log.lock().iter().any(|(k, range)| *k == kind && span(*range).contains(&to_usize(at)));
        prop_assert_eq!(result.is_err(), reached);
        match result {
            Ok(_) => {}
            Err(CopyError::Read { source_index: 0, offset, error: Error::IO }) => {
                prop_assert_eq!(kind, Kind::Read);
                prop_assert!(offset <= at);
            }
            Err(CopyError::Status { source_index: 0, offset, error: Error::IO }) => {
                prop_assert_eq!(kind, Kind::Status);
                prop_assert!(offset <= at);
            }
            Err(CopyError::Write { offset, error: Error::IO }) => {
                prop_assert!(matches!(kind, Kind::Write | Kind::Zeroes));
                prop_assert!(offset <= at);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        let done = to_usize(cancel.done());
        let expect = contents_without_errors(&sources);
        prop_assert!(target.bytes.lock()[..done] == expect[..done]);
    }
}

fn contents_without_errors(disk: &Disk) -> Vec<u8> {
    let mut bytes = disk.bytes.lock().clone();
    let mut start = 0;
    for (end, stored) in &disk.areas {
        if *stored != Stored::Data {
            bytes[start..to_usize(*end)].fill(0);
        }
        start = to_usize(*end);
    }
    bytes
}

#[test]
fn what_is_known_to_be_zero_is_never_read() {
    let (piece, len) = (PLAIN_PIECE_BYTES, 8 * PLAIN_PIECE_BYTES);
    let mut disk = Disk::data(to_usize(len));
    disk.areas = vec![(piece, Stored::Data), (7 * piece, Stored::Zero), (len, Stored::Data)];
    let disk = Arc::new(disk);
    let target = Arc::new(Disk::target(to_usize(len), 0));
    let options = CopyOptions { target: TargetContents::Zeroes, ..CopyOptions::default() };
    let copied =
        block_on(copy(vec![source(&disk)], &node(&target), options, &Cancel::new(), |_| ()))
            .unwrap();
    assert_eq!(copied, Copied { data: 2 * piece, zeroes: 0, skipped: 6 * piece, below: 0 });
    let first = ByteRange::up_to(piece);
    assert_eq!(disk.logged(Kind::Read), [first, first.shifted(7 * piece).unwrap()]);
    assert_eq!(target.logged(Kind::Write), disk.logged(Kind::Read));
}

#[test]
fn fragments_are_joined_into_pieces() {
    let mut disk = Disk::data(4 << 20);
    disk.areas = (1..=1024).map(|i| (i * 4096, Stored::Data)).collect();
    let disk = Arc::new(disk);
    let target = Arc::new(Disk::target(4 << 20, 0));
    block_on(copy(
        vec![source(&disk)],
        &node(&target),
        CopyOptions::default(),
        &Cancel::new(),
        |_| (),
    ))
    .unwrap();
    assert_eq!(to_u64(disk.logged(Kind::Read).len()), (4 << 20) / PLAIN_PIECE_BYTES);
}

#[test]
fn parallel_reads_are_in_flight_together() {
    let disk = Arc::new(Disk { gather: 8, ..Disk::data(16 << 20) });
    let target = Arc::new(Disk::target(16 << 20, 0));
    block_on(copy(
        vec![source(&disk)],
        &node(&target),
        CopyOptions::default(),
        &Cancel::new(),
        |_| (),
    ))
    .unwrap();
    assert_eq!(disk.most_in_flight.load(Ordering::Relaxed), 8);
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let refused = |options: CopyOptions| {
        let target = Arc::new(Disk::target(4096, 0));
        let disk = Arc::new(Disk::data(4096));
        let (target, cancel) = (node(&target), Cancel::new());
        let copied = copy(vec![source(&disk)], &target, options, &cancel, |_| ());
        match block_on(copied).unwrap_err() {
            CopyError::Option { what, .. } => what,
            other => panic!("{other}"),
        }
    };
    let options = CopyOptions::default();
    assert_eq!(refused(CopyOptions { parallel: 0, ..options }), "parallel");
    assert_eq!(refused(CopyOptions { parallel: 17, ..options }), "parallel");
    let sparseness = Sparseness::Holes { min_bytes: 511 };
    assert_eq!(refused(CopyOptions { sparseness, ..options }), "sparse size");
}

/// Keeps what it hears, and holds writes back for as many turns of the executor as were asked for.
#[derive(Default)]
struct Listener {
    unreadable: Vec<Unreadable>,
    paced: u64,
}

impl Watch for &mut Listener {
    fn progress(&mut self, _: Progress) {}
    fn unreadable(&mut self, part: Unreadable) {
        self.unreadable.push(part);
    }
    fn before_write(&mut self, bytes: u64) -> Option<futures::future::BoxFuture<'static, ()>> {
        self.paced += bytes;
        Some(Box::pin(yield_once()))
    }
}

#[test]
fn salvaging_zeroes_the_one_block_that_cannot_be_read() {
    for (alignment, block) in [(Alignment::ONE, 512), (Alignment::PAGE, 4096)] {
        for bad in [0, 100_000, (1 << 20) - 1] {
            let fail = Some((Kind::Read, bad));
            let disk = Arc::new(Disk { alignment, fail, ..Disk::data(1 << 20) });
            let target = Arc::new(Disk::target(1 << 20, 0));
            let on_read_error = OnReadError::Salvage;
            let options = CopyOptions { on_read_error, ..CopyOptions::default() };
            let mut listener = Listener::default();
            let sources = vec![source(&disk)];
            block_on(copy(sources, &node(&target), options, &Cancel::new(), &mut listener))
                .unwrap();

            let start = bad / block * block;
            let range = ByteRange::new(start, block).unwrap();
            let error = Error::IO;
            assert_eq!(listener.unreadable, [Unreadable { source_index: 0, range, error }]);
            let mut expect = disk.bytes.lock().clone();
            expect[span(range)].fill(0);
            assert!(*target.bytes.lock() == expect, "{bad}");
        }
    }
}

#[test]
fn salvaging_reads_what_has_no_status() {
    let disk = Arc::new(Disk { fail: Some((Kind::Status, 300_000)), ..Disk::data(1 << 20) });
    let target = Arc::new(Disk::target(1 << 20, 0));
    let options = CopyOptions { on_read_error: OnReadError::Salvage, ..CopyOptions::default() };
    block_on(copy(vec![source(&disk)], &node(&target), options, &Cancel::new(), |_| ())).unwrap();
    assert!(*target.bytes.lock() == *disk.bytes.lock());
    assert!(!disk.logged(Kind::Status).is_empty());
}

#[test]
fn only_data_waits_for_its_turn() {
    let areas = vec![(1 << 20, Stored::Data), (3 << 20, Stored::Zero)];
    let disk = Arc::new(Disk { areas, ..Disk::data(3 << 20) });
    let target = Arc::new(Disk::target(3 << 20, 1));
    let mut listener = Listener::default();
    let options = CopyOptions::default();
    let sources = vec![source(&disk)];
    block_on(copy(sources, &node(&target), options, &Cancel::new(), &mut listener)).unwrap();
    assert_eq!(listener.paced, 1 << 20);
    assert!(target.bytes.lock()[1 << 20..].iter().all(|byte| *byte == 0));
}
