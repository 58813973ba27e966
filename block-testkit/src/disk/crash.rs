//! A disk in memory that remembers what is not stable yet, and says what it may hold after a crash.
//!
//! Reads see every write that has finished, as through a page cache. Beside that *live* state there is
//! the *stable* one, which changes only when a flush (or a FUA write) ends. What lies between the two is
//! pending: [`CrashDisk::crash`] gives the stable state with some of it added, as a disk may choose.
//!
//! The rules, for a regular file on a disk with sectors of 512 bytes:
//! * A sector holds its stable contents, or what it held after any pending change of it. Sectors choose
//!   on their own, so a write may be torn between them, and a later write may be there without an
//!   earlier one.
//! * A request that has not returned may be there too, whole or torn.
//! * A flush covers what had returned when it arrived. A FUA write covers itself.
//! * Discards and zero writes are changes like others.
//! * The file's length goes through its changes in order, and stops anywhere. Data beyond the end that
//!   it stops at is lost; what a growing length adds is zero until it is written.
//!
//! A crash changes nothing here: one moment can crash many times, and the run goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::error::Result;
use block_core::range::{to_u64, to_usize};
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{Alignment, BlockLimits, ByteRange, Capabilities, IoVec, RequestFlags};
use parking_lot::Mutex;
use rand::Rng;

use super::mem::{Discarded, all_capabilities};
use super::tap::Kind;
use crate::exec::yield_now;

/// Bytes that reach the disk together or not at all.
pub const SECTOR: u64 = 512;

type Watcher = Arc<dyn Fn(Moment) + Send + Sync>;

/// When a watcher is called.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A change has arrived and is not visible yet.
    Arrived(Kind),
    /// A change is visible and has not returned yet.
    Visible(Kind),
    /// A flush has ended.
    Flushed,
}

/// What a flush does.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Flushes {
    /// What it promises.
    Kept,
    /// Nothing: for tests of tests.
    Lost,
}

/// The disk. See the module.
pub struct CrashDisk {
    discarded: Discarded,
    flushes: Flushes,
    /// Called at every moment at which a crash may have another result. Not called under the lock.
    watcher: Mutex<Option<Watcher>>,
    /// Guards everything; held while bytes are copied, never across a wait.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What reads see.
    live: Vec<u8>,
    /// What a crash cannot take away.
    stable: Vec<u8>,
    /// Visible and not stable, in the order in which it became visible.
    pending: Vec<Change>,
    /// Arrived and not visible, by number.
    arriving: BTreeMap<u64, Change>,
    requests: u64,
}

/// A change of the disk.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    kind: Kind,
    /// The bytes that it changes: as they were asked for while it arrives, whole sectors afterwards.
    range: ByteRange,
    data: Data,
    /// The length that the file has because of it, where that is another one.
    len: Option<u64>,
    /// Sectors that a later FUA write has settled.
    settled: Vec<ByteRange>,
    returned: bool,
}

#[derive(Clone, Debug)]
enum Data {
    Bytes(Vec<u8>),
    Filled(u8),
    /// A change of length only.
    None,
}

/// What a crash has left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrashImage {
    /// All bytes of the file.
    pub bytes: Vec<u8>,
    /// What became of each pending change.
    pub fates: Vec<Fate>,
}

/// What became of a change that was not stable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fate {
    /// Number of the request.
    pub number: u64,
    /// What it was.
    pub kind: Kind,
    /// Its range, in whole sectors once it was visible; for a truncate up to the new length.
    pub range: ByteRange,
    /// Whether it was visible.
    pub visible: bool,
    /// Sectors that reached the disk, of how many.
    pub kept: (u64, u64),
}

impl fmt::Display for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes;", self.bytes.len())?;
        for Fate { number, kind, range, visible, kept: (kept, of) } in &self.fates {
            let state = if *visible { "" } else { " in flight" };
            write!(f, " #{number} {kind} {range}{state} {kept}/{of};")?;
        }
        Ok(())
    }
}

