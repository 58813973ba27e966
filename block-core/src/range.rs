//! Byte ranges and alignments: the only place where offset arithmetic is checked.
//!
//! Invariants: for every [`ByteRange`], `offset + len <= MAX_LEN`; for every [`Alignment`],
//! `1 <= align <= MAX_ALIGNMENT`. An alignment need not be a power of two (iSCSI targets have
//! granularities of any size), so rounding divides and never masks. Every function here is total:
//! a range that cannot exist is an error at its construction, never a wrapped number later.

use std::fmt;

/// Longest virtual disk, in bytes: `i64::MAX` rounded down to 1 GiB.
pub const MAX_LEN: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// Largest alignment that a driver may ask for, in bytes.
pub const MAX_ALIGNMENT: u64 = 1 << 30;

/// Size of the sector that tools count in, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// A range of bytes `[offset, offset + len)` of a disk. May be empty; never ends beyond [`MAX_LEN`].
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes at `offset`; fails if it would end beyond [`MAX_LEN`].
    pub const fn new(offset: u64, len: u64) -> Result<Self, RangeError> {
        match offset.checked_add(len) {
            Some(end) if end <= MAX_LEN => Ok(Self { offset, len }),
            _ => Err(RangeError { offset, len }),
        }
    }

    /// The range `[start, end)`; fails if `end < start` or `end > MAX_LEN`.
    pub const fn from_bounds(start: u64, end: u64) -> Result<Self, RangeError> {
        match end.checked_sub(start) {
            Some(len) => Self::new(start, len),
            None => Err(RangeError { offset: start, len: 0 }),
        }
    }

    /// The range `[0, len)`, cut at [`MAX_LEN`].
    pub const fn up_to(len: u64) -> Self {
        Self { offset: 0, len: if len < MAX_LEN { len } else { MAX_LEN } }
    }

    /// First byte.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether both ranges share at least one byte. An empty range overlaps nothing.
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end()
            && other.offset < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// Whether every byte of `other` is in `self`. An empty range is contained in every range.
    pub const fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.offset <= other.offset && other.end() <= self.end())
    }

    /// The bytes in both ranges; the empty range at `self.offset()` if there are none.
    pub const fn intersect(self, other: Self) -> Self {
        let start = if self.offset > other.offset { self.offset } else { other.offset };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        if start < end {
            Self { offset: start, len: end - start }
        } else {
            Self { offset: self.offset, len: 0 }
        }
    }

    /// The first `len` bytes (all of them if `len` is larger), and the rest.
    pub const fn split_at(self, len: u64) -> (Self, Self) {
        let len = if len < self.len { len } else { self.len };
        (Self { offset: self.offset, len }, Self { offset: self.offset + len, len: self.len - len })
    }

    /// The first `len` bytes, or the whole range if it is shorter.
    pub const fn first(self, len: u64) -> Self {
        self.split_at(len).0
    }

    /// The smallest aligned range that holds `self`, cut at [`MAX_LEN`]. An empty range stays empty.
    pub const fn expand(self, align: Alignment) -> Self {
        if self.is_empty() {
            return self;
        }
        let start = align.round_down(self.offset);
        let end = align.round_up(self.end());
        Self { offset: start, len: end - start }
    }

    /// The largest aligned range inside `self`; empty (at `self.offset()`) if no whole block fits.
    pub const fn shrink(self, align: Alignment) -> Self {
        let start = align.round_up(self.offset);
        let end = align.round_down(self.end());
        if start < end {
            Self { offset: start, len: end - start }
        } else {
            Self { offset: self.offset, len: 0 }
        }
    }

    /// Whether both bounds are multiples of `align`.
    pub const fn is_aligned(self, align: Alignment) -> bool {
        align.is_aligned(self.offset) && align.is_aligned(self.len)
    }

    /// The same range counted from `base`; `None` if it starts before `base`.
    pub const fn relative_to(self, base: u64) -> Option<Self> {
        match self.offset.checked_sub(base) {
            Some(offset) => Some(Self { offset, len: self.len }),
            None => None,
        }
    }

    /// The same range moved up by `by` bytes.
    pub const fn shifted(self, by: u64) -> Result<Self, RangeError> {
        match self.offset.checked_add(by) {
            Some(offset) => Self::new(offset, self.len),
            None => Err(RangeError { offset: self.offset, len: self.len }),
        }
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.len)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A range that ends before it starts or beyond [`MAX_LEN`].
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("range at {offset:#x} of {len:#x} bytes ends beyond the longest disk ({MAX_LEN:#x} bytes)")]
pub struct RangeError {
    /// First byte asked for.
    pub offset: u64,
    /// Length asked for.
    pub len: u64,
}

