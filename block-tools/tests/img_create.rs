//! `block-img create` and `block-img measure` beside `qemu-img`: the same words on standard output, the
//! same exit status, and images that the peer describes alike and finds clean.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

use std::process::Output;

use block_testkit::peer::{ImageDir, Verdict};

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const TOOLS: [&str; 2] = ["qemu-img", BLOCK_IMG];

/// Exit status, standard output, standard error.
fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn run(dir: &ImageDir, tool: &'static str, args: &[&str]) -> (i32, String, String) {
    ended(&dir.run(tool, args).unwrap())
}

/// A directory with images to stand on.
fn prepared() -> ImageDir {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "raw", "base.raw", "3000320"]).unwrap();
    dir.write("odd.raw", &[7; 1000]).unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "5M"]).unwrap();
    dir.qemu_io("base.qcow2", &["write -P 5 1M 100k"]).unwrap();
    dir
}

#[test]
fn create_says_what_the_peer_says_and_makes_what_it_makes() {
    let all: &[&[&str]] = &[
        &["a", "10M"],
        &["-q", "a", "1000"],
        &["-o", "size=1G,cluster_size=2M", "a"],
        &["-o", "compat=0.10", "a", "0x100000"],
        &["-o", "preallocation=metadata,lazy_refcounts", "a", "1M"],
        &["-o", "lazy_refcounts=yes", "-o", "refcount_bits=0x8", "a", "1M"],
        &["-o", "extended_l2=on,compression_type=zstd", "a", "1.5G"],
        &["-o", "data_file=d,data_file_raw=on", "a", "1M"],
        &["-o", "data_file=d", "-b", "base.raw", "-F", "raw", "a", "1M"],
        &["-b", "base.raw", "-F", "raw", "a"],
        &["-b", "odd.raw", "-F", "raw", "a"],
        &["-b", "base.qcow2", "-F", "qcow2", "a", "9M"],
        &["-o", "backing_file=base.qcow2,backing_fmt=qcow2", "a"],
        &["-b", "base.qcow2", "-F", "qcow2", "-o", "backing_file=missing", "a"],
        &["-u", "-b", "missing", "-F", "raw", "a", "1M"],
        &["-o", "extent_size_hint=1M,nocow=on", "a", "64M"],
        &["-o", "encryption=off", "a", "64M"],
        &["-o", "noencryption,lazy_refcounts", "a", "64M"],
        &["-o", "extent_size_hint=0,preallocation=metadata", "a", "64M"],
    ];
    for args in all {
        let args = [&["create", "-f", "qcow2"], *args].concat();
        let mut made = Vec::new();
        for tool in TOOLS {
            let dir = prepared();
            let (status, out, err) = run(&dir, tool, &args);
            assert_eq!((status, err.as_str()), (0, ""), "{tool} {args:?}");
            dir.write("missing", &[]).unwrap();
            assert_eq!(dir.check("a").unwrap(), Verdict::Clean, "{args:?}");
            let info = dir.qemu_img(&["info", "a"]).unwrap();
            // All but where it is and how much of it the file system holds.
            let differs = ["disk size", "actual path"];
            let kept = |line: &&str| !differs.iter().any(|name| line.contains(name));
            let info = info.lines().filter(kept).collect::<Vec<_>>().join("\n");
            made.push((out, info));
        }
        assert_eq!(made[1], made[0], "{args:?}");
    }
}

