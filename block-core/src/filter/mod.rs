//! Filters: drivers that pass requests on to one node, changed.

pub mod compress;
