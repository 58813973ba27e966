//! Command descriptor blocks (SPC-4 and SBC-3): what an initiator asks, as bytes.
//!
//! A [`Cdb`] holds only what fits its fields, so encoding cannot fail. A number of blocks that the
//! standard reads as "to the end of the medium" when it is zero is a `NonZero` here.
//!
//! Reserved bits, GROUP NUMBER, the protection fields and the CONTROL byte are zero.

use std::num::{NonZeroU16, NonZeroU32};

use super::capacity::BlockSize;
use super::mode::ModePage;
use super::reservation::{ReserveIn, ReserveOut};

/// Length of the CDB field of a SCSI Command PDU (RFC 7143, section 11.3.5), and of the longest CDB
/// here.
pub const CDB_LEN_MAX: usize = 16;

/// DPO and FUA of reads and writes (SBC-3, READ and WRITE): how they treat the caches.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Caching {
    /// The data will hardly be wanted again (DPO).
    pub dpo: bool,
    /// The medium is read or written before the command ends (FUA).
    pub fua: bool,
}

impl Caching {
    /// As the target likes.
    pub const DEFAULT: Self = Self { dpo: false, fua: false };
    /// Past the caches.
    pub const FUA: Self = Self { dpo: false, fua: true };

    fn bits(self) -> u8 {
        bit(self.dpo, 0x10) | bit(self.fua, 0x08)
    }
}

/// Whether WRITE SAME may give blocks back (the UNMAP and ANCHOR bits of SBC-3).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Deallocate {
    /// The blocks are written.
    No,
    /// The target may unmap them, if they read the same afterwards.
    Unmap,
    /// The target may unmap them and keeps room for them.
    Anchor,
}

impl Deallocate {
    fn bits(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Unmap => 0x08,
            Self::Anchor => 0x18,
        }
    }
}

/// What WRITE SAME (16) writes.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum SameData {
    /// The block in the Data-Out buffer.
    Block,
    /// Zeroes, with no Data-Out buffer (NDOB).
    Zeroes,
}

/// Which form of sense data REQUEST SENSE asks for (DESC).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum SenseForm {
    /// Fixed format.
    Fixed,
    /// Descriptor format.
    Descriptor,
}

/// Which LUNs REPORT LUNS asks for (SELECT REPORT of SPC-4).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum WhichLuns {
    /// Logical units, not well known ones.
    Ordinary,
    /// Well known logical units only.
    WellKnown,
    /// All of them.
    All,
}

/// What REPORT SUPPORTED OPERATION CODES asks for (REPORTING OPTIONS, SPC-4 6.35).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum WhichOpcodes {
    /// A list of all commands.
    All,
    /// One command without service actions.
    One(u8),
    /// One service action of a command.
    Action(u8, u16),
}

