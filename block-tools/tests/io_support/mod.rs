//! What the tests of `block-io` beside `qemu-io` share: running both on copies of the same images.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// What both programs did with a script.
pub struct Ran {
    pub lines: Vec<String>,
    pub status: Option<i32>,
    pub stderr: String,
}

pub fn tool(variable: &str, name: &str) -> Command {
    let path = std::env::var(variable).unwrap_or_else(|_| name.to_owned());
    Command::new(path)
}

pub fn missing(name: &str, error: &std::io::Error) -> ! {
    panic!("{name} does not run ({error}); install it: apt-get install qemu-utils")
}

/// Runs a program in `dir` with `input` on its standard input.
pub fn feed(mut command: Command, dir: &Path, args: &[&str], input: &str, name: &str) -> Output {
    command.args(args).current_dir(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| missing(name, &error));
    // A program that ends early leaves the rest unread.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

pub fn ran(output: &Output) -> Ran {
    let text = String::from_utf8_lossy(&output.stdout).replace("qemu-io> ", "block-io> ");
    Ran {
        lines: text.lines().filter(|line| !is_usage(line)).map(without_timing).collect(),
        status: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The help is each program's own.
pub fn is_usage(line: &str) -> bool {
    line.contains(" -- ") && !line.contains("Parsing error")
}

/// Replaces what depends on the clock in the two kinds of figures.
pub fn without_timing(line: &str) -> String {
    if let Some((head, _)) = line.split_once(" ops; ") {
        assert!(line.ends_with(" ops/sec)"), "{line}");
        return format!("{head} ops; TIME");
    }
    let fields: Vec<_> = line.split(',').collect();
    match fields.as_slice() {
        [bytes, "1", clock, rate, ops] if clock.split(':').count() == 3 => {
            assert!(rate.parse::<f64>().is_ok() && ops.parse::<f64>().is_ok(), "{line}");
            format!("{bytes},1,CLOCK,RATE,OPS")
        }
        _ => line.to_owned(),
    }
}

/// Runs both programs on `input`, each in its own copy of what `prepare` makes.
pub fn both(prepare: impl Fn(&Path), args: &[&str], input: &str) -> (Ran, Ran) {
    let run = |command: Command, name: &str| {
        let dir = TempDir::new().unwrap();
        prepare(dir.path());
        ran(&feed(command, dir.path(), args, input, name))
    };
    let theirs = run(tool("QEMU_IO", "qemu-io"), "qemu-io");
    let ours = run(Command::new(env!("CARGO_BIN_EXE_block-io")), "block-io");
    (theirs, ours)
}

pub fn check(prepare: impl Fn(&Path), args: &[&str], input: &str) {
    let (theirs, ours) = both(prepare, args, input);
    let shown =
        format!("{args:?} {input:?}\ntheir errors: {}\nour errors: {}", theirs.stderr, ours.stderr);
    assert_eq!(ours.lines, theirs.lines, "standard output of {shown}");
    assert_eq!(ours.status, theirs.status, "exit status of {shown}");
}

/// [`check`] for scripts that write: the images that they leave are the same to `qemu-img`, which finds
/// nothing wrong in them.
pub fn check_written(prepare: impl Fn(&Path), args: &[&str], input: &str, images: &[&str]) {
    let mut left = Vec::new();
    for name in ["qemu-io", "block-io"] {
        let command = match name {
            "qemu-io" => tool("QEMU_IO", name),
            _ => Command::new(env!("CARGO_BIN_EXE_block-io")),
        };
        let dir = TempDir::new().unwrap();
        prepare(dir.path());
        let ran = ran(&feed(command, dir.path(), args, input, name));
        let img =
            |args: &[&str]| feed(tool("QEMU_IMG", "qemu-img"), dir.path(), args, "", "qemu-img");
        let contents = images.iter().map(|image| {
            let found = img(&["check", "-q", "-f", "qcow2", image]);
            assert!(found.status.success(), "{name} {input:?}: {image}: {found:?}");
            let read = img(&["convert", "-O", "raw", image, "contents"]);
            assert!(read.status.success(), "{name} {input:?}: {image}: {read:?}");
            std::fs::read(dir.path().join("contents")).unwrap()
        });
        left.push((contents.collect::<Vec<_>>(), ran));
    }
    let [(theirs, their_run), (ours, our_run)] = left.try_into().ok().unwrap();
    assert_eq!(our_run.lines, their_run.lines, "{args:?} {input:?}: {}", our_run.stderr);
    assert_eq!(our_run.status, their_run.status, "{args:?} {input:?}: {}", our_run.stderr);
    for ((image, ours), theirs) in images.iter().zip(&ours).zip(&theirs) {
        assert!(ours == theirs, "contents of {image} after {args:?} {input:?}");
    }
}

/// A raw image of 1 MiB, and a file of 300 bytes of every value.
pub fn raw(dir: &Path) {
    std::fs::write(dir.join("a.raw"), vec![0; 1 << 20]).unwrap();
    let bytes: Vec<u8> = (0..=255).chain(0..44).collect();
    std::fs::write(dir.join("bytes"), bytes).unwrap();
}

/// A backing file of 2 MiB below an overlay of 4 MiB with plain, zero and compressed clusters.
pub fn chain(dir: &Path) {
    let run = |command: Command, name: &str, args: &[&str]| {
        let output = feed(command, dir, args, "", name);
        assert!(output.status.success(), "{name} {args:?}: {output:?}");
    };
    let img = |args: &[&str]| run(tool("QEMU_IMG", "qemu-img"), "qemu-img", args);
    let io = |args: &[&str]| run(tool("QEMU_IO", "qemu-io"), "qemu-io", args);
    img(&["create", "-q", "-f", "qcow2", "base.qcow2", "2M"]);
    io(&["-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -P 2 1M 64k", "base.qcow2"]);
    img(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "4M"]);
    let writes = ["-c", "write -P 3 64k 64k", "-c", "write -z 1M 512k", "-c", "write -c 3M 64k"];
    io(&[&["-f", "qcow2"], writes.as_slice(), &["top.qcow2"]].concat());
}
