//! Changing the tables: L2 tables of one's own, entries in their slices, the L1 table.
//!
//! Everything here is called under the metadata lock (it takes [`Meta`]).
//!
//! **Invariant.** An L2 table is changed only if its L1 entry says that it is referenced once; one that
//! is shared with a snapshot is copied first.

use std::sync::Arc;

use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, RequestFlags, Result};

use crate::alloc::{Meta, Reason};
use crate::driver::Qcow2Driver;
use crate::mapping::Slice;
use crate::metadata_io::{read_bytes, write_bytes};
use crate::overlap::Section;
use crate::reload::from_below;
use crate::spec::Fault;
use crate::spec::entry::{Copied, encode_l1, is_copied, l1_entry};
use crate::units::{GuestOffset, HostOffset};

/// Words of the L1 table that are written together: a sector.
pub(crate) const L1_SECTOR_WORDS: u64 = 64;

/// A slice of an L2 table that may be changed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnSlice {
    /// Its first byte in the file.
    pub(crate) at: HostOffset,
    /// Number of its first entry in the table.
    pub(crate) first_entry: u64,
    /// Guest offset at which what it maps ends.
    pub(crate) guest_end: u64,
}

impl Qcow2Driver {
    /// The slice that maps `offset`, in an L2 table that nobody else refers to: made, or copied, if need
    /// be.
    pub(crate) async fn own_slice(&self, meta: &mut Meta, offset: GuestOffset) -> Result<OwnSlice> {
        let table = self.own_table(meta, offset).await?;
        Ok(self.slice_of(table, offset))
    }

    /// [`Qcow2Driver::own_slice`], if the table is one's own already.
    #[inline]
    pub(crate) fn own_slice_at_once(&self, offset: GuestOffset) -> Option<OwnSlice> {
        let geometry = self.geometry();
        let raw = self.l1_word(geometry.l1_index(offset)).ok()?;
        let table = l1_entry(geometry, raw).ok()?.filter(|_| is_copied(raw))?;
        Some(self.slice_of(table, offset))
    }

    /// The slice of `table` that maps `offset`.
    pub(crate) fn slice_of(&self, table: HostOffset, offset: GuestOffset) -> OwnSlice {
        let geometry = self.geometry();
        let slice_bytes = self.slices.entry_bytes();
        let bits = slice_bytes.trailing_zeros() - geometry.l2_entry_bits();
        let slice = geometry.l2_index(offset) >> bits;
        let covered = geometry.cluster_size() << bits;
        let start = offset.bytes() / covered * covered;
        OwnSlice {
            at: table.plus(slice * slice_bytes),
            first_entry: slice << bits,
            guest_end: start.saturating_add(covered),
        }
    }

    async fn own_table(&self, meta: &mut Meta, offset: GuestOffset) -> Result<HostOffset> {
        let geometry = self.geometry();
        let index = geometry.l1_index(offset);
        let raw = self.l1_word(index)?;
        let old = l1_entry(geometry, raw)?;
        old.map_or(Ok(()), |table| meta.overlap.check_table(table))?;
        if let Some(table) = old.filter(|_| is_copied(raw)) {
            return Ok(table);
        }
        let bytes = geometry.cluster_size();
        self.event("l2_alloc_write");
        let new = meta.allocate_metadata(Section::ActiveL2, 1, &self.header).await?;
        let filled = match old {
            None => {
                let range = ByteRange::new(new.bytes(), bytes)?;
                from_below(self.file.write_zeroes(range, RequestFlags::empty()).await)
            }
            Some(old) => self.copy_table(old, new).await,
        };
        if let Err(error) = filled {
            meta.drop_metadata(new, bytes, Reason::Unused);
            return Err(error);
        }
        self.forget_slices(new);
        meta.unlinked.insert(new);
        self.set_l1_word(meta, index, encode_l1(new, Copied::Yes))?;
        if let Some(old) = old {
            let shared = meta.refcounts.get(old.bytes() >> geometry.cluster_bits()).await != Ok(1);
            meta.drop_metadata(old, bytes, Reason::Other);
            if shared {
                meta.overlap.insert(Section::InactiveL2, old, bytes);
            }
        }
        Ok(new)
    }

    /// Copies a table. What is shared is not dirty: whoever shared it wrote everything back.
    async fn copy_table(&self, from: HostOffset, to: HostOffset) -> Result<()> {
        let bytes = self.geometry().cluster_size();
        self.event("l2_alloc_cow_read");
        let range = self.table_range(from)?;
        let table = read_bytes(&self.file, range).await?;
        let mut all = table.to_vec();
        all.resize(to_usize(bytes), 0);
        write_bytes(&self.file, to, &all).await
    }

    /// The bytes of an L2 table, as far as the file has them.
    pub(crate) fn table_range(&self, table: HostOffset) -> Result<ByteRange> {
        let range = ByteRange::new(table.bytes(), self.geometry().cluster_size())?;
        let beyond = Fault::new("L2 table beyond the end of the file", table.bytes());
        if table.bytes() >= self.file.len() {
            return Err(beyond.into());
        }
        Ok(range.intersect(ByteRange::up_to(self.file.len())))
    }

    /// Forgets the slices of a table that has changed behind the cache's back.
    pub(crate) fn forget_slices(&self, table: HostOffset) {
        let slice_bytes = self.slices.entry_bytes();
        let count = self.geometry().cluster_size() / slice_bytes;
        for slice in 0..count {
            self.slices.remove(table.plus(slice * slice_bytes).bytes());
        }
    }

    /// Changes entries of a slice. On error nothing has changed, if `change` keeps to that.
    pub(crate) async fn change_slice<R>(
        &self,
        slice: OwnSlice,
        change: impl FnOnce(&mut [u64]) -> Result<R, Fault>,
    ) -> Result<R> {
        let loaded = self.slice_at(slice.at).await?;
        Ok(self.change_loaded(slice, loaded, change)?)
    }

    /// [`Qcow2Driver::change_slice`] of one whose words, `loaded` since the metadata lock was taken, are
    /// at hand.
    pub(crate) fn change_loaded<R>(
        &self,
        slice: OwnSlice,
        loaded: Slice,
        change: impl FnOnce(&mut [u64]) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.slices.modify(slice.at.bytes(), loaded, |words| change(Arc::make_mut(words)))
    }

    /// Looks at the words of a slice.
    pub(crate) async fn look_at_slice<R>(
        &self,
        slice: OwnSlice,
        look: impl Fn(&[u64]) -> Result<R, Fault>,
    ) -> Result<R> {
        // Read under the cache's lock: a clone would make the next change copy the slice.
        let looked = match self.slices.with(slice.at.bytes(), |words| look(words)) {
            Some(looked) => looked,
            None => look(&self.load_slice(slice.at).await?),
        };
        Ok(looked?)
    }

    /// A word of the L1 table.
    pub(crate) fn l1_word(&self, index: u64) -> Result<u64, Fault> {
        let word = self.l1.read().get(to_usize(index)).copied();
        word.ok_or(Fault::new("L1 index", index))
    }

    /// Replaces a word of the L1 table in memory.
    pub(crate) fn set_l1_word(&self, meta: &mut Meta, index: u64, word: u64) -> Result<(), Fault> {
        let mut l1 = self.l1.write();
        let entry = l1.get_mut(to_usize(index)).ok_or(Fault::new("L1 index", index))?;
        *entry = word;
        meta.dirty_l1.insert(index / L1_SECTOR_WORDS);
        Ok(())
    }

    /// Entries of the L1 table in memory.
    pub(crate) fn l1_len(&self) -> u64 {
        to_u64(self.l1.read().len())
    }
}
