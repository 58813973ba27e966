//! All host clusters of the write cache, and what happens to them at once, under its lock.
//!
//! **Invariants.** A host cluster leaves as soon as it is complete and in the file. A compressed
//! cluster in two host clusters is known to both; when one of them leaves, the other keeps the bytes
//! that leave with it. At most one host cluster is being filled. Nobody sleeps in `room_waiters`
//! unless the outlook is [`Outlook::Bleak`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use block_core::budget::MemoryBudget;
use block_core::range::to_usize;
use block_core::{Alignment, IoBuf, Result};

use super::host_cluster::{Arrival, Entry, Flight, Growth, HostCluster, Io, Memory, Part, Rest};
use super::{Eviction, Stored};
use crate::units::HostOffset;

/// What the lock of the cache guards.
pub(super) struct State {
    cluster_bits: u32,
    clusters: HashMap<HostOffset, HostCluster>,
    /// Bytes of all buffers, and of compressed clusters that are kept beside them.
    used: Arc<AtomicU64>,
    max_bytes: u64,
    budget: Arc<MemoryBudget>,
    /// Who waits for room while all depends on bytes that are expected. Woken when it does not.
    pub(super) room_waiters: Vec<Waker>,
}

/// What somebody who wants to begin host clusters finds.
pub(super) enum Outlook {
    /// There is room.
    Room,
    /// Host clusters should be written, and nobody does.
    Work,
    /// There will be room when writes are over, of which this is one.
    InFlight(Flight),
    /// Bytes that are expected must come first.
    Bleak,
}

/// What an attempt to bring bytes came to.
pub(super) enum PutAttempt {
    /// They are in the cache.
    Put,
    /// A host cluster of theirs is being written: once that is over, try again.
    InFlight(Flight),
}

/// What an attempt to begin a write came to.
pub(super) enum WriteAttempt {
    /// There is nothing to be written.
    Clean,
    /// Somebody has begun one already.
    Theirs(Flight),
    /// It has begun.
    Ours(Flight),
}

impl State {
    pub(super) fn new(cluster_bits: u32, budget: Arc<MemoryBudget>, max_bytes: u64) -> Self {
        Self {
            cluster_bits,
            clusters: HashMap::new(),
            used: Arc::default(),
            max_bytes: max_bytes.max(MIN_CLUSTERS << cluster_bits),
            budget,
            room_waiters: Vec::new(),
        }
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Host clusters in memory.
    pub(super) fn count(&self) -> usize {
        self.clusters.len()
    }

    /// Bytes held.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn outlook(&self) -> Outlook {
        let mut hosts = self.clusters.values();
        if hosts.any(|host| host.is_ready() || host.failure().is_some()) {
            return Outlook::Work;
        }
        if self.has_room() {
            return Outlook::Room;
        }
        match self.clusters.values().find_map(HostCluster::flight) {
            Some(flight) => Outlook::InFlight(flight.clone()),
            None => Outlook::Bleak,
        }
    }

    /// Whether the host clusters of one more compressed cluster fit: two, of which the one that is
    /// being filled may be one.
    fn has_room(&self) -> bool {
        let filling = self.clusters.values().any(|host| host.growth() == Growth::Filling);
        let new = if filling { 1 } else { 2 } << self.cluster_bits;
        // Few enough must do whatever others have taken from the budget.
        let few = self.clusters.len() < FEW_CLUSTERS;
        let shared = few || self.budget.used().saturating_add(new) <= self.budget.limit();
        shared && self.used() + new <= self.max_bytes
    }

    /// See [`super::WriteCache::expect`]. `mem_align` is for new buffers.
    pub(super) fn expect(&mut self, stored: Stored, mem_align: Alignment) -> Result<()> {
        assert!((1..=self.cluster_size()).contains(&stored.len), "{stored:?} is no cluster");
        let buffers = match self.new_buffers(stored, mem_align) {
            Ok(buffers) => buffers,
            Err(error) => {
                self.pass_over(stored);
                return Err(error);
            }
        };
        for (cluster, buf) in buffers {
            let memory = Memory::take(self.cluster_size(), &self.used, &self.budget);
            self.clusters.insert(cluster, HostCluster::new(buf, memory));
        }
        for part in self.parts(stored) {
            if let Some(host) = self.clusters.get_mut(&part.cluster) {
                host.expect(stored, part);
            }
        }
        let filling = self.clusters.values().filter(|host| host.growth() == Growth::Filling);
        debug_assert!(filling.count() <= 1, "two host clusters are being filled");
        debug_assert!(self.used() <= self.max_bytes, "nobody asked for room");
        Ok(())
    }

