//! New images: of every shape they open, are found clean by the naive checker and by the peer, and are
//! described as the peer's own; what cannot be is refused before anything is made.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod making;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::info::InfoValue;
use block_core::io::exec::block_on;
use block_core::job::copy::Progress;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::registry::ReferencePolicy;
use block_core::{Cancel, Node, OpenError, graph};
use block_testkit::naive::vmdk::{Files, Image};
use block_testkit::peer::{ImageDir, Verdict};
use block_vmdk::descriptor::Descriptor;
use block_vmdk::spec::cowd::CowdHeader;
use block_vmdk::spec::marker::{Marker, MetadataKind};
use block_vmdk::spec::sparse::{GrainDirectory, SparseHeader};
use block_vmdk::stream::StreamWriter;
use block_vmdk::units::{Sector, SectorCount};
use making::{contents, create, open, write};
use serde_json::{Map, Value, json};

/// What the peer says of an image, without what depends on where and when it was made.
fn peer_info(dir: &ImageDir, image: &str) -> Value {
    let text = dir.qemu_img(&["info", "-U", "--output", "json", image]).unwrap();
    let mut info: Value = serde_json::from_str(&text).unwrap();
    let map = info.as_object_mut().unwrap();
    for name in ["children", "actual-size", "full-backing-filename"] {
        map.remove(name);
    }
    info["format-specific"]["data"]["cid"].take();
    info
}

/// The files of a directory.
fn files(dir: &ImageDir) -> Files {
    let entries = std::fs::read_dir(dir.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), dir.bytes(&name).unwrap())).collect()
}

/// The descriptor of an image.
fn descriptor(dir: &ImageDir, image: &str) -> Descriptor {
    let bytes = dir.bytes(image).unwrap();
    if !bytes.starts_with(b"KDMV") {
        return Descriptor::parse(&bytes).unwrap();
    }
    Descriptor::parse(&bytes[512..21 * 512]).unwrap()
}

/// The lines of a descriptor that mean something, but for what no two images have in common and what the
/// peer does not have.
fn lines(dir: &ImageDir, image: &str) -> Vec<String> {
    let text = String::from_utf8(descriptor(dir, image).to_bytes()).unwrap();
    let other = |line: &&str| {
        !line.is_empty() && !line.starts_with("CID=") && !line.starts_with("encoding=")
    };
    // The peer leaves out zeroes that an id starts with.
    let id = |line: &str| Some(format!("parentCID={:0>8}", line.strip_prefix("parentCID=")?));
    text.lines().filter(other).map(|line| id(line).unwrap_or(line.to_owned())).collect()
}

/// Makes an image here and with the peer, and holds one against the other.
fn check(options: &str) {
    let (ours, theirs) = (ImageDir::new().unwrap(), ImageDir::new().unwrap());
    let base = ["create", "-q", "-f", "vmdk", "base.vmdk", "3M"];
    theirs.qemu_img(&base).unwrap();
    theirs.qemu_io("base.vmdk", &["write -P 7 0 40000"]).unwrap();
    ours.write("base.vmdk", &theirs.bytes("base.vmdk").unwrap()).unwrap();
    create(&ours, "a.vmdk", options).unwrap_or_else(|error| panic!("{options}: {error}"));
    theirs.qemu_img(&["create", "-q", "-f", "vmdk", "-o", options, "a.vmdk"]).unwrap();

    let names = |dir: &ImageDir| files(dir).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&ours), names(&theirs), "{options}");
    assert_eq!(lines(&ours, "a.vmdk"), lines(&theirs, "a.vmdk"), "{options}");
    assert_eq!(peer_info(&ours, "a.vmdk"), peer_info(&theirs, "a.vmdk"), "{options}");
    assert_eq!(ours.check("a.vmdk").unwrap(), Verdict::Clean, "{options}");
    let node = open(&ours.path("a.vmdk"), OpenFlags::READ_ONLY).unwrap();
    let expect = theirs.raw_contents("a.vmdk", &[]).unwrap();
    assert_eq!(expect.first() == Some(&7), options.contains("backing"), "{options}");
    assert!(contents(&node) == expect, "{options}");
    assert!(ours.raw_contents("a.vmdk", &[]).unwrap() == expect, "{options}");

    let all = files(&ours);
    let image = Image::open(&all, "a.vmdk").unwrap();
    let report = image.check().unwrap();
    assert!(report.is_clean() && !report.unclean && report.leaks == 0, "{options}: {report:?}");
}

