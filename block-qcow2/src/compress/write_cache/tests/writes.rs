//! What is written, when, and how it looks.

use super::*;

/// (requirement: compressed clusters come in any order, a host cluster is one aligned write, written as
/// soon as it is full)
#[test]
fn a_full_host_cluster_is_one_write_whatever_the_order() {
    let rig = Rig::new();
    let all = [stored(2, 0, 1000), stored(2, 1000, 30_001), stored(2, 31_001, SIZE - 31_001)];
    all.iter().for_each(|s| rig.cache.expect(*s).unwrap());
    for which in [2, 0] {
        rig.put(all[which]).unwrap();
        assert_eq!(rig.requests(), "", "not full yet");
        assert!(rig.in_cache(all[which]));
    }
    assert_eq!(rig.cache.read(all[1].offset), None, "only expected");
    rig.put(all[1]).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x10000\n");
    assert!(all.iter().all(|s| rig.in_file(*s) && !rig.in_cache(*s)));
    assert_eq!((rig.count(), rig.used(), rig.budget.used()), (0, 0, 0), "its memory is given back");
}

/// (requirement: the end of what a host cluster will hold is said by the cluster, and padded with zeroes
/// within it)
#[test]
fn a_sealed_host_cluster_is_padded_to_a_block() {
    let rig = Rig::new();
    rig.disk.load(2 * SIZE, &vec![0xff; to_usize(2 * SIZE)]);
    let (first, second) = (stored(2, 0, 3000), stored(2, 3000, 2000));
    rig.cache.expect(first).unwrap();
    rig.cache.expect(second).unwrap();
    rig.cache.seal(host(2));
    rig.cache.seal(host(7));
    rig.put(second).unwrap();
    assert_eq!(rig.requests(), "");
    rig.put(first).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n");
    let disk = rig.disk.to_vec();
    let at = to_usize(2 * SIZE);
    assert!(rig.in_file(first) && rig.in_file(second));
    assert!(disk[at + 5000..at + 8192].iter().all(|b| *b == 0));
    assert!(disk[at + 8192..].iter().take(to_usize(SIZE)).all(|b| *b == 0xff));
}

/// (requirement: a host cluster that was complete already is written by the next who puts)
#[test]
fn what_a_seal_or_an_abandon_completes_is_written_by_the_next_put() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 3000)).unwrap();
    rig.cache.seal(host(2));
    let (kept, lost) = (stored(3, 0, 100), stored(3, 100, 100));
    rig.store(kept).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x1000\n");
    rig.cache.expect(lost).unwrap();
    rig.cache.seal(host(3));
    rig.cache.abandon(lost);
    rig.store(stored(4, 0, 100)).unwrap();
    assert_eq!(rig.requests(), "write 0x30000+0x1000\n");
}

/// (requirement: what was abandoned as a whole is not written)
#[test]
fn a_host_cluster_with_nothing_in_it_leaves_without_a_write() {
    let rig = Rig::new();
    let (first, second) = (stored(2, 0, 3000), stored(2, 3000, 3000));
    rig.cache.expect(first).unwrap();
    rig.store(second).unwrap();
    rig.cache.seal(host(2));
    rig.cache.abandon(second);
    assert_eq!(rig.cache.read(second.offset), None);
    rig.cache.abandon(first);
    assert_eq!(rig.count(), 0);
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "");
}

/// (requirement: a flush writes whole blocks from memory, keeps the last one and never reads it back)
#[test]
fn a_flush_of_a_part_writes_its_blocks_and_later_only_the_new_ones() {
    let rig = Rig::new();
    let all = [stored(2, 0, 5000), stored(2, 5000, 100), stored(2, 5100, 9000)];
    rig.store(all[0]).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n");
    assert!(rig.in_file(all[0]));
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "", "nothing new");
    rig.store(all[1]).unwrap();
    rig.store(all[2]).unwrap();
    rig.cache.seal(host(2));
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "write 0x21000+0x3000\n", "the block at the seam again, no read");
    assert!(all.iter().all(|s| rig.in_file(*s)));
    assert_eq!(rig.count(), 0);
}

/// (requirement: sealing what is in the file already needs no write)
#[test]
fn a_host_cluster_that_was_flushed_leaves_when_it_is_sealed() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 5000)).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.count(), 1);
    rig.requests();
    rig.cache.seal(host(2));
    assert_eq!((rig.count(), rig.requests()), (0, String::new()));
}

/// (requirement: holes between compressed clusters that have not come yet are no trouble for a flush)
#[test]
fn a_flush_before_an_earlier_part_has_come() {
    let rig = Rig::new();
    let (early, late) = (stored(2, 5000, 5000), stored(2, 0, 5000));
    rig.cache.expect(late).unwrap();
    rig.store(early).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "write 0x21000+0x2000\n");
    rig.put(late).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x2000\n");
    assert!(rig.in_file(early) && rig.in_file(late));
}

