//! What drivers of formats need to keep their metadata: a cache of tables within the budget of a chain
//! ([`cache`]), the gate that every request to a writable image passes ([`gate`]), the allocations
//! that are under way ([`inflight`]), and the steps of one request ([`steps`]).

pub mod cache;
pub mod gate;
pub mod inflight;
pub mod steps;
