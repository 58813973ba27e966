//! What a logical unit can do at once: VPD pages B0 (block limits) and B1 (block device
//! characteristics) of SBC-3.
//!
//! [`BlockLimits`] holds what the page says, in blocks; [`ByteLimits`] what follows from it for
//! requests, in bytes.
//!
//! Invariants of [`ByteLimits`]: every maximum is a multiple of the block size, at least one block
//! and at most `MAX_LEN`; a granule's `offset < len`; [`Unmapping::max_len`] and
//! [`ByteLimits::max_write_same`] hold a whole granule or no granule is offered for them, so rounding
//! a maximum down to the granule never gives zero.

use std::num::NonZeroU32;

use block_core::Alignment;
use block_core::range::{MAX_ALIGNMENT, MAX_LEN};

use super::capacity::BlockSize;
use super::inquiry::{PAGE_CHARACTERISTICS, PAGE_LIMITS, page};
use super::{AnswerError, Problem};

/// Where granules begin: at `offset` and every `blocks` blocks from there.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Granularity {
    /// OPTIMAL UNMAP GRANULARITY.
    pub blocks: NonZeroU32,
    /// UNMAP GRANULARITY ALIGNMENT, less than `blocks`.
    pub offset: u32,
}

/// VPD page B0, in blocks. `None` is a field that is zero, by which targets say nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockLimits {
    /// A WRITE SAME of no blocks is refused (WSNZ).
    pub write_same_needs_len: bool,
    /// MAXIMUM COMPARE AND WRITE LENGTH; `None` means that the command is not there.
    pub max_compare_and_write: Option<u8>,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY.
    pub transfer_granularity: Option<u16>,
    /// MAXIMUM TRANSFER LENGTH.
    pub max_transfer: Option<NonZeroU32>,
    /// OPTIMAL TRANSFER LENGTH.
    pub opt_transfer: Option<NonZeroU32>,
    /// MAXIMUM UNMAP LBA COUNT; all ones means no limit.
    pub max_unmap_blocks: Option<NonZeroU32>,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT; all ones means no limit.
    pub max_unmap_descriptors: Option<NonZeroU32>,
    /// OPTIMAL UNMAP GRANULARITY and its alignment.
    pub unmap_granularity: Option<Granularity>,
    /// MAXIMUM WRITE SAME LENGTH.
    pub max_write_same: Option<u64>,
}

impl BlockLimits {
    /// Reads page B0. A page of SBC-2, which ends after OPTIMAL TRANSFER LENGTH, says nothing of
    /// what comes after that.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        // Offsets are counted from the start of the page in the standard.
        let page = page("VPD page B0", PAGE_LIMITS, bytes)?;
        page.slice(0, 12)?;
        let word = |at: usize| page.u32(at - 4).unwrap_or(0);
        let granularity = NonZeroU32::new(word(28)).map(|blocks| {
            let alignment = word(32);
            let valid = alignment & UGAVALID != 0;
            let offset = if valid { (alignment & !UGAVALID) % blocks.get() } else { 0 };
            Granularity { blocks, offset }
        });
        let count = page.u8(1)?;
        let transfer = page.u16(2)?;
        let write_same = page.u64(32).unwrap_or(0);
        Ok(Self {
            write_same_needs_len: page.u8(0)? & 0x01 != 0,
            max_compare_and_write: (count != 0).then_some(count),
            transfer_granularity: (transfer != 0).then_some(transfer),
            max_transfer: NonZeroU32::new(word(8)),
            opt_transfer: NonZeroU32::new(word(12)),
            max_unmap_blocks: NonZeroU32::new(word(20)),
            max_unmap_descriptors: NonZeroU32::new(word(24)),
            unmap_granularity: granularity,
            max_write_same: (write_same != 0).then_some(write_same),
        })
    }

    /// What follows for requests to a unit with blocks of `size`.
    ///
    /// A granularity of more bytes than any alignment may have is an error; a maximum that is longer
    /// than any disk is as good as none and cut at `MAX_LEN`.
    pub fn in_bytes(&self, size: BlockSize) -> Result<ByteLimits, AnswerError> {
        let max_write_same = self.max_write_same.map(|blocks| cut(size, blocks));
        let max_transfer = self.max_transfer.map(|blocks| cut(size, blocks.get().into()));
        let opt_transfer = self.opt_transfer.map(|blocks| {
            let len = cut(size, blocks.get().into());
            max_transfer.map_or(len, |max| len.min(max))
        });
        let granule = self.unmap_granularity.map(|unit| unit.in_bytes(size)).transpose()?;
        let unmapping = match (self.max_unmap_blocks, self.max_unmap_descriptors) {
            (Some(blocks), Some(max_descriptors)) => {
                let max_len = cut(size, blocks.get().into());
                let granule = granule.filter(|granule| granule.fits(max_len));
                Some(Unmapping { max_len, max_descriptors, granule })
            }
            _ => None,
        };
        Ok(ByteLimits {
            block: size.alignment(),
            max_transfer,
            opt_transfer,
            transfer_granularity: self
                .transfer_granularity
                .map(|blocks| alignment("OPTIMAL TRANSFER LENGTH GRANULARITY", blocks.into(), size))
                .transpose()?,
            max_compare_and_write: self
                .max_compare_and_write
                .map(|blocks| cut(size, blocks.into())),
            unmapping,
            max_write_same,
            write_same_granule: granule
                .filter(|granule| max_write_same.is_none_or(|max| granule.fits(max))),
        })
    }
}

