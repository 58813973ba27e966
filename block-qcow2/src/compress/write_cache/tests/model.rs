//! The cache beside a slow twin under seeded interleavings: the twin is what file and cache together must
//! read as, byte by byte, and which compressed clusters are alive.
//!
//! The world around the cache behaves as the driver does: compressed clusters are allocated one behind
//! the other, each holds a reference on its one or two host clusters, a host cluster without references
//! is evicted and may then hold anything, also plain data that goes to the file directly. Requests are
//! dropped in the middle, writes fail in whole and in part.

use std::collections::BTreeMap;

use block_core::IoVec;
use block_testkit::campaign::Campaign;
use block_testkit::disk::{Call, Tap, Verdict};
use block_testkit::exec::{Exec, poll_times, yield_now};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const HOST_CLUSTERS: u64 = 20;
const WORKERS: u64 = 6;
const OPS: u64 = 30;
const SEEDS: u64 = 150;

/// What happened in all games together: each must have.
#[derive(Default, Debug)]
struct Reached {
    linked: AtomicUsize,
    crossing: AtomicUsize,
    read_here: AtomicUsize,
    read_in_file: AtomicUsize,
    failed_puts: AtomicUsize,
    failed_flushes: AtomicUsize,
    failed_rooms: AtomicUsize,
    waited_for_room: AtomicUsize,
    dropped: AtomicUsize,
    abandoned: AtomicUsize,
    evicted: AtomicUsize,
    evicted_in_flight: AtomicUsize,
    used_anew: AtomicUsize,
    plain: AtomicUsize,
    shrunk: AtomicUsize,
}

