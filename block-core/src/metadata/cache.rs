//! A cache of things that are read from the image by their place in it: L2 slices, inflated clusters.
//!
//! Invariants: clean entries times `entry_bytes` are at most the budget's share that was taken for
//! them; a thing that several requests miss at once is loaded once; a load that began runs to its end,
//! whoever gives it up; no lock is held across an await;
//! an entry that was changed stays until it was written back ([`Cache::clean`]), even over the budget,
//! so whoever changes entries looks at [`Cache::is_crowded`] first.
//!
//! Lock order: `flights` before `shelf`. A hit takes `shelf` for reading only.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::{Mutex, RwLock};

use crate::budget::{MemoryBudget, Reservation};
use crate::error::Result;
use crate::io::exec::{ToTheEnd, to_the_end};

/// The load of one entry, which everybody who misses it awaits.
struct Flight<V: Clone + Send + Sync + 'static> {
    load: Load<V>,
    /// How many await it. The last one that gives it up takes it out of the list: a load that nobody
    /// polls any more would hold its requests' places below for ever, so it runs on by itself.
    waiters: usize,
}

type Load<V> = Shared<ToTheEnd<Result<V>>>;

/// Entries by key, at most so many of one size, evicted by a clock.
pub struct Cache<V: Clone + Send + Sync + 'static> {
    /// Guards the entries; taken for a look or an insertion, never for a load.
    shelf: RwLock<Shelf<V>>,
    /// Guards the list of loads that are under way.
    flights: Mutex<Map<Flight<V>>>,
    budget: Arc<MemoryBudget>,
    entry_bytes: u64,
    /// Entries that the shelf may hold as long as the budget gives memory.
    max_entries: usize,
    /// Entries that it may hold whatever the budget says.
    min_entries: usize,
    /// No more entries than `max_entries` exist.
    holds_all: bool,
    /// Taken with the first entry: an image that is never asked costs nothing.
    minimum: OnceLock<Reservation>,
}

/// Keys are offsets and the like, so any mixing that moves their high and middle bits around will do.
pub type Map<V> = HashMap<u64, V, BuildHasherDefault<OffsetHasher>>;

/// The hasher of a [`Map`].
#[derive(Default)]
pub struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed.rotate_right(32);
    }
}

struct Shelf<V> {
    index: Map<usize>,
    slots: Vec<Slot<V>>,
    /// Where the clock looks next.
    hand: usize,
    /// How many slots are dirty.
    dirty: usize,
    /// How many of them there was no room for.
    surplus: usize,
}

struct Slot<V> {
    key: u64,
    value: V,
    /// Looked at since the clock last came by.
    used: AtomicBool,
    /// Changed and not written back.
    dirty: bool,
    /// Here only because it is dirty: there was no room for it.
    surplus: bool,
    _reservation: Option<Reservation>,
}

/// How much a cache may hold.
#[derive(Copy, Clone, Debug)]
pub struct CacheSize {
    /// Bytes of an entry.
    pub entry_bytes: u64,
    /// Most entries, if the budget has memory for them.
    pub max_entries: usize,
    /// Entries that are held in any case.
    pub min_entries: usize,
    /// Whether no more entries than `max_entries` exist.
    pub holds_all: bool,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// An empty one that takes its memory from `budget`.
    pub fn new(size: CacheSize, budget: Arc<MemoryBudget>) -> Self {
        let shelf = Shelf::empty();
        Self {
            shelf: RwLock::new(shelf),
            flights: Mutex::new(Map::default()),
            minimum: OnceLock::new(),
            budget,
            entry_bytes: size.entry_bytes,
            max_entries: size.max_entries.max(size.min_entries),
            min_entries: size.min_entries,
            holds_all: size.holds_all,
        }
    }

    /// Bytes of an entry.
    pub fn entry_bytes(&self) -> u64 {
        self.entry_bytes
    }

    /// The entry of `key`, if it is there.
    #[inline]
    pub fn peek(&self, key: u64) -> Option<V> {
        self.with(key, V::clone)
    }

