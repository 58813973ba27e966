//! What a thread that runs [`block_on`](super::exec::block_on) has of its own: where it sleeps.
//!
//! Invariant: the thread's ring is used for new operations only while the thread is inside of a
//! [`Entered`] scope, whose end waits for all of them: a ring without a thread to enter it never
//! holds an operation.

use std::cell::{Cell, OnceCell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;

use super::park::Parker;
use super::uring::{self, Ring};

thread_local! {
    static LOCAL: Local = Local::default();
}

#[derive(Default)]
struct Local {
    /// How many scopes the thread is in.
    depth: Cell<usize>,
    parker: RefCell<Arc<Parker>>,
    /// Made by the first operation; `None` where io_uring is refused.
    ring: OnceCell<Option<Arc<Ring>>>,
}

/// A scope in which the thread enters its ring now and then. Ends when dropped.
pub(super) struct Entered {
    parker: Arc<Parker>,
    _this_thread: PhantomData<*const ()>,
}

impl Entered {
    /// Begins a scope of the calling thread.
    pub(super) fn new() -> Self {
        Self::begin(LOCAL.with(|local| Arc::clone(&local.parker.borrow())))
    }

    /// Begins a scope of the calling thread, which from now on sleeps at `parker`.
    pub(super) fn at(parker: Arc<Parker>) -> Self {
        LOCAL.with(|local| local.parker.replace(Arc::clone(&parker)));
        Self::begin(parker)
    }

    fn begin(parker: Arc<Parker>) -> Self {
        LOCAL.with(|local| local.depth.set(local.depth.get() + 1));
        Self { parker, _this_thread: PhantomData }
    }

    pub(super) fn parker(&self) -> &Arc<Parker> {
        &self.parker
    }

    /// Takes note of all wake-ups until now. What they were about is to be looked at after this and before
    /// the next sleep, which they no longer keep from happening.
    pub(super) fn notice(&self) {
        self.parker.end();
    }

    /// Sleeps until the parker is woken or an operation of the thread completes.
    pub(super) fn sleep(&self) {
        match own_ring() {
            Some(ring) => ring.sleep(&self.parker),
            None => self.parker.park(),
        }
    }

    /// Submits and reaps without sleeping, for a thread that has other things to do.
    pub(super) fn tick(&self) {
        if let Some(ring) = own_ring() {
            ring.tick(&self.parker);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(ring) = own_ring() {
            ring.drain();
        }
        LOCAL.with(|local| local.depth.set(local.depth.get() - 1));
    }
}

/// The thread's ring, if it has made one.
fn own_ring() -> Option<Arc<Ring>> {
    LOCAL.with(|local| local.ring.get().cloned().flatten())
}

/// The ring for new operations: the thread's own inside of a scope, else the shared one; `None`
/// where io_uring is refused.
pub(super) fn ring() -> Option<Arc<Ring>> {
    let own = LOCAL.try_with(|local| {
        let inside = local.depth.get() > 0;
        inside.then(|| local.ring.get_or_init(|| ring_at(&local.parker.borrow())).clone())
    });
    own.ok().flatten().flatten().or_else(uring::shared)
}

/// A ring for this thread, if it can be woken from it.
fn ring_at(parker: &Parker) -> Option<Arc<Ring>> {
    // The descriptor comes last: once it is there, wake-ups go to the ring.
    let ring = Ring::for_this_thread()?;
    parker.eventfd()?;
    Some(ring)
}
