//! What an image has only if it is open for writing: the options for that, and how it is read.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block_core::budget::MemoryBudget;
use block_core::error::Problem;
use block_core::registry::OpenContext;
use block_core::{Error, Node, OpenError, Options};
use roaring::RoaringTreemap;

use crate::alloc::{Meta, Reason};
use crate::compress::turns::Turns;
use crate::geometry::{Geometry, Version};
use crate::open::Image;
use crate::overlap::{Guard, Guarded, OverlapMap, Section};
use crate::persist_bitmap::BitmapGuard;
use crate::refcounts::Refcounts;
use crate::snapshot;
use crate::spec::bad_field;
use crate::spec::entry::l1_entry;
use crate::spec::header::MAX_L1_BYTES;
use crate::spec::refcount::table_entry;
use crate::table::read_words;
use crate::units::HostOffset;
use crate::write_compressed::{CompressedOptions, CompressedWrites};

/// The state of a writable image.
pub(crate) struct Writer {
    /// The metadata lock: planning and linking, never data. After `writeback` in the lock order.
    pub(crate) meta: futures::lock::Mutex<Meta>,
    /// In which order writes are planned.
    pub(crate) turns: Turns,
    /// Held by the one write-back that is under way. First in the lock order.
    pub(crate) writeback: futures::lock::Mutex<()>,
    pub(crate) overlap: Arc<OverlapMap>,
    pub(crate) discards: PassDiscards,
    pub(crate) freeing: Freeing,
    pub(crate) lazy: LazyRefcounts,
    /// Whether the corrupt bit was set.
    pub(crate) marked_corrupt: AtomicBool,
    /// Whether COPIED flags may not be what the refcounts say: a change of them was not finished.
    pub(crate) copied_wrong: AtomicBool,
    pub(crate) options: WriterOptions,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) bitmaps: BitmapGuard,
    pub(crate) compressed: CompressedWrites,
}

impl Writer {
    /// What an image says anew of its metadata, beside what is known of it.
    pub(crate) async fn read(&self, file: &Node, image: &Image) -> Result<Meta, OpenError> {
        let (options, geometry) = (&self.options, image.parts.header.geometry);
        let overlap = Arc::new(OverlapMap::new(geometry, options.guarded));
        note_metadata(file, image, &overlap, options.guarded).await?;
        read_meta(file, image, options, overlap, &self.budget).await
    }
}

/// Which freed clusters are punched out of the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct PassDiscards {
    request: bool,
    snapshot: bool,
    other: bool,
}

impl PassDiscards {
    pub(crate) fn passes(self, reason: Reason) -> bool {
        match reason {
            Reason::Request => self.request,
            Reason::Snapshot => self.snapshot,
            Reason::Other | Reason::Unused => self.other,
        }
    }
}

/// What a discard does with the host cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Freeing {
    /// It is given back.
    GiveBack,
    /// It stays where it is, punched out (`discard-no-unref`).
    Keep,
}

/// When refcounts are written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum LazyRefcounts {
    /// When the image is closed; until then the image is marked dirty.
    On,
    /// At every flush.
    Off,
}

/// Options of a writable image.
#[derive(Clone, Debug)]
pub(crate) struct WriterOptions {
    lazy: Option<bool>,
    request: Option<bool>,
    snapshot: bool,
    other: bool,
    no_unref: bool,
    pub(crate) guarded: Guarded,
    pub(crate) refcount_cache_bytes: Option<u64>,
    compressed: CompressedOptions,
}

impl WriterOptions {
    /// Takes them from `options`. Good for images that are opened for reading, too.
    pub(crate) fn take(options: &mut Options) -> Result<Self, OpenError> {
        Ok(Self {
            lazy: options.take_bool("lazy-refcounts")?,
            request: options.take_bool("pass-discard-request")?,
            snapshot: options.take_bool("pass-discard-snapshot")?.unwrap_or(true),
            other: options.take_bool("pass-discard-other")?.unwrap_or(false),
            no_unref: options.take_bool("discard-no-unref")?.unwrap_or(false),
            guarded: take_guarded(options)?,
            refcount_cache_bytes: options.take_size("refcount-cache-size")?,
            compressed: CompressedOptions::take(options)?,
        })
    }

