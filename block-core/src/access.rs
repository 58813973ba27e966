//! Whether a node that passes its requests on may be written, beside what the node below says.
//!
//! Not here: drivers with state of their own to change when they are reopened.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::driver::{ReopenOptions, ReopenState};

/// Whether writes are refused, and how a reopen changes that.
#[derive(Debug)]
pub(crate) struct Access {
    read_only: AtomicBool,
}

impl Access {
    pub(crate) fn new(writable: bool) -> Self {
        Self { read_only: AtomicBool::new(!writable) }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// What [`Access::commit`] takes.
    pub(crate) fn prepare(options: &ReopenOptions) -> ReopenState {
        Box::new(options.read_only)
    }

    /// Changes what was asked for; nothing if nothing was.
    pub(crate) fn commit(&self, state: ReopenState) {
        if let Ok(read_only) = state.downcast::<Option<bool>>()
            && let Some(read_only) = *read_only
        {
            self.read_only.store(read_only, Ordering::Release);
        }
    }
}
