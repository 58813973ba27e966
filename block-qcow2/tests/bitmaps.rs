//! Persistent dirty bitmaps: what others wrote is loaded, what is written here others read, and no
//! crash or error leaves one that is trusted and behind the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use block_core::dirty::{BitmapError, DirtyBitmap, Granularity};
use block_core::driver::{Exactness, Prealloc, ReopenOptions};
use block_core::error::Problem;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemDriver;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, Options, Registry, RequestFlags, graph,
};
use block_qcow2::Qcow2Factory;
use block_testkit::disk::crash::CrashDisk;
use block_testkit::disk::fault::{Effect, Fault, Rule};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::model::bitmap::BitmapModel;
use block_testkit::naive::qcow2::Image;
use block_testkit::peer::{ImageDir, Verdict};
use futures::executor::block_on;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::open_driver;

const RW: OpenFlags = OpenFlags { no_backing: true, ..OpenFlags::READ_WRITE };
const MIB: u64 = 1 << 20;

fn memory(bytes: &[u8]) -> Arc<MemDriver> {
    Arc::new(MemDriver::from_bytes(bytes).unwrap())
}

/// The image of these bytes, open for writing, and its file.
fn writable(bytes: &[u8]) -> (Node, Arc<MemDriver>) {
    let file = memory(bytes);
    (open_driver(file.clone(), RW).unwrap(), file)
}

fn read_only(bytes: &[u8]) -> Result<Node, OpenError> {
    open_driver(memory(bytes), OpenFlags { writable: false, ..RW })
}

fn write(node: &Node, offset: u64, len: u64) -> Result<(), Error> {
    let buf = IoBuf::zeroed(usize::try_from(len).unwrap(), Alignment::PAGE).unwrap();
    buf.fill(0x5a);
    let range = ByteRange::new(offset, len).unwrap();
    block_on(node.write(range, buf.into(), RequestFlags::empty()))
}

fn close(node: &Node) -> Result<(), Error> {
    block_on(graph::close(node))
}

/// Adds a persistent bitmap, as tools do.
fn add(node: &Node, name: &str, granularity: u64) -> Result<(), Error> {
    node.driver().as_bitmaps().unwrap().can_store(name, granularity)?;
    let granularity = Granularity::new(granularity).unwrap();
    let mut bitmap = DirtyBitmap::new(Some(name), granularity, node.len()).unwrap();
    bitmap.make_persistent().unwrap();
    node.dirty_bitmaps().insert(bitmap).unwrap();
    Ok(())
}

fn change(node: &Node, name: &str, change: impl FnOnce(&mut DirtyBitmap)) {
    let id = node.dirty_bitmaps().find(name).unwrap();
    node.dirty_bitmaps().update(id, change).unwrap();
}

fn with<R>(node: &Node, name: &str, look: impl FnOnce(&DirtyBitmap) -> R) -> R {
    let id = node.dirty_bitmaps().find(name).expect(name);
    node.dirty_bitmaps().with(id, look).unwrap()
}

/// Dirty areas of a bitmap, as bounds.
fn areas(node: &Node, name: &str) -> Vec<(u64, u64)> {
    with(node, name, |bitmap| bitmap.areas().map(|a| (a.offset(), a.end())).collect())
}

/// The same of the file, by the naive reader.
fn naive_areas(bytes: &[u8], name: &str) -> Vec<(u64, u64)> {
    let image = Image::open(bytes).unwrap();
    let bitmaps = image.bitmaps().unwrap();
    let bitmap = bitmaps.iter().find(|b| b.name == name).expect(name);
    let (granularity, size) = (1u64 << bitmap.granularity_bits, image.header().size);
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for (n, _) in (0u64..).zip(image.bitmap_bits(bitmap).unwrap()).filter(|(_, set)| *set) {
        let (start, end) = (n * granularity, ((n + 1) * granularity).min(size));
        match areas.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => areas.push((start, end)),
        }
    }
    areas
}

/// Name, granularity and flags (`in-use`, `auto`) of each bitmap, as the peer lists them.
fn peer_list(dir: &ImageDir, image: &str) -> Vec<(String, u64, String)> {
    let text = dir.qemu_img(&["info", "--output", "json", image]).unwrap();
    let info: Value = serde_json::from_str(&text).unwrap();
    let list = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let one = |b: &Value| {
        let flags = b["flags"].as_array().unwrap().iter().map(|f| f.as_str().unwrap());
        let flags = flags.collect::<Vec<_>>().join(" ");
        (b["name"].as_str().unwrap().to_owned(), b["granularity"].as_u64().unwrap(), flags)
    };
    list.iter().map(one).collect()
}

/// The same, as the node lists them.
fn list(node: &Node) -> Vec<(String, u64, String)> {
    let one = |(id, info): &(_, block_core::dirty::BitmapInfo)| {
        let enabled = node.dirty_bitmaps().with(*id, DirtyBitmap::is_enabled).unwrap();
        let flags = match (info.inconsistent, enabled) {
            (true, _) => "in-use auto",
            (false, true) => "auto",
            (false, false) => "",
        };
        (info.name.clone().unwrap(), info.granularity, flags.to_owned())
    };
    node.dirty_bitmaps().list().iter().map(one).collect()
}

/// Both checkers find nothing.
fn assert_clean(dir: &ImageDir, name: &str, bytes: &[u8]) {
    let report = Image::open(bytes).unwrap().check().unwrap();
    assert!(report.is_clean(), "{report}");
    dir.write(name, bytes).unwrap();
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean, "{name}");
}