/// A command.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Cdb {
    /// Is the logical unit ready? TEST UNIT READY (SPC-4 6.47).
    TestUnitReady,
    /// What sense data is there? REQUEST SENSE (SPC-4).
    RequestSense {
        /// The form of the answer.
        form: SenseForm,
        /// Most bytes of the answer.
        allocation: u8,
    },
    /// Standard INQUIRY data (SPC-4 6.6).
    Inquiry {
        /// Most bytes of the answer.
        allocation: u16,
    },
    /// A page of vital product data: INQUIRY with EVPD (SPC-4 6.6).
    InquiryPage {
        /// Code of the page.
        page: u8,
        /// Most bytes of the answer.
        allocation: u16,
    },
    /// MODE SENSE (6) without block descriptors (SPC-4).
    ModeSense6 {
        /// The page, or all of them.
        page: ModePage,
        /// Most bytes of the answer.
        allocation: u8,
    },
    /// MODE SENSE (10) without block descriptors (SPC-4).
    ModeSense10 {
        /// The page, or all of them.
        page: ModePage,
        /// Most bytes of the answer.
        allocation: u16,
    },
    /// READ CAPACITY (10) (SBC-3 5.15).
    ReadCapacity10,
    /// READ CAPACITY (16) (SBC-3 5.16).
    ReadCapacity16 {
        /// Most bytes of the answer.
        allocation: u32,
    },
    /// REPORT LUNS (SPC-4).
    ReportLuns {
        /// Which of them.
        which: WhichLuns,
        /// Most bytes of the answer.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
    ReportOpcodes {
        /// Which of them.
        which: WhichOpcodes,
        /// Most bytes of the answer.
        allocation: u32,
    },
    /// READ (10) (SBC-3 5.11).
    Read10 {
        /// First block.
        lba: u32,
        /// How many blocks.
        blocks: u16,
        /// DPO and FUA.
        caching: Caching,
    },
    /// READ (16) (SBC-3 5.13).
    Read16 {
        /// First block.
        lba: u64,
        /// How many blocks.
        blocks: u32,
        /// DPO and FUA.
        caching: Caching,
    },
    /// WRITE (10) (SBC-3).
    Write10 {
        /// First block.
        lba: u32,
        /// How many blocks.
        blocks: u16,
        /// DPO and FUA.
        caching: Caching,
    },
    /// WRITE (16) (SBC-3).
    Write16 {
        /// First block.
        lba: u64,
        /// How many blocks.
        blocks: u32,
        /// DPO and FUA.
        caching: Caching,
    },
    /// WRITE SAME (10) (SBC-3).
    WriteSame10 {
        /// First block.
        lba: u32,
        /// How many blocks.
        blocks: NonZeroU16,
        /// Whether they may be given back.
        deallocate: Deallocate,
    },
    /// WRITE SAME (16) (SBC-3).
    WriteSame16 {
        /// First block.
        lba: u64,
        /// How many blocks.
        blocks: NonZeroU32,
        /// Whether they may be given back.
        deallocate: Deallocate,
        /// What is written.
        data: SameData,
    },
    /// UNMAP (SBC-3 5.28); [`super::provisioning::UnmapList`] is its data.
    Unmap {
        /// Length of the parameter list in bytes.
        list_len: u16,
    },
    /// GET LBA STATUS (SBC-3 5.4).
    GetLbaStatus {
        /// First block.
        lba: u64,
        /// Most bytes of the answer.
        allocation: u32,
    },
    /// SYNCHRONIZE CACHE (10) of the whole medium, waiting for it (SBC-3).
    SynchronizeCache10,
    /// SYNCHRONIZE CACHE (16) of a part of the medium, waiting for it (SBC-3).
    SynchronizeCache16 {
        /// First block.
        lba: u64,
        /// How many blocks.
        blocks: NonZeroU32,
    },
    /// COMPARE AND WRITE (SBC-3 5.2). The data is what must be there, then what shall be there.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// How many blocks are compared and written.
        blocks: u8,
        /// DPO and FUA.
        caching: Caching,
    },
    /// PERSISTENT RESERVE IN (SPC-4).
    PersistentReserveIn {
        /// What is asked.
        action: ReserveIn,
        /// Most bytes of the answer.
        allocation: u16,
    },
    /// PERSISTENT RESERVE OUT (SPC-4); [`super::reservation::ReserveList`] is its data.
    PersistentReserveOut {
        /// What is done.
        action: ReserveOut,
    },
    /// RESERVE (6) (SPC-2).
    Reserve6,
    /// RELEASE (6) (SPC-2).
    Release6,
}

/// Where the data of a command goes, and at most how much of it there is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// No data.
    None,
    /// So many bytes to the initiator.
    In(u64),
    /// So many bytes to the target.
    Out(u64),
}

/// Whether a command may be sent again when nobody knows if it ran.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Replay {
    /// Twice is as good as once.
    Safe,
    /// Running it twice may fail or change more than running it once.
    Unsafe,
}

/// A CDB on the wire.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct CdbBytes {
    bytes: [u8; CDB_LEN_MAX],
    len: usize,
}

impl CdbBytes {
    /// A CDB of `opcode`, everything else zero; its length follows from the opcode's group
    /// (SPC-4, OPERATION CODE).
    fn new(opcode: u8) -> Self {
        let len = match opcode >> 5 {
            0 => 6,
            1 | 2 => 10,
            5 => 12,
            _ => 16,
        };
        let mut bytes = [0; CDB_LEN_MAX];
        bytes[0] = opcode;
        Self { bytes, len }
    }