#[test]
fn sizes_are_written_as_for_the_peer() {
    let sizes = [
        "+1k",
        " 1k",
        "\t\n +1k",
        "+ 1k",
        ".5k",
        "+.5k",
        "5.",
        "5.k",
        "5.b",
        ".",
        ".k",
        "+",
        "++1k",
        "+-1",
        "+0x10",
        " 0x10",
        "0x+10",
        "0x",
        "0x10.",
        "1.0",
        "1.",
        "0.0",
        ".0",
        "1.5",
        "1.5b",
        "1..",
        "1e3",
        "1k ",
        "1 k",
        "007",
        "1.999999999999999999999k",
        "0.0000000000000000000001k",
        "1.0000000001",
        "+1.5k",
        "1.0004k",
        "1.0005k",
        ".0009k",
    ];
    let dir = ImageDir::new().unwrap();
    for size in sizes {
        let option = format!("size={size}");
        for args in [["a", size], ["-o", &option]] {
            let mut made = Vec::new();
            for tool in TOOLS {
                let name: &[&str] = if args[0] == "-o" { &["a"] } else { &[] };
                let args = [&["create", "-q", "-f", "raw"], &args[..], name].concat();
                let (status, _, _) = run(&dir, tool, &args);
                made.push((status, dir.bytes("a").ok().map(|bytes| bytes.len())));
                let _ = std::fs::remove_file(dir.path("a"));
            }
            assert_eq!(made[1], made[0], "{args:?}");
        }
        let mut made = Vec::new();
        for tool in TOOLS {
            dir.write("r", &[7; 4096]).unwrap();
            let args = ["resize", "-q", "-f", "raw", "--shrink", "r", size];
            let (status, _, _) = run(&dir, tool, &args);
            made.push((status, dir.bytes("r").unwrap().len()));
        }
        assert_eq!(made[1], made[0], "resize {size:?}");
    }
}

