//! `block-img` on VMDK images beside `qemu-img`: the same lines, statuses, disks and descriptions. Where
//! qemu-img cannot do a thing, or does it wrong, the disk must be the one that it should be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::process::Output;
use std::sync::OnceLock;

use block_testkit::peer::{ImageDir, Verdict};
use serde_json::Value;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
/// What a guest sees of `base.vmdk`, no multiple of a grain.
const DISK: &str = "disk.raw";
/// Images of every subformat with the contents of [`DISK`].
const SHAPES: [(&str, &str); 6] = [
    ("base.vmdk", "subformat=monolithicSparse"),
    ("zeroed.vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    ("flat.vmdk", "subformat=monolithicFlat"),
    ("split.vmdk", "subformat=twoGbMaxExtentSparse"),
    ("splitflat.vmdk", "subformat=twoGbMaxExtentFlat"),
    ("stream.vmdk", "subformat=streamOptimized"),
];
/// `top.vmdk` over `middle.vmdk` over `base.vmdk`, from the top.
const CHAIN: [&str; 3] = ["top.vmdk", "middle.vmdk", "base.vmdk"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `block-img`, which must succeed; its standard output.
fn succeed(dir: &ImageDir, args: &[&str]) -> String {
    let output = dir.run(BLOCK_IMG, args).unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs `block-img`, which must fail with status 1; its standard error.
fn refused(dir: &ImageDir, args: &[&str]) -> String {
    let output = dir.run(BLOCK_IMG, args).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Makes the images of [`SHAPES`], the chain, and `other.vmdk` over `base.vmdk`.
fn make_images(dir: &ImageDir) {
    dir.qemu_img(&["create", "-q", "-f", "raw", DISK, "5244416"]).unwrap();
    let fill =
        ["write -P 1 7k 100k", "write -P 2 1M 1M", "write -P 3 4000k 512", "write -P 4 5121k 512"];
    dir.qemu_io(DISK, &fill).unwrap();
    for (name, options) in SHAPES {
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", options, DISK, name];
        dir.qemu_img(&args).unwrap();
    }
    let overlay = |name, backing, size, writes: &[&str]| {
        let args = ["create", "-q", "-f", "vmdk", "-b", backing, "-F", "vmdk", name, size];
        dir.qemu_img(&args).unwrap();
        dir.qemu_io(name, writes).unwrap();
    };
    let same = "5244416";
    overlay("middle.vmdk", "base.vmdk", same, &["write -P 4 128k 64k", "write -P 5 2M 1M"]);
    overlay("top.vmdk", "middle.vmdk", same, &["write -P 6 0 64k", "write -P 7 5M 1k"]);
    overlay("other.vmdk", "base.vmdk", same, &["write -P 4 128k 64k", "write -P 9 3M 64k"]);
}

/// A directory with copies of the images, which are made once.
fn images() -> ImageDir {
    static MADE: OnceLock<ImageDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = ImageDir::new().unwrap();
        make_images(&dir);
        dir
    });
    let dir = ImageDir::new().unwrap();
    for entry in std::fs::read_dir(made.path("")).unwrap() {
        let name = entry.unwrap().file_name();
        std::fs::copy(made.path(&name), dir.path(&name)).unwrap();
    }
    dir
}

/// What a program did: its status, what it printed without what depends on clock, chance and file
/// system, and whether it complained.
fn ended(output: &Output) -> (Option<i32>, String, bool) {
    let printed = text(&output.stdout).replace("qemu-img", "block-img");
    let mut lines = Vec::new();
    for line in printed.lines() {
        let name = line.trim_start().split(':').next().unwrap_or_default();
        match name {
            "aio" => {
                lines.pop();
            }
            "cid" | "parent cid" | "disk size" => lines.push(name.to_owned()),
            _ if line.starts_with("Run completed in") => lines.push("Run completed".to_owned()),
            _ => lines.push(line.to_owned()),
        }
    }
    (output.status.code(), lines.join("\n"), !output.stderr.is_empty())
}

/// Runs the lines of a script by both programs, each in a directory of its own, which must say the same;
/// the directories.
fn run_script(script: &[&str]) -> [ImageDir; 2] {
    let dirs = [images(), images()];
    run_in(dirs.each_ref(), script);
    dirs
}

/// Runs the lines of a script by both programs, which must say the same.
fn run_in(dirs: [&ImageDir; 2], script: &[&str]) {
    for line in script {
        let words: Vec<&str> =
            line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        let theirs = dirs[0].run("qemu-img", &words).unwrap();
        let ours = dirs[1].run(BLOCK_IMG, &words).unwrap();
        let said = [&ours, &theirs].map(|output| text(&output.stderr));
        assert_eq!(ended(&ours), ended(&theirs), "{line}\nour and their errors: {said:#?}");
    }
}

/// [`run_script`], and `images` must be the same disks and be described alike afterwards.
fn check_script(script: &[&str], images: &[&str]) {
    let [theirs, ours] = run_script(script);
    for image in images {
        assert!(
            contents(&ours, image) == contents(&theirs, image),
            "contents of {image} after {script:?}"
        );
        assert_eq!(description(&ours, image), description(&theirs, image), "{image} {script:?}");
        assert_clean(&ours, image);
    }
}

/// What a guest sees of an image, as qemu-img reads it.
fn contents(dir: &ImageDir, image: &str) -> Vec<u8> {
    dir.raw_contents(image, &["-f", "vmdk"]).unwrap()
}

fn assert_clean(dir: &ImageDir, image: &str) {
    assert_eq!(dir.check(image).unwrap(), Verdict::Clean, "{image}");
}

/// What qemu-img says of an image, without what chance and file system decide.
fn description(dir: &ImageDir, image: &str) -> Value {
    let args = ["info", "--output=json", "-f", "vmdk", image];
    let mut info: Value = serde_json::from_str(&dir.qemu_img(&args).unwrap()).unwrap();
    let data = info["format-specific"]["data"].as_object_mut().unwrap();
    data.remove("cid");
    data.remove("parent-cid");
    let children = info["children"].as_array_mut().unwrap();
    let names = children.iter().map(|child| child["info"]["filename"].clone());
    let names: Vec<Value> = names.collect();
    info["children"] = Value::from(names);
    info.as_object_mut().unwrap().remove("actual-size");
    info
}

#[test]
fn create_says_and_makes_what_qemu_img_does() {
    let with_size = [
        "10M",
        "512",
        "1000",
        "-q a.vmdk",
        "-o zeroed_grain=on a.vmdk",
        "-o compat6=on a.vmdk",
        "-o compat6 a.vmdk",
        "-o hwversion=7,toolsversion=3 a.vmdk",
        "-o adapter_type=legacyESX a.vmdk",
        "-o adapter_type=buslogic,subformat=monolithicFlat a.vmdk",
        "-o subformat=twoGbMaxExtentSparse a.vmdk 5G",
        "-o subformat=twoGbMaxExtentSparse,zeroed_grain=on a.vmdk 2G",
        "-o subformat=twoGbMaxExtentFlat a.vmdk 4097M",
        "-o subformat=streamOptimized a.vmdk",
        "-o subformat=streamOptimized,compat6=on,adapter_type=lsilogic a.vmdk",
        "-b base.vmdk -F vmdk a.vmdk",
        "-o backing_file=base.vmdk,backing_fmt=vmdk a.vmdk",
        "-o subformat=twoGbMaxExtentSparse -b base.vmdk -F vmdk a.vmdk 5G",
    ];
    for options in with_size {
        let line = match options.split_once("a.vmdk") {
            None => format!("create -f vmdk a.vmdk {options}"),
            Some((_, "")) if !options.contains("base") => format!("create -f vmdk {options} 7M"),
            Some(_) => format!("create -f vmdk {options}"),
        };
        let dirs = run_script(&[&line]);
        let [theirs, ours] = dirs.each_ref().map(|dir| description(dir, "a.vmdk"));
        assert_eq!(ours, theirs, "{line}");
        assert_clean(&dirs[1], "a.vmdk");
        let info = run_info(&dirs[1], "a.vmdk");
        assert_eq!(info["virtual-size"], ours["virtual-size"], "{line}");
    }
}

fn run_info(dir: &ImageDir, image: &str) -> Value {
    serde_json::from_str(&succeed(dir, &["info", "--output=json", image])).unwrap()
}

#[test]
fn create_refuses_what_qemu_img_refuses() {
    run_script(&[
        "create -f vmdk a.vmdk",
        "create -f vmdk -o subformat=bogus a.vmdk 1M",
        "create -f vmdk -o adapter_type=bogus a.vmdk 1M",
        "create -f vmdk -o compat6=on,hwversion=4 a.vmdk 1M",
        "create -f vmdk -b disk.raw -F raw a.vmdk",
        "create -f vmdk -b base.vmdk a.vmdk",
        "create -f vmdk -b missing.vmdk -F vmdk a.vmdk",
        "create -f vmdk -u -b missing.vmdk -F vmdk a.vmdk 1M",
        "create -f vmdk -o subformat=monolithicFlat -b base.vmdk -F vmdk a.vmdk",
        "create -f vmdk -o subformat=monolithicFlat,zeroed_grain=on a.vmdk 1M",
        "create -f vmdk -o bogus=1 a.vmdk 1M",
        "create -f vmdk missing/a.vmdk 1M",
    ]);
}

#[test]
fn what_is_converted_to_is_what_qemu_img_makes() {
    let options = [
        "",
        "-o subformat=monolithicFlat",
        "-o subformat=twoGbMaxExtentSparse",
        "-o subformat=twoGbMaxExtentFlat",
        "-o zeroed_grain=on",
        "-o compat6=on,adapter_type=lsilogic",
        "-S 0",
        "-S 64k",
        "-W",
        "-m 16 -W",
        "-t none",
        "-t writethrough",
        "-o subformat=streamOptimized",
        "-c -o subformat=streamOptimized",
        "-o subformat=streamOptimized,adapter_type=lsilogic -m 4 -W",
        "-B base.vmdk -F vmdk",
        "-o subformat=twoGbMaxExtentSparse -B base.vmdk -F vmdk",
    ];
    for option in options {
        for source in ["disk.raw", "middle.vmdk", "stream.vmdk"] {
            let line = ["convert -O vmdk", option, source, "out.vmdk"];
            let line = line.map(str::to_owned).into_iter().filter(|part| !part.is_empty());
            let line = line.collect::<Vec<_>>().join(" ");
            check_script(&[&line], &["out.vmdk"]);
        }
    }
}

#[test]
fn conversions_into_images_that_are_there() {
    for shape in ["", " -o subformat=twoGbMaxExtentSparse", " -o subformat=monolithicFlat"] {
        let create = format!("create -q -f vmdk{shape} out.vmdk 6M");
        for convert in [
            "convert -n -O vmdk top.vmdk out.vmdk",
            "convert -n -S 0 -O vmdk disk.raw out.vmdk",
            "convert -n --target-is-zero -O vmdk stream.vmdk out.vmdk",
            "convert -n -W -O vmdk zeroed.vmdk out.vmdk",
        ] {
            check_script(&[&create, convert], &["out.vmdk"]);
        }
        run_script(&[
            "create -q -f vmdk out.vmdk 1M",
            "convert -n -O vmdk top.vmdk out.vmdk",
            "convert -n -O vmdk -o zeroed_grain=on disk.raw out.vmdk",
            "convert -O vmdk -o bogus=1 disk.raw out.vmdk",
        ]);
    }
}

/// More than one extent is written, and requests cross from one to the next.
#[test]
fn a_long_disk_is_converted_into_several_extents() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = ImageDir::new().unwrap();
        dir.qemu_img(&["create", "-q", "-f", "raw", "long.raw", "4297065472"]).unwrap();
        let across = ["write -P 1 2047M 2M", "write -P 2 4095M 2M", "write -P 3 4297064960 512"];
        dir.qemu_io("long.raw", &across).unwrap();
        let options = format!("subformat={subformat}");
        succeed(&dir, &["convert", "-O", "vmdk", "-o", &options, "long.raw", "out.vmdk"]);
        let info = dir.qemu_img(&["info", "--output=json", "out.vmdk"]).unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["format-specific"]["data"]["extents"].as_array().unwrap().len(), 3);
        dir.qemu_img(&["compare", "-f", "raw", "-F", "vmdk", "long.raw", "out.vmdk"]).unwrap();
        assert_clean(&dir, "out.vmdk");
        succeed(&dir, &["convert", "-O", "raw", "out.vmdk", "back.raw"]);
        dir.qemu_img(&["compare", "-s", "-f", "raw", "-F", "raw", "long.raw", "back.raw"]).unwrap();
    }
}

