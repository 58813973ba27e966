//! Disks that the kit makes are what was asked for: the naive reader, the naive checker and `qemu-img`
//! agree on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;

use block_core::ByteRange;
use block_core::range::to_usize;
use block_testkit::naive::vmdk::make::{
    Directory, Grain, LineEnds, NAME, Placement, Redundant, Shape, Subformat, Tables, Tail,
    ZeroedGrains,
};
use block_testkit::naive::vmdk::{Files, Image};
use block_testkit::op::contents;
use block_testkit::peer::{ImageDir, Verdict};

/// A disk that ends inside a grain of any size from 2 KiB on.
const SIZE: u64 = (1 << 20) + 1536;
/// Lengths of extents that are no multiples of any grain.
const ODD: [u64; 4] = [701, 9, 641, 700];

fn hosted() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (grain_sectors, gtes_per_gt) in [(8, 512), (8, 8), (16, 1), (128, 512), (128, 4), (256, 3)]
    {
        let plain = Shape { grain_sectors, gtes_per_gt, ..Shape::new(SIZE) };
        for redundant in [Redundant::None, Redundant::Kept, Redundant::Holes, Redundant::Spare] {
            for tables in [Tables::Preallocated, Tables::OnDemand] {
                let placement = match redundant {
                    Redundant::Kept => Placement::Descending,
                    _ => Placement::Ascending,
                };
                shapes.push(Shape { redundant, tables, placement, ..plain.clone() });
            }
        }
        shapes.push(Shape { tail: Tail::Short, line_ends: LineEnds::CrLf, ..plain.clone() });
        let split = Subformat::TwoGbSparse(ODD.into());
        shapes.push(Shape { subformat: split.clone(), ..plain.clone() });
        let (zeroed_grains, tables) = (ZeroedGrains::Yes, Tables::OnDemand);
        shapes.push(Shape { zeroed_grains, ..plain.clone() });
        shapes.push(Shape { subformat: split, zeroed_grains, tables, ..plain.clone() });
        shapes.push(Shape { version: Some(3), ..plain });
    }
    shapes
}

fn others() -> Vec<Shape> {
    let mut shapes = Vec::new();
    let of = |subformat, grain_sectors| Shape { subformat, grain_sectors, ..Shape::new(SIZE) };
    shapes.push(of(Subformat::MonolithicFlat, 8));
    shapes.push(of(Subformat::Vmfs, 8));
    shapes.push(of(Subformat::TwoGbFlat(ODD.into()), 64));
    for grain in [1, 8, 128] {
        for extents in [vec![SIZE / 512], ODD.to_vec()] {
            for tables in [Tables::Preallocated, Tables::OnDemand] {
                let (tail, line_ends) = (Tail::Short, LineEnds::CrLf);
                let cowd = of(Subformat::Cowd(extents.clone()), grain);
                shapes.push(Shape { tables, tail, line_ends, ..cowd.clone() });
                shapes.push(Shape { tables, placement: Placement::Descending, ..cowd });
            }
        }
    }
    for directory in [Directory::InHeader, Directory::InFooter] {
        for (grain, gtes_per_gt) in [(128, 512), (8, 16), (64, 2)] {
            let stream = of(Subformat::StreamOptimized(directory), grain);
            shapes.push(Shape { gtes_per_gt, ..stream.clone() });
            shapes.push(Shape { gtes_per_gt, zeroed_grains: ZeroedGrains::Yes, ..stream });
        }
    }
    shapes.push(of(Subformat::SeSparse, 8));
    shapes.push(Shape { size: 40 << 20, ..of(Subformat::SeSparse, 8) });
    shapes
}

/// Grains of every kind that the shape allows; some at both ends.
fn grains(shape: &Shape) -> BTreeMap<u64, Grain> {
    let sesparse = shape.subformat == Subformat::SeSparse;
    let zeroed = sesparse || shape.zeroed_grains == ZeroedGrains::Yes;
    let places = shape.grains();
    let last = places.len() - 1;
    let mut grains = BTreeMap::new();
    for (at, place) in places.into_iter().enumerate() {
        let number = u64::try_from(at).unwrap();
        let range = ByteRange::new(place.offset, place.len).unwrap();
        // Many grains would take long and say no more.
        if at > 90 && at + 50 < last {
            continue;
        }
        let grain = match at % 8 {
            0 | 5 => Grain::Data(contents(7, range)),
            1 if zeroed => Grain::Zero,
            2 if sesparse => Grain::Unmapped,
            7 => Grain::Data(vec![0; to_usize(place.len)]),
            _ if at == last => Grain::Data(contents(8, range)),
            _ => continue,
        };
        grains.insert(number, grain);
    }
    grains
}