/// A granule in bytes: unmapping frees those that lie whole in a request.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Granule {
    /// Its length.
    pub len: Alignment,
    /// Where the first one begins; less than `len`.
    pub offset: u64,
}

impl Granule {
    /// Whether a request of `max` bytes can hold one.
    fn fits(&self, max: u64) -> bool {
        self.len.bytes() <= max
    }
}

impl Granularity {
    fn in_bytes(self, size: BlockSize) -> Result<Granule, AnswerError> {
        let len = alignment("OPTIMAL UNMAP GRANULARITY", self.blocks.get(), size)?;
        Ok(Granule { len, offset: u64::from(self.offset) * size.bytes() })
    }
}

/// What UNMAP takes.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Unmapping {
    /// Most bytes in one command, over all its descriptors.
    pub max_len: u64,
    /// Most descriptors in one command.
    pub max_descriptors: NonZeroU32,
    /// What is freed at once.
    pub granule: Option<Granule>,
}

/// VPD page B0, in bytes. `None` for a maximum means that the target names none.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct ByteLimits {
    /// The block size.
    pub block: Alignment,
    /// Longest transfer.
    pub max_transfer: Option<u64>,
    /// Transfer that serves best; at most `max_transfer`.
    pub opt_transfer: Option<u64>,
    /// Transfers are best multiples of this.
    pub transfer_granularity: Option<Alignment>,
    /// Longest COMPARE AND WRITE; `None` means that there is none.
    pub max_compare_and_write: Option<u64>,
    /// UNMAP; `None` if no command of any length would be taken.
    pub unmapping: Option<Unmapping>,
    /// Longest WRITE SAME.
    pub max_write_same: Option<u64>,
    /// What a WRITE SAME with UNMAP frees at once.
    pub write_same_granule: Option<Granule>,
}

impl ByteLimits {
    /// Most bytes of a WRITE SAME that begins at a granule and shall end at one: a multiple of the
    /// granule, or of the block where there is none. Never zero; at most `MAX_LEN`.
    pub fn write_same_step(&self) -> u64 {
        let max = self.max_write_same.unwrap_or(MAX_LEN);
        step(max, self.write_same_granule)
    }
}

impl Unmapping {
    /// As [`ByteLimits::write_same_step`], of UNMAP.
    pub fn step(&self) -> u64 {
        step(self.max_len, self.granule)
    }
}

fn step(max: u64, granule: Option<Granule>) -> u64 {
    granule.map_or(max, |granule| granule.len.round_down(max))
}

/// `blocks` blocks in bytes, at most the whole blocks of `MAX_LEN`.
fn cut(size: BlockSize, blocks: u64) -> u64 {
    size.len_of(blocks).unwrap_or(size.alignment().round_down(MAX_LEN))
}

fn alignment(field: &'static str, blocks: u32, size: BlockSize) -> Result<Alignment, AnswerError> {
    let limit = MAX_ALIGNMENT / size.bytes();
    let too_large = AnswerError::field(field, blocks.into(), Problem::TooLarge { limit });
    Alignment::new(u64::from(blocks) * size.bytes()).ok_or(too_large)
}

/// How a medium moves (MEDIUM ROTATION RATE).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Rotation {
    /// Not reported, or a value without a meaning.
    Unknown,
    /// It does not: solid state.
    None,
    /// So many turns in a minute.
    PerMinute(u16),
}

