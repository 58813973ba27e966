//! The fuzz targets of this crate: every decoder of what a target sends, a session before a target that misbehaves,
//! and the games of the other tests with operations that a fuzzer finds.
//!
//! The bodies are functions of any bytes. This test plays what once failed and some that is near; the package
//! `block-testkit/fuzz` includes this file and gives them to libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "the package of fuzz targets includes this file")]

mod decode;
#[path = "../pair/game.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod game;
#[path = "../games/mod.rs"]
mod games;
#[path = "../kit/mod.rs"]
mod kit;
#[path = "../pair/plan.rs"]
mod plan;
mod play;
mod session;
#[path = "../pair/side.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod side;
#[path = "../twin/mod.rs"]
mod twin;

use block_testkit::fuzz::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    decode::PDU,
    decode::KEYS,
    decode::LOGIN,
    decode::ANSWERS,
    decode::URL,
    session::SESSION,
    session::TARGET,
    play::OPERATIONS,
    play::NETWORK,
    play::ALLOCMAP,
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
        all(&["iscsi-pdu", "iscsi-keys", "iscsi-login", "iscsi-answers", "iscsi-url"], 400);
    }

    #[test]
    fn sessions_and_targets_bear_each_other() {
        all(&["iscsi-session", "iscsi-target"], 60);
    }

    #[test]
    fn games_equal_the_flat_disk() {
        all(&["iscsi-operations", "iscsi-network"], 20);
    }

    #[test]
    fn the_allocation_map_equals_its_twin() {
        all(&["iscsi-allocmap"], 200);
    }
}
