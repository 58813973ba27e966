//! VMDK images: those that qemu-img makes, those that block-img makes, and what libvmdk reads of them.
//!
//! The inner extents of a disk made of several are whole grains, and what is written over a backing file
//! is whole grains, too: elsewhere qemu-img itself goes wrong.

use std::path::Path;

use super::images::{A_LEN, Case};
use super::written::COMPARES;
use super::{Finding, attempt};
use crate::failure::Result;
use crate::{run, setup};

/// Every subformat that qemu-img makes.
const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

/// Opens an image with libvmdk.
const LIBVMDK_OPENS: &str = r#"
import sys
import pyvmdk

image = pyvmdk.handle()
image.open(sys.argv[1])
image.open_extent_data_files()
"#;

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [converted(), options(), written(), zeroes(), chains(), extents(), small(), ours()].concat()
}

/// What libvmdk says of an image whose contents are in `raw`.
pub(super) fn read_by_libvmdk(
    directory: &Path,
    image: &str,
    raw: &str,
    finding: &mut Finding,
) -> Result<()> {
    let mut read = run::command(setup::PYTHON);
    read.args(["-c", &format!("{LIBVMDK_OPENS}{COMPARES}"), image, raw]);
    attempt(read.current_dir(directory), finding)?;
    attempt(run::command("vmdkinfo").arg(image).current_dir(directory), finding)?;
    Ok(())
}

impl Case {
    /// An image that libvmdk reads, too.
    fn vmdk(name: impl AsRef<str>, commands: &[&str]) -> Self {
        Self { libvmdk: true, ..Self::vmdk_for_qemu(name, commands) }
    }

    /// An image that libvmdk cannot read: it has a backing file, or zeroed grains, for whose entries libvmdk
    /// reads sector 1, or flat extents that do not start where their files do, or extents of two kinds.
    fn vmdk_for_qemu(name: impl AsRef<str>, commands: &[&str]) -> Self {
        let name = format!("vmdk-{}", name.as_ref());
        Self { checked: true, ..Self::new(name, "vmdk", commands) }
    }

    /// A disk whose extents are made by `commands` and listed in a descriptor.
    fn of_extents(name: &str, create_type: &str, extents: &[&str], commands: &[&str]) -> Self {
        let descriptor = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1f2e3d4c\nparentCID=ffffffff\n\
             createType=\"{create_type}\"\n\n# Extent description\n{}\n\n\
             # The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n",
            extents.join("\n")
        );
        Self { files: vec![("image", descriptor)], ..Self::vmdk_for_qemu(name, commands) }
    }
}

fn converted() -> Vec<Case> {
    let image = |guest: &str, subformat: &str| {
        let options = format!("-O vmdk -o subformat={subformat}");
        let command = format!("qemu-img convert -f raw {options} ../{guest}.raw image");
        Case::vmdk(format!("{subformat}-{guest}"), &[&command])
    };
    SUBFORMATS.iter().flat_map(|subformat| ["a", "b", "d"].map(|g| image(g, subformat))).collect()
}

fn options() -> Vec<Case> {
    let image = |name: &str, options: &str| {
        let command = format!("qemu-img convert -f raw -O vmdk -o {options} ../a.raw image");
        Case::vmdk(name, &[&command])
    };
    vec![
        image("zeroed-grain", "zeroed_grain=on"),
        image("zeroed-grain-2gb", "zeroed_grain=on,subformat=twoGbMaxExtentSparse"),
        image("compat6", "compat6=on"),
        image("compat6-stream", "compat6=on,subformat=streamOptimized"),
        image("lsilogic", "adapter_type=lsilogic,hwversion=11,toolsversion=9000"),
        image("legacy-flat", "adapter_type=legacyESX,subformat=monolithicFlat"),
    ]
}

/// Written a piece at a time, so that grains are in no order.
fn written() -> Vec<Case> {
    let fill = "qemu-io -f vmdk image | write -P 1 5M 100k | write -P 2 7k 3k | write -P 3 11M 1M \
                | write -P 4 5000k 200k | write -P 5 12586000 496";
    let sparse = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"];
    let mut cases: Vec<Case> = sparse
        .iter()
        .map(|subformat| {
            let create =
                format!("qemu-img create -q -f vmdk -o subformat={subformat} image {A_LEN}");
            Case::vmdk(format!("{subformat}-written"), &[&create, fill])
        })
        .collect();
    let create = format!("qemu-img create -q -f vmdk -o subformat=streamOptimized image {A_LEN}");
    let fill =
        "qemu-io -f vmdk image | write -P 1 5M 128k | write -P 2 64k 64k | write -P 3 11M 1M";
    cases.push(Case::vmdk("streamOptimized-written", &[&create, fill]));
    cases
}

