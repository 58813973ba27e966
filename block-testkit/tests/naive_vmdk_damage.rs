//! Each kind of damage to a VMDK disk is found by the naive checker, and by its name; what is no damage is
//! not. Whatever the bytes, nothing panics.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use block_testkit::naive::vmdk::make::{
    Directory, Grain, NAME, Shape, Subformat, Tables, ZeroedGrains,
};
use block_testkit::naive::vmdk::{BadImage, Content, Files, Image, Report, Sparse};
use proptest::prelude::*;
use proptest::sample::Index;

const SIZE: u64 = 192 << 10;

/// Grains 0, 1 and 9 of 4 KiB, in tables of 8 entries.
fn shape() -> Shape {
    Shape { grain_sectors: 8, gtes_per_gt: 8, ..Shape::new(SIZE) }
}

fn disk(shape: &Shape) -> Files {
    let data = |byte| Grain::Data(vec![byte; 4096]);
    shape.make(&BTreeMap::from([(0, data(1)), (1, data(2)), (9, data(3))]))
}

fn report(files: &Files) -> Report {
    Image::open(files, NAME).unwrap().check().unwrap()
}

fn sparse<'a>(image: &'a Image<'a>) -> &'a Sparse<'a> {
    match &image.extents()[0].content {
        Content::Sparse(sparse) => sparse,
        _ => panic!("no grains"),
    }
}

/// Where the directories and the first table of each are, in bytes.
fn places(files: &Files) -> [usize; 4] {
    let image = Image::open(files, NAME).unwrap();
    let extent = sparse(&image);
    let [first, second] = [extent.directory, extent.redundant.unwrap()];
    let table = |directory| extent.table(directory, 0).unwrap().unwrap();
    [first, second, table(first), table(second)]
        .map(|sector| usize::try_from(sector * 512).unwrap())
}

