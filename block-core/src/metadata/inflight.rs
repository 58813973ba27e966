//! Running allocations: which guest clusters are about to get a new place.
//!
//! Between planning an allocation and linking it, nobody else may allocate for the same clusters, zero
//! them or discard them: they wait for it and plan anew. Writes in place do not: what they touch
//! is not what an allocation copies.
//!
//! **Invariant.** The holder of a [`Running`] never waits for another one, so there is no deadlock.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::range::ByteRange;

/// The running allocations of one image.
#[derive(Clone, Default)]
pub struct Allocations {
    list: Arc<Mutex<List>>,
}

/// Guarded for a few instructions; wakers run outside.
#[derive(Default)]
struct List {
    next_id: u64,
    running: Vec<Entry>,
}

struct Entry {
    id: u64,
    /// Guest range, in whole clusters.
    range: ByteRange,
    waiters: Vec<Waker>,
}

/// One running allocation; ends, and wakes who waits, when dropped.
#[must_use]
pub struct Running {
    list: Arc<Mutex<List>>,
    id: u64,
}

/// An allocation to wait for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Blocker(u64);

impl Allocations {
    /// Starts one for `range`, whole clusters in which none runs. Called under the metadata lock.
    pub fn begin(&self, range: ByteRange) -> Running {
        let mut list = self.list.lock();
        let id = list.next_id;
        list.next_id += 1;
        list.running.push(Entry { id, range, waiters: Vec::new() });
        Running { list: Arc::clone(&self.list), id }
    }

    /// The bytes from the start of `range` on in which nothing runs, or what runs at its start.
    pub fn free_prefix(&self, range: ByteRange) -> Result<ByteRange, Blocker> {
        let list = self.list.lock();
        let mut end = range.end();
        for entry in list.running.iter().filter(|entry| entry.range.overlaps(range)) {
            if entry.range.offset() <= range.offset() {
                return Err(Blocker(entry.id));
            }
            end = end.min(entry.range.offset());
        }
        Ok(range.split_at(end - range.offset()).0)
    }

    /// Returns once the blocker is gone. Never called under the metadata lock.
    pub async fn wait(&self, blocker: Blocker) {
        poll_fn(|context| {
            let mut list = self.list.lock();
            match list.running.iter_mut().find(|entry| entry.id == blocker.0) {
                None => Poll::Ready(()),
                Some(entry) => {
                    if !entry.waiters.iter().any(|waker| waker.will_wake(context.waker())) {
                        entry.waiters.push(context.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut list = self.list.lock();
        let index = list.running.iter().position(|entry| entry.id == self.id);
        let entry = index.map(|index| list.running.swap_remove(index));
        drop(list);
        entry.into_iter().flat_map(|entry| entry.waiters).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn overlapping_ones_wait_and_others_do_not() {
        let all = Allocations::default();
        let first = all.begin(range(10, 20));
        let second = all.begin(range(30, 40));
        assert_eq!(all.free_prefix(range(0, 10)), Ok(range(0, 10)));
        assert_eq!(all.free_prefix(range(0, 35)), Ok(range(0, 10)));
        assert_eq!(all.free_prefix(range(20, 60)), Ok(range(20, 30)));
        let blocker = all.free_prefix(range(15, 60)).unwrap_err();
        let mut wait = Box::pin(all.wait(blocker));
        assert!(wait.as_mut().now_or_never().is_none());
        drop(second);
        assert!(wait.as_mut().now_or_never().is_none());
        drop(first);
        assert!(wait.as_mut().now_or_never().is_some());
        assert_eq!(all.free_prefix(range(15, 60)), Ok(range(15, 60)));
    }
}
