//! The naive qcow2 reader and checker against `qemu-img`: same contents, same block status, and
//! nothing found where `qemu-img check` finds nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_testkit::naive::qcow2::{BadImage, Compression, Image, Piece, Place};
use block_testkit::peer::{ImageDir, Verdict};
use serde_json::Value;

/// `qemu-img create` options of images whose contents must be read alike.
const SHAPES: &[&str] = &[
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=1k,refcount_bits=2",
    "cluster_size=4k,refcount_bits=4",
    "cluster_size=32k,refcount_bits=8",
    "cluster_size=64k,refcount_bits=32",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=2M",
    "compression_type=zstd",
    "cluster_size=512,compression_type=zstd",
    "cluster_size=2M,compression_type=zstd",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,compression_type=zstd,refcount_bits=1",
    "extended_l2=on,cluster_size=2M,lazy_refcounts=on",
    "lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=metadata,cluster_size=512",
    "preallocation=full,cluster_size=4k,extended_l2=off",
];

/// A disk that ends inside a cluster, whatever the cluster size.
const SIZE: &str = "12584448";

/// Writes, zeroes, discards and compressed clusters that meet in the same clusters.
const WRITES: &[&str] = &[
    "write -P 1 0 70000",
    "write -P 2 1M 300k",
    "write -P 3 1060000 777",
    "write -z 1200k 64k",
    "write -z -u 1300k 9000",
    "write -P 4 1310000 100",
    "discard 1100k 128k",
    "write -P 5 10500000 5841",
    "write -c -P 6 8M CLUSTERS",
    "write -c -s pattern 6M CLUSTERS",
    "write -c -P 9 12582912 1536",
];

/// Makes `name` and writes to it.
fn make(dir: &ImageDir, name: &str, options: &str) {
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, SIZE]).unwrap();
    dir.write("pattern", &pattern()).unwrap();
    let has_data = options.contains("preallocation");
    // A compressed write needs clusters that are not allocated yet.
    let usable = WRITES.iter().filter(|w| !(has_data && w.starts_with("write -c")));
    // A multiple of the cluster size, and no more of the smallest than the test has time for.
    let clusters = if options.contains("=2M") { "2M" } else { "128k" };
    let commands: Vec<String> = usable.map(|w| w.replace("CLUSTERS", clusters)).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    dir.qemu_io(name, &commands).unwrap();
}

/// Bytes that compress to about half of their size.
fn pattern() -> Vec<u8> {
    let mut state = 1u32;
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 28).to_be_bytes()[3]
    };
    (0..100_003).map(|_| next(&mut state)).collect()
}

/// Fails unless the checker and `qemu-img check` find nothing in `name`.
fn assert_clean(dir: &ImageDir, name: &str, what: &str) {
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean, "{what}");
    let file = dir.bytes(name).unwrap();
    let report = Image::open(&file).unwrap().check().unwrap();
    assert!(report.is_clean(), "{what}: {report}");
}

/// Position of the first difference, for a message that can be read.
fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let first = a.iter().zip(b).position(|(x, y)| x != y);
    first.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

#[test]
fn contents_are_those_that_convert_reads() {
    for options in SHAPES {
        let dir = ImageDir::new().unwrap();
        make(&dir, "a.qcow2", options);
        let file = dir.bytes("a.qcow2").unwrap();
        let contents = Image::open(&file).unwrap().contents().unwrap();
        let expected = dir.raw_contents("a.qcow2", &[]).unwrap();
        assert_eq!(difference(&contents, &expected), None, "{options}");
        assert!(contents.iter().any(|b| *b != 0), "{options}");
        assert_clean(&dir, "a.qcow2", options);
    }
}

#[test]
fn every_kind_of_cluster_was_met() {
    let dir = ImageDir::new().unwrap();
    make(&dir, "a.qcow2", "cluster_size=4k");
    make(&dir, "b.qcow2", "preallocation=metadata");
    let mut met = [false; 5];
    for name in ["a.qcow2", "b.qcow2"] {
        let file = dir.bytes(name).unwrap();
        for piece in Image::open(&file).unwrap().map().unwrap() {
            let kind = match piece.place {
                Place::Unallocated => 0,
                Place::Zero { host: None } => 1,
                Place::Zero { host: Some(_) } => 2,
                Place::Data { .. } => 3,
                Place::Compressed { .. } => 4,
            };
            met[kind] = true;
        }
    }
    assert_eq!(met, [true; 5]);
}