#[test]
fn conversions_of_every_shape_are_byte_identical() {
    let dir = images();
    let all = SHAPES.iter().map(|(name, _)| *name).chain(CHAIN).chain(["other.vmdk"]);
    for image in all {
        let expected = contents(&dir, image);
        for options in [&[][..], &["-f", "vmdk", "-W", "-m", "3"], &["-S", "0"], &["-T", "none"]] {
            let args = [&["convert", "-O", "raw"], options, &[image, "ours.raw"]].concat();
            assert_eq!(succeed(&dir, &args), "");
            assert!(dir.bytes("ours.raw").unwrap() == expected, "{image} {options:?}");
        }
    }
}

#[test]
fn info_map_and_compare_say_what_qemu_img_says() {
    // The same files for both: where a copy has holes is the file system's business.
    let dir = images();
    for image in SHAPES.iter().map(|(name, _)| *name).chain(CHAIN) {
        let lines = [
            "info",
            "info --backing-chain",
            "map",
            "map --output=json",
            "compare disk.raw",
            "compare -f vmdk -F vmdk stream.vmdk",
            "measure -O qcow2",
            "measure --output=json -O raw",
        ];
        let lines = lines.map(|line| format!("{line} {image}"));
        run_in([&dir, &dir], &lines.each_ref().map(String::as_str));
        // Of a file, qemu-img's strict mode sees where it ends.
        if !image.contains("flat") {
            run_in([&dir, &dir], &[&format!("compare -s -f vmdk -F vmdk base.vmdk {image}")]);
        }
    }
}

