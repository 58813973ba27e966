//! A tap on a driver: passes every request on, and lets a [`Tap`] see it before and after, hold it,
//! or fail it.
//!
//! It wraps the driver itself, with no request layer in between, so limits and capabilities are the
//! driver's own and a request arrives below exactly as it arrived here. Taps can be stacked.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use block_core::ability::{Amend, Check, PersistentBitmaps, Rebase, Snapshots};
use block_core::driver::{Children, Exactness, NodeEvent, Prealloc, ReopenOptions, ReopenState};
use block_core::error::{Error, OpenError, Result};
use block_core::info::DriverInfo;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{BlockDriver, BlockLimits, ByteRange, Capabilities, IoVec, Node, RequestFlags};
use futures::FutureExt;

use crate::exec::current_label;
use crate::op::FlagNames;

/// Kinds of requests that a driver gets.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `preadv`
    Read,
    /// `pwritev`
    Write,
    /// `pwrite_zeroes`
    Zero,
    /// `pdiscard`
    Discard,
    /// `block_status`
    Status,
    /// `flush_to_os`
    FlushToOs,
    /// `flush_to_disk`
    FlushToDisk,
    /// `truncate`; the range goes from zero to the new length.
    Truncate,
}

impl Kind {
    /// Whether it may change what the disk holds.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Discard | Self::Truncate)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::Status => "status",
            Self::FlushToOs => "flush-to-os",
            Self::FlushToDisk => "flush-to-disk",
            Self::Truncate => "truncate",
        })
    }
}

/// One request as it arrives at a driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Counts the requests of this tap, from zero.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Where; empty for flushes.
    pub range: ByteRange,
    /// How.
    pub flags: RequestFlags,
    /// In how many buffers; zero where there is no data.
    pub buffers: usize,
    /// On whose behalf ([`current_label`]).
    pub label: Option<u64>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match self.kind {
            Kind::FlushToOs | Kind::FlushToDisk => return Ok(()),
            Kind::Truncate => return write!(f, " {:#x}", self.range.len()),
            _ => write!(f, " {}", self.range)?,
        }
        if !self.flags.is_empty() {
            write!(f, " {}", FlagNames(self.flags))?;
        }
        if self.buffers > 1 { write!(f, " in {} buffers", self.buffers) } else { Ok(()) }
    }
}

/// What a tap does with a request.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It fails and nothing is done.
    Fail(Error),
    /// It fails after its first half was done, in whole blocks: one at least.
    FailHalf(Error),
    /// It fails after all of it was done.
    FailLate(Error),
}

/// What looks at the requests.
#[async_trait]
pub trait Tap: Send + Sync + 'static {
    /// A request has arrived. It goes on when this returns.
    async fn before(&self, call: &Call) -> Verdict {
        let _ = call;
        Verdict::Pass
    }

    /// A parent says what it is about to do.
    fn event(&self, name: &'static str) {
        let _ = name;
    }

    /// Whether a write of `range` is answered within one call. Nothing on its way may then wait for
    /// anything but its next turn.
    fn answers_now(&self, range: ByteRange) -> bool {
        let _ = range;
        false
    }

    /// A request is about to return `result`. It does when this returns.
    async fn after(&self, call: &Call, result: Result<()>) {
        let _ = (call, result);
    }
}

/// A driver with a tap on it.
pub struct Tapped<T> {
    inner: Arc<dyn BlockDriver>,
    tap: Arc<T>,
    calls: AtomicU64,
}

impl<T: Tap> Tapped<T> {
    /// `inner`, seen by `tap`.
    pub fn new(inner: Arc<dyn BlockDriver>, tap: Arc<T>) -> Arc<Self> {
        Arc::new(Self { inner, tap, calls: AtomicU64::new(0) })
    }

    fn call(&self, kind: Kind, range: ByteRange, flags: RequestFlags, buffers: usize) -> Call {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        Call { number, kind, range, flags, buffers, label: current_label() }
    }

    /// The first half of a range, in whole blocks.
    fn half(&self, range: ByteRange) -> ByteRange {
        let align = self.inner.limits().request_alignment;
        range.first(align.round_up(range.len() / 2).min(align.round_down(range.len())))
    }

