//! Tracked requests: which requests are in flight on a node, and who waits for whom.
//!
//! A request is entered with its range, whether it is serialising, and a number; none of these change
//! afterwards. Two requests conflict if their ranges overlap and at least one is serialising.
//!
//! A request that the driver answers within one call ([`BlockDriver::read_now`],
//! [`BlockDriver::write_now`]) is only counted: it begins while nothing serialises or drains, and whoever then begins to do so waits for the count to
//! reach zero, whatever the ranges. Such a read never waits, so this adds no cycle.
//!
//! A request *runs* once it waits for nothing in the list. One that could run passes an older one that
//! still waits for another, though the two conflict: what is held up for long does not hold up the rest.
//! A request is passed [`PASSED_MAX`] times at most, so its turn comes.
//!
//! **Invariants.** Two requests that run do not conflict. A request waits only for conflicting requests
//! that run, which wait for none in the list, and for ones with smaller numbers: the waits form no cycle.
//! It leaves the list before its waiters wake. While the node is drained, no request
//! enters the list. `exclusive` is the number of serialising requests in the list and of drains.
//!
//! [`BlockDriver::read_now`]: crate::driver::BlockDriver::read_now
//! [`BlockDriver::write_now`]: crate::driver::BlockDriver::write_now

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::range::ByteRange;

/// What a request is to other requests.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// Bytes it may touch, padding included. Empty: it conflicts with nothing.
    pub(crate) range: ByteRange,
    /// Nothing may overlap it.
    pub(crate) serialising: bool,
}

impl Claim {
    pub(crate) fn shared(range: ByteRange) -> Self {
        Self { range, serialising: false }
    }

    pub(crate) fn serialising(range: ByteRange) -> Self {
        Self { range, serialising: true }
    }

    fn conflicts(self, other: Self) -> bool {
        (self.serialising || other.serialising) && self.range.overlaps(other.range)
    }
}

/// The requests in flight on one node.
#[derive(Default)]
pub(crate) struct Tracker {
    /// Guards the list. Held for a few instructions (longer only while something serialises), never
    /// while a waker runs. Innermost in the lock order.
    state: Mutex<State>,
    /// Requests that are inside the driver's `read_now` or `write_now`.
    inline: AtomicUsize,
    /// Who needs `inline` to be zero. Changed under the lock; with `inline` it forms a store-load
    /// pair on both sides, hence the sequentially consistent orders.
    exclusive: AtomicUsize,
}

#[derive(Default)]
struct State {
    next_number: u64,
    slots: Vec<Slot>,
    /// Indices of the slots that hold no request.
    free: Vec<usize>,
    in_flight: usize,
    serialising: usize,
    drains: usize,
    /// Waiting for the end of a drain.
    queued: Vec<Waker>,
    /// Waiting for `in_flight == 0`.
    drainers: Vec<Waker>,
    /// Waiting for `inline == 0`.
    inline_waiters: Vec<Waker>,
}

/// One request, or room for one.
struct Slot {
    /// Number of the request; [`FREE`] if there is none.
    number: u64,
    claim: Claim,
    /// Waits for nothing in the list any more.
    runs: bool,
    /// How many younger conflicting requests ran before it.
    passed: u32,
    waiters: Vec<Waker>,
}

/// Most requests that run before an older one that they conflict with.
const PASSED_MAX: u32 = 16;

/// Number of a slot without a request: younger than every request.
const FREE: u64 = u64::MAX;

/// A request's place in the list, to be given to [`Tracker::end`].
#[must_use]
pub(crate) struct Place {
    slot: usize,
    number: u64,
}

/// A [`Place`] that ends when dropped.
pub(crate) struct Ticket {
    tracker: Arc<Tracker>,
    place: Place,
}

/// A request inside the driver's `read_now` or `write_now`; ends when dropped.
pub(crate) struct Inline<'a> {
    tracker: &'a Tracker,
}

