//! Drivers for tests: [`mem`] checks what arrives and tears writes; the taps sit on any driver and
//! see every request of its node: [`record`] notes them, [`hold`] stops them, [`fault`] fails them,
//! [`inline`] answers them within one call,
//! [`watch`] reports them to [`model::overlap`](crate::model::overlap). [`crash`] says what is left
//! when the power goes, [`noting`] at every point of a short run. [`full`] has any length and takes no memory.
//! [`verify`] mirrors two nodes, [`overlay`] is a layer over a backing file.

pub mod crash;
pub mod fault;
pub mod full;
pub mod hold;
pub mod inline;
pub mod mem;
pub mod noting;
pub mod overlay;
pub mod record;
pub mod tap;
pub mod verify;
pub mod watch;

pub use crash::{CrashDisk, CrashImage};
pub use mem::{MemConfig, MemDisk};
pub use tap::{Call, Kind, Tap, Tapped, Verdict};
