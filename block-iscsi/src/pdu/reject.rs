//! Reject: a PDU was not understood or not allowed (RFC 7143, section 11.17).
//!
//! Its data segment begins with the whole header of the PDU that was refused; a vendor's data may
//! follow.

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, FINAL, NO_TAG, RawResponseSerials, ResponseSerials, below_final, check_no_ahs, codes,
    tail,
};
use super::{Pdu, PduError};
use crate::serial::Serial;

codes! {
    /// Why a PDU was refused.
    RejectReason: "Reason" {
        /// Its data digest was wrong. It may be sent again.
        DataDigestError = 0x02,
        /// What a SNACK asked for is not there. It may be sent again.
        SnackReject = 0x03,
        /// It broke the protocol.
        ProtocolError = 0x04,
        /// The command is not supported.
        CommandNotSupported = 0x05,
        /// There are too many immediate commands. It may be sent again.
        TooManyImmediateCommands = 0x06,
        /// A task of that tag is running.
        TaskInProgress = 0x07,
        /// Data was acknowledged that never was sent.
        InvalidDataAck = 0x08,
        /// A field is wrong.
        InvalidField = 0x09,
        /// Target tags are short. It may be sent again later.
        LongOperation = 0x0a,
        /// A negotiation was reset: a reason of RFC 3720 that must not be sent any more.
        NegotiationReset = 0x0b,
        /// The target waits for a logout.
        WaitingForLogout = 0x0c,
    }
}

/// Refuses a PDU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// DataSN or R2TSN: the number that comes next, where a SNACK for data broke the protocol
    /// (section 11.17.2).
    pub data_sn: Serial,
    /// Length of the header that was refused, and of what follows it.
    pub data_len: DataLen,
}

impl Reject {
    /// The header that the target refused, from the data segment. Its fields may be anything, also
    /// what was never sent.
    pub fn refused(data: &[u8]) -> Result<Bhs, PduError> {
        Bhs::parse(data)
    }
}

tail! { Tail {
    _reserved_a: [u8; 4],
    serials: RawResponseSerials,
    data_sn: U32,
    _reserved_b: [u8; 8],
} }

impl Pdu for Reject {
    const OPCODE: Opcode = Opcode::Reject;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        below_final(bhs)?;
        let [reason, _] = bhs.specific_head;
        let tail = Tail::of(bhs);
        Ok(Self {
            reason: RejectReason::from_code(reason)?,
            serials: tail.serials.into(),
            data_sn: tail.data_sn.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = FINAL;
        bhs.specific_head = [self.reason.code(), 0];
        bhs.initiator_task_tag = NO_TAG;
        bhs.specific_tail =
            Tail { serials: self.serials.into(), data_sn: self.data_sn.into(), ..Tail::default() }
                .bytes();
        bhs
    }
}
