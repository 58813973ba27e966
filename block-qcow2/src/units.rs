//! Units of the format: an offset in the image file is not an offset on the guest's disk.
//!
//! Invariant: both count bytes; none converts to the other without a mapping in between.
//! Not here: ranges (`block_core::ByteRange`) and indexes (plain integers inside one function).

use std::fmt;

/// Offset in bytes of a host cluster, or inside one: in the image file or in its data file.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(u64);

/// Offset in bytes on the disk that the guest sees.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(u64);

impl HostOffset {
    /// The offset `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As a number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// `len` bytes further; saturates, which no offset that an entry can hold reaches.
    #[must_use]
    pub const fn plus(self, len: u64) -> Self {
        Self(self.0.saturating_add(len))
    }
}

impl GuestOffset {
    /// The offset `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As a number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:#x}", self.0)
    }
}

impl fmt::Debug for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:#x}", self.0)
    }
}
