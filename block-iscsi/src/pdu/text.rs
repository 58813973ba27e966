//! Text Request and Text Response: keys and values outside of the login (RFC 7143, sections 11.10
//! and 11.11). Their data segments are read by [`crate::keys`].

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, Delivery, FINAL, NO_TAG, RawRequestSerials, RawResponseSerials, RequestSerials,
    ResponseSerials, check_no_ahs, optional_tag, tag_code, tail,
};
use super::{Pdu, PduError};

const CONTINUE: u8 = 0x40;

/// Where a text request stands in its exchange (the F and C bits).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum TextStep {
    /// The text goes on in the next request.
    Partial,
    /// The text is complete; the initiator has more to say later.
    Open,
    /// The initiator has nothing more to say.
    Final,
}

/// Where a text response stands in its exchange.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum TextReply {
    /// The text goes on in the next response, which an empty request with this tag fetches.
    Partial {
        /// The target's tag of the exchange.
        target_tag: u32,
    },
    /// The text is complete; the exchange goes on under this tag.
    Open {
        /// The target's tag of the exchange.
        target_tag: u32,
    },
    /// The exchange is over.
    Final,
}

/// Sends keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextRequest {
    /// When it is delivered.
    pub delivery: Delivery,
    /// Where it stands in its exchange.
    pub step: TextStep,
    /// The LUN of the last response, if a target tag goes with it.
    pub lun: [u8; 8],
    /// The task that the exchange is.
    pub task_tag: u32,
    /// The target's tag of the exchange; none in its first request, and none to start it anew.
    pub target_tag: Option<u32>,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
    /// Length of the text.
    pub data_len: DataLen,
}

/// Answers keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextResponse {
    /// Where it stands in its exchange.
    pub reply: TextReply,
    /// The LUN that the next request has to name.
    pub lun: [u8; 8],
    /// The task that the exchange is.
    pub task_tag: u32,
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// Length of the text.
    pub data_len: DataLen,
}

tail! { RequestTail {
    target_tag: U32,
    serials: RawRequestSerials,
    _reserved: [u8; 16],
} }

tail! { ResponseTail {
    target_tag: U32,
    serials: RawResponseSerials,
    _reserved: [u8; 12],
} }

fn decode_step(flags: u8) -> Result<TextStep, PduError> {
    match (flags & FINAL != 0, flags & CONTINUE != 0) {
        (false, true) => Ok(TextStep::Partial),
        (false, false) => Ok(TextStep::Open),
        (true, false) => Ok(TextStep::Final),
        (true, true) => Err(PduError::field("F and C", flags & (FINAL | CONTINUE))),
    }
}

fn encode_step(step: TextStep) -> u8 {
    match step {
        TextStep::Partial => CONTINUE,
        TextStep::Open => 0,
        TextStep::Final => FINAL,
    }
}

impl Pdu for TextRequest {
    const OPCODE: Opcode = Opcode::TextRequest;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let tail = RequestTail::of(bhs);
        Ok(Self {
            delivery: bhs.delivery(),
            step: decode_step(bhs.flags)?,
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            target_tag: optional_tag(tail.target_tag.get()),
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_delivery(self.delivery).with_data(self.data_len);
        bhs.flags = encode_step(self.step);
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = RequestTail {
            target_tag: tag_code(self.target_tag).into(),
            serials: self.serials.into(),
            ..RequestTail::default()
        }
        .bytes();
        bhs
    }
}

impl Pdu for TextResponse {
    const OPCODE: Opcode = Opcode::TextResponse;

    /// A response that is not final has a target tag (section 11.11.1). That of a final one is
    /// ignored (section 11.10.4).
    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let tail = ResponseTail::of(bhs);
        let tag = tail.target_tag.get();
        let reply = match (decode_step(bhs.flags)?, optional_tag(tag)) {
            (TextStep::Partial, Some(target_tag)) => TextReply::Partial { target_tag },
            (TextStep::Open, Some(target_tag)) => TextReply::Open { target_tag },
            (TextStep::Final, _) => TextReply::Final,
            (_, None) => return Err(PduError::field("Target Transfer Tag", tag)),
        };
        Ok(Self {
            reply,
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let (step, target_tag) = match self.reply {
            TextReply::Partial { target_tag } => (TextStep::Partial, target_tag),
            TextReply::Open { target_tag } => (TextStep::Open, target_tag),
            TextReply::Final => (TextStep::Final, NO_TAG),
        };
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = encode_step(step);
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = ResponseTail {
            target_tag: target_tag.into(),
            serials: self.serials.into(),
            ..ResponseTail::default()
        }
        .bytes();
        bhs
    }
}
