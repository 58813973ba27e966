//! Asynchronous Message: something happened at the target (RFC 7143, section 11.9).

use zerocopy::byteorder::big_endian::U16;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, FINAL, NO_TAG, RawResponseSerials, ResponseSerials, below_final, check_no_ahs, tail,
};
use super::{Pdu, PduError};

/// What happened (section 11.9.1).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum AsyncEvent {
    /// A SCSI event; the data segment starts with sense data as that of a response does.
    Scsi,
    /// The initiator shall log out.
    LogoutRequested {
        /// Within how many seconds.
        within_secs: u16,
    },
    /// The target is about to drop a connection.
    DropsConnection {
        /// Which one.
        cid: u16,
        /// After how many seconds it may be made again.
        time_to_wait_secs: u16,
        /// How many seconds after that tasks are kept.
        time_to_retain_secs: u16,
    },
    /// The target is about to drop all connections of the session.
    DropsAllConnections {
        /// After how many seconds they may be made again.
        time_to_wait_secs: u16,
        /// How many seconds after that tasks are kept.
        time_to_retain_secs: u16,
    },
    /// The target wants to negotiate this connection's keys again.
    NegotiationRequested {
        /// Within how many seconds.
        within_secs: u16,
    },
    /// All tasks on the LUN are being ended.
    TasksTerminated,
    /// A vendor's event.
    Vendor {
        /// AsyncEvent: 248 to 255.
        event: u8,
        /// AsyncVCode.
        code: u8,
        /// The three parameters.
        parameters: [u16; 3],
    },
}

/// Tells the initiator what happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AsyncMessage {
    /// What happened.
    pub event: AsyncEvent,
    /// The LUN; means nothing for events that are not about one.
    pub lun: [u8; 8],
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// Length of the data segment.
    pub data_len: DataLen,
}

tail! { Tail {
    _reserved_a: [u8; 4],
    serials: RawResponseSerials,
    event: u8,
    vendor_code: u8,
    parameters: [U16; 3],
    _reserved_b: [u8; 4],
} }

impl AsyncEvent {
    fn decode(tail: &Tail) -> Result<Self, PduError> {
        let [first, second, third] = tail.parameters.map(U16::get);
        let (time_to_wait_secs, time_to_retain_secs) = (second, third);
        Ok(match tail.event {
            0 => Self::Scsi,
            1 => Self::LogoutRequested { within_secs: third },
            2 => Self::DropsConnection { cid: first, time_to_wait_secs, time_to_retain_secs },
            3 => Self::DropsAllConnections { time_to_wait_secs, time_to_retain_secs },
            4 => Self::NegotiationRequested { within_secs: third },
            5 => Self::TasksTerminated,
            event @ 248.. => {
                Self::Vendor { event, code: tail.vendor_code, parameters: [first, second, third] }
            }
            code => return Err(PduError::field("AsyncEvent", code)),
        })
    }

    /// AsyncEvent, AsyncVCode and the three parameters.
    fn encode(self) -> (u8, u8, [u16; 3]) {
        match self {
            Self::Scsi => (0, 0, [0; 3]),
            Self::LogoutRequested { within_secs } => (1, 0, [0, 0, within_secs]),
            Self::DropsConnection { cid, time_to_wait_secs, time_to_retain_secs } => {
                (2, 0, [cid, time_to_wait_secs, time_to_retain_secs])
            }
            Self::DropsAllConnections { time_to_wait_secs, time_to_retain_secs } => {
                (3, 0, [0, time_to_wait_secs, time_to_retain_secs])
            }
            Self::NegotiationRequested { within_secs } => (4, 0, [0, 0, within_secs]),
            Self::TasksTerminated => (5, 0, [0; 3]),
            Self::Vendor { event, code, parameters } => (event, code, parameters),
        }
    }
}

impl Pdu for AsyncMessage {
    const OPCODE: Opcode = Opcode::AsyncMessage;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        below_final(bhs)?;
        let tail = Tail::of(bhs);
        Ok(Self {
            event: AsyncEvent::decode(&tail)?,
            lun: bhs.lun,
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let (event, vendor_code, parameters) = self.event.encode();
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = FINAL;
        bhs.lun = self.lun;
        bhs.initiator_task_tag = NO_TAG;
        bhs.specific_tail = Tail {
            serials: self.serials.into(),
            event,
            vendor_code,
            parameters: parameters.map(U16::new),
            ..Tail::default()
        }
        .bytes();
        bhs
    }
}