fn created(dir: &ImageDir, options: &str, size: &str) -> Vec<u8> {
    let args = ["create", "-q", "-f", "qcow2", "-o", options, "new.qcow2", size];
    dir.qemu_img(&args).unwrap();
    dir.bytes("new.qcow2").unwrap()
}

/// Where the directory starts, and where its extension.
fn directory_at(bytes: &[u8]) -> (usize, usize) {
    let kind = 0x2385_2875u32.to_be_bytes();
    let at = bytes[..4096].windows(4).position(|w| w == kind).unwrap();
    let offset: [u8; 8] = bytes[at + 24..at + 32].try_into().unwrap();
    (usize::try_from(u64::from_be_bytes(offset)).unwrap(), at)
}

#[test]
fn bitmaps_of_the_peer_are_loaded_as_it_left_them() {
    let dir = ImageDir::new().unwrap();
    for options in ["cluster_size=512", "cluster_size=64k", "cluster_size=2M,extended_l2=on"] {
        created(&dir, options, "8M");
        let image = "new.qcow2";
        dir.qemu_img(&["bitmap", "--add", "-g", "512", image, "fine"]).unwrap();
        dir.qemu_img(&["bitmap", "--add", "-g", "2G", image, "coarse"]).unwrap();
        dir.qemu_io(image, &["write 0 4k", "write 1000k 300k"]).unwrap();
        dir.qemu_img(&["bitmap", "--add", "--disable", "-g", "64k", image, "off"]).unwrap();
        dir.qemu_io(image, &["write 8191k 1k", "discard 3M 1M"]).unwrap();
        let bytes = dir.bytes(image).unwrap();
        let node = read_only(&bytes).unwrap();
        assert_eq!(list(&node), peer_list(&dir, image), "{options}");
        for name in ["fine", "coarse", "off"] {
            assert_eq!(areas(&node, name), naive_areas(&bytes, name), "{options} {name}");
        }
        assert!(areas(&node, "fine").len() >= 3 && areas(&node, "off").is_empty());
        assert_eq!(areas(&node, "coarse"), [(0, 8 * MIB)]);
        // Nothing can be done to bitmaps of an image that is open for reading.
        let id = node.dirty_bitmaps().find("fine").unwrap();
        let removed = node.dirty_bitmaps().remove(id);
        assert_eq!(removed, Err(BitmapError::ReadOnly { name: "fine".to_owned() }));
        assert!(node.is_read_only());
    }
}

#[test]
fn the_peer_works_with_bitmaps_that_are_written_here() {
    let dir = ImageDir::new().unwrap();
    for options in ["cluster_size=4k", "cluster_size=64k,refcount_bits=1", "cluster_size=2M"] {
        let bytes = created(&dir, options, "16M");
        let (node, file) = writable(&bytes);
        for (name, granularity) in [("a", 512), ("b", 65536), ("c", 4096), ("d", 1 << 31)] {
            add(&node, name, granularity).unwrap();
        }
        change(&node, "c", |c| c.disable().unwrap());
        write(&node, 5000, 70_000).unwrap();
        write(&node, 15 * MIB, MIB).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        assert_clean(&dir, "ours.qcow2", &bytes);
        let expect =
            [("a", 512, "auto"), ("b", 65536, "auto"), ("c", 4096, ""), ("d", 1 << 31, "auto")];
        let expect = expect.map(|(n, g, f)| (n.to_owned(), g, f.to_owned()));
        assert_eq!(peer_list(&dir, "ours.qcow2"), expect, "{options}");
        assert_eq!(naive_areas(&bytes, "a"), [(4608, 75264), (15 * MIB, 16 * MIB)]);
        assert_eq!(naive_areas(&bytes, "b"), [(0, 131_072), (15 * MIB, 16 * MIB)]);
        assert_eq!(naive_areas(&bytes, "c"), []);
        assert_eq!(naive_areas(&bytes, "d"), [(0, 16 * MIB)]);

        // It merges, goes on recording, and copies; and we go on with what it wrote.
        dir.qemu_img(&["bitmap", "--merge", "b", "ours.qcow2", "c"]).unwrap();
        dir.qemu_io("ours.qcow2", &["write 8M 512"]).unwrap();
        let args = ["convert", "-O", "qcow2", "--bitmaps", "ours.qcow2", "copy.qcow2"];
        dir.qemu_img(&args).unwrap();
        for image in ["ours.qcow2", "copy.qcow2"] {
            let bytes = dir.bytes(image).unwrap();
            let merged = [(0, 131_072), (15 * MIB, 16 * MIB)];
            assert_eq!(naive_areas(&bytes, "c"), merged, "{options} {image}");
            let (node, file) = writable(&bytes);
            assert_eq!(areas(&node, "a")[1], (8 * MIB, 8 * MIB + 512));
            change(&node, "a", |a| a.clear().unwrap());
            close(&node).unwrap();
            assert_clean(&dir, "again.qcow2", &file.to_bytes());
            assert_eq!(naive_areas(&file.to_bytes(), "a"), []);
            assert_eq!(naive_areas(&file.to_bytes(), "c"), merged);
        }
    }
}

#[test]
fn merging_crosses_granularities_and_nodes() {
    let dir = ImageDir::new().unwrap();
    let bytes = created(&dir, "cluster_size=64k", "4M");
    let (source, _) = writable(&bytes);
    add(&source, "s", 512).unwrap();
    write(&source, 70_000, 10).unwrap();
    let (target, file) = writable(&bytes);
    add(&target, "t", 4096).unwrap();
    let copy = with(&source, "s", Clone::clone);
    change(&target, "t", |t| t.merge(&copy).unwrap());
    close(&target).unwrap();
    assert_eq!(naive_areas(&file.to_bytes(), "t"), [(69_632, 73_728)]);
    assert_clean(&dir, "merged.qcow2", &file.to_bytes());
}

