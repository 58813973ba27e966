//! The driver: what `block-core` asks, and which module answers.
//!
//! Invariants: nothing here is written, so that the tables in memory never differ from the file;
//! no lock is held while guest data moves; a read of one run whose L2 slice is cached costs one
//! lookup and goes straight to the child.
//!
//! Not here: opening ([`crate::open`]), the mapping, the plan of a read, block status.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use block_core::ability::Snapshots;
use block_core::driver::{BlockDriver, Child, ChildRole, Children, NodeEvent};
use block_core::info::DriverInfo;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    BlockLimits, ByteRange, Capabilities, Error, IoVec, Node, OwnedBuf, RequestFlags,
};
use block_core::{OpenError, Result};

use crate::cache::Cache;
use crate::compress::inflate::Inflater;
use crate::map::Kind;
use crate::mapping::Slice;
use crate::spec::Fault;
use crate::spec::bitmap::Bitmap;
use crate::spec::extension::Extensions;
use crate::spec::header::Header;
use crate::spec::snapshot::Snapshot;
use crate::units::GuestOffset;

/// An open qcow2 image, for reading.
///
/// Made by [`Qcow2Factory`](crate::Qcow2Factory). Writing is not there yet, and opening for writing
/// is refused.
pub struct Qcow2Driver {
    pub(crate) file: Node,
    /// Where guest data is: `file`, or an external data file. `None` if that was kept closed.
    pub(crate) data: Option<Node>,
    pub(crate) backing: Option<Node>,
    pub(crate) header: Header,
    pub(crate) metadata: Metadata,
    /// The L1 entries that the disk needs, as they stand in the file.
    pub(crate) l1: Vec<u64>,
    pub(crate) slices: Cache<Slice>,
    /// Inflated clusters, so that small reads do not inflate one again and again.
    pub(crate) clusters: Cache<Arc<OwnedBuf>>,
    pub(crate) inflater: Inflater,
    pub(crate) access: Access,
    /// Whether the file holds less than the refcounts claim; worked out when first needed.
    pub(crate) preallocated: OnceLock<bool>,
    pub(crate) events: Events,
}

/// What the image says of itself besides the tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) backing_name: Option<String>,
    pub(crate) extensions: Extensions,
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
    /// Names the header and the options give to what it stands on.
    fn child(name: &'static str, role: ChildRole, node: &Node) -> Child {
        let node = node.clone();
        Child { name, role, node }
    }

    pub(crate) fn fault(&self, fault: Fault) -> Error {
        self.events.fault(fault)
    }

    /// The error of a request to this image, damage reported.
    pub(crate) fn reported(&self, error: Error) -> Error {
        match error {
            Error::Corrupt { what, value } => self.fault(Fault::new(what, value)),
            other => other,
        }
    }

    fn check_access(&self) -> Result<()> {
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
        self.header.disk_len
    }

    fn limits(&self) -> BlockLimits {
        let own = BlockLimits {
            opt_transfer: Some(self.header.geometry.cluster_size()),
            ..BlockLimits::default()
        };
        let nodes = [self.data.as_ref(), self.backing.as_ref()];
        let merged = nodes.into_iter().flatten().fold(own, |sum, node| sum.merge(&node.limits()));
        // A child's layer splits a long run; splitting it here would only map it twice.
        BlockLimits { max_transfer: None, ..merged }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn children(&self) -> Children {
        let own_data = self.data.as_ref().is_some_and(|data| !data.same(&self.file));
        let role =
            if self.header.features.data_file { ChildRole::Metadata } else { ChildRole::Primary };
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
        match self.one_kind(range)? {
            Kind::Data(host) => {
                let (node, range) = inside(&self.data, host.bytes(), range.len())?;
                node.read_now(range, iov)
            }
            Kind::Unallocated(_) if self.backing.is_some() => {
                let (node, range) = inside(&self.backing, range.offset(), range.len())?;
                node.read_now(range, iov)
            }
            Kind::Zero(_) | Kind::Unallocated(_) => {
                iov.fill(0, iov.len(), 0);
                Some(Ok(()))
            }
            Kind::Compressed { .. } => None,
        }
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.check_access()?;
        match self.one_kind(range) {
            Some(Kind::Data(host)) => {
                if let Some((node, range)) = inside(&self.data, host.bytes(), range.len()) {
                    return node.read(range, iov).await;
                }
            }
            Some(Kind::Unallocated(_)) => {
                if let Some((node, range)) = inside(&self.backing, range.offset(), range.len()) {
                    return node.read(range, iov).await;
                }
            }
            _ => {}
        }
        // Boxed, so that the future of the short way above stays small.
        let read: futures::future::BoxFuture<'static, _> = Box::pin(self.read(range, iov));
        read.await
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn pwrite_zeroes(self: Arc<Self>, _: ByteRange, _: RequestFlags) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn pdiscard(self: Arc<Self>, _: ByteRange) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        self.status(range, detail).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &block_core::driver::ReopenOptions,
    ) -> Result<block_core::driver::ReopenState, OpenError> {
        let what = match (options.read_only, options.direct, options.no_flush) {
            (Some(false), ..) => crate::open::WRITING,
            (None | Some(true), None, None) => return Ok(Box::new(())),
            _ => "reopening the file below",
        };
        let driver = crate::spec::FORMAT;
        Err(OpenError::Unsupported { driver, what })
    }

    /// Not there yet: tables stay as they were read when the image was opened.
    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        Err(Error::Unsupported)
    }

    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn set_event_sink(&self, sink: Arc<dyn Fn(NodeEvent) + Send + Sync>) {
        // Called once; a second sink would be a second owner.
        let _ = self.events.sink.set(sink);
    }
}
