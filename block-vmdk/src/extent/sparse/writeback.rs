//! How changed tables reach the file, in an order that a crash anywhere leaves intact.
//!
//! 1. tables that no directory in the file names yet;
//! 2. a barrier, which covers guest data too;
//! 3. other tables and the directories, primary and redundant, and the header of a COWD extent;
//! 4. later, after another barrier: what the tables do not refer to any more is free.
//!
//! **Invariants.** One write-back at a time. The metadata lock is held only to take what is dirty and to
//! note what was written; what changes meanwhile is dirty again. After an error everything that may be
//! missing in the file is dirty. A write-back that has begun is finished, also where nobody waits for it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::driver::{Exactness, Prealloc};
use block_core::metadata::bytes::write_bytes;
use block_core::metadata::gate::Exclusive;
use block_core::metadata::steps;
use block_core::range::to_usize;
use block_core::{ByteRange, Error, Result, Support};
use futures::stream;

use super::writer::{Discards, Meta, Sectors, sector_entries};
use super::{SparseExtent, Table};
use crate::extent::geometry::SECTOR;
use crate::extent::layout::Header;
use crate::units::Sector;
use block_core::io::exec::to_the_end;

/// Metadata writes in flight.
const AT_ONCE: usize = 8;

/// How far a write-back goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum WriteBack {
    /// What a flush needs.
    Flush,
    /// And give back what was let go.
    Reclaim,
}

/// A piece of metadata: where it goes, and its bytes.
type Part = (u64, Vec<u8>);

/// What one write-back writes.
struct Batch {
    tables: Vec<(u64, Table)>,
    /// Before the barrier.
    unlinked: Vec<Part>,
    /// After it.
    linked: Vec<Part>,
    gd_sectors: BTreeSet<u64>,
    redundant_sectors: BTreeSet<u64>,
    unlinked_tables: HashSet<u64>,
    unlinked_redundant: HashSet<u64>,
    free_sector: u64,
    dropped: Vec<Sectors>,
    /// Dropped earlier: the barrier makes it final.
    written: Vec<Sectors>,
}

impl SparseExtent {
    /// Writes back what is dirty when the call begins.
    pub(crate) async fn write_back(self: &Arc<Self>, extent: WriteBack) -> Result<()> {
        let this = Arc::clone(self);
        to_the_end(async move { this.write_back_here(extent).await }).await
    }

    async fn write_back_here(&self, extent: WriteBack) -> Result<()> {
        let writer = self.writer()?;
        let _turn = writer.writeback.lock().await;
        self.event("flush_to_os");
        let batch = self.take_batch(&mut *writer.meta.lock().await)?;
        let before = self.write_unlinked(&batch).await;
        let result = match before {
            Ok(()) => self.write_parts(&batch.linked).await,
            failed => failed,
        };
        self.end_batch(batch, before, result).await;
        result?;
        if extent == WriteBack::Reclaim {
            self.settle().await?;
        }
        self.release().await
    }

    fn take_batch(&self, meta: &mut Meta) -> Result<Batch> {
        let tables = self.tables.dirty();
        let encoded = tables.iter().map(|(_, table)| encode(table));
        let encoded = encoded.collect::<Result<Vec<_>>>()?;
        let mut batch = Batch {
            tables,
            unlinked: Vec::new(),
            linked: Vec::new(),
            gd_sectors: std::mem::take(&mut meta.dirty_gd),
            redundant_sectors: std::mem::take(&mut meta.dirty_redundant),
            unlinked_tables: std::mem::take(&mut meta.unlinked),
            unlinked_redundant: std::mem::take(&mut meta.unlinked_redundant),
            free_sector: meta.space.as_ref().map_or(meta.free_sector, |space| space.end()),
            dropped: std::mem::take(&mut meta.dropped),
            written: std::mem::take(&mut meta.written),
        };
        let gd = self.gd.read();
        let entry = |all: &[u32], number: u64| all.get(to_usize(number)).copied().unwrap_or(0);
        for ((number, _), bytes) in batch.tables.iter().zip(encoded) {
            if let Some(all) = &meta.redundant {
                let part = (u64::from(entry(all, *number)) * SECTOR, bytes.clone());
                match batch.unlinked_redundant.contains(number) {
                    true => batch.unlinked.push(part),
                    false => batch.linked.push(part),
                }
            }
            let part = (u64::from(entry(&gd, *number)) * SECTOR, bytes);
            match batch.unlinked_tables.contains(number) {
                true => batch.unlinked.push(part),
                false => batch.linked.push(part),
            }
        }
        let directory = |place: Sector, all: &[u32], sector: u64| {
            ((place.0 + sector) * SECTOR, sector_entries(all, sector))
        };
        let gd_parts = batch.gd_sectors.iter().map(|n| directory(self.layout.gd, &gd, *n));
        batch.linked.extend(gd_parts);
        if let (Some(place), Some(all)) = (self.layout.redundant_gd, &meta.redundant) {
            let parts = batch.redundant_sectors.iter().map(|n| directory(place, all, *n));
            batch.linked.extend(parts);
        }
        if let Header::Cowd(header) = &self.layout.header
            && batch.free_sector != meta.free_sector
            && let Some(header) = header.with_free_sector(Sector(batch.free_sector))
        {
            batch.linked.push((0, header.to_bytes().to_vec()));
        }
        Ok(batch)
    }

