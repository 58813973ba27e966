//! One host cluster in the write cache: its buffer, the compressed clusters in it, and how far it is.
//!
//! **Invariants.** `expected` counts the entries that are [`Arrival::Expected`]. The dirty range lies
//! in the cluster, and only bytes that came are in it. While a write is under way nothing is copied
//! into the buffer, so what is dirty when it ends is what it wrote.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_core::budget::{MemoryBudget, Reservation};
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, Error, IoBuf, Result};
use futures::future::{BoxFuture, Shared};

use super::Stored;
use crate::units::HostOffset;

/// A write that is under way. It belongs to the cache: whoever awaits it drives it on, and it goes on
/// if who began it is gone.
pub(super) type Flight = Shared<BoxFuture<'static, Result<()>>>;

/// Whether more may be expected in a host cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Growth {
    /// It is the one that the allocator fills.
    Filling,
    /// The allocator has moved on, or the cluster is full.
    Sealed,
}

/// What the file and the host cluster have to do with each other. Independent of [`Growth`]: a cluster
/// that is filled is written by a flush, and sealed or not while that is under way.
pub(super) enum Io {
    /// Nothing is under way.
    Idle,
    /// A write is under way, the only one.
    Flushing(Flight),
    /// The last write failed: all that was dirty still is.
    Failed(Error),
}

/// How far a compressed cluster is.
pub(super) enum Arrival {
    /// Its bytes have yet to come.
    Expected,
    /// They are in the buffer; a part in another host cluster is in that one's buffer.
    Here,
    /// They are here, and so is the part whose host cluster has left the cache.
    Rejoined(Rest),
}

/// Bytes in another host cluster than the one that keeps them.
pub(super) struct Rest {
    pub(super) bytes: Box<[u8]>,
    pub(super) _memory: Memory,
}

/// A compressed cluster of which something stands in the host cluster.
pub(super) struct Entry {
    pub(super) stored: Stored,
    pub(super) arrival: Arrival,
}

/// What of a compressed cluster stands in one host cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// The host cluster.
    pub(super) cluster: HostOffset,
    /// Where in it.
    pub(super) at: u64,
    /// Where in the compressed cluster.
    pub(super) from: u64,
    pub(super) len: u64,
}

impl Part {
    /// This part of the compressed cluster's `bytes`.
    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[to_usize(self.from)..to_usize(self.from + self.len)]
    }

    /// The same to be changed.
    pub(super) fn of_mut(self, bytes: &mut [u8]) -> &mut [u8] {
        &mut bytes[to_usize(self.from)..to_usize(self.from + self.len)]
    }
}

/// A host cluster in the cache.
pub(super) struct HostCluster {
    buf: IoBuf,
    entries: BTreeMap<HostOffset, Entry>,
    expected: usize,
    /// Bytes of the cluster that the file may not have, as one range.
    dirty: Option<Range<u64>>,
    growth: Growth,
    pub(super) io: Io,
    _memory: Memory,
}

impl HostCluster {
    /// An empty one around a zeroed buffer of the cluster size.
    pub(super) fn new(buf: IoBuf, memory: Memory) -> Self {
        Self {
            buf,
            entries: BTreeMap::new(),
            expected: 0,
            dirty: None,
            growth: Growth::Filling,
            io: Io::Idle,
            _memory: memory,
        }
    }

    /// Bytes will come for `part` of `stored`. A cluster to whose end something is expected is full.
    pub(super) fn expect(&mut self, stored: Stored, part: Part) {
        assert_eq!(self.growth, Growth::Filling, "{stored:?} is expected in a sealed host cluster");
        debug_assert!(self.end() <= stored.offset.bytes(), "{stored:?} is expected out of order");
        self.entries.insert(stored.offset, Entry { stored, arrival: Arrival::Expected });
        self.expected += 1;
        if part.at + part.len == to_u64(self.buf.len()) {
            self.growth = Growth::Sealed;
        }
    }

    /// Takes the bytes for `part` of `stored`, which are expected and for which nothing is under way.
    pub(super) fn put(&mut self, stored: Stored, part: Part, bytes: &[u8]) {
        let entry = self.entries.get_mut(&stored.offset).filter(|entry| entry.stored == stored);
        let expected = entry.filter(|entry| matches!(entry.arrival, Arrival::Expected));
        match expected {
            Some(entry) => entry.arrival = Arrival::Here,
            None => panic!("{stored:?} is not expected"),
        }
        assert!(self.flight().is_none(), "the buffer is being written");
        self.expected -= 1;
        self.buf.copy_from(to_usize(part.at), part.of(bytes));
        let new = part.at..part.at + part.len;
        self.dirty = Some(match self.dirty.take() {
            None => new,
            Some(old) => old.start.min(new.start)..old.end.max(new.end),
        });
    }

