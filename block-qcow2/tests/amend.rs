//! Amendments: the same options as the peer's, on the same image, make an image of the same description
//! and contents that both checkers find clean; what cannot be is refused with nothing changed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod kit;
mod support;

use std::sync::Arc;

use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{Alignment, ByteRange, Error, Node, OpenError, Options, Registry, RequestFlags};
use block_qcow2::Qcow2Factory;
use block_testkit::disk::crash::CrashDisk;
use block_testkit::exec::Exec;
use block_testkit::naive::qcow2::Image;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::io_vec;
use block_testkit::peer::{ImageDir, Verdict};
use kit::{Setup, World, judge, setups};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use support::contents;

fn open(dir: &ImageDir, name: &str) -> Node {
    open_with(dir, name, Options::new())
}

fn open_with(dir: &ImageDir, name: &str, options: Options) -> Node {
    let registry = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    let options = options.with("driver", "qcow2");
    let options = options.with("filename", dir.path(name).to_str().unwrap());
    // Nothing here must survive a crash of the machine.
    let flags = OpenFlags { no_flush: true, ..OpenFlags::READ_WRITE };
    block_on(OpenContext::new(Arc::new(registry), flags).open(options)).unwrap()
}

fn options(text: &str) -> Options {
    let pairs = text.split(',').map(|option| option.split_once('=').unwrap());
    pairs.fold(Options::new(), |all, (name, value)| all.with(name, value))
}

fn amend_node(node: &Node, text: &str) -> Result<Vec<(u64, u64)>, OpenError> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let sink = Arc::new(move |done, total| sink.lock().push((done, total)));
    block_on(node.driver().as_amend().unwrap().amend(options(text), sink))?;
    let seen = std::mem::take(&mut *seen.lock());
    Ok(seen)
}

fn close(node: &Node) {
    block_on(block_core::graph::close(node)).unwrap();
}

fn write(node: &Node, byte: u8, offset: u64, len: usize) {
    let range = ByteRange::new(offset, len.try_into().unwrap()).unwrap();
    let iov = io_vec(&vec![byte; len], Alignment::PAGE, 1);
    block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
}

/// What the peer says of an image, without what depends on its name and place.
fn info(dir: &ImageDir, image: &str) -> Value {
    let text = dir.qemu_img(&["info", "-U", "--output", "json", image]).unwrap();
    let mut info: Value = serde_json::from_str(&text).unwrap();
    let map = info.as_object_mut().unwrap();
    for name in ["children", "actual-size", "filename"] {
        map.remove(name);
    }
    info
}

fn clean(dir: &ImageDir, name: &str, what: &str) {
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean, "{what}");
    let bytes = dir.bytes(name).unwrap();
    let image = Image::open(&bytes).unwrap();
    let data = dir.bytes("data").unwrap_or_default();
    let report = image.with_data_file(&data).check().unwrap();
    assert!(report.is_clean(), "{what}: {report}");
}

/// Amends `ours` here and a copy of it by the peer, and holds one against the other.
fn check(dir: &ImageDir, ours: &str, text: &str) {
    let theirs = format!("{ours}.theirs");
    let bytes = dir.bytes(ours).unwrap();
    dir.write(&theirs, &bytes).unwrap();
    let before = dir.raw_contents(ours, &[]).unwrap();
    let snapshots = names(&info(dir, ours));
    let read = |name: &String| dir.raw_contents(ours, &["-l", name]).unwrap();
    let frozen: Vec<_> = snapshots.iter().map(read).collect();
    dir.qemu_img(&["amend", "-q", "-o", text, &theirs]).unwrap();
    let node = open(dir, ours);
    let progress = amend_node(&node, text).unwrap();
    assert!(progress.iter().all(|(done, total)| done <= total), "{text}: {progress:?}");
    let mut expect = before.clone();
    expect.resize(usize::try_from(node.len()).unwrap(), 0);
    assert!(contents(&node, 1 << 20) == expect, "{text} in the open image");
    // It goes on to be written as what it is now.
    write(&node, 0x77, 0, 70_000.min(expect.len()));
    expect[..70_000].fill(0x77);
    close(&node);
    clean(dir, ours, text);
    assert!(dir.raw_contents(ours, &[]).unwrap() == expect, "{text}");
    for (name, expect) in snapshots.iter().zip(&frozen) {
        // The peer reads a snapshot as long as the disk is now.
        assert!(read(name)[..expect.len()] == *expect, "snapshot {name}, {text}");
    }
    assert_eq!(info(dir, ours), info(dir, &theirs), "{text}");
}