    /// Writes what nothing in the file refers to yet, and makes it stable before anything does.
    async fn write_unlinked(&self, batch: &Batch) -> Result<()> {
        self.write_parts(&batch.unlinked).await?;
        match batch.linked.is_empty() && batch.written.is_empty() {
            true => Ok(()),
            false => self.barrier().await,
        }
    }

    async fn write_parts(&self, parts: &[Part]) -> Result<()> {
        let mut writes = Vec::with_capacity(parts.len());
        for (at, bytes) in parts {
            self.event("l2_update");
            writes.push(Ok(write_bytes(&self.file, *at, bytes)));
        }
        steps::run(AT_ONCE, stream::iter(writes)).await
    }

    /// Makes everything that was written stable, guest data included.
    async fn barrier(&self) -> Result<()> {
        self.event("flush_to_disk");
        self.file.flush().await
    }

    /// Notes what was written; after an error, that nothing was. `before` tells of what precedes the
    /// directories: if that failed, they do not name the new tables, else they may.
    async fn end_batch(&self, batch: Batch, before: Result<()>, result: Result<()>) {
        let Ok(writer) = self.writer() else { return };
        let mut meta = writer.meta.lock().await;
        match result {
            Ok(()) => {
                for (number, table) in &batch.tables {
                    self.tables.clean(*number, |now| Table::ptr_eq(now, table));
                }
                meta.free_sector = batch.free_sector;
                if !batch.written.is_empty() {
                    let since = self.gate.now();
                    meta.limbo.push_back((batch.written, since));
                }
                meta.written.extend(batch.dropped);
            }
            Err(_) => {
                meta.dirty_gd.extend(batch.gd_sectors);
                meta.dirty_redundant.extend(batch.redundant_sectors);
                meta.dropped.extend(batch.dropped);
                meta.written.extend(batch.written);
                if before.is_err() {
                    meta.unlinked.extend(batch.unlinked_tables);
                    meta.unlinked_redundant.extend(batch.unlinked_redundant);
                }
            }
        }
    }

    /// Moves what was written to limbo, after a barrier.
    async fn settle(&self) -> Result<()> {
        let writer = self.writer()?;
        let written = std::mem::take(&mut writer.meta.lock().await.written);
        if written.is_empty() {
            return Ok(());
        }
        let stable = self.barrier().await;
        let mut meta = writer.meta.lock().await;
        match stable {
            Ok(()) => {
                let since = self.gate.now();
                meta.limbo.push_back((written, since));
            }
            Err(_) => meta.written.extend(written),
        }
        stable
    }

    /// Gives back what nobody uses; its space is punched out of the file first, where that is wanted.
    pub(super) async fn release(&self) -> Result<()> {
        let writer = self.writer()?;
        let ready = writer.meta.lock().await.take_ready(|since| self.gate.is_past(since));
        if ready.is_empty() {
            return Ok(());
        }
        if writer.discards == Discards::Pass {
            for (sector, count) in &ready {
                let range = ByteRange::new(sector * SECTOR, count * SECTOR)?;
                // A hole that could not be made costs space, nothing else.
                let _ = self.file.discard(range.intersect(ByteRange::up_to(self.file.len()))).await;
            }
        }
        let mut meta = writer.meta.lock().await;
        let space = meta.space()?;
        ready.into_iter().for_each(|(sector, count)| space.give_back(sector, count));
        Ok(())
    }

    /// Writes everything back and takes away the mark that the extent is being changed, while nobody is
    /// inside of the gate.
    pub(crate) async fn finish_writing(self: &Arc<Self>) -> Result<()> {
        let this = Arc::clone(self);
        to_the_end(async move {
            let _alone = this.exclusive().await;
            this.finish_alone().await
        })
        .await
    }

    /// The same; while the answer lives, nobody enters.
    pub(crate) async fn finish_and_close(self: &Arc<Self>) -> Result<Exclusive<'_>> {
        loop {
            self.finish_writing().await?;
            let alone = self.exclusive().await;
            // Others may have come between the two.
            if !self.writer()?.begun.load(Ordering::Acquire) {
                return Ok(alone);
            }
        }
    }

    async fn finish_alone(&self) -> Result<()> {
        let writer = self.writer()?;
        if !writer.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write_back_here(WriteBack::Reclaim).await?;
        self.take_back_growth().await?;
        self.barrier().await?;
        if self.layout.hosted().is_some() {
            self.write_unclean(0).await?;
            self.barrier().await?;
            writer.unclean.store(false, Ordering::Release);
        }
        writer.begun.store(false, Ordering::Release);
        Ok(())
    }

    /// Makes the file as long as what was given out of it.
    async fn take_back_growth(&self) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        let grown_to = meta.grown_to;
        let Some(space) = &meta.space else { return Ok(()) };
        let end = space.end() * SECTOR;
        let can_cut = self.file.capabilities().truncate == Support::Native;
        if can_cut && grown_to == Some(self.file.len()) && end < self.file.len() {
            self.file.truncate(end, Exactness::AtLeast, Prealloc::Off).await?;
        }
        meta.grown_to = None;
        Ok(())
    }
}

/// A hosted or COWD table as it stands in the file.
fn encode(table: &[u64]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(table.len() * 4);
    for word in table {
        let word = u32::try_from(*word).map_err(|_| Error::Os(libc::EFBIG))?;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    Ok(bytes)
}
