//! A disk of any length that is full of one byte and takes no memory, whatever is written.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::{BlockDriver, BlockLimits, ByteRange, Capabilities, IoVec, RequestFlags, Result};

/// The disk; the number is its length.
pub struct Full(pub u64);

#[async_trait]
impl BlockDriver for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn len(&self) -> u64 {
        self.0
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, _: ByteRange, iov: IoVec) -> Result<()> {
        iov.fill(0, iov.len(), 0x5a);
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Ok(())
    }
}
