//! Cancelling a long request between two of its pieces, and seeing how far it got.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A handle on a long request: set it from a signal handler or another task.
///
/// The request looks at it between pieces, so a cancel takes effect after the piece in flight, and
/// the request then fails with [`Error::Cancelled`](crate::Error::Cancelled), holding nothing.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    done: AtomicU64,
}

impl Cancel {
    /// A handle that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the request to stop at the next piece.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::Release);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::Acquire)
    }

    /// Bytes that are done, counted from the start of the range: everything below is finished.
    pub fn done(&self) -> u64 {
        self.state.done.load(Ordering::Acquire)
    }

    /// Records that `bytes` from the start are finished.
    pub(crate) fn set_done(&self, bytes: u64) {
        self.state.done.store(bytes, Ordering::Release);
    }
}
