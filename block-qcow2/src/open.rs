//! Opening an image: options, header, tables, then the files that it refers to.
//!
//! Invariants: everything is checked against the length of the file before memory is taken for it;
//! with `no_io` neither the data file nor the backing file is opened, whatever the image says; an
//! image that cannot be served whole is refused here, not at the first request that meets the reason.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use block_core::ability::{Measurement, Repair};
use block_core::driver::BlockDriver;
use block_core::error::Problem;
use block_core::range::to_usize;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};
use block_core::{ByteRange, Node, OpenError, OpenFlags, Options};
use futures::future::BoxFuture;
use parking_lot::RwLock;

use crate::check::check_image;
use crate::cleaner::Cleaner;
use crate::compress::inflate::Inflater;
use crate::driver::{Access, Events, Lists, Qcow2Driver};
use crate::geometry::GeometryCell;
use crate::header_store::{HeaderStore, Parts};
use crate::mapping::{MIN_SLICES, slice_bytes, slice_count};
use crate::snapshot::Selector;
use crate::spec::bitmap::Bitmap;
use crate::spec::extension::{Extensions, text};
use crate::spec::header::{
    Compression, CryptMethod, HEADER_PREFIX, Header, MAGIC, MAX_BACKING_NAME,
};
use crate::spec::header::{UnverifiedHeader, unsupported};
use crate::spec::snapshot::Snapshot;
use crate::spec::{FORMAT, bad_field};
use crate::table::{read_table, read_words};
use crate::units::HostOffset;
use crate::writer::{WriterOptions, make_writer};
use crate::{create, measure, persist_bitmap, snapshot};
use block_core::metadata::cache::{Cache, CacheSize};
use block_core::metadata::gate::Gate;
use block_core::metadata::inflight::Allocations;

/// Most bytes of inflated clusters that an image keeps, unless one cluster is larger.
const INFLATED_BYTES: u64 = 256 << 10;

/// Options of the format that ask for what this driver does not do.
const NOT_IMPLEMENTED: [&str; 2] = ["encrypt.format", "encrypt.key-secret"];

/// Opens and makes `qcow2` images. Options of opening: `file`, `backing`, `data-file`,
/// `l2-cache-size`, `l2-cache-entry-size`, `refcount-cache-size`, `cache-size`, `cache-clean-interval`, `lazy-refcounts`,
/// `pass-discard-request`, `pass-discard-snapshot`, `pass-discard-other`, `discard-no-unref`,
/// `compression-level`, `compression-window` (`4k`, `32k`), `compressed-cache-size`,
/// `overlap-check` (and `overlap-check.*`), `snapshot` (or `snapshot.id`, `snapshot.name`).
pub struct Qcow2Factory;

#[async_trait]
impl DriverFactory for Qcow2Factory {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn probe(&self, head: &[u8], _: &str) -> u8 {
        let version = head.get(4..8).unwrap_or_default();
        let known = version == [0, 0, 0, 2] || version == [0, 0, 0, 3];
        if head.starts_with(&MAGIC) && known { 100 } else { 0 }
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        // The chain below opens while this waits, so little is kept on the stack meanwhile.
        let prepared = Prepared::boxed(options, context).await?;
        let data = prepared.data().await?;
        let backing = prepared.backing().await?;
        let finished: BoxFuture<'_, _> = Box::pin(prepared.finish(data, backing));
        finished.await
    }

    fn create_options(&self) -> &'static [CreateOption] {
        create::OPTIONS
    }

    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        create::create(options, context).await
    }

    fn compresses(&self) -> bool {
        true
    }

    async fn measure(
        &self,
        options: Options,
        source: Option<Node>,
    ) -> Result<Measurement, OpenError> {
        measure::measure(options, source).await
    }
}

fn not_supported(what: &'static str) -> OpenError {
    let driver = FORMAT;
    OpenError::Unsupported { driver, what }
}

/// Sizes of the slice cache.
#[derive(Copy, Clone, Debug, Default)]
struct CacheOptions {
    l2_cache_bytes: Option<u64>,
    slice_bytes: Option<u64>,
    /// After how many seconds tables that nobody uses are dropped; 0: never.
    clean_seconds: u64,
}

