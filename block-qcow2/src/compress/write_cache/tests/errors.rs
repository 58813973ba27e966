//! Writes that fail: what is kept, and who hears of it.

use block_core::driver::ReopenOptions;
use block_core::graph;

use super::*;

/// (requirement: an error reaches the writer whose call made it, whose bytes are taken back; bytes of
/// others are kept)
#[test]
fn the_writer_hears_of_its_error_and_others_lose_nothing() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 5000), stored(2, 5000, 5000));
    rig.store(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.cache.seal(host(2));
    rig.fail_writes(2);
    assert_eq!(rig.put(second), Err(Error::IO));
    assert_eq!(rig.cache.read(second.offset), None);
    assert!(rig.in_cache(first), "was acknowledged");
    rig.fault.clear();
    rig.flush().unwrap();
    assert!(rig.in_file(first));
    assert_eq!(rig.count(), 0);
}

/// (requirement: errors are sticky: room, puts and flushes fail until the data is in the file)
#[test]
fn after_a_failed_write_everything_fails_until_it_succeeds() {
    let rig = Rig::new();
    let (first, lost, later) = (stored(2, 0, 5000), stored(3, 0, 100), stored(3, 100, 100));
    rig.store(first).unwrap();
    rig.fail_writes(2);
    assert_eq!(rig.flush(), Err(Error::IO));
    rig.cache.seal(host(2));
    rig.cache.expect(lost).unwrap();
    assert_eq!(block_on(rig.cache.room()), Err(Error::IO));
    assert_eq!(rig.put(lost), Err(Error::IO));
    assert_eq!(rig.cache.read(lost.offset), None, "taken back");
    assert_eq!(rig.flush(), Err(Error::IO));
    assert_eq!(rig.fault.injected(), 4, "each of them tried");
    assert!(rig.in_cache(first));
    rig.fault.clear();
    rig.cache.expect(later).unwrap();
    rig.put(later).unwrap();
    assert!(rig.in_file(first), "the put has brought it");
    rig.flush().unwrap();
    assert!(rig.in_file(later));
}

/// (requirement: the same of a host cluster that is still being filled)
#[test]
fn a_failure_of_the_host_cluster_that_is_filled_is_remembered() {
    let rig = Rig::new();
    let (first, lost, later) = (stored(2, 0, 5000), stored(2, 5000, 10), stored(2, 5010, 10));
    rig.store(first).unwrap();
    rig.fail_writes(2);
    assert_eq!(rig.flush(), Err(Error::IO));
    rig.cache.expect(lost).unwrap();
    assert_eq!(rig.put(lost), Err(Error::IO));
    assert_eq!(block_on(rig.cache.room()), Err(Error::IO));
    assert_eq!(rig.fault.injected(), 3, "each of them tried");
    rig.fault.clear();
    rig.store(later).unwrap();
    assert!(rig.in_file(first) && !rig.in_file(later), "the put has brought what had failed");
    assert!(rig.in_cache(later));
}

/// (requirement: a flush goes on after the first failure and returns it)
#[test]
fn a_flush_writes_what_it_can() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 1000), stored(3, 0, 1000));
    rig.store(first).unwrap();
    rig.cache.expect(stored(2, 1000, 10)).unwrap();
    rig.cache.seal(host(2));
    rig.store(second).unwrap();
    rig.fault.add(Rule::new(Kind::Write).error(Error::NO_SPACE).once());
    assert_eq!(rig.flush(), Err(Error::NO_SPACE));
    assert!(rig.in_file(second) && !rig.in_file(first));
    rig.flush().unwrap();
    assert!(rig.in_file(first));
}

/// (requirement: of a compressed cluster in two host clusters, the error of either is an error)
#[test]
fn the_failure_of_the_first_part_fails_the_whole() {
    let rig = Rig::new();
    let (first, across) = (stored(2, 0, 60_000), stored(2, 60_000, 20_000));
    rig.store(first).unwrap();
    rig.cache.expect(across).unwrap();
    rig.fail_writes(2);
    assert_eq!(rig.put(across), Err(Error::IO));
    assert_eq!(rig.cache.read(across.offset), None);
    rig.fault.clear();
    rig.flush().unwrap();
    assert!(rig.in_file(first));
    assert!(!rig.in_file(across));
}

/// (requirement: data that nobody wants any more does not fail anybody)
#[test]
fn an_evicted_host_cluster_takes_its_error_along() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 5000)).unwrap();
    rig.fail_writes(2);
    assert_eq!(rig.flush(), Err(Error::IO));
    assert_eq!(rig.cache.evict(host(2)), Eviction::Done);
    rig.flush().unwrap();
    rig.store(stored(3, 0, 5000)).unwrap();
    rig.cache.abandon(stored(3, 0, 5000));
    rig.flush().unwrap();
}

/// (requirement: a write that was half done is done again in full)
#[test]
fn a_torn_write_is_repeated() {
    let rig = Rig::new();
    let there = stored(2, 0, 50_000);
    rig.store(there).unwrap();
    rig.fault.add(Rule::new(Kind::Write).effect(Effect::Half).once());
    assert_eq!(rig.flush(), Err(Error::IO));
    assert!(!rig.in_file(there) && rig.in_cache(there));
    rig.flush().unwrap();
    assert!(rig.in_file(there));
}

/// (requirement: the file may change at a reopen; what could not be written meanwhile is kept and
/// reported)
#[test]
fn a_reopen_between_a_failure_and_its_repair() {
    let rig = Rig::new();
    let there = stored(2, 0, 5000);
    rig.store(there).unwrap();
    let reopen = |read_only| {
        let options = ReopenOptions { read_only: Some(read_only), ..ReopenOptions::default() };
        block_on(graph::reopen(&[(rig.node.clone(), options)])).unwrap();
    };
    reopen(true);
    assert_eq!(rig.flush(), Err(Error::ReadOnly));
    assert!(rig.in_cache(there));
    reopen(false);
    rig.flush().unwrap();
    assert!(rig.in_file(there));
}
