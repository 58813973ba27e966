//! The engines under the `file` driver, and the executor that waits in them.
//!
//! Nothing here knows of nodes or images: an engine moves bytes between a file and an
//! [`IoVec`](crate::IoVec), and completes whoever polls, on whatever executor.

pub mod exec;
mod park;
