//! The refcounts in memory: the refcount table, and the blocks of it that are in use.
//!
//! Who asks holds the metadata lock. Counts change in memory at once and reach the file by
//! [`crate::writeback`], which takes what is dirty by [`Refcounts::begin_write`].
//!
//! **Invariants.** Cluster 0 is never given out. A run that is given out had refcount 0 in every
//! cluster and overlaps no metadata. A block that is dirty or being written stays in memory. The
//! number of clean blocks is bounded; more are held only while they are dirty.
//!
//! Not here: finding free clusters (`allocate.rs`), and when a count may go down ([`crate::alloc`] sees to
//! that).

mod allocate;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use block_core::budget::{MemoryBudget, Reservation};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, Node, Result};

use crate::geometry::Geometry;
use crate::metadata_io::read_bytes;
use crate::overlap::{OverlapMap, Section};
use crate::spec::Fault;
use crate::spec::refcount::{max_refcount, refcount, set_refcount, table_entry};
use crate::units::HostOffset;
use block_core::metadata::cache::Map;

/// Blocks that are kept whatever the budget says.
pub(crate) const MIN_BLOCKS: usize = 4;
/// Bytes of the table that are written together.
const TABLE_SECTOR: u64 = 512;
/// Words of them.
const SECTOR_WORDS: u64 = TABLE_SECTOR / 8;

/// Host clusters in a row.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Number of the first cluster.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
}

/// How many clusters an allocation needs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// All of them in a row.
    Exactly(u64),
    /// One or more, up to this.
    UpTo(u64),
}

/// Up or down by one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Up,
    Down,
}

/// Whether the table is where it was when a write of it began.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Same,
    Moved,
}

/// Bytes of a block from the first to the last that changed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn merged(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(Self { start: a.start.min(b.start), end: a.end.max(b.end) }),
            (a, b) => a.or(b),
        }
    }
}

struct Block {
    bytes: Vec<u8>,
    /// Changed since the last write began.
    dirty: Option<Span>,
    /// What the write under way covers.
    writing: Option<Span>,
    /// When it was last looked at.
    used: u64,
    _reservation: Reservation,
}

impl Block {
    /// Sets the count number `within`. `None`, and nothing changed, if that cannot be.
    fn set(&mut self, geometry: Geometry, within: u64, value: u64) -> Option<()> {
        set_refcount(geometry, &mut self.bytes, within, value)?;
        let bits = geometry.refcount_bits();
        let start = to_usize(within * bits / 8);
        let span = Span { start, end: to_usize((within + 1).saturating_mul(bits).div_ceil(8)) };
        self.dirty = Span::merged(self.dirty, Some(span));
        Some(())
    }
}

/// The refcounts of one image.
pub(crate) struct Refcounts {
    file: Node,
    /// Whether a write behind the end of the file makes it longer; a device stays as long as it is.
    grows: bool,
    geometry: Geometry,
    overlap: Arc<OverlapMap>,
    budget: Arc<MemoryBudget>,
    table_offset: HostOffset,
    table: Vec<u64>,
    /// Sectors of the table that changed, and those that are being written.
    dirty_table: BTreeSet<u64>,
    writing_table: BTreeSet<u64>,
    /// Indexes of blocks that the table in the file does not show yet, and of those of them whose
    /// entries are being written.
    hidden: BTreeSet<u64>,
    showing: BTreeSet<u64>,
    /// Whether the table has moved since the last write began.
    moved: bool,
    /// Counted and used by nobody, such as where the table was: the caller gives it back.
    pub(crate) left: Vec<Run>,
    /// One past the last cluster that a longer table was to be written to, counted or not: the caller,
    /// who knows what was never written, takes it.
    pub(crate) written_to: u64,
    blocks: Map<Block>,
    max_blocks: usize,
    clock: u64,
    /// No cluster before this one is free, but for the one that is kept.
    hint: u64,
    /// A cluster that is given out only to who asks for it.
    kept: Option<u64>,
}

/// A part of the refcounts that is to be written.
pub(crate) struct DirtyPart {
    pub(crate) section: Section,
    pub(crate) offset: HostOffset,
    pub(crate) bytes: Vec<u8>,
}

impl Refcounts {
    pub(crate) fn new(
        file: Node,
        geometry: Geometry,
        overlap: Arc<OverlapMap>,
        budget: Arc<MemoryBudget>,
        table_offset: HostOffset,
        table: Vec<u64>,
        cache_bytes: u64,
    ) -> Self {
        let max_blocks = to_usize(cache_bytes / geometry.cluster_size()).max(MIN_BLOCKS);
        overlap.insert(Section::RefcountTable, table_offset, to_u64(table.len()) * 8);
        for entry in table.iter().filter_map(|raw| table_entry(geometry, *raw).ok().flatten()) {
            overlap.insert(Section::RefcountBlock, entry, geometry.cluster_size());
        }
        Self {
            grows: file.capabilities().grows_on_write,
            file,
            geometry,
            overlap,
            budget,
            table_offset,
            table,
            dirty_table: BTreeSet::new(),
            writing_table: BTreeSet::new(),
            hidden: BTreeSet::new(),
            showing: BTreeSet::new(),
            moved: false,
            left: Vec::new(),
            written_to: 0,
            blocks: Map::default(),
            max_blocks,
            clock: 0,
            hint: 1,
            kept: None,
        }
    }