/// VPD page B1.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Characteristics {
    /// How the medium moves.
    pub rotation: Rotation,
    /// FUA and SYNCHRONIZE CACHE are about volatile caches only (FUAB).
    pub fua_is_for_volatile_caches: bool,
}

impl Characteristics {
    /// Reads page B1.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let page = page("VPD page B1", PAGE_CHARACTERISTICS, bytes)?;
        let rotation = match page.u16(0)? {
            1 => Rotation::None,
            rate @ 0x0401..=0xfffe => Rotation::PerMinute(rate),
            _ => Rotation::Unknown,
        };
        let flags = page.u8(4).unwrap_or(0);
        Ok(Self { rotation, fua_is_for_volatile_caches: flags & 0x02 != 0 })
    }
}

/// UNMAP GRANULARITY ALIGNMENT holds something.
const UGAVALID: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sized(bytes: u32) -> BlockSize {
        BlockSize::new(bytes).unwrap()
    }

    /// Page B0 with these words from byte 8 on.
    fn bytes(words: [u32; 9]) -> Vec<u8> {
        let mut page = vec![0, 0xb0, 0, 0x3c, 1, 0, 0, 8];
        page.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        page.resize(64, 0);
        page
    }

    fn limits(words: [u32; 9], size: u32) -> Result<ByteLimits, AnswerError> {
        BlockLimits::parse(&bytes(words)).unwrap().in_bytes(sized(size))
    }

    #[test]
    fn fields_in_blocks_and_in_bytes() {
        let words = [256, 128, 0, 4096, 10, 16, UGAVALID | 3, 0, 8192];
        let limits = BlockLimits::parse(&bytes(words)).unwrap();
        assert!(limits.write_same_needs_len);
        assert_eq!(limits.max_compare_and_write, None);
        assert_eq!(limits.max_write_same, Some(8192));
        let limits = limits.in_bytes(sized(4096)).unwrap();
        assert_eq!((limits.max_transfer, limits.opt_transfer), (Some(1 << 20), Some(1 << 19)));
        assert_eq!(limits.transfer_granularity, Alignment::new(8 * 4096));
        let unmapping = limits.unmapping.unwrap();
        assert_eq!((unmapping.max_len, unmapping.max_descriptors.get()), (16 << 20, 10));
        let granule = Granule { len: Alignment::new(16 * 4096).unwrap(), offset: 3 * 4096 };
        assert_eq!((unmapping.granule, limits.write_same_granule), (Some(granule), Some(granule)));
        assert_eq!((unmapping.step(), limits.write_same_step()), (16 << 20, 32 << 20));
    }

    #[test]
    fn a_page_of_sbc_2_says_nothing_of_unmap() {
        let mut page = bytes([256, 128, 7, 7, 7, 7, 7, 7, 7]);
        page[3] = 12;
        let limits = BlockLimits::parse(&page).unwrap();
        assert_eq!(limits.opt_transfer.map(NonZeroU32::get), Some(128));
        assert_eq!((limits.max_unmap_blocks, limits.max_write_same), (None, None));
        assert_eq!(limits.unmap_granularity, None);
        page[3] = 11;
        assert!(BlockLimits::parse(&page).is_err());
    }

    /// a WRITE SAME that is too short for a granule, limits of zero, of one block.
    #[test]
    fn no_limit_rounds_down_to_zero() {
        // Nothing is said at all.
        let silent = limits([0; 9], 512).unwrap();
        assert_eq!((silent.unmapping, silent.max_write_same), (None, None));
        assert_eq!(silent.write_same_step(), MAX_LEN);
        // MAXIMUM WRITE SAME LENGTH and MAXIMUM UNMAP LBA COUNT below the granularity.
        let short = limits([0, 0, 0, 9, 1, 16, 0, 0, 15], 512).unwrap();
        assert_eq!((short.write_same_granule, short.write_same_step()), (None, 15 * 512));
        let unmapping = short.unmapping.unwrap();
        assert_eq!((unmapping.granule, unmapping.step()), (None, 9 * 512));
        // As long as it, and one more.
        for max in [16, 17] {
            let exact = limits([0, 0, 0, max, 1, 16, 0, 0, max], 512).unwrap();
            assert_eq!(exact.write_same_step(), 16 * 512);
            assert_eq!(exact.unmapping.map(|unmapping| unmapping.step()), Some(16 * 512));
        }
        // One of the two numbers of UNMAP is zero: it takes nothing.
        assert_eq!(limits([0, 0, 0, 0, 1, 16, 0, 0, 0], 512).unwrap().unmapping, None);
        assert_eq!(limits([0, 0, 0, 1, 0, 16, 0, 0, 0], 512).unwrap().unmapping, None);
    }

    /// granularity times block size has more than 32 bits.
    #[test]
    fn products_do_not_wrap_at_32_bits() {
        let most = limits([u32::MAX, u32::MAX, 0, u32::MAX, 1, 0, 0, 0, u32::MAX], 4096).unwrap();
        assert_eq!(most.max_transfer, Some(0xffff_ffff << 12));
        assert_eq!(most.unmapping.map(|unmapping| unmapping.max_len), Some(0xffff_ffff << 12));
        assert_eq!(most.max_write_same, Some(0xffff_ffff << 12));
        let longest = limits([0, 0, 0, 0, 0, 0, 0, u32::MAX, u32::MAX], 4096).unwrap();
        assert_eq!(longest.max_write_same, Some(MAX_LEN));
        let largest = limits([0, 0, 0, 0, 0, 1 << 18, 0, 0, 0], 4096).unwrap();
        assert_eq!(largest.write_same_granule.map(|unit| unit.len.bytes()), Some(MAX_ALIGNMENT));
        for blocks in [(1 << 18) + 1, 1 << 20, u32::MAX] {
            let problem = Problem::TooLarge { limit: 1 << 18 };
            let field = "OPTIMAL UNMAP GRANULARITY";
            let refused = AnswerError::field(field, blocks.into(), problem);
            assert_eq!(limits([0, 0, 0, 0, 0, blocks, 0, 0, 0], 4096), Err(refused));
        }
    }

    #[test]
    fn alignments_beyond_the_granularity_wrap_and_invalid_ones_do_not_count() {
        let offset = |alignment| {
            let limits = BlockLimits::parse(&bytes([0, 0, 0, 0, 0, 16, alignment, 0, 0])).unwrap();
            limits.unmap_granularity.map(|unit| unit.offset)
        };
        assert_eq!(offset(UGAVALID | 15), Some(15));
        assert_eq!(offset(UGAVALID | 16), Some(0));
        assert_eq!(offset(UGAVALID | 35), Some(3));
        assert_eq!(offset(3), Some(0));
        let none = BlockLimits::parse(&bytes([0, 0, 0, 0, 0, 0, UGAVALID | 3, 0, 0])).unwrap();
        assert_eq!(none.unmap_granularity, None);
    }

    #[test]
    fn the_rotation_rate_and_its_codes() {
        let rotation = |rate: u16| {
            let [high, low] = rate.to_be_bytes();
            let page = [0, 0xb1, 0, 6, high, low, 0, 0, 2, 0];
            let found = Characteristics::parse(&page).unwrap();
            assert!(found.fua_is_for_volatile_caches);
            found.rotation
        };
        assert_eq!(rotation(0), Rotation::Unknown);
        assert_eq!(rotation(1), Rotation::None);
        assert_eq!(rotation(0x0400), Rotation::Unknown);
        assert_eq!(rotation(7200), Rotation::PerMinute(7200));
        assert_eq!(rotation(0xffff), Rotation::Unknown);
    }

    proptest! {
        #[test]
        fn any_page_gives_limits_that_hold_the_invariants(
            content in prop::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 0..70),
            shift in 9u32..=16,
        ) {
            let len = u16::try_from(content.len()).unwrap().to_be_bytes();
            let page = [&[0, 0xb0, len[0], len[1]], content.as_slice()].concat();
            Characteristics::parse(&page).ok();
            let Ok(limits) = BlockLimits::parse(&page) else { return Ok(()) };
            let size = sized(1 << shift);
            let Ok(limits) = limits.in_bytes(size) else { return Ok(()) };
            let unmapping = limits.unmapping.map(|unmapping| unmapping.max_len);
            let all = [
                limits.max_transfer,
                limits.opt_transfer,
                limits.max_compare_and_write,
                limits.max_write_same,
                unmapping,
                Some(limits.write_same_step()),
                limits.unmapping.map(|unmapping| unmapping.step()),
            ];
            for max in all.into_iter().flatten() {
                prop_assert!(max >= size.bytes() && max <= MAX_LEN);
                prop_assert!(size.alignment().is_aligned(max));
            }
            if let Some(granule) = limits.write_same_granule {
                prop_assert!(granule.offset < granule.len.bytes());
            }
        }
    }
}
