//! Checks that conflicting requests were never in a driver together, and that all of them finished.
//!
//! A test declares each request under a label and runs it in a task of that label; a
//! [`disk::tap`](crate::disk::tap) at the driver reports what arrives and under which label. A
//! *serialising* request must have its window to itself from its first request at the driver to its
//! last: an unaligned write, for instance, from the read of its first block to its write.
//!
//! The check is made at the end ([`Overlap::check`]): it needs no opinion on how requests wait.

use std::collections::BTreeMap;
use std::fmt;

use block_core::ByteRange;
use parking_lot::Mutex;

/// What a request at the node claims.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It may run beside any request that is not serialising.
    Shared,
    /// Nothing may overlap this window while it runs.
    Serialising(ByteRange),
}

/// A rule that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// `intruder` was at the driver with `range`, in `owner`'s window, while `owner` was not done.
    Together {
        /// Label of the serialising request.
        owner: u64,
        /// Its window.
        window: ByteRange,
        /// Label of the other request.
        intruder: u64,
        /// What the other request did there.
        range: ByteRange,
    },
    /// A request at the driver did not come back.
    Unfinished {
        /// Label of the request at the node.
        label: u64,
        /// The range at the driver.
        range: ByteRange,
    },
    /// A request at the node neither finished nor was dropped by the test.
    NotCompleted {
        /// Its label.
        label: u64,
    },
    /// A request at the driver that no declared request explains.
    Unknown {
        /// Its label, if it had one.
        label: Option<u64>,
        /// Its range.
        range: ByteRange,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Collects events; shared between a test and its driver.
#[derive(Debug, Default)]
pub struct Overlap {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: u64,
    requests: BTreeMap<u64, Request>,
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Request {
    claim: Claim,
    completed: bool,
}

#[derive(Debug)]
struct Call {
    label: Option<u64>,
    range: ByteRange,
    entered: u64,
    left: Option<u64>,
}

/// Names a call at the driver between [`Overlap::enter`] and [`Overlap::leave`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CallId(usize);

impl Overlap {
    /// Nothing declared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request at the node, about to be sent under `label`.
    pub fn declare(&self, label: u64, claim: Claim) {
        self.state.lock().requests.insert(label, Request { claim, completed: false });
    }

    /// The request under `label` is done, or the test dropped it.
    pub fn complete(&self, label: u64) {
        if let Some(request) = self.state.lock().requests.get_mut(&label) {
            request.completed = true;
        }
    }

    /// A call arrives at the driver.
    pub fn enter(&self, label: Option<u64>, range: ByteRange) -> CallId {
        let mut state = self.state.lock();
        state.now += 1;
        let entered = state.now;
        state.calls.push(Call { label, range, entered, left: None });
        CallId(state.calls.len() - 1)
    }

    /// The call leaves it.
    pub fn leave(&self, call: CallId) {
        let mut state = self.state.lock();
        state.now += 1;
        let now = state.now;
        state.calls[call.0].left = Some(now);
    }

    /// Calls that have arrived so far.
    pub fn calls(&self) -> usize {
        self.state.lock().calls.len()
    }

    /// How many pairs of calls of different requests overlapped in time and range: what a test of
    /// interleaving asserts to be more than zero.
    pub fn met(&self) -> usize {
        let state = self.state.lock();
        let pairs = state.calls.iter().enumerate().flat_map(|(i, a)| {
            state.calls[i + 1..].iter().filter(move |b| {
                a.label != b.label
                    && a.range.overlaps(b.range)
                    && a.left.is_none_or(|left| b.entered < left)
            })
        });
        pairs.count()
    }

    /// Checks everything, once all is over.
    ///
    /// # Errors
    /// The first rule that was broken.
    pub fn check(&self) -> Result<(), Violation> {
        let state = self.state.lock();
        for call in &state.calls {
            let known = call.label.is_some_and(|label| state.requests.contains_key(&label));
            if !known {
                return Err(Violation::Unknown { label: call.label, range: call.range });
            }
            if call.left.is_none() {
                let label = call.label.unwrap_or_default();
                return Err(Violation::Unfinished { label, range: call.range });
            }
        }
        for (label, request) in &state.requests {
            if !request.completed {
                return Err(Violation::NotCompleted { label: *label });
            }
            if let Claim::Serialising(window) = request.claim {
                state.check_window(*label, window)?;
            }
        }
        Ok(())
    }
}

impl State {
    fn check_window(&self, owner: u64, window: ByteRange) -> Result<(), Violation> {
        let own = || self.calls.iter().filter(|call| call.label == Some(owner));
        let first = own().map(|call| call.entered).min();
        let last = own().filter_map(|call| call.left).max();
        let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
        let others = self.calls.iter().filter(|call| call.label != Some(owner));
        for call in others.filter(|call| call.range.overlaps(window)) {
            if call.entered < last && call.left.is_none_or(|left| left > first) {
                return Err(Violation::Together {
                    owner,
                    window,
                    intruder: call.label.unwrap_or_default(),
                    range: call.range,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    /// Request 1 owns [0, 512) and calls twice; request 2 calls for `other` in between.
    fn between(other: ByteRange) -> Result<(), Violation> {
        let overlap = Overlap::new();
        overlap.declare(1, Claim::Serialising(range(0, 512)));
        overlap.declare(2, Claim::Shared);
        let read = overlap.enter(Some(1), range(0, 512));
        overlap.leave(read);
        let intruder = overlap.enter(Some(2), other);
        overlap.leave(intruder);
        let write = overlap.enter(Some(1), range(0, 512));
        overlap.leave(write);
        overlap.complete(1);
        overlap.complete(2);
        overlap.check()
    }

    #[test]
    fn an_intruder_between_read_and_write_is_found() {
        assert_eq!(between(range(512, 1024)), Ok(()));
        let violation = between(range(511, 1024)).unwrap_err();
        assert!(matches!(violation, Violation::Together { owner: 1, intruder: 2, .. }));
    }

    #[test]
    fn what_does_not_finish_is_found() {
        let overlap = Overlap::new();
        overlap.declare(1, Claim::Shared);
        assert_eq!(overlap.check(), Err(Violation::NotCompleted { label: 1 }));
        overlap.complete(1);
        assert_eq!(overlap.check(), Ok(()));
        let call = overlap.enter(Some(1), range(0, 1));
        assert!(matches!(overlap.check(), Err(Violation::Unfinished { label: 1, .. })));
        overlap.leave(call);
        assert_eq!(overlap.check(), Ok(()));
        overlap.enter(None, range(0, 1));
        assert!(matches!(overlap.check(), Err(Violation::Unknown { label: None, .. })));
    }

    #[test]
    fn calls_that_met_are_counted() {
        let overlap = Overlap::new();
        let a = overlap.enter(Some(1), range(0, 10));
        let b = overlap.enter(Some(2), range(5, 6));
        overlap.leave(a);
        overlap.leave(b);
        let c = overlap.enter(Some(3), range(0, 10));
        overlap.leave(c);
        assert_eq!((overlap.met(), overlap.calls()), (1, 3));
    }
}