/// qemu-img cannot measure for VMDK.
#[test]
fn a_converted_image_takes_what_was_measured() {
    for (name, options) in SHAPES {
        let dir = images();
        let args = ["measure", "--output=json", "-O", "vmdk", "-o", options, DISK];
        let measured: Value = serde_json::from_str(&succeed(&dir, &args)).unwrap();
        succeed(&dir, &["convert", "-O", "vmdk", "-o", options, DISK, "out.vmdk"]);
        let files = std::fs::read_dir(dir.path("")).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with("out"))
        });
        let len: u64 = files.map(|path| std::fs::metadata(path).unwrap().len()).sum();
        assert!(len <= measured["required"].as_u64().unwrap(), "{name}: {len}, {measured}");
    }
}

#[test]
fn check_finds_nothing_where_qemu_img_finds_nothing() {
    let dir = images();
    for image in SHAPES.iter().map(|(name, _)| *name).chain(CHAIN) {
        for args in
            [&["check", image][..], &["check", "-f", "vmdk", image], &["check", "-q", image]]
        {
            let ours = dir.run(BLOCK_IMG, args).unwrap();
            let theirs = dir.run("qemu-img", args).unwrap();
            let first = |output: &Output| text(&output.stdout).lines().next().map(str::to_owned);
            assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}: {ours:?}");
            assert_eq!(first(&ours), first(&theirs), "{args:?}");
        }
        let report = succeed(&dir, &["check", "--output=json", image]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["check-errors"], 0, "{report}");
        assert_eq!(report["format"], "vmdk");
        assert_eq!(report["filename"], image);
    }
}

