//! Writes that are not one run in place: step by step, several steps at once. The short way of the
//! smallest ones is [`crate::write_now`].
//!
//! A step is planned under the metadata lock; its data moves outside of it; an allocation is linked
//! under the lock again, once its data was written. An error gives back what the step took.
//!
//! **Invariants.** Steps of one write touch different clusters. At most [`AT_ONCE`] are in flight, and
//! when the write answers none is, also after an error.

use std::sync::Arc;

use block_core::driver::CopySource;
use block_core::range::to_usize;
use block_core::{ByteRange, Error, IoVec, Node, RequestFlags, Result};
use futures::future::BoxFuture;
use futures::stream;

use crate::alloc::{Meta, Place, Reason};
use crate::driver::Qcow2Driver;
use crate::mapping::Slice;
use crate::plan::{Allocation, WriteStep, link, plan};
use crate::reload::from_below;
use crate::spec::Fault;
use crate::tables::OwnSlice;
use crate::units::{GuestOffset, HostOffset};
use crate::writeback::Extent;
use block_core::metadata::inflight::{Blocker, Running};
use block_core::metadata::steps;

/// Most steps of one write in flight.
const AT_ONCE: usize = 8;

/// What a write puts down.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// Bytes in memory.
    Memory(IoVec),
    /// Bytes of another node, which the storage copies.
    Copy(CopySource),
}

impl Payload {
    /// `len` bytes of it from `start` on.
    fn slice(&self, start: u64, len: u64) -> Self {
        match self {
            Self::Memory(iov) => Self::Memory(iov.slice(to_usize(start), to_usize(len))),
            Self::Copy(source) => Self::Copy(source.further(start)),
        }
    }

    /// Puts it to `range` of `node`.
    pub(crate) async fn put(self, node: &Node, range: ByteRange) -> Result<()> {
        match self {
            Self::Memory(iov) => from_below(node.write(range, iov, RequestFlags::empty()).await),
            Self::Copy(source) => from_below(node.copy_from(range, source).await),
        }
    }

    /// The bytes, if they are in memory: what stands beside them in a cluster must be written with them.
    pub(crate) fn in_memory(self) -> Result<IoVec> {
        match self {
            Self::Memory(iov) => Ok(iov),
            Self::Copy(_) => Err(Error::Unsupported),
        }
    }
}

/// A planned step.
pub(crate) enum Work {
    /// The data goes where it was.
    InPlace { guest: ByteRange, host: HostOffset },
    /// The data goes to a new place.
    Allocate { allocation: Allocation, place: Place, running: Running },
}

impl Work {
    /// What of the guest's write it does.
    pub(crate) fn guest(&self) -> ByteRange {
        match self {
            Self::InPlace { guest, .. } => *guest,
            Self::Allocate { allocation, .. } => allocation.write,
        }
    }
}

impl Qcow2Driver {
    /// Where all of `range` is, if that is one run which may be written in place, and its L2 slice is
    /// at hand.
    #[inline]
    pub(crate) fn in_place_at_once(&self, range: ByteRange) -> Option<(ByteRange, &Node)> {
        let geometry = self.geometry();
        let slice = self.own_slice_at_once(GuestOffset::new(range.offset()))?;
        if range.end() > slice.guest_end {
            return None;
        }
        let look = |words: &_| plan(geometry, words, slice.first_entry, range);
        let step = self.slices.with(slice.at.bytes(), |words| look(words))?;
        match step {
            Ok(WriteStep::InPlace { len, host }) if len == range.len() => {
                let node = self.data.as_ref()?;
                Some((ByteRange::new(host.bytes(), len).ok()?, node))
            }
            _ => None,
        }
    }

    /// Writes `iov` to `range`, of the disk or of the machine state behind it. What is beyond the last
    /// cluster of the disk is left out.
    pub(crate) async fn write(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.put(range, Payload::Memory(iov)).await
    }

    /// Puts `payload` to `range`, as [`Qcow2Driver::write`] does.
    pub(crate) async fn put(self: Arc<Self>, range: ByteRange, payload: Payload) -> Result<()> {
        let inside = match range.offset() >= self.vm_state_start() {
            true => range,
            false => {
                let end = self.geometry().cluster_alignment().round_up(self.disk_len());
                range.intersect(ByteRange::up_to(end))
            }
        };
        if inside.is_empty() {
            return Ok(());
        }
        let first = self.next_work(inside).await?;
        if first.guest() == inside {
            let part = payload.slice(0, inside.len());
            return self.do_work(first, part).await;
        }
        // Boxed, so that the future of a write in one step stays small.
        let steps: BoxFuture<'_, _> = Box::pin(self.put_steps(first, inside, payload));
        steps.await
    }

    /// Puts `payload` to `range` in several steps, of which `first` is planned.
    async fn put_steps(
        self: &Arc<Self>,
        first: Work,
        range: ByteRange,
        payload: Payload,
    ) -> Result<()> {
        let payload = &payload;
        let works = stream::unfold((Some(first), range), |(planned, rest)| async move {
            if rest.is_empty() {
                return None;
            }
            let work = match planned {
                Some(work) => Ok(work),
                None => self.next_work(rest).await,
            };
            match work {
                Ok(work) => {
                    let guest = work.guest();
                    let rest = rest.split_at(guest.len()).1;
                    let part = payload.slice(guest.offset() - range.offset(), guest.len());
                    Some((Ok(self.do_work(work, part)), (None, rest)))
                }
                Err(error) => Some((Err(error), (None, ByteRange::default()))),
            }
        });
        steps::run(AT_ONCE, works).await
    }