#[test]
fn every_subformat_of_odd_and_even_sizes() {
    let sizes = ["1", "2000896", "70000", "33M"];
    let subformats = [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ];
    for (index, size) in sizes.into_iter().enumerate() {
        for (number, subformat) in subformats.into_iter().enumerate() {
            let mut options = format!("size={size},subformat={subformat}");
            let adapters = ["ide", "lsilogic", "buslogic", "legacyESX"];
            options += &format!(",adapter_type={}", adapters[(index + number) % 4]);
            if index % 3 == 1 && !subformat.ends_with("Flat") {
                options += ",zeroed_grain=on";
            }
            match index % 4 {
                1 => options += ",compat6=on",
                2 => options += ",hwversion=7,toolsversion=10341",
                3 => options += ",compat6=off,hwversion=undefined",
                _ => {}
            }
            check(&options);
        }
    }
}

#[test]
fn images_on_top_of_others() {
    for subformat in ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"] {
        for size in ["3M", "5000k"] {
            check(&format!(
                "size={size},subformat={subformat},backing_file=base.vmdk,backing_fmt=vmdk"
            ));
        }
    }
    // A parent whose descriptor is a file, in another directory.
    let dir = ImageDir::new().unwrap();
    std::fs::create_dir(dir.path("sub")).unwrap();
    create(&dir, "sub/base.vmdk", "size=3M,subformat=twoGbMaxExtentSparse").unwrap();
    dir.qemu_io("sub/base.vmdk", &["write -P 9 1M 64k"]).unwrap();
    create(&dir, "a.vmdk", "size=3M,backing_file=sub/base.vmdk,backing_fmt=vmdk").unwrap();
    let (parent, child) = (descriptor(&dir, "sub/base.vmdk"), descriptor(&dir, "a.vmdk"));
    assert_eq!(child.parent_content_id(), parent.content_id());
    assert_ne!(child.content_id(), parent.content_id());
    assert_eq!(child.value("parentFileNameHint"), Some(&b"sub/base.vmdk"[..]));
    let node = open(&dir.path("a.vmdk"), OpenFlags::READ_ONLY).unwrap();
    assert_eq!(contents(&node)[1 << 20], 9);
    assert!(dir.raw_contents("a.vmdk", &[]).unwrap() == contents(&node));
}

#[test]
fn split_images_have_pieces_of_two_gibibytes() {
    for (size, subformat, last) in [
        ("4G", "twoGbMaxExtentSparse", "a-s002.vmdk"),
        ("4295032832", "twoGbMaxExtentSparse", "a-s003.vmdk"),
        ("4295032832", "twoGbMaxExtentFlat", "a-f003.vmdk"),
    ] {
        let (ours, theirs) = (ImageDir::new().unwrap(), ImageDir::new().unwrap());
        let options = format!("size={size},subformat={subformat}");
        create(&ours, "a.vmdk", &options).unwrap();
        theirs.qemu_img(&["create", "-q", "-f", "vmdk", "-o", &options, "a.vmdk"]).unwrap();
        assert_eq!(lines(&ours, "a.vmdk"), lines(&theirs, "a.vmdk"));
        assert_eq!(peer_info(&ours, "a.vmdk"), peer_info(&theirs, "a.vmdk"));
        assert_eq!(ours.check("a.vmdk").unwrap(), Verdict::Clean);
        let extents = descriptor(&ours, "a.vmdk").extents().to_vec();
        assert_eq!(extents.last().unwrap().file_name, last.as_bytes());
        assert_eq!(extents[0].sectors, SectorCount(0x8000_0000 / 512));
        for extent in extents {
            let name = std::str::from_utf8(&extent.file_name).unwrap();
            let len = |dir: &ImageDir| std::fs::metadata(dir.path(name)).unwrap().len();
            assert_eq!(len(&ours), len(&theirs), "{name}");
        }
        let node = open(&ours.path("a.vmdk"), OpenFlags::READ_ONLY).unwrap();
        assert_eq!(node.len().to_string(), size.replace("4G", "4294967296"));
    }
}

