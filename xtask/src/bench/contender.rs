//! Who reads an image, by which command, and how its time is known.
//!
//! Library programs and raw loops measure their own loop. Command lines print how long their loop
//! took; their CPU time is that of the process, less that of a run with a single request, which is
//! what starting the program and opening the image cost.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Programs, number};
use crate::failure::{Failure, Result};
use crate::run;

/// Which requests are sent.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) len: u64,
    pub(super) step: u64,
    pub(super) depth: u64,
    pub(super) count: u64,
    pub(super) direct: bool,
}

/// The disk that is read, in both formats.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) raw: PathBuf,
    pub(super) qcow2: PathBuf,
    pub(super) len: u64,
}

/// Wall clock and CPU of so many requests.
#[derive(Copy, Clone, Debug)]
pub(super) struct Sample {
    pub(super) count: u64,
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
}

/// `qemu-img bench -i io_uring` answers what the page cache has by recursion: 10.0.2 overflows its stack
/// at some 100 000 requests, sometimes.
const QEMU_COUNT_MAX: u64 = 20_000;

/// Who reads.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Contender {
    /// A loop over a raw file: what the system can give.
    Limit(&'static str),
    /// `qemu-img bench` with this `-i`.
    Qemu(&'static str),
    /// Another library, by its engine's name.
    Library(&'static str),
    /// `block-img bench`.
    BlockImg,
    /// block-core as a library.
    BlockCore,
}

impl Contender {
    /// Those that can do `requests`.
    pub(super) fn all(requests: &Requests) -> Vec<Self> {
        let mut all = vec![
            Self::Limit("pread"),
            Self::Limit("uring"),
            Self::Qemu("threads"),
            Self::Qemu("io_uring"),
        ];
        if requests.direct {
            all.push(Self::Qemu("native")); // Linux AIO is asynchronous without the page cache only.
        }
        let libraries = ["imago-sync", "imago-async", "qcow2-rs"];
        all.extend(libraries.map(Self::Library));
        all.extend([Self::BlockImg, Self::BlockCore]);
        all
    }

    /// Whether it is of this workspace.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::BlockImg | Self::BlockCore)
    }

    /// As the tables show it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Limit(engine) => format!("raw {engine}"),
            Self::Qemu(aio) => format!("qemu-img bench -i {aio}"),
            Self::Library(engine) => engine.to_owned(),
            Self::BlockImg => "block-img bench".to_owned(),
            Self::BlockCore => "block-core".to_owned(),
        }
    }

    /// The command that sends `requests`.
    pub(super) fn command(self, programs: &Programs, disk: &Disk, requests: &Requests) -> Command {
        let requests = &self.survived(requests);
        match self {
            Self::Limit(engine) => engine_command(&programs.asynchronous, engine, disk, requests),
            Self::Library(engine @ "imago-sync") => {
                engine_command(&programs.synchronous, engine, disk, requests)
            }
            Self::Library(engine) => engine_command(&programs.asynchronous, engine, disk, requests),
            Self::BlockCore => engine_command(&programs.asynchronous, "block-core", disk, requests),
            Self::Qemu(aio) => {
                let mut command = bench_command(Path::new("qemu-img"), requests);
                command.args(["-i", aio]).arg(&disk.qcow2);
                command
            }
            Self::BlockImg => {
                let mut command = bench_command(&programs.block_img, requests);
                command.arg(&disk.qcow2);
                command
            }
        }
    }

    /// As many of `requests` as the contender survives.
    fn survived(self, requests: &Requests) -> Requests {
        let count = match self {
            Self::Qemu(_) => requests.count.min(QEMU_COUNT_MAX),
            _ => requests.count,
        };
        Requests { count, ..requests.clone() }
    }

    /// Sends `requests` once, or as many of them as the contender survives.
    pub(super) fn sample(
        self,
        programs: &Programs,
        disk: &Disk,
        requests: &Requests,
    ) -> Result<Sample> {
        let requests = &self.survived(requests);
        let count = requests.count;
        let mut command = self.command(programs, disk, requests);
        if !matches!(self, Self::Qemu(_) | Self::BlockImg) {
            let value = run::json(&mut command)?;
            return Ok(Sample {
                count,
                seconds: number(&value, "seconds")?,
                cpu_seconds: number(&value, "cpu_seconds")?,
            });
        }
        let value = programs.measure(&command, &run::root())?;
        let one = Requests { count: 1, depth: 1, ..requests.clone() };
        let start = programs.measure(&self.command(programs, disk, &one), &run::root())?;
        Ok(Sample {
            count,
            seconds: run_completed(&value)?,
            cpu_seconds: (cpu(&value)? - cpu(&start)?).max(0.0),
        })
    }
}

/// A program of bench-peers; the raw loops read the raw file.
fn engine_command(program: &Path, engine: &str, disk: &Disk, requests: &Requests) -> Command {
    let image = match engine {
        "pread" | "uring" => &disk.raw,
        _ => &disk.qcow2,
    };
    let mut command = run::command(program);
    command.args(["read", "--engine", engine, "--image"]).arg(image);
    for (option, value) in [
        ("--disk", disk.len),
        ("--len", requests.len),
        ("--step", requests.step),
        ("--count", requests.count),
        ("--depth", requests.depth),
    ] {
        command.args([option, &value.to_string()]);
    }
    if requests.direct {
        command.arg("--direct");
    }
    command
}

/// `qemu-img bench` or `block-img bench`, whose options are the same.
fn bench_command(program: &Path, requests: &Requests) -> Command {
    let mut command = run::command(program);
    command.args(["bench", "-f", "qcow2"]);
    for (option, value) in [
        ("-c", requests.count),
        ("-d", requests.depth),
        ("-s", requests.len),
        ("-S", requests.step),
    ] {
        command.args([option, &value.to_string()]);
    }
    command.args(["-t", if requests.direct { "none" } else { "writeback" }]);
    command
}

/// The seconds of `Run completed in 1.234 seconds.`
fn run_completed(value: &Value) -> Result<f64> {
    let text = value["stdout"].as_str().unwrap_or_default();
    let after = text.split("Run completed in ").nth(1).unwrap_or_default();
    let seconds = after.split_whitespace().next().unwrap_or_default();
    seconds.parse().map_err(|_| Failure::Output {
        command: "bench".to_owned(),
        problem: format!("no `Run completed in`: {text}"),
    })
}

fn cpu(value: &Value) -> Result<f64> {
    Ok(number(value, "user_seconds")? + number(value, "system_seconds")?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_time_of_a_command_line_is_what_it_prints() {
        let printed = "Sending 1 read requests\nRun completed in 1.250 seconds.\n";
        assert_eq!(run_completed(&json!({ "stdout": printed })).unwrap(), 1.25);
        assert!(run_completed(&json!({ "stdout": "no" })).is_err());
    }

    #[test]
    fn linux_aio_takes_part_without_the_page_cache_only() {
        let requests = |direct| Requests { len: 1, step: 1, depth: 1, count: 1, direct };
        let native = Contender::Qemu("native");
        assert!(Contender::all(&requests(true)).contains(&native));
        assert!(!Contender::all(&requests(false)).contains(&native));
    }
}
