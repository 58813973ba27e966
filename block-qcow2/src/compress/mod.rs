//! Compressed clusters: the codecs, and the threads that run them.

pub mod codec;
pub(crate) mod pipeline;