#[test]
fn the_map_is_that_of_qemu_img() {
    let shapes = [
        "cluster_size=4k",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k,compression_type=zstd",
        "preallocation=metadata",
    ];
    for options in shapes {
        let dir = ImageDir::new().unwrap();
        make(&dir, "a.qcow2", options);
        let text = dir.qemu_img(&["map", "--output", "json", "a.qcow2"]).unwrap();
        let map: Vec<Value> = serde_json::from_str(&text).unwrap();
        let file = dir.bytes("a.qcow2").unwrap();
        let image = Image::open(&file).unwrap();
        for area in map {
            let number = |name: &str| area[name].as_u64().unwrap();
            let (start, end) = (number("start"), number("start") + number("length"));
            let mut at = start;
            while at < end {
                let piece = image.piece_at(at).unwrap().unwrap();
                check_piece(&area, piece, at, start, &format!("{options}: {at:#x}"));
                at = piece.guest + piece.len;
            }
        }
    }
}

/// Fails unless `piece`, for the byte `at`, is what the area that starts at `start` says.
fn check_piece(area: &Value, piece: Piece, at: u64, start: u64, what: &str) {
    let flag = |name: &str| area[name].as_bool().unwrap();
    let host = area["offset"].as_u64().map(|offset| offset + (at - start));
    match piece.place {
        Place::Unallocated => assert!(!flag("present") && flag("zero"), "{what}"),
        Place::Zero { .. } => assert!(flag("zero") && flag("present"), "{what}"),
        Place::Compressed { .. } => assert!(flag("compressed") && flag("data"), "{what}"),
        // A hole of the image file is reported as zeroes, so `data` says nothing here.
        Place::Data { host: own } => {
            assert_eq!(host, Some(own + (at - piece.guest)), "{what}");
        }
    }
}

#[test]
fn a_chain_is_read_from_the_bottom_up() {
    let dir = ImageDir::new().unwrap();
    let create = |name: &str, options: &str, size: &str| {
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, size]).unwrap();
    };
    create("base.qcow2", "cluster_size=512", "1000448");
    dir.qemu_io("base.qcow2", &["write -P 7 0 1000448"]).unwrap();
    create("mid.qcow2", "extended_l2=on,backing_file=base.qcow2,backing_fmt=qcow2", "2M");
    let middle = ["write -P 8 100k 3k", "write -z 600k 5k", "write -P 9 1900k 100k"];
    dir.qemu_io("mid.qcow2", &middle).unwrap();
    create("top.qcow2", "backing_file=mid.qcow2,backing_fmt=qcow2", "1M");
    dir.qemu_io("top.qcow2", &["write -P 10 0 64k", "discard 128k 64k"]).unwrap();

    let files = ["base.qcow2", "mid.qcow2", "top.qcow2"].map(|name| dir.bytes(name).unwrap());
    let base = Image::open(&files[0]).unwrap().contents().unwrap();
    let middle = Image::open(&files[1]).unwrap().with_backing(&base);
    let middle_contents = middle.contents().unwrap();
    let top = Image::open(&files[2]).unwrap();
    assert_eq!(top.header().backing_file.as_deref(), Some("mid.qcow2"));
    assert_eq!(top.header().backing_format().as_deref(), Some("qcow2"));
    let top_contents = top.with_backing(&middle_contents).contents().unwrap();
    for (name, own) in [("mid.qcow2", &middle_contents), ("top.qcow2", &top_contents)] {
        let expected = dir.raw_contents(name, &[]).unwrap();
        assert_eq!(difference(own, &expected), None, "{name}");
        assert_clean(&dir, name, name);
    }
}

#[test]
fn snapshots_are_listed_and_read() {
    for options in ["compat=0.10,cluster_size=512", "extended_l2=on", "refcount_bits=64"] {
        let dir = ImageDir::new().unwrap();
        make(&dir, "a.qcow2", options);
        dir.qemu_img(&["snapshot", "-c", "first", "a.qcow2"]).unwrap();
        dir.qemu_io("a.qcow2", &["write -P 11 30k 100k", "discard 1M 1M"]).unwrap();
        dir.qemu_img(&["snapshot", "-c", "zweiter: ü", "a.qcow2"]).unwrap();
        dir.qemu_io("a.qcow2", &["write -P 12 0 3M"]).unwrap();
        dir.qemu_img(&["snapshot", "-c", "third", "a.qcow2"]).unwrap();
        dir.qemu_img(&["snapshot", "-d", "third", "a.qcow2"]).unwrap();

        let file = dir.bytes("a.qcow2").unwrap();
        let image = Image::open(&file).unwrap();
        let snapshots = image.snapshots().unwrap();
        let names: Vec<&str> = snapshots.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["first", "zweiter: ü"], "{options}");
        assert_eq!(snapshots[1].id, "2");
        assert!(snapshots[0].date_seconds > 1_600_000_000);
        for snapshot in &snapshots {
            let contents = image.snapshot_contents(snapshot).unwrap();
            let expected = dir.raw_contents("a.qcow2", &["-l", &snapshot.name]).unwrap();
            assert_eq!(difference(&contents, &expected), None, "{options}");
        }
        assert_clean(&dir, "a.qcow2", options);
    }
}