    /// Plans the first step of a write to `rest`. Waits for allocations in its way.
    ///
    /// The metadata lock serves whoever waits for it in any order; a turn is what makes writes that begin
    /// in order be laid out in order.
    pub(crate) async fn next_work(&self, rest: ByteRange) -> Result<Work> {
        let writer = self.writer()?;
        let turn = writer.turns.take();
        turn.served().await;
        let mut meta = writer.meta.lock().await;
        drop(turn);
        loop {
            if let Some(extent) = self.strain(&meta) {
                drop(meta);
                self.write_back(extent).await?;
                meta = writer.meta.lock().await;
            }
            let work = self.try_work(&mut meta, rest).await?;
            drop(meta);
            match work {
                Ok(work) => return Ok(work),
                Err(blocker) => self.allocations.wait(blocker).await,
            }
            meta = writer.meta.lock().await;
        }
    }

    async fn try_work(&self, meta: &mut Meta, rest: ByteRange) -> Result<Result<Work, Blocker>> {
        let geometry = self.geometry();
        let whole = rest.expand(geometry.cluster_alignment());
        let free = match self.allocations.free_prefix(whole) {
            Ok(free) => free,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let offset = GuestOffset::new(rest.offset());
        let slice = self.own_slice(meta, offset).await?;
        let within = rest.intersect(free).intersect(ByteRange::up_to(slice.guest_end));
        let plan_of = |range| move |words: &[u64]| plan(geometry, words, slice.first_entry, range);
        let step = self.look_at_slice(slice, plan_of(within)).await?;
        let allocation = match step {
            WriteStep::InPlace { len, host } => {
                let guest = within.split_at(len).0;
                return Ok(Ok(Work::InPlace { guest, host }));
            }
            WriteStep::Allocate(allocation) => allocation,
        };
        let wanted = allocation.clusters.len() >> geometry.cluster_bits();
        let place = match allocation.keep {
            Some(host) => Place { host, count: wanted, fresh: false },
            None => {
                self.event("cluster_alloc");
                let first = GuestOffset::new(allocation.clusters.offset());
                let place = meta.allocate_data(first, wanted, &self.header).await?;
                if place.fresh {
                    let end = place.host.plus(place.count << geometry.cluster_bits());
                    self.grow_ahead(meta, end.bytes()).await;
                }
                place
            }
        };
        let allocation = if place.count == wanted {
            allocation
        } else {
            // Fewer clusters in a row than wanted: the step is that much shorter.
            let end = allocation.clusters.offset() + (place.count << geometry.cluster_bits());
            let shorter = within.intersect(ByteRange::up_to(end));
            match self.look_at_slice(slice, plan_of(shorter)).await {
                Ok(WriteStep::Allocate(allocation)) => allocation,
                Ok(WriteStep::InPlace { .. }) | Err(_) => {
                    meta.give_back(place);
                    return Err(Error::IO);
                }
            }
        };
        let running = self.allocations.begin(allocation.clusters);
        Ok(Ok(Work::Allocate { allocation, place, running }))
    }

    pub(crate) async fn do_work(self: &Arc<Self>, work: Work, data: Payload) -> Result<()> {
        let (allocation, place, _running) = match work {
            Work::InPlace { guest, host } => {
                let node = self.data.as_ref().ok_or(Error::Unsupported)?;
                let range = ByteRange::new(host.bytes(), guest.len())?;
                self.writer()?.overlap.check_data(range).map_err(|fault| self.fault(fault))?;
                self.event("write_aio");
                return data.put(node, range).await;
            }
            Work::Allocate { allocation, place, running } => (allocation, place, running),
        };
        let filled = self.fill(&allocation, place, data).await;
        let linked = match filled {
            Ok(()) => self.link(&allocation, place).await,
            failed => failed,
        };
        if linked.is_err() && allocation.keep.is_none() {
            self.writer()?.meta.lock().await.give_back(place);
        }
        linked
    }

    /// Puts an allocation whose data was written into the mapping.
    pub(crate) async fn link(&self, allocation: &Allocation, place: Place) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        let offset = GuestOffset::new(allocation.clusters.offset());
        let slice = self.own_slice(&mut meta, offset).await?;
        let loaded = self.slice_at(slice.at).await?;
        Ok(self.link_loaded(&mut meta, slice, loaded, allocation, place)?)
    }

    /// [`Qcow2Driver::link`] in a slice whose words, `loaded` since the metadata lock was taken, are at
    /// hand.
    pub(crate) fn link_loaded(
        &self,
        meta: &mut Meta,
        slice: OwnSlice,
        loaded: Slice,
        allocation: &Allocation,
        place: Place,
    ) -> Result<(), Fault> {
        let geometry = self.geometry();
        let overlap = &meta.overlap;
        let dropped = self.change_loaded(slice, loaded, |words| {
            let may_drop = |dropped| overlap.check_dropped(dropped);
            link(geometry, words, slice.first_entry, allocation, place.host, may_drop)
        })?;
        for dropped in dropped {
            meta.drop_data(dropped, Reason::Other);
        }
        Ok(())
    }

    /// What must be written back before more metadata becomes dirty than the caches should hold.
    pub(crate) fn strain(&self, meta: &Meta) -> Option<Extent> {
        if meta.is_hoarding() {
            Some(Extent::Reclaim)
        } else if self.slices.is_crowded() || meta.refcounts.is_crowded() {
            Some(Extent::Flush)
        } else {
            None
        }
    }

    /// Writes back what [`Qcow2Driver::strain`] tells. Called without the metadata lock.
    pub(crate) async fn relieve(&self) -> Result<()> {
        let strain = self.strain(&*self.writer()?.meta.lock().await);
        match strain {
            Some(extent) => self.write_back(extent).await,
            None => Ok(()),
        }
    }
}