#[test]
fn the_places_in_a_sparse_file_are_those_of_the_peer() {
    for options in ["size=5G", "size=70M,zeroed_grain=on", "size=100k,adapter_type=lsilogic"] {
        let (ours, theirs) = (ImageDir::new().unwrap(), ImageDir::new().unwrap());
        create(&ours, "a.vmdk", options).unwrap();
        theirs.qemu_img(&["create", "-q", "-f", "vmdk", "-o", options, "a.vmdk"]).unwrap();
        let [ours, theirs] = [ours, theirs].map(|dir| dir.bytes("a.vmdk").unwrap());
        assert_eq!(ours.len(), theirs.len());
        // All but the text.
        assert_eq!(ours[..512], theirs[..512], "{options}");
        assert!(ours[21 * 512..] == theirs[21 * 512..], "{options}");
    }
}

#[test]
fn an_empty_stream_has_all_its_parts() {
    for (size, directory) in [(100u64 << 10, 1u64), (5 << 30, 2), (0, 0)] {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.vmdk", &format!("size={size},subformat=streamOptimized")).unwrap();
        let file = dir.bytes("a.vmdk").unwrap();
        let header = SparseHeader::parse(&file).unwrap();
        assert_eq!(header.grain_directory(), GrainDirectory::InFooter);
        assert!(header.is_compressed() && header.has_markers());
        assert_eq!(header.overhead(), SectorCount(128));
        let sector = |index: u64| {
            let start = usize::try_from(index).unwrap() * 512;
            &file[start..start + 512]
        };
        let marker = |index: u64| match Marker::parse(sector(index)) {
            Ok(Marker::Metadata(marker)) => (marker.kind, marker.sectors.0),
            other => panic!("{other:?} at {index}"),
        };
        assert_eq!(marker(128), (MetadataKind::GrainDirectory, directory));
        let tail = 129 + directory;
        assert_eq!(marker(tail), (MetadataKind::Footer, 1));
        let footer = SparseHeader::parse(sector(tail + 1)).unwrap();
        assert_eq!(footer.grain_directory(), GrainDirectory::At(Sector(129)));
        assert_eq!(footer.capacity(), header.capacity());
        assert_eq!(marker(tail + 2), (MetadataKind::EndOfStream, 0));
        assert_eq!(u64::try_from(file.len()).unwrap(), (tail + 3) * 512);
        let node = open(&dir.path("a.vmdk"), OpenFlags::READ_ONLY).unwrap();
        assert_eq!(node.len(), size);
    }
}

#[test]
fn an_empty_stream_is_what_the_writer_of_streams_makes_of_nothing() {
    for size in [0u64, 100 << 10, 70 << 20] {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.vmdk", &format!("size={size},subformat=streamOptimized")).unwrap();
        let id = descriptor(&dir, "a.vmdk").content_id().unwrap();
        let source = Node::new(Arc::new(MemDriver::new(size)), Default::default());
        let writer = StreamWriter::new(source).content_id(id).file_name("a.vmdk");
        let mut stream = Vec::new();
        let sink = block_on(writer.write_to(&mut stream, &Cancel::new(), |_: Progress| {}));
        assert_eq!(sink.unwrap(), u64::try_from(stream.len()).unwrap());
        assert!(stream == dir.bytes("a.vmdk").unwrap(), "{size}");
    }
}

