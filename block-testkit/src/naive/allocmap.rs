//! An allocation map of a LUN, byte by byte: what an iSCSI driver may claim to know.
//!
//! [`ByteMap`] keeps two things. The *truth*: what the last update said of every single byte. And
//! the *pages*, by the rules of the map, but found by looking at every byte: a page is touched by a
//! range if any of its bytes is in it, and covered if all of them are. A map may claim less than
//! the truth and never more.

use std::ops::Range;

/// What an update says of a range.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Known {
    /// It holds data.
    Data,
    /// It is zeroes.
    Zero,
    /// It may hold anything.
    Nothing,
}

/// A page: whether it is taken for allocated, and whether that is certain.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Set by data, cleared where all of the page is known not to be.
    pub allocated: bool,
    /// Set where all of the page is known, cleared where any byte of it is not.
    pub valid: bool,
}

/// The map, byte by byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ByteMap {
    page_len: usize,
    bytes: Vec<Known>,
    pages: Vec<Page>,
    /// Whether a page is ever certain.
    trusted: bool,
}

impl ByteMap {
    /// A map of `len` bytes of which nothing is known. Pages are certain only in a trusted map.
    pub fn trusted(len: usize, page_len: usize) -> Self {
        Self {
            page_len,
            bytes: vec![Known::Nothing; len],
            pages: vec![Page::default(); len.div_ceil(page_len)],
            trusted: true,
        }
    }

    /// A map in which no page is ever certain.
    pub fn untrusted(len: usize, page_len: usize) -> Self {
        Self { trusted: false, ..Self::trusted(len, page_len) }
    }

    /// Records what `range` holds from now on; what is beyond the end is ignored.
    pub fn update(&mut self, range: Range<usize>, known: Known) {
        let end = self.bytes.len();
        for (index, page) in self.pages.iter_mut().enumerate() {
            let start = index * self.page_len;
            let mut own = start..end.min(start + self.page_len);
            let touched = own.clone().any(|byte| range.contains(&byte));
            let covered = own.all(|byte| range.contains(&byte));
            match known {
                Known::Data => page.allocated |= touched,
                Known::Zero | Known::Nothing => page.allocated &= !covered,
            }
            if known == Known::Nothing || !self.trusted {
                page.valid &= !touched;
            } else {
                page.valid |= covered;
            }
        }
        for (index, byte) in self.bytes.iter_mut().enumerate() {
            if range.contains(&index) {
                *byte = known;
            }
        }
    }

    /// The length is another one now; of what is new nothing is known.
    pub fn resize(&mut self, len: usize) {
        let old = self.bytes.len();
        self.bytes.resize(len, Known::Nothing);
        self.pages.resize(len.div_ceil(self.page_len), Page::default());
        if len > old {
            let page_len = self.page_len;
            let new = self.pages.iter_mut().enumerate();
            for (_, page) in new.filter(|(index, _)| (index + 1) * page_len > old) {
                page.valid = false;
            }
        }
    }

    /// Whether every byte of `range` is on the disk and was zero in the last update of it.
    pub fn is_zero(&self, range: Range<usize>) -> bool {
        let bytes = self.bytes.get(range);
        bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == Known::Zero))
    }

    /// The pages, in order.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }
}
