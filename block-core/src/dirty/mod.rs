//! Dirty bitmaps: which parts of a disk were written since somebody started to look.
//!
//! [`DirtyBitmap`] is one bitmap: bits over *granules* (powers of two of at least 512 bytes), a name
//! and a state. [`DirtyBitmaps`] is what a node owns: the list, behind a lock, with a check that
//! costs one atomic load while nothing records. [`Granules`] is the set of bits, with no state.
//!
//! The safe direction: a bit too many costs a copy, a bit too few loses data. So setting rounds
//! *out* to every granule that the range touches, resetting rounds *in* to granules that the range
//! covers wholly, and whatever cannot be trusted says so (`inconsistent`).
//!
//! **Invariant:** no bit stands for bytes at or beyond the length of the disk.
//!
//! Not here: how bitmaps are stored in an image (the formats do that), and when to mark (the last
//! step of the request layer does that, for failed writes too).

mod bitmap;
mod error;
mod granules;
mod set;

pub use bitmap::{BitmapInfo, DirtyBitmap, MAX_NAME_BYTES};
pub use error::BitmapError;
pub use granules::{Areas, Granularity, Granules, MAX_GRANULES};
pub use set::{BitmapId, DirtyBitmaps};
