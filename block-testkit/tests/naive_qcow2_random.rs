//! The naive qcow2 reader and checker against `qemu-img`, on images written at random.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_testkit::naive::qcow2::Image;
use block_testkit::peer::{ImageDir, Verdict};
use proptest::prelude::*;

/// A disk of some clusters that ends inside of one.
const LEN: u64 = 700 * 512;

const SHAPES: &[&str] = &[
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=64k",
    "cluster_size=16k,extended_l2=on,compression_type=zstd",
    "cluster_size=64k,extended_l2=on,refcount_bits=8",
    "cluster_size=1k,compat=0.10",
];

#[derive(Clone, Debug)]
enum Step {
    Commands(Vec<String>),
    Snapshot,
    Bitmap,
}

fn commands() -> impl Strategy<Value = String> {
    let kinds = ["write", "write -z", "write -z -u", "discard", "write -q"];
    let align = prop::sample::select(vec![1, 512, 4096, 16384]);
    (prop::sample::select(kinds.to_vec()), 0..LEN, 1..LEN / 3, align, 1..255u8).prop_map(
        |(kind, offset, len, align, fill)| {
            let offset = offset / align * align;
            let len = len.next_multiple_of(align).min(LEN - offset);
            let fill = match kind {
                "write" | "write -q" => format!("-P {fill} "),
                _ => String::new(),
            };
            format!("{kind} {fill}{offset} {len}")
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => prop::collection::vec(commands(), 1..6).prop_map(Step::Commands),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Bitmap),
    ];
    prop::collection::vec(step, 1..5)
}

fn run(dir: &ImageDir, step: &Step, number: usize, has_bitmaps: bool) {
    let name = number.to_string();
    match step {
        Step::Commands(commands) => {
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            dir.qemu_io("v", &commands).unwrap();
        }
        Step::Snapshot => {
            dir.qemu_img(&["snapshot", "-c", &name, "v"]).unwrap();
        }
        Step::Bitmap if has_bitmaps => {
            dir.qemu_img(&["bitmap", "--add", "-g", "512", "v", &name]).unwrap();
        }
        Step::Bitmap => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn images_written_at_random_are_read_and_clean(
        options in prop::sample::select(SHAPES),
        steps in steps(),
        compressed in prop::option::of(0..4u64),
    ) {
        let dir = ImageDir::new().unwrap();
        let len = LEN.to_string();
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "v", &len]).unwrap();
        if let Some(quarter) = compressed {
            // Of all cluster sizes here 64 KiB is a multiple.
            let offset = quarter << 16;
            dir.qemu_io("v", &[&format!("write -c -P 77 {offset} 128k")]).unwrap();
        }
        for (number, step) in steps.iter().enumerate() {
            run(&dir, step, number, !options.contains("0.10"));
        }
        let file = dir.bytes("v").unwrap();
        let image = Image::open(&file).unwrap();
        prop_assert!(image.contents().unwrap() == dir.raw_contents("v", &[]).unwrap());
        for snapshot in image.snapshots().unwrap() {
            let theirs = dir.raw_contents("v", &["-l", &snapshot.name]).unwrap();
            prop_assert!(image.snapshot_contents(&snapshot).unwrap() == theirs);
        }
        prop_assert_eq!(dir.check("v").unwrap(), Verdict::Clean);
        let report = image.check().unwrap();
        prop_assert!(report.is_clean(), "{}", report);
    }
}