fn names(info: &Value) -> Vec<String> {
    let all = info["snapshots"].as_array().cloned().unwrap_or_default();
    all.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

/// An image with clusters of every kind, shared and not.
fn made(dir: &ImageDir, name: &str, options: &str, snapshots: &[&str]) {
    let v2 = options.contains("0.10");
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if name.contains("backed") {
        dir.write("base", &[9; 900 << 10]).unwrap();
        args.extend(["-b", "base", "-F", "raw"]);
    }
    args.extend([name, "1M"]);
    dir.qemu_img(&args).unwrap();
    let zero = if v2 { "write -P 0 200k 64k" } else { "write -z 200k 64k" };
    let first = ["write -P 1 0 300k", zero, "write -P 2 700k 1000", "write -z 128k 64k"];
    dir.qemu_io(name, &first).unwrap();
    for snapshot in snapshots {
        dir.qemu_img(&["snapshot", "-c", snapshot, name]).unwrap();
        dir.qemu_io(name, &["write -P 3 64k 64k", "write -z -u 0 64k", "write -z 400k 64k"])
            .unwrap();
    }
}

#[test]
fn versions_go_up() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "compat=0.10", &["one"]);
    check(&dir, "a", "compat=1.1");
    made(&dir, "backed", "compat=0.10,cluster_size=4k", &["one", "two"]);
    check(&dir, "backed", "compat=v3,lazy_refcounts=on");
    made(&dir, "both", "compat=0.10,cluster_size=4k", &[]);
    check(&dir, "both", "compat=1.1,refcount_bits=64,size=3M");
}

#[test]
fn versions_go_down_and_zero_clusters_become_data() {
    let dir = ImageDir::new().unwrap();
    for (name, options, snapshots) in [
        ("a", "cluster_size=64k", &[][..]),
        ("b", "cluster_size=4k", &["one", "two"]),
        ("c-backed", "cluster_size=64k", &[]),
        ("d-backed", "cluster_size=4k", &["one", "two"]),
        ("e-backed", "cluster_size=512", &["one"]),
        ("f", "lazy_refcounts=on", &["one"]),
    ] {
        made(&dir, name, options, snapshots);
        check(&dir, name, "compat=0.10");
        // And up again.
        check(&dir, name, "compat=1.1");
    }
}

/// Version 2 cannot say of a cluster that it has a place and reads as zeroes.
#[test]
fn discards_of_an_image_that_went_down_leave_no_zero_clusters() {
    let dir = ImageDir::new().unwrap();
    for (name, there) in [("a", Ok(())), ("b-backed", Err(Error::Unsupported))] {
        made(&dir, name, "cluster_size=4k", &[]);
        let node = open_with(&dir, name, options("discard-no-unref=on"));
        amend_node(&node, "compat=0.10").unwrap();
        let mut expect = contents(&node, 1 << 20);
        let range = ByteRange::new(8 << 10, 64 << 10).unwrap();
        let discarded = block_on(Arc::clone(node.driver()).pdiscard(range));
        assert_eq!(discarded, there, "{name}");
        if discarded.is_ok() {
            expect[8 << 10..72 << 10].fill(0);
        }
        assert!(contents(&node, 1 << 20) == expect, "{name}");
        close(&node);
        clean(&dir, name, "after the discard");
        assert!(dir.raw_contents(name, &[]).unwrap() == expect, "{name}");
    }
}

#[test]
fn refcounts_take_every_width() {
    let dir = ImageDir::new().unwrap();
    for (from, to, snapshots) in [
        (16, 64, &["one"][..]),
        (16, 32, &["one"]),
        (64, 8, &["one"]),
        (8, 4, &["one"]),
        (4, 2, &["one"]),
        (16, 1, &[]),
        (1, 16, &[]),
    ] {
        // Wide refcounts in the smallest clusters make the most blocks.
        let cluster = if from < 16 || to < 4 { "4k" } else { "512" };
        let name = format!("{from}-{to}");
        let options = format!("cluster_size={cluster},refcount_bits={from}");
        made(&dir, &name, &options, snapshots);
        check(&dir, &name, &format!("refcount_bits={to}"));
    }
}

#[test]
fn widths_change_where_the_table_must_grow() {
    let dir = ImageDir::new().unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=1", "a", "9M"];
    dir.qemu_img(&args).unwrap();
    dir.qemu_io("a", &["write -P 5 0 9M"]).unwrap();
    check(&dir, "a", "refcount_bits=64");
    check(&dir, "a", "refcount_bits=2");
}

