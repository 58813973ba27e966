//! What a snapshot holds: for each piece of the disk what was possible while it was taken.

use std::collections::{BTreeMap, BTreeSet};

use block_core::ByteRange;
use block_core::range::to_u64;

use super::disk::Source;

/// The contents of a snapshot, as far as they are known.
///
/// Pieces may overlap: a byte is right if one of the pieces that hold it allows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frozen {
    len: u64,
    pieces: Vec<(ByteRange, Source)>,
    /// Whether nothing is known, not even the length.
    anything: bool,
}

impl Frozen {
    /// A snapshot of a disk of `len` bytes; every byte of it is in one piece at least.
    pub fn new(len: u64, pieces: Vec<(ByteRange, Source)>) -> Self {
        Self { len, pieces, anything: false }
    }

    /// A snapshot of `len` bytes that come from `source`.
    pub fn filled(len: u64, source: Source) -> Self {
        Self::new(len, vec![(ByteRange::up_to(len), source)])
    }

    /// A snapshot of which nothing is known.
    pub fn anything() -> Self {
        Self { len: 0, pieces: Vec::new(), anything: true }
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the disk had no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may be where.
    pub fn pieces(&self) -> &[(ByteRange, Source)] {
        &self.pieces
    }

    /// Checks the whole contents of the snapshot.
    ///
    /// # Errors
    /// The offset of the first wrong byte; the length if that is wrong.
    pub fn check(&self, bytes: &[u8]) -> Result<(), u64> {
        let len = to_u64(bytes.len());
        if self.anything {
            return Ok(());
        }
        if len != self.len {
            return Err(len);
        }
        let segments = self.segments();
        for (offset, byte) in (0..).zip(bytes) {
            let sources = segments.range(..=offset).next_back().map(|(_, sources)| sources);
            if !sources.is_some_and(|all| all.iter().any(|source| source.allows(offset, *byte))) {
                return Err(offset);
            }
        }
        Ok(())
    }

    /// The sources of every part of the disk, by its first byte; each goes on to the next one's.
    pub(super) fn segments(&self) -> BTreeMap<u64, Vec<Source>> {
        let edges = self.pieces.iter().flat_map(|(piece, _)| [piece.offset(), piece.end()]);
        let starts: BTreeSet<u64> = edges.chain([0]).filter(|at| *at < self.len.max(1)).collect();
        let sources = |at: u64| {
            let here = |piece: &ByteRange| piece.offset() <= at && at < piece.end();
            let here = self.pieces.iter().filter(|(piece, _)| here(piece));
            let found: Vec<_> = here.map(|(_, source)| source.clone()).collect();
            if found.is_empty() { vec![Source::Zero] } else { found }
        };
        starts.into_iter().map(|at| (at, sources(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::DiskModel;
    use crate::op::contents;

    #[test]
    fn a_snapshot_holds_what_the_disk_held_and_gives_it_back() {
        let range = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let mut model = DiskModel::new(100, Source::Zero);
        let write = model.begin_write(range(10, 20), Source::Op(1));
        let snapshot = model.begin_read(range(0, 100));
        model.end_write(write, crate::model::disk::Outcome::Done);
        let frozen = model.end_snapshot(snapshot);
        let mut bytes = vec![0; 100];
        assert_eq!(frozen.check(&bytes), Ok(()), "the write had not ended");
        bytes[10..20].copy_from_slice(&contents(1, range(10, 20)));
        assert_eq!(frozen.check(&bytes), Ok(()));
        bytes[20] = 1;
        assert_eq!(frozen.check(&bytes), Err(20));
        assert_eq!(frozen.check(&bytes[..50]), Err(50));
        model.truncate(5);
        model.restore(&frozen);
        bytes[20] = 0;
        assert_eq!(model.check(0, &bytes), Ok(()));
        assert_eq!(model.len(), 100);
    }
}
