//! A set of granules of a disk, kept in compressed (roaring) bitmaps.
//!
//! Invariants: every bit is below `granule_count()`; `granule_count() <= MAX_GRANULES` where bits are
//! set, so that a set in which everything is dirty stays small (runs) and none can fill the memory by
//! its length.

use std::ops::RangeInclusive;

use roaring::{RoaringBitmap, RoaringTreemap};

use super::error::BitmapError;
use crate::range::{ByteRange, to_u64, to_usize};

/// Most granules of one bitmap: 4 PiB at the default granularity.
pub const MAX_GRANULES: u64 = 1 << 36;
/// Bytes of bits that are set at once.
const BITS_CHUNK: usize = 1 << 20;

/// Size of a granule: a power of two of at least 512 bytes and at most 2 GiB.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Granularity {
    shift: u8,
}

impl Granularity {
    /// 512 bytes.
    pub const MIN: Self = Self { shift: 9 };
    /// 2 GiB.
    pub const MAX: Self = Self { shift: 31 };
    /// 64 KiB.
    pub const DEFAULT: Self = Self { shift: 16 };

    /// A granularity of `bytes`.
    pub fn new(bytes: u64) -> Result<Self, BitmapError> {
        let in_limits = (Self::MIN.bytes()..=Self::MAX.bytes()).contains(&bytes);
        match u8::try_from(bytes.trailing_zeros()) {
            Ok(shift) if in_limits && bytes.is_power_of_two() => Ok(Self { shift }),
            _ => Err(BitmapError::Granularity { bytes }),
        }
    }

    /// What suits a disk of this cluster size: the cluster size, but no less than 4 KiB and no more
    /// than 64 KiB; the default where the disk has no clusters.
    pub fn for_cluster_size(cluster_size: Option<u64>) -> Self {
        let bytes = cluster_size.map(|size| size.clamp(4 << 10, 64 << 10));
        bytes.and_then(|bytes| Self::new(bytes).ok()).unwrap_or_default()
    }

    /// Bytes in a granule.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// How many granules a disk of `len` bytes has, or the error that they are too many.
    fn count(self, len: u64) -> Result<u64, BitmapError> {
        let count = len.div_ceil(self.bytes());
        if count > MAX_GRANULES {
            let granularity = self.bytes();
            return Err(BitmapError::TooManyGranules { len, granularity });
        }
        Ok(count)
    }
}

impl Default for Granularity {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Which granules of a disk are dirty. Bytes in, bytes out; see [the module](super) for rounding.
#[derive(Clone, PartialEq, Debug)]
pub struct Granules {
    granularity: Granularity,
    /// Length of the disk in bytes; the last granule may be a part of one.
    len: u64,
    bits: RoaringTreemap,
}

impl Granules {
    /// A clean set for a disk of `len` bytes.
    pub fn new(granularity: Granularity, len: u64) -> Result<Self, BitmapError> {
        granularity.count(len)?;
        Ok(Self { granularity, len, bits: RoaringTreemap::new() })
    }

    /// A set for a disk of any length whose bits nobody ever sets: those of a bitmap that can only be
    /// removed.
    pub(super) fn untouchable(granularity: Granularity, len: u64) -> Self {
        Self { granularity, len, bits: RoaringTreemap::new() }
    }

    /// The size of a granule.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte is dirty.
    pub fn is_clean(&self) -> bool {
        self.bits.is_empty()
    }

    /// Whether the disk has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Dirty bytes: the sum of the lengths of [`Granules::areas`], so a partial last granule counts
    /// with the bytes that exist.
    pub fn count(&self) -> u64 {
        let whole = self.bits.len() << self.granularity.shift;
        let partial = self.len % self.granularity.bytes();
        if partial != 0 && self.bits.contains(self.len >> self.granularity.shift) {
            whole - (self.granularity.bytes() - partial)
        } else {
            whole
        }
    }

    /// Whether the granule that holds `offset` is dirty; beyond the end nothing is.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.len && self.bits.contains(offset >> self.granularity.shift)
    }

    /// Makes every granule dirty that `range` touches. Beyond the end nothing happens.
    pub fn set(&mut self, range: ByteRange) {
        let range = range.intersect(ByteRange::up_to(self.len));
        if !range.is_empty() {
            let first = range.offset() >> self.granularity.shift;
            let last = (range.end() - 1) >> self.granularity.shift;
            if first == last {
                self.bits.insert(first);
            } else {
                self.bits.insert_range(first..=last);
            }
        }
    }

