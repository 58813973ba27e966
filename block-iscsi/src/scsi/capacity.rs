//! READ CAPACITY (SBC-3 5.15 and 5.16): how long the medium is, and in blocks of which size.
//!
//! Invariants: a [`BlockSize`] is a power of two from 512 bytes to 64 KiB; a [`Capacity`] ends at or
//! before `MAX_LEN` bytes, so no offset inside of it overflows.

use block_core::range::MAX_LEN;
use block_core::{Alignment, ByteRange};

use super::wire::Bytes;
use super::{AnswerError, Problem};

/// Smallest block in bytes.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// Largest block in bytes.
pub const BLOCK_SIZE_MAX: u32 = 64 << 10;
/// Length of the answer to READ CAPACITY (10).
pub const CAPACITY10_LEN: u32 = 8;
/// Length of the answer to READ CAPACITY (16).
pub const CAPACITY16_LEN: u32 = 32;

const FIELD_SIZE: &str = "LOGICAL BLOCK LENGTH IN BYTES";
const FIELD_LAST: &str = "RETURNED LOGICAL BLOCK ADDRESS";

/// Length of a logical block.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockSize(u32);

impl BlockSize {
    /// Blocks of `bytes` bytes.
    pub fn new(bytes: u32) -> Result<Self, AnswerError> {
        let refused = |problem| Err(AnswerError::field(FIELD_SIZE, bytes.into(), problem));
        match bytes {
            0 => refused(Problem::Zero),
            1..BLOCK_SIZE_MIN => refused(Problem::TooSmall { limit: BLOCK_SIZE_MIN.into() }),
            _ if bytes > BLOCK_SIZE_MAX => {
                refused(Problem::TooLarge { limit: BLOCK_SIZE_MAX.into() })
            }
            _ if !bytes.is_power_of_two() => refused(Problem::NotPowerOfTwo),
            _ => Ok(Self(bytes)),
        }
    }

    /// Its length in bytes.
    pub fn bytes(self) -> u64 {
        self.0.into()
    }

    /// What requests are aligned to.
    pub fn alignment(self) -> Alignment {
        Alignment::new(self.bytes()).unwrap_or(Alignment::SECTOR)
    }

    /// `blocks` blocks in bytes; `None` beyond `MAX_LEN`.
    pub fn len_of(self, blocks: u64) -> Option<u64> {
        blocks.checked_mul(self.bytes()).filter(|len| *len <= MAX_LEN)
    }

    /// The bytes of `blocks` blocks from `lba` on; `None` if they end beyond `MAX_LEN`.
    pub fn range(self, lba: u64, blocks: u64) -> Option<ByteRange> {
        ByteRange::new(self.len_of(lba)?, self.len_of(blocks)?).ok()
    }
}

/// What READ CAPACITY (16) says of thin provisioning (SBC-3 4.7).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Management {
    /// The logical unit is provisioned in a managed way: thin, or by resources (LBPME).
    pub managed: bool,
    /// Unmapped blocks read as zeroes (LBPRZ).
    pub reads_zeroes: bool,
}

/// Length and shape of a medium.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Capacity {
    blocks: u64,
    block_size: BlockSize,
    /// Power of two of logical blocks that a physical one holds; at most 15.
    pub physical_exponent: u8,
    /// The first block that a physical one begins with; at most 0x3fff.
    pub lowest_aligned_lba: u16,
    /// Thin provisioning.
    pub management: Management,
    /// Type of protection that the medium is formatted with, if any (PROT_EN and P_TYPE): 1 to 8.
    pub protection: Option<u8>,
}

/// The answer to READ CAPACITY (10).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Capacity10 {
    /// All that the command can say.
    Known(Capacity),
    /// More blocks than 32 bits can count: READ CAPACITY (16) tells.
    TooLarge,
}

impl Capacity {
    fn new(last: u64, block_size: u32) -> Result<Self, AnswerError> {
        let block_size = BlockSize::new(block_size)?;
        let limit = MAX_LEN / block_size.bytes() - 1;
        if last > limit {
            return Err(AnswerError::field(FIELD_LAST, last, Problem::TooLarge { limit }));
        }
        Ok(Self {
            blocks: last + 1,
            block_size,
            physical_exponent: 0,
            lowest_aligned_lba: 0,
            management: Management::default(),
            protection: None,
        })
    }

    /// Reads the answer to READ CAPACITY (16) (SBC-3 5.16.2).
    pub fn parse16(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("READ CAPACITY (16) data", bytes);
        let mut capacity = Self::new(bytes.u64(0)?, bytes.u32(8)?)?;
        let protection = bytes.u8(12)?;
        capacity.protection = (protection & 0x01 != 0).then_some((protection >> 1 & 0x07) + 1);
        capacity.physical_exponent = bytes.u8(13)? & 0x0f;
        let word = bytes.u16(14)?;
        capacity.management =
            Management { managed: word & 0x8000 != 0, reads_zeroes: word & 0x4000 != 0 };
        capacity.lowest_aligned_lba = word & 0x3fff;
        Ok(capacity)
    }

