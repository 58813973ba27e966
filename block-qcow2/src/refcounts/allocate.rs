//! Finding free clusters and taking them, and making the refcounts cover more of the file.
//!
//! **Invariants.** What is given out had refcount 0, overlaps no metadata, and is not the cluster that is
//! kept for somebody. A table that the header points at is the table from then on, whatever fails later.

use block_core::range::{to_u64, to_usize};
use block_core::{Error, Result};

use super::{Block, Refcounts, Run, SECTOR_WORDS, Span, TOO_FAR, Want};
use crate::header_store::HeaderStore;
use crate::metadata_io::{flush, write_bytes};
use crate::overlap::Section;
use crate::spec::Fault;
use crate::spec::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::spec::refcount::{refcount, set_refcount};
use crate::units::HostOffset;

impl Refcounts {
    /// The cluster that [`Refcounts::allocate`] would give next, if that is known without reading and
    /// nothing speaks against it.
    pub(crate) fn next_at_hand(&self) -> Option<u64> {
        let (index, within) = self.place(self.hint);
        let block = self.blocks.get(&index)?;
        let next = Run { first: self.hint, count: 1 };
        let is_free = refcount(self.geometry, &block.bytes, within) == Some(0)
            && self.kept != Some(self.hint);
        (is_free && self.check_free(next).is_ok()).then_some(next.first)
    }

    /// Takes the cluster that [`Refcounts::next_at_hand`] told.
    pub(crate) fn take_next(&mut self, cluster: u64) -> Result<(), Fault> {
        let (index, within) = self.place(cluster);
        let outside = Fault::new("refcount index", cluster);
        self.clock += 1;
        let block = self.blocks.get_mut(&index).ok_or(outside)?;
        block.used = self.clock;
        block.set(self.geometry, within, 1).ok_or(outside)?;
        self.hint = self.hint.max(cluster + 1);
        Ok(())
    }

    /// Takes free clusters: their refcounts become 1.
    pub(crate) async fn allocate(&mut self, want: Want, header: &HeaderStore) -> Result<Run> {
        let (least, most) = match want {
            Want::Exactly(count) => (count, count),
            Want::UpTo(count) => (1, count),
        };
        let run = match self.find_free(least, most).await? {
            Some(mut run) => {
                // What ends beyond a device is cut, unless all of it is.
                let inside = self.room().saturating_sub(run.first).max(least);
                run.count = run.count.min(inside);
                self.check_free(run)?;
                for cluster in run.first..run.first + run.count {
                    self.set(cluster, 1).await?;
                }
                run
            }
            None => {
                let room = self.geometry.refcounts_per_block() - 1;
                let count = if least == most { most } else { most.min(room.max(1)) };
                match self.extend(count, header).await {
                    Err(Error::NO_SPACE) if least < count => self.extend(least, header).await?,
                    extended => extended?,
                }
            }
        };
        if run.first <= self.hint {
            self.hint = self.hint.max(run.first + run.count);
        }
        Ok(run)
    }

    /// Keeps a cluster, free or not, for who asks for it by number, in place of the one that was kept.
    pub(crate) fn keep(&mut self, cluster: Option<u64>) {
        if let Some(before) = self.kept.filter(|before| cluster != Some(*before)) {
            self.hint = self.hint.min(before);
        }
        self.kept = cluster;
    }

    /// Keeps no cluster for anybody any more; says whether one was kept.
    pub(crate) fn stop_keeping(&mut self) -> bool {
        let kept = self.kept.is_some();
        self.keep(None);
        kept
    }

    /// Takes this cluster, if it is free, the file has room for it, and there is a block for it.
    pub(crate) async fn allocate_at(&mut self, cluster: u64) -> Result<Option<Run>> {
        let (index, within) = self.place(cluster);
        let geometry = self.geometry;
        let block = self.block(index).await?;
        if block.and_then(|block| refcount(geometry, &block.bytes, within)) != Some(0) {
            return Ok(None);
        }
        let run = Run { first: cluster, count: 1 };
        match self.check_free(run) {
            Err(Error::NO_SPACE | TOO_FAR) => return Ok(None),
            checked => checked?,
        }
        self.set(cluster, 1).await?;
        Ok(Some(run))
    }

