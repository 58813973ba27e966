//! A disk in memory with limits and abilities to choose, which checks that every request keeps what
//! the request layer guarantees to drivers, and moves data in steps so that unsafe overlaps show.
//!
//! A request that breaks a guarantee is a panic that says which one: the test fails there. Between
//! two steps of a read or write other tasks run, so two requests that should not run together leave
//! torn data. It also remembers what is *unstable*: written, but not covered by a flush since.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, NodeEvent, Prealloc, ReopenOptions, ReopenState};
use block_core::error::{Error, OpenError, Result};
use block_core::flags::Support;
use block_core::range::to_u64;
use block_core::request::status::{DriverStatus, StatusDetail, StatusFlags};
use block_core::{Alignment, BlockLimits, ByteRange, Capabilities, IoVec, RequestFlags};
use parking_lot::Mutex;

use crate::exec::yield_now;

/// What a discarded range reads as.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Discarded {
    /// What it held before.
    Kept,
    /// Zeroes.
    Zeroes,
    /// Bytes that nobody wrote.
    Junk,
}

/// What to do with zero writes that are not multiples of the zero alignment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum UnalignedZeroes {
    /// They work.
    Accept,
    /// They are `Unsupported`, as on many devices.
    Refuse,
}

/// What a change of the length does.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Resize {
    /// The disk has the new length.
    Works,
    /// The length stays what it is, as that of a device.
    Fixed,
}

/// What a disk is like.
#[derive(Clone, Debug)]
pub struct MemConfig {
    /// Length in bytes.
    pub len: u64,
    /// Limits.
    pub limits: BlockLimits,
    /// Abilities.
    pub capabilities: Capabilities,
    /// Bytes that move between two turns of other tasks, in whole request alignment blocks; `None`:
    /// all of a request at once.
    pub step: Option<u64>,
    /// What a discarded range reads as.
    pub discarded: Discarded,
    /// What to do with zero writes that are not multiples of the zero alignment.
    pub unaligned_zeroes: UnalignedZeroes,
    /// What a change of the length does.
    pub resize: Resize,
    /// Whether a reopen fails.
    pub reopen: Reopen,
}

/// What a request to reopen gives.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Reopen {
    /// It works.
    Works,
    /// It works, and requests are aligned to so many bytes from then on.
    Aligns(Alignment),
    /// It fails when prepared.
    Fails,
}

impl MemConfig {
    /// A disk of `len` bytes without limits that can do everything and moves data in 512-byte steps.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            limits: BlockLimits::default(),
            capabilities: all_capabilities(),
            step: Some(512),
            discarded: Discarded::Junk,
            unaligned_zeroes: UnalignedZeroes::Accept,
            resize: Resize::Works,
            reopen: Reopen::Works,
        }
    }

    /// A disk without limits that can do everything and grows when it is written to, as a file does.
    pub fn file() -> Self {
        let capabilities = Capabilities { grows_on_write: true, ..all_capabilities() };
        Self { capabilities, ..Self::new(0) }
    }

    /// A disk without limits whose length is fixed and which may hold anything at first, as a device.
    pub fn device(len: u64) -> Self {
        let capabilities = Capabilities { has_zero_init: false, ..all_capabilities() };
        Self { capabilities, resize: Resize::Fixed, ..Self::new(len) }
    }

    /// The disk, which holds `bytes` and ends with them.
    pub fn holding(mut self, bytes: &[u8]) -> Arc<MemDisk> {
        self.len = to_u64(bytes.len());
        let disk = self.build();
        disk.load(0, bytes);
        disk
    }

    /// With this request alignment, and memory as a device with it wants it.
    #[must_use]
    pub fn aligned(mut self, bytes: u64) -> Self {
        let align = Alignment::new(bytes).unwrap_or(Alignment::ONE);
        self.limits.request_alignment = align;
        self.limits.min_mem_alignment = align;
        self.step = self.step.map(|step| align.round_up(step));
        self
    }

    /// The disk.
    pub fn build(self) -> Arc<MemDisk> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let state = State {
            bytes: vec![0; len],
            unstable: Vec::new(),
            writes: 0,
            read_only: false,
            commits: 0,
            aborts: 0,
        };
        Arc::new(MemDisk { config: self, sink: Mutex::default(), state: Mutex::new(state) })
    }
}

/// Everything that a driver can do, but growing.
pub fn all_capabilities() -> Capabilities {
    Capabilities {
        write_fua: Support::Native,
        write_zeroes: Support::Native,
        zeroes_fua: Support::Native,
        zeroes_may_unmap: Support::Native,
        zeroes_no_fallback: Support::Native,
        discard: Support::Native,
        compressed_write: Support::None,
        truncate: Support::Native,
        grows_on_write: false,
        has_zero_init: true,
    }
}

type EventSink = Arc<dyn Fn(NodeEvent) + Send + Sync>;

/// The disk. See the module.
pub struct MemDisk {
    config: MemConfig,
    /// Where the node hears of trouble.
    sink: Mutex<Option<EventSink>>,
    /// Guards the bytes while some are copied; not held between two steps.
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    /// What was written without FUA, with the number of the write, since the last flush.
    unstable: Vec<(u64, ByteRange)>,
    writes: u64,
    read_only: bool,
    commits: u64,
    aborts: u64,
}

