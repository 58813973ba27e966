//! Flags of a request, and of what a driver can do with them.

use bitflags::bitflags;

bitflags! {
    /// What a request asks for beside its range. Unknown combinations are refused in step 1 of the
    /// request layer, not by drivers.
    #[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Hash)]
    pub struct RequestFlags: u32 {
        /// The data is on stable storage when the request completes. Emulated by one flush after
        /// the last fragment where the driver lacks it.
        const FUA = 1 << 0;
        /// A zero write may deallocate, as long as the range then reads as zeroes.
        const MAY_UNMAP = 1 << 1;
        /// Fail with `Unsupported`, with nothing changed, rather than fall back to a slow way (bounce
        /// buffer, padding).
        const NO_FALLBACK = 1 << 2;
        /// No other request may overlap this one (range rounded out to the request alignment).
        const SERIALISING = 1 << 3;
        /// The write puts down what the disk already reads as (copy on read, commit): allowed on a
        /// node that guests may not write, and no dirty bit is set.
        const WRITE_UNCHANGED = 1 << 4;
        /// Write compressed clusters. Drivers without them answer `Unsupported`.
        const COMPRESSED = 1 << 5;
        /// With `SERIALISING`: answer `Busy` instead of waiting.
        const NO_WAIT = 1 << 7;
    }
}

/// How a driver does something: by itself, through the layer's emulation, or not at all.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Support {
    /// Nobody does it; the request fails or is ignored, as its documentation says.
    #[default]
    None,
    /// The request layer does it in terms of other requests.
    Emulated,
    /// The driver does it.
    Native,
}

/// What a driver can do; asked once when the node is made and again after a reopen.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// `pwritev` honours [`RequestFlags::FUA`] (`Native`), or the layer flushes (`Emulated`).
    pub write_fua: Support,
    /// `pwrite_zeroes` exists (`Native`), or the layer writes zero buffers (`Emulated`).
    pub write_zeroes: Support,
    /// `pwrite_zeroes` honours [`RequestFlags::FUA`].
    pub zeroes_fua: Support,
    /// `pwrite_zeroes` honours [`RequestFlags::MAY_UNMAP`] (deallocates instead of writing).
    pub zeroes_may_unmap: Support,
    /// `pwrite_zeroes` honours [`RequestFlags::NO_FALLBACK`] (answers at metadata speed or refuses).
    pub zeroes_no_fallback: Support,
    /// `pdiscard` exists; where it does not, a discard succeeds and does nothing.
    pub discard: Support,
    /// `pwritev` takes [`RequestFlags::COMPRESSED`].
    pub compressed_write: Support,
    /// `truncate` exists.
    pub truncate: Support,
    /// A write beyond the end grows the file (protocol drivers on regular files).
    pub grows_on_write: bool,
    /// A freshly created image, and the area a growing truncate adds, read as zeroes.
    pub has_zero_init: bool,
}
