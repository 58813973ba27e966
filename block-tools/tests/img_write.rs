//! The commands of `block-img` that change images, beside those of `qemu-img`: the same scripts on copies
//! of the same images give the same lines, statuses and disks, and images that `qemu-img check` finds
//! nothing in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::os::unix::fs::MetadataExt;
use std::process::Output;
use std::sync::OnceLock;

use block_testkit::peer::{ImageDir, Verdict};
use serde_json::Value;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `block-img`, which must succeed; its standard output.
fn succeed(dir: &ImageDir, args: &[&str]) -> String {
    let output = dir.run(BLOCK_IMG, args).unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What a program did with a command line: its status, what it printed (without what depends on the
/// clock), and whether it had anything to complain about.
fn ended(output: &Output) -> (Option<i32>, String, bool) {
    let printed = text(&output.stdout).replace("qemu-img", "block-img");
    let lines = printed.lines().map(without_date).collect::<Vec<_>>().join("\n");
    (output.status.code(), lines, !output.stderr.is_empty())
}

/// The date and time of a line of a list of snapshots, taken out, and the last column: `qemu-img` writes
/// an instruction count of 0 into snapshots of images that count none.
fn without_date(line: &str) -> String {
    let is_date = |word: &&str| {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        digits >= 6 && (word.matches('-').count() == 2 || word.matches(':').count() == 2)
    };
    let words: Vec<_> =
        line.split(' ').map(|word| if is_date(&word) { "DATE" } else { word }).collect();
    let line = words.join(" ");
    match line.rsplit_once(' ') {
        Some((rest, "--" | "0")) if line.contains("DATE") => rest.trim_end().to_owned(),
        _ => line,
    }
}

/// Copies of the images that [`make_chain`] makes, which is done once.
fn chain(dir: &ImageDir) {
    static MADE: OnceLock<ImageDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = ImageDir::new().unwrap();
        make_chain(&dir);
        dir
    });
    for name in ["base.raw", "middle.qcow2", "top.qcow2", "other.qcow2"] {
        std::fs::copy(made.path(name), dir.path(name)).unwrap();
    }
}

/// A chain of three images of different lengths, all with data, zeroes and nothing in them.
fn make_chain(dir: &ImageDir) {
    dir.qemu_img(&["create", "-f", "raw", "base.raw", "3000320"]).unwrap();
    dir.qemu_io("base.raw", &["write -P 7 100k 200k", "write -P 8 2900k 20k"]).unwrap();
    let overlay = |name, backing, format, size| {
        dir.qemu_img(&["create", "-f", "qcow2", "-b", backing, "-F", format, name, size]).unwrap();
    };
    overlay("middle.qcow2", "base.raw", "raw", "5M");
    dir.qemu_io("middle.qcow2", &["write -P 4 150k 64k", "write -z 2M 1M"]).unwrap();
    overlay("top.qcow2", "middle.qcow2", "qcow2", "6M");
    dir.qemu_io("top.qcow2", &["write -P 5 0 4k", "write -P 6 5500k 100k"]).unwrap();
    dir.qemu_io("top.qcow2", &["write -z 1M 64k", "write -P 0 4M 64k"]).unwrap();
    overlay("other.qcow2", "base.raw", "raw", "4M");
    dir.qemu_io("other.qcow2", &["write -P 4 150k 64k", "write -P 9 3500k 64k"]).unwrap();
}

/// What the images of a directory are to a guest and to whoever opens them.
fn state(dir: &ImageDir, name: &str) -> (Option<Vec<u8>>, Value) {
    let format = if name.ends_with(".raw") { "raw" } else { "qcow2" };
    let info = dir.run("qemu-img", &["info", "--output=json", "-f", format, name]).unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap_or_default();
    let mut kept = serde_json::Map::new();
    for field in ["virtual-size", "backing-filename", "backing-filename-format", "dirty-flag"] {
        kept.insert(field.to_owned(), info[field].clone());
    }
    let snapshots = info["snapshots"].as_array().into_iter().flatten();
    let snapshots = snapshots.map(|snapshot| (snapshot["id"].clone(), snapshot["name"].clone()));
    kept.insert(
        "snapshots".to_owned(),
        snapshots.map(|(id, name)| Value::from(vec![id, name])).collect(),
    );
    let data = &info["format-specific"]["data"];
    for field in ["compat", "lazy-refcounts", "refcount-bits", "bitmaps"] {
        kept.insert(field.to_owned(), data[field].clone());
    }
    let contents = dir.raw_contents(name, &["-f", format]).ok();
    (contents, Value::Object(kept))
}

