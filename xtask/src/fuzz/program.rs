//! The program that libFuzzer is linked to: how it is built and called, and what it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{home, package};
use crate::failure::{Failure, Result};
use crate::run;

/// Ends a run of one input, in seconds.
const TIMEOUT_SECS: u32 = 60;
/// Most memory of the program, in MiB. What one piece may have, the program knows itself.
const MEMORY_MIB: u32 = 4096;
/// Lines of its output that are shown where it fails.
const TAIL_LINES: usize = 60;

/// What is needed and not there, and how to get it.
pub(super) fn missing() -> Option<Failure> {
    let works = |arguments: &[&str]| {
        run::output(run::nightly().args(arguments)).is_ok_and(|output| output.status.success())
    };
    if !works(&["--version"]) {
        let hint = "rustup toolchain install nightly".to_owned();
        return Some(Failure::Missing { program: "the nightly toolchain", hint });
    }
    if !works(&["fuzz", "--version"]) {
        let hint = "cargo install cargo-fuzz --locked".to_owned();
        return Some(Failure::Missing { program: "cargo-fuzz", hint });
    }
    None
}

/// The program, built.
pub(super) struct Program {
    path: PathBuf,
}

/// What came of a run.
pub(super) struct Run {
    /// How many inputs were played.
    pub(super) inputs: u64,
    /// How many places of the code they reached.
    pub(super) edges: u64,
    /// Time of the processor.
    pub(super) cpu: Duration,
    /// Whether it found something.
    pub(super) failed: bool,
    /// The end of what it said.
    pub(super) tail: String,
}

impl Program {
    /// Compiles it, with debug assertions and overflow checks. There is no sanitizer: the code that is not safe runs
    /// under miri, and with the address sanitizer games are played ten times more slowly.
    pub(super) fn build() -> Result<Self> {
        run::succeed(&mut cargo_fuzz("build"))?;
        let text = run::stdout(run::command("rustc").arg("-vV"))?;
        let host = host_of(&text).unwrap_or_default();
        Ok(Self { path: home().join(host).join("release").join("all") })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = run::command(&self.path);
        command.env("BLOCK_FUZZ_TARGET", target);
        command.args([format!("-timeout={TIMEOUT_SECS}"), format!("-rss_limit_mb={MEMORY_MIB}")]);
        command
    }

    /// Writes the inputs to start from; most bytes of an input.
    pub(super) fn write_seeds(&self, target: &str, directory: &Path) -> Result<u64> {
        let mut command = self.command(target);
        command.env("BLOCK_FUZZ_SEEDS", directory);
        let text = run::stdout(&mut command)?;
        text.trim().parse().map_err(|_| Failure::Output {
            command: run::line(&command),
            problem: format!("'{}', which is no length", text.trim()),
        })
    }

    /// Runs until the time is up, or until something is found.
    pub(super) fn fuzz(
        &self,
        target: &str,
        corpus: &Path,
        artifacts: &Path,
        max_len: u64,
        time: Duration,
        cpu: bool,
    ) -> Result<Run> {
        let mut all =
            Run { inputs: 0, edges: 0, cpu: Duration::ZERO, failed: false, tail: String::new() };
        let mut left = time;
        while !left.is_zero() && !all.failed {
            let mut command = self.command(target);
            command.arg(format!("-max_total_time={}", left.as_secs().max(1)));
            command.arg(format!("-max_len={max_len}"));
            command.arg(format!("-artifact_prefix={}/", artifacts.display()));
            command.arg("-print_final_stats=1").arg(corpus);
            let regressions = package().join("regressions").join(target);
            if regressions.is_dir() {
                command.arg(regressions);
            }
            let log = home().join(format!("{target}.log"));
            let used = self.logged(command, &log, &mut all)?;
            all.cpu += used;
            left = if cpu { left.saturating_sub(used) } else { Duration::ZERO };
        }
        Ok(all)
    }

