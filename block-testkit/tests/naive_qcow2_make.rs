//! Images that the kit makes are what was asked for: the naive reader, the naive checker and `qemu-img`
//! agree on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;

use block_testkit::naive::qcow2::make::{Cluster, L2Entries, Made, Shape};
use block_testkit::naive::qcow2::{Compression, Image};
use block_testkit::op::contents;
use block_testkit::peer::{ImageDir, Verdict};

/// Holds an image against both checkers and both readers.
fn check(dir: &ImageDir, shape: &Shape, made: &Made, backing: &[u8]) {
    let image = Image::open(&made.file).unwrap();
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{shape:?}: {report}");
    assert_eq!(image.header().size, shape.size);
    dir.write("v", &made.file).unwrap();
    dir.write("data", &made.data).unwrap();
    dir.write("base", backing).unwrap();
    assert_eq!(dir.check("v").unwrap(), Verdict::Clean, "{shape:?}");
    let image = image.with_data_file(&made.data).with_backing(backing);
    let ours = image.contents().unwrap();
    assert!(ours == dir.raw_contents("v", &["-f", "qcow2"]).unwrap(), "{shape:?}");
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for refcount_order in 0..=6 {
        shapes.push(Shape { cluster_bits: 10, refcount_order, ..Shape::new((40 << 10) + 512) });
    }
    for cluster_bits in [9, 12, 16, 21] {
        let size = (40u64 << cluster_bits).min(5 << 20) + 512;
        let plain = Shape { cluster_bits, ..Shape::new(size) };
        shapes.push(plain.clone());
        shapes.push(Shape { compression: Compression::Zstd, ..plain.clone() });
        shapes.push(Shape { version: 2, ..plain.clone() });
        let backing = Some(("base".to_owned(), "raw".to_owned()));
        shapes.push(Shape { backing: backing.clone(), ..plain.clone() });
        shapes.push(Shape { version: 2, backing, ..plain.clone() });
        let data_file = Some("data".to_owned());
        shapes.push(Shape { data_file: data_file.clone(), ..plain.clone() });
        if cluster_bits >= 14 {
            let l2_entries = L2Entries::Extended;
            shapes.push(Shape { l2_entries, ..plain.clone() });
            shapes.push(Shape { l2_entries, data_file, ..plain.clone() });
        }
    }
    shapes
}

#[test]
fn empty_images_of_every_geometry() {
    let dir = ImageDir::new().unwrap();
    for shape in shapes() {
        let backing = contents(7, block_core::ByteRange::up_to(5000));
        let backing = if shape.backing.is_some() { &backing[..4608] } else { &[] };
        check(&dir, &shape, &shape.empty(), backing);
    }
}

#[test]
fn images_with_clusters_of_every_kind() {
    let dir = ImageDir::new().unwrap();
    for shape in shapes() {
        let size = usize::try_from(shape.cluster_size()).unwrap();
        let data = |n: u32| {
            let start = u64::from(n) * shape.cluster_size();
            contents(n, block_core::ByteRange::new(start, shape.cluster_size()).unwrap())
        };
        let extended = shape.l2_entries == L2Entries::Extended;
        let mut clusters =
            BTreeMap::from([(0, Cluster::Data(data(1))), (3, Cluster::Data(data(2)))]);
        if shape.version > 2 {
            clusters.insert(1, Cluster::Zero);
            clusters.insert(2, Cluster::ZeroOver(9));
        }
        if shape.data_file.is_none() && shape.cluster_bits < 21 {
            for (at, byte) in [(4, 5), (5, 6), (9, 7)] {
                clusters.insert(at, Cluster::Compressed(vec![byte; size]));
            }
        }
        if extended && shape.cluster_bits < 21 {
            clusters.insert(7, Cluster::Subclusters(data(3), 0xf0f0, 0x0f00_0f0f));
        }
        let last = (shape.size - 1) / shape.cluster_size();
        clusters.insert(last, Cluster::Data(data(4)));
        check(&dir, &shape, &shape.make(&clusters, None), &[]);
        if shape.refcount_order > 0 && shape.data_file.is_none() {
            let made = shape.make(&clusters, Some("first"));
            check(&dir, &shape, &made, &[]);
            let image = Image::open(&made.file).unwrap();
            let snapshot = &image.snapshots().unwrap()[0];
            assert_eq!(snapshot.name, "first");
            let theirs = dir.raw_contents("v", &["-f", "qcow2", "-l", "first"]).unwrap();
            assert!(image.snapshot_contents(snapshot).unwrap() == theirs);
        }
    }
}