/// Runs the lines of a script by both programs, each in a directory that `prepare` fills, and fails
/// unless they say and leave the same.
fn check_script(prepare: impl Fn(&ImageDir), script: &[&str], images: &[&str]) {
    let dirs = [ImageDir::new().unwrap(), ImageDir::new().unwrap()];
    for dir in &dirs {
        prepare(dir);
    }
    for line in script {
        let words: Vec<&str> =
            line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        let theirs = dirs[0].run("qemu-img", &words).unwrap();
        let ours = dirs[1].run(BLOCK_IMG, &words).unwrap();
        assert_eq!(
            ended(&ours),
            ended(&theirs),
            "{line}\nours: {}\ntheirs: {}",
            text(&ours.stderr),
            text(&theirs.stderr)
        );
    }
    for image in images {
        let (theirs, theirs_info) = state(&dirs[0], image);
        let (ours, ours_info) = state(&dirs[1], image);
        assert_eq!(ours_info, theirs_info, "{image} after {script:?}");
        assert!(ours == theirs, "contents of {image} after {script:?}");
        if image.ends_with(".qcow2") && dirs[1].path(image).exists() {
            assert_eq!(dirs[1].check(image).unwrap(), Verdict::Clean, "{image} after {script:?}");
        }
    }
}

const CHAIN: &[&str] = &["base.raw", "middle.qcow2", "top.qcow2"];

#[test]
fn resize_says_and_does_what_qemu_img_does() {
    check_script(
        chain,
        &[
            "resize -f raw base.raw +1M",
            "resize -f raw base.raw -1M",
            "resize -f raw --shrink base.raw -1M",
            "resize -f raw base.raw 7M",
            "resize -f raw --preallocation=falloc base.raw 8M",
            "resize -f raw --preallocation=full base.raw +64k",
            "resize -f raw --preallocation=bogus base.raw +64k",
            "resize -f raw --shrink --preallocation=full base.raw -64k",
            "resize -f raw base.raw -100G",
            "resize -f raw base.raw 0",
            "resize -f raw base.raw 1x",
            "resize -f raw base.raw",
            "resize -q -f raw --shrink base.raw 1000",
            "resize missing.raw 1M",
        ],
        &["base.raw"],
    );
    check_script(
        chain,
        &[
            "resize top.qcow2 +1M",
            "resize middle.qcow2 6M",
            "resize top.qcow2 +100000",
            "resize --shrink top.qcow2 -3M",
            "resize top.qcow2 +64M",
            "resize -q --shrink top.qcow2 1M",
            "resize --preallocation=metadata top.qcow2 2M",
            "resize top.qcow2 2M",
        ],
        CHAIN,
    );
}

#[test]
fn dd_says_and_does_what_qemu_img_does() {
    let options = [
        "",
        " bs=1M",
        " bs=1M count=2",
        " bs=1M skip=1",
        " bs=1M skip=1 count=3",
        " bs=1000 count=7 skip=2",
        " skip=99999999",
        " count=0",
        " bs=0",
        " bs=x",
        " count=-1",
        " skip=x",
        " conv=sync",
        " bogus",
    ];
    for option in options {
        let line = format!("dd if=top.qcow2 of=out.raw{option}");
        check_script(chain, &[&line], &["out.raw"]);
        let line = format!("dd -f qcow2 -O qcow2 if=top.qcow2 of=out.qcow2{option}");
        check_script(chain, &[&line], &["out.qcow2"]);
    }
    check_script(
        chain,
        &[
            "dd if=top.qcow2",
            "dd of=out.raw",
            "dd",
            "dd if=missing of=out.raw",
            "dd -f raw if=base.raw of=out.raw",
        ],
        &["out.raw"],
    );
}

