//! The tests of the workspace, several programs at a time.
//!
//! `cargo test` runs one program after the other, and many of ours end with one long test beside which the other
//! processors have nothing to do.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crate::failure::{Failure, Result};
use crate::run;

/// What malloc keeps of the memory that was freed, in bytes: images are made in memory by the thousand.
const KEPT_BYTES: u64 = 32 << 20;

/// Builds all tests and runs them, and then those of the documentation.
pub(crate) fn run() -> Result<()> {
    let mut build = cargo_test();
    let mut programs = programs(&run::messages(build.arg("--no-run"))?);
    programs.reverse(); // so that the last one is the next
    let count = programs.len();
    if count == 0 {
        let problem = "no program of tests".to_owned();
        return Err(Failure::Output { command: run::line(&build), problem });
    }
    let waiting = Mutex::new(programs);
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(|| work(&waiting))).collect();
        // One that panicked has said why.
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or(Err(Failure::Faults { check: "test", count: 1 }))
        });
        ended.collect::<Result<Vec<()>>>()
    })?;
    println!("{count} programs of tests passed");
    run::succeed(cargo_test().arg("--doc"))
}

fn cargo_test() -> Command {
    let mut test = run::cargo();
    test.args(["test", "--workspace", "--locked"]);
    with_memory(&mut test);
    test
}

/// Has malloc keep what it has.
fn with_memory(command: &mut Command) {
    for variable in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"] {
        command.env(variable, KEPT_BYTES.to_string());
    }
}

/// A program of tests.
struct Program {
    /// The directory of its crate, where it runs.
    home: PathBuf,
    path: PathBuf,
    /// The crate and what of it is tested.
    name: String,
}

/// The programs of tests that cargo says it has built, in its order.
fn programs(messages: &str) -> Vec<Program> {
    let tests = run::executables(messages).filter(|message| message["profile"]["test"] == true);
    let programs = tests.filter_map(|message| {
        let home = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_path_buf();
        let path = PathBuf::from(message["executable"].as_str()?);
        let krate = home.file_name()?.to_string_lossy().into_owned();
        let name = format!("{krate} {}", message["target"]["name"].as_str()?);
        Some(Program { home, path, name })
    });
    programs.collect()
}

/// Runs one program after the other, until there are no more or one fails.
fn work(waiting: &Mutex<Vec<Program>>) -> Result<()> {
    let next = || waiting.lock().ok()?.pop();
    while let Some(program) = next() {
        let start = Instant::now();
        let mut command = run::command(&program.path);
        command.current_dir(&program.home).env("CARGO_MANIFEST_DIR", &program.home);
        with_memory(&mut command);
        let output = run::output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let seconds = start.elapsed().as_secs_f64();
        println!("{:40} {seconds:>6.1} s  {}", program.name, result_of(&said));
        if !output.status.success() {
            waiting.lock().map(|mut waiting| waiting.clear()).unwrap_or_default();
            println!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
            return Err(Failure::Faults { check: "test", count: 1 });
        }
    }
    Ok(())
}

/// How many tests passed and failed, as the program says it.
fn result_of(said: &str) -> &str {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    line.and_then(|line| line.split("; 0 measured").next()).unwrap_or("ended without a result")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_told_from_others() {
        let messages = r#"
{"manifest_path":"/w/a/Cargo.toml","target":{"name":"x"},"profile":{"test":true},"executable":"/t/x-1"}
{"manifest_path":"/w/a/Cargo.toml","target":{"name":"x"},"profile":{"test":false},"executable":"/t/x"}
{"manifest_path":"/w/b/Cargo.toml","target":{"name":"y"},"profile":{"test":true},"executable":null}"#;
        let found = programs(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "a x");
        assert_eq!(found[0].home, PathBuf::from("/w/a"));
        assert_eq!(found[0].path, PathBuf::from("/t/x-1"));
    }

    #[test]
    fn the_result_is_the_last_that_was_said() {
        let said =
            "test result: a\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; x\n";
        assert_eq!(result_of(said), "ok. 3 passed; 0 failed; 1 ignored");
        assert_eq!(result_of("nothing"), "ended without a result");
    }

    #[test]
    fn a_program_that_fails_ends_all() {
        let program = |script: &str| Program {
            home: std::env::temp_dir(),
            path: PathBuf::from(script),
            name: String::new(),
        };
        let waiting = Mutex::new(vec![program("true"), program("false"), program("true")]);
        assert!(work(&waiting).is_err());
        assert!(waiting.lock().unwrap().is_empty());
    }
}
