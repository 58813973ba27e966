//! The refcounts beside a slow twin: a map from clusters to counts.

use std::collections::HashMap;

use block_core::OpenFlags;
use block_core::node::NodeOptions;
use block_core::proto::mem::MemDriver;
use futures::executor::block_on;
use proptest::prelude::*;

use super::*;
use crate::create::{CreateOptions, create_on};
use crate::header_store::HeaderStore;
use crate::metadata_io::write_bytes;
use crate::open::Image;
use crate::overlap::Guarded;

/// An image in memory, its refcounts, and the slow twin: a map from clusters to counts.
struct Pair {
    file: Node,
    header: HeaderStore,
    fast: Refcounts,
    slow: HashMap<u64, u64>,
}

impl Pair {
    fn new(bits: u64) -> Self {
        let file = Node::new(Arc::new(MemDriver::new(64 << 20)), NodeOptions::default());
        let new = CreateOptions::new(1 << 20).cluster_size(512).refcount_bits(bits);
        block_on(create_on(&file, None, &new)).unwrap();
        let (header, fast) = Self::open(&file);
        let mut pair = Self { file, header, fast, slow: HashMap::new() };
        for cluster in 0..pair.covered() {
            let count = block_on(pair.fast.get(cluster)).unwrap();
            pair.slow.extend((count > 0).then_some((cluster, count)));
        }
        pair
    }

    /// The refcounts as they are in the file, with the smallest cache.
    fn open(file: &Node) -> (HeaderStore, Refcounts) {
        let image = block_on(Image::read(file, OpenFlags::READ_WRITE)).unwrap();
        let geometry = image.parts.header.geometry;
        let overlap = Arc::new(OverlapMap::new(geometry, Guarded::CACHED));
        let place = image.parts.header.refcount_table;
        let words = u64::from(place.count) * (geometry.cluster_size() / 8);
        let table = crate::table::read_words(file, "refcount table", place.offset, words);
        let table = block_on(table).unwrap();
        let budget = MemoryBudget::new(1 << 20);
        let fast = Refcounts::new(file.clone(), geometry, overlap, budget, place.offset, table, 0);
        (HeaderStore::new(file.clone(), image.parts), fast)
    }

    fn covered(&self) -> u64 {
        to_u64(self.fast.table.len()) * self.fast.geometry.refcounts_per_block()
    }

    /// Takes clusters; what the structure took for itself is in the twin, too.
    fn allocate(&mut self, want: Want) -> Run {
        let table_before = self.fast.table.clone();
        let place_before = self.fast.table_offset;
        let run = block_on(self.fast.allocate(want, &self.header)).unwrap();
        let (least, most) = match want {
            Want::Exactly(count) => (count, count),
            Want::UpTo(count) => (1, count),
        };
        assert!((least..=most).contains(&run.count), "{run:?} for {want:?}");
        assert!(run.first > 0);
        let mut taken: Vec<u64> = (run.first..run.first + run.count).collect();
        let (geometry, new) = (self.fast.geometry, self.fast.table.iter());
        let blocks = new.enumerate().filter(|(at, raw)| table_before.get(*at) != Some(raw));
        let bits = geometry.cluster_bits();
        taken.extend(blocks.map(|(_, raw)| raw >> bits).filter(|cluster| *cluster > 0));
        if self.fast.table_offset != place_before {
            let clusters = |table: &[u64]| (to_u64(table.len()) * 8) >> bits;
            let first = self.fast.table_offset.bytes() >> bits;
            taken.extend(first..first + clusters(&self.fast.table));
            for run in std::mem::take(&mut self.fast.left) {
                assert_eq!(run.first, place_before.bytes() >> bits);
                assert_eq!(run.count, clusters(&table_before));
                block_on(self.fast.step(run, Step::Down)).unwrap();
                (run.first..run.first + run.count).for_each(|c| {
                    assert_eq!(self.slow.remove(&c), Some(1));
                });
            }
        }
        for cluster in taken {
            assert_eq!(self.slow.insert(cluster, 1), None, "{cluster} was in use");
        }
        run
    }

    fn step(&mut self, run: Run, step: Step) {
        let clusters = run.first..run.first + run.count;
        let max = max_refcount(self.fast.geometry);
        let fits = clusters.clone().all(|cluster| match (self.slow.get(&cluster), step) {
            (None, _) => false,
            (Some(count), Step::Up) => *count < max,
            (Some(_), Step::Down) => true,
        });
        let done = block_on(self.fast.step(run, step));
        assert_eq!(done.is_ok(), fits, "{run:?} {step:?}: {done:?}");
        for cluster in clusters.filter(|_| fits) {
            let count = self.slow.entry(cluster).or_default();
            *count = if step == Step::Up { *count + 1 } else { *count - 1 };
            if *count == 0 {
                self.slow.remove(&cluster);
            }
        }
    }

