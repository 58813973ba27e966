//! Filters: drivers that pass requests on to one node, changed.

pub mod blkdebug;
pub mod compress;
