//! Races that are reached on purpose: one request of an image's file is held at a point, and the other half of
//! the race is played.
//!
//! A [`Scene`] is an open image, what lies below it, and what its guest must see. It counts in *units* of the
//! format: clusters, grains. Threads that have no scene [`hammer`] the image. At the end [`check_contents`]
//! holds what the closed image holds against what its guest must see.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use block_core::driver::BlockDriver;
use block_core::io::exec::block_on;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, IoBuf, Node, RequestFlags, Result};
use parking_lot::Mutex;

use crate::disk::fault::Fault;
use crate::disk::hold::{Hold, Point};
use crate::disk::record::Record;
use crate::disk::tap::{Call, Kind, Tapped};
use crate::exec::{Exec, JoinHandle};
use crate::op::{contents, io_vec};

/// On whose behalf the request is that a race is about.
pub const HELD: u64 = 1;

/// Bytes that a guest must see; `None` where a byte may be anything.
pub type Expected = Arc<Mutex<Vec<Option<u8>>>>;

/// The taps on the file that a race is about, the last one nearest to the disk.
#[derive(Clone)]
pub struct Taps {
    /// Holds requests.
    pub hold: Arc<Hold>,
    /// Fails them.
    pub fault: Arc<Fault>,
    /// What the disk got: nothing that is held.
    pub record: Arc<Record>,
}

impl Taps {
    /// Taps on `below`, and the driver that has them.
    pub fn on(below: Arc<dyn BlockDriver>) -> (Self, Arc<dyn BlockDriver>) {
        let taps = Self { hold: Hold::new(), fault: Fault::new(), record: Record::new() };
        let below = Tapped::new(below, Arc::clone(&taps.record));
        let below = Tapped::new(below, Arc::clone(&taps.fault));
        let below = Tapped::new(below, Arc::clone(&taps.hold));
        (taps, below)
    }
}

/// An open image, what lies below it, and what its guest must see.
#[derive(Clone)]
pub struct Scene {
    /// Where the race is played.
    pub exec: Exec,
    /// Holds requests of the file.
    pub hold: Arc<Hold>,
    /// Fails them.
    pub fault: Arc<Fault>,
    /// What the disk got: nothing that is held.
    pub record: Arc<Record>,
    /// The image.
    pub node: Node,
    /// Bytes of a unit, a power of two.
    pub unit: u64,
    /// What the guest must see.
    pub expected: Expected,
    next_op: Arc<AtomicUsize>,
}

/// Whether a place in the file was given out again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Reused {
    /// Something was written there.
    Yes,
    /// Nothing was.
    No,
}

impl Scene {
    /// A race on `node`, over the file that has `taps`.
    pub fn new(exec: Exec, taps: Taps, node: Node, unit: u64, expected: Expected) -> Self {
        let Taps { hold, fault, record } = taps;
        Self { exec, hold, fault, record, node, unit, expected, next_op: Arc::new(1.into()) }
    }

    /// `len` bytes from byte `within` of a unit on.
    pub fn part(&self, number: u64, within: u64, len: u64) -> ByteRange {
        range(number * self.unit + within, len)
    }

    /// All of a unit.
    pub fn whole(&self, number: u64) -> ByteRange {
        self.part(number, 0, self.unit)
    }

    /// The unit of the file that holds the byte at `offset`: places are multiples of its length.
    pub fn host(&self, offset: u64) -> ByteRange {
        range(offset / self.unit * self.unit, self.unit)
    }