impl CacheOptions {
    fn take(options: &mut Options) -> Result<Self, OpenError> {
        if let Some(what) = NOT_IMPLEMENTED.into_iter().find(|o| options.peek(o).is_some()) {
            return Err(not_supported(what));
        }
        let total = options.take_size("cache-size")?;
        let l2 = options.take_size("l2-cache-size")?;
        let refcounts = options.peek("refcount-cache-size").map(str::to_owned);
        let refcounts = match refcounts {
            None => None,
            Some(text) => {
                Options::new().with("refcount-cache-size", text).take_size("refcount-cache-size")?
            }
        };
        if let (Some(total), Some(l2)) = (total, l2)
            && l2 > total
        {
            return Err(bad_option("l2-cache-size", Problem::Above(total)));
        }
        Ok(Self {
            l2_cache_bytes: l2.or(total.map(|total| total.saturating_sub(refcounts.unwrap_or(0)))),
            slice_bytes: options.take_size("l2-cache-entry-size")?,
            clean_seconds: options.take_size("cache-clean-interval")?.unwrap_or(0),
        })
    }
}

/// The error for an option that cannot be.
pub(crate) fn bad_option(option: &str, problem: Problem) -> OpenError {
    let option = option.to_owned();
    OpenError::Option { option, problem }
}

/// What the user says about the files that the image refers to.
struct ReferenceOptions {
    data_file: Options,
    backing: Options,
    /// The user wants no backing file (`backing=`).
    no_backing: bool,
}

impl ReferenceOptions {
    fn take(options: &mut Options) -> Result<Self, OpenError> {
        let no_backing = match options.take("backing").as_deref() {
            None => false,
            Some("" | "null") => true,
            Some(_) => return Err(not_supported("a backing file by node name")),
        };
        Ok(Self {
            data_file: options.take_sub("data-file"),
            backing: options.take_sub("backing"),
            no_backing,
        })
    }
}

/// An image whose own file has been read, and what is needed to open the others.
struct Prepared {
    file: Node,
    image: Image,
    references: ReferenceOptions,
    slices: CacheSize,
    /// How often memory of unused tables is given back.
    interval: Option<Duration>,
    writing: WriterOptions,
    view: Option<Selector>,
    context: OpenContext,
}

