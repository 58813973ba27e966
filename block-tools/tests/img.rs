//! `block-img` beside `qemu-img`: the same bytes, fields, lines and exit statuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use block_testkit::peer::{ImageDir, with_default_signals};
use serde_json::Value;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");

/// Options of `qemu-img create` for images with the contents of [`fill`].
const SHAPES: &[&str] = &[
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=2M",
    "compression_type=zstd",
    "extended_l2=on",
    "refcount_bits=1",
    "lazy_refcounts=on,refcount_bits=64",
    "preallocation=metadata",
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `block-img`, however it ends.
fn run(dir: &ImageDir, args: &[&str]) -> Output {
    dir.run(BLOCK_IMG, args).unwrap()
}

/// Runs `block-img`, which must succeed; its standard output.
fn succeed(dir: &ImageDir, args: &[&str]) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Exit status, standard output, standard error.
fn ended(output: &Output) -> (i32, String, String) {
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Data, zeroes and holes of all sizes, at places that no cluster size divides, and in clusters that
/// were compressed.
fn fill(dir: &ImageDir, name: &str, first_write: &str) {
    let commands = [
        &format!("write {first_write}-P 9 0 2M"),
        "write -P 1 7k 100k",
        "write -P 2 1M 3M",
        "write -z 1500k 300k",
        "write -P 0 3M 128k",
        "write -P 3 9999360 512",
        "discard 2M 256k",
    ];
    dir.qemu_io(name, &commands).unwrap();
}

fn qcow2(dir: &ImageDir, name: &str, options: &str) {
    dir.qemu_img(&["create", "-f", "qcow2", "-o", options, name, "10000384"]).unwrap();
    // Clusters that are there already cannot be written compressed.
    let compressed = if options.contains("preallocation") { "" } else { "-c " };
    fill(dir, name, compressed);
}

/// A chain of three: a raw base, a longer qcow2 image, a still longer one with a snapshot.
fn chain(dir: &ImageDir) -> &'static str {
    dir.qemu_img(&["create", "-f", "raw", "base.raw", "3000320"]).unwrap();
    dir.qemu_io("base.raw", &["write -P 7 100k 200k", "write -P 8 2900k 20k"]).unwrap();
    let overlay = |name, backing, format, size| {
        dir.qemu_img(&["create", "-f", "qcow2", "-b", backing, "-F", format, name, size]).unwrap();
    };
    overlay("middle.qcow2", "base.raw", "raw", "5M");
    dir.qemu_io("middle.qcow2", &["write -P 4 150k 64k", "write -z 2M 1M"]).unwrap();
    overlay("top.qcow2", "middle.qcow2", "qcow2", "6M");
    dir.qemu_io("top.qcow2", &["write -P 5 0 4k", "write -P 6 5500k 100k"]).unwrap();
    dir.qemu_img(&["snapshot", "-c", "one", "top.qcow2"]).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 9 1k 1k", "discard 5504k 64k"]).unwrap();
    "top.qcow2"
}

/// Fails unless a conversion with `options` gives what `qemu-img` gives.
fn check_conversion(dir: &ImageDir, image: &str, options: &[&str]) {
    let expect = dir.raw_contents(image, &[]).unwrap();
    let mut args = vec!["convert", "-O", "raw"];
    args.extend(options);
    args.extend([image, "ours.raw"]);
    assert_eq!(succeed(dir, &args), "");
    assert!(dir.bytes("ours.raw").unwrap() == expect, "{image} {options:?}");
}

#[test]
fn conversions_of_every_shape_are_byte_identical() {
    for shape in SHAPES {
        let dir = ImageDir::new().unwrap();
        qcow2(&dir, "a.qcow2", shape);
        check_conversion(&dir, "a.qcow2", &[]);
        check_conversion(&dir, "a.qcow2", &["-f", "qcow2", "-m", "3", "-W", "-S", "64k"]);
    }
}

#[test]
fn conversions_with_every_option_are_byte_identical() {
    let dir = ImageDir::new().unwrap();
    let top = chain(&dir);
    let all: &[&[&str]] = &[
        &["-m", "1"],
        &["-m", "16", "-W"],
        &["-S", "0"],
        &["-S", "512"],
        &["-S", "16M"],
        &["-t", "none"],
        &["-T", "none"],
        &["-t", "writethrough"],
        &["-t", "directsync", "-T", "none"],
        &["-U"],
        &["-q", "-p"],
        &["-o", "preallocation=falloc"],
        &["-o", "preallocation=full"],
    ];
    for options in all {
        check_conversion(&dir, top, options);
    }
}

#[test]
fn several_inputs_are_joined() {
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=64k");
    dir.write("b.raw", &[7; 1000]).unwrap();
    let inputs = ["a.qcow2", "b.raw", "b.raw", "a.qcow2"];
    let convert = |target| [&["convert", "-O", "raw"], &inputs[..], &[target]].concat();
    dir.qemu_img(&convert("theirs")).unwrap();
    succeed(&dir, &convert("ours"));
    assert!(dir.bytes("ours").unwrap() == dir.bytes("theirs").unwrap());
}

#[test]
fn an_existing_target_gets_its_zeroes_written() {
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=64k");
    let expect = dir.raw_contents("a.qcow2", &[]).unwrap();
    let mut longer = vec![0xee; expect.len() + 4096];
    dir.write("target", &longer).unwrap();
    succeed(&dir, &["convert", "-n", "-O", "raw", "a.qcow2", "target"]);
    longer[..expect.len()].copy_from_slice(&expect);
    assert!(dir.bytes("target").unwrap() == longer);

    dir.write("short", &[0; 512]).unwrap();
    let output = run(&dir, &["convert", "-n", "a.qcow2", "short"]);
    let message = "block-img: output file is smaller than input file\n".to_owned();
    assert_eq!(ended(&output), (1, String::new(), message));
    assert_eq!(dir.bytes("short").unwrap(), [0; 512]);
}

#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=64k");
    let allocated = |name: &str| std::fs::metadata(dir.path(name)).unwrap().blocks() * 512;
    succeed(&dir, &["convert", "a.qcow2", "sparse"]);
    succeed(&dir, &["convert", "-S", "0", "a.qcow2", "full"]);
    assert!(allocated("sparse") < 6 << 20, "{}", allocated("sparse"));
    assert!(allocated("full") >= 10_000_384, "{}", allocated("full"));
}

