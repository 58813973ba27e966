//! Small programs over raw system calls, over other libraries and over block-core, which read or
//! write an image in the same way, and a stopwatch for other programs. `cargo xtask bench` runs them.
//!
//! Each prints one JSON object. What is measured is the loop of requests alone: the image is open
//! and the buffers are there before the clock starts, and it is flushed and closed after the clock has
//! stopped.

mod allocations;
mod codecs;
mod engine;
mod layer;
#[cfg(feature = "sync-peers")]
mod same;
mod stopwatch;
mod work;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;
use work::Direction;

/// What a failed run says. These programs only ever report to the harness.
type Failure = Box<dyn std::error::Error>;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads an image by one engine.
    Read(work::Arguments),
    /// Writes an image by one engine.
    Write(work::Arguments),
    /// The engines that this build has.
    Engines,
    /// Nanoseconds and allocations per 4 KiB request to a null node.
    Layer(layer::Arguments),
    /// What compressing the clusters of a disk costs, and how small they become.
    Codecs(codecs::Arguments),
    /// Compares an image, as imago reads it, with a raw disk.
    #[cfg(feature = "sync-peers")]
    Same(same::Arguments),
    /// Runs a program and measures it: wall clock, CPU of it and its children, its output.
    Measure {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench-peers: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<Value, Failure> {
    match command {
        Command::Read(arguments) => engine::run(&arguments.work(Direction::Read)?),
        Command::Write(arguments) => engine::run(&arguments.work(Direction::Write)?),
        Command::Engines => Ok(engine::names().collect()),
        Command::Layer(arguments) => layer::run(&arguments),
        Command::Codecs(arguments) => codecs::run(&arguments),
        #[cfg(feature = "sync-peers")]
        Command::Same(arguments) => same::run(&arguments),
        Command::Measure { command } => stopwatch::measure(&command),
    }
}