    /// Buffers for those host clusters of `stored` that are not here.
    fn new_buffers(&self, stored: Stored, align: Alignment) -> Result<Vec<(HostOffset, IoBuf)>> {
        let is_new = |part: &Part| !self.clusters.contains_key(&part.cluster);
        let new = self.parts(stored).filter(is_new);
        new.map(|part| Ok((part.cluster, IoBuf::zeroed(to_usize(self.cluster_size()), align)?)))
            .collect()
    }

    /// Nothing is expected for `stored`, but the allocator has gone beyond it: a host cluster whose end
    /// it reaches is sealed.
    pub(super) fn pass_over(&mut self, stored: Stored) {
        for part in self.parts(stored) {
            if part.at + part.len == self.cluster_size() {
                self.seal(part.cluster);
            }
        }
    }

    /// See [`super::WriteCache::seal`].
    pub(super) fn seal(&mut self, cluster: HostOffset) {
        if let Some(host) = self.clusters.get_mut(&cluster) {
            host.seal();
            self.settle(cluster);
        }
    }

    /// Brings bytes that are expected, to all their host clusters at once.
    pub(super) fn try_put(&mut self, stored: Stored, bytes: &[u8]) -> PutAttempt {
        assert_eq!(bytes.len(), to_usize(stored.len), "bytes for {stored:?}");
        let flying = self.parts(stored).find_map(|part| self.clusters.get(&part.cluster)?.flight());
        if let Some(flight) = flying {
            return PutAttempt::InFlight(flight.clone());
        }
        for part in self.parts(stored) {
            match self.clusters.get_mut(&part.cluster) {
                Some(host) => host.put(stored, part, bytes),
                None => panic!("{stored:?} is not expected"),
            }
        }
        PutAttempt::Put
    }

    /// See [`super::WriteCache::abandon`].
    pub(super) fn abandon(&mut self, stored: Stored) {
        for part in self.parts(stored) {
            if let Some(host) = self.clusters.get_mut(&part.cluster) {
                host.forget(stored);
                self.settle(part.cluster);
            }
        }
    }

    /// See [`super::WriteCache::read`].
    pub(super) fn read(&self, start: HostOffset) -> Option<Vec<u8>> {
        let first = self.cluster_of(start);
        let homes = [first, first.plus(self.cluster_size())];
        let entry = homes.iter().find_map(|home| self.clusters.get(home)?.entry(start))?;
        if matches!(entry.arrival, Arrival::Expected) {
            return None;
        }
        let mut bytes = vec![0; to_usize(entry.stored.len)];
        for part in self.parts(entry.stored) {
            let host = self.clusters.get(&part.cluster);
            match (host.filter(|host| host.entry(start).is_some()), &entry.arrival) {
                (Some(host), _) => host.copy_part(part, &mut bytes),
                (None, Arrival::Rejoined(rest)) => {
                    part.of_mut(&mut bytes).copy_from_slice(&rest.bytes);
                }
                (None, _) => panic!("a part of {:?} is nowhere", entry.stored),
            }
        }
        Some(bytes)
    }

    /// See [`super::WriteCache::evict`].
    pub(super) fn evict(&mut self, cluster: HostOffset) -> Eviction {
        if self.clusters.get(&cluster).is_some_and(|host| host.flight().is_some()) {
            return Eviction::InFlight;
        }
        self.clusters.remove(&cluster);
        // What was in it and in a neighbour is gone as a whole.
        let next = cluster.plus(self.cluster_size());
        let before = cluster.bytes().checked_sub(self.cluster_size()).map(HostOffset::new);
        for neighbour in before.into_iter().chain([next]) {
            let Some(host) = self.clusters.get_mut(&neighbour) else { continue };
            let touches =
                |entry: &&Entry| entry.stored.offset < next && entry.stored.end() > cluster.bytes();
            let torn = host.outermost().find(touches).map(|entry| entry.stored);
            if let Some(stored) = torn {
                host.forget(stored);
                self.settle(neighbour);
            }
        }
        Eviction::Done
    }

    /// See [`super::WriteCache::clear`].
    pub(super) fn clear(&mut self) {
        debug_assert!(self.clusters.values().all(|host| host.flight().is_none()), "in flight");
        self.clusters.clear();
    }