/// What the disk must hold.
fn expected(shape: &Shape, grains: &BTreeMap<u64, Grain>, backing: &[u8]) -> Vec<u8> {
    let mut out = backing[..backing.len().min(to_usize(shape.size))].to_vec();
    out.resize(to_usize(shape.size), 0);
    for (number, place) in (0..).zip(shape.grains()) {
        let target = &mut out[to_usize(place.offset)..to_usize(place.offset + place.len)];
        match grains.get(&number) {
            Some(Grain::Data(bytes)) => target.copy_from_slice(bytes),
            Some(Grain::Zero | Grain::Unmapped) => target.fill(0),
            None => {}
        }
    }
    out
}

/// Holds a disk against both checkers and both readers.
fn check(shape: &Shape, grains: &BTreeMap<u64, Grain>, backing: Option<&Files>) {
    let parent = backing.map(|files| Image::open(files, "base.vmdk").unwrap().contents().unwrap());
    let files = shape.make(grains);
    let mut image = Image::open(&files, NAME).unwrap();
    if let Some(parent) = &parent {
        image = image.with_backing(parent);
    }
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{shape:?}: {report}");
    let ours = image.contents().unwrap();
    assert!(ours == expected(shape, grains, parent.as_deref().unwrap_or_default()), "{shape:?}");
    let dir = ImageDir::new().unwrap();
    for (name, bytes) in files.iter().chain(backing.into_iter().flatten()) {
        dir.write(name, bytes).unwrap();
    }
    assert_eq!(dir.check(NAME).unwrap(), Verdict::Clean, "{shape:?}");
    let mut theirs = dir.raw_contents(NAME, &["-f", "vmdk"]).unwrap();
    for part in misread(shape) {
        theirs[part.clone()].copy_from_slice(&ours[part]);
    }
    let wrong = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!((wrong, ours.len()), (None, theirs.len()), "{shape:?}");
}

/// Where the peer goes on reading in a grain although its extent has ended: behind each extent that is no
/// multiple of a grain.
fn misread(shape: &Shape) -> Vec<std::ops::Range<usize>> {
    let places = shape.grains();
    let last = |extent: usize| places.iter().rfind(|place| place.extent == extent).unwrap();
    let extents = shape.extents().len();
    let ends = (0..extents - 1).map(last).filter(|place| place.len < shape.grain_size());
    ends.map(|place| {
        let end = place.offset + place.len;
        to_usize(end)..to_usize((place.offset + shape.grain_size()).min(shape.size))
    })
    .collect()
}

#[test]
fn empty_disks_of_every_shape() {
    for shape in hosted().into_iter().step_by(3).chain(others()) {
        check(&shape, &BTreeMap::new(), None);
    }
}

#[test]
fn hosted_disks_with_grains_of_every_kind() {
    for shape in hosted() {
        check(&shape, &grains(&shape), None);
    }
}

#[test]
fn other_disks_with_grains_of_every_kind() {
    for shape in others() {
        check(&shape, &grains(&shape), None);
    }
}

#[test]
fn disks_with_parents() {
    for base_size in [300 << 10, SIZE + (100 << 10)] {
        let base = Shape::new(base_size);
        let data = |(at, place): (u64, block_testkit::naive::vmdk::make::GrainPlace)| {
            let range = ByteRange::new(place.offset, place.len).unwrap();
            (at, Grain::Data(contents(3, range)))
        };
        let all = (0..).zip(base.grains()).map(data).collect();
        let mut files = base.make(&all);
        let only = files.remove(NAME).unwrap();
        files.insert("base.vmdk".to_owned(), only);
        let backing = Some(("base.vmdk".to_owned(), base.cid));
        let children = [
            Shape { grain_sectors: 8, ..Shape::new(SIZE) },
            Shape { zeroed_grains: ZeroedGrains::Yes, ..Shape::new(SIZE) },
            Shape { subformat: Subformat::TwoGbSparse(ODD.into()), ..Shape::new(SIZE) },
            Shape {
                subformat: Subformat::Cowd(vec![SIZE / 512]),
                grain_sectors: 1,
                tables: Tables::OnDemand,
                ..Shape::new(SIZE)
            },
            Shape { subformat: Subformat::SeSparse, grain_sectors: 8, ..Shape::new(SIZE) },
        ];
        for shape in children {
            let shape = Shape { backing: backing.clone(), ..shape };
            check(&shape, &grains(&shape), Some(&files));
        }
    }
}