    /// Starts a write on behalf of `label`. What it writes is expected from now on.
    pub fn start_write(&self, label: u64, range: ByteRange) -> JoinHandle<Result<()>> {
        let op = u32::try_from(self.next_op.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        let bytes = contents(op, range);
        self.expect(range, bytes.iter().copied().map(Some));
        let iov = io_vec(&bytes, Alignment::ONE, 1);
        // Past the request layer, which would keep requests apart that overlap.
        let driver = Arc::clone(self.node.driver());
        let write = driver.pwritev(range, iov, RequestFlags::empty());
        self.exec.spawn_labelled(label, format!("write {range}"), write)
    }

    /// A write that works.
    pub async fn write(&self, range: ByteRange) {
        assert_eq!(self.start_write(HELD + 1, range).await, Ok(()), "write {range}");
    }

    /// Discards at the driver: the layer would wait for what runs in the range.
    pub async fn discard(&self, range: ByteRange) {
        let discarded = Arc::clone(self.node.driver()).pdiscard(range).await;
        assert_eq!(discarded, Ok(()), "discard {range}");
        self.expect_zeroes(range);
    }

    /// What the guest reads.
    pub async fn read(&self, range: ByteRange) -> Vec<u8> {
        let buf = buffer(range);
        assert_eq!(self.node.read(range, buf.clone().into()).await, Ok(()), "read {range}");
        buf.to_vec()
    }

    /// Makes the guest expect these bytes.
    pub fn expect(&self, range: ByteRange, bytes: impl Iterator<Item = Option<u8>>) {
        let mut expected = self.expected.lock();
        for (at, byte) in (range.offset()..range.end()).zip(bytes) {
            expected[to_usize(at)] = byte;
        }
    }

    /// Makes the guest expect zeroes.
    pub fn expect_zeroes(&self, range: ByteRange) {
        self.expect(range, std::iter::repeat(Some(0)));
    }

    /// What must be there now.
    pub fn expected(&self, range: ByteRange) -> Vec<u8> {
        let expected = self.expected.lock();
        let bytes = &expected[to_usize(range.offset())..to_usize(range.end())];
        let known = |byte: &Option<u8>| byte.unwrap_or_else(|| panic!("{range} may be anything"));
        bytes.iter().map(known).collect()
    }

    /// Holds what arrives for [`HELD`] and is of this kind, before anything is done.
    pub fn hold(&self, kind: Kind) {
        self.hold.hold(Point::Before, move |call| call.kind == kind && call.label == Some(HELD));
    }

    /// The one request that is held, once it is there.
    pub async fn held(&self) -> Call {
        let mut calls = self.hold.arrived(1).await;
        self.hold.stop_holding();
        calls.pop().unwrap_or_else(|| panic!("nothing is held"))
    }

    /// Returns when nothing can go on by itself any more.
    pub async fn idle(&self) {
        self.exec.sleep(Duration::from_secs(1)).await;
    }

    /// Writes and flushes units from `from` to `to`, one by one: what was freed before can be given out
    /// again. Says whether `host` was.
    pub async fn churn(&self, from: u64, to: u64, host: ByteRange) -> Reused {
        self.record.take();
        for number in from..to {
            self.write(self.whole(number)).await;
            assert_eq!(self.node.flush().await, Ok(()), "flush");
        }
        self.reused(host)
    }

    /// Whether something was written to `host` since the last look.
    pub fn reused(&self, host: ByteRange) -> Reused {
        let writes = |call: &Call| matches!(call.kind, Kind::Write | Kind::Zero);
        let hit = |call: &Call| writes(call) && call.range.overlaps(host);
        if self.record.take().iter().any(hit) { Reused::Yes } else { Reused::No }
    }
}

/// Panics unless the guest sees what it must.
pub fn check_contents(contents: &[u8], expected: &[Option<u8>], seed: u64) {
    assert_eq!(contents.len(), expected.len(), "seed {seed}");
    let wrong = contents.iter().zip(expected).position(|(is, want)| want.is_some_and(|b| b != *is));
    assert_eq!(wrong, None, "seed {seed}: wrong contents from there on");
}

/// Threads that hammer one image.
const THREADS: u64 = 4;

/// Reads, writes, zeroes and flushes from several threads, each in units of its own, so many `rounds` each;
/// what the image must hold afterwards. It was empty.
pub fn hammer(node: &Node, unit: u64, rounds: u32) -> Vec<Option<u8>> {
    let owners: Vec<_> = std::thread::scope(|scope| {
        let spawn = |number| scope.spawn(move || hammer_some(node, number, rounds, unit));
        let running: Vec<_> = (0..THREADS).map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect::<Vec<Vec<u32>>>()
    });
    let owner = |at: u64| owners[to_usize(at % THREADS)][to_usize(at)];
    let bytes = |at: u64| written(owner(at), range(at * unit, unit));
    (0..node.len() / unit).flat_map(bytes).map(Some).collect()
}

/// What a thread does with its own units: those whose number is `number` modulo `THREADS`.
fn hammer_some(node: &Node, number: u64, rounds: u32, unit: u64) -> Vec<u32> {
    let seed = u64::from(rounds) + number;
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let count = node.len() / unit;
    // Who wrote a unit last; zero for nobody.
    let mut owners = vec![0; to_usize(count)];
    for round in 1..=rounds {
        let at = next(count / THREADS) * THREADS + number;
        let range = range(at * unit, unit);
        let owner = &mut owners[to_usize(at)];
        let place = format!("thread {number}, round {round}");
        match next(16) {
            0 => assert_eq!(block_on(node.flush()), Ok(()), "{place}"),
            1..=4 => {
                let buf = buffer(range);
                assert_eq!(block_on(node.read(range, buf.clone().into())), Ok(()), "{place}");
                assert_eq!(buf.to_vec(), written(*owner, range), "{place}");
            }
            5 => {
                let zeroed = block_on(node.write_zeroes(range, RequestFlags::MAY_UNMAP));
                assert_eq!(zeroed, Ok(()), "{place}");
                *owner = 0;
            }
            _ => {
                *owner = round * 8 + u32::try_from(number).unwrap_or(0);
                let iov = io_vec(&written(*owner, range), Alignment::ONE, 1);
                let written = block_on(node.write(range, iov, RequestFlags::empty()));
                assert_eq!(written, Ok(()), "{place}");
            }
        }
    }
    owners
}

fn written(owner: u32, range: ByteRange) -> Vec<u8> {
    match owner {
        0 => vec![0; to_usize(range.len())],
        owner => contents(owner, range),
    }
}

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap_or_else(|error| panic!("{offset:#x}+{len:#x}: {error}"))
}

fn buffer(range: ByteRange) -> IoBuf {
    let buf = IoBuf::zeroed(to_usize(range.len()), Alignment::ONE);
    buf.unwrap_or_else(|error| panic!("{range}: {error}"))
}
