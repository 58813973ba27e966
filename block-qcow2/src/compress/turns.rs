//! Turns: what was begun first goes first, though it may get ready later.
//!
//! Compressed writes get their places in the file in the order in which they were begun, so that the
//! same writes make the same image however long each of them takes to compress. Plain ones are planned in
//! that order, so that what is written in order stands in order.
//!
//! **Invariants.** One turn is served at a time, in the order of [`Turns::take`]. A turn that is
//! dropped, served or not, holds nobody up.

use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Hands out turns.
#[derive(Default)]
pub(crate) struct Turns {
    /// Guarded for a few instructions; wakers run outside.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Number of the turn that is taken next.
    next: u64,
    /// Number of the turn that is served.
    served: u64,
    /// Turns that were given up before they were served.
    given_up: BTreeSet<u64>,
    waiters: HashMap<u64, Waker>,
}

/// A place in the order; ends when dropped.
#[must_use]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// The next turn.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        Turn { turns: self, number }
    }

    /// Whether all turns that were taken have ended.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.served == state.next
    }
}

impl Turn<'_> {
    /// Returns once all earlier turns have ended.
    pub(crate) async fn served(&self) {
        poll_fn(|context| {
            let mut state = self.turns.state.lock();
            if state.served == self.number {
                return Poll::Ready(());
            }
            state.waiters.insert(self.number, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.waiters.remove(&self.number);
        state.given_up.insert(self.number);
        loop {
            let served = state.served;
            if !state.given_up.remove(&served) {
                break;
            }
            state.served += 1;
        }
        let served = state.served;
        let waiter = state.waiters.remove(&served);
        drop(state);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_are_served_in_the_order_in_which_they_were_taken() {
        let turns = Turns::default();
        let (first, second, third) = (turns.take(), turns.take(), turns.take());
        assert!(first.served().now_or_never().is_some());
        let mut later = Box::pin(third.served());
        assert!(later.as_mut().now_or_never().is_none());
        assert!(second.served().now_or_never().is_none());
        // Given up before it was served: nobody waits for it.
        drop(second);
        assert!(later.as_mut().now_or_never().is_none());
        drop(first);
        assert!(later.as_mut().now_or_never().is_some());
        drop(later);
        assert!(!turns.is_idle());
        drop(third);
        assert!(turns.is_idle());
        let state = turns.state.lock();
        assert_eq!((state.served, state.next), (3, 3));
        assert!(state.given_up.is_empty() && state.waiters.is_empty());
    }

    proptest! {
        /// Whatever the order in which turns end, exactly the earliest that is left is served.
        #[test]
        fn the_earliest_that_is_left_is_served(ends in prop::collection::vec(0usize..8, 0..40)) {
            let turns = Turns::default();
            let mut left: Vec<Turn<'_>> = (0..8).map(|_| turns.take()).collect();
            for end in ends {
                for (index, turn) in left.iter().enumerate() {
                    prop_assert_eq!(turn.served().now_or_never().is_some(), index == 0);
                }
                if left.is_empty() {
                    break;
                }
                let index = end % left.len();
                drop(left.remove(index));
                left.push(turns.take());
            }
        }
    }
}
