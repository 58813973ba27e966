//! The images that block-img and qemu-img must agree on, as commands that make them.
//!
//! Commands run in a directory of the case's own, from which `../a.raw` and so on are guest disks.
//! The image is always called `image`.

/// Length of the guest disk `a`: no multiple of any cluster size but 512.
pub(super) const A_LEN: u64 = (12 << 20) + 7 * 512;
/// Length of the guest disk `b`, shorter than `a`.
pub(super) const B_LEN: u64 = (7 << 20) + 4096 + 512;
/// Length of the guest disk `c`, longer than `a`.
pub(super) const C_LEN: u64 = (17 << 20) + 3 * 512;
/// Length of the guest disk `d`, for images that take qemu-img long to make.
pub(super) const D_LEN: u64 = (3 << 20) + 5 * 512;

/// An image.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Unique; the name of its directory.
    pub(super) name: String,
    /// Its format.
    pub(super) format: &'static str,
    /// From where the tools open it.
    pub(super) opened_from: Place,
    /// Files that are there before, with their texts.
    pub(super) files: Vec<(&'static str, String)>,
    /// How it is made, each as [`crate::run::words`] takes it; `block-img` is the program under test.
    pub(super) commands: Vec<String>,
    /// The guest disk that it must hold, where that is one.
    pub(super) holds: Option<&'static str>,
    /// `check` of either program must find nothing.
    pub(super) checked: bool,
    /// libvmdk must read it, too.
    pub(super) libvmdk: bool,
}

/// A directory, seen from the image.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The one above: names of backing files inside images must be taken relative to the image.
    Above,
    /// The image's own: qemu-img takes names of data files relative to where it was started.
    Beside,
}

impl Case {
    pub(super) fn new(name: impl Into<String>, format: &'static str, commands: &[&str]) -> Self {
        Self {
            name: name.into(),
            format,
            opened_from: Place::Above,
            files: Vec::new(),
            commands: commands.iter().map(|text| (*text).to_owned()).collect(),
            holds: None,
            checked: false,
            libvmdk: false,
        }
    }

    fn qcow2(name: impl Into<String>, commands: &[&str]) -> Self {
        Self::new(name, "qcow2", commands)
    }

    /// With a data file.
    fn with_data_file(name: impl Into<String>, commands: &[&str]) -> Self {
        Self { opened_from: Place::Beside, ..Self::qcow2(name, commands) }
    }

    /// `a.raw` converted with these options.
    fn converted(name: impl Into<String>, options: &str) -> Self {
        let command = format!("qemu-img convert -f raw -O qcow2 {options} ../a.raw image");
        Self::qcow2(name, &[&command])
    }
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [
        versions(),
        clusters(),
        refcounts(),
        preallocated(),
        zeroes(),
        subclusters(),
        chains(),
        short_chains(),
        snapshots(),
        data_files(),
        raw(),
        small(),
        super::vmdk::cases(),
    ]
    .concat()
}

fn versions() -> Vec<Case> {
    vec![
        Case::converted("v2", "-o compat=0.10"),
        Case::converted("v2-zlib", "-c -o compat=0.10"),
        Case::converted("v3", "-o compat=1.1"),
        Case::converted("v3-zlib", "-c"),
        Case::converted("v3-zstd", "-c -o compression_type=zstd"),
        Case::converted("v3-lazy", "-o lazy_refcounts=on"),
        Case::qcow2(
            "v3-zlib-and-plain",
            &[
                "qemu-img convert -f raw -O qcow2 -c ../a.raw image",
                "qemu-io -f qcow2 image | write -P 7 100k 300k | write -P 9 5M 1000k | write -z 6M 1M",
            ],
        ),
        Case::qcow2(
            "v3-bitmaps",
            &[
                "qemu-img convert -f raw -O qcow2 ../a.raw image",
                "qemu-img bitmap --add image first",
                "qemu-img bitmap --add --disable -g 128k image second",
                "qemu-io -f qcow2 image | write -P 7 1M 64k",
            ],
        ),
    ]
}

/// Every cluster size, not compressed, zlib and zstd.
fn clusters() -> Vec<Case> {
    let sizes = (9..=21).map(|bits| 1u32 << bits);
    sizes
        .flat_map(|size| {
            let guest = if size < 8192 { "d" } else { "a" };
            let image = |kind: &str, options: &str| {
                let command = format!(
                    "qemu-img convert -f raw -O qcow2 {options} -o cluster_size={size} \
                     ../{guest}.raw image"
                );
                Case::qcow2(format!("cluster-{size}{kind}"), &[&command])
            };
            [image("", ""), image("-zlib", "-c"), image("-zstd", "-c -o compression_type=zstd")]
        })
        .collect()
}

fn refcounts() -> Vec<Case> {
    let widths = (0..=6).map(|order| 1u32 << order);
    widths
        .map(|bits| {
            let name = format!("refcount-{bits}");
            Case::converted(name, &format!("-o refcount_bits={bits}"))
        })
        .collect()
}

