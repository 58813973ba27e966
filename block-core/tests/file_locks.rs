//! Image locks exclude QEMU's tools and are excluded by them. Needs qemu-img and qemu-io.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use block_core::io::exec;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{Node, OpenError, OpenFlags, Options, Registry};

const INSTALL: &str = "qemu-img and qemu-io are missing: apt-get install qemu-utils";

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect(INSTALL)
}

/// A qcow2 image (for a raw one, QEMU lets readers and writers be together).
fn image(directory: &tempfile::TempDir) -> PathBuf {
    let path = directory.path().join("disk.qcow2");
    let made = run("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    assert!(made.status.success());
    path
}

fn open(path: &Path, flags: OpenFlags, locking: &str) -> Result<Node, OpenError> {
    let registry = Arc::new(Registry::new().with(FileFactory));
    let options =
        Options::filename(path.to_str().unwrap()).with("driver", "file").with("locking", locking);
    let context = OpenContext::new(registry, flags);
    exec::block_on(context.open(options))
}

/// A qemu-io that has the image open until it is dropped.
struct Holder {
    child: Child,
}

impl Holder {
    fn new(path: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .args(["-f", "qcow2", path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect(INSTALL);
        // Its answer to a command says that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "qemu-io says {line:?}");
        Self { child }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

fn info(path: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["info"];
    arguments.extend(more);
    arguments.push(path.to_str().unwrap());
    run("qemu-img", &arguments)
}

#[test]
fn our_writer_keeps_qemu_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let writer = open(&path, OpenFlags::READ_WRITE, "on").unwrap();
    let refused = info(&path, &[]);
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("Failed to get shared \"write\" lock"), "{message}");
    assert!(info(&path, &["-U"]).status.success());
    let write = run("qemu-io", &["-c", "write 0 4k", path.to_str().unwrap()]);
    assert!(!write.status.success());
    exec::block_on(writer.close()).unwrap();
    // Closed, though the node still lives.
    assert!(info(&path, &[]).status.success());
    drop(writer);
}

#[test]
fn our_reader_keeps_qemu_writers_out_and_lets_readers_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let _reader = open(&path, OpenFlags::READ_ONLY, "auto").unwrap();
    assert!(info(&path, &[]).status.success());
    let write = run("qemu-io", &["-c", "write 0 4k", path.to_str().unwrap()]);
    assert!(!write.status.success());
    let message = String::from_utf8(write.stderr).unwrap();
    assert!(message.contains("Failed to get \"write\" lock"), "{message}");
}

#[test]
fn a_qemu_writer_keeps_us_out_unless_we_share_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    {
        let _writer = Holder::new(&path, &[]);
        let err = open(&path, OpenFlags::READ_ONLY, "auto").unwrap_err();
        assert!(err.to_string().starts_with("Failed to get shared \"write\" lock on"), "{err}");
        let err = open(&path, OpenFlags::READ_WRITE, "auto").unwrap_err();
        assert!(matches!(&err, OpenError::Locked { lock: "\"write\"", .. }), "{err}");
        let shared = OpenFlags { force_share: true, ..OpenFlags::READ_ONLY };
        open(&path, shared, "on").unwrap();
        open(&path, OpenFlags::READ_WRITE, "off").unwrap();
    }
    open(&path, OpenFlags::READ_WRITE, "on").unwrap();
}

#[test]
fn a_qemu_reader_lets_our_readers_in_and_no_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let _reader = Holder::new(&path, &["-r"]);
    open(&path, OpenFlags::READ_ONLY, "on").unwrap();
    assert!(matches!(open(&path, OpenFlags::READ_WRITE, "on"), Err(OpenError::Locked { .. })));
}

#[test]
fn our_own_second_writer_is_kept_out_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let first = open(&path, OpenFlags::READ_WRITE, "auto").unwrap();
    assert!(matches!(open(&path, OpenFlags::READ_WRITE, "auto"), Err(OpenError::Locked { .. })));
    drop(first);
    open(&path, OpenFlags::READ_WRITE, "auto").unwrap();
}
