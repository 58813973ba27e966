//! A fixed number of places for futures of one type, polled only when they were woken.
//!
//! What a benchmark needs to keep a queue full: nothing is allocated for a request, and a completion
//! costs the poll of that request alone.
//!
//! Invariant: a future is polled once after it was put in and then only after its waker was called;
//! `len` counts the places that hold a future.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// The places.
pub(super) struct Slots<F> {
    futures: Vec<Option<F>>,
    wakers: Vec<Waker>,
    shared: Arc<Shared>,
    /// Places that hold nothing.
    free: Vec<usize>,
}

/// Which places were woken, one bit each, and who polls them.
struct Shared {
    woken: Vec<AtomicU64>,
    parent: AtomicWaker,
}

struct SlotWaker {
    index: usize,
    shared: Arc<Shared>,
}

impl Shared {
    fn mark(&self, index: usize) {
        if let Some(word) = self.woken.get(index / 64) {
            word.fetch_or(1 << (index % 64), Ordering::AcqRel);
        }
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.mark(self.index);
        self.shared.parent.wake();
    }
}

impl<F: Future + Unpin> Slots<F> {
    /// `count` empty places.
    pub(super) fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            woken: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            parent: AtomicWaker::new(),
        });
        let waker = |index| Waker::from(Arc::new(SlotWaker { index, shared: Arc::clone(&shared) }));
        Self {
            futures: (0..count).map(|_| None).collect(),
            wakers: (0..count).map(waker).collect(),
            free: (0..count).rev().collect(),
            shared,
        }
    }

    /// How many hold a future.
    pub(super) fn len(&self) -> usize {
        self.futures.len() - self.free.len()
    }

    /// Starts the future that `make` makes for a free place, if there is one, and polls it once. The
    /// place becomes free again at once if the future is ready.
    pub(super) fn start(&mut self, make: impl FnOnce(usize) -> F) -> Option<Poll<F::Output>> {
        let index = self.free.pop()?;
        let mut future = make(index);
        let polled = self.poll_one(index, &mut future);
        match polled {
            Poll::Ready(_) => self.free.push(index),
            Poll::Pending => self.put(index, future),
        }
        Some(polled)
    }

    /// The output of a future that is ready.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.shared.parent.register(cx.waker());
        for word_index in 0..self.shared.woken.len() {
            while let Some(index) = self.take_woken(word_index) {
                let Some(mut future) = self.futures.get_mut(index).and_then(Option::take) else {
                    continue;
                };
                match self.poll_one(index, &mut future) {
                    Poll::Ready(output) => {
                        self.free.push(index);
                        return Poll::Ready(output);
                    }
                    Poll::Pending => self.put(index, future),
                }
            }
        }
        Poll::Pending
    }

    fn put(&mut self, index: usize, future: F) {
        if let Some(place) = self.futures.get_mut(index) {
            *place = Some(future);
        }
    }

    fn poll_one(&self, index: usize, future: &mut F) -> Poll<F::Output> {
        let waker = self.wakers.get(index).unwrap_or(Waker::noop());
        Pin::new(future).poll(&mut Context::from_waker(waker))
    }

    /// A woken place of the 64 of this word.
    fn take_woken(&self, word_index: usize) -> Option<usize> {
        let word = self.shared.woken.get(word_index)?;
        let bits = word.load(Ordering::Acquire);
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros();
        word.fetch_and(!(1 << bit), Ordering::AcqRel);
        usize::try_from(bit).ok().map(|bit| word_index * 64 + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot;
    use futures::executor::block_on;
    use std::future::poll_fn;

    #[test]
    fn every_future_is_answered_once_whatever_the_order() {
        for count in [1, 3, 64, 65, 130] {
            let mut slots = Slots::new(count);
            let mut senders = Vec::new();
            for value in 0..count {
                let started = slots.start(|_| {
                    let (sender, receiver) = oneshot::channel();
                    senders.push((value, sender));
                    receiver
                });
                assert!(matches!(started, Some(Poll::Pending)));
            }
            assert!(slots.start(|_| oneshot::channel().1).is_none());
            assert_eq!(slots.len(), count);
            let answer = std::thread::spawn(move || {
                // An order that has nothing to do with that of the places.
                senders.sort_by_key(|(value, _)| value * 37 % 101);
                for (value, sender) in senders {
                    sender.send(value).unwrap();
                }
            });
            let mut seen: Vec<_> =
                (0..count).map(|_| block_on(poll_fn(|cx| slots.poll_next(cx))).unwrap()).collect();
            answer.join().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
            assert_eq!(slots.len(), 0);
        }
    }

    #[test]
    fn what_is_ready_at_once_takes_no_place() {
        let mut slots = Slots::new(1);
        for value in 0..3 {
            assert_eq!(slots.start(|_| futures::future::ready(value)), Some(Poll::Ready(value)));
        }
        assert_eq!(slots.len(), 0);
    }
}
