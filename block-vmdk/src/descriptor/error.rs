//! Why a text is not a descriptor that can be used.

use super::DESCRIPTOR_BYTES_MAX;

/// What is wrong with a descriptor.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Longer than any descriptor needs to be.
    #[error("the descriptor has {len} bytes, more than {DESCRIPTOR_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A setting is not there.
    #[error("{name} is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A setting stands there more than once.
    #[error("{name} is there more than once")]
    Repeated {
        /// Its name.
        name: &'static str,
    },
    /// A setting has a value that does not exist.
    #[error("{name} is \"{value}\": unknown value")]
    Value {
        /// Its name.
        name: &'static str,
        /// Its value; bytes that are not printable are escaped.
        value: String,
    },
    /// An extent line cannot be understood.
    #[error("line {number}: {problem}")]
    Line {
        /// Which line, counted from 1.
        number: u64,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// The extents together are longer than the longest disk.
    #[error("the extents together are longer than any disk")]
    TooLarge,
}

/// What is wrong with an extent line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LineProblem {
    /// The second word is no number of sectors, or more than a disk has.
    #[error("\"{0}\" is no number of sectors")]
    Sectors(String),
    /// The third word names no type of extents.
    #[error("\"{0}\" is no type of extents")]
    Kind(String),
    /// The file name is missing, empty, too long or not in quotes.
    #[error("the extent has no file name in quotes")]
    FileName,
    /// What follows the name is no number of sectors, or beyond the longest disk.
    #[error("\"{0}\" is no offset in sectors")]
    Offset(String),
    /// An extent of this type needs an offset after the name.
    #[error("the extent has no offset")]
    NoOffset,
    /// More words than an extent of this type has.
    #[error("\"{0}\" does not belong here")]
    Excess(String),
}
