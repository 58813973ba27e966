//! New images: of every shape they open, are found clean by the naive checker and by the peer, and are
//! described as the peer's own; what cannot be is refused before anything is made; a creation that
//! stops half-way leaves no image.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block_core::driver::Prealloc;
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemDriver;
use block_core::registry::OpenContext;
use block_core::{Node, OpenError, Options, Registry, Support};
use block_qcow2::Qcow2Factory;
use block_qcow2::create::{CreateOptions, create_on};
use block_testkit::disk::crash::CrashDisk;
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::naive::qcow2::Image;
use block_testkit::peer::{ImageDir, Verdict};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use support::{contents, open_with};

fn context() -> OpenContext {
    let registry = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE)
}

/// Makes the image `name` with the options of a command line.
fn create(dir: &ImageDir, name: &str, options: &str) -> Result<(), OpenError> {
    let mut all = Options::filename(dir.path(name).to_str().unwrap());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap();
        all.set(name, value);
    }
    let context = context();
    let factory = Arc::clone(context.registry.get("qcow2").unwrap());
    block_on(factory.create(all, context))
}

/// What the peer says of an image, without what depends on where it is and how it is laid out.
fn peer_info(dir: &ImageDir, image: &str) -> Value {
    let text = dir.qemu_img(&["info", "-U", "--output", "json", image]).unwrap();
    let mut info: Value = serde_json::from_str(&text).unwrap();
    let map = info.as_object_mut().unwrap();
    for name in ["children", "actual-size", "full-backing-filename"] {
        map.remove(name);
    }
    info
}

/// Makes an image here and with the peer, and holds one against the other.
fn check(options: &str) {
    let (ours, theirs) = (ImageDir::new().unwrap(), ImageDir::new().unwrap());
    for dir in [&ours, &theirs] {
        dir.write("base.raw", &[7; 40_000]).unwrap();
    }
    create(&ours, "a.qcow2", options).unwrap_or_else(|error| panic!("{options}: {error}"));
    // Names in the options count from the working directory there.
    theirs.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2"]).unwrap();
    assert_eq!(peer_info(&ours, "a.qcow2"), peer_info(&theirs, "a.qcow2"), "{options}");
    assert_eq!(ours.check("a.qcow2").unwrap(), Verdict::Clean, "{options}");

    let file = ours.bytes("a.qcow2").unwrap();
    let mut image = Image::open(&file).unwrap();
    let data = ours.bytes("data.raw").unwrap_or_default();
    if options.contains("data_file") {
        let len = u64::try_from(data.len()).unwrap();
        assert_eq!(len, image.header().size, "{options}");
        image = image.with_data_file(&data);
    }
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{options}: {report}");

    let expect = theirs.raw_contents("a.qcow2", &[]).unwrap();
    assert_eq!(expect.len() > 40_000 && expect[0] == 7, options.contains("backing"), "{options}");
    let node = open_with(&ours.path("a.qcow2"), OpenFlags::READ_ONLY, Options::new()).unwrap();
    assert!(contents(&node, 1 << 20) == expect, "{options}");
}

/// Every refcount width with clusters of these sizes; all other options change from one to the next.
fn check_matrix(cluster_bits: &[u32]) {
    let sizes = ["0", "1000", "2000896", "64k", "1M"];
    let preallocations = ["off", "metadata", "falloc", "full"];
    let data_files = ["", "", ",data_file=data.raw", ",data_file=data.raw,data_file_raw=on"];
    let mut n = 0;
    for bits in cluster_bits {
        for refcount_order in 0..=6 {
            let size = sizes[n % sizes.len()];
            let preallocation = preallocations[n % 4];
            let data_file = data_files[n / 4 % 4];
            let (cluster_size, refcount_bits) = (1u64 << bits, 1u64 << refcount_order);
            let mut options = format!(
                "size={size},cluster_size={cluster_size},refcount_bits={refcount_bits},\
                 preallocation={preallocation}{data_file}"
            );
            if *bits >= 14 && n % 3 != 0 {
                options += ",extended_l2=on";
            }
            if n % 5 == 1 {
                options += ",lazy_refcounts=on";
            }
            if n % 7 < 3 {
                options += ",compression_type=zstd";
            }
            check(&options);
            n += 1;
        }
    }
    assert_eq!(n, 7 * cluster_bits.len());
}

#[test]
fn small_clusters_with_every_refcount_width_and_option() {
    check_matrix(&[9, 10, 12]);
}

