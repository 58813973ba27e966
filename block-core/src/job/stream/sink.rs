//! The bytes of the image, from the first to the last.
//!
//! Invariants: every byte is handed to the sink once, in order; what is held back for it is at most
//! [`CHUNK_BYTES`].

use futures::io::{AsyncWrite, AsyncWriteExt};

use super::StreamError;
use crate::job::copy::Watch;
use crate::range::{to_u64, to_usize};

/// Bytes that are handed to the sink at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A sink that is written forward, and what is held back for it.
pub struct Forward<'a, S> {
    sink: S,
    chunk: Vec<u8>,
    /// Bytes that were put so far.
    at: u64,
    watch: &'a mut dyn Watch,
}

impl<'a, S: AsyncWrite + Unpin + Send> Forward<'a, S> {
    /// Nothing is put yet. `watch` is asked before each write.
    pub fn new(sink: S, watch: &'a mut dyn Watch) -> Self {
        Self { sink, chunk: Vec::with_capacity(CHUNK_BYTES), at: 0, watch }
    }

    /// Bytes that were put so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Who watches.
    pub fn watch(&mut self) -> &mut dyn Watch {
        self.watch
    }

    /// Puts bytes behind those that are there.
    pub async fn put(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.room()));
            self.chunk.extend_from_slice(now);
            self.at += to_u64(now.len());
            bytes = rest;
            self.send_if_full().await?;
        }
        Ok(())
    }

    /// Puts zeroes up to `offset`.
    pub async fn pad_to(&mut self, offset: u64) -> Result<(), StreamError> {
        while self.at < offset {
            let len = to_usize(offset - self.at).min(self.room());
            self.chunk.resize(self.chunk.len() + len, 0);
            self.at += to_u64(len);
            self.send_if_full().await?;
        }
        Ok(())
    }

    /// Bytes that can be held back beside what is: more than 0, and putting fewer does not wait.
    pub fn room(&self) -> usize {
        CHUNK_BYTES - self.chunk.len()
    }

    async fn send_if_full(&mut self) -> Result<(), StreamError> {
        if self.room() == 0 { self.send().await } else { Ok(()) }
    }

    /// Hands over what was held back.
    async fn send(&mut self) -> Result<(), StreamError> {
        let len = to_u64(self.chunk.len());
        if let Some(turn) = self.watch.before_write(len) {
            turn.await;
        }
        let sent = self.sink.write_all(&self.chunk).await;
        sent.map_err(|error| StreamError::Sink { offset: self.at - len, error })?;
        self.chunk.clear();
        Ok(())
    }

    /// Hands over the rest and flushes the sink; gives the number of bytes.
    pub async fn finish(mut self) -> Result<u64, StreamError> {
        self.send().await?;
        let flushed = self.sink.flush().await;
        flushed.map_err(|error| StreamError::Sink { offset: self.at, error })?;
        Ok(self.at)
    }
}

impl<S> std::fmt::Debug for Forward<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward").field("at", &self.at).finish_non_exhaustive()
    }
}
