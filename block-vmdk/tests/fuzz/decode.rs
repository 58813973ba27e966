//! The decoders of VMDK's structures. Each answers any bytes with a value or an error; what it understood is
//! written back as the same.

use block_testkit::fuzz::{Bytes, Target, noise};
use block_testkit::naive::vmdk::make::NAME;
use block_vmdk::compress;
use block_vmdk::descriptor::{Descriptor, Quoted};
use block_vmdk::spec::cowd::CowdHeader;
use block_vmdk::spec::marker::{Marker, MetadataKind, MetadataMarker};
use block_vmdk::spec::sesparse::{self, SeSparseHeader, VolatileHeader};
use block_vmdk::spec::sparse::SparseHeader;
use block_vmdk::units::{ContentId, SectorCount};

use super::damaged::samples;
use super::kit::setups;

pub const HEADER: Target =
    Target { name: "vmdk-header", body: header, seeds: headers, max_len: 600 };
pub const DESCRIPTOR: Target =
    Target { name: "vmdk-descriptor", body: descriptor, seeds: descriptors, max_len: 4096 };
pub const MARKERS: Target =
    Target { name: "vmdk-markers", body: markers, seeds: marked, max_len: 1024 };

/// First sectors of every kind of file; those of seSparse extents are written here.
fn headers() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for sample in samples() {
        let mut file = sample.file().to_vec();
        file.truncate(512);
        seeds.push(file);
    }
    let words: [u64; 26] = [
        0xcafe_babe,
        0x2_0000_0001,
        0x1000,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        1,
        3,
        1,
        4,
        1,
        5,
        2,
        7,
        2,
        9,
        2,
        16,
        0x1000,
    ];
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.resize(512, 0);
    seeds.push(file);
    seeds.push(0xcafe_cafe_u64.to_le_bytes().into_iter().chain([0; 504]).collect());
    seeds
}

/// Headers of hosted, COWD and seSparse extents: what is taken is within its bounds, and is written back as it was
/// read.
fn header(input: &[u8]) {
    let lens = [0, 512, 1 << 20, 1 << 40, u64::MAX];
    if let Ok(header) = SparseHeader::parse(input) {
        assert!(header.grain_size().0.is_power_of_two() && header.gtes_per_gt() > 0);
        let _ = lens.map(|len| header.check_file_len(len).is_ok());
        assert!(header.gd_entries().saturating_mul(header.gt_coverage().0) >= header.capacity().0);
        assert_eq!(SparseHeader::parse(&header.to_bytes()), Ok(header));
    }
    if let Ok(header) = CowdHeader::parse(input) {
        let _ = lens.map(|len| header.check_file_len(len).is_ok());
        assert!(header.gd_entries().saturating_mul(header.gt_coverage().0) >= header.capacity().0);
        assert_eq!(CowdHeader::parse(&header.to_bytes()), Ok(header));
    }
    if let Ok(header) = SeSparseHeader::parse(input) {
        let _ = lens.map(|len| header.check_file_len(len).is_ok());
        let _ = (header.grain_table(u32::MAX), header.grain(u64::MAX));
        assert_eq!(SeSparseHeader::parse(&header.to_bytes()), Ok(header));
    }
    if let Ok(header) = VolatileHeader::parse(input) {
        assert_eq!(VolatileHeader::parse(&header.to_bytes()), Ok(header));
    }
    let raw = Bytes::new(input).u64();
    let _ = (sesparse::decode_gde(raw), sesparse::decode_gte(raw));
}