/// (requirement: what crosses into the next host cluster is read as a whole while either part is not
/// in the file)
#[test]
fn a_compressed_cluster_in_two_host_clusters_is_read_as_a_whole() {
    let rig = Rig::new();
    let (first, across) = (stored(2, 0, 60_000), stored(2, 60_000, 20_000));
    rig.store(first).unwrap();
    rig.store(across).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0x10000\n");
    assert_eq!(rig.count(), 1, "the first has left");
    assert!(rig.in_cache(across) && !rig.in_file(across));
    let len = SIZE - 60_000;
    assert_eq!((rig.used(), rig.budget.used()), (SIZE + len, SIZE + len), "and is accounted for");
    rig.cache.seal(host(3));
    rig.flush().unwrap();
    assert!(rig.in_file(across) && !rig.in_cache(across));

    // The other way round: the second leaves before the first is complete.
    let (first, across) = (stored(5, 0, 60_000), stored(5, 60_000, 20_000));
    rig.cache.expect(first).unwrap();
    rig.cache.expect(across).unwrap();
    rig.cache.seal(host(6));
    rig.requests();
    rig.put(across).unwrap();
    assert_eq!(rig.requests(), "write 0x60000+0x4000\n");
    assert!(rig.in_cache(across) && !rig.in_file(across));
    rig.put(first).unwrap();
    assert!(rig.in_file(across) && rig.in_file(first));
    assert_eq!((rig.count(), rig.used(), rig.budget.used()), (0, 0, 0));
}

/// (requirement: small clusters have small blocks, and no write leaves its host cluster)
#[test]
fn a_block_is_no_larger_than_a_host_cluster() {
    let rig = Rig::with(9, 0, MemoryBudget::new(1 << 20), 512);
    let at = |offset, len| Stored { offset: HostOffset::new(offset), len };
    rig.store(at(0x600, 100)).unwrap();
    rig.store(at(0x664, 500)).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.requests(), "write 0x600+0x200\nwrite 0x800+0x200\n");
    assert!(rig.in_file(at(0x600, 100)) && rig.in_file(at(0x664, 500)));
}

/// (requirement: the place of a write is compared with metadata when it is written, not before)
#[test]
fn the_overlap_check_belongs_to_the_write() {
    let rig = Rig::new();
    let there = stored(2, 0, 3000);
    rig.store(there).unwrap();
    rig.overlap.insert(Section::RefcountBlock, host(2), SIZE);
    assert!(matches!(rig.flush(), Err(Error::Corrupt { .. })));
    assert_eq!(rig.requests(), "", "nothing was written");
    assert!(rig.in_cache(there));
    rig.overlap.remove(host(2), SIZE);
    rig.flush().unwrap();
    assert!(rig.in_file(there));
}

/// (requirement: the buffer is the aligned bounce buffer, one for all compressed clusters)
#[test]
fn thousands_of_compressed_clusters_are_one_buffer() {
    let rig = Rig::new();
    let all: Vec<_> = (0..2048).map(|n| stored(2, n * 32, 32)).collect();
    all.iter().for_each(|s| rig.cache.expect(*s).unwrap());
    all.iter().rev().for_each(|s| rig.put(*s).unwrap());
    assert_eq!(rig.requests(), "write 0x20000+0x10000\n", "one request, one buffer");
    assert!(all.iter().all(|s| rig.in_file(*s)));
}

/// (requirement: an empty cache costs a read nothing, and knows nothing)
#[test]
fn nothing_is_found_in_an_empty_cache() {
    let rig = Rig::new();
    assert_eq!(rig.cache.read(host(2)), None);
    rig.store(stored(2, 0, 10)).unwrap();
    rig.cache.clear();
    assert_eq!((rig.cache.read(host(2)), rig.count(), rig.used()), (None, 0, 0));
}

/// (requirement: no memory is an error, not an abort)
#[test]
fn without_memory_nothing_is_expected() {
    let rig = Rig::new();
    let (map, budget) = (Arc::clone(&rig.overlap), Arc::clone(&rig.budget));
    let cache = WriteCache::new(rig.node.clone(), 62, map, budget, 0);
    let result = cache.expect(Stored { offset: HostOffset::new(0), len: 10 });
    assert!(matches!(result, Err(Error::NoMemory { .. })), "{result:?}");
    assert_eq!(cache.read(HostOffset::new(0)), None);
    assert_eq!(rig.budget.used(), 0);
}

/// (requirement: a place for which there is no memory is passed over, and keeps nothing from being written)
#[test]
fn a_host_cluster_whose_end_was_passed_over_is_sealed() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 60_000)).unwrap();
    // What an allocation does that fails in the second host cluster.
    rig.cache.inner.change(|state| state.pass_over(stored(2, 60_000, 20_000)));
    rig.store(stored(3, 14_464, 100)).unwrap();
    assert_eq!(rig.requests(), "write 0x20000+0xf000\n");
    assert!(rig.in_file(stored(2, 0, 60_000)));
}

/// (requirement: bytes that nobody expected have no place: a mistake of the caller, not a new entry)
#[test]
#[should_panic(expected = "is not expected")]
fn bytes_come_only_where_they_are_expected() {
    let rig = Rig::new();
    rig.store(stored(2, 0, 10)).unwrap();
    let _ = rig.put(stored(2, 10, 10));
}

/// (requirement: the padding behind a sealed host cluster's end hits nobody, because nobody is put there)
#[test]
#[should_panic(expected = "in a sealed host cluster")]
fn nothing_is_expected_behind_a_seal() {
    let rig = Rig::new();
    rig.cache.expect(stored(2, 0, 10)).unwrap();
    rig.cache.seal(host(2));
    let _ = rig.cache.expect(stored(2, 10, 10));
}
