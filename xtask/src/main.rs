//! The harness: one command for everything that is done to the workspace besides writing it.
//!
//! It drives cargo, the workspace's own binaries and the peers' tools, and knows no disk format:
//! whatever it says about an image it has from a tool it ran. It depends on no crate of the
//! workspace, so that it compiles in seconds and works while the rest does not.

#![forbid(unsafe_code)]

mod bench;
mod ci;
mod demo;
mod examples;
mod failure;
mod features;
mod fuzz;
mod guest;
mod iotests;
mod mutants;
mod package;

mod peer;
mod run;
mod scratch;
mod served;
mod setup;
mod soak;
mod target;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Result;

/// What is done to the workspace besides writing it.
#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must pass: peers, format, tidy, lints, tests, examples, features, docs,
    /// packages, miri, scenarios, peer, demo.
    Ci,
    /// Checks what the compiler does not: module heads, file lengths, dependencies, documents.
    Tidy,
    /// Installs the tools that `peer`, `demo` and `bench` compare with, where they are missing.
    Setup,
    /// Compares block-img with qemu-img on images that qemu-img makes, and lets others read what
    /// block-img compresses.
    Peer(peer::Arguments),
    /// Makes a compressed image with a backing file, and converts it to raw.
    Demo(demo::Arguments),
    /// Runs the tests, several programs at a time.
    Test,
    /// Runs the examples of the crates and checks what they print.
    Examples,
    /// Lints and tests the crates with their features alone and together.
    Features,
    /// Packages the crates, and compiles the packages without the workspace.
    Package,
    /// Plays random operations, faults and crashes on all drivers until the time is up.
    Soak(soak::Arguments),
    /// Makes the mistakes of a list in a copy of the workspace, and shows which tests notice.
    Mutants(mutants::Arguments),
    /// Fuzzes decoders and drivers, by cargo-fuzz and nightly.
    Fuzz(fuzz::Arguments),
    /// Serves an iSCSI target in memory.
    Target(target::Arguments),
    /// Runs the scenarios on every format, protocol and cache; or QEMU's own shell tests with block-img and block-io.
    Iotests(iotests::Arguments),
    /// Measures block-img and block-core beside their peers, interleaved.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Setup => setup::peers(&setup::ALL),
        Command::Peer(arguments) => peer::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test => test::run(),
        Command::Examples => examples::run(),
        Command::Features => features::run(),
        Command::Package => package::run(),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Target(arguments) => target::run(&arguments),
        Command::Iotests(arguments) => iotests::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    }
}
