//! `null`: a disk that keeps nothing, and answers at once or after a time. Measures the layer above it.
//!
//! `null-co` and `null-aio` are two names of the same. What takes time waits in a thread of the pool, so
//! that some sixteen requests wait at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::buf::IoVec;
use crate::driver::BlockDriver;
use crate::error::{OpenError, Problem, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::io::pool;
use crate::limits::BlockLimits;
use crate::options::Options;
use crate::range::{ByteRange, MAX_LEN};
use crate::registry::{DriverFactory, OpenContext};
use crate::request::status::{DriverStatus, StatusDetail};

/// A disk that keeps nothing.
pub struct NullDriver {
    name: &'static str,
    len: u64,
    read_zeroes: bool,
    latency: Duration,
}

impl NullDriver {
    /// A disk of `len` bytes. With `read_zeroes`, reads give zeroes; else they leave the buffer as
    /// it is.
    pub fn new(len: u64, read_zeroes: bool) -> Self {
        Self { name: CO, len, read_zeroes, latency: Duration::ZERO }
    }

    /// Takes the time that every read, write and flush takes.
    async fn wait(&self) -> Result<()> {
        let latency = self.latency;
        if latency.is_zero() {
            return Ok(());
        }
        pool::run(move || {
            std::thread::sleep(latency);
            Ok(())
        })
        .await
    }

    fn read(&self, iov: &IoVec) {
        if self.read_zeroes {
            iov.fill(0, iov.len(), 0);
        }
    }
}

#[async_trait]
impl BlockDriver for NullDriver {
    fn name(&self) -> &'static str {
        self.name
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
        if !self.latency.is_zero() {
            return None;
        }
        self.read(iov);
        Some(Ok(()))
    }

    async fn preadv(self: Arc<Self>, _: ByteRange, iov: IoVec) -> Result<()> {
        self.wait().await?;
        self.read(&iov);
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        self.wait().await
    }

    async fn pwrite_zeroes(self: Arc<Self>, _: ByteRange, _: RequestFlags) -> Result<()> {
        self.wait().await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.wait().await
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

const CO: &str = "null-co";
const AIO: &str = "null-aio";

/// Opens `null-co`: `size`, `read-zeroes`, `latency-ns`; or the name `null-co://`.
pub struct NullFactory;

/// Opens `null-aio`, as [`NullFactory`] does `null-co`.
pub struct NullAioFactory;

fn open(name: &'static str, mut options: Options) -> Result<Arc<dyn BlockDriver>, OpenError> {
    if let Some(value) = options.take("filename").filter(|given| *given != format!("{name}://")) {
        let (option, problem) = ("filename", Problem::Unknown);
        return Err(OpenError::OptionValue { option, value, problem });
    }
    let len = options.take_size("size")?.unwrap_or(1 << 30);
    if len > MAX_LEN {
        let (option, value, problem) = ("size", len.to_string(), Problem::Above(MAX_LEN));
        return Err(OpenError::OptionValue { option, value, problem });
    }
    let read_zeroes = options.take_bool("read-zeroes")?.unwrap_or(false);
    let latency = Duration::from_nanos(options.take_size("latency-ns")?.unwrap_or(0));
    options.finish()?;
    Ok(Arc::new(NullDriver { name, latency, ..NullDriver::new(len, read_zeroes) }))
}

#[async_trait]
impl DriverFactory for NullFactory {
    fn name(&self) -> &'static str {
        CO
    }

    fn schemes(&self) -> &'static [&'static str] {
        &[CO]
    }

    async fn open(
        &self,
        options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        open(CO, options)
    }
}

#[async_trait]
impl DriverFactory for NullAioFactory {
    fn name(&self) -> &'static str {
        AIO
    }

    fn schemes(&self) -> &'static [&'static str] {
        &[AIO]
    }

    async fn open(
        &self,
        options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        open(AIO, options)
    }
}
