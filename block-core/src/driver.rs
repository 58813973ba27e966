//! The driver trait: what a format, protocol or filter implements, and what it may rely on.
//!
//! # What the request layer guarantees to a driver
//! * `range` is aligned to `limits().request_alignment`, inside `[0, len)` rounded up to it (or
//!   beyond, for a driver with [`Capabilities::grows_on_write`]), and not empty.
//! * `iov.len() == range.len()`, at most `limits().max_iov` buffers, each aligned in memory and in
//!   length; the length is at most `max_transfer` (`max_pwrite_zeroes`, `max_pdiscard`).
//! * Flags that the driver did not declare in [`Capabilities`] never arrive.
//! * Two requests that overlap where one is serialising are never in the driver together. Other
//!   overlapping requests may be: their order is the driver's to choose, atomicity is per
//!   `request_alignment` block.
//! * A zero write with `NO_FALLBACK` arrives whole, unless it is longer than `max_pwrite_zeroes`.
//! * A future that was polled once is polled to its end: dropping the caller's future detaches it.
//!
//! # What a driver guarantees
//! * It changes nothing outside of `range`, and on error leaves old or new data there.
//! * It answers [`Error::Unsupported`] only where the layer has a fallback (zeroes, discard,
//!   compressed and FUA writes), and asks its children with the flags it was given. A zero write that
//!   it answers so has changed nothing.
//! * It holds no lock while guest data moves, and never blocks the thread on a slow device.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use smallvec::SmallVec;

use crate::ability;
use crate::buf::IoVec;
use crate::error::{Error, OpenError, Result};
use crate::flags::{Capabilities, RequestFlags};
use crate::info::DriverInfo;
use crate::io::Handle;
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::range::ByteRange;
use crate::request::status::{DriverStatus, StatusDetail};
use crate::request::tracked::Ticket;

/// What a child is to its parent.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ChildRole {
    /// Holds data and metadata: the image file of a format.
    Primary,
    /// Holds guest data only: an external data file.
    Data,
    /// Holds metadata only: the image file of a format whose data is elsewhere.
    Metadata,
    /// The node that a filter passes requests to.
    Filtered,
    /// Backing file: read where the parent has nothing allocated.
    Cow,
}

/// One edge of the graph.
#[derive(Clone, Debug)]
pub struct Child {
    /// Name in options: `file`, `backing`, `data-file`.
    pub name: &'static str,
    /// What it is for.
    pub role: ChildRole,
    /// The node.
    pub node: Node,
}

/// The children of a node; two without an allocation.
pub type Children = SmallVec<[Child; 2]>;

/// How much of a growing truncate is allocated at once.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Prealloc {
    /// Nothing.
    #[default]
    Off,
    /// Metadata only.
    Metadata,
    /// Space reserved without writing (`fallocate`).
    Falloc,
    /// Space written.
    Full,
}

/// Whether a truncate must give the length asked for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Exactness {
    /// The length afterwards is the length asked for.
    Exact,
    /// A longer device is fine (block devices cannot shrink).
    AtLeast,
}

/// Requested change of how a node is opened. `None` leaves a setting as it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct ReopenOptions {
    /// Whether writes are refused.
    pub read_only: Option<bool>,
    /// Whether the host's page cache is bypassed (`cache.direct`).
    pub direct: Option<bool>,
    /// Whether flushes stop at the driver (`cache.no-flush`).
    pub no_flush: Option<bool>,
}

/// Bytes of a node that another one may take without their passing through memory.
#[derive(Clone)]
pub struct CopySource {
    node: Node,
    offset: u64,
    /// Kept from the first request of a copy on, so that those of the drivers below need no turn of their own.
    turn: Option<Arc<Ticket>>,
}

impl CopySource {
    /// What `node` holds from `offset` on.
    pub fn new(node: Node, offset: u64) -> Self {
        Self { node, offset, turn: None }
    }

    /// The same from `bytes` further on, for one of several parts of a request.
    pub fn further(&self, bytes: u64) -> Self {
        Self { offset: self.offset.saturating_add(bytes), ..self.clone() }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where in it the bytes start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A turn at the node, if it has one yet.
    pub(crate) fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    pub(crate) fn with_turn(self, turn: Ticket) -> Self {
        Self { turn: Some(Arc::new(turn)), ..self }
    }
}

impl std::fmt::Debug for CopySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, offset, .. } = self;
        f.debug_struct("CopySource").field("node", node).field("offset", offset).finish()
    }
}

/// What [`BlockDriver::reopen_prepare`] worked out, for commit or abort; the driver's own type.
pub type ReopenState = Box<dyn Any + Send>;

/// Something that happened in a driver and that its users may want to know.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NodeEvent {
    /// Corrupt metadata was met; a writable node has become read-only.
    Corrupted {
        /// The field, in the format's words.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A write ended beyond the write threshold.
    WriteThreshold {
        /// The threshold in bytes.
        threshold: u64,
        /// By how many bytes the write exceeded it.
        exceeded: u64,
    },
}

