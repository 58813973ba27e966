//! Where a repair puts what it writes anew: behind all that is in use.
//!
//! Invariant: nothing that a table refers to, and nothing that was given out, is given out.

use block_core::Node;

use super::walk::{SECTORS_MAX, Walk};
use crate::extent::geometry::SECTOR;
use crate::extent::layout::Header;

/// Most bytes of grains that are copied out of the way of others. Beyond, entries are dropped.
const MAX_COPIED_BYTES: u64 = 1 << 30;

/// Free sectors behind what is in use.
pub(super) struct Spare {
    next: u64,
    end: u64,
    grain: u64,
    /// What the first sector of a grain is modulo `grain`.
    phase: u64,
    /// How many more grains may be copied.
    copies: u64,
}

impl Spare {
    pub(super) fn new(file: &Node, walk: &Walk<'_>) -> Self {
        let sectors = file.len().div_ceil(SECTOR);
        let grain = walk.grain();
        let (next, end) = match file.capabilities().grows_on_write {
            true => (sectors.max(walk.used_end()), SECTORS_MAX),
            false => (walk.used_end(), sectors.min(SECTORS_MAX)),
        };
        // Behind the end of a stream nothing may stand.
        let end = if walk.examined.layout.is_compressed() { next } else { end };
        let phase = match &walk.examined.layout.header {
            Header::Hosted(header) => header.overhead().0 % grain,
            Header::Cowd(_) | Header::SeSparse(_) => 0,
        };
        Self { next, end, grain, phase, copies: MAX_COPIED_BYTES / (grain * SECTOR) }
    }

    /// A place for a table; `None` where there is no room.
    pub(super) fn table(&mut self, sectors: u64) -> Option<u32> {
        self.take(self.next, sectors)
    }

    /// A place for a copy of a grain.
    pub(super) fn grain(&mut self) -> Option<u32> {
        self.copies = self.copies.checked_sub(1)?;
        let ahead = self.next.checked_sub(self.phase).unwrap_or_default();
        self.take(ahead.next_multiple_of(self.grain) + self.phase, self.grain)
    }

    fn take(&mut self, start: u64, count: u64) -> Option<u32> {
        let end = start.checked_add(count).filter(|end| *end <= self.end)?;
        self.next = end;
        u32::try_from(start).ok()
    }
}
