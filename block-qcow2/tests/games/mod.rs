//! The games that are played on qcow2 images: against the flat disk, with crashes, with requests that fail.
//!
//! Who plays brings the operations: random ones by a seed, or those that a fuzzer has found.

#![allow(dead_code, unreachable_pub, reason = "each test file plays its own")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

pub mod crash;
pub mod faults;
pub mod model;

use super::kit;