#[test]
fn a_width_that_counts_do_not_fit_changes_nothing() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4k", &["one"]);
    let before = dir.raw_contents("a", &[]).unwrap();
    let node = open(&dir, "a");
    let error = amend_node(&node, "refcount_bits=1").unwrap_err().to_string();
    assert_eq!(error, "qcow2: refcount of a cluster is 0x2: must be at most 0x1");
    close(&node);
    clean(&dir, "a", "refused");
    assert!(dir.raw_contents("a", &[]).unwrap() == before);
    assert_eq!(info(&dir, "a")["format-specific"]["data"]["refcount-bits"], 16);
}

#[test]
fn flags_lengths_and_names_change() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "a", "cluster_size=4k", &["one"]);
    check(&dir, "a", "lazy_refcounts=on");
    check(&dir, "a", "lazy_refcounts=off");
    check(&dir, "a", "size=5M");
    let node = open(&dir, "a");
    write(&node, 1, 4 << 20, 1000);
    close(&node);
    clean(&dir, "a", "written beyond the old end");

    let args = ["-o", "data_file=data,data_file_raw=on", "d", "1M"];
    dir.qemu_img(&[&["create", "-q", "-f", "qcow2"], &args[..]].concat()).unwrap();
    let node = open(&dir, "d");
    write(&node, 1, 1000, 100_000);
    close(&node);
    let before = dir.raw_contents("d", &[]).unwrap();
    let node = open(&dir, "d");
    amend_node(&node, "data_file_raw=off,data_file=other").unwrap();
    close(&node);
    std::fs::rename(dir.path("data"), dir.path("other")).unwrap();
    let data = &info(&dir, "d")["format-specific"]["data"];
    assert_eq!((&data["data-file"], &data["data-file-raw"]), (&"other".into(), &false.into()));
    assert!(dir.raw_contents("d", &[]).unwrap() == before);
    assert_eq!(dir.check("d").unwrap(), Verdict::Clean);
}

#[test]
fn the_backing_file_is_another_only_by_a_rebase() {
    let dir = ImageDir::new().unwrap();
    made(&dir, "backed", "cluster_size=4k", &[]);
    dir.write("other", &[7; 900 << 10]).unwrap();
    dir.write("theirs", &dir.bytes("backed").unwrap()).unwrap();
    dir.qemu_img(&["rebase", "-u", "-b", "other", "-F", "raw", "theirs"]).unwrap();
    let node = open(&dir, "backed");
    for text in ["backing_file=other", "size=2M,backing_fmt=qcow2"] {
        let error = amend_node(&node, text).unwrap_err().to_string();
        assert!(error.contains("only a rebase"), "{error}");
    }
    block_on(node.driver().as_rebase().unwrap().change_backing(Some("other"), Some("raw")))
        .unwrap();
    amend_node(&node, "backing_file=other,backing_fmt=raw").unwrap();
    close(&node);
    assert_eq!(info(&dir, "backed")["backing-filename"], info(&dir, "theirs")["backing-filename"]);
    assert!(dir.raw_contents("backed", &[]).unwrap() == dir.raw_contents("theirs", &[]).unwrap());
    let node = open(&dir, "backed");
    assert!(amend_node(&node, "backing_file=").is_err());
    block_on(node.driver().as_rebase().unwrap().change_backing(None, None)).unwrap();
    amend_node(&node, "backing_file=").unwrap();
    close(&node);
    assert_eq!(info(&dir, "backed").get("backing-filename"), None);
    clean(&dir, "backed", "no backing file");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let dir = ImageDir::new().unwrap();
    let cases = [
        ("extended_l2=on", "compat=0.10", "extended L2 entries"),
        ("compression_type=zstd", "compat=0.10", "the compression type"),
        ("refcount_bits=8", "compat=0.10", "not of 16 bits"),
        ("data_file=data", "compat=0.10", "the data file"),
        ("cluster_size=4k", "compat=0.10,refcount_bits=8", "'refcount_bits=8'"),
        ("cluster_size=4k", "compat=0.10,lazy_refcounts=on", "'lazy_refcounts=on'"),
        ("compat=0.10", "lazy_refcounts=on", "'lazy_refcounts=on'"),
        ("compat=0.10", "refcount_bits=32", "'refcount_bits=32'"),
        ("cluster_size=4k", "lazy_refcounts=on,cluster_size=64k", "'cluster_size=64k'"),
        ("cluster_size=4k", "data_file=x", "an image without a data file"),
        ("data_file=data", "data_file_raw=on", "'data_file_raw=on'"),
        ("cluster_size=4k", "size=1000", "'size=1000'"),
        ("cluster_size=4k", "backing_fmt=raw", "'backing_fmt'"),
    ];
    for (number, (options, text, expect)) in cases.into_iter().enumerate() {
        let name = number.to_string();
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &name, "1M"]).unwrap();
        let before = dir.bytes(&name).unwrap();
        let node = open(&dir, &name);
        let error = amend_node(&node, text).unwrap_err().to_string();
        assert!(error.contains(expect), "{text}: {error}");
        close(&node);
        assert!(dir.bytes(&name).unwrap() == before, "{text}");
    }
    // With bitmaps, and with snapshots of another length.
    made(&dir, "bitmap", "cluster_size=4k", &[]);
    dir.qemu_img(&["bitmap", "--add", "bitmap", "b"]).unwrap();
    made(&dir, "longer", "cluster_size=4k", &["one"]);
    dir.qemu_img(&["resize", "-q", "longer", "2M"]).unwrap();
    for (name, expect) in
        [("bitmap", "persistent bitmaps"), ("longer", "snapshots of other lengths")]
    {
        let node = open(&dir, name);
        let error = amend_node(&node, "compat=0.10").unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        close(&node);
        clean(&dir, name, expect);
    }
}

