//! NOP-Out and NOP-In: pings in both directions (RFC 7143, sections 11.18 and 11.19).
//!
//! The data segment of a ping comes back in its answer.

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, Delivery, FINAL, RawRequestSerials, RawResponseSerials, RequestSerials,
    ResponseSerials, below_final, check_no_ahs, optional_tag, tag_code, tail,
};
use super::{Pdu, PduError};

/// From the initiator: a ping, the answer to one, or only news of ExpStatSN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NopOut {
    /// When it is delivered; always at once if no answer is wanted.
    pub delivery: Delivery,
    /// The LUN of the ping that this answers.
    pub lun: [u8; 8],
    /// The tag under which an answer is wanted, if one is.
    pub task_tag: Option<u32>,
    /// The target's tag of the ping that this answers.
    pub target_tag: Option<u32>,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
    /// Length of the ping's data.
    pub data_len: DataLen,
}

/// From the target: a ping, the answer to one, or only news of the command window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NopIn {
    /// The LUN that an answer has to name.
    pub lun: [u8; 8],
    /// The initiator's tag of the ping that this answers.
    pub task_tag: Option<u32>,
    /// The tag under which an answer is wanted, if one is.
    pub target_tag: Option<u32>,
    /// The serial numbers. StatSN is taken up only by an answer.
    pub serials: ResponseSerials,
    /// Length of the ping's data.
    pub data_len: DataLen,
}

tail! { OutTail {
    target_tag: U32,
    serials: RawRequestSerials,
    _reserved: [u8; 16],
} }

tail! { InTail {
    target_tag: U32,
    serials: RawResponseSerials,
    _reserved: [u8; 12],
} }

impl Pdu for NopOut {
    const OPCODE: Opcode = Opcode::NopOut;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        below_final(bhs)?;
        let task_tag = optional_tag(bhs.initiator_task_tag);
        if task_tag.is_none() && !bhs.is_immediate() {
            return Err(PduError::field("I", 0_u8));
        }
        let tail = OutTail::of(bhs);
        Ok(Self {
            delivery: bhs.delivery(),
            lun: bhs.lun,
            task_tag,
            target_tag: optional_tag(tail.target_tag.get()),
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        // Without an answer there is nothing that could be ordered.
        let delivery = self.task_tag.map_or(Delivery::Immediate, |_| self.delivery);
        let mut bhs = Bhs::new(Self::OPCODE).with_delivery(delivery).with_data(self.data_len);
        bhs.flags = FINAL;
        bhs.lun = self.lun;
        bhs.initiator_task_tag = tag_code(self.task_tag);
        bhs.specific_tail = OutTail {
            target_tag: tag_code(self.target_tag).into(),
            serials: self.serials.into(),
            ..OutTail::default()
        }
        .bytes();
        bhs
    }
}

impl Pdu for NopIn {
    const OPCODE: Opcode = Opcode::NopIn;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        below_final(bhs)?;
        let tail = InTail::of(bhs);
        Ok(Self {
            lun: bhs.lun,
            task_tag: optional_tag(bhs.initiator_task_tag),
            target_tag: optional_tag(tail.target_tag.get()),
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = FINAL;
        bhs.lun = self.lun;
        bhs.initiator_task_tag = tag_code(self.task_tag);
        bhs.specific_tail = InTail {
            target_tag: tag_code(self.target_tag).into(),
            serials: self.serials.into(),
            ..InTail::default()
        }
        .bytes();
        bhs
    }
}
