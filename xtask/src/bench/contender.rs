//! Who reads or writes an image, by which command, and how its time is known.
//!
//! Library programs and raw loops measure their own loop. Command lines print how long their loop
//! took; their CPU time is that of the process, less that of a run with a single request, which is
//! what starting the program, opening the image and closing it cost.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::disks::Disk;
use super::{Programs, number};
use crate::failure::{Failure, Result};
use crate::run;

/// Which requests are sent.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) direction: Direction,
    pub(super) len: u64,
    pub(super) step: u64,
    pub(super) depth: u64,
    pub(super) count: u64,
    pub(super) direct: bool,
    /// The byte that is written.
    pub(super) pattern: u8,
}

/// Whether data is read or written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
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

/// Who.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Contender {
    /// A loop over a raw file: what the system can give.
    Limit(Loop),
    /// `qemu-img bench` with this `-i`.
    Qemu(&'static str),
    /// Another library, by its engine's name.
    Library(&'static str),
    /// `block-img bench`.
    BlockImg,
    /// block-core as a library.
    BlockCore,
}

/// How a raw file is read or written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Loop {
    /// One system call after the other.
    Calls,
    /// io_uring.
    Uring,
}

impl Contender {
    /// Who writes the raw file that the image of ours is compared with.
    pub(super) const REFERENCE: Self = Self::Limit(Loop::Calls);

    /// Those that may be able to send `requests`.
    pub(super) fn all(requests: &Requests) -> Vec<Self> {
        let mut all = vec![
            Self::Limit(Loop::Calls),
            Self::Limit(Loop::Uring),
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
    pub(super) fn name(self, direction: Direction) -> String {
        match self {
            Self::Limit(Loop::Calls) => format!("raw p{direction}"),
            Self::Limit(Loop::Uring) => "raw uring".to_owned(),
            Self::Qemu(aio) => format!("qemu-img bench -i {aio}"),
            Self::Library(engine) => engine.to_owned(),
            Self::BlockImg => "block-img bench".to_owned(),
            Self::BlockCore => "block-core".to_owned(),
        }
    }

    /// As many of `requests` as the contender survives. Ours write bytes of their own, so that one
    /// can tell that it was they who wrote.
    pub(super) fn adapt(self, requests: &Requests) -> Requests {
        let (count, pattern) = match self {
            Self::Qemu(_) => (requests.count.min(QEMU_COUNT_MAX), requests.pattern),
            Self::BlockImg => (requests.count, 2),
            Self::BlockCore => (requests.count, 3),
            Self::Limit(_) | Self::Library(_) => (requests.count, requests.pattern),
        };
        Requests { count, pattern, ..requests.clone() }
    }

    /// The command that sends `requests`.
    pub(super) fn command(self, programs: &Programs, disk: &Disk, requests: &Requests) -> Command {
        let mut command = match self {
            Self::Limit(Loop::Calls) => {
                engine_command(&programs.asynchronous, "calls", disk, requests)
            }
            Self::Limit(Loop::Uring) => {
                engine_command(&programs.asynchronous, "uring", disk, requests)
            }
            Self::Library(engine @ "imago-sync") => {
                engine_command(&programs.synchronous, engine, disk, requests)
            }
            Self::Library(engine) => engine_command(&programs.asynchronous, engine, disk, requests),
            Self::BlockCore => engine_command(&programs.asynchronous, "block-core", disk, requests),
            Self::Qemu(aio) => {
                let mut command = bench_command(Path::new("qemu-img"), requests);
                command.args(["-i", aio]);
                command
            }
            Self::BlockImg => bench_command(&programs.block_img, requests),
        };
        command.arg(self.image(disk));
        command
    }

    /// The raw loops use the raw file.
    fn image(self, disk: &Disk) -> &PathBuf {
        match self {
            Self::Limit(_) => &disk.raw,
            _ => &disk.qcow2,
        }
    }

    /// Sends `requests` once, or as many of them as the contender survives. What they leave in an image
    /// stays there until the next sample.
    pub(super) fn sample(
        self,
        programs: &Programs,
        disk: &Disk,
        requests: &Requests,
    ) -> Result<Sample> {
        let requests = &self.adapt(requests);
        let count = requests.count;
        let prepared = |requests: &Requests| -> Result<Command> {
            disk.prepare(self.image(disk), requests.direction)?;
            Ok(self.command(programs, disk, requests))
        };
        if !matches!(self, Self::Qemu(_) | Self::BlockImg) {
            let value = run::json(&mut prepared(requests)?)?;
            return Ok(Sample {
                count,
                seconds: number(&value, "seconds")?,
                cpu_seconds: number(&value, "cpu_seconds")?,
            });
        }
        let one = Requests { count: 1, depth: 1, ..requests.clone() };
        let start = programs.measure(&prepared(&one)?, &run::root())?;
        let value = programs.measure(&prepared(requests)?, &run::root())?;
        Ok(Sample {
            count,
            seconds: run_completed(&value)?,
            cpu_seconds: (cpu(&value)? - cpu(&start)?).max(0.0),
        })
    }
}

/// A program of bench-peers, but for the image's name.
fn engine_command(program: &Path, engine: &str, disk: &Disk, requests: &Requests) -> Command {
    let mut command = run::command(program);
    command.args([requests.direction.to_string().as_str(), "--engine", engine]);
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
    if requests.direction == Direction::Write {
        command.args(["--pattern", &requests.pattern.to_string()]);
    }
    command
}

/// `qemu-img bench` or `block-img bench`, whose options are the same, but for the image's name.
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
    if requests.direction == Direction::Write {
        command.args(["-w", "--pattern", &requests.pattern.to_string()]);
    }
    command
}

/// The seconds of `Run completed in 1.234 seconds.`
pub(super) fn run_completed(value: &Value) -> Result<f64> {
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

    const READS: Requests = Requests {
        direction: Direction::Read,
        len: 1,
        step: 1,
        depth: 1,
        count: 30_000,
        direct: false,
        pattern: 1,
    };

    #[test]
    fn linux_aio_takes_part_without_the_page_cache_only() {
        let native = Contender::Qemu("native");
        assert!(Contender::all(&Requests { direct: true, ..READS }).contains(&native));
        assert!(!Contender::all(&READS).contains(&native));
    }

    #[test]
    fn ours_write_bytes_that_nobody_else_writes() {
        let writes = Requests { direction: Direction::Write, ..READS };
        let pattern = |contender: Contender| contender.adapt(&writes).pattern;
        let all = Contender::all(&writes);
        for ours in all.iter().filter(|contender| contender.is_ours()) {
            let same = all.iter().filter(|other| pattern(**other) == pattern(*ours));
            assert_eq!(same.count(), 1);
        }
    }

    #[test]
    fn writes_are_asked_for() {
        let line = |requests: &Requests| run::line(&bench_command(Path::new("x"), requests));
        assert_eq!(line(&READS), "x bench -f qcow2 -c 30000 -d 1 -s 1 -S 1 -t writeback");
        let writes = Requests { direction: Direction::Write, direct: true, ..READS };
        assert!(line(&writes).ends_with(" -t none -w --pattern 1"));
        assert_eq!(Contender::REFERENCE.name(Direction::Write), "raw pwrite");
    }
}