#[test]
fn commit_says_and_does_what_qemu_img_does() {
    for script in [
        &["commit top.qcow2"][..],
        // It keeps what it holds.
        &["commit -d top.qcow2", "map --output=json top.qcow2"],
        &["commit -b base.raw top.qcow2"],
        &["commit -b middle.qcow2 -q top.qcow2"],
        &["commit middle.qcow2", "commit -q top.qcow2", "commit top.qcow2"],
        &["commit -t none top.qcow2"],
        &["commit -t writethrough -f qcow2 -r 100M top.qcow2"],
        &[
            "commit -f raw base.raw",
            "commit -b missing top.qcow2",
            "commit -t bogus top.qcow2",
            "commit -r x top.qcow2",
            "commit",
            "commit a b",
            "commit missing",
        ],
    ] {
        check_script(chain, script, CHAIN);
    }
}

#[test]
fn rebase_says_and_does_what_qemu_img_does() {
    let images = &["base.raw", "middle.qcow2", "top.qcow2", "other.qcow2"];
    for script in [
        &["rebase -b base.raw -F raw top.qcow2"][..],
        &["rebase -b other.qcow2 -F qcow2 top.qcow2"],
        &["rebase -b other.qcow2 -F qcow2 -t none -T none top.qcow2"],
        &["rebase -b '' top.qcow2"],
        &["rebase -b '' top.qcow2", "rebase -b middle.qcow2 -F qcow2 top.qcow2"],
        &["rebase -b middle.qcow2 -F qcow2 top.qcow2"],
        &["rebase -u -b other.qcow2 -F qcow2 top.qcow2"],
        &[
            "rebase -u -b missing -F qcow2 top.qcow2",
            "rebase -u -b middle.qcow2 -F qcow2 top.qcow2",
        ],
        &["rebase -u -b '' top.qcow2"],
        &["rebase -u top.qcow2"],
        &[
            "rebase top.qcow2",
            "rebase -F raw top.qcow2",
            "rebase",
            "rebase -b missing -F raw top.qcow2",
            "rebase -u -b missing top.qcow2",
            "rebase -b base.raw -F bogus top.qcow2",
            "rebase -b base.raw -F raw missing",
            "rebase -b top.qcow2 -F qcow2 top.qcow2",
            "rebase -u -b x -F raw -f raw base.raw",
        ],
    ] {
        check_script(chain, script, images);
    }
}

/// A chain of three images of which the last has clusters of twice the size; the one in the middle holds
/// every second half of some of them.
fn mixed_clusters(dir: &ImageDir) {
    dir.qemu_img(&["create", "-f", "qcow2", "base.qcow2", "384k"]).unwrap();
    for (name, backing, options) in [
        ("middle.qcow2", "base.qcow2", "cluster_size=64k"),
        ("top.qcow2", "middle.qcow2", "cluster_size=128k"),
    ] {
        let args = ["create", "-f", "qcow2", "-b", backing, "-F", "qcow2", "-o", options, name];
        dir.qemu_img(&args).unwrap();
    }
    dir.qemu_io("middle.qcow2", &["write -P 1 64k 64k", "write -P 2 256k 64k"]).unwrap();
}

