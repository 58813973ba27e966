//! Cuts a buffer into runs of zeroes and runs of data.
//!
//! Invariants: the runs cover the buffer in order; no two runs of one kind are neighbours; a zero run
//! has at least the length asked for, or is the whole buffer; runs of clusters begin and end at clusters,
//! or at the end of the buffer.

use crate::buf::IoBuf;
use crate::range::{Alignment, to_usize};

/// How much of a block is looked at before all of it: data rarely starts with zeroes.
const FIRST_LOOK: usize = 64;

/// A part of a buffer.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Offset in the buffer.
    pub offset: usize,
    /// Length.
    pub len: usize,
    /// Whether every byte is zero.
    pub is_zero: bool,
}

/// The runs of a buffer, found as they are asked for.
pub struct Runs {
    buf: IoBuf,
    block: usize,
    min: usize,
    /// Where the next run starts.
    offset: usize,
    /// A zero run that was found while the data run before it was measured.
    found: Option<Run>,
}

impl Runs {
    /// Runs of `buf` where zero runs have at least `min_bytes`. They are looked for in blocks of that many
    /// bytes, or the next lower power of two, counted from the start of the buffer.
    pub fn new(buf: IoBuf, min_bytes: u64) -> Self {
        let min = to_usize(min_bytes).min(buf.len()).max(1);
        Self { buf, block: 1 << min.ilog2(), min, offset: 0, found: None }
    }

    /// Runs of whole clusters of `buf`, of which the last may be shorter: those that are all zero, and
    /// the others.
    pub fn of_clusters(buf: IoBuf, cluster: Alignment) -> Self {
        Self { buf, block: to_usize(cluster.bytes()), min: 1, offset: 0, found: None }
    }

    /// The zero run at `start`, of whole blocks or up to the end; zero length if there is none.
    fn zeroes_at(&self, start: usize) -> usize {
        let mut at = start;
        while at < self.buf.len() {
            let len = self.block.min(self.buf.len() - at);
            if !is_zero(&self.buf, at, len) {
                break;
            }
            at += len;
        }
        at - start
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if let Some(run) = self.found.take() {
            self.offset = run.offset + run.len;
            return Some(run);
        }
        let start = self.offset;
        let mut at = start;
        while at < self.buf.len() {
            let len = self.zeroes_at(at);
            if len >= self.min {
                let run = Run { offset: at, len, is_zero: true };
                if at == start {
                    self.offset = at + len;
                    return Some(run);
                }
                self.found = Some(run);
                break;
            }
            // The zeroes were too few: they and the block that ended them are data.
            at += (len + self.block).min(self.buf.len() - at);
        }
        self.offset = at;
        (at > start).then_some(Run { offset: start, len: at - start, is_zero: false })
    }
}

fn is_zero(buf: &IoBuf, offset: usize, len: usize) -> bool {
    buf.slice(offset, len.min(FIRST_LOOK)).is_zero() && buf.slice(offset, len).is_zero()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::to_u64;
    use proptest::prelude::*;

    fn buffer(bytes: &[u8]) -> IoBuf {
        let buf = IoBuf::zeroed(bytes.len(), Alignment::ONE).unwrap();
        buf.copy_from(0, bytes);
        buf
    }

    proptest! {
        #[test]
        fn runs_cover_the_buffer_and_say_the_truth(
            blocks in prop::collection::vec(prop_oneof![Just(0u8), Just(0), Just(1)], 0..40),
            tail in 0..512usize,
            min in prop_oneof![Just(512u64), Just(1024), Just(4096), Just(1 << 20)],
        ) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|b| [*b; 512]).collect();
            bytes.resize(bytes.len() + tail, 0);
            let mut at = 0;
            let mut last = None;
            for run in Runs::new(buffer(&bytes), min) {
                prop_assert_eq!(run.offset, at);
                prop_assert!(run.len > 0 && last != Some(run.is_zero));
                let part = &bytes[run.offset..run.offset + run.len];
                if run.is_zero {
                    prop_assert!(part.iter().all(|b| *b == 0));
                    prop_assert!(run.len >= to_usize(min).min(bytes.len()));
                } else {
                    prop_assert!(part.iter().any(|b| *b != 0) || run.len < to_usize(min));
                }
                last = Some(run.is_zero);
                at += run.len;
            }
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn longer_runs_begin_at_blocks_of_their_length(
            blocks in prop::collection::vec(any::<bool>(), 1..64),
            min in prop_oneof![Just(8192usize), Just(10000), Just(16384)],
        ) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|b| [u8::from(*b); 1024]).collect();
            bytes.resize(64 << 10, 1);
            let block = 1 << min.ilog2();
            for run in Runs::new(buffer(&bytes), to_u64(min)) {
                prop_assert_eq!((run.offset % block, run.len % block), (0, 0));
            }
        }

        #[test]
        fn with_one_block_as_the_shortest_run_every_zero_block_is_found(
            blocks in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let bytes: Vec<u8> = blocks.iter().flat_map(|b| [u8::from(*b); 4096]).collect();
            let expect = blocks.iter().filter(|b| **b).count() * 4096;
            let data: usize = Runs::new(buffer(&bytes), 4096)
                .filter(|run| !run.is_zero)
                .map(|run| run.len)
                .sum();
            prop_assert_eq!(to_u64(data), to_u64(expect));
        }
    }

    /// What the runs of clusters have to be, cluster by cluster.
    fn slow_clusters(bytes: &[u8], cluster: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, part) in bytes.chunks(cluster).enumerate() {
            let is_zero = part.iter().all(|byte| *byte == 0);
            match runs.last_mut() {
                Some(run) if run.is_zero == is_zero => run.len += part.len(),
                _ => runs.push(Run { offset: index * cluster, len: part.len(), is_zero }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn runs_of_clusters_are_what_a_look_at_each_cluster_says(
            clusters in prop::collection::vec(prop_oneof![Just(None), (0..512usize).prop_map(Some)], 0..40),
            sectors in prop_oneof![Just(1usize), Just(3), Just(8), Just(16)],
            cut in 0..512usize,
        ) {
            let cluster = sectors * 512;
            let mut bytes = vec![0; clusters.len() * cluster];
            for (index, set) in clusters.iter().enumerate() {
                // One byte of the cluster is not zero.
                set.iter().for_each(|at| bytes[index * cluster + at * sectors] = 1);
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let align = Alignment::new(to_u64(cluster)).unwrap();
            let runs: Vec<_> = Runs::of_clusters(buffer(&bytes), align).collect();
            prop_assert_eq!(runs, slow_clusters(&bytes, cluster));
        }
    }

    #[test]
    fn a_byte_at_the_end_of_a_block_makes_it_data() {
        let mut bytes = vec![0; 8192];
        bytes[4095] = 1;
        let runs: Vec<_> = Runs::new(buffer(&bytes), 4096).collect();
        let run = |offset, is_zero| Run { offset, len: 4096, is_zero };
        assert_eq!(runs, [run(0, false), run(4096, true)]);
    }
}