impl Tracker {
    /// Counts a request that will not wait; `None` if something serialises or drains.
    pub(crate) fn try_inline(&self) -> Option<Inline<'_>> {
        self.inline.fetch_add(1, Ordering::SeqCst);
        let inline = Inline { tracker: self };
        if self.exclusive.load(Ordering::SeqCst) == 0 { Some(inline) } else { None }
    }

    /// Enters a request that conflicts with nothing in the list, and runs; `None` if it does.
    pub(crate) fn try_enter(&self, claim: Claim) -> Option<Place> {
        let mut state = self.state.lock();
        if state.drains > 0 || state.is_contended(claim) {
            return None;
        }
        let place = self.enter(&mut state, claim);
        state.slots[place.slot].runs = true;
        Some(place)
    }

    /// Puts a request on the list.
    fn enter(&self, state: &mut State, claim: Claim) -> Place {
        if claim.serialising {
            self.exclusive.fetch_add(1, Ordering::SeqCst);
        }
        state.enter(claim)
    }

    /// Takes a request off the list and wakes who waits for it.
    pub(crate) fn end(&self, place: &Place) {
        let mut state = self.state.lock();
        let slot = &mut state.slots[place.slot];
        slot.number = FREE;
        let serialising = slot.claim.serialising;
        let waiters = std::mem::take(&mut slot.waiters);
        state.free.push(place.slot);
        state.in_flight -= 1;
        if serialising {
            state.serialising -= 1;
            self.exclusive.fetch_sub(1, Ordering::SeqCst);
        }
        let drainers =
            if state.in_flight == 0 { std::mem::take(&mut state.drainers) } else { Vec::new() };
        drop(state);
        if !(waiters.is_empty() && drainers.is_empty()) {
            waiters.into_iter().chain(drainers).for_each(Waker::wake);
        }
    }

    /// Enters a request, and waits for the end of a drain and until it may run.
    pub(crate) async fn begin(self: &Arc<Self>, claim: Claim) -> Ticket {
        let place = std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.drains > 0 {
                remember(&mut state.queued, cx);
                return Poll::Pending;
            }
            Poll::Ready(self.enter(&mut state, claim))
        })
        .await;
        let ticket = Ticket { tracker: Arc::clone(self), place };
        ticket.wait(claim).await;
        if claim.serialising {
            self.no_inline().await;
        }
        ticket
    }

    /// [`Tracker::begin`], or `Busy` where it would wait for another request.
    pub(crate) fn begin_or_busy(self: &Arc<Self>, claim: Claim) -> Result<Ticket> {
        let place = self.try_enter(claim).ok_or(Error::Busy)?;
        let ticket = Ticket { tracker: Arc::clone(self), place };
        if claim.serialising && self.inline.load(Ordering::SeqCst) > 0 {
            return Err(Error::Busy);
        }
        Ok(ticket)
    }

    /// Waits until nobody is inside `read_now` or `write_now`. The caller is counted in `exclusive`.
    async fn no_inline(&self) {
        std::future::poll_fn(|cx| {
            if self.inline.load(Ordering::SeqCst) == 0 {
                return Poll::Ready(());
            }
            remember(&mut self.state.lock().inline_waiters, cx);
            // The last of them may have ended before it could see the waker.
            if self.inline.load(Ordering::SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Keeps new requests out until [`Tracker::drain_end`]. Counts.
    pub(crate) fn drain_begin(&self) {
        self.state.lock().drains += 1;
        self.exclusive.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.in_flight == 0 {
                return Poll::Ready(());
            }
            remember(&mut state.drainers, cx);
            Poll::Pending
        })
        .await;
        self.no_inline().await;
    }

    /// Lets requests in again, once every drain has ended.
    pub(crate) fn drain_end(&self) {
        let mut state = self.state.lock();
        state.drains -= 1;
        self.exclusive.fetch_sub(1, Ordering::SeqCst);
        let wake = if state.drains == 0 { std::mem::take(&mut state.queued) } else { Vec::new() };
        drop(state);
        wake.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn enter(&mut self, claim: Claim) -> Place {
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight += 1;
        self.serialising += usize::from(claim.serialising);
        let slot = match self.free.pop() {
            Some(slot) => {
                let room = &mut self.slots[slot];
                (room.number, room.claim) = (number, claim);
                (room.runs, room.passed) = (false, 0);
                slot
            }
            None => {
                let (runs, passed, waiters) = (false, 0, Vec::new());
                self.slots.push(Slot { number, claim, runs, passed, waiters });
                self.slots.len() - 1
            }
        };
        Place { slot, number }
    }

    /// Whether a request in the list conflicts with `claim`.
    fn is_contended(&self, claim: Claim) -> bool {
        (self.serialising > 0 || claim.serialising)
            && self.slots.iter().any(|s| s.number != FREE && s.claim.conflicts(claim))
    }

    /// Lets the request at `place` run, past those that it may pass; or the index of the slot that it
    /// waits for.
    fn run(&mut self, place: &Place, claim: Claim) -> Result<(), usize> {
        if self.serialising > 0 || claim.serialising {
            if let Some(running) = self.running(claim, place.number) {
                return Err(running);
            }
            let older: Vec<usize> = self.conflicting(claim, place.number).collect();
            let unpassable = |slot: &usize| {
                let waiting = &self.slots[*slot];
                let held = self.running(waiting.claim, waiting.number).is_some();
                waiting.passed >= PASSED_MAX || !held
            };
            if let Some(slot) = older.iter().copied().find(unpassable) {
                return Err(slot);
            }
            older.iter().for_each(|slot| self.slots[*slot].passed += 1);
        }
        self.slots[place.slot].runs = true;
        Ok(())
    }

    /// A request other than `number` that runs and conflicts with `claim`.
    fn running(&self, claim: Claim, number: u64) -> Option<usize> {
        let blocks =
            |s: &Slot| s.number != FREE && s.number != number && s.runs && s.claim.conflicts(claim);
        self.slots.iter().position(blocks)
    }

    /// The requests before `number` that conflict with `claim`.
    fn conflicting(&self, claim: Claim, number: u64) -> impl Iterator<Item = usize> + '_ {
        let slots = self.slots.iter().enumerate();
        let older = slots.filter(move |(_, s)| s.number < number && s.claim.conflicts(claim));
        older.map(|(slot, _)| slot)
    }
}

impl Ticket {
    async fn wait(&self, claim: Claim) {
        std::future::poll_fn(|cx| {
            let mut state = self.tracker.state.lock();
            match state.run(&self.place, claim) {
                Ok(()) => Poll::Ready(()),
                Err(blocker) => {
                    remember(&mut state.slots[blocker].waiters, cx);
                    Poll::Pending
                }
            }
        })
        .await;
    }
}

/// Adds the task's waker, unless it is there from an earlier poll.
fn remember(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
}

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        let tracker = self.tracker;
        if tracker.inline.fetch_sub(1, Ordering::SeqCst) == 1
            && tracker.exclusive.load(Ordering::SeqCst) > 0
        {
            let waiters = std::mem::take(&mut tracker.state.lock().inline_waiters);
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tracker.end(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    fn range(offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len).unwrap()
    }

    #[test]
    fn a_younger_request_passes_an_older_one_that_is_held_up() {
        let tracker = Arc::new(Tracker::default());
        let read = tracker.begin_or_busy(Claim::shared(range(0, 10))).unwrap();
        let mut rmw = Box::pin(tracker.begin(Claim::serialising(range(5, 10))));
        assert!(rmw.as_mut().now_or_never().is_none());
        // Overlaps only the waiting one, which nothing can run before the read ends.
        assert!(tracker.begin_or_busy(Claim::shared(range(12, 1))).is_err());
        let passing = tracker.begin(Claim::shared(range(12, 1))).now_or_never().unwrap();
        drop(read);
        // The older one has to wait for it: the two conflict.
        assert!(rmw.as_mut().now_or_never().is_none());
        // Only what runs is waited for, and that does not hold up the older one by more than its time.
        drop(passing);
        drop(block_on(rmw));
        assert_eq!(tracker.state.lock().in_flight, 0);
    }

    #[test]
    fn a_younger_request_does_not_pass_one_that_could_run() {
        let tracker = Arc::new(Tracker::default());
        let read = tracker.begin_or_busy(Claim::shared(range(0, 10))).unwrap();
        let mut rmw = Box::pin(tracker.begin(Claim::serialising(range(5, 10))));
        assert!(rmw.as_mut().now_or_never().is_none());
        drop(read);
        // It was woken and has not been polled yet.
        let mut late = Box::pin(tracker.begin(Claim::shared(range(12, 1))));
        assert!(late.as_mut().now_or_never().is_none());
        let rmw = block_on(rmw);
        assert!(late.as_mut().now_or_never().is_none());
        drop(rmw);
        drop(block_on(late));
    }

    #[test]
    fn nobody_is_passed_for_ever() {
        let tracker = Arc::new(Tracker::default());
        let read = tracker.begin_or_busy(Claim::shared(range(0, 10))).unwrap();
        let mut rmw = Box::pin(tracker.begin(Claim::serialising(range(5, 10))));
        assert!(rmw.as_mut().now_or_never().is_none());
        for _ in 0..PASSED_MAX {
            drop(tracker.begin(Claim::shared(range(12, 1))).now_or_never().unwrap());
        }
        let mut late = Box::pin(tracker.begin(Claim::shared(range(12, 1))));
        assert!(late.as_mut().now_or_never().is_none());
        drop(read);
        assert!(late.as_mut().now_or_never().is_none());
        drop(block_on(rmw));
        drop(block_on(late));
        assert_eq!(tracker.state.lock().in_flight, 0);
    }

    #[test]
    fn plain_overlapping_requests_do_not_wait() {
        let tracker = Arc::new(Tracker::default());
        let first = tracker.begin_or_busy(Claim::shared(range(0, 10))).unwrap();
        assert!(tracker.begin_or_busy(Claim::shared(range(0, 10))).is_ok());
        assert_eq!(tracker.begin_or_busy(Claim::serialising(range(9, 1))).err(), Some(Error::Busy));
        drop(first);
        assert!(tracker.begin_or_busy(Claim::serialising(range(9, 1))).is_ok());
    }

    #[test]
    fn a_waiter_that_is_dropped_leaves_the_list() {
        let tracker = Arc::new(Tracker::default());
        let first = tracker.begin_or_busy(Claim::serialising(range(0, 10))).unwrap();
        let mut waiting = Box::pin(tracker.begin(Claim::serialising(range(0, 10))));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        drop(first);
        assert!(tracker.begin_or_busy(Claim::shared(range(0, 1))).is_ok());
    }

    #[test]
    fn an_inline_read_and_a_serialising_request_exclude_each_other() {
        let tracker = Arc::new(Tracker::default());
        let inline = tracker.try_inline().unwrap();
        let claim = Claim::serialising(range(0, 10));
        assert_eq!(tracker.begin_or_busy(claim).err(), Some(Error::Busy));
        let mut rmw = Box::pin(tracker.begin(claim));
        assert!(rmw.as_mut().now_or_never().is_none());
        assert!(tracker.try_inline().is_none());
        drop(inline);
        let rmw = block_on(rmw);
        assert!(tracker.try_inline().is_none());
        drop(rmw);
        let inline = tracker.try_inline().unwrap();
        tracker.drain_begin();
        let mut idle = Box::pin(tracker.idle());
        assert!(idle.as_mut().now_or_never().is_none());
        drop(inline);
        block_on(idle);
        assert!(tracker.try_inline().is_none());
        tracker.drain_end();
        assert!(tracker.try_inline().is_some());
    }

    #[test]
    fn inline_reads_of_other_threads_keep_out_of_serialising_requests() {
        let tracker = Arc::new(Tracker::default());
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(_inline) = tracker.try_inline() {
                            assert_eq!(inside.load(Ordering::SeqCst), 0);
                        }
                    }
                });
            }
            for _ in 0..5_000 {
                let _ticket = block_on(tracker.begin(Claim::serialising(range(0, 1))));
                inside.store(1, Ordering::SeqCst);
                inside.store(0, Ordering::SeqCst);
            }
        });
    }

    #[test]
    fn a_drain_waits_for_requests_and_holds_new_ones() {
        let tracker = Arc::new(Tracker::default());
        let first = tracker.begin_or_busy(Claim::shared(range(0, 1))).unwrap();
        tracker.drain_begin();
        let mut idle = Box::pin(tracker.idle());
        assert!(idle.as_mut().now_or_never().is_none());
        let mut next = Box::pin(tracker.begin(Claim::shared(range(0, 1))));
        assert!(next.as_mut().now_or_never().is_none());
        drop(first);
        block_on(idle);
        assert!(next.as_mut().now_or_never().is_none());
        tracker.drain_end();
        drop(block_on(next));
    }
}
