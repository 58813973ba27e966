//! When it is worth asking the target what is mapped.
//!
//! A long read always asks where nothing is known. A short one asks while there is *credit*: each
//! question costs some, and an answer that tells much gives it back. So a medium of small pieces, or
//! a target that tells little at a time, does not make every short read two commands.
//!
//! Whoever is about to ask what somebody else's question is likely to tell waits for that one. What
//! fails again and again, or is refused, is not asked again until the target may have become another.

use block_core::ByteRange;
use futures::channel::oneshot;
use parking_lot::Mutex;

use crate::allocmap::Trust;
use crate::unit::UnitError;

/// A read of so many bytes always asks.
const LONG: u64 = 32 << 10;
/// What there is to begin with, and at most.
const CREDIT_MAX: u32 = 16;
/// An answer about so many bytes is worth the question.
const WORTH: u64 = 1 << 20;
/// After so many failures in a row nobody asks.
const FAILURES_MAX: u32 = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Asking {
    /// Guards everything; no wait under it.
    state: Mutex<State>,
}

struct State {
    credit: u32,
    /// Failures in a row.
    failures: u32,
    /// How many bytes the last answer told of.
    span: u64,
    /// Questions that were sent in all.
    sent: u64,
    running: Vec<Asked>,
}

impl Default for State {
    fn default() -> Self {
        Self { credit: CREDIT_MAX, failures: 0, span: u64::MAX, sent: 0, running: Vec::new() }
    }
}

struct Asked {
    number: u64,
    start: u64,
    /// Dropped when there is an answer, which wakes who waits.
    waiters: Vec<oneshot::Sender<()>>,
}

/// A question that is under way; who waits for it goes on when it is dropped.
pub(super) struct Turn<'a> {
    asking: &'a Asking,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.asking.state.lock();
        let at = state.running.iter().position(|asked| asked.number == self.number);
        let asked = at.map(|at| state.running.swap_remove(at));
        // Wakers run outside of the lock.
        drop(state);
        drop(asked);
    }
}

impl Asking {
    /// Whether a read of `len` bytes may ask. A short one needs credit, and that its answer is of use
    /// to others: that what is known is trusted.
    pub(super) fn may_ask(&self, len: u64, trust: Trust) -> bool {
        let mut state = self.state.lock();
        if state.failures >= FAILURES_MAX {
            return false;
        }
        if len >= LONG {
            return true;
        }
        if trust == Trust::Never {
            return false;
        }
        let paid = state.credit.checked_sub(1);
        state.credit = paid.unwrap_or(0);
        paid.is_some()
    }

    /// Whether nobody asks any more.
    pub(super) fn is_over(&self) -> bool {
        self.state.lock().failures >= FAILURES_MAX
    }

    /// Waits for a question that is likely to tell of `range`. `false`: there is none.
    pub(super) async fn wait_for_others(&self, range: ByteRange) -> bool {
        let answered = {
            let mut state = self.state.lock();
            let span = state.span;
            let tells = |asked: &&mut Asked| {
                let from_there = range.end().checked_sub(asked.start);
                asked.start <= range.offset() && from_there.is_some_and(|len| len <= span)
            };
            state.running.iter_mut().find(tells).map(|asked| {
                let (waiter, answered) = oneshot::channel();
                asked.waiters.push(waiter);
                answered
            })
        };
        match answered {
            Some(answered) => {
                // It ends by the sender's drop.
                let _ = answered.await;
                true
            }
            None => false,
        }
    }

    /// A question from byte `start` on is about to be sent.
    pub(super) fn begin(&self, start: u64) -> Turn<'_> {
        let mut state = self.state.lock();
        state.sent += 1;
        let number = state.sent;
        state.running.push(Asked { number, start, waiters: Vec::new() });
        Turn { asking: self, number }
    }

    /// An answer came, about `len` bytes.
    pub(super) fn succeeded(&self, len: u64, tells_zeroes: bool) {
        let mut state = self.state.lock();
        state.failures = 0;
        state.span = len;
        if len >= WORTH || tells_zeroes {
            state.credit = (state.credit + 2).min(CREDIT_MAX);
        }
    }

    /// No answer, or a wrong one.
    pub(super) fn failed(&self, error: &UnitError) {
        let mut state = self.state.lock();
        state.failures = if error.is_refusal() { FAILURES_MAX } else { state.failures + 1 };
    }

    /// The target may be another one now.
    pub(super) fn start_anew(&self) {
        let mut state = self.state.lock();
        let State { credit, failures, span, .. } = State::default();
        (state.credit, state.failures, state.span) = (credit, failures, span);
    }
}