    /// What they say for an image of this geometry.
    pub(crate) fn apply(
        &self,
        geometry: Geometry,
        lazy_in_header: bool,
        unmap: bool,
    ) -> Result<(PassDiscards, Freeing, LazyRefcounts), OpenError> {
        let v2 = geometry.version() == Version::V2;
        for (set, name) in
            [(self.lazy, "lazy-refcounts"), (Some(self.no_unref), "discard-no-unref")]
        {
            if v2 && set == Some(true) {
                let problem = Problem::Contradicts("version 2 of the format");
                return Err(OpenError::Option { option: name.to_owned(), problem });
            }
        }
        let discards = PassDiscards {
            request: self.request.unwrap_or(unmap),
            snapshot: self.snapshot,
            other: self.other,
        };
        let freeing = if self.no_unref { Freeing::Keep } else { Freeing::GiveBack };
        let lazy = if self.lazy.unwrap_or(lazy_in_header) {
            LazyRefcounts::On
        } else {
            LazyRefcounts::Off
        };
        Ok((discards, freeing, lazy))
    }
}

/// `overlap-check`, or `overlap-check.template` and one option for each section.
fn take_guarded(options: &mut Options) -> Result<Guarded, OpenError> {
    let short = options.take("overlap-check");
    let long = options.take("overlap-check.template");
    let mut guarded = match short.or(long).as_deref() {
        None => Guarded::CACHED,
        Some(name) => Guarded::template(name).ok_or_else(|| OpenError::Option {
            option: "overlap-check".to_owned(),
            problem: Problem::Unknown,
        })?,
    };
    for (section, name) in Guarded::names() {
        let single = options.take_bool(&format!("overlap-check.{name}"))?;
        guarded = match single {
            None => guarded,
            Some(true) => guarded.with(section, Guard::On),
            Some(false) => guarded.with(section, Guard::Off),
        };
    }
    Ok(guarded)
}

/// Reads what only a writer needs, and refuses images that must not be written.
pub(crate) async fn make_writer(
    file: &Node,
    image: &Image,
    options: &WriterOptions,
    context: &OpenContext,
) -> Result<Writer, OpenError> {
    let header = &image.parts.header;
    let geometry = header.geometry;
    if header.features.corrupt {
        return Err(bad_field("corrupt bit", 1, Problem::Contradicts("opening for writing")));
    }
    let (discards, freeing, lazy) =
        options.apply(geometry, header.features.lazy_refcounts, context.flags.unmap)?;
    let overlap = Arc::new(OverlapMap::new(geometry, options.guarded));
    note_metadata(file, image, &overlap, options.guarded).await?;
    let meta = read_meta(file, image, options, Arc::clone(&overlap), &context.budget).await?;
    let (compression, budget) = (header.compression, &context.budget);
    let compressed = options.compressed.apply(file, geometry, compression, &overlap, budget)?;
    Ok(Writer {
        meta: futures::lock::Mutex::new(meta),
        turns: Turns::default(),
        writeback: futures::lock::Mutex::default(),
        overlap,
        discards,
        freeing,
        lazy,
        marked_corrupt: AtomicBool::new(false),
        copied_wrong: AtomicBool::new(false),
        options: options.clone(),
        budget: Arc::clone(&context.budget),
        bitmaps: BitmapGuard::of(&image.bitmaps, header.unknown_autoclear),
        compressed,
    })
}

