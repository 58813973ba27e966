//! The bytes of a source that only goes forward, in whole parts.
//!
//! Invariants: every byte is given once, in order; what is held is at most what was asked for at once, and never less
//! than [`CHUNK_BYTES`].

use block_core::range::to_u64;
use futures::io::{AsyncRead, AsyncReadExt};

use super::ReadError;

/// Bytes that are asked of the source at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A source, and what was read ahead of it.
pub(super) struct Input<R> {
    source: R,
    buf: Vec<u8>,
    /// What of `buf` was given already, and up to where it holds bytes: `start <= end <= buf.len()`.
    start: usize,
    end: usize,
    /// Bytes that were given.
    offset: u64,
}

impl<R: AsyncRead + Unpin + Send> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buf: vec![0; CHUNK_BYTES], start: 0, end: 0, offset: 0 }
    }

    /// Where the byte that is given next is in the stream.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `len` bytes, which stay where they are; fails if the source ends before. `what` they are part of.
    pub(super) async fn peek(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<&[u8], ReadError> {
        self.fill(len).await?;
        if self.end - self.start < len {
            let offset = self.offset + to_u64(self.end - self.start);
            return Err(ReadError::Truncated { offset, what });
        }
        Ok(self.buf.get(self.start..self.start + len).unwrap_or_default())
    }

    /// The next `len` bytes.
    pub(super) async fn take(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<&[u8], ReadError> {
        self.peek(len, what).await?;
        let at = self.start;
        self.start += len;
        self.offset += to_u64(len);
        Ok(self.buf.get(at..self.start).unwrap_or_default())
    }

    /// Passes over bytes.
    pub(super) async fn skip(&mut self, mut len: u64, what: &'static str) -> Result<(), ReadError> {
        while len > 0 {
            let now = usize::try_from(len).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            self.take(now, what).await?;
            len -= to_u64(now);
        }
        Ok(())
    }

    /// Whether the source has ended.
    pub(super) async fn is_at_end(&mut self) -> Result<bool, ReadError> {
        self.fill(1).await?;
        Ok(self.start == self.end)
    }

    /// Reads the rest and drops it, so that who writes it is not broken off.
    pub(super) async fn drain(&mut self) -> Result<(), ReadError> {
        while !self.is_at_end().await? {
            self.offset += to_u64(self.end - self.start);
            self.start = self.end;
        }
        Ok(())
    }

    /// Reads until `len` bytes are there or the source ends.
    async fn fill(&mut self, len: usize) -> Result<(), ReadError> {
        if self.end - self.start >= len {
            return Ok(());
        }
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buf.len() < len {
            self.buf.resize(len, 0);
        }
        while self.end < len {
            let room = self.buf.get_mut(self.end..).unwrap_or_default();
            let offset = self.offset + to_u64(self.end);
            let read = self.source.read(room).await;
            match read.map_err(|error| ReadError::Source { offset, error })? {
                0 => break,
                more => self.end += more,
            }
        }
        Ok(())
    }
}
