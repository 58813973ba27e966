//! Writes, step by step, several steps at once.
//!
//! A step is planned under the metadata lock; its data moves outside of it; new grains are linked under
//! the lock again, once their data was written. An error gives back the grains that the step took.
//!
//! **Invariants.** Steps of one write touch different grains. At most [`AT_ONCE`] are in flight, and
//! when the write answers none is, also after an error.

use std::sync::Arc;

use block_core::metadata::bytes::write_bytes;
use block_core::metadata::inflight::{Blocker, Running};
use block_core::metadata::steps;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, IoVec, RequestFlags, Result};
use futures::future::BoxFuture;
use futures::stream;

use super::lookup::Kind;
use super::plan::{self, Allocation, Step};
use super::space::Place;
use super::writeback::WriteBack;
use super::writer::{Meta, directory_sector};
use super::{SparseExtent, Table};
use crate::extent::geometry::SECTOR;

/// Most steps of one write in flight.
const AT_ONCE: usize = 8;

/// A step that was planned, with all that it needs.
pub(super) enum Work {
    /// Write where the grains are.
    InPlace {
        /// What of the extent.
        range: ByteRange,
        /// Byte of the file.
        at: u64,
    },
    /// Write to new grains, and link them.
    Allocate { allocation: Allocation, place: Place, running: Running },
}

impl Work {
    /// What of the write it does.
    fn range(&self) -> ByteRange {
        match self {
            Self::InPlace { range, .. } => *range,
            Self::Allocate { allocation, .. } => allocation.write,
        }
    }
}

impl SparseExtent {
    /// Where in the file all of `range` is, if that is one run and its table is at hand.
    #[inline]
    pub(crate) fn in_place_at_once(&self, range: ByteRange) -> Option<Result<ByteRange>> {
        let writer = self.writer.as_ref()?;
        match self.run_at_once(range)? {
            Ok(run) if run.len == range.len() => match run.kind {
                Kind::Data(at) => {
                    let host = ByteRange::new(at, range.len()).map_err(Error::from);
                    Some(host.and_then(|host| writer.check_data(host).map(|()| host)))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Writes `iov` to `range`, which lies inside of the extent.
    pub(crate) async fn write(self: &Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let pass = self.enter().await;
        if let Some(host) = self.in_place_at_once(range) {
            self.event("write_aio");
            return self.file.write(host?, iov, RequestFlags::empty()).await;
        }
        drop(pass);
        // Boxed, so that the future of the short way above stays small.
        let written: BoxFuture<'_, _> =
            Box::pin(self.with_room(move || self.write_steps(range, iov.clone())));
        written.await
    }

    async fn write_steps(self: &Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let _pass = self.enter().await;
        self.begin_change().await?;
        let first = self.next_work(range).await?;
        if first.range() == range {
            return self.do_work(first, iov).await;
        }
        let iov = &iov;
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
                    let part = work.range();
                    let skip = to_usize(part.offset() - range.offset());
                    let iov = iov.slice(skip, to_usize(part.len()));
                    let rest = rest.split_at(part.len()).1;
                    Some((Ok(self.do_work(work, iov)), (None, rest)))
                }
                Err(error) => Some((Err(error), (None, ByteRange::default()))),
            }
        });
        steps::run(AT_ONCE, works).await
    }

    /// Plans the first step of a write to `rest`. Waits for allocations in its way.
    async fn next_work(self: &Arc<Self>, rest: ByteRange) -> Result<Work> {
        let lock = &self.writer()?.meta;
        loop {
            self.relieve().await?;
            let mut meta = lock.lock().await;
            let work = self.try_work(&mut meta, rest).await?;
            drop(meta);
            match work {
                Ok(work) => return Ok(work),
                Err(blocker) => self.allocations.wait(blocker).await,
            }
        }
    }