    /// Makes the granules dirty whose bits are set in `bytes`: bit `n % 8` of byte `n / 8` stands for the
    /// granule of number `first + n`, and `first` is a multiple of 8. Beyond the end nothing happens. The
    /// time it takes depends on the length of `bytes`, not on what is in them.
    pub fn set_bits(&mut self, first: u64, bytes: &[u8]) {
        debug_assert!(first.is_multiple_of(8), "bits from {first} on");
        let mut at = first;
        for chunk in bytes.chunks(BITS_CHUNK) {
            // Granules of one inner bitmap, which end at a multiple of 8.
            let room = to_usize((join(high(at), u32::MAX) - at) / 8 + 1);
            let (here, next) = chunk.split_at(room.min(chunk.len()));
            for part in [here, next] {
                let mut bits = RoaringBitmap::from_lsb0_bytes(low(at), part);
                bits.optimize();
                if !bits.is_empty() {
                    self.bits |= RoaringTreemap::from_bitmaps([(high(at), bits)]);
                }
                at = at.saturating_add(to_u64(part.len()) * 8);
            }
        }
        self.bits.remove_range(self.len.div_ceil(self.granularity.bytes())..);
    }

    /// Makes every granule clean that `range` covers wholly; a partial last granule is covered by a
    /// range that goes to the end of the disk.
    pub fn reset(&mut self, range: ByteRange) {
        let first = range.offset().div_ceil(self.granularity.bytes());
        let end = if range.end() >= self.len {
            self.len.div_ceil(self.granularity.bytes())
        } else {
            range.end() >> self.granularity.shift
        };
        if first < end {
            self.bits.remove_range(first..end);
        }
    }

    /// Makes everything clean.
    pub fn clear(&mut self) {
        self.bits.clear();
    }

    /// Follows the disk to a new length. Bits beyond the end are dropped and what is added is clean.
    /// On an error nothing was changed.
    pub fn truncate(&mut self, len: u64) -> Result<(), BitmapError> {
        let count = self.granularity.count(len)?;
        self.bits.remove_range(count..);
        self.len = len;
        Ok(())
    }

    /// Makes everything dirty here that is dirty in `other`, rounded out to these granules. What
    /// `other` has beyond this disk's end is ignored.
    pub fn merge(&mut self, other: &Self) {
        if self.granularity == other.granularity && self.len >= other.len {
            self.bits |= &other.bits;
        } else {
            other.areas().for_each(|area| self.set(area));
        }
    }

    /// The first dirty byte at or after `offset`.
    pub fn next_dirty(&self, offset: u64) -> Option<u64> {
        let rest = ByteRange::from_bounds(offset, self.len).ok()?;
        Some(self.next_dirty_area(rest, 1)?.offset())
    }

    /// The first clean byte at or after `offset`; `None` if all to the end of the disk is dirty.
    pub fn next_zero(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let rest = ByteRange::from_bounds(offset, self.len).ok()?;
        match self.next_dirty_area(rest, rest.len()) {
            Some(area) if area.offset() == offset => Some(area.end()).filter(|end| *end < self.len),
            _ => Some(offset),
        }
    }

    /// The first run of dirty bytes in `range`, cut to `range` and to `max_len` bytes; `None` if
    /// there is none, or if `max_len` is zero.
    pub fn next_dirty_area(&self, range: ByteRange, max_len: u64) -> Option<ByteRange> {
        let range = range.intersect(ByteRange::up_to(self.len));
        if range.is_empty() || max_len == 0 {
            return None;
        }
        let shift = self.granularity.shift;
        let (first, last) = (range.offset() >> shift, (range.end() - 1) >> shift);
        let first = self.first_bit(first, last)?;
        // A run longer than `max_len` need not be walked to its end; one granule more than it holds
        // makes up for a start inside of a granule.
        let enough = first.saturating_add(max_len >> shift).saturating_add(1);
        let end = self.run_end(first, last.min(enough)) << shift;
        let run = ByteRange::from_bounds(first << shift, end.min(self.len)).ok()?;
        let cut = range.intersect(run);
        Some(cut.first(max_len))
    }

    /// Every maximal run of dirty bytes, in order.
    pub fn areas(&self) -> Areas<'_> {
        Areas { granules: self, rest: ByteRange::up_to(self.len) }
    }

    /// The first set bit in `[first, last]`.
    fn first_bit(&self, first: u64, last: u64) -> Option<u64> {
        self.bits.bitmaps().find_map(|(high, bits)| {
            let bit = bits.range(window(high, first, last)?).next()?;
            Some(join(high, bit))
        })
    }

    /// One past the last bit of the run of set bits that starts at `first`, no further than `last`.
    fn run_end(&self, first: u64, last: u64) -> u64 {
        let mut end = first;
        for (high, bits) in self.bits.bitmaps() {
            let Some(window) = window(high, end, last) else {
                continue;
            };
            match bits.range(window).next_range() {
                Some(run) if join(high, *run.start()) == end => end = join(high, *run.end()) + 1,
                _ => break,
            }
        }
        end
    }
}

/// Iterator of the maximal runs of dirty bytes of a [`Granules`].
#[derive(Clone, Debug)]
pub struct Areas<'a> {
    granules: &'a Granules,
    rest: ByteRange,
}

impl Iterator for Areas<'_> {
    type Item = ByteRange;

    fn next(&mut self) -> Option<ByteRange> {
        let area = self.granules.next_dirty_area(self.rest, self.rest.len())?;
        self.rest = ByteRange::from_bounds(area.end(), self.rest.end()).ok()?;
        Some(area)
    }
}