    /// Reads the answer to READ CAPACITY (10) (SBC-3 5.15).
    pub fn parse10(bytes: &[u8]) -> Result<Capacity10, AnswerError> {
        let bytes = Bytes::new("READ CAPACITY (10) data", bytes);
        let (last, block_size) = (bytes.u32(0)?, bytes.u32(4)?);
        if last == u32::MAX {
            return Ok(Capacity10::TooLarge);
        }
        Self::new(last.into(), block_size).map(Capacity10::Known)
    }

    /// How many blocks; at least one.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How long a block is.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Length in bytes; at most `MAX_LEN`.
    pub fn len(&self) -> u64 {
        self.blocks * self.block_size.bytes()
    }

    /// Never: a medium has at least one block.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Length of a physical block in bytes.
    pub fn physical_block_size(&self) -> u64 {
        self.block_size.bytes() << self.physical_exponent
    }
}

const _: () = assert!(BLOCK_SIZE_MAX.is_power_of_two() && BLOCK_SIZE_MIN.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(last: u64, block_size: u32, tail: [u8; 4]) -> Vec<u8> {
        let mut bytes = last.to_be_bytes().to_vec();
        bytes.extend(block_size.to_be_bytes());
        bytes.extend(tail);
        bytes.resize(32, 0);
        bytes
    }

    #[test]
    fn the_fields_of_read_capacity_16() {
        let capacity = Capacity::parse16(&answer(99, 4096, [0x03, 0x13, 0xc1, 0x02])).unwrap();
        assert_eq!((capacity.blocks(), capacity.len()), (100, 409_600));
        assert!(!capacity.is_empty());
        assert_eq!(capacity.physical_block_size(), 32768);
        assert_eq!(capacity.lowest_aligned_lba, 0x102);
        assert_eq!(capacity.management, Management { managed: true, reads_zeroes: true });
        assert_eq!(capacity.protection, Some(2));
        let plain = Capacity::parse16(&answer(0, 512, [0; 4])).unwrap();
        assert_eq!((plain.len(), plain.management.managed, plain.protection), (512, false, None));
    }

    /// Every block size that cannot be is refused before anybody divides by it.
    #[test]
    fn block_sizes_at_their_borders() {
        for (size, problem) in [
            (0, Problem::Zero),
            (1, Problem::TooSmall { limit: 512 }),
            (256, Problem::TooSmall { limit: 512 }),
            (520, Problem::NotPowerOfTwo),
            (0xffff, Problem::NotPowerOfTwo),
            (0x2_0000, Problem::TooLarge { limit: 0x1_0000 }),
            (u32::MAX, Problem::TooLarge { limit: 0x1_0000 }),
        ] {
            let refused = AnswerError::field(FIELD_SIZE, size.into(), problem);
            assert_eq!(Capacity::parse16(&answer(9, size, [0; 4])), Err(refused));
        }
        for size in [512, 1024, 4096, 0x1_0000] {
            assert_eq!(BlockSize::new(size).unwrap().bytes(), u64::from(size));
            assert_eq!(BlockSize::new(size).unwrap().alignment().bytes(), u64::from(size));
        }
    }

    #[test]
    fn capacities_at_their_borders() {
        for size in [512, 0x1_0000] {
            let limit = MAX_LEN / u64::from(size) - 1;
            let most = Capacity::parse16(&answer(limit, size, [0; 4])).unwrap();
            assert_eq!(most.len(), MAX_LEN);
            for last in [limit + 1, u64::MAX - 1, u64::MAX] {
                let refused = AnswerError::field(FIELD_LAST, last, Problem::TooLarge { limit });
                assert_eq!(Capacity::parse16(&answer(last, size, [0; 4])), Err(refused));
            }
        }
    }

    #[test]
    fn read_capacity_10_says_when_it_cannot_say() {
        let answer = |last: u32, size: u32| [last.to_be_bytes(), size.to_be_bytes()].concat();
        let Ok(Capacity10::Known(most)) = Capacity::parse10(&answer(u32::MAX - 1, 512)) else {
            panic!("known");
        };
        assert_eq!(most.blocks(), u64::from(u32::MAX));
        assert_eq!(Capacity::parse10(&answer(u32::MAX, 512)), Ok(Capacity10::TooLarge));
        assert!(Capacity::parse10(&answer(1, 0)).is_err());
        assert!(Capacity::parse10(&[0; 7]).is_err());
    }

    /// blocks times block size in 64 bits, checked.
    #[test]
    fn products_of_blocks_and_block_size_are_checked() {
        let size = BlockSize::new(4096).unwrap();
        assert_eq!(size.len_of(1 << 20), Some(1 << 32));
        assert_eq!(size.len_of(u64::MAX), None);
        assert_eq!(size.range(1 << 20, 1).map(ByteRange::offset), Some(1 << 32));
        assert_eq!(size.range(MAX_LEN / 4096, 1), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(capacity) = Capacity::parse16(&bytes) {
                prop_assert!(capacity.len() <= MAX_LEN && !capacity.is_empty());
                prop_assert!(capacity.physical_block_size() >= 512);
            }
            if let Ok(Capacity10::Known(capacity)) = Capacity::parse10(&bytes) {
                prop_assert!(capacity.len() <= u64::from(u32::MAX) << 16);
            }
        }
    }
}