    /// What `look` says of the entry of `key`, if it is there. `look` runs under the lock.
    #[inline]
    pub fn with<R>(&self, key: u64, look: impl FnOnce(&V) -> R) -> Option<R> {
        let shelf = self.shelf.read();
        let slot = shelf.slots.get(*shelf.index.get(&key)?)?;
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(look(&slot.value))
    }

    /// The entry of `key`, by `load` if it is not there and nobody is loading it.
    pub async fn peek_or_load(
        &self,
        key: u64,
        load: impl FnOnce() -> BoxFuture<'static, Result<V>>,
    ) -> Result<V> {
        let waiter = {
            let mut flights = self.flights.lock();
            // Whoever finished it meanwhile put it on the shelf before it left the list.
            if let Some(value) = self.peek(key) {
                return Ok(value);
            }
            let flight = flights
                .entry(key)
                .or_insert_with(|| Flight { load: to_the_end(load()).shared(), waiters: 0 });
            flight.waiters += 1;
            Waiter { cache: self, key, load: flight.load.clone() }
        };
        waiter.load.clone().await
    }

    /// Changes the entry of `key` and marks it dirty. If it was evicted since, it is `loaded` that is
    /// changed and put on the shelf, whatever the budget says.
    pub fn modify<R>(&self, key: u64, loaded: V, change: impl FnOnce(&mut V) -> R) -> R {
        let mut flights = self.flights.lock();
        let mut shelf = self.shelf.write();
        let index = match shelf.index.get(&key) {
            // Gone before the change: a value that is shared twice would be copied.
            Some(&index) => {
                drop(loaded);
                index
            }
            None => {
                // A load that is under way brings what was there before the change.
                flights.remove(&key);
                let reservation = self.budget.reserve_minimum(self.entry_bytes);
                shelf.push(key, loaded, Some(reservation));
                let index = shelf.slots.len() - 1;
                shelf.slots[index].surplus = true;
                shelf.surplus += 1;
                index
            }
        };
        drop(flights);
        let slot = &mut shelf.slots[index];
        let newly = !std::mem::replace(&mut slot.dirty, true);
        *slot.used.get_mut() = true;
        let result = change(&mut slot.value);
        shelf.dirty += usize::from(newly);
        result
    }

    /// The dirty entries.
    pub fn dirty(&self) -> Vec<(u64, V)> {
        let shelf = self.shelf.read();
        let dirty = shelf.slots.iter().filter(|slot| slot.dirty);
        dirty.map(|slot| (slot.key, slot.value.clone())).collect()
    }

    /// Says that the entry of `key` was written back, if it is still `is_written`.
    pub fn clean(&self, key: u64, is_written: impl FnOnce(&V) -> bool) {
        let mut shelf = self.shelf.write();
        let Some(&index) = shelf.index.get(&key) else { return };
        let Some(slot) = shelf.slots.get_mut(index) else { return };
        if slot.dirty && is_written(&slot.value) {
            slot.dirty = false;
            let surplus = slot.surplus;
            shelf.dirty -= 1;
            // What was kept over the limit for its changes' sake goes now.
            if surplus {
                shelf.remove_slot(index);
            }
        }
    }

    /// Whether so many entries are dirty that they should be written back before more are: most of those
    /// that there may be, or some for which there was no room.
    pub fn is_crowded(&self) -> bool {
        let shelf = self.shelf.read();
        let most = if self.holds_all { usize::MAX } else { self.max_entries / 4 * 3 };
        shelf.dirty >= MIN_CROWD.max(most) || shelf.surplus >= MIN_CROWD
    }

    /// Whether there is a dirty entry.
    pub fn is_dirty(&self) -> bool {
        self.shelf.read().dirty > 0
    }

    /// Forgets the entry of `key`, changed or not, and any load of it that is under way.
    pub fn remove(&self, key: u64) {
        let mut flights = self.flights.lock();
        flights.remove(&key);
        let mut shelf = self.shelf.write();
        if let Some(&index) = shelf.index.get(&key) {
            shelf.remove_slot(index);
        }
    }

