//! The driver: what `block-core` asks, and which module answers.
//!
//! Invariants: no lock is held while guest data moves, but for a short copy into the page cache
//! ([`crate::write_now`]); a read of one run whose L2 slice is cached costs one lookup and goes straight
//! to the child, and so does a write to where data is already;
//! every request to a writable image holds a pass of the gate from before its lookup to its end.
//!
//! Not here: opening ([`crate::open`]), the mapping, the plan of a read, block status.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use block_core::ability::{Amend, Check, PersistentBitmaps, Rebase, Snapshots, VmState};
use block_core::driver::{BlockDriver, Child, ChildRole, Children, CopySource, Exactness};
use block_core::driver::{NodeEvent, Prealloc, ReopenOptions, ReopenState};
use block_core::info::DriverInfo;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, Error, IoVec, Node, OwnedBuf, RequestFlags,
};
use block_core::{OpenError, Result, Support};
use futures::future::BoxFuture;
use parking_lot::RwLock;

use crate::cleaner::Cleaner;
use crate::compress::inflate::{DAMAGED, Inflater};
use crate::geometry::{DataLocation, Geometry, GeometryCell};
use crate::header_store::HeaderStore;
use crate::map::Kind;
use crate::mapping::Slice;
use crate::reload::from_below;
use crate::snapshot::Selector;
use crate::spec::Fault;
use crate::spec::bitmap::Bitmap;
use crate::spec::snapshot::Snapshot;
use crate::units::GuestOffset;
use crate::write::Payload;
use crate::writeback::Extent;
use crate::writer::Writer;
use block_core::metadata::cache::Cache;
use block_core::metadata::gate::{Exclusive, Gate, Pass};
use block_core::metadata::inflight::Allocations;

/// An open qcow2 image.
///
/// Made by [`Qcow2Factory`](crate::Qcow2Factory).
pub struct Qcow2Driver {
    /// For [`Qcow2Driver::shared`].
    pub(crate) this: Weak<Self>,
    pub(crate) file: Node,
    /// Where guest data is: `file`, or an external data file. `None` if that was kept closed.
    pub(crate) data: Option<Node>,
    pub(crate) backing: Option<Node>,
    pub(crate) header: HeaderStore,
    /// The header's, where every request finds it.
    pub(crate) geometry: GeometryCell,
    /// The header's disk length, or that of the snapshot that is open.
    pub(crate) disk_len: AtomicU64,
    /// The snapshot that is open in place of the active disk.
    pub(crate) view: Option<Selector>,
    pub(crate) lists: RwLock<Lists>,
    /// The L1 table: all of it if the image is writable, else what the disk needs. Changed under the
    /// metadata lock only; held for a look or a change of a word.
    pub(crate) l1: RwLock<Vec<u64>>,
    pub(crate) slices: Cache<Slice>,
    /// Inflated clusters, so that small reads do not inflate one again and again.
    pub(crate) clusters: Cache<Arc<OwnedBuf>>,
    pub(crate) inflater: Inflater,
    pub(crate) access: Access,
    /// Whether the file holds less than the refcounts claim; worked out when first needed.
    pub(crate) preallocated: OnceLock<bool>,
    pub(crate) events: Events,
    /// What requests pass. Not used by images that are only read.
    pub(crate) gate: Gate,
    pub(crate) allocations: Allocations,
    pub(crate) writer: Option<Writer>,
    /// Of an image with a writer: whether it was reopened for reading only.
    pub(crate) read_only: AtomicBool,
    /// Whether the file was changed beside what is in memory, and could not be read again.
    pub(crate) is_stale: AtomicBool,
    /// Gives memory back, where that was asked for.
    pub(crate) _cleaner: Option<Cleaner>,
}

/// Lists of the image besides its tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bitmaps: Vec<Bitmap>,
}

/// Whether guest data can be read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Yes.
    Full,
    /// No: opened to look at the metadata only, or encrypted.
    Metadata,
}

