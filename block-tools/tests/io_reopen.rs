//! Disks that do not end with a sector, images that are reopened with other options, and machine state, in
//! `block-io` beside `qemu-io`: the same standard output and exit status.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod io_support;

use std::path::Path;
use std::process::Command;

use io_support::{both, chain, check, check_written, feed, raw, tool};
use tempfile::TempDir;

fn qemu_img(dir: &Path, args: &[&str]) {
    let output = feed(tool("QEMU_IMG", "qemu-img"), dir, args, "", "qemu-img");
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// A file of 320 bytes of ones.
fn short(dir: &Path) {
    std::fs::write(dir.join("short.raw"), [1; 320]).unwrap();
}

#[test]
fn a_disk_ends_with_a_whole_sector() {
    let script = "length\nread -P 1 0 320\nread -P 0 320 192\nread 0 513\nmap\nread -P 0 320 192\n\
        write -P 7 300 200\nread -P 7 300 200\nread -P 0 500 12\nwrite 500 13\nlength\n";
    check(short, &["-f", "raw", "short.raw"], script);
    // A part that is not to grow does not.
    let part = "json:{'driver':'raw','size':512,'file':{'driver':'file','filename':'a.raw'}}";
    check(raw, &[part], "length\nwrite 0 512\nwrite 511 2\nread 511 2\n");
}

#[test]
fn a_raw_part_is_moved_by_reopening() {
    let part =
        "json:{'driver':'raw','offset':512,'size':512,'file':{'driver':'file','filename':'a.raw'}}";
    let script = "write -P 10 0 512\nwrite -P 10 511 1\nwrite -P 10 512 1\n\
        reopen -o driver=raw,offset=1536,size=1024\nlength\nwrite -P 11 0 1024\nwrite -P 11 1024 1\n\
        reopen -o offset=2048\nread -P 11 0 512\nread -P 0 512 512\nreopen -o driver=qcow2\n\
        reopen -o file.driver=null-co\nreopen -o file.driver=file\nreopen -o nothing=1\nlength\n\
        close\nopen -o driver=raw a.raw\nread -P 10 512 512\nread -P 0 1024 512\nread -P 11 1536 1024\n";
    check(raw, &[part], script);
}

#[test]
fn options_of_an_open_image_change_or_stay_as_they_were() {
    let script = "reopen -o lazy-refcounts=on\nwrite -P 5 0 64k\nreopen -o node-name=foo\n\
        reopen -o driver=qcow2,file.driver=file,backing.driver=qcow2\nreopen -o backing.driver=raw\n\
        reopen -o l2-cache-entry-size=4k\nreopen -o l2-cache-entry-size=33k\n\
        reopen -o overlap-check=none,pass-discard-request=off\nreopen -o overlap-check=bogus\n\
        read -P 5 0 64k\nreopen -r -o lazy-refcounts=off\nwrite 0 64k\nread -P 5 0 64k\nreopen -w\n\
        write -P 6 0 64k\nread -P 6 0 64k\nreopen -w -o read-only=on\nreopen -o auto-read-only=x\n";
    check_written(chain, &["-f", "qcow2", "top.qcow2"], script, &["top.qcow2", "base.qcow2"]);
    let script =
        "write 0 512\nreopen -w\nwrite -P 8 0 512\nread -P 8 0 512\nreopen -r\nwrite 0 512\n";
    check_written(chain, &["-r", "-f", "qcow2", "top.qcow2"], script, &["top.qcow2"]);
    check(chain, &[], "open -o node-name=foo top.qcow2\nreopen -o node-name=foo\nlength\n");
    check(raw, &["-f", "null-co", "json:{'driver':'null-co','size':65536}"], "reopen\ninfo\n");
}

/// A change that is refused changes nothing: the options of the image are seen by what a crash leaves.
#[test]
fn a_crash_shows_which_options_were_in_force() {
    let dirty = |change: &str| {
        let dir = TempDir::new().unwrap();
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "a.qcow2", "64M"]);
        let io = Command::new(env!("CARGO_BIN_EXE_block-io"));
        let writes = ["-c", "write -P 5 0 512", "-c", "flush", "-c", "sigraise 9"];
        let commands = [&["-c", change], &writes[..]].concat();
        let args = [&["-t", "writeback", "-f", "qcow2"], &commands[..], &["a.qcow2"]].concat();
        let output = feed(io, dir.path(), &args, "", "block-io");
        assert_eq!(output.status.code(), None, "{output:?}");
        let image = std::fs::read(dir.path().join("a.qcow2")).unwrap();
        image[79] & 1 == 1
    };
    assert!(dirty("reopen -o lazy-refcounts=on"));
    assert!(!dirty("reopen -o lazy-refcounts=off"));
    assert!(!dirty("reopen -o lazy-refcounts=on,overlap-check=bogus"));
}

