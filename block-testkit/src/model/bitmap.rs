//! The slow twin of a dirty bitmap: one `bool` a byte.
//!
//! It follows the written rules byte by byte: setting dirties every granule that has a byte in the
//! range, resetting cleans every granule whose every byte on the disk is in the range.

use block_core::ByteRange;

/// A dirty bitmap, byte by byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapModel {
    granularity: u64,
    /// Whether each byte of the disk is dirty; the same for all bytes of a granule.
    dirty: Vec<bool>,
}

impl BitmapModel {
    /// All clean.
    pub fn new(granularity: u64, len: u64) -> Self {
        Self { granularity, dirty: vec![false; index(len)] }
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        offset(self.dirty.len())
    }

    /// Whether the disk has no bytes.
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Dirties the granules that have a byte in `range`.
    pub fn set(&mut self, range: ByteRange) {
        for granule in self.granules() {
            if granule.overlaps(range) {
                self.fill(granule, true);
            }
        }
    }

    /// Cleans the granules whose every byte is in `range`.
    pub fn reset(&mut self, range: ByteRange) {
        for granule in self.granules() {
            if range.contains(granule) {
                self.fill(granule, false);
            }
        }
    }

    /// Cleans everything.
    pub fn clear(&mut self) {
        self.dirty.fill(false);
    }

    /// Follows the disk; what is added is clean, but a granule is dirty as a whole.
    pub fn truncate(&mut self, len: u64) {
        self.dirty.resize(index(len), false);
        for granule in self.granules() {
            if (granule.offset()..granule.end()).any(|at| self.dirty[index(at)]) {
                self.fill(granule, true);
            }
        }
    }

    /// Dirties what is dirty in `other`.
    pub fn merge(&mut self, other: &Self) {
        for area in other.areas() {
            self.set(area);
        }
    }

    /// Whether a byte is dirty.
    pub fn contains(&self, at: u64) -> bool {
        self.dirty.get(index(at)).copied().unwrap_or(false)
    }

    /// How many bytes are dirty.
    pub fn count(&self) -> u64 {
        offset(self.dirty.iter().filter(|dirty| **dirty).count())
    }

    /// The first dirty byte from `from` on.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        (from..self.len()).find(|at| self.contains(*at))
    }

    /// The first clean byte from `from` on.
    pub fn next_zero(&self, from: u64) -> Option<u64> {
        (from..self.len()).find(|at| !self.contains(*at))
    }

    /// The first dirty run in `range`, no longer than `max_len`.
    pub fn next_dirty_area(&self, range: ByteRange, max_len: u64) -> Option<ByteRange> {
        let start = self.next_dirty(range.offset()).filter(|at| *at < range.end())?;
        let end = (start..range.end().min(self.len()))
            .take_while(|at| self.contains(*at) && at - start < max_len)
            .last()?
            + 1;
        ByteRange::from_bounds(start, end).ok()
    }

    /// Every maximal dirty run.
    pub fn areas(&self) -> Vec<ByteRange> {
        let mut areas = Vec::new();
        let mut from = 0;
        while let Some(start) = self.next_dirty(from) {
            let end = self.next_zero(start).unwrap_or(self.len());
            areas.extend(ByteRange::from_bounds(start, end));
            from = end;
        }
        areas
    }

    fn granules(&self) -> Vec<ByteRange> {
        let disk = ByteRange::up_to(self.len());
        let starts = (0..self.len()).step_by(index(self.granularity));
        starts
            .filter_map(|start| ByteRange::new(start, self.granularity).ok())
            .map(|granule| granule.intersect(disk))
            .collect()
    }

    fn fill(&mut self, range: ByteRange, value: bool) {
        self.dirty[index(range.offset())..index(range.end())].fill(value);
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn offset(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}
