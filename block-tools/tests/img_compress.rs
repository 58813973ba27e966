//! Compressed conversions and rebases of `block-img` beside those of `qemu-img`: the same scripts leave
//! disks of the same contents whose same clusters are compressed, and images that `qemu-img check` finds
//! nothing in; the same input and options give the same bytes, however many requests are in flight.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::sync::OnceLock;

use block_testkit::peer::{ImageDir, Verdict};
use serde_json::Value;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");

/// Length of the raw source: no multiple of any cluster but one of sectors.
const RAW_BYTES: usize = (5 << 20) + 3 * 512;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `block-img`, which must succeed.
fn succeed(dir: &ImageDir, line: &str) {
    let args: Vec<_> = line.split(' ').collect();
    let output = dir.run(BLOCK_IMG, &args).unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
}

/// Bytes of a raw disk: what compresses well, what does not, zeroes in large and small parts.
fn mixed(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let sectors = usize::try_from(1 + random() % 300).unwrap();
        let kind = random() % 4;
        for at in 0..sectors * 512 {
            bytes.push(match kind {
                0 => 0,
                1 => u8::try_from(random() & 0xff).unwrap(),
                _ => u8::try_from(at / 100 % 7).unwrap(),
            });
        }
    }
    bytes.truncate(len);
    bytes
}

/// Copies of the images that are made once: a raw disk, a chain of two, an image to rebase onto.
fn images(dir: &ImageDir) {
    static MADE: OnceLock<ImageDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = ImageDir::new().unwrap();
        dir.write("a.raw", &mixed(RAW_BYTES)).unwrap();
        dir.write("b.raw", &mixed(70_000 / 512 * 512)).unwrap();
        dir.qemu_img(&["create", "-f", "qcow2", "base.qcow2", "3000320"]).unwrap();
        dir.qemu_io("base.qcow2", &["write -P 3 0 1M", "write -P 9 1500k 100k"]).unwrap();
        dir.qemu_img(&["create", "-f", "qcow2", "new.qcow2", "3000320"]).unwrap();
        dir.qemu_io("new.qcow2", &["write -P 3 0 512k", "write -P 8 1520k 10k"]).unwrap();
        for (name, options) in [("top.qcow2", "extended_l2=off"), ("ext.qcow2", "extended_l2=on")] {
            let create =
                ["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o", options];
            dir.qemu_img(&[create.as_slice(), &[name, "4000256"]].concat()).unwrap();
            let writes = ["write -P 4 100k 30k", "write -z 512k 64k", "write -z 600k 10k"];
            dir.qemu_io(name, &writes).unwrap();
        }
        dir
    });
    for name in ["a.raw", "b.raw", "base.qcow2", "new.qcow2", "top.qcow2", "ext.qcow2"] {
        std::fs::copy(made.path(name), dir.path(name)).unwrap();
    }
}

/// Which parts of the image itself are compressed, as `qemu-img map` tells it.
fn compressed_parts(dir: &ImageDir, image: &str) -> Vec<(u64, u64)> {
    let map = dir.qemu_img(&["map", "--output=json", image]).unwrap();
    let map: Value = serde_json::from_str(&map).unwrap();
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for area in map.as_array().unwrap() {
        let number = |field: &str| area[field].as_u64().unwrap();
        if area["compressed"] == true && number("depth") == 0 {
            let (start, end) = (number("start"), number("start") + number("length"));
            match parts.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => parts.push((start, end)),
            }
        }
    }
    parts
}

/// Runs a line by both programs on copies of the same images, and fails unless both end alike and leave
/// the same in `image`. Gives the directories of `qemu-img` and of `block-img`.
fn check_line(line: &str, image: &str) -> [ImageDir; 2] {
    let words: Vec<&str> =
        line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
    let dirs = [ImageDir::new().unwrap(), ImageDir::new().unwrap()];
    let mut ended = Vec::new();
    for (dir, program) in dirs.iter().zip(["qemu-img", BLOCK_IMG]) {
        images(dir);
        let output = dir.run(program, &words).unwrap();
        ended.push((output.status.code(), text(&output.stdout), output.stderr.is_empty()));
    }
    assert_eq!(ended[1], ended[0], "{line}");
    let [theirs, ours] = &dirs;
    assert_eq!(ours.path(image).exists(), theirs.path(image).exists(), "{line}");
    if ended[0].0 == Some(0) {
        let contents = |dir: &ImageDir| dir.raw_contents(image, &[]).unwrap();
        assert!(contents(ours) == contents(theirs), "contents of {image} after {line}");
        assert_eq!(ours.check(image).unwrap(), Verdict::Clean, "{line}");
    }
    dirs
}

/// [`check_line`] of a line with which the same parts of `image` have to end up compressed.
fn check_compressed(line: &str, image: &str) {
    let [theirs, ours] = check_line(line, image).map(|dir| compressed_parts(&dir, image));
    assert!(!theirs.is_empty(), "{line}");
    assert_eq!(ours, theirs, "{line}");
}