#[test]
fn create_refuses_what_the_peer_refuses() {
    // Those whose words are the peer's as well come first.
    let same: &[&[&str]] = &[
        &["-f", "qcow2", "a"],
        &["-f", "qcow2", "-o", "size=1M", "a", "1M"],
        &["-f", "qcow2", "-o", "bogus=1", "a", "1M"],
        &["-f", "qcow2", "-b", "a", "-F", "qcow2", "a", "1M"],
        &["-f", "qcow2", "-b", "missing", "-F", "raw", "a"],
        &["-f", "qcow2", "-b", "missing", "a"],
        &["-f", "qcow2", "-u", "-b", "missing", "-F", "raw", "a"],
        &["-f", "qcow2", "-o", "lazy_refcounts=maybe", "a", "1M"],
        &["-f", "qcow2", "-o", "encryption=maybe", "a", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=x", "a", "1M"],
        &["-f", "qcow2", "missing/a", "1M"],
        &["-f", "raw", "-b", "base.raw", "-F", "raw", "a", "1M"],
        &["-f", "raw", "-F", "raw", "a", "1M"],
        &["-f", "raw", "-o", "backing_file=base.raw", "a", "1M"],
        &["-f", "null-co", "a", "1M"],
    ];
    let other: &[&[&str]] = &[
        &["-f", "qcow2", "-F", "raw", "a", "1M"],
        &["-f", "qcow2", "-b", "base.qcow2", "a"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "bogus", "a"],
        &["-f", "qcow2", "-b", "base.raw", "-F", "qcow2", "a"],
        &["-f", "qcow2", "-o", "cluster_size=x", "a", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=300", "a", "1M"],
        &["-f", "qcow2", "-o", "compat=0.10,extended_l2=on", "a", "1M"],
        &["-f", "qcow2", "-o", "data_file_raw=on", "a", "1M"],
        &["-f", "qcow2", "-o", "encryption=on", "a", "1M"],
        &["-f", "qcow2", "-o", "encrypt.format=luks", "a", "1M"],
        &["-f", "qcow2", "a", "4P"],
        &["-f", "qcow2", "a", "9E"],
        &["-f", "qcow2", "a", "--", "-1"],
        &["-f", "qcow2", "a", "1M", "2M"],
    ];
    for (n, args) in same.iter().chain(other).enumerate() {
        let args = [&["create"], *args].concat();
        let mut told = Vec::new();
        for tool in TOOLS {
            let dir = prepared();
            dir.write("a", &[1; 10]).unwrap();
            let (status, out, err) = run(&dir, tool, &args);
            assert_eq!(status, 1, "{tool} {args:?}: {out}{err}");
            if tool == BLOCK_IMG {
                assert_eq!(dir.bytes("a").unwrap(), [1; 10], "{args:?}");
            }
            told.push((out, err.replace("qemu-img: ", "block-img: ")));
        }
        if n < same.len() {
            assert_eq!(told[1], told[0], "{args:?}");
        }
        assert!(told[1].1.starts_with("block-img: "), "{args:?}: {}", told[1].1);
    }
}

/// Names and types of the options that a help text lists, and its other lines.
fn listed(help: &str) -> Vec<&str> {
    // Encryption is not there; that there shall be none can be said.
    let shown = help.lines().filter(|line| !line.starts_with("  encrypt."));
    shown.map(|line| line.split(" - ").next().unwrap().trim_end()).collect()
}

#[test]
fn help_lists_the_options_of_the_peer() {
    for args in [
        &["create", "-f", "qcow2", "-o", "help"][..],
        &["create", "-f", "qcow2", "-o", "help", "a"],
        &["create", "-f", "raw", "-o", "help"],
        &["create", "-f", "raw", "-o", "help", "a"],
    ] {
        let dir = ImageDir::new().unwrap();
        let told = TOOLS.map(|tool| run(&dir, tool, args));
        assert_eq!((told[1].0, &*told[1].2), (0, ""), "{args:?}");
        assert_eq!(listed(&told[1].1), listed(&told[0].1), "{args:?}");
    }
}

#[test]
fn a_data_file_stands_beside_the_image_and_an_image_in_use_is_left_alone() {
    let dir = ImageDir::new().unwrap();
    std::fs::create_dir(dir.path("sub")).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-o", "data_file=d", "sub/a", "1M"];
    assert_eq!(run(&dir, BLOCK_IMG, &args), (0, String::new(), String::new()));
    assert_eq!(std::fs::metadata(dir.path("sub/d")).unwrap().len(), 1 << 20);
    assert_eq!(run(&dir, BLOCK_IMG, &["map", "sub/a"]).0, 0);

    // The backing file counts from there, too.
    dir.qemu_img(&["create", "-q", "-f", "raw", "sub/base", "2M"]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "sub/b"];
    assert_eq!(run(&dir, BLOCK_IMG, &args).0, 0);
    assert!(dir.qemu_img(&["info", "sub/b"]).unwrap().contains("2 MiB"));

    // An image cannot be its own data file: it is in use by then.
    let args = ["create", "-q", "-f", "qcow2", "-o", "data_file=c", "sub/c", "1M"];
    let (status, _, err) = run(&dir, BLOCK_IMG, &args);
    assert!(status == 1 && err.contains("Failed to get"), "{err}");
}

#[test]
fn measure_gives_the_numbers_of_the_peer() {
    let dir = prepared();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "s", "20M"]).unwrap();
    let commands = ["write 0 100k", "write 5M 3000", "write -z 8M 1M", "write 10000k 900k"];
    dir.qemu_io("s", &commands).unwrap();
    dir.qemu_img(&["bitmap", "--add", "s", "one"]).unwrap();
    dir.qemu_img(&["bitmap", "--add", "-g", "512", "--disable", "s", "second"]).unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top"])
        .unwrap();
    dir.qemu_io("top", &["write 1030k 4k", "write 4M 1k"]).unwrap();
    dir.qemu_img(&["convert", "-O", "raw", "s", "s.raw"]).unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "1M"]).unwrap();

    let options = [
        "",
        "cluster_size=512",
        "cluster_size=2M,refcount_bits=1",
        "cluster_size=4k,refcount_bits=64,compat=1.1",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10",
        "preallocation=metadata",
        "preallocation=falloc",
        "data_file=d",
        "data_file=d,data_file_raw=on",
        "compression_type=zstd,lazy_refcounts=on",
        "encryption=off",
    ];
    let mut compared = 0;
    let mut compare = |args: &[&str]| {
        let told = TOOLS.map(|tool| run(&dir, tool, args));
        assert_eq!(told[0].0, 0, "{args:?}: {}", told[0].2);
        assert_eq!(told[1], told[0], "{args:?}");
        compared += 1;
    };
    for options in options {
        let mut args = vec!["measure", "-O", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        for source in ["s", "top", "s.raw", "old"] {
            compare(&[&args[..], &[source]].concat());
        }
        for size in ["0", "1000", "1G", "60G"] {
            compare(&[&args[..], &["--size", size]].concat());
        }
    }
    for output in ["human", "json"] {
        for target in
            [&["-O", "raw"][..], &["-O", "qcow2"], &["-O", "raw", "-o", "preallocation=full"]]
        {
            let args = [&["measure", "--output", output], target].concat();
            compare(&[&args[..], &["s"]].concat());
            compare(&[&args[..], &["-f", "raw", "s.raw"]].concat());
            compare(&[&args[..], &["--size", "1000"]].concat());
        }
    }
    for backing in [
        "backing_file=base.raw,backing_fmt=raw",
        "backing_file=missing",
        "backing_file=missing,backing_fmt=bogus",
        "backing_fmt=raw",
        "backing_file=base.raw,preallocation=full",
        "backing_file=base.raw,data_file=d,data_file_raw=on",
    ] {
        compare(&["measure", "-O", "qcow2", "-o", backing, "s"]);
        compare(&["measure", "-O", "qcow2", "-o", backing, "--size", "1G"]);
    }
    for format in ["raw", "qcow2"] {
        for option in ["nocow=on", "extent_size_hint=1M", "extent_size_hint=4G"] {
            compare(&["measure", "-O", format, "-o", option, "--size", "1M"]);
            compare(&["measure", "-O", format, "-o", option, "s"]);
        }
    }
    compare(&["measure", "-O", "qcow2", "-o", "size=1G", "s"]);
    dir.qemu_img(&["snapshot", "-c", "one", "s"]).unwrap();
    dir.qemu_io("s", &["write 15M 1M"]).unwrap();
    compare(&["measure", "-O", "qcow2", "-l", "one", "s"]);
    compare(&["measure", "-O", "qcow2", "-l", "snapshot.id=1", "s"]);
    compare(&["measure", "--image-opts", "driver=qcow2,file.filename=s"]);
    assert!(compared > 100, "{compared}");
}

