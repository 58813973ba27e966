//! The scenarios of `block-testkit/iotests`, over the matrix: an example program of block-tools runs them
//! in process; here it is built and called.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use crate::failure::{Failure, Result};
use crate::run;

use super::Arguments;

/// What is run before a change is good: one configuration of each format and protocol.
pub(crate) fn quick() -> Result<()> {
    run::succeed(run::command(build(run::DEV)?).arg("--quick"))
}

/// Runs what the options ask for, and ends with the exit status of that: from then on this process is the
/// program, which alone hears of Ctrl-C.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut line: Vec<OsString> = Vec::new();
    let lists = [
        ("--format", &arguments.format),
        ("--protocol", &arguments.protocol),
        ("--cache", &arguments.cache),
    ];
    for (name, values) in lists {
        for value in values.iter().flat_map(|value| value.split(',')).filter(|v| !v.is_empty()) {
            line.extend([OsString::from(name), value.into()]);
        }
    }
    if let Some(filter) = &arguments.filter {
        line.extend([OsString::from("--filter"), filter.into()]);
    }
    if let Some(jobs) = arguments.jobs {
        line.extend([OsString::from("--jobs"), jobs.to_string().into()]);
    }
    let paths = [("--junit", &arguments.junit), ("--dir", &arguments.dir)];
    for (name, path) in paths {
        if let Some(path) = path {
            line.extend([OsString::from(name), path.into()]);
        }
    }
    if let Some(layout) = &arguments.output {
        line.extend([OsString::from("--output"), layout.into()]);
    }
    let switches =
        [("--quick", arguments.quick), ("--keep", arguments.keep), ("--list", arguments.list)];
    line.extend(switches.into_iter().filter(|(_, on)| *on).map(|(name, _)| OsString::from(name)));
    let program = build(run::QUICK)?;
    let source = run::command(&program).args(line).exec();
    Err(Failure::Start { program: program.display().to_string(), source })
}

fn build(profile: &str) -> Result<PathBuf> {
    run::example(profile, "block-tools", "iotests")
}