    /// Sends a request through the tap: `send` sends a part of its range to the driver.
    async fn through<R, F>(&self, call: Call, send: impl Fn(ByteRange) -> F) -> Result<R>
    where
        F: Future<Output = Result<R>>,
    {
        let result = match self.tap.before(&call).await {
            Verdict::Pass => send(call.range).await,
            Verdict::Fail(error) => Err(error),
            Verdict::FailHalf(error) => {
                let half = self.half(call.range);
                let sent = if half.is_empty() { Ok(()) } else { send(half).await.map(drop) };
                Err(sent.err().unwrap_or(error))
            }
            Verdict::FailLate(error) => Err(send(call.range).await.err().unwrap_or(error)),
        };
        self.tap.after(&call, result.as_ref().map(drop).map_err(|error| *error)).await;
        result
    }
}

/// More turns than a write takes that waits for nothing else.
const MAX_TURNS: usize = 1 << 16;

fn bytes(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[async_trait]
impl<T: Tap> BlockDriver for Tapped<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn limits(&self) -> BlockLimits {
        self.inner.limits()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn children(&self) -> Children {
        self.inner.children()
    }

    fn filtered(&self) -> Option<&Node> {
        self.inner.filtered()
    }

    fn info(&self) -> DriverInfo {
        self.inner.info()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let call = self.call(Kind::Read, range, RequestFlags::empty(), iov.bufs().len());
        let send =
            |part: ByteRange| Arc::clone(&self.inner).preadv(part, iov.slice(0, bytes(part.len())));
        self.through(call, send).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let call = self.call(Kind::Write, range, flags, iov.bufs().len());
        let send = |part: ByteRange| {
            Arc::clone(&self.inner).pwritev(part, iov.slice(0, bytes(part.len())), flags)
        };
        self.through(call, send).await
    }

    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        if !self.tap.answers_now(range) {
            return None;
        }
        let call = self.call(Kind::Write, range, RequestFlags::empty(), iov.bufs().len());
        let send = |part: ByteRange| {
            let (inner, flags) = (Arc::clone(&self.inner), RequestFlags::empty());
            inner.pwritev(part, iov.slice(0, bytes(part.len())), flags)
        };
        let mut write = pin!(self.through(call, send));
        let turns = (0..MAX_TURNS).find_map(|_| write.as_mut().now_or_never());
        Some(turns.unwrap_or_else(|| panic!("write {range} waits for something")))
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let call = self.call(Kind::Zero, range, flags, 0);
        self.through(call, |part| Arc::clone(&self.inner).pwrite_zeroes(part, flags)).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let call = self.call(Kind::Discard, range, RequestFlags::empty(), 0);
        self.through(call, |part| Arc::clone(&self.inner).pdiscard(part)).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        let call = self.call(Kind::Status, range, RequestFlags::empty(), 0);
        self.through(call, |part| Arc::clone(&self.inner).block_status(part, detail)).await
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        let call = self.call(Kind::FlushToOs, ByteRange::default(), RequestFlags::empty(), 0);
        self.through(call, |_| Arc::clone(&self.inner).flush_to_os()).await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        let call = self.call(Kind::FlushToDisk, ByteRange::default(), RequestFlags::empty(), 0);
        self.through(call, |_| Arc::clone(&self.inner).flush_to_disk()).await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        let call = self.call(Kind::Truncate, ByteRange::up_to(len), RequestFlags::empty(), 0);
        // Half of a truncate is no truncate.
        let send = |part: ByteRange| {
            let inner = Arc::clone(&self.inner);
            async move {
                let whole = part.len() == len;
                if whole { inner.truncate(len, exactness, prealloc).await } else { Ok(()) }
            }
        };
        self.through(call, send).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        Arc::clone(&self.inner).reopen_prepare(options).await
    }

    fn reopen_commit(&self, state: ReopenState) {
        self.inner.reopen_commit(state);
    }

    fn reopen_abort(&self, state: ReopenState) {
        self.inner.reopen_abort(state);
    }

    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        Arc::clone(&self.inner).invalidate_cache().await
    }

    async fn close(self: Arc<Self>) -> Result<()> {
        Arc::clone(&self.inner).close().await
    }

    fn event(&self, name: &'static str) {
        self.tap.event(name);
        self.inner.event(name);
    }

    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        self.inner.as_snapshots()
    }

    fn as_check(&self) -> Option<&dyn Check> {
        self.inner.as_check()
    }

    fn as_amend(&self) -> Option<&dyn Amend> {
        self.inner.as_amend()
    }

    fn as_bitmaps(&self) -> Option<&dyn PersistentBitmaps> {
        self.inner.as_bitmaps()
    }

    fn as_rebase(&self) -> Option<&dyn Rebase> {
        self.inner.as_rebase()
    }

    fn set_event_sink(&self, sink: Arc<dyn Fn(NodeEvent) + Send + Sync>) {
        self.inner.set_event_sink(sink);
    }
}
