//! Work that runs to its end although nobody waits for it any more.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::io::exec::spawn_detached;
use futures::FutureExt;
use futures::future::BoxFuture;

/// Work that is detached where its future is dropped after it was polled, as requests are: what it took
/// in hand is put back, and none of its writes comes after those of what follows.
pub(crate) struct Lasting<T: Send + 'static> {
    /// `None` once it is done, and while it is polled: what panicked is not polled again.
    work: Option<BoxFuture<'static, T>>,
    begun: bool,
}

impl<T: Send + 'static> Lasting<T> {
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)), begun: false }
    }
}

impl<T: Send + 'static> Future for Lasting<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.begun = true;
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.poll_unpin(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Lasting<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take().filter(|_| self.begun) {
            spawn_detached(Box::pin(work.map(drop)));
        }
    }
}
