//! The first change of an open extent: what is free, and the mark that it is being changed.
//!
//! All tables are read once, in large pieces and without the holes of the file, so that afterwards no
//! allocation asks the file anything. New grains go behind the highest one that is referenced: the end of
//! the file says nothing where the file is a block device, was made long in advance, or was left long by a
//! crash.
//!
//! In an extent that was not closed properly the redundant tables may be behind; they are brought up to
//! date. **Invariant.** Before anything else changes in the file, the mark is stable in it.

use std::sync::atomic::Ordering;

use block_core::metadata::bytes::{is_hole, read_inside, write_bytes};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, Result};
use roaring::RoaringBitmap;

use super::SparseExtent;
use super::lookup::decode_table;
use super::space::{SECTORS_MAX, Space};
use super::writer::Meta;
use crate::extent::geometry::{Entry, SECTOR};
use crate::extent::layout::Header;
use crate::spec::sparse;

/// Most bytes of tables that are read at once.
const CHUNK: u64 = 1 << 20;

/// Most grains between others that are looked for, as they take memory.
const MOST_HOLES: u32 = 1 << 16;

/// What all tables together say.
struct Survey {
    /// The sector behind the highest grain.
    end: u64,
    /// Slots of grains that are referenced.
    used: RoaringBitmap,
    /// Slots that are referenced more than once.
    shared: RoaringBitmap,
}

/// Grains that more than one entry refers to, or that overlap: their space is not given to others.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedGrains {
    slots: RoaringBitmap,
    phase: u64,
    grain: u64,
}

impl SharedGrains {
    /// The first of the slots that a grain at `sector` touches, and the last.
    fn slots_of(&self, sector: u64) -> Option<(u32, u32)> {
        let from = sector.checked_sub(self.phase)?;
        let first = u32::try_from(from / self.grain).ok()?;
        Some((first, first.checked_add(u32::from(!from.is_multiple_of(self.grain)))?))
    }

    /// Whether a grain at `sector` may have another owner.
    pub(super) fn contains(&self, sector: u64) -> bool {
        match self.slots_of(sector) {
            Some((first, last)) => self.slots.contains(first) || self.slots.contains(last),
            None => true,
        }
    }
}

impl SparseExtent {
    /// Sees to it that the extent may be changed.
    pub(super) async fn begin_change(&self) -> Result<()> {
        let writer = self.writer()?;
        if writer.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut meta = writer.meta.lock().await;
        if writer.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        if meta.space.is_none() {
            self.survey(&mut meta).await?;
        }
        if self.layout.hosted().is_some() && !writer.unclean.load(Ordering::Acquire) {
            self.write_unclean(1).await?;
            self.file.flush().await?;
            writer.unclean.store(true, Ordering::Release);
        }
        writer.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes the unclean-shutdown byte of the header.
    pub(super) async fn write_unclean(&self, value: u8) -> Result<()> {
        let mut sector = read_inside(&self.file, "header", 0, SECTOR).await?;
        if let Some(byte) = sector.get_mut(sparse::UNCLEAN_SHUTDOWN_AT) {
            *byte = value;
        }
        write_bytes(&self.file, 0, &sector).await
    }

    async fn survey(&self, meta: &mut Meta) -> Result<()> {
        let grain = self.grain_sectors();
        let phase = match &self.layout.header {
            Header::Hosted(header) => header.overhead().0 % grain,
            Header::Cowd(_) | Header::SeSparse(_) => 0,
        };
        let mut shared = SharedGrains { slots: RoaringBitmap::new(), phase, grain };
        let mut survey =
            Survey { end: 0, used: RoaringBitmap::new(), shared: RoaringBitmap::new() };
        let mut places: Vec<(u32, u64)> = {
            let gd = self.gd.read();
            gd.iter().copied().zip(0..).filter(|(sector, _)| *sector != 0).collect()
        };
        places.sort_unstable();
        let sectors = self.layout.table_sectors().0;
        let most = (CHUNK / SECTOR / sectors).max(1);
        let mut rest = &places[..];
        while let Some((first, _)) = rest.first().copied() {
            let follows = |(n, (sector, _)): &(u64, &(u32, u64))| {
                u64::from(*sector) == u64::from(first) + n * sectors && *n < most
            };
            let count = (0..).zip(rest).take_while(follows).count();
            let (chunk, after) = rest.split_at(count);
            self.survey_chunk(meta, chunk, &shared, &mut survey).await?;
            rest = after;
        }
        shared.slots = survey.shared;
        let writer = self.writer()?;
        if writer.unclean.load(Ordering::Acquire) {
            self.empty_redundant(meta).await?;
        }
        let overhead = self.layout.hosted().map_or(0, |header| header.overhead().0);
        let len = self.file.len();
        // A free sector behind the end of the file would leave a gap that nobody ever uses.
        let said = meta.free_sector.min(len.div_ceil(SECTOR));
        let next = survey.end.max(writer.metadata_end()).max(overhead).max(said);
        let grows = self.file.capabilities().grows_on_write;
        let limit = if grows { SECTORS_MAX } else { len / SECTOR };
        let mut space = Space::new(grain, next, len.div_ceil(SECTOR), limit);
        if !grows {
            // There is no more where this is used up: what earlier openings let go counts.
            self.find_holes(&survey.used, &shared, overhead, &mut space)?;
        }
        meta.space = Some(space);
        meta.shared = shared;
        Ok(())
    }

    /// Gives to `space` the slots before its end that hold no grain and no metadata.
    fn find_holes(
        &self,
        used: &RoaringBitmap,
        slots: &SharedGrains,
        overhead: u64,
        space: &mut Space,
    ) -> Result<()> {
        let (writer, grain) = (self.writer()?, self.grain_sectors());
        let count = space.end().saturating_sub(slots.phase) / grain;
        let mut found = 0;
        for slot in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            let sector = slots.phase + u64::from(slot) * grain;
            if used.contains(slot) || sector < overhead || !writer.is_free(sector, grain) {
                continue;
            }
            space.give_back(sector, grain);
            found += 1;
            if found == MOST_HOLES {
                break;
            }
        }
        Ok(())
    }

