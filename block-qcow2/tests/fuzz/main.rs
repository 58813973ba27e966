//! The fuzz targets of this crate: every decoder of qcow2's structures, images of any bytes, and the games of
//! the other tests with operations that a fuzzer finds.
//!
//! The bodies are functions of any bytes. This test plays what once failed and some that is near; the package
//! `block-testkit/fuzz` includes this file and gives them to libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "the package of fuzz targets includes this file")]

mod decode;
#[path = "../games/mod.rs"]
mod games;
mod image;
#[path = "../kit/mod.rs"]
mod kit;
mod play;

use block_testkit::fuzz::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    decode::HEADER,
    decode::ENTRIES,
    decode::SNAPSHOTS,
    decode::BITMAPS,
    decode::PAYLOADS,
    image::READ,
    image::REPAIR,
    image::WRITE,
    play::OPERATIONS,
    play::CRASH,
    play::FAULTS,
    play::WRITE_CACHE,
];

#[cfg(test)]
mod tests {
    use block_testkit::fuzz::{Cases, exercise};

    use super::TARGETS;

    fn all(part: &[&str], cases: u32) {
        for name in part {
            let target = TARGETS.iter().find(|target| target.name == *name).unwrap();
            exercise(target, Cases(cases));
        }
    }

    #[test]
    fn decoders_answer_any_bytes() {
        let names = ["header", "entries", "snapshots", "bitmaps", "payloads"];
        all(&names.map(|name| format!("qcow2-{name}")).each_ref().map(String::as_str), 300);
    }

    #[test]
    fn images_of_any_bytes_do_no_harm() {
        all(&["qcow2-read", "qcow2-repair", "qcow2-write"], 60);
    }

    #[test]
    fn games_equal_the_flat_disk() {
        all(&["qcow2-operations", "qcow2-write-cache"], 20);
    }

    #[test]
    fn games_survive_crashes_and_faults() {
        all(&["qcow2-crash", "qcow2-faults"], 4);
    }
}
