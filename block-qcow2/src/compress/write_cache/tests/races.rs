//! Two things at once. Each test asserts that it reached the race.

use block_testkit::disk::{Call, Tap};

use super::*;

/// (requirement: a write in flight is waited for, its buffer does not change, and no second write of
/// the host cluster runs beside it)
#[test]
fn a_put_waits_for_the_flight_of_its_host_cluster() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.hold_writes();
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none());
    assert_eq!(rig.held(), 1);
    let bytes = bytes_of(second);
    let mut put = Box::pin(rig.cache.put(second, &bytes));
    assert!((&mut put).now_or_never().is_none(), "it waits");
    assert_eq!(rig.held(), 1, "and writes nothing");
    assert!(rig.in_cache(first), "reads go on meanwhile");
    assert_eq!(rig.cache.read(second.offset), None);
    rig.hold.release_all();
    block_on(flush).unwrap();
    assert!(!rig.in_file(second), "what was in flight did not change");
    block_on(put).unwrap();
    rig.flush().unwrap();
    assert!(rig.in_file(first) && rig.in_file(second));
    assert_eq!(rig.requests(), "write 0x20000+0x2000\nwrite 0x21000+0x2000\n");
}

/// (requirement: expecting and sealing never wait, not for a flight either)
#[test]
fn a_host_cluster_is_sealed_in_flight_and_leaves_when_it_lands() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 5000)).unwrap();
    rig.hold_writes();
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none());
    rig.cache.expect(stored(2, 5000, 10)).unwrap();
    rig.cache.seal(host(2));
    rig.cache.abandon(stored(2, 5000, 10));
    assert_eq!((rig.held(), rig.count()), (1, 1));
    rig.hold.release_all();
    block_on(flush).unwrap();
    assert_eq!(rig.count(), 0);
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n");
}

/// (requirement: a flush waits for what others have in flight)
#[test]
fn a_flush_waits_for_the_writes_of_others() {
    let rig = Rig::new();
    let there = stored(2, 0, 5000);
    rig.cache.expect(there).unwrap();
    rig.cache.seal(host(2));
    rig.hold_writes();
    let bytes = bytes_of(there);
    let mut put = Box::pin(rig.cache.put(there, &bytes));
    assert!((&mut put).now_or_never().is_none());
    assert_eq!(rig.held(), 1);
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none(), "not in the file yet");
    rig.hold.release_all();
    // The flush alone brings it to its end.
    block_on(flush).unwrap();
    assert!(rig.in_file(there));
    block_on(put).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n");
}