fn preallocated() -> Vec<Case> {
    let modes = ["metadata", "falloc", "full"];
    modes
        .iter()
        .map(|mode| {
            let create = format!("qemu-img create -q -f qcow2 -o preallocation={mode} image 9M");
            let fill = "qemu-io -f qcow2 image | write -P 3 1M 500k | write -z 2M 1M";
            Case::qcow2(format!("preallocated-{mode}"), &[&create, fill])
        })
        .collect()
}

fn zeroes() -> Vec<Case> {
    let convert = "qemu-img convert -f raw -O qcow2 ../a.raw image";
    vec![
        Case::qcow2(
            "zeroes-allocated",
            &[convert, "qemu-io -f qcow2 image | write -z 0 1M | write -z 3M 100k"],
        ),
        Case::qcow2(
            "zeroes-unmapped",
            &[convert, "qemu-io -f qcow2 -d unmap image | write -z -u 1M 2M"],
        ),
        Case::qcow2(
            "discarded",
            &[convert, "qemu-io -f qcow2 -d unmap image | discard 1M 2M | discard 5M 64k"],
        ),
        Case::qcow2(
            "v2-discarded",
            &[
                "qemu-img convert -f raw -O qcow2 -o compat=0.10 ../a.raw image",
                "qemu-io -f qcow2 -d unmap image | discard 1M 2M",
            ],
        ),
        Case::qcow2(
            "zeroes-over-backing",
            &[
                "qemu-img convert -f raw -O qcow2 ../a.raw base",
                "qemu-img create -q -f qcow2 -b base -F qcow2 image",
                "qemu-io -f qcow2 -d unmap image | write -z 1M 1M | write -z -u 4M 70k | write -P 1 6M 3k",
            ],
        ),
    ]
}

fn subclusters() -> Vec<Case> {
    let sizes = (14..=21).map(|bits| 1u32 << bits);
    let mut cases: Vec<Case> = sizes
        .map(|size| {
            let options = format!("-o extended_l2=on,cluster_size={size}");
            Case::converted(format!("extended-l2-{size}"), &options)
        })
        .collect();
    cases.push(Case::converted("extended-l2-zlib", "-c -o extended_l2=on"));
    cases.push(Case::qcow2(
        "extended-l2-over-backing",
        &[
            "qemu-img convert -f raw -O qcow2 ../a.raw base",
            "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b base -F qcow2 image",
            "qemu-io -f qcow2 -d unmap image | write -P 1 0 4k | write -P 2 132k 8k | write -z 260k 12k \
             | write -z -u 1M 20k | discard 2M 128k | write -P 3 3000k 200k",
        ],
    ));
    cases
}

/// Three images deep, of different lengths, as qcow2 over qcow2 and over raw.
fn chains() -> Vec<Case> {
    let fill_mid = "qemu-io -f qcow2 mid | write -P 21 500k 1M | write -z 3M 300k";
    let fill_top = "qemu-io -f qcow2 image | write -P 31 1M 100k | write -z 2M 2M";
    let chain = |name: &str, base: &str, format: &str, mid: &str, top: &str| {
        let mid = format!("qemu-img create -q -f qcow2 -b base -F {format} mid {mid}");
        let top = format!("qemu-img create -q -f qcow2 -b mid -F qcow2 image {top}");
        Case::qcow2(name, &[base, &mid, fill_mid, &top, fill_top])
    };
    let qcow2 = "qemu-img convert -f raw -O qcow2 ../a.raw base";
    let zlib = "qemu-img convert -f raw -O qcow2 -c ../c.raw base";
    let small = "qemu-img convert -f raw -O qcow2 -o cluster_size=4k ../b.raw base";
    let copied = "qemu-img convert -f raw -O raw ../b.raw base";
    vec![
        chain("chain-same", qcow2, "qcow2", "", ""),
        chain("chain-growing", small, "qcow2", "9M", "20M"),
        chain("chain-shrinking", zlib, "qcow2", "11M", "5M"),
        chain("chain-short-middle", zlib, "qcow2", "6M", "18M"),
        chain("chain-long-middle", small, "qcow2", "15M", "8M"),
        chain("chain-raw-shorter", copied, "raw", "10M", "16M"),
        chain("chain-raw-longer", copied, "raw", "6M", "6M"),
        chain("chain-sectors", copied, "raw", "8M", "8389120"),
    ]
}

fn short_chains() -> Vec<Case> {
    vec![
        Case::qcow2(
            "backing-odd-raw",
            &[
                "qemu-img create -q -f raw base 1048000",
                "qemu-io -f raw base | write -P 5 0 1047552",
                "qemu-img create -q -f qcow2 -b base -F raw image 2M",
                "qemu-io -f qcow2 image | write -P 6 64k 1k",
            ],
        ),
        Case::qcow2(
            "backing-compressed-overlay",
            &[
                "qemu-img convert -f raw -O qcow2 -c ../b.raw base",
                "qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd -B base -F qcow2 ../a.raw image",
            ],
        ),
        Case::qcow2(
            "backing-compressed-writes",
            &[
                "qemu-img convert -f raw -O qcow2 -c ../a.raw base",
                "qemu-img create -q -f qcow2 -o compression_type=zstd -b base -F qcow2 image",
                "qemu-io -f qcow2 image | write -c -s ../b.raw 1M 3M | write -P 6 2M 5k",
            ],
        ),
        Case::qcow2(
            "backing-v2",
            &[
                "qemu-img convert -f raw -O qcow2 -o compat=0.10 ../c.raw base",
                "qemu-img create -q -f qcow2 -o compat=0.10 -b base -F qcow2 image 6M",
                "qemu-io -f qcow2 image | write -P 6 64k 70k",
            ],
        ),
        Case::qcow2(
            "backing-shared-clusters",
            &[
                "qemu-img convert -f raw -O qcow2 -o cluster_size=512 ../b.raw base",
                "qemu-img create -q -f qcow2 -o cluster_size=2M -b base -F qcow2 image 13M",
                "qemu-io -f qcow2 image | write -P 6 64k 70k | write -P 8 12M 1M",
            ],
        ),
    ]
}

