//! Why an image, or a part of it, cannot be read.

use block_core::Problem;

/// What is wrong with the image.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadImage {
    /// A field holds a value that the format does not allow.
    #[error("{field} is {value:#x}: {problem}")]
    Field {
        /// The field, in the format's words.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// An entry of a table holds a value that the format does not allow.
    #[error("entry {index} of the {table} is {value:#x}: {problem}")]
    Entry {
        /// The table, in the format's words.
        table: &'static str,
        /// Which entry.
        index: u64,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// Incompatible feature bits that nobody defined, or that this reader does not know.
    #[error("unknown incompatible features {bits:#x}")]
    Features {
        /// The unknown bits.
        bits: u64,
    },
    /// Guest data is encrypted.
    #[error("guest data is encrypted (method {method})")]
    Encrypted {
        /// The header's `crypt_method`.
        method: u32,
    },
    /// Guest data is in a data file that was not given.
    #[error("guest data is in an external data file")]
    NeedsDataFile,
    /// A compressed cluster does not decompress to a whole cluster.
    #[error("the compressed cluster at {host:#x} is damaged")]
    Compressed {
        /// Where its bytes start in the file.
        host: u64,
    },
    /// More than this reader takes on.
    #[error("{what}: {value:#x} is more than the limit of {limit:#x}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// How much is allowed.
        limit: u64,
    },
}

/// Shorthand for [`BadImage::Field`].
pub(super) fn field(field: &'static str, value: impl Into<u64>, problem: Problem) -> BadImage {
    BadImage::Field { field, value: value.into(), problem }
}
