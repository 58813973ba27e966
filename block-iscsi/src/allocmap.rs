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
//! The last page ends where the LUN ends, so a range up to there covers it.
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

/// Why there can be no map.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// The page size is outside of what is worth a map.
    #[error("a page of {page} bytes is not between {PAGE_BYTES_MIN} and {PAGE_BYTES_MAX}")]
    Page {
        /// The page size in bytes.
        page: u64,
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
    page: u64,
    trust: Trust,
    allocated: RoaringBitmap,
    valid: RoaringBitmap,
}

impl AllocMap {
    /// A map of `len` bytes in pages of `page` bytes (any number, not only powers of two), of which
    /// nothing is known.
    pub fn new(len: u64, page: u64, trust: Trust) -> Result<Self, MapError> {
        if !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page) {
            return Err(MapError::Page { page });
        }
        check_len(len, page)?;
        Ok(Self { len, page, trust, allocated: RoaringBitmap::new(), valid: RoaringBitmap::new() })
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
        check_len(len, self.page)?;
        let whole = |len: u64| index(len / self.page);
        if len > self.len {
            // A partial last page grows, and of what it grows by nothing is known.
            self.valid.remove_range(whole(self.len)..);
        } else {
            let count = index(len.div_ceil(self.page));
            self.allocated.remove_range(count..);
            self.valid.remove_range(count..);
        }
        self.len = len;
        Ok(())
    }

    /// How many pages the LUN has, a partial last one counted.
    pub fn pages(&self) -> u64 {
        self.len.div_ceil(self.page)
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
        index(range.offset() / self.page)..index(range.end().div_ceil(self.page))
    }

    /// The pages all of whose bytes are in `range`; empty if there is none.
    fn covered(&self, range: ByteRange) -> Range<u32> {
        let range = range.intersect(ByteRange::up_to(self.len));
        let start = range.offset().div_ceil(self.page);
        let end = if range.end() == self.len { self.pages() } else { range.end() / self.page };
        if range.is_empty() || start >= end {
            return 0..0;
        }
        index(start)..index(end)
    }
}

/// Page numbers are below [`PAGES_MAX`], which is no page: what is not a number of a page maps there.
fn index(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn check_len(len: u64, page: u64) -> Result<(), MapError> {
    if len > MAX_LEN || len.div_ceil(page) > PAGES_MAX {
        return Err(MapError::TooLong { len, page });
    }
    Ok(())
}
