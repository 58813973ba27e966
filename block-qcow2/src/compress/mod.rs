//! Compressed clusters: the codecs and the threads that run them, reading, and the cache of writes.

pub mod codec;
mod encode;
pub(crate) mod inflate;
pub(crate) mod turns;
pub(crate) mod write_cache;

pub use encode::{Encoding, Window};
