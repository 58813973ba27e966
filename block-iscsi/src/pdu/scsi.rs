//! SCSI Command and SCSI Response (RFC 7143, sections 11.3 and 11.4).
//!
//! A command is the only PDU with additional header segments: one for the bytes of a CDB past its
//! sixteenth, one for how much a bidirectional command reads.

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{BHS_LEN, Bhs, Opcode};
use super::fields::{
    DataLen, Delivery, FINAL, NO_TAG, RawRequestSerials, RawResponseSerials, RequestSerials,
    Residual, ResponseSerials, below_final, check_no_ahs, check_opcode, codes, tail,
};
use super::{Pdu, PduError};
use crate::serial::Serial;

/// Longest CDB in bytes (SPC-4: a variable length CDB).
pub const CDB_LEN_MAX: usize = 260;

const CDB_HEAD_LEN: usize = 16;
const READ: u8 = 0x40;
const WRITE: u8 = 0x20;
const ATTRIBUTES: u8 = 0x07;
const AHS_EXTENDED_CDB: u8 = 1;
const AHS_READ_LEN: u8 = 2;
const AHS_CODE: u8 = 0x3f;
const BIDIRECTIONAL_BITS: [u8; 2] = [0x10, 0x08];
const RESIDUAL_BITS: [u8; 2] = [0x04, 0x02];

/// A command descriptor block of 1 to 260 bytes. Those shorter than 16 bytes end with zeroes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cdb {
    head: [u8; CDB_HEAD_LEN],
    rest: Vec<u8>,
}

impl Cdb {
    /// A block of these bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, PduError> {
        if bytes.is_empty() {
            return Err(PduError::Short { field: "CDB", needed: 1, len: 0 });
        }
        if bytes.len() > CDB_LEN_MAX {
            return Err(PduError::Long { field: "CDB", len: bytes.len(), limit: CDB_LEN_MAX });
        }
        let (first, rest) = bytes.split_at(bytes.len().min(CDB_HEAD_LEN));
        let mut head = [0; CDB_HEAD_LEN];
        for (to, from) in head.iter_mut().zip(first) {
            *to = *from;
        }
        Ok(Self { head, rest: rest.to_vec() })
    }

    /// A block of at most 16 bytes, with zeroes behind them.
    pub fn short(head: [u8; CDB_HEAD_LEN]) -> Self {
        Self { head, rest: Vec::new() }
    }

    /// Its first 16 bytes.
    pub fn head(&self) -> &[u8; CDB_HEAD_LEN] {
        &self.head
    }

    /// What follows the first 16 bytes; mostly nothing.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }
}

/// Which way a command's data goes.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// There is none.
    None,
    /// To the initiator.
    Read,
    /// To the target.
    Write(Unsolicited),
    /// Both.
    Both {
        /// What of the data to the target comes without being asked for.
        write: Unsolicited,
        /// How many bytes are expected to the initiator.
        read_len: u32,
    },
}

/// Whether Data-Out PDUs follow a command without being asked for (the F bit).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Unsolicited {
    /// None.
    None,
    /// Some do.
    Follows,
}

codes! {
    /// How a command stands in the queue of its LUN (section 11.3.1).
    TaskAttribute: "ATTR" {
        /// As the target's default is.
        Untagged = 0,
        /// Free to be reordered.
        Simple = 1,
        /// In order.
        Ordered = 2,
        /// At the head.
        HeadOfQueue = 3,
        /// For clearing an auto contingent allegiance.
        Aca = 4,
    }
}

/// A SCSI command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScsiCommand {
    /// When it is delivered.
    pub delivery: Delivery,
    /// Which way its data goes.
    pub direction: Direction,
    /// How it stands in the queue.
    pub attribute: TaskAttribute,
    /// The LUN.
    pub lun: [u8; 8],
    /// Its tag.
    pub task_tag: u32,
    /// How many bytes are expected to be moved; to the target, if both ways are used.
    pub expected_len: u32,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
    /// The command itself.
    pub cdb: Cdb,
    /// Length of the immediate data: the first bytes of a write.
    pub data_len: DataLen,
}

/// How a command ended.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum CommandOutcome {
    /// It ran. The rest belongs to this case only.
    Completed {
        /// The SCSI status.
        status: u8,
        /// How the length differs from what was expected; of the data to the target, if both
        /// ways are used.
        residual: Residual,
        /// The same for the data to the initiator of a command that uses both ways.
        read_residual: Residual,
    },
    /// The target failed.
    TargetFailure,
    /// A vendor's response, 0x80 to 0xff.
    Vendor(u8),
}

/// The end of a SCSI command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScsiResponse {
    /// How it ended.
    pub outcome: CommandOutcome,
    /// The command's tag.
    pub task_tag: u32,
    /// The tag that an R-Data SNACK was answered under: neither 0, which stands for none (section
    /// 11.4.4), nor all ones (section 11.16.5).
    pub snack_tag: Option<u32>,
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// ExpDataSN: how many Data-In PDUs were sent for the command (section 11.4.8).
    pub exp_data_sn: Serial,
    /// Length of the data segment, which [`SenseSegment`] reads.
    pub data_len: DataLen,
}

