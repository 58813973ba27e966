//! Damaged images: an error that names the field, or a fault of exactly the bytes concerned; never a
//! panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::sync::Arc;

use block_core::driver::{BlockDriver, NodeEvent};
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Error, Node, OpenError};
use block_testkit::naive;
use block_testkit::peer::ImageDir;
use futures::executor::block_on;
use parking_lot::Mutex;
use proptest::prelude::*;
use support::{open_bytes, read};

// The smallest for which the peer writes a feature name table.
const CLUSTER: usize = 8192;

/// An image with everything that a header can point at, and one compressed cluster.
fn sample(options: &str) -> Vec<u8> {
    let dir = ImageDir::new().unwrap();
    let options = format!("cluster_size={CLUSTER},{options}");
    dir.qemu_img(&["create", "-q", "-f", "raw", "base.raw", "1M"]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-o", &options, "-b", "base.raw", "-F", "raw"];
    dir.qemu_img(&[&args[..], &["x.qcow2", "1M"]].concat()).unwrap();
    dir.qemu_io("x.qcow2", &["write -P 1 0 16k", "write -z 32k 8k", "write -c -P 2 64k 8k"])
        .unwrap();
    dir.qemu_img(&["snapshot", "-c", "first", "x.qcow2"]).unwrap();
    if options.contains("1.1") {
        dir.qemu_img(&["bitmap", "--add", "x.qcow2", "dirty"]).unwrap();
    }
    // Copied for the snapshot's sake, so that data follows the tables.
    dir.qemu_io("x.qcow2", &["write -P 3 8k 8k"]).unwrap();
    dir.bytes("x.qcow2").unwrap()
}

fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

fn take(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

/// Reads and maps the start of whatever opened; it may fail, and must not panic.
fn use_it(node: &Node) {
    let len = node.len().min(40 << 10);
    for offset in [0, node.len().saturating_sub(len)] {
        let _ = read(node, offset, len);
        let range = ByteRange::new(offset, len).unwrap();
        let _ = block_on(node.block_status(range, StatusDetail::Zeroes));
    }
    let _ = node.driver().info();
}

/// Whether an error says which field of the image is wrong, or which feature it needs.
fn names_it(error: &OpenError) -> bool {
    match error {
        OpenError::Field { .. } | OpenError::UnsupportedFeature { .. } => true,
        // An image that has lost the name of its data file needs it from the user.
        OpenError::Option { option, .. } => option == "data-file",
        _ => false,
    }
}

/// Name, offset and width of each field of the header.
const FIELDS: [(&str, usize, usize); 20] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing file name offset", 8, 8),
    ("backing file name length", 16, 4),
    ("cluster bits", 20, 4),
    ("disk size", 24, 8),
    ("encryption", 32, 4),
    ("L1 size", 36, 4),
    ("L1 table offset", 40, 8),
    ("refcount table offset", 48, 8),
    ("refcount table clusters", 56, 4),
    ("snapshot count", 60, 4),
    ("snapshot table offset", 64, 8),
    ("incompatible", 72, 8),
    ("compatible", 80, 8),
    ("autoclear", 88, 8),
    ("refcount order", 96, 4),
    ("header length", 100, 4),
    ("compression type", 104, 1),
    ("extension", 112, 8),
];

#[test]
fn every_field_at_its_bounds_is_named_or_served() {
    for options in ["compat=1.1", "compat=0.10"] {
        let good = sample(options);
        use_it(&open_bytes(&good).unwrap());
        for (name, at, width) in FIELDS {
            let all = u64::MAX >> (64 - width * 8);
            let old = take(&good, at, width);
            let near = [old.wrapping_sub(1), old + 1, old ^ 0x200, old << 1, old << 20];
            let bounds = [0, 1, all, all - 1, all >> 1, (all >> 1) + 1, 1 << 16, 1 << (width * 4)];
            for value in bounds.into_iter().chain(near) {
                let mut bytes = good.clone();
                put(&mut bytes, at, width, value & all);
                match open_bytes(&bytes) {
                    Ok(node) => use_it(&node),
                    Err(error) => assert!(names_it(&error), "{name} = {value:#x}: {error}"),
                }
            }
        }
    }
}

#[test]
fn a_field_out_of_bounds_is_the_one_that_is_named() {
    let good = sample("compat=1.1");
    // What the bytes overflow into cannot be told from what they are: these fields are masks.
    let masks = ["compatible", "autoclear", "incompatible"];
    for (name, at, width) in FIELDS.into_iter().filter(|(name, ..)| !masks.contains(name)) {
        let mut bytes = good.clone();
        let all = u64::MAX >> (64 - width * 8);
        put(&mut bytes, at, width, all);
        let error = open_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn every_bit_of_the_first_cluster_flipped_is_no_panic() {
    let good = sample("compat=1.1");
    // The header, and the beginnings of its extensions.
    for at in 0..168 {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            match open_bytes(&bytes) {
                Ok(node) => use_it(&node),
                Err(error) => assert!(names_it(&error), "byte {at} bit {bit}: {error}"),
            }
        }
    }
}

#[test]
fn tables_out_of_the_file_or_on_each_other_are_named() {
    let good = sample("compat=1.1");
    let end = u64::try_from(good.len().next_multiple_of(CLUSTER)).unwrap();
    let [l1, refcounts, snapshots] = [40, 48, 64].map(|at| take(&good, at, 8));
    let check = |at, value, expect: &str| {
        let mut bytes = good.clone();
        put(&mut bytes, at, 8, value);
        let error = open_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(expect), "expected {expect:?} in {error:?}");
    };
    check(40, end, "L1 table offset is");
    check(48, end, "refcount table offset is");
    check(64, end, "snapshot table offset is");
    check(40, refcounts, "refcount table offset is");
    check(48, l1, "overlaps other metadata");
    check(64, l1, "overlaps other metadata");
    check(40, snapshots, "overlaps other metadata");
    check(40, l1 + 8, "L1 table offset is");
}

#[test]
fn truncated_files_are_refused_or_read_as_far_as_they_go() {
    let good = sample("compat=1.1");
    // Where the last table that the header points at begins.
    let last_table = [40, 48, 64].map(|at| take(&good, at, 8)).into_iter().max().unwrap();
    let mut served = 0;
    for len in (0..120).chain((120..=good.len()).step_by(97)).chain([good.len()]) {
        match open_bytes(&good[..len]) {
            Err(error) => assert!(names_it(&error), "{len}: {error}"),
            Ok(node) => {
                assert!(u64::try_from(len).unwrap() > last_table, "{len}: tables are missing");
                served += 1;
                use_it(&node);
            }
        }
    }
    assert!(served > 0, "no length was long enough");
}

#[test]
fn unknown_features_are_named_by_the_image() {
    let mut bytes = sample("compat=1.1");
    put(&mut bytes, 72, 8, 1 << 40 | 1 << 7);
    let error = open_bytes(&bytes).unwrap_err().to_string();
    assert!(error.ends_with("incompatible bit 7, incompatible bit 40"), "{error}");
    // The name table of the image is found by its type; its first entry is renamed to bit 40.
    let kind = [0x68, 0x03, 0xf8, 0x57];
    let table = bytes.windows(4).position(|w| w == kind).unwrap();
    bytes[table + 9] = 40;
    let error = open_bytes(&bytes).unwrap_err().to_string();
    assert!(error.ends_with("incompatible bit 7, dirty bit"), "{error}");
}

#[test]
fn marks_of_unclean_use_do_not_stop_a_reader() {
    let mut bytes = sample("compat=1.1");
    put(&mut bytes, 72, 8, 0b11);
    put(&mut bytes, 80, 8, u64::MAX);
    let node = open_bytes(&bytes).unwrap();
    assert_eq!(read(&node, 8192, 1).unwrap(), [3]);
    assert!(node.driver().info().dirty);
}

/// An open image whose events are kept.
fn watched(bytes: &[u8]) -> (Node, Arc<Mutex<Vec<NodeEvent>>>) {
    let node = open_bytes(bytes).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    node.on_event(move |event| sink.lock().push(event));
    (node, events)
}

#[test]
fn a_damaged_entry_fails_its_own_bytes_and_is_reported_once() {
    let good = sample("compat=1.1");
    let l1 = usize::try_from(take(&good, 40, 8)).unwrap();
    let l2 = usize::try_from(take(&good, l1, 8) & 0x00ff_ffff_ffff_fe00).unwrap();
    let far = 1u64 << 50;
    let compressed = 1u64 << 62;
    let cases = [
        (l1, far, 0, "L2 table beyond the end of the file", false),
        (l1, 0x1234_0600, 0, "unaligned L2 table offset", false),
        (l1, 1 << 60 | 8192, 0, "L1 entry with reserved bits", false),
        (l2 + 8, 8192 + 512, 8192, "unaligned cluster offset", true),
        (l2 + 8, 1 << 58, 8192, "L2 entry with reserved bits", true),
        (l2 + 8, compressed | 1 << 40, 8192, "compressed cluster beyond the end", true),
        (l2 + 8, compressed | 8192, 8192, "damaged compressed cluster", true),
    ];
    for (at, entry, offset, expect, neighbour) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, at, 8, entry);
        let (node, events) = watched(&bytes);
        for len in [1, 512, 8192] {
            let error = read(&node, offset, len).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(expect), "{expect}: {error}");
        }
        assert!(read(&node, 0, 128 << 10).is_err());
        // Lost guest data says nothing of the metadata.
        let reported = usize::from(expect != "damaged compressed cluster");
        assert_eq!(events.lock().len(), reported, "{expect}");
        if neighbour {
            assert_eq!(read(&node, 0, 8192).unwrap(), [1; 8192]);
            assert_eq!(read(&node, 64 << 10, 8192).unwrap(), [2; 8192]);
        }
    }
}

