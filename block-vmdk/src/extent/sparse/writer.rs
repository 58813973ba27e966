//! What an extent needs to be written to: where its metadata is, and what of it changed.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::atomic::AtomicBool;

use block_core::error::Problem;
use block_core::metadata::gate::Epoch;
use block_core::range::to_u64;
use block_core::{ByteRange, Error, Node, OpenError, Result};
use parking_lot::RwLock;
use roaring::RoaringBitmap;

use super::SparseExtent;
use super::scan::SharedGrains;
use super::space::{Place, Space};
use crate::error::bad_field;
use crate::extent::geometry::SECTOR;
use crate::extent::layout::{BadTables, SparseLayout};

/// Whether the space of grains that are not needed any more is given back to the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Discards {
    /// It is punched out.
    Pass,
    /// It is kept for other grains.
    Keep,
}

/// The state of a writable extent.
pub(crate) struct Writer {
    /// Guards what changes with the mapping; held to plan and to link.
    pub(super) meta: futures::lock::Mutex<Meta>,
    /// Held by the one write-back that is under way.
    pub(super) writeback: futures::lock::Mutex<()>,
    /// Sectors of the file that hold metadata. Held for a look or an insertion.
    metadata: RwLock<RoaringBitmap>,
    pub(super) discards: Discards,
    /// Whether the extent may be changed: the file says so, and `Meta::space` is there.
    pub(super) begun: AtomicBool,
    /// Whether the header says that the file was not closed properly.
    pub(super) unclean: AtomicBool,
}

/// Sectors of the file, one after the other: the first, and how many.
pub(super) type Sectors = (u64, u64);

/// What the metadata lock guards.
pub(super) struct Meta {
    /// The redundant directory, where there is one.
    pub(super) redundant: Option<Vec<u32>>,
    /// Free space, once something was changed.
    pub(super) space: Option<Space>,
    /// Sectors of the directory that changed since the last write of them began.
    pub(super) dirty_gd: BTreeSet<u64>,
    /// The same of the redundant one.
    pub(super) dirty_redundant: BTreeSet<u64>,
    /// Tables whose place the directory in the file does not name.
    pub(super) unlinked: HashSet<u64>,
    /// The same of the redundant ones.
    pub(super) unlinked_redundant: HashSet<u64>,
    /// Grains that the tables in memory do not refer to; those in the file may.
    pub(super) dropped: Vec<Sectors>,
    /// Grains that the tables that were written do not refer to.
    pub(super) written: Vec<Sectors>,
    /// Grains that no stable table refers to; requests from before then may use them.
    pub(super) limbo: VecDeque<(Vec<Sectors>, Epoch)>,
    /// Grains whose space is not given to others.
    pub(super) shared: SharedGrains,
    /// The length of the file, if it was made longer than it need be.
    pub(super) grown_to: Option<u64>,
    /// The next free sector as it stands in the header of a COWD extent.
    pub(super) free_sector: u64,
}

/// Bytes of grains that may wait for the next write of the tables before one is made for their sake.
const MAX_WAITING_BYTES: u64 = 256 << 20;
/// Pieces of them, which take memory here.
const MAX_WAITING: usize = 64 << 10;

impl Writer {
    /// For the extent in `file`, with this directory.
    pub(super) async fn open(
        file: &Node,
        layout: &SparseLayout,
        gd: &[u32],
        discards: Discards,
    ) -> Result<Self, OpenError> {
        let redundant = match layout.redundant_gd {
            Some(place) => {
                let count = layout.geometry.table_count();
                Some(layout.read_directory(file, place, count, BadTables::Refused).await?)
            }
            None => None,
        };
        let metadata = metadata_of(layout, gd, redundant.as_deref())?;
        let meta = Meta {
            redundant,
            space: None,
            dirty_gd: BTreeSet::new(),
            dirty_redundant: BTreeSet::new(),
            unlinked: HashSet::new(),
            unlinked_redundant: HashSet::new(),
            dropped: Vec::new(),
            written: Vec::new(),
            limbo: VecDeque::new(),
            shared: SharedGrains::default(),
            grown_to: None,
            free_sector: layout.free_sector(),
        };
        let unclean = layout.hosted().is_some_and(|header| header.unclean_shutdown());
        Ok(Self {
            meta: futures::lock::Mutex::new(meta),
            writeback: futures::lock::Mutex::default(),
            metadata: RwLock::new(metadata),
            discards,
            begun: AtomicBool::new(false),
            unclean: AtomicBool::new(unclean),
        })
    }

    /// Refuses to put guest data over metadata.
    pub(super) fn check_data(&self, range: ByteRange) -> Result<()> {
        let corrupt = Error::Corrupt { what: "grain over metadata", value: range.offset() };
        let (first, end) = (range.offset() / SECTOR, range.end().div_ceil(SECTOR));
        let first = u32::try_from(first).map_err(|_| corrupt)?;
        let last = u32::try_from(end.saturating_sub(1)).map_err(|_| corrupt)?;
        match self.metadata.read().range_cardinality(first..=last) {
            0 => Ok(()),
            _ => Err(corrupt),
        }
    }

    /// Whether no metadata stands in these sectors.
    pub(super) fn is_free(&self, sector: u64, sectors: u64) -> bool {
        let last = sector.saturating_add(sectors).saturating_sub(1);
        match (u32::try_from(sector), u32::try_from(last)) {
            (Ok(first), Ok(last)) => self.metadata.read().range_cardinality(first..=last) == 0,
            _ => false,
        }
    }

