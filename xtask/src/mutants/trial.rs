//! Building and running tests in the copy, with a time limit, until they end or the user has enough.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::copy::Copy;
use super::list::{LIB, Test};
use crate::failure::{Failure, Result};
use crate::run;

/// How often a running program is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How long a build may take.
const BUILD_MAX: Duration = Duration::from_secs(1800);

/// Somebody pressed Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How the tests ended.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// This many passed, and none failed.
    Passed(usize),
    /// These failed; none, where the program itself came to a bad end.
    Failed(Vec<String>),
    /// They were still running when their time was over.
    Hung,
}

/// From now on, Ctrl-C ends what is running and then us.
pub(super) fn stop_on_signal() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::io("wait for Ctrl-C")(std::io::Error::other(error)))
}

/// Builds the program of these tests as the copy is now; what cargo says is in the log.
pub(super) fn build(copy: &Copy, test: &Test, log: &Path) -> Result<PathBuf> {
    let mut cargo = run::cargo();
    // What is built again for each mutation is built quickly: few of the tests are run.
    for package in built_again(&test.package) {
        cargo.args(["--config", &format!("profile.dev.package.{package}.opt-level=0")]);
    }
    cargo.args(["test", "--no-run", "--locked", "--package", &test.package]);
    let name = match test.target.as_str() {
        LIB => {
            cargo.arg("--lib");
            test.package.replace('-', "_")
        }
        target => {
            cargo.args(["--test", target]);
            target.to_owned()
        }
    };
    cargo.args(["--message-format", "json-render-diagnostics"]);
    cargo.current_dir(&copy.tree);
    cargo.env("CARGO_TARGET_DIR", &copy.build).env("CARGO_INCREMENTAL", "1");
    let messages = log.with_extension("json");
    cargo.stdout(create(&messages)?).stderr(create(log)?);
    let status = wait(&mut cargo, BUILD_MAX)?;
    let text = read(&messages);
    let _ = fs::remove_file(&messages);
    match status {
        Some(status) if status.success() => {}
        status => {
            return Err(Failure::Exit {
                command: run::line(&cargo),
                status: status.map_or("a timeout".to_owned(), |status| status.to_string()),
                stderr: read(log),
            });
        }
    }
    run::executable(&text, &name).ok_or_else(|| Failure::Output {
        command: run::line(&cargo),
        problem: format!("no executable {name}"),
    })
}

/// The packages that change with this one, as far as its tests need them.
fn built_again(package: &str) -> impl Iterator<Item = &str> {
    const TESTKIT: &str = "block-testkit";
    let below = ["block-core", "block-iscsi"].contains(&package);
    std::iter::once(package).chain(below.then_some(TESTKIT))
}

/// Runs the tests that `filters` name; what they print is added to the log.
pub(super) fn run(
    copy: &Copy,
    program: &Path,
    test: &Test,
    limit: Duration,
    log: &Path,
) -> Result<Verdict> {
    let mut tests = run::command(program);
    let directory = copy.tree.join(&test.package);
    tests.args(&test.filters).current_dir(&directory);
    tests.env("CARGO_MANIFEST_DIR", directory).env("TMPDIR", copy.temporary()?);
    tests.env_remove("UPDATE_GOLDEN");
    let file = create(log)?;
    let twin = file.try_clone().map_err(Failure::io(format!("write {}", log.display())))?;
    tests.stdout(file).stderr(twin);
    let status = wait(&mut tests, limit)?;
    let results = results(&read(log));
    Ok(match status {
        None => Verdict::Hung,
        Some(status) if status.success() => Verdict::Passed(results.passed),
        Some(_) => Verdict::Failed(results.failed),
    })
}

#[derive(PartialEq, Eq, Debug, Default)]
struct Results {
    passed: usize,
    failed: Vec<String>,
}

/// What the lines `test NAME ... ok` say.
fn results(output: &str) -> Results {
    let mut results = Results::default();
    for line in output.lines() {
        let Some((name, end)) = line.strip_prefix("test ").and_then(|t| t.rsplit_once(" ... "))
        else {
            continue;
        };
        match end {
            "FAILED" => results.failed.push(name.trim_end_matches(" - should panic").to_owned()),
            "ok" => results.passed += 1,
            _ => {}
        }
    }
    results
}

/// Runs a program and all that it starts, as a group of their own: so that they can be ended together.
/// `None`: its time was over.
fn wait(command: &mut Command, limit: Duration) -> Result<Option<ExitStatus>> {
    let what = || format!("run {}", command.get_program().to_string_lossy());
    let what = what();
    let mut child = command.process_group(0).spawn().map_err(Failure::io(what.clone()))?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(Failure::io(what.clone()))? {
            return Ok(Some(status));
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            end_group(&mut child);
            return Err(Failure::Interrupted);
        }
        if Instant::now() >= end {
            end_group(&mut child);
            return Ok(None);
        }
        std::thread::sleep(GLANCE);
    }
}

fn end_group(child: &mut Child) {
    // Both fail only if it has ended by itself.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(Failure::io(format!("create {}", path.display())))
}

/// What a program has printed, whatever the bytes.
fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_the_lines_of_tests() {
        let output = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored\n\
                      test result: FAILED. 1 passed\n";
        let expected = Results { passed: 1, failed: vec!["c".to_owned()] };
        assert_eq!(results(output), expected);
        assert_eq!(results("test a ..."), Results::default());
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let start = Instant::now();
        let mut command = run::command("sh");
        command.args(["-c", "sleep 60 & sleep 60"]);
        assert_eq!(wait(&mut command, Duration::from_millis(100)).unwrap(), None);
        assert!(start.elapsed() < Duration::from_secs(30));
        let status = wait(run::command("sh").args(["-c", "exit 3"]), Duration::from_secs(30));
        assert_eq!(status.unwrap().unwrap().code(), Some(3));
    }
}