#[test]
fn a_crash_after_a_write_leaves_bitmaps_in_use_and_they_can_only_be_removed() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    dir.qemu_img(&["bitmap", "--add", "new.qcow2", "b"]).unwrap();
    let bytes = dir.bytes("new.qcow2").unwrap();
    let (node, file) = writable(&bytes);
    assert_eq!(file.to_bytes(), bytes, "opening for writing changes nothing");
    write(&node, 0, 512).unwrap();
    // No close: the crash.
    let crashed = file.to_bytes();
    dir.write("crashed.qcow2", &crashed).unwrap();
    assert_eq!(peer_list(&dir, "crashed.qcow2")[0].2, "in-use auto");

    let (node, file) = writable(&crashed);
    assert!(with(&node, "b", DirtyBitmap::is_inconsistent));
    let inconsistent = BitmapError::Inconsistent { name: "b".to_owned() };
    change(&node, "b", |b| assert_eq!(b.enable(), Err(inconsistent.clone())));
    change(&node, "b", |b| assert_eq!(b.clear(), Err(inconsistent)));
    write(&node, 0, 512).unwrap();
    add(&node, "new", 65536).unwrap();
    close(&node).unwrap();
    // It stays what it is beside others.
    assert_clean(&dir, "kept.qcow2", &file.to_bytes());
    let flags: Vec<_> = peer_list(&dir, "kept.qcow2").into_iter().map(|b| (b.0, b.2)).collect();
    assert_eq!(flags, [("b", "in-use auto"), ("new", "auto")].map(|(n, f)| (n.into(), f.into())));

    let (node, file) = writable(&file.to_bytes());
    let id = node.dirty_bitmaps().find("b").unwrap();
    node.dirty_bitmaps().remove(id).unwrap();
    close(&node).unwrap();
    assert_clean(&dir, "removed.qcow2", &file.to_bytes());
    assert_eq!(peer_list(&dir, "removed.qcow2").len(), 1);
}

#[test]
fn the_last_bitmap_takes_extension_bit_and_clusters_with_it() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "4M"]).unwrap();
    for backing in [false, true] {
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if backing {
            args.extend(["-b", "base.qcow2", "-F", "qcow2"]);
        }
        args.extend(["plain.qcow2", "4M"]);
        dir.qemu_img(&args).unwrap();
        let plain = dir.bytes("plain.qcow2").unwrap();
        let (node, file) = writable(&plain);
        add(&node, "only", 65536).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        assert_clean(&dir, "one.qcow2", &bytes);
        let header = Image::open(&bytes).unwrap().header().clone();
        assert_eq!(header.autoclear_features & 1, 1);
        let (node, file) = writable(&bytes);
        let id = node.dirty_bitmaps().find("only").unwrap();
        node.dirty_bitmaps().remove(id).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        assert_clean(&dir, "none.qcow2", &bytes);
        let image = Image::open(&bytes).unwrap();
        assert_eq!(image.header().autoclear_features & 1, 0);
        assert!(image.bitmaps().unwrap().is_empty());
        assert!(!bytes[..4096].windows(4).any(|w| w == 0x2385_2875u32.to_be_bytes()));
        let info = dir.qemu_img(&["info", "none.qcow2"]).unwrap();
        assert_eq!(info.contains("backing file: base.qcow2"), backing);
    }
}

#[test]
fn a_driver_that_nobody_loaded_bitmaps_from_never_leaves_them_trusted() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    dir.qemu_img(&["bitmap", "--add", "new.qcow2", "b"]).unwrap();
    let bytes = dir.bytes("new.qcow2").unwrap();
    let bare = |bytes: &[u8]| {
        let (node, file) = writable(bytes);
        (Node::new(Arc::clone(node.driver()), Default::default()), file)
    };
    // The registry's node is gone; a second one around a fresh driver has loaded nothing.
    let (node, file) = bare(&bytes);
    assert!(node.dirty_bitmaps().list().is_empty());
    write(&node, 0, 512).unwrap();
    drop(node);
    dir.write("bare.qcow2", &file.to_bytes()).unwrap();
    assert_eq!(peer_list(&dir, "bare.qcow2")[0].2, "in-use auto");
}

#[test]
fn every_way_to_change_the_disk_marks_bitmaps_first() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    dir.qemu_io("new.qcow2", &["write 0 1M"]).unwrap();
    dir.qemu_img(&["bitmap", "--add", "new.qcow2", "b"]).unwrap();
    let bytes = dir.bytes("new.qcow2").unwrap();
    let range = ByteRange::new(0, 65536).unwrap();
    type Change = fn(&Node, ByteRange);
    let changes: &[Change] = &[
        |node, _| write(node, 0, 512).unwrap(),
        |node, range| block_on(node.write_zeroes(range, RequestFlags::empty())).unwrap(),
        |node, range| block_on(node.discard(range)).unwrap(),
        |node, _| {
            block_on(node.truncate(8 * MIB, Exactness::Exact, Prealloc::Off)).unwrap();
        },
    ];
    for (n, change) in changes.iter().enumerate() {
        let tap = Fault::new();
        let file = memory(&bytes);
        let node = open_driver(Tapped::new(file.clone(), Arc::clone(&tap)), RW).unwrap();
        // The mark cannot be written: nothing else is.
        tap.add(Rule::new(Kind::Write));
        let failed = block_on(node.write_zeroes(range, RequestFlags::empty()));
        assert_eq!(failed, Err(Error::IO));
        assert_eq!(file.to_bytes(), bytes, "change {n}");
        tap.clear();
        change(&node, range);
        dir.write("changed.qcow2", &file.to_bytes()).unwrap();
        assert_eq!(peer_list(&dir, "changed.qcow2")[0].2, "in-use auto", "change {n}");
        close(&node).unwrap();
        assert_clean(&dir, "closed.qcow2", &file.to_bytes());
        assert_eq!(peer_list(&dir, "closed.qcow2")[0].2, "auto", "change {n}");
    }
}

