//! `block-img convert` to standard output: what arrives at the other end of the pipe is an image that
//! the peer reads and finds nothing wrong in.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::process::Stdio;

use block_testkit::naive::qcow2::Image;
use block_testkit::peer::{ImageDir, Verdict, with_default_signals};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");

/// The bytes that come out of the pipe.
fn stream(dir: &ImageDir, args: &[&str]) -> Vec<u8> {
    let args = [&["convert"], args, &["-"]].concat();
    let output = dir.run(BLOCK_IMG, &args).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    assert!(!dir.path("-").exists());
    output.stdout
}

/// What the command says when it fails, with status 1 and nothing on standard output.
fn refusal(dir: &ImageDir, args: &[&str]) -> String {
    let output = dir.run(BLOCK_IMG, &[&["convert"], args].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The image `name` is clean and holds what `source` does.
fn judge(dir: &ImageDir, name: &str, source: &str, format: &str) {
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean);
    dir.qemu_img(&["compare", "-f", format, "-F", "qcow2", source, name]).unwrap();
    let checked = dir.run(BLOCK_IMG, &["check", "-f", "qcow2", name]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// The image can be written to by both, and is clean afterwards.
fn goes_on(dir: &ImageDir, name: &str) {
    dir.qemu_io(name, &["write -P 3 100k 200k", "discard 500k 100k"]).unwrap();
    let write = ["-f", "qcow2", "-c", "write -P 4 250k 300k", name];
    let wrote = dir.run(env!("CARGO_BIN_EXE_block-io"), &write).unwrap();
    assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean);
    dir.qemu_io(name, &["read -P 3 100k 150k", "read -P 4 250k 300k"]).unwrap();
}

/// A raw image with zeroes, text and noise, whose end is in the middle of a cluster.
fn mixed(dir: &ImageDir, len: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut bytes = vec![0; len];
    for (index, part) in bytes.chunks_mut(150_000).enumerate() {
        match index % 4 {
            0 => {}
            1 => rng.fill(part),
            _ => part.fill_with(|| rng.random_range(b'a'..b'd')),
        }
    }
    dir.write("mixed.raw", &bytes).unwrap();
    bytes
}

#[test]
fn every_kind_of_image_passes_a_pipe() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, 1_200_640);
    let kinds = [
        "",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M",
        "compat=v2",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=512,refcount_bits=1",
        "compression_type=zstd,cluster_size=4k,refcount_bits=2",
        "refcount_bits=1",
        "refcount_bits=2",
        "refcount_bits=4,cluster_size=2M",
        "refcount_bits=8",
        "refcount_bits=32",
        "refcount_bits=64,lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=2M,compression_type=zstd",
    ];
    for options in kinds {
        let mut lens = Vec::new();
        for compress in [&["-c"][..], &[]] {
            let base = ["-f", "raw", "-O", "qcow2", "-o", options, "mixed.raw"];
            let args = [compress, &base].concat();
            let args: Vec<_> = if options.is_empty() {
                args.into_iter().filter(|arg| !matches!(*arg, "-o" | "")).collect()
            } else {
                args
            };
            let image = stream(&dir, &args);
            dir.write("out.qcow2", &image).unwrap();
            judge(&dir, "out.qcow2", "mixed.raw", "raw");
            goes_on(&dir, "out.qcow2");
            lens.push(image.len());
        }
        // A cluster of 512 bytes that noise and text do not share a host cluster of is no gain.
        assert!(lens[0] <= lens[1], "{options}: {lens:?}");
    }
}

#[test]
fn two_runs_give_the_same_bytes_and_a_shell_pipe_carries_them() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, 900_000);
    let args = ["-c", "-O", "qcow2", "mixed.raw"];
    let image = stream(&dir, &args);
    assert!(stream(&dir, &args) == image);
    let script = format!("{BLOCK_IMG} convert -c -O qcow2 mixed.raw - | cat > out.qcow2");
    assert!(dir.run("sh", &["-c", &script]).unwrap().status.success());
    assert!(dir.bytes("out.qcow2").unwrap() == image);
    // A level says how hard.
    let level = ["-c", "-O", "qcow2", "-o", "compression_level=1", "mixed.raw"];
    assert!(stream(&dir, &level).len() > image.len());
    let window = ["-c", "-O", "qcow2", "-o", "compression_window=32k", "mixed.raw"];
    assert!(stream(&dir, &window) != image);
}

