//! The naive VMDK reader and checker against `qemu-img`: same contents, and nothing found in what it made.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_testkit::naive::vmdk::{Files, Image, contents};
use block_testkit::peer::{ImageDir, Verdict};

/// A disk that ends inside a grain.
const SIZE: &str = "12584448";

const WRITES: &[&str] = &[
    "write -P 1 0 70000",
    "write -P 2 1M 300k",
    "write -P 3 1060000 777",
    "write -z 1200k 64k",
    "write -P 4 1310000 100",
    "write -P 5 10500000 5841",
    "write -P 6 12583936 512",
];

/// All files of the directory whose names end like those of disks.
fn files(dir: &ImageDir) -> Files {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir.path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".vmdk") {
            files.insert(name.clone(), dir.bytes(&name).unwrap());
        }
    }
    files
}

fn make(options: &str, size: &str) -> ImageDir {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "vmdk", "-o", options, "v.vmdk", size]).unwrap();
    dir
}

/// Both readers see the same, and the checker sees nothing wrong.
fn compare(dir: &ImageDir, name: &str, what: &str) {
    let files = files(dir);
    let ours = contents(&files, name, None).unwrap();
    assert!(ours == dir.raw_contents(name, &[]).unwrap(), "{what}");
    assert!(ours.iter().any(|byte| *byte != 0), "{what}");
    let report = Image::open(&files, name).unwrap().check().unwrap();
    assert_eq!(report.errors(), 0, "{what}: {report}");
    assert_eq!(dir.check(name).unwrap(), Verdict::Clean, "{what}");
}

#[test]
fn contents_are_those_that_convert_reads() {
    let shapes = [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
    ];
    for options in shapes {
        let dir = make(options, SIZE);
        dir.qemu_io("v.vmdk", WRITES).unwrap();
        compare(&dir, "v.vmdk", options);
    }
}

#[test]
fn compressed_images_are_read() {
    let dir = ImageDir::new().unwrap();
    let mut raw = vec![0; 700 * 1024];
    for (at, byte) in (0..).zip(&mut raw) {
        *byte = u8::try_from(at / 77 % 251).unwrap() * u8::from(at % 300_000 < 200_000);
    }
    dir.write("raw", &raw).unwrap();
    let options = "subformat=streamOptimized";
    dir.qemu_img(&["convert", "-O", "vmdk", "-o", options, "raw", "v.vmdk"]).unwrap();
    compare(&dir, "v.vmdk", options);
    let files = files(&dir);
    assert_eq!(contents(&files, "v.vmdk", None).unwrap(), raw);
}

#[test]
fn the_parent_shows_through() {
    for (size, base_size) in [("3M", "2M"), ("2M", "3M")] {
        let dir = ImageDir::new().unwrap();
        dir.qemu_img(&["create", "-q", "-f", "vmdk", "base.vmdk", base_size]).unwrap();
        dir.qemu_io("base.vmdk", &["write -P 7 100k 1500k"]).unwrap();
        let args = ["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "v.vmdk", size];
        dir.qemu_img(&args).unwrap();
        dir.qemu_io("v.vmdk", &["write -P 1 1000 70000", "write -P 2 1900k 10k"]).unwrap();
        let files = files(&dir);
        let base = contents(&files, "base.vmdk", None).unwrap();
        let ours = contents(&files, "v.vmdk", Some(&base)).unwrap();
        assert!(ours == dir.raw_contents("v.vmdk", &[]).unwrap());
        let image = Image::open(&files, "v.vmdk").unwrap();
        let parent = Image::open(&files, "base.vmdk").unwrap();
        assert_eq!(image.text().unwrap().parent_cid(), parent.text().unwrap().cid());
    }
}
