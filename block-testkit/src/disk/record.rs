//! Notes every request that arrives at a driver, as lines of text for people and golden files.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::error::Result;
use parking_lot::Mutex;

use super::tap::{Call, Kind, Tap, Verdict};

/// The requests in the order in which they arrived, with the errors that they gave.
#[derive(Debug, Default)]
pub struct Record {
    calls: Mutex<Vec<(Call, Option<Result<()>>)>>,
}

impl Record {
    /// Nothing recorded yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What has arrived since the start or the last call of this.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock()).into_iter().map(|(call, _)| call).collect()
    }

    /// How many requests of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.calls.lock().iter().filter(|(call, _)| call.kind == kind).count()
    }

    /// How many requests have not returned yet.
    pub fn in_flight(&self) -> usize {
        self.calls.lock().iter().filter(|(_, result)| result.is_none()).count()
    }

    /// [`Record::take`] as text, a line each: `write 0x0+0x200 FUA in 2 buffers`. A request that
    /// failed says so.
    pub fn take_text(&self) -> String {
        let calls = std::mem::take(&mut *self.calls.lock());
        let mut text = String::new();
        for (call, result) in calls {
            // Writing to a string cannot fail.
            let _ = match result {
                Some(Ok(())) => writeln!(text, "{call}"),
                Some(Err(error)) => writeln!(text, "{call}: {error}"),
                None => writeln!(text, "{call}: in flight"),
            };
        }
        text
    }
}

#[async_trait]
impl Tap for Record {
    async fn before(&self, call: &Call) -> Verdict {
        self.calls.lock().push((call.clone(), None));
        Verdict::Pass
    }

    async fn after(&self, call: &Call, result: Result<()>) {
        let mut calls = self.calls.lock();
        if let Some((_, slot)) = calls.iter_mut().find(|(c, _)| c.number == call.number) {
            *slot = Some(result);
        }
    }
}