#[test]
fn conversions_compress_what_qemu_img_compresses() {
    for options in [
        "",
        " -o compression_type=zstd",
        " -o cluster_size=512",
        " -o cluster_size=512,compression_type=zstd",
        " -o cluster_size=2M",
        " -o cluster_size=2M,compression_type=zstd",
        " -o extended_l2=on",
        " -o compat=0.10",
        " -m 1",
        " -m 16 -W",
        " -S 512",
        " -S 256k",
        " -t none",
        " -t writethrough",
        " -r 100M",
    ] {
        // What does not shrink is plain in both, and which compressor shrinks it is not the question.
        let line = format!("convert -c{options} -O qcow2 top.qcow2 out.qcow2");
        check_compressed(&line, "out.qcow2");
        check_line(&format!("convert -c{options} -f raw -O qcow2 a.raw out.qcow2"), "out.qcow2");
    }
}

#[test]
fn backing_files_and_joined_sources_compress_alike() {
    for options in ["", " -o cluster_size=512", " -o cluster_size=2M", " -o compression_type=zstd"]
    {
        let line =
            format!("convert -c{options} -B base.qcow2 -F qcow2 -O qcow2 top.qcow2 out.qcow2");
        check_compressed(&line, "out.qcow2");
        // Clusters that two or three sources share.
        let line = format!("convert -c{options} -O qcow2 top.qcow2 new.qcow2 base.qcow2 out.qcow2");
        check_compressed(&line, "out.qcow2");
        let line = format!("convert -c{options} -f raw -O qcow2 a.raw b.raw a.raw out.qcow2");
        check_line(&line, "out.qcow2");
    }
}

#[test]
fn without_sparseness_everything_is_compressed() {
    check_compressed("convert -c -S 0 -O qcow2 top.qcow2 out.qcow2", "out.qcow2");
    let dir = ImageDir::new().unwrap();
    images(&dir);
    succeed(&dir, "convert -c -S 0 -O qcow2 base.qcow2 out.qcow2");
    assert_eq!(compressed_parts(&dir, "out.qcow2"), [(0, 3_000_320)]);
}

#[test]
fn what_cannot_be_compressed_is_refused_as_by_qemu_img() {
    for options in [
        "-c -O raw",
        "-c",
        "-c -S 0 -O raw",
        "-c -C -O qcow2",
        "-c -C -S 8k -O qcow2",
        "-c -O qcow2 -o preallocation=metadata",
        "-c -O qcow2 -o preallocation=full",
        "-c -O bogus",
        "-c -O qcow2 -o compression_type=bogus",
        "-n -c -O qcow2",
        "-n -c -O qcow2 -o compression_type=zlib",
    ] {
        check_line(&format!("convert {options} top.qcow2 out"), "out");
    }
    check_line("convert -n -c -O raw -f raw b.raw a.raw", "b.raw");
    // Refused before anything is made.
    let dir = ImageDir::new().unwrap();
    images(&dir);
    let output = dir.run(BLOCK_IMG, &["convert", "-c", "-O", "raw", "top.qcow2", "a.raw"]).unwrap();
    assert_eq!(text(&output.stderr), "block-img: Compression not supported for this file format\n");
    assert!(dir.bytes("a.raw").unwrap() == mixed(RAW_BYTES));
    // An external data file holds no compressed clusters.
    let options = "data_file=data.raw";
    let args = ["convert", "-c", "-O", "qcow2", "-o", options, "top.qcow2", "out.qcow2"];
    assert_eq!(dir.run(BLOCK_IMG, &args).unwrap().status.code(), Some(1));
    assert_eq!(dir.run("qemu-img", &args).unwrap().status.code(), Some(1));
}

#[test]
fn an_image_that_exists_is_overwritten_with_compressed_clusters() {
    let dir = ImageDir::new().unwrap();
    images(&dir);
    let source = dir.bytes("a.raw").unwrap();
    // Longer than the source, and full of something else.
    dir.qemu_img(&["create", "-f", "qcow2", "-o", "cluster_size=4k", "out.qcow2", "6M"]).unwrap();
    for fill in ["write -P 5 0 6M", "discard 0 6M", "write -P 5 5M 1M"] {
        dir.qemu_io("out.qcow2", &[fill]).unwrap();
        let behind = dir.raw_contents("out.qcow2", &[]).unwrap()[source.len()..].to_vec();
        succeed(&dir, "convert -n -c -f raw -O qcow2 a.raw out.qcow2");
        let out = dir.raw_contents("out.qcow2", &[]).unwrap();
        assert!(out[..source.len()] == source[..], "{fill}");
        assert!(out[source.len()..] == behind[..], "{fill}");
        assert_eq!(dir.check("out.qcow2").unwrap(), Verdict::Clean, "{fill}");
        assert!(!compressed_parts(&dir, "out.qcow2").is_empty());
    }
    // And once more over its own compressed clusters, which qemu-img refuses.
    succeed(&dir, "convert -n -c -f raw -O qcow2 a.raw out.qcow2");
    assert_eq!(dir.check("out.qcow2").unwrap(), Verdict::Clean);
    let target =
        "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=out.qcow2";
    succeed(&dir, &format!("convert -n --target-image-opts -f raw b.raw {target}"));
    let out = dir.raw_contents("out.qcow2", &[]).unwrap();
    let short = dir.bytes("b.raw").unwrap();
    assert!(
        out[..short.len()] == short[..] && out[short.len()..source.len()] == source[short.len()..]
    );
    assert_eq!(dir.check("out.qcow2").unwrap(), Verdict::Clean);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = ImageDir::new().unwrap();
    images(&dir);
    for create in
        ["cluster_size=512", "cluster_size=64k", "cluster_size=2M", "compression_type=zstd"]
    {
        for source in ["-f raw a.raw", "-B base.qcow2 -F qcow2 top.qcow2"] {
            let mut first = None;
            for options in
                ["-m 1", "-m 16", "-m 3", "-m 8 -r 500M", "-m 16 -t none", "-m 1 -t none"]
            {
                let line = format!("convert -c {options} -o {create} -O qcow2 {source} out.qcow2");
                succeed(&dir, &line);
                let mut bytes = dir.bytes("out.qcow2").unwrap();
                // Past the page cache a file ends at a block.
                let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
                bytes.truncate(end + 1);
                assert!(bytes == *first.get_or_insert_with(|| bytes.clone()), "{line}");
            }
        }
    }
}