fn note(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// What a game is played with.
#[derive(Copy, Clone, Debug)]
struct Setup {
    seed: u64,
    bits: u32,
    request_alignment: u64,
    max_bytes: u64,
    budget: u64,
    failing: bool,
}

impl Setup {
    fn of(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bits = rng.random_range(12..=14);
        Self {
            seed,
            bits,
            request_alignment: if rng.random() { 512 } else { 4096 },
            max_bytes: rng.random_range(0..6) << bits,
            budget: rng.random_range(0..6) << bits,
            failing: rng.random(),
        }
    }
}

/// A compressed cluster of the twin.
#[derive(Copy, Clone)]
struct Alive {
    stored: Stored,
    /// How many read it now; it is not dropped meanwhile.
    readers: usize,
}

/// What the metadata lock guards, and the twin.
struct Meta {
    refcounts: Vec<u64>,
    /// Where the next compressed cluster goes.
    position: Option<u64>,
    /// By number, each given once.
    alive: BTreeMap<u64, Alive>,
    next_number: u64,
    /// Host clusters with plain data.
    plain: Vec<u64>,
    /// References that are to be dropped.
    pending: Vec<u64>,
    /// What is not alive any more, and has host clusters that were not evicted since.
    dead: Vec<Stored>,
    /// What file and cache read as, where something is alive.
    bytes: Vec<u8>,
    /// Host clusters that were used before.
    used: Vec<u64>,
}

struct World {
    setup: Setup,
    exec: Exec,
    disk: Arc<MemDisk>,
    node: Node,
    record: Arc<Record>,
    fault: Arc<Fault>,
    budget: Arc<MemoryBudget>,
    cache: WriteCache,
    /// Held from the wait for room to the allocation.
    turn: futures::lock::Mutex<()>,
    meta: futures::lock::Mutex<Meta>,
    reached: Arc<Reached>,
}

impl World {
    fn new(setup: Setup, exec: Exec, reached: Arc<Reached>) -> Self {
        let size = 1 << setup.bits;
        let disk = MemConfig::new(HOST_CLUSTERS * size).aligned(setup.request_alignment).build();
        let (record, fault) = (Record::new(), Fault::new());
        let driver: Arc<dyn BlockDriver> = Arc::clone(&disk) as Arc<dyn BlockDriver>;
        let alone = Arc::new(Alone { size, writes: Mutex::default() });
        let driver = Tapped::new(driver, alone);
        let driver = Tapped::new(driver, Arc::clone(&fault));
        let driver = Tapped::new(driver, Arc::clone(&record));
        let node = Node::new(driver, NodeOptions::default());
        let (version, location) = (Version::V3, DataLocation::Image);
        let geometry = Geometry::new(version, setup.bits, 4, L2Format::Standard, location);
        let overlap = Arc::new(OverlapMap::new(geometry.unwrap(), Guarded::ALL));
        let budget = MemoryBudget::new(setup.budget);
        let shared = Arc::clone(&budget);
        let cache = WriteCache::new(node.clone(), setup.bits, overlap, shared, setup.max_bytes);
        let mut refcounts = vec![0; to_usize(HOST_CLUSTERS)];
        refcounts[0] = 1;
        let meta = Meta {
            refcounts,
            position: None,
            alive: BTreeMap::new(),
            next_number: 0,
            plain: Vec::new(),
            pending: Vec::new(),
            dead: Vec::new(),
            bytes: vec![0; to_usize(HOST_CLUSTERS * size)],
            used: Vec::new(),
        };
        let (turn, meta) = (futures::lock::Mutex::new(()), futures::lock::Mutex::new(meta));
        Self { setup, exec, disk, node, record, fault, budget, cache, turn, meta, reached }
    }

    fn size(&self) -> u64 {
        1 << self.setup.bits
    }

    fn one_in(&self, n: u64) -> bool {
        self.exec.random(n) == 0
    }

    /// One operation of a worker.
    async fn step(&self) {
        match self.exec.random(20) {
            0..=7 => self.write().await,
            8..=11 => self.read().await,
            12..=14 => self.discard().await,
            15 => self.write_plain().await,
            16 | 17 => self.flush().await,
            18 => self.fail_some(),
            _ if self.one_in(8) => self.shrink().await,
            _ => yield_now().await,
        }
        self.drop_references().await;
        self.check_memory();
    }

    fn check_memory(&self) {
        let state = self.cache.inner.state.lock();
        let most = self.setup.max_bytes.max(3 * self.size());
        assert!(state.used() <= most, "{:?}: {} bytes", self.setup, state.used());
        let within = self.budget.used() <= self.budget.limit();
        assert!(within || state.count() <= 3, "{:?}", self.setup);
        assert_eq!(state.used(), self.budget.used(), "{:?}", self.setup);
    }

    /// A compressed write: room, place, bytes, link.
    async fn write(&self) {
        let Some((number, stored)) = self.allocate().await else { return };
        for _ in 0..self.exec.random(4) {
            yield_now().await;
        }
        let bytes = contents(number, stored.len);
        let result = if self.one_in(12) {
            note(&self.reached.abandoned);
            self.cache.abandon(stored);
            None
        } else if self.one_in(8) {
            let times = to_usize(self.exec.random(12));
            let put = Box::pin(self.cache.put(stored, &bytes));
            let result = poll_times(put, times).await;
            if result.is_none() {
                note(&self.reached.dropped);
            }
            result
        } else {
            Some(self.cache.put(stored, &bytes).await)
        };
        let mut meta = self.meta.lock().await;
        let here = self.cache.read(stored.offset);
        if result == Some(Ok(())) {
            let start = to_usize(stored.offset.bytes());
            meta.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
            meta.alive.insert(number, Alive { stored, readers: 0 });
            note(&self.reached.linked);
        } else {
            assert_eq!(here, None, "{:?}: {stored:?} was not put", self.setup);
            if result.is_some() {
                note(&self.reached.failed_puts);
                assert!(self.setup.failing, "{:?}: {result:?}", self.setup);
            }
            meta.drop_references(stored, self.size());
        }
    }

    /// A place for a compressed cluster of any length.
    async fn allocate(&self) -> Option<(u64, Stored)> {
        let _turn = self.turn.lock().await;
        let mut room = Box::pin(self.cache.room());
        let first = futures::poll!(&mut room);
        let room = match first {
            Poll::Ready(result) => result,
            Poll::Pending => {
                note(&self.reached.waited_for_room);
                room.await
            }
        };
        if room.is_err() {
            note(&self.reached.failed_rooms);
            assert!(self.setup.failing, "{:?}: {room:?}", self.setup);
            return None;
        }
        let mut meta = self.meta.lock().await;
        let size = self.size();
        let most = if self.one_in(3) { size } else { size / 6 };
        let len = 1 + self.exec.random(most);
        let start = match meta.position {
            Some(at) if !self.one_in(25) => {
                let next = at / size + 1;
                let free = meta.refcounts.get(to_usize(next)) == Some(&0);
                let fits = at + len <= next * size || free;
                fits.then_some(at)
            }
            _ => None,
        };
        let start = match start {
            Some(start) => start,
            None => {
                if let Some(at) = meta.position.take() {
                    self.cache.seal(HostOffset::new(at - at % size));
                }
                meta.free_cluster(&self.exec)? * size
            }
        };
        let stored = Stored { offset: HostOffset::new(start), len };
        let last = (start + len - 1) / size;
        if last > start / size {
            note(&self.reached.crossing);
        }
        for cluster in start / size..=last {
            if meta.refcounts[to_usize(cluster)] == 0 {
                meta.note_use(cluster, &self.reached);
            }
            meta.refcounts[to_usize(cluster)] += 1;
        }
        // A full host cluster is not continued.
        meta.position = Some(start + len).filter(|end| end % size > 0);
        self.cache.expect(stored).unwrap();
        let number = meta.next_number;
        meta.next_number += 1;
        Some((number, stored))
    }

    /// Reads something that is alive, here or in the file, as a driver does: not at once.
    async fn read(&self) {
        let (number, alive) = {
            let mut meta = self.meta.lock().await;
            let Some((number, alive)) = meta.choose(&self.exec) else { return };
            alive.readers += 1;
            (number, *alive)
        };
        let stored = alive.stored;
        let found = self.cache.read(stored.offset);
        yield_now().await;
        let (from, count) = match found {
            Some(bytes) => (bytes, &self.reached.read_here),
            None => (self.file_bytes(stored), &self.reached.read_in_file),
        };
        note(count);
        let mut meta = self.meta.lock().await;
        let start = to_usize(stored.offset.bytes());
        let wanted = &meta.bytes[start..start + to_usize(stored.len)];
        assert!(from == wanted, "{:?}: {stored:?} reads as something else", self.setup);
        if let Some(alive) = meta.alive.get_mut(&number) {
            alive.readers -= 1;
        }
    }

    fn file_bytes(&self, stored: Stored) -> Vec<u8> {
        let start = to_usize(stored.offset.bytes());
        self.disk.to_vec()[start..start + to_usize(stored.len)].to_vec()
    }

    /// Drops something from the mapping: compressed or plain.
    async fn discard(&self) {
        let mut meta = self.meta.lock().await;
        if self.one_in(4) && !meta.plain.is_empty() {
            let at = to_usize(self.exec.random(to_u64(meta.plain.len())));
            let cluster = meta.plain.swap_remove(at);
            meta.pending.push(cluster);
            return;
        }
        let Some((number, alive)) = meta.choose(&self.exec) else { return };
        if alive.readers == 0 {
            let stored = alive.stored;
            meta.alive.remove(&number);
            meta.drop_references(stored, self.size());
        }
    }

    /// Drops much at once from the mapping, as a smaller disk does.
    async fn shrink(&self) {
        let mut meta = self.meta.lock().await;
        let numbers: Vec<u64> = meta.alive.keys().copied().collect();
        for number in numbers {
            let read = meta.alive.get(&number).is_some_and(|alive| alive.readers > 0);
            if !read
                && !self.one_in(3)
                && let Some(alive) = meta.alive.remove(&number)
            {
                meta.drop_references(alive.stored, self.size());
            }
        }
        note(&self.reached.shrunk);
    }

    /// Drops references that are due; the last of a host cluster evicts it.
    async fn drop_references(&self) {
        let mut meta = self.meta.lock().await;
        for cluster in std::mem::take(&mut meta.pending) {
            let host = HostOffset::new(cluster * self.size());
            let count = meta.refcounts[to_usize(cluster)];
            if count == 1 {
                if self.cache.evict(host) == Eviction::InFlight {
                    note(&self.reached.evicted_in_flight);
                    meta.pending.push(cluster);
                    continue;
                }
                note(&self.reached.evicted);
                // No trace is left, in the neighbours neither.
                let bounds = (host.bytes(), host.bytes() + self.size());
                for stored in std::mem::take(&mut meta.dead) {
                    if stored.offset.bytes() < bounds.1 && stored.end() > bounds.0 {
                        assert_eq!(self.cache.read(stored.offset), None, "{:?}", self.setup);
                    } else {
                        meta.dead.push(stored);
                    }
                }
                if meta.position.is_some_and(|at| at / self.size() == cluster) {
                    meta.position = None;
                }
            }
            meta.refcounts[to_usize(cluster)] = count - 1;
        }
    }

    /// Plain data, to a host cluster that may have held anything.
    async fn write_plain(&self) {
        let (cluster, number) = {
            let mut meta = self.meta.lock().await;
            let Some(cluster) = meta.free_cluster(&self.exec) else { return };
            meta.note_use(cluster, &self.reached);
            meta.refcounts[to_usize(cluster)] = 1;
            meta.next_number += 1;
            (cluster, meta.next_number - 1)
        };
        let bytes = contents(number, self.size());
        let range = ByteRange::new(cluster * self.size(), self.size()).unwrap();
        let buf = IoBuf::zeroed(bytes.len(), Alignment::PAGE).unwrap();
        buf.copy_from(0, &bytes);
        while self.node.write(range, IoVec::from(buf.clone()), RequestFlags::empty()).await.is_err()
        {
            yield_now().await;
        }
        let mut meta = self.meta.lock().await;
        let start = to_usize(range.offset());
        meta.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
        meta.plain.push(cluster);
        note(&self.reached.plain);
    }

    /// A flush, after which the file alone has what was alive before.
    async fn flush(&self) {
        let before: Vec<u64> = self.meta.lock().await.alive.keys().copied().collect();
        if self.one_in(6) {
            let times = to_usize(self.exec.random(12));
            if poll_times(Box::pin(self.cache.flush()), times).await.is_none() {
                note(&self.reached.dropped);
            }
            return;
        }
        let flushed = self.cache.flush().await;
        if flushed.is_err() {
            note(&self.reached.failed_flushes);
            assert!(self.setup.failing, "{:?}: {flushed:?}", self.setup);
            return;
        }
        let meta = self.meta.lock().await;
        meta.check_file(&self.disk.to_vec(), |number| before.contains(&number), self.setup);
    }

    fn fail_some(&self) {
        if self.setup.failing {
            let effects = [Effect::Nothing, Effect::Half, Effect::All];
            let effect = effects[to_usize(self.exec.random(3))];
            for _ in 0..=self.exec.random(3) {
                self.fault.add(Rule::new(Kind::Write).effect(effect).once());
            }
        }
    }

    /// All is quiet: what is alive is in the file, and nothing else is remembered.
    async fn finish(&self) {
        self.fault.clear();
        self.cache.flush().await.unwrap();
        let mut turns = 0;
        while !self.meta.lock().await.pending.is_empty() {
            self.drop_references().await;
            self.cache.flush().await.unwrap();
            turns += 1;
            assert!(turns < 10, "{:?}: never evicted", self.setup);
        }
        let mut meta = self.meta.lock().await;
        meta.check_file(&self.disk.to_vec(), |_| true, self.setup);
        assert_eq!(self.record.in_flight(), 0);
        assert!(self.cache.inner.state.lock().count() <= 1, "but the one that is filled");
        let mut counts = vec![0; to_usize(HOST_CLUSTERS)];
        let size = self.size();
        for Alive { stored, .. } in meta.alive.values() {
            (stored.offset.bytes() / size..=(stored.end() - 1) / size)
                .for_each(|cluster| counts[to_usize(cluster)] += 1);
        }
        meta.plain.iter().chain([&0]).for_each(|cluster| counts[to_usize(*cluster)] += 1);
        assert_eq!(meta.refcounts, counts, "{:?}: the test itself", self.setup);
        // As if the image were opened anew.
        self.cache.clear();
        meta.position = None;
        assert_eq!(self.budget.used(), 0);
        self.check_requests();
    }

    fn check_requests(&self) {
        let block = self.setup.request_alignment.max(4096).min(self.size());
        let block = Alignment::new(block).unwrap();
        for call in self.record.take() {
            assert_eq!(call.kind, Kind::Write, "{:?}: {call}", self.setup);
            assert!(call.range.is_aligned(block), "{:?}: {call}", self.setup);
            assert_eq!(call.buffers, 1, "{:?}: {call}", self.setup);
        }
    }
}

impl Meta {
    /// A free host cluster, any.
    fn free_cluster(&self, exec: &Exec) -> Option<u64> {
        let counts = (0..).zip(&self.refcounts);
        let free: Vec<u64> = counts.filter(|(_, count)| **count == 0).map(|(at, _)| at).collect();
        if free.is_empty() {
            return None;
        }
        Some(free[to_usize(exec.random(to_u64(free.len())))])
    }

    fn note_use(&mut self, cluster: u64, reached: &Reached) {
        if self.used.contains(&cluster) {
            note(&reached.used_anew);
        } else {
            self.used.push(cluster);
        }
    }

    /// Something that is alive, any.
    fn choose(&mut self, exec: &Exec) -> Option<(u64, &mut Alive)> {
        if self.alive.is_empty() {
            return None;
        }
        // What is young is in the cache.
        let len = to_u64(self.alive.len());
        let from_end = if exec.random(2) == 0 { exec.random(len.min(4)) } else { exec.random(len) };
        let chosen = self.alive.iter_mut().rev().nth(to_usize(from_end))?;
        Some((*chosen.0, chosen.1))
    }

    fn drop_references(&mut self, stored: Stored, size: u64) {
        self.dead.push(stored);
        self.pending.extend(stored.offset.bytes() / size..=(stored.end() - 1) / size);
    }

    /// Compares the file alone with the twin.
    fn check_file(&self, file: &[u8], wanted: impl Fn(u64) -> bool, setup: Setup) {
        for (number, Alive { stored, .. }) in self.alive.iter().filter(|(n, _)| wanted(**n)) {
            let range = to_usize(stored.offset.bytes())..to_usize(stored.end());
            assert!(file[range.clone()] == self.bytes[range], "{setup:?}: {number} at {stored:?}");
        }
        for cluster in &self.plain {
            let range = to_usize(cluster << setup.bits)..to_usize((cluster + 1) << setup.bits);
            assert!(file[range.clone()] == self.bytes[range], "{setup:?}: plain {cluster}");
        }
    }
}

/// Bytes that say whose they are, none of them zero.
fn contents(number: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| ((number << 20) + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|at| word(at).to_be_bytes()).collect();
    bytes.truncate(to_usize(len));
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes
}

/// Asserts that no two writes of one host cluster are under way at a time.
struct Alone {
    size: u64,
    writes: Mutex<Vec<(u64, ByteRange)>>,
}

#[async_trait::async_trait]
impl Tap for Alone {
    async fn before(&self, call: &Call) -> Verdict {
        let whole = call.range.expand(Alignment::new(self.size).unwrap());
        assert_eq!(whole.len(), self.size, "{call} is in one host cluster");
        let mut writes = self.writes.lock();
        assert!(writes.iter().all(|(_, other)| !other.overlaps(whole)), "{call} is not alone");
        writes.push((call.number, whole));
        Verdict::Pass
    }

    async fn after(&self, call: &Call, _: Result<()>) {
        self.writes.lock().retain(|(number, _)| *number != call.number);
    }
}

fn play(seed: u64, reached: &Arc<Reached>) {
    let reached = Arc::clone(reached);
    let setup = Setup::of(seed);
    Exec::run(setup.seed, move |exec| async move {
        let world = Arc::new(World::new(setup, exec.clone(), reached));
        for round in 0..2 {
            let workers = (0..WORKERS).map(|n| {
                let world = Arc::clone(&world);
                exec.spawn(format!("worker {n} of round {round}, {setup:?}"), async move {
                    for _ in 0..OPS {
                        world.step().await;
                    }
                })
            });
            futures::future::join_all(workers.collect::<Vec<_>>()).await;
            world.finish().await;
        }
    });
}

/// (requirement: contents equal the model's at any time, nothing is lost, nothing waits for ever, memory
/// keeps its bound, the file is never read, writes are aligned and alone, and none hits a host cluster
/// that was given to somebody else)
#[test]
fn the_cache_is_its_twin_under_any_interleaving() {
    let reached = Arc::new(Reached::default());
    let campaign = Campaign::new("write cache", SEEDS);
    for seed in campaign.seeds() {
        let played = std::panic::catch_unwind(|| play(seed, &reached));
        assert!(played.is_ok(), "BLOCK_SEED={seed} fails");
    }
    let text = format!("{reached:?}");
    println!("{text}");
    let enough = to_u64(campaign.seeds().count()) >= SEEDS;
    assert!(!enough || !text.contains(": 0"), "not reached: {text}");
}
