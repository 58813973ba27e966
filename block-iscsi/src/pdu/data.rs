//! SCSI Data-Out, SCSI Data-In and Ready To Transfer (RFC 7143, sections 11.7 and 11.8).

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, FINAL, RawResponseSerials, Residual, ResponseSerials, below_final, check_no_ahs,
    check_no_data, optional_tag, tag_code, tail,
};
use super::{Pdu, PduError};
use crate::serial::Serial;

const ACKNOWLEDGE: u8 = 0x40;
const RESIDUAL_BITS: [u8; 2] = [0x04, 0x02];
const STATUS: u8 = 0x01;
const CHECK_CONDITION: u8 = 0x02;

/// Whether more of a sequence follows.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Sequence {
    /// More of it follows.
    GoesOn,
    /// This is its last PDU.
    Ends,
}

/// Data of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataOut {
    /// Whether more of the burst follows.
    pub sequence: Sequence,
    /// The LUN of the R2T that this answers.
    pub lun: [u8; 8],
    /// The write's tag.
    pub task_tag: u32,
    /// The tag of the R2T; none for unsolicited data.
    pub target_tag: Option<u32>,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// DataSN: the PDU's number within the burst.
    pub data_sn: Serial,
    /// Where the data belongs, in bytes from the start of the write's data.
    pub buffer_offset: u32,
    /// Length of the data.
    pub data_len: DataLen,
}

/// What a Data-In says about what follows.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum DataInEnd {
    /// The burst goes on or ends; a SCSI Response will follow.
    Open(Sequence),
    /// This is the command's last PDU: it succeeded, and no response follows.
    Status {
        /// The SCSI status.
        status: u8,
        /// How the length differs from what was expected.
        residual: Residual,
    },
}

/// The target wants to hear that data has arrived (the A bit, section 11.7.2).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct AckRequest {
    /// The LUN that the acknowledgement has to name.
    pub lun: [u8; 8],
    /// The tag that it has to name.
    pub target_tag: u32,
}

/// Data of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataIn {
    /// What follows.
    pub end: DataInEnd,
    /// Whether a DataACK SNACK is wanted.
    pub acknowledge: Option<AckRequest>,
    /// The read's tag.
    pub task_tag: u32,
    /// The serial numbers. StatSN counts only where there is a status.
    pub serials: ResponseSerials,
    /// DataSN: the PDU's number within the read.
    pub data_sn: Serial,
    /// Where the data belongs, in bytes from the start of the read's data.
    pub buffer_offset: u32,
    /// Length of the data.
    pub data_len: DataLen,
}

/// Asks for data of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadyToTransfer {
    /// The LUN that the data has to name.
    pub lun: [u8; 8],
    /// The write's tag.
    pub task_tag: u32,
    /// The tag that the data has to name.
    pub target_tag: u32,
    /// The serial numbers. StatSN is the next one; it is not taken up.
    pub serials: ResponseSerials,
    /// R2TSN: the number of this R2T within the write.
    pub r2t_sn: Serial,
    /// The first byte that is asked for, from the start of the write's data.
    pub buffer_offset: u32,
    /// How many bytes are asked for; never 0.
    pub desired_len: u32,
}

tail! { OutTail {
    target_tag: U32,
    _reserved_a: [u8; 4],
    exp_stat_sn: U32,
    _reserved_b: [u8; 4],
    data_sn: U32,
    buffer_offset: U32,
    _reserved_c: [u8; 4],
} }

tail! {
    /// Data-In and R2T differ only in the names of the fields.
    InTail {
        target_tag: U32,
        serials: RawResponseSerials,
        data_sn: U32,
        buffer_offset: U32,
        count: U32,
    }
}