fn zeroes() -> Vec<Case> {
    let convert = "qemu-img convert -f raw -O vmdk -o zeroed_grain=on ../a.raw image";
    let zero = "qemu-io -f vmdk image | write -z 1M 2M | write -z 4M 100k | write -z 6M 64k";
    // qemu-io leaves the grains behind that were there; a check of ours says so.
    let zeroed =
        |name, commands: &[&str]| Case { checked: false, ..Case::vmdk_for_qemu(name, commands) };
    vec![
        zeroed("zeroes-as-grains", &[convert, zero]),
        zeroed("zeroes-written-over", &[convert, zero, "qemu-io -f vmdk image | write -P 5 2M 3k"]),
        Case::vmdk(
            "zeroes-as-data",
            &[
                "qemu-img convert -f raw -O vmdk ../a.raw image",
                "qemu-io -f vmdk image | write -z 1M 2M | write -z 4M 100k",
            ],
        ),
        Case::vmdk_for_qemu(
            "zeroes-over-backing",
            &[
                "qemu-img convert -f raw -O vmdk ../a.raw base",
                "qemu-img create -q -f vmdk -o zeroed_grain=on -b base -F vmdk image",
                "qemu-io -f vmdk image | write -z 1M 1M | write -z 4M 128k | write -P 1 6M 64k",
            ],
        ),
    ]
}

/// Two and three images deep, of equal and of different lengths.
fn chains() -> Vec<Case> {
    let fill_mid = "qemu-io -f vmdk mid | write -P 21 512k 1M | write -P 22 3M 64k";
    let fill_top = "qemu-io -f vmdk image | write -P 31 1M 128k | write -P 32 4M 512k";
    let two = |name: &str, base: &str, options: &str, len: &str| {
        let base = format!("qemu-img convert -f raw -O vmdk -o {base} ../a.raw base");
        let top = format!("qemu-img create -q -f vmdk -o {options} -b base -F vmdk image {len}");
        Case::vmdk_for_qemu(name, &[&base, &top, fill_top])
    };
    let three = |name: &str, guest: &str, mid: &str, top: &str| {
        let base = format!("qemu-img convert -f raw -O vmdk ../{guest}.raw base");
        let mid = format!("qemu-img create -q -f vmdk -b base -F vmdk mid {mid}");
        let top = format!("qemu-img create -q -f vmdk -b mid -F vmdk image {top}");
        Case::vmdk_for_qemu(name, &[&base, &mid, fill_mid, &top, fill_top])
    };
    let (sparse, flat) = ("subformat=monolithicSparse", "subformat=monolithicFlat");
    let (split, stream) = ("subformat=twoGbMaxExtentSparse", "subformat=streamOptimized");
    vec![
        two("chain-same", sparse, sparse, ""),
        two("chain-over-flat", flat, sparse, ""),
        two("chain-over-stream", stream, sparse, ""),
        two("chain-over-2gb", split, sparse, "13M"),
        two("chain-2gb", sparse, split, ""),
        two("chain-longer", sparse, sparse, "20M"),
        two("chain-shorter", sparse, sparse, "6M"),
        three("chain-three", "a", "", ""),
        three("chain-three-growing", "b", "9M", "20M"),
        three("chain-three-short-middle", "c", "6M", "18M"),
        Case::vmdk_for_qemu(
            "chain-of-extents",
            &[
                "qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse base 5G",
                "qemu-io -f vmdk base | write -P 1 2047M 2M | write -P 2 4095M 1M | write -P 3 4096M 64k",
                "qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse -b base -F vmdk image",
                "qemu-io -f vmdk image | write -P 4 2048M 64k | write -P 5 4096M 1M",
            ],
        ),
    ]
}

