//! Images made by `qemu-img` read back as `qemu-img` reads them, and map as it maps them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use block_core::Options;
use block_core::options::OpenFlags;
use block_testkit::peer::ImageDir;
use serde_json::Value;
use support::{contents, map, open, open_with};

/// Writes of different kinds near the edges of clusters of `cluster` bytes; large clusters get fewer.
fn scribble(dir: &ImageDir, image: &str, cluster: u64) {
    let at = |n: u64| n * cluster;
    let mut commands = vec![
        format!("write -P 1 0 {}", at(2)),
        format!("write -P 2 {} {cluster}", at(3) + 512),
        format!("write -z {} {cluster}", at(1)),
        format!("write -P 3 {} 512", at(6)),
    ];
    if cluster < 1 << 20 {
        commands.extend([
            format!("write -z {} {cluster}", at(8)),
            format!("write -P 4 {} {}", at(9), at(3)),
            format!("write -z {} {cluster}", at(10)),
            format!("discard {} {cluster}", at(11)),
            format!("write -z -u {} {cluster}", at(4)),
            format!("write -P 5 {} {cluster}", at(20)),
        ]);
    }
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    dir.qemu_io(image, &commands).unwrap();
}

/// The driver and the peer agree on `image`, whatever the length of the requests.
fn check(dir: &ImageDir, image: &str) {
    check_with(dir, image, &Options::new());
}

fn check_with(dir: &ImageDir, image: &str, options: &Options) {
    let expect = dir.raw_contents(image, &[]).unwrap();
    let node = open_with(&dir.path(image), OpenFlags::READ_ONLY, options.clone()).unwrap();
    let small = if expect.len() <= 2 << 20 { 4096 + 512 } else { 100_000 };
    for step in [3 << 20, small] {
        let mut found = contents(&node, step);
        // The peer rounds lengths up to sectors.
        found.resize(expect.len(), 0);
        let differs = found.iter().zip(&expect).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{image} in steps of {step}");
    }
    let json = dir.qemu_img(&["map", "--output", "json", image]).unwrap();
    let expect: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(map(&node), expect, "map of {image}");
}

fn create(dir: &ImageDir, image: &str, options: &str, size: &str) {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([image, size]);
    dir.qemu_img(&args).unwrap();
}

#[test]
fn every_cluster_size_and_version() {
    let dir = ImageDir::new().unwrap();
    for (bits, size) in [(9, "1M"), (12, "1M"), (16, "2M"), (18, "6M"), (21, "15M")] {
        for compat in ["0.10", "1.1"] {
            let image = format!("{bits}-{compat}.qcow2");
            let options = format!("cluster_size={},compat={compat}", 1 << bits);
            create(&dir, &image, &options, size);
            check(&dir, &image);
            scribble(&dir, &image, 1 << bits);
            check(&dir, &image);
        }
    }
}

#[test]
fn extended_l2_entries() {
    let dir = ImageDir::new().unwrap();
    for (bits, size) in [(14, "1M"), (16, "2M"), (21, "15M")] {
        let image = format!("{bits}.qcow2");
        create(&dir, &image, &format!("cluster_size={},extended_l2=on", 1 << bits), size);
        scribble(&dir, &image, 1 << bits);
        scribble(&dir, &image, 1 << (bits - 5));
        check(&dir, &image);
    }
}

#[test]
fn compressed_clusters() {
    let dir = ImageDir::new().unwrap();
    // Text that compresses well, noise that does not, and zeroes.
    let mut bytes: Vec<u8> = (0..900_000u32).map(|n| (n / 300 % 251) as u8).collect();
    let mut state = 1u64;
    bytes.extend(
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(200_000),
    );
    bytes.extend(vec![0; 300_000]);
    bytes.extend((0..700_000u32).map(|n| (n / 4096 * (n % 7) % 251) as u8));
    bytes.truncate(bytes.len() / 512 * 512);
    dir.write("source.raw", &bytes).unwrap();
    for kind in ["zlib", "zstd"] {
        for cluster in [512u64, 4096, 65536, 2 << 20] {
            for extended in ["off", "on"] {
                if extended == "on" && cluster < 16384 {
                    continue;
                }
                let image = format!("{kind}-{cluster}-{extended}.qcow2");
                let options = format!(
                    "compression_type={kind},cluster_size={cluster},extended_l2={extended}"
                );
                let args = ["convert", "-c", "-O", "qcow2", "-o", &options, "source.raw", &image];
                dir.qemu_img(&args).unwrap();
                check(&dir, &image);
                scribble(&dir, &image, cluster.min(65536));
                check(&dir, &image);
            }
        }
    }
}