#[test]
fn a_cluster_that_differs_in_part_is_kept_as_a_whole() {
    let line = ["rebase", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"];
    let mut maps = Vec::new();
    for tool in ["qemu-img", BLOCK_IMG] {
        let dir = ImageDir::new().unwrap();
        mixed_clusters(&dir);
        let before = dir.raw_contents("top.qcow2", &["-f", "qcow2"]).unwrap();
        assert!(dir.run(tool, &line).unwrap().status.success());
        assert!(dir.raw_contents("top.qcow2", &["-f", "qcow2"]).unwrap() == before);
        let map = dir.qemu_img(&["map", "--output=json", "top.qcow2"]).unwrap();
        let mut map: Value = serde_json::from_str(&map).unwrap();
        for extent in map.as_array_mut().unwrap() {
            // Where it stands in the file is everybody's own affair.
            extent.as_object_mut().unwrap().remove("offset");
        }
        maps.push(map);
    }
    assert_eq!(maps[1], maps[0]);
    assert_eq!(maps[1][0]["length"], 128 << 10, "half a cluster more than what differs");
}

#[test]
fn preallocated_growth_has_its_space() {
    for options in ["cluster_size=512", "cluster_size=64k", "cluster_size=64k,extended_l2=on"] {
        for (created, grown) in [("off", "falloc"), ("metadata", "full"), ("full", "falloc")] {
            let dir = ImageDir::new().unwrap();
            let made = format!("{options},preallocation={created}");
            succeed(&dir, &["create", "-q", "-f", "qcow2", "-o", &made, "a.qcow2", "2000k"]);
            let how = format!("--preallocation={grown}");
            succeed(&dir, &["resize", "-q", &how, "a.qcow2", "+80k"]);
            dir.qemu_io("a.qcow2", &["write 0 2000k"]).unwrap();
            let held = || std::fs::metadata(dir.path("a.qcow2")).unwrap().blocks();
            let before = held();
            dir.qemu_io("a.qcow2", &["write 2000k 80k"]).unwrap();
            assert!(held() <= before, "{options}: {created}, then {grown}");
            assert_eq!(dir.check("a.qcow2").unwrap(), Verdict::Clean);
        }
    }
}

#[test]
fn snapshot_says_and_does_what_qemu_img_does() {
    check_script(
        chain,
        &[
            "snapshot -l top.qcow2",
            "snapshot -c one top.qcow2",
            "snapshot top.qcow2",
            "snapshot -q -c two top.qcow2",
            "snapshot -c one top.qcow2",
            "snapshot -l top.qcow2",
            "snapshot -a missing top.qcow2",
            "snapshot -d missing top.qcow2",
            "snapshot -d 2 top.qcow2",
            "snapshot -d one top.qcow2",
            "snapshot -l -U top.qcow2",
            "snapshot -a two top.qcow2",
            "snapshot -a 3 top.qcow2",
            "snapshot -l -c x top.qcow2",
            "snapshot",
            "snapshot -f raw -l base.raw",
            "snapshot -f raw -c x base.raw",
            "snapshot -f raw -d x base.raw",
            "snapshot -f raw -a x base.raw",
            "snapshot missing",
        ],
        CHAIN,
    );
}

#[test]
fn amend_says_and_does_what_qemu_img_does() {
    for script in [
        &["amend -o lazy_refcounts=on top.qcow2", "amend -o lazy_refcounts=off top.qcow2"][..],
        &["amend -o compat=0.10 middle.qcow2", "amend -o compat=1.1 middle.qcow2"],
        &["amend -o refcount_bits=1 top.qcow2", "amend -o refcount_bits=64 top.qcow2"],
        &["amend -o size=8M top.qcow2"],
        &["amend -q -o compat=1.1 top.qcow2"],
        &[
            "amend top.qcow2",
            "amend",
            "amend -o bogus=1 top.qcow2",
            "amend -o cluster_size=128k top.qcow2",
            "amend -f raw -o size=8M base.raw",
            "amend -o compat=7 top.qcow2",
        ],
    ] {
        check_script(chain, script, CHAIN);
    }
}

#[test]
fn bitmap_says_and_does_what_qemu_img_does() {
    check_script(
        chain,
        &[
            "bitmap --add top.qcow2 a",
            "bitmap --add top.qcow2 a",
            "bitmap --add -g 32k --disable top.qcow2 b",
            "bitmap --add --clear --disable --enable top.qcow2 c",
            "bitmap --merge a top.qcow2 b",
            "bitmap --add other.qcow2 o",
            "bitmap --merge o -b other.qcow2 -F qcow2 top.qcow2 b",
            "bitmap --remove top.qcow2 c",
            "bitmap --remove top.qcow2 c",
            "bitmap --clear top.qcow2 missing",
            "bitmap --enable top.qcow2 b",
            "bitmap --merge missing top.qcow2 b",
            "bitmap top.qcow2 b",
            "bitmap top.qcow2",
            "bitmap --add top.qcow2",
            "bitmap --add -g 3 top.qcow2 d",
            "bitmap --add -g 128 top.qcow2 d",
            "bitmap --add -g x top.qcow2 d",
            "bitmap --add top.qcow2 ''",
            "bitmap --clear -g 64k top.qcow2 a",
            "bitmap --clear -b other.qcow2 top.qcow2 a",
            "bitmap --merge a -F qcow2 top.qcow2 b",
            "bitmap -f raw --add base.raw x",
            "bitmap --add missing x",
        ],
        &["base.raw", "middle.qcow2", "top.qcow2", "other.qcow2"],
    );
}

/// Options of conversions to qcow2 that succeed.
const CONVERSIONS: &[&str] = &[
    "-O qcow2",
    "-O qcow2 -m 1",
    "-O qcow2 -W -m 16",
    "-O qcow2 -S 0",
    "-O qcow2 -S 64k",
    "-O qcow2 -o size=10M",
    "-O qcow2 -o size=1M",
    "-O qcow2 -o cluster_size=4k,refcount_bits=8",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -o cluster_size=2M",
    "-O qcow2 -o extended_l2=on",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow2 -o preallocation=full",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -o lazy_refcounts=on",
    "-O qcow2 -o encryption=off",
    "-O qcow2 -o data_file=data.raw",
    "-O qcow2 -o data_file=data.raw,data_file_raw=on",
    "-O qcow2 -t none -T none",
    "-O qcow2 -t directsync",
    "-O qcow2 -t writethrough",
    "-O qcow2 -B middle.qcow2 -F qcow2",
    "-O qcow2 -B middle.qcow2 -F qcow2 -o extended_l2=on",
    "-O qcow2 -o backing_file=middle.qcow2,backing_fmt=qcow2",
    "--salvage -q -O qcow2",
    "-r 100M -O qcow2",
];

#[test]
fn conversions_leave_what_qemu_img_leaves() {
    for options in CONVERSIONS {
        check_script(chain, &[&format!("convert {options} top.qcow2 out.qcow2")], &["out.qcow2"]);
    }
    for target in ["other.qcow2", "middle.qcow2"] {
        let line = format!("convert -n -O qcow2 base.raw {target}");
        check_script(chain, &[&line], &[target]);
    }
    check_script(
        chain,
        &["convert -O qcow2 top.qcow2 base.raw other.qcow2 out.qcow2"],
        &["out.qcow2"],
    );
}

#[test]
fn conversions_that_cannot_be_are_refused_as_by_qemu_img() {
    for options in [
        "-r x -O qcow2",
        "-O qcow2 -B middle.qcow2",
        "-O raw -B middle.qcow2 -F qcow2",
        "-O qcow2 -F qcow2",
        "-O qcow2 -B missing -F qcow2",
        "-O qcow2 -o bogus=1",
        "-O bogus",
        "-n -O qcow2",
        "--target-is-zero -O qcow2",
        "--skip-broken-bitmaps -O qcow2",
        "--bitmaps -O raw",
        "--bitmaps -O qcow2 middle.qcow2",
        "-O qcow2 -B middle.qcow2 -F qcow2 middle.qcow2",
        "-l 1 -O raw middle.qcow2",
        "-l missing -O raw",
        "-l snapshot.id=9 -O raw",
        "-l snapshot.bogus=9 -O raw",
    ] {
        // Of a target that was refused, each leaves what it has made by then.
        check_script(chain, &[&format!("convert {options} top.qcow2 out")], CHAIN);
    }
}

#[test]
fn a_backing_file_further_down_gets_everything_above_it() {
    let dir = ImageDir::new().unwrap();
    chain(&dir);
    succeed(
        &dir,
        &["convert", "-O", "qcow2", "-B", "base.raw", "-F", "raw", "top.qcow2", "out.qcow2"],
    );
    dir.qemu_img(&["compare", "top.qcow2", "out.qcow2"]).unwrap();
    assert_eq!(dir.check("out.qcow2").unwrap(), Verdict::Clean);
    // What the base holds is not copied.
    let map = dir.qemu_img(&["map", "--output=json", "out.qcow2"]).unwrap();
    let map: Value = serde_json::from_str(&map).unwrap();
    let below =
        map.as_array().unwrap().iter().any(|area| area["depth"] == 1 && area["data"] == true);
    assert!(below, "{map}");
}

#[test]
fn snapshots_of_the_source_are_read() {
    let dir = ImageDir::new().unwrap();
    chain(&dir);
    dir.qemu_img(&["snapshot", "-c", "one", "top.qcow2"]).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 11 0 1M"]).unwrap();
    dir.qemu_img(&["snapshot", "-c", "1", "top.qcow2"]).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 12 0 1M"]).unwrap();
    for which in ["1", "one", "snapshot.name=1", "snapshot.id=1", "snapshot.id=2,snapshot.name=1"] {
        let theirs = dir.raw_contents("top.qcow2", &["-l", which]).unwrap();
        succeed(&dir, &["convert", "-l", which, "-O", "raw", "top.qcow2", "ours.raw"]);
        assert!(dir.bytes("ours.raw").unwrap() == theirs, "{which}");
    }
}

#[test]
fn salvaging_zeroes_what_cannot_be_read() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &vec![7; 1 << 20]).unwrap();
    dir.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"]).unwrap();
    // The second half of the data is cut off the file.
    let file = std::fs::OpenOptions::new().write(true).open(dir.path("a.qcow2")).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - (512 << 10)).unwrap();
    let plain = dir.run(BLOCK_IMG, &["convert", "-O", "raw", "a.qcow2", "plain"]).unwrap();
    let salvaged =
        dir.run(BLOCK_IMG, &["convert", "--salvage", "-O", "raw", "a.qcow2", "out"]).unwrap();
    assert_eq!(salvaged.status.code(), Some(0), "{}", text(&salvaged.stderr));
    let out = dir.bytes("out").unwrap();
    assert!(out[..512 << 10].iter().all(|byte| *byte == 7));
    // Where a file ends early is no error to a reader here; where it is one, it is said.
    assert_eq!(plain.status.success(), salvaged.stderr.is_empty());
}

