//! Measurements beside the peers, interleaved: round robin over the contenders, another one first in
//! every round, medians at the end.
//!
//! Only ratios within one run mean anything: the machine, its load and its disk differ from run to
//! run. What each contender runs is printed with its result.

mod against;
mod codecs;
mod compressed;
mod contender;
mod conversions;
mod disks;
mod iscsi;
mod layer;
mod report;
mod requests;
mod rows;
mod slow_truncate;
mod sources;
mod vmdk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};
use serde_json::Value;

use self::contender::Direction;
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Small disks and few requests: shows that it runs, its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Rounds; the medians are over these.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "")]
    row: String,
    /// Put the tables into BENCHMARKS.md instead of printing them.
    #[arg(long)]
    write: bool,
    /// Where the disks are; needs 12 GiB (with --quick, 2) on a disk that knows O_DIRECT.
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// A table.
#[derive(Copy, Clone, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    Reads,
    Writes,
    Conversions,
    Compressed,
    Codecs,
    Vmdk,
    Iscsi,
    Layer,
}

/// How much is measured.
#[derive(Copy, Clone, Debug)]
struct Scale {
    quick: bool,
    rounds: usize,
}

impl Scale {
    /// One number for the real run, another for a quick one.
    fn choose<T>(self, real: T, quick: T) -> T {
        if self.quick { quick } else { real }
    }
}

/// The programs that are measured, or measure.
struct Programs {
    block_img: PathBuf,
    /// `bench-peers` with the asynchronous libraries.
    asynchronous: PathBuf,
    /// `bench-peers` with imago built without `async`.
    synchronous: PathBuf,
}

/// Measures, and writes the tables.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::peers(&[setup::QEMU, setup::E2FSPROGS])?;
    let programs = build()?;
    let scratch = match &arguments.directory {
        Some(directory) => Scratch::inside(directory, "bench")?,
        None => Scratch::new("bench")?,
    };
    let scale = Scale { quick: arguments.quick, rounds: arguments.rounds.max(1) };
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut text = report::preface(scale)?;
    if wanted(Part::Layer) {
        text += &layer::measure(&programs, scale)?;
    }
    for (part, direction) in [(Part::Reads, Direction::Read), (Part::Writes, Direction::Write)] {
        if wanted(part) {
            text += &requests::measure(&programs, &scratch, scale, direction, &arguments.row)?;
        }
    }
    if wanted(Part::Conversions) {
        text +=
            &conversions::measure(&programs, &scratch, scale, &conversions::QCOW2, &arguments.row)?;
    }
    if wanted(Part::Compressed) {
        text += &compressed::measure(&programs, &scratch, scale, &arguments.row)?;
    }
    if wanted(Part::Vmdk) {
        text += &vmdk::measure(&programs, &scratch, scale, &arguments.row)?;
    }
    if wanted(Part::Iscsi) {
        text += &iscsi::measure(&programs, scale, &arguments.row)?;
    }
    if wanted(Part::Codecs) {
        text += &codecs::measure(&programs, &scratch, scale)?;
    }
    if !arguments.write {
        println!("{text}");
        return Ok(());
    }
    let path = run::root().join("BENCHMARKS.md");
    let what = || format!("rewrite {}", path.display());
    let old = fs::read_to_string(&path).map_err(Failure::io(what()))?;
    let new = report::between_markers(&old, &text).ok_or_else(|| Failure::Output {
        command: what(),
        problem: format!("no line `{}` before `{}`", report::BEGIN, report::END),
    })?;
    fs::write(&path, new).map_err(Failure::io(what()))
}

/// Builds everything for release: block-img, and bench-peers in both ways.
fn build() -> Result<Programs> {
    Ok(Programs {
        block_img: run::binary(run::RELEASE, "block-tools", "block-img")?,
        asynchronous: bench_peers("target", "async-peers")?,
        synchronous: synchronous_peers()?,
    })
}

/// Builds bench-peers with what is not asynchronous.
pub(crate) fn synchronous_peers() -> Result<PathBuf> {
    bench_peers("target/sync", "sync-peers")
}

fn bench_peers(target: &str, features: &str) -> Result<PathBuf> {
    let peers = run::root().join("bench-peers");
    let mut build = run::cargo();
    build.args(["build", "--release", "--no-default-features"]);
    build.args(["--features", features, "--target-dir", target]);
    run::succeed(build.current_dir(&peers))?;
    Ok(peers.join(target).join("release").join("bench-peers"))
}

impl Programs {
    /// A subcommand of `bench-peers`.
    fn bench_peers(&self, arguments: &[&str]) -> Command {
        let mut command = run::command(&self.asynchronous);
        command.args(arguments);
        command
    }

    /// Runs `measured` under the stopwatch.
    fn measure(&self, measured: &Command, directory: &Path) -> Result<Value> {
        let mut command = self.bench_peers(&["measure", "--"]);
        command.current_dir(directory);
        command.arg(measured.get_program()).args(measured.get_args());
        run::json(&mut command)
    }
}

/// A number that must be there.
fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().ok_or_else(|| Failure::Output {
        command: "bench-peers".to_owned(),
        problem: format!("no number `{key}`: {value}"),
    })
}

/// The middle one, or the mean of the two in the middle; zero of nothing.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle)) {
        (_, None) => 0.0,
        (1, Some(value)) => *value,
        (_, Some(value)) => (values[middle - 1] + value) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
