//! `block-img convert` to streamOptimized VMDKs and from them, in files and in pipes, beside `qemu-img`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::process::Stdio;

use block_testkit::naive::vmdk::{Files, Image};
use block_testkit::peer::{ImageDir, with_default_signals};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const OPTION: [&str; 4] = ["-O", "vmdk", "-o", "subformat=streamOptimized"];

/// Runs `block-img convert`, which must succeed; its standard output.
fn convert(dir: &ImageDir, args: &[&str]) -> Vec<u8> {
    let args = [&["convert"], args].concat();
    let output = dir.run(BLOCK_IMG, &args).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    output.stdout
}

/// Runs a line of the shell, which must succeed in all of its parts.
fn shell(dir: &ImageDir, line: &str) {
    let line = format!("set -e -o pipefail; {}", line.replace("block-img", BLOCK_IMG));
    let output = dir.run("bash", &["-c", &line]).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `block-img` says when it fails, with status 1 and nothing on standard output.
fn refusal(dir: &ImageDir, args: &[&str]) -> String {
    let output = dir.run(BLOCK_IMG, &[&["convert"], args].concat()).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(output.stdout.is_empty() && said.starts_with("block-img: "), "{args:?}: {said}");
    said
}

/// A raw image with zeroes, text and noise.
fn mixed(dir: &ImageDir, name: &str, len: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let mut bytes = vec![0; len];
    for (index, part) in bytes.chunks_mut(150_000).enumerate() {
        match index % 4 {
            0 => {}
            1 => rng.fill(part),
            _ => part
                .iter_mut()
                .enumerate()
                .for_each(|(n, byte)| *byte = (n / 91 % 7).to_le_bytes()[0]),
        }
    }
    dir.write(name, &bytes).unwrap();
    bytes
}

/// The image `name` is laid out as the format says and holds `bytes`, for everybody.
fn judge(dir: &ImageDir, name: &str, bytes: &[u8]) {
    let files = Files::from([(name.to_owned(), dir.bytes(name).unwrap())]);
    let image = Image::open(&files, name).unwrap();
    assert!(image.contents().unwrap() == bytes, "{name}");
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{name}: {report}");
    assert_eq!(image.text().unwrap().value("createType"), Some("streamOptimized"));
    assert!(dir.raw_contents(name, &["-f", "vmdk"]).unwrap() == bytes, "{name}");
    // Our own driver, which reads from any place.
    convert(dir, &["-f", "vmdk", "-O", "raw", name, "back.raw"]);
    assert!(dir.bytes("back.raw").unwrap() == bytes, "{name}");
}

#[test]
fn a_file_and_a_pipe_get_an_image_that_everybody_reads() {
    let dir = ImageDir::new().unwrap();
    for len in [512, 1_200_640, 40 << 20] {
        let bytes = mixed(&dir, "mixed.raw", len);
        convert(&dir, &[&["-f", "raw"], &OPTION[..], &["mixed.raw", "file.vmdk"]].concat());
        judge(&dir, "file.vmdk", &bytes);
        let piped = convert(&dir, &[&["-f", "raw"], &OPTION[..], &["mixed.raw", "-"]].concat());
        dir.write("pipe.vmdk", &piped).unwrap();
        judge(&dir, "pipe.vmdk", &bytes);
        assert_eq!(piped.len(), dir.bytes("file.vmdk").unwrap().len());
        // No larger than the peer's, which has no footer.
        dir.qemu_img(&[&["convert", "-f", "raw"], &OPTION[..], &["mixed.raw", "q.vmdk"]].concat())
            .unwrap();
        let peer = dir.bytes("q.vmdk").unwrap().len();
        assert!(piped.len() <= peer.max(140 * 512), "{} {peer}", piped.len());
    }
}

#[test]
fn cache_modes_joined_sources_and_chains_make_the_same_contents() {
    let dir = ImageDir::new().unwrap();
    let bytes = mixed(&dir, "mixed.raw", 1_200_640);
    for cache in ["none", "directsync", "writeback", "unsafe", "writethrough"] {
        let args = [&["-t", cache, "-f", "raw"], &OPTION[..], &["mixed.raw", "file.vmdk"]].concat();
        convert(&dir, &args);
        judge(&dir, "file.vmdk", &bytes);
    }
    let joined = [bytes.clone(), bytes].concat();
    let two = [&["-f", "raw"], &OPTION[..], &["mixed.raw", "mixed.raw", "file.vmdk"]].concat();
    convert(&dir, &two);
    judge(&dir, "file.vmdk", &joined);

    let create = ["create", "-q", "-f", "qcow2", "-b", "mixed.raw", "-F", "raw", "top.qcow2", "3M"];
    dir.qemu_img(&create).unwrap();
    dir.qemu_io("top.qcow2", &["write -P 4 1M 128k", "write -z 100k 64k"]).unwrap();
    convert(&dir, &[&OPTION[..], &["top.qcow2", "file.vmdk"]].concat());
    judge(&dir, "file.vmdk", &dir.raw_contents("top.qcow2", &[]).unwrap());
}

#[test]
fn options_of_the_format_stand_in_the_image() {
    let dir = ImageDir::new().unwrap();
    let bytes = mixed(&dir, "mixed.raw", 1_200_640);
    let options = "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13,toolsversion=9";
    convert(&dir, &["-f", "raw", "-O", "vmdk", "-o", options, "mixed.raw", "file.vmdk"]);
    judge(&dir, "file.vmdk", &bytes);
    let text = String::from_utf8_lossy(&dir.bytes("file.vmdk").unwrap()[512..2048]).into_owned();
    for expect in [
        "RW 2345 SPARSE \"file.vmdk\"",
        "ddb.adapterType = \"lsilogic\"",
        "ddb.virtualHWVersion = \"13\"",
        "ddb.toolsVersion = \"9\"",
        "ddb.geometry.heads = \"255\"",
    ] {
        assert!(text.contains(expect), "{expect}: {text}");
    }
    // Levels need -c, which changes nothing else.
    let mut lens = Vec::new();
    for level in ["1", "12"] {
        let options = format!("subformat=streamOptimized,compression_level={level}");
        let args = ["-c", "-f", "raw", "-O", "vmdk", "-o", &options, "mixed.raw", "file.vmdk"];
        convert(&dir, &args);
        judge(&dir, "file.vmdk", &bytes);
        lens.push(dir.bytes("file.vmdk").unwrap().len());
    }
    assert!(lens[0] > lens[1], "{lens:?}");
}

/// Two processors or one: the bytes are the same but for the content id, which is new each time.
#[test]
fn the_bytes_do_not_depend_on_the_processors() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, "mixed.raw", 8 << 20);
    let options = "-f raw -O vmdk -o subformat=streamOptimized mixed.raw";
    shell(&dir, &format!("block-img convert {options} - > many.vmdk"));
    shell(&dir, &format!("taskset -c 0 block-img convert {options} - > one.vmdk"));
    let grains = |name: &str| dir.bytes(name).unwrap()[65536..].to_vec();
    assert!(grains("many.vmdk") == grains("one.vmdk"));
}