/// A change of the header.
#[derive(Copy, Clone)]
enum Change {
    Amend(&'static str),
    Backing(&'static str),
}

/// Crash images of a change, taken at every moment at which they may differ.
fn shots(setup: &Setup, made: &Made, change: Change, seed: u64) -> Vec<Vec<u8>> {
    let disk = CrashDisk::new(made.file.clone());
    let shots = Arc::new(Mutex::new(Vec::new()));
    let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
    let (seen, taken) = (Arc::downgrade(&disk), Arc::clone(&shots));
    disk.watch(move |_| {
        if let Some(disk) = seen.upgrade() {
            taken.lock().push(disk.crash(&mut *rng.lock()).bytes);
        }
    });
    let world = World::new(setup, disk.clone(), None);
    Exec::run(seed, move |_| async move {
        let node = world.open().await.unwrap();
        let driver = node.driver();
        match change {
            Change::Amend(text) => {
                driver.as_amend().unwrap().amend(options(text), Arc::new(|_, _| ())).await.unwrap();
            }
            Change::Backing(name) => {
                let rebase = driver.as_rebase().unwrap();
                rebase.change_backing(Some(name), Some("raw")).await.unwrap();
            }
        }
        block_core::graph::close(&node).await.unwrap();
    });
    let all = std::mem::take(&mut *shots.lock());
    all.into_iter().chain([disk.to_vec()]).collect()
}

#[test]
fn a_crash_leaves_the_image_as_it_was_or_as_it_is_to_be() {
    let mut seed = 0;
    for (name, text) in [
        ("512", "refcount_bits=64"),
        ("4k shared", "refcount_bits=8"),
        ("4k shared", "refcount_bits=64,lazy_refcounts=on"),
        ("4k shared", "compat=0.10"),
        ("v2 1k", "compat=1.1,refcount_bits=8"),
    ] {
        let setup = setups().into_iter().find(|setup| setup.name == name).unwrap();
        let made = setup.make();
        let start = judge(&setup, &made).unwrap();
        let mut count = 0;
        for _ in 0..4 {
            seed += 1;
            for bytes in shots(&setup, &made, Change::Amend(text), seed) {
                count += 1;
                let what = format!("seed {seed}, shot {count} of {text} of {name}");
                let left = Made { file: bytes, data: Vec::new() };
                let found = judge(&setup, &left).unwrap_or_else(|why| panic!("{what}: {why}"));
                assert!(found.contents == start.contents, "{what}");
                assert!(found.snapshots == start.snapshots, "{what}");
                if !found.dirty {
                    found.no_errors().unwrap_or_else(|why| panic!("{what}: {why}"));
                }
            }
        }
        assert!(count >= 40, "{count} shots of {text} of {name}");
    }
}

/// A header that is longer than a sector is not written at once.
#[test]
fn a_crash_leaves_a_long_backing_name_whole_or_out() {
    let setup = setups().into_iter().find(|setup| setup.name == "4k shared").unwrap();
    let made = setup.make();
    let name = String::leak("n".repeat(1000));
    let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
    let mut seen = [0; 2];
    for seed in 0..20 {
        for bytes in shots(&setup, &made, Change::Backing(name), seed) {
            let (start, len) = (number(&bytes[8..16]), number(&bytes[16..20]));
            seen[usize::from(start > 0)] += 1;
            if start > 0 {
                assert!(start + len > 512, "it ends behind the first sector");
                assert!(bytes[start..start + len] == *name.as_bytes(), "seed {seed}");
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}
