//! What the measure pass found: which clusters of the disk hold data, and how long each is in the file.
//!
//! Invariants: clusters are in ascending order; `1 <= len <= cluster size`, and a length of one cluster
//! means that it is stored plain; `bytes()` passes the budget by one chunk at most, and then no more is taken.
//!
//! # Memory
//! A bit (or two bytes, where fewer than one of sixteen clusters has data) for each data cluster, and
//! its length: nothing if all are plain, 2 bytes where clusters have at most 64 KiB, 4 bytes where they
//! are larger. For one TiB of data that is compressed: 34 MiB with clusters of 64 KiB, 2.1 MiB with
//! clusters of 2 MiB, 544 MiB with clusters of 4 KiB. Holes cost nothing.

use block_core::range::to_u64;
use roaring::RoaringTreemap;

/// Bytes of lengths that are allocated at once, so that growing copies nothing.
const CHUNK_BYTES: usize = 64 << 10;
/// Clusters in a container of the bitmap.
const CONTAINER_CLUSTERS: u64 = 1 << 16;
/// Bytes of a container that has many clusters; one that has few has two bytes for each.
const CONTAINER_BYTES: u64 = 8 << 10;
/// What a container takes beside its bits.
const CONTAINER_HEAD_BYTES: u64 = 64;
/// Longest cluster whose lengths take two bytes.
const MAX_SHORT: u64 = 1 << 16;

/// The data clusters of a disk and their lengths in the file.
#[derive(Debug)]
pub(super) struct ClusterList {
    cluster_size: u64,
    clusters: RoaringTreemap,
    lengths: PackedLengths,
    /// Bytes of the containers before the last one.
    full_containers: u64,
    /// Number of the last container, and clusters in it.
    last: (u64, u64),
    budget: u64,
}

/// How the clusters are stored.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Lengths {
    /// All of them plain.
    Uniform,
    /// Each has a length of its own.
    Own,
}

/// A list that cannot grow, and the bytes that it may take.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Full {
    pub(super) budget: u64,
}

/// A cluster of the list.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    /// Its number on the guest's disk.
    pub(super) cluster: u64,
    /// Bytes of it in the file.
    pub(super) len: u64,
}

impl ClusterList {
    /// An empty list for clusters of `cluster_size`, which may take `budget` bytes.
    pub(super) fn new(cluster_size: u64, lengths: Lengths, budget: u64) -> Self {
        let width = match lengths {
            Lengths::Uniform => 0,
            Lengths::Own if cluster_size <= MAX_SHORT => 2,
            Lengths::Own => 4,
        };
        Self {
            cluster_size,
            clusters: RoaringTreemap::new(),
            lengths: PackedLengths { width, chunks: Vec::new() },
            full_containers: 0,
            last: (0, 0),
            budget,
        }
    }

    /// Adds a cluster behind all others; with [`Lengths::Uniform`] its length is one cluster. What is not
    /// in order is left out, which the second pass then meets as a difference.
    pub(super) fn push(&mut self, stored: Stored) -> Result<(), Full> {
        if self.clusters.try_push(stored.cluster).is_err() {
            return Ok(());
        }
        let container = stored.cluster / CONTAINER_CLUSTERS;
        if container == self.last.0 {
            self.last.1 += 1;
        } else {
            self.full_containers += container_bytes(self.last.1);
            self.last = (container, 1);
        }
        self.lengths.push(stored.len);
        if self.bytes() > self.budget { Err(Full { budget: self.budget }) } else { Ok(()) }
    }

    /// Bytes of memory that the list takes.
    pub(super) fn bytes(&self) -> u64 {
        let lengths = to_u64(self.lengths.chunks.len()) * to_u64(CHUNK_BYTES);
        self.full_containers + container_bytes(self.last.1) + lengths
    }

    /// The clusters in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Stored> + Send + '_ {
        let mut lengths = self.lengths.iter();
        self.clusters.iter().map(move |cluster| Stored {
            cluster,
            len: lengths.next().unwrap_or(self.cluster_size),
        })
    }
}

/// Bytes of a container with `count` clusters; arrays grow by doubling.
fn container_bytes(count: u64) -> u64 {
    match count {
        0 => 0,
        _ => CONTAINER_HEAD_BYTES + (2 * count.next_power_of_two()).min(CONTAINER_BYTES),
    }
}

/// Lengths less one, `width` bytes each; none at all if the width is 0.
#[derive(Debug)]
struct PackedLengths {
    width: usize,
    chunks: Vec<Vec<u8>>,
}

impl PackedLengths {
    fn push(&mut self, len: u64) {
        if self.width == 0 {
            return;
        }
        let bytes = len.saturating_sub(1).to_le_bytes();
        let bytes = bytes.get(..self.width).unwrap_or_default();
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK_BYTES) {
            Some(chunk) => chunk.extend_from_slice(bytes),
            None => {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                chunk.extend_from_slice(bytes);
                self.chunks.push(chunk);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = u64> + Send + '_ {
        let width = self.width.max(1);
        self.chunks
            .iter()
            .flat_map(move |chunk| chunk.chunks_exact(width))
            .map(|bytes| 1 + bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(
            bits in 9u32..=21,
            gaps in prop::collection::vec((1u64..100_000, any::<u64>()), 0..300),
            uniform: bool,
        ) {
            let size = 1 << bits;
            let lengths = if uniform { Lengths::Uniform } else { Lengths::Own };
            let mut list = ClusterList::new(size, lengths, u64::MAX);
            let mut cluster = 0;
            let mut expect = Vec::new();
            for (gap, len) in gaps {
                cluster += gap;
                let len = if uniform { size } else { 1 + len % size };
                expect.push(Stored { cluster, len });
                list.push(Stored { cluster, len }).unwrap();
            }
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), expect);
        }
    }

    #[test]
    fn memory_is_what_the_documentation_says_and_no_more_than_the_budget() {
        // 64 GiB of data in clusters of 64 KiB: a sixteenth of what a TiB takes.
        let mut list = ClusterList::new(64 << 10, Lengths::Own, u64::MAX);
        (0..1 << 20).for_each(|cluster| list.push(Stored { cluster, len: 1000 }).unwrap());
        assert!(list.bytes() * 16 < (34 << 20) + (1 << 18), "{}", list.bytes() * 16);
        assert!(list.bytes() * 16 > 33 << 20, "{}", list.bytes() * 16);

        let mut list = ClusterList::new(64 << 10, Lengths::Own, 200 << 10);
        let full = (0..1 << 20).find_map(|cluster| list.push(Stored { cluster, len: 1000 }).err());
        assert_eq!(full, Some(Full { budget: 200 << 10 }));
        assert!(list.bytes() <= (200 << 10) + to_u64(CHUNK_BYTES) + CONTAINER_BYTES);
    }
}