    /// A command that somebody else has made, of 6 to 16 bytes; `None` if it has another length.
    pub fn raw(command: &[u8]) -> Option<Self> {
        let mut bytes = [0; CDB_LEN_MAX];
        bytes.get_mut(..command.len()).filter(|_| command.len() >= 6)?.copy_from_slice(command);
        Some(Self { bytes, len: command.len() })
    }

    /// With `value` from byte `at` on.
    fn with<const N: usize>(mut self, at: usize, value: [u8; N]) -> Self {
        self.bytes[at..at + N].copy_from_slice(&value);
        self
    }

    /// The bytes that the command has.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The bytes of a PDU's CDB field: padded with zeroes.
    pub fn padded(&self) -> [u8; CDB_LEN_MAX] {
        self.bytes
    }
}

impl Cdb {
    /// READ (10) where its fields are wide enough, else READ (16).
    pub fn read(lba: u64, blocks: u32, caching: Caching) -> Self {
        match (u32::try_from(lba), u16::try_from(blocks)) {
            (Ok(lba), Ok(blocks)) => Self::Read10 { lba, blocks, caching },
            _ => Self::Read16 { lba, blocks, caching },
        }
    }

    /// WRITE (10) where its fields are wide enough, else WRITE (16).
    pub fn write(lba: u64, blocks: u32, caching: Caching) -> Self {
        match (u32::try_from(lba), u16::try_from(blocks)) {
            (Ok(lba), Ok(blocks)) => Self::Write10 { lba, blocks, caching },
            _ => Self::Write16 { lba, blocks, caching },
        }
    }

    /// The operation code.
    pub fn opcode(&self) -> u8 {
        match self {
            Self::TestUnitReady => 0x00,
            Self::RequestSense { .. } => 0x03,
            Self::Inquiry { .. } | Self::InquiryPage { .. } => 0x12,
            Self::Reserve6 => 0x16,
            Self::Release6 => 0x17,
            Self::ModeSense6 { .. } => 0x1a,
            Self::ReadCapacity10 => 0x25,
            Self::Read10 { .. } => 0x28,
            Self::Write10 { .. } => 0x2a,
            Self::SynchronizeCache10 => 0x35,
            Self::WriteSame10 { .. } => 0x41,
            Self::Unmap { .. } => 0x42,
            Self::ModeSense10 { .. } => 0x5a,
            Self::PersistentReserveIn { .. } => 0x5e,
            Self::PersistentReserveOut { .. } => 0x5f,
            Self::Read16 { .. } => 0x88,
            Self::CompareAndWrite { .. } => 0x89,
            Self::Write16 { .. } => 0x8a,
            Self::SynchronizeCache16 { .. } => 0x91,
            Self::WriteSame16 { .. } => 0x93,
            Self::ReadCapacity16 { .. } | Self::GetLbaStatus { .. } => 0x9e,
            Self::ReportLuns { .. } => 0xa0,
            Self::ReportOpcodes { .. } => 0xa3,
        }
    }

    /// Whether the command, or its data, names blocks, which are others once the medium is another one
    /// or is formatted in another way.
    pub fn names_blocks(&self) -> bool {
        match self {
            Self::Read10 { .. }
            | Self::Read16 { .. }
            | Self::Write10 { .. }
            | Self::Write16 { .. }
            | Self::WriteSame10 { .. }
            | Self::WriteSame16 { .. }
            | Self::Unmap { .. }
            | Self::GetLbaStatus { .. }
            | Self::SynchronizeCache16 { .. }
            | Self::CompareAndWrite { .. } => true,
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::InquiryPage { .. }
            | Self::ModeSense6 { .. }
            | Self::ModeSense10 { .. }
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::ReportLuns { .. }
            | Self::ReportOpcodes { .. }
            | Self::SynchronizeCache10
            | Self::PersistentReserveIn { .. }
            | Self::PersistentReserveOut { .. }
            | Self::Reserve6
            | Self::Release6 => false,
        }
    }

