//! A tap that answers writes within one call, as the page cache does with most of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use block_core::ByteRange;
use block_core::error::Error;
use parking_lot::Mutex;

use super::tap::{Call, Kind, Tap, Verdict};

/// Answers all writes within one call but every n-th, which takes the usual way.
pub struct Inline {
    but_every: u64,
    asked: AtomicU64,
    answered: AtomicU64,
    /// The error of the next write that is answered so.
    failing: Mutex<Option<Error>>,
}

impl Inline {
    /// All but every `n`-th, which is at least 1.
    pub fn all_but_every(n: u64) -> Arc<Self> {
        Arc::new(Self {
            but_every: n.max(1),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failing: Mutex::new(None),
        })
    }

    /// All of them.
    pub fn all() -> Arc<Self> {
        Self::all_but_every(u64::MAX)
    }

    /// Lets the next one fail after half of it was written.
    pub fn fail_next(&self, error: Error) {
        *self.failing.lock() = Some(error);
    }

    /// How many were answered within one call.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Tap for Inline {
    async fn before(&self, call: &Call) -> Verdict {
        let failing = if call.kind == Kind::Write { self.failing.lock().take() } else { None };
        failing.map_or(Verdict::Pass, Verdict::FailHalf)
    }

    fn answers_now(&self, _: ByteRange) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let answers = !asked.is_multiple_of(self.but_every);
        self.answered.fetch_add(u64::from(answers), Ordering::Relaxed);
        answers
    }
}
