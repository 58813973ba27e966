//! The gate that every request passes: who is inside, and since when.
//!
//! A request looks the mapping up and then uses host clusters without a lock. Two things must not
//! happen meanwhile: a cluster that it uses is given to somebody else, and the mapping as a whole is
//! changed (snapshot, shrink). So requests hold a [`Pass`]. Passes are counted by *epoch*, not by
//! cluster: entering and leaving are two atomic additions, whatever the request touches.
//!
//! **Invariants.** Requests are inside in the current epoch or the one before, never in an older one:
//! the epoch advances only when nobody is left of the one before. So what was taken out of the
//! mapping in epoch `e` is used by nobody once the epoch is `e + 2` ([`Gate::is_past`]). While an
//! [`Exclusive`] exists, nobody is inside.
//!
//! Whoever holds a pass never waits for an exclusive turn, so the gate adds no deadlock.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// The closed bit of the state; the epoch stands above it.
const CLOSED: u64 = 1;
/// One epoch.
const EPOCH: u64 = 2;

/// Counts the requests inside, by epoch.
#[derive(Default)]
pub struct Gate {
    /// `epoch * 2 + closed`. With `inside` it forms a store-load pair on both sides, hence the
    /// sequentially consistent orders.
    state: AtomicU64,
    /// Requests inside that came in even and in odd epochs.
    inside: [AtomicUsize; 2],
    /// Whether anybody is in `waiters`, so that leaving is cheap.
    awaited: AtomicBool,
    /// Who waits for the gate to open or for everybody to leave. Innermost lock.
    waiters: Mutex<Vec<Waker>>,
    /// Held by the one exclusive turn.
    turn: futures::lock::Mutex<()>,
}

/// A request's place inside; ends when dropped.
#[must_use]
pub struct Pass<'a> {
    gate: &'a Gate,
    inside: &'a AtomicUsize,
}

/// While it lives, nobody is inside.
#[must_use]
pub struct Exclusive<'a> {
    gate: &'a Gate,
    _turn: futures::lock::MutexGuard<'a, ()>,
}

/// A moment, to be asked about later.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u64);

impl Gate {
    /// Enters, if the gate is open.
    #[inline]
    pub fn try_enter(&self) -> Option<Pass<'_>> {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & CLOSED != 0 {
                return None;
            }
            let inside = self.count_of(state / EPOCH);
            inside.fetch_add(1, Ordering::SeqCst);
            let pass = Pass { gate: self, inside };
            if self.state.load(Ordering::SeqCst) == state {
                return Some(pass);
            }
        }
    }

    /// Enters once the gate is open.
    pub async fn enter(&self) -> Pass<'_> {
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            self.wait_until(|| self.state.load(Ordering::SeqCst) & CLOSED == 0).await;
        }
    }

    /// Closes the gate and waits until everybody is out. Exclusive turns follow one another.
    ///
    /// Dropping the future opens the gate again.
    pub async fn exclusive(&self) -> Exclusive<'_> {
        let turn = self.turn.lock().await;
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
        let exclusive = Exclusive { gate: self, _turn: turn };
        self.wait_until(|| self.inside.iter().all(|n| n.load(Ordering::SeqCst) == 0)).await;
        exclusive
    }

    /// The present moment.
    pub fn now(&self) -> Epoch {
        Epoch(self.state.load(Ordering::SeqCst) / EPOCH)
    }

    /// Whether everybody who was inside at `moment` has left. Makes time pass where it can.
    pub fn is_past(&self, moment: Epoch) -> bool {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let epoch = state / EPOCH;
            if epoch >= moment.0 + 2 {
                return true;
            }
            if self.count_of(epoch + 1).load(Ordering::SeqCst) != 0 {
                return false;
            }
            // Somebody who enters meanwhile sees that the state changed and comes again.
            let next = state + EPOCH;
            let order = Ordering::SeqCst;
            let _ = self.state.compare_exchange(state, next, order, order);
        }
    }

    /// Those inside who came in this epoch, or in one of the same parity.
    fn count_of(&self, epoch: u64) -> &AtomicUsize {
        &self.inside[usize::from(!epoch.is_multiple_of(2))]
    }

    async fn wait_until(&self, done: impl Fn() -> bool) {
        poll_fn(|context| {
            if done() {
                return Poll::Ready(());
            }
            self.waiters.lock().push(context.waker().clone());
            self.awaited.store(true, Ordering::SeqCst);
            // Whoever left before the store did not see it.
            if done() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn wake(&self) {
        if self.awaited.swap(false, Ordering::SeqCst) {
            let waiters = std::mem::take(&mut *self.waiters.lock());
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        let last = self.inside.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.gate.awaited.load(Ordering::SeqCst) {
            self.gate.wake();
        }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.gate.state.fetch_and(!CLOSED, Ordering::SeqCst);
        self.gate.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_moment_is_past_when_everybody_of_it_has_left() {
        let gate = Gate::default();
        let early = gate.try_enter().unwrap();
        let moment = gate.now();
        assert!(!gate.is_past(moment));
        // Later ones do not hold it up, though they keep coming.
        let later = gate.try_enter().unwrap();
        assert!(!gate.is_past(moment));
        drop(early);
        assert!(gate.is_past(moment));
        assert!(!gate.is_past(gate.now()));
        drop(later);
        assert!(gate.is_past(gate.now()));
    }

    #[test]
    fn an_exclusive_turn_waits_for_all_and_holds_all_off() {
        let gate = Gate::default();
        let pass = gate.try_enter().unwrap();
        let mut exclusive = Box::pin(gate.exclusive());
        assert!(exclusive.as_mut().now_or_never().is_none());
        assert!(gate.try_enter().is_none(), "closed while it waits");
        let mut late = Box::pin(gate.enter());
        assert!(late.as_mut().now_or_never().is_none());
        drop(pass);
        let exclusive = block_on(exclusive);
        assert!(late.as_mut().now_or_never().is_none());
        assert!(gate.is_past(gate.now()));
        drop(exclusive);
        drop(block_on(late));
    }

    #[test]
    fn giving_up_an_exclusive_turn_opens_the_gate() {
        let gate = Gate::default();
        let pass = gate.try_enter().unwrap();
        let mut exclusive = Box::pin(gate.exclusive());
        assert!(exclusive.as_mut().now_or_never().is_none());
        drop(exclusive);
        assert!(gate.try_enter().is_some());
        drop(pass);
    }

    #[test]
    fn threads_never_meet_an_exclusive_turn() {
        let gate = Gate::default();
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let pass = block_on(gate.enter());
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..500 {
                    let exclusive = block_on(gate.exclusive());
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                    turns.fetch_add(1, Ordering::SeqCst);
                    drop(exclusive);
                    gate.is_past(gate.now());
                }
            });
        });
        assert_eq!(turns.load(Ordering::SeqCst), 500);
    }
}
