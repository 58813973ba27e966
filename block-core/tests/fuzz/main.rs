//! The fuzz targets of this crate: the request layer, dirty bitmaps, and what a user writes for `blkdebug`.
//!
//! The bodies are functions of any bytes. This test plays what once failed and some that is near; the package
//! `block-testkit/fuzz` includes this file and gives them to libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "the package of fuzz targets includes this file")]

mod blkdebug;
#[path = "../dirty_support/mod.rs"]
mod dirty_support;
mod play;
#[path = "../request_support/mod.rs"]
mod request_support;

use block_testkit::fuzz::Target;

/// All of them.
pub const TARGETS: &[Target] = &[play::REQUESTS, play::CONFLICTS, play::DIRTY, blkdebug::BLKDEBUG];

#[cfg(test)]
mod tests {
    use block_testkit::fuzz::{Cases, exercise};

    use super::TARGETS;

    #[test]
    fn games_and_texts_of_any_bytes_do_no_harm() {
        for target in TARGETS {
            exercise(target, Cases(200));
        }
    }
}
