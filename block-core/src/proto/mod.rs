//! Protocols: the drivers at the bottom, which hold the bytes.

pub mod file;
pub mod mem;
pub mod null;