#[test]
fn bitmaps_follow_the_disk_to_a_new_length() {
    let dir = ImageDir::new().unwrap();
    for (len, expect) in [(64 * MIB, vec![(0, 512), (4 * MIB, 64 * MIB)]), (MIB, vec![(0, 512)])] {
        let (node, file) = writable(&created(&dir, "cluster_size=512", "4M"));
        add(&node, "b", 512).unwrap();
        write(&node, 0, 512).unwrap();
        block_on(graph::store_bitmaps(&node)).unwrap();
        block_on(node.truncate(len, Exactness::Exact, Prealloc::Off)).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        assert_clean(&dir, "resized.qcow2", &bytes);
        assert_eq!(naive_areas(&bytes, "b"), expect);
        let (node, _) = writable(&bytes);
        assert_eq!(areas(&node, "b"), expect);
    }
}

#[test]
fn a_store_in_between_is_good_until_the_next_write() {
    let dir = ImageDir::new().unwrap();
    let (node, file) = writable(&created(&dir, "cluster_size=64k", "4M"));
    add(&node, "b", 65536).unwrap();
    write(&node, 0, 512).unwrap();
    block_on(graph::store_bitmaps(&node)).unwrap();
    block_on(node.flush()).unwrap();
    let between = file.to_bytes();
    assert_eq!(naive_areas(&between, "b"), [(0, 65536)]);
    dir.write("between.qcow2", &between).unwrap();
    assert_eq!(peer_list(&dir, "between.qcow2")[0].2, "auto");
    write(&node, MIB, 512).unwrap();
    dir.write("after.qcow2", &file.to_bytes()).unwrap();
    assert_eq!(peer_list(&dir, "after.qcow2")[0].2, "in-use auto");
    close(&node).unwrap();
    assert_clean(&dir, "closed.qcow2", &file.to_bytes());
    assert_eq!(naive_areas(&file.to_bytes(), "b"), [(0, 65536), (MIB, MIB + 65536)]);
}

#[test]
fn reopening_for_reading_stores_and_back_again_records() {
    let dir = ImageDir::new().unwrap();
    let (node, file) = writable(&created(&dir, "cluster_size=64k", "4M"));
    add(&node, "b", 65536).unwrap();
    write(&node, 0, 512).unwrap();
    let reopen = |read_only| {
        let options = ReopenOptions { read_only: Some(read_only), ..Default::default() };
        block_on(graph::reopen(&[(node.clone(), options)])).unwrap();
    };
    reopen(true);
    assert_clean(&dir, "reading.qcow2", &file.to_bytes());
    assert_eq!(peer_list(&dir, "reading.qcow2")[0].2, "auto");
    assert_eq!(write(&node, 0, 512), Err(Error::ReadOnly));
    reopen(false);
    write(&node, MIB, 512).unwrap();
    close(&node).unwrap();
    assert_clean(&dir, "closed.qcow2", &file.to_bytes());
    assert_eq!(naive_areas(&file.to_bytes(), "b"), [(0, 65536), (MIB, MIB + 65536)]);
}

#[test]
fn snapshots_are_not_applied_below_bitmaps() {
    let dir = ImageDir::new().unwrap();
    let (node, _) = writable(&created(&dir, "cluster_size=64k", "4M"));
    add(&node, "b", 65536).unwrap();
    assert_eq!(block_on(graph::apply_snapshot(&node, "s")), Err(Error::Busy));
}

#[test]
fn what_cannot_be_stored_is_refused_before_it_is_made() {
    let dir = ImageDir::new().unwrap();
    let (node, _) = writable(&created(&dir, "cluster_size=64k", "1T"));
    let can =
        |name: &str, granularity| node.driver().as_bitmaps().unwrap().can_store(name, granularity);
    assert_eq!(can("ok", 65536), Ok(()));
    assert_eq!(can(&"n".repeat(1023), 1 << 31), Ok(()));
    assert_eq!(can(&"n".repeat(1024), 65536), Err(Error::Invalid));
    assert_eq!(can("", 65536), Err(Error::Invalid));
    assert_eq!(can("nul\0", 65536), Err(Error::Invalid));
    for granularity in [0, 1, 256, 3 << 16, 1 << 32] {
        assert_eq!(can("b", granularity), Err(Error::Invalid), "{granularity}");
    }
    // 2^40 / 512 bits are 256 MiB, those of a disk four times as long are too many.
    assert_eq!(can("b", 512), Ok(()));
    block_on(node.truncate(4 << 40, Exactness::Exact, Prealloc::Off)).unwrap();
    assert_eq!(can("b", 512), Err(Error::Os(libc_efbig())));
    let (node, _) = writable(&created(&dir, "compat=0.10", "1M"));
    assert_eq!(add(&node, "b", 65536), Err(Error::Unsupported));
    let node = read_only(&created(&dir, "compat=1.1", "1M")).unwrap();
    assert_eq!(add(&node, "b", 65536), Err(Error::ReadOnly));
}