/// qemu-img sees nothing wrong with copies of a table that differ.
#[test]
fn check_finds_and_mends_what_qemu_img_does_not_look_for() {
    let dir = images();
    let mut bytes = dir.bytes("base.vmdk").unwrap();
    // The redundant copy of the first table: the sector that the redundant directory names.
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let directory = usize::try_from(word(&bytes, 48)).unwrap() * 512;
    let table = usize::try_from(word(&bytes, directory)).unwrap() * 512;
    assert_ne!(word(&bytes, table), 0);
    bytes[table..table + 4].fill(0);
    dir.write("base.vmdk", &bytes).unwrap();
    assert_eq!(dir.check("base.vmdk").unwrap(), Verdict::Clean);
    let before = contents(&dir, "base.vmdk");
    assert_eq!(dir.run(BLOCK_IMG, &["check", "base.vmdk"]).unwrap().status.code(), Some(2));
    succeed(&dir, &["check", "-r", "all", "base.vmdk"]);
    succeed(&dir, &["check", "base.vmdk"]);
    assert!(contents(&dir, "base.vmdk") == before);
}

#[test]
fn rebase_changes_the_parent_and_not_the_disk() {
    for (args, parent) in [
        (&["-b", "base.vmdk", "-F", "vmdk"][..], Some("base.vmdk")),
        (&["-b", "other.vmdk", "-F", "vmdk"], Some("other.vmdk")),
        (&["-b", "flat.vmdk", "-F", "vmdk", "-t", "none"], Some("flat.vmdk")),
        (&["-b", "stream.vmdk", "-F", "vmdk"], Some("stream.vmdk")),
        (&["-b", ""], None),
    ] {
        let dir = images();
        let before = contents(&dir, "top.vmdk");
        succeed(&dir, &[&["rebase"], args, &["top.vmdk"]].concat());
        assert_parent(&dir, "top.vmdk", parent);
        assert!(contents(&dir, "top.vmdk") == before, "{args:?}");
        assert_clean(&dir, "top.vmdk");
    }
}