impl MemDisk {
    /// What it holds.
    pub fn to_vec(&self) -> Vec<u8> {
        self.state.lock().bytes.clone()
    }

    /// Puts bytes on it, past every check.
    pub fn load(&self, offset: u64, bytes: &[u8]) {
        let at = index(offset);
        self.state.lock().bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Ranges of finished writes that no FUA or flush has made stable, in the order of the writes.
    pub fn unstable(&self) -> Vec<ByteRange> {
        self.state.lock().unstable.iter().map(|(_, range)| *range).collect()
    }

    /// How many writes and zero writes have finished at the disk.
    pub fn finished_writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// [`MemDisk::unstable`] of the first `count` finished writes.
    pub fn unstable_up_to(&self, count: u64) -> Vec<ByteRange> {
        let state = self.state.lock();
        let old = state.unstable.iter().filter(|(number, _)| *number <= count);
        old.map(|(_, range)| *range).collect()
    }

    /// Reports an event to the node on this disk, as a driver that finds trouble does.
    pub fn report(&self, event: NodeEvent) {
        let sink = self.sink.lock().clone();
        if let Some(sink) = sink {
            sink(event);
        }
    }

    /// How many reopens were committed and aborted.
    pub fn reopens(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.commits, state.aborts)
    }

    /// Those that it was made with, but for what a reopen has changed.
    fn current_limits(&self) -> BlockLimits {
        match self.config.reopen {
            Reopen::Aligns(request_alignment) if self.state.lock().commits > 0 => {
                BlockLimits { request_alignment, ..self.config.limits }
            }
            _ => self.config.limits,
        }
    }

    /// Panics if a request of any kind is not as the request layer promises.
    fn check_range(&self, what: &str, range: ByteRange, max: Option<u64>) {
        let limits = self.current_limits();
        let align = limits.request_alignment;
        assert!(!range.is_empty(), "empty {what} at {range}");
        assert!(range.is_aligned(align), "{what} {range} is not aligned to {}", align.bytes());
        let end = align.round_up(self.len());
        let grows = self.config.capabilities.grows_on_write && what != "read" && what != "discard";
        assert!(range.end() <= end || grows, "{what} {range} is beyond the end {end:#x}");
        if let Some(max) = max {
            assert!(range.len() <= max, "{what} {range} is longer than {max:#x}");
        }
    }

    fn check_memory(&self, what: &str, range: ByteRange, iov: &IoVec) {
        let limits = self.current_limits();
        let len = u64::try_from(iov.len()).unwrap_or(u64::MAX);
        assert_eq!(len, range.len(), "memory of {what} {range}");
        let count = iov.bufs().len();
        assert!(count <= limits.max_iov, "{what} {range} has {count} buffers");
        // Lengths of buffers matter to hardware that minds their addresses.
        let memory = limits.min_mem_alignment;
        let length = if memory == Alignment::ONE { memory } else { limits.request_alignment };
        assert!(iov.is_aligned(memory, length), "memory of {what} {range} is not aligned");
    }

    fn check_flags(
        &self,
        what: &str,
        range: ByteRange,
        flags: RequestFlags,
        can: &[(RequestFlags, Support)],
    ) {
        for flag in flags.iter() {
            let declared = flag == RequestFlags::WRITE_UNCHANGED
                || can.iter().any(|(f, support)| *f == flag && *support == Support::Native);
            assert!(declared, "{what} {range} has {flag:?}, which was not declared");
        }
    }

