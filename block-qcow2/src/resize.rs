//! Changes of the disk's length, and the end of writing.
//!
//! A change of length has an exclusive turn. Growing makes the tables longer before the header says
//! so; shrinking makes the header shorter before anything is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::driver::{Exactness, Prealloc};
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, Error, IoBuf, RequestFlags, Result};

use crate::alloc::{Place, Reason};
use crate::driver::Qcow2Driver;
use crate::geometry::{DataLocation, Version};
use crate::map::Kind;
use crate::metadata_io::{encode_words, flush, write_bytes};
use crate::overlap::Section;
use crate::plan::{Allocation, dropped_by, set_words, words_at};
use crate::reload::from_below;
use crate::snapshot::NotReplaced;
use crate::spec::Fault;
use crate::spec::entry::{l1_entry, l2_entry};
use crate::spec::header::{MAX_L1_BYTES, Table};
use crate::units::{GuestOffset, HostOffset};
use crate::writeback::Extent;

impl Qcow2Driver {
    /// Makes the disk `len` bytes long.
    pub(crate) async fn resize(self: Arc<Self>, len: u64, prealloc: Prealloc) -> Result<()> {
        self.distrust_bitmaps().await?;
        let _exclusive = self.alone().await?;
        let old = self.disk_len();
        let v2 = self.geometry().version() == Version::V2;
        if v2 && !self.lists.read().snapshots.is_empty() {
            // Snapshots of version 2 do not say how long the disk was.
            return Err(Error::Unsupported);
        }
        if !len.is_multiple_of(u64::from(SECTOR)) {
            return Err(Error::Invalid);
        }
        if len < old {
            return self.shrink(len).await;
        }
        self.grow(old, len).await?;
        let prealloc = match prealloc {
            // A raw data file shows itself, so all of it must be mapped.
            Prealloc::Off if self.has_raw_data_file() => Prealloc::Metadata,
            other => other,
        };
        if prealloc != Prealloc::Off {
            self.preallocate(ByteRange::from_bounds(old, len)?, prealloc).await?;
        }
        if self.has_raw_data_file() {
            // It is as long as the disk.
            let data = self.data.as_ref().ok_or(Error::Unsupported)?;
            if data.len() < len {
                from_below(data.truncate(len, Exactness::AtLeast, Prealloc::Off).await)?;
            }
        }
        Ok(())
    }

    async fn grow(self: &Arc<Self>, old: u64, len: u64) -> Result<()> {
        let geometry = self.geometry();
        let needed = geometry.l1_entries_for(len);
        if needed > MAX_L1_BYTES / 8 {
            return Err(Error::Os(libc::EFBIG));
        }
        if needed > self.l1_len() {
            self.move_l1(needed).await?;
        }
        // What comes up must be zero in the file before the header shows it.
        self.disk_len.store(len, Ordering::Release);
        let shown = match self.hide_what_comes_up(old, len).await {
            Ok(()) => self.header.update(|header| header.disk_len = len).await,
            failed => failed,
        };
        if shown.is_err() {
            self.disk_len.store(old, Ordering::Release);
        }
        shown
    }

    /// Makes what is behind the end `old` read as zeroes, and that stable: the rest of the last cluster,
    /// the backing file, and clusters that a shrink had not dropped yet when it was interrupted.
    async fn hide_what_comes_up(self: &Arc<Self>, old: u64, len: u64) -> Result<()> {
        self.hide_tail(old, len).await?;
        let start = self.geometry().cluster_alignment().round_up(old).min(len);
        let mut changed = start != old;
        let mut rest = ByteRange::from_bounds(start, len)?;
        while !rest.is_empty() {
            let extent = self.extent(GuestOffset::new(rest.offset()), rest.len()).await?;
            let (here, after) = rest.split_at(extent.len);
            rest = after;
            let zero = match extent.kind {
                Kind::Zero(_) => true,
                Kind::Unallocated(_) => self.below_reads_zero(here).await?,
                Kind::Data(_) | Kind::Compressed { .. } => false,
            };
            if !zero {
                changed = true;
                self.hide(here).await?;
            }
        }
        if !changed {
            return Ok(());
        }
        self.write_back(Extent::Flush).await?;
        self.barrier().await
    }