    async fn try_work(&self, meta: &mut Meta, rest: ByteRange) -> Result<Result<Work, Blocker>> {
        let geometry = self.geometry;
        let free = match self.allocations.free_prefix(rest.expand(geometry.grain_alignment())) {
            Ok(free) => free,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let number = geometry.table_of(rest.offset());
        let within = rest.intersect(free).intersect(geometry.table_range(number));
        let table = self.table(number).await?;
        let allocation = match plan::plan(geometry, self.layout.entries, &table, within)? {
            Step::InPlace { len, at } => {
                let range = within.first(len);
                self.writer()?.check_data(ByteRange::new(at, len)?)?;
                return Ok(Ok(Work::InPlace { range, at }));
            }
            Step::Allocate(allocation) => allocation,
        };
        self.event("cluster_alloc");
        let wanted = geometry.grain_alignment().count_up(allocation.grains.len());
        let place = meta.space()?.allocate(wanted)?;
        let allocation = if place.grains == wanted {
            allocation
        } else {
            // Fewer grains in a row than wanted: the step is that much shorter.
            let end = allocation.grains.offset() + place.grains * geometry.grain_size();
            plan::allocation(geometry, allocation.write.intersect(ByteRange::up_to(end)))
        };
        self.grow_ahead(meta).await;
        let running = self.allocations.begin(allocation.grains);
        Ok(Ok(Work::Allocate { allocation, place, running }))
    }

    async fn do_work(self: &Arc<Self>, work: Work, data: IoVec) -> Result<()> {
        let (allocation, place, _running) = match work {
            Work::InPlace { range, at } => {
                let host = ByteRange::new(at, range.len())?;
                self.event("write_aio");
                return self.file.write(host, data, RequestFlags::empty()).await;
            }
            Work::Allocate { allocation, place, running } => (allocation, place, running),
        };
        let linked = match self.fill(&allocation, place, data).await {
            Ok(()) => self.link(&allocation, place).await,
            failed => failed,
        };
        if linked.is_err() {
            let mut meta = self.writer()?.meta.lock().await;
            meta.give_back(place, self.grain_sectors());
        }
        linked
    }

    /// Puts grains whose data was written into their table.
    async fn link(&self, allocation: &Allocation, place: Place) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        let number = self.geometry.table_of(allocation.grains.offset());
        let table = self.table(number).await?;
        self.own_table(&mut meta, number, &table)?;
        self.change_table(number, table, |entries| {
            plan::link(self.geometry, self.layout.entries, entries, allocation, place.sector)
        })
    }

    /// Sees to it that a table, and its redundant copy, have a place in the file.
    pub(super) fn own_table(&self, meta: &mut Meta, number: u64, table: &Table) -> Result<()> {
        let sectors = self.layout.table_sectors().0;
        if self.table_sector(number) == 0 {
            let sector = self.place_table(meta, sectors)?;
            // First in the cache: the file does not hold it yet.
            self.tables.modify(number, Table::clone(table), |_| ());
            meta.unlinked.insert(number);
            meta.dirty_gd.insert(directory_sector(number));
            if let Some(entry) = self.gd.write().get_mut(to_usize(number)) {
                *entry = sector;
            }
        }
        let redundant = meta.redundant.as_ref().and_then(|all| all.get(to_usize(number)));
        if redundant == Some(&0) {
            let sector = self.place_table(meta, sectors)?;
            meta.unlinked_redundant.insert(number);
            meta.dirty_redundant.insert(directory_sector(number));
            let entry = meta.redundant.as_mut().and_then(|all| all.get_mut(to_usize(number)));
            if let Some(entry) = entry {
                *entry = sector;
            }
        }
        Ok(())
    }

    fn place_table(&self, meta: &mut Meta, sectors: u64) -> Result<u32> {
        let sector = meta.space()?.allocate_table(sectors)?;
        let sector = u32::try_from(sector).map_err(|_| Error::Os(libc::EFBIG))?;
        self.writer()?.note_table(sector, sectors);
        Ok(sector)
    }

    /// Changes a table, `loaded` since the metadata lock was taken.
    pub(super) fn change_table<R>(
        &self,
        number: u64,
        loaded: Table,
        change: impl FnOnce(&mut [u64]) -> Result<R>,
    ) -> Result<R> {
        self.tables.modify(number, loaded, |table| change(Table::make_mut(table)))
    }

    /// Writes tables back before more of them are dirty than the cache should hold.
    pub(super) async fn relieve(self: &Arc<Self>) -> Result<()> {
        match self.tables.is_crowded() {
            true => self.write_back(WriteBack::Flush).await,
            false => Ok(()),
        }
    }

    /// Makes the file reach beyond all that was given out, if it is about to grow.
    ///
    /// A write that makes a file longer excludes others, and a truncate is slow on some file systems. So
    /// one sector is written farther on than is needed; [`SparseExtent::take_back_growth`] cuts off what
    /// nobody used.
    async fn grow_ahead(&self, meta: &mut Meta) {
        let len = self.file.len();
        let end = meta.space.as_ref().map_or(0, |space| space.end().saturating_mul(SECTOR));
        if end <= len || !self.file.capabilities().grows_on_write {
            return;
        }
        let step = (len / 4).clamp(MIN_STEP, MAX_STEP);
        let wanted = end.saturating_add(step).next_multiple_of(PAGE);
        let zeroes = [0; 4096];
        // If this fails, so will the write, or it makes the file longer itself.
        let at = wanted - to_u64(zeroes.len());
        if write_bytes(&self.file, at, &zeroes).await.is_ok() {
            meta.grown_to = Some(wanted);
        }
    }
}

/// Least growth of the file in bytes.
const MIN_STEP: u64 = 1 << 20;
/// Most growth in bytes.
const MAX_STEP: u64 = 256 << 20;
/// What the file's length is a multiple of after it grew.
const PAGE: u64 = 4096;