    /// Begins a write of what is dirty in `cluster`; `write` makes it of a place in the cluster and bytes.
    pub(super) fn try_write(
        &mut self,
        cluster: HostOffset,
        align: Alignment,
        write: impl FnOnce(u64, IoBuf) -> Flight,
    ) -> WriteAttempt {
        let Some(host) = self.clusters.get_mut(&cluster) else { return WriteAttempt::Clean };
        if let Some(flight) = host.flight() {
            return WriteAttempt::Theirs(flight.clone());
        }
        let Some((at, bytes)) = host.to_write(align) else { return WriteAttempt::Clean };
        let flight = write(at, bytes);
        host.io = Io::Flushing(flight.clone());
        WriteAttempt::Ours(flight)
    }

    /// A write of `cluster` ended.
    pub(super) fn end_flight(&mut self, cluster: HostOffset, result: Result<()>) {
        if let Some(host) = self.clusters.get_mut(&cluster) {
            host.end_flight(result);
            self.settle(cluster);
        }
    }

    /// The host cluster that comes first of those that should be written and nobody writes.
    pub(super) fn first_ready(&self) -> Option<HostOffset> {
        self.those(HostCluster::is_ready).min()
    }

    /// Host clusters whose last write failed, in order.
    pub(super) fn failed(&self) -> Vec<HostOffset> {
        self.sorted(|host| host.failure().is_some())
    }

    /// Host clusters that are not in the file, in order.
    pub(super) fn dirty(&self) -> Vec<HostOffset> {
        self.sorted(HostCluster::is_dirty)
    }

    fn sorted(&self, is_wanted: impl Fn(&HostCluster) -> bool) -> Vec<HostOffset> {
        let mut wanted: Vec<_> = self.those(is_wanted).collect();
        wanted.sort_unstable();
        wanted
    }

    fn those(&self, wanted: impl Fn(&HostCluster) -> bool) -> impl Iterator<Item = HostOffset> {
        self.clusters.iter().filter(move |(_, host)| wanted(host)).map(|(cluster, _)| *cluster)
    }

    /// After a change: a host cluster that has nothing more to do here leaves.
    fn settle(&mut self, cluster: HostOffset) {
        let Some(host) = self.clusters.get_mut(&cluster) else { return };
        host.forgive();
        if host.is_done()
            && let Some(left) = self.clusters.remove(&cluster)
        {
            self.keep_halves(cluster, left);
        }
    }

    /// Leaves with the neighbours what `left` has of compressed clusters that they have the rest of.
    fn keep_halves(&mut self, cluster: HostOffset, left: HostCluster) {
        let mut halves = Vec::new();
        for stored in left.outermost().map(|entry| entry.stored) {
            let mut bytes = vec![0; to_usize(stored.len)];
            let (mut own, mut other) = (None, None);
            for part in self.parts(stored) {
                let side = if part.cluster == cluster { &mut own } else { &mut other };
                *side = Some(part);
            }
            if let (Some(own), Some(other)) = (own, other) {
                left.copy_part(own, &mut bytes);
                halves.push((other.cluster, stored, Box::from(own.of(&bytes))));
            }
        }
        // Its memory goes first, so that no more is used at any time.
        drop(left);
        for (neighbour, stored, bytes) in halves {
            let bytes: Box<[u8]> = bytes;
            let Some(host) = self.clusters.get_mut(&neighbour) else { continue };
            let len = block_core::range::to_u64(bytes.len());
            let memory = Memory::take(len, &self.used, &self.budget);
            host.rejoin(stored, Rest { bytes, _memory: memory });
        }
    }

    /// The one or two host clusters of a compressed cluster, in order.
    fn parts(&self, stored: Stored) -> impl Iterator<Item = Part> + use<> {
        let cluster = self.cluster_of(stored.offset);
        let at = stored.offset.bytes() - cluster.bytes();
        let len = stored.len.min(self.cluster_size() - at);
        let next = cluster.plus(self.cluster_size());
        let first = Part { cluster, at, from: 0, len };
        let second = Part { cluster: next, at: 0, from: len, len: stored.len - len };
        [first, second].into_iter().filter(|part| part.len > 0)
    }

    fn cluster_of(&self, offset: HostOffset) -> HostOffset {
        HostOffset::new(offset.bytes() >> self.cluster_bits << self.cluster_bits)
    }
}

/// Host clusters that fit in any case: one that is being filled, with the rest of a compressed cluster
/// kept beside it, and the one that comes next. With less, all could wait for each other.
const MIN_CLUSTERS: u64 = 3;

/// With fewer host clusters in memory than this, one more is begun though the shared budget is used up.
const FEW_CLUSTERS: usize = 2;