#[test]
fn names_may_be_options() {
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=4k");
    let expect = dir.raw_contents("a.qcow2", &[]).unwrap();
    succeed(&dir, &["convert", "--image-opts", "driver=qcow2,file.filename=a.qcow2", "b"]);
    assert!(dir.bytes("b").unwrap() == expect);
    let name = "json:{'driver':'raw','offset':512,'size':4096,'file':{'filename':'b'}}";
    succeed(&dir, &["convert", name, "c"]);
    assert!(dir.bytes("c").unwrap() == expect[512..512 + 4096]);
    let target = "driver=raw,file.filename=b";
    succeed(&dir, &["convert", "-n", "-f", "raw", "c", "--target-image-opts", target]);
    assert!(dir.bytes("b").unwrap()[..4096] == expect[512..512 + 4096]);
}

/// Fails unless every field of `theirs` is the same in `ours`, which may have more.
fn check_fields(ours: &Value, theirs: &Value, path: &str) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in theirs {
                let own = ours.get(name).unwrap_or_else(|| panic!("{path}: no {name}"));
                check_fields(own, value, &format!("{path}.{name}"));
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{path}");
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                check_fields(ours, theirs, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(ours, theirs, "{path}"),
    }
}

/// Fails unless both programs give the same JSON fields.
fn check_json(dir: &ImageDir, args: &[&str]) {
    let read = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let theirs = read(dir.qemu_img(args).unwrap());
    check_fields(&read(succeed(dir, args)), &theirs, &format!("{args:?}"));
}

#[test]
fn info_has_the_fields_of_qemu_img() {
    for shape in SHAPES {
        let dir = ImageDir::new().unwrap();
        qcow2(&dir, "a.qcow2", shape);
        check_json(&dir, &["info", "--output", "json", "a.qcow2"]);
        check_json(&dir, &["info", "--output=json", "-f", "raw", "a.qcow2"]);
    }
    let dir = ImageDir::new().unwrap();
    let top = chain(&dir);
    check_json(&dir, &["info", "--output", "json", top]);
    check_json(&dir, &["info", "--output", "json", "--backing-chain", top]);
    check_json(&dir, &["info", "--output", "json", "-U", "base.raw"]);
}

#[test]
fn info_for_people_has_the_layout_of_qemu_img() {
    let dir = ImageDir::new().unwrap();
    let top = chain(&dir);
    // What follows the first child's name is the file's, of which we say more.
    let upper = |text: String| text.split("Child node").next().unwrap_or_default().to_owned();
    let other = "file:image:other.qcow2";
    dir.qemu_img(&["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", other]).unwrap();
    for args in [["info", top], ["info", "base.raw"], ["info", "file:base.raw"], ["info", other]] {
        let theirs = upper(dir.qemu_img(&args).unwrap());
        assert_eq!(upper(succeed(&dir, &args)), theirs);
    }
}