/// What the data segment of a response, or of a SCSI event, holds (section 11.4.7).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct SenseSegment<'a> {
    /// The sense data.
    pub sense: &'a [u8],
    /// What follows it.
    pub rest: &'a [u8],
}

impl<'a> SenseSegment<'a> {
    /// Reads a data segment. An empty one has no sense data.
    pub fn parse(data: &'a [u8]) -> Result<Self, PduError> {
        if data.is_empty() {
            return Ok(Self { sense: &[], rest: &[] });
        }
        let short = PduError::Short { field: "SenseLength", needed: 2, len: data.len() };
        let (len, data) = data.split_first_chunk::<2>().ok_or(short)?;
        let needed = usize::from(u16::from_be_bytes(*len));
        let short = PduError::Short { field: "Sense Data", needed, len: data.len() };
        let (sense, rest) = data.split_at_checked(needed).ok_or(short)?;
        Ok(Self { sense, rest })
    }

    /// The data segment.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PduError> {
        let limit = usize::from(u16::MAX);
        let too_long = PduError::Long { field: "Sense Data", len: self.sense.len(), limit };
        let len = u16::try_from(self.sense.len()).map_err(|_| too_long)?;
        Ok([&len.to_be_bytes(), self.sense, self.rest].concat())
    }
}

tail! { CommandTail {
    expected_len: U32,
    serials: RawRequestSerials,
    cdb: [u8; 16],
} }

tail! { ResponseTail {
    snack_tag: U32,
    serials: RawResponseSerials,
    exp_data_sn: U32,
    read_residual: U32,
    residual: U32,
} }

impl ScsiCommand {
    /// Takes the fields of a header, and its additional segments.
    ///
    /// Immediate data needs a write and is no longer than it; a command that is not a write has
    /// its F bit (section 11.3.1).
    pub fn from_bhs(bhs: &Bhs, ahs: &[u8]) -> Result<Self, PduError> {
        check_opcode(bhs, Opcode::ScsiCommand)?;
        let tail = CommandTail::of(bhs);
        let segments = Segments::parse(ahs)?;
        let unsolicited =
            if bhs.flags & FINAL == 0 { Unsolicited::Follows } else { Unsolicited::None };
        let direction = match (bhs.flags & READ != 0, bhs.flags & WRITE != 0, segments.read_len) {
            (_, false, None) if unsolicited == Unsolicited::Follows => {
                return Err(PduError::field("F", 0_u8));
            }
            (false, false, None) => Direction::None,
            (true, false, None) => Direction::Read,
            (false, true, None) => Direction::Write(unsolicited),
            (true, true, Some(read_len)) => Direction::Both { write: unsolicited, read_len },
            (true, true, None) => return Err(PduError::field("R and W", READ | WRITE)),
            (_, _, Some(_)) => return Err(PduError::field("AHSType", AHS_READ_LEN)),
        };
        let expected_len = tail.expected_len.get();
        let immediate_limit = match direction {
            Direction::None | Direction::Read => 0,
            Direction::Write(_) | Direction::Both { .. } => expected_len,
        };
        if bhs.data_len() > immediate_limit {
            return Err(PduError::field("DataSegmentLength", bhs.data_len()));
        }
        Ok(Self {
            delivery: bhs.delivery(),
            direction,
            attribute: TaskAttribute::from_code(bhs.flags & ATTRIBUTES)?,
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            expected_len,
            serials: tail.serials.into(),
            cdb: Cdb { head: tail.cdb, rest: segments.cdb_rest.to_vec() },
            data_len: bhs.data(),
        })
    }

    /// Reads the header, with its additional segments, that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, PduError> {
        let (bhs, ahs) = split_ahs(bytes)?;
        Self::from_bhs(&bhs, ahs)
    }

    /// The basic header segment. Its length of the additional segments is that of
    /// [`Self::append_to`].
    pub fn to_bhs(&self) -> Bhs {
        // At most 248 bytes with the CDB and 8 with the length: 64 words.
        let words = u8::try_from(self.ahs_len() / 4).unwrap_or(u8::MAX);
        let mut bhs = Bhs::new(Opcode::ScsiCommand)
            .with_delivery(self.delivery)
            .with_data(self.data_len)
            .with_ahs_words(words);
        let (bits, unsolicited) = match self.direction {
            Direction::None => (0, Unsolicited::None),
            Direction::Read => (READ, Unsolicited::None),
            Direction::Write(unsolicited) => (WRITE, unsolicited),
            Direction::Both { write, .. } => (READ | WRITE, write),
        };
        let last = if unsolicited == Unsolicited::None { FINAL } else { 0 };
        bhs.flags = last | bits | self.attribute.code();
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = CommandTail {
            expected_len: self.expected_len.into(),
            serials: self.serials.into(),
            cdb: self.cdb.head,
        }
        .bytes();
        bhs
    }

    /// Appends the header with its additional segments to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bhs().to_bytes());
        let rest = &self.cdb.rest;
        if !rest.is_empty() {
            let len = u16::try_from(rest.len() + 1).unwrap_or(u16::MAX);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&[AHS_EXTENDED_CDB, 0]);
            out.extend_from_slice(rest);
            out.resize(out.len() + rest.len().next_multiple_of(4) - rest.len(), 0);
        }
        if let Direction::Both { read_len, .. } = self.direction {
            out.extend_from_slice(&[0, 5, AHS_READ_LEN, 0]);
            out.extend_from_slice(&read_len.to_be_bytes());
        }
    }

    /// The header with its additional segments.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BHS_LEN + self.ahs_len());
        self.append_to(&mut bytes);
        bytes
    }

    fn ahs_len(&self) -> usize {
        let cdb = match self.cdb.rest.len() {
            0 => 0,
            len => 4 + len.next_multiple_of(4),
        };
        let read_len = if matches!(self.direction, Direction::Both { .. }) { 8 } else { 0 };
        cdb + read_len
    }
}

