//! `compress`: every write to its file becomes a compressed one.
//!
//! Its request alignment is a cluster of the file, so that the request layer makes whole clusters of
//! smaller writes, by reading the rest of them first. Everything else goes on as it came.
//!
//! Invariants: no write reaches the file but whole clusters with `COMPRESSED`, of which the last may
//! end at the end of the disk; no request ends beyond it but reads, which find zeroes there.

use std::sync::Arc;

use async_trait::async_trait;

use crate::access::Access;
use crate::buf::IoVec;
use crate::driver::{BlockDriver, ReopenOptions, ReopenState};
use crate::error::{OpenError, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::info::DriverInfo;
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::options::Options;
use crate::range::{Alignment, ByteRange, to_usize};
use crate::registry::{DriverFactory, OpenContext};

/// The filter.
pub struct CompressDriver {
    file: Node,
    access: Access,
}

impl CompressDriver {
    /// A filter on `file`, which must take compressed writes, or could if it were writable, of clusters
    /// whose size is a power of two.
    pub fn new(file: Node) -> Result<Self, OpenError> {
        let cluster = file.limits().compressed_write_alignment;
        let native = file.capabilities().compressed_write == Support::Native;
        // What cannot be written to at all may say nothing of how it could.
        let can = native || (file.is_read_only() && cluster.is_some());
        if !can || cluster.is_some_and(|cluster| !cluster.bytes().is_power_of_two()) {
            let driver = file.driver().name();
            return Err(OpenError::Unsupported { driver, what: "writing compressed data" });
        }
        Ok(Self { file, access: Access::new(true) })
    }

    /// What of a range in whole clusters is on the disk.
    fn on_disk(&self, range: ByteRange) -> ByteRange {
        range.intersect(ByteRange::up_to(self.file.len()))
    }
}

#[async_trait]
impl BlockDriver for CompressDriver {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn limits(&self) -> BlockLimits {
        let file = self.file.limits();
        let block = file.request_alignment;
        BlockLimits {
            request_alignment: block.max(file.compressed_write_alignment.unwrap_or(block)),
            // The file's node sees to that, where it matters.
            min_mem_alignment: Alignment::ONE,
            ..file
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { grows_on_write: false, ..self.file.capabilities() }
    }

    fn is_read_only(&self) -> bool {
        self.access.is_read_only() || self.file.is_read_only()
    }

    fn filtered(&self) -> Option<&Node> {
        Some(&self.file)
    }

    fn info(&self) -> DriverInfo {
        self.file.driver().info().of_filter()
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.file.read_now(range, iov)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.file.read(range, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let range = self.on_disk(range);
        let iov = iov.slice(0, to_usize(range.len()));
        self.file.write(range, iov, flags | RequestFlags::COMPRESSED).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.file.write_zeroes(self.on_disk(range), flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        self.file.discard(self.on_disk(range)).await
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

/// Opens `compress`: `file`, which names a format that compresses.
pub struct CompressFactory;

#[async_trait]
impl DriverFactory for CompressFactory {
    fn name(&self) -> &'static str {
        "compress"
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let file = context.open_child(&mut options, "file").await?;
        options.finish()?;
        let mut driver = CompressDriver::new(file)?;
        driver.access = Access::new(context.flags.writable);
        Ok(Arc::new(driver))
    }
}