/// How a crash chooses among the pending changes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Mood {
    /// Everything, or nothing.
    All(bool),
    /// The first ones.
    First(u64),
    /// All but one.
    AllBut(u64),
    /// One alone.
    Only(u64),
    /// Each by a coin.
    Each,
    /// Each sector by a coin.
    Torn,
    /// These, by their bits.
    Mask(u64),
}

impl CrashDisk {
    /// A file that holds `bytes`, all of them stable. What is discarded reads as zeroes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Self::with(bytes, Discarded::Zeroes, Flushes::Kept)
    }

    /// [`CrashDisk::new`] where what is discarded reads as `discarded`, and with flushes that may lie.
    pub fn with(bytes: Vec<u8>, discarded: Discarded, flushes: Flushes) -> Arc<Self> {
        let state = State { live: bytes.clone(), stable: bytes, ..State::default() };
        Arc::new(Self { discarded, flushes, watcher: Mutex::default(), state: Mutex::new(state) })
    }

    /// Calls `watcher` at every moment at which a crash may have another result than before.
    pub fn watch(&self, watcher: impl Fn(Moment) + Send + Sync + 'static) {
        *self.watcher.lock() = Some(Arc::new(watcher));
    }

    /// What reads see.
    pub fn to_vec(&self) -> Vec<u8> {
        self.state.lock().live.clone()
    }

    /// What no crash takes away.
    pub fn stable(&self) -> Vec<u8> {
        self.state.lock().stable.clone()
    }

    /// How many changes a crash may take away, or leave in part.
    pub fn pending(&self) -> usize {
        let state = self.state.lock();
        state.pending.len() + state.arriving.len()
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> u64 {
        self.state.lock().requests
    }

    /// What the disk holds if it crashes now, as `rng` chooses.
    pub fn crash(&self, rng: &mut impl Rng) -> CrashImage {
        let state = self.state.lock();
        let count = to_u64(state.pending.len() + state.arriving.len()).max(1);
        let one = rng.random_range(0..count);
        let mood = match rng.random_range(0..16u8) {
            0 => Mood::All(false),
            1 => Mood::All(true),
            2 | 3 => Mood::First(one),
            4..=6 => Mood::AllBut(one),
            7..=9 => Mood::Only(one),
            10 | 11 => Mood::Each,
            _ => Mood::Torn,
        };
        state.image(mood, rng)
    }

    /// What the disk holds if exactly those pending changes have reached it, whole, whose bits are set in
    /// `mask`: visible ones first, in order.
    pub fn crash_with(&self, mask: u64, rng: &mut impl Rng) -> CrashImage {
        self.state.lock().image(Mood::Mask(mask), rng)
    }

    fn tell(&self, moment: Moment) {
        let watcher = self.watcher.lock().clone();
        if let Some(watcher) = watcher {
            watcher(moment);
        }
    }

    /// A change from its arrival to its return.
    async fn change(&self, kind: Kind, range: ByteRange, data: Data, flags: RequestFlags) {
        let len = (kind == Kind::Truncate).then_some(range.len());
        let number = self.state.lock().arrive(kind, range, data, len);
        self.tell(Moment::Arrived(kind));
        yield_now().await;
        let fua = flags.contains(RequestFlags::FUA);
        self.state.lock().show(number);
        self.tell(Moment::Visible(kind));
        yield_now().await;
        let mut state = self.state.lock();
        state.give_back(number);
        if fua {
            state.settle(number);
        }
    }
}

impl State {
    fn arrive(&mut self, kind: Kind, range: ByteRange, data: Data, len: Option<u64>) -> u64 {
        let number = self.requests;
        self.requests += 1;
        let settled = Vec::new();
        let change = Change { number, kind, range, data, len, settled, returned: false };
        self.arriving.insert(number, change);
        number
    }

