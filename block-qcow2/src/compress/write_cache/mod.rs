//! The write cache of compressed clusters: they are small and unaligned, the file is written in whole
//! host clusters.
//!
//! Compressed clusters are packed one behind the other. Written each by itself, every one costs a read
//! and a write of the blocks that it shares with its neighbours. Here they meet in memory, by host
//! cluster, and each host cluster is written once, by one aligned write, as soon as nothing more will be
//! added to it. It is a write cache: what is in the file is forgotten, and the file is never read.
//!
//! The life of a host cluster: the allocator *expects* compressed clusters in it and *seals* it when it
//! moves on; their bytes are *put*, in any order; when it is sealed and nothing is expected any more, it
//! is *complete*, is written, and leaves. A *flush* writes what there is before: whole blocks, padded
//! with zeroes, and the buffer is kept, so that the block that is filled later is not read back. A host
//! cluster that loses its last reference is *evicted*.
//!
//! **Invariants.**
//! - `used <= max(max_bytes, 3 clusters)`, if whoever expects asks for room before.
//! - One write of a host cluster at a time; meanwhile its buffer does not change.
//! - What was put and not abandoned is in memory until it is in the file. After a failed write it stays,
//!   and room, puts and flushes fail until a write of it succeeds.
//! - Where a write goes is compared with the places of metadata when it begins.
//!
//! **What the allocator promises.** A host cluster holds nothing but what was expected here since its
//! refcount was 0. Space in it is never used twice, and never after it was sealed. One host cluster is
//! not sealed, the one that is being filled.
//!
//! Lock order: the lock of the cache is an inner one, taken under the metadata lock too; it is held for
//! a few instructions and for copying compressed bytes.
//!
//! Not here: when the metadata that refers to the data is written. A host cluster that is smaller than
//! the file's request alignment is merged with its block by the request layer, which reads for that.

mod host_cluster;
mod state;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use block_core::budget::MemoryBudget;
use block_core::{Alignment, ByteRange, IoBuf, Node, RequestFlags, Result};
use futures::FutureExt;
use parking_lot::Mutex;

use self::host_cluster::Flight;
use self::state::{Outlook, PutAttempt, State, WriteAttempt};
use crate::overlap::OverlapMap;
use crate::units::HostOffset;

/// Where a compressed cluster stands in the file: its exact bytes, not rounded to sectors.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) offset: HostOffset,
    pub(crate) len: u64,
}

impl Stored {
    /// One past its last byte.
    fn end(self) -> u64 {
        self.offset.plus(self.len).bytes()
    }
}

/// What became of an eviction.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Eviction {
    /// Nothing of the host cluster is here, and nothing is on its way to the file.
    Done,
    /// A write of it is under way. Nothing was changed: flush, or come again later.
    InFlight,
}

/// Compressed clusters on their way to the file.
pub(crate) struct WriteCache {
    inner: Arc<Inner>,
}

/// What a write that is under way refers to.
struct Inner {
    /// Asked anew for its limits whenever they matter: a reopen may change them.
    file: Node,
    overlap: Arc<OverlapMap>,
    cluster_size: Alignment,
    /// Host clusters in memory; changed under the lock, looked at without.
    count: AtomicUsize,
    /// Guards all host clusters. Innermost lock; wakers run outside of it.
    state: Mutex<State>,
}

impl WriteCache {
    /// An empty cache before `file` of at most `max_bytes`, and of at least three host clusters.
    pub(crate) fn new(
        file: Node,
        cluster_bits: u32,
        overlap: Arc<OverlapMap>,
        budget: Arc<MemoryBudget>,
        max_bytes: u64,
    ) -> Self {
        let state = State::new(cluster_bits, budget, max_bytes);
        let cluster_size = Alignment::new(state.cluster_size()).unwrap_or(Alignment::PAGE);
        let (count, state) = (AtomicUsize::new(0), Mutex::new(state));
        Self { inner: Arc::new(Inner { file, overlap, cluster_size, count, state }) }
    }