/// `EFBIG`, without a dependency for one number.
fn libc_efbig() -> i32 {
    rustix::io::Errno::FBIG.raw_os_error()
}

#[test]
fn hostile_directories_are_named() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    dir.qemu_img(&["bitmap", "--add", "-g", "512", "new.qcow2", "b"]).unwrap();
    dir.qemu_io("new.qcow2", &["write 0 512"]).unwrap();
    let good = dir.bytes("new.qcow2").unwrap();
    let (at, extension) = directory_at(&good);
    let table: [u8; 8] = good[at..at + 8].try_into().unwrap();
    let table = usize::try_from(u64::from_be_bytes(table)).unwrap();
    let cases: &[(usize, &[u8], &str)] = &[
        (at, &[0xff; 8], "bitmap table offset is 0xffffffffffffffff"),
        (at, &[0; 8], "bitmap table offset is 0x0"),
        (at, &0x1_0200u64.to_be_bytes(), "bitmap table offset is 0x10200"),
        (at, &(1u64 << 40).to_be_bytes(), "bitmap table offset is 0x10000000000: ends beyond"),
        (at + 8, &[0xff; 4], "bitmap table size is 0xffffffff"),
        (at + 8, &[0, 0, 0x40, 0], "size of the bitmap's data is 0x40000000"),
        (at + 8, &[0, 0, 0, 2], "bitmap table size is 0x2: contradicts the size of the disk"),
        (at + 8, &[0; 4], "bitmap table size is 0x0: contradicts the size of the disk"),
        (at + 12, &[0, 0, 0, 8], "bitmap flags is 0x8"),
        (at + 16, &[2], "bitmap type is 0x2"),
        (at + 17, &[32], "bitmap granularity bits is 0x20"),
        (at + 18, &[0xff; 2], "bitmap"),
        (at + 20, &[0xff; 4], "bitmap extra data size is 0xffffffff"),
        (table, &[0x80; 1], "reserved bits of bitmap table entry"),
        (table + 6, &[2, 0], "offset of bitmap table entry"),
        (table, &(1u64 << 40).to_be_bytes(), "bitmap table entry is 0x10000000000: ends beyond"),
        (extension + 8, &[0xff; 4], "bitmap count is 0xffffffff"),
        (extension + 12, &[1; 1], "reserved field of the bitmaps extension"),
        (extension + 16, &[0xff; 8], "bitmap directory size"),
    ];
    for (offset, bytes, expect) in cases {
        let mut bad = good.clone();
        bad[*offset..offset + bytes.len()].copy_from_slice(bytes);
        for flags in [RW, OpenFlags { writable: false, ..RW }] {
            let file = memory(&bad);
            let error = open_driver(file.clone(), flags).unwrap_err().to_string();
            assert!(error.contains(expect), "expected {expect:?} in {error:?}");
            assert_eq!(file.to_bytes(), bad, "a failed open changes nothing");
        }
    }
    let error = read_only(&{
        let mut twice = good.clone();
        // The same entry once more, and the extension says so.
        let entry = twice[at..at + 32].to_vec();
        twice.resize(twice.len().max(at + 64), 0);
        twice[at + 32..at + 64].copy_from_slice(&entry);
        // In use, so that nothing else of it is looked at.
        twice[at + 47] |= 1;
        twice[extension + 11] = 2;
        twice[extension + 23] = 64;
        twice
    });
    let Err(OpenError::Field { problem: Problem::Contradicts(_), value: 1, .. }) = error else {
        panic!("{error:?}");
    };
}

#[test]
fn clusters_that_two_bitmaps_claim_are_named() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    for name in ["b", "c"] {
        dir.qemu_img(&["bitmap", "--add", "-g", "512", "new.qcow2", name]).unwrap();
    }
    dir.qemu_io("new.qcow2", &["write 0 512"]).unwrap();
    let good = dir.bytes("new.qcow2").unwrap();
    read_only(&good).unwrap();
    let (at, _) = directory_at(&good);
    let word = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    // The entries are of one length.
    let (first, second) = (word(at), word(at + 32));
    let bits = word(to_index(first));
    for (place, value, field) in [
        (at + 32, first, "bitmap table offset"),
        (to_index(second), bits, "bitmap table entry"),
        (to_index(second), first, "bitmap table entry"),
    ] {
        let mut bad = good.clone();
        bad[place..place + 8].copy_from_slice(&value.to_be_bytes());
        let Err(OpenError::Field { field: named, problem: Problem::Overlap, .. }) = read_only(&bad)
        else {
            panic!("{field} at {place:#x}");
        };
        assert_eq!(named, field);
    }
}

#[test]
fn removing_a_hostile_bitmap_frees_nothing_of_others() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=64k", "4M");
    dir.qemu_io("new.qcow2", &["write -P 7 0 64k"]).unwrap();
    dir.qemu_img(&["bitmap", "--add", "-g", "512", "new.qcow2", "b"]).unwrap();
    dir.qemu_io("new.qcow2", &["write -P 7 0 64k"]).unwrap();
    let good = dir.bytes("new.qcow2").unwrap();
    let (at, _) = directory_at(&good);
    let table: [u8; 8] = good[at..at + 8].try_into().unwrap();
    let table = usize::try_from(u64::from_be_bytes(table)).unwrap();
    // In use, and its bits are said to be the refcount block, the L1 table or behind everything.
    for target in [0x2_0000u64, 0x3_0000, 1 << 40] {
        let mut bad = good.clone();
        bad[at + 15] |= 1;
        bad[table..table + 8].copy_from_slice(&target.to_be_bytes());
        let (node, file) = writable(&bad);
        let id = node.dirty_bitmaps().find("b").unwrap();
        node.dirty_bitmaps().remove(id).unwrap();
        write(&node, MIB, MIB).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        // The cluster of bits that nobody knows any more is a leak at worst.
        dir.write("removed.qcow2", &bytes).unwrap();
        assert_ne!(dir.check("removed.qcow2").unwrap(), Verdict::Errors, "{target:#x}");
        assert!(dir.raw_contents("removed.qcow2", &[]).unwrap()[..65536].iter().all(|b| *b == 7));
    }
}