#[test]
fn levels_and_windows_are_asked_of_the_target() {
    let dir = ImageDir::new().unwrap();
    images(&dir);
    let mut lens = Vec::new();
    for options in [
        "compression_level=1",
        "compression_level=9",
        "compression_level=9,compression_window=32k",
        "compression_type=zstd,compression_level=1",
        "compression_type=zstd,compression_level=19",
    ] {
        succeed(&dir, &format!("convert -c -f raw -O qcow2 -o {options} a.raw out.qcow2"));
        dir.qemu_img(&["compare", "-f", "raw", "a.raw", "out.qcow2"]).unwrap();
        lens.push(dir.bytes("out.qcow2").unwrap().len());
    }
    // They do reach the compressor.
    lens.dedup();
    assert!(lens.len() > 1, "{lens:?}");
    succeed(&dir, "convert -n -c -f raw -O qcow2 -o compression_level=2 a.raw out.qcow2");
    for (options, complaint) in [
        ("-c -o compression_level=10", "compression-level"),
        ("-c -o compression_level=x", "compression-level"),
        ("-c -o compression_window=1k", "compression-window"),
        ("-o compression_level=3", "-o compression_level requires use of -c flag"),
        ("-o compression_window=4k", "-o compression_window requires use of -c flag"),
        ("-c -o compression_bogus=3", "compression_bogus"),
    ] {
        let line = format!("convert {options} -f raw -O qcow2 a.raw refused.qcow2");
        let words: Vec<_> = line.split(' ').collect();
        let output = dir.run(BLOCK_IMG, &words).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(text(&output.stderr).contains(complaint), "{line}: {}", text(&output.stderr));
    }
    let opts = "driver=qcow2,compressed-cache-size=1M,compression-level=4,file.filename=out.qcow2";
    succeed(&dir, &format!("convert -n -c --target-image-opts -f raw a.raw {opts}"));
    dir.qemu_img(&["compare", "-f", "raw", "a.raw", "out.qcow2"]).unwrap();
    assert_eq!(dir.check("out.qcow2").unwrap(), Verdict::Clean);
}

#[test]
fn rebases_compress_what_qemu_img_compresses() {
    for options in ["", " -t none", " -t writethrough"] {
        let line = format!("rebase -c{options} -b new.qcow2 -F qcow2 top.qcow2");
        check_compressed(&line, "top.qcow2");
        check_compressed(&format!("rebase -c{options} -b '' top.qcow2"), "top.qcow2");
    }
    for line in [
        "rebase -c -u -b new.qcow2 -F qcow2 top.qcow2",
        "rebase -c -b base.qcow2 -F qcow2 -f raw a.raw",
        "rebase -c -b missing -F qcow2 top.qcow2",
        "rebase -c top.qcow2",
        "rebase -c",
    ] {
        check_line(line, "top.qcow2");
    }
}

/// `qemu-img rebase -c` ends in an assertion there.
#[test]
fn clusters_that_are_held_in_part_are_compressed_as_a_whole() {
    for to in ["-b new.qcow2 -F qcow2", "-b ''"] {
        let dir = ImageDir::new().unwrap();
        images(&dir);
        let before = dir.raw_contents("ext.qcow2", &[]).unwrap();
        let line = format!("rebase -c {to} ext.qcow2");
        let words: Vec<_> = line.split(' ').map(|w| if w == "''" { "" } else { w }).collect();
        let output = dir.run(BLOCK_IMG, &words).unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        assert!(dir.raw_contents("ext.qcow2", &[]).unwrap() == before, "{line}");
        assert_eq!(dir.check("ext.qcow2").unwrap(), Verdict::Clean);
        let parts = compressed_parts(&dir, "ext.qcow2");
        assert!(parts.iter().all(|(start, end)| start % 65_536 == 0 && end % 65_536 == 0));
        assert!(!parts.is_empty());
    }
}