#[test]
fn a_temporary_overlay_keeps_its_options() {
    let dir = TempDir::new().unwrap();
    raw(dir.path());
    let script = "write -P 9 0 512\nreopen -o file.locking=off\nread -P 9 0 512\n";
    let io = Command::new(env!("CARGO_BIN_EXE_block-io"));
    let output = feed(io, dir.path(), &["-s", "-f", "raw", "a.raw"], script, "block-io");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("read 512/512 bytes at offset 0"), "{text}");
    assert!(!output.status.success());
}

/// An image with small clusters, so that the state takes many tables.
fn small_clusters(dir: &Path) {
    qemu_img(dir, &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "65M"]);
}

#[test]
fn machine_state_is_kept_behind_the_disk() {
    let script = "write -P 1 64M 1M\nwrite -b -P 2 0 512k\nwrite -b -P 3 5M 4k\nread -P 1 64M 1M\n\
        read -b -P 2 0 512k\nread -b -P 0 512k 4k\nread -b -P 3 5M 4k\nread -b -P 0 100M 64k\n\
        read -b -v 5M 16\nread -b -v 5M 512\nwrite -b 100 512\nwrite -b -z 0 512\nlength\ninfo\nflush\nmap\n\
        reopen -r\nread -b -P 3 5M 4k\nwrite -b 0 512\n";
    check_written(small_clusters, &["-f", "qcow2", "a.qcow2"], script, &["a.qcow2"]);
    for image in ["a.raw", "json:{'driver':'null-co','size':65536}"] {
        check(raw, &[image], "write -b 0 512\nread -b 0 512\n");
    }
}

#[test]
fn machine_state_is_what_the_other_program_saved() {
    let dir = TempDir::new().unwrap();
    small_clusters(dir.path());
    let [ours, theirs] = [false, true].map(|peer| {
        let dir = dir.path().to_owned();
        move |args: &[&str]| {
            let command = match peer {
                true => tool("QEMU_IO", "qemu-io"),
                false => Command::new(env!("CARGO_BIN_EXE_block-io")),
            };
            let args = [&["-f", "qcow2"], args, &["a.qcow2"]].concat();
            let output = feed(command, &dir, &args, "", "qemu-io");
            assert!(output.status.success(), "{args:?}: {output:?}");
            assert!(!String::from_utf8_lossy(&output.stdout).contains("failed"), "{output:?}");
        }
    });
    ours(&["-c", "write -b -P 1 0 8M", "-c", "write -b -P 2 1G 4k"]);
    theirs(&["-c", "read -b -P 1 0 8M", "-c", "read -b -P 2 1G 4k"]);
    // The part of a cluster that is not written keeps what the snapshot has.
    qemu_img(dir.path(), &["snapshot", "-c", "one", "a.qcow2"]);
    ours(&["-c", "write -b -P 3 4k 4k", "-c", "write -b -P 4 9k 512", "-c", "read -b -P 1 8k 1k"]);
    theirs(&["-c", "read -b -P 3 4k 4k", "-c", "read -b -P 1 8k 1k", "-c", "read -b -P 1 9728 1k"]);
    ours(&["-r", "-c", "read -b -P 4 9k 512", "-c", "read -b -P 2 1G 4k"]);
    qemu_img(dir.path(), &["snapshot", "-a", "one", "a.qcow2"]);
    ours(&["-c", "read -b -P 1 0 8M"]);
    qemu_img(dir.path(), &["check", "-q", "a.qcow2"]);
    // A disk that grows over the state reads as zeroes.
    ours(&["-c", "truncate 80M", "-c", "read -P 0 65M 15M"]);
    qemu_img(dir.path(), &["check", "-q", "a.qcow2"]);
}

#[test]
fn machine_state_has_a_bound() {
    let (theirs, ours) = both(
        small_clusters,
        &["-f", "qcow2", "a.qcow2"],
        "write -b 16E 512\nwrite -b 7E 512\nwrite -b 9T 512\nread -b 7E 512\nread -b 0 4G\n",
    );
    assert!(ours.lines.iter().all(|line| !line.contains("512/512")), "{:?}", ours.lines);
    assert_eq!(ours.status, theirs.status);
}
