//! Images that are made to hurt whoever opens them: each is refused with an error that names the field and
//! its value, or serves reads and writes without harm to the process. Memory is counted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;
mod damaged;
mod kit;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemDriver;
use block_core::range::{to_u64, to_usize};
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, IoBuf, Node, OpenError, Options, Registry, RequestFlags, graph,
};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{NAME, Redundant, Subformat};
use block_testkit::op::{contents, io_vec};
use block_vmdk::VmdkFactory;
use counting::{HELD, MOST};
use damaged::{Sample, samples};
use futures::executor::block_on;
use kit::setups::{Filled, setup};
use kit::{Disks, Setup};
use parking_lot::Mutex;
use proptest::prelude::*;

/// The most that opening such an image, and a few requests, may take beside its files: the largest grain
/// that is inflated, twice, and a large directory.
const CAP: usize = 192 << 20;

/// The counters are the process's, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// What became of an image.
#[derive(Debug)]
enum Outcome {
    Refused(OpenError),
    Served,
}

/// Opens the disk in all ways, and uses it; how it went, when opened for writing.
fn meet(setup: &Setup, files: &Files) -> Outcome {
    let _turn = TURN.lock();
    let mut outcome = Outcome::Served;
    let check = OpenFlags { check: true, no_io: true, no_backing: true, ..OpenFlags::READ_WRITE };
    for flags in [check, OpenFlags::READ_ONLY, OpenFlags::READ_WRITE] {
        let disk = |bytes: Vec<u8>| Arc::new(MemDriver::from_bytes(&bytes).unwrap());
        let disks = Disks::new(files.clone(), disk);
        let world = disks.world(setup, |disk| -> Arc<dyn BlockDriver> { disk });
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        outcome = match block_on(world.open_with(flags)) {
            Ok(node) => {
                use_it(&node, flags);
                Outcome::Served
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                Outcome::Refused(error)
            }
        };
        let most = MOST.load(Ordering::Relaxed) - before;
        assert!(most <= CAP, "{most} bytes: {outcome:?}");
    }
    outcome
}

/// Reads and writes at the ends of the disk and at its start. Errors are fine.
fn use_it(node: &Node, flags: OpenFlags) {
    let len = node.len();
    let places = [0, 4096, len / 2, len.saturating_sub(512)];
    for at in places {
        let size = 70_000.min(len.saturating_sub(at));
        let Ok(range) = ByteRange::new(at, size) else { continue };
        let buf = IoBuf::zeroed(to_usize(range.len()), Alignment::ONE).unwrap();
        let _ = block_on(node.read(range, buf.into()));
        let status = block_core::request::status::StatusDetail::Zeroes;
        if !range.is_empty() {
            let _ = block_on(node.block_status(range, status));
        }
        if flags.writable && !flags.check && !range.is_empty() {
            let range = range.first(512);
            let iov = io_vec(&contents(5, range), Alignment::ONE, 1);
            let _ = block_on(node.write(range, iov, RequestFlags::empty()));
            let _ = block_on(node.write_zeroes(range, RequestFlags::MAY_UNMAP));
            let _ = block_on(node.discard(range));
        }
    }
    let _ = block_on(node.flush());
    let _ = block_on(graph::close(node));
}

/// Every sample there is, seSparse and flat ones too.
fn all() -> Vec<Sample> {
    let mut all = samples();
    let mut sesparse = setup("4k");
    sesparse.name = "seSparse";
    sesparse.filled = Filled::Mixed;
    sesparse.shape.subformat = Subformat::SeSparse;
    sesparse.shape.redundant = Redundant::None;
    all.push(Sample::of(sesparse));
    all.push(Sample::of(setup("flat")));
    all
}

fn values(len: usize) -> Vec<u64> {
    let most = if len == 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
    let half = most / 2 + 1;
    let mut all = vec![0, 1, 2, 3, 7, 8, 9, 127, 128, 4096, 1 << 15, 1 << 21, (1 << 21) + 1];
    all.extend([1 << 25, 1 << 31, 1 << 32, 1 << 40, 1 << 54, half - 1, half, most - 1, most]);
    all.retain(|value| *value <= most);
    all
}