    /// Makes a change visible.
    fn show(&mut self, number: u64) {
        let Some(mut change) = self.arriving.remove(&number) else { return };
        change.show(&mut self.live);
        self.pending.push(change);
    }

    fn give_back(&mut self, number: u64) {
        for change in self.pending.iter_mut().filter(|change| change.number == number) {
            change.returned = true;
        }
    }

    /// Number of pending changes that a flush which arrives now covers: the last that has returned, and
    /// all that became visible before it.
    fn covered(&self) -> Option<u64> {
        self.pending.iter().rev().find(|change| change.returned).map(|change| change.number)
    }

    /// Makes everything up to the change `last` stable.
    fn flushed(&mut self, last: Option<u64>) {
        let at = self.pending.iter().position(|change| Some(change.number) == last);
        let Some(at) = at else { return };
        for change in self.pending.drain(..=at) {
            change.put(&mut self.stable, &mut |_| true, true);
        }
    }

    /// Makes a FUA write stable that has returned.
    fn settle(&mut self, number: u64) {
        if self.pending.iter().any(|change| change.len.is_some()) {
            // The length is part of what it promises, and lengths change in order.
            return self.flushed(Some(number));
        }
        let Some(at) = self.pending.iter().position(|c| c.number == number) else { return };
        let change = self.pending.remove(at);
        change.put(&mut self.stable, &mut |_| true, true);
        for older in self.pending.iter_mut().take(at) {
            older.settled.push(change.range);
        }
    }

    /// What a crash leaves.
    fn image(&self, mood: Mood, rng: &mut impl Rng) -> CrashImage {
        let mut bytes = self.stable.clone();
        let mut fates = Vec::new();
        // Requests in flight overlap in time, so their order is the disk's.
        let mut arriving: Vec<_> = self.arriving.values().cloned().collect();
        for at in (1..arriving.len()).rev() {
            arriving.swap(at, rng.random_range(0..=at));
        }
        for change in &mut arriving {
            change.show(&mut self.live.clone());
        }
        let visible = self.pending.iter().map(|change| (change, true));
        let changes = visible.chain(arriving.iter().map(|change| (change, false)));
        let mut len_goes_on = true;
        for (index, (change, visible)) in (0..).zip(changes) {
            let whole = mood.keeps(index, rng);
            let torn = whole.is_none();
            if change.len.is_some() {
                // Lengths stop at the first change that is not there.
                len_goes_on &= whole.unwrap_or_else(|| rng.random());
            }
            let mut kept = (0, 0);
            let mut keep = |_| {
                let keeps = if torn { rng.random() } else { whole == Some(true) };
                kept = (kept.0 + u64::from(keeps), kept.1 + 1);
                keeps
            };
            change.put(&mut bytes, &mut keep, len_goes_on);
            if let Data::None = change.data {
                kept = (u64::from(len_goes_on), 1);
            }
            let Change { number, kind, range, .. } = *change;
            fates.push(Fate { number, kind, range, visible, kept });
        }
        CrashImage { bytes, fates }
    }
}

impl Mood {
    /// Whether the change `index` reaches the disk; `None`: in part.
    fn keeps(self, index: u64, rng: &mut impl Rng) -> Option<bool> {
        match self {
            Self::All(all) => Some(all),
            Self::First(count) => Some(index < count),
            Self::AllBut(one) => Some(index != one),
            Self::Only(one) => Some(index == one),
            Self::Each => Some(rng.random()),
            Self::Torn => (rng.random_range(0..3u8) > 0).then(|| rng.random()),
            Self::Mask(mask) => Some(index < 64 && mask >> index & 1 != 0),
        }
    }
}

