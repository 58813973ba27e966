//! What is known of a LUN's contents: pages that are zero need no read, and pages that are data
//! need no question.
//!
//! Two sets of pages: *allocated* (A) and *valid* (V). A page is in one of four states:
//!
//! | V | A | [`PageState`] | meaning |
//! |---|---|---|---|
//! | 0 | 0 | `Unknown` | nothing is known |
//! | 0 | 1 | `Suspected` | held data once; asking about it is not worth it |
//! | 1 | 0 | `Zero` | all of its bytes read as zeroes |
//! | 1 | 1 | `Allocated` | holds data |
//!
//! There is one rule of change, [`AllocMap::update`], and one function that may claim zeroes,
//! [`AllocMap::answer`]. **Invariant:** a claim is only ever made for pages that were covered in
//! full: "zero" and "valid" spread over the pages *inside* a range, "allocated" and "not valid"
//! over the pages that it *touches*. So whatever the order of updates, `answer(r) == Zeroes`
//! implies that the last update of every byte of `r` was [`Contents::Zero`].
//!
//! The first page begins and the last one ends where the LUN does, so a range from or up to there covers
//! it. In between, pages begin at [`PageGrid::origin`] and every [`PageGrid::len`] bytes from there.
//!
//! Not here: asking the target, and the order of its answers. A status that was asked for before a
//! write to the same page must not be applied after it; the caller has to see to that.

use std::ops::Range;

use block_core::ByteRange;
use block_core::range::MAX_LEN;
use roaring::RoaringBitmap;

/// Smallest page in bytes.
pub const PAGE_BYTES_MIN: u64 = 4 << 10;
/// Largest page in bytes.
pub const PAGE_BYTES_MAX: u64 = 16 << 20;
/// Most pages that are kept track of: 16 TiB in the smallest pages.
pub const PAGES_MAX: u64 = 0xffff_ffff;

/// Where pages begin and end.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PageGrid {
    /// Length of a page in bytes: any number, not only powers of two.
    pub len: u64,
    /// Where a page begins; less than `len`. What is before it is a shorter page.
    pub origin: u64,
}

impl PageGrid {
    /// Pages of `len` bytes from the start of the LUN on.
    pub fn new(len: u64) -> Self {
        Self { len, origin: 0 }
    }

    /// By how much a page that begins at or before the start of the LUN begins before it.
    fn shift(&self) -> u64 {
        if self.origin == 0 { 0 } else { self.len - self.origin }
    }

    /// How many pages begin before `end`.
    fn count(&self, end: u64) -> u64 {
        end.saturating_add(self.shift()).div_ceil(self.len)
    }

    /// Which page holds byte `offset`.
    fn index(&self, offset: u64) -> u64 {
        (offset + self.shift()) / self.len
    }

    /// Where page `number` begins.
    fn start(&self, number: u64) -> u64 {
        number.saturating_mul(self.len).saturating_sub(self.shift())
    }
}

/// Why there can be no map.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// The page size is outside of what is worth a map.
    #[error("a page of {page} bytes is not between {PAGE_BYTES_MIN} and {PAGE_BYTES_MAX}")]
    Page {
        /// The page size in bytes.
        page: u64,
    },
    /// No page begins there.
    #[error("pages of {page} bytes cannot begin at {origin}")]
    Origin {
        /// The page size in bytes.
        page: u64,
        /// Where a page was to begin.
        origin: u64,
    },
    /// More pages than are kept track of, or longer than any disk.
    #[error("{len} bytes in pages of {page} bytes are too many for a map")]
    TooLong {
        /// Length of the LUN in bytes.
        len: u64,
        /// The page size in bytes.
        page: u64,
    },
}

/// Whether what is known may be relied on without asking again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Nobody else writes to the LUN.
    Cached,
    /// Others may write (`cache.direct=on`): nothing is ever valid, only suspected.
    Never,
}

/// What a range is known to hold now.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Data: it was written, or the target said so.
    Allocated,
    /// Zeroes: the target said so.
    Zero,
    /// Anything: it was unmapped, or a write to it failed.
    Unknown,
}

/// What to do about a read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All of it is zeroes; nothing needs to be read.
    Zeroes,
    /// Nothing of it is known to be data: asking the target may save the read.
    Ask,
    /// Read it.
    Read,
}

/// Pages in a row of which the same is certain.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Whether they are zeroes; else they hold data.
    pub zero: bool,
    /// One past their last byte.
    pub end: u64,
}

/// What is known of a page.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PageState {
    /// Nothing.
    Unknown,
    /// It held data once.
    Suspected,
    /// It is all zeroes.
    Zero,
    /// It holds data.
    Allocated,
}

/// The map of one LUN. See the module for its rules.
#[derive(Clone, PartialEq, Debug)]
pub struct AllocMap {
    len: u64,
    grid: PageGrid,
    trust: Trust,
    allocated: RoaringBitmap,
    valid: RoaringBitmap,
}

