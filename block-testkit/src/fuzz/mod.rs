//! Bodies of fuzz targets: functions of any bytes, each of which holds one promise and panics where it is broken.
//!
//! A [`Target`] is a body with its name and inputs to start from. Every crate lists its own in `tests/fuzz/`;
//! the package `fuzz/` of this crate hands them to libFuzzer. The ordinary tests call [`exercise`], which
//! plays every input that once failed (`fuzz/regressions/NAME/`), those to start from, and some that are
//! made of them.
//!
//! [`Bytes`] makes choices of an input, [`Dice`] is a generator of random numbers that takes them from one,
//! and [`crate::op::OpSpace::decode`] makes operations.
//!
//! Invariant: a body depends on its input alone, so that what failed once fails again.

mod bytes;
mod exercise;
mod image;
mod ops;

pub use bytes::{Bytes, Dice, noise};
pub use exercise::{Cases, exercise};
pub use image::{Words, as_it_is, damaged, look_at, send};

/// A body, and what a fuzzer has to know of it.
#[derive(Copy, Clone)]
pub struct Target {
    /// Lower case, words joined by `-`; the crate's part of the name first.
    pub name: &'static str,
    /// Panics if the promise does not hold for these bytes.
    pub body: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longer inputs say nothing new, in bytes.
    pub max_len: usize,
}
