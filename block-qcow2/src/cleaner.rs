//! Giving back memory of tables that nobody uses (`cache-clean-interval`).
//!
//! A thread of its own, only where an interval was asked for: an idle image gets no request on which it
//! could be done. The thread ends with the image.

use std::sync::Weak;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::driver::Qcow2Driver;

/// The thread; ends when this is dropped.
pub(crate) struct Cleaner {
    _alive: Sender<()>,
}

impl Cleaner {
    /// Cleans the caches of `driver` every `interval`. `None` if there is no thread to be had: memory is
    /// then only bounded by the budget, as it is without an interval.
    pub(crate) fn start(interval: Duration, driver: Weak<Qcow2Driver>) -> Option<Self> {
        let (alive, ended) = channel();
        let thread = std::thread::Builder::new().name("qcow2-clean".to_owned());
        let started = thread.spawn(move || {
            let mut since = 0;
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let Some(driver) = driver.upgrade() else { return };
                since = driver.clean_caches(since);
            }
        });
        started.ok().map(|_| Self { _alive: alive })
    }
}

impl Qcow2Driver {
    /// Drops tables that were not used since the last call, whose result `since` is, and that the file
    /// has as they are.
    fn clean_caches(&self, since: u64) -> u64 {
        self.slices.sweep();
        self.clusters.sweep();
        // Who holds the lock uses the refcounts: there is another time.
        match self.writer.as_ref().and_then(|writer| writer.meta.try_lock()) {
            Some(mut meta) => meta.refcounts.sweep(since),
            None => since,
        }
    }
}
