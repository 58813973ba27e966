//! Thin provisioning (SBC-3 4.7): VPD page B2, GET LBA STATUS and the data of UNMAP.
//!
//! Invariants of an [`LbaStatus`]: its extents follow each other without a gap, the first begins at
//! the block that was asked about, none is empty, and the last ends at or before the end of the
//! medium.

use std::num::NonZeroU32;

use block_core::range::to_u64;

use super::inquiry::{PAGE_PROVISIONING, check_limit, page};
use super::wire::{Bytes, size};
use super::{AnswerError, Problem};

/// Most descriptors of GET LBA STATUS that are taken from one answer.
pub const STATUS_DESCRIPTORS_MAX: usize = 4096;
/// Most descriptors of one UNMAP: as many as its 16-bit lengths can say.
pub const UNMAP_DESCRIPTORS_MAX: usize = (0xffff - UNMAP_HEADER_LEN) / DESCRIPTOR_LEN;

const STATUS_HEADER_LEN: usize = 8;
const UNMAP_HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// What unmapped blocks read as (LBPRZ of page B2: three bits in SBC-4; SBC-3 has the lowest of
/// them only).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum UnmappedReads {
    /// Nobody knows, or not always the same.
    Anything,
    /// Zeroes: every code with the lowest bit set.
    Zeroes,
    /// The provisioning initialization pattern, which need not be zeroes.
    Pattern,
    /// A code without a meaning.
    Other(u8),
}

/// PROVISIONING TYPE.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ProvisioningType {
    /// Not reported, or fully provisioned.
    Full,
    /// Resource provisioned: room for every block, but not every block has a place.
    Resource,
    /// Thin provisioned.
    Thin,
    /// A code without a meaning.
    Other(u8),
}

/// VPD page B2, logical block provisioning (SBC-3).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Provisioning {
    /// UNMAP is there (LBPU).
    pub unmap: bool,
    /// WRITE SAME (16) knows UNMAP (LBPWS).
    pub write_same_16: bool,
    /// WRITE SAME (10) knows UNMAP (LBPWS10).
    pub write_same_10: bool,
    /// Blocks can be anchored (ANC_SUP).
    pub anchor: bool,
    /// What unmapped blocks read as.
    pub unmapped_reads: UnmappedReads,
    /// How blocks get their places.
    pub kind: ProvisioningType,
}

impl Provisioning {
    /// Reads page B2.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let page = page("VPD page B2", PAGE_PROVISIONING, bytes)?;
        let flags = page.u8(1)?;
        Ok(Self {
            unmap: flags & 0x80 != 0,
            write_same_16: flags & 0x40 != 0,
            write_same_10: flags & 0x20 != 0,
            anchor: flags & 0x02 != 0,
            unmapped_reads: match flags >> 2 & 0x07 {
                0 => UnmappedReads::Anything,
                2 => UnmappedReads::Pattern,
                code if code & 1 != 0 => UnmappedReads::Zeroes,
                code => UnmappedReads::Other(code),
            },
            kind: match page.u8(2)? & 0x07 {
                0 => ProvisioningType::Full,
                1 => ProvisioningType::Resource,
                2 => ProvisioningType::Thin,
                code => ProvisioningType::Other(code),
            },
        })
    }
}

/// PROVISIONING STATUS of blocks.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum BlockState {
    /// Mapped, or nobody knows.
    Mapped,
    /// Deallocated.
    Deallocated,
    /// Anchored: without contents, but with room for them.
    Anchored,
    /// A code without a meaning, which says nothing of the contents.
    Other(u8),
}

impl BlockState {
    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Mapped,
            1 => Self::Deallocated,
            2 => Self::Anchored,
            code => Self::Other(code),
        }
    }

    /// Whether the blocks have no contents: they read as what the unit says of unmapped blocks.
    pub fn is_unmapped(self) -> bool {
        matches!(self, Self::Deallocated | Self::Anchored)
    }
}

/// Blocks in a row that have the same state.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct StatusExtent {
    /// First block.
    pub lba: u64,
    /// How many; at least one.
    pub blocks: u64,
    /// Their state.
    pub state: BlockState,
}