impl Change {
    /// Applies it to `live`, and widens it to what its sectors hold from then on.
    fn show(&mut self, live: &mut Vec<u8>) {
        if self.kind == Kind::Truncate {
            live.resize(to_usize(self.range.len()), 0);
            return;
        }
        let old_len = to_u64(live.len());
        if self.range.end() > old_len && self.kind != Kind::Discard {
            live.resize(to_usize(self.range.end()), 0);
            self.len = Some(self.range.end());
        }
        let len = to_u64(live.len());
        let inside = self.range.intersect(ByteRange::up_to(len));
        if inside.is_empty() {
            self.data = Data::None;
            return;
        }
        let at = to_usize(inside.offset())..to_usize(inside.end());
        match &self.data {
            Data::Bytes(bytes) => live[at.clone()].copy_from_slice(&bytes[..at.len()]),
            Data::Filled(byte) => live[at].fill(*byte),
            Data::None => {}
        }
        let sectors = inside.expand(SECTORS).intersect(ByteRange::up_to(len));
        let whole = sectors == self.range;
        self.range = sectors;
        if !(whole && matches!(self.data, Data::Filled(_))) {
            let at = to_usize(sectors.offset())..to_usize(sectors.end());
            self.data = Data::Bytes(live[at].to_vec());
        }
    }

    /// Applies the sectors that `keep` wants to `image`, and the length if `resize` says so.
    fn put(&self, image: &mut Vec<u8>, keep: &mut dyn FnMut(u64) -> bool, resize: bool) {
        if let Some(len) = self.len.filter(|_| resize) {
            image.resize(to_usize(len), 0);
        }
        if matches!(self.data, Data::None) {
            return;
        }
        let mut rest = self.range;
        while !rest.is_empty() {
            let (sector, tail) = rest.split_at(SECTOR);
            rest = tail;
            if self.settled.iter().any(|settled| settled.contains(sector)) || !keep(sector.offset())
            {
                continue;
            }
            let there = sector.intersect(ByteRange::up_to(to_u64(image.len())));
            if there.is_empty() {
                continue;
            }
            let at = to_usize(there.offset())..to_usize(there.end());
            let from = to_usize(sector.offset() - self.range.offset());
            match &self.data {
                Data::Bytes(bytes) => {
                    image[at.clone()].copy_from_slice(&bytes[from..from + at.len()]);
                }
                Data::Filled(byte) => image[at].fill(*byte),
                Data::None => {}
            }
        }
    }
}

const SECTORS: Alignment = Alignment::SECTOR;

