//! `raw`: the bytes of its file, or a part of them (`offset`, `size`).
//!
//! Invariant: with a fixed size no request leaves `[offset, offset + size)` of the file. A raw image
//! whose format was probed, not given, refuses writes that would make the next probe see another
//! format: a guest must not choose how the host reads its disk.

use std::iter;
use std::sync::Arc;

use async_trait::async_trait;
use futures::lock::{Mutex, MutexGuard};

use crate::ability::Measurement;
use crate::access::Access;
use crate::buf::{IoBuf, IoVec, OwnedBuf};
use crate::driver::{
    BlockDriver, Child, ChildRole, Children, CopySource, Exactness, Prealloc, ReopenOptions,
    ReopenState,
};
use crate::error::{Error, OpenError, Problem, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::options::Options;
use crate::range::{Alignment, ByteRange, MAX_LEN, to_usize};
use crate::registry::{CreateOption, DriverFactory, OpenContext, PROBE_BYTES, Registry};
use crate::request::status::{DriverStatus, StatusDetail};

/// A raw image.
pub struct RawDriver {
    file: Node,
    offset: u64,
    /// `None`: to the end of the file, which may grow.
    size: Option<u64>,
    access: Access,
    /// Set where the format was guessed: the probe that a write must not change.
    guard: Option<HeadGuard>,
}

impl RawDriver {
    /// All of `file`.
    pub fn new(file: Node) -> Self {
        Self { file, offset: 0, size: None, access: Access::new(true), guard: None }
    }

    /// The `size` bytes of `file` at `offset` (`None`: to its end).
    pub fn part(file: Node, offset: u64, size: Option<u64>) -> Result<Self, OpenError> {
        let field =
            |field, value, problem| Err(OpenError::Field { format: "raw", field, value, problem });
        let Some(room) = file.len().checked_sub(offset) else {
            return field("offset", offset, Problem::Above(file.len()));
        };
        if let Some(size) = size.filter(|size| *size > room) {
            return field("size", size, Problem::Above(room));
        }
        let align = file.limits().request_alignment;
        if !align.is_aligned(offset) {
            return field("offset", offset, Problem::Misaligned(align.bytes()));
        }
        Ok(Self { offset, size, ..Self::new(file) })
    }

    /// The guard's turn and consent, where it has a say in what reads as zeroes from now on.
    async fn guard_zeroes(&self, range: ByteRange) -> Result<Option<MutexGuard<'_, ()>>> {
        let Some(guard) = self.guard.as_ref().filter(|_| range.offset() < PROBE_BYTES) else {
            return Ok(None);
        };
        let writing = guard.writing.lock().await;
        guard.check(&self.file, range, None).await?;
        Ok(Some(writing))
    }

    /// The start of what is written to `range` as a copy, at least as much as is probed, and all of it
    /// with the copy in the start's place: a guest may change its memory after it was looked at.
    fn with_own_head(&self, range: ByteRange, iov: &IoVec) -> Result<(IoBuf, IoVec)> {
        let end = self.file.limits().request_alignment.round_up(PROBE_BYTES);
        let len = to_usize((end - range.offset()).min(range.len()));
        let mut copy = OwnedBuf::zeroed(len, Alignment::PAGE)?;
        iov.copy_to(0, &mut copy);
        let (head, rest) = (copy.into_shared(), iov.slice(len, iov.len() - len));
        let whole = iter::once(head.clone()).chain(rest.bufs().iter().cloned()).collect();
        Ok((head, whole))
    }

    /// The same range, counted in the file.
    fn in_file(&self, range: ByteRange) -> Result<ByteRange> {
        Ok(range.shifted(self.offset)?)
    }
}

/// Keeps a guessed raw image raw: see the module.
struct HeadGuard {
    registry: Arc<Registry>,
    /// Held across a write to the probed bytes: two that are harmless alone must not forge a magic
    /// number together. Outermost lock of the node.
    writing: Mutex<()>,
}

