//! Why a command of a unit failed, and what a request says then.

use block_core::Error;

use crate::nexus::TaskError;
use crate::pdu::fields::Residual;
use crate::scsi::AnswerError;
use crate::scsi::sense::{Sense, SenseCode, SenseKey, Status};

/// Why a command did not do what was asked. `opcode` is its operation code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// There is no SCSI status.
    #[error("command {opcode:#04x}: {error}")]
    Task {
        /// The command.
        opcode: u8,
        /// What became of it.
        error: TaskError,
    },
    /// It was not sent, or not again: it may name other blocks than it meant.
    #[error("command {opcode:#04x} was not sent: {error}")]
    Gate {
        /// The command.
        opcode: u8,
        /// Why nobody knows.
        error: Error,
    },
    /// It ended with this status, and nothing else is known.
    #[error("command {opcode:#04x} ended with {status:?}")]
    Status {
        /// The command.
        opcode: u8,
        /// The status.
        status: Status,
    },
    /// It ended with sense data.
    #[error("command {opcode:#04x}: {:?} {}", .sense.key, .sense.code)]
    Sense {
        /// The command.
        opcode: u8,
        /// The sense data.
        sense: Sense,
    },
    /// It is done, but its answer cannot be used.
    #[error("command {opcode:#04x}: {error}")]
    Answer {
        /// The command.
        opcode: u8,
        /// What is wrong with the answer.
        error: AnswerError,
    },
    /// It moved other data than it was to move.
    #[error("command {opcode:#04x} moved not {expected} bytes: {received} came, {residual:?}")]
    Residual {
        /// The command.
        opcode: u8,
        /// How many bytes were to be moved.
        expected: usize,
        /// How many came from the target.
        received: usize,
        /// What the target says of it.
        residual: Residual,
    },
}

impl UnitError {
    /// Whether the unit does not know the command: another one may do.
    pub fn is_unknown_command(&self) -> bool {
        self.code() == Some((SenseKey::IllegalRequest, SenseCode::INVALID_OPCODE))
    }

    /// Whether the unit does not know the command, or not with such fields. It has changed nothing.
    pub fn is_refusal(&self) -> bool {
        let fields = [SenseCode::INVALID_FIELD_IN_CDB, SenseCode::INVALID_FIELD_IN_PARAMETER_LIST];
        let field = |code| fields.contains(&code);
        self.is_unknown_command()
            || matches!(self.code(), Some((SenseKey::IllegalRequest, code)) if field(code))
    }

    /// Whether the medium or the unit failed. Of a command that empties a cache: what was there may be
    /// lost.
    pub(crate) fn is_medium_failure(&self) -> bool {
        matches!(self.code(), Some((SenseKey::MediumError | SenseKey::HardwareError, _)))
    }

    /// Whether the command waited for a connection that was lost before its turn came.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self, Self::Task { error: TaskError::Reinstated { sent: false }, .. })
    }

    fn code(&self) -> Option<(SenseKey, SenseCode)> {
        match self {
            Self::Sense { sense, .. } => Some((sense.key, sense.code)),
            _ => None,
        }
    }
}

/// As small as a request's error is. Never `Unsupported`, which is said on purpose only.
impl From<UnitError> for Error {
    fn from(error: UnitError) -> Self {
        match error {
            UnitError::Task { error, .. } => of_task(&error),
            UnitError::Gate { error, .. } => error,
            UnitError::Status { status, .. } => of_status(status),
            UnitError::Sense { sense, .. } => of_sense(&sense),
            UnitError::Answer { .. } | UnitError::Residual { .. } => Self::IO,
        }
    }
}

fn of_task(error: &TaskError) -> Error {
    match error {
        TaskError::TimedOut => Error::Os(libc::ETIMEDOUT),
        TaskError::Aborted => Error::Os(libc::ECONNABORTED),
        TaskError::Unknown | TaskError::Reinstated { .. } | TaskError::Lost { .. } => {
            Error::Os(libc::ECONNRESET)
        }
        TaskError::TargetFailure { .. }
        | TaskError::Rejected { .. }
        | TaskError::Status { .. }
        | TaskError::Short { .. }
        | TaskError::Text(_)
        | TaskError::TaskManagement { .. } => Error::IO,
        TaskError::TooMany { .. } => Error::Busy,
        TaskError::TooLong { .. } => Error::Invalid,
        TaskError::Ended => Error::Closed,
    }
}

fn of_status(status: Status) -> Error {
    match status {
        Status::Busy | Status::TaskSetFull | Status::AcaActive | Status::ReservationConflict => {
            Error::Os(libc::EBUSY)
        }
        Status::TaskAborted => Error::Os(libc::ECONNABORTED),
        Status::Good | Status::ConditionMet | Status::CheckCondition => Error::IO,
    }
}

fn of_sense(sense: &Sense) -> Error {
    match (sense.key, sense.code) {
        (SenseKey::DataProtect, SenseCode::SPACE_ALLOCATION_FAILED)
        | (SenseKey::VolumeOverflow, _) => Error::NO_SPACE,
        (SenseKey::DataProtect, _) => Error::Os(libc::EROFS),
        (SenseKey::NotReady, SenseCode::MEDIUM_NOT_PRESENT) => Error::Os(libc::ENOMEDIUM),
        (SenseKey::NotReady, _) => Error::Os(libc::EBUSY),
        (SenseKey::IllegalRequest, SenseCode::INVALID_OPCODE) => Error::Os(libc::EOPNOTSUPP),
        (SenseKey::IllegalRequest, SenseCode::LUN_NOT_SUPPORTED) => Error::Os(libc::ENXIO),
        // The medium has become shorter.
        (SenseKey::IllegalRequest, SenseCode::LBA_OUT_OF_RANGE) => Error::IO,
        (SenseKey::IllegalRequest, _) => Error::Invalid,
        (SenseKey::Miscompare, _) => Error::Os(libc::EILSEQ),
        _ => Error::IO,
    }
}