impl std::iter::FusedIterator for Areas<'_> {}

/// The low halves of the bits in `[first, last]` whose high half is `high`.
fn window(high: u32, first: u64, last: u64) -> Option<RangeInclusive<u32>> {
    let start = first.max(join(high, 0));
    let end = last.min(join(high, u32::MAX));
    (start <= end).then(|| low(start)..=low(end))
}

fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The high half; the highest one for what is beyond all granules.
fn high(bit: u64) -> u32 {
    u32::try_from(bit >> 32).unwrap_or(u32::MAX)
}

/// The low half. Masked, so that it always fits.
fn low(bit: u64) -> u32 {
    u32::try_from(bit & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granules(granularity: u64, len: u64) -> Granules {
        Granules::new(Granularity::new(granularity).unwrap(), len).unwrap()
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn granularities_outside_of_the_limits_are_refused() {
        for bytes in [0, 1, 256, 513, 3 << 16, 1 << 32, u64::MAX] {
            assert_eq!(Granularity::new(bytes), Err(BitmapError::Granularity { bytes }));
        }
        assert_eq!(Granularity::new(512), Ok(Granularity::MIN));
        assert_eq!(Granularity::default().bytes(), 64 << 10);
        let of = |size| Granularity::for_cluster_size(size).bytes();
        assert_eq!(
            [of(None), of(Some(512)), of(Some(8192)), of(Some(2 << 20))],
            [65536, 4096, 8192, 65536]
        );
    }

    #[test]
    fn setting_rounds_out_and_resetting_rounds_in() {
        let mut g = granules(512, 2048);
        g.set(range(511, 513));
        assert_eq!(g.areas().collect::<Vec<_>>(), [range(0, 1024)]);
        g.reset(range(1, 1023));
        assert_eq!(g.count(), 1024, "no granule is covered wholly");
        g.reset(range(1, 1024));
        assert_eq!(g.areas().collect::<Vec<_>>(), [range(0, 512)]);
    }

    #[test]
    fn a_partial_last_granule_counts_its_bytes_and_can_be_reset() {
        let mut g = granules(512, 1000);
        g.set(range(999, 1000));
        assert_eq!((g.count(), g.next_dirty(600)), (488, Some(600)));
        g.reset(range(512, 999));
        assert_eq!(g.count(), 488);
        g.reset(range(512, 1000));
        assert!(g.is_clean());
        g.set(range(0, 5000));
        assert_eq!((g.count(), g.next_zero(0)), (1000, None));
    }

    #[test]
    fn truncating_drops_bits_beyond_the_end_and_keeps_a_cut_granule() {
        let mut g = granules(512, 4096);
        g.set(range(0, 4096));
        g.truncate(700).unwrap();
        g.truncate(4096).unwrap();
        assert_eq!(g.areas().collect::<Vec<_>>(), [range(0, 1024)]);
    }

    #[test]
    fn too_many_granules_are_an_error_and_change_nothing() {
        let most = MAX_GRANULES * 512;
        let mut g = granules(512, most);
        g.set(range(most - 1, most));
        let error = BitmapError::TooManyGranules { len: most + 1, granularity: 512 };
        assert_eq!(g.truncate(most + 1), Err(error));
        assert_eq!((g.len(), g.next_dirty(0)), (most, Some(most - 512)));
    }

    #[test]
    fn bits_are_set_as_their_granules_are() {
        let border = 512u64 << 32;
        let len = border + 70_000 * 512 + 100;
        for (first, count) in [(0, 3), (8, 9000), ((1 << 32) - 64, 40), ((1 << 32) + 69_984, 90)] {
            for byte in [0u8, 1, 0x5a, 0xff] {
                let (mut by_bits, mut by_ranges) = (granules(512, len), granules(512, len));
                for twin in [&mut by_bits, &mut by_ranges] {
                    twin.set(range(0, 512 * 20));
                }
                by_bits.set_bits(first, &vec![byte; count]);
                for bit in
                    (0..u64::try_from(count).unwrap() * 8).filter(|n| byte >> (n % 8) & 1 == 1)
                {
                    by_ranges.set(range((first + bit) * 512, (first + bit + 1) * 512));
                }
                assert!(by_bits.areas().eq(by_ranges.areas()), "{first} {count} {byte:#x}");
            }
        }
    }

    #[test]
    fn runs_cross_the_borders_of_the_inner_bitmaps() {
        // One inner bitmap has 2^32 granules.
        let border = 512u64 << 32;
        let mut g = granules(512, border + (1 << 20));
        g.set(range(border - 1024, border + 1024));
        assert_eq!(g.areas().collect::<Vec<_>>(), [range(border - 1024, border + 1024)]);
        assert_eq!(g.next_zero(border - 1), Some(border + 1024));
        let all = ByteRange::up_to(g.len());
        assert_eq!(g.next_dirty_area(all, 1500), Some(range(border - 1024, border + 476)));
    }
}
