//! Any byte stream of any runtime as a transport.
//!
//! What implements [`AsyncRead`] and [`AsyncWrite`] of the crate `futures` becomes a [`Stream`] by
//! [`FuturesStream`]; [`RuntimeConnector`] makes a [`Connector`] of three functions of a runtime: one that
//! connects, one that tells the time, one that waits.
//!
//! Those traits take slices, and memory of requests gives none out. So all data passes through a buffer
//! of the stream and is copied once. The connector in `tcp` copies nothing.
//!
//! Invariants: what a stream keeps back after it was asked to move it is asked for again whenever the
//! stream is polled; a byte is copied to the buffer for sending only to be offered to the stream at once, and one
//! that the stream did not take is offered again from where it came.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite};

use super::{Alarm, Connector, Portal, ReceiveSlot, Stream, TransmitPart};

/// Length in bytes of each of the two buffers of a stream.
const BUFFER_LEN: usize = 128 << 10;

/// A stream of a runtime as one of this crate.
#[derive(Debug)]
pub struct FuturesStream<S> {
    stream: S,
    received: Box<[u8]>,
    sending: Box<[u8]>,
    /// The stream still has some of what it took.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> FuturesStream<S> {
    /// Wraps a stream that is connected.
    pub fn new(stream: S) -> Self {
        Self { stream, received: buffer(), sending: buffer(), unflushed: false }
    }
}

impl<S: AsyncWrite + Unpin> FuturesStream<S> {
    /// Lets the stream move what it took, as far as that goes now.
    fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            self.unflushed = false;
            flushed?;
        }
        Ok(())
    }
}

fn buffer() -> Box<[u8]> {
    vec![0; BUFFER_LEN].into_boxed_slice()
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for FuturesStream<S> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        slot: &mut ReceiveSlot<'_>,
    ) -> Poll<io::Result<usize>> {
        self.flush(cx)?;
        let stream = Pin::new(&mut self.stream);
        if slot.direct.is_empty() {
            let n = ready!(stream.poll_read(cx, slot.staging))?;
            return Poll::Ready(believed(n, slot.staging.len()));
        }
        let room = slot.direct.len().saturating_add(slot.staging.len()).min(BUFFER_LEN);
        let (room, _) = self.received.split_at_mut(room);
        let n = ready!(stream.poll_read(cx, room))?;
        let (bytes, _) = room.split_at(believed(n, room.len())?);
        let (direct, staging) = bytes.split_at(n.min(slot.direct.len()));
        slot.direct.copy_from(0, direct);
        for (to, from) in slot.staging.iter_mut().zip(staging) {
            *to = *from;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[TransmitPart<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = gather(parts, &mut self.sending);
        let (bytes, _) = self.sending.split_at(len);
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        // A stream may keep what it took until it is told to move.
        self.unflushed = true;
        self.flush(cx)?;
        Poll::Ready(believed(n, len))
    }
}

/// What a stream says that it has moved, if that can be.
fn believed(n: usize, most: usize) -> io::Result<usize> {
    if n > most { Err(io::ErrorKind::InvalidData.into()) } else { Ok(n) }
}

/// Copies as much of `parts` as there is room for; how many bytes that was.
fn gather(parts: &[TransmitPart<'_>], mut to: &mut [u8]) -> usize {
    let room = to.len();
    for part in parts {
        let len = match part {
            TransmitPart::Bytes(bytes) => bytes.len(),
            TransmitPart::Buf(buf) => buf.len(),
        };
        let (here, rest) = to.split_at_mut(len.min(to.len()));
        match part {
            TransmitPart::Bytes(bytes) => here.copy_from_slice(bytes.split_at(here.len()).0),
            TransmitPart::Buf(buf) => buf.copy_to(0, here),
        }
        to = rest;
        if to.is_empty() {
            break;
        }
    }
    room - to.len()
}

/// A connector made of what a runtime has.
pub struct RuntimeConnector<C, N, W> {
    connect: C,
    now: N,
    wait: W,
}

impl<C, N, W> RuntimeConnector<C, N, W> {
    /// `connect` makes a stream to a portal, `now` tells the time since any fixed moment, and `wait` is
    /// ready when this much more of it has passed.
    pub fn new(connect: C, now: N, wait: W) -> Self {
        Self { connect, now, wait }
    }
}

#[async_trait]
impl<C, N, W, S> Connector for RuntimeConnector<C, N, W>
where
    C: Fn(Portal) -> BoxFuture<'static, io::Result<S>> + Send + Sync + 'static,
    N: Fn() -> Duration + Clone + Send + Sync + 'static,
    W: Fn(Duration) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    async fn connect(&self, portal: &Portal) -> io::Result<Box<dyn Stream>> {
        let stream = (self.connect)(portal.clone()).await?;
        Ok(Box::new(FuturesStream::new(stream)))
    }

    fn now(&self) -> Duration {
        (self.now)()
    }

    fn alarm(&self) -> Box<dyn Alarm> {
        Box::new(RuntimeAlarm { now: self.now.clone(), wait: self.wait.clone(), set: None })
    }
}

struct RuntimeAlarm<N, W> {
    now: N,
    wait: W,
    /// The moment that is waited for: the deadline or one before it.
    set: Option<(Duration, BoxFuture<'static, ()>)>,
}

impl<N, W> Alarm for RuntimeAlarm<N, W>
where
    N: Fn() -> Duration + Send,
    W: Fn(Duration) -> BoxFuture<'static, ()> + Send,
{
    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Duration) -> Poll<()> {
        loop {
            match &mut self.set {
                Some((moment, wait)) if *moment <= deadline => {
                    ready!(wait.as_mut().poll(cx));
                    self.set = None;
                }
                _ => {}
            }
            let left = deadline.saturating_sub((self.now)());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.set = Some((deadline, (self.wait)(left)));
        }
    }
}
