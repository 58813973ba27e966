//! Sleeping until something is to be done, and waking who sleeps.
//!
//! Invariant: an [`Parker::unpark`] that happens after the last return of [`Parker::park`] makes the
//! next one return at once; none is lost, several may count as one.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::{Condvar, Mutex};

/// Where one thread sleeps.
#[derive(Default)]
pub(super) struct Parker {
    state: AtomicU8,
    /// Guards nothing but the sleep itself: an unpark takes it so as not to signal too early.
    lock: Mutex<()>,
    signal: Condvar,
}

const EMPTY: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

impl Parker {
    /// Sleeps until [`Parker::unpark`]. Called by one thread only.
    pub(super) fn park(&self) {
        let mut guard = self.lock.lock();
        let parked =
            self.state.compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire);
        if parked.is_ok() {
            while self.state.load(Ordering::Acquire) == PARKED {
                self.signal.wait(&mut guard);
            }
        }
        self.state.store(EMPTY, Ordering::Release);
    }

    /// Wakes the thread, or keeps it from sleeping the next time.
    pub(super) fn unpark(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == PARKED {
            drop(self.lock.lock());
            self.signal.notify_one();
        }
    }
}