    /// Makes `range` read as zeroes, by the mapping or, where it cannot say so, by writing them.
    async fn hide(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        match Arc::clone(self).zero(range, RequestFlags::empty()).await {
            Err(Error::Unsupported) => {}
            zeroed => return zeroed,
        }
        let mut rest = range;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(ZERO_BUFFER_BYTES);
            let buf = IoBuf::zeroed(to_usize(piece.len()), Alignment::PAGE)?;
            Arc::clone(self).write(piece, buf.into()).await?;
            rest = after;
        }
        Ok(())
    }

    /// Moves the L1 table to where `count` entries have room.
    pub(crate) async fn move_l1(&self, count: u64) -> Result<()> {
        let geometry = self.geometry();
        self.check_own_l1()?;
        // All that the old table says in memory must be there before a copy of it is made.
        self.write_back(Extent::Flush).await?;
        let bytes = geometry.cluster_alignment().round_up(count * 8);
        self.event("l1_grow_alloc_table");
        let offset = {
            let mut meta = self.writer()?.meta.lock().await;
            let clusters = bytes >> geometry.cluster_bits();
            meta.allocate_metadata(Section::ActiveL1, clusters, &self.header).await?
        };
        let mut words = self.l1.read().clone();
        words.resize(to_usize(bytes / 8), 0);
        self.event("l1_grow_write_table");
        let replaced = self.replace_l1(offset, &words, count).await;
        let mut meta = self.writer()?.meta.lock().await;
        match replaced {
            Ok(old) => {
                // It is given back behind a barrier, and so after the header is stable.
                meta.drop_metadata(old.offset, u64::from(old.count) * 8, Reason::Other);
                words.truncate(to_usize(count));
                *self.l1.write() = words;
                Ok(())
            }
            Err(NotReplaced::Before(error)) => {
                meta.drop_metadata(offset, bytes, Reason::Other);
                Err(error)
            }
            // The file may refer to either: both stay counted.
            Err(NotReplaced::Unsure(error)) => Err(error),
        }
    }

    /// Whether the active L1 table may be given back once it is not needed: no other metadata is there.
    pub(crate) fn check_own_l1(&self) -> Result<(), Fault> {
        let l1 = self.header.with(|parts| parts.header.l1);
        let len = u64::from(l1.count) * 8;
        self.writer.as_ref().map_or(Ok(()), |writer| {
            writer.overlap.check_metadata(Section::ActiveL1, l1.offset, len)
        })
    }

    /// Writes an L1 table to `offset` and makes the header point at it; the old one.
    async fn replace_l1(
        &self,
        offset: HostOffset,
        words: &[u64],
        count: u64,
    ) -> Result<Table, NotReplaced> {
        write_bytes(&self.file, offset, &encode_words(words)).await?;
        // Its refcounts, and everything that it points at.
        self.write_back(Extent::Everything).await?;
        self.barrier().await?;
        self.event("l1_grow_activate_table");
        let old = self.header.with(|parts| parts.header.l1);
        let count = u32::try_from(count).map_err(|_| Error::Os(libc::EFBIG))?;
        let switched = self.header.update(|header| header.l1 = Table { offset, count }).await;
        if let Err(error) = switched {
            self.header.restore().await.map_err(|_| NotReplaced::Unsure(error))?;
            return Err(error.into());
        }
        Ok(old)
    }

    /// Makes the rest of the cluster in which the disk ended read as zeroes.
    async fn hide_tail(self: &Arc<Self>, old: u64, len: u64) -> Result<()> {
        let end = self.geometry().cluster_alignment().round_up(old).min(len);
        let tail = ByteRange::from_bounds(old, end.max(old))?;
        if tail.is_empty() || self.reads_zero(tail).await? {
            return Ok(());
        }
        let buf = IoBuf::zeroed(to_usize(tail.len()), Alignment::PAGE)?;
        Arc::clone(self).read(tail, buf.clone().into()).await?;
        if buf.is_zero() {
            return Ok(());
        }
        buf.fill(0);
        Arc::clone(self).write(tail, buf.into()).await
    }

    /// Gives the clusters of `range` a place before anybody writes them.
    async fn preallocate(self: &Arc<Self>, range: ByteRange, prealloc: Prealloc) -> Result<()> {
        let geometry = self.geometry();
        let cluster = geometry.cluster_alignment();
        let start = self.preallocate_tail(range, prealloc).await?;
        let whole = ByteRange::from_bounds(start, cluster.round_up(range.end()).max(start))?;
        let mut rest = whole;
        while !rest.is_empty() {
            self.relieve().await?;
            let (clusters, place) = {
                let mut meta = self.writer()?.meta.lock().await;
                let offset = GuestOffset::new(rest.offset());
                let slice = self.own_slice(&mut meta, offset).await?;
                let within = rest.intersect(ByteRange::up_to(slice.guest_end));
                let count = within.len() >> geometry.cluster_bits();
                let place = meta.allocate_data(offset, count, &self.header).await?;
                (within.split_at(place.count << geometry.cluster_bits()).0, place)
            };
            let host = ByteRange::new(place.host.bytes(), clusters.len())?;
            let host = match geometry.data_location() {
                DataLocation::Image => host,
                // It ends with the disk.
                DataLocation::DataFile => host.intersect(ByteRange::up_to(range.end())),
            };
            let allocation = Allocation { clusters, write: clusters, fill: clusters, keep: None };
            let linked = match self.prepare_place(host, place, prealloc).await {
                Ok(()) => self.link(&allocation, place).await,
                failed => failed,
            };
            if linked.is_err() {
                self.writer()?.meta.lock().await.give_back(place);
            }
            linked?;
            rest = rest.split_at(clusters.len()).1;
        }
        Ok(())
    }

    /// Sees to what `range` has of the cluster in which the disk ended before; the guest offset from
    /// which clusters need a place.
    async fn preallocate_tail(&self, range: ByteRange, prealloc: Prealloc) -> Result<u64> {
        let cluster = self.geometry().cluster_alignment();
        let (start, next) = (cluster.round_down(range.offset()), cluster.round_up(range.offset()));
        if start == next {
            return Ok(start);
        }
        let whole = ByteRange::new(start, cluster.bytes())?;
        let extent = self.extent(GuestOffset::new(start), whole.len()).await?;
        let has_no_place = match extent.kind {
            Kind::Unallocated(None) => self.below_reads_zero(whole).await?,
            Kind::Zero(None) => true,
            _ => false,
        };
        if has_no_place && extent.len == whole.len() {
            return Ok(start);
        }
        let wanted = if takes_space(prealloc) { range } else { ByteRange::default() };
        let mut tail = wanted.intersect(whole);
        while !tail.is_empty() {
            let extent = self.extent(GuestOffset::new(tail.offset()), tail.len()).await?;
            let (here, after) = tail.split_at(extent.len);
            let host = match extent.kind {
                // It reads as zeroes already.
                Kind::Data(host) => Some(host),
                Kind::Zero(Some(host)) | Kind::Unallocated(Some(host))
                    if self.is_own(host).await? =>
                {
                    Some(host)
                }
                _ => None,
            };
            if let Some(host) = host {
                let data = self.data.as_ref().ok_or(Error::Unsupported)?;
                let host = ByteRange::new(host.bytes(), here.len())?;
                from_below(data.write_zeroes(host, RequestFlags::empty()).await)?;
            }
            tail = after;
        }
        Ok(next)
    }

    /// Whether no snapshot sees the host cluster in which `host` is.
    async fn is_own(&self, host: HostOffset) -> Result<bool> {
        let geometry = self.geometry();
        if geometry.data_location() == DataLocation::DataFile {
            return Ok(true);
        }
        let cluster = host.bytes() >> geometry.cluster_bits();
        let mut meta = self.writer()?.meta.lock().await;
        Ok(meta.refcounts.get(cluster).await? == 1)
    }

    /// Makes a new place for guest data read as zeroes and be inside of the file, before a table shows it;
    /// and takes the space for it if `prealloc` says so, before tables behind it make a hole of it.
    async fn prepare_place(&self, host: ByteRange, place: Place, prealloc: Prealloc) -> Result<()> {
        let data = self.data.as_ref().ok_or(Error::Unsupported)?;
        let (inside, beyond) = host.split_at(data.len().saturating_sub(host.offset()));
        if !inside.is_empty() && (takes_space(prealloc) || !place.fresh) {
            from_below(data.write_zeroes(inside, RequestFlags::empty()).await)?;
        }
        if !beyond.is_empty() {
            let prealloc = if takes_space(prealloc) { prealloc } else { Prealloc::Off };
            from_below(data.truncate(host.end(), Exactness::AtLeast, prealloc).await)?;
        }
        Ok(())
    }

    async fn shrink(self: &Arc<Self>, len: u64) -> Result<()> {
        let geometry = self.geometry();
        // What is about to go must not be in a write that is under way to the file.
        self.write_back(Extent::Flush).await?;
        self.header.update(|header| header.disk_len = len).await?;
        self.disk_len.store(len, Ordering::Release);
        flush(&self.file).await?;
        let end = geometry.cluster_alignment().round_up(len);
        for index in end / geometry.l2_coverage()..self.l1_len() {
            self.relieve().await?;
            self.event("l1_shrink_free_l2_clusters");
            self.drop_table(index, end).await?;
        }
        self.event("l1_shrink_write_table");
        self.write_back(Extent::Everything).await?;
        self.write_back(Extent::Everything).await?;
        self.trim_file().await
    }

    /// Drops what the L2 table number `index` maps from guest offset `end` on; all of it, if that is
    /// all that it maps.
    pub(crate) async fn drop_table(&self, index: u64, end: u64) -> Result<()> {
        let geometry = self.geometry();
        let start = index * geometry.l2_coverage();
        let mut meta = self.writer()?.meta.lock().await;
        let overlap = Arc::clone(&meta.overlap);
        let raw = self.l1_word(index)?;
        let Some(table) = l1_entry(geometry, raw)? else { return Ok(()) };
        let mut offset = start.max(end);
        while offset < start + geometry.l2_coverage() {
            // A table that is shared with a snapshot is copied first, though all of it may go: its
            // entries are dropped one by one all the same.
            let slice = self.own_slice(&mut meta, GuestOffset::new(offset)).await?;
            let stop = slice.guest_end.min(start + geometry.l2_coverage());
            let dropped = self
                .change_slice(slice, |words| {
                    let mut dropped = Vec::new();
                    for at in (offset..stop).step_by(to_usize(geometry.cluster_size())) {
                        let guest = GuestOffset::new(at);
                        let (raw, bitmap) = words_at(geometry, words, slice.first_entry, guest)?;
                        let old = dropped_by(geometry, l2_entry(geometry, raw, bitmap)?);
                        old.map_or(Ok(()), |old| overlap.check_dropped(old))?;
                        dropped.extend(old);
                    }
                    for at in (offset..stop).step_by(to_usize(geometry.cluster_size())) {
                        let guest = GuestOffset::new(at);
                        set_words(geometry, words, slice.first_entry, guest, (0, 0))?;
                    }
                    Ok(dropped)
                })
                .await?;
            for dropped in dropped {
                meta.drop_data(dropped, Reason::Other);
            }
            offset = stop;
        }
        if end <= start {
            let raw = self.l1_word(index)?;
            let table = l1_entry(geometry, raw)?.unwrap_or(table);
            self.set_l1_word(&mut meta, index, 0)?;
            self.forget_slices(table);
            meta.unlinked.remove(&table);
            meta.drop_metadata(table, geometry.cluster_size(), Reason::Other);
        }
        Ok(())
    }

    /// Writes everything back, gives back what was dropped, and clears the dirty bit.
    pub(crate) async fn finish_writing(&self) -> Result<()> {
        let _exclusive = self.gate.exclusive().await;
        self.settle_all().await
    }

    /// [`Qcow2Driver::finish_writing`] in an exclusive turn.
    pub(crate) async fn settle_all(&self) -> Result<()> {
        self.settle_rounds().await?;
        if self.writer()?.copied_wrong.load(Ordering::Acquire) {
            // A change that failed left them behind; what it leaked is given back by now.
            self.refresh_copied().await?;
            self.settle_rounds().await?;
        }
        if self.header.with(|parts| parts.header.features.dirty) {
            self.barrier().await?;
            self.header.update(|header| header.features.dirty = false).await?;
        }
        self.take_back_growth().await?;
        self.barrier().await
    }

    /// Writes back until nothing waits to be given back.
    async fn settle_rounds(&self) -> Result<()> {
        // What is given back in one round makes refcounts dirty for the next one.
        for _ in 0..MAX_ROUNDS {
            self.write_back(Extent::Everything).await?;
            let meta = self.writer()?.meta.lock().await;
            if !meta.has_waiting() && !meta.refcounts.is_dirty() && !self.slices.is_dirty() {
                break;
            }
        }
        Ok(())
    }
}

/// Whether new clusters are to have their space in the storage, too.
fn takes_space(prealloc: Prealloc) -> bool {
    match prealloc {
        Prealloc::Off | Prealloc::Metadata => false,
        Prealloc::Falloc | Prealloc::Full => true,
    }
}

/// Zeroes that are written at once.
const ZERO_BUFFER_BYTES: u64 = 1 << 20;
/// Lengths of disks are multiples of this.
const SECTOR: u32 = 512;
/// Rounds in which everything is given back: two suffice, unless an error leaves something.
const MAX_ROUNDS: usize = 4;