/// The answer to GET LBA STATUS (SBC-3 5.4). See the module for what holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LbaStatus(Vec<StatusExtent>);

impl LbaStatus {
    /// Reads the answer to a question about the blocks from `asked` on, of a medium that has `blocks`
    /// blocks. `asked` is one of them, or no answer is right.
    ///
    /// What lies beyond the end of the medium is cut off: the medium may have grown meanwhile. An
    /// answer may end in the middle of a descriptor, where the allocation length cut it.
    pub fn parse(bytes: &[u8], asked: u64, blocks: u64) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("GET LBA STATUS data", bytes);
        // PARAMETER DATA LENGTH does not count itself.
        let len = size(bytes.u32(0)?).saturating_add(4);
        bytes.slice(0, STATUS_HEADER_LEN)?;
        let list = bytes.at_most(len).from(STATUS_HEADER_LEN);
        let count = list.len() / DESCRIPTOR_LEN;
        if count == 0 {
            return Err(AnswerError::field(COUNT, 0, Problem::Zero));
        }
        check_limit(COUNT, count, STATUS_DESCRIPTORS_MAX)?;
        let mut extents = Vec::with_capacity(count);
        let mut next = asked;
        for descriptor in list.pieces(DESCRIPTOR_LEN) {
            let extent = parse_extent(descriptor, next)?;
            if next >= blocks {
                break;
            }
            // LBAs have 64 bits and `blocks` has checked bounds, so the end may saturate.
            next = extent.lba.saturating_add(extent.blocks);
            extents.push(StatusExtent { blocks: next.min(blocks) - extent.lba, ..extent });
        }
        if extents.is_empty() {
            let problem = Problem::TooLarge { limit: blocks.saturating_sub(1) };
            return Err(AnswerError::field(LBA, asked, problem));
        }
        Ok(Self(extents))
    }

    /// The extents in the order of the blocks; at least one.
    pub fn extents(&self) -> &[StatusExtent] {
        &self.0
    }

    /// One past the last block that something is known of.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |last| last.lba + last.blocks)
    }
}

/// Reads a descriptor that must begin at block `start`.
fn parse_extent(descriptor: Bytes<'_>, start: u64) -> Result<StatusExtent, AnswerError> {
    let (lba, blocks) = (descriptor.u64(0)?, descriptor.u32(8)?);
    if lba != start {
        return Err(AnswerError::field(LBA, lba, Problem::Unexpected { expected: start }));
    }
    if blocks == 0 {
        return Err(AnswerError::field("NUMBER OF LOGICAL BLOCKS", 0, Problem::Zero));
    }
    let state = BlockState::from_code(descriptor.u8(12)? & 0x0f);
    Ok(StatusExtent { lba, blocks: blocks.into(), state })
}

/// Blocks to unmap.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct UnmapExtent {
    /// First block.
    pub lba: u64,
    /// How many.
    pub blocks: NonZeroU32,
}

/// The parameter list of UNMAP (SBC-3 5.28).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnmapList {
    bytes: Vec<u8>,
    len: u16,
}

/// A list of more extents than one UNMAP can say.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{count} extents do not fit into one UNMAP, which takes {UNMAP_DESCRIPTORS_MAX}")]
pub struct TooManyExtents {
    /// How many there are.
    pub count: usize,
}

impl UnmapList {
    /// The list of `extents`; with none of them the command does nothing.
    pub fn new(extents: &[UnmapExtent]) -> Result<Self, TooManyExtents> {
        let too_many = TooManyExtents { count: extents.len() };
        let descriptors_len = extents.len().checked_mul(DESCRIPTOR_LEN).ok_or(too_many)?;
        let field = |len: usize| u16::try_from(len).map_err(|_| too_many);
        let len = field(descriptors_len.saturating_add(UNMAP_HEADER_LEN))?;
        let mut bytes = Vec::with_capacity(usize::from(len));
        // UNMAP DATA LENGTH does not count itself.
        bytes.extend((len - 2).to_be_bytes());
        bytes.extend(field(descriptors_len)?.to_be_bytes());
        bytes.extend([0; 4]);
        for extent in extents {
            bytes.extend(extent.lba.to_be_bytes());
            bytes.extend(extent.blocks.get().to_be_bytes());
            bytes.extend([0; 4]);
        }
        debug_assert_eq!(to_u64(bytes.len()), u64::from(len));
        Ok(Self { bytes, len })
    }