/// Fails unless the image names this parent by name and by content id.
fn assert_parent(dir: &ImageDir, image: &str, parent: Option<&str>) {
    let info = run_info(dir, image);
    assert_eq!(info["backing-filename"].as_str(), parent);
    let expected = match parent {
        Some(parent) => run_info(dir, parent)["format-specific"]["data"]["cid"].clone(),
        None => Value::from(u32::MAX),
    };
    assert_eq!(info["format-specific"]["data"]["parent-cid"], expected, "{image} {parent:?}");
}

#[test]
fn an_unsafe_rebase_changes_the_descriptor_only() {
    for (name, parent) in
        [("base.vmdk", Some("base.vmdk")), ("other.vmdk", Some("other.vmdk")), ("", None)]
    {
        let dir = images();
        let file = dir.bytes("top.vmdk").unwrap();
        succeed(&dir, &["rebase", "-u", "-b", name, "-F", "vmdk", "top.vmdk"]);
        assert_parent(&dir, "top.vmdk", parent);
        let changed = dir.bytes("top.vmdk").unwrap();
        let grains = 64 << 10;
        assert!(changed[..512] == file[..512] && changed[grains..] == file[grains..]);
        assert_clean(&dir, "top.vmdk");
    }
    // A parent that was written to by itself is taken back.
    let dir = images();
    dir.qemu_io("middle.vmdk", &["write -P 9 4M 64k"]).unwrap();
    assert!(refused(&dir, &["map", "top.vmdk"]).contains("parentCID"));
    succeed(&dir, &["rebase", "-u", "-b", "middle.vmdk", "-F", "vmdk", "top.vmdk"]);
    assert_parent(&dir, "top.vmdk", Some("middle.vmdk"));
    succeed(&dir, &["map", "top.vmdk"]);
}

#[test]
fn rebase_refuses_what_no_vmdk_can_be() {
    let dir = images();
    let before = CHAIN.map(|image| dir.bytes(image).unwrap());
    for (args, word) in [
        (&["-u", "-b", "missing", "-F", "vmdk", "top.vmdk"][..], "missing"),
        (&["-b", "missing", "-F", "vmdk", "top.vmdk"], "missing"),
        (&["-u", "-b", "disk.raw", "-F", "raw", "top.vmdk"], "another format"),
        // Before anything is copied.
        (&["-b", "disk.raw", "-F", "raw", "top.vmdk"], "another format"),
        (&["-u", "-b", "disk.raw", "-F", "vmdk", "top.vmdk"], "disk.raw"),
        (&["-u", "-b", "base.vmdk", "top.vmdk"], "backing format must be specified"),
        (&["-u", "-b", "base.vmdk", "-F", "vmdk", "flat.vmdk"], "not sparse"),
        (&["-u", "-b", "base.vmdk", "-F", "vmdk", "stream.vmdk"], "streamOptimized"),
        (&["-u", "-b", "a\"b", "-F", "vmdk", "top.vmdk"], "plain"),
    ] {
        let said = refused(&dir, &[&["rebase"], args].concat());
        assert!(said.contains(word), "{args:?}: {said}");
    }
    assert!(CHAIN.map(|image| dir.bytes(image).unwrap()) == before);
}