#[async_trait]
impl BlockDriver for CrashDisk {
    fn name(&self) -> &'static str {
        "test-crash"
    }

    fn len(&self) -> u64 {
        to_u64(self.state.lock().live.len())
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { grows_on_write: true, ..all_capabilities() }
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        yield_now().await;
        let state = self.state.lock();
        let len = to_u64(state.live.len());
        let there = range.intersect(ByteRange::up_to(len));
        if !there.is_empty() {
            iov.copy_from(0, &state.live[to_usize(there.offset())..to_usize(there.end())]);
        }
        iov.fill(to_usize(there.len()), to_usize(range.len() - there.len()), 0);
        Ok(())
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.change(Kind::Write, range, Data::Bytes(iov.to_vec()), flags).await;
        Ok(())
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.change(Kind::Zero, range, Data::Filled(0), flags).await;
        Ok(())
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let byte = match self.discarded {
            Discarded::Kept => return Ok(()),
            Discarded::Zeroes => 0,
            Discarded::Junk => 0xdd,
        };
        self.change(Kind::Discard, range, Data::Filled(byte), RequestFlags::empty()).await;
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        yield_now().await;
        Ok(DriverStatus::data(range.len()))
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        let last = {
            let mut state = self.state.lock();
            state.requests += 1;
            state.covered()
        };
        yield_now().await;
        yield_now().await;
        if self.flushes == Flushes::Kept {
            self.state.lock().flushed(last);
        }
        self.tell(Moment::Flushed);
        Ok(())
    }

    async fn truncate(self: Arc<Self>, len: u64, _: Exactness, _: Prealloc) -> Result<()> {
        let range = ByteRange::up_to(len);
        self.change(Kind::Truncate, range, Data::None, RequestFlags::empty()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_core::Node;
    use block_core::node::NodeOptions;
    use futures::executor::block_on;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeSet;

    fn node(disk: &Arc<CrashDisk>) -> Node {
        Node::new(Arc::clone(disk) as _, NodeOptions { unmap: true, ..NodeOptions::default() })
    }

    fn span(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    fn write(node: &Node, start: u64, end: u64, byte: u8, flags: RequestFlags) {
        let range = span(start, end);
        let iov = crate::op::io_vec(&vec![byte; to_usize(range.len())], Alignment::ONE, 1);
        block_on(node.write(range, iov, flags)).unwrap();
    }

    /// All images of many crashes.
    fn images(disk: &CrashDisk) -> BTreeSet<Vec<u8>> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..2000).map(|_| disk.crash(&mut rng).bytes).collect()
    }

    /// Per sector, the values that are found in it; a sector of mixed bytes is `None`.
    fn values(disk: &CrashDisk, sector: usize) -> BTreeSet<Option<u8>> {
        let images = images(disk);
        let of = images.iter().filter_map(|image| image.get(sector * 512..sector * 512 + 512));
        of.map(|s| s.iter().all(|b| *b == s[0]).then(|| s[0])).collect()
    }

    #[test]
    fn what_was_flushed_is_always_there_and_the_rest_may_be() {
        let disk = CrashDisk::new(vec![0; 2048]);
        let node = node(&disk);
        write(&node, 0, 1024, 1, RequestFlags::empty());
        assert_eq!(images(&disk).len(), 4, "each sector on its own");
        block_on(node.flush()).unwrap();
        assert_eq!((images(&disk).len(), disk.pending()), (1, 0));
        assert_eq!(disk.stable(), disk.to_vec());
        write(&node, 0, 512, 2, RequestFlags::empty());
        write(&node, 0, 512, 3, RequestFlags::empty());
        write(&node, 1024, 1536, 4, RequestFlags::empty());
        assert_eq!(values(&disk, 0), [Some(1), Some(2), Some(3)].into());
        assert_eq!(values(&disk, 1), [Some(1)].into());
        assert_eq!(images(&disk).len(), 6, "a later one may be there without an earlier one");
    }

    #[test]
    fn every_subset_can_be_asked_for() {
        let disk = CrashDisk::new(vec![0; 2048]);
        let node = node(&disk);
        (0..4).for_each(|n| write(&node, n * 512, n * 512 + 512, 7, RequestFlags::empty()));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let all: BTreeSet<_> = (0..16).map(|mask| disk.crash_with(mask, &mut rng).bytes).collect();
        assert_eq!(all.len(), 16);
        let one = disk.crash_with(0b100, &mut rng);
        assert_eq!((one.bytes[1024], one.bytes[512]), (7, 0));
        assert_eq!(one.fates[2].kept, (1, 1));
    }

    #[test]
    fn a_sector_is_never_torn_and_small_writes_share_it_in_order() {
        let disk = CrashDisk::new(vec![0; 512]);
        let node = node(&disk);
        write(&node, 0, 100, 1, RequestFlags::empty());
        write(&node, 100, 200, 2, RequestFlags::empty());
        let seen: BTreeSet<_> = images(&disk).iter().map(|i| (i[0], i[99], i[100])).collect();
        assert_eq!(seen, [(0, 0, 0), (1, 1, 0), (1, 1, 2)].into());
    }

    #[test]
    fn a_fua_write_makes_itself_stable_and_nothing_else() {
        let disk = CrashDisk::new(vec![0; 1024]);
        let node = node(&disk);
        write(&node, 0, 1024, 1, RequestFlags::empty());
        write(&node, 0, 512, 2, RequestFlags::FUA);
        assert_eq!(values(&disk, 0), [Some(2)].into());
        assert_eq!(values(&disk, 1), [Some(0), Some(1)].into());
        block_on(node.flush()).unwrap();
        assert_eq!(disk.stable(), disk.to_vec());
    }

    #[test]
    fn zeroes_and_discards_are_not_stable_before_a_flush() {
        let disk = CrashDisk::new(vec![9; 1024]);
        let node = node(&disk);
        block_on(node.write_zeroes(span(0, 512), RequestFlags::empty())).unwrap();
        block_on(node.discard(span(512, 1024))).unwrap();
        assert_eq!(disk.to_vec(), vec![0; 1024]);
        assert_eq!(images(&disk).len(), 4);
        block_on(node.flush()).unwrap();
        assert_eq!(images(&disk).len(), 1);
    }

    #[test]
    fn lengths_change_in_order_and_data_behind_the_end_is_lost() {
        let disk = CrashDisk::new(vec![1; 512]);
        let node = node(&disk);
        let truncate = |len| block_on(node.truncate(len, Exactness::Exact, Prealloc::Off)).unwrap();
        write(&node, 512, 1024, 2, RequestFlags::empty());
        truncate(512);
        write(&node, 1024, 1536, 3, RequestFlags::empty());
        let images = images(&disk);
        let lens: BTreeSet<_> = images.iter().map(Vec::len).collect();
        assert_eq!(lens, [512, 1024, 1536].into());
        let long = images.iter().filter(|image| image.len() == 1536);
        assert!(long.clone().all(|image| image[512..1024] == [0; 512]), "cut off, then zero");
        let tails: BTreeSet<_> = long.map(|image| image[1024]).collect();
        assert_eq!(tails, [0, 3].into(), "the length may be there without the data");
        block_on(node.flush()).unwrap();
        assert_eq!(disk.stable(), disk.to_vec());
    }

    #[test]
    fn what_is_in_flight_may_be_there_and_a_flush_that_is_older_does_not_cover_it() {
        crate::exec::Exec::run(5, |exec| async move {
            let disk = CrashDisk::new(vec![0; 512]);
            let moments = Arc::new(Mutex::new(Vec::new()));
            let (seen, of) = (Arc::clone(&moments), Arc::downgrade(&disk));
            disk.watch(move |moment| {
                let disk = of.upgrade().unwrap();
                seen.lock().push((moment, values(&disk, 0).len()));
            });
            let node = node(&disk);
            let iov = crate::op::io_vec(&[1; 512], Alignment::ONE, 1);
            exec.spawn("write", node.write(span(0, 512), iov, RequestFlags::empty()))
                .await
                .unwrap();
            node.flush().await.unwrap();
            let expect = [
                (Moment::Arrived(Kind::Write), 2),
                (Moment::Visible(Kind::Write), 2),
                (Moment::Flushed, 1),
            ];
            assert_eq!(*moments.lock(), expect);
            // A flush that began before a write returned does not make it stable.
            let mut flush = Arc::clone(&disk).flush_to_disk();
            assert!(futures::poll!(&mut flush).is_pending());
            let iov = crate::op::io_vec(&[2; 512], Alignment::ONE, 1);
            node.write(span(0, 512), iov, RequestFlags::empty()).await.unwrap();
            flush.await.unwrap();
            assert_eq!(disk.pending(), 1);
        });
    }

    #[test]
    fn crashes_are_cheap() {
        let disk = CrashDisk::new(vec![0; 64 << 10]);
        let node = node(&disk);
        (0..40).for_each(|n| write(&node, n * 1024, n * 1024 + 2048, 7, RequestFlags::empty()));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let images: BTreeSet<_> = (0..500).map(|_| disk.crash(&mut rng).bytes).collect();
        assert!(images.len() > 200, "{} different images of 500", images.len());
    }
}
