//! Slow, independent twins: readers and checkers written from a format's description alone.
//!
//! They share no code with the drivers and take the shortest way to an answer: a whole image in
//! memory, one entry at a time, no cache. What a fast driver says of an image is right when its
//! twin says the same.

pub mod allocmap;
mod bytes;
pub mod inflate;
pub mod qcow2;
pub mod vmdk;
