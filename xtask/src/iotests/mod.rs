//! `cargo xtask iotests`: what every driver and both programs must do, as scripts.

mod qemu;
pub(crate) mod scenarios;

use std::path::PathBuf;

use clap::Args;

use crate::failure::Result;

/// Options of `cargo xtask iotests`. Without --qemu-src it runs the scenarios of `block-testkit/iotests`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run QEMU's own shell tests, of this source tree, with block-img and block-io in the places of
    /// qemu-img and qemu-io, instead of the scenarios.
    #[arg(long, value_name = "DIR")]
    qemu_src: Option<PathBuf>,
    /// With --qemu-src: use the installed qemu-img and qemu-io instead of ours.
    #[arg(long, requires = "qemu_src")]
    baseline: bool,
    /// With --qemu-src: write the list of what is expected anew from what was found.
    #[arg(long, requires = "qemu_src")]
    write_expected: bool,
    /// Only this format: a shape like qcow2-v2, or a driver for all of its shapes; several stand between
    /// commas. With --qemu-src one may end in *.
    #[arg(long)]
    format: Vec<String>,
    /// Only this protocol: memory, crash, file, iscsi-thin, ..., or iscsi for all of those.
    #[arg(long, conflicts_with = "qemu_src")]
    protocol: Vec<String>,
    /// Only under this cache: buffered, direct, io_uring, pool.
    #[arg(long, conflicts_with = "qemu_src")]
    cache: Vec<String>,
    /// With --qemu-src: build our programs with this profile of cargo's.
    #[arg(long, default_value = "quick")]
    profile: String,
    /// Only scenarios whose name this regular expression matches; with --qemu-src, tests whose name
    /// contains this, more after commas.
    #[arg(long)]
    filter: Option<String>,
    /// Run on one configuration of each format and protocol.
    #[arg(long, conflicts_with = "qemu_src")]
    quick: bool,
    /// Tests that run at a time.
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Keep what the tests wrote, and say where it is.
    #[arg(long)]
    keep: bool,
    /// List what would be run.
    #[arg(long, conflicts_with = "qemu_src")]
    list: bool,
    /// Write the report as JUnit XML.
    #[arg(long, value_name = "FILE", conflicts_with = "qemu_src")]
    junit: Option<PathBuf>,
    /// Layout of the report: human or json.
    #[arg(long, value_name = "LAYOUT", conflicts_with = "qemu_src")]
    output: Option<String>,
    /// Where files are made (default: the system's temporary directory).
    #[arg(long, value_name = "DIR", conflicts_with = "qemu_src")]
    dir: Option<PathBuf>,
    /// With --qemu-src: run also what the list skips.
    #[arg(long, requires = "qemu_src")]
    everything: bool,
}

impl Arguments {
    /// The formats as patterns between commas.
    fn formats(&self) -> String {
        if self.format.is_empty() { "*".to_owned() } else { self.format.join(",") }
    }
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
    match &arguments.qemu_src {
        Some(source) => qemu::run(source, arguments),
        None => scenarios::run(arguments),
    }
}