#[test]
fn small_reads_of_compressed_clusters_agree() {
    let dir = ImageDir::new().unwrap();
    let bytes: Vec<u8> = (0..400_000u32).map(|n| (n / 3 % 253) as u8).collect();
    dir.write("source.raw", &bytes[..399_872]).unwrap();
    dir.qemu_img(&["convert", "-c", "-O", "qcow2", "source.raw", "c.qcow2"]).unwrap();
    let node = open(&dir.path("c.qcow2")).unwrap();
    let expect = dir.bytes("source.raw").unwrap();
    assert_eq!(&contents(&node, 1000)[..expect.len()], expect);
    assert_eq!(&contents(&node, 65536 + 4096)[..expect.len()], expect);
}

#[test]
fn backing_chains_of_different_lengths() {
    let dir = ImageDir::new().unwrap();
    for (base, middle, top) in [("3M", "2M", "4M"), ("2M", "4M", "3M"), ("3M", "3M", "3M")] {
        for format in ["qcow2", "raw"] {
            let name = |layer: &str| format!("{layer}-{base}-{middle}-{top}-{format}");
            let (b, m, t) = (name("base"), name("middle"), name("top"));
            dir.qemu_img(&["create", "-q", "-f", format, &b, base]).unwrap();
            dir.qemu_io(&b, &["write -P 9 0 2M", "write -P 8 2047k 1k"]).unwrap();
            let over = |below: &str, below_format: &str, image: &str, size: &str| {
                let args = ["create", "-q", "-f", "qcow2", "-b", below, "-F", below_format];
                dir.qemu_img(&[&args[..], &[image, size]].concat()).unwrap();
            };
            over(&b, format, &m, middle);
            dir.qemu_io(&m, &["write -P 7 1M 300k", "write -z 128k 64k"]).unwrap();
            over(&m, "qcow2", &t, top);
            dir.qemu_io(&t, &["write -P 6 1100k 10k", "discard 1M 64k"]).unwrap();
            check(&dir, &t);
        }
    }
}