    /// The first run of at least `least` free clusters, cut at `most`, where there are blocks.
    async fn find_free(&mut self, least: u64, most: u64) -> Result<Option<Run>> {
        let per_block = self.geometry.refcounts_per_block();
        let mut found: Option<Run> = None;
        let (mut cluster, kept) = (self.hint, self.kept);
        let mut first_free = None;
        while cluster / per_block < to_u64(self.table.len()) {
            let index = cluster / per_block;
            let geometry = self.geometry;
            let Some(block) = self.block(index).await? else {
                found = found.filter(|run| run.count >= least);
                if found.is_some() {
                    break;
                }
                // Free, too, but for want of a block not to be given out here: nobody looks beyond.
                first_free.get_or_insert(cluster);
                cluster = (index + 1) * per_block;
                continue;
            };
            for within in cluster % per_block..per_block {
                let here = index * per_block + within;
                let used =
                    refcount(geometry, &block.bytes, within) != Some(0) || kept == Some(here);
                match &mut found {
                    _ if used => {
                        if found.is_some_and(|run| run.count >= least) {
                            break;
                        }
                        found = None;
                        continue;
                    }
                    None => found = Some(Run { first: here, count: 1 }),
                    Some(run) => run.count += 1,
                }
                first_free.get_or_insert(here);
                if found.is_some_and(|run| run.count >= most) {
                    break;
                }
            }
            let ended = found.is_some_and(|run| run.first + run.count < (index + 1) * per_block);
            if found.is_some_and(|run| run.count >= most) || ended {
                break;
            }
            cluster = (index + 1) * per_block;
        }
        // Everything before the first free one was looked at, so nobody need do it again.
        self.hint = first_free.unwrap_or(cluster).max(self.hint);
        Ok(found.filter(|run| run.count >= least))
    }

