//! `cargo xtask iotests`: what every driver and both programs must do, as scripts.

mod qemu;

use std::path::PathBuf;

use clap::Args;

use crate::failure::Result;

/// Options of `cargo xtask iotests`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run QEMU's own shell tests, of this source tree, with block-img and block-io in the places of
    /// qemu-img and qemu-io.
    #[arg(long, value_name = "DIR")]
    qemu_src: PathBuf,
    /// With --qemu-src: use the installed qemu-img and qemu-io instead of ours.
    #[arg(long)]
    baseline: bool,
    /// With --qemu-src: write the list of what is expected anew from what was found.
    #[arg(long)]
    write_expected: bool,
    /// Only this format; several stand between commas, and one may end in *.
    #[arg(long, default_value = "*")]
    format: String,
    /// With --qemu-src: build our programs with this profile of cargo's.
    #[arg(long, default_value = "quick")]
    profile: String,
    /// Only tests whose name contains this; more may follow after commas.
    #[arg(long, default_value = "")]
    filter: String,
    /// Tests that run at a time.
    #[arg(short, long, default_value_t = 2)]
    jobs: usize,
    /// Keep what the tests wrote, and say where it is.
    #[arg(long)]
    keep: bool,
    /// With --qemu-src: run also what the list skips.
    #[arg(long)]
    everything: bool,
}

/// Whether a name is among `patterns`.
fn chosen(patterns: &str, name: &str) -> bool {
    patterns.split(',').any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

/// Runs the tests.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    qemu::run(arguments)
}
