//! How changed metadata reaches the file, in an order that a crash anywhere leaves intact.
//!
//! 0. compressed clusters that are only in the write cache;
//! 1. refcount blocks, and slices of L2 tables that the file does not point at yet;
//! 2. a barrier, which covers guest data too;
//! 3. the refcount table, and a barrier, if it changed;
//! 4. slices of other L2 tables, and the L1 table;
//! 5. later, after another barrier: what the tables do not refer to any more is given back.
//!
//! **Invariants.** One write-back at a time (`writeback` before `meta` in the lock order). The
//! metadata lock is held only to take what is dirty and to note what was written; what changes
//! meanwhile is dirty again. After an error everything that may be missing in the file is dirty.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use block_core::metadata::steps;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, Result};
use futures::stream;

use crate::alloc::{Freed, Limbo, Meta};
use crate::compress::write_cache::Eviction;
use crate::driver::Qcow2Driver;
use crate::geometry::Version;
use crate::mapping::Slice;
use crate::metadata_io::{encode_words, flush, write_bytes};
use crate::overlap::Section;
use crate::refcounts::{DirtyPart, Place, Run, Step};
use crate::reload::from_below;
use crate::tables::L1_SECTOR_WORDS;
use crate::units::HostOffset;
use crate::writer::{LazyRefcounts, Writer};

/// Metadata writes in flight.
const AT_ONCE: usize = 8;

/// How far a write-back goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// What a flush needs: what was dropped may stay counted.
    Flush,
    /// And give back what was dropped.
    Reclaim,
    /// And write refcounts that are otherwise written lazily.
    Everything,
}

/// What one write-back writes.
struct Batch {
    blocks: Vec<DirtyPart>,
    table: Vec<DirtyPart>,
    unlinked: Vec<(u64, Slice)>,
    /// The tables of `unlinked`.
    unlinked_tables: HashSet<HostOffset>,
    linked: Vec<(u64, Slice)>,
    l1: Vec<DirtyPart>,
    l1_sectors: BTreeSet<u64>,
    dropped: Vec<Freed>,
    /// Dropped earlier: the first barrier makes it final.
    written: Vec<Freed>,
}

impl Batch {
    /// Whether anything in it must wait until what comes before is stable.
    fn has_barrier(&self) -> bool {
        let waits = !(self.linked.is_empty() && self.l1.is_empty() && self.table.is_empty());
        waits || !self.written.is_empty()
    }
}

impl Qcow2Driver {
    /// Writes back what is dirty when the call begins.
    pub(crate) async fn write_back(&self, extent: Extent) -> Result<()> {
        let _turn = self.writer()?.writeback.lock().await;
        let writer = self.writer()?;
        self.event("flush_to_os");
        // Version 2, to which an image may have been changed meanwhile, has no dirty bit.
        let can_be_lazy = self.geometry().version() == Version::V3;
        // Lazy is what need not be in memory all the time.
        let crowded = writer.meta.lock().await.refcounts.is_crowded();
        let lazy = writer.lazy == LazyRefcounts::On
            && extent != Extent::Everything
            && can_be_lazy
            && !crowded;
        while self.write_once(writer, lazy).await? == Place::Moved {}
        if extent != Extent::Flush {
            self.settle(writer).await?;
        }
        self.release(writer).await
    }

    /// Writes what is dirty now. If the refcount table moves meanwhile, all of it is dirty again.
    async fn write_once(&self, writer: &Writer, lazy: bool) -> Result<Place> {
        let batch = self.take_batch(&mut *writer.meta.lock().await, lazy);
        if lazy && !(batch.linked.is_empty() && batch.l1.is_empty()) {
            // Refcounts in the file are about to be wrong.
            let marked = self.mark_dirty().await;
            if let Err(error) = marked {
                self.end_batch(writer, batch, marked, &marked).await;
                return Err(error);
            }
        }
        let before = self.write_unlinked(&batch).await;
        let result = match before {
            Ok(()) => self.write_linked(&batch).await,
            Err(error) => Err(error),
        };
        let done = match result {
            Ok(Place::Same) => Ok(()),
            Ok(Place::Moved) => Err(Error::Busy),
            Err(error) => Err(error),
        };
        self.end_batch(writer, batch, before, &done).await;
        result
    }

    /// Sets the dirty bit in the file, for good until the image is closed.
    pub(crate) async fn mark_dirty(&self) -> Result<()> {
        if self.header.with(|parts| parts.header.features.dirty) {
            return Ok(());
        }
        self.header.update(|header| header.features.dirty = true).await?;
        flush(&self.file).await
    }

    /// Makes everything that was written stable, guest data included.
    pub(crate) async fn barrier(&self) -> Result<()> {
        self.event("flush_to_disk");
        if let Some(data) = self.data.as_ref().filter(|data| !data.same(&self.file)) {
            from_below(data.flush().await)?;
        }
        flush(&self.file).await
    }

