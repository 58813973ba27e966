//! Tests of the COWD header.

use super::*;
use proptest::prelude::*;

/// A header as ESX writes it: 1 GiB in grains of one sector.
fn plain() -> RawHeader {
    RawHeader {
        magic: MAGIC,
        version: 1.into(),
        flags: 3.into(),
        capacity: (2 << 20).into(),
        grain_size: 1.into(),
        gd_offset: 4.into(),
        gd_entries: 512.into(),
        free_sector: 8.into(),
        rest: [0; 480],
    }
}

fn parse(raw: &RawHeader) -> Result<CowdHeader, HeaderError> {
    CowdHeader::parse(raw.as_bytes())
}

fn rejected(change: impl FnOnce(&mut RawHeader)) -> (&'static str, Problem) {
    let mut raw = plain();
    change(&mut raw);
    match parse(&raw) {
        Err(HeaderError::Field { field, problem, .. }) => (field, problem),
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn a_plain_header_says_where_things_are() {
    let header = parse(&plain()).unwrap();
    assert_eq!(header.capacity(), SectorCount(2 << 20));
    assert_eq!(header.grain_size(), SectorCount(1));
    assert_eq!(header.gd_offset(), Sector(4));
    assert_eq!((header.gd_entries(), header.gd_sectors()), (512, SectorCount(4)));
    assert_eq!(header.free_sector(), Sector(8));
    assert_eq!(header.gt_coverage(), SectorCount(4096));
    assert_eq!(header.grain_of(Sector((2 << 20) - 1)), Some(GrainIndex((2 << 20) - 1)));
    assert_eq!(header.grain_of(Sector(2 << 20)), None);
    assert_eq!(header.check_file_len(8 * 512), Ok(()));
    let cut = header.check_file_len(7 * 512).unwrap_err();
    assert_eq!(cut.to_string(), "gdOffset is 0x4: ends beyond 0x7");
}

#[test]
fn wrong_fields_are_named() {
    let cases: [((&str, Problem), &str, Problem); 9] = [
        (rejected(|r| r.version = 0.into()), "version", Problem::Unknown),
        (rejected(|r| r.version = 2.into()), "version", Problem::Unknown),
        (rejected(|r| r.grain_size = 0.into()), "grainSize", Problem::NotPowerOfTwo),
        (rejected(|r| r.grain_size = 3.into()), "grainSize", Problem::NotPowerOfTwo),
        (rejected(|r| r.grain_size = (1 << 22).into()), "grainSize", Problem::Above(0x20_0000)),
        (rejected(|r| r.gd_offset = 0.into()), "gdOffset", Problem::Zero),
        (rejected(|r| r.gd_entries = 511.into()), "numGDEntries", Problem::Below(512)),
        (rejected(|r| r.capacity = u32::MAX.into()), "numGDEntries", Problem::Below(1 << 20)),
        (
            rejected(|r| r.gd_entries = ((1 << 20) + 1).into()),
            "numGDEntries",
            Problem::Above(1 << 20),
        ),
    ];
    for ((field, problem), expected_field, expected_problem) in cases {
        assert_eq!((field, problem), (expected_field, expected_problem));
    }
    let mut raw = plain();
    raw.magic = *b"KDMV";
    let text = parse(&raw).unwrap_err().to_string();
    assert_eq!(text, "magic is [4b, 44, 4d, 56], not \"COWD\"");
    let short = CowdHeader::parse(&plain().as_bytes()[..511]).unwrap_err();
    assert_eq!(short.to_string(), "the header has 512 bytes, only 511 are there");
}

#[test]
fn the_borders_of_every_field_are_accepted() {
    let accepted = |change: &dyn Fn(&mut RawHeader)| {
        let mut raw = plain();
        change(&mut raw);
        let header = parse(&raw).unwrap();
        assert_eq!(header.to_bytes(), raw.as_bytes());
    };
    accepted(&|r| r.gd_offset = 1.into());
    accepted(&|r| r.gd_offset = u32::MAX.into());
    accepted(&|r| r.gd_entries = (1 << 20).into());
    accepted(&|r| r.free_sector = 0.into());
    accepted(&|r| r.free_sector = u32::MAX.into());
    accepted(&|r| r.flags = u32::MAX.into());
    accepted(&|r| (r.capacity, r.gd_entries) = (0.into(), 0.into()));
    accepted(&|r| (r.capacity, r.gd_entries) = (u32::MAX.into(), (1 << 20).into()));
    accepted(&|r| (r.grain_size, r.gd_entries) = (0x20_0000.into(), 1.into()));
}

#[test]
fn a_new_header_has_its_directory_behind_it() {
    let geometry = Geometry { cylinders: 2080, heads: 16, sectors: 63 };
    let new = |sectors, grain| CowdHeader::new(SectorCount(sectors), SectorCount(grain), None);
    let header = CowdHeader::new(SectorCount(2 << 20), SectorCount(1), Some(geometry)).unwrap();
    let mut raw = plain();
    for (place, value) in raw.rest.chunks_exact_mut(4).zip([2080u32, 16, 63]) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    assert_eq!(header.to_bytes(), raw.as_bytes());
    assert_eq!(CowdHeader::parse(&header.to_bytes()), Ok(header));
    let empty = new(0, 1).unwrap();
    assert_eq!((empty.gd_entries(), empty.free_sector()), (0, Sector(4)));
    let longest = new(u32::MAX.into(), 1).unwrap();
    assert_eq!((longest.gd_entries(), longest.free_sector()), (1 << 20, Sector(4 + (1 << 13))));
    let error = new(1 << 32, 1).unwrap_err().to_string();
    assert_eq!(error, "numSectors is 0x100000000: must be at most 0xffffffff");
    assert_eq!(new(1, 0).unwrap_err().to_string(), "grainSize is 0x0: must be a power of two");
}

#[test]
fn only_the_free_sector_changes() {
    let mut raw = plain();
    raw.rest = [7; 480];
    let header = parse(&raw).unwrap();
    assert_eq!(header.with_free_sector(Sector(1 << 32)), None);
    let last = u64::from(u32::MAX);
    let changed = header.with_free_sector(Sector(last)).unwrap();
    assert_eq!(changed.free_sector(), Sector(last));
    raw.free_sector = u32::MAX.into();
    assert_eq!(changed.to_bytes(), raw.as_bytes());
}

/// Mostly plausible headers, so that many pass the checks.
fn raw_headers() -> impl Strategy<Value = RawHeader> {
    let numbers = (any::<u32>(), 0..24u32, any::<u32>(), 0..1u32 << 21);
    let rest = prop::collection::vec(any::<u8>(), 480);
    (numbers, any::<[u32; 2]>(), rest).prop_map(|(numbers, others, rest)| RawHeader {
        capacity: numbers.0.into(),
        grain_size: (1u32 << numbers.1).into(),
        gd_offset: numbers.2.into(),
        gd_entries: numbers.3.into(),
        flags: others[0].into(),
        free_sector: others[1].into(),
        rest: rest.try_into().unwrap(),
        ..plain()
    })
}

proptest! {
    #[test]
    fn headers_are_printed_as_they_were_parsed(raw in raw_headers(), len: u64, sector: u64) {
        if let Ok(header) = parse(&raw) {
            let bytes = header.to_bytes();
            prop_assert_eq!(&bytes[..], raw.as_bytes());
            prop_assert_eq!(CowdHeader::parse(&bytes), Ok(header.clone()));
            let covered = u128::from(header.gd_entries()) * u128::from(header.gt_coverage().0);
            prop_assert!(covered >= u128::from(header.capacity().0));
            prop_assert!(header.gd_entries() <= u64::from(GD_ENTRIES_MAX));
            header.check_file_len(len).ok();
            header.grain_of(Sector(sector));
        }
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        CowdHeader::parse(&bytes).ok();
        for (byte, magic) in bytes.iter_mut().zip(b"COWD\x01\0\0\0") {
            *byte = *magic;
        }
        CowdHeader::parse(&bytes).ok();
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0..HEADER_LEN, value: u8) {
        let mut bytes = plain().as_bytes().to_vec();
        bytes[at] = value;
        if let Ok(header) = CowdHeader::parse(&bytes) {
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..]);
        }
    }
}
