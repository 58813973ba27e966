//! Writing bitmaps: everything new first, then the header's word for it, then the old goes.
//!
//! 1. Bits and tables into new clusters, a new directory that refers to them; all of it stable, with
//!    its refcounts.
//! 2. The header refers to the new directory ([`HeaderStore::set_bitmaps`]); stable.
//! 3. Clusters of the old directory are dropped like any others.
//!
//! An error before step 2 gives the new clusters back and leaves the old bitmaps; an error in it leaves
//! both, as nobody knows which of them the file refers to; before the disk changes, both are marked.
//!
//! [`HeaderStore::set_bitmaps`]: crate::header_store::HeaderStore::set_bitmaps

use std::sync::atomic::Ordering;

use block_core::dirty::{BitmapId, DirtyBitmap, DirtyBitmaps};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, Result};
use roaring::RoaringTreemap;

use super::bits::{ALL_ONES, Cluster, append, covered, parse_entry};
use super::{MAX_ALL_BYTES, PIECE, any_trusted, check_storable, table_size};
use crate::alloc::{Meta, Place, Reason};
use crate::driver::Qcow2Driver;
use crate::metadata_io::{encode_words, write_bytes};
use crate::overlap::Section;
use crate::refcounts::Want;
use crate::spec::bitmap::{Bitmap, MAX_DIRECTORY_BYTES};
use crate::spec::extension::BitmapsExtension;
use crate::table::read_words;
use crate::units::HostOffset;
use crate::writeback::Extent;
use crate::writer::Writer;

/// A bitmap that the new directory is to have.
struct Planned {
    entry: Bitmap,
    /// Where its bits come from; `None`: they stay where they are, and nobody trusts them.
    source: Option<BitmapId>,
}

/// Clusters that nothing refers to yet: runs of them, in bytes.
#[derive(Default)]
struct Taken(Vec<(HostOffset, u64)>);

impl Qcow2Driver {
    /// Writes the persistent ones of `from` to the image, in place of all that it has.
    pub(super) async fn store_bitmaps(&self, from: &DirtyBitmaps) -> Result<()> {
        let guard = &self.writer()?.bitmaps;
        let _turn = guard.turn.lock().await;
        // Clusters are taken, and who has an exclusive turn relies on nobody doing that.
        let _pass = self.gate.enter().await;
        let writer = self.writer()?;
        let old = self.lists.read().bitmaps.clone();
        let (revision, wanted) = (from.revision(), from.persistent());
        let (known, unsure) = (*guard.known.lock(), !guard.unsure.lock().is_empty());
        match known {
            None if wanted.is_empty() => return Ok(()),
            None if !old.is_empty() => return Err(Error::Invalid),
            Some(known) if known == revision && !guard.marked.load(Ordering::Acquire) => {
                return Ok(());
            }
            _ => {}
        }
        if unsure || !(wanted.is_empty() && old.is_empty()) {
            let planned = self.plan_bitmaps(from, &wanted, &old)?;
            self.clear_unknown().await?;
            let replaced = self.replace_bitmaps(writer, from, planned, old).await;
            if replaced.is_err() {
                // What the file may have of them is neither unknown to the next store nor good enough.
                guard.known.lock().get_or_insert(revision);
                guard.marked.store(true, Ordering::Release);
            }
            replaced?;
        }
        *guard.known.lock() = Some(revision);
        guard.marked.store(false, Ordering::Release);
        Ok(())
    }

    /// The entries of the new directory, as far as they are known before anything is written.
    fn plan_bitmaps(
        &self,
        from: &DirtyBitmaps,
        wanted: &[BitmapId],
        old: &[Bitmap],
    ) -> Result<Vec<Planned>> {
        let (geometry, disk_len) = (self.geometry(), self.disk_len());
        let mut all = Vec::new();
        for id in wanted {
            let describe = |bitmap: &DirtyBitmap| {
                let name = bitmap.name().unwrap_or_default().to_owned();
                let granularity = bitmap.granularity().bytes();
                (name, granularity, bitmap.is_enabled(), bitmap.is_inconsistent())
            };
            // Nobody else changes the bitmaps meanwhile.
            let (name, granularity, auto, inconsistent) =
                from.with(*id, describe).map_err(|_| Error::Busy)?;
            let before = old.iter().find(|old| old.name == name);
            if inconsistent {
                let before = before.ok_or(Error::Os(libc::EFBIG))?;
                let entry = Bitmap { in_use: true, ..before.clone() };
                all.push(Planned { entry, source: None });
                continue;
            }
            let entry = Bitmap {
                table_size: table_size(geometry, disk_len, granularity)?,
                table_offset: HostOffset::new(0),
                extra: before.map(|before| before.extra.clone()).unwrap_or_default(),
                in_use: false,
                name,
                granularity,
                auto,
            };
            all.push(Planned { entry, source: Some(*id) });
        }
        if !all.is_empty() {
            let entries: Vec<Bitmap> = all.iter().map(|planned| planned.entry.clone()).collect();
            check_storable(geometry, disk_len, &entries)?;
        }
        Ok(all)
    }