#[test]
fn a_rate_is_kept() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &vec![7; 1 << 20]).unwrap();
    let start = std::time::Instant::now();
    succeed(&dir, &["convert", "-f", "raw", "-r", "2M", "a.raw", "b.raw"]);
    assert!(start.elapsed() >= std::time::Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(dir.bytes("a.raw").unwrap() == dir.bytes("b.raw").unwrap());
}

#[test]
fn bitmaps_are_converted() {
    let dir = ImageDir::new().unwrap();
    chain(&dir);
    dir.qemu_img(&["bitmap", "--add", "top.qcow2", "a"]).unwrap();
    dir.qemu_img(&["bitmap", "--add", "-g", "32k", "top.qcow2", "b"]).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 1 1M 100k", "write -P 2 5M 1k"]).unwrap();
    dir.qemu_img(&["bitmap", "--disable", "top.qcow2", "b"]).unwrap();
    dir.qemu_img(&["convert", "--bitmaps", "-O", "qcow2", "top.qcow2", "theirs.qcow2"]).unwrap();
    succeed(&dir, &["convert", "--bitmaps", "-O", "qcow2", "top.qcow2", "ours.qcow2"]);
    assert_eq!(state(&dir, "ours.qcow2").1, state(&dir, "theirs.qcow2").1);
    assert_eq!(dir.check("ours.qcow2").unwrap(), Verdict::Clean);
}

/// With `-C` the kernel copies what it can (that it does is tested in block-core): the result is the same.
#[test]
fn copies_that_are_left_to_the_file_system_are_the_same() {
    let dir = ImageDir::new().unwrap();
    chain(&dir);
    dir.qemu_img(&["convert", "-O", "raw", "top.qcow2", "flat.raw"]).unwrap();
    dir.qemu_img(&["convert", "-O", "qcow2", "-c", "top.qcow2", "packed.qcow2"]).unwrap();
    for source in ["flat.raw", "top.qcow2", "packed.qcow2"] {
        for to in ["raw", "qcow2"] {
            succeed(&dir, &["convert", "-C", "-O", to, source, "out"]);
            dir.qemu_img(&["compare", "-F", to, source, "out"]).unwrap();
            if to == "qcow2" {
                assert_eq!(dir.check("out").unwrap(), Verdict::Clean);
            }
        }
    }
    let refused = dir.run(BLOCK_IMG, &["convert", "-C", "-S", "8k", "flat.raw", "out"]).unwrap();
    assert!(text(&refused.stderr).contains("Cannot enable copy offloading when -S is used"));
}
