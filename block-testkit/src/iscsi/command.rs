//! The commands that are known, and which bits of them are (SPC-4 6.35: the usage data).
//!
//! A bit that is set in a CDB and not in the usage data is an invalid field.

use super::check::Check;

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

/// A command.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    TestUnitReady,
    RequestSense,
    Inquiry,
    Reserve6,
    Release6,
    ModeSense6,
    ModeSense10,
    ReadCapacity10,
    ReadCapacity16,
    Read10,
    Read16,
    Write10,
    Write16,
    WriteSame10,
    WriteSame16,
    Synchronize10,
    Synchronize16,
    CompareAndWrite,
    Unmap,
    GetLbaStatus,
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

/// What is known of a command.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) usage: &'static [u8],
    pub(super) action: Option<u8>,
    pub(super) kind: Use,
}

impl Entry {
    pub(super) fn opcode(&self) -> u8 {
        self.usage[0]
    }

    /// Whether it only exists on thin units.
    pub(super) fn needs_thin(&self) -> bool {
        self.op == Op::Unmap
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
                | Op::ReserveIn
                | Op::ReserveOut
                | Op::ReportLuns
                | Op::ReportOpcodes
        )
    }

    /// Whether it changes the medium.
    pub(super) fn writes(&self) -> bool {
        matches!(
            self.op,
            Op::Write10
                | Op::Write16
                | Op::WriteSame10
                | Op::WriteSame16
                | Op::CompareAndWrite
                | Op::Unmap
        )
    }

    /// Whether a unit attention waits for the next command (SAM-5).
    pub(super) fn ignores_attention(&self) -> bool {
        matches!(self.op, Op::RequestSense | Op::Inquiry | Op::ReportLuns)
    }
}

const fn plain(op: Op, kind: Use, usage: &'static [u8]) -> Entry {
    Entry { op, usage, action: None, kind }
}

/// The service action stands in byte 1.
const fn action(op: Op, kind: Use, usage: &'static [u8]) -> Entry {
    Entry { op, usage, action: Some(usage[1]), kind }
}

/// All commands.
#[rustfmt::skip]
pub(super) const COMMANDS: &[Entry] = &[
    plain(Op::TestUnitReady, Use::Ask, &[0x00, 0, 0, 0, 0, 0]),
    plain(Op::RequestSense, Use::Free, &[0x03, 1, 0, 0, 0xff, 0]),
    plain(Op::Inquiry, Use::Free, &[0x12, 1, 0xff, 0xff, 0xff, 0]),
    plain(Op::Reserve6, Use::Own, &[0x16, 0, 0, 0, 0, 0]),
    plain(Op::Release6, Use::Own, &[0x17, 0, 0, 0, 0, 0]),
    plain(Op::ModeSense6, Use::Write, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(Op::ReadCapacity10, Use::Ask, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Op::Read10, Use::Read, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Op::Write10, Use::Write, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Op::Synchronize10, Use::Write, &[0x35, 0x06, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Op::WriteSame10, Use::Write, &[0x41, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Op::Unmap, Use::Write, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Op::ModeSense10, Use::Write, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    action(Op::ReserveIn, Use::Ask, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(Op::ReserveIn, Use::Ask, &[0x5e, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(Op::ReserveIn, Use::Ask, &[0x5e, 2, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 1, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 2, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 3, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 4, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 5, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(Op::ReserveOut, Use::Own, &[0x5f, 6, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    plain(Op::Read16, Use::Read, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Op::CompareAndWrite, Use::Write, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0]),
    plain(Op::Write16, Use::Write, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Op::Synchronize16, Use::Write, &[0x91, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Op::WriteSame16, Use::Write, &[0x93, 0x19, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(Op::ReadCapacity16, Use::Ask, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(Op::GetLbaStatus, Use::Read, &[0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Op::ReportLuns, Use::Free, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(Op::ReportOpcodes, Use::Read, &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// The command of a CDB; every bit that is not known is zero.
pub(super) fn decode(cdb: Cdb) -> Result<&'static Entry, Check> {
    let mut entries = COMMANDS.iter().filter(|entry| entry.opcode() == cdb.u8(0)).peekable();
    if entries.peek().is_none() {
        return Err(Check::INVALID_OPCODE);
    }
    let fits = |entry: &&Entry| entry.action.is_none_or(|action| action == cdb.u8(1) & 0x1f);
    let entry = entries.find(fits).ok_or(Check::field(1, 4))?;
    for (at, usage) in (1u16..).zip(&entry.usage[1..]) {
        let known = if at == 1 && entry.action.is_some() { 0x1f } else { *usage };
        let unknown = cdb.u8(usize::from(at)) & !known;
        if let Some(bit) = unknown.checked_ilog2() {
            return Err(Check::field(at, u8::try_from(bit).unwrap_or(7)));
        }
    }
    Ok(entry)
}

/// How many bytes the initiator must send, given the length of a block.
pub(super) fn data_out_len(entry: &Entry, cdb: Cdb, block: u64) -> u64 {
    match entry.op {
        Op::Write10 => u64::from(cdb.u16(7)) * block,
        Op::Write16 => u64::from(cdb.u32(10)) * block,
        Op::WriteSame16 if cdb.has(1, 1) => 0,
        Op::WriteSame10 | Op::WriteSame16 => block,
        Op::CompareAndWrite => u64::from(cdb.u8(13)) * 2 * block,
        Op::Unmap => cdb.u16(7).into(),
        Op::ReserveOut => cdb.u32(5).into(),
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
            assert_eq!(
                decode(Cdb::new(&[entry.opcode(), entry.action.unwrap_or(0)])).unwrap().op,
                entry.op
            );
        }
    }

    #[test]
    fn every_bit_that_is_not_known_is_pointed_at() {
        for entry in COMMANDS {
            for (at, usage) in entry.usage.iter().enumerate().skip(1) {
                for bit in (0..8).filter(|bit| usage >> bit & 1 == 0) {
                    if at == 1 && entry.action.is_some() && bit < 5 {
                        continue;
                    }
                    let mut cdb = vec![0; entry.usage.len()];
                    cdb[0] = entry.opcode();
                    cdb[1] = entry.action.unwrap_or(0);
                    cdb[at] |= 1 << bit;
                    let refused = Check::field(u16::try_from(at).unwrap(), bit);
                    assert_eq!(decode(Cdb::new(&cdb)).unwrap_err(), refused);
                }
            }
        }
    }
}
