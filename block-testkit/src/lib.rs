//! (to be written)
pub mod naive;
pub mod peer;
