//! Jobs: long operations made of many requests, with bounded memory, progress and cancellation.
//!
//! A job is a future of its caller: it spawns nothing, and its requests run as far in parallel as
//! the drivers below let them. Not here: anything that changes the graph while guests run.

pub mod commit;
pub mod copy;
pub mod rebase;
pub mod stream;

pub use commit::{CommitError, CommitOptions, commit};
pub use copy::{Copied, CopyError, CopyOptions, CopySource, copy};
pub use rebase::{NewBacking, RebaseError, RebaseOptions, rebase};
