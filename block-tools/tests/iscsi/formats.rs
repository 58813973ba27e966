//! Images in units, and above units: made, written, checked, converted, committed.

use block_testkit::iscsi::{Access, LunConfig};

use super::{MIB, Place, UNMAP, WRITE, WRITE_SAME, count, thick};

/// Writes that are in no order, over the borders of clusters and grains.
const FILL: [&str; 4] =
    ["write -P 1 5M 100k", "write -P 2 7k 3k", "write -P 3 11M 1M", "write -z 5100k 50k"];

/// Fills a unit, so that a new image finds no zeroes there.
fn junk(place: &Place, lun: u16) {
    place.io(&["-f", "raw", &place.url(lun)], &["write -P 0xa5 0 4M"]);
}

#[test]
fn images_are_made_in_units_written_and_checked() {
    for format in ["qcow2", "vmdk"] {
        for block_size in [512, 4096] {
            let lun = LunConfig::thick(block_size, 64 * MIB / u64::from(block_size));
            let place = Place::new(&[lun]);
            let url = place.url(0);
            junk(&place, 0);
            let made = place.img(&["create", "-f", format, &url, "16M"]);
            assert!(made.starts_with(&format!("Formatting '{url}', fmt={format}")), "{made}");
            place.img(&["create", "-q", "-f", "raw", "disk.raw", "16M"]);
            place.same((format, &url), ("raw", "disk.raw"));
            place.io(&["-f", format, &url], &FILL);
            place.io(&["-f", "raw", "disk.raw"], &FILL);
            place.img(&["check", "-f", format, &url]);
            place.same((format, &url), ("raw", "disk.raw"));
            // The format is found by what the unit holds.
            assert!(place.img(&["info", &url]).contains(&format!("file format: {format}\n")));
        }
    }
}

#[test]
fn images_are_converted_into_units_and_out_of_them() {
    let place = Place::new(&[thick(64)]);
    let url = place.url(0);
    place.img(&["create", "-q", "-f", "raw", "disk.raw", "16M"]);
    place.io(&["-f", "raw", "disk.raw"], &FILL);
    for format in ["qcow2", "vmdk"] {
        junk(&place, 0);
        place.img(&["convert", "-f", "raw", "-O", format, "disk.raw", &url]);
        place.img(&["check", "-f", format, &url]);
        place.same((format, &url), ("raw", "disk.raw"));
        place.img(&["convert", "-f", format, "-O", "qcow2", "-c", &url, "copy.qcow2"]);
        place.same(("qcow2", "copy.qcow2"), ("raw", "disk.raw"));
    }
    place.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", &url]);
    place.same(("qcow2", &url), ("raw", "disk.raw"));
}

#[test]
fn create_looks_whether_the_unit_is_there_and_long_enough() {
    let mut protected = thick(4);
    protected.access = Access::ReadOnly;
    let place = Place::new(&[thick(4), protected]);
    let [good, protected, absent] = [0, 1, 7].map(|lun| place.url(lun));
    place.io(&["-f", "raw", &good], &["write -P 9 0 4M"]);
    place.counted();
    let changes =
        |place: &Place| count(&place.counted(), &[&WRITE[..], &WRITE_SAME, &UNMAP].concat());

    for size in ["4M", "1M", "0"] {
        place.img(&["create", "-f", "raw", &good, size]);
    }
    let refused = place.run(&["create", "-f", "raw", &good, "4194816"]);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("'size=4194816': must be at most 0x400000"), "{refused:?}");
    let refused = place.run(&["create", "-f", "raw", &protected, "1M"]);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("Read-only file system"), "{refused:?}");
    for format in ["raw", "qcow2"] {
        assert_eq!(place.run(&["create", "-f", format, &absent, "1M"]).status, 1);
    }
    assert_eq!(place.run(&["create", "-f", "raw", "-o", "nocow=on", &good, "1M"]).status, 1);
    assert_eq!(changes(&place), 0);
    place.io(&["-f", "raw", &good], &["read -P 9 0 4M"]);

    // The disk in an image may be longer than the unit, but what is preallocated may not.
    place.img(&["create", "-f", "qcow2", &good, "1G"]);
    let full = ["create", "-f", "qcow2", "-o", "preallocation=full", &good, "4M"];
    assert_eq!(place.run(&full).status, 1);
    let full = place.run(&["convert", "-f", "raw", "-O", "raw", &good, &protected]);
    assert_eq!(full.status, 1);
}

