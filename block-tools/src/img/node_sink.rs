//! A node as a sink that is written forward, from its first byte on.
//!
//! Invariants: bytes are written once and in order; one write is in flight, of bytes that the sink has taken; what
//! became of it is said when the next bytes come or the sink is flushed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::range::to_u64;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, OwnedBuf, RequestFlags, Result};
use futures::future::BoxFuture;
use futures::io::AsyncWrite;

/// A node that is written forward.
pub(super) struct NodeSink {
    node: Node,
    flags: RequestFlags,
    at: u64,
    running: Option<BoxFuture<'static, Result<()>>>,
}

impl NodeSink {
    /// Writes to `node` from its start; every write has these flags.
    pub(super) fn new(node: Node, flags: RequestFlags) -> Self {
        Self { node, flags, at: 0, running: None }
    }

    /// Waits for what is in flight.
    pub(super) async fn drain(&mut self) {
        if let Some(running) = self.running.take() {
            // Who did not ask before does not want to know.
            let _ = running.await;
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<()> {
        let align = self.node.limits().opt_mem_alignment.max(Alignment::PAGE);
        let buf: IoBuf = OwnedBuf::copy_of(bytes, align)?.into_shared();
        let range = ByteRange::new(self.at, to_u64(bytes.len())).map_err(Error::from)?;
        self.running = Some(Box::pin(self.node.write(range, buf.into(), self.flags)));
        self.at = range.end();
        Ok(())
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(running) = &mut self.running else { return Poll::Ready(Ok(())) };
        running.as_mut().poll(cx).map(|done| {
            self.running = None;
            done.map_err(system_error)
        })
    }
}

impl AsyncWrite for NodeSink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_idle(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        let begun = self.begin(bytes).map_err(system_error);
        Poll::Ready(begun.map(|()| bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_idle(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

fn system_error(error: Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block_core::proto::mem::MemDriver;
    use futures::io::AsyncWriteExt;

    use super::*;
    use crate::open::block_on;

    #[test]
    fn what_is_written_is_there_when_it_is_flushed() {
        let node = Node::new(Arc::new(MemDriver::from_bytes(&[]).unwrap()), Default::default());
        let expect: Vec<u8> = (0..300_000u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let mut sink = NodeSink::new(node.clone(), RequestFlags::empty());
        block_on(async {
            for part in expect.chunks(70_001) {
                sink.write_all(part).await.unwrap();
            }
            sink.flush().await.unwrap();
            let buf = IoBuf::zeroed(expect.len(), Alignment::ONE).unwrap();
            let range = ByteRange::up_to(to_u64(expect.len()));
            node.read(range, buf.clone().into()).await.unwrap();
            assert!(buf.to_vec() == expect);
        });
    }
}