impl HeadGuard {
    /// Refuses a write after which a probe would see a format: of zeroes, or of `data`, which reaches from
    /// the start of `range` to its end or that of what is probed.
    async fn check(&self, file: &Node, range: ByteRange, data: Option<&IoBuf>) -> Result<()> {
        let probed = ByteRange::up_to(PROBE_BYTES);
        let buf = IoBuf::zeroed(to_usize(PROBE_BYTES), Alignment::PAGE)?;
        file.read(probed, buf.clone().into()).await?;
        let mut head = buf.to_vec();
        let covered = range.intersect(probed);
        let (start, end) = (to_usize(covered.offset()), to_usize(covered.end()));
        match data {
            Some(data) => data.copy_to(0, &mut head[start..end]),
            None => head[start..end].fill(0),
        }
        if self.registry.looks_like_a_format(&head) { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

#[async_trait]
impl BlockDriver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn len(&self) -> u64 {
        self.size.unwrap_or_else(|| self.file.len().saturating_sub(self.offset))
    }

    fn limits(&self) -> BlockLimits {
        let file = self.file.limits();
        // Zero and discard limits of the file hold here only while both count from an aligned place.
        let kept = |a: Option<Alignment>| a.filter(|a| a.is_aligned(self.offset));
        BlockLimits {
            pwrite_zeroes_alignment: kept(file.pwrite_zeroes_alignment),
            pdiscard_alignment: kept(file.pdiscard_alignment),
            ..file
        }
    }

    fn capabilities(&self) -> Capabilities {
        let fixed = self.size.is_some();
        let file = self.file.capabilities();
        let truncate = if fixed { Support::None } else { file.truncate };
        Capabilities { grows_on_write: file.grows_on_write && !fixed, truncate, ..file }
    }

    fn is_read_only(&self) -> bool {
        self.access.is_read_only() || self.file.is_read_only()
    }

    fn children(&self) -> Children {
        let child = Child { name: "file", role: ChildRole::Primary, node: self.file.clone() };
        Children::from_iter([child])
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.file.read_now(self.in_file(range).ok()?, iov)
    }

    fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        // The guard of a guessed image has to look at the head first.
        if self.guard.is_some() && range.offset() < PROBE_BYTES {
            return None;
        }
        self.file.write_now(self.in_file(range).ok()?, iov)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.file.driver().event("read_aio");
        self.file.read(self.in_file(range)?, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let in_file = self.in_file(range)?;
        match &self.guard {
            Some(guard) if range.offset() < PROBE_BYTES => {
                let _writing = guard.writing.lock().await;
                let (head, iov) = self.with_own_head(range, &iov)?;
                guard.check(&self.file, range, Some(&head)).await?;
                self.file.driver().event("write_aio");
                self.file.write(in_file, iov, flags).await
            }
            _ => {
                self.file.driver().event("write_aio");
                self.file.write(in_file, iov, flags).await
            }
        }
    }

    async fn copy_from(self: Arc<Self>, range: ByteRange, source: CopySource) -> Result<()> {
        if self.guard.is_some() && range.offset() < PROBE_BYTES {
            // The guard has to see the bytes.
            return Err(Error::Unsupported);
        }
        self.file.copy_from(self.in_file(range)?, source).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let _writing = self.guard_zeroes(range).await?;
        self.file.write_zeroes(self.in_file(range)?, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let _writing = match self.guard_zeroes(range).await {
            // It stays as it is.
            Err(Error::ReadOnly) => return Err(Error::Unsupported),
            turn => turn?,
        };
        self.file.discard(self.in_file(range)?).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let offset = self.in_file(range)?.offset();
        Ok(DriverStatus::recurse(range.len(), self.file.clone(), offset))
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        self.file.driver().event("flush_to_os");
        Ok(())
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.file.driver().event("flush_to_disk");
        Ok(())
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        if self.size.is_some() {
            return Err(Error::Unsupported);
        }
        let len = len.checked_add(self.offset).filter(|l| *l <= MAX_LEN).ok_or(Error::Invalid)?;
        self.file.truncate(len, exactness, prealloc).await
    }

    fn event(&self, name: &'static str) {
        self.file.driver().event(name);
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        Ok(Access::prepare(options))
    }

    fn reopen_commit(&self, state: ReopenState) {
        self.access.commit(state);
    }
}

/// Opens `raw`: `file`, `offset`, `size`.
pub struct RawFactory;

#[async_trait]
impl DriverFactory for RawFactory {
    fn name(&self) -> &'static str {
        "raw"
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let probed = context.is_probed();
        let file = context.open_child(&mut options, "file").await?;
        let offset = options.take_size("offset")?.unwrap_or(0);
        let size = options.take_size("size")?;
        options.finish()?;
        let mut driver = RawDriver::part(file, offset, size)?;
        driver.access = Access::new(context.flags.writable);
        driver.guard = probed.then(|| HeadGuard {
            registry: Arc::clone(&context.registry),
            writing: Mutex::new(()),
        });
        Ok(Arc::new(driver))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        const SIZE: CreateOption = CreateOption {
            name: "size",
            value: "<size>",
            help: "Virtual disk size",
            default: None,
        };
        &[SIZE]
    }

    /// The file is all there is to make: its protocol's options are options here.
    async fn create(&self, mut options: Options, context: OpenContext) -> Result<(), OpenError> {
        let len = take_len(&mut options)?;
        if let Some(filename) = options.peek("filename") {
            let protocol = context.registry.protocol_of(filename)?;
            options.set("size", len.to_string());
            return context.registry.get(protocol)?.create(options, context.clone()).await;
        }
        let file = context.create_file(options).await?;
        let request = |error| OpenError::Request { what: "length of the image", error };
        file.truncate(0, Exactness::AtLeast, Prealloc::Off).await.map_err(request)?;
        file.truncate(len, Exactness::AtLeast, Prealloc::Off).await.map_err(request)?;
        file.close().await.map_err(request)
    }

    async fn measure(
        &self,
        mut options: Options,
        source: Option<Node>,
    ) -> Result<Measurement, OpenError> {
        if let Some(source) = source {
            options.set("size", source.len().to_string());
        }
        let len = take_len(&mut options)?;
        options.take("preallocation");
        options.finish()?;
        Ok(Measurement { required: len, fully_allocated: len, bitmaps: None })
    }
}

/// The length of a new image, in whole sectors.
fn take_len(options: &mut Options) -> Result<u64, OpenError> {
    let option = "size";
    match options.take_size(option)? {
        None => Err(OpenError::Option { option: option.to_owned(), problem: Problem::Missing }),
        Some(len) if len > MAX_LEN => {
            let (value, problem) = (len.to_string(), Problem::Above(MAX_LEN));
            Err(OpenError::OptionValue { option, value, problem })
        }
        Some(len) => Ok(Alignment::SECTOR.round_up(len)),
    }
}
