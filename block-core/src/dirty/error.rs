//! Why something cannot be done with a dirty bitmap.

use super::bitmap::MAX_NAME_BYTES;
use super::granules::{Granularity, MAX_GRANULES};

/// Why something cannot be done with a dirty bitmap. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BitmapError {
    /// The granularity is not a power of two between the limits.
    #[error(
        "granularity is {bytes}: must be a power of two from {} to {}",
        Granularity::MIN.bytes(),
        Granularity::MAX.bytes()
    )]
    Granularity {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The disk has too many granules of this size for a bitmap in memory.
    #[error("a disk of {len} bytes has more than {MAX_GRANULES} granules of {granularity} bytes")]
    TooManyGranules {
        /// Length of the disk in bytes.
        len: u64,
        /// Bytes in a granule.
        granularity: u64,
    },
    /// A name must have at least one byte.
    #[error("the name of a bitmap is empty")]
    EmptyName,
    /// The name is too long.
    #[error("the name of a bitmap has {len} bytes: must be at most {MAX_NAME_BYTES}")]
    NameTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Another bitmap of the node has this name.
    #[error("bitmap '{name}' exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The node has no such bitmap (any more).
    #[error("the node has no such bitmap")]
    NotFound,
    /// A job or an export uses it.
    #[error("bitmap '{name}' is in use by another operation")]
    Busy {
        /// The name.
        name: String,
    },
    /// It is read-only, as its image was opened.
    #[error("bitmap '{name}' is read-only")]
    ReadOnly {
        /// The name.
        name: String,
    },
    /// It was not saved properly and can only be removed.
    #[error("bitmap '{name}' is inconsistent and can only be removed")]
    Inconsistent {
        /// The name.
        name: String,
    },
    /// It has a successor already.
    #[error("bitmap '{name}' is frozen already")]
    HasSuccessor {
        /// The name.
        name: String,
    },
    /// It has no successor.
    #[error("bitmap '{name}' is not frozen")]
    NoSuccessor {
        /// The name.
        name: String,
    },
    /// Only a bitmap with a name can be stored in an image.
    #[error("a bitmap without a name cannot be persistent")]
    Anonymous,
    /// The two bitmaps cover disks of different lengths.
    #[error("bitmaps cover {target_len} and {source_len} bytes: must be the same")]
    LengthDiffers {
        /// Length that the target covers, in bytes.
        target_len: u64,
        /// Length that the source covers, in bytes.
        source_len: u64,
    },
}
