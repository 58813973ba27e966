//! The fuzz targets of this crate: what users write. Options in all their spellings, options for new images, lines of
//! block-io.
//!
//! The bodies are functions of any bytes. This test plays what once failed and some that is near; the package
//! `block-testkit/fuzz` includes this file and gives them to libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "the package of fuzz targets includes this file")]

mod create;
mod lines;
mod options;

use block_testkit::fuzz::Target;

/// All of them.
pub const TARGETS: &[Target] = &[options::OPTIONS, create::CREATE, lines::LINES];

#[cfg(test)]
mod tests {
    use block_testkit::fuzz::{Cases, exercise};

    use super::TARGETS;

    #[test]
    fn texts_of_any_bytes_do_no_harm() {
        for target in TARGETS {
            exercise(target, Cases(300));
        }
    }
}