#[test]
fn the_longest_chain_is_read_to_its_end() {
    let dir = ImageDir::new().unwrap();
    dir.write("000", &[3; 1 << 20]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-b", "000", "-F", "raw", "001"];
    dir.qemu_img(&args).unwrap();
    dir.qemu_img(&["rebase", "-u", "-b", "000", "-F", "qcow2", "001"]).unwrap();
    let image = dir.bytes("001").unwrap();
    let name = image.windows(3).rposition(|w| w == b"000").unwrap();
    for n in 2..=199 {
        let mut bytes = image.clone();
        bytes[name..name + 3].copy_from_slice(format!("{:03}", n - 1).as_bytes());
        dir.write(&format!("{n:03}"), &bytes).unwrap();
    }
    dir.qemu_img(&["rebase", "-u", "-b", "000", "-F", "raw", "001"]).unwrap();
    let node = open(&dir.path("199")).unwrap();
    for (offset, len) in [(0, 4096), (1000, 1 << 19)] {
        assert!(support::read(&node, offset, len).unwrap().iter().all(|b| *b == 3));
    }
    assert_eq!(map(&node)[0]["depth"], 199);
}

#[test]
fn a_backing_file_of_the_users_choice_or_none() {
    let dir = ImageDir::new().unwrap();
    dir.write("base.raw", &[5; 1 << 20]).unwrap();
    dir.write("other.raw", &[6; 1 << 19]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"];
    dir.qemu_img(&args).unwrap();
    check(&dir, "top.qcow2");
    let path = dir.path("top.qcow2");
    let other = dir.path("other.raw");
    let options = Options::new().with("backing.filename", other.to_str().unwrap());
    let node = open_with(&path, OpenFlags::READ_ONLY, options).unwrap();
    let found = contents(&node, 1 << 20);
    assert!(found[..1 << 19].iter().all(|b| *b == 6) && found[1 << 19..].iter().all(|b| *b == 0));
    let none = Options::new().with("backing", "");
    let node = open_with(&path, OpenFlags::READ_ONLY, none).unwrap();
    assert!(contents(&node, 1 << 20).iter().all(|b| *b == 0));
    let flags = OpenFlags { no_backing: true, ..OpenFlags::READ_ONLY };
    assert!(open_with(&path, flags, Options::new()).unwrap().backing().is_none());
}

#[test]
fn snapshots_do_not_disturb_and_are_listed() {
    let dir = ImageDir::new().unwrap();
    for compat in ["0.10", "1.1"] {
        let image = format!("{compat}.qcow2");
        create(&dir, &image, &format!("compat={compat}"), "4M");
        scribble(&dir, &image, 65536);
        dir.qemu_img(&["snapshot", "-c", "first", &image]).unwrap();
        scribble(&dir, &image, 4096);
        dir.qemu_img(&["snapshot", "-c", "a longer name", &image]).unwrap();
        scribble(&dir, &image, 32768);
        check(&dir, &image);
        let node = open(&dir.path(&image)).unwrap();
        let list = node.driver().as_snapshots().unwrap().list();
        let names: Vec<_> = list.iter().map(|s| (s.id.as_str(), s.name.as_str())).collect();
        assert_eq!(names, [("1", "first"), ("2", "a longer name")]);
        assert!(list.iter().all(|s| s.disk_len == Some(4 << 20) && s.date_seconds > 0));
    }
}

#[test]
fn external_data_files() {
    let dir = ImageDir::new().unwrap();
    for (image, options) in [
        ("plain.qcow2", "data_file=plain.raw"),
        ("raw.qcow2", "data_file=raw.raw,data_file_raw=on"),
        ("ext.qcow2", "data_file=ext.raw,extended_l2=on"),
        ("meta.qcow2", "data_file=meta.raw,preallocation=metadata"),
    ] {
        create(&dir, image, options, "3M");
        check(&dir, image);
        scribble(&dir, image, 65536);
        check(&dir, image);
    }
    std::fs::rename(dir.path("plain.raw"), dir.path("moved.raw")).unwrap();
    let path = dir.path("plain.qcow2");
    let err = open(&path).unwrap_err().to_string();
    assert!(err.contains("data file 'plain.raw'"), "{err}");
    let moved = dir.path("moved.raw");
    let options = Options::new().with("data-file.filename", moved.to_str().unwrap());
    let node = open_with(&path, OpenFlags::READ_ONLY, options).unwrap();
    assert_eq!(contents(&node, 1 << 20)[..65536], [1; 65536]);
    let flags = OpenFlags { no_io: true, ..OpenFlags::READ_ONLY };
    let node = open_with(&path, flags, Options::new()).unwrap();
    assert!(support::read(&node, 0, 512).is_err());
}

#[test]
fn preallocated_metadata_shows_the_holes_of_the_file() {
    let dir = ImageDir::new().unwrap();
    for (image, options) in [
        ("meta.qcow2", "preallocation=metadata"),
        ("ext.qcow2", "preallocation=metadata,extended_l2=on"),
        ("narrow.qcow2", "preallocation=metadata,refcount_bits=1"),
        ("falloc.qcow2", "preallocation=falloc"),
        ("full.qcow2", "preallocation=full"),
    ] {
        create(&dir, image, options, "3M");
        check(&dir, image);
        scribble(&dir, image, 65536);
        check(&dir, image);
    }
}

#[test]
fn every_refcount_width_is_no_matter() {
    let dir = ImageDir::new().unwrap();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let image = format!("{bits}.qcow2");
        create(&dir, &image, &format!("refcount_bits={bits}"), "2M");
        scribble(&dir, &image, 65536);
        check(&dir, &image);
    }
}

#[test]
fn a_slice_cache_too_small_for_the_disk() {
    let dir = ImageDir::new().unwrap();
    create(&dir, "small.qcow2", "cluster_size=4096", "13M");
    scribble(&dir, "small.qcow2", 4096);
    // Clusters that follow each other in the file, across many slices.
    dir.qemu_io("small.qcow2", &["write -P 7 1M 8M", "write -P 8 10M 3M"]).unwrap();
    for slice in ["512", "1024", "4096"] {
        let options = Options::new().with("l2-cache-size", "1k").with("l2-cache-entry-size", slice);
        check_with(&dir, "small.qcow2", &options);
    }
}

#[test]
fn a_large_sparse_disk_is_mapped_quickly() {
    let dir = ImageDir::new().unwrap();
    create(&dir, "large.qcow2", "", "64T");
    dir.qemu_io("large.qcow2", &["write -P 1 63T 64k", "write -P 2 1T 64k"]).unwrap();
    let node = open(&dir.path("large.qcow2")).unwrap();
    let json = dir.qemu_img(&["map", "--output", "json", "large.qcow2"]).unwrap();
    let expect: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(map(&node), expect);
    assert_eq!(support::read(&node, 63 << 40, 512).unwrap(), [1; 512]);
}