impl AllocMap {
    /// A map of `len` bytes in the pages of `grid`, of which nothing is known.
    pub fn new(len: u64, grid: PageGrid, trust: Trust) -> Result<Self, MapError> {
        let PageGrid { len: page, origin } = grid;
        if !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page) {
            return Err(MapError::Page { page });
        }
        if origin >= page {
            return Err(MapError::Origin { page, origin });
        }
        check_len(len, grid)?;
        Ok(Self { len, grid, trust, allocated: RoaringBitmap::new(), valid: RoaringBitmap::new() })
    }

    /// Length of the LUN in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the LUN has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Records what `range` holds from now on. What is beyond the end of the LUN is ignored.
    pub fn update(&mut self, range: ByteRange, contents: Contents) {
        let (touched, covered) = (self.touched(range), self.covered(range));
        match contents {
            Contents::Allocated => self.allocated.insert_range(touched.clone()),
            Contents::Zero | Contents::Unknown => self.allocated.remove_range(covered.clone()),
        };
        let known = contents != Contents::Unknown && self.trust == Trust::Cached;
        if known {
            self.valid.insert_range(covered);
        } else {
            self.valid.remove_range(touched);
        }
    }

    /// Takes the pages that `range` touches for data, without being certain: asking about them is not
    /// worth it, or a command that changes them is under way.
    pub fn suspect(&mut self, range: ByteRange) {
        self.allocated.insert_range(self.touched(range));
    }

    /// What to do about a read of `range`. The only function that claims zeroes.
    pub fn answer(&self, range: ByteRange) -> Answer {
        let touched = self.touched(range);
        // Nothing is known of what is not on the LUN, and an empty range is nobody's business.
        if touched.is_empty() || range.end() > self.len {
            return Answer::Read;
        }
        let data = self.allocated.range_cardinality(touched.clone()) > 0;
        match (data, self.valid.contains_range(touched)) {
            (false, true) => Answer::Zeroes,
            (false, false) => Answer::Ask,
            (true, _) => Answer::Read,
        }
    }

    /// The pages from the one that holds byte `offset` on of which the same is certain; `None` if
    /// nothing is certain of that one.
    pub fn run(&self, offset: u64) -> Option<Run> {
        if offset >= self.len {
            return None;
        }
        let first = index(self.grid.index(offset));
        let (known, held) = (end_of_row(&self.valid, first)?, end_of_row(&self.allocated, first));
        let end = match held {
            Some(held) => known.min(held),
            None => self.allocated.range(first..).next().map_or(known, |next| known.min(next)),
        };
        Some(Run { zero: held.is_none(), end: self.grid.start(end.into()).min(self.len) })
    }

    /// The pages that `range` touches, as a range; cut at the end of the LUN.
    pub fn pages_around(&self, range: ByteRange) -> ByteRange {
        let touched = self.touched(range);
        let start = self.grid.start(touched.start.into()).min(self.len);
        let end = self.grid.start(touched.end.into()).clamp(start, self.len);
        ByteRange::from_bounds(start, end).unwrap_or_default()
    }

    /// The pages that `range` covers, as a range; empty if there is none.
    pub fn pages_within(&self, range: ByteRange) -> ByteRange {
        let covered = self.covered(range);
        let start = self.grid.start(covered.start.into()).min(self.len);
        let end = self.grid.start(covered.end.into()).clamp(start, self.len);
        ByteRange::from_bounds(start, end).unwrap_or_default()
    }

    /// Where pages begin and end.
    pub fn grid(&self) -> PageGrid {
        self.grid
    }

    /// Forgets everything: another host may have written, or the target was reset.
    pub fn forget(&mut self) {
        self.allocated.clear();
        self.valid.clear();
    }

    /// Changes how far knowledge is trusted; [`Trust::Never`] makes all of it suspicion.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
        if trust == Trust::Never {
            self.valid.clear();
        }
    }

    /// The LUN has another length now. On failure the map is as it was.
    pub fn resize(&mut self, len: u64) -> Result<(), MapError> {
        check_len(len, self.grid)?;
        if len > self.len {
            // A partial last page grows, and of what it grows by nothing is known.
            self.valid.remove_range(index(self.grid.index(self.len))..);
        } else {
            let count = index(self.grid.count(len));
            self.allocated.remove_range(count..);
            self.valid.remove_range(count..);
        }
        self.len = len;
        Ok(())
    }

    /// How many pages the LUN has, partial ones counted.
    pub fn pages(&self) -> u64 {
        if self.len == 0 { 0 } else { self.grid.count(self.len) }
    }

    /// What is known of page `number`; nothing beyond the end.
    pub fn page_state(&self, number: u64) -> PageState {
        let page = index(number);
        match (self.valid.contains(page), self.allocated.contains(page)) {
            (false, false) => PageState::Unknown,
            (false, true) => PageState::Suspected,
            (true, false) => PageState::Zero,
            (true, true) => PageState::Allocated,
        }
    }

    /// The pages that hold a byte of `range`.
    fn touched(&self, range: ByteRange) -> Range<u32> {
        let range = range.intersect(ByteRange::up_to(self.len));
        if range.is_empty() {
            return 0..0;
        }
        index(self.grid.index(range.offset()))..index(self.grid.count(range.end()))
    }

    /// The pages all of whose bytes are in `range`; empty if there is none.
    fn covered(&self, range: ByteRange) -> Range<u32> {
        let range = range.intersect(ByteRange::up_to(self.len));
        let start = if range.offset() == 0 { 0 } else { self.grid.count(range.offset()) };
        let end = if range.end() == self.len { self.pages() } else { self.grid.index(range.end()) };
        if range.is_empty() || start >= end {
            return 0..0;
        }
        index(start)..index(end)
    }
}

/// One past the last of the pages in a row that are in `set`, from `first` on; `None` if that is not.
fn end_of_row(set: &RoaringBitmap, first: u32) -> Option<u32> {
    let mut pages = set.range(first..);
    let mut end = first;
    while let Some(row) = pages.next_range() {
        if *row.start() != end {
            break;
        }
        end = row.end().saturating_add(1);
    }
    (end > first).then_some(end)
}

/// Page numbers are below [`PAGES_MAX`], which is no page: what is not a number of a page maps there.
fn index(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn check_len(len: u64, grid: PageGrid) -> Result<(), MapError> {
    if len > MAX_LEN || grid.count(len) > PAGES_MAX {
        return Err(MapError::TooLong { len, page: grid.len });
    }
    Ok(())
}
