//! What `block-img` and `block-io` are made of, as a library: every command can be called and tested
//! without a process.
//!
//! The syntax, output and exit statuses are those that users of `qemu-img` and `qemu-io` know.

#![forbid(unsafe_code)]

pub mod img;
pub mod io_cmd;
pub mod open;
pub mod program;
pub mod signals;
pub mod spec;
pub mod surroundings;
mod temporary;

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The same of the workspace's README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct WorkspaceReadme;