/// Where damage is reported; the first time only, as the next requests meet the same.
#[derive(Default)]
pub(crate) struct Events {
    sink: OnceLock<Arc<dyn Fn(NodeEvent) + Send + Sync>>,
    reported: AtomicBool,
}

impl Events {
    /// Reports damage of this image and gives the error for the request that met it.
    pub(crate) fn fault(&self, fault: Fault) -> Error {
        let Fault { what, value } = fault;
        if !self.reported.swap(true, Ordering::Relaxed)
            && let Some(sink) = self.sink.get()
        {
            sink(NodeEvent::Corrupted { what, value });
        }
        Error::from(fault)
    }
}

impl Qcow2Driver {
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry.load()
    }

    pub(crate) fn disk_len(&self) -> u64 {
        self.disk_len.load(Ordering::Acquire)
    }

    /// Tells the file what is about to be done.
    pub(crate) fn event(&self, name: &'static str) {
        self.file.driver().event(name);
    }

    /// The state for writing; an error if the image is open for reading, or is not what is in memory.
    pub(crate) fn writer(&self) -> Result<&Writer> {
        match &self.writer {
            Some(writer)
                if !self.read_only.load(Ordering::Acquire)
                    && !self.is_stale.load(Ordering::Acquire) =>
            {
                Ok(writer)
            }
            _ => Err(Error::ReadOnly),
        }
    }

    /// Itself, for what goes on when nobody waits for it any more.
    pub(crate) fn shared(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Error::Closed)
    }

    /// Enters the gate, where somebody could change what a request relies on.
    async fn enter(&self) -> Option<Pass<'_>> {
        match self.writer {
            Some(_) => Some(self.gate.enter().await),
            None => None,
        }
    }

    /// An exclusive turn of the gate. Whoever had one before may have found that this image is not to be
    /// written any more.
    pub(crate) async fn alone(&self) -> Result<Exclusive<'_>> {
        let exclusive = self.gate.exclusive().await;
        self.writer()?;
        Ok(exclusive)
    }

    /// Names the header and the options give to what it stands on.
    fn child(name: &'static str, role: ChildRole, node: &Node) -> Child {
        let node = node.clone();
        Child { name, role, node }
    }

    pub(crate) fn fault(&self, fault: Fault) -> Error {
        self.events.fault(fault)
    }

    /// The error of a request to this image, damage of the metadata reported. Guest data that is lost
    /// fails what asks for it; the rest of the image is as sound as ever.
    pub(crate) fn reported(&self, error: Error) -> Error {
        match error {
            Error::Corrupt { what: DAMAGED, .. } => error,
            Error::Corrupt { what, value } => self.fault(Fault::new(what, value)),
            other => other,
        }
    }

    pub(crate) fn check_access(&self) -> Result<()> {
        match self.access {
            Access::Full => Ok(()),
            Access::Metadata => Err(Error::Unsupported),
        }
    }

    /// How the whole of `range` is stored, if that is known without reading a table and the same
    /// for all of it.
    #[inline]
    fn one_kind(&self, range: ByteRange) -> Option<Kind> {
        let extent = self.extent_at_once(GuestOffset::new(range.offset()), range.len());
        match extent {
            Some(Ok(extent)) if extent.len == range.len() => Some(extent.kind),
            _ => None,
        }
    }
}

/// The part of `node` at `offset`, if it is inside.
fn inside(node: &Option<Node>, offset: u64, len: u64) -> Option<(&Node, ByteRange)> {
    let node = node.as_ref()?;
    let range = ByteRange::new(offset, len).ok()?;
    (range.end() <= node.len()).then_some((node, range))
}