#[test]
fn measure_refuses_what_the_peer_refuses() {
    let dir = prepared();
    for args in [
        &["measure"][..],
        &["measure", "--size", "1M", "base.raw"],
        &["measure", "--size", "x"],
        &["measure", "base.raw", "base.qcow2"],
        &["measure", "-O", "bogus", "--size", "1"],
        &["measure", "-O", "null-co", "--size", "1"],
        &["measure", "-O", "qcow2", "-o", "bogus=1", "--size", "1"],
        &["measure", "-O", "qcow2", "-o", "nocow=x", "--size", "1"],
        &["measure", "-O", "raw", "-o", "extent_size_hint=x", "--size", "1"],
        &["measure", "missing"],
    ] {
        let told = TOOLS.map(|tool| run(&dir, tool, args));
        // What follows the first line says the same in other words.
        let first = |text: &str| text.lines().next().unwrap().to_owned();
        let [theirs, ours] = told.map(|(status, _, err)| (status, first(&err)));
        assert_eq!(ours, (theirs.0, theirs.1.replace("qemu-img: ", "block-img: ")), "{args:?}");
    }
    for options in ["cluster_size=300", "size=1E"] {
        let args = ["measure", "-O", "qcow2", "-o", options, "--size", "4P"];
        let told = TOOLS.map(|tool| run(&dir, tool, &args));
        assert_eq!((told[0].0, told[1].0), (1, 1), "{options}");
    }
}
