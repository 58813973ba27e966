//! The engines: one file per way of reading and writing.
//!
//! An asynchronous engine runs `depth` loops on one thread, each with a buffer of its own, which take
//! the next request from a common counter.

mod block_core;
mod calls;
#[cfg(feature = "async-peers")]
mod imago_async;
#[cfg(feature = "sync-peers")]
mod imago_sync;
#[cfg(feature = "async-peers")]
mod qcow2_rs;
mod uring;

use std::cell::Cell;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Failure;
use crate::work::Work;

/// Wall clock and CPU time of all requests.
type Times = (Duration, Duration);

/// Its name and how it runs.
type Engine = (&'static str, fn(&Work) -> Result<Times, Failure>);

const ENGINES: &[Engine] = &[
    ("calls", calls::run),
    ("uring", uring::run),
    ("block-core", block_core::run),
    #[cfg(feature = "async-peers")]
    ("imago-async", imago_async::run),
    #[cfg(feature = "sync-peers")]
    ("imago-sync", imago_sync::run),
    #[cfg(feature = "async-peers")]
    ("qcow2-rs", qcow2_rs::run),
];

/// The engines of this build.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|(name, _)| *name)
}

/// Runs the engine that `work` names.
pub fn run(work: &Work) -> Result<Value, Failure> {
    let engine = ENGINES.iter().find(|(name, _)| *name == work.engine);
    let (_, run) = engine.ok_or_else(|| format!("no engine {} in this build", work.engine))?;
    let (wall, cpu) = run(work)?;
    Ok(json!({
        "seconds": wall.as_secs_f64(),
        "cpu_seconds": cpu.as_secs_f64(),
        "requests": work.count,
    }))
}

/// Hands out the numbers of requests to the loops of one thread.
struct Tickets {
    next: Cell<u64>,
    count: u64,
}

impl Tickets {
    fn new(work: &Work) -> Self {
        Self { next: Cell::new(0), count: work.count }
    }

    fn take(&self) -> Option<u64> {
        let index = self.next.get();
        self.next.set(index + 1);
        (index < self.count).then_some(index)
    }
}
