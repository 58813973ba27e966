//! A sparse extent: one engine for hosted, COWD and seSparse extents.
//!
//! Offsets here count from the start of the extent. **Invariants.** No lock is held while guest data
//! moves; every request to a writable extent holds a pass of its gate from before its lookup to its end;
//! the metadata lock is held to plan and to link. Lock order: `writeback`, `meta`, `gd`.

mod fill;
mod lookup;
mod now;
mod plan;
mod read;
mod room;
mod scan;
mod space;
mod status;
mod write;
mod writeback;
mod writer;
mod zero;

use std::sync::Arc;

use block_core::budget::MemoryBudget;
use block_core::metadata::cache::{Cache, CacheSize};
use block_core::metadata::gate::{Exclusive, Gate, Pass};
use block_core::metadata::inflight::Allocations;
use block_core::range::to_usize;
use block_core::{Error, Node, OpenError, OwnedBuf, Result};
use parking_lot::RwLock;

use super::geometry::Geometry;
use super::layout::{BadTables, SparseLayout};
use crate::compress::GrainReader;
use crate::error::bad_field;

pub(crate) use read::read_node;
pub(crate) use writeback::WriteBack;
pub(crate) use writer::{Discards, Writer};

/// The entries of a grain table, each as wide as the widest format has them.
pub(crate) type Table = Arc<Vec<u64>>;

/// Bytes of inflated grains that one extent keeps, so that small reads do not inflate one again and again.
const INFLATED_BYTES: u64 = 1 << 20;
/// Tables that are kept whatever the budget says.
const MIN_TABLES: usize = 4;

/// An open sparse extent.
pub(crate) struct SparseExtent {
    pub(crate) file: Node,
    pub(crate) layout: SparseLayout,
    /// The layout's, where every request finds it.
    geometry: Geometry,
    /// Where on the disk the extent starts.
    start: u64,
    backing: Option<Node>,
    /// The sector of each grain table, zero where there is none. Held for a look or a change of a word.
    gd: RwLock<Vec<u32>>,
    /// By number of the table.
    tables: Cache<Table>,
    /// Where grains are compressed.
    compressed: Option<GrainReader>,
    /// Inflated grains, by sector of the file.
    grains: Cache<Arc<OwnedBuf>>,
    gate: Gate,
    allocations: Allocations,
    writer: Option<Writer>,
}

/// What a sparse extent is opened with.
pub(crate) struct SparseParts {
    pub(crate) file: Node,
    pub(crate) layout: SparseLayout,
    /// Entries of the directory that are read: all of them where the extent is written to.
    pub(crate) gd_entries: u64,
    /// Where on the disk the extent starts.
    pub(crate) start: u64,
    pub(crate) backing: Option<Node>,
    pub(crate) budget: Arc<MemoryBudget>,
    /// For an extent that is written to.
    pub(crate) writing: Option<Discards>,
    pub(crate) bad_tables: BadTables,
}

impl SparseExtent {
    /// Reads the directories.
    pub(crate) async fn open(parts: SparseParts) -> Result<Self, OpenError> {
        let SparseParts { file, layout, gd_entries, start, backing, budget, writing, bad_tables } =
            parts;
        let geometry = layout.geometry;
        let gd = layout.read_directory(&file, layout.gd, gd_entries, bad_tables).await?;
        let writer = match writing {
            Some(discards) => Some(Writer::open(&file, &layout, &gd, discards).await?),
            None => None,
        };
        // In memory an entry takes 8 bytes, whatever it takes in the file.
        let entry_bytes = geometry.gtes_per_gt() * 8;
        let budgeted = to_usize(budget.limit() / entry_bytes);
        let tables = to_usize(geometry.table_count());
        let tables = CacheSize {
            entry_bytes,
            max_entries: budgeted.min(tables),
            min_entries: MIN_TABLES,
            holds_all: tables <= budgeted,
        };
        let compressed = match layout.hosted().filter(|header| header.is_compressed()) {
            Some(header) => {
                let reader = GrainReader::new(file.clone(), header);
                let grain = header.grain_size().0;
                Some(reader.map_err(|problem| bad_field("grainSize", grain, problem))?)
            }
            None => None,
        };
        let grains = CacheSize {
            entry_bytes: geometry.grain_size(),
            max_entries: to_usize(INFLATED_BYTES / geometry.grain_size()).clamp(1, 16),
            min_entries: 1,
            holds_all: false,
        };
        Ok(Self {
            file,
            layout,
            geometry,
            start,
            backing,
            gd: RwLock::new(gd),
            tables: Cache::new(tables, Arc::clone(&budget)),
            compressed,
            grains: Cache::new(grains, budget),
            gate: Gate::default(),
            allocations: Allocations::default(),
            writer,
        })
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Enters the gate, where somebody could change what a request relies on.
    pub(crate) async fn enter(&self) -> Option<Pass<'_>> {
        match self.writer {
            Some(_) => Some(self.gate.enter().await),
            None => None,
        }
    }

    /// Waits until no request is inside; while it lives, none enters.
    pub(crate) async fn exclusive(&self) -> Exclusive<'_> {
        self.gate.exclusive().await
    }

    /// Enters the gate, if that takes no waiting.
    pub(crate) fn try_enter(&self) -> Option<Option<Pass<'_>>> {
        match self.writer {
            Some(_) => self.gate.try_enter().map(Some),
            None => Some(None),
        }
    }

    /// The state for writing; an error if the extent is open for reading.
    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }

    /// Tells the file what is about to be done.
    fn event(&self, name: &'static str) {
        self.file.driver().event(name);
    }
}
