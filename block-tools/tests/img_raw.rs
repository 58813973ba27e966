//! `block-img` on raw files beside `qemu-img`: files that do not end with a block, hints and
//! preallocation, steps of progress.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

use std::os::unix::fs::MetadataExt;

use block_testkit::peer::ImageDir;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const TOOLS: [&str; 2] = ["qemu-img", BLOCK_IMG];

/// Exit status and standard output.
fn run(dir: &ImageDir, tool: &'static str, args: &[&str]) -> (i32, String) {
    let output = dir.run(tool, args).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// Runs both tools with the same arguments in the same directory.
fn check(dir: &ImageDir, args: &[&str]) -> String {
    let [(their_status, theirs), (our_status, ours)] = TOOLS.map(|tool| run(dir, tool, args));
    assert_eq!((our_status, &ours), (their_status, &theirs), "{args:?}");
    ours
}

#[test]
fn the_last_block_is_all_there_where_whole_blocks_are_read() {
    let dir = ImageDir::new().unwrap();
    for (holes, name) in [(true, "sparse"), (false, "full")] {
        let data = vec![u8::from(!holes); (1 << 20) - 1];
        dir.write(name, if holes { &data[..1] } else { &data }).unwrap();
        let file = std::fs::File::options().write(true).open(dir.path(name)).unwrap();
        file.set_len((1 << 20) - 1).unwrap();
        for direct in ["on", "off"] {
            let options =
                format!("driver=raw,cache.direct={direct},file.driver=file,file.filename={name}");
            let map = check(&dir, &["map", "--output=json", "--image-opts", &options]);
            let lines = map.lines().count();
            let expected = if holes || direct == "off" { 2 } else { 1 };
            assert_eq!(lines, expected, "{name} {direct}: {map}");
        }
    }
}

/// A file of 1000 bytes that cannot be guessed.
fn odd() -> Vec<u8> {
    (0..1000).map(|n| u8::try_from(n % 251).unwrap() | 1).collect()
}

#[test]
fn a_target_that_exists_may_end_inside_of_the_last_sector_of_the_source() {
    for (len, status, after) in [(512, 1, 512), (900, 0, 1024), (1000, 0, 1024), (1024, 0, 1024)] {
        for tool in TOOLS {
            let dir = ImageDir::new().unwrap();
            dir.write("odd", &odd()).unwrap();
            dir.write("target", &vec![9; len]).unwrap();
            let args = ["convert", "-n", "-f", "raw", "-O", "raw", "odd", "target"];
            assert_eq!(run(&dir, tool, &args).0, status, "{tool} {len}");
            let mut expected = if status == 0 { odd() } else { vec![9; len] };
            expected.resize(after, 0);
            assert_eq!(dir.bytes("target").unwrap(), expected, "{tool} {len}");
        }
    }
}

#[test]
fn dd_copies_whole_sectors_of_the_input() {
    let dir = ImageDir::new().unwrap();
    dir.write("odd", &odd()).unwrap();
    for operands in [
        "bs=1",
        "bs=1 skip=1",
        "bs=1 skip=489",
        "bs=1 count=1002 skip=3",
        "bs=7 count=5 skip=3",
        "bs=100 count=3",
        "bs=512 count=9 skip=1",
        "bs=1000 skip=1",
        "bs=1001 skip=1",
        "bs=1024 skip=1",
        "bs=1025 skip=1",
    ] {
        let mut made = Vec::new();
        for tool in TOOLS {
            let mut args = vec!["dd", "-f", "raw", "if=odd", "of=out"];
            args.extend(operands.split(' '));
            let output = dir.run(tool, &args).unwrap();
            let complains = !output.stderr.is_empty();
            made.push((output.status.code(), complains, dir.bytes("out").unwrap()));
        }
        assert_eq!(made[1], made[0], "{operands}");
    }
}

#[test]
fn a_strict_comparison_counts_in_sectors() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "raw", "long", "5120"]).unwrap();
    dir.qemu_io("long", &["write -P 7 0 4k"]).unwrap();
    let write = |name: &str, data: &[u8], len| {
        dir.write(name, data).unwrap();
        let file = std::fs::File::options().write(true).open(dir.path(name)).unwrap();
        file.set_len(len).unwrap();
    };
    let zeroes = [0; 1024];
    for (name, data, len) in [
        ("hole.odd", &zeroes[..0], 1000),
        ("hole", &zeroes[..0], 1024),
        ("zero.odd", &zeroes[..1000], 1000),
        ("zero", &zeroes[..], 1024),
        ("mixed.odd", &[7; 4096][..], 5096),
        ("mixed", &[7; 4096][..], 5120),
    ] {
        write(name, data, len);
    }
    for (a, b, identical) in [
        ("hole.odd", "hole", true),
        ("hole", "hole.odd", true),
        ("mixed.odd", "mixed", true),
        ("zero.odd", "zero.odd", true),
        ("zero.odd", "zero", false),
        ("hole.odd", "zero", false),
        ("zero.odd", "hole", false),
        ("mixed.odd", "hole", false),
    ] {
        for tool in TOOLS {
            let (status, said) =
                run(&dir, tool, &["compare", "-s", "-f", "raw", "-F", "raw", a, b]);
            assert_eq!(status == 0, identical, "{tool} {a} {b}: {said}");
        }
    }
}