fn put(files: &mut Files, at: usize, value: u32) {
    files.get_mut(NAME).unwrap()[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn number(files: &Files, at: usize) -> u32 {
    u32::from_le_bytes(files[NAME][at..at + 4].try_into().unwrap())
}

fn assert_error(files: &Files, text: &str) {
    let report = report(files);
    assert!(report.errors.iter().any(|error| error.contains(text)), "{text:?}: {report}");
}

#[test]
fn a_grain_with_two_users() {
    let mut files = disk(&shape());
    let [_, _, table, copy] = places(&files);
    let other = number(&files, table + 4);
    for at in [table, copy] {
        put(&mut files, at, other);
    }
    assert_error(&files, "is Grain(0) and Grain(1)");
    assert_eq!(report(&files).leaks, 1, "where grain 0 was");
}

#[test]
fn a_grain_over_metadata() {
    for name in ["Descriptor", "Table", "RedundantTable"] {
        let mut files = disk(&shape());
        let [_, _, table, copy] = places(&files);
        // Without the flag for zeroed grains an entry of 1 is a place.
        let sector = match name {
            "Table" => table / 512,
            "RedundantTable" => copy / 512,
            _ => 1,
        };
        let value = u32::try_from(sector).unwrap();
        for at in [table, copy] {
            put(&mut files, at, value);
        }
        assert_error(&files, &format!("is {name} and Grain(0)"));
    }
}

#[test]
fn entries_beyond_the_file_or_the_format() {
    let mut files = disk(&shape());
    let [directory, second, table, copy] = places(&files);
    for (at, text) in [(table, "grain 0 at"), (directory, "Table: entry 0"), (second, "Redundant")]
    {
        let mut files = files.clone();
        put(&mut files, at, u32::MAX - 3);
        assert_error(&files, text);
    }
    for at in [table, copy] {
        put(&mut files, at, u32::MAX - 3);
    }
    assert_error(&files, "beyond what an entry can say");
}

#[test]
fn tables_that_are_one_another() {
    let mut files = disk(&shape());
    let [directory, second, table, _] = places(&files);
    put(&mut files, second, u32::try_from(table / 512).unwrap());
    assert_error(&files, "is Table and RedundantTable");
    let mut files = disk(&shape());
    let other = number(&files, directory + 4);
    put(&mut files, directory, other);
    assert_error(&files, "is Table and Table");
}

#[test]
fn redundant_tables_that_differ_are_no_damage_after_a_crash() {
    let mut files = disk(&shape());
    let [_, second, table, copy] = places(&files);
    let before = number(&files, copy);
    for (at, value) in [(copy, 0), (copy, before + 8), (table, 0)] {
        let mut files = files.clone();
        put(&mut files, at, value);
        let found = report(&files);
        assert_eq!((found.errors(), found.redundant.len()), (1, 1), "{found}");
        files.get_mut(NAME).unwrap()[72] = 1;
        let found = report(&files);
        assert_eq!((found.errors(), found.redundant.len(), found.unclean), (0, 1, true));
    }
    // A table that has no copy is none that differs.
    put(&mut files, second, 0);
    let found = report(&files);
    assert_eq!((found.errors(), found.redundant.len(), found.holes), (0, 0, 1), "{found}");
}

#[test]
fn space_that_nothing_refers_to_is_counted() {
    let mut files = disk(&shape());
    let file = files.get_mut(NAME).unwrap();
    file.resize(file.len() + 3 * 4096 + 512, 7);
    let found = report(&files);
    assert_eq!((found.errors(), found.leaks, found.grains), (0, 3, 3));
}

#[test]
fn free_sectors_that_are_in_use() {
    let subformat = Subformat::Cowd(vec![SIZE / 512]);
    let mut files = disk(&Shape { subformat, ..shape() });
    assert!(report(&files).is_clean());
    let file = files.get_mut("v-delta001.vmdk").unwrap();
    file[28] -= 1;
    let found = report(&files);
    assert_eq!((found.stale, found.errors(), found.is_clean()), (1, 0, false));
}

#[test]
fn descriptors_whose_ids_are_damaged() {
    for (from, to, text) in [
        ("CID=1234abcd", "CID=1234abxd", "CID is"),
        ("\nparentCID=", "\npxrentCID=", "0 lines parentCID"),
        ("\nparentCID=", "\nCID=ffffff", "lines CID"),
        ("ddb.adapterType = \"ide\"\n", "ddb.adapterType = \"id\0\"\n", "follows the end"),
    ] {
        let mut files = disk(&shape());
        let file = files.get_mut(NAME).unwrap();
        let at = file.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        file[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert_error(&files, text);
    }
}

#[test]
fn flat_extents_longer_than_their_files() {
    for (subformat, file) in [
        (Subformat::MonolithicFlat, "v-flat.vmdk"),
        (Subformat::TwoGbFlat(vec![SIZE / 512 - 9, 9]), "v-f002.vmdk"),
    ] {
        let mut files = disk(&Shape { subformat, ..shape() });
        assert!(report(&files).is_clean());
        files.get_mut(file).unwrap().pop();
        assert_error(&files, "its file");
        files.remove(file);
        let missing = Image::open(&files, NAME).map(|_| ());
        assert_eq!(missing, Err(BadImage::NoFile { name: file.to_owned() }));
    }
}

#[test]
fn extents_without_files_and_without_access() {
    let mut files = Files::new();
    let lines = "RW 3 ZERO\nRDONLY 2 FLAT \"raw\" 1\nRW 1 FLAT \"raw\"\n";
    let head =
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n";
    files.insert("a/b/v".to_owned(), format!("{head}{lines}").into_bytes());
    let raw: Vec<u8> = (1..=3u8).flat_map(|byte| [byte; 512]).collect();
    files.insert("a/b/raw".to_owned(), raw.clone());
    let image = Image::open(&files, "a/b/v").unwrap();
    let expected = [&[0; 1536], &raw[512..], &raw[..512]].concat();
    assert_eq!(image.contents().unwrap(), expected);
    assert!(image.check().unwrap().is_clean());
    files.insert("a/b/v".to_owned(), format!("{head}{lines}NOACCESS 1 ZERO\n").into_bytes());
    let image = Image::open(&files, "a/b/v").unwrap();
    assert_eq!(image.contents(), Err(BadImage::NoAccess { extent: 3 }));
}

fn stream() -> Files {
    let subformat = Subformat::StreamOptimized(Directory::InFooter);
    disk(&Shape { subformat, ..shape() })
}

#[test]
fn compressed_grains_and_streams_that_are_damaged() {
    let files = stream();
    assert!(report(&files).is_clean(), "{}", report(&files));
    let first = 128 * 512;
    for (at, text) in
        [(first, "another grain"), (first + 12, "no zlib"), (first + 30, "Compressed")]
    {
        let mut files = files.clone();
        files.get_mut(NAME).unwrap()[at] ^= 0x10;
        let bad = report(&files);
        let named =
            bad.errors.iter().any(|error| error.contains(text) || error.contains("grain 0"));
        assert!(named, "{bad}");
        assert!(Image::open(&files, NAME).unwrap().contents().is_err());
    }
    // Marker of the first table, behind two grains of a sector each.
    let mut unmarked = files.clone();
    unmarked.get_mut(NAME).unwrap()[first + 1024 + 12] = 9;
    assert_error(&unmarked, "no marker");
    let len = files[NAME].len();
    for at in [len - 1, len - 1536 + 12, len - 1024] {
        let mut files = files.clone();
        files.get_mut(NAME).unwrap()[at] ^= 1;
        assert!(matches!(Image::open(&files, NAME), Err(BadImage::Field { field: "footer", .. })));
    }
}

/// Small disks with every structure of the format, all in one file or as bare extents.
static DISKS: LazyLock<Vec<Files>> = LazyLock::new(|| {
    let zeroed = Shape { zeroed_grains: ZeroedGrains::Yes, ..shape() };
    let cowd = Subformat::Cowd(vec![SIZE / 512]);
    let bare = |mut files: Files, name: &str| {
        let file = files.remove(name).unwrap();
        Files::from([(NAME.to_owned(), file)])
    };
    let sesparse = disk(&Shape { subformat: Subformat::SeSparse, ..shape() });
    vec![
        disk(&zeroed),
        disk(&Shape { tables: Tables::OnDemand, ..shape() }),
        stream(),
        bare(disk(&Shape { subformat: cowd, ..shape() }), "v-delta001.vmdk"),
        bare(sesparse, "v-sesparse.vmdk"),
    ]
});

/// Everything that the reader can do; the answers do not matter here.
fn read_all(files: &Files) {
    let Ok(image) = Image::open(files, NAME) else {
        return;
    };
    // The limits allow more than a test has time for.
    if image.len() < 16 << 20 {
        image.contents().ok();
        image.map().ok();
        image.check().ok();
    }
    image.read(image.len() / 2, 1 << 16).ok();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_disks_never_panic(
        which in 0..5usize,
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..8),
        cut in prop::option::weighted(0.1, any::<Index>()),
    ) {
        let mut files = DISKS[which].clone();
        let file = files.get_mut(NAME).unwrap();
        for (place, value, in_header) in changes {
            let end = if in_header { 256 } else { file.len() };
            file[place.index(end)] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        read_all(&files);
    }

    #[test]
    fn any_text_never_panics(text in "[ -~\n\0]{0,200}", line in "RW [0-9]{1,20} [A-Z]{4} \"v.vmdk\" [0-9]{0,20}") {
        let file = format!("# Disk DescriptorFile\n{text}\n{line}\n");
        read_all(&Files::from([(NAME.to_owned(), file.into_bytes())]));
    }
}

#[test]
fn every_header_byte_may_be_wrong() {
    for files in DISKS.iter() {
        for at in (0..80).chain([128, 144, 192, 512, 536]) {
            let mut files = files.clone();
            files.get_mut(NAME).unwrap()[at] ^= 0x81;
            read_all(&files);
        }
    }
}
