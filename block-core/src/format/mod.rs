//! Formats that need nothing but the layer itself.

pub mod raw;
