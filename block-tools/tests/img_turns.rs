//! Images that two programs write by turns: each goes on where the other stopped. After every turn both
//! check the image and find nothing, and it reads as the flat disk beside it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_testkit::peer::{ImageDir, Verdict};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const BLOCK_IO: &str = env!("CARGO_BIN_EXE_block-io");

/// Bytes of the disks: not a multiple of a cluster.
const SIZE: usize = (3 << 20) + 1536;
/// Turns on each image.
const TURNS: u64 = 6;
/// Commands in a turn.
const COMMANDS: usize = 12;

/// Create options, and whether the image has snapshots: not where refcounts are so narrow that a host
/// cluster full of compressed ones cannot be counted twice.
const SHAPES: &[(&str, bool)] = &[
    ("compat=1.1", true),
    ("compat=0.10", true),
    ("cluster_size=512", true),
    ("cluster_size=4k,refcount_bits=1", false),
    ("cluster_size=16k,refcount_bits=4", false),
    ("cluster_size=2M,refcount_bits=64", true),
    ("extended_l2=on", true),
    ("extended_l2=on,cluster_size=16k,lazy_refcounts=on", true),
    ("compression_type=zstd,cluster_size=8k", true),
    ("data_file=data.raw", false),
    ("preallocation=metadata", true),
];

/// Who has a turn.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Who {
    Ours,
    Theirs,
}

/// A random command for both programs, done to the flat disk too.
fn command(rng: &mut ChaCha8Rng, who: Who, compresses: bool, disk: &mut [u8]) -> String {
    let byte = rng.random_range(1..=255u8);
    let sectors = SIZE / 512;
    let start = rng.random_range(0..sectors) * 512;
    let most = if rng.random_bool(0.2) { 1 << 20 } else { 40 << 10 };
    let len = (rng.random_range(1..=most / 512) * 512).min(SIZE - start);
    let (flags, fill) = match rng.random_range(0..10) {
        0 | 1 => ("-z", None),
        2 => ("-z -u", None),
        // Theirs refuses to write compressed over what has a place.
        3 | 4 if who == Who::Ours && compresses => {
            // Whole clusters of any size, up to the end of the disk.
            let start = start >> 21 << 21;
            disk[start..].fill(byte);
            return format!("write -c -P {byte} {start} {}", SIZE - start);
        }
        _ => ("", Some(byte)),
    };
    disk[start..start + len].fill(fill.unwrap_or(0));
    match fill {
        Some(byte) => format!("write -P {byte} {start} {len}"),
        None => format!("write {flags} {start} {len}"),
    }
}

/// Plays the commands of one turn.
fn play(dir: &ImageDir, who: Who, commands: &[String]) {
    let program = if who == Who::Ours { BLOCK_IO } else { "qemu-io" };
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push("x.qcow2");
    let output = dir.run(program, &args).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{who:?} {commands:?}: {said}");
    assert!(!said.contains("failed"), "{who:?} {commands:?}: {said}");
}

#[test]
fn each_goes_on_where_the_other_stopped() {
    for (seed, (options, snapshots)) in (0..).zip(SHAPES) {
        let dir = ImageDir::new().unwrap();
        let size = SIZE.to_string();
        let create = ["create", "-q", "-f", "qcow2", "-o", options, "x.qcow2", &size];
        let creator = if seed % 2 == 0 { BLOCK_IMG } else { "qemu-img" };
        assert!(dir.run(creator, &create).unwrap().status.success(), "{options}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut disk = vec![0; SIZE];
        let compresses = !options.contains("data_file");
        for turn in 0..TURNS {
            let who = if turn % 2 == 0 { Who::Ours } else { Who::Theirs };
            let told = format!("{options}, seed {seed}, turn {turn} of {who:?}");
            let commands: Vec<_> =
                (0..COMMANDS).map(|_| command(&mut rng, who, compresses, &mut disk)).collect();
            play(&dir, who, &commands);
            if *snapshots && turn % 3 == 1 {
                let program = if who == Who::Ours { BLOCK_IMG } else { "qemu-img" };
                let name = format!("s{turn}");
                let taken = dir.run(program, &["snapshot", "-c", &name, "x.qcow2"]).unwrap();
                assert!(taken.status.success(), "{told}");
            }
            assert_eq!(dir.check("x.qcow2").unwrap(), Verdict::Clean, "{told}");
            let ours = dir.run(BLOCK_IMG, &["check", "-q", "-f", "qcow2", "x.qcow2"]).unwrap();
            assert_eq!(ours.status.code(), Some(0), "{told}: {ours:?}");
            let there = dir.raw_contents("x.qcow2", &["-f", "qcow2"]).unwrap();
            let wrong = there.iter().zip(&disk).position(|(is, want)| is != want);
            assert_eq!((there.len(), wrong), (SIZE, None), "{told}: {commands:?}");
        }
    }
}