/// Several extents of one disk: as long as they are made, and short ones.
fn extents() -> Vec<Case> {
    let part = |name: &str, sectors: u32| {
        let bytes = u64::from(sectors) * 512;
        format!("qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse {name} {bytes}")
    };
    let (one, two, three) = (part("one", 6144), part("two", 10368), part("three", 8071));
    let fill = "qemu-img convert -n -f raw -O vmdk ../a.raw image";
    let far = "qemu-io -f vmdk image | write -P 1 0 64k | write -P 2 2047M 2M | write -P 3 4095M 2M \
               | write -P 4 5119M 1M";
    let long = |subformat: &str| {
        let create = format!("qemu-img create -q -f vmdk -o subformat={subformat} image 5G");
        // Five gigabytes are more than libvmdk is asked to read.
        Case::vmdk_for_qemu(format!("{subformat}-extents"), &[&create, far])
    };
    vec![
        long("twoGbMaxExtentSparse"),
        long("twoGbMaxExtentFlat"),
        Case {
            libvmdk: true,
            ..Case::of_extents(
                "extents-sparse",
                "twoGbMaxExtentSparse",
                &[
                    "RW 6144 SPARSE \"one-s001\"",
                    "RW 10368 SPARSE \"two-s001\"",
                    "RW 8071 SPARSE \"three-s001\"",
                ],
                &[&one, &two, &three, fill],
            )
        },
        Case::of_extents(
            "extents-flat",
            "twoGbMaxExtentFlat",
            &["RW 6144 FLAT \"one\" 0", "RW 10368 FLAT \"two\" 77", "RW 8071 FLAT \"three\" 3"],
            &[
                "qemu-img create -q -f raw one 3M",
                "qemu-img create -q -f raw two 6M",
                "qemu-img create -q -f raw three 5M",
                fill,
            ],
        ),
        Case::of_extents(
            "extents-of-both-kinds",
            "twoGbMaxExtentSparse",
            &["RW 6144 SPARSE \"one-s001\"", "RW 18439 FLAT \"two\" 128"],
            &[&one, "qemu-img create -q -f raw two 10M", fill],
        ),
    ]
}

fn small() -> Vec<Case> {
    let one = "qemu-io -f vmdk image | write -P 1 0 512";
    vec![
        Case::vmdk("one-sector", &["qemu-img create -q -f vmdk image 512", one]),
        Case::vmdk(
            "one-sector-flat",
            &["qemu-img create -q -f vmdk -o subformat=monolithicFlat image 512", one],
        ),
        Case::vmdk(
            "one-sector-stream",
            &["qemu-img create -q -f vmdk -o subformat=streamOptimized image 512", one],
        ),
        Case::vmdk("nothing-written", &["qemu-img create -q -f vmdk image 64M"]),
        Case::vmdk_for_qemu(
            "far-apart",
            &[
                "qemu-img create -q -f vmdk image 100G",
                "qemu-io -f vmdk image | write -P 1 0 1k | write -P 2 50G 64k | write -P 3 107374116864 65536",
            ],
        ),
    ]
}

/// Made by block-img.
fn ours() -> Vec<Case> {
    let holding = |guest, case: Case| Case { holds: Some(guest), ..case };
    let image = |guest: &'static str, name: String, options: &str| {
        let command = format!("block-img convert -f raw -O vmdk {options} ../{guest}.raw image");
        holding(guest, Case::vmdk(format!("ours-{name}-{guest}"), &[&command]))
    };
    let mut cases: Vec<Case> = SUBFORMATS
        .iter()
        .flat_map(|subformat| {
            ["a", "b", "d"].map(|guest| {
                image(guest, (*subformat).to_owned(), &format!("-o subformat={subformat}"))
            })
        })
        .collect();
    for (name, options) in [
        ("zeroed-grain", "-o zeroed_grain=on"),
        ("compat6", "-o compat6=on"),
        ("lsilogic", "-o adapter_type=lsilogic,hwversion=11,toolsversion=9000"),
        ("whole", "-S 0"),
        ("out-of-order", "-W -m 8"),
    ] {
        cases.push(image("a", name.to_owned(), options));
    }
    cases.push(holding(
        "a",
        Case::vmdk_for_qemu(
            "ours-over-backing",
            &[
                "block-img convert -f raw -O vmdk ../b.raw base",
                "block-img convert -f raw -O vmdk -B base -F vmdk ../a.raw image",
            ],
        ),
    ));
    cases
}