    /// The command as bytes.
    pub fn encode(&self) -> CdbBytes {
        let cdb = CdbBytes::new(self.opcode());
        match *self {
            Self::TestUnitReady
            | Self::ReadCapacity10
            | Self::SynchronizeCache10
            | Self::Reserve6
            | Self::Release6 => cdb,
            Self::RequestSense { form, allocation } => {
                cdb.with(1, [bit(form == SenseForm::Descriptor, 1)]).with(4, [allocation])
            }
            Self::Inquiry { allocation } => cdb.with(3, allocation.to_be_bytes()),
            Self::InquiryPage { page, allocation } => {
                cdb.with(1, [1, page]).with(3, allocation.to_be_bytes())
            }
            Self::ModeSense6 { page, allocation } => {
                cdb.with(1, [0x08, page.code()]).with(4, [allocation])
            }
            Self::ModeSense10 { page, allocation } => {
                cdb.with(1, [0x08, page.code()]).with(7, allocation.to_be_bytes())
            }
            Self::ReadCapacity16 { allocation } => {
                cdb.with(1, [0x10]).with(10, allocation.to_be_bytes())
            }
            Self::ReportLuns { which, allocation } => {
                cdb.with(2, [which.code()]).with(6, allocation.to_be_bytes())
            }
            Self::ReportOpcodes { which, allocation } => {
                which.encode(cdb.with(1, [0x0c])).with(6, allocation.to_be_bytes())
            }
            Self::GetLbaStatus { lba, allocation } => {
                cdb.with(1, [0x12]).with(2, lba.to_be_bytes()).with(10, allocation.to_be_bytes())
            }
            Self::Unmap { list_len } => cdb.with(7, list_len.to_be_bytes()),
            Self::PersistentReserveIn { action, allocation } => {
                cdb.with(1, [action.code()]).with(7, allocation.to_be_bytes())
            }
            Self::PersistentReserveOut { action } => {
                cdb.with(1, [action.code(), action.scope_and_type()]).with(5, LIST_LEN)
            }
            _ => self.encode_blocks(cdb),
        }
    }

    /// The commands that name a range of blocks.
    fn encode_blocks(&self, cdb: CdbBytes) -> CdbBytes {
        match *self {
            Self::Read10 { lba, blocks, caching } | Self::Write10 { lba, blocks, caching } => {
                range10(cdb, caching.bits(), lba, blocks)
            }
            Self::Read16 { lba, blocks, caching } | Self::Write16 { lba, blocks, caching } => {
                range16(cdb, caching.bits(), lba, blocks)
            }
            Self::WriteSame10 { lba, blocks, deallocate } => {
                range10(cdb, deallocate.bits(), lba, blocks.get())
            }
            Self::WriteSame16 { lba, blocks, deallocate, data } => {
                let bits = deallocate.bits() | bit(data == SameData::Zeroes, 0x01);
                range16(cdb, bits, lba, blocks.get())
            }
            Self::SynchronizeCache16 { lba, blocks } => range16(cdb, 0, lba, blocks.get()),
            Self::CompareAndWrite { lba, blocks, caching } => {
                cdb.with(1, [caching.bits()]).with(2, lba.to_be_bytes()).with(13, [blocks])
            }
            _ => cdb,
        }
    }

    /// Which way the data goes, and at most how much: what an iSCSI initiator puts into Expected
    /// Data Transfer Length.
    pub fn transfer(&self, block_size: BlockSize) -> Transfer {
        let of = |blocks: u32| u64::from(blocks) * block_size.bytes();
        match *self {
            Self::TestUnitReady
            | Self::SynchronizeCache10
            | Self::SynchronizeCache16 { .. }
            | Self::WriteSame16 { data: SameData::Zeroes, .. }
            | Self::Reserve6
            | Self::Release6 => Transfer::None,
            Self::RequestSense { allocation, .. } | Self::ModeSense6 { allocation, .. } => {
                Transfer::In(allocation.into())
            }
            Self::Inquiry { allocation }
            | Self::InquiryPage { allocation, .. }
            | Self::ModeSense10 { allocation, .. }
            | Self::PersistentReserveIn { allocation, .. } => Transfer::In(allocation.into()),
            Self::ReadCapacity10 => Transfer::In(8),
            Self::ReadCapacity16 { allocation }
            | Self::ReportLuns { allocation, .. }
            | Self::ReportOpcodes { allocation, .. }
            | Self::GetLbaStatus { allocation, .. } => Transfer::In(allocation.into()),
            Self::Read10 { blocks, .. } => Transfer::In(of(blocks.into())),
            Self::Read16 { blocks, .. } => Transfer::In(of(blocks)),
            Self::Write10 { blocks, .. } => Transfer::Out(of(blocks.into())),
            Self::Write16 { blocks, .. } => Transfer::Out(of(blocks)),
            Self::WriteSame10 { .. } | Self::WriteSame16 { data: SameData::Block, .. } => {
                Transfer::Out(of(1))
            }
            Self::CompareAndWrite { blocks, .. } => Transfer::Out(2 * of(blocks.into())),
            Self::Unmap { list_len } => Transfer::Out(list_len.into()),
            Self::PersistentReserveOut { .. } => {
                Transfer::Out(u64::from(u32::from_be_bytes(LIST_LEN)))
            }
        }
    }