#[test]
fn an_error_in_a_store_is_reported_and_the_old_bitmaps_are_not_trusted() {
    let dir = ImageDir::new().unwrap();
    created(&dir, "cluster_size=4k", "4M");
    dir.qemu_img(&["bitmap", "--add", "-g", "512", "new.qcow2", "b"]).unwrap();
    let bytes = dir.bytes("new.qcow2").unwrap();
    let mut failed = 0;
    for n in 0.. {
        let tap = Fault::new();
        let file = memory(&bytes);
        let node = open_driver(Tapped::new(file.clone(), Arc::clone(&tap)), RW).unwrap();
        write(&node, 0, 512).unwrap();
        block_on(node.flush()).unwrap();
        tap.add(Rule::new(Kind::Write).skip(n).once().error(Error::NO_SPACE));
        let stored = block_on(graph::store_bitmaps(&node));
        tap.clear();
        if tap.injected() == 0 {
            assert!(n > 4, "the store makes several writes");
            stored.unwrap();
            break;
        }
        failed += 1;
        assert_eq!(stored, Err(Error::NO_SPACE), "write {n}");
        // The crash now: in use, or the new state as a whole.
        let crashed = file.to_bytes();
        let image = Image::open(&crashed).unwrap();
        for bitmap in image.bitmaps().unwrap() {
            assert!(bitmap.is_in_use() || naive_areas(&crashed, "b") == [(0, 512)], "write {n}");
        }
        // A second try succeeds; what the first one left in doubt may be lost space.
        write(&node, MIB, 512).unwrap();
        close(&node).unwrap();
        let bytes = file.to_bytes();
        assert_eq!(naive_areas(&bytes, "b"), [(0, 512), (MIB, MIB + 512)], "write {n}");
        dir.write("retried.qcow2", &bytes).unwrap();
        assert_ne!(dir.check("retried.qcow2").unwrap(), Verdict::Errors, "write {n}");
    }
    assert!(failed > 4);
}

/// What a crash may leave of the bitmap `b`: it is in use, or it knows of all that changed. Both in an
/// image that opens and has no errors.
fn judge_crash(bytes: &[u8], backing: Option<&str>) -> &'static str {
    let image = Image::open(bytes).unwrap();
    let report = image.check().unwrap();
    assert!(report.errors() == 0, "{report}");
    let node = read_only(bytes).unwrap();
    assert_eq!(node.driver().info().backing_filename.as_deref(), backing);
    let changed = |range: std::ops::Range<u64>| {
        let read = support::read(&node, range.start, range.end - range.start).unwrap();
        read.iter().any(|byte| *byte != 0)
    };
    if node.dirty_bitmaps().find("b").is_none() {
        return "none";
    }
    if with(&node, "b", DirtyBitmap::is_inconsistent) {
        return "in use";
    }
    for start in [0, MIB] {
        let known = with(&node, "b", |b| b.contains(start));
        assert!(known || !changed(start..start + 4096), "trusted and behind the disk");
    }
    if with(&node, "b", |b| b.contains(MIB)) { "new" } else { "old" }
}

/// Runs `game` on an image of these bytes, crashing at every moment; what the crashes left.
fn crashes(
    bytes: &[u8],
    backing: Option<&str>,
    game: impl Fn(&Node),
) -> (BTreeSet<&'static str>, Vec<u8>) {
    const SEED: u64 = 7;
    let disk = CrashDisk::new(bytes.to_vec());
    let node = open_driver(disk.clone(), RW).unwrap();
    let images = Arc::new(Mutex::new(BTreeSet::new()));
    let (weak, found) = (Arc::downgrade(&disk), Arc::clone(&images));
    let rng = Mutex::new(StdRng::seed_from_u64(SEED));
    disk.watch(move |_| {
        let disk = weak.upgrade().unwrap();
        for _ in 0..12 {
            let image = disk.crash(&mut *rng.lock().unwrap());
            found.lock().unwrap().insert(image.bytes);
        }
    });
    game(&node);
    close(&node).unwrap();
    let images = std::mem::take(&mut *images.lock().unwrap());
    assert!(images.len() > 2, "crashes differ");
    println!("seed {SEED}: {} crash images", images.len());
    (images.iter().map(|image| judge_crash(image, backing)).collect(), disk.to_vec())
}