    /// The bytes of the Data-Out buffer.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Their number, for [`super::cdb::Cdb::Unmap`].
    pub fn list_len(&self) -> u16 {
        self.len
    }
}

const COUNT: &str = "number of LBA status descriptors";
const LBA: &str = "LBA STATUS LOGICAL BLOCK ADDRESS";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(extents: &[(u64, u32, u8)]) -> Vec<u8> {
        let len = u32::try_from(extents.len() * 16 + 4).unwrap();
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        for (lba, blocks, state) in extents {
            bytes.extend(lba.to_be_bytes());
            bytes.extend(blocks.to_be_bytes());
            bytes.extend([0xf0 | state, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn extents_in_a_row_are_taken() {
        let bytes = answer(&[(8, 8, 0), (16, 4, 1), (20, 1, 2), (21, 2, 9)]);
        let status = LbaStatus::parse(&bytes, 8, 100).unwrap();
        let states: Vec<_> = status.extents().iter().map(|extent| extent.state).collect();
        let all = [BlockState::Mapped, BlockState::Deallocated, BlockState::Anchored];
        assert_eq!(states[..3], all);
        assert_eq!(states[3], BlockState::Other(9));
        let unmapped: Vec<_> = states.iter().map(|state| state.is_unmapped()).collect();
        assert_eq!((unmapped, status.end()), (vec![false, true, true, false], 23));
    }

    /// no descriptor at all, or one of no blocks.
    #[test]
    fn no_descriptor_and_no_blocks_are_errors() {
        let none = AnswerError::field(COUNT, 0, Problem::Zero);
        assert_eq!(LbaStatus::parse(&answer(&[]), 0, 100), Err(none));
        // The target says that there is one, and sends a part of it; and the other way round.
        assert_eq!(LbaStatus::parse(&answer(&[(0, 8, 1)])[..23], 0, 100), Err(none));
        let mut silent = answer(&[(0, 8, 1)]);
        silent[..4].fill(0);
        assert_eq!(LbaStatus::parse(&silent, 0, 100), Err(none));
        let empty = AnswerError::field("NUMBER OF LOGICAL BLOCKS", 0, Problem::Zero);
        assert_eq!(LbaStatus::parse(&answer(&[(0, 0, 1)]), 0, 100), Err(empty));
        assert_eq!(LbaStatus::parse(&answer(&[(0, 8, 1), (8, 0, 1)]), 0, 100), Err(empty));
        assert!(LbaStatus::parse(&[0; 7], 0, 100).is_err());
    }

    /// the answer is about other blocks.
    #[test]
    fn a_wrong_start_a_gap_and_an_overlap_are_errors() {
        let wrong =
            |lba, expected| Err(AnswerError::field(LBA, lba, Problem::Unexpected { expected }));
        assert_eq!(LbaStatus::parse(&answer(&[(0, 8, 1)]), 1, 100), wrong(0, 1));
        assert_eq!(LbaStatus::parse(&answer(&[(2, 8, 1)]), 1, 100), wrong(2, 1));
        assert_eq!(LbaStatus::parse(&answer(&[(1, 8, 1), (10, 1, 0)]), 1, 100), wrong(10, 9));
        assert_eq!(LbaStatus::parse(&answer(&[(1, 8, 1), (8, 1, 0)]), 1, 100), wrong(8, 9));
    }

    #[test]
    fn what_lies_beyond_the_medium_is_cut_off() {
        let bytes = answer(&[(8, u32::MAX, 1)]);
        let status = LbaStatus::parse(&bytes, 8, 10).unwrap();
        assert_eq!((status.extents()[0].blocks, status.end()), (2, 10));
        let status = LbaStatus::parse(&answer(&[(8, 2, 1), (10, 5, 0)]), 8, 10).unwrap();
        assert_eq!((status.extents().len(), status.end()), (1, 10));
        let beyond = AnswerError::field(LBA, 10, Problem::TooLarge { limit: 9 });
        assert_eq!(LbaStatus::parse(&answer(&[(10, 1, 0)]), 10, 10), Err(beyond));
        let last = LbaStatus::parse(&answer(&[(u64::MAX - 1, 9, 1)]), u64::MAX - 1, u64::MAX);
        assert_eq!(last.unwrap().extents()[0].blocks, 1);
    }

    #[test]
    fn an_answer_may_end_in_the_middle_of_a_descriptor() {
        let bytes = answer(&[(0, 8, 1), (8, 8, 0)]);
        assert_eq!(LbaStatus::parse(&bytes[..39], 0, 100).unwrap().end(), 8);
        let many = |count: u32| {
            let extents: Vec<_> = (0..count).map(|lba| (u64::from(lba), 1, 1)).collect();
            LbaStatus::parse(&answer(&extents), 0, 1 << 20)
        };
        assert_eq!(many(4096).unwrap().end(), 4096);
        let limit = to_u64(STATUS_DESCRIPTORS_MAX);
        let refused = AnswerError::field(COUNT, 4097, Problem::TooLarge { limit });
        assert_eq!(many(4097), Err(refused));
    }

    /// LBPRZ has three bits on page B2, and 010b does not mean zeroes.
    #[test]
    fn only_the_lowest_bit_of_lbprz_means_zeroes() {
        let reads = |code: u8| {
            let page = [0, 0xb2, 0, 4, 0, 0xe2 | code << 2, 2, 0];
            let found = Provisioning::parse(&page).unwrap();
            assert!(found.unmap && found.write_same_16 && found.write_same_10 && found.anchor);
            assert_eq!(found.kind, ProvisioningType::Thin);
            found.unmapped_reads
        };
        for code in [1, 3, 5, 7] {
            assert_eq!(reads(code), UnmappedReads::Zeroes);
        }
        assert_eq!(reads(0), UnmappedReads::Anything);
        assert_eq!(reads(2), UnmappedReads::Pattern);
        assert_eq!(reads(4), UnmappedReads::Other(4));
        assert_eq!(reads(6), UnmappedReads::Other(6));
    }

    #[test]
    fn the_list_of_unmap_counts_its_bytes() {
        let extent = UnmapExtent { lba: 0x0102, blocks: NonZeroU32::new(3).unwrap() };
        let list = UnmapList::new(&[extent]).unwrap();
        let head = [0, 22, 0, 16, 0, 0, 0, 0];
        let descriptor = [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0, 0];
        assert_eq!(list.as_slice(), [head.as_slice(), &descriptor].concat());
        assert_eq!(UnmapList::new(&[]).unwrap().as_slice(), [0, 6, 0, 0, 0, 0, 0, 0]);
        let most = UnmapList::new(&vec![extent; UNMAP_DESCRIPTORS_MAX]).unwrap();
        assert_eq!(usize::from(most.list_len()), most.as_slice().len());
        let count = UNMAP_DESCRIPTORS_MAX + 1;
        assert_eq!(UnmapList::new(&vec![extent; count]), Err(TooManyExtents { count }));
    }

    proptest! {
        #[test]
        fn any_status_holds_the_invariants(
            tail in prop::collection::vec(any::<u8>(), 0..80),
            extents in prop::collection::vec((0u64..4, 0u32..4, 0u8..16), 0..4),
            asked in 0u64..4,
            blocks in 0u64..8,
        ) {
            LbaStatus::parse(&tail, asked, blocks).ok();
            Provisioning::parse(&tail).ok();
            let mut bytes = answer(&extents);
            bytes.extend(tail);
            if let Ok(status) = LbaStatus::parse(&bytes, asked, blocks) {
                let mut next = asked;
                for extent in status.extents() {
                    prop_assert!(extent.lba == next && extent.blocks > 0);
                    next += extent.blocks;
                }
                prop_assert!(next == status.end() && next <= blocks && next > asked);
            }
        }
    }
}
