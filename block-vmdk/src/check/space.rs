//! Where a repair puts what it writes anew: behind all that is in use, or where it is known that nothing is.
//!
//! Invariant: nothing that a table refers to, and nothing that was given out, is given out.

use block_core::Node;

use super::walk::{SECTORS_MAX, Walk};
use crate::extent::geometry::SECTOR;
use crate::extent::layout::Header;

/// Most bytes of grains that are copied out of the way of others. Beyond, entries are dropped.
const MAX_COPIED_BYTES: u64 = 1 << 30;

/// Free sectors of the file.
pub(super) struct Spare {
    /// First sectors and ends of runs, from the last to the first.
    runs: Vec<(u64, u64)>,
    grain: u64,
    /// What the first sector of a grain is modulo `grain`.
    phase: u64,
    /// How many more grains may be copied.
    copies: u64,
}

impl Spare {
    /// What is behind all that is in use, and behind the file's end where it grows.
    pub(super) fn new(file: &Node, walk: &Walk<'_>) -> Self {
        let sectors = file.len().div_ceil(SECTOR);
        let (next, end) = match file.capabilities().grows_on_write {
            true => (sectors.max(walk.used_end()), SECTORS_MAX),
            false => (walk.used_end(), sectors.min(SECTORS_MAX)),
        };
        // Behind the end of a stream nothing may stand.
        let end = if walk.examined.layout.is_compressed() { next } else { end };
        Self::of_runs(walk, vec![(next, end)])
    }

    /// These runs, which nothing refers to.
    pub(super) fn of_runs(walk: &Walk<'_>, mut runs: Vec<(u64, u64)>) -> Self {
        let grain = walk.grain();
        let phase = match &walk.examined.layout.header {
            Header::Hosted(header) => header.overhead().0 % grain,
            Header::Cowd(_) | Header::SeSparse(_) => 0,
        };
        runs.reverse();
        Self { runs, grain, phase, copies: MAX_COPIED_BYTES / (grain * SECTOR) }
    }

    /// A place for a table; `None` where there is no room.
    pub(super) fn table(&mut self, sectors: u64) -> Option<u32> {
        self.take(sectors, |start| start)
    }

    /// A place for a copy of a grain.
    pub(super) fn grain(&mut self) -> Option<u32> {
        self.copies = self.copies.checked_sub(1)?;
        let (grain, phase) = (self.grain, self.phase);
        self.take(grain, |start| start.saturating_sub(phase).next_multiple_of(grain) + phase)
    }

    /// Whether the next place is before `sector`.
    pub(super) fn is_before(&self, sector: u64) -> bool {
        self.runs.last().is_some_and(|(start, _)| *start < sector)
    }

    fn take(&mut self, count: u64, aligned: impl Fn(u64) -> u64) -> Option<u32> {
        while let Some((next, end)) = self.runs.last_mut() {
            let start = aligned(*next);
            if let Some(taken) = start.checked_add(count).filter(|taken| *taken <= *end) {
                *next = taken;
                return u32::try_from(start).ok();
            }
            self.runs.pop();
        }
        None
    }
}