#[test]
fn a_pipe_is_a_source_for_every_format() {
    let dir = ImageDir::new().unwrap();
    let bytes = mixed(&dir, "mixed.raw", 5_000_192);
    let to_stream = "block-img convert -f raw -O vmdk -o subformat=streamOptimized mixed.raw -";
    let from = [
        format!("{to_stream} | block-img convert -f vmdk -O FORMAT - out"),
        format!("{to_stream} | block-img convert -f vmdk -O FORMAT /dev/stdin out"),
        format!("block-img convert -f vmdk -O FORMAT <({to_stream}) out"),
        format!("{to_stream} > s.vmdk; block-img convert -f vmdk -O FORMAT - out < s.vmdk"),
    ];
    for (index, format) in ["raw", "qcow2", "vmdk", "-c qcow2"].into_iter().enumerate() {
        let options = match format {
            "-c qcow2" => "qcow2 -c",
            other => other,
        };
        shell(&dir, &from[index].replace("FORMAT", options));
        let name = format.rsplit(' ').next().unwrap();
        assert!(dir.raw_contents("out", &["-f", name]).unwrap() == bytes, "{format}");
        if name == "qcow2" {
            dir.check("out").unwrap();
        }
    }
    // What the peer wrote has its tables at the front.
    dir.qemu_img(&[&["convert", "-f", "raw"], &OPTION[..], &["mixed.raw", "q.vmdk"]].concat())
        .unwrap();
    shell(&dir, "cat q.vmdk | block-img convert -f vmdk -O raw - out");
    assert!(dir.bytes("out").unwrap() == bytes);
    // An image that is there is overwritten, with zeroes too.
    dir.write("out", &vec![0xaa; 6 << 20]).unwrap();
    shell(&dir, "cat q.vmdk | block-img convert -n -f vmdk -O raw - out");
    let out = dir.bytes("out").unwrap();
    assert!(out[..bytes.len()] == bytes && out[bytes.len()..].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn the_progress_is_shown() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, "mixed.raw", 1_200_640);
    let args = [&["convert", "-p", "-f", "raw"], &OPTION[..], &["mixed.raw", "f.vmdk"]].concat();
    let said = dir.run(BLOCK_IMG, &args).unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.starts_with("    (0.00/100%)\r") && said.ends_with("    (100.00/100%)\r\n"));
    shell(&dir, "cat f.vmdk | block-img convert -p -f vmdk -O raw - out > said");
    let said = String::from_utf8(dir.bytes("said").unwrap()).unwrap();
    assert!(said.starts_with("    (0.00/100%)\r") && said.ends_with("    (100.00/100%)\r\n"));
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_no_file() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, "mixed.raw", 200_192);
    dir.write("t.vmdk", b"as it was").unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&["-n"], "-o"),
        (&["-B", "base.vmdk", "-F", "vmdk"], "-B"),
        (&["-S", "0"], "-S"),
        (&["-C"], "-C"),
        (&["--salvage"], "--salvage"),
        (&["--bitmaps"], "--bitmaps"),
        (&["-o", "backing_file=b.vmdk,backing_fmt=vmdk"], "backing_file"),
        (&["-o", "bogus=1"], "bogus"),
        (&["-c", "-o", "compression_level=13"], "compression_level"),
        (&["-c", "-o", "compression_window=4k"], "compression_window"),
    ];
    for (options, named) in cases {
        for target in ["t.vmdk", "-"] {
            let args = [options, &["-f", "raw"], &OPTION, &["mixed.raw", target]].concat();
            let said = refusal(&dir, &args);
            assert!(said.contains(named), "{options:?}: {said}");
        }
        assert!(dir.bytes("t.vmdk").unwrap() == b"as it was");
    }
    let said = refusal(&dir, &["-O", "vmdk", "mixed.raw", "-"]);
    assert!(said.contains("subformat=streamOptimized"), "{said}");
    // A source that only goes forward.
    let cases: [(&[&str], &str); 6] = [
        (&["-S", "0"], "-S 0"),
        (&["-T", "none"], "-T"),
        (&["-l", "old"], "-l"),
        (&["--salvage"], "--salvage"),
        (&["-C"], "-C"),
        (&["mixed.raw"], "More than one source"),
    ];
    for (options, named) in cases {
        let said = refusal(&dir, &[options, &["-f", "vmdk", "-O", "raw", "-", "t.vmdk"]].concat());
        assert!(said.contains(named), "{options:?}: {said}");
    }
    let to_itself = [&["-f", "vmdk"], &OPTION[..], &["-", "t.vmdk"]].concat();
    assert!(refusal(&dir, &to_itself).contains("streamOptimized"));
    assert!(dir.bytes("t.vmdk").unwrap() == b"as it was");
}