#[test]
fn an_image_opened_for_reading_refuses_writes() {
    let node = open_bytes(&sample("compat=1.1")).unwrap();
    assert!(node.is_read_only());
    let driver: Arc<dyn BlockDriver> = Arc::clone(node.driver());
    let range = ByteRange::up_to(512);
    let written = driver.pwritev(range, Default::default(), Default::default());
    assert_eq!(block_on(written), Err(Error::ReadOnly));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Where the slow reader has an answer for a damaged image, the driver has the same or refuses.
    #[test]
    fn damage_anywhere_is_refused_or_read_like_the_slow_reader(
        pokes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_tables: bool,
    ) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let good = GOOD.get_or_init(|| sample("compat=1.1"));
        let mut bytes = good.clone();
        for (at, value) in pokes {
            let at = if in_tables {
                // The first entries of each cluster, where tables have their contents.
                let cluster = at.index(bytes.len() / CLUSTER);
                cluster * CLUSTER + at.index(12 * 8)
            } else {
                at.index(bytes.len())
            };
            bytes[at] = value;
        }
        let Ok(node) = open_bytes(&bytes) else { return Ok(()) };
        use_it(&node);
        let base = vec![0; 1 << 20];
        let slow = naive::qcow2::Image::open(&bytes).map(|image| image.with_backing(&base));
        let len = node.len().min(128 << 10);
        let slow = slow.and_then(|image| image.read(0, len));
        if let (Ok(fast), Ok(slow)) = (read(&node, 0, len), slow) {
            prop_assert!(fast == slow, "contents differ");
        }
    }
}