/// qemu-img's own overlay cannot be read afterwards, because its parent has another content id.
#[test]
fn commit_moves_the_overlay_into_its_parent() {
    for (args, keeps) in [
        (&["commit", "top.vmdk"][..], false),
        (&["commit", "-d", "top.vmdk"], true),
        (&["commit", "-b", "middle.vmdk", "-q", "top.vmdk"], true),
        (&["commit", "-t", "writethrough", "-f", "vmdk", "-r", "100M", "top.vmdk"], false),
    ] {
        let dirs = [images(), images()];
        let before = contents(&dirs[1], "top.vmdk");
        let output = dirs[1].run(BLOCK_IMG, args).unwrap();
        assert_eq!(ended(&output), ended(&dirs[0].run("qemu-img", args).unwrap()), "{args:?}");
        assert_parent(&dirs[1], "top.vmdk", Some("middle.vmdk"));
        assert_parent(&dirs[1], "middle.vmdk", Some("base.vmdk"));
        for image in ["top.vmdk", "middle.vmdk"] {
            assert!(contents(&dirs[1], image) == before, "{image} {args:?}");
            assert_clean(&dirs[1], image);
        }
        assert!(contents(&dirs[0], "middle.vmdk") == before);
        let map = succeed(&dirs[1], &["map", "--output=json", "top.vmdk"]);
        assert_eq!(map.contains("\"depth\": 0, \"present\": true"), keeps, "{args:?}: {map}");
    }
    run_script(&["commit base.vmdk", "commit -b missing top.vmdk", "commit flat.vmdk"]);
}

/// What is between top and base reads differently afterwards, but the top does not, and all of it opens.
#[test]
fn commit_over_an_image_in_between_leaves_a_chain_that_opens() {
    let dir = images();
    let before = contents(&dir, "top.vmdk");
    succeed(&dir, &["commit", "-b", "base.vmdk", "top.vmdk"]);
    assert_parent(&dir, "middle.vmdk", Some("base.vmdk"));
    assert_parent(&dir, "top.vmdk", Some("middle.vmdk"));
    assert!(contents(&dir, "top.vmdk") == before);
    assert!(contents(&dir, "base.vmdk") == before);
    for image in CHAIN {
        assert_clean(&dir, image);
        succeed(&dir, &["check", image]);
    }
}

/// The content id that an image with its descriptor inside has, read while others may write.
fn content_id(dir: &ImageDir, image: &str) -> String {
    let head = dir.bytes(image).unwrap();
    let text = String::from_utf8_lossy(&head[512..1536]).into_owned();
    text.lines().find_map(|line| line.strip_prefix("CID=")).unwrap().to_owned()
}