    /// Whether the command may be sent again after its answer was lost.
    pub fn replay(&self) -> Replay {
        match self {
            Self::CompareAndWrite { .. } | Self::PersistentReserveOut { .. } => Replay::Unsafe,
            _ => Replay::Safe,
        }
    }
}

impl WhichLuns {
    fn code(self) -> u8 {
        match self {
            Self::Ordinary => 0,
            Self::WellKnown => 1,
            Self::All => 2,
        }
    }
}

impl WhichOpcodes {
    fn encode(self, cdb: CdbBytes) -> CdbBytes {
        match self {
            Self::All => cdb,
            Self::One(opcode) => cdb.with(2, [1, opcode]),
            Self::Action(opcode, action) => cdb.with(2, [2, opcode]).with(4, action.to_be_bytes()),
        }
    }
}

fn bit(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn range10(cdb: CdbBytes, bits: u8, lba: u32, blocks: u16) -> CdbBytes {
    cdb.with(1, [bits]).with(2, lba.to_be_bytes()).with(7, blocks.to_be_bytes())
}

fn range16(cdb: CdbBytes, bits: u8, lba: u64, blocks: u32) -> CdbBytes {
    cdb.with(1, [bits]).with(2, lba.to_be_bytes()).with(10, blocks.to_be_bytes())
}

/// Length of the parameter list of PERSISTENT RESERVE OUT: 24 bytes.
const LIST_LEN: [u8; 4] = [0, 0, 0, 24];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::reservation::ReservationType;

    fn hex(cdb: Cdb) -> String {
        cdb.encode().as_slice().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn fields_stand_where_the_standards_put_them() {
        let all = Caching { dpo: true, fua: true };
        let short = NonZeroU16::new(0x0708).unwrap();
        let long = NonZeroU32::new(0x0b0c_0d0e).unwrap();
        let (lba10, lba16) = (0x0304_0506, 0x0304_0506_0708_090a);
        let reserve = ReserveOut::Reserve(ReservationType::ExclusiveAccess);
        let which = WhichOpcodes::Action(0x9e, 0x10);
        let deallocate = Deallocate::Anchor;
        let zeroes = SameData::Zeroes;
        let cases = [
            (Cdb::TestUnitReady, "000000000000"),
            (Cdb::RequestSense { form: SenseForm::Descriptor, allocation: 252 }, "03010000fc00"),
            (Cdb::Inquiry { allocation: 0x1234 }, "120000123400"),
            (Cdb::InquiryPage { page: 0xb0, allocation: 64 }, "1201b0004000"),
            (Cdb::ModeSense6 { page: ModePage::All, allocation: 255 }, "1a083f00ff00"),
            (
                Cdb::ModeSense10 { page: ModePage::Caching, allocation: 0x102 },
                "5a080800000000010200",
            ),
            (Cdb::ReadCapacity10, "25000000000000000000"),
            (Cdb::ReadCapacity16 { allocation: 32 }, "9e100000000000000000000000200000"),
            (Cdb::ReportLuns { which: WhichLuns::All, allocation: 16 }, "a00002000000000000100000"),
            (Cdb::ReportOpcodes { which, allocation: 16 }, "a30c029e0010000000100000"),
            (
                Cdb::ReportOpcodes { which: WhichOpcodes::One(0x42), allocation: 16 },
                "a30c01420000000000100000",
            ),
            (
                Cdb::Read10 { lba: lba10, blocks: 0x0708, caching: Caching::FUA },
                "28080304050600070800",
            ),
            (Cdb::Write10 { lba: lba10, blocks: 0x0708, caching: all }, "2a180304050600070800"),
            (
                Cdb::Read16 { lba: lba16, blocks: 1, caching: Caching::DEFAULT },
                "8800030405060708090a000000010000",
            ),
            (
                Cdb::Write16 { lba: lba16, blocks: 0x0b0c_0d0e, caching: all },
                "8a18030405060708090a0b0c0d0e0000",
            ),
            (
                Cdb::WriteSame10 { lba: lba10, blocks: short, deallocate: Deallocate::Unmap },
                "41080304050600070800",
            ),
            (
                Cdb::WriteSame16 { lba: lba16, blocks: long, deallocate, data: zeroes },
                "9319030405060708090a0b0c0d0e0000",
            ),
            (Cdb::Unmap { list_len: 24 }, "42000000000000001800"),
            (
                Cdb::GetLbaStatus { lba: lba16, allocation: 0x1000 },
                "9e12030405060708090a000010000000",
            ),
            (Cdb::SynchronizeCache10, "35000000000000000000"),
            (
                Cdb::SynchronizeCache16 { lba: lba16, blocks: long },
                "9100030405060708090a0b0c0d0e0000",
            ),
            (
                Cdb::CompareAndWrite { lba: lba16, blocks: 3, caching: Caching::FUA },
                "8908030405060708090a000000030000",
            ),
            (
                Cdb::PersistentReserveIn { action: ReserveIn::Reservation, allocation: 24 },
                "5e010000000000001800",
            ),
            (Cdb::PersistentReserveOut { action: reserve }, "5f010300000000001800"),
            (Cdb::Reserve6, "160000000000"),
            (Cdb::Release6, "170000000000"),
        ];
        for (cdb, bytes) in cases {
            assert_eq!(hex(cdb), bytes, "{cdb:?}");
            assert_eq!(cdb.encode().padded()[..bytes.len() / 2], *cdb.encode().as_slice());
        }
    }

    #[test]
    fn the_shortest_command_that_can_say_the_range_is_chosen() {
        let caching = Caching::DEFAULT;
        assert_eq!(Cdb::read(0xffff_ffff, 0xffff, caching).opcode(), 0x28);
        assert_eq!(Cdb::read(1 << 32, 1, caching).opcode(), 0x88);
        assert_eq!(Cdb::read(0, 0x1_0000, caching).opcode(), 0x88);
        assert_eq!(Cdb::write(0xffff_ffff, 0xffff, caching).opcode(), 0x2a);
        assert_eq!(Cdb::write(1 << 32, 1, caching).opcode(), 0x8a);
        assert_eq!(Cdb::write(0, 0x1_0000, caching).opcode(), 0x8a);
    }

    /// the number of bytes is larger than 32 bits can say.
    #[test]
    fn lengths_in_bytes_do_not_wrap_at_32_bits() {
        let size = BlockSize::new(1 << 16).unwrap();
        let caching = Caching::DEFAULT;
        let read = Cdb::read(0, u32::MAX, caching);
        assert_eq!(read.transfer(size), Transfer::In(0xffff_ffff << 16));
        let write = Cdb::write(0, 0x1_0000, caching);
        assert_eq!(write.transfer(size), Transfer::Out(1 << 32));
        let compare = Cdb::CompareAndWrite { lba: 0, blocks: 255, caching };
        assert_eq!(compare.transfer(size), Transfer::Out(510 << 16));
        let blocks = NonZeroU32::MAX;
        let deallocate = Deallocate::Unmap;
        let same = |data| Cdb::WriteSame16 { lba: 0, blocks, deallocate, data }.transfer(size);
        assert_eq!(same(SameData::Block), Transfer::Out(1 << 16));
        assert_eq!(same(SameData::Zeroes), Transfer::None);
    }

    #[test]
    fn what_depends_on_the_state_before_is_not_replayed() {
        let compare = Cdb::CompareAndWrite { lba: 0, blocks: 1, caching: Caching::DEFAULT };
        assert_eq!(compare.replay(), Replay::Unsafe);
        let clear = Cdb::PersistentReserveOut { action: ReserveOut::Clear };
        assert_eq!(clear.replay(), Replay::Unsafe);
        assert_eq!(Cdb::write(0, 1, Caching::DEFAULT).replay(), Replay::Safe);
    }
}
