//! Compressed clusters: reading and inflating them, the codecs, and the threads that run them.

pub mod codec;
pub(crate) mod inflate;
pub(crate) mod pipeline;