/// (requirement: waiters wake when the flight is over, no lock is held and nothing is referred to)
#[test]
fn a_waiter_may_do_anything_when_it_is_woken() {
    struct Evictor {
        cache: Arc<WriteCache>,
        seen: Mutex<Vec<(Eviction, usize)>>,
    }
    impl Wake for Evictor {
        fn wake(self: Arc<Self>) {
            // With the lock held this would not return, and in flight it would not be done.
            let done = self.cache.evict(host(2));
            let count = self.cache.inner.count.load(Ordering::Acquire);
            self.seen.lock().push((done, count));
        }
    }
    let mut rig = Rig::new();
    let door = Arc::new(Door::default());
    let driver = Tapped::new(Arc::clone(rig.node.driver()), Arc::clone(&door));
    let node = Node::new(driver, NodeOptions::default());
    let (map, budget) = (Arc::clone(&rig.overlap), Arc::clone(&rig.budget));
    rig.cache = WriteCache::new(node, BITS, map, budget, 0);
    rig.store(stored(2, 0, 5000)).unwrap();
    let cache = Arc::new(WriteCache { inner: Arc::clone(&rig.cache.inner) });
    let mut flush = Box::pin(rig.cache.flush());
    while door.arrived.load(Ordering::SeqCst) == 0 {
        assert!((&mut flush).now_or_never().is_none());
    }
    assert_eq!(rig.cache.evict(host(2)), Eviction::InFlight);
    let mut second = Box::pin(cache.flush());
    let evictor = Arc::new(Evictor { cache: Arc::clone(&cache), seen: Mutex::default() });
    let waker = Waker::from(Arc::clone(&evictor));
    assert!(second.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(*evictor.seen.lock(), []);
    door.open.store(1, Ordering::SeqCst);
    assert_eq!((&mut flush).now_or_never(), Some(Ok(())));
    assert_eq!(*evictor.seen.lock(), [(Eviction::Done, 0)]);
    assert_eq!((&mut second).now_or_never(), Some(Ok(())));
}

/// Lets no request return before it is open, and wakes nobody then.
#[derive(Default)]
struct Door {
    arrived: AtomicUsize,
    open: AtomicUsize,
}

#[async_trait::async_trait]
impl Tap for Door {
    async fn after(&self, _: &Call, _: Result<()>) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let is_open = || self.open.load(Ordering::SeqCst) > 0;
        poll_fn(|_| if is_open() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// (requirement: a host cluster leaves when its last reference does, before it is given to others; a
/// later write does not reach them)
#[test]
fn nothing_of_an_evicted_host_cluster_is_written() {
    let rig = Rig::new();
    let there = stored(2, 0, 5000);
    rig.store(there).unwrap();
    let read = rig.cache.read(there.offset).unwrap();
    assert_eq!(rig.cache.evict(host(2)), Eviction::Done);
    assert_eq!(rig.cache.evict(host(2)), Eviction::Done, "also if it is not there");
    assert_eq!(read, bytes_of(there), "who read before keeps what he read");
    assert_eq!((rig.cache.read(there.offset), rig.used()), (None, 0));
    rig.disk.load(2 * SIZE, &[7; 512]);
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "");
    // The place may be used anew.
    rig.store(there).unwrap();
    rig.cache.seal(host(2));
    rig.flush().unwrap();
    assert!(rig.in_file(there));
}

/// (requirement: an eviction during a write changes nothing)
#[test]
fn an_eviction_waits_for_the_flight() {
    let rig = Rig::new();
    let there = stored(2, 0, 5000);
    rig.store(there).unwrap();
    rig.hold_writes();
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none());
    assert_eq!((rig.held(), rig.cache.evict(host(2))), (1, Eviction::InFlight));
    assert!(rig.in_cache(there));
    rig.hold.release_all();
    block_on(flush).unwrap();
    assert_eq!(rig.cache.evict(host(2)), Eviction::Done);
    assert!(!rig.in_cache(there));
}

/// (requirement: a compressed cluster of which one host cluster is gone is gone in the other too)
#[test]
fn a_torn_compressed_cluster_is_not_found_in_the_neighbour() {
    for gone in [5, 6] {
        let rig = Rig::new();
        let all = [stored(5, 0, 60_000), stored(5, 60_000, 20_000), stored(6, 14_464, 100)];
        all.iter().for_each(|s| rig.cache.expect(*s).unwrap());
        rig.put(all[1]).unwrap();
        rig.put(all[2]).unwrap();
        if gone == 5 {
            rig.cache.abandon(all[0]);
        } else {
            rig.put(all[0]).unwrap();
        }
        assert!(rig.in_cache(all[1]));
        assert_eq!(rig.cache.evict(host(gone)), Eviction::Done);
        assert_eq!(rig.cache.read(all[1].offset), None);
        assert_eq!(rig.in_cache(all[2]), gone == 5, "what stands in the other only is not touched");
        rig.cache.seal(host(6));
        rig.flush().unwrap();
        assert_eq!((rig.count(), rig.used()), (0, 0));
    }
}

/// (requirement: the same where the first of the two is still here)
#[test]
fn a_torn_compressed_cluster_is_not_found_before_the_gap() {
    let rig = Rig::new();
    let all = [stored(5, 0, 60_000), stored(5, 60_000, 20_000)];
    all.iter().for_each(|s| rig.store_early(*s));
    assert!(rig.in_cache(all[1]));
    assert_eq!(rig.cache.evict(host(6)), Eviction::Done);
    assert_eq!(rig.cache.read(all[1].offset), None);
    assert_eq!((rig.in_cache(all[0]), rig.count()), (true, 1));
    rig.flush().unwrap();
    assert!(rig.in_file(all[0]));
    assert_eq!(rig.requests(), "write 0x50000+0x10000\n");
}

/// (requirement: a writer who goes away leaves nothing in flight for ever, and no second write beside
/// the first)
#[test]
fn a_put_that_is_dropped_in_flight_is_finished_by_others() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.cache.seal(host(2));
    rig.hold_writes();
    let bytes = bytes_of(second);
    let mut put = Box::pin(rig.cache.put(second, &bytes));
    assert!((&mut put).now_or_never().is_none());
    assert_eq!(rig.held(), 1);
    drop(put);
    assert_eq!(rig.cache.read(second.offset), None, "abandoned");
    assert_eq!(rig.cache.evict(host(2)), Eviction::InFlight, "the write is still under way");
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none());
    assert_eq!(rig.held(), 1, "no second one");
    rig.hold.release_all();
    block_on(flush).unwrap();
    assert!(rig.in_file(first));
    assert_eq!((rig.count(), rig.requests().as_str()), (0, "write 0x20000+0x3000\n"));
}

