//! SCSI as an initiator speaks it: command descriptor blocks to bytes, answers from bytes to checked
//! values. Pure: no session, no transport.
//!
//! Everything that a target says is hostile. A value that leaves these modules has been checked, and
//! each refusal names the field and its value. No decoder allocates more than a cap that stands
//! beside it, and none of them panics, whatever the bytes.
//!
//! The sources are SPC-4 (commands of all devices), SBC-3 (block devices) and SAM-5 (status, LUNs).
//! Integers on the wire are big-endian.

pub mod capacity;
pub mod cdb;
pub mod inquiry;
pub mod limits;
pub mod luns;
pub mod mode;
pub mod opcodes;
pub mod provisioning;
pub mod reservation;
pub mod sense;
mod wire;

/// Why an answer cannot be used.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// Fewer bytes than the answer has: too small an allocation length, or a target that sends less
    /// than it must.
    #[error("{what} has {len} bytes of {needed}")]
    Truncated {
        /// What was read.
        what: &'static str,
        /// How many bytes there are.
        len: usize,
        /// How many bytes it takes.
        needed: usize,
    },
    /// A field holds what it cannot hold.
    #[error("{field} is {value:#x}, which {problem}")]
    Field {
        /// The field, in the standard's words.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with the value of a field.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Zero, where something must be.
    #[error("must not be zero")]
    Zero,
    /// Larger than can be.
    #[error("is more than {limit:#x}")]
    TooLarge {
        /// The largest value that can be.
        limit: u64,
    },
    /// Smaller than can be.
    #[error("is less than {limit:#x}")]
    TooSmall {
        /// The smallest value that can be.
        limit: u64,
    },
    /// Another value than the only one that can be.
    #[error("should be {expected:#x}")]
    Unexpected {
        /// The value that can be.
        expected: u64,
    },
    /// Neither 1 nor 2 nor 4 and so on.
    #[error("is no power of two")]
    NotPowerOfTwo,
    /// Not a whole number of entries.
    #[error("is no multiple of {unit}")]
    NotMultiple {
        /// Length of an entry.
        unit: u64,
    },
    /// A code that the standard gives no meaning.
    #[error("is reserved")]
    Reserved,
}

impl AnswerError {
    pub(crate) fn field(field: &'static str, value: u64, problem: Problem) -> Self {
        Self::Field { field, value, problem }
    }
}
