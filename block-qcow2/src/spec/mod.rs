//! The format on disk: big-endian structs that never leave these modules, and what they parse to.
//!
//! Everything here is pure: bytes in, checked values or a typed error out. Any bytes are answered
//! without a panic and without an allocation larger than the bytes given.

pub mod bitmap;
pub mod entry;
pub mod extension;
pub mod header;
pub mod refcount;
pub mod snapshot;

use block_core::OpenError;
use block_core::error::{Error, Problem};

/// Name of the format in errors.
pub(crate) const FORMAT: &str = "qcow2";

/// An error about a field of the image.
pub(crate) fn bad_field(field: &'static str, value: u64, problem: Problem) -> OpenError {
    OpenError::Field { format: FORMAT, field, value, problem }
}

/// A table entry that the format does not allow, met while serving a request.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The field, in the format's words.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
}

impl Fault {
    /// A fault of the field `what`.
    pub const fn new(what: &'static str, value: u64) -> Self {
        Self { what, value }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Corrupt { what: fault.what, value: fault.value }
    }
}