#[test]
fn a_data_file_is_read_at_guest_offsets() {
    for raw in ["off", "on"] {
        let dir = ImageDir::new().unwrap();
        let options = format!("data_file=a.data,data_file_raw={raw}");
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", SIZE]).unwrap();
        let writes = ["write -P 1 0 70000", "write -P 2 1M 300k", "write -z 1100k 64k"];
        dir.qemu_io("a.qcow2", &writes).unwrap();
        let (file, data) = (dir.bytes("a.qcow2").unwrap(), dir.bytes("a.data").unwrap());
        let image = Image::open(&file).unwrap();
        assert_eq!(image.header().data_file().as_deref(), Some("a.data"));
        assert_eq!(image.contents(), Err(BadImage::NeedsDataFile));
        let contents = image.with_data_file(&data).contents().unwrap();
        let expected = dir.raw_contents("a.qcow2", &[]).unwrap();
        assert_eq!(difference(&contents, &expected), None, "data_file_raw={raw}");
        assert_clean(&dir, "a.qcow2", raw);
    }
}

#[test]
fn bitmaps_hold_what_was_written_while_they_recorded() {
    for cluster in ["512", "64k"] {
        let dir = ImageDir::new().unwrap();
        let options = format!("cluster_size={cluster}");
        dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", SIZE]).unwrap();
        let add = ["bitmap", "--add", "-g", "4096", "a.qcow2", "fine"];
        dir.qemu_img(&add).unwrap();
        dir.qemu_img(&["bitmap", "--add", "-g", "1M", "a.qcow2", "coarse"]).unwrap();
        dir.qemu_img(&["bitmap", "--add", "--disable", "a.qcow2", "off"]).unwrap();
        dir.qemu_io("a.qcow2", &["write 0 4096", "write 8191 2", "write 12584447 1"]).unwrap();
        let file = dir.bytes("a.qcow2").unwrap();
        let image = Image::open(&file).unwrap();
        let bitmaps = image.bitmaps().unwrap();
        let set = |name: &str| -> Vec<usize> {
            let bitmap = bitmaps.iter().find(|b| b.name == name).unwrap();
            let bits = image.bitmap_bits(bitmap).unwrap();
            let set = bits.iter().enumerate().filter(|(_, set)| **set);
            set.map(|(index, _)| index).collect()
        };
        assert_eq!(bitmaps.len(), 3);
        assert_eq!(set("fine"), [0, 1, 2, 3072]);
        assert_eq!(set("coarse"), [0, 12]);
        assert_eq!(set("off"), [] as [usize; 0]);
        assert!(bitmaps.iter().all(|b| b.is_auto() == (b.name != "off")));
        assert_clean(&dir, "a.qcow2", cluster);
    }
}

#[test]
fn headers_are_read_field_by_field() {
    let dir = ImageDir::new().unwrap();
    make(&dir, "a.qcow2", "compression_type=zstd,refcount_bits=4,lazy_refcounts=on");
    let file = dir.bytes("a.qcow2").unwrap();
    let image = Image::open(&file).unwrap();
    let header = image.header();
    assert_eq!((header.version, header.header_length), (3, 112));
    assert_eq!(header.compression, Compression::Zstd);
    assert_eq!((header.refcount_bits(), header.size), (4, SIZE.parse().unwrap()));
    assert_eq!(header.compatible_features, 1);
    let names = header.feature_names();
    let dirty = names.iter().find(|n| (n.kind, n.bit) == (0, 0)).unwrap();
    assert_eq!(dirty.name, "dirty bit");
}

#[test]
fn an_encrypted_image_is_checked_but_not_read() {
    let dir = ImageDir::new().unwrap();
    let secret = "secret,id=s,data=x";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    dir.qemu_img(&[
        "create", "-q", "-f", "qcow2", "--object", secret, "-o", options, "a.qcow2", "1M",
    ])
    .unwrap();
    let file = dir.bytes("a.qcow2").unwrap();
    let image = Image::open(&file).unwrap();
    assert_eq!(image.contents(), Err(BadImage::Encrypted { method: 2 }));
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{report}");
}
