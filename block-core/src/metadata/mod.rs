//! What drivers of formats need to keep their metadata: a cache of tables within the budget of a chain
//! ([`cache`]), the gate that every request to a writable image passes ([`gate`]), the allocations
//! that are under way ([`inflight`]), the steps of one request ([`steps`]), metadata as bytes
//! ([`bytes`]), the files of images that are made ([`new_file`]), and full files ([`room`]).

pub mod bytes;
pub mod cache;
pub mod gate;
pub mod inflight;
pub mod new_file;
pub mod room;
pub mod steps;
