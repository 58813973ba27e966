//! A node: a driver and the state of the requests to it.
//!
//! Lock order, outermost first: the flush lock (held across a flush), the event handlers, the tracker's
//! list. None of them is held while guest data moves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::dirty::DirtyBitmaps;
use crate::driver::{BlockDriver, ChildRole, Children, CopySource, Exactness, NodeEvent, Prealloc};
use crate::error::Result;
use crate::flags::{Capabilities, RequestFlags};
use crate::io::exec::to_the_end;
use crate::limits::{BlockLimits, IOV_MAX};
use crate::range::{Alignment, ByteRange};
use crate::request::flush::flush_node;
use crate::request::tracked::{Claim, Ticket, Tracker};
use crate::request::{Op, Request};

/// What the layer does with writes that hold only zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectZeroes {
    /// Nothing.
    #[default]
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may deallocate.
    Unmap,
}

/// Settings of a node that are the layer's, not the driver's.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Name, for users; may be empty.
    pub node_name: String,
    /// Turn writes of zeroes into zero writes.
    pub detect_zeroes: DetectZeroes,
    /// Pass discards down and let zero writes deallocate (`discard=unmap`).
    pub unmap: bool,
    /// A flush stops at the driver (`cache.no-flush`), until a reopen says otherwise.
    pub no_flush: bool,
}

/// A handle on a node; clones are handles on the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Arc<dyn BlockDriver>,
    options: NodeOptions,
    /// Whether flushes stop at the driver: [`NodeOptions::no_flush`], or what a reopen made of it.
    no_flush: AtomicBool,
    /// Asked from the driver at the start and after a reopen.
    facts: ArcSwap<Facts>,
    /// [`Facts::inline_mask`], which the quickest requests look at instead.
    inline_mask: AtomicU64,
    /// Longest request that is tried inline.
    inline_max: AtomicU64,
    tracker: Arc<Tracker>,
    /// Counts finished writes.
    write_generation: AtomicU64,
    /// The write generation up to which everything is stable; locked by the flush in flight.
    flushed: futures::lock::Mutex<u64>,
    /// End of the first write that is worth an event; `u64::MAX`: none.
    write_threshold: AtomicU64,
    dirty: DirtyBitmaps,
    /// Length that the bitmaps know: a write beyond it has grown the node.
    dirty_len: AtomicU64,
    events: Arc<Events>,
}

/// What the driver says of itself.
pub(crate) struct Facts {
    pub(crate) limits: BlockLimits,
    pub(crate) capabilities: Capabilities,
}

impl Facts {
    fn of(driver: &dyn BlockDriver) -> Self {
        Self { limits: driver.limits().validated(), capabilities: driver.capabilities() }
    }

    /// Bits that offset and length of a request must not have for it to be tried inline. All of them
    /// where more matters than the request alignment and the length.
    fn inline_mask(&self) -> u64 {
        let limits = &self.limits;
        if limits.max_iov == IOV_MAX && limits.min_mem_alignment == Alignment::ONE {
            limits.request_alignment.bytes() - 1
        } else {
            u64::MAX
        }
    }

    fn inline_max(&self) -> u64 {
        self.limits.max_transfer.unwrap_or(u64::MAX)
    }
}

type Handler = Arc<dyn Fn(NodeEvent) + Send + Sync>;

/// Who hears of events. Shared with the driver, which outlives no node that it reports to.
#[derive(Default)]
struct Events {
    /// Guards the list; handlers run outside of it.
    handlers: Mutex<Vec<Handler>>,
    /// Set for good by the first corruption: the node takes no more writes.
    corrupt: AtomicBool,
}

impl Events {
    fn report(&self, event: NodeEvent) {
        if matches!(event, NodeEvent::Corrupted { .. }) {
            self.corrupt.store(true, Ordering::Release);
        }
        let handlers = self.handlers.lock().clone();
        handlers.iter().for_each(|handler| handler(event));
    }
}

