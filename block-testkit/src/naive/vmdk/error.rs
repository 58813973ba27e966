//! Why an image, or a part of it, cannot be read.

use block_core::Problem;

/// What is wrong with the image.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadImage {
    /// A file that the image needs was not given.
    #[error("there is no file {name:?}")]
    NoFile {
        /// Its name.
        name: String,
    },
    /// The file begins like none of the format.
    #[error("{name:?} is no VMDK file")]
    NotVmdk {
        /// Its name.
        name: String,
    },
    /// A line of the descriptor says nothing that the format knows.
    #[error("line {number} of the descriptor: {text:?}")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// The line.
        text: String,
    },
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
    /// The guest must not see the contents of this extent.
    #[error("extent {extent} has the access mode NOACCESS")]
    NoAccess {
        /// Its number, from 0.
        extent: usize,
    },
    /// Of a kind that this reader does not read.
    #[error("an extent of type {kind:?} is not read")]
    Unsupported {
        /// The type, in the descriptor's words.
        kind: String,
    },
    /// A compressed grain that is damaged.
    #[error("the compressed grain at sector {sector:#x}: {problem}")]
    Compressed {
        /// Where it starts in the file.
        sector: u64,
        /// What is wrong with it.
        problem: &'static str,
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