/// A non-zero granularity in bytes, at most [`MAX_ALIGNMENT`], not necessarily a power of two.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Alignment(u64);

impl Alignment {
    /// No constraint: one byte.
    pub const ONE: Self = Self(1);
    /// One 512-byte sector.
    pub const SECTOR: Self = Self(SECTOR_SIZE);
    /// 4096 bytes.
    pub const PAGE: Self = Self(4096);

    /// `bytes` as an alignment; `None` if it is zero or above [`MAX_ALIGNMENT`].
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes == 0 || bytes > MAX_ALIGNMENT { None } else { Some(Self(bytes)) }
    }

    /// The granularity in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whether the granularity is a power of two.
    pub const fn is_power_of_two(self) -> bool {
        self.0.is_power_of_two()
    }

    /// Whether `offset` is a multiple.
    pub const fn is_aligned(self, offset: u64) -> bool {
        // A mask where it can be one: this stands in the path of every request.
        if self.0.is_power_of_two() {
            offset & (self.0 - 1) == 0
        } else {
            offset.is_multiple_of(self.0)
        }
    }

    /// The largest multiple at or below `offset`.
    pub const fn round_down(self, offset: u64) -> u64 {
        offset - offset % self.0
    }

    /// The smallest multiple at or above `offset`, cut at [`MAX_LEN`].
    ///
    /// A cut result is at or above `offset` whenever `offset <= MAX_LEN`.
    pub const fn round_up(self, offset: u64) -> u64 {
        match offset % self.0 {
            0 => offset,
            rem => {
                let up = offset.saturating_add(self.0 - rem);
                if up < MAX_LEN || offset > MAX_LEN { up } else { MAX_LEN }
            }
        }
    }

    /// How many whole blocks `len` bytes hold, a partial last one counted.
    pub const fn count_up(self, len: u64) -> u64 {
        len.div_ceil(self.0)
    }

    /// The stricter of two power-of-two alignments: the larger one.
    pub const fn max(self, other: Self) -> Self {
        if self.0 > other.0 { self } else { other }
    }
}

/// `u64` to `usize`, saturating: lengths of memory never exceed the address space.
///
/// For values already bounded by a buffer's length; on 64-bit hosts it is the identity.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// `usize` to `u64`, which no supported host can overflow.
pub fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = ByteRange> {
        (0..MAX_LEN, 0..1u64 << 40)
            .prop_map(|(o, l)| ByteRange::new(o, l.min(MAX_LEN - o)).unwrap())
    }

    proptest! {
        #[test]
        fn any_numbers_make_a_range_or_an_error(o: u64, l: u64) {
            match ByteRange::new(o, l) {
                Ok(r) => prop_assert!(r.end() <= MAX_LEN && r.offset() == o && r.len() == l),
                Err(_) => prop_assert!(u128::from(o) + u128::from(l) > u128::from(MAX_LEN)),
            }
        }

        #[test]
        fn expand_holds_and_shrink_is_held(r in range(), a in 1..MAX_ALIGNMENT) {
            let a = Alignment::new(a).unwrap();
            prop_assert!(r.expand(a).contains(r));
            prop_assert!(r.contains(r.shrink(a)));
            let cut = r.expand(a).end() == MAX_LEN;
            prop_assert!(r.is_empty() || cut || r.expand(a).is_aligned(a));
            prop_assert!(r.shrink(a).is_empty() || r.shrink(a).is_aligned(a));
        }

        #[test]
        fn intersect_agrees_with_overlaps(x in range(), y in range()) {
            prop_assert_eq!(x.overlaps(y), !x.intersect(y).is_empty());
            prop_assert!(x.contains(x.intersect(y)) && y.contains(x.intersect(y)));
        }
    }

    #[test]
    fn a_range_inside_one_block_shrinks_to_nothing() {
        let a = Alignment::new(8).unwrap();
        assert!(ByteRange::new(10, 4).unwrap().shrink(a).is_empty());
        assert!(ByteRange::new(8, 0).unwrap().expand(a).is_empty());
    }
}