#[test]
fn a_chain_that_loops_or_names_no_file_is_refused() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-f", "qcow2", "a.qcow2", "1M"]).unwrap();
    let chain = ["info", "--backing-chain", "a.qcow2"];
    dir.qemu_img(&["rebase", "-u", "-b", "a.qcow2", "-F", "qcow2", "a.qcow2"]).unwrap();
    let (status, _, err) = ended(&run(&dir, &chain));
    let message = "block-img: Backing file 'a.qcow2' creates an infinite loop.\n";
    assert_eq!((status, err.as_str()), (1, message));
    let name = r#"json:{"driver":"null-co"}"#;
    dir.qemu_img(&["rebase", "-u", "-b", name, "-F", "raw", "a.qcow2"]).unwrap();
    let (status, _, err) = ended(&run(&dir, &chain));
    assert!(status == 1 && err.contains("inside the image is refused"), "{err}");
    let (status, _, err) = ended(&run(&dir, &["convert", "a.qcow2", "b"]));
    assert!(status == 1 && err.contains("inside the image is refused"), "{err}");
    // What the image says of itself needs no backing file.
    assert!(succeed(&dir, &["info", "a.qcow2"]).contains(name));
}

#[test]
fn map_agrees_with_qemu_img() {
    for shape in SHAPES {
        let dir = ImageDir::new().unwrap();
        qcow2(&dir, "a.qcow2", shape);
        check_json(&dir, &["map", "--output", "json", "a.qcow2"]);
    }
    let dir = ImageDir::new().unwrap();
    let top = chain(&dir);
    let all: &[&[&str]] = &[
        &[],
        &["--start-offset", "130k"],
        &["--start-offset", "130k", "--max-length", "2M"],
        &["--start-offset", "20M"],
        &["--max-length", "0"],
    ];
    for options in all {
        check_json(&dir, &[&["map", "--output", "json", top], *options].concat());
        let human = [&["map", top], *options].concat();
        assert_eq!(succeed(&dir, &human), dir.qemu_img(&human).unwrap(), "{options:?}");
    }
    check_json(&dir, &["map", "--output", "json", "base.raw"]);
}

#[test]
fn map_for_people_refuses_what_has_no_offset() {
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=64k");
    let output = run(&dir, &["map", "a.qcow2"]);
    assert_eq!(output.status.code(), Some(1));
    let message = "block-img: File contains external, encrypted or compressed clusters.\n";
    assert_eq!(text(&output.stderr), message);
}

#[test]
fn compare_has_the_answers_and_statuses_of_qemu_img() {
    let dir = ImageDir::new().unwrap();
    qcow2(&dir, "a.qcow2", "cluster_size=64k");
    dir.qemu_img(&["convert", "-O", "raw", "a.qcow2", "a.raw"]).unwrap();
    let mut other = dir.bytes("a.raw").unwrap();
    other[5_000_700] ^= 1;
    dir.write("other.raw", &other).unwrap();
    other.extend([0; 1024]);
    other[5_000_700] ^= 1;
    dir.write("longer.raw", &other).unwrap();
    other[10_000_384 + 600] = 1;
    dir.write("tail.raw", &other).unwrap();
    dir.qemu_img(&["create", "-f", "qcow2", "-o", "size=1M", "broken.qcow2"]).unwrap();
    // The L1 entry points beyond the end of the file.
    let mut broken = dir.bytes("broken.qcow2").unwrap();
    let l1 = usize::try_from(u64::from_be_bytes(broken[40..48].try_into().unwrap())).unwrap();
    broken[l1..l1 + 8].copy_from_slice(&0x8000_0000_0100_0000u64.to_be_bytes());
    dir.write("broken.qcow2", &broken).unwrap();
    dir.write("empty.raw", &[]).unwrap();
    dir.write("zeroes.raw", &[0; 4096]).unwrap();
    let all: &[(&[&str], i32)] = &[
        (&["a.qcow2", "a.raw"], 0),
        (&["empty.raw", "zeroes.raw"], 0),
        (&["a.raw", "empty.raw"], 1),
        (&["empty.raw", "empty.raw"], 0),
        (&["-f", "qcow2", "-F", "raw", "a.qcow2", "a.raw"], 0),
        (&["a.raw", "other.raw"], 1),
        (&["-q", "a.raw", "other.raw"], 1),
        (&["a.raw", "longer.raw"], 0),
        (&["longer.raw", "a.qcow2"], 0),
        (&["-s", "a.raw", "longer.raw"], 1),
        (&["-s", "a.qcow2", "a.qcow2"], 0),
        (&["-s", "a.qcow2", "a.raw"], 1),
        (&["a.raw", "tail.raw"], 1),
        (&["a.raw", "missing"], 2),
        (&["a.raw"], 1),
        (&["-f", "qcow2", "a.raw", "a.raw"], 2),
        (&["-T", "bogus", "a.raw", "a.raw"], 2),
        (&["-T", "none", "a.raw", "a.qcow2"], 0),
    ];
    for (args, status) in all {
        let args = [&["compare"], *args].concat();
        let theirs = dir.run("qemu-img", &args).unwrap();
        let ours = run(&dir, &args);
        assert_eq!(theirs.status.code(), Some(*status), "{args:?}");
        assert_eq!(ours.status.code(), Some(*status), "{args:?}: {}", text(&ours.stderr));
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{args:?}");
    }
}