    /// Notes a new table.
    pub(super) fn note_table(&self, sector: u32, sectors: u64) {
        let end = u64::from(sector) + sectors;
        let last = u32::try_from(end.saturating_sub(1)).unwrap_or(u32::MAX);
        self.metadata.write().insert_range(sector..=last);
    }

    /// The sector behind the last that holds metadata.
    pub(super) fn metadata_end(&self) -> u64 {
        self.metadata.read().max().map_or(0, |last| u64::from(last) + 1)
    }
}

/// The sectors that hold metadata; an error if two structures overlap.
fn metadata_of(
    layout: &SparseLayout,
    gd: &[u32],
    redundant: Option<&[u32]>,
) -> Result<RoaringBitmap, OpenError> {
    let mut map = RoaringBitmap::new();
    let mut add = |field, start: u64, count: u64| -> Result<(), OpenError> {
        if count == 0 {
            return Ok(());
        }
        let too_far = || bad_field(field, start, Problem::Above(u32::MAX.into()));
        let first = u32::try_from(start).map_err(|_| too_far())?;
        let last = start.checked_add(count - 1).and_then(|last| u32::try_from(last).ok());
        let added = map.insert_range(first..=last.ok_or_else(too_far)?);
        match added == count {
            true => Ok(()),
            false => Err(bad_field(field, start, Problem::Overlap)),
        }
    };
    add("header", 0, layout.header_sectors().0)?;
    if let Some(place) = layout.descriptor {
        add("descriptorOffset", place.start.0, place.count.0)?;
    }
    let directory = layout.directory_bytes().div_ceil(SECTOR);
    add("gdOffset", layout.gd.0, directory)?;
    if let Some(place) = layout.redundant_gd {
        add("rgdOffset", place.0, directory)?;
    }
    let sectors = layout.table_sectors().0;
    let tables = gd.iter().map(|sector| ("grain directory entry", *sector));
    let others = redundant.unwrap_or_default().iter();
    for (field, sector) in tables.chain(others.map(|s| ("redundant grain directory entry", *s))) {
        if sector != 0 {
            add(field, u64::from(sector), sectors)?;
        }
    }
    Ok(map)
}

impl Meta {
    /// Free space; there once the first change has begun.
    pub(super) fn space(&mut self) -> Result<&mut Space> {
        self.space.as_mut().ok_or(Error::Invalid)
    }

    /// Takes back a place that was never linked.
    pub(super) fn give_back(&mut self, place: Place, grain: u64) {
        if let Some(space) = &mut self.space {
            space.give_back(place.sector, place.grains * grain);
        }
    }

    /// Lets go grains that were linked: see [`SparseExtent::let_go`].
    fn drop_grains(&mut self, sectors: Sectors) {
        match self.dropped.last_mut() {
            Some((first, count)) if *first + *count == sectors.0 => *count += sectors.1,
            _ => self.dropped.push(sectors),
        }
    }

    /// Whether so much waits for a write of the tables that one should be made.
    pub(super) fn is_hoarding(&self) -> bool {
        let waiting = || self.dropped.iter().chain(&self.written);
        let sectors: u64 = waiting().map(|(_, count)| *count).sum();
        self.dropped.len() + self.written.len() > MAX_WAITING
            || sectors.saturating_mul(SECTOR) > MAX_WAITING_BYTES
    }

    /// Whether a write-back may bring free space.
    pub(super) fn has_waiting(&self) -> bool {
        !(self.dropped.is_empty() && self.written.is_empty() && self.limbo.is_empty())
    }

    /// Takes what is in limbo and used by nobody.
    pub(super) fn take_ready(&mut self, is_past: impl Fn(Epoch) -> bool) -> Vec<Sectors> {
        let mut ready = Vec::new();
        while self.limbo.front().is_some_and(|(_, since)| is_past(*since)) {
            ready.extend(self.limbo.pop_front().into_iter().flat_map(|(sectors, _)| sectors));
        }
        ready.sort_unstable();
        ready
    }
}

impl SparseExtent {
    /// Lets go the grain at `sector`, which no table in memory refers to any more. What may have another
    /// owner, another grain or metadata, is not given back: it would be punched out, or written to.
    pub(super) fn let_go(&self, meta: &mut Meta, sector: u64) -> Result<()> {
        let count = self.grain_sectors();
        if !meta.shared.contains(sector) && self.writer()?.is_free(sector, count) {
            meta.drop_grains((sector, count));
        }
        Ok(())
    }
}

/// Which sector of a directory holds the entry of a table.
pub(super) fn directory_sector(table: u64) -> u64 {
    table * 4 / SECTOR
}

/// Entries in a sector of a directory.
pub(super) const ENTRIES_PER_SECTOR: u64 = SECTOR / 4;

/// Entries of one sector of a directory.
pub(super) fn sector_entries(directory: &[u32], sector: u64) -> Vec<u8> {
    let start = block_core::range::to_usize(sector * ENTRIES_PER_SECTOR);
    let end = directory.len().min(start + block_core::range::to_usize(ENTRIES_PER_SECTOR));
    debug_assert!(to_u64(start) <= to_u64(end));
    let entries = directory.get(start..end).unwrap_or_default();
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
