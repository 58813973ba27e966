//! SNACK Request: asks for PDUs that were lost (RFC 7143, section 11.16).
//!
//! Only sessions of ErrorRecoveryLevel 1 and 2 use it.

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    FINAL, below_final, check_no_ahs, check_no_data, codes, optional_tag, tag_code, tail,
};
use super::{Pdu, PduError};
use crate::serial::Serial;

codes! {
    /// What is asked for.
    SnackKind: "Type" {
        /// Data-In PDUs or R2Ts of one task.
        DataOrR2t = 0,
        /// Responses of the connection.
        Status = 1,
        /// Nothing: it acknowledges Data-In PDUs.
        DataAck = 2,
        /// All Data-In PDUs of a task, which may be cut differently now.
        RData = 3,
    }
}

/// Asks for PDUs again, or acknowledges them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnackRequest {
    /// What is asked for.
    pub kind: SnackKind,
    /// The LUN that the Data-In PDU named which is acknowledged.
    pub lun: [u8; 8],
    /// The task, if it is about one.
    pub task_tag: Option<u32>,
    /// The target's tag of what is acknowledged, or the tag of an R-Data SNACK.
    pub target_tag: Option<u32>,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// BegRun: the first number that is missing, or the first that is not acknowledged.
    pub first: Serial,
    /// RunLength: how many are missing; 0 is "all from there on".
    pub count: u32,
}

tail! { Tail {
    target_tag: U32,
    _reserved_a: [u8; 4],
    exp_stat_sn: U32,
    _reserved_b: [u8; 8],
    first: U32,
    count: U32,
} }

impl Pdu for SnackRequest {
    const OPCODE: Opcode = Opcode::SnackRequest;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        let tail = Tail::of(bhs);
        Ok(Self {
            kind: SnackKind::from_code(below_final(bhs)? & 0x0f)?,
            lun: bhs.lun,
            task_tag: optional_tag(bhs.initiator_task_tag),
            target_tag: optional_tag(tail.target_tag.get()),
            exp_stat_sn: tail.exp_stat_sn.into(),
            first: tail.first.into(),
            count: tail.count.get(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE);
        bhs.flags = FINAL | self.kind.code();
        bhs.lun = self.lun;
        bhs.initiator_task_tag = tag_code(self.task_tag);
        bhs.specific_tail = Tail {
            target_tag: tag_code(self.target_tag).into(),
            exp_stat_sn: self.exp_stat_sn.into(),
            first: self.first.into(),
            count: self.count.into(),
            ..Tail::default()
        }
        .bytes();
        bhs
    }
}
