//! Command descriptor blocks: which command one is, and what its fields say.
//!
//! A bit that is set in a CDB and not in the usage data of the command is an invalid field.

use super::check::Check;
use super::table::COMMANDS;
use super::verify::ByteCheck;

const SANITIZE: u8 = 0x48;
const COMPARE_AND_WRITE: u8 = 0x89;
const WRITE_ATOMIC: u8 = 0x9c;
/// SERVICE ACTION in byte 1.
const ACTION: u8 = 0x1f;
/// NDOB of WRITE SAME (16), in byte 1.
pub(super) const NO_DATA_OUT: u8 = 0x01;

/// A CDB, padded with zeroes to sixteen bytes.
#[derive(Copy, Clone, Debug)]
pub(super) struct Cdb([u8; 16]);

impl Cdb {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut cdb = [0; 16];
        let len = bytes.len().min(16);
        cdb[..len].copy_from_slice(&bytes[..len]);
        Self(cdb)
    }

    pub(super) fn u8(self, at: usize) -> u8 {
        self.0[at]
    }

    pub(super) fn u16(self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub(super) fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    pub(super) fn u64(self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    pub(super) fn has(self, at: usize, bit: u8) -> bool {
        self.0[at] & bit != 0
    }
}

/// Blocks that a command is about, and where its CDB says how many.
#[derive(Copy, Clone)]
pub(super) struct Blocks {
    pub(super) lba: u64,
    pub(super) count: u64,
    field: u16,
}

impl Blocks {
    /// As the group of the operation code places them (SPC-4).
    pub(super) fn of(cdb: Cdb) -> Self {
        let long = |count: u64, field| Self { lba: cdb.u64(2), count, field };
        match (cdb.u8(0), cdb.u8(0) >> 5) {
            (_, 0) => {
                let count = if cdb.u8(4) == 0 { 256 } else { cdb.u8(4).into() };
                Self { lba: (cdb.u32(0) & 0x1f_ffff).into(), count, field: 4 }
            }
            (_, 1 | 2) => Self { lba: cdb.u32(2).into(), count: cdb.u16(7).into(), field: 7 },
            (_, 5) => Self { lba: cdb.u32(2).into(), count: cdb.u32(6).into(), field: 6 },
            (COMPARE_AND_WRITE, _) => long(cdb.u8(13).into(), 13),
            (WRITE_ATOMIC, _) => long(cdb.u16(12).into(), 12),
            _ => long(cdb.u32(10).into(), 10),
        }
    }

    /// There are too many of them, or too few.
    pub(super) fn bad_count(self) -> Check {
        Check::field(self.field, 7)
    }

    /// Refuses more than `max`.
    pub(super) fn at_most(self, max: u32) -> Result<(), Check> {
        if self.count > u64::from(max) { Err(self.bad_count()) } else { Ok(()) }
    }
}

/// A command. What differs in the length of the CDB only is one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    TestUnitReady,
    RequestSense,
    Inquiry,
    Reserve6,
    Release6,
    ModeSense6,
    ModeSense10,
    ModeSelect6,
    ModeSelect10,
    StartStop,
    PreventRemoval,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    WriteAtomic,
    WriteAndVerify,
    WriteSame,
    OrWrite,
    CompareAndWrite,
    Verify,
    Prefetch,
    Synchronize,
    Unmap,
    GetLbaStatus,
    ReadDefects10,
    ReadDefects12,
    Overwrite,
    BlockErase,
    CryptoErase,
    ExitFailureMode,
    ExtendedCopy,
    CopyStatus,
    CopyParameters,
    ReserveIn,
    ReserveOut,
    ReportLuns,
    ReportOpcodes,
}

/// What reservations of somebody else do to a command (the tables of SPC-4 and SBC-3).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Nothing.
    Free,
    /// Only those of RESERVE (6) count.
    Ask,
    /// Exclusive access counts.
    Read,
    /// Every reservation counts.
    Write,
    /// The command has its own rules.
    Own,
}

/// What is known of a command. In byte 1 of the usage data of one with service actions, the bits of
/// that field say which it is.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) usage: &'static [u8],
    has_action: bool,
    kind: Use,
}

impl Entry {
    pub(super) const fn plain(op: Op, kind: Use, usage: &'static [u8]) -> Self {
        Self { op, usage, has_action: false, kind }
    }

    pub(super) const fn action_of(op: Op, kind: Use, usage: &'static [u8]) -> Self {
        Self { op, usage, has_action: true, kind }
    }

    pub(super) fn opcode(&self) -> u8 {
        self.usage[0]
    }

    /// The service action, which stands in byte 1.
    pub(super) fn action(&self) -> Option<u8> {
        self.has_action.then_some(self.usage[1] & ACTION)
    }