    fn take_batch(&self, meta: &mut Meta, lazy: bool) -> Batch {
        let (blocks, table) = if lazy { Default::default() } else { meta.refcounts.begin_write() };
        let slices = self.slices.dirty();
        let cluster_size = self.geometry().cluster_alignment();
        let is_unlinked = |(at, _): &(u64, Slice)| {
            meta.unlinked.contains(&HostOffset::new(cluster_size.round_down(*at)))
        };
        let (unlinked, linked) = slices.into_iter().partition(is_unlinked);
        let l1_sectors = std::mem::take(&mut meta.dirty_l1);
        let l1_offset = self.header.with(|parts| parts.header.l1.offset);
        let l1 = self.l1.read();
        let part = |sector: &u64| {
            let words = l1.iter().copied().skip(to_usize(sector * L1_SECTOR_WORDS));
            let words: Vec<u64> = words.take(to_usize(L1_SECTOR_WORDS)).collect();
            DirtyPart {
                section: Section::ActiveL1,
                offset: l1_offset.plus(sector * L1_SECTOR_WORDS * 8),
                bytes: encode_words(&words),
            }
        };
        Batch {
            blocks,
            table,
            unlinked,
            unlinked_tables: std::mem::take(&mut meta.unlinked),
            linked,
            l1: l1_sectors.iter().map(part).collect(),
            l1_sectors,
            dropped: std::mem::take(&mut meta.dropped),
            written: std::mem::take(&mut meta.written),
        }
    }

    /// Writes what nothing in the file refers to yet, and makes it stable before anything does.
    async fn write_unlinked(&self, batch: &Batch) -> Result<()> {
        // Every entry of the batch was linked after its data was put there.
        if let Some(cache) = &self.writer()?.compressed.cache {
            cache.flush().await?;
        }
        self.write_parts(&batch.blocks, "refblock_update_part").await?;
        self.write_slices(&batch.unlinked).await?;
        match batch.has_barrier() {
            true => self.barrier().await,
            false => Ok(()),
        }
    }

    async fn write_linked(&self, batch: &Batch) -> Result<Place> {
        if !batch.table.is_empty() {
            self.write_parts(&batch.table, "reftable_update").await?;
            flush(&self.file).await?;
            let mut meta = self.writer()?.meta.lock().await;
            if meta.refcounts.confirm_table() == Place::Moved {
                return Ok(Place::Moved);
            }
        }
        self.write_slices(&batch.linked).await?;
        self.write_parts(&batch.l1, "l1_update").await?;
        Ok(Place::Same)
    }

    async fn write_parts(&self, parts: &[DirtyPart], event: &'static str) -> Result<()> {
        let overlap = &self.writer()?.overlap;
        let writes = parts.iter().map(|part| async move {
            let len = to_u64(part.bytes.len());
            overlap.check_metadata(part.section, part.offset, len)?;
            self.event(event);
            write_bytes(&self.file, part.offset, &part.bytes).await
        });
        steps::run(AT_ONCE, stream::iter(writes.map(Ok))).await
    }

    async fn write_slices(&self, slices: &[(u64, Slice)]) -> Result<()> {
        let overlap = &self.writer()?.overlap;
        let writes = slices.iter().map(|(at, words)| async move {
            let offset = HostOffset::new(*at);
            let bytes = encode_words(words);
            overlap.check_metadata(Section::ActiveL2, offset, to_u64(bytes.len()))?;
            self.event("l2_update");
            write_bytes(&self.file, offset, &bytes).await
        });
        steps::run(AT_ONCE, stream::iter(writes.map(Ok))).await
    }

    /// Notes what was written; after an error, that nothing was. `before` tells of what precedes the L1
    /// table: if that failed, nothing refers to the new tables, else the L1 table may.
    async fn end_batch(
        &self,
        writer: &Writer,
        batch: Batch,
        before: Result<()>,
        result: &Result<()>,
    ) {
        let mut meta = writer.meta.lock().await;
        meta.refcounts.end_write(result);
        match result {
            Ok(()) => {
                for (at, words) in batch.unlinked.iter().chain(&batch.linked) {
                    self.slices.clean(*at, |now| Arc::ptr_eq(now, words));
                }
                if !batch.written.is_empty() {
                    let since = self.gate.now();
                    meta.limbo.push_back(Limbo { freed: batch.written, since });
                }
                meta.written.extend(batch.dropped);
            }
            Err(_) => {
                if before.is_err() {
                    meta.unlinked.extend(batch.unlinked_tables);
                }
                meta.dirty_l1.extend(batch.l1_sectors);
                meta.dropped.extend(batch.dropped);
                meta.written.extend(batch.written);
            }
        }
    }