/// Whoever commits is killed while the data moves: every image opens and the top reads as before, and another
/// commit comes to its end.
#[test]
fn a_commit_that_is_killed_leaves_a_chain_that_opens() {
    for (base, args) in [("middle", &["commit"][..]), ("base", &["commit", "-b", "base"])] {
        let dir = ImageDir::new().unwrap();
        dir.qemu_img(&["create", "-q", "-f", "vmdk", "base", "8M"]).unwrap();
        dir.qemu_io("base", &["write -P 1 0 8M"]).unwrap();
        for (name, below) in [("middle", "base"), ("top", "middle")] {
            succeed(&dir, &["create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", name]);
        }
        dir.qemu_io("top", &["write -P 2 1M 6M"]).unwrap();
        let before = contents(&dir, "top");
        let old = content_id(&dir, base);
        let slow = [args, &["-r", "2M", "top"]].concat();
        let mut command = std::process::Command::new(BLOCK_IMG);
        let mut commit = command.args(&slow).current_dir(dir.path("")).spawn().unwrap();
        while content_id(&dir, base) == old {
            assert_eq!(commit.try_wait().unwrap(), None, "{slow:?} ended before it began");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(commit.try_wait().unwrap(), None, "{slow:?} was too quick");
        commit.kill().unwrap();
        commit.wait().unwrap();
        for image in ["middle", "top"] {
            succeed(&dir, &["map", image]);
        }
        assert!(contents(&dir, "top") == before, "{slow:?}");
        succeed(&dir, &[args, &["top"]].concat());
        for image in [base, "top"] {
            assert!(contents(&dir, image) == before, "{image} after {slow:?}");
        }
    }
}

#[test]
fn what_vmdk_has_not_is_refused() {
    run_script(&[
        "snapshot -l base.vmdk",
        "snapshot -c one base.vmdk",
        "snapshot -a one base.vmdk",
        "snapshot -d one base.vmdk",
        "resize base.vmdk +1M",
        "resize flat.vmdk +1M",
        "resize split.vmdk 9M",
        "resize --shrink base.vmdk -1M",
        "amend -o zeroed_grain=on base.vmdk",
        "bitmap --add base.vmdk one",
        "bitmap --remove base.vmdk one",
    ]);
    let dir = images();
    for args in [
        &["snapshot", "-c", "one", "base.vmdk"][..],
        &["resize", "base.vmdk", "+1M"],
        &["amend", "-o", "zeroed_grain=on", "base.vmdk"],
        &["bitmap", "--add", "base.vmdk", "one"],
    ] {
        let said = refused(&dir, args).to_lowercase();
        assert!(said.contains("support") || said.contains("cannot"), "{args:?}: {said}");
    }
}

#[test]
fn dd_and_bench_do_what_qemu_img_does() {
    for options in ["", " bs=1M", " bs=64k skip=3 count=5", " bs=1000 count=7 skip=2"] {
        let line = format!("dd -O vmdk if=top.vmdk of=out.vmdk{options}");
        let dirs = run_script(&[&line, &format!("dd if=split.vmdk of=out.raw{options}")]);
        let [theirs, ours] = dirs.each_ref().map(|dir| dir.bytes("out.raw").unwrap());
        assert!(ours == theirs, "{options}");
        let [theirs, ours] = dirs.each_ref().map(|dir| contents(dir, "out.vmdk"));
        assert!(ours == theirs, "{options}");
    }
    run_script(&["dd if=top.vmdk of=out.raw skip=99999999", "dd -f raw if=top.vmdk of=a count=1"]);
    check_script(
        &[
            "bench -c 100 top.vmdk",
            "bench -w -c 50 -d 4 -s 64k -S 100k --pattern=17 top.vmdk",
            "bench -w -c 5 -s 512 --flush-interval=2 split.vmdk",
            "bench -w -c 16 -s 64k flat.vmdk",
        ],
        &["top.vmdk", "split.vmdk", "flat.vmdk"],
    );
}

/// qemu-img leaves out of the disk what is not `RW`; it must be in the disk, and closed to writes or to all.
#[test]
fn extents_that_are_closed_stay_closed() {
    let dir = images();
    dir.write("a.raw", &[b'a'; 224 * 512]).unwrap();
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
        createType=\"twoGbMaxExtentFlat\"\n\
        RW 128 FLAT \"a.raw\" 0\nRDONLY 64 FLAT \"a.raw\" 128\nNOACCESS 32 FLAT \"a.raw\" 192\n";
    dir.write("closed.vmdk", descriptor.as_bytes()).unwrap();
    let info = run_info(&dir, "closed.vmdk");
    assert_eq!(info["virtual-size"], 224 * 512);
    let said = refused(&dir, &["convert", "-O", "raw", "closed.vmdk", "out.raw"]);
    assert!(said.contains("98304") || said.contains("ermission"), "{said}");
    let said = refused(&dir, &["bench", "-w", "-c", "25", "closed.vmdk"]);
    assert!(said.to_lowercase().contains("read-only") || said.contains("not permitted"), "{said}");
    assert!(dir.bytes("a.raw").unwrap().iter().skip(65536).all(|b| *b == b'a'));

    let open = descriptor.replace("NOACCESS 32", "RDONLY 32");
    dir.write("open.vmdk", open.as_bytes()).unwrap();
    succeed(&dir, &["convert", "-O", "raw", "open.vmdk", "out.raw"]);
    assert_eq!(dir.bytes("out.raw").unwrap().len(), 224 * 512);
}