/// A directory with a raw image of 1 MiB, and what `bench` says there.
fn bench(args: &[&str]) -> (i32, String, String) {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &[1; 1 << 20]).unwrap();
    ended(&run(&dir, &[&["bench", "-f", "raw"], args, &["a.raw"]].concat()))
}

#[test]
fn bench_prints_the_lines_of_qemu_img() {
    let (status, out, err) = bench(&["-c", "500", "-d", "7"]);
    let mut lines = out.lines();
    let first = "Sending 500 read requests, 4096 bytes each, 7 in parallel (starting at offset 0, step size 4096)";
    assert_eq!((status, lines.next(), err.as_str()), (0, Some(first), ""));
    let last = lines.next().unwrap();
    let seconds =
        last.strip_prefix("Run completed in ").unwrap().strip_suffix(" seconds.").unwrap();
    assert!(seconds.parse::<f64>().is_ok() && seconds.split('.').nth(1).unwrap().len() == 3);
    assert_eq!(lines.next(), None);
}

#[test]
fn bench_writes_its_pattern_where_it_says() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &[1; 1 << 20]).unwrap();
    let options = ["-w", "-c", "20", "-d", "3", "-s", "512", "-S", "100k", "-o", "1k", "--pattern"];
    let more = ["7", "--flush-interval", "4", "-t", "writethrough", "a.raw"];
    let out = succeed(&dir, &[&["bench", "-f", "raw"], &options[..], &more[..]].concat());
    assert!(out.contains("Sending 20 write requests, 512 bytes each, 3 in parallel"), "{out}");
    assert!(
        out.contains(
            "(starting at offset 1024, step size 102400)\nSending flush every 4 requests\n"
        )
    );
    let mut expect = vec![1; 1 << 20];
    let mut offset = 1024;
    for _ in 0..20 {
        expect[offset..offset + 512].fill(7);
        offset = (offset + 102_400) % (1 << 20);
    }
    assert!(dir.bytes("a.raw").unwrap() == expect);
}

#[test]
fn bench_takes_every_way_of_running() {
    let all: &[&[&str]] = &[
        &["-c", "100", "-d", "1"],
        &["-c", "100", "-d", "200"],
        &["-c", "100", "-t", "none"],
        &["-c", "100", "-t", "none", "-n"],
        &["-c", "100", "-i", "threads", "-t", "none", "-w"],
        &["-c", "100", "-w", "--flush-interval", "10", "-d", "10", "--no-drain"],
        &["-c", "100", "-w", "-t", "directsync"],
        &["-c", "100", "-q", "-U", "-s", "64k", "-S", "512"],
    ];
    for args in all {
        let (status, out, err) = bench(args);
        assert_eq!(status, 0, "{args:?}: {err}");
        assert!(out.contains("Run completed in "), "{args:?}: {out}");
    }
}

#[test]
fn bench_refuses_what_makes_no_sense() {
    let all: &[(&[&str], &str)] = &[
        (&["-c", "0"], "Invalid request count specified. Must be between 1 and 2147483647."),
        (&["-c", "x"], "Invalid request count specified: 'x'."),
        (&["-d", "0"], "Invalid queue depth specified. Must be between 1 and 2147483647."),
        (&["-w", "--pattern", "256"], "Invalid pattern byte specified. Must be between 0 and 255."),
        (&["--flush-interval", "9"], "--flush-interval is only available in write tests"),
        (&["-w", "--flush-interval", "9"], "Flush interval can't be smaller than depth"),
        (&["-i", "bogus"], "Invalid aio option: bogus"),
        (&["-t", "bogus"], "Invalid cache mode"),
        (&["-o", "2M"], "Failed request: Input/output error"),
        (&["-s", "2M"], "Failed request: Input/output error"),
    ];
    for (args, message) in all {
        let (status, _, err) = bench(args);
        assert_eq!((status, err), (1, format!("block-img: {message}\n")), "{args:?}");
    }
}