    /// Nothing more will be expected.
    pub(super) fn seal(&mut self) {
        self.growth = Growth::Sealed;
    }

    /// Forgets a compressed cluster, whether its bytes came or not.
    pub(super) fn forget(&mut self, stored: Stored) {
        let known = self.entries.get(&stored.offset).is_some_and(|entry| entry.stored == stored);
        let entry = if known { self.entries.remove(&stored.offset) } else { None };
        if entry.is_some_and(|entry| matches!(entry.arrival, Arrival::Expected)) {
            self.expected -= 1;
        }
    }

    /// Nothing in it is wanted any more: there is nothing to write, and no failure to remember.
    pub(super) fn forgive(&mut self) {
        if self.entries.is_empty() && self.flight().is_none() {
            self.dirty = None;
            self.io = Io::Idle;
        }
    }

    /// A write ended.
    pub(super) fn end_flight(&mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                self.dirty = None;
                self.io = Io::Idle;
            }
            Err(error) => self.io = Io::Failed(error),
        }
    }

    /// The write under way.
    pub(super) fn flight(&self) -> Option<&Flight> {
        match &self.io {
            Io::Flushing(flight) => Some(flight),
            Io::Idle | Io::Failed(_) => None,
        }
    }

    /// What the last write failed with, unless a write is under way again.
    pub(super) fn failure(&self) -> Option<Error> {
        match self.io {
            Io::Failed(error) => Some(error),
            Io::Idle | Io::Flushing(_) => None,
        }
    }

    pub(super) fn growth(&self) -> Growth {
        self.growth
    }

    /// Whether nothing will be added to it.
    pub(super) fn is_complete(&self) -> bool {
        self.growth == Growth::Sealed && self.expected == 0
    }

    /// Whether some of it is not in the file.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.is_some()
    }

    /// Whether it is to be written and nobody does.
    pub(super) fn is_ready(&self) -> bool {
        self.is_complete() && self.is_dirty() && matches!(self.io, Io::Idle)
    }

    /// Whether it may leave the cache.
    pub(super) fn is_done(&self) -> bool {
        self.is_complete() && !self.is_dirty() && matches!(self.io, Io::Idle)
    }

    /// What is to be written, in whole blocks of `align`: where in the cluster, and the bytes. What the
    /// blocks hold beside compressed clusters is zero.
    pub(super) fn to_write(&self, align: Alignment) -> Option<(u64, IoBuf)> {
        let dirty = self.dirty.as_ref()?;
        let start = align.round_down(dirty.start);
        let len = align.round_up(dirty.end).min(to_u64(self.buf.len())) - start;
        Some((start, self.buf.slice(to_usize(start), to_usize(len))))
    }

    pub(super) fn entry(&self, start: HostOffset) -> Option<&Entry> {
        self.entries.get(&start)
    }

    /// Keeps the rest of a compressed cluster whose bytes came.
    pub(super) fn rejoin(&mut self, stored: Stored, rest: Rest) {
        let entry = self.entries.get_mut(&stored.offset).filter(|entry| entry.stored == stored);
        if let Some(entry) = entry {
            entry.arrival = Arrival::Rejoined(rest);
        }
    }

    /// The first and the last compressed cluster: no other reaches out of the host cluster.
    pub(super) fn outermost(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().take(1).chain(self.entries.values().skip(1).next_back())
    }

    /// Copies what the buffer has of a compressed cluster to its place in `bytes`.
    pub(super) fn copy_part(&self, part: Part, bytes: &mut [u8]) {
        self.buf.copy_to(to_usize(part.at), part.of_mut(bytes));
    }

    /// Where in the file the last compressed cluster ends.
    fn end(&self) -> u64 {
        self.entries.values().next_back().map_or(0, |entry| entry.stored.end())
    }
}

/// Bytes that the cache holds: counted here, and taken from the budget of the chain.
pub(super) struct Memory {
    bytes: u64,
    used: Arc<AtomicU64>,
    _reservation: Reservation,
}

impl Memory {
    /// Takes them, even where the budget has no more: whether it has was asked before.
    pub(super) fn take(bytes: u64, used: &Arc<AtomicU64>, budget: &Arc<MemoryBudget>) -> Self {
        let reserved = budget.try_reserve(bytes);
        let reservation = reserved.unwrap_or_else(|| budget.reserve_minimum(bytes));
        used.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, used: Arc::clone(used), _reservation: reservation }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
