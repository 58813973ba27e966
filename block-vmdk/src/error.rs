//! Errors of this format as errors of opening.

use block_core::{OpenError, Problem};

use crate::descriptor::DescriptorError;
use crate::spec::marker::MarkerError;
use crate::spec::sparse::HeaderError;

/// Name of the format, also in errors.
pub(crate) const FORMAT: &str = "vmdk";

/// An error about a field of the image.
pub(crate) fn bad_field(field: &'static str, value: u64, problem: Problem) -> OpenError {
    OpenError::Field { format: FORMAT, field, value, problem }
}

impl From<HeaderError> for OpenError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Truncated { len } => bad_field(
                "length of the header",
                block_core::range::to_u64(len),
                Problem::Below(512),
            ),
            HeaderError::Magic { found, .. } => {
                bad_field("magic", u32::from_be_bytes(found).into(), Problem::Unknown)
            }
            HeaderError::CheckBytes { found } => {
                let value = u32::from_be_bytes(found).into();
                bad_field("check bytes", value, Problem::Unknown)
            }
            HeaderError::Field { field, value, problem } => bad_field(field, value, problem),
        }
    }
}

impl From<MarkerError> for OpenError {
    fn from(error: MarkerError) -> Self {
        match error {
            MarkerError::Truncated { len } => {
                bad_field("length of a marker", block_core::range::to_u64(len), Problem::Below(16))
            }
            MarkerError::Field { field, value, problem } => bad_field(field, value, problem),
        }
    }
}

impl From<DescriptorError> for OpenError {
    fn from(error: DescriptorError) -> Self {
        Self::Text { format: FORMAT, what: "descriptor", problem: error.to_string() }
    }
}
