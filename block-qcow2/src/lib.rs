//! tmp
pub mod geometry;
pub mod spec;
pub mod units;
pub mod map;
pub(crate) mod cache;
pub mod compress;