    /// Waits until the host clusters of one more compressed cluster fit. Host clusters that should be
    /// written meanwhile, and those whose last write failed, are written here: an error is that of such a
    /// write, and nothing is lost by it.
    ///
    /// What was expected earlier may have to be put first, so who waits here must not be needed for
    /// that. Nobody else may come between this and the [`WriteCache::expect`] that it is for.
    pub(crate) async fn room(&self) -> Result<()> {
        loop {
            match poll_fn(|context| self.inner.poll_outlook(context)).await {
                Outlook::Room => return Ok(()),
                Outlook::Work => {
                    self.write_failed().await?;
                    self.write_ready().await?;
                }
                // Its failure is seen when the outlook is.
                Outlook::InFlight(flight) => drop(flight.await),
                Outlook::Bleak => {}
            }
        }
    }

    /// Bytes will come for `stored`, by [`WriteCache::put`], or it will be abandoned. Called by the
    /// allocator under the metadata lock, in the order of offsets within a host cluster.
    ///
    /// A new host cluster gets its memory here; without memory it fails and nothing is expected. A host
    /// cluster whose last byte is in `stored` is thereby sealed, also where this fails.
    pub(crate) fn expect(&self, stored: Stored) -> Result<()> {
        let mem_align = self.inner.file.limits().opt_mem_alignment;
        self.inner.change(|state| state.expect(stored, mem_align))
    }

    /// Nothing more will be expected in this host cluster, which may be unknown here. Called by the
    /// allocator under the metadata lock. Who next puts something or wants room writes it, if nothing is
    /// expected in it any more.
    pub(crate) fn seal(&self, cluster: HostOffset) {
        debug_assert!(self.inner.cluster_size.is_aligned(cluster.bytes()), "{cluster:?}");
        self.inner.change(|state| state.seal(cluster));
    }

    /// Brings the bytes that are expected, then writes host clusters that are complete and that nobody
    /// writes. A host cluster that is in flight is waited for before it is changed.
    ///
    /// On an error, and when the future is dropped (also before it was polled), the bytes are abandoned: the caller must not link
    /// them. The error may be that of an earlier write, of data whose writer was told that all is well.
    pub(crate) fn put(&self, stored: Stored, bytes: &[u8]) -> impl Future<Output = Result<()>> {
        // Made here: a future that is dropped before it was polled has to abandon them too.
        let unfinished = Unfinished { cache: self, stored };
        async move {
            self.write_failed().await?;
            while let PutAttempt::InFlight(flight) =
                self.inner.change(|state| state.try_put(stored, bytes))
            {
                // Its failure is that of who began it, and later of everybody.
                let _ = flight.await;
            }
            self.write_ready().await?;
            std::mem::forget(unfinished);
            Ok(())
        }
    }

    /// The bytes that are expected will not come, or those that came are not wanted any more. Harmless
    /// if nothing is known of them here.
    pub(crate) fn abandon(&self, stored: Stored) {
        self.inner.change(|state| state.abandon(stored));
    }

    /// The bytes of the compressed cluster that begins at `start`, exactly those, if a part of them may
    /// not be in the file yet.
    pub(crate) fn read(&self, start: HostOffset) -> Option<Vec<u8>> {
        if self.is_empty() {
            return None;
        }
        self.inner.state.lock().read(start)
    }

