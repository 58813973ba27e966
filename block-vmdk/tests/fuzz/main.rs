//! The fuzz targets of this crate: every decoder of VMDK's structures, disks of any bytes, and the games of the
//! other tests with operations that a fuzzer finds.
//!
//! The bodies are functions of any bytes. This test plays what once failed and some that is near; the package
//! `block-testkit/fuzz` includes this file and gives them to libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "the package of fuzz targets includes this file")]

#[path = "../damaged/mod.rs"]
mod damaged;
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
    decode::DESCRIPTOR,
    decode::MARKERS,
    image::STREAM,
    image::READ,
    image::REPAIR,
    image::WRITE,
    play::OPERATIONS,
    play::CRASH,
    play::FAULTS,
];

#[cfg(test)]
mod tests {
    use block_testkit::fuzz::{Cases, exercise};

    use super::TARGETS;

    fn all(names: &[&str], cases: u32) {
        for name in names {
            let target = TARGETS.iter().find(|target| target.name == *name).unwrap();
            exercise(target, Cases(cases));
        }
    }

    #[test]
    fn decoders_answer_any_bytes() {
        all(&["vmdk-header", "vmdk-descriptor", "vmdk-markers"], 2000);
    }

    #[test]
    fn disks_of_any_bytes_do_no_harm() {
        all(&["vmdk-stream", "vmdk-read", "vmdk-repair", "vmdk-write"], 200);
    }

    #[test]
    fn games_equal_the_flat_disk() {
        all(&["vmdk-operations"], 20);
    }

    #[test]
    fn games_survive_crashes_and_faults() {
        all(&["vmdk-crash", "vmdk-faults"], 4);
    }
}
