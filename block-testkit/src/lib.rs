//! Models, fault disks and a deterministic executor for testing block drivers.
//!
//! [`exec`] runs requests in an order that a seed chooses. [`op`] makes requests whose bytes tell who
//! wrote them, [`play`] sends them to a node, and [`model`] judges what comes back. [`campaign`] plays
//! many games by seeds, and makes small what fails. [`disk`] has the drivers below: ones that check,
//! tear and crash, and taps that record, hold and fail what passes. [`golden`] compares text with files.
//! [`race`] is what a race needs that is reached on purpose, [`given`] opens files that a test made.
//! [`naive`] reads, checks and makes formats slowly, from their description alone; [`peer`] asks the
//! field's own tools. [`iscsi`] is a target, in memory and on the network. [`scenario`] is the language
//! of the files in `iotests/`. [`fuzz`] is what fuzz targets are made of. [`check`] keeps what a check says.
//!
//! A test that uses this crate lives in `tests/` of its crate, because this crate depends on it.

#![forbid(unsafe_code)]

pub mod campaign;
pub mod check;
pub mod disk;
pub mod exec;
pub mod fuzz;
pub mod given;
pub mod golden;
pub mod iscsi;
pub mod model;
pub mod naive;
pub mod op;
pub mod peer;
pub mod play;
pub mod race;
pub mod scenario;

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