#[async_trait]
impl BlockDriver for Qcow2Driver {
    fn name(&self) -> &'static str {
        crate::spec::FORMAT
    }

    fn len(&self) -> u64 {
        self.disk_len()
    }

    fn limits(&self) -> BlockLimits {
        let geometry = self.geometry();
        let own = BlockLimits {
            opt_transfer: Some(geometry.cluster_size()),
            pwrite_zeroes_alignment: Alignment::new(geometry.subcluster_size()),
            pdiscard_alignment: Some(geometry.cluster_alignment()),
            compressed_write_alignment: Some(geometry.cluster_alignment()),
            ..BlockLimits::default()
        };
        let nodes = [self.data.as_ref(), self.backing.as_ref()];
        let merged = nodes.into_iter().flatten().fold(own, |sum, node| sum.merge(&node.limits()));
        // A child's layer splits a long run; splitting it here would only map it twice.
        BlockLimits { max_transfer: None, ..merged }
    }

    fn capabilities(&self) -> Capabilities {
        if self.writer.is_none() {
            return Capabilities::default();
        }
        Capabilities {
            write_fua: Support::Emulated,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Emulated,
            zeroes_may_unmap: Support::Native,
            zeroes_no_fallback: Support::Native,
            discard: Support::Native,
            compressed_write: match self.geometry().data_location() {
                DataLocation::Image => Support::Native,
                DataLocation::DataFile => Support::None,
            },
            truncate: Support::Native,
            grows_on_write: false,
            has_zero_init: self.backing.is_none(),
        }
    }

    fn is_read_only(&self) -> bool {
        self.writer().is_err()
    }

    fn children(&self) -> Children {
        let own_data = self.data.as_ref().is_some_and(|data| !data.same(&self.file));
        let role = if self.geometry().data_location() == DataLocation::DataFile {
            ChildRole::Metadata
        } else {
            ChildRole::Primary
        };
        let file = Self::child("file", role, &self.file);
        let data = self.data.as_ref().filter(|_| own_data);
        let data = data.map(|node| Self::child("data-file", ChildRole::Data, node));
        let backing = self.backing.as_ref();
        let backing = backing.map(|node| Self::child("backing", ChildRole::Cow, node));
        [Some(file), data, backing].into_iter().flatten().collect()
    }

    fn info(&self) -> DriverInfo {
        crate::info::of(self)
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.check_access().ok()?;
        let _pass = match self.writer {
            Some(_) => Some(self.gate.try_enter()?),
            None => None,
        };
        match self.one_kind(range)? {
            Kind::Data(host) => {
                let (node, range) = inside(&self.data, host.bytes(), range.len())?;
                node.read_now(range, iov).map(from_below)
            }
            Kind::Unallocated(_) if self.backing.is_some() => {
                let (node, range) = inside(&self.backing, range.offset(), range.len())?;
                node.read_now(range, iov).map(from_below)
            }
            Kind::Zero(_) | Kind::Unallocated(_) => {
                iov.fill(0, iov.len(), 0);
                Some(Ok(()))
            }
            Kind::Compressed { .. } => None,
        }
    }

    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.check_access().ok()?;
        let _pass = self.gate.try_enter()?;
        let writer = self.writer().ok()?;
        if writer.bitmaps.are_trusted() {
            return None;
        }
        let Some((host, node)) = self.in_place_at_once(range) else {
            return self.allocate_now(range, iov);
        };
        // Damage is told by the long way.
        writer.overlap.check_data(host).ok()?;
        node.write_now(host, iov).map(from_below)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.check_access()?;
        let _pass = self.enter().await;
        match self.one_kind(range) {
            Some(Kind::Data(host)) => {
                if let Some((node, range)) = inside(&self.data, host.bytes(), range.len()) {
                    self.event("read_aio");
                    return from_below(node.read(range, iov).await);
                }
            }
            Some(Kind::Unallocated(_)) => {
                if let Some((node, range)) = inside(&self.backing, range.offset(), range.len()) {
                    self.event("read_backing_aio");
                    return from_below(node.read(range, iov).await);
                }
            }
            _ => {}
        }
        // Boxed, so that the future of the short way above stays small.
        let read: BoxFuture<'static, _> = Box::pin(Arc::clone(&self).read(range, iov));
        let read = read.await;
        self.after(read).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.check_access()?;
        let writer = self.writer()?;
        if writer.bitmaps.are_trusted() {
            self.distrust_bitmaps().await?;
        }
        let pass = self.gate.enter().await;
        // What held the gate closed may have found that this image is not to be written any more.
        self.writer()?;
        let compressed = flags.contains(RequestFlags::COMPRESSED);
        if let Some((host, node)) = self.in_place_at_once(range).filter(|_| !compressed) {
            return match writer.overlap.check_data(host) {
                Ok(()) => {
                    self.event("write_aio");
                    from_below(node.write(host, iov, RequestFlags::empty()).await)
                }
                Err(fault) => self.after(Err(fault.into())).await,
            };
        }
        drop(pass);
        // Boxed, as for reads.
        let write: BoxFuture<'_, _> = match compressed {
            true => Box::pin(self.with_room(|this| this.write_compressed(range, iov.clone()))),
            false => Box::pin(self.with_room(|this| this.write(range, iov.clone()))),
        };
        let written = write.await;
        self.after(written).await
    }

    async fn copy_from(self: Arc<Self>, range: ByteRange, source: CopySource) -> Result<()> {
        self.check_access()?;
        self.distrust_bitmaps().await?;
        let put = |this: Arc<Self>| this.put(range, Payload::Copy(source.clone()));
        let copied = self.with_room(put).await;
        self.after(copied).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.check_access()?;
        self.distrust_bitmaps().await?;
        let zeroed = self.with_room(|this| this.zero(range, flags)).await;
        self.after(zeroed).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        self.check_access()?;
        self.distrust_bitmaps().await?;
        let discarded = self.with_room(|this| this.discard(range)).await;
        self.after(discarded).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        let _pass = self.enter().await;
        Arc::clone(&self).status(range, detail).await
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        if self.writer().is_err() {
            return Ok(());
        }
        let flushed = self.write_back(Extent::Flush).await;
        self.after(flushed).await
    }

    async fn truncate(self: Arc<Self>, len: u64, _: Exactness, prealloc: Prealloc) -> Result<()> {
        self.check_access()?;
        let resized = Arc::clone(&self).resize(len, prealloc).await;
        self.after(resized).await
    }

    async fn close(self: Arc<Self>) -> Result<()> {
        match self.writer() {
            Ok(_) => self.finish_writing().await,
            Err(_) => Ok(()),
        }
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        if options.read_only == Some(false) && self.writer.is_none() {
            // What writing needs was not read when the image was opened.
            let (driver, what) = (crate::spec::FORMAT, "reopening for writing");
            return Err(OpenError::Unsupported { driver, what });
        }
        if options.read_only == Some(true) && self.writer().is_ok() {
            let done = self.finish_writing().await;
            let what = "write-back before reopen";
            done.map_err(|error| OpenError::Request { what, error })?;
        }
        // Page cache and flushes are the file's business.
        Ok(Box::new(*options))
    }

    fn reopen_commit(&self, state: ReopenState) {
        if let Ok(options) = state.downcast::<ReopenOptions>()
            && let Some(read_only) = options.read_only
        {
            self.read_only.store(read_only, Ordering::Release);
        }
    }

    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        self.reload().await
    }

    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn as_bitmaps(&self) -> Option<&dyn PersistentBitmaps> {
        Some(self)
    }

    fn as_check(&self) -> Option<&dyn Check> {
        Some(self)
    }

    fn as_amend(&self) -> Option<&dyn Amend> {
        Some(self)
    }

    fn as_vm_state(&self) -> Option<&dyn VmState> {
        Some(self)
    }

    fn as_rebase(&self) -> Option<&dyn Rebase> {
        Some(self)
    }

    fn event(&self, name: &'static str) {
        Self::event(self, name);
    }

    fn set_event_sink(&self, sink: Arc<dyn Fn(NodeEvent) + Send + Sync>) {
        // Called once; a second sink would be a second owner.
        let _ = self.events.sink.set(sink);
    }
}
