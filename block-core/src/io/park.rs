//! Sleeping until something is to be done, and waking who sleeps.
//!
//! A thread sleeps in its io_uring once it has one ([`super::uring::Ring::sleep`]), else in
//! `thread::park`. The former is woken through an eventfd that the ring polls.
//!
//! Invariants: after an [`Parker::unpark`] the sleep that lasts, or else the next one, ends; none is
//! lost, several may count as one. `eventfd` is set before the first sleep in a ring and never
//! cleared, and once it is set the thread sleeps in the ring only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Thread;

use rustix::event::EventfdFlags;

/// Where one thread sleeps.
#[derive(Default)]
pub(super) struct Parker {
    state: AtomicU8,
    thread: OnceLock<Thread>,
    eventfd: OnceLock<OwnedFd>,
}

const EMPTY: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

impl Parker {
    /// Says that the calling thread is about to sleep; `false` if it must not, since it has been
    /// notified.
    pub(super) fn begin(&self) -> bool {
        let parked =
            self.state.compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire);
        if parked.is_err() {
            self.end();
        }
        parked.is_ok()
    }

    /// Says that the thread no longer sleeps: what was to be noticed is noticed after this.
    pub(super) fn end(&self) {
        self.state.swap(EMPTY, Ordering::AcqRel);
    }

    /// Sleeps outside of any ring. Called by one thread only.
    pub(super) fn park(&self) {
        self.thread.get_or_init(std::thread::current);
        if self.begin() {
            while self.state.load(Ordering::Acquire) == PARKED {
                std::thread::park();
            }
            self.end();
        }
    }

    /// Wakes the thread, or keeps it from sleeping the next time.
    pub(super) fn unpark(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) != PARKED {
            return;
        }
        if let Some(eventfd) = self.eventfd.get() {
            // It fails only if the counter is about to overflow, and then the sleep ends anyway.
            let woken = rustix::io::write(eventfd, &ONE);
            debug_assert!(woken.is_ok() || woken == Err(rustix::io::Errno::AGAIN));
        } else if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The descriptor that becomes readable when a thread that sleeps in a ring is to wake; `None`
    /// where the system has none to give.
    pub(super) fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        if self.eventfd.get().is_none() {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            let fd = rustix::event::eventfd(0, flags).ok()?;
            self.eventfd.get_or_init(|| fd);
        }
        self.eventfd.get().map(AsFd::as_fd)
    }

    /// Makes the descriptor unreadable again.
    #[cfg(feature = "io-uring")]
    pub(super) fn clear_eventfd(&self) {
        if let Some(eventfd) = self.eventfd.get() {
            let cleared = rustix::io::read(eventfd, &mut [0u8; 8]);
            debug_assert!(cleared.is_ok() || cleared == Err(rustix::io::Errno::AGAIN));
        }
    }
}

/// The number one as an eventfd takes it.
const ONE: [u8; 8] = if cfg!(target_endian = "little") {
    [1, 0, 0, 0, 0, 0, 0, 0]
} else {
    [0, 0, 0, 0, 0, 0, 0, 1]
};