fn snapshots() -> Vec<Case> {
    let write = "qemu-io -f qcow2 image | write -P 40 0 1M | write -z 3M 1M";
    vec![
        Case::qcow2(
            "snapshots",
            &[
                "qemu-img convert -f raw -O qcow2 ../a.raw image",
                "qemu-img snapshot -c one image",
                write,
                "qemu-img snapshot -c two image",
                "qemu-io -f qcow2 image | write -P 41 500k 1M | discard 6M 1M",
            ],
        ),
        Case::qcow2(
            "snapshots-v2",
            &[
                "qemu-img convert -f raw -O qcow2 -o compat=0.10 ../a.raw image",
                "qemu-img snapshot -c one image",
                write,
            ],
        ),
        Case::qcow2(
            "snapshots-zlib-applied",
            &[
                "qemu-img convert -f raw -O qcow2 -c ../a.raw image",
                "qemu-img snapshot -c one image",
                write,
                "qemu-img snapshot -c two image",
                "qemu-img snapshot -a one image",
                "qemu-io -f qcow2 image | write -P 42 900k 1M",
            ],
        ),
        Case::qcow2(
            "snapshots-of-another-size",
            &[
                "qemu-img convert -f raw -O qcow2 ../a.raw image",
                "qemu-img snapshot -c one image",
                "qemu-img resize -q image 20M",
                "qemu-io -f qcow2 image | write -P 43 18M 1M",
            ],
        ),
    ]
}

fn data_files() -> Vec<Case> {
    vec![
        Case::with_data_file(
            "data-file",
            &[
                "qemu-img create -q -f qcow2 -o data_file=data image 12M",
                "qemu-img convert -n -f raw -O qcow2 ../b.raw image",
                "qemu-io -f qcow2 image | write -z 1M 1M",
            ],
        ),
        Case::with_data_file(
            "data-file-raw",
            &[
                "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image 12M",
                "qemu-img convert -n -f raw -O qcow2 ../b.raw image",
            ],
        ),
        Case::with_data_file(
            "data-file-over-backing",
            &[
                "qemu-img convert -f raw -O qcow2 -c ../a.raw base",
                "qemu-img create -q -f qcow2 -o data_file=data -b base -F qcow2 image 14M",
                "qemu-io -f qcow2 image | write -P 9 1M 1M | write -z 3M 1M",
            ],
        ),
    ]
}

fn raw() -> Vec<Case> {
    vec![
        Case::new("raw-with-holes", "raw", &["qemu-img convert -f raw -O raw ../a.raw image"]),
        Case::new("raw-full", "raw", &["qemu-img convert -S 0 -f raw -O raw ../b.raw image"]),
        Case::new("raw-empty", "raw", &["qemu-img create -q -f raw image 5M"]),
    ]
}

fn small() -> Vec<Case> {
    vec![
        Case::qcow2("no-length", &["qemu-img create -q -f qcow2 image 0"]),
        Case::qcow2(
            "one-sector",
            &["qemu-img create -q -f qcow2 image 512", "qemu-io -f qcow2 image | write -P 1 0 512"],
        ),
        Case::qcow2("nothing-written", &["qemu-img create -q -f qcow2 image 1G"]),
        Case::qcow2(
            "far-apart",
            &[
                "qemu-img create -q -f qcow2 image 2T",
                "qemu-io -f qcow2 image | write -P 1 0 1k | write -P 2 1T 64k | write -P 3 2199023190016 65536",
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let cases = cases();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn every_kind_of_image_is_there() {
        let all: String = cases().iter().flat_map(|case| case.commands.clone()).collect();
        for part in [
            "compat=0.10",
            "compression_type=zstd",
            "cluster_size=512",
            "cluster_size=2097152",
            "extended_l2=on",
            "refcount_bits=1 ",
            "refcount_bits=64",
            "snapshot -c",
            "data_file=",
            "data_file_raw=on",
            "preallocation=metadata",
            "-F raw",
            "write -z",
            "subformat=monolithicFlat",
            "subformat=twoGbMaxExtentSparse",
            "subformat=streamOptimized",
            "zeroed_grain=on",
            "block-img convert -f raw -O vmdk",
        ] {
            assert!(all.contains(part), "{part}");
        }
    }
}
