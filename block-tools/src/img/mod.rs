//! `block-img`: one module for each subcommand, and what they share.
//!
//! Options, output, JSON fields and exit statuses are those that users of `qemu-img` know; wrong
//! usage exits with status 1. Messages on standard error start with the program's name.
//!
//! Invariant: every command returns its exit status, so that buffered output is always written; only a
//! second interrupt ends the process on the spot.

mod amend;
mod backing;
mod bench;
mod bitmap;
mod bitmaps;
mod check;
mod commit;
mod common;
mod compare;
mod compression;
mod convert;
mod create;
mod dd;
mod failure;
mod human;
mod info;
mod interrupt;
mod iscsi;
mod json;
mod map;
mod measure;
mod node_sink;
mod output;
mod pipe;
mod pipe_source;
mod progress;
mod rebase;
mod resize;
mod slots;
mod snapshot;
mod source_snapshot;
mod stream;
mod target;
mod vmdk_source;
mod watch;

pub use failure::Failure;
pub use output::Output;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::program::TraceArgs;
use crate::spec::objects::ObjectArgs;
use crate::surroundings;

/// Disk image utility.
#[derive(Parser)]
#[command(name = "block-img", version, disable_help_subcommand = true, infer_long_args = true)]
struct Cli {
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    _trace: TraceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Change the options that an image was made with.
    Amend(amend::Args),
    /// Change the persistent bitmaps of an image.
    Bitmap(bitmap::Args),
    /// Move what an image holds into its backing file.
    Commit(commit::Args),
    /// Copy a part of one image to another.
    Dd(dd::Args),
    /// Give an image another backing file.
    Rebase(rebase::Args),
    /// Change the length of a disk.
    Resize(resize::Args),
    /// List or change the snapshots inside an image.
    Snapshot(snapshot::Args),
    /// Run a simple image benchmark.
    Bench(bench::Args),
    /// Check an image for errors, and mend them.
    Check(check::Args),
    /// Check if two images have the same contents.
    Compare(compare::Args),
    /// Copy one image, or several joined, to another.
    Convert(convert::Args),
    /// Create a new image file.
    Create(create::Args),
    /// Display information about an image.
    Info(info::Args),
    /// Ask iSCSI portals.
    Iscsi(iscsi::Args),
    /// Show how the contents of an image are stored.
    Map(map::Args),
    /// Calculate the size that a new image would need.
    Measure(measure::Args),
}

/// Runs the command line `args` (program name first), writes to `out` and to standard error, and
/// gives the exit status.
pub fn main(args: impl IntoIterator<Item = OsString>, out: &mut Output) -> u8 {
    let mut args: Vec<_> = args.into_iter().collect();
    if command_of(&args) == "resize" {
        resize::mark_size(&mut args);
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, command_of(&args)),
    };
    let secrets = match cli.objects.secrets() {
        Ok(secrets) => secrets,
        Err(error) => {
            let failure = Failure::new(error);
            failure.report();
            return failure.status();
        }
    };
    let _guard = surroundings::confide(secrets);
    let result = match cli.command {
        Command::Amend(args) => amend::run(&args, out),
        Command::Bitmap(args) => bitmap::run(&args, out),
        Command::Commit(args) => commit::run(&args, out),
        Command::Dd(args) => dd::run(&args, out),
        Command::Rebase(args) => rebase::run(&args, out),
        Command::Resize(args) => resize::run(&args, out),
        Command::Snapshot(args) => snapshot::run(&args, out),
        Command::Bench(args) => bench::run(&args, out),
        Command::Check(args) => check::run(&args, out),
        Command::Compare(args) => compare::run(&args, out),
        Command::Convert(args) => convert::run(&args, out),
        Command::Create(args) => create::run(&args, out),
        Command::Info(args) => info::run(&args, out),
        Command::Iscsi(args) => iscsi::run(&args, out),
        Command::Map(args) => map::run(&args, out),
        Command::Measure(args) => measure::run(&args, out),
    };
    let result = result.and_then(|status| out.finish().map(|()| status));
    match result {
        Ok(status) => status,
        Err(failure) => {
            // What was said before the failure comes first where both streams are one terminal.
            let _ = out.finish();
            failure.report();
            failure.status()
        }
    }
}

/// The subcommand that a command line names, or nothing.
fn command_of(args: &[OsString]) -> &'static str {
    const NAMES: &[&str] = &[
        "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd",
        "info", "iscsi", "map", "measure", "rebase", "resize", "snapshot",
    ];
    let mut words = args.iter().skip(1).filter_map(|word| word.to_str());
    // Before it stand options alone, and their values.
    words.find_map(|word| NAMES.iter().find(|name| **name == word)).copied().unwrap_or_default()
}

/// Says what is wrong with the command line, or shows the help that it asked for.
fn refuse(error: &clap::Error, command: &'static str) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody to tell if even this cannot be written.
        let _ = error.print();
        return 0;
    }
    let text = error.to_string();
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "Not enough arguments".to_owned()
        }
        _ => {
            let lines = text.lines().take_while(|line| !line.trim().is_empty());
            let joined = lines.map(str::trim).collect::<Vec<_>>().join(" ");
            joined.strip_prefix("error: ").unwrap_or(&joined).to_owned()
        }
    };
    let failure = Failure::usage(command, what);
    failure.report();
    failure.status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_status_1_and_help_is_0() {
        let run = |args: &[&str]| {
            main(args.iter().map(|arg| OsString::from(*arg)), &mut Output::buffer())
        };
        assert_eq!(run(&["block-img"]), 1);
        assert_eq!(run(&["block-img", "bogus"]), 1);
        assert_eq!(run(&["block-img", "info", "--bogus", "x"]), 1);
        assert_eq!(run(&["block-img", "info"]), 1);
        assert_eq!(run(&["block-img", "info", "-f"]), 1);
        assert_eq!(run(&["block-img", "--help"]), 0);
        assert_eq!(run(&["block-img", "convert", "--help"]), 0);
    }
}