/// A format, protocol or filter driver. See the module for the contract.
///
/// Requests take `self: Arc<Self>`, so that their futures own everything and can be detached.
#[async_trait]
pub trait BlockDriver: Send + Sync + 'static {
    /// Name as users write it: `qcow2`, `file`.
    fn name(&self) -> &'static str;

    /// Current length in bytes.
    fn len(&self) -> u64;

    /// Whether the length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Limits; merged with nothing: a format merges those of the children it passes requests to.
    fn limits(&self) -> BlockLimits;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Whether guests may not write.
    fn is_read_only(&self) -> bool;

    /// The children, in the order in which requests reach them.
    fn children(&self) -> Children {
        self.filtered()
            .map(|node| Child { name: "file", role: ChildRole::Filtered, node: node.clone() })
            .into_iter()
            .collect()
    }

    /// For a filter: the node that every method not written forwards to.
    fn filtered(&self) -> Option<&Node> {
        None
    }

    /// What `info` shows.
    fn info(&self) -> DriverInfo {
        DriverInfo::default()
    }

    /// Reads `range` into `iov`.
    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()>;

    /// Reads `range` into `iov` within this call, if that takes no waiting and no boxed future: the
    /// page cache has it, or it is known to be zeroes. `None` sends the request to
    /// [`BlockDriver::preadv`]; some of `iov` may have been written to then. Must not block.
    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        // Not even a filter forwards by itself: it may have something to say of every read.
        let _ = (range, iov);
        None
    }

    /// Writes `iov` to `range` within this call, if that takes no waiting and no boxed future: all that
    /// must be known is in memory, and the page cache takes the bytes. `None` sends the request to
    /// [`BlockDriver::pwritev`]; nothing was written then. Must not block.
    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        // As for reads.
        let _ = (range, iov);
        None
    }

    /// Writes `iov` to `range`.
    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()>;

    /// Copies to `range` as many bytes from `source` inside of the storage (`copy_file_range`).
    /// `Unsupported` where that cannot be, or not for all of it; `range` holds old or new data then.
    async fn copy_from(self: Arc<Self>, range: ByteRange, source: CopySource) -> Result<()> {
        let _ = (range, source);
        Err(Error::Unsupported)
    }

    /// The open file of a protocol whose bytes stand one to one in a file of the host, for the kernel to
    /// copy from.
    fn host_file(&self) -> Option<Arc<Handle>> {
        None
    }

    /// Makes `range` read as zeroes.
    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        match self.filtered() {
            Some(node) => node.write_zeroes(range, flags).await,
            None => Err(Error::Unsupported),
        }
    }

    /// Says that the contents of `range` are not needed any more.
    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        match self.filtered() {
            Some(node) => node.discard(range).await,
            None => Err(Error::Unsupported),
        }
    }

    /// Says how the first bytes of `range` are stored; at least one byte, at most `range.len()`.
    ///
    /// A driver that tracks nothing reports everything as data.
    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        let _ = detail;
        Ok(match self.filtered() {
            Some(node) => DriverStatus::recurse(range.len(), node.clone(), range.offset()),
            None => DriverStatus::data(range.len()),
        })
    }

    /// Hands everything the driver holds back to the operating system (or to its children).
    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// Makes everything handed to the operating system stable. Children are flushed by the layer.
    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// Changes the length. What a growing one adds reads as zeroes.
    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        match self.filtered() {
            Some(node) => node.truncate(len, exactness, prealloc).await,
            None => Err(Error::Unsupported),
        }
    }

    /// Works out a change of options without changing anything that a request could see.
    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        if *options == ReopenOptions::default() {
            return Ok(Box::new(()));
        }
        Err(OpenError::Unsupported { driver: self.name(), what: "reopen" })
    }

    /// Makes a prepared change; cannot fail.
    fn reopen_commit(&self, state: ReopenState) {
        drop(state);
    }

    /// Drops a prepared change.
    fn reopen_abort(&self, state: ReopenState) {
        drop(state);
    }

    /// Forgets what was read from the storage, which another host may have changed.
    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// Writes back everything and releases what the storage can see (locks, dirty bits).
    /// The last request a node sends; its error is the last chance to hear of lost data.
    async fn close(self: Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// A parent says what it is about to do (`l2_update`, `cluster_alloc`, ...), with the spellings that
    /// testers know: test drivers fail or hold what comes next. Costs nothing elsewhere.
    fn event(&self, name: &'static str) {
        if let Some(node) = self.filtered() {
            node.driver().event(name);
        }
    }

    /// Internal snapshots, where the format has them.
    fn as_snapshots(&self) -> Option<&dyn ability::Snapshots> {
        None
    }

    /// Consistency check, where the format has one.
    fn as_check(&self) -> Option<&dyn ability::Check> {
        None
    }

    /// Changes of the format's options, where it has any.
    fn as_amend(&self) -> Option<&dyn ability::Amend> {
        None
    }

    /// Persistent dirty bitmaps, where the image can hold them.
    fn as_bitmaps(&self) -> Option<&dyn ability::PersistentBitmaps> {
        None
    }

    /// Changes of the backing file, where the format has one.
    fn as_rebase(&self) -> Option<&dyn ability::Rebase> {
        None
    }

    /// The state of a machine beside the disk, where the format has it.
    fn as_vm_state(&self) -> Option<&dyn ability::VmState> {
        None
    }

    /// Breakpoints at events, where the driver has them.
    fn as_breakpoints(&self) -> Option<&dyn ability::Breakpoints> {
        None
    }

    /// For a node that finds trouble by itself: where to report it. Called once, before requests.
    fn set_event_sink(&self, sink: Arc<dyn Fn(NodeEvent) + Send + Sync>) {
        drop(sink);
    }
}