#[test]
fn chains_snapshots_joined_images_and_empty_ones_are_sources() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "raw", "base.raw", "3M"]).unwrap();
    dir.qemu_io("base.raw", &["write -P 7 100k 200k", "write -P 8 2900k 20k"]).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "5M"];
    dir.qemu_img(&create).unwrap();
    dir.qemu_io("top.qcow2", &["write -c -P 4 1M 128k", "write -z 100k 64k"]).unwrap();
    dir.qemu_img(&["snapshot", "-c", "old", "top.qcow2"]).unwrap();
    let old = dir.raw_contents("top.qcow2", &[]).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 9 4M 1M"]).unwrap();

    dir.write("out.qcow2", &stream(&dir, &["-c", "-O", "qcow2", "top.qcow2"])).unwrap();
    judge(&dir, "out.qcow2", "top.qcow2", "qcow2");
    dir.write("old.raw", &old).unwrap();
    let image = stream(&dir, &["-c", "-O", "qcow2", "-l", "old", "top.qcow2"]);
    dir.write("out.qcow2", &image).unwrap();
    judge(&dir, "out.qcow2", "old.raw", "raw");

    dir.write("odd.raw", &[5; 70_000]).unwrap();
    let image = stream(&dir, &["-c", "-O", "qcow2", "odd.raw", "old.raw"]);
    let mut joined = vec![5; 70_000];
    joined.resize(70_144, 0);
    joined.extend(&old);
    assert!(Image::open(&image).unwrap().contents().unwrap() == joined);
    assert!(stream(&dir, &["odd.raw", "old.raw"]) == joined);

    dir.write("empty.raw", &[]).unwrap();
    dir.write("out.qcow2", &stream(&dir, &["-f", "raw", "-O", "qcow2", "empty.raw"])).unwrap();
    judge(&dir, "out.qcow2", "empty.raw", "raw");
    assert!(stream(&dir, &["-f", "raw", "empty.raw"]).is_empty());
}

#[test]
fn a_raw_image_passes_a_pipe_as_it_is() {
    let dir = ImageDir::new().unwrap();
    let mut bytes = mixed(&dir, 3_000_320);
    assert!(stream(&dir, &["-f", "raw", "-O", "raw", "mixed.raw"]) == bytes);
    dir.write("out.qcow2", &stream(&dir, &["-O", "qcow2", "mixed.raw"])).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    assert!(stream(&dir, &["out.qcow2"]) == bytes);
}

#[test]
fn the_progress_is_shown_beside_the_image() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, 600_000);
    let args = ["convert", "-p", "-O", "qcow2", "mixed.raw", "-"];
    let output = dir.run(BLOCK_IMG, &args).unwrap();
    assert!(output.stdout == stream(&dir, &["-O", "qcow2", "mixed.raw"]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("    (0.00/100%)\r") && said.ends_with("    (100.00/100%)\r\n"));
}

#[test]
fn what_a_stream_cannot_do_is_refused_by_name() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, 200_192);
    let cases: [(&[&str], &str); 14] = [
        (&["-n"], "-n"),
        (&["-n", "--target-image-opts"], "-n"),
        (&["-t", "none"], "-t"),
        (&["-B", "base", "-F", "raw"], "-B"),
        (&["-S", "4k"], "-S"),
        (&["-C"], "-C"),
        (&["--salvage"], "--salvage"),
        (&["--bitmaps"], "--bitmaps"),
        (&["-O", "qcow2", "-o", "preallocation=full"], "preallocation"),
        (&["-O", "qcow2", "-o", "data_file=x"], "data_file"),
        (&["-O", "qcow2", "-o", "backing_file=x"], "backing_file"),
        (&["-O", "qcow2", "-o", "bogus=x"], "bogus"),
        (&["-O", "raw", "-o", "size=1"], "-o"),
        (&["-O", "bogus"], "bogus"),
    ];
    for (options, named) in cases {
        let said = refusal(&dir, &[options, &["-f", "raw", "mixed.raw", "-"]].concat());
        assert!(said.starts_with("block-img: ") && said.contains(named), "{options:?}: {said}");
    }
    let said = refusal(&dir, &["-c", "-O", "raw", "mixed.raw", "-"]);
    assert!(said.contains("ompression"), "{said}");
    // A file of that name has a path.
    assert!(dir.run(BLOCK_IMG, &["convert", "mixed.raw", "./-"]).unwrap().status.success());
    assert!(dir.bytes("-").unwrap() == dir.bytes("mixed.raw").unwrap());
}

#[test]
fn a_terminal_is_refused() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, 200_000);
    let command = format!("{BLOCK_IMG} convert -O qcow2 mixed.raw -");
    let output = dir.run("script", &["-qec", &command, "/dev/null"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("standard output is a terminal") && !said.contains("QFI"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_an_error_with_status_1() {
    let dir = ImageDir::new().unwrap();
    dir.write("large.raw", &vec![1; 4 << 20]).unwrap();
    for options in ["-O qcow2", "-O raw"] {
        let script = format!(
            "{{ {BLOCK_IMG} convert {options} large.raw - 2>said; echo $? >status; }} | head -c 9 >head"
        );
        assert!(dir.run("sh", &["-c", &script]).unwrap().status.success());
        assert_eq!(dir.bytes("head").unwrap().len(), 9);
        assert_eq!(dir.bytes("status").unwrap(), b"1\n");
        let said = String::from_utf8(dir.bytes("said").unwrap()).unwrap();
        let expect = "block-img: cannot write to standard output: Broken pipe (os error 32)\n";
        assert_eq!(said, expect);
    }
}

#[test]
fn an_interrupt_ends_it_even_if_nobody_reads() {
    let dir = ImageDir::new().unwrap();
    dir.write("large.raw", &vec![1; 4 << 20]).unwrap();
    for format in ["qcow2", "raw"] {
        let mut child = with_default_signals(BLOCK_IMG)
            .args(["convert", "-p", "-O", format, "large.raw", "-"])
            .current_dir(dir.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // By then the pipe is full: it holds 64 KiB.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(ended.code(), Some(130), "{format}");
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
        assert!(said.ends_with("block-img: interrupted\n"), "{said}");
    }
}