/// The basic header segment that `bytes` start with, and the additional ones behind it.
pub(super) fn split_ahs(bytes: &[u8]) -> Result<(Bhs, &[u8]), PduError> {
    let bhs = Bhs::parse(bytes)?;
    let needed = usize::from(bhs.ahs_words()) * 4;
    let behind = bytes.get(BHS_LEN..).unwrap_or_default();
    let short = PduError::Short { field: "AHS", needed, len: behind.len() };
    let ahs = behind.get(..needed).ok_or(short)?;
    Ok((bhs, ahs))
}

/// The additional header segments of a command (section 11.2.2).
#[derive(Default)]
struct Segments<'a> {
    cdb_rest: &'a [u8],
    read_len: Option<u32>,
}

impl<'a> Segments<'a> {
    /// Each kind comes at most once. A segment's length covers what follows its type; the segment
    /// is padded to words of four bytes.
    fn parse(mut ahs: &'a [u8]) -> Result<Self, PduError> {
        let mut segments = Self::default();
        while !ahs.is_empty() {
            let short = PduError::Short { field: "AHS", needed: 4, len: ahs.len() };
            let (&[high, low, kind, _], behind) = ahs.split_first_chunk::<4>().ok_or(short)?;
            let ahs_len = u16::from_be_bytes([high, low]);
            let bad_len = PduError::field("AHSLength", ahs_len);
            // The byte behind the type is counted too.
            let len = usize::from(ahs_len.checked_sub(1).ok_or(bad_len)?);
            let content = behind.get(..len).ok_or(bad_len)?;
            match kind & AHS_CODE {
                AHS_EXTENDED_CDB if segments.cdb_rest.is_empty() => {
                    if content.is_empty() || content.len() > CDB_LEN_MAX - CDB_HEAD_LEN {
                        return Err(bad_len);
                    }
                    segments.cdb_rest = content;
                }
                AHS_READ_LEN if segments.read_len.is_none() => {
                    let read_len = content.try_into().map_err(|_| bad_len)?;
                    segments.read_len = Some(u32::from_be_bytes(read_len));
                }
                code => return Err(PduError::field("AHSType", code)),
            }
            ahs = behind.get(len.next_multiple_of(4)..).ok_or(bad_len)?;
        }
        Ok(segments)
    }
}

impl Pdu for ScsiResponse {
    const OPCODE: Opcode = Opcode::ScsiResponse;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let flags = below_final(bhs)?;
        let tail = ResponseTail::of(bhs);
        let [response, status] = bhs.specific_head;
        let outcome = match response {
            0 => CommandOutcome::Completed {
                status,
                residual: Residual::decode("O and U", RESIDUAL_BITS, flags, tail.residual.get())?,
                read_residual: Residual::decode(
                    "o and u",
                    BIDIRECTIONAL_BITS,
                    flags,
                    tail.read_residual.get(),
                )?,
            },
            // Of the others, status and flags are ignored (section 11.4.3).
            1 => CommandOutcome::TargetFailure,
            0x80.. => CommandOutcome::Vendor(response),
            code => return Err(PduError::field("Response", code)),
        };
        Ok(Self {
            outcome,
            task_tag: bhs.initiator_task_tag,
            snack_tag: Some(tail.snack_tag.get()).filter(|tag| ![0, NO_TAG].contains(tag)),
            serials: tail.serials.into(),
            exp_data_sn: tail.exp_data_sn.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut tail = ResponseTail {
            snack_tag: self.snack_tag.unwrap_or(0).into(),
            serials: self.serials.into(),
            exp_data_sn: self.exp_data_sn.into(),
            ..ResponseTail::default()
        };
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = FINAL;
        match self.outcome {
            CommandOutcome::Completed { status, residual, read_residual } => {
                let (bits, count) = residual.encode(RESIDUAL_BITS);
                let (read_bits, read_count) = read_residual.encode(BIDIRECTIONAL_BITS);
                bhs.flags |= bits | read_bits;
                bhs.specific_head = [0, status];
                tail.residual = count.into();
                tail.read_residual = read_count.into();
            }
            CommandOutcome::TargetFailure => bhs.specific_head = [1, 0],
            CommandOutcome::Vendor(response) => bhs.specific_head = [response, 0],
        }
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = tail.bytes();
        bhs
    }
}
