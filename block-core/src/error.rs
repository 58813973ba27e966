//! Errors: [`Error`] for requests (small, `Copy`, errno-shaped) and [`OpenError`] for everything
//! that opens, makes or reconfigures a node (says what was wrong, where, and with which value).

use std::path::PathBuf;

use crate::range::{ByteRange, RangeError};

/// Why a request failed. Carries numbers, not prose; [`Error::errno`] maps it to the system's codes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The system or the device said so.
    #[error("{}", errno_text(*.0))]
    Os(i32),
    /// The range is outside of the device.
    #[error("range {range} is outside of the device of {len:#x} bytes")]
    OutOfRange {
        /// What was asked for.
        range: ByteRange,
        /// Length of the device in bytes.
        len: u64,
    },
    /// The range cannot exist, or its buffers are not of its length.
    #[error("the request has an invalid range, length or combination of flags")]
    Invalid,
    /// A write to a node that was opened read-only, or by a rule of the format.
    #[error("the node is read-only")]
    ReadOnly,
    /// Nobody can do it this way (and the caller forbade another way, or there is none).
    #[error("operation not supported")]
    Unsupported,
    /// The allocator has no memory of this size.
    #[error("cannot allocate {bytes} bytes")]
    NoMemory {
        /// Size that was asked for.
        bytes: u64,
    },
    /// A conflicting request is in flight and the caller would not wait.
    #[error("a conflicting request is in flight")]
    Busy,
    /// The caller cancelled it between two pieces.
    #[error("cancelled")]
    Cancelled,
    /// The image's metadata contradicts itself or the format.
    #[error("corrupt image: {what} is {value:#x}")]
    Corrupt {
        /// The field, in the format's words.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Two images that should hold the same do not (`blkverify`).
    #[error("contents mismatch at offset {offset}")]
    Mismatch {
        /// What was read.
        range: ByteRange,
        /// The first byte that differs.
        offset: u64,
    },
    /// Of two images that should do the same, one failed (`blkverify`).
    #[error("one of two images failed: {}", errno_text(*errno))]
    Diverged {
        /// What was asked for.
        range: ByteRange,
        /// How it failed.
        errno: i32,
    },
    /// It needs a part of a crate that this program was built without.
    #[error("{}", not_built(feature))]
    NotBuilt {
        /// The feature that has it.
        feature: &'static str,
    },
    /// The node was closed, or its engine is gone.
    #[error("the node is closed")]
    Closed,
}

/// Result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The device failed (`EIO`).
    pub const IO: Self = Self::Os(libc::EIO);
    /// No space left (`ENOSPC`).
    pub const NO_SPACE: Self = Self::Os(libc::ENOSPC);

    /// The system's number for it (positive, as in `errno`).
    pub fn errno(self) -> i32 {
        match self {
            Self::Os(errno) => errno,
            Self::OutOfRange { .. }
            | Self::Corrupt { .. }
            | Self::Mismatch { .. }
            | Self::Diverged { .. } => libc::EIO,
            Self::Invalid => libc::EINVAL,
            Self::ReadOnly => libc::EPERM,
            Self::Unsupported | Self::NotBuilt { .. } => libc::ENOTSUP,
            Self::NoMemory { .. } => libc::ENOMEM,
            Self::Busy => libc::EBUSY,
            Self::Cancelled => libc::ECANCELED,
            Self::Closed => libc::ESHUTDOWN,
        }
    }

    /// What the system calls [`Error::errno`]: "Input/output error".
    pub fn errno_text(self) -> String {
        errno_text(self.errno())
    }
}

fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What is wrong with a field. The value of one that holds text is its length, which says nothing.
fn wrong_field(value: u64, problem: &Problem) -> String {
    match problem {
        Problem::NotText => format!("{problem} (UTF-8)"),
        problem => format!("is {value:#x}: {problem}"),
    }
}

/// The text for a feature that is not there, the same in requests and in opening.
fn not_built(feature: &str) -> String {
    format!("needs the feature `{feature}`, which this program was built without")
}

impl From<RangeError> for Error {
    fn from(_: RangeError) -> Self {
        Self::Invalid
    }
}

