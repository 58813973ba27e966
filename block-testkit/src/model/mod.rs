//! Reference models: slow, obvious, and independent of the code that they judge.

pub mod bitmap;
pub mod disk;
pub mod durable;
pub mod frozen;
pub mod overlap;