#[test]
fn no_crash_leaves_a_bitmap_that_is_trusted_and_behind_the_disk() {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "2M"]).unwrap();
    for (options, backing) in [
        ("cluster_size=4k", None),
        ("cluster_size=4k", Some("base.qcow2")),
        ("cluster_size=512", None),
    ] {
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if let Some(name) = backing {
            args.extend(["-b", name, "-F", "qcow2"]);
        }
        args.extend(["crash.qcow2", "2M"]);
        dir.qemu_img(&args).unwrap();
        let bytes = dir.bytes("crash.qcow2").unwrap();
        // The first bitmap of an image, then changes under it, then its end.
        let (left, bytes) = crashes(&bytes, backing, |node| {
            add(node, "b", 4096).unwrap();
            write(node, 0, 4096).unwrap();
        });
        let names = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
        assert!(left.is_subset(&names(&["none", "old"])), "{left:?}");
        let (left, bytes) = crashes(&bytes, backing, |node| {
            write(node, MIB, 4096).unwrap();
            block_on(graph::store_bitmaps(node)).unwrap();
            write(node, MIB + 8192, 4096).unwrap();
        });
        assert_eq!(left, names(&["old", "in use", "new"]), "{options}");
        let (left, bytes) = crashes(&bytes, backing, |node| {
            let id = node.dirty_bitmaps().find("b").unwrap();
            node.dirty_bitmaps().remove(id).unwrap();
        });
        assert_eq!(left, names(&["none", "new"]), "{options}");
        assert_clean(&dir, "crash.qcow2", &bytes);
    }
}

/// Where no table changes, nothing but the bitmaps' own order keeps them from being trusted too long, and their
/// directory from being named too early.
#[test]
fn a_crash_beside_a_write_in_place_leaves_no_bitmap_behind_the_disk() {
    let dir = ImageDir::new().unwrap();
    let (node, file) = writable(&created(&dir, "cluster_size=4k", "2M"));
    let zeroes = IoBuf::zeroed(4096, Alignment::PAGE).unwrap();
    let first = ByteRange::up_to(4096);
    block_on(node.write(first, zeroes.into(), RequestFlags::empty())).unwrap();
    add(&node, "b", 4096).unwrap();
    close(&node).unwrap();
    let (left, bytes) = crashes(&file.to_bytes(), None, |node| write(node, 0, 4096).unwrap());
    assert_eq!(left, BTreeSet::from(["old", "in use"]));
    assert_eq!(naive_areas(&bytes, "b"), [(0, 4096)]);
    assert_clean(&dir, "crash.qcow2", &bytes);
}

/// The header may refer to the new directory after a store that failed. Whoever writes then makes sure that
/// nobody trusts it, or does not write.
#[test]
fn a_crash_after_a_store_that_failed_leaves_no_bitmap_behind_the_disk() {
    let dir = ImageDir::new().unwrap();
    let (node, file) = writable(&created(&dir, "cluster_size=4k", "2M"));
    for start in [0, MIB] {
        let zeroes = IoBuf::zeroed(4096, Alignment::PAGE).unwrap();
        let range = ByteRange::new(start, 4096).unwrap();
        block_on(node.write(range, zeroes.into(), RequestFlags::empty())).unwrap();
    }
    close(&node).unwrap();
    let none = file.to_bytes();
    let (node, file) = writable(&none);
    add(&node, "b", 4096).unwrap();
    close(&node).unwrap();
    let one = file.to_bytes();
    let kinds = [(Kind::FlushToDisk, Effect::Nothing), (Kind::Write, Effect::All)];
    let mut left = BTreeSet::new();
    for bytes in [none, one] {
        for (kind, effect) in kinds {
            for again in [None, Some(0), Some(1)] {
                let rule = |skip| Rule::new(kind).effect(effect).skip(skip).once();
                let played = (0..).take_while(|skip| {
                    after_a_failed_store(&bytes, rule(*skip), again.map(rule), &mut left)
                });
                assert!(played.count() >= 2, "{kind}");
            }
        }
    }
    assert!(left.contains("in use") && left.contains("new"), "{left:?}");
}

/// Stores bitmaps while a request fails, writes while another one does, and crashes; whether the first failed.
fn after_a_failed_store(
    bytes: &[u8],
    first: Rule,
    second: Option<Rule>,
    left: &mut BTreeSet<&'static str>,
) -> bool {
    let disk = CrashDisk::new(bytes.to_vec());
    let faults = Fault::new();
    let node = open_driver(Tapped::new(Arc::clone(&disk) as _, Arc::clone(&faults)), RW).unwrap();
    if node.dirty_bitmaps().find("b").is_none() {
        add(&node, "b", 4096).unwrap();
    }
    write(&node, 0, 4096).unwrap();
    faults.add(first);
    let stored = block_on(graph::store_bitmaps(&node));
    faults.clear();
    if faults.injected() == 0 {
        stored.unwrap();
        return false;
    }
    stored.unwrap_err();
    second.into_iter().for_each(|rule| faults.add(rule));
    let mut rng = StdRng::seed_from_u64(7);
    let mut shoot = || {
        for _ in 0..40 {
            left.insert(judge_crash(&disk.crash(&mut rng).bytes, None));
        }
    };
    shoot();
    let written = write(&node, MIB, 4096);
    faults.clear();
    shoot();
    if written.is_err() {
        write(&node, MIB, 4096).unwrap();
        shoot();
    }
    close(&node).unwrap();
    shoot();
    let bytes = disk.to_vec();
    assert_eq!(naive_areas(&bytes, "b"), [(0, 4096), (MIB, MIB + 4096)]);
    assert_eq!(Image::open(&bytes).unwrap().check().unwrap().errors(), 0);
    true
}

/// One bitmap of the game and its slow twin.
struct Twin {
    name: String,
    granularity: u64,
    model: BitmapModel,
    enabled: bool,
}