#[test]
fn clusters_of_every_refcount_width_and_option() {
    check_matrix(&[14, 16]);
}

#[test]
fn large_clusters_of_every_refcount_width_and_option() {
    check_matrix(&[18, 21]);
}

#[test]
fn version_2_and_names_of_versions() {
    check("size=1M,compat=0.10");
    check("size=1M,compat=v2,cluster_size=512,preallocation=metadata");
    check("size=20M,compat=0.10,cluster_size=2M,preallocation=full,refcount_bits=16");
    check("size=1M,compat=1.1");
    check("size=1M,compat=v3,compression_type=zlib,lazy_refcounts=off");
}

#[test]
fn backing_files() {
    check("size=64k,backing_file=base.raw,backing_fmt=raw");
    check("size=1M,compat=0.10,cluster_size=512,backing_file=base.raw,backing_fmt=raw");
    check("size=1M,data_file=data.raw,backing_file=base.raw,backing_fmt=raw");
    for preallocation in ["metadata", "falloc", "full"] {
        check(&format!(
            "size=200k,extended_l2=on,preallocation={preallocation},backing_file=base.raw,\
             backing_fmt=raw"
        ));
    }
}

#[test]
fn refcounts_that_fill_many_blocks_and_tables() {
    // 64 refcounts a block, 64 blocks a table cluster: a table of several clusters.
    check("size=4M,cluster_size=512,refcount_bits=64,preallocation=metadata");
    // An L1 table that needs many refcount blocks by itself.
    check("size=1M,cluster_size=512,refcount_bits=1,preallocation=metadata");
    let dir = ImageDir::new().unwrap();
    create(&dir, "a.qcow2", "size=100G,cluster_size=512,refcount_bits=64").unwrap();
    assert_eq!(dir.check("a.qcow2").unwrap(), Verdict::Clean);
    let file = dir.bytes("a.qcow2").unwrap();
    let report = Image::open(&file).unwrap().check().unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn preallocated_space_is_there() {
    let dir = ImageDir::new().unwrap();
    let allocated = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(dir.path(name)).unwrap().blocks() * 512
    };
    for mode in ["falloc", "full"] {
        create(&dir, "a.qcow2", &format!("size=3M,preallocation={mode}")).unwrap();
        assert!(allocated("a.qcow2") >= 3 << 20, "{mode}");
        create(&dir, "a.qcow2", &format!("size=3M,preallocation={mode},data_file=d")).unwrap();
        assert!(allocated("d") >= 3 << 20 && allocated("a.qcow2") < 1 << 20, "{mode}");
    }
    create(&dir, "a.qcow2", "size=3M,preallocation=metadata").unwrap();
    assert!(allocated("a.qcow2") < 1 << 20);
    assert!(dir.bytes("a.qcow2").unwrap().len() >= 3 << 20);
}

