//! The driver: what `block-core` asks, and which extent answers.
//!
//! Invariants: no lock is held while guest data moves; before anything of the disk is changed, the image
//! has a new content id; a request that crosses extents is split at their borders.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use block_core::ability::{Check, Rebase};
use block_core::driver::{BlockDriver, Child, ChildRole, Children};
use block_core::driver::{NodeEvent, ReopenOptions, ReopenState};
use block_core::info::DriverInfo;
use block_core::metadata::steps;
use block_core::range::to_usize;
use block_core::registry::OpenContext;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, Error, IoVec, Node, OpenError, RequestFlags,
    Result, Support,
};
use futures::stream;

use crate::check::chain::OpeningFaults;
use crate::descriptor::Access;
use crate::error::FORMAT;
use crate::extent::sparse::{SparseExtent, WriteBack};
use crate::extent::{Body, DiskExtent, parts};
use crate::identity::Identity;
use crate::open::content_id_of;

/// Most parts of one request in flight.
const AT_ONCE: usize = 8;

/// An open VMDK image.
///
/// Made by [`VmdkFactory`](crate::VmdkFactory).
pub struct VmdkDriver {
    /// For [`VmdkDriver::shared`].
    this: Weak<Self>,
    pub(crate) file: Node,
    /// `None` for a sparse extent that was opened by itself.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) extents: Vec<DiskExtent>,
    pub(crate) backing: Option<Node>,
    pub(crate) context: OpenContext,
    /// What a check has to say of the opening.
    pub(crate) opening: OpeningFaults,
    len: u64,
    /// Opened for writing.
    writable: bool,
    /// Of a writable image: whether it was reopened for reading only.
    read_only: AtomicBool,
    events: Events,
}

/// Where damage is reported; the first time only, as the next requests meet the same.
#[derive(Default)]
struct Events {
    sink: OnceLock<Arc<dyn Fn(NodeEvent) + Send + Sync>>,
    reported: AtomicBool,
}

impl VmdkDriver {
    pub(crate) fn new(
        file: Node,
        identity: Option<Identity>,
        extents: Vec<DiskExtent>,
        backing: Option<Node>,
        context: OpenContext,
    ) -> Self {
        let flags = context.flags;
        Self {
            this: Weak::new(),
            len: extents.last().map_or(0, |extent| extent.range.end()),
            writable: flags.writable && !flags.check && !flags.no_io,
            file,
            identity: identity.map(Arc::new),
            extents,
            backing,
            context,
            opening: OpeningFaults::default(),
            read_only: AtomicBool::new(false),
            events: Events::default(),
        }
    }