    fn write_back(&mut self) {
        let (blocks, table) = self.fast.begin_write();
        for part in blocks.into_iter().chain(table) {
            block_on(write_bytes(&self.file, part.offset, &part.bytes)).unwrap();
        }
        assert_eq!(self.fast.confirm_table(), Place::Same);
        self.fast.end_write(&Ok(()));
        assert!(!self.fast.is_dirty());
    }

    fn check(&mut self) {
        for cluster in 0..self.covered() {
            let count = block_on(self.fast.get(cluster)).unwrap();
            assert_eq!(count, self.slow.get(&cluster).copied().unwrap_or(0), "{cluster}");
        }
        let end = self.slow.keys().max().map_or(0, |last| last + 1);
        assert_eq!(block_on(self.fast.end()).unwrap(), end);
    }
}

#[test]
fn clusters_taken_one_by_one_lie_together() {
    for bits in [1, 16, 64] {
        let mut pair = Pair::new(bits);
        let per_block = pair.fast.geometry.refcounts_per_block();
        // Beyond several blocks, and beyond what the first table covers.
        let last = (0..4 * per_block).map(|_| pair.allocate(Want::UpTo(1)).first).max();
        let in_use = to_u64(pair.slow.len());
        let table = to_u64(pair.fast.table.len()) * 8 / 512;
        let bound = in_use + table * 4 + per_block;
        assert!(last.unwrap() < bound, "{last:?}, {in_use} clusters are in use");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Counts of every width are what the slow twin says, in memory and in the file.
    #[test]
    fn counts_are_those_of_a_map(
        order in 0u32..=6,
        ops in prop::collection::vec((0u32..8, 1u64..200, any::<prop::sample::Index>()), 1..60),
    ) {
        let mut pair = Pair::new(1 << order);
        let mut runs: Vec<Run> = Vec::new();
        for (op, count, which) in ops {
            match op {
                0 | 1 => runs.push(pair.allocate(Want::Exactly(count))),
                2 | 3 => runs.push(pair.allocate(Want::UpTo(count))),
                4 if !runs.is_empty() => pair.step(*which.get(&runs), Step::Up),
                5 if !runs.is_empty() => pair.step(*which.get(&runs), Step::Down),
                6 if !runs.is_empty() => {
                    // Refused in the middle, where what follows the run is free.
                    let run = *which.get(&runs);
                    let longer = Run { count: run.count + 1, ..run };
                    if !pair.slow.contains_key(&(run.first + run.count)) {
                        pair.step(longer, Step::Down);
                    }
                }
                _ => pair.write_back(),
            }
        }
        pair.check();
        pair.write_back();
        (pair.header, pair.fast) = Pair::open(&pair.file);
        pair.check();
    }
}

#[test]
fn a_count_that_does_not_fit_changes_nothing() {
    for order in 0..5 {
        let mut pair = Pair::new(1 << order);
        let run = pair.allocate(Want::Exactly(3));
        let max = max_refcount(pair.fast.geometry).min(300);
        let last = Run { first: run.first + 2, count: 1 };
        (1..max).for_each(|_| pair.step(last, Step::Up));
        if max < 300 {
            assert!(block_on(pair.fast.step(run, Step::Up)).is_err());
        }
        pair.check();
    }
}

#[test]
fn a_changed_block_stays_in_memory_until_it_is_written() {
    let mut pair = Pair::new(32);
    let first = pair.allocate(Want::Exactly(1));
    let room = pair.fast.geometry.refcounts_per_block();
    for _ in 0..3 * MIN_BLOCKS {
        pair.allocate(Want::Exactly(room));
    }
    pair.write_back();
    (pair.header, pair.fast) = Pair::open(&pair.file);
    pair.step(first, Step::Up);
    // The first round reads all other blocks, for which there is no room.
    pair.check();
    assert!(pair.fast.blocks.len() <= MIN_BLOCKS + 1, "others were dropped");
    pair.check();
    pair.write_back();
    (pair.header, pair.fast) = Pair::open(&pair.file);
    pair.check();
}

#[test]
fn a_table_that_moves_leaves_out_blocks_that_are_being_written() {
    let mut pair = Pair::new(64);
    // A block that the file knows nothing of yet.
    let room = pair.fast.geometry.refcounts_per_block();
    pair.allocate(Want::Exactly(room));
    let (blocks, table) = pair.fast.begin_write();
    assert!(!blocks.is_empty() && !table.is_empty());
    let old = pair.fast.table_offset;
    while pair.fast.table_offset == old {
        pair.allocate(Want::Exactly(room));
    }
    for part in blocks.into_iter().chain(table) {
        block_on(write_bytes(&pair.file, part.offset, &part.bytes)).unwrap();
    }
    assert_eq!(pair.fast.confirm_table(), Place::Moved);
    pair.fast.end_write(&Err(Error::Busy));
    pair.write_back();
    (pair.header, pair.fast) = Pair::open(&pair.file);
    pair.check();
}