/// Fields of headers: name, place, bytes.
const HOSTED: [(&str, u64, usize); 13] = [
    ("version", 4, 4),
    ("flags", 8, 4),
    ("capacity", 12, 8),
    ("grainSize", 20, 8),
    ("descriptorOffset", 28, 8),
    ("descriptorSize", 36, 8),
    ("numGTEsPerGT", 44, 4),
    ("rgdOffset", 48, 8),
    ("gdOffset", 56, 8),
    ("overHead", 64, 8),
    ("uncleanShutdown", 72, 1),
    ("check bytes", 73, 4),
    ("compressAlgorithm", 77, 2),
];

const COWD: [(&str, u64, usize); 7] = [
    ("version", 4, 4),
    ("flags", 8, 4),
    ("capacity", 12, 4),
    ("grainSize", 16, 4),
    ("gdOffset", 20, 4),
    ("numGDEntries", 24, 4),
    ("freeSector", 28, 4),
];

fn fields(sample: &Sample) -> Vec<(String, u64, usize)> {
    let named = |fields: &[(&str, u64, usize)], at: u64| -> Vec<_> {
        fields.iter().map(|(name, place, len)| ((*name).to_owned(), at + place, *len)).collect()
    };
    if sample.is_cowd() {
        return named(&COWD, 0);
    }
    if sample.file().starts_with(b"KDMV") {
        let mut fields = named(&HOSTED, 0);
        if sample.has_footer() {
            fields.extend(named(&HOSTED, (sample.sectors() - 2) * 512));
            // Its marker, and the end of the stream.
            for sector in [3, 1] {
                let at = (sample.sectors() - sector) * 512;
                fields.extend(named(&[("value", 0, 8), ("size", 8, 4), ("type", 12, 4)], at));
            }
        }
        if sample.is_stream() {
            let at = sample.host(damaged::DATA) * 512;
            fields.extend(named(&[("LBA", 0, 8), ("length", 8, 4), ("stream", 12, 2)], at));
        }
        return fields;
    }
    if sample.setup.name == "seSparse" {
        let volatile = sample.take(80, 8) * 512;
        let words = (0..26).map(|n| (format!("word {n}"), n * 8, 8));
        let rest = (0..4).map(|n| (format!("volatile word {n}"), volatile + n * 8, 8));
        return words.chain(rest).collect();
    }
    Vec::new()
}

#[test]
fn every_field_at_its_borders_is_refused_by_name_or_served() {
    let (mut refused, mut served) = (0, 0);
    for sample in all() {
        for (name, at, len) in fields(&sample) {
            for value in values(len) {
                let mut hostile = sample.clone();
                hostile.put(at, &value.to_le_bytes()[..len]);
                match meet(&hostile.setup, &hostile.files) {
                    Outcome::Served => served += 1,
                    Outcome::Refused(error) => {
                        refused += 1;
                        let place = format!("{}: {name} = {value:#x}: {error}", sample.setup.name);
                        assert!(is_typed(&error), "{place}");
                    }
                }
            }
        }
    }
    assert!(refused > 500 && served > 500, "{refused} refused, {served} served");
}

/// Whether an error says what is wrong: a field and its value, a line of the descriptor, or the feature.
fn is_typed(error: &OpenError) -> bool {
    match error {
        OpenError::Field { .. } | OpenError::Text { .. } | OpenError::UnsupportedFeature { .. } => {
            true
        }
        OpenError::Request { error, .. } => {
            matches!(error, block_core::Error::Corrupt { .. } | block_core::Error::NoMemory { .. })
        }
        _ => false,
    }
}

#[test]
fn every_truncation_is_refused_or_served() {
    for sample in all() {
        let len = to_u64(sample.file().len());
        let borders = (0..80).map(|n| n * 512).chain((1..8).map(|n| len - n * 512));
        let places = borders.chain([4, 79, 511, 513, len / 2, len - 1]).filter(|at| *at < len);
        for at in places {
            let mut cut = sample.clone();
            cut.file_mut().truncate(to_usize(at));
            meet(&cut.setup, &cut.files);
        }
    }
}

#[test]
fn directories_and_tables_that_go_round_are_served() {
    for sample in all().into_iter().filter(|sample| !fields(sample).is_empty()) {
        if sample.setup.name == "seSparse" {
            continue;
        }
        let gd = sample.gd();
        for target in [0, 1, gd, gd - 1, sample.table(gd, 0), u64::from(u32::MAX)] {
            let mut hostile = sample.clone();
            for table in 0..sample.tables() {
                hostile.put32(hostile.gde(gd, table), target);
            }
            meet(&hostile.setup, &hostile.files);
            let mut hostile = sample.clone();
            for grain in 0..sample.gtes().min(32) {
                hostile.set_primary(grain, target);
            }
            meet(&hostile.setup, &hostile.files);
        }
    }
}

