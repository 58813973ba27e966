//! Waiting in a ring for something that may never happen.
//!
//! Invariant: as of an operation's, the submission entry of a [`Wait`] points only into memory that the
//! `Wait` owns.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::{Before, Ring, Stage, Work};
use crate::range::to_u64;

/// What is waited for.
pub(in crate::io) enum Wait {
    /// One of the events of `poll` at a descriptor, which stays open meanwhile.
    Poll(Arc<OwnedFd>, u32),
    /// The end of a time from now on.
    Time(Box<types::Timespec>),
    /// The end of another wait, which is brought about; by its slot.
    Cancel(usize),
}

impl Wait {
    /// Waits until bytes can be received, or until none will come any more.
    pub(in crate::io) fn readable(fd: Arc<OwnedFd>) -> Self {
        Self::Poll(fd, POLLIN | POLLRDHUP)
    }

    /// Waits until bytes can be sent.
    pub(in crate::io) fn writable(fd: Arc<OwnedFd>) -> Self {
        Self::Poll(fd, POLLOUT)
    }

    /// Waits this long.
    pub(in crate::io) fn time(time: Duration) -> Self {
        Self::Time(Box::new(time.into()))
    }

    /// The wait that this one ends; `None` if it is not for that, and may last.
    pub(super) fn cancels(&self) -> Option<usize> {
        match self {
            Self::Cancel(slot) => Some(*slot),
            Self::Poll(..) | Self::Time(_) => None,
        }
    }

    /// The submission entry. To be kept by the kernel no longer than `self` is kept here.
    pub(super) fn entry(&self) -> squeue::Entry {
        match self {
            Self::Poll(fd, events) => {
                opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), *events).build()
            }
            Self::Time(time) => opcode::Timeout::new(&raw const **time).build(),
            Self::Cancel(slot) => opcode::AsyncCancel::new(to_u64(*slot)).build(),
        }
    }
}

impl Ring {
    /// Waits in this ring. To be called by a thread that may enter it.
    pub(in crate::io) fn wait(self: Arc<Self>, wait: Wait, waker: Waker) -> Waiting {
        let index = self.start(Work::Wait(wait), Stage::Waiting(waker));
        Waiting { ring: self, index: Some(index) }
    }
}

/// A wait in a ring. Dropping it gives it up.
pub(in crate::io) struct Waiting {
    ring: Arc<Ring>,
    /// `None` once it has ended.
    index: Option<usize>,
}

impl Waiting {
    /// Ready when what was waited for is there, and now and then before that: when the scope of the
    /// thread that began the wait has ended.
    pub(in crate::io) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(index) = self.index else {
            return Poll::Ready(());
        };
        let mut state = self.ring.state.lock();
        let taken = state.take(index);
        let before = if taken.is_none() { state.set_waker(index, cx.waker()) } else { None };
        drop(state);
        drop(before);
        if taken.is_none() {
            return Poll::Pending;
        }
        self.index = None;
        Poll::Ready(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(index) = self.index else {
            return;
        };
        let mut state = self.ring.state.lock();
        let before = state.abandon(index);
        if matches!(before, Before::Waiting { .. }) {
            // The ring's thread submits it when it enters the ring again.
            self.ring.queue(&mut state, Work::Wait(Wait::Cancel(index)), Stage::Abandoned);
        }
        drop(state);
        drop(before);
        self.ring.submit_if_shared();
    }
}

/// Events of `poll` as an operation takes them.
const POLLIN: u32 = 0x1;
const POLLOUT: u32 = 0x4;
const POLLRDHUP: u32 = 0x2000;