    /// Looks at tables that stand one after the other.
    async fn survey_chunk(
        &self,
        meta: &Meta,
        chunk: &[(u32, u64)],
        slots: &SharedGrains,
        survey: &mut Survey,
    ) -> Result<()> {
        let Some((first, _)) = chunk.first() else { return Ok(()) };
        let table_bytes = self.layout.table_bytes();
        let stride = self.layout.table_sectors().0 * SECTOR;
        let at = u64::from(*first) * SECTOR;
        let wanted = ByteRange::new(at, stride * to_u64(chunk.len()))?;
        // The file may end with the last table rather than with its sector.
        let least = stride * (to_u64(chunk.len()) - 1) + table_bytes;
        let len = wanted.intersect(ByteRange::up_to(self.file.len())).len().max(least);
        let unclean = self.writer()?.unclean.load(Ordering::Acquire);
        // Tables that were made in advance are holes mostly, and many.
        if is_hole(&self.file, ByteRange::new(at, len)?).await? {
            let empty = vec![0; to_usize(table_bytes)];
            for (_, number) in chunk.iter().filter(|_| unclean) {
                self.renew_redundant(meta, *number, &empty).await?;
            }
            return Ok(());
        }
        let bytes = read_inside(&self.file, "grain table", at, len).await?;
        for (table, (_, number)) in bytes.chunks(to_usize(stride)).zip(chunk) {
            let table = table.get(..to_usize(table_bytes)).unwrap_or_default();
            let mapped = self.geometry.table_range(*number).len();
            let grains = to_usize(self.geometry.grain_alignment().count_up(mapped));
            for word in decode_table(self.layout.entries, table).into_iter().take(grains) {
                if let Entry::At(at) = self.layout.entries.decode(word)? {
                    survey.note(slots, at / SECTOR, self.grain_sectors())?;
                }
            }
            if unclean {
                self.renew_redundant(meta, *number, table).await?;
            }
        }
        Ok(())
    }

    /// Empties redundant tables whose primary one the directory in the file does not name: a crash between
    /// the two directories leaves entries in them.
    async fn empty_redundant(&self, meta: &Meta) -> Result<()> {
        let empty = vec![0; to_usize(self.layout.table_bytes())];
        let count = meta.redundant.as_ref().map_or(0, |all| to_u64(all.len()));
        for number in (0..count).filter(|number| self.table_sector(*number) == 0) {
            self.renew_redundant(meta, number, &empty).await?;
        }
        Ok(())
    }

    /// Writes a redundant table anew that is not what the primary one is.
    async fn renew_redundant(&self, meta: &Meta, number: u64, primary: &[u8]) -> Result<()> {
        let place = meta.redundant.as_ref().and_then(|all| all.get(to_usize(number)));
        let Some(sector) = place.copied().filter(|sector| *sector != 0) else { return Ok(()) };
        let (at, len) = (u64::from(sector) * SECTOR, to_u64(primary.len()));
        let is_empty = primary.iter().all(|byte| *byte == 0);
        if is_empty && is_hole(&self.file, ByteRange::new(at, len)?).await? {
            return Ok(());
        }
        let redundant = read_inside(&self.file, "redundant grain table", at, len).await?;
        if *redundant == *primary {
            return Ok(());
        }
        write_bytes(&self.file, at, primary).await
    }

    /// Sectors of a grain.
    pub(super) fn grain_sectors(&self) -> u64 {
        self.geometry.grain_size() / SECTOR
    }
}

impl Survey {
    fn note(&mut self, slots: &SharedGrains, sector: u64, grain: u64) -> Result<()> {
        let corrupt = Error::Corrupt { what: "grain table entry", value: sector };
        let end = sector.checked_add(grain).filter(|end| *end <= SECTORS_MAX).ok_or(corrupt)?;
        self.end = self.end.max(end);
        // One that starts before the first slot may reach into it.
        let (first, last) = slots.slots_of(sector).unwrap_or((0, 1));
        for slot in first..=last {
            if !self.used.insert(slot) || first != last {
                self.shared.insert(slot);
            }
        }
        Ok(())
    }
}
