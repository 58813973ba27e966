//! Compressed clusters: reading and inflating them, the codecs, and the threads that run them.

pub mod codec;
mod encode;
pub(crate) mod inflate;
pub(crate) mod pipeline;

pub use encode::{Encoding, Window};
