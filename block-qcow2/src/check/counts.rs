//! How often each cluster is referenced, in memory that follows what is counted.
//!
//! Invariants: a chunk of [`CHUNK`] clusters takes memory only once something in it was counted; all
//! chunks together take at most [`MAX_BYTES`], beyond which counting is an error; counts saturate at
//! `u32::MAX`.

use std::collections::BTreeMap;

use block_core::range::{to_u64, to_usize};
use block_core::{Error, Result};

/// Most bytes of one set of counts. Clusters that are used once take a bit each, so that this is
/// enough for 500 TiB of 64 KiB clusters, or 16 TiB of which all is shared with snapshots.
pub(super) const MAX_BYTES: usize = 1 << 30;

/// Clusters of a chunk.
const CHUNK: u64 = 4096;
const CHUNK_LEN: usize = 4096;
/// Clusters that a chunk holds one by one before it becomes an array.
const FEW: usize = 24;
/// Bytes of a chunk besides its counts, at most.
const OVERHEAD: usize = 96;

/// The counts of one chunk, in the smallest form that holds them.
enum Chunk {
    /// Ordered by place.
    Few(Vec<(u16, u32)>),
    /// Each 0 or 1.
    Bits(Box<[u64; CHUNK_LEN / 64]>),
    /// Each at most 255.
    Bytes(Box<[u8; CHUNK_LEN]>),
    Words(Box<[u32; CHUNK_LEN]>),
}

impl Chunk {
    fn bytes(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Few(list) => list.capacity() * size_of::<(u16, u32)>(),
                Self::Bits(_) => CHUNK_LEN / 8,
                Self::Bytes(_) => CHUNK_LEN,
                Self::Words(_) => CHUNK_LEN * 4,
            }
    }

    fn get(&self, place: u16) -> u32 {
        let at = usize::from(place);
        match self {
            Self::Few(list) => {
                let found = list.binary_search_by_key(&place, |(place, _)| *place);
                found.ok().and_then(|n| list.get(n)).map_or(0, |(_, count)| *count)
            }
            Self::Bits(bits) => {
                bits.get(at / 64).map_or(0, |word| u32::from(word >> (at % 64) & 1 != 0))
            }
            Self::Bytes(counts) => counts.get(at).map_or(0, |count| u32::from(*count)),
            Self::Words(counts) => counts.get(at).copied().unwrap_or(0),
        }
    }

    /// Stores a count; `false` if this form cannot hold it.
    fn set(&mut self, place: u16, count: u32) -> bool {
        let at = usize::from(place);
        match self {
            Self::Few(list) => match list.binary_search_by_key(&place, |(place, _)| *place) {
                Ok(n) => {
                    if let Some((_, old)) = list.get_mut(n) {
                        *old = count;
                    }
                    true
                }
                Err(_) if list.len() >= FEW => false,
                Err(n) => {
                    list.insert(n, (place, count));
                    true
                }
            },
            Self::Bits(bits) => match (bits.get_mut(at / 64), count) {
                (Some(word), 0) => {
                    *word &= !(1 << (at % 64));
                    true
                }
                (Some(word), 1) => {
                    *word |= 1 << (at % 64);
                    true
                }
                _ => false,
            },
            Self::Bytes(counts) => match (counts.get_mut(at), u8::try_from(count)) {
                (Some(old), Ok(count)) => {
                    *old = count;
                    true
                }
                _ => false,
            },
            Self::Words(counts) => {
                if let Some(old) = counts.get_mut(at) {
                    *old = count;
                }
                true
            }
        }
    }

    /// The smallest array that holds these counts and `count`.
    fn widened(&self, count: u32) -> Self {
        let most = self.iter().map(|(_, count)| count).fold(count, u32::max);
        let mut wide = match most {
            0..=1 => Self::Bits(Box::new([0; CHUNK_LEN / 64])),
            2..=255 => Self::Bytes(Box::new([0; CHUNK_LEN])),
            _ => Self::Words(Box::new([0; CHUNK_LEN])),
        };
        for (place, count) in self.iter() {
            wide.set(place, count);
        }
        wide
    }

    /// What is not zero, from the place `from` on.
    fn iter_from(&self, from: u16) -> impl Iterator<Item = (u16, u32)> + '_ {
        let (few, places) = match self {
            Self::Few(list) => (list.as_slice(), 0..0),
            _ => (&[][..], usize::from(from)..CHUNK_LEN),
        };
        let few = few.iter().copied().filter(move |(place, _)| *place >= from);
        let places = places.filter_map(|at| u16::try_from(at).ok());
        let rest = places.map(|place| (place, self.get(place)));
        few.chain(rest).filter(|(_, count)| *count != 0)
    }

    fn iter(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.iter_from(0)
    }
}

/// A count for every cluster of a file.
#[derive(Default)]
pub(super) struct Counts {
    chunks: BTreeMap<u64, Chunk>,
    bytes: usize,
}

