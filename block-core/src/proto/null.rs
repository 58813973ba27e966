//! `null`: a disk that answers at once and keeps nothing. Measures the layer above it.

use std::sync::Arc;

use async_trait::async_trait;

use crate::buf::IoVec;
use crate::driver::BlockDriver;
use crate::error::{OpenError, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::limits::BlockLimits;
use crate::options::Options;
use crate::range::ByteRange;
use crate::registry::{DriverFactory, OpenContext};
use crate::request::status::{DriverStatus, StatusDetail};

/// A disk that keeps nothing.
pub struct NullDriver {
    len: u64,
    read_zeroes: bool,
}

impl NullDriver {
    /// A disk of `len` bytes. With `read_zeroes`, reads give zeroes; else they leave the buffer as
    /// it is.
    pub fn new(len: u64, read_zeroes: bool) -> Self {
        Self { len, read_zeroes }
    }
}

#[async_trait]
impl BlockDriver for NullDriver {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            write_fua: Support::Native,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Native,
            zeroes_may_unmap: Support::Native,
            zeroes_no_fallback: Support::Native,
            discard: Support::Native,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_now(&self, _: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        if self.read_zeroes {
            iov.fill(0, iov.len(), 0);
        }
        Some(Ok(()))
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.read_now(range, &iov).unwrap_or(Ok(()))
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Ok(())
    }

    async fn pwrite_zeroes(self: Arc<Self>, _: ByteRange, _: RequestFlags) -> Result<()> {
        Ok(())
    }

    async fn pdiscard(self: Arc<Self>, _: ByteRange) -> Result<()> {
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        Ok(if self.read_zeroes {
            DriverStatus::zero(range.len())
        } else {
            DriverStatus::data(range.len())
        })
    }
}

/// Opens `null-co`: `size`, `read-zeroes`.
pub struct NullFactory;

#[async_trait]
impl DriverFactory for NullFactory {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["null-co"]
    }

    async fn open(
        &self,
        mut options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        options.take("filename");
        let len = options.take_size("size")?.unwrap_or(1 << 30);
        let read_zeroes = options.take_bool("read-zeroes")?.unwrap_or(false);
        options.finish()?;
        Ok(Arc::new(NullDriver::new(len, read_zeroes)))
    }
}