fn descriptor(lines: &str) -> Files {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n{lines}\n"
    );
    [(NAME.to_owned(), text.into_bytes())].into()
}

#[test]
fn names_outside_of_the_directory_are_refused_by_name() {
    let names = [
        "/etc/passwd",
        "../secret.vmdk",
        "a/../../secret.vmdk",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "nbd://host/export",
        "http://host/disk",
        "",
    ];
    for name in names {
        let files = descriptor(&format!("RW 2048 FLAT \"{name}\" 0"));
        match meet(&setup("flat"), &files) {
            Outcome::Refused(OpenError::Reference { name: refused, .. }) => {
                assert_eq!(refused, name)
            }
            Outcome::Refused(OpenError::Text { .. }) if name.is_empty() || name.contains('"') => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn absurd_descriptors_are_refused_by_name() {
    let many = "RW 1 ZERO\n".repeat(1_000_000);
    let some = "RW 1 ZERO\n".repeat(50_000);
    let cases = [
        ("a million extents", many, None),
        ("fifty thousand extents", some, Some("number of extents")),
        ("an endless extent", format!("RW {} ZERO", u64::MAX), None),
        ("beyond the longest disk", format!("RW {} ZERO", 1u64 << 60), None),
        ("two halves too long", format!("RW {0} ZERO\nRW {0} ZERO", 1u64 << 53), None),
        ("an offset too far", format!("RW 1 FLAT \"x.vmdk\" {}", u64::MAX), None),
        ("words for numbers", "RW many ZERO".to_owned(), None),
    ];
    for (name, lines, field_name) in cases {
        match meet(&setup("flat"), &descriptor(&lines)) {
            Outcome::Refused(OpenError::Field { field, .. }) => {
                assert!(field_name.is_none_or(|name| name == field), "{name}: {field}");
            }
            Outcome::Refused(OpenError::Text { .. } | OpenError::Child { .. }) => {
                assert_eq!(field_name, None, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_are_refused_or_served(
        which in 0usize..16,
        pokes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        deep in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    ) {
        let all = all();
        let mut hostile = all[which % all.len()].clone();
        let len = hostile.file().len();
        for (at, byte) in pokes {
            hostile.file_mut()[at.index(len.min(2048))] = byte;
        }
        for (at, byte) in deep {
            hostile.file_mut()[at.index(len)] = byte;
        }
        meet(&hostile.setup, &hostile.files);
    }

    #[test]
    fn any_file_is_refused_or_served(
        magic in prop::sample::select(vec![&b"KDMV"[..], b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0", b"#", b""]),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let bytes = [magic, &bytes].concat();
        meet(&setup("4k"), &[(NAME.to_owned(), bytes)].into());
    }
}

#[test]
fn the_samples_themselves_are_served() {
    for sample in all() {
        let outcome = meet(&sample.setup, &sample.files);
        let read_only = sample.is_stream() || sample.setup.name == "seSparse";
        match outcome {
            Outcome::Served => assert!(!read_only, "{}", sample.setup.name),
            Outcome::Refused(error) => assert!(read_only, "{}: {error}", sample.setup.name),
        }
    }
}

/// Neither a pipe, at whose other end is nobody, nor a directory is waited for or taken for an extent.
#[test]
fn pipes_and_directories_are_no_extents() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    std::fs::create_dir(path("directory")).unwrap();
    let registry = Arc::new(Registry::new().with(VmdkFactory).with(FileFactory));
    for name in ["pipe", "directory"] {
        for kind in ["FLAT", "SPARSE"] {
            let files = descriptor(&format!("RW 2048 {kind} \"{name}\" 0"));
            std::fs::write(path(NAME), &files[NAME]).unwrap();
            for flags in [OpenFlags::READ_ONLY, OpenFlags::READ_WRITE] {
                let file = path(NAME).to_str().unwrap().to_owned();
                let options = Options::new().with("driver", "vmdk").with("file.driver", "file");
                let options = options.with("file.filename", file);
                let opened = OpenContext::new(Arc::clone(&registry), flags).open(options);
                match block_core::io::exec::block_on(opened) {
                    Err(OpenError::Child { name: refused, .. }) => assert_eq!(refused, name),
                    Err(OpenError::Text { .. }) if kind == "SPARSE" => {}
                    other => panic!("{name} as {kind}: {:?}", other.map(|node| node.len())),
                }
            }
        }
    }
}
