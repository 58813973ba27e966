//! `block-img check` beside `qemu-img check`: the same lines, fields and exit statuses.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use block_testkit::peer::ImageDir;
use serde_json::Value;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");

/// Exit status and standard output.
fn run(dir: &ImageDir, tool: &'static str, args: &[&str]) -> (i32, String) {
    let output = dir.run(tool, args).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// An image with data, compressed data and zeroes.
fn image(dir: &ImageDir) -> Vec<u8> {
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "x.qcow2", "64M"]).unwrap();
    let commands = ["write -P 1 0 256k", "write -c -P 2 2M 64k", "write -z 4M 64k"];
    dir.qemu_io("x.qcow2", &commands).unwrap();
    dir.bytes("x.qcow2").unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Offset of the first refcount block of an image with 64 KiB clusters.
fn refblock(bytes: &[u8]) -> usize {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    usize::try_from(word(usize::try_from(word(48)).unwrap())).unwrap()
}

/// The image clean, with a leak, with an error, and with both.
fn cases(dir: &ImageDir) -> [(i32, Vec<u8>); 4] {
    let good = image(dir);
    let block = refblock(&good);
    let (mut leak, mut error) = (good.clone(), good.clone());
    leak.resize(leak.len().next_multiple_of(65536) + 65536, 0);
    put(&mut leak, block + 2 * (good.len().div_ceil(65536)), &[0, 1]);
    put(&mut error, block + 2 * 5, &[0, 0]);
    let mut both = leak.clone();
    put(&mut both, block + 2 * 5, &[0, 0]);
    [(0, good), (3, leak), (2, error), (2, both)]
}

#[test]
fn output_and_statuses_are_those_of_the_peer() {
    let dir = ImageDir::new().unwrap();
    for (status, bytes) in cases(&dir) {
        dir.write("c.qcow2", &bytes).unwrap();
        for options in [&[][..], &["-q"], &["-f", "qcow2", "-U"], &["-T", "none"]] {
            let args = [&["check"], options, &["c.qcow2"]].concat();
            let theirs = run(&dir, "qemu-img", &args);
            assert_eq!(run(&dir, BLOCK_IMG, &args), theirs, "{args:?}");
            assert_eq!(theirs.0, status);
        }
        let args = ["check", "--output", "json", "c.qcow2"];
        let [ours, theirs] = [BLOCK_IMG, "qemu-img"].map(|tool| run(&dir, tool, &args));
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!((ours.0, json(&ours.1)), (theirs.0, json(&theirs.1)));
        let args = ["check", "--image-opts", "driver=qcow2,file.filename=c.qcow2"];
        assert_eq!(run(&dir, BLOCK_IMG, &args).0, status);
    }
}

#[test]
fn what_cannot_be_checked_has_the_statuses_of_the_peer() {
    let dir = ImageDir::new().unwrap();
    dir.write("x.raw", &[7; 4096]).unwrap();
    image(&dir);
    let all: [&[&str]; 7] = [
        &["check", "-f", "raw", "x.raw"],
        &["check", "-f", "raw", "--output", "json", "x.raw"],
        &["check", "-f", "qcow2", "x.raw"],
        &["check", "missing.qcow2"],
        &["check"],
        &["check", "-r", "some", "x.qcow2"],
        &["check", "-r", "all", "-U", "x.qcow2"],
    ];
    for args in all {
        assert_eq!(run(&dir, BLOCK_IMG, args), run(&dir, "qemu-img", args), "{args:?}");
    }
}

#[test]
fn repairs_say_what_they_did_and_the_peer_finds_nothing_afterwards() {
    let dir = ImageDir::new().unwrap();
    for (before, bytes) in cases(&dir) {
        dir.write("c.qcow2", &bytes).unwrap();
        let (status, said) = run(&dir, BLOCK_IMG, &["check", "-r", "all", "c.qcow2"]);
        assert_eq!(status, 0, "{said}");
        let mended = "The following inconsistencies were found and repaired:\n\n    ";
        assert_eq!(said.starts_with(mended), before != 0, "{said}");
        assert!(said.contains("No errors were found on the image.\n"), "{said}");
        let after = run(&dir, "qemu-img", &["check", "c.qcow2"]);
        assert_eq!(after.0, 0);
        assert!(said.ends_with(&after.1), "{said}\n{}", after.1);
    }
}

#[test]
fn leaks_alone_are_mended_where_only_they_may_be() {
    let dir = ImageDir::new().unwrap();
    let [_, (_, leak), _, (_, both)] = cases(&dir);
    for (bytes, expect) in [(leak, 0), (both, 2)] {
        dir.write("c.qcow2", &bytes).unwrap();
        let args = ["check", "-r", "leaks", "--output", "json", "c.qcow2"];
        let (status, text) = run(&dir, BLOCK_IMG, &args);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &json["leaks-fixed"]), (expect, &Value::from(1)), "{text}");
        assert_eq!(json.get("leaks"), None, "{text}");
    }
}

#[test]
fn a_repair_clears_the_marks_of_what_it_does_not_know() {
    let dir = ImageDir::new().unwrap();
    let mut bytes = image(&dir);
    // Bit 63 of the autoclear features.
    bytes[88] |= 0x80;
    dir.write("c.qcow2", &bytes).unwrap();
    for (args, mark) in
        [(&["check", "c.qcow2"][..], 0x80), (&["check", "-r", "leaks", "c.qcow2"], 0)]
    {
        let (status, said) = run(&dir, BLOCK_IMG, args);
        assert_eq!(status, 0, "{said}");
        let after = dir.bytes("c.qcow2").unwrap();
        assert_eq!(after[88], mark, "{args:?}");
        bytes[88] = mark;
        assert!(after == bytes, "nothing else changes: {args:?}");
    }
}
