//! In place of io_uring where the feature `io-uring` is off: there is no ring, and nobody can have one.
//!
//! Invariant: [`Ring`] and [`Waiting`] have no values, so whoever asks for one goes on without, as where
//! the system refuses io_uring.

use std::convert::Infallible;
use std::sync::Arc;
#[cfg(feature = "net")]
use std::{
    os::fd::OwnedFd,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::op::Op;
use super::park::Parker;
use crate::error::Result;

/// A ring, of which there is none.
pub(super) struct Ring(Infallible);

/// A wait in a ring, of which there is none.
#[cfg(feature = "net")]
pub(super) struct Waiting(Infallible);

/// What would be waited for in a ring.
#[cfg(feature = "net")]
pub(super) struct Wait;

/// Whether there is io_uring: no.
pub(super) fn is_available() -> bool {
    false
}

/// The ring that all threads would share.
pub(super) fn shared() -> Option<Arc<Ring>> {
    None
}

impl Ring {
    pub(super) fn for_this_thread() -> Option<Arc<Self>> {
        None
    }

    pub(super) async fn run(self: Arc<Self>, _: Op) -> (Result<usize>, Op) {
        match self.0 {}
    }

    pub(super) fn sleep(&self, _: &Parker) {
        match self.0 {}
    }

    pub(super) fn tick(&self, _: &Parker) {
        match self.0 {}
    }

    pub(super) fn drain(&self) {
        match self.0 {}
    }

    #[cfg(feature = "net")]
    pub(super) fn wait(self: Arc<Self>, _: Wait, _: Waker) -> Waiting {
        match self.0 {}
    }
}

#[cfg(feature = "net")]
impl Wait {
    pub(super) fn readable(_: Arc<OwnedFd>) -> Self {
        Self
    }

    pub(super) fn writable(_: Arc<OwnedFd>) -> Self {
        Self
    }

    pub(super) fn time(_: Duration) -> Self {
        Self
    }
}

#[cfg(feature = "net")]
impl Waiting {
    pub(super) fn poll(&mut self, _: &mut Context<'_>) -> Poll<()> {
        match self.0 {}
    }
}
