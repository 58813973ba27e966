//! Zero writes and discards: changes of the tables, no data moves.
//!
//! An entry becomes *zeroed*, where the format has such entries, or *unallocated*, where nothing shows
//! through. A grain of which only a part is zeroed is left alone if it reads as zeroes anyway; otherwise
//! the layer writes zeroes.
//!
//! **Invariant.** A zero write that is refused has changed nothing: what can be refused is looked at
//! first.

use std::sync::Arc;

use block_core::metadata::inflight::Blocker;
use block_core::range::to_usize;
use block_core::{ByteRange, Error, RequestFlags, Result};

use super::SparseExtent;
use super::writeback::WriteBack;
use super::writer::Meta;
use crate::extent::geometry::{Entry, EntryFormat, SECTOR, UNALLOCATED, ZEROED, ZeroedGrains};
use block_core::io::exec::to_the_end;

impl SparseExtent {
    /// Whether [`SparseExtent::zero`] of `range` would be done; changes nothing.
    pub(crate) async fn can_zero(&self, range: ByteRange, flags: RequestFlags) -> Result<bool> {
        let zeroed = self.has_zeroed_grains();
        if !zeroed && (self.backing.is_some() || !flags.contains(RequestFlags::MAY_UNMAP)) {
            return self.reads_zero(range).await;
        }
        for end in self.partial_ends(range) {
            if !self.reads_zero(end).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes `range` read as zeroes. What of its grains at the ends is touched in part reads as zeroes:
    /// see [`SparseExtent::can_zero`].
    pub(crate) async fn zero(
        self: &Arc<Self>,
        range: ByteRange,
        flags: RequestFlags,
    ) -> Result<()> {
        let unmaps = flags.contains(RequestFlags::MAY_UNMAP);
        let target = match (self.has_zeroed_grains(), self.backing.is_some()) {
            (_, false) if unmaps => UNALLOCATED,
            (true, _) => ZEROED,
            // All of it reads as zeroes.
            (false, _) => return Ok(()),
        };
        self.retarget(self.whole_grains(range), target).await
    }

    /// Lets the whole grains of `range` go.
    pub(crate) async fn discard(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        let whole = self.whole_grains(range);
        let target = match (self.backing.is_some(), self.has_zeroed_grains()) {
            (false, _) => UNALLOCATED,
            (true, true) => ZEROED,
            // The backing file would show.
            (true, false) => return Err(Error::Unsupported),
        };
        if whole.is_empty() {
            return Err(Error::Unsupported);
        }
        self.retarget(whole, target).await
    }

    /// Lets every grain go, so that the backing file shows.
    pub(crate) async fn make_empty(self: &Arc<Self>) -> Result<()> {
        let this = Arc::clone(self);
        to_the_end(async move {
            let all = this.whole_grains(ByteRange::up_to(this.geometry.len()));
            this.retarget(all, UNALLOCATED).await
        })
        .await
    }

    fn has_zeroed_grains(&self) -> bool {
        self.layout.entries == EntryFormat::Sectors { zeroed: ZeroedGrains::Known }
    }

    /// The grains of which `range` covers all that the extent has.
    fn whole_grains(&self, range: ByteRange) -> ByteRange {
        let align = self.geometry.grain_alignment();
        let end = match range.end() == self.geometry.len() {
            true => align.round_up(range.end()),
            false => range.end(),
        };
        ByteRange::from_bounds(range.offset(), end).unwrap_or_default().shrink(align)
    }

    /// The parts of `range` in grains of which it covers only some.
    fn partial_ends(&self, range: ByteRange) -> Vec<ByteRange> {
        let whole = self.whole_grains(range);
        if whole.is_empty() {
            return vec![range];
        }
        let head = ByteRange::from_bounds(range.offset(), whole.offset());
        let tail = ByteRange::from_bounds(whole.end(), range.end());
        [head, tail].into_iter().flatten().filter(|end| !end.is_empty()).collect()
    }

    async fn retarget(self: &Arc<Self>, whole: ByteRange, target: u64) -> Result<()> {
        if whole.is_empty() {
            return Ok(());
        }
        // What is done already is found done.
        self.with_room(|| self.retarget_all(whole, target)).await
    }

    async fn retarget_all(self: &Arc<Self>, whole: ByteRange, target: u64) -> Result<()> {
        let _pass = self.enter().await;
        self.begin_change().await?;
        let mut rest = whole;
        while !rest.is_empty() {
            self.relieve().await?;
            let mut meta = self.writer()?.meta.lock().await;
            if meta.is_hoarding() {
                drop(meta);
                self.write_back(WriteBack::Reclaim).await?;
                continue;
            }
            let done = self.retarget_some(&mut meta, rest, target).await?;
            drop(meta);
            match done {
                Ok(done) => rest = rest.split_at(done).1,
                Err(blocker) => self.allocations.wait(blocker).await,
            }
        }
        Ok(())
    }

    /// Retargets the start of `rest`, whole grains; the number of bytes that are done.
    async fn retarget_some(
        &self,
        meta: &mut Meta,
        rest: ByteRange,
        target: u64,
    ) -> Result<Result<u64, Blocker>> {
        let free = match self.allocations.free_prefix(rest) {
            Ok(free) => free,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let geometry = self.geometry;
        let number = geometry.table_of(rest.offset());
        let mapped = geometry.table_range(number).expand(geometry.grain_alignment());
        let within = rest.intersect(mapped);
        let there = self.table_sector(number) != 0;
        if !there && (target == UNALLOCATED || !self.shows_through(within).await?) {
            return Ok(Ok(within.len()));
        }
        let within = within.intersect(free);
        let table = self.table(number).await?;
        let first = geometry.entry_of(within.offset());
        let count = to_usize(geometry.grain_alignment().count_up(within.len()));
        let old = table.get(first..first + count).unwrap_or_default();
        let mut dropped = Vec::new();
        for word in old {
            if let Entry::At(at) = self.layout.entries.decode(*word)? {
                dropped.push(at / SECTOR);
            }
        }
        if old.iter().all(|word| *word == target) {
            return Ok(Ok(within.len()));
        }
        self.own_table(meta, number, &table)?;
        self.change_table(number, table, |entries| {
            let changed = entries.get_mut(first..first + count).ok_or(Error::Invalid)?;
            changed.fill(target);
            Ok(())
        })?;
        for sector in dropped {
            self.let_go(meta, sector)?;
        }
        Ok(Ok(within.len()))
    }

    /// Whether the backing file may show other things than zeroes in `range`.
    async fn shows_through(&self, range: ByteRange) -> Result<bool> {
        self.below_reads_zero(range.intersect(ByteRange::up_to(self.geometry.len())))
            .await
            .map(|z| !z)
    }
}
