//! Logout Request and Logout Response (RFC 7143, sections 11.14 and 11.15).

use zerocopy::byteorder::big_endian::U16;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    Delivery, FINAL, RawRequestSerials, RawResponseSerials, RequestSerials, ResponseSerials,
    below_final, check_no_ahs, check_no_data, codes, tail,
};
use super::{Pdu, PduError};

codes! {
    /// What a logout ends.
    LogoutReason: "Reason Code" {
        /// The session with all its connections.
        CloseSession = 0,
        /// One connection, and the tasks on it.
        CloseConnection = 1,
        /// One connection, whose tasks another one takes over.
        RemoveConnectionForRecovery = 2,
    }
}

codes! {
    /// How a logout went.
    LogoutResult: "Response" {
        /// What was to be closed is closed.
        Success = 0,
        /// There is no such connection.
        CidNotFound = 1,
        /// The target hands no tasks over.
        RecoveryNotSupported = 2,
        /// The target could not clean up.
        CleanupFailed = 3,
    }
}

/// Ends a session or a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogoutRequest {
    /// When it is delivered.
    pub delivery: Delivery,
    /// What ends.
    pub reason: LogoutReason,
    /// The task that this request is.
    pub task_tag: u32,
    /// Which connection ends; means nothing if the session does.
    pub cid: u16,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
}

/// Answers a logout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogoutResponse {
    /// How it went.
    pub result: LogoutResult,
    /// The task of the request.
    pub task_tag: u32,
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// After how many seconds tasks may be taken up again.
    pub time_to_wait_secs: u16,
    /// How many seconds after that the target keeps them.
    pub time_to_retain_secs: u16,
}

tail! { RequestTail {
    cid: U16,
    _reserved_a: [u8; 2],
    serials: RawRequestSerials,
    _reserved_b: [u8; 16],
} }

tail! { ResponseTail {
    _reserved_a: [u8; 4],
    serials: RawResponseSerials,
    _reserved_b: [u8; 4],
    time_to_wait: U16,
    time_to_retain: U16,
    _reserved_c: [u8; 4],
} }

impl Pdu for LogoutRequest {
    const OPCODE: Opcode = Opcode::LogoutRequest;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        let tail = RequestTail::of(bhs);
        Ok(Self {
            delivery: bhs.delivery(),
            reason: LogoutReason::from_code(below_final(bhs)?)?,
            task_tag: bhs.initiator_task_tag,
            cid: tail.cid.get(),
            serials: tail.serials.into(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).with_delivery(self.delivery);
        bhs.flags = FINAL | self.reason.code();
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = RequestTail {
            cid: self.cid.into(),
            serials: self.serials.into(),
            ..RequestTail::default()
        }
        .bytes();
        bhs
    }
}

impl Pdu for LogoutResponse {
    const OPCODE: Opcode = Opcode::LogoutResponse;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        below_final(bhs)?;
        let [result, _] = bhs.specific_head;
        let tail = ResponseTail::of(bhs);
        Ok(Self {
            result: LogoutResult::from_code(result)?,
            task_tag: bhs.initiator_task_tag,
            serials: tail.serials.into(),
            time_to_wait_secs: tail.time_to_wait.get(),
            time_to_retain_secs: tail.time_to_retain.get(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE);
        bhs.flags = FINAL;
        bhs.specific_head = [self.result.code(), 0];
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = ResponseTail {
            serials: self.serials.into(),
            time_to_wait: self.time_to_wait_secs.into(),
            time_to_retain: self.time_to_retain_secs.into(),
            ..ResponseTail::default()
        }
        .bytes();
        bhs
    }
}