    /// With what was met when it was opened for a check.
    pub(crate) fn with_faults(self, opening: OpeningFaults) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { this: this.clone(), opening, ..self })
    }

    /// Itself, for what goes on when nobody waits for it any more.
    pub(crate) fn shared(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or(Error::Closed)
    }

    /// The sparse extents.
    pub(crate) fn sparse(&self) -> impl Iterator<Item = &Arc<SparseExtent>> {
        self.extents.iter().filter_map(|extent| match &extent.body {
            Body::Sparse(sparse) => Some(sparse),
            _ => None,
        })
    }

    /// The result of a request, damage reported.
    fn reported<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Corrupt { what, value }) = result
            && !self.events.reported.swap(true, Ordering::Relaxed)
            && let Some(sink) = self.events.sink.get()
        {
            sink(NodeEvent::Corrupted { what, value });
        }
        result
    }

    /// Sees to it that the disk may be changed in `range`.
    pub(crate) async fn begin_change(&self, range: ByteRange) -> Result<()> {
        if BlockDriver::is_read_only(self) {
            return Err(Error::ReadOnly);
        }
        for part in parts(&self.extents, range) {
            part.extent.check_access(Access::ReadWrite)?;
        }
        match &self.identity {
            Some(identity) => identity.renew().await,
            None => Ok(()),
        }
    }

    /// The one extent that has all of `range`, and where in it.
    #[inline]
    fn one(&self, range: ByteRange) -> Option<(&DiskExtent, ByteRange)> {
        let extent = match &self.extents[..] {
            [only] => only,
            all => all.get(all.partition_point(|extent| extent.range.end() <= range.offset()))?,
        };
        let inside = extent.range.contains(range);
        Some((extent, range.relative_to(extent.range.offset())?)).filter(|_| inside)
    }

    /// What of `range` is inside of the disk.
    fn inside(&self, range: ByteRange) -> ByteRange {
        range.intersect(ByteRange::up_to(self.len))
    }

    async fn read_all(&self, range: ByteRange, iov: IoVec) -> Result<()> {
        let inside = self.inside(range);
        let (len, whole) = (to_usize(inside.len()), to_usize(range.len()));
        iov.fill(len, whole - len, 0);
        for part in parts(&self.extents, inside) {
            part.extent.check_access(Access::ReadOnly)?;
        }
        if let Some((extent, part)) = self.one(inside) {
            return extent.read(part, iov.slice(0, len)).await;
        }
        let mut reads = Vec::new();
        for part in parts(&self.extents, inside) {
            let iov = iov.slice(to_usize(part.skip), to_usize(part.range.len()));
            reads.push(Ok(part.extent.read(part.range, iov)));
        }
        steps::run(AT_ONCE, stream::iter(reads)).await
    }

    async fn write_all(&self, range: ByteRange, iov: IoVec) -> Result<()> {
        let inside = self.inside(range);
        self.begin_change(inside).await?;
        if let Some((extent, part)) = self.one(inside) {
            return extent.write(part, iov.slice(0, to_usize(part.len()))).await;
        }
        let mut writes = Vec::new();
        for part in parts(&self.extents, inside) {
            let iov = iov.slice(to_usize(part.skip), to_usize(part.range.len()));
            writes.push(Ok(part.extent.write(part.range, iov)));
        }
        steps::run(AT_ONCE, stream::iter(writes)).await
    }

    async fn zero_all(&self, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let inside = self.inside(range);
        for part in parts(&self.extents, inside) {
            if !part.extent.can_zero(part.range, flags).await? {
                return Err(Error::Unsupported);
            }
        }
        self.begin_change(inside).await?;
        for part in parts(&self.extents, inside) {
            part.extent.zero(part.range, flags).await?;
        }
        Ok(())
    }

    async fn discard_all(&self, range: ByteRange) -> Result<()> {
        let inside = self.inside(range);
        self.begin_change(inside).await?;
        let mut result = Err(Error::Unsupported);
        for part in parts(&self.extents, inside) {
            match part.extent.discard(part.range).await {
                Err(Error::Unsupported) => {}
                done if result == Err(Error::Unsupported) => result = done,
                done => result = result.and(done),
            }
        }
        result
    }

    /// Writes back everything, and says in the files that nobody changes them any more.
    async fn finish_writing(&self) -> Result<()> {
        let mut result = Ok(());
        for sparse in self.sparse().filter(|sparse| sparse.writer().is_ok()) {
            result = result.and(sparse.finish_writing().await);
        }
        result.and(self.follow_parent().await)
    }

    /// Takes the parent's content id, if the parent was changed while it was open here: by a commit.
    pub(crate) async fn follow_parent(&self) -> Result<()> {
        let (Some(identity), Some(backing)) = (&self.identity, &self.backing) else {
            return Ok(());
        };
        let known = identity.with(|descriptor| descriptor.parent_content_id());
        match (known, content_id_of(backing)) {
            (Some(known), Some(now)) if known != now && !backing.is_read_only() => {
                let update =
                    identity.update(|descriptor| Ok(descriptor.set_parent_content_id(now)?));
                update.await.map_err(|error| match error {
                    OpenError::Request { error, .. } => error,
                    _ => Error::Invalid,
                })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl BlockDriver for VmdkDriver {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn limits(&self) -> BlockLimits {
        let grain = self.sparse().map(|sparse| sparse.geometry().grain_size()).max();
        let alignment = grain.and_then(Alignment::new);
        let own = BlockLimits {
            opt_transfer: grain,
            pwrite_zeroes_alignment: alignment,
            pdiscard_alignment: alignment,
            ..BlockLimits::default()
        };
        let nodes = self.extents.iter().filter_map(DiskExtent::node).chain(&self.backing);
        let merged = nodes.fold(own, |sum, node| sum.merge(&node.limits()));
        // A child's layer splits a long run; splitting it here would only map it twice.
        BlockLimits { max_transfer: None, ..merged }
    }

    fn capabilities(&self) -> Capabilities {
        if !self.writable {
            return Capabilities::default();
        }
        let zero_init = |extent: &DiskExtent| match &extent.body {
            Body::Flat { node, .. } => node.capabilities().has_zero_init,
            Body::Zero | Body::Sparse(_) => true,
        };
        Capabilities {
            write_fua: Support::Emulated,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Emulated,
            zeroes_may_unmap: Support::Native,
            zeroes_no_fallback: Support::Native,
            discard: Support::Native,
            compressed_write: Support::None,
            truncate: Support::None,
            grows_on_write: false,
            has_zero_init: self.backing.is_none() && self.extents.iter().all(zero_init),
        }
    }

    fn is_read_only(&self) -> bool {
        !self.writable || self.read_only.load(Ordering::Acquire)
    }

    fn children(&self) -> Children {
        let role = match self.extents.iter().any(|e| e.node().is_some_and(|n| n.same(&self.file))) {
            true => ChildRole::Primary,
            false => ChildRole::Metadata,
        };
        let mut children = Children::new();
        children.push(Child { name: "file", role, node: self.file.clone() });
        for node in self.extents.iter().filter_map(DiskExtent::node) {
            if !children.iter().any(|child| child.node.same(node)) {
                let (name, role) = ("extents", ChildRole::Primary);
                children.push(Child { name, role, node: node.clone() });
            }
        }
        if let Some(node) = &self.backing {
            children.push(Child { name: "backing", role: ChildRole::Cow, node: node.clone() });
        }
        children
    }

    fn info(&self) -> DriverInfo {
        crate::info::of(self)
    }

    fn as_rebase(&self) -> Option<&dyn Rebase> {
        Some(self)
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let (extent, range) = self.one(range)?;
        extent.check_access(Access::ReadOnly).ok()?;
        extent.read_now(range, iov)
    }

    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let renewed = self.identity.as_ref().is_none_or(|identity| identity.is_renewed());
        if self.is_read_only() || !renewed {
            return None;
        }
        let (extent, range) = self.one(range)?;
        extent.check_access(Access::ReadWrite).ok()?;
        extent.write_now(range, iov)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let read = self.read_all(range, iov).await;
        self.reported(read)
    }

    async fn pwritev(self: Arc<Self>, range: ByteRange, iov: IoVec, _: RequestFlags) -> Result<()> {
        let written = self.write_all(range, iov).await;
        self.reported(written)
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let zeroed = self.zero_all(range, flags).await;
        self.reported(zeroed)
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let discarded = self.discard_all(range).await;
        self.reported(discarded)
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        let status = match parts(&self.extents, self.inside(range)).next() {
            Some(part) => part.extent.status(part.range, detail).await,
            None => Ok(DriverStatus::zero(range.len())),
        };
        self.reported(status)
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        let mut result = Ok(());
        for sparse in self.sparse().filter(|sparse| sparse.writer().is_ok()) {
            result = result.and(sparse.write_back(WriteBack::Flush).await);
        }
        self.reported(result)
    }

    async fn close(self: Arc<Self>) -> Result<()> {
        match self.is_read_only() {
            true => Ok(()),
            false => self.finish_writing().await,
        }
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        if options.read_only == Some(false) && !self.writable {
            // What writing needs was not read when the image was opened.
            let what = "reopening for writing an image that was opened for reading";
            return Err(OpenError::Unsupported { driver: FORMAT, what });
        }
        if options.read_only == Some(true) && !self.is_read_only() {
            let what = "write-back before reopen";
            let done = self.finish_writing().await;
            done.map_err(|error| OpenError::Request { what, error })?;
        }
        // Page cache and flushes are the files' business.
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
        Err(Error::Unsupported)
    }

    fn as_check(&self) -> Option<&dyn Check> {
        Some(self)
    }

    fn set_event_sink(&self, sink: Arc<dyn Fn(NodeEvent) + Send + Sync>) {
        // Called once; a second sink would be a second owner.
        let _ = self.events.sink.set(sink);
    }
}