#[test]
fn huge_disks_are_made_at_once_or_refused() {
    let dir = ImageDir::new().unwrap();
    let begun = Instant::now();
    for (size, cluster_size) in [(1u64 << 50, 65536), (1 << 51, 65536), (1 << 56, 2 << 20)] {
        let options = format!("size={size},cluster_size={cluster_size}");
        create(&dir, "a.qcow2", &options).unwrap();
        let node = open_with(&dir.path("a.qcow2"), OpenFlags::READ_ONLY, Options::new()).unwrap();
        assert_eq!(node.len(), size);
        assert_eq!(dir.check("a.qcow2").unwrap(), Verdict::Clean, "{options}");
    }
    for (options, max) in [
        ("size=2251799813685249", "0x8000000000000"),
        ("size=8E,cluster_size=2M", "0x7fffffffc0000000"),
        ("size=4E,cluster_size=2M", "0x2000000000000000"),
        ("size=129G,cluster_size=512", "0x2000000000"),
        ("size=1P,cluster_size=512", "0x2000000000"),
        ("size=100G,cluster_size=512,refcount_bits=64,preallocation=metadata", "0x800000000"),
        ("size=1152921504606846976,cluster_size=2M,preallocation=metadata", "0x100000000000000"),
        ("size=1E,cluster_size=2M,data_file=d,data_file_raw=on", "0x100000000000000"),
    ] {
        let text = create(&dir, "b.qcow2", options).unwrap_err().to_string();
        assert!(text.contains("'size=") && text.ends_with(&format!("at most {max}")), "{text}");
        assert!(!dir.path("b.qcow2").exists());
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_cannot_be_is_refused_by_name_and_value_before_anything_is_made() {
    let all = [
        ("cluster_size=300", "'cluster_size=300': must be a power of two"),
        ("cluster_size=256", "'cluster_size=256': must be at least 0x200"),
        ("cluster_size=4M", "'cluster_size=4194304': must be at most 0x200000"),
        ("cluster_size=0", "'cluster_size=0': must be a power of two"),
        ("cluster_size=x", "'cluster_size': unknown value"),
        ("refcount_bits=3", "'refcount_bits=3': must be a power of two"),
        ("refcount_bits=128", "'refcount_bits=128': must be at most 0x40"),
        ("refcount_bits=x", "'refcount_bits=x': unknown value"),
        ("compat=9", "'compat=9': unknown value"),
        ("compat=0.10,refcount_bits=8", "'refcount_bits=8': contradicts compat=0.10"),
        ("compat=0.10,lazy_refcounts=on", "'lazy_refcounts=on': contradicts compat=0.10"),
        ("compat=0.10,extended_l2=on", "'extended_l2=on': contradicts compat=0.10"),
        ("compat=0.10,compression_type=zstd", "'compression_type=zstd': contradicts compat=0.10"),
        ("compat=0.10,data_file=d", "'data_file=d': contradicts compat=0.10"),
        ("extended_l2=on,cluster_size=8k", "'cluster_size=8192': must be at least 0x4000"),
        ("compression_type=x", "'compression_type=x': unknown value"),
        ("preallocation=x", "'preallocation=x': unknown value"),
        ("lazy_refcounts=x", "'lazy_refcounts': unknown value"),
        ("data_file_raw=on", "'data_file_raw=on': contradicts an image without data_file"),
        ("data_file=", "'data_file=': is missing"),
        ("data_file=json:{}", "'json:{}' inside the image is refused"),
        (
            "data_file=d,data_file_raw=on,backing_file=b,backing_fmt=raw",
            "'data_file_raw=on': contradicts backing_file",
        ),
        (
            "preallocation=falloc,backing_file=b,backing_fmt=raw",
            "'preallocation=falloc': contradicts backing_file without extended_l2",
        ),
        ("backing_file=b", "'backing_fmt': is missing"),
        ("backing_fmt=raw", "'backing_file': is missing"),
        ("encryption=on", "encryption is not supported"),
        ("encrypt.format=luks", "encryption is not supported"),
        ("bogus=1", "'bogus': unknown value"),
    ];
    let dir = ImageDir::new().unwrap();
    dir.write("a.qcow2", b"something else").unwrap();
    for (options, expect) in all {
        let err = create(&dir, "a.qcow2", &format!("size=1M,{options}")).unwrap_err().to_string();
        assert!(err.contains(expect), "{options}: {err}");
        assert_eq!(dir.bytes("a.qcow2").unwrap(), b"something else", "{options}");
    }
    let long = "n".repeat(1024);
    for options in [format!("backing_file={long},backing_fmt=raw"), format!("data_file={long}")] {
        let err = create(&dir, "a.qcow2", &format!("size=1M,{options}")).unwrap_err().to_string();
        assert!(err.contains("is 0x400: must be at most 0x3ff"), "{err}");
        let _ = std::fs::remove_file(dir.path("d"));
    }
    let name = "n".repeat(400);
    let options = format!("size=1M,cluster_size=512,backing_file={name},backing_fmt=raw");
    let err = create(&dir, "a.qcow2", &options).unwrap_err().to_string();
    assert!(err.contains("length of header and extensions is"), "{err}");
    assert!(create(&dir, "a.qcow2", "").unwrap_err().to_string().contains("'size': is missing"));
    assert_eq!(dir.bytes("a.qcow2").unwrap(), b"something else");
}

#[test]
fn the_builder_makes_what_the_options_make() {
    use block_qcow2::geometry::Version;
    use block_qcow2::spec::header::Compression;
    let dir = ImageDir::new().unwrap();
    let check = |new: &CreateOptions, options: &str| {
        create(&dir, "a.qcow2", options).unwrap();
        let disk = Arc::new(MemDriver::new(0));
        let data = Node::new(Arc::new(MemDriver::new(0)), Default::default());
        let data = options.contains("data_file").then_some(&data);
        block_on(create_on(&Node::new(disk.clone(), Default::default()), data, new)).unwrap();
        let made = support::read(&Node::new(disk.clone(), Default::default()), 0, {
            use block_core::BlockDriver;
            disk.len()
        });
        assert!(made.unwrap() == dir.bytes("a.qcow2").unwrap(), "{options}");
    };
    check(&CreateOptions::new(1 << 20), "size=1M");
    check(
        &CreateOptions::new(1 << 20).version(Version::V2).preallocation(Prealloc::Metadata),
        "size=1M,compat=0.10,preallocation=metadata",
    );
    check(
        &CreateOptions::new(5000)
            .cluster_size(32 << 10)
            .refcount_bits(1)
            .lazy_refcounts()
            .extended_l2()
            .compression(Compression::Zstd)
            .backing("base", "raw"),
        "size=5000,cluster_size=32k,refcount_bits=1,lazy_refcounts=on,extended_l2=on,\
         compression_type=zstd,backing_file=base,backing_fmt=raw",
    );
    check(&CreateOptions::new(1 << 20).data_file("d"), "size=1M,data_file=d");
    let raw = CreateOptions::new(1 << 20).raw_data_file("d");
    check(&raw, "size=1M,data_file=d,data_file_raw=on");
    let node = Node::new(Arc::new(MemDriver::new(0)), Default::default());
    let err = block_on(create_on(&node, None, &raw)).unwrap_err();
    assert_eq!(err.to_string(), "Invalid option 'data_file': is missing");
}

#[test]
fn the_first_sector_is_written_last_behind_a_flush() {
    let record = Record::new();
    let disk = Tapped::new(Arc::new(MemDriver::new(1 << 20)), Arc::clone(&record));
    let node = Node::new(disk, Default::default());
    let options = CreateOptions::new(1 << 20).preallocation(Prealloc::Metadata);
    block_on(create_on(&node, None, &options)).unwrap();
    let mut calls = record.take();
    calls.retain(|call| call.kind != Kind::FlushToOs);
    let kinds: Vec<_> = calls.iter().map(|call| call.kind).collect();
    assert_eq!(kinds[0], Kind::Truncate);
    let n = kinds.len();
    assert_eq!(kinds[n - 3..], [Kind::FlushToDisk, Kind::Write, Kind::FlushToDisk]);
    assert_eq!((calls[n - 2].range.offset(), calls[n - 2].range.len()), (0, 512));
    let earlier = calls[..n - 2].iter().filter(|call| call.kind == Kind::Write);
    assert_eq!(earlier.filter(|call| call.range.offset() < 512).count(), 0);
}

#[test]
fn a_creation_that_fails_half_way_leaves_no_image() {
    let old = {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.qcow2", "size=64M").unwrap();
        dir.bytes("a.qcow2").unwrap()
    };
    let options = CreateOptions::new(1 << 20).preallocation(Prealloc::Metadata);
    let mut failed = 0;
    for kind in [Kind::Truncate, Kind::Write, Kind::FlushToDisk] {
        for skip in 0.. {
            let fault = Fault::new();
            fault.add(Rule::new(kind).skip(skip).once());
            let memory = Arc::new(MemDriver::from_bytes(&old).unwrap());
            let node =
                Node::new(Tapped::new(memory.clone(), Arc::clone(&fault)), Default::default());
            let made = block_on(create_on(&node, None, &options));
            if fault.injected() == 0 {
                made.unwrap();
                break;
            }
            made.unwrap_err();
            // Neither the old image nor half of the new one, except where nothing was done or all.
            let opened = support::open_driver(memory, OpenFlags::READ_ONLY);
            let nothing_done = kind == Kind::Truncate && skip == 0;
            let all_done = kind == Kind::FlushToDisk && skip == 2;
            assert_eq!(opened.is_ok(), nothing_done || all_done, "{kind:?} {skip}");
            failed += 1;
        }
    }
    assert!(failed >= 8, "{failed}");
}

/// Creates over an old image and crashes at every moment: what is left is the old image untouched, the
/// new one whole, or none.
fn crash_everywhere(options: &CreateOptions, seed: u64) -> [usize; 3] {
    let old = {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.qcow2", "size=1M,cluster_size=512,preallocation=metadata").unwrap();
        dir.bytes("a.qcow2").unwrap()
    };
    let disk = CrashDisk::new(old.clone());
    let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
    let images = Arc::new(Mutex::new(Vec::new()));
    let (crashed, into) = (Arc::downgrade(&disk), Arc::clone(&images));
    disk.watch(move |_| {
        let Some(disk) = crashed.upgrade() else { return };
        let mut rng = rng.lock().unwrap();
        for _ in 0..4 {
            into.lock().unwrap().push(disk.crash(&mut *rng).bytes);
        }
    });
    block_on(create_on(&Node::new(disk.clone(), Default::default()), None, options)).unwrap();
    let new = disk.stable();
    assert!(Image::open(&new).unwrap().check().unwrap().is_clean());
    let mut seen = [0; 3];
    for bytes in images.lock().unwrap().iter() {
        let index = match Image::open(bytes) {
            Err(_) => 0,
            Ok(_) if *bytes == old => 1,
            Ok(_) => 2,
        };
        assert!(index < 2 || *bytes == new, "seed {seed}: an image that is neither old nor new");
        seen[index] += 1;
    }
    seen
}

#[test]
fn a_crash_leaves_the_old_image_the_new_one_or_none() {
    let mut seen = [0; 3];
    for seed in 0..8 {
        for options in [
            CreateOptions::new(1 << 20),
            CreateOptions::new(1 << 20).cluster_size(512).preallocation(Prealloc::Metadata),
            CreateOptions::new(1 << 20).backing("base", "raw"),
        ] {
            let more = crash_everywhere(&options, seed);
            seen.iter_mut().zip(more).for_each(|(all, more)| *all += more);
        }
    }
    // Each of the three was reached.
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}

#[test]
fn the_peer_goes_on_writing() {
    for options in [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1,compression_type=zstd",
        "extended_l2=on,preallocation=metadata",
        "cluster_size=512,preallocation=full",
        "compat=0.10",
        "data_file=data.raw,data_file_raw=on,lazy_refcounts=on",
    ] {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.qcow2", &format!("size=3M,{options}")).unwrap();
        let commands =
            ["write -P 1 100k 1M", "write -z 512k 64k", "discard 1M 128k", "write -P 2 2M 1M"];
        dir.qemu_io("a.qcow2", &commands).unwrap();
        assert_eq!(dir.check("a.qcow2").unwrap(), Verdict::Clean, "{options}");
        let node = open_with(&dir.path("a.qcow2"), OpenFlags::READ_ONLY, Options::new()).unwrap();
        let expect = dir.raw_contents("a.qcow2", &[]).unwrap();
        assert!(expect[2 << 20..].iter().all(|byte| *byte == 2), "{options}");
        assert!(contents(&node, 1 << 20) == expect, "{options}");
    }
}

/// A disk like a device: it keeps its length, and holds something.
fn device(len: u64) -> Arc<MemDisk> {
    let mut config = MemConfig::new(len);
    config.capabilities.truncate = Support::None;
    config.capabilities.has_zero_init = false;
    let disk = config.build();
    disk.load(0, &vec![0xee; usize::try_from(len).unwrap()]);
    disk
}

#[test]
fn what_a_device_held_does_not_show() {
    let len = 2 << 20;
    for options in [
        CreateOptions::new(len),
        CreateOptions::new(len).preallocation(Prealloc::Metadata),
        CreateOptions::new(len).preallocation(Prealloc::Full).cluster_size(512),
        CreateOptions::new(len).extended_l2().preallocation(Prealloc::Metadata),
    ] {
        let disk = device(3 << 20);
        block_on(create_on(&Node::new(disk.clone(), Default::default()), None, &options)).unwrap();
        let report = Image::open(&disk.to_vec()).unwrap().check().unwrap();
        assert!(report.is_clean(), "{options:?}: {report}");
        let node = support::open_driver(disk, OpenFlags::READ_ONLY).unwrap();
        assert!(contents(&node, 1 << 20).iter().all(|byte| *byte == 0), "{options:?}");
    }
    for options in
        [CreateOptions::new(len).raw_data_file("d"), CreateOptions::new(len).data_file("d")]
    {
        let (disk, data) = (device(1 << 20), device(len));
        let nodes = [disk.clone(), data.clone()].map(|disk| Node::new(disk, Default::default()));
        block_on(create_on(&nodes[0], Some(&nodes[1]), &options)).unwrap();
        let (file, data) = (disk.to_vec(), data.to_vec());
        let image = Image::open(&file).unwrap().with_data_file(&data);
        assert!(image.check().unwrap().is_clean(), "{options:?}");
        assert!(image.contents().unwrap().iter().all(|byte| *byte == 0), "{options:?}");
    }
    // Too short a device is an error, and no image.
    let disk = device(1 << 20);
    let options = CreateOptions::new(len).preallocation(Prealloc::Metadata);
    block_on(create_on(&Node::new(disk.clone(), Default::default()), None, &options)).unwrap_err();
    assert!(support::open_driver(disk, OpenFlags::READ_ONLY).is_err());
}