    /// Whether there must be a medium.
    pub(super) fn needs_medium(&self) -> bool {
        !matches!(
            self.op,
            Op::RequestSense
                | Op::Inquiry
                | Op::Reserve6
                | Op::Release6
                | Op::ModeSense6
                | Op::ModeSense10
                | Op::ModeSelect6
                | Op::ModeSelect10
                | Op::StartStop
                | Op::PreventRemoval
                | Op::CopyStatus
                | Op::CopyParameters
                | Op::ReserveIn
                | Op::ReserveOut
                | Op::ReportLuns
                | Op::ReportOpcodes
        )
    }

    /// Whether it changes the medium. (EXTENDED COPY asks each unit that it writes to.)
    pub(super) fn writes(&self) -> bool {
        matches!(
            self.op,
            Op::Write
                | Op::WriteAtomic
                | Op::WriteAndVerify
                | Op::WriteSame
                | Op::OrWrite
                | Op::CompareAndWrite
                | Op::Unmap
                | Op::Overwrite
                | Op::BlockErase
                | Op::CryptoErase
        )
    }

    /// Whether it is a SANITIZE.
    pub(super) fn sanitizes(&self) -> bool {
        self.opcode() == SANITIZE
    }

    /// What reservations do to it. To start a unit and to allow the removal of its medium takes
    /// nothing from anybody.
    pub(super) fn kind(&self, cdb: Cdb) -> Use {
        match self.op {
            Op::StartStop if cdb.u8(4) & 0xf1 == 1 => Use::Ask,
            Op::PreventRemoval if cdb.u8(4) == 0 => Use::Free,
            _ => self.kind,
        }
    }

    /// Whether a unit attention waits for the next command (SAM-5).
    pub(super) fn ignores_attention(&self) -> bool {
        matches!(self.op, Op::RequestSense | Op::Inquiry | Op::ReportLuns)
    }
}

/// The command of a CDB; every bit that is not known is zero.
pub(super) fn decode(cdb: Cdb) -> Result<&'static Entry, Check> {
    let mut entries = COMMANDS.iter().filter(|entry| entry.opcode() == cdb.u8(0)).peekable();
    if entries.peek().is_none() {
        return Err(Check::INVALID_OPCODE);
    }
    let fits = |entry: &&Entry| entry.action().is_none_or(|action| action == cdb.u8(1) & ACTION);
    let entry = entries.find(fits).ok_or(Check::field(1, 4))?;
    for (at, usage) in (1u16..).zip(&entry.usage[1..]) {
        let action = if at == 1 && entry.has_action { ACTION } else { 0 };
        let known = usage | action;
        let unknown = cdb.u8(usize::from(at)) & !known;
        if let Some(bit) = unknown.checked_ilog2() {
            return Err(Check::field(at, u8::try_from(bit).unwrap_or(7)));
        }
    }
    Ok(entry)
}

/// How many bytes the initiator must send, given the length of a block.
pub(super) fn data_out_len(entry: &Entry, cdb: Cdb, block: u64) -> u64 {
    let blocks = Blocks::of(cdb).count;
    match entry.op {
        Op::Write | Op::WriteAtomic | Op::WriteAndVerify | Op::OrWrite => blocks * block,
        Op::Verify => match ByteCheck::of(cdb) {
            Ok(ByteCheck::All) => blocks * block,
            Ok(ByteCheck::Same) => blocks.min(1) * block,
            _ => 0,
        },
        Op::WriteSame if cdb.has(1, NO_DATA_OUT) => 0,
        Op::WriteSame => block,
        Op::CompareAndWrite => 2 * blocks * block,
        Op::ModeSelect6 => cdb.u8(4).into(),
        Op::Unmap | Op::ModeSelect10 => cdb.u16(7).into(),
        Op::Overwrite | Op::BlockErase | Op::CryptoErase | Op::ExitFailureMode => cdb.u16(7).into(),
        Op::ReserveOut => cdb.u32(5).into(),
        Op::ExtendedCopy => cdb.u32(10).into(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_data_is_as_long_as_the_command() {
        for entry in COMMANDS {
            let len = match entry.opcode() >> 5 {
                0 => 6,
                1 | 2 => 10,
                5 => 12,
                _ => 16,
            };
            assert_eq!(entry.usage.len(), len, "{:?}", entry.op);
            let bytes = [entry.opcode(), entry.action().unwrap_or(0)];
            assert_eq!(decode(Cdb::new(&bytes)).unwrap().op, entry.op);
        }
    }

    #[test]
    fn every_bit_that_is_not_known_is_pointed_at() {
        for entry in COMMANDS {
            for (at, usage) in entry.usage.iter().enumerate().skip(1) {
                for bit in (0..8).filter(|bit| usage >> bit & 1 == 0) {
                    if at == 1 && entry.has_action && bit < 5 {
                        continue;
                    }
                    let mut cdb = vec![0; entry.usage.len()];
                    cdb[0] = entry.opcode();
                    cdb[1] = entry.action().unwrap_or(0);
                    cdb[at] |= 1 << bit;
                    let refused = Check::field(u16::try_from(at).unwrap(), bit);
                    assert_eq!(decode(Cdb::new(&cdb)).unwrap_err(), refused);
                }
            }
        }
    }
}
