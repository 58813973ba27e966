//! Why a session, or a connection of it, came to its end.

use std::io;

use crate::keys::KeyError;
use crate::login::LoginError;
use crate::pdu::PduError;
use crate::pdu::bhs::Opcode;
use crate::pdu::digest::DigestError;
use crate::pdu::reject::RejectReason;

/// Why a session ended, or has lost its connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection could be made, or the connection failed.
    #[error("the connection failed: {0}")]
    Connection(ConnectionError),
    /// The login failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The target breaks the protocol.
    #[error("the target breaks the protocol: {0}")]
    Violation(#[from] Violation),
    /// The target did not answer in time.
    #[error("the target did not answer in time: {0:?}")]
    TimedOut(Awaited),
    /// The target sends us from place to place.
    #[error("the target redirects the login more than {limit} times")]
    Redirects {
        /// How often is too often.
        limit: u32,
    },
    /// The target sends us to a place that is none.
    #[error("the target redirects the login to {address:?}, which is no address")]
    RedirectAddress {
        /// What it said.
        address: String,
    },
    /// The target asked for the connection's end, or said that it drops it.
    #[error("the target ends the connection")]
    EndedByTarget,
    /// Its owner closed it.
    #[error("the session was closed")]
    Closed,
}

/// What was waited for.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Awaited {
    /// A connection.
    Connection,
    /// The end of the login.
    Login,
    /// Any sign of life.
    Ping,
    /// The answer to a task management request.
    TaskManagement,
    /// The answer to a logout.
    Logout,
    /// A session to stand in for the lost one.
    Outage,
}

/// How a byte stream failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The other side has closed it.
    #[error("closed by the target")]
    Closed,
    /// The system said so.
    #[error("{text}")]
    Io {
        /// What kind of error.
        kind: io::ErrorKind,
        /// What the system calls it.
        text: String,
    },
}

impl From<&io::Error> for ConnectionError {
    fn from(error: &io::Error) -> Self {
        Self::Io { kind: error.kind(), text: error.to_string() }
    }
}

/// What a target did that the protocol does not allow.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A PDU that cannot be understood.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// A digest that does not fit. At error recovery level 0 the connection ends with it.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A text that cannot be understood.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A field is not what it has to be.
    #[error("{field} of a {opcode:?} is {found:#x}, not {expected:#x}")]
    Mismatch {
        /// Which PDU.
        opcode: Opcode,
        /// The field's name in RFC 7143.
        field: &'static str,
        /// What came.
        found: u64,
        /// What had to come.
        expected: u64,
    },
    /// A field is more than it can be.
    #[error("{field} of a {opcode:?} is {found:#x}, more than {limit:#x}")]
    Beyond {
        /// Which PDU.
        opcode: Opcode,
        /// The field's name in RFC 7143.
        field: &'static str,
        /// What came.
        found: u64,
        /// What is the most that can come.
        limit: u64,
    },
    /// A PDU that belongs to no task, or to a task that it does not fit.
    #[error("a {opcode:?} names the task {tag:#x}, which is not waiting for it")]
    Task {
        /// Which PDU.
        opcode: Opcode,
        /// The Initiator Task Tag.
        tag: u32,
    },
    /// A PDU that cannot come now.
    #[error("a {opcode:?} cannot come now")]
    Unexpected {
        /// Which PDU.
        opcode: Opcode,
    },
    /// The target rejects a PDU that is no command.
    #[error("the target rejects a PDU: {reason:?}")]
    Rejected {
        /// Why.
        reason: RejectReason,
    },
}
