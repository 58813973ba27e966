//! Fuzzing: every target of `block-testkit/fuzz` in turn, or one of them.
//!
//! There is one program for all targets, so that nightly compiles it once; which target it is, and where inputs to
//! start from go, stands in its environment. What a run finds is left in `target/fuzz/artifacts`, and the commands
//! that play it again and make it small are printed.

mod program;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::run;
pub(crate) use program::lint;
use program::{Program, Run, missing};

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The target; all of them, one after the other, where none is named.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Seconds are those that a processor has worked on the target.
    #[arg(long)]
    cpu: bool,
    /// Shows the targets.
    #[arg(long)]
    list: bool,
    /// Plays an input of the target, and nothing else.
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
    /// Makes an input small by which the target fails.
    #[arg(long, value_name = "FILE", requires = "target")]
    minimise: Option<PathBuf>,
    /// Writes the inputs to start from to `target/fuzz/corpus`, and nothing else.
    #[arg(long)]
    corpus: bool,
}

/// A target as the list has it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    name: String,
    about: String,
}

/// What became of one target.
struct Report {
    name: String,
    run: Run,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let all = targets()?;
    if arguments.list {
        let width = all.iter().map(|target| target.name.len()).max().unwrap_or(0);
        all.iter().for_each(|target| println!("{:width$}  {}", target.name, target.about));
        return Ok(());
    }
    let chosen: Vec<_> = match &arguments.target {
        None => all,
        Some(name) => all.into_iter().filter(|target| target.name == *name).collect(),
    };
    if chosen.is_empty() {
        let hint = "cargo xtask fuzz --list shows those that there are".to_owned();
        return Err(Failure::Missing { program: "this target", hint });
    }
    if let Some(missing) = missing() {
        return Err(missing);
    }
    let program = Program::build()?;
    let home = home();
    if let (Some(file), Some(target)) = (&arguments.replay, chosen.first()) {
        return program.replay(&target.name, file);
    }
    if let (Some(file), Some(target)) = (&arguments.minimise, chosen.first()) {
        return program.minimise(&target.name, file);
    }
    if arguments.corpus {
        for target in &chosen {
            let corpus = directory(&home.join("corpus").join(&target.name))?;
            program.write_seeds(&target.name, &corpus)?;
        }
        println!("inputs to start from are in {}", home.join("corpus").display());
        return Ok(());
    }
    let time = Duration::from_secs(arguments.time);
    fuzz(&program, &chosen, &home.join("corpus"), time, arguments.cpu)
}

fn fuzz(
    program: &Program,
    targets: &[Target],
    corpora: &Path,
    time: Duration,
    cpu: bool,
) -> Result<()> {
    let artifacts = home().join("artifacts");
    let mut reports = Vec::new();
    for target in targets {
        let corpus = directory(&corpora.join(&target.name))?;
        let artifacts = directory(&artifacts.join(&target.name))?;
        let max_len = program.write_seeds(&target.name, &corpus)?;
        let before = files(&artifacts)?;
        let run = program.fuzz(&target.name, &corpus, &artifacts, max_len, time, cpu)?;
        println!("{}", line(&target.name, &run));
        if run.failed {
            println!("{}", run.tail);
            for file in files(&artifacts)?.difference(&before) {
                tell(&target.name, file);
            }
        }
        reports.push(Report { name: target.name.clone(), run });
    }
    let failed: Vec<_> = reports.iter().filter(|report| report.run.failed).collect();
    println!("{} targets, {} failed", reports.len(), failed.len());
    for report in &failed {
        println!("  {}", report.name);
    }
    match failed.len() {
        0 => Ok(()),
        count => Err(Failure::Faults { check: "fuzz", count }),
    }
}

fn line(name: &str, run: &Run) -> String {
    let Run { inputs, edges, cpu, failed, .. } = run;
    let end = if *failed { "FAILED" } else { "nothing found" };
    format!("{name:20} {inputs:>10} inputs, {edges:>6} edges, {:>5} s of CPU: {end}", cpu.as_secs())
}

/// How to go on with an input that fails.
fn tell(name: &str, file: &Path) {
    let file = file.strip_prefix(run::root()).unwrap_or(file).display();
    println!("found: {file}");
    println!("  again: cargo xtask fuzz {name} --replay {file}");
    println!("  small: cargo xtask fuzz {name} --minimise {file}");
    println!("  for the ordinary tests: block-testkit/fuzz/regressions/{name}/");
}

/// The targets that the package lists; its test of each crate holds the list to what there is.
fn targets() -> Result<Vec<Target>> {
    let path = package().join("targets.txt");
    let text =
        fs::read_to_string(&path).map_err(Failure::io(format!("read {}", path.display())))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Target> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(name, about)| Target { name: name.to_owned(), about: about.trim().to_owned() })
        .collect()
}

/// The package with the targets.
fn package() -> PathBuf {
    run::root().join("block-testkit/fuzz")
}

/// Where everything is that runs leave.
fn home() -> PathBuf {
    run::root().join("target/fuzz")
}

fn directory(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).map_err(Failure::io(format!("create {}", path.display())))?;
    Ok(path.to_path_buf())
}

fn files(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let what = || format!("read {}", directory.display());
    let entries = fs::read_dir(directory).map_err(Failure::io(what()))?;
    entries.map(|entry| Ok(entry.map_err(Failure::io(what()))?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_names_and_what_they_hold() {
        let parsed = parse("a-b   one thing\nc two\n\n");
        let names: Vec<_> = parsed.iter().map(|t| (t.name.as_str(), t.about.as_str())).collect();
        assert_eq!(names, [("a-b", "one thing"), ("c", "two")]);
    }

    #[test]
    fn every_target_that_is_listed_is_of_a_crate() {
        let targets = targets().unwrap();
        assert!(targets.len() > 30);
        for target in targets {
            let (krate, _) = target.name.split_once('-').unwrap();
            let tests = run::root().join(format!("block-{krate}/tests/fuzz/main.rs"));
            assert!(tests.exists(), "{}", target.name);
            assert!(!target.about.is_empty());
        }
    }
}
