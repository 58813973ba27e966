//! What signals do to the programs: a question for the progress is answered, what was ignored when a
//! program was started stays so, one that stops is heard in time, and the limit on the length of files is
//! an error like others.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use block_testkit::peer::with_default_signals;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const BLOCK_IO: &str = env!("CARGO_BIN_EXE_block-io");

/// Has a shell do `before`, and then be the program.
fn shell(dir: &TempDir, before: &str, program: &str, args: &[&str]) -> Command {
    let mut command = with_default_signals("sh");
    let script = format!("{before} exec \"$0\" \"$@\"");
    command.args(["-c", &script, program]).args(args).current_dir(dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn source() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("source"), vec![7; 8 << 20]).unwrap();
    dir
}

/// A conversion that has written something and would take days for the rest.
struct Slow {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Slow {
    fn start(dir: &TempDir, before: &str) -> Self {
        let args = ["convert", "-r", "1", "-f", "raw", "-O", "raw", "source", "target"];
        let mut child = shell(dir, before, BLOCK_IMG, &args).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        wait_for_data(&dir.path().join("target"));
        Self { child, stderr }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next line that it says.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    fn tells_its_progress(&mut self) {
        self.send(Signal::USR1);
        let line = self.says();
        assert!(is_progress(&line), "{line:?}");
    }

    fn status(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // It has ended, or a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_data(path: &Path) {
    let start = Instant::now();
    while !std::fs::read(path).is_ok_and(|bytes| bytes.first() == Some(&7)) {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_progress(line: &str) -> bool {
    let number = line.strip_prefix("    (").and_then(|rest| rest.strip_suffix("/100%)\n"));
    number.is_some_and(|number| number.parse::<f64>().is_ok())
}

#[test]
fn a_question_for_the_progress_is_answered_and_the_job_goes_on() {
    let dir = source();
    let mut slow = Slow::start(&dir, "");
    slow.tells_its_progress();
    slow.tells_its_progress();
    slow.send(Signal::TERM);
    assert_eq!(slow.status(), Some(143));
}

#[test]
fn a_hangup_that_was_ignored_stays_so() {
    let dir = source();
    let mut slow = Slow::start(&dir, "trap '' HUP;");
    slow.send(Signal::HUP);
    slow.tells_its_progress();
    slow.send(Signal::TERM);
    assert_eq!(slow.status(), Some(143));
}

#[test]
fn who_has_no_progress_is_not_killed_for_it() {
    let dir = source();
    let args = ["-f", "raw", "source", "-c", "sleep 60000"];
    let mut child = shell(&dir, "", BLOCK_IO, &args).spawn().unwrap();
    let signalled = is_caught(&child, 10);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert!(signalled);
}

/// One signal is enough, also where nothing comes to an end.
#[test]
fn storage_that_does_not_answer_holds_nobody_up() {
    let dir = TempDir::new().unwrap();
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("iscsi://{}/iqn.2026-01.org.example:disk/0", silent.local_addr().unwrap());
    let args = ["convert", "-f", "raw", "-O", "raw", &url, "target"];
    let mut child = shell(&dir, "", BLOCK_IMG, &args).spawn().unwrap();
    let (_connection, _) = silent.accept().unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    // Not only when the login has taken too long.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Whether a program comes to have a handler for a signal.
fn is_caught(child: &Child, number: u32) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(set.trim(), 16).unwrap() >> (number - 1) & 1 == 1 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn the_limit_on_the_length_of_files_is_an_error() {
    let dir = source();
    let failed = |output: Output| {
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_eq!(output.status.code(), Some(1), "{:?} {said:?}", output.status);
        assert!(said.concat().contains("File too large"), "{said:?}");
    };
    let limit = "ulimit -f 2048;";
    let args = ["convert", "-f", "raw", "-O", "qcow2", "source", "target"];
    failed(shell(&dir, limit, BLOCK_IMG, &args).output().unwrap());
    for args in [
        &["create", "-f", "raw", "image", "8M"][..],
        &["create", "-f", "qcow2", "-o", "data_file=data", "image", "8M"],
        &["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "image", "8M"],
    ] {
        failed(shell(&dir, limit, BLOCK_IMG, args).output().unwrap());
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left = names.filter(|name| !matches!(name.to_str(), Some("source" | "target")));
        assert_eq!(left.count(), 0, "{args:?}");
    }
    let args = ["-f", "raw", "source", "-c", "write 7M 1M"];
    failed(shell(&dir, limit, BLOCK_IO, &args).output().unwrap());
}
