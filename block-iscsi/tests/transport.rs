//! Promises of streams of foreign runtimes: no byte is lost, doubled or misplaced, however few of them a
//! stream takes at a time; what it keeps back is asked for again; a stream that lies is an error.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use block_core::{Alignment, IoBuf, IoVec, OwnedBuf};
use block_iscsi::transport::futures_io::{FuturesStream, RuntimeConnector};
use block_iscsi::transport::{Connector, Portal, ReceiveSlot, Stream, TransmitPart};
use futures::executor::block_on;
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Gives back what was written to it, in random pieces, sometimes later; what is written is only there
/// after a flush.
struct Fickle {
    rng: SmallRng,
    held: Vec<u8>,
    there: Vec<u8>,
}

impl Fickle {
    fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), held: Vec::new(), there: Vec::new() }
    }

    fn busy<T>(&mut self, cx: &Context<'_>) -> Option<Poll<T>> {
        cx.waker().wake_by_ref();
        self.rng.random_bool(0.3).then_some(Poll::Pending)
    }
}

impl AsyncRead for Fickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!to.is_empty());
        if let Some(later) = self.busy(cx) {
            return later;
        }
        let most = to.len().min(self.there.len());
        if most == 0 {
            return Poll::Pending;
        }
        let len = self.rng.random_range(1..=most);
        to[..len].copy_from_slice(&self.there[..len]);
        self.there.drain(..len);
        Poll::Ready(Ok(len))
    }
}

impl AsyncWrite for Fickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(later) = self.busy(cx) {
            return later;
        }
        let len = self.rng.random_range(1..=from.len());
        self.held.extend_from_slice(&from[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(later) = self.busy(cx) {
            return later;
        }
        let held = std::mem::take(&mut self.held);
        self.there.extend(held);
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn memory(rng: &mut SmallRng, most: usize) -> IoVec {
    let count = rng.random_range(0..4);
    let buf = |_| IoBuf::zeroed(rng.random_range(0..=most), Alignment::ONE).unwrap();
    (0..count).map(buf).collect()
}

#[test]
fn bytes_come_as_they_went_through_any_stream() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..50 {
        let mut stream = FuturesStream::new(Fickle::new(rng.random()));
        let mut bytes = vec![0; rng.random_range(1..300_000)];
        rng.fill(&mut bytes[..]);
        let (mut sent, mut received) = (0, Vec::new());
        block_on(async {
            while received.len() < bytes.len() {
                let rest = &bytes[sent..];
                let (first, second) = rest.split_at(rng.random_range(0..=rest.len().min(500)));
                let second = OwnedBuf::copy_of(second, Alignment::ONE).unwrap().into_shared();
                let parts = [TransmitPart::Bytes(first), TransmitPart::Buf(&second)];
                if !rest.is_empty() {
                    sent += poll_fn(|cx| stream.poll_transmit(cx, &parts)).await.unwrap();
                }
                let direct = memory(&mut rng, 5000);
                let mut staging = vec![0; rng.random_range(1..5000)];
                let mut slot = ReceiveSlot { direct: direct.clone(), staging: &mut staging };
                let all = sent == bytes.len();
                let polled = poll_fn(|cx| match stream.poll_receive(cx, &mut slot) {
                    // There may be nothing to wait for yet.
                    Poll::Pending if !all => Poll::Ready(Ok(0)),
                    polled => polled,
                });
                let len = polled.await.unwrap();
                let mut came = direct.to_vec();
                came.extend(staging);
                received.extend_from_slice(&came[..len]);
            }
        });
        assert!(received == bytes);
    }
}

/// Says that it has moved more than there was room for.
struct Liar;

impl AsyncRead for Liar {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(to.len() + 1))
    }
}

impl AsyncWrite for Liar {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(from.len() + 1))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_stream_that_says_too_much_is_not_believed() {
    let mut stream = FuturesStream::new(Liar);
    let mut rng = SmallRng::seed_from_u64(0);
    for direct in [IoVec::new(), IoVec::from(IoBuf::zeroed(10, Alignment::ONE).unwrap())] {
        let mut staging = vec![0; rng.random_range(1..10)];
        let mut slot = ReceiveSlot { direct, staging: &mut staging };
        let error = block_on(poll_fn(|cx| stream.poll_receive(cx, &mut slot))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    let parts = [TransmitPart::Bytes(&[1, 2, 3])];
    let error = block_on(poll_fn(|cx| stream.poll_transmit(cx, &parts))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn an_alarm_waits_anew_only_for_an_earlier_deadline() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    let waits = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&waits);
    let connector = RuntimeConnector::new(
        |_: Portal| -> BoxFuture<'static, io::Result<Fickle>> {
            Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
        },
        || Duration::from_secs(NOW.load(Ordering::Relaxed)),
        move |time: Duration| -> BoxFuture<'static, ()> {
            count.fetch_add(1, Ordering::Relaxed);
            let end = NOW.load(Ordering::Relaxed) + time.as_secs();
            Box::pin(poll_fn(move |_| match NOW.load(Ordering::Relaxed) < end {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }))
        },
    );
    let mut alarm = connector.alarm();
    let mut rings = |now, deadline| {
        NOW.store(now, Ordering::Relaxed);
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        alarm.poll_until(&mut cx, Duration::from_secs(deadline)).is_ready()
    };
    assert!(!rings(0, 10));
    assert!(!rings(1, 20) && !rings(2, 30));
    assert_eq!(waits.load(Ordering::Relaxed), 1, "a later deadline costs nothing");
    assert!(!rings(11, 30));
    assert_eq!(waits.load(Ordering::Relaxed), 2, "the rest is waited for when it has rung");
    assert!(!rings(12, 15) && rings(15, 15));
    assert!(rings(16, 3), "the past is now");
}