    /// Forgets the clean entries whose key `keep` does not want.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        let keys: Vec<u64> = {
            let shelf = self.shelf.read();
            shelf.slots.iter().map(|slot| slot.key).filter(|key| !keep(*key)).collect()
        };
        keys.into_iter().for_each(|key| self.remove(key));
    }

    /// Forgets the clean entries that were not looked at since the last sweep.
    pub fn sweep(&self) {
        let mut shelf = self.shelf.write();
        let mut index = 0;
        while let Some(slot) = shelf.slots.get_mut(index) {
            if slot.dirty || std::mem::take(slot.used.get_mut()) {
                index += 1;
            } else {
                shelf.remove_slot(index);
            }
        }
    }

    /// Forgets all entries, changed or not.
    pub fn clear(&self) {
        let mut flights = self.flights.lock();
        flights.clear();
        let mut shelf = self.shelf.write();
        *shelf = Shelf::empty();
    }

    fn insert(&self, key: u64, value: V) {
        let mut shelf = self.shelf.write();
        if shelf.index.contains_key(&key) {
            return;
        }
        let count = shelf.slots.len();
        let reservation = if count < self.min_entries {
            self.minimum.get_or_init(|| {
                let count = crate::range::to_u64(self.min_entries);
                self.budget.reserve_minimum(self.entry_bytes * count)
            });
            None
        } else if count < self.max_entries
            && let Some(taken) = self.budget.try_reserve(self.entry_bytes)
        {
            Some(taken)
        } else {
            shelf.replace(key, value);
            return;
        };
        shelf.push(key, value, reservation);
    }
}

/// One of those who await a load.
struct Waiter<'a, V: Clone + Send + Sync + 'static> {
    cache: &'a Cache<V>,
    key: u64,
    load: Load<V>,
}

impl<V: Clone + Send + Sync + 'static> Drop for Waiter<'_, V> {
    fn drop(&mut self) {
        let mut flights = self.cache.flights.lock();
        let Some(flight) = flights.get_mut(&self.key).filter(|f| f.load.ptr_eq(&self.load)) else {
            return;
        };
        flight.waiters -= 1;
        if flight.waiters > 0 && self.load.peek().is_none() {
            return;
        }
        if let Some(Ok(value)) = self.load.peek() {
            self.cache.insert(self.key, value.clone());
        }
        flights.remove(&self.key);
    }
}

/// Fewer dirty entries are never a crowd: a small disk has hardly more tables.
const MIN_CROWD: usize = 4;

impl<V> Shelf<V> {
    fn empty() -> Self {
        Self { index: Map::default(), slots: Vec::new(), hand: 0, dirty: 0, surplus: 0 }
    }

    fn push(&mut self, key: u64, value: V, reservation: Option<Reservation>) {
        self.index.insert(key, self.slots.len());
        let used = AtomicBool::new(true);
        self.slots.push(Slot {
            key,
            value,
            used,
            dirty: false,
            surplus: false,
            _reservation: reservation,
        });
    }

    fn remove_slot(&mut self, index: usize) {
        let removed = self.slots.swap_remove(index);
        self.index.remove(&removed.key);
        self.dirty -= usize::from(removed.dirty);
        self.surplus -= usize::from(removed.surplus);
        if let Some(moved) = self.slots.get(index) {
            self.index.insert(moved.key, index);
        }
    }