    /// Takes `count` clusters beyond all that the blocks cover, and makes the blocks for them (and a
    /// longer table, if it takes one).
    async fn extend(&mut self, count: u64, header: &HeaderStore) -> Result<Run> {
        self.file.driver().event("refblock_alloc");
        let per_block = self.geometry.refcounts_per_block();
        let covered = self.table.iter().rposition(|raw| *raw != 0).map_or(0, |last| last + 1);
        let first_block = to_u64(covered);
        let words = self.geometry.cluster_size() / 8;
        let blocks_for = |clusters: u64| clusters.div_ceil(per_block - 1).max(1);
        let (mut table_clusters, mut blocks) = (0, blocks_for(count));
        if first_block + blocks > to_u64(self.table.len()) {
            let generous = to_u64(self.table.len()) * 3 / 2;
            loop {
                let entries = (first_block + blocks).max(generous);
                let needed = entries.div_ceil(words);
                if needed == table_clusters {
                    break;
                }
                table_clusters = needed;
                blocks = blocks_for(count + table_clusters);
            }
            let bytes = table_clusters * self.geometry.cluster_size();
            if bytes > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::Os(libc::EFBIG));
            }
        }
        let first = first_block * per_block;
        let all = Run { first, count: blocks + table_clusters + count };
        self.check_free(all)?;
        let mut fresh = Vec::new();
        for block in 0..blocks {
            fresh.push((first_block + block, self.new_block(block * per_block, all.count)?));
        }
        if table_clusters > 0 {
            let table = Run { first: first + blocks, count: table_clusters };
            let before = self.table_offset;
            let moved = self.move_table(table, first, fresh, header).await;
            if moved.is_err() && self.table_offset != before {
                // The new table counts what nobody gets now.
                self.left.push(Run { first: first + blocks + table_clusters, count });
            }
            moved?;
        } else {
            for (index, block) in fresh {
                self.add_block(index, first + (index - first_block), block);
            }
        }
        Ok(Run { first: first + blocks + table_clusters, count })
    }

    /// A block in which those of the first `used` clusters that it holds from `skip` on are in use.
    fn new_block(&self, skip: u64, used: u64) -> Result<Block> {
        let bytes = self.geometry.cluster_size();
        let mut all = Vec::new();
        let no_memory = |_| Error::NoMemory { bytes };
        all.try_reserve_exact(to_usize(bytes)).map_err(no_memory)?;
        all.resize(to_usize(bytes), 0);
        let count = used.saturating_sub(skip).min(self.geometry.refcounts_per_block());
        for within in 0..count {
            let outside = Fault::new("refcount index", within);
            set_refcount(self.geometry, &mut all, within, 1).ok_or(outside)?;
        }
        let whole = Span { start: 0, end: all.len() };
        Ok(Block {
            bytes: all,
            dirty: Some(whole),
            writing: None,
            used: self.clock,
            _reservation: self.budget.reserve_minimum(bytes),
        })
    }

    fn add_block(&mut self, index: u64, cluster: u64, block: Block) {
        self.file.driver().event("refblock_alloc_hookup");
        let offset = HostOffset::new(cluster << self.geometry.cluster_bits());
        self.overlap.insert(Section::RefcountBlock, offset, self.geometry.cluster_size());
        if let Some(entry) = self.table.get_mut(to_usize(index)) {
            *entry = offset.bytes();
        }
        self.hidden.insert(index);
        self.dirty_table.insert(index / SECTOR_WORDS);
        self.blocks.insert(index, block);
    }

    /// Writes a longer table to `place`, with the `fresh` blocks that stand from cluster `first` on, and
    /// makes the header point at it. The old one's clusters stay counted, in `left`: a write of the old
    /// table may be under way. Once the header points at it, it is the table, also where the flush after
    /// that fails: the next barrier makes the header stable before anything relies on it.
    ///
    /// The new table in the file shows the fresh blocks and those that the old one shows for good. The
    /// others follow with the next write: their contents need not be in the file yet.
    async fn move_table(
        &mut self,
        place: Run,
        first: u64,
        fresh: Vec<(u64, Block)>,
        header: &HeaderStore,
    ) -> Result<()> {
        let file = self.file.clone();
        let bits = self.geometry.cluster_bits();
        file.driver().event("reftable_grow");
        let mut table = self.table.clone();
        for index in self.hidden.iter().chain(&self.showing) {
            let entry = table.get_mut(to_usize(*index));
            *entry.ok_or(Fault::new("refcount table index", *index))? = 0;
        }
        table.resize(to_usize(place.count << bits) / 8, 0);
        // Should anything fail from here on, nothing counts what stands there then.
        self.written_to = self.written_to.max(place.first + place.count);
        file.driver().event("refblock_alloc_write_blocks");
        for (at, (index, block)) in (first..).zip(&fresh) {
            let offset = HostOffset::new(at << bits);
            write_bytes(&file, offset, &block.bytes).await?;
            let entry = table.get_mut(to_usize(*index));
            *entry.ok_or(Fault::new("refcount table index", *index))? = offset.bytes();
        }
        let offset = HostOffset::new(place.first << bits);
        let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_be_bytes()).collect();
        file.driver().event("refblock_alloc_write_table");
        write_bytes(&file, offset, &bytes).await?;
        flush(&file).await?;
        file.driver().event("refblock_alloc_switch_table");
        let clusters = u32::try_from(place.count).map_err(|_| Error::Os(libc::EFBIG))?;
        let switched = header
            .update(|h| {
                h.refcount_table.offset = offset;
                h.refcount_table.count = clusters;
            })
            .await;
        switched?;
        self.table_has_moved(offset, place.count << bits);
        for (at, (index, mut block)) in (first..).zip(fresh) {
            block.dirty = None;
            self.add_block(index, at, block);
            self.hidden.remove(&index);
        }
        self.dirty_table = self.hidden.iter().map(|index| index / SECTOR_WORDS).collect();
        flush(&file).await
    }

    /// Notes that the header points at `len` bytes at `offset` for the table.
    fn table_has_moved(&mut self, offset: HostOffset, len: u64) {
        let bits = self.geometry.cluster_bits();
        let old = (self.table_offset, to_u64(self.table.len()) * 8);
        self.overlap.remove(old.0, old.1);
        self.overlap.insert(Section::RefcountTable, offset, len);
        self.left.push(Run { first: old.0.bytes() >> bits, count: old.1.div_ceil(1 << bits) });
        self.table.resize(to_usize(len / 8), 0);
        self.table_offset = offset;
        self.hidden.append(&mut self.showing);
        self.writing_table.clear();
        self.moved = true;
    }
}
