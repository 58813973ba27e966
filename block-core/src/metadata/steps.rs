//! The steps of one request, several at once.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use futures::stream::{FuturesUnordered, Stream, StreamExt};

use crate::error::Result;

/// Runs the work that `steps` gives, at most `at_once` of it at the same time.
///
/// After the first error, of work or of `steps`, no further step is asked for; a step that is being
/// worked out is still done, and all that run are waited for, so that none touches the caller's buffers
/// afterwards. The first error is the answer.
pub async fn run<W: Future<Output = Result<()>>>(
    at_once: usize,
    steps: impl Stream<Item = Result<W>>,
) -> Result<()> {
    let mut steps = pin!(steps);
    let mut running = FuturesUnordered::new();
    let (mut result, mut more, mut asked) = (Ok(()), true, false);
    poll_fn(|context| {
        loop {
            while more && (result.is_ok() || asked) && running.len() < at_once.max(1) {
                asked = false;
                match steps.as_mut().poll_next(context) {
                    Poll::Ready(Some(Ok(work))) => running.push(work),
                    Poll::Ready(Some(Err(error))) => result = result.and(Err(error)),
                    Poll::Ready(None) => more = false,
                    Poll::Pending => {
                        asked = true;
                        break;
                    }
                }
            }
            match running.poll_next_unpin(context) {
                Poll::Ready(Some(done)) => result = result.and(done),
                Poll::Ready(None) if asked => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(result),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::executor::block_on;
    use futures::stream;

    use super::*;
    use crate::error::Error;

    #[test]
    fn the_first_error_stops_what_has_not_begun() {
        let done = AtomicUsize::new(0);
        let work = |n: usize| {
            let done = &done;
            async move {
                done.fetch_add(1, Ordering::Relaxed);
                if n == 3 { Err(Error::IO) } else { Ok(()) }
            }
        };
        let result = block_on(run(1, stream::iter((0..10).map(|n| Ok(work(n))))));
        assert_eq!((result, done.load(Ordering::Relaxed)), (Err(Error::IO), 4));
    }

    #[test]
    fn what_runs_is_waited_for_and_what_was_asked_for_is_done() {
        let done = AtomicUsize::new(0);
        let work = |polls: usize, result| {
            let done = &done;
            async move {
                yields(polls).await;
                done.fetch_add(1, Ordering::Relaxed);
                result
            }
        };
        let steps = stream::unfold(0, |n| async move {
            // The third step is worked out while the first one fails.
            yields(if n == 2 { 5 } else { 0 }).await;
            let result = if n == 0 { Err(Error::NO_SPACE) } else { Ok(()) };
            Some((Ok(work(n * 10, result)), n + 1))
        });
        assert_eq!(block_on(run(8, steps)), Err(Error::NO_SPACE));
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }

    async fn yields(mut polls: usize) {
        poll_fn(|context| {
            context.waker().wake_by_ref();
            let ready = polls == 0;
            polls = polls.saturating_sub(1);
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
