//! Requests that run while later commands do (`aio_read`, `aio_write`).
//!
//! A request is started when its command is, and its report appears whenever the session waits for
//! something: another request, the next line of input, `aio_flush`, the end.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use block_core::Result;
use futures::future::{LocalBoxFuture, poll_fn};
use futures::stream::{FuturesUnordered, StreamExt};

use super::report::{Described, Output};

/// Most requests whose buffers are held at once.
const MAX_IN_FLIGHT: usize = 1024;

/// A request that ended.
struct Ended {
    described: Described,
    result: Result<()>,
    took: Duration,
}

/// The requests in flight, and those that ended and are not reported yet.
#[derive(Default)]
pub(super) struct Pending {
    running: FuturesUnordered<LocalBoxFuture<'static, Ended>>,
    ended: Vec<Ended>,
}

impl Pending {
    /// Starts a request; nothing is printed yet, unless too many are in flight.
    pub(super) async fn start(
        &mut self,
        out: &mut Output,
        described: Described,
        request: impl Future<Output = Result<()>> + 'static,
    ) {
        if self.running.len() + self.ended.len() >= MAX_IN_FLIGHT {
            self.finish(out).await;
        }
        let started = Instant::now();
        self.running.push(Box::pin(async move {
            let result = request.await;
            Ended { described, result, took: started.elapsed() }
        }));
        // Polled once, which hands it to the storage; then the executor gets a turn, which hands
        // over what it batches.
        poll_fn(|context| {
            while let Poll::Ready(Some(ended)) = self.running.poll_next_unpin(context) {
                self.ended.push(ended);
            }
            Poll::Ready(())
        })
        .await;
        let mut yielded = false;
        poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Waits for `future`, reporting requests as they end.
    pub(super) async fn wait<T>(&mut self, out: &mut Output, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            while let Poll::Ready(Some(ended)) = self.running.poll_next_unpin(context) {
                self.ended.push(ended);
            }
            self.report(out);
            future.as_mut().poll(context)
        })
        .await
    }

    /// Waits for `future` as long as a request is in flight that could make it ready. Says whether it did.
    pub(super) async fn wait_unless_idle(
        &mut self,
        out: &mut Output,
        future: impl Future<Output = ()>,
    ) -> bool {
        let mut future = pin!(future);
        poll_fn(|context| {
            while let Poll::Ready(Some(ended)) = self.running.poll_next_unpin(context) {
                self.ended.push(ended);
            }
            self.report(out);
            match future.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending if self.running.is_empty() => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for all of them and reports them.
    pub(super) async fn finish(&mut self, out: &mut Output) {
        self.report(out);
        while let Some(ended) = self.running.next().await {
            self.ended.push(ended);
            self.report(out);
        }
    }

    /// The command that started a request succeeded when it did: how it ended is only told.
    fn report(&mut self, out: &mut Output) {
        for ended in self.ended.drain(..) {
            let reported = ended.described.report(ended.result, ended.took, out);
            if let Err(super::Failure::Line(line)) = reported {
                out.line(line);
            }
        }
    }
}