    /// The pieces of a request between which other tasks run.
    fn steps(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<> {
        let step = self.config.step.unwrap_or(u64::MAX).max(1);
        let step = self.current_limits().request_alignment.round_up(step);
        let mut rest = range;
        std::iter::from_fn(move || {
            let (piece, tail) = rest.split_at(step);
            rest = tail;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Notes a finished write.
    fn wrote(&self, range: ByteRange, flags: RequestFlags) {
        let mut state = self.state.lock();
        state.writes += 1;
        let number = state.writes;
        if flags.contains(RequestFlags::FUA) {
            state.unstable.retain(|(_, unstable)| !range.contains(*unstable));
        } else {
            state.unstable.push((number, range));
        }
    }

    async fn fill(&self, range: ByteRange, byte: u8) {
        for piece in self.steps(range) {
            yield_now().await;
            let mut state = self.state.lock();
            state.grow(piece.end(), self.config.capabilities.grows_on_write);
            let end = index(piece.end()).min(state.bytes.len());
            let start = index(piece.offset()).min(end);
            state.bytes[start..end].fill(byte);
        }
    }
}

impl State {
    /// Makes room for a growing write.
    fn grow(&mut self, end: u64, grows: bool) {
        if grows && index(end) > self.bytes.len() {
            self.bytes.resize(index(end), 0);
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[async_trait]
impl BlockDriver for MemDisk {
    fn name(&self) -> &'static str {
        "test-mem"
    }

    fn len(&self) -> u64 {
        u64::try_from(self.state.lock().bytes.len()).unwrap_or(u64::MAX)
    }

    fn limits(&self) -> BlockLimits {
        self.current_limits()
    }

    fn capabilities(&self) -> Capabilities {
        self.config.capabilities
    }

    fn is_read_only(&self) -> bool {
        self.state.lock().read_only
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.check_range("read", range, self.config.limits.max_transfer);
        self.check_memory("read", range, &iov);
        for piece in self.steps(range) {
            yield_now().await;
            let state = self.state.lock();
            let at = index(piece.offset() - range.offset());
            let end = index(piece.end()).min(state.bytes.len());
            let start = index(piece.offset()).min(end);
            iov.copy_from(at, &state.bytes[start..end]);
            let held = end - start;
            iov.fill(at + held, index(piece.len()) - held, 0);
        }
        Ok(())
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let capabilities = &self.config.capabilities;
        self.check_range("write", range, self.config.limits.max_transfer);
        self.check_memory("write", range, &iov);
        let can = [
            (RequestFlags::FUA, capabilities.write_fua),
            (RequestFlags::COMPRESSED, capabilities.compressed_write),
        ];
        self.check_flags("write", range, flags, &can);
        for piece in self.steps(range) {
            yield_now().await;
            let mut state = self.state.lock();
            state.grow(piece.end(), capabilities.grows_on_write);
            let end = index(piece.end()).min(state.bytes.len());
            let start = index(piece.offset()).min(end);
            iov.copy_to(index(piece.offset() - range.offset()), &mut state.bytes[start..end]);
        }
        self.wrote(range, flags);
        Ok(())
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let (limits, capabilities) = (&self.config.limits, &self.config.capabilities);
        assert_eq!(capabilities.write_zeroes, Support::Native, "zero write {range}");
        self.check_range("zero write", range, limits.max_pwrite_zeroes);
        let can = [
            (RequestFlags::FUA, capabilities.zeroes_fua),
            (RequestFlags::MAY_UNMAP, capabilities.zeroes_may_unmap),
            (RequestFlags::NO_FALLBACK, capabilities.zeroes_no_fallback),
        ];
        self.check_flags("zero write", range, flags, &can);
        let aligned = limits.pwrite_zeroes_alignment.is_none_or(|align| range.is_aligned(align));
        if !aligned && self.config.unaligned_zeroes == UnalignedZeroes::Refuse {
            return Err(Error::Unsupported);
        }
        self.fill(range, 0).await;
        self.wrote(range, flags);
        Ok(())
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        assert_eq!(self.config.capabilities.discard, Support::Native, "discard {range}");
        self.check_range("discard", range, self.config.limits.max_pdiscard);
        match self.config.discarded {
            Discarded::Kept => yield_now().await,
            Discarded::Zeroes => self.fill(range, 0).await,
            Discarded::Junk => self.fill(range, 0xdd).await,
        }
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        yield_now().await;
        let align = index(self.current_limits().request_alignment.bytes());
        let state = self.state.lock();
        let end = index(range.end()).min(state.bytes.len());
        let start = index(range.offset()).min(end);
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let mut blocks = state.bytes[start..end].chunks(align);
        let zero = blocks.next().is_none_or(is_zero);
        let more =
            blocks.take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum::<usize>();
        let len = u64::try_from(align + more).unwrap_or(u64::MAX).min(range.len());
        let kind = if zero { StatusFlags::ZERO } else { StatusFlags::DATA };
        Ok(DriverStatus::of(len, kind | StatusFlags::ALLOCATED))
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        // Only what was finished when the flush arrived is stable afterwards.
        let last = self.state.lock().writes;
        yield_now().await;
        yield_now().await;
        self.state.lock().unstable.retain(|(number, _)| *number > last);
        Ok(())
    }

    async fn truncate(self: Arc<Self>, len: u64, exactness: Exactness, _: Prealloc) -> Result<()> {
        assert_eq!(self.config.capabilities.truncate, Support::Native, "truncate {len:#x}");
        yield_now().await;
        match self.config.resize {
            Resize::Works => self.state.lock().bytes.resize(index(len), 0),
            Resize::Fixed if len > self.len() => return Err(Error::Invalid),
            Resize::Fixed if len < self.len() && exactness == Exactness::Exact => {
                return Err(Error::Unsupported);
            }
            Resize::Fixed => {}
        }
        Ok(())
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        yield_now().await;
        match self.config.reopen {
            Reopen::Works | Reopen::Aligns(_) => Ok(Box::new(*options)),
            Reopen::Fails => Err(OpenError::Unsupported { driver: self.name(), what: "reopen" }),
        }
    }

    fn reopen_commit(&self, state: ReopenState) {
        let mut disk = self.state.lock();
        disk.commits += 1;
        if let Ok(options) = state.downcast::<ReopenOptions>() {
            disk.read_only = options.read_only.unwrap_or(disk.read_only);
        }
    }

    fn reopen_abort(&self, _: ReopenState) {
        self.state.lock().aborts += 1;
    }

    fn set_event_sink(&self, sink: EventSink) {
        *self.sink.lock() = Some(sink);
    }
}