impl Counts {
    /// Adds `times` to the count of `cluster`. `NoMemory` beyond [`MAX_BYTES`].
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> Result<()> {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.change(cluster, |count| count.saturating_add(times))
    }

    /// Takes `times` from the count of `cluster`.
    pub(super) fn sub(&mut self, cluster: u64, times: u64) -> Result<()> {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.change(cluster, |count| count.saturating_sub(times))
    }

    fn change(&mut self, cluster: u64, to: impl Fn(u32) -> u32) -> Result<()> {
        let place = u16::try_from(cluster % CHUNK).unwrap_or(0);
        let chunk = self.chunks.entry(cluster / CHUNK).or_insert_with(|| {
            self.bytes += OVERHEAD;
            Chunk::Few(Vec::new())
        });
        let (before, count) = (chunk.bytes(), to(chunk.get(place)));
        if !chunk.set(place, count) {
            *chunk = chunk.widened(count);
            chunk.set(place, count);
        }
        self.bytes = self.bytes - before + chunk.bytes();
        if self.bytes > MAX_BYTES {
            return Err(Error::NoMemory { bytes: to_u64(self.bytes) });
        }
        Ok(())
    }

    /// The count of `cluster`.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let place = u16::try_from(cluster % CHUNK).unwrap_or(0);
        self.chunks.get(&(cluster / CHUNK)).map_or(0, |chunk| chunk.get(place).into())
    }

    /// Clusters from `from` on whose count is not zero, in order.
    pub(super) fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks.range(from / CHUNK..).flat_map(move |(index, chunk)| {
            let first = if *index == from / CHUNK { from % CHUNK } else { 0 };
            let first = u16::try_from(first).unwrap_or(0);
            let start = index * CHUNK;
            chunk
                .iter_from(first)
                .map(move |(place, count)| (start + u64::from(place), count.into()))
        })
    }

    /// The first cluster from `from` on whose count is not zero.
    pub(super) fn next(&self, from: u64) -> Option<(u64, u64)> {
        self.iter_from(from).next()
    }

    /// One past the last cluster whose count is not zero.
    pub(super) fn end(&self) -> u64 {
        let last = self.chunks.iter().rev().find_map(|(index, chunk)| {
            let place = chunk.iter().last()?.0;
            Some(index * CHUNK + u64::from(place) + 1)
        });
        last.unwrap_or(0)
    }

    /// The counts of the clusters from `first` on, into `out`.
    pub(super) fn copy_to(&self, first: u64, out: &mut [u64]) {
        out.fill(0);
        let end = first.saturating_add(to_u64(out.len()));
        for (cluster, count) in self.iter_from(first).take_while(|(cluster, _)| *cluster < end) {
            if let Some(place) = out.get_mut(to_usize(cluster - first)) {
                *place = count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn far_apart_clusters_take_little() {
        let mut counts = Counts::default();
        for n in 0..1000 {
            counts.add(n << 40, 1).unwrap();
        }
        assert!(counts.bytes < 300_000, "{} bytes", counts.bytes);
        assert_eq!(counts.end(), (999 << 40) + 1);
    }

    #[test]
    fn memory_has_a_cap() {
        let mut counts = Counts { bytes: MAX_BYTES - 100, ..Counts::default() };
        assert!((0..3).any(|n| counts.add(n << 20, 1).is_err()));
    }

    #[test]
    fn counts_saturate() {
        let mut counts = Counts::default();
        counts.add(7, u64::MAX).unwrap();
        counts.add(7, 1).unwrap();
        assert_eq!(counts.get(7), u64::from(u32::MAX));
        counts.sub(7, u64::MAX).unwrap();
        assert_eq!(counts.next(0), None);
    }

    proptest! {
        /// The slow twin is a map.
        #[test]
        fn counts_as_a_map_does(
            steps in prop::collection::vec((0u64..9000, 0u64..300, any::<bool>()), 0..400),
            dense in 0u64..5000,
            from in 0u64..10000,
        ) {
            let mut counts = Counts::default();
            let mut map = BTreeMap::<u64, u64>::new();
            for cluster in 0..dense {
                counts.add(cluster, 1).unwrap();
                map.insert(cluster, 1);
            }
            for (cluster, times, add) in steps {
                let count = map.entry(cluster).or_default();
                if add {
                    counts.add(cluster, times).unwrap();
                    *count += times;
                } else {
                    counts.sub(cluster, times).unwrap();
                    *count = count.saturating_sub(times);
                }
            }
            map.retain(|_, count| *count != 0);
            let expect: Vec<_> = map.range(from..).map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(counts.iter_from(from).collect::<Vec<_>>(), expect);
            prop_assert_eq!(counts.end(), map.keys().last().map_or(0, |last| last + 1));
            let mut out = vec![9; 100];
            counts.copy_to(from, &mut out);
            for (n, count) in (from..).zip(out) {
                prop_assert_eq!(count, counts.get(n));
                prop_assert_eq!(count, map.get(&n).copied().unwrap_or(0));
            }
        }
    }
}