impl From<std::io::Error> for Error {
    fn from(err: std::io::Error) -> Self {
        Self::Os(err.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(err: rustix::io::Errno) -> Self {
        Self::Os(err.raw_os_error())
    }
}

/// Why a node could not be opened, made or reconfigured.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused the file.
    #[error("Could not open '{path}': {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: Error,
    },
    /// Another process holds the lock on the image.
    #[error("Failed to get {lock} lock on '{path}'. Is another process using the image?", path = path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Which lock: `"write"`, `shared "write"`, ...
        lock: &'static str,
    },
    /// A request during the opening failed.
    #[error("{what}: {error}")]
    Request {
        /// What was being read or written, in the format's words: `header`, `L1 table`.
        what: &'static str,
        /// Why it failed.
        error: Error,
    },
    /// A field of the image holds a value that the format does not allow.
    #[error("{format}: {field} {}", wrong_field(*value, problem))]
    Field {
        /// Name of the format.
        format: &'static str,
        /// The field, in the format's words.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A text inside the image cannot be understood.
    #[error("{format}: {what}: {problem}")]
    Text {
        /// Name of the format.
        format: &'static str,
        /// Which text, in the format's words: `descriptor`.
        what: &'static str,
        /// What is wrong with it, with the line or the value.
        problem: String,
    },
    /// The image needs features that this driver does not have.
    #[error("{format}: unsupported feature(s): {names}")]
    UnsupportedFeature {
        /// Name of the format.
        format: &'static str,
        /// Their names, from the image's own table where it has one.
        names: String,
    },
    /// No driver of this name is registered.
    #[error("Unknown driver '{name}'")]
    UnknownDriver {
        /// The name.
        name: String,
    },
    /// An option is missing, unknown, or has a value of the wrong kind.
    #[error("Invalid option '{option}': {problem}")]
    Option {
        /// The option's full name.
        option: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// An option has a value that it cannot have, alone or beside the others.
    #[error("Invalid option '{option}={value}': {problem}")]
    OptionValue {
        /// The option's full name.
        option: &'static str,
        /// Its value, as a user writes it.
        value: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A name inside an image refers to something that the policy keeps closed.
    #[error("'{name}' inside the image is refused: {problem}")]
    Reference {
        /// The name as it stands in the image.
        name: String,
        /// Which rule.
        problem: Problem,
    },
    /// A file that the image refers to could not be opened.
    #[error("Could not open {role} '{name}': {source}")]
    Child {
        /// `backing file`, `data file`.
        role: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Box<Self>,
    },
    /// The node cannot do it.
    #[error("{what} is not supported by '{driver}'")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
        /// What was asked for.
        what: &'static str,
    },
}

/// What is wrong with a value.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Above the limit.
    #[error("must be at most {0:#x}")]
    Above(u64),
    /// Below the limit.
    #[error("must be at least {0:#x}")]
    Below(u64),
    /// Not a multiple.
    #[error("must be a multiple of {0:#x}")]
    Misaligned(u64),
    /// Not a power of two.
    #[error("must be a power of two")]
    NotPowerOfTwo,
    /// Not one of the values that exist.
    #[error("unknown value")]
    Unknown,
    /// Must not be zero.
    #[error("must not be zero")]
    Zero,
    /// Reserved bits are set.
    #[error("reserved bits are set (mask {0:#x})")]
    Reserved(u64),
    /// It, or what it points at, ends beyond the file or the field that holds it.
    #[error("ends beyond {0:#x}")]
    Truncated(u64),
    /// It overlaps another structure, or itself.
    #[error("overlaps other metadata")]
    Overlap,
    /// It contradicts another field.
    #[error("contradicts {0}")]
    Contradicts(&'static str),
    /// Text that is not UTF-8 or holds a NUL.
    #[error("is not valid text")]
    NotText,
    /// A needed option or name is not there.
    #[error("is missing")]
    Missing,
    /// Names that reach outside of the image's directory, or name a protocol.
    #[error("only plain names are allowed here")]
    NotPlainName,
    /// Chain longer than allowed.
    #[error("the chain is longer than {0} images")]
    ChainTooLong(usize),
    /// It needs a part of a crate that this program was built without: the feature that has it.
    #[error("{}", not_built(.0))]
    NotBuilt(&'static str),
    /// Conflicts with how the image was opened.
    #[error("needs a writable image")]
    NeedsWrite,
}
