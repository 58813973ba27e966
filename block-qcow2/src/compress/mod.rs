//! Compressed clusters: reading and inflating them, the codecs, the threads that run them, and the
//! cache through which they are written.

pub mod codec;
pub(crate) mod inflate;
pub(crate) mod pipeline;
pub(crate) mod write_cache;
