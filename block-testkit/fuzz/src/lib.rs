//! All fuzz targets, as the crates' tests have them.
//!
//! The bodies stand in `tests/fuzz/` of each crate, beside the models that judge them, because the test kit must not
//! depend on the formats. This library includes them.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "tests of other crates")]

#[path = "../../../block-core/tests/fuzz/main.rs"]
mod layer;
#[path = "../../../block-iscsi/tests/fuzz/main.rs"]
mod iscsi;
#[path = "../../../block-qcow2/tests/fuzz/main.rs"]
mod qcow2;
#[path = "../../../block-tools/tests/fuzz/main.rs"]
mod tools;
#[path = "../../../block-vmdk/tests/fuzz/main.rs"]
mod vmdk;

use block_testkit::fuzz::Target;

/// Every target, in the order of the crates.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    [layer::TARGETS, qcow2::TARGETS, vmdk::TARGETS, iscsi::TARGETS, tools::TARGETS]
        .into_iter()
        .flatten()
}