    async fn replace_bitmaps(
        &self,
        writer: &Writer,
        from: &DirtyBitmaps,
        mut planned: Vec<Planned>,
        old: Vec<Bitmap>,
    ) -> Result<()> {
        let old_directory = self.bitmaps_extension();
        let mut taken = Taken::default();
        let written = self.write_bitmaps(from, &mut planned, &mut taken).await;
        let directory = match written {
            Ok(directory) => directory,
            Err(error) => {
                let mut meta = writer.meta.lock().await;
                for (offset, len) in taken.0 {
                    meta.drop_metadata(offset, len, Reason::Other);
                }
                return Err(error);
            }
        };
        let kept: Vec<HostOffset> = planned
            .iter()
            .filter(|planned| planned.source.is_none())
            .map(|planned| planned.entry.table_offset)
            .collect();
        let new: Vec<Bitmap> = planned.into_iter().map(|planned| planned.entry).collect();
        if let Err(error) = self.header.set_bitmaps(directory).await {
            self.note_unsure(writer, [(old_directory, old), (directory, new)]);
            return Err(error);
        }
        writer.bitmaps.unsure.lock().clear();
        writer.bitmaps.trusted.store(any_trusted(&new), Ordering::Release);
        self.lists.write().bitmaps = new;
        let replaced = old.into_iter().filter(|old| !kept.contains(&old.table_offset)).collect();
        self.drop_bitmaps(writer, old_directory, replaced, &taken).await;
        Ok(())
    }

    /// Notes that the file may refer to any of these directories: the header was to be changed, and that
    /// failed. The one that it refers to in memory is that of the image.
    fn note_unsure(
        &self,
        writer: &Writer,
        directories: [(Option<BitmapsExtension>, Vec<Bitmap>); 2],
    ) {
        let known = self.bitmaps_extension();
        for (place, mut bitmaps) in directories {
            let Some(place) = place else { continue };
            if known == Some(place) {
                self.lists.write().bitmaps = bitmaps;
            } else {
                bitmaps.iter_mut().for_each(|bitmap| bitmap.in_use = true);
                writer.bitmaps.unsure.lock().push((place, bitmaps));
            }
        }
        writer.bitmaps.trusted.store(true, Ordering::Release);
    }

    /// Step 1. The directory; `None` if it would be empty.
    async fn write_bitmaps(
        &self,
        from: &DirtyBitmaps,
        planned: &mut [Planned],
        taken: &mut Taken,
    ) -> Result<Option<BitmapsExtension>> {
        if planned.is_empty() {
            return Ok(None);
        }
        for planned in &mut *planned {
            if let Some(id) = planned.source {
                planned.entry.table_offset =
                    self.write_bitmap(from, id, &planned.entry, taken).await?;
            }
        }
        let entries: Vec<Bitmap> = planned.iter().map(|planned| planned.entry.clone()).collect();
        let mut directory_size = 0;
        for entry in &entries {
            let bytes = crate::spec::bitmap::encode(entry).map_err(|_| Error::Invalid)?;
            directory_size += to_u64(bytes.len());
        }
        debug_assert!(directory_size <= MAX_DIRECTORY_BYTES, "checked by the plan");
        let whole = self.geometry().cluster_alignment().round_up(directory_size);
        let directory_offset = {
            let mut meta = self.writer()?.meta.lock().await;
            let clusters = whole >> self.geometry().cluster_bits();
            meta.allocate_metadata(Section::BitmapDirectory, clusters, &self.header).await?
        };
        taken.0.push((directory_offset, whole));
        self.write_directory(directory_offset, whole, &entries).await?;
        self.write_back(Extent::Everything).await?;
        self.barrier().await?;
        let count = u32::try_from(entries.len()).map_err(|_| Error::Os(libc::EFBIG))?;
        Ok(Some(BitmapsExtension { count, reserved: 0, directory_size, directory_offset }))
    }