#[test]
fn a_stream_that_is_cut_or_is_none_is_an_error_that_names_the_place() {
    let dir = ImageDir::new().unwrap();
    mixed(&dir, "mixed.raw", 1_200_640);
    convert(&dir, &[&["-f", "raw"], &OPTION[..], &["mixed.raw", "s.vmdk"]].concat());
    let said = |line: &str| {
        let line = line.replace("block-img", BLOCK_IMG);
        let output = dir.run("bash", &["-c", &line]).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let cut = said("head -c 100000 s.vmdk | block-img convert -f vmdk -O raw - out");
    assert_eq!(cut, "block-img: -: the stream ends at byte 100000, inside of a grain\n");
    let none = said("cat mixed.raw | block-img convert -f vmdk -O raw - out2");
    assert!(none.contains("magic"), "{none}");
    assert!(!dir.path("out2").exists());
    let empty = said("block-img convert -f vmdk -O raw - out2 < /dev/null");
    assert!(empty.contains("ends at byte 0"), "{empty}");
}

#[test]
fn an_interrupt_ends_both_directions() {
    let dir = ImageDir::new().unwrap();
    dir.write("large.raw", &vec![1; 64 << 20]).unwrap();
    let slow = [&["convert", "-r", "1k", "-f", "raw"], &OPTION[..], &["large.raw", "t.vmdk"]];
    let waiting: &[&str] = &["convert", "-f", "vmdk", "-O", "raw", "-", "t.raw"];
    for args in [&slow.concat()[..], waiting] {
        let mut child = with_default_signals(BLOCK_IMG)
            .args(args)
            .current_dir(dir.path(""))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none(), "{args:?}");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        // Its standard input is not closed before.
        let stdin = child.stdin.take();
        let ended = child.wait().unwrap();
        drop(stdin);
        assert_eq!(ended.code(), Some(130), "{args:?}");
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(said, "block-img: interrupted\n");
    }
}
