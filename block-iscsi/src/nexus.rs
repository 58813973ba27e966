//! What a logical unit's driver asks of a session, whoever carries it out.
//!
//! A [`Nexus`] (SAM-5's name for the relation of an initiator port to a target port) runs SCSI
//! commands. The session over a network is one; a target in memory can be another, for tests.
//!
//! Invariants: a command's buffers are not touched after its future is ready; a [`NexusEvent`] is
//! told before the end of any command that the target answered after it happened, and sense data before
//! the end of the command that it came with, whether or not anybody waits for that.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::IoVec;

use crate::keys::KeyError;
use crate::pdu::fields::Residual;
use crate::pdu::reject::RejectReason;
use crate::pdu::task_mgmt::TaskResult;
use crate::scsi::cdb::{CdbBytes, Replay};
use crate::scsi::luns::Lun;
use crate::scsi::sense::Status;

/// Where a command's data comes from or goes to.
#[derive(Clone, Debug)]
pub enum Data {
    /// There is none.
    None,
    /// From the target; at most as many bytes as the buffers have.
    In(IoVec),
    /// To the target.
    Out(IoVec),
}

impl Data {
    /// How many bytes are expected to be moved.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(iov) | Self::Out(iov) => iov.len(),
        }
    }

    /// Whether there is no data.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A SCSI command for a logical unit.
#[derive(Clone, Debug)]
pub struct Command {
    /// The unit.
    pub lun: Lun,
    /// The command itself.
    pub cdb: CdbBytes,
    /// Its data; less than 4 GiB.
    pub data: Data,
    /// Whether it may be sent again if a lost connection leaves open whether it ran.
    pub replay: Replay,
    /// The session that it is meant for, as [`Nexus::session`] numbers them: in another one it may mean
    /// something else, and is not sent ([`TaskError::Reinstated`]). `None`: it means the same in any.
    pub session: Option<u64>,
}

/// A command that the target has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Its SCSI status.
    pub status: Status,
    /// Sense data; empty where there is none.
    pub sense: Vec<u8>,
    /// How the data that was moved differs from what was expected.
    pub residual: Residual,
    /// How many bytes came from the target: all that were expected, but for the residual.
    pub received: usize,
}

/// Why a command has no SCSI status.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TaskError {
    /// The connection was lost; whether the command ran is not known, and it must not run twice.
    #[error("the connection was lost, and whether the command ran is not known")]
    Unknown,
    /// A new session stands in for the one that the command was meant for. It may be sent again if it means
    /// the same in that one.
    #[error("a new session stands in for the one that the command was meant for")]
    Reinstated {
        /// Whether the lost connection had the command, so that it may have run.
        sent: bool,
    },
    /// Each time it was sent, the connection was lost.
    #[error("the connection was lost {times} times while the target had the command")]
    Lost {
        /// How often.
        times: u32,
    },
    /// The target did not answer in time. The command has been aborted.
    #[error("the target did not answer in time")]
    TimedOut,
    /// It was aborted, by its own initiator or with the reset of its unit.
    #[error("the command was aborted")]
    Aborted,
    /// The iSCSI layer of the target failed (RFC 7143, section 11.4.3).
    #[error("the target failed with response {response:#04x}")]
    TargetFailure {
        /// The response code.
        response: u8,
    },
    /// The target rejected the command's PDU.
    #[error("the target rejected the command: {reason:?}")]
    Rejected {
        /// Why.
        reason: RejectReason,
    },
    /// The data is longer than a command can say.
    #[error("{len} bytes are too many for one command")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The target gives a SCSI status that does not exist.
    #[error("the SCSI status {status:#04x} does not exist")]
    Status {
        /// The status.
        status: u8,
    },
    /// There are too many tasks already.
    #[error("there are more than {limit} tasks at a time")]
    TooMany {
        /// How many there can be.
        limit: usize,
    },
    /// The target says that a read has succeeded, and has sent less than it says.
    #[error(
        "{received} of {expected} bytes came, and the target does not say that some are missing"
    )]
    Short {
        /// How many bytes came.
        received: usize,
        /// How many had to come.
        expected: usize,
    },
    /// A text that cannot be understood.
    #[error(transparent)]
    Text(#[from] KeyError),
    /// The target answers a task management request so.
    #[error("the target answers a task management request with {result:?}")]
    TaskManagement {
        /// The answer.
        result: TaskResult,
    },
    /// The session has ended and will not come back. The reason is with whoever opened it.
    #[error("the session has ended")]
    Ended,
}

/// Something that happened to the session or to a unit, and that what is known of a unit may have
/// to be forgotten for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NexusEvent {
    /// A new session stands in for a lost one. Anything may have happened meanwhile.
    Reinstated,
    /// Sense data that came by itself, or with a command that ended with CHECK CONDITION.
    Sense {
        /// The unit.
        lun: Lun,
        /// The sense data; empty if there was none.
        sense: Vec<u8>,
    },
    /// This unit, or with `None` every one, was reset.
    Reset {
        /// The unit.
        lun: Option<Lun>,
    },
}

/// Who wants to know of events. Called by whoever moves the session on; must not block.
pub type NexusListener = Arc<dyn Fn(&NexusEvent) + Send + Sync>;

/// Runs SCSI commands. Commands that are under way at the same time run in any order.
#[async_trait]
pub trait Nexus: Send + Sync + 'static {
    /// Runs a command. Dropping the future does not abort it: its buffers stay in use until it ends.
    async fn execute(&self, command: Command) -> Result<Completion, TaskError>;

    /// Resets a unit (LOGICAL UNIT RESET). Commands of the unit that are under way end as aborted.
    async fn reset(&self, lun: Lun) -> Result<(), TaskError>;

    /// Who is told of events from now on, beside those who already are.
    fn listen(&self, listener: NexusListener);

    /// The number of the session that listeners know of: how often they were told, to the last of them, of
    /// [`NexusEvent::Reinstated`].
    fn session(&self) -> u64;

    /// Most commands that can be under way at the target at the same time, as known now.
    fn depth(&self) -> usize;

    /// Ends the session: what is under way is waited for, then the target is told.
    async fn close(&self);
}