    /// Whether no host cluster is in memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.count.load(Ordering::Acquire) == 0
    }

    /// Brings to the file (not: makes stable) all that was put before the call, also what others are
    /// writing. Host clusters that are not complete are written as far as they are, and stay.
    ///
    /// One that fails does not keep the others from being written; the first error is returned, and what
    /// could not be written stays.
    pub(crate) async fn flush(&self) -> Result<()> {
        let dirty = self.inner.state.lock().dirty();
        let mut all = Ok(());
        for cluster in dirty {
            all = all.and(self.write_out(cluster).await);
        }
        all
    }

    /// Forgets a host cluster whose refcount is about to become 0. Called under the metadata lock, before
    /// the cluster can be given to anybody. If it is the one that is being filled, the allocator begins
    /// another one.
    pub(crate) fn evict(&self, cluster: HostOffset) -> Eviction {
        debug_assert!(self.inner.cluster_size.is_aligned(cluster.bytes()), "{cluster:?}");
        self.inner.change(|state| state.evict(cluster))
    }

    /// Forgets everything: the image is read anew, and the allocator begins a new host cluster. Called
    /// when no request is inside and no flush runs.
    pub(crate) fn clear(&self) {
        self.inner.change(State::clear);
    }

    /// Tries again what failed.
    async fn write_failed(&self) -> Result<()> {
        let failed = self.inner.state.lock().failed();
        for cluster in failed {
            self.write_out(cluster).await?;
        }
        Ok(())
    }

    /// Writes what is complete, unless somebody does.
    async fn write_ready(&self) -> Result<()> {
        while let Some(flight) = self.inner.change(|state| self.inner.write_first_ready(state)) {
            flight.await?;
        }
        Ok(())
    }

    /// Writes what is dirty in `cluster`. The failure of a write that somebody else began is theirs: it
    /// is tried again, once.
    async fn write_out(&self, cluster: HostOffset) -> Result<()> {
        loop {
            match self.inner.change(|state| self.inner.try_write(state, cluster)) {
                WriteAttempt::Clean => return Ok(()),
                WriteAttempt::Theirs(flight) => drop(flight.await),
                WriteAttempt::Ours(flight) => return flight.await,
            }
        }
    }
}

impl Inner {
    /// Changes the state, and wakes who waits for room if there may be a way to it. All is let go of
    /// before.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.count.store(state.count(), Ordering::Release);
        let waiters = if state.room_waiters.is_empty() || matches!(state.outlook(), Outlook::Bleak)
        {
            Vec::new()
        } else {
            std::mem::take(&mut state.room_waiters)
        };
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
        result
    }

    /// The outlook, once it is not bleak.
    fn poll_outlook(&self, context: &Context<'_>) -> Poll<Outlook> {
        let mut state = self.state.lock();
        let outlook = state.outlook();
        if !matches!(outlook, Outlook::Bleak) {
            return Poll::Ready(outlook);
        }
        if !state.room_waiters.iter().any(|waker| waker.will_wake(context.waker())) {
            state.room_waiters.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Begins a write of the first host cluster that should be written and nobody writes.
    fn write_first_ready(self: &Arc<Self>, state: &mut State) -> Option<Flight> {
        match self.try_write(state, state.first_ready()?) {
            WriteAttempt::Ours(flight) => Some(flight),
            WriteAttempt::Theirs(_) | WriteAttempt::Clean => None,
        }
    }

    /// Begins a write of `cluster`, if it is dirty and none is under way.
    fn try_write(self: &Arc<Self>, state: &mut State, cluster: HostOffset) -> WriteAttempt {
        let block = self.file.limits().request_alignment.max(Alignment::PAGE);
        state.try_write(cluster, block.min(self.cluster_size), |at, bytes| {
            let (file, overlap) = (self.file.clone(), Arc::clone(&self.overlap));
            let inner = Arc::downgrade(self);
            let write = async move {
                let result = write(file, overlap, cluster.plus(at), bytes).await;
                if let Some(inner) = Weak::upgrade(&inner) {
                    inner.change(|state| state.end_flight(cluster, result));
                }
                result
            };
            write.boxed().shared()
        })
    }
}

/// Writes `bytes` to `offset` of the file, if no metadata is there.
async fn write(
    file: Node,
    overlap: Arc<OverlapMap>,
    offset: HostOffset,
    bytes: IoBuf,
) -> Result<()> {
    let range = ByteRange::new(offset.bytes(), block_core::range::to_u64(bytes.len()))?;
    overlap.check_data(range)?;
    file.driver().event("write_compressed");
    file.write(range, bytes.into(), RequestFlags::empty()).await
}

/// Bytes that are being put; abandons them when dropped.
struct Unfinished<'a> {
    cache: &'a WriteCache,
    stored: Stored,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.cache.abandon(self.stored);
    }
}