    /// Writes the bits and the table of one bitmap; the place of the table.
    async fn write_bitmap(
        &self,
        from: &DirtyBitmaps,
        id: BitmapId,
        entry: &Bitmap,
        taken: &mut Taken,
    ) -> Result<HostOffset> {
        let cluster_size = self.geometry().cluster_size();
        let (len, step) = (self.disk_len(), covered(cluster_size, entry.granularity));
        let mut table = vec![0; to_usize(entry.table_size.into())];
        let (mut bytes, mut indexes) = (Vec::new(), Vec::new());
        let mut start: u64 = 0;
        for index in 0..table.len() {
            let end = start.saturating_add(step).min(len);
            let range = ByteRange::from_bounds(start, end)?;
            let look = |bitmap: &DirtyBitmap| {
                append(bitmap.granules(), range, to_usize(cluster_size), &mut bytes)
            };
            match from.with(id, look).map_err(|_| Error::Busy)? {
                Cluster::Zeroes => {}
                Cluster::Ones => table[index] = ALL_ONES,
                Cluster::At(_) => indexes.push(index),
            }
            if to_u64(bytes.len()) >= PIECE || index + 1 == table.len() {
                self.write_bits(&bytes, &indexes, &mut table, taken).await?;
                bytes.clear();
                indexes.clear();
            }
            start = end;
        }
        let whole = self.geometry().cluster_alignment().round_up(to_u64(table.len()) * 8);
        table.resize(to_usize(whole / 8), 0);
        let place = self.allocate_bitmap(Want::Exactly(whole / cluster_size), taken).await?;
        let mut at = 0;
        for piece in table.chunks(to_usize(PIECE / 8)) {
            write_bytes(&self.file, place.host.plus(at), &encode_words(piece)).await?;
            at += to_u64(piece.len()) * 8;
        }
        Ok(place.host)
    }

    /// Writes clusters of bits and notes in `table` where those of `indexes` are.
    async fn write_bits(
        &self,
        mut bytes: &[u8],
        indexes: &[usize],
        table: &mut [u64],
        taken: &mut Taken,
    ) -> Result<()> {
        let cluster_size = self.geometry().cluster_size();
        let mut indexes = indexes.iter();
        while !bytes.is_empty() {
            let clusters = to_u64(bytes.len()) / cluster_size;
            let place = self.allocate_bitmap(Want::UpTo(clusters), taken).await?;
            let len = to_usize(place.count * cluster_size).min(bytes.len());
            let (now, rest) = bytes.split_at(len);
            write_bytes(&self.file, place.host, now).await?;
            for (n, index) in (0..place.count).zip(&mut indexes) {
                table[*index] = place.host.plus(n * cluster_size).bytes();
            }
            bytes = rest;
        }
        Ok(())
    }

    async fn allocate_bitmap(&self, want: Want, taken: &mut Taken) -> Result<Place> {
        if taken.0.iter().map(|(_, len)| len).sum::<u64>() > MAX_ALL_BYTES {
            // They could not be loaded again.
            return Err(Error::Os(libc::EFBIG));
        }
        let place = self.writer()?.meta.lock().await.allocate_bitmap(want, &self.header).await?;
        taken.0.push((place.host, place.count << self.geometry().cluster_bits()));
        Ok(place)
    }

    /// Step 3. What cannot be told for sure is leaked rather than given back.
    async fn drop_bitmaps(
        &self,
        writer: &Writer,
        directory: Option<BitmapsExtension>,
        replaced: Vec<Bitmap>,
        taken: &Taken,
    ) {
        let geometry = self.geometry();
        let bits = geometry.cluster_bits();
        let mut clusters = RoaringTreemap::new();
        for bitmap in replaced {
            let (offset, count) = (bitmap.table_offset, u64::from(bitmap.table_size));
            if count == 0 || self.check_table_place(&bitmap).is_err() {
                continue;
            }
            let first = offset.bytes() >> bits;
            clusters.insert_range(first..first + (count * 8).div_ceil(1 << bits));
            let table = read_words(&self.file, "bitmap table", offset, count).await;
            for raw in table.unwrap_or_default() {
                if let Ok(Cluster::At(at)) = parse_entry(geometry, raw) {
                    clusters.insert(at.bytes() >> bits);
                }
            }
        }
        if let Some(directory) = directory {
            let first = directory.directory_offset.bytes() >> bits;
            clusters.insert_range(first..first + directory.directory_size.div_ceil(1 << bits));
        }
        for (offset, len) in &taken.0 {
            let first = offset.bytes() >> bits;
            clusters.remove_range(first..first + (len >> bits));
        }
        let mut meta = writer.meta.lock().await;
        for cluster in clusters {
            if is_droppable(&mut meta, cluster).await {
                meta.drop_metadata(HostOffset::new(cluster << bits), 1 << bits, Reason::Other);
            }
        }
    }
}

/// Whether a cluster that a bitmap claims is in use and no other metadata.
async fn is_droppable(meta: &mut Meta, cluster: u64) -> bool {
    let bits = meta.geometry.cluster_bits();
    let place = HostOffset::new(cluster << bits);
    let alone = meta.overlap.check_metadata(Section::BitmapDirectory, place, 1 << bits).is_ok();
    alone && matches!(meta.refcounts.get(cluster).await, Ok(count) if count > 0)
}