#[test]
fn an_image_that_fills_its_unit_gets_no_space_and_stays_whole() {
    let place = Place::new(&[thick(2)]);
    let url = place.url(0);
    place.img(&["create", "-f", "qcow2", &url, "16M"]);
    let args = ["-f", "qcow2", &url, "-c", "write -P 1 0 8M"];
    let ended = place.run_with(super::BLOCK_IO, &[], &args);
    assert_eq!(ended.status, 1, "{ended:?}");
    let ended = place.run(&["check", "-f", "qcow2", &url]);
    // What could not be used may be lost, but nothing is wrong.
    assert!(matches!(ended.status, 0 | 3), "{ended:?}");
}

#[test]
fn a_unit_is_a_backing_file_that_the_command_line_names() {
    let place = Place::new(&[thick(16), thick(64)]);
    let [base, top] = [0, 1].map(|lun| place.url(lun));
    place.io(&["-f", "raw", &base], &["write -P 5 0 2M"]);
    place.img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "x", "over.qcow2", "16M"]);
    let opts = format!(
        "driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.driver=iscsi,\
         backing.file.filename={base}"
    );
    place
        .io(&["--image-opts", &opts], &["write -P 6 1M 64k", "read -P 5 0 1M", "read -P 6 1M 64k"]);
    place.img(&["convert", "--image-opts", "-O", "raw", &opts, "whole.raw"]);
    place.io(
        &["-f", "raw", "whole.raw"],
        &["read -P 5 0 1M", "read -P 6 1M 64k", "read -P 0 2M 14M"],
    );
    let chain = place.img(&["map", "--image-opts", "--output", "json", &opts]);
    assert!(chain.contains("\"depth\": 1"), "{chain}");
    place.img(&["commit", "--image-opts", &opts]);
    place.same(("raw", &base), ("raw", "whole.raw"));

    // A name inside an image stays a plain one: beside a unit it is another unit of the same target.
    place.img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "0", &top]);
    place.io(&["-f", "qcow2", &top], &["read -P 6 1M 64k", "write -P 7 3M 1M"]);
    let info = place.img(&["info", &top]);
    assert!(info.contains(&format!("backing file: 0 (actual path: {base})")), "{info}");
    place.img(&["check", "-f", "qcow2", &top]);
    place.img(&["commit", "-f", "qcow2", &top]);
    place.io(&["-f", "raw", &base], &["read -P 7 3M 1M", "read -P 6 1M 64k"]);
    place.img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &base, "bad.qcow2", "16M"]);
    let refused = place.run(&["map", "bad.qcow2"]);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("only plain names are allowed here"), "{refused:?}");
}

#[test]
fn the_length_of_a_unit_is_its_targets_business() {
    let place = Place::new(&[thick(4), thick(16)]);
    let [raw, qcow2] = [0, 1].map(|lun| place.url(lun));
    for args in [&[&raw, "8M"], &["--shrink", &raw, "2M"][..]] {
        let ended = place.run(&[&["resize", "-f", "raw"], args].concat());
        assert_eq!(ended.status, 1, "{args:?}");
        assert!(ended.err.contains("Could not resize the image: "), "{ended:?}");
        assert!(ended.err.contains("not supported"), "{ended:?}");
    }
    place.img(&["resize", "-f", "raw", &raw, "4M"]);
    place.img(&["create", "-q", "-f", "qcow2", &qcow2, "4M"]);
    place.img(&["resize", "-f", "qcow2", &qcow2, "1G"]);
    assert!(place.img(&["info", &qcow2]).contains("virtual size: 1 GiB"));
    place.server.with(|target| target.device_mut().resize(0, 6 * MIB / 512)).unwrap();
    assert!(place.img(&["info", "-f", "raw", &raw]).contains("virtual size: 6 MiB"));
}