impl Prepared {
    fn boxed(
        options: Options,
        context: OpenContext,
    ) -> BoxFuture<'static, Result<Box<Self>, OpenError>> {
        Box::pin(Self::new(options, context))
    }

    fn data(&self) -> BoxFuture<'_, Result<Option<Node>, OpenError>> {
        Box::pin(self.open_data())
    }

    fn backing(&self) -> BoxFuture<'_, Result<Option<Node>, OpenError>> {
        Box::pin(self.open_backing())
    }

    async fn new(mut options: Options, mut context: OpenContext) -> Result<Box<Self>, OpenError> {
        let caches = CacheOptions::take(&mut options)?;
        let writing = WriterOptions::take(&mut options)?;
        let references = ReferenceOptions::take(&mut options)?;
        let view = Selector::take(&mut options)?;
        if view.is_some() && context.flags.writable {
            return Err(bad_option("snapshot", Problem::Contradicts("opening for writing")));
        }
        let file = context.open_child(&mut options, "file").await?;
        options.finish()?;
        let mut image = Image::read(&file, context.flags).await?;
        let writes = context.flags.writable && !context.flags.check && !context.flags.no_io;
        if writes && image.parts.header.features.dirty {
            mend(&file).await?;
            image = Image::read(&file, context.flags).await?;
        }
        if let Some(view) = &view {
            image.look_at(&file, view).await?;
        }
        let slices = slice_cache_size(&image.parts.header, caches, context.budget.limit())?;
        let interval =
            (caches.clean_seconds > 0).then(|| Duration::from_secs(caches.clean_seconds));
        Ok(Box::new(Self { file, image, references, slices, interval, writing, view, context }))
    }

    /// The node that holds guest data; `None` if it is a data file that stays closed.
    async fn open_data(&self) -> Result<Option<Node>, OpenError> {
        let given = &self.references.data_file;
        if !self.image.parts.header.features.data_file {
            if !given.is_empty() {
                let problem = Problem::Contradicts("an image without a data file");
                return Err(bad_option("data-file", problem));
            }
            return Ok(Some(self.file.clone()));
        }
        if self.context.flags.no_io {
            return Ok(None);
        }
        let name = self.image.parts.extensions.data_file.as_deref();
        if name.is_none() && given.is_empty() {
            return Err(bad_option("data-file", Problem::Missing));
        }
        if given.peek("driver").is_some() && given.peek("filename").is_none() {
            // The user says all of it: no name is wanted.
            let name = name.unwrap_or_default().to_owned();
            return self.context.open(given.clone()).await.map(Some).map_err(|source| {
                OpenError::Child { role: "data file", name, source: Box::new(source) }
            });
        }
        // A data file is raw bytes: it is opened by its protocol, never probed. A name that stands
        // in the image is a plain file; the user may name another protocol.
        let own = given.peek("filename").unwrap_or_default();
        let protocol = self.context.registry.protocol_of(own)?;
        let (name, given) = (name.unwrap_or_default(), given.clone());
        let opened =
            self.context.open_reference("data file", &self.file, name, Some(protocol), given);
        opened.await.map(Some)
    }

    async fn open_backing(&self) -> Result<Option<Node>, OpenError> {
        let given = &self.references.backing;
        let wanted = self.image.parts.backing_name.is_some() || !given.is_empty();
        let flags = self.context.flags;
        if !wanted || self.references.no_backing || flags.no_io || flags.no_backing {
            return Ok(None);
        }
        let name = match &self.image.parts.backing_name {
            Some(name) => text("backing file name", name, MAX_BACKING_NAME)?,
            None => String::new(),
        };
        let format = self.image.parts.extensions.backing_format.as_deref();
        let given = given.clone();
        let mut context = self.context.clone();
        context.flags.writable = false;
        let opened = context.open_reference("backing file", &self.file, &name, format, given);
        opened.await.map(Some)
    }

    async fn finish(
        self: Box<Self>,
        data: Option<Node>,
        backing: Option<Node>,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let Self { file, image, slices, interval, writing, view, context, .. } = *self;
        let header = &image.parts.header;
        let (geometry, disk_len) = (header.geometry, image.disk_len);
        let compression = header.compression;
        let clusters = CacheSize {
            entry_bytes: geometry.cluster_size(),
            max_entries: to_usize(INFLATED_BYTES / geometry.cluster_size()).clamp(1, 4),
            min_entries: 1,
            holds_all: false,
        };
        // A check is no guest: it mends the file below, and the node stays read-only.
        let flags = context.flags;
        let writer = match flags.writable && !flags.check && !flags.no_io {
            true => Some(make_writer(&file, &image, &writing, &context).await?),
            false => None,
        };
        let unwritten = writer.as_ref().and_then(|writer| writer.compressed.cache.clone());
        let lists = Lists { snapshots: image.snapshots, bitmaps: image.bitmaps };
        Ok(Arc::new_cyclic(|this| Qcow2Driver {
            this: this.clone(),
            inflater: Inflater::new(file.clone(), compression, geometry.cluster_size(), unwritten),
            slices: Cache::new(slices, Arc::clone(&context.budget)),
            clusters: Cache::new(clusters, Arc::clone(&context.budget)),
            header: HeaderStore::new(file.clone(), image.parts),
            file,
            data,
            backing,
            geometry: GeometryCell::new(geometry),
            disk_len: AtomicU64::new(disk_len),
            view,
            lists: RwLock::new(lists),
            l1: RwLock::new(image.l1),
            access: image.access,
            preallocated: OnceLock::new(),
            events: Events::default(),
            gate: Gate::default(),
            allocations: Allocations::default(),
            writer,
            read_only: AtomicBool::new(false),
            is_stale: AtomicBool::new(false),
            _cleaner: interval.and_then(|every| Cleaner::start(every, this.clone())),
        }))
    }
}