fn descriptors() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for setup in setups() {
        let files = setup.make();
        let file = &files[NAME];
        let text =
            if file.starts_with(b"KDMV") { file.get(512..).unwrap_or_default() } else { file };
        let text: Vec<u8> = text.iter().copied().take_while(|byte| *byte != 0).collect();
        if !text.is_empty() && text.len() < 4096 && !text.starts_with(b"COWD") {
            seeds.push(text);
        }
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

/// A descriptor is printed as it was read; what is set is there, and nothing else has changed.
fn descriptor(input: &[u8]) {
    let Ok(mut parsed) = Descriptor::parse(input) else { return };
    let text = input.split(|byte| *byte == 0).next().unwrap_or_default();
    assert!(parsed.to_bytes() == text, "it is printed in another way");
    let sum = parsed.extents().iter().map(|extent| u128::from(extent.sectors.0)).sum::<u128>();
    assert_eq!(u128::from(parsed.capacity().0), sum);
    let _ = (parsed.create_type(), parsed.check_create_type(), parsed.has_parent());
    let extents = parsed.extents().to_vec();
    let new = ContentId(0x0123_4567);
    if parsed.set_content_id(new).is_ok() {
        let again = Descriptor::parse(&parsed.to_bytes()).expect("what was printed is read");
        assert_eq!((again.content_id(), again.extents()), (Some(new), &extents[..]));
        assert_eq!(again.parent_content_id(), parsed.parent_content_id());
    }
    let hint = Quoted::new("an other.vmdk").expect("a name");
    if parsed.set_parent(&hint, new).is_ok() {
        let again = Descriptor::parse(&parsed.to_bytes()).expect("what was printed is read");
        assert_eq!((again.parent_content_id(), again.extents()), (Some(new), &extents[..]));
        assert!(again.has_parent());
        assert_eq!(again.value("parentFileNameHint"), Some(hint.as_str().as_bytes()));
    }
    if parsed.remove_parent().is_ok() {
        let again = Descriptor::parse(&parsed.to_bytes()).expect("what was printed is read");
        assert!(!again.has_parent() && again.extents() == extents);
    }
}

fn marked() -> Vec<Vec<u8>> {
    let mut seeds = noise(3, 40, 6);
    for kind in [
        MetadataKind::EndOfStream,
        MetadataKind::GrainTable,
        MetadataKind::GrainDirectory,
        MetadataKind::Footer,
    ] {
        let sectors = SectorCount(if kind == MetadataKind::EndOfStream { 0 } else { 4 });
        let marker = MetadataMarker::new(kind, sectors).to_sector();
        seeds.push([&[3, 9], &marker[..]].concat());
    }
    let text: Vec<u8> = (0..4096u32).map(|n| u8::try_from(n % 91).unwrap_or(0)).collect();
    let mut stream = Vec::new();
    compress::deflate(compress::Level::default(), &text, &mut stream);
    let len = u32::try_from(stream.len()).unwrap_or(0).to_le_bytes();
    seeds.push([&[3, 9, 8, 0, 0, 0, 0, 0, 0, 0][..], &len, &stream].concat());
    seeds
}

/// Markers of streams, and the grain that stands behind one.
fn markers(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let grain = SectorCount(1 << (bytes.byte() % 12));
    let capacity = SectorCount(grain.0 * u64::from(bytes.byte()) + u64::from(grain.0 > 3));
    match Marker::parse(bytes.rest()) {
        Ok(Marker::Grain(marker)) => {
            if let Ok(index) = marker.check(grain, capacity) {
                assert!(index.0 * grain.0 < capacity.0);
                assert!(u64::from(marker.len) <= 2 * grain.0 * 512);
            }
            let again = Marker::parse(&[&marker.to_bytes()[..], &[0; 4]].concat());
            assert_eq!(again, Ok(Marker::Grain(marker)));
            let stream = bytes.rest().get(12..).unwrap_or_default();
            let len = usize::try_from(grain.0 * 512).unwrap_or(0);
            let mut to = vec![0xee; len];
            let _ = compress::inflate(stream, &mut to, len / 2);
        }
        Ok(Marker::Metadata(marker)) => {
            assert_eq!(Marker::parse(&marker.to_sector()), Ok(Marker::Metadata(marker)));
        }
        Err(_) => {}
    }
}
