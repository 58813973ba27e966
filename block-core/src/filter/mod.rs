//! Filters: drivers that pass requests on to one node, changed.

pub mod blkdebug;
pub mod blkverify;
pub mod compress;
pub mod copy_on_read;