/// (requirement: a writer who goes away while it waits leaves nothing expected)
#[test]
fn a_put_that_is_dropped_before_its_bytes_came_is_abandoned() {
    let rig = Rig::with(BITS, 0, MemoryBudget::new(1 << 30), 4096);
    let (first, second) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.cache.seal(host(2));
    rig.cache.expect(stored(3, 0, 10)).unwrap();
    rig.cache.seal(host(3));
    rig.hold_writes();
    let mut flush = Box::pin(rig.cache.flush());
    assert!((&mut flush).now_or_never().is_none());
    let bytes = bytes_of(second);
    let mut put = Box::pin(rig.cache.put(second, &bytes));
    assert!((&mut put).now_or_never().is_none());
    drop((put, flush));
    rig.hold.release_all();
    // It waits for a flight that nobody else drives.
    block_on(rig.cache.room()).unwrap();
    assert!(rig.in_file(first));
    assert_eq!(rig.count(), 1);
}

/// (requirement: bytes that are never brought are no longer expected, even if nobody began to)
#[test]
fn a_put_that_is_dropped_before_it_was_polled_is_abandoned() {
    let rig = Rig::new();
    let (kept, lost) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(kept).unwrap();
    rig.cache.expect(lost).unwrap();
    rig.cache.seal(host(2));
    drop(rig.cache.put(lost, &bytes_of(lost)));
    block_on(rig.cache.room()).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n", "complete without it");
}

/// (requirement: of a writer who goes away, the failure is not lost)
#[test]
fn a_failure_that_nobody_heard_of_is_heard_of_later() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.cache.seal(host(2));
    rig.hold.hold(Point::After, |call| call.kind == Kind::Write);
    rig.fault.add(Rule::new(Kind::Write).effect(Effect::All).once());
    let bytes = bytes_of(second);
    let mut put = Box::pin(rig.cache.put(second, &bytes));
    while rig.held() == 0 {
        assert!((&mut put).now_or_never().is_none());
    }
    drop(put);
    rig.hold.release_all();
    rig.fail_writes(2);
    assert_eq!(block_on(rig.cache.room()), Ok(()), "there is room");
    assert_eq!(rig.flush(), Err(Error::IO));
    assert!(rig.in_cache(first));
    rig.fault.clear();
    rig.flush().unwrap();
    assert!(rig.in_file(first));
}

/// (requirement: the lock of the cache is not held over a wait, and waits end across threads)
#[test]
fn writers_in_many_threads() {
    let rig = Rig::with(BITS, 0, MemoryBudget::new(1 << 30), 4096);
    let turn = Mutex::new((2 * SIZE, Vec::new()));
    let place = |n: u64| {
        let mut turn = turn.lock();
        let here = Stored { offset: HostOffset::new(turn.0), len: 1 + n * 7919 % (SIZE / 3) };
        block_on(rig.cache.room()).unwrap();
        rig.cache.expect(here).unwrap();
        turn.0 += here.len;
        turn.1.push(here);
        here
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (rig, place) = (&rig, &place);
            scope.spawn(move || {
                for n in 0..40 {
                    let here = place(thread * 40 + n);
                    rig.put(here).unwrap();
                    assert!(rig.in_cache(here) || rig.in_file(here));
                    if n % 8 == 0 {
                        rig.flush().unwrap();
                        assert!(rig.in_file(here));
                    }
                }
            });
        }
    });
    rig.flush().unwrap();
    let all = turn.into_inner().1;
    assert_eq!(all.len(), 160);
    assert!(all.iter().all(|here| rig.in_file(*here)));
    assert_eq!(rig.record.count(Kind::Read), 0);
}