#[test]
fn random_changes_are_what_the_slow_twin_says_after_every_close() {
    let dir = ImageDir::new().unwrap();
    for seed in 0..12u64 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = [512u64, 4096, 65536][to_index(seed) % 3];
        let mut len = 512 * rng.random_range(100..300);
        let mut bytes = created(&dir, &format!("cluster_size={cluster}"), &len.to_string());
        let mut twins: Vec<Twin> = Vec::new();
        for round in 0..6 {
            let (node, file) = writable(&bytes);
            assert_eq!(node.dirty_bitmaps().list().len(), twins.len());
            for twin in &twins {
                let expect: Vec<_> =
                    twin.model.areas().iter().map(|a| (a.offset(), a.end())).collect();
                assert_eq!(areas(&node, &twin.name), expect, "round {round} {}", twin.name);
                assert_eq!(with(&node, &twin.name, DirtyBitmap::is_enabled), twin.enabled);
                assert_eq!(naive_areas(&bytes, &twin.name), expect);
            }
            for _ in 0..rng.random_range(0..12) {
                play(&mut rng, &node, &mut twins, &mut len);
            }
            close(&node).unwrap();
            bytes = file.to_bytes();
            assert_clean(&dir, "random.qcow2", &bytes);
        }
    }
}

/// One random change of the disk or of a bitmap.
fn play(rng: &mut StdRng, node: &Node, twins: &mut Vec<Twin>, len: &mut u64) {
    let offset = rng.random_range(0..*len);
    let range = ByteRange::new(offset, rng.random_range(1..=(*len - offset).min(40_000))).unwrap();
    let mark = |twins: &mut Vec<Twin>, range| {
        twins.iter_mut().filter(|twin| twin.enabled).for_each(|twin| twin.model.set(range));
    };
    let which = if twins.is_empty() { 0 } else { rng.random_range(0..twins.len()) };
    match rng.random_range(0..10) {
        0..=3 => {
            write(node, range.offset(), range.len()).unwrap();
            mark(twins, range);
        }
        4 => {
            block_on(node.write_zeroes(range, RequestFlags::empty())).unwrap();
            mark(twins, range);
        }
        5 if twins.len() < 5 => {
            let name = format!("{}", rng.random::<u32>());
            let granularity = 512 << rng.random_range(0..10);
            add(node, &name, granularity).unwrap();
            let model = BitmapModel::new(granularity, *len);
            twins.push(Twin { name, granularity, model, enabled: true });
        }
        6 if !twins.is_empty() => {
            let twin = twins.remove(which);
            let id = node.dirty_bitmaps().find(&twin.name).unwrap();
            node.dirty_bitmaps().remove(id).unwrap();
        }
        7 if !twins.is_empty() => {
            let twin = &mut twins[which];
            twin.enabled = !twin.enabled;
            let enable = twin.enabled;
            change(node, &twin.name, |b| if enable { b.enable() } else { b.disable() }.unwrap());
        }
        8 if !twins.is_empty() => {
            let (model, name) = (twins[which].model.clone(), twins[which].name.clone());
            let target = rng.random_range(0..twins.len());
            let id = |name: &str| node.dirty_bitmaps().find(name).unwrap();
            let target_id = id(&twins[target].name);
            node.dirty_bitmaps().merge(target_id, &[id(&name)]).unwrap();
            twins[target].model.merge(&model);
        }
        9 => {
            let old = *len;
            *len = 512 * rng.random_range(100..300);
            block_on(node.truncate(*len, Exactness::Exact, Prealloc::Off)).unwrap();
            for twin in &mut *twins {
                assert!(twin.granularity >= 512);
                twin.model.truncate(*len);
            }
            if *len > old {
                mark(twins, ByteRange::from_bounds(old, *len).unwrap());
            }
        }
        _ => {}
    }
}

fn to_index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

#[test]
fn a_length_that_is_amended_is_dirty_behind_the_old_end() {
    let dir = ImageDir::new().unwrap();
    let (node, file) = writable(&created(&dir, "cluster_size=64k", "4M"));
    add(&node, "b", 65536).unwrap();
    let amend = node.driver().as_amend().unwrap();
    block_on(amend.amend(Options::new().with("size", "8M"), Arc::new(|_, _| ()))).unwrap();
    close(&node).unwrap();
    assert_clean(&dir, "amended.qcow2", &file.to_bytes());
    assert_eq!(naive_areas(&file.to_bytes(), "b"), [(4 * MIB, 8 * MIB)]);
}

/// The quickest way to write, into the page cache within one call, marks them first, too; and clears
/// the bits of what we do not know.
#[test]
fn a_write_that_is_answered_within_one_call_marks_what_it_makes_stale() {
    let dir = ImageDir::new().unwrap();
    let options = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "x", "1M"];
    dir.qemu_img(&options).unwrap();
    dir.qemu_img(&["bitmap", "--add", "x", "b"]).unwrap();
    let path = dir.path("x");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[88] |= 0x80;
    std::fs::write(&path, bytes).unwrap();
    // The real file driver: only the page cache answers at once.
    let registry = Registry::new().with(Qcow2Factory).with(FileFactory);
    let options = Options::filename(path.to_str().unwrap()).with("driver", "qcow2");
    let node = block_on(OpenContext::new(Arc::new(registry), RW).open(options)).unwrap();
    let range = ByteRange::new(0x8000, 4096).unwrap();
    let buf = IoBuf::zeroed(4096, Alignment::PAGE).unwrap();
    assert_eq!(node.write_now(range, &buf.clone().into()), None, "something is to be marked");
    write(&node, 0x8000, 4096).unwrap();
    assert_eq!(node.write_now(range, &buf.into()), Some(Ok(())), "the way that is meant");
    let now = std::fs::read(&path).unwrap();
    assert_eq!(now[88], 0, "unknown autoclear bits");
    let (at, _) = directory_at(&now);
    assert_eq!(now[at + 15] & 1, 1, "in use");
    close(&node).unwrap();
}