    /// Puts the entry in the place of one that was not used lately; nowhere if there is no place.
    fn replace(&mut self, key: u64, value: V) {
        // One round clears every mark, so that the second finds a place.
        for _ in 0..self.slots.len() * 2 {
            let hand = self.hand % self.slots.len();
            self.hand = hand + 1;
            let Some(slot) = self.slots.get_mut(hand) else {
                return;
            };
            if slot.dirty || std::mem::take(slot.used.get_mut()) {
                continue;
            }
            self.index.remove(&slot.key);
            self.index.insert(key, hand);
            slot.key = key;
            slot.value = value;
            *slot.used.get_mut() = true;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::channel::oneshot;
    use futures::executor::block_on;
    use futures::future::join;
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    fn cache(max_entries: usize, min_entries: usize, budget: u64) -> Cache<u64> {
        let size = CacheSize { entry_bytes: 10, max_entries, min_entries, holds_all: false };
        Cache::new(size, MemoryBudget::new(budget))
    }

    fn load(cache: &Cache<u64>, key: u64) -> u64 {
        let load = || async move { Ok(key * 2) }.boxed();
        block_on(cache.peek_or_load(key, load)).unwrap()
    }

    #[test]
    fn the_budget_bounds_it_and_the_minimum_stays() {
        let budget = MemoryBudget::new(25);
        let size =
            CacheSize { entry_bytes: 10, max_entries: 100, min_entries: 1, holds_all: false };
        let first = Cache::new(size, Arc::clone(&budget));
        let second = Cache::new(size, Arc::clone(&budget));
        (0..50).for_each(|key| assert_eq!(load(&first, key), key * 2));
        (0..50).for_each(|key| assert_eq!(load(&second, key), key * 2));
        // Over by the one entry that the second holds whatever the budget says.
        assert_eq!(budget.used(), 30);
        assert_eq!(first.shelf.read().slots.len(), 2);
        assert_eq!(second.shelf.read().slots.len(), 1);
        assert_eq!(second.peek(49), Some(98));
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_used_stays_longer() {
        let cache = cache(4, 0, 1000);
        (0..5).for_each(|key| assert_eq!(load(&cache, key), key * 2));
        for key in 5..30 {
            load(&cache, 4);
            load(&cache, key);
        }
        assert_eq!(cache.peek(4), Some(8));
        assert_eq!(cache.shelf.read().slots.len(), 4);
    }

    #[test]
    fn nothing_is_kept_where_there_is_no_room() {
        let cache = cache(4, 0, 5);
        assert_eq!(load(&cache, 1), 2);
        assert_eq!(cache.peek(1), None);
    }

    #[test]
    fn a_sweep_takes_what_was_not_looked_at_since_the_last() {
        let cache = cache(8, 0, 1000);
        (0..4).for_each(|key| assert_eq!(load(&cache, key), key * 2));
        cache.modify(3, 6, |_| ());
        cache.sweep();
        assert_eq!(cache.shelf.read().slots.len(), 4, "all of them are new");
        assert_eq!(cache.peek(1), Some(2));
        cache.sweep();
        assert_eq!([0, 1, 2, 3].map(|key| cache.peek(key)), [None, Some(2), None, Some(6)]);
        cache.clean(3, |_| true);
        cache.sweep();
        cache.sweep();
        assert!(cache.shelf.read().slots.is_empty());
        assert_eq!(cache.budget.used(), 0);
    }

    #[test]
    fn what_was_changed_stays_until_it_is_written_back() {
        let cache = cache(2, 0, 1000);
        (0..4).for_each(|key| cache.modify(key, key, |value| *value += 100));
        (10..30).for_each(|key| assert_eq!(load(&cache, key), key * 2));
        assert!(cache.is_crowded());
        let mut dirty = cache.dirty();
        dirty.sort_unstable();
        assert_eq!(dirty, [(0, 100), (1, 101), (2, 102), (3, 103)]);
        // Changed again after it was written: still dirty.
        cache.modify(3, 0, |value| *value += 100);
        for (key, written) in dirty {
            cache.clean(key, |value| *value == written);
        }
        assert_eq!(cache.dirty(), [(3, 203)]);
        assert_eq!(cache.shelf.read().slots.len(), 1, "surplus entries are gone");
        cache.clean(3, |_| true);
        assert!(!cache.is_dirty() && !cache.is_crowded());
        assert_eq!(cache.budget.used(), 0);
    }

    #[test]
    fn concurrent_misses_load_once_and_errors_are_not_kept() {
        let cache = cache(4, 0, 1000);
        let loads = AtomicUsize::new(0);
        let (send, receive) = oneshot::channel::<Result<u64>>();
        let first = cache.peek_or_load(7, || {
            loads.fetch_add(1, Ordering::Relaxed);
            receive.map(|r| r.unwrap()).boxed()
        });
        let second = cache.peek_or_load(7, || unreachable!("the first load is under way"));
        let both = join(first, second);
        let answer = async { send.send(Err(Error::IO)).unwrap() };
        let (results, ()) = block_on(join(both, answer));
        assert_eq!(results, (Err(Error::IO), Err(Error::IO)));
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert!(cache.flights.lock().is_empty());
        assert_eq!(load(&cache, 7), 14);
    }

    /// Polls a future once, which is not done then.
    fn begin<T>(future: &mut (impl Future<Output = T> + Unpin)) {
        assert!(block_on(async { futures::poll!(future) }).is_pending());
    }

    #[test]
    fn a_load_whose_starter_is_gone_is_finished_by_who_waits() {
        let cache = cache(4, 0, 1000);
        let (send, receive) = oneshot::channel::<Result<u64>>();
        let mut first = Box::pin(cache.peek_or_load(7, || receive.map(|r| r.unwrap()).boxed()));
        begin(&mut first);
        let mut second = Box::pin(cache.peek_or_load(7, || unreachable!()));
        begin(&mut second);
        drop(first);
        send.send(Ok(1)).unwrap();
        assert_eq!(block_on(second), Ok(1));
        assert_eq!(cache.peek(7), Some(1));
        assert!(cache.flights.lock().is_empty());
    }

    #[test]
    fn a_load_that_nobody_waits_for_runs_to_its_end() {
        let cache = cache(4, 0, 1000);
        let (send, receive) = oneshot::channel::<Result<u64>>();
        let (done, end) = oneshot::channel::<()>();
        let slow = async move {
            let loaded = receive.await.unwrap();
            done.send(()).unwrap();
            loaded
        };
        let mut first = Box::pin(cache.peek_or_load(7, || slow.boxed()));
        let mut second = Box::pin(cache.peek_or_load(7, || unreachable!()));
        begin(&mut first);
        begin(&mut second);
        drop(first);
        drop(second);
        assert!(cache.flights.lock().is_empty(), "what it loads takes no memory");
        send.send(Ok(1)).unwrap();
        assert_eq!(block_on(end), Ok(()));
        assert_eq!(load(&cache, 7), 14);
    }

    #[test]
    fn a_load_that_was_under_way_during_a_change_is_not_kept() {
        let cache = cache(4, 0, 1000);
        let (send, receive) = oneshot::channel::<Result<u64>>();
        let mut load = Box::pin(cache.peek_or_load(7, || receive.map(|r| r.unwrap()).boxed()));
        assert!(block_on(async { futures::poll!(&mut load) }).is_pending());
        // Loaded before by somebody else, and evicted since.
        cache.modify(7, 1, |value| *value = 2);
        cache.clean(7, |_| true);
        assert_eq!(cache.peek(7), None);
        send.send(Ok(1)).unwrap();
        assert_eq!(block_on(load), Ok(1), "it began before the change");
        assert_eq!(cache.peek(7), None, "but nobody else sees it");
    }

    proptest! {
        #[test]
        fn it_always_answers_like_the_loader(
            keys in prop::collection::vec(0u64..20, 0..200),
            max in 0usize..10,
            budget in 0u64..100,
        ) {
            let cache = cache(max, max / 3, budget);
            for key in keys {
                prop_assert_eq!(load(&cache, key), key * 2);
                if key % 7 == 0 {
                    cache.modify(key, key * 2, |_| ());
                    cache.clean(key, |_| true);
                } else if key % 5 == 0 {
                    cache.remove(key);
                }
                let shelf = cache.shelf.read();
                prop_assert_eq!(shelf.index.len(), shelf.slots.len());
                prop_assert!(shelf.slots.len() <= max.max(max / 3));
            }
        }
    }
}