impl Pdu for DataOut {
    const OPCODE: Opcode = Opcode::DataOut;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let tail = OutTail::of(bhs);
        Ok(Self {
            sequence: decode_sequence(bhs),
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            target_tag: optional_tag(tail.target_tag.get()),
            exp_stat_sn: tail.exp_stat_sn.into(),
            data_sn: tail.data_sn.into(),
            buffer_offset: tail.buffer_offset.get(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = encode_sequence(self.sequence);
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = OutTail {
            target_tag: tag_code(self.target_tag).into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            data_sn: self.data_sn.into(),
            buffer_offset: self.buffer_offset.into(),
            ..OutTail::default()
        }
        .bytes();
        bhs
    }
}

impl Pdu for DataIn {
    const OPCODE: Opcode = Opcode::DataIn;

    /// A status needs the F bit; without one the residual bits mean nothing. A status of CHECK
    /// CONDITION needs a SCSI Response with sense data (section 11.7.3). An A bit without a tag that
    /// could be named asks for nothing; sessions without recovery ignore the bit (section 11.7.2).
    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let tail = InTail::of(bhs);
        let sequence = decode_sequence(bhs);
        let [_, status] = bhs.specific_head;
        let end = match (bhs.flags & STATUS != 0, sequence) {
            (true, Sequence::GoesOn) => return Err(PduError::field("F", 0_u8)),
            (true, Sequence::Ends) if status == CHECK_CONDITION => {
                return Err(PduError::field("Status", status));
            }
            (true, Sequence::Ends) => DataInEnd::Status {
                status,
                residual: Residual::decode("O and U", RESIDUAL_BITS, bhs.flags, tail.count.get())?,
            },
            (false, _) => DataInEnd::Open(sequence),
        };
        let wanted = bhs.flags & ACKNOWLEDGE != 0;
        let acknowledge = optional_tag(tail.target_tag.get())
            .filter(|_| wanted)
            .map(|target_tag| AckRequest { lun: bhs.lun, target_tag });
        Ok(Self {
            end,
            acknowledge,
            task_tag: bhs.initiator_task_tag,
            serials: tail.serials.into(),
            data_sn: tail.data_sn.into(),
            buffer_offset: tail.buffer_offset.get(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        let mut count = 0;
        match self.end {
            DataInEnd::Open(sequence) => bhs.flags = encode_sequence(sequence),
            DataInEnd::Status { status, residual } => {
                let (bits, residual_count) = residual.encode(RESIDUAL_BITS);
                count = residual_count;
                bhs.flags = FINAL | STATUS | bits;
                bhs.specific_head = [0, status];
            }
        }
        if let Some(wanted) = self.acknowledge {
            bhs.flags |= ACKNOWLEDGE;
            bhs.lun = wanted.lun;
        }
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = InTail {
            target_tag: tag_code(self.acknowledge.map(|wanted| wanted.target_tag)).into(),
            serials: self.serials.into(),
            data_sn: self.data_sn.into(),
            buffer_offset: self.buffer_offset.into(),
            count: count.into(),
        }
        .bytes();
        bhs
    }
}

impl Pdu for ReadyToTransfer {
    const OPCODE: Opcode = Opcode::ReadyToTransfer;

    /// It asks for something and has a tag (sections 11.8.4 and 11.8.5); what it asks for ends
    /// within 32 bits.
    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        below_final(bhs)?;
        let tail = InTail::of(bhs);
        let tag = tail.target_tag.get();
        let target_tag =
            optional_tag(tag).ok_or_else(|| PduError::field("Target Transfer Tag", tag))?;
        let (buffer_offset, desired_len) = (tail.buffer_offset.get(), tail.count.get());
        if desired_len == 0 || buffer_offset.checked_add(desired_len).is_none() {
            return Err(PduError::field("Desired Data Transfer Length", desired_len));
        }
        Ok(Self {
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            target_tag,
            serials: tail.serials.into(),
            r2t_sn: tail.data_sn.into(),
            buffer_offset,
            desired_len,
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE);
        bhs.flags = FINAL;
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = InTail {
            target_tag: self.target_tag.into(),
            serials: self.serials.into(),
            data_sn: self.r2t_sn.into(),
            buffer_offset: self.buffer_offset.into(),
            count: self.desired_len.into(),
        }
        .bytes();
        bhs
    }
}

fn decode_sequence(bhs: &Bhs) -> Sequence {
    if bhs.flags & FINAL == 0 { Sequence::GoesOn } else { Sequence::Ends }
}

fn encode_sequence(sequence: Sequence) -> u8 {
    match sequence {
        Sequence::GoesOn => 0,
        Sequence::Ends => FINAL,
    }
}
