//! QEMU's shell tests, run from outside: its source tree is where the user says, its scripts call our
//! programs by the names that they know, and nothing of it is kept.
//!
//! Invariants: a script runs in directories of its own and is killed with all its children when its
//! time is up; what is found is held against the committed list (`expected.rs`), and a surprise is a
//! failure in both directions.

mod compare;
mod configuration;
mod expected;
mod script;
mod stand_in;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use self::configuration::{CONFIGURATIONS, Configuration};
use self::expected::{Expected, Verdict};
use self::script::{Found, Suite};
use super::{Arguments, chosen};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// What one script came to under one configuration.
struct Run {
    configuration: &'static Configuration,
    script: String,
    found: Found,
    seconds: f64,
}

/// Tests that run at a time unless told otherwise.
const JOBS: usize = 2;

/// Runs the suite, prints a table, and fails on surprises.
pub(crate) fn run(source: &Path, arguments: &Arguments) -> Result<()> {
    let scratch = Scratch::new("qemu-iotests")?;
    let programs = scratch.file("bin");
    if arguments.baseline {
        setup::peers(&[setup::QEMU])?;
        stand_in::installed(&programs)?;
    } else {
        let build = |name| run::binary(&arguments.profile, "block-tools", name);
        stand_in::ours(&programs, &build("block-img")?, &build("block-io")?)?;
    }
    let source = std::path::absolute(source).map_err(Failure::io("find the source"))?;
    let suite = Suite::find(&source, &programs, scratch.path())?;
    let path = expected_path();
    let mut expected = Expected::read(&path)?;

    let (mut all, mut surprises) = (Vec::new(), 0);
    let formats = arguments.formats();
    for configuration in CONFIGURATIONS.iter().filter(|one| chosen(&formats, one.name)) {
        let work = work(arguments, configuration, &suite, &expected);
        let runs = run_all(arguments, &suite, &work)?;
        surprises += runs.iter().filter(|run| !report(arguments, &expected, run)).count();
        if arguments.write_expected {
            for run in &runs {
                expected.set(configuration.name, &run.script, &run.found, arguments.baseline);
            }
            expected.write(&path)?;
        }
        all.extend(runs);
    }
    table(&all);
    if arguments.keep {
        println!("kept: {}", scratch.keep().display());
    }
    if arguments.write_expected {
        println!("written: {}", path.display());
        return Ok(());
    }
    match surprises {
        0 => Ok(()),
        count => Err(Failure::Faults { check: "iotests: surprises", count }),
    }
}

fn expected_path() -> PathBuf {
    run::root().join("xtask").join("iotests").join("qemu.txt")
}

/// The scripts to run under a configuration: what the list does not skip.
fn work(
    arguments: &Arguments,
    configuration: &'static Configuration,
    suite: &Suite,
    expected: &Expected,
) -> Vec<(&'static Configuration, String)> {
    let wanted = |script: &str| {
        let skipped = matches!(expected.get(configuration.name, script), Some(Verdict::Skip(_)));
        let filter = arguments.filter.as_deref();
        (arguments.everything || !skipped)
            && filter.is_none_or(|filter| filter.split(',').any(|part| script.contains(part)))
    };
    let scripts = suite.scripts().iter().filter(|script| wanted(script));
    scripts.map(|script| (configuration, script.clone())).collect()
}

/// Runs them, as many at a time as were asked for.
fn run_all(
    arguments: &Arguments,
    suite: &Suite,
    work: &[(&'static Configuration, String)],
) -> Result<Vec<Run>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.jobs.unwrap_or(JOBS).max(1))
            .map(|_| {
                scope.spawn(|| {
                    while let Some((configuration, script)) =
                        work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let start = Instant::now();
                        let found = suite.run(configuration, script)?;
                        let seconds = start.elapsed().as_secs_f64();
                        let script = script.clone();
                        let run = Run { configuration, script, found, seconds };
                        let mut done = done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        done.push(run);
                        progress(done.len(), work.len());
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut runs = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    runs.sort_by(|a, b| (a.configuration.name, &a.script).cmp(&(b.configuration.name, &b.script)));
    Ok(runs)
}

/// How far the run is, on a terminal.
fn progress(done: usize, all: usize) {
    use std::io::{IsTerminal, Write, stderr};
    if stderr().is_terminal() {
        let end = if done == all { "\n" } else { "" };
        let _ = write!(stderr(), "\r{done} of {all} tests{end}");
    }
}

/// Says what is not as the list says; whether all is.
fn report(arguments: &Arguments, expected: &Expected, run: &Run) -> bool {
    let name = format!("{} {}", run.configuration.name, run.script);
    let configuration = run.configuration.name;
    let fits = arguments.baseline || expected.fits(configuration, &run.script, &run.found);
    if fits && arguments.filter.is_none() {
        return true;
    }
    let listed = expected.get(configuration, &run.script);
    let listed = listed.map_or("not listed".to_owned(), |verdict| format!("listed as {verdict}"));
    println!("{name}: {} ({listed}, {:.1} s)", run.found.word(), run.seconds);
    for line in run.found.details() {
        println!("    {line}");
    }
    fits
}

/// How many scripts came to what, a line for each configuration.
fn table(runs: &[Run]) {
    let mut lines: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for run in runs {
        let counts = lines.entry(run.configuration.name).or_default();
        let column = match &run.found {
            Found::Pass => 0,
            Found::Wording(_) => 1,
            Found::Fail(_) => 2,
            Found::NotRun(_) => 3,
        };
        if let Some(count) = counts.get_mut(column) {
            *count += 1;
        }
    }
    println!("{:<28} {:>6} {:>8} {:>6} {:>8}", "format", "pass", "wording", "fail", "not run");
    for (name, [pass, wording, fail, not_run]) in lines {
        println!("{name:<28} {pass:>6} {wording:>8} {fail:>6} {not_run:>8}");
    }
}

/// Reads a file of the suite as text, whatever bytes it holds.
fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Failure::io(format!("read {}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