/// Enters all metadata but the refcount structure, which enters itself.
async fn note_metadata(
    file: &Node,
    image: &Image,
    overlap: &OverlapMap,
    guarded: Guarded,
) -> Result<(), OpenError> {
    let header = &image.parts.header;
    let geometry = header.geometry;
    overlap.insert(Section::ActiveL1, header.l1.offset, u64::from(header.l1.count) * 8);
    let tables = image.l1.iter().filter_map(|raw| l1_entry(geometry, *raw).ok().flatten());
    let active: RoaringTreemap = tables.map(|t| t.bytes() >> geometry.cluster_bits()).collect();
    for table in &active {
        let table = HostOffset::new(table << geometry.cluster_bits());
        overlap.insert(Section::ActiveL2, table, geometry.cluster_size());
    }
    let table_bytes = snapshot::stored_bytes(file, header.snapshots).await?;
    overlap.insert(Section::SnapshotTable, header.snapshots.offset, table_bytes);
    for snapshot in &image.snapshots {
        let l1 = snapshot.l1;
        overlap.insert(Section::InactiveL1, l1.offset, u64::from(l1.count) * 8);
        if guarded.has(Section::InactiveL2) {
            let count = u64::from(l1.count).min(MAX_L1_BYTES / 8);
            for raw in read_words(file, "snapshot L1 table", l1.offset, count).await? {
                // A shared table is an active one.
                if let Ok(Some(table)) = l1_entry(geometry, raw)
                    && !active.contains(table.bytes() >> geometry.cluster_bits())
                {
                    overlap.insert(Section::InactiveL2, table, geometry.cluster_size());
                }
            }
        }
    }
    if let Some(bitmaps) = image.parts.extensions.bitmaps.filter(|_| header.features.bitmaps) {
        let (offset, len) = (bitmaps.directory_offset, bitmaps.directory_size);
        overlap.insert(Section::BitmapDirectory, offset, len);
    }
    Ok(())
}

/// Reads the refcount table; the blocks are read when they are needed.
async fn read_meta(
    file: &Node,
    image: &Image,
    options: &WriterOptions,
    overlap: Arc<OverlapMap>,
    budget: &Arc<MemoryBudget>,
) -> Result<Meta, OpenError> {
    let header = &image.parts.header;
    let geometry = header.geometry;
    let table = header.refcount_table;
    let words = u64::from(table.count) * (geometry.cluster_size() / 8);
    file.driver().event("reftable_load");
    let entries = read_words(file, "refcount table", table.offset, words).await?;
    let mut blocks = RoaringTreemap::new();
    for raw in &entries {
        let block = table_entry(geometry, *raw)
            .map_err(|fault| bad_field(fault.what, fault.value, Problem::Unknown))?;
        if block.is_some_and(|block| !blocks.insert(block.bytes() >> geometry.cluster_bits())) {
            return Err(bad_field("refcount block used twice", *raw, Problem::Overlap));
        }
    }
    let cache_bytes = options.refcount_cache_bytes.unwrap_or(budget.limit() / 4);
    let mut refcounts = Refcounts::new(
        file.clone(),
        geometry,
        Arc::clone(&overlap),
        Arc::clone(budget),
        table.offset,
        entries,
        cache_bytes,
    );
    let own = refcounts.get(0).await.map_err(|error| match error {
        Error::Corrupt { what, value } => bad_field(what, value, Problem::Unknown),
        error => OpenError::Request { what: "refcount of the header's cluster", error },
    })?;
    if own == 0 {
        // The first allocation would overwrite the header.
        return Err(bad_field("refcount of the header's cluster", 0, Problem::Zero));
    }
    let fresh_from = if file.capabilities().has_zero_init {
        geometry.cluster_alignment().round_up(file.len())
    } else {
        u64::MAX
    };
    Ok(Meta {
        refcounts,
        dirty_l1: BTreeSet::new(),
        unlinked: HashSet::new(),
        dropped: Vec::new(),
        written: Vec::new(),
        limbo: VecDeque::new(),
        fresh_from,
        grown_to: None,
        packing: None,
        geometry,
        overlap,
    })
}