#[test]
fn create_says_and_does_what_qemu_img_does() {
    let dir = ImageDir::new().unwrap();
    let all: &[&[&str]] = &[
        &["a.raw", "1000"],
        &["-f", "raw", "a.raw", "1M"],
        &["-q", "a.raw", "2M"],
        &["-o", "size=3M,preallocation=falloc", "a.raw"],
        &["-o", "preallocation=full", "a.raw", "64k"],
        &["a.raw"],
        &["a.raw", "1x"],
        &["a.raw", "--", "-1"],
        &["-o", "size=1M", "a.raw", "1M"],
        &["-o", "bogus=1", "a.raw", "1M"],
        &["-f", "bogus", "a.raw", "1M"],
        &["missing/a.raw", "1M"],
    ];
    for args in all {
        let args = [&["create"], *args].concat();
        let mut made = Vec::new();
        for tool in ["qemu-img", BLOCK_IMG] {
            dir.write("a.raw", &[1; 10]).unwrap();
            let (status, out, err) = ended(&dir.run(tool, &args).unwrap());
            let err = err.replace("qemu-img: ", "block-img: ");
            made.push((status, out, err, dir.bytes("a.raw").unwrap()));
        }
        assert!(made[0] == made[1], "{args:?}: {:?} {:?}", made[0].2, made[1].2);
    }
}

#[test]
fn formats_that_cannot_be_made_are_refused_before_anything_is_made() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &[1; 512]).unwrap();
    for args in
        [&["convert", "-O", "null-co", "a.raw", "b"][..], &["create", "-f", "null-co", "b", "1M"]]
    {
        let (status, _, err) = ended(&run(&dir, args));
        assert_eq!(status, 1);
        assert!(err.contains("'null-co' does not support image creation"), "{err}");
        assert!(!dir.path("b").exists());
    }
    let (status, _, err) = ended(&run(&dir, &["convert", "-O", "bogus", "a.raw", "b"]));
    assert_eq!((status, err.as_str()), (1, "block-img: Unknown file format 'bogus'\n"));
}

#[test]
fn an_image_that_another_process_writes_is_not_converted_unless_shared() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &[1; 4096]).unwrap();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(dir.path("a.raw"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The prompt says that the image is open and locked.
    let mut prompt = [0; 8];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let (status, _, err) = ended(&run(&dir, &["convert", "-f", "raw", "a.raw", "b"]));
    assert_eq!(status, 1);
    assert!(err.contains("Failed to get"), "{err}");
    succeed(&dir, &["convert", "-U", "-f", "raw", "a.raw", "b"]);
    let (status, _, err) = ended(&run(&dir, &["convert", "-f", "raw", "b", "a.raw"]));
    assert_eq!(status, 1);
    assert!(err.contains("Failed to get"), "{err}");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert_eq!(dir.bytes("a.raw").unwrap(), [1; 4096]);
}

#[test]
fn an_interrupt_stops_a_conversion_at_once_and_frees_the_target() {
    let dir = ImageDir::new().unwrap();
    // Data as far as anybody can tell, so it is read, and more than the test could wait for.
    let source = "driver=null-co,size=8T,read-zeroes=off";
    let mut child = with_default_signals(BLOCK_IMG)
        .args(["convert", "-p", "--image-opts", source])
        .arg(dir.path("target"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first progress line comes when the copy has begun.
    let mut line = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let sent = Instant::now();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("block-img: interrupted after "));
    assert!(text(&output.stdout).ends_with('\n'));
    // What was made is left, and nobody holds a lock on it.
    dir.qemu_io("target", &["read 0 4k"]).unwrap();
}

#[test]
fn progress_through_a_pipe_ends_at_the_end() {
    let dir = ImageDir::new().unwrap();
    dir.write("a.raw", &vec![1; 4 << 20]).unwrap();
    let out = succeed(&dir, &["convert", "-p", "a.raw", "b.raw"]);
    assert!(out.starts_with("    (0.00/100%)\r"), "{out:?}");
    assert!(out.ends_with("    (100.00/100%)\r\n"), "{out:?}");
}