impl Node {
    /// A node around `driver`.
    pub fn new(driver: Arc<dyn BlockDriver>, options: NodeOptions) -> Self {
        let events = Arc::new(Events::default());
        let sink = Arc::clone(&events);
        driver.set_event_sink(Arc::new(move |event| sink.report(event)));
        let len = driver.len();
        let facts = Facts::of(&*driver);
        let inner = Inner {
            inline_mask: AtomicU64::new(facts.inline_mask()),
            inline_max: AtomicU64::new(facts.inline_max()),
            facts: ArcSwap::from_pointee(facts),
            driver,
            no_flush: AtomicBool::new(options.no_flush),
            options,
            tracker: Arc::default(),
            write_generation: AtomicU64::new(0),
            flushed: futures::lock::Mutex::new(0),
            write_threshold: AtomicU64::new(u64::MAX),
            dirty: DirtyBitmaps::new(len),
            dirty_len: AtomicU64::new(len),
            events,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The driver.
    pub fn driver(&self) -> &Arc<dyn BlockDriver> {
        &self.inner.driver
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.inner.options.node_name
    }

    /// Settings of the layer.
    pub fn options(&self) -> &NodeOptions {
        &self.inner.options
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.inner.driver.len()
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Limits of the driver. Requests to the node need not keep them, they only cost more if not.
    pub fn limits(&self) -> BlockLimits {
        self.facts().limits
    }

    /// What the driver can do.
    pub fn capabilities(&self) -> Capabilities {
        self.facts().capabilities
    }

    /// Whether writes are refused: opened so, corrupt, or with a bitmap that could not record them.
    pub fn is_read_only(&self) -> bool {
        self.inner.driver.is_read_only() || self.is_corrupt() || self.inner.dirty.refuses_writes()
    }

    /// Whether its driver has found damage.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.inner.events.corrupt.load(Ordering::Acquire)
    }

    /// The children.
    pub fn children(&self) -> Children {
        self.inner.driver.children()
    }

    /// The backing file.
    pub fn backing(&self) -> Option<Self> {
        self.children().into_iter().find(|c| c.role == ChildRole::Cow).map(|c| c.node)
    }

    /// Whether both are handles on one node.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The dirty bitmaps of this node.
    pub fn dirty_bitmaps(&self) -> &DirtyBitmaps {
        &self.inner.dirty
    }

    /// Calls `handler` for every event from now on. It must not block.
    pub fn on_event(&self, handler: impl Fn(NodeEvent) + Send + Sync + 'static) {
        self.inner.events.handlers.lock().push(Arc::new(handler));
    }

    /// Reports once, by [`NodeEvent::WriteThreshold`], the first write that ends beyond `offset`
    /// bytes. `None` takes it back.
    pub fn set_write_threshold(&self, offset: Option<u64>) {
        self.inner.write_threshold.store(offset.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Reads `range` into `iov` (of the same length). What is beyond the end reads as zeroes.
    pub fn read(&self, range: ByteRange, iov: IoVec) -> Request {
        self.read_with(range, iov, RequestFlags::empty())
    }

    /// [`Node::read`] with `SERIALISING` or `NO_WAIT`.
    pub fn read_with(&self, range: ByteRange, iov: IoVec, flags: RequestFlags) -> Request {
        Request::new(self, Op::Read { range, iov, flags })
    }

    /// Writes `iov` to `range` (of the same length).
    ///
    /// A range beyond the end grows a node whose driver can grow, and is `OutOfRange` elsewhere.
    pub fn write(&self, range: ByteRange, iov: IoVec, flags: RequestFlags) -> Request {
        Request::new(self, Op::Write { range, iov, flags })
    }

    /// Copies to `range` as many bytes of `source` without moving them through memory. `Unsupported` where
    /// the two cannot do that: send a [`Node::write`] of what [`Node::read`] gives then.
    pub fn copy_from(&self, range: ByteRange, source: CopySource) -> Request {
        Request::new(self, Op::Copy { range, source })
    }

    /// Makes `range` read as zeroes, whatever its length. With `NO_FALLBACK`: at metadata speed, or
    /// `Unsupported` with nothing changed.
    pub fn write_zeroes(&self, range: ByteRange, flags: RequestFlags) -> Request {
        Request::new(self, Op::Zeroes { range, flags, cancel: None })
    }

    /// [`Node::write_zeroes`] that stops between two pieces when `cancel` says so: it then fails with
    /// `Cancelled`, and [`Cancel::done`] says how many bytes from the start are zero.
    pub fn write_zeroes_cancellable(
        &self,
        range: ByteRange,
        flags: RequestFlags,
        cancel: &Cancel,
    ) -> Request {
        Request::new(self, Op::Zeroes { range, flags, cancel: Some(cancel.clone()) })
    }

    /// Says that the contents of `range` are not needed any more. Advice: where the node was not
    /// opened with `unmap`, or the driver discards nothing, it succeeds and does nothing.
    pub fn discard(&self, range: ByteRange) -> Request {
        Request::new(self, Op::Discard { range })
    }

    /// Whether the driver takes a read or a write of `range` as it is, as far as can be told at a glance:
    /// if not, it is not worth a [`Node::read_now`] or [`Node::write_now`].
    pub fn may_go_inline(&self, range: ByteRange) -> bool {
        let mask = self.inner.inline_mask.load(Ordering::Acquire);
        let max = self.inner.inline_max.load(Ordering::Acquire);
        (range.offset() | range.len()) & mask == 0 && !range.is_empty() && range.len() <= max
    }

    /// Makes every write that completed before the call stable, here and in the children.
    pub fn flush(&self) -> Request {
        Request::new(self, Op::Flush)
    }

    /// Changes the length; what a growing truncate adds reads as zeroes.
    pub fn truncate(&self, len: u64, exactness: Exactness, prealloc: Prealloc) -> Request {
        Request::new(self, Op::Truncate { len, exactness, prealloc })
    }

    /// Writes everything back, persistent dirty bitmaps included, and releases what the storage can see.
    /// Send nothing afterwards.
    ///
    /// Children are not closed: they may have other parents. See [`crate::graph::close`]. Once polled it runs
    /// to its end, as requests do.
    pub async fn close(&self) -> Result<()> {
        let node = self.clone();
        to_the_end(async move {
            let read_only = node.driver().is_read_only();
            // What was sent and then dropped by its owner is still on its way; a read may stay so.
            let drained = match read_only {
                true => None,
                false => Some(crate::graph::drain_own(&node).await),
            };
            let flushed = if read_only { Ok(()) } else { flush_node(&node).await };
            let stored = crate::graph::store_bitmaps(&node).await;
            let closed = Arc::clone(node.driver()).close().await;
            drop(drained);
            flushed.and(stored).and(closed)
        })
        .await
    }
}

/// What the request layer needs of a node.
impl Node {
    pub(crate) fn facts(&self) -> arc_swap::Guard<Arc<Facts>> {
        self.inner.facts.load()
    }

    /// Asks the driver again, after a reopen.
    pub(crate) fn refresh_facts(&self) {
        let facts = Facts::of(&*self.inner.driver);
        self.inner.inline_mask.store(facts.inline_mask(), Ordering::Release);
        self.inner.inline_max.store(facts.inline_max(), Ordering::Release);
        self.inner.facts.store(Arc::new(facts));
    }

    pub(crate) fn tracker(&self) -> &Arc<Tracker> {
        &self.inner.tracker
    }

    /// Step 3: a ticket, waiting for its turn unless `NO_WAIT` forbids it.
    pub(crate) async fn begin(&self, claim: Claim, flags: RequestFlags) -> Result<Ticket> {
        if flags.contains(RequestFlags::NO_WAIT) {
            self.tracker().begin_or_busy(claim)
        } else {
            Ok(self.tracker().begin(claim).await)
        }
    }

    /// Whether flushes stop at the driver.
    pub(crate) fn is_never_flushed(&self) -> bool {
        self.inner.no_flush.load(Ordering::Acquire)
    }

    pub(crate) fn set_never_flushed(&self, no_flush: bool) {
        self.inner.no_flush.store(no_flush, Ordering::Release);
    }

    /// How many writes have finished.
    pub(crate) fn write_generation(&self) -> u64 {
        self.inner.write_generation.load(Ordering::Acquire)
    }

    /// The generation up to which everything is stable, for the one flush in flight.
    pub(crate) async fn flush_lock(&self) -> futures::lock::MutexGuard<'_, u64> {
        self.inner.flushed.lock().await
    }

    /// Step 8 of everything that may have changed `range`, whether it succeeded or not.
    pub(crate) fn finish_write(&self, range: ByteRange, flags: RequestFlags) {
        self.inner.write_generation.fetch_add(1, Ordering::AcqRel);
        if range.end() > self.inner.dirty_len.load(Ordering::Acquire) {
            let len = self.len();
            self.inner.dirty.grow(len);
            self.inner.dirty_len.fetch_max(len, Ordering::AcqRel);
        }
        if !flags.contains(RequestFlags::WRITE_UNCHANGED) {
            self.inner.dirty.mark(range);
        }
        let threshold = self.inner.write_threshold.load(Ordering::Acquire);
        if range.end() > threshold {
            // Of several writes beyond it, only the one that takes it away reports.
            let taken = self.inner.write_threshold.compare_exchange(
                threshold,
                u64::MAX,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                let exceeded = range.end() - threshold;
                self.inner.events.report(NodeEvent::WriteThreshold { threshold, exceeded });
            }
        }
    }

    /// Brings the bitmaps up to date with a length that the driver changed by itself.
    pub(crate) fn follow_len(&self) {
        let known = self.inner.dirty_len.load(Ordering::Acquire);
        if known != self.len() {
            self.finish_truncate(known);
        }
    }

    /// Step 8 of a truncate from `old` bytes.
    pub(crate) fn finish_truncate(&self, old: u64) {
        self.inner.write_generation.fetch_add(1, Ordering::AcqRel);
        let len = self.len();
        self.inner.dirty.truncate(len);
        self.inner.dirty_len.store(len, Ordering::Release);
        if let Ok(added) = ByteRange::from_bounds(old, len) {
            self.inner.dirty.mark(added);
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} {:?})", self.inner.driver.name(), self.inner.options.node_name)
    }
}
