//! `block-io` on VMDK images beside `qemu-io`: the same script on copies of the same images gives the same
//! lines and statuses, and the same disks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::process::Output;

use block_testkit::peer::{ImageDir, Verdict};

const BLOCK_IO: &str = env!("CARGO_BIN_EXE_block-io");

/// `image.vmdk` of 4 MiB and 3 sectors, made with `options` and written to in part.
fn image(options: &str) -> ImageDir {
    let dir = ImageDir::new().unwrap();
    let args = ["create", "-q", "-f", "vmdk", "-o", options, "image.vmdk", "4195840"];
    dir.qemu_img(&args).unwrap();
    if !options.contains("streamOptimized") {
        dir.qemu_io("image.vmdk", &["write -P 1 0 300k", "write -P 2 2M 64k"]).unwrap();
    }
    dir
}

/// The same over a backing file that has data of its own, with extents of 64 KiB grains.
fn overlay(options: &str) -> ImageDir {
    let dir = image("subformat=monolithicSparse");
    dir.qemu_img(&["create", "-q", "-f", "vmdk", "base.vmdk", "4195840"]).unwrap();
    std::fs::rename(dir.path("image.vmdk"), dir.path("base.vmdk")).unwrap();
    let args = [
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        options,
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "image.vmdk",
    ];
    dir.qemu_img(&args).unwrap();
    dir
}

/// What a program printed, without what the clock decides, and how it ended.
fn ended(output: &Output) -> (Option<i32>, Vec<String>) {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| match line.split_once(" ops; ") {
        Some((head, _)) => format!("{head} ops"),
        None => line.to_owned(),
    });
    (output.status.code(), lines.collect())
}

/// Runs a script by both programs, each on what `prepare` makes, and fails unless they say and leave the
/// same.
fn check(prepare: impl Fn() -> ImageDir, script: &[&str]) {
    let dirs = [prepare(), prepare()];
    let mut args = vec!["-f", "vmdk", "-d", "unmap", "image.vmdk"];
    for command in script {
        args.extend(["-c", command]);
    }
    let theirs = dirs[0].run("qemu-io", &args).unwrap();
    let ours = dirs[1].run(BLOCK_IO, &args).unwrap();
    let said = [&ours, &theirs].map(|o| String::from_utf8_lossy(&o.stderr).into_owned());
    assert_eq!(ended(&ours), ended(&theirs), "{script:?}: our and their errors {said:#?}");
    let [theirs, ours] = dirs.each_ref().map(|dir| dir.raw_contents("image.vmdk", &[]).unwrap());
    assert!(ours == theirs, "contents after {script:?}");
    assert_eq!(dirs[1].check("image.vmdk").unwrap(), Verdict::Clean, "{script:?}");
}

const SPARSE: [&str; 3] = [
    "subformat=monolithicSparse",
    "subformat=monolithicSparse,zeroed_grain=on",
    "subformat=twoGbMaxExtentSparse",
];
const FLAT: [&str; 2] = ["subformat=monolithicFlat", "subformat=twoGbMaxExtentFlat"];

#[test]
fn reads_and_writes_do_what_qemu_io_does() {
    for options in SPARSE.into_iter().chain(FLAT) {
        check(
            || image(options),
            &[
                "length",
                "read -P 1 0 300k",
                "read -P 2 1M 64k",
                "write -P 3 290k 100k",
                "write -P 4 4194304 1536",
                "write -P 5 4194304 2048",
                "read -v 4195328 512",
                "write -P 6 1000 3",
                "read -P 1 0 1000",
                "read -P 6 1000 3",
                "writev -P 7 3M 64k 1k 4k",
                "readv -P 7 3M 69k",
                "aio_write -P 8 1M 128k",
                "aio_flush",
                "read -P 8 1M 128k",
                "flush",
                "read 5M 512",
            ],
        );
    }
}

#[test]
fn zeroes_do_what_qemu_io_does() {
    for options in SPARSE.into_iter().chain(FLAT) {
        check(
            || image(options),
            &[
                "write -z 64k 64k",
                "write -z 100k 100k",
                "read -P 0 64k 136k",
                "read -P 1 200k 100k",
                "write -P 9 70k 1k",
                "read -P 0 71k 30k",
                "write -z 2M 1M",
                "write -z -u 128k 64k",
                "write -P 0 192k 64k",
                "read -P 0 128k 128k",
                "flush",
            ],
        );
    }
}

#[test]
fn maps_and_allocations_are_what_qemu_io_says() {
    for options in SPARSE {
        check(
            || image(options),
            &["map", "alloc 0 1M", "alloc 320k 64k", "write -P 3 1M 64k", "map", "alloc 0 4195840"],
        );
        check(
            || overlay(options),
            &["map", "alloc 0 1M", "write -P 3 64k 128k", "map", "alloc 0 4195840"],
        );
    }
}

/// Grains are filled from below in the first extent, which qemu-io does right.
#[test]
fn overlays_are_filled_from_below_as_qemu_io_does() {
    for options in SPARSE {
        check(
            || overlay(options),
            &[
                "read -P 1 0 300k",
                "write -P 3 290k 100k",
                "read -P 1 256k 34k",
                "write -P 4 2050k 1k",
                "read -P 2 2051k 61k",
                "write -z 0 64k",
                "write -z 70k 1k",
                "read -P 1 71k 57k",
                "flush",
            ],
        );
    }
}

/// qemu-io discards nothing in a VMDK; what was discarded here reads as zeroes, and never as the backing file.
#[test]
fn discards_leave_zeroes_or_nothing_changed() {
    for options in SPARSE {
        for dir in [image(options), overlay(options)] {
            let args = ["-f", "vmdk", "-d", "unmap", "image.vmdk", "-c", "write -P 5 64k 128k"];
            let args = [&args[..], &["-c", "discard 64k 64k", "-c", "discard 130k 1k"]].concat();
            let output = dir.run(BLOCK_IO, &args).unwrap();
            assert!(output.status.success(), "{options}: {output:?}");
            let disk = dir.raw_contents("image.vmdk", &[]).unwrap();
            let discarded = &disk[64 << 10..128 << 10];
            assert!(discarded.iter().all(|b| *b == 0) || discarded.iter().all(|b| *b == 5));
            assert!(disk[128 << 10..192 << 10].iter().all(|b| *b == 5), "{options}");
            assert!(disk[192 << 10..300 << 10].iter().all(|b| *b == 1), "{options}");
            assert_eq!(dir.check("image.vmdk").unwrap(), Verdict::Clean, "{options}");
        }
    }
}

/// What is written once is read only; qemu-io writes to it, and loses what was there.
#[test]
fn stream_optimized_images_are_not_opened_for_writing() {
    let dir = image("subformat=streamOptimized");
    let before = dir.bytes("image.vmdk").unwrap();
    let output = dir.run(BLOCK_IO, &["image.vmdk", "-c", "write -P 1 0 64k"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("streamOptimized"), "{output:?}");
    let output = dir.run(BLOCK_IO, &["-r", "image.vmdk", "-c", "read -P 0 0 64k"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(dir.bytes("image.vmdk").unwrap(), before);
}