    /// Moves what was written to limbo, after a barrier.
    async fn settle(&self, writer: &Writer) -> Result<()> {
        let written = std::mem::take(&mut writer.meta.lock().await.written);
        if written.is_empty() {
            return Ok(());
        }
        let stable = self.barrier().await;
        let mut meta = writer.meta.lock().await;
        match stable {
            Ok(()) => {
                let since = self.gate.now();
                meta.limbo.push_back(Limbo { freed: written, since });
            }
            Err(_) => meta.written.extend(written),
        }
        stable
    }

    /// Gives back what nobody uses: punches its space out of the file, then lowers its refcount, so that
    /// it is not given out before the punch is done.
    async fn release(&self, writer: &Writer) -> Result<()> {
        let (mut ready, mut holes) = (Vec::new(), Vec::new());
        let mut failed = Ok(());
        {
            let mut meta = writer.meta.lock().await;
            for freed in meta.take_ready(|since| self.gate.is_past(since)) {
                if let Err(error) = retire_packing(writer, &mut meta, freed.run).await {
                    meta.written.push(freed);
                    failed = failed.and(Err(error));
                    continue;
                }
                if writer.discards.passes(freed.reason) {
                    match last_references(&mut meta, freed.run).await {
                        Ok(parts) => holes.extend(parts),
                        Err(error) => {
                            meta.written.push(freed);
                            failed = failed.and(Err(error));
                            continue;
                        }
                    }
                }
                ready.push(freed);
            }
        }
        for hole in holes {
            self.punch(hole).await;
        }
        let mut meta = writer.meta.lock().await;
        for freed in ready {
            let stepped = match evict_compressed(writer, &mut meta, freed.run).await {
                Ok(Eviction::InFlight) => {
                    // Its bytes are on their way to the file; nobody may get the place meanwhile.
                    meta.limbo.push_back(Limbo { freed: vec![freed], since: self.gate.now() });
                    continue;
                }
                Ok(Eviction::Done) => {
                    self.event("cluster_free");
                    self.forget_inflated(freed.run);
                    meta.refcounts.step(freed.run, Step::Down).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = stepped {
                // Counted too high until it is tried again: a leak at worst.
                meta.written.push(freed);
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    async fn punch(&self, hole: Run) {
        let bits = self.geometry().cluster_bits();
        let range = ByteRange::new(hole.first << bits, hole.count << bits);
        if let Ok(range) = range.map(|range| range.intersect(ByteRange::up_to(self.file.len()))) {
            // A hole that could not be made costs space, nothing else.
            let _ = self.file.discard(range).await;
        }
    }

    /// Inflated contents of compressed clusters that stood there.
    fn forget_inflated(&self, run: Run) {
        let bits = self.geometry().cluster_bits();
        let bounds = (run.first << bits, (run.first + run.count) << bits);
        self.clusters.retain(|offset| !(bounds.0..bounds.1).contains(&offset));
    }
}

/// Puts no more compressed clusters into a host cluster of `run` that is about to be free: what is written
/// to it from now on would be punched out.
async fn retire_packing(writer: &Writer, meta: &mut Meta, run: Run) -> Result<()> {
    let in_run = |cluster: u64| (run.first..run.first + run.count).contains(&cluster);
    let Some(packing) = meta.packing.filter(|packing| in_run(packing.cluster)) else {
        return Ok(());
    };
    if meta.refcounts.get(packing.cluster).await? == 1 {
        if let Some(cache) = &writer.compressed.cache {
            cache.seal(HostOffset::new(packing.cluster << meta.geometry.cluster_bits()));
        }
        meta.pack_into(None);
    }
    Ok(())
}

/// Forgets what waits to be written to those host clusters of a run that are about to be free.
async fn evict_compressed(writer: &Writer, meta: &mut Meta, run: Run) -> Result<Eviction> {
    let cache = writer.compressed.cache.as_ref().filter(|cache| !cache.is_empty());
    if cache.is_none() && meta.packing.is_none() {
        return Ok(Eviction::Done);
    }
    let bits = meta.geometry.cluster_bits();
    for last in last_references(meta, run).await? {
        for cluster in last.first..last.first + last.count {
            let host = HostOffset::new(cluster << bits);
            if cache.is_some_and(|cache| cache.evict(host) == Eviction::InFlight) {
                return Ok(Eviction::InFlight);
            }
            if meta.packing.is_some_and(|packing| packing.cluster == cluster) {
                meta.pack_into(None);
            }
        }
    }
    Ok(Eviction::Done)
}

/// The parts of a run that nobody else refers to.
async fn last_references(meta: &mut Meta, run: Run) -> Result<Vec<Run>> {
    let mut parts: Vec<Run> = Vec::new();
    for cluster in run.first..run.first + run.count {
        if meta.refcounts.get(cluster).await? != 1 {
            continue;
        }
        match parts.last_mut() {
            Some(last) if last.first + last.count == cluster => last.count += 1,
            _ => parts.push(Run { first: cluster, count: 1 }),
        }
    }
    Ok(parts)
}