#[test]
fn images_of_esx() {
    let dir = ImageDir::new().unwrap();
    create(&dir, "a.vmdk", "size=5000k,subformat=vmfsSparse,adapter_type=lsilogic").unwrap();
    let line = |dir: &ImageDir, image: &str| {
        let line = lines(dir, image).into_iter().find(|line| line.starts_with("RW "));
        line.unwrap()
    };
    assert_eq!(line(&dir, "a.vmdk"), "RW 10000 VMFSSPARSE \"a-delta.vmdk\"");
    assert_eq!(descriptor(&dir, "a.vmdk").create_type().unwrap().name(), "vmfsSparse");
    let extent = dir.bytes("a-delta.vmdk").unwrap();
    let header = CowdHeader::parse(&extent).unwrap();
    assert_eq!(header.capacity(), SectorCount(10000));
    assert_eq!((header.grain_size(), header.gd_entries()), (SectorCount(1), 3));
    assert_eq!((header.free_sector(), extent.len()), (Sector(5), 5 * 512));
    // Cylinders, heads and sectors of a disk without a parent.
    assert_eq!(extent[32..44], [0, 0, 0, 0, 255, 0, 0, 0, 63, 0, 0, 0]);

    create(&dir, "b.vmdk", "size=5000k,subformat=vmfs").unwrap();
    assert_eq!(line(&dir, "b.vmdk"), "RW 10000 VMFS \"b-flat.vmdk\"");
    assert_eq!(std::fs::metadata(dir.path("b-flat.vmdk")).unwrap().len(), 5000 << 10);
    dir.qemu_io("b.vmdk", &["write -P 3 1M 100k"]).unwrap();

    let on_top = "size=5000k,subformat=vmfsSparse,backing_file=b.vmdk,backing_fmt=vmdk";
    create(&dir, "c.vmdk", on_top).unwrap();
    assert_eq!(dir.bytes("c-delta.vmdk").unwrap()[32..44], [0; 12]);
    for (image, byte) in [("a.vmdk", 0), ("b.vmdk", 3), ("c.vmdk", 3)] {
        let node = open(&dir.path(image), OpenFlags::READ_WRITE).unwrap();
        assert_eq!(contents(&node)[1 << 20], byte);
        if image != "b.vmdk" {
            write(&node, 2_000_000, 100_000, 5);
        }
        let expect = contents(&node);
        block_on(graph::close(&node)).unwrap();
        assert!(dir.raw_contents(image, &[]).unwrap() == expect, "{image}");
        assert_eq!(dir.check(image).unwrap(), Verdict::Clean, "{image}");
        let all = files(&dir);
        let report = Image::open(&all, image).unwrap().check().unwrap();
        assert!(report.is_clean(), "{image}: {report:?}");
    }
}

#[test]
fn the_peer_goes_on_writing() {
    for options in [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
        "subformat=vmfs",
    ] {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.vmdk", &format!("size=3M,{options}")).unwrap();
        let before = descriptor(&dir, "a.vmdk").content_id().unwrap();
        let commands = ["write -P 1 100k 1M", "write -z 512k 64k", "write -P 2 2M 1M"];
        dir.qemu_io("a.vmdk", &commands).unwrap();
        assert_eq!(dir.check("a.vmdk").unwrap(), Verdict::Clean, "{options}");
        let node = open(&dir.path("a.vmdk"), OpenFlags::READ_ONLY).unwrap();
        let expect = dir.raw_contents("a.vmdk", &[]).unwrap();
        assert!(expect[2 << 20..].iter().all(|byte| *byte == 2), "{options}");
        assert!(contents(&node) == expect, "{options}");
        // It has found the content id in its place.
        let after = descriptor(&dir, "a.vmdk").content_id().unwrap();
        assert!(before != after && lines(&dir, "a.vmdk").len() > 10, "{options}");
    }
}

