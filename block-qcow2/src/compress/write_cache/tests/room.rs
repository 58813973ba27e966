//! Memory: its bound, and who waits for it.

use super::*;

/// (requirement: bytes are accounted, here and in the budget of the chain)
#[test]
fn memory_is_counted_and_bounded() {
    let rig = Rig::with(BITS, 4 * SIZE, MemoryBudget::new(1 << 30), 4096);
    for cluster in 2..4 {
        block_on(rig.cache.room()).unwrap();
        rig.cache.expect(stored(cluster, 0, 1000)).unwrap();
        rig.cache.seal(host(cluster));
    }
    assert_eq!((rig.used(), rig.budget.used()), (2 * SIZE, 2 * SIZE));
    block_on(rig.cache.room()).unwrap();
    rig.cache.expect(stored(4, 0, 1000)).unwrap();
    // The one being filled and the next: they fit.
    block_on(rig.cache.room()).unwrap();
    rig.cache.seal(host(4));
    // Now two may be begun, and there is memory for one.
    assert!(rig.cache.room().now_or_never().is_none());
    rig.put(stored(3, 0, 1000)).unwrap();
    block_on(rig.cache.room()).unwrap();
    assert_eq!(rig.used(), 2 * SIZE);
}

/// (requirement: where the chain has no memory left, two host clusters are had in any case)
#[test]
fn a_used_up_budget_slows_down_and_stops_nothing() {
    let budget = MemoryBudget::new(SIZE / 2);
    let rig = Rig::with(BITS, 64 * SIZE, budget, 4096);
    for cluster in 2..4 {
        block_on(rig.cache.room()).unwrap();
        rig.cache.expect(stored(cluster, 0, 1000)).unwrap();
        rig.cache.seal(host(cluster));
    }
    assert!(rig.cache.room().now_or_never().is_none(), "two are there, and a third does not fit");
    rig.put(stored(2, 0, 1000)).unwrap();
    block_on(rig.cache.room()).unwrap();
}

/// (requirement: who waits for room is woken when there is room, not before)
#[test]
fn room_wakes_when_a_host_cluster_has_left() {
    let rig = Rig::with(BITS, 0, MemoryBudget::new(1 << 30), 4096);
    rig.cache.expect(stored(2, 0, 1000)).unwrap();
    rig.cache.expect(stored(2, 1000, 1000)).unwrap();
    rig.cache.seal(host(2));
    rig.cache.expect(stored(3, 0, 1000)).unwrap();
    rig.cache.seal(host(3));
    let count = Arc::new(Count::default());
    let mut room = Box::pin(rig.cache.room());
    assert!(poll_counted(&mut room, &count).is_pending());
    rig.put(stored(2, 0, 1000)).unwrap();
    assert_eq!(count.wakes(), 0, "bytes came, but nothing has left");
    rig.put(stored(2, 1000, 1000)).unwrap();
    assert!(count.wakes() > 0);
    assert!(poll_counted(&mut room, &count).is_ready());
}

/// (requirement: a host cluster that nobody writes is written by who waits for room)
#[test]
fn who_waits_for_room_writes_what_became_complete() {
    let rig = Rig::with(BITS, 0, MemoryBudget::new(1 << 30), 4096);
    rig.store(stored(2, 0, 1000)).unwrap();
    rig.cache.expect(stored(2, 1000, 1000)).unwrap();
    rig.cache.seal(host(2));
    rig.cache.expect(stored(3, 0, 1000)).unwrap();
    rig.cache.seal(host(3));
    let count = Arc::new(Count::default());
    let mut room = Box::pin(rig.cache.room());
    assert!(poll_counted(&mut room, &count).is_pending());
    rig.cache.abandon(stored(2, 1000, 1000));
    assert!(count.wakes() > 0);
    block_on(room).unwrap();
    assert!(rig.in_file(stored(2, 0, 1000)));
}

/// (requirement: the smallest cache is enough, also with a compressed cluster across every bound)
#[test]
fn the_smallest_cache_takes_compressed_clusters_of_any_size() {
    let rig = Rig::with(BITS, 0, MemoryBudget::new(0), 4096);
    let mut at = 2 * SIZE;
    let mut all = Vec::new();
    while at < 40 * SIZE {
        let here = Stored { offset: HostOffset::new(at), len: SIZE - 1 };
        block_on(rig.cache.room()).unwrap();
        rig.store(here).unwrap();
        assert!(rig.used() <= 3 * SIZE);
        assert!(rig.in_cache(here) || rig.in_file(here));
        all.push(here);
        at += SIZE - 1;
    }
    rig.flush().unwrap();
    assert!(all.iter().all(|s| rig.in_file(*s)));
}