/// Brings the refcounts of an image that was not closed properly up to date. Other damage is not this
/// writer's to judge: the image is refused.
async fn mend(file: &Node) -> Result<(), OpenError> {
    let request = |error| OpenError::Request { what: "repair of a dirty image", error };
    let report = check_image(file, None, Repair::Refcounts, &|_| ()).await.map_err(request)?;
    if report.corruptions + report.check_errors > 0 {
        let problem = Problem::Contradicts("the dirty bit: a repair did not mend them");
        return Err(bad_field("errors in the image", report.corruptions, problem));
    }
    Ok(())
}

/// Everything that the image file says, checked.
pub(crate) struct Image {
    pub(crate) parts: Parts,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bitmaps: Vec<Bitmap>,
    pub(crate) l1: Vec<u64>,
    pub(crate) disk_len: u64,
    pub(crate) access: Access,
}

impl Image {
    pub(crate) async fn read(file: &Node, flags: OpenFlags) -> Result<Self, OpenError> {
        let start = HostOffset::new(0);
        let prefix = read_table(file, "header", start, HEADER_PREFIX).await?;
        let header = UnverifiedHeader::parse(&prefix)?;
        let cluster = read_table(file, "header", start, header.cluster_size()).await?;
        // Once more, with the fields that a longer header has.
        let header = UnverifiedHeader::parse(&cluster)?;
        let backing_name = match header.backing_name() {
            Some(part) if part.of(&cluster).len() < part.len() => {
                let problem = Problem::Truncated(file.len());
                return Err(bad_field("backing file name offset", part.start, problem));
            }
            Some(part) => Some(part.of(&cluster).to_vec()),
            None => None,
        };
        let extensions = Extensions::parse(header.extension_area().of(&cluster))?;
        let header = header.verify(&extensions)?;
        // A check says itself what is wrong with the tables, and reads no guest data.
        let access = check_encryption(&header, flags.no_io || flags.check)?;
        if !flags.no_io && !flags.check {
            check_compression(&header)?;
        }
        if !flags.check {
            check_layout(&header, &extensions, file.len())?;
        }

        let needed = match flags.writable {
            true => u64::from(header.l1.count),
            false => header.geometry.l1_entries_for(header.disk_len),
        };
        let l1 = read_words(file, "L1 table", header.l1.offset, needed).await?;
        let (snapshots, bitmaps) = match load_lists(file, &header, &extensions).await {
            Err(_) if flags.check => Default::default(),
            loaded => loaded?,
        };
        let disk_len = header.disk_len;
        let parts = Parts { header, extensions, backing_name };
        Ok(Self { parts, snapshots, bitmaps, l1, disk_len, access })
    }

    /// Takes the disk of a snapshot in place of the active one.
    pub(crate) async fn look_at(&mut self, file: &Node, view: &Selector) -> Result<(), OpenError> {
        let header = &self.parts.header;
        let (geometry, active_len) = (header.geometry, header.disk_len);
        let view = snapshot::read_view(file, geometry, &self.snapshots, view, active_len).await?;
        (self.disk_len, self.l1) = view;
        Ok(())
    }
}

async fn load_lists(
    file: &Node,
    header: &Header,
    extensions: &Extensions,
) -> Result<(Vec<Snapshot>, Vec<Bitmap>), OpenError> {
    let snapshots = snapshot::load(file, header.snapshots).await?;
    let bitmaps = match extensions.bitmaps {
        // Without the bit the directory was left behind by a writer that did not know it.
        Some(bitmaps) if header.features.bitmaps => {
            persist_bitmap::load(file, header.geometry, bitmaps).await?
        }
        _ => Vec::new(),
    };
    Ok((snapshots, bitmaps))
}