#[test]
fn a_change_of_the_length_counts_from_the_last_sector() {
    let dir = ImageDir::new().unwrap();
    for change in ["+1", "+24", "+512", "-24", "-100", "-512", "-600", "999", "1000", "1024"] {
        for shrink in [&[][..], &["--shrink"]] {
            let mut made = Vec::new();
            for tool in TOOLS {
                dir.write("odd", &odd()).unwrap();
                let args = [&["resize", "-f", "raw"], shrink, &["odd", change]].concat();
                let ended = run(&dir, tool, &args);
                made.push((ended, dir.bytes("odd").unwrap().len()));
            }
            assert_eq!(made[1], made[0], "{change} {shrink:?}");
        }
    }
}

#[test]
fn hints_and_preallocation_are_taken() {
    for create in ["off", "falloc", "full"] {
        for grow in ["off", "falloc", "full"] {
            let dir = ImageDir::new().unwrap();
            let options = format!("preallocation={create},extent_size_hint=0");
            let (status, _) = run(&dir, BLOCK_IMG, &["create", "-o", &options, "a", "128k"]);
            assert_eq!(status, 0);
            let grow = format!("--preallocation={grow}");
            let (status, said) =
                run(&dir, BLOCK_IMG, &["resize", "-f", "raw", &grow, "a", "+256k"]);
            assert_eq!((status, said.as_str()), (0, "Image resized.\n"));
            let held = std::fs::metadata(dir.path("a")).unwrap().blocks() / 2;
            let part = |off: bool, kib: u64| if off { 0 } else { kib };
            let least = part(create == "off", 128) + part(grow.ends_with("off"), 256);
            assert!(held >= least, "{options} {grow}: {held} KiB");
        }
    }
    let dir = ImageDir::new().unwrap();
    // A file system without hints ignores them.
    for hint in ["1M", "64k"] {
        let option = format!("extent_size_hint={hint}");
        assert_eq!(run(&dir, BLOCK_IMG, &["create", "-q", "-o", &option, "b", "1M"]).0, 0);
    }
    for hint in ["4G", "x", "-1"] {
        let option = format!("extent_size_hint={hint}");
        check(&dir, &["create", "-q", "-o", &option, "c", "1M"]);
        assert!(!dir.path("c").exists());
    }
}

#[test]
fn progress_counts_what_has_to_be_copied() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "raw", "a", "128M"]).unwrap();
    let writes = ["write 0 1M", "write 2M 1M", "write 4M 1M", "write 32M 1M"];
    dir.qemu_io("a", &writes).unwrap();
    let text = check(&dir, &["convert", "-p", "-f", "raw", "-O", "raw", "a", "b"]);
    let steps = ["0.00", "25.00", "50.00", "75.00", "100.00", "100.00"];
    let steps: String = steps.iter().map(|step| format!("    ({step}/100%)\r")).collect();
    assert_eq!(text, steps + "\n");
    // Nothing to copy, and all of it.
    dir.qemu_img(&["create", "-q", "-f", "raw", "a", "4M"]).unwrap();
    for sparse in ["4k", "0"] {
        let args = ["convert", "-p", "-S", sparse, "-f", "raw", "-O", "raw", "a", "b"];
        let (status, text) = run(&dir, BLOCK_IMG, &args);
        assert_eq!(status, 0);
        assert!(text.ends_with("    (100.00/100%)\r\n"), "{text}");
    }
}