    /// Goes on with a map that knows the same.
    pub(crate) fn share(&mut self, overlap: &Arc<OverlapMap>) {
        self.overlap = Arc::clone(overlap);
    }

    /// The refcount of a cluster; 0 where there is no block.
    pub(crate) async fn get(&mut self, cluster: u64) -> Result<u64> {
        let geometry = self.geometry;
        let (index, within) = self.place(cluster);
        match self.block(index).await? {
            None => Ok(0),
            Some(block) => {
                let outside = Fault::new("refcount index", within);
                Ok(refcount(geometry, &block.bytes, within).ok_or(outside)?)
            }
        }
    }

    /// Changes the refcounts of `run` by one. On error nothing is changed.
    ///
    /// A count of 0 goes neither way: what is counted up must be in use, and nothing is freed twice.
    pub(crate) async fn step(&mut self, run: Run, step: Step) -> Result<()> {
        for done in 0..run.count {
            if let Err(error) = self.step_one(run.first + done, step).await {
                let back = if step == Step::Up { Step::Down } else { Step::Up };
                for cluster in run.first..run.first + done {
                    self.undo(cluster, back).await?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether a cluster in use can be referred to once more.
    pub(crate) async fn can_step_up(&mut self, cluster: u64) -> Result<bool> {
        let count = self.get(cluster).await?;
        Ok((1..max_refcount(self.geometry)).contains(&count))
    }

    /// The refcount of a cluster that is referred to.
    pub(crate) async fn check_in_use(&mut self, cluster: u64) -> Result<u64> {
        match self.get(cluster).await? {
            0 => {
                let offset = cluster << self.geometry.cluster_bits();
                Err(Fault::new("refcount 0 of a cluster in use at", offset).into())
            }
            count => Ok(count),
        }
    }

    async fn step_one(&mut self, cluster: u64, step: Step) -> Result<()> {
        let old = self.check_in_use(cluster).await?;
        let new = match step {
            Step::Up if old >= max_refcount(self.geometry) => return Err(Error::Os(libc::EINVAL)),
            Step::Up => old + 1,
            Step::Down => old - 1,
        };
        self.set(cluster, new).await
    }

    async fn undo(&mut self, cluster: u64, step: Step) -> Result<()> {
        let old = self.get(cluster).await?;
        let new = if step == Step::Up { old.saturating_add(1) } else { old.saturating_sub(1) };
        self.set(cluster, new).await
    }

    async fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        let geometry = self.geometry;
        let (index, within) = self.place(cluster);
        let outside = Fault::new("refcount index", cluster);
        self.block(index)
            .await?
            .and_then(|block| block.set(geometry, within, value))
            .ok_or(outside)?;
        if value == 0 {
            self.hint = self.hint.min(cluster.max(1));
        }
        Ok(())
    }

    /// One past the last cluster in use, as far as the refcounts tell.
    pub(crate) async fn end(&mut self) -> Result<u64> {
        let (geometry, per_block) = (self.geometry, self.geometry.refcounts_per_block());
        for index in (0..to_u64(self.table.len())).rev() {
            let Some(block) = self.block(index).await? else { continue };
            let used = |within: &u64| refcount(geometry, &block.bytes, *within) != Some(0);
            if let Some(last) = (0..per_block).rev().find(used) {
                return Ok(index * per_block + last + 1);
            }
        }
        Ok(0)
    }

    /// Drops clean blocks that were not looked at since the call that returned `since`; to be given to the
    /// next call.
    pub(crate) fn sweep(&mut self, since: u64) -> u64 {
        self.blocks.retain(|_, block| {
            block.dirty.is_some() || block.writing.is_some() || block.used > since
        });
        self.clock
    }

    /// Whether so much is dirty that it should be written before more is.
    pub(crate) fn is_crowded(&self) -> bool {
        let dirty = || self.blocks.values().filter(|block| block.dirty.is_some()).count();
        self.blocks.len() > self.max_blocks && dirty() > self.max_blocks / 2
    }

    /// Takes the dirty blocks, and those parts of the table that changed. Followed by
    /// [`Refcounts::end_write`]; no other write begins meanwhile.
    pub(crate) fn begin_write(&mut self) -> (Vec<DirtyPart>, Vec<DirtyPart>) {
        let blocks = self.begin_write_blocks();
        self.moved = false;
        self.writing_table = std::mem::take(&mut self.dirty_table);
        self.showing = std::mem::take(&mut self.hidden);
        let table = self.writing_table.iter().map(|sector| {
            let start = to_usize(sector * SECTOR_WORDS);
            let words = self.table.iter().skip(start).take(to_usize(SECTOR_WORDS));
            DirtyPart {
                section: Section::RefcountTable,
                offset: self.table_offset.plus(sector * TABLE_SECTOR),
                bytes: words.flat_map(|word| word.to_be_bytes()).collect(),
            }
        });
        (blocks, table.collect())
    }

    fn begin_write_blocks(&mut self) -> Vec<DirtyPart> {
        let unit = to_usize(self.file.limits().request_alignment.bytes().max(TABLE_SECTOR));
        let mut parts = Vec::new();
        for (index, block) in &mut self.blocks {
            let Some(span) = block.dirty.take() else { continue };
            block.writing = Span::merged(block.writing, Some(span));
            let raw = self.table.get(to_usize(*index)).copied().unwrap_or(0);
            let start = span.start / unit * unit;
            let end = span.end.next_multiple_of(unit).min(block.bytes.len());
            parts.push(DirtyPart {
                section: Section::RefcountBlock,
                offset: HostOffset::new(raw).plus(to_u64(start)),
                bytes: block.bytes.get(start..end).unwrap_or_default().to_vec(),
            });
        }
        parts.sort_by_key(|part| part.offset);
        parts
    }

    /// Called when the table that is being written is stable. If it has moved meanwhile, what was written
    /// is not in it, and nothing may rely on it.
    pub(crate) fn confirm_table(&mut self) -> Place {
        if self.moved {
            return Place::Moved;
        }
        self.showing.clear();
        Place::Same
    }

    /// Ends the write that [`Refcounts::begin_write`] began. What was not written is dirty again.
    pub(crate) fn end_write(&mut self, result: &Result<()>) {
        let written = std::mem::take(&mut self.writing_table);
        if result.is_err() {
            self.dirty_table.extend(written);
        }
        self.hidden.append(&mut self.showing);
        for block in self.blocks.values_mut() {
            let written = block.writing.take();
            if result.is_err() {
                block.dirty = Span::merged(block.dirty, written);
            }
        }
    }

    /// Whether anything is to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty_table.is_empty() || self.blocks.values().any(|block| block.dirty.is_some())
    }

    /// How many clusters the file can hold.
    fn room(&self) -> u64 {
        if self.grows { u64::MAX } else { self.file.len() >> self.geometry.cluster_bits() }
    }

    fn check_free(&self, run: Run) -> Result<()> {
        let bits = self.geometry.cluster_bits();
        let zero = Fault::new("refcount of the header's cluster", 0);
        if run.first == 0 {
            return Err(zero.into());
        }
        let end = run.first.checked_add(run.count).filter(|end| *end <= MAX_HOST_BYTES >> bits);
        let end = end.ok_or(TOO_FAR)?;
        if end > self.room() {
            return Err(Error::NO_SPACE);
        }
        self.overlap.check_free(HostOffset::new(run.first << bits), run.count << bits)?;
        Ok(())
    }

    /// Which block holds the count of a cluster, and where.
    fn place(&self, cluster: u64) -> (u64, u64) {
        let per_block = self.geometry.refcounts_per_block();
        (cluster / per_block, cluster % per_block)
    }

    /// The block of this index, read if need be; `None` if there is none.
    async fn block(&mut self, index: u64) -> Result<Option<&mut Block>> {
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            let Some(raw) = self.table.get(to_usize(index)) else { return Ok(None) };
            let Some(offset) = table_entry(self.geometry, *raw)? else { return Ok(None) };
            let bytes = self.geometry.cluster_size();
            let range = ByteRange::new(offset.bytes(), bytes)?;
            if offset.bytes() >= self.file.len() {
                return Err(Fault::new("refcount block beyond the end of the file", *raw).into());
            }
            self.overlap.check_metadata(Section::RefcountBlock, offset, bytes)?;
            let reservation = self.make_room(bytes);
            self.file.driver().event("refblock_load");
            let read = read_bytes(&self.file, range).await?;
            let block = Block {
                bytes: read.to_vec(),
                dirty: None,
                writing: None,
                used: self.clock,
                _reservation: reservation,
            };
            self.blocks.insert(index, block);
        }
        let clock = self.clock;
        let mut block = self.blocks.get_mut(&index);
        if let Some(block) = &mut block {
            block.used = clock;
        }
        Ok(block)
    }

    /// Room for one more block: those that were not used for longest go, if they are clean.
    fn make_room(&mut self, bytes: u64) -> Reservation {
        loop {
            let count = self.blocks.len();
            if count < self.max_blocks
                && let Some(reservation) = self.budget.try_reserve(bytes)
            {
                return reservation;
            }
            let clean =
                self.blocks.iter().filter(|(_, b)| b.dirty.is_none() && b.writing.is_none());
            let oldest = clean.min_by_key(|(_, block)| block.used).map(|(index, _)| *index);
            match oldest.filter(|_| count >= MIN_BLOCKS) {
                Some(oldest) => {
                    self.blocks.remove(&oldest);
                }
                None => return self.budget.reserve_minimum(bytes),
            }
        }
    }
}

/// The error of a place that entries cannot name.
pub(crate) const TOO_FAR: Error = Error::Os(libc::EFBIG);

/// An entry holds host offsets below this.
const MAX_HOST_BYTES: u64 = 1 << 56;