    /// Runs a command whose output goes to a file, and adds what it did; the processor's time that it took.
    fn logged(&self, mut command: Command, log: &Path, all: &mut Run) -> Result<Duration> {
        let what = || format!("write {}", log.display());
        let file = File::create(log).map_err(Failure::io(what()))?;
        let again = file.try_clone().map_err(Failure::io(what()))?;
        command.stdout(file).stderr(again);
        let before = children_cpu();
        let status = command.status().map_err(|source| Failure::Start {
            program: self.path.display().to_string(),
            source,
        })?;
        let text = fs::read(log).map_err(Failure::io(format!("read {}", log.display())))?;
        let text = String::from_utf8_lossy(&text);
        all.inputs += number_after(&text, "stat::number_of_executed_units:").unwrap_or(0);
        all.edges = number_after(&text, " cov: ").unwrap_or(all.edges);
        all.failed = !status.success();
        let lines: Vec<_> = text.lines().collect();
        all.tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        Ok(children_cpu().saturating_sub(before))
    }

    /// Plays one input.
    pub(super) fn replay(&self, target: &str, file: &Path) -> Result<()> {
        run::succeed(self.command(target).arg(file))
    }

    /// Makes an input small; the smaller ones are beside it.
    pub(super) fn minimise(&self, target: &str, file: &Path) -> Result<()> {
        let file = file.canonicalize().unwrap_or_else(|_| file.to_path_buf());
        let mut command = cargo_fuzz("tmin");
        command.env("BLOCK_FUZZ_TARGET", target);
        run::succeed(command.arg(file).args(["--runs", "2000"]))
    }
}

/// Lints the program with the compiler of the workspace. Nothing is linked, so it needs neither nightly nor C++.
pub(crate) fn lint() -> Result<()> {
    let mut lint = run::cargo();
    lint.args(["clippy", "--locked", "--manifest-path"]).arg(package().join("Cargo.toml"));
    // The name of a library is all that libFuzzer's crate then asks for.
    lint.env("CUSTOM_LIBFUZZER_PATH", home().join("libfuzzer.a"));
    lint.arg("--target-dir").arg(run::root().join("target"));
    run::succeed(lint.args(["--", "-D", "warnings"]))
}

/// A command of cargo-fuzz on the one program.
fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = run::nightly();
    cargo.args(["fuzz", command, "--sanitizer", "none", "--fuzz-dir"]).arg(package());
    cargo.arg("--target-dir").arg(home()).arg("all");
    cargo
}

/// The line `host: ` of what rustc says of itself.
fn host_of(text: &str) -> Option<String> {
    Some(text.lines().find_map(|line| line.strip_prefix("host: "))?.trim().to_owned())
}

/// The last number that stands after `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(name)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// What the processor has worked for the programs that this one has waited for.
fn children_cpu() -> Duration {
    // Fields 16 and 17, counted behind the name, which is in parentheses; in hundredths of seconds.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = |number: usize| fields.split(' ').nth(number).and_then(|n| n.parse::<u64>().ok());
    Duration::from_millis(10 * (ticks(13).unwrap_or(0) + ticks(14).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_what_libfuzzer_says() {
        let text = "#2\tINITED cov: 10 ft: 11\n#9\tDONE   cov: 12 ft: 13 corp: 1/1b\n\
                    stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     450\n";
        assert_eq!(number_after(text, "stat::number_of_executed_units:"), Some(900));
        assert_eq!(number_after(text, " cov: "), Some(12));
        assert_eq!(number_after(text, "stat::peak"), None);
        assert_eq!(host_of("rustc 1\nhost: a-b-c\nrelease: 1\n").as_deref(), Some("a-b-c"));
    }

    #[test]
    fn the_time_of_children_is_counted() {
        let before = children_cpu();
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        run::succeed(run::command("sh").args(["-c", script])).unwrap();
        assert!(children_cpu() > before);
    }
}