#[test]
fn preallocated_space_is_there() {
    use std::os::unix::fs::MetadataExt;
    let dir = ImageDir::new().unwrap();
    for mode in ["falloc", "full"] {
        for (subformat, extent) in
            [("monolithicFlat", "a-flat.vmdk"), ("twoGbMaxExtentFlat", "a-f001.vmdk")]
        {
            create(&dir, "a.vmdk", &format!("size=3M,subformat={subformat},preallocation={mode}"))
                .unwrap();
            let allocated = std::fs::metadata(dir.path(extent)).unwrap().blocks() * 512;
            assert!(allocated >= 3 << 20, "{mode}: {allocated}");
        }
    }
    create(&dir, "a.vmdk", "size=3M,subformat=vmfs,preallocation=off").unwrap();
    assert!(std::fs::metadata(dir.path("a-flat.vmdk")).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn huge_disks_are_made_at_once_or_refused() {
    let dir = ImageDir::new().unwrap();
    let begun = Instant::now();
    for (size, subformat) in [
        (64u64 << 40, "monolithicSparse"),
        (1 << 50, "streamOptimized"),
        (2 << 40, "twoGbMaxExtentFlat"),
        ((1 << 41) - 512, "vmfsSparse"),
    ] {
        create(&dir, "a.vmdk", &format!("size={size},subformat={subformat}")).unwrap();
        let text = dir.qemu_img(&["info", "--output", "json", "a.vmdk"]).unwrap();
        let info: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(info["virtual-size"], size, "{subformat}");
    }
    for (options, max) in [
        ("size=1125899906842625", "0x4000000000000"),
        ("size=2P,subformat=streamOptimized", "0x4000000000000"),
        ("size=2T,subformat=vmfsSparse", "0x1fffffffe00"),
        ("size=9T,subformat=twoGbMaxExtentSparse", "0x80000000000"),
        ("size=9T,subformat=twoGbMaxExtentFlat", "0x80000000000"),
        ("size=9223372036854775807,subformat=monolithicFlat", "0x7fffffffc0000000"),
    ] {
        let text = create(&dir, "b.vmdk", options).unwrap_err().to_string();
        assert!(text.contains("'size=") && text.ends_with(&format!("at most {max}")), "{text}");
        assert!(!dir.path("b.vmdk").exists());
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_cannot_be_is_refused_by_name_and_value_before_anything_is_made() {
    let flat = "contradicts a flat subformat";
    let backing = "backing_file=base.vmdk,backing_fmt=vmdk";
    let dir = ImageDir::new().unwrap();
    create(&dir, "base.vmdk", "size=1M").unwrap();
    create(&dir, "split.vmdk", "size=1M,subformat=twoGbMaxExtentSparse").unwrap();
    dir.write("raw", &[7; 4096]).unwrap();
    let all = [
        ("subformat=foo".to_owned(), "'subformat=foo': unknown value"),
        ("subformat=monolithicsparse".to_owned(), "'subformat=monolithicsparse': unknown value"),
        ("subformat=".to_owned(), "'subformat=': unknown value"),
        ("subformat=seSparse".to_owned(), "'subformat=seSparse': unknown value"),
        ("adapter_type=LSIlogic".to_owned(), "'adapter_type=LSIlogic': unknown value"),
        ("adapter_type=".to_owned(), "'adapter_type=': unknown value"),
        ("compat6=on,hwversion=6".to_owned(), "'compat6=on': contradicts hwversion"),
        ("compat6=x".to_owned(), "'compat6': unknown value"),
        ("zeroed_grain=on,subformat=monolithicFlat".to_owned(), flat),
        ("zeroed_grain=on,subformat=twoGbMaxExtentFlat".to_owned(), flat),
        ("zeroed_grain=on,subformat=vmfsSparse".to_owned(), "contradicts subformat=vmfsSparse"),
        (format!("{backing},subformat=monolithicFlat"), flat),
        (format!("{backing},subformat=twoGbMaxExtentFlat"), flat),
        (format!("{backing},subformat=vmfs"), flat),
        ("backing_file=base.vmdk".to_owned(), "'backing_fmt': is missing"),
        ("backing_fmt=vmdk".to_owned(), "'backing_file': is missing"),
        ("backing_file=,backing_fmt=vmdk".to_owned(), "'backing_file=': is missing"),
        ("backing_file=raw,backing_fmt=raw".to_owned(), "'backing_fmt=raw': contradicts"),
        ("backing_file=raw,backing_fmt=vmdk".to_owned(), "Could not open backing file 'raw'"),
        ("backing_file=split-s001.vmdk,backing_fmt=vmdk".to_owned(), "CID is missing"),
        ("backing_file=gone,backing_fmt=vmdk".to_owned(), "Could not open backing file 'gone'"),
        ("backing_file=json:{},backing_fmt=vmdk".to_owned(), "only plain names are allowed"),
        ("toolsversion=1\"\nRW 1 ZERO".to_owned(), "is not valid text"),
        ("hwversion=a\"b".to_owned(), "'hwversion=a\"b': is not valid text"),
        ("preallocation=full".to_owned(), "'preallocation=full': contradicts a sparse subformat"),
        ("preallocation=metadata".to_owned(), "'preallocation=metadata': unknown value"),
        ("size=x".to_owned(), "'size': unknown value"),
        ("bogus=1".to_owned(), "'bogus': unknown value"),
    ];
    dir.write("a.vmdk", b"something else").unwrap();
    let before = files(&dir);
    for (options, expect) in all {
        let err = create(&dir, "a.vmdk", &format!("size=1M,{options}")).unwrap_err().to_string();
        assert!(err.contains(expect), "{options}: {err}");
        assert!(files(&dir) == before, "{options}");
    }
    let long = "n".repeat(1024);
    let options = format!("size=1M,backing_file={long},backing_fmt=vmdk");
    let err = create(&dir, "a.vmdk", &options).unwrap_err().to_string();
    assert!(err.ends_with("is not valid text"), "{err}");
    let err = create(&dir, "a\"b.vmdk", "size=1M").unwrap_err().to_string();
    assert!(err.contains("only plain names are allowed here"), "{err}");
    assert!(create(&dir, "a.vmdk", "").unwrap_err().to_string().contains("'size': is missing"));
    assert!(files(&dir) == before);
}

#[test]
fn files_beside_the_image_are_made_only_where_names_are_followed() {
    let dir = ImageDir::new().unwrap();
    let path = dir.path("a.vmdk").to_str().unwrap().to_owned();
    let mut context = making::context(OpenFlags::READ_WRITE);
    context.policy = ReferencePolicy::Refuse;
    let text = "size=1M,subformat=monolithicFlat";
    let err = making::create_at(&path, text, context.clone()).unwrap_err().to_string();
    assert!(err.ends_with("only plain names are allowed here") && files(&dir).is_empty(), "{err}");
    making::create_at(&path, "size=1M", context.clone()).unwrap();
    context.policy = ReferencePolicy::SameDirectory;
    making::create_at(&path, text, context.clone()).unwrap();

    // Storage that exists already: it has to have a name for others to be beside it.
    dir.write("b.vmdk", b"").unwrap();
    let factory = Arc::clone(context.registry.get("vmdk").unwrap());
    let path = dir.path("b.vmdk").to_str().unwrap().to_owned();
    let options = making::options(text).with("file.driver", "file");
    let named = options.clone().with("file.filename", path);
    block_on(factory.create(named, context.clone())).unwrap();
    let node = open(&dir.path("b.vmdk"), OpenFlags::READ_ONLY).unwrap();
    assert!(node.len() == 1 << 20 && dir.path("b-flat.vmdk").exists());
    let err = block_on(factory.create(options, context)).unwrap_err().to_string();
    assert_eq!(err, "Invalid option 'filename': is missing");
}

#[test]
fn the_peer_refuses_what_is_refused_here() {
    let dir = ImageDir::new().unwrap();
    create(&dir, "base.vmdk", "size=1M").unwrap();
    for options in [
        "subformat=foo",
        "subformat=",
        "adapter_type=LSIlogic",
        "compat6=on,hwversion=6",
        "zeroed_grain=on,subformat=monolithicFlat",
        "backing_file=base.vmdk,backing_fmt=vmdk,subformat=monolithicFlat",
        "backing_file=base.vmdk,backing_fmt=raw",
        "backing_file=base.vmdk",
        "backing_file=gone,backing_fmt=vmdk",
    ] {
        create(&dir, "a.vmdk", &format!("size=1M,{options}")).unwrap_err();
        let args = ["create", "-q", "-f", "vmdk", "-o", options, "a.vmdk", "1M"];
        assert!(dir.qemu_img(&args).is_err(), "{options}");
    }
}

/// A value as JSON.
fn to_json(value: &InfoValue) -> Value {
    match value {
        InfoValue::Bool(value) => json!(value),
        InfoValue::Int(value) => json!(value),
        InfoValue::Text(value) => json!(value),
        InfoValue::List(all) => all.iter().map(to_json).collect(),
        InfoValue::Map(all) => named_json(all),
    }
}

fn named_json(all: &[(&'static str, InfoValue)]) -> Value {
    Value::Object(all.iter().map(|(n, v)| ((*n).to_owned(), to_json(v))).collect::<Map<_, _>>())
}

/// What the driver says of itself, in the peer's words.
fn own_info(node: &Node) -> Value {
    let info = node.driver().info();
    json!({
        "cluster-size": info.cluster_size,
        "backing-filename": info.backing_filename,
        "backing-filename-format": info.backing_format,
        "data": named_json(&info.specific),
    })
}

#[test]
fn info_says_what_the_peer_says_in_the_same_order() {
    let dir = ImageDir::new().unwrap();
    create(&dir, "base.vmdk", "size=1M").unwrap();
    for options in [
        "size=1M",
        "size=5M,subformat=monolithicFlat",
        "size=3G,subformat=twoGbMaxExtentSparse",
        "size=3G,subformat=twoGbMaxExtentFlat",
        "size=1M,subformat=streamOptimized",
        "size=1M,subformat=vmfsSparse",
        "size=1M,subformat=vmfs",
        "size=1M,backing_file=base.vmdk,backing_fmt=vmdk",
    ] {
        create(&dir, "a.vmdk", options).unwrap();
        let path = dir.path("a.vmdk");
        let text = dir.qemu_img(&["info", "--output", "json", path.to_str().unwrap()]).unwrap();
        let peer: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "cluster-size": peer["cluster-size"],
            "backing-filename": peer["backing-filename"],
            "backing-filename-format": peer["backing-filename-format"],
            "data": peer["format-specific"]["data"],
        });
        let own = own_info(&open(&path, OpenFlags::READ_ONLY).unwrap());
        // The order of the fields counts, too.
        assert_eq!(own.to_string(), expected.to_string(), "{options}");
    }
}

/// A file that is to be made is not the parent, nor one of its files, whatever it is called.
#[test]
fn an_image_is_not_made_over_its_parent() {
    let cases = [
        ("x-s001.vmdk", "monolithicSparse", "x-s001.vmdk", "twoGbMaxExtentSparse"),
        ("x-s001.vmdk", "monolithicSparse", "./x-s001.vmdk", "twoGbMaxExtentSparse"),
        ("x-s001.vmdk", "monolithicSparse", "link.vmdk", "twoGbMaxExtentSparse"),
        ("x.vmdk", "monolithicSparse", "x.vmdk", "monolithicSparse"),
        ("x.vmdk", "twoGbMaxExtentSparse", "x.vmdk", "twoGbMaxExtentSparse"),
    ];
    for (base, subformat, name, made) in cases {
        let dir = ImageDir::new().unwrap();
        create(&dir, base, &format!("size=3M,subformat={subformat}")).unwrap();
        std::os::unix::fs::symlink(dir.path(base), dir.path("link.vmdk")).unwrap();
        let before = files(&dir);
        let options = format!("size=3M,subformat={made},backing_file={name},backing_fmt=vmdk");
        match create(&dir, "x.vmdk", &options) {
            Err(OpenError::OptionValue { option, value, .. }) => {
                assert_eq!((option, &*value), ("backing_file", name));
            }
            other => panic!("{base} as {name}: {other:?}"),
        }
        assert!(files(&dir) == before, "{base} as {name}: something was made");
    }
    // A parent of which one extent has the name.
    let dir = ImageDir::new().unwrap();
    create(&dir, "y.vmdk", "size=3M,subformat=twoGbMaxExtentSparse").unwrap();
    std::fs::rename(dir.path("y-s001.vmdk"), dir.path("x-s001.vmdk")).unwrap();
    let text = String::from_utf8(dir.bytes("y.vmdk").unwrap()).unwrap();
    dir.write("y.vmdk", text.replace("y-s001", "x-s001").as_bytes()).unwrap();
    let before = files(&dir);
    let options = "size=3M,subformat=twoGbMaxExtentSparse,backing_file=y.vmdk,backing_fmt=vmdk";
    assert!(matches!(create(&dir, "x.vmdk", options), Err(OpenError::OptionValue { .. })));
    assert!(files(&dir) == before);
}