fn check_encryption(header: &Header, no_io: bool) -> Result<Access, OpenError> {
    let name = match header.crypt_method {
        CryptMethod::None if !no_io => return Ok(Access::Full),
        CryptMethod::None => return Ok(Access::Metadata),
        CryptMethod::Aes => "AES encryption",
        CryptMethod::Luks => "LUKS encryption",
    };
    if no_io {
        return Ok(Access::Metadata);
    }
    Err(unsupported(name.to_owned()))
}

/// Refuses an image whose method is not built in. One with the format's own method, deflate, may well
/// have no compressed cluster: it is served, and a compressed cluster is an error when it is met.
fn check_compression(header: &Header) -> Result<(), OpenError> {
    let compression = header.compression;
    match compression.missing_feature() {
        Some(feature) if header.features.compression_type => {
            let value = u64::from(compression == Compression::Zstd);
            Err(bad_field("compression type", value, Problem::NotBuilt(feature)))
        }
        _ => Ok(()),
    }
}

/// Checks that the tables lie inside of the file and not on each other.
fn check_layout(header: &Header, extensions: &Extensions, file_len: u64) -> Result<(), OpenError> {
    let geometry = header.geometry;
    let cluster_size = geometry.cluster_size();
    // The last cluster of the file may be cut short where nothing was ever written to it.
    let whole_clusters = geometry.cluster_alignment().round_up(file_len);
    let l1_needed = geometry.l1_entries_for(header.disk_len) * 8;
    let (l1, refcounts) = (header.l1, header.refcount_table);
    let mut tables = vec![
        ("L1 table offset", l1.offset, u64::from(l1.count) * 8, whole_clusters),
        ("L1 table offset", l1.offset, l1_needed, file_len),
        (
            "refcount table offset",
            refcounts.offset,
            u64::from(refcounts.count) * cluster_size,
            whole_clusters,
        ),
        (
            "snapshot table offset",
            header.snapshots.offset,
            u64::from(header.snapshots.count) * 40,
            file_len,
        ),
    ];
    if let Some(bitmaps) = extensions.bitmaps.filter(|_| header.features.bitmaps) {
        bitmaps.verify(geometry)?;
        let (offset, size) = (bitmaps.directory_offset, bitmaps.directory_size);
        tables.push(("bitmap directory offset", offset, size, file_len));
    }
    let mut taken = vec![("header", ByteRange::up_to(cluster_size))];
    for (field, offset, len, end) in tables {
        if len == 0 {
            continue;
        }
        let offset = offset.bytes();
        let table = ByteRange::new(offset, len).ok().filter(|table| table.end() <= end);
        let truncated = || bad_field(field, offset, Problem::Truncated(file_len));
        let table = table.ok_or_else(truncated)?;
        if taken.iter().any(|(name, other)| *name != field && other.overlaps(table)) {
            return Err(bad_field(field, offset, Problem::Overlap));
        }
        taken.push((field, table));
    }
    Ok(())
}

fn slice_cache_size(
    header: &Header,
    options: CacheOptions,
    budget: u64,
) -> Result<CacheSize, OpenError> {
    let geometry = header.geometry;
    let cluster_size = geometry.cluster_size();
    let cache_bytes = options.l2_cache_bytes.unwrap_or(budget).min(budget);
    let l2_bytes = header.disk_len.div_ceil(cluster_size) * geometry.l2_entry_size();
    let entry_bytes = match options.slice_bytes {
        None => slice_bytes(cluster_size, l2_bytes, cache_bytes),
        Some(bytes) => {
            let problem = if !bytes.is_power_of_two() {
                Some(Problem::NotPowerOfTwo)
            } else if bytes < 512 {
                Some(Problem::Below(512))
            } else if bytes > cluster_size {
                Some(Problem::Above(cluster_size))
            } else {
                None
            };
            match problem {
                Some(problem) => return Err(bad_option("l2-cache-entry-size", problem)),
                None => bytes,
            }
        }
    };
    let tables = geometry.l1_entries_for(header.disk_len);
    Ok(CacheSize {
        entry_bytes,
        max_entries: slice_count(entry_bytes, tables, cluster_size, cache_bytes),
        min_entries: MIN_SLICES,
        holds_all: tables.saturating_mul(cluster_size) <= cache_bytes,
    })
}
