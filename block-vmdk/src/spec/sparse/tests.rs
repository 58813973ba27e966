//! Tests of the sparse header.

use super::*;
use proptest::prelude::*;

/// A header as tools write it: 1 GiB in grains of 64 KiB.
fn plain() -> RawHeader {
    RawHeader {
        magic: MAGIC,
        version: 1.into(),
        flags: (FLAG_CHECK_BYTES | FLAG_REDUNDANT_GD).into(),
        capacity: (2 << 20).into(),
        grain_size: 128.into(),
        descriptor_offset: 1.into(),
        descriptor_size: 20.into(),
        gtes_per_gt: 512.into(),
        rgd_offset: 21.into(),
        gd_offset: 150.into(),
        overhead: 384.into(),
        unclean_shutdown: 0,
        check_bytes: CHECK_BYTES,
        compression: 0.into(),
        padding: [0; 433],
    }
}

fn parse(raw: &RawHeader) -> Result<SparseHeader, HeaderError> {
    SparseHeader::parse(raw.as_bytes())
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
    assert_eq!(header.gd_entries(), 32);
    assert_eq!(header.grain_of(Sector(127)), Some(GrainIndex(0)));
    assert_eq!(header.grain_of(Sector((2 << 20) - 1)), Some(GrainIndex((2 << 13) - 1)));
    assert_eq!(header.grain_of(Sector(2 << 20)), None);
    assert_eq!(header.grain_directory(), GrainDirectory::At(Sector(150)));
    assert_eq!(header.redundant_grain_directory(), Some(Sector(21)));
    assert_eq!(header.check_file_len(384 * 512), Ok(()));
    let cut = header.check_file_len(383 * 512).unwrap_err();
    assert_eq!(cut.to_string(), "overHead is 0x180: ends beyond 0x17f");
    let cut = header.check_file_len(150 * 512).unwrap_err();
    assert_eq!(cut.to_string(), "gdOffset is 0x96: ends beyond 0x96");
}

#[test]
fn wrong_fields_are_named() {
    let cases: [((&str, Problem), &str, Problem); 14] = [
        (rejected(|r| r.version = 4.into()), "version", Problem::Unknown),
        (rejected(|r| r.grain_size = 0.into()), "grainSize", Problem::NotPowerOfTwo),
        (rejected(|r| r.grain_size = 3.into()), "grainSize", Problem::NotPowerOfTwo),
        (rejected(|r| r.grain_size = 4.into()), "grainSize", Problem::Below(8)),
        (rejected(|r| r.grain_size = (1 << 22).into()), "grainSize", Problem::Above(0x20_0000)),
        (rejected(|r| r.gtes_per_gt = 0.into()), "numGTEsPerGT", Problem::Zero),
        (rejected(|r| r.gtes_per_gt = 513.into()), "numGTEsPerGT", Problem::Above(512)),
        (rejected(|r| r.capacity = (1 << 50).into()), "capacity", Problem::Above(1 << 41)),
        (rejected(|r| r.gd_offset = 0.into()), "gdOffset", Problem::Zero),
        (rejected(|r| r.rgd_offset = 0.into()), "rgdOffset", Problem::Zero),
        (rejected(|r| r.gd_offset = (1 << 60).into()), "gdOffset", Problem::Above(MAX_LEN / 512)),
        (rejected(|r| r.descriptor_size = 4096.into()), "descriptorSize", Problem::Above(2048)),
        (
            rejected(|r| r.compression = 1.into()),
            "compressAlgorithm",
            Problem::Contradicts("flags"),
        ),
        (rejected(|r| r.unclean_shutdown = 9), "uncleanShutdown", Problem::Above(1)),
    ];
    for ((field, problem), expected_field, expected_problem) in cases {
        assert_eq!((field, problem), (expected_field, expected_problem));
    }
}

#[test]
fn a_text_transfer_is_noticed() {
    let mut raw = plain();
    raw.check_bytes = [0x0a, 0x20, 0x0a, 0x0a];
    assert_eq!(parse(&raw), Err(HeaderError::CheckBytes { found: raw.check_bytes }));
    // Old files do not have the bytes, and say so.
    raw.flags = 0.into();
    assert!(parse(&raw).is_ok());
}

/// Mostly plausible headers, so that many pass the checks.
fn raw_headers() -> impl Strategy<Value = RawHeader> {
    let flags = prop::bits::u32::masked(0x3_0007);
    let grain = (0..24u32).prop_map(|shift| 1u64 << shift);
    let place = prop_oneof![0..1u64 << 20, Just(u64::MAX), any::<u64>()];
    let places = [place.clone(), place.clone(), place];
    let numbers = (1..4u32, 0..1u64 << 34, 0..1025u32, 0..2u8, 0..2100u64);
    (flags, grain, places, numbers).prop_map(|(flags, grain, places, numbers)| RawHeader {
        version: numbers.0.into(),
        flags: flags.into(),
        capacity: numbers.1.into(),
        grain_size: grain.into(),
        descriptor_offset: places[0].into(),
        descriptor_size: numbers.4.into(),
        gtes_per_gt: numbers.2.into(),
        rgd_offset: places[1].into(),
        gd_offset: places[2].into(),
        unclean_shutdown: numbers.3,
        compression: u16::from(flags & FLAG_COMPRESSED != 0).into(),
        ..plain()
    })
}

proptest! {
    #[test]
    fn printed_headers_are_parsed_back(raw in raw_headers(), len: u64) {
        if let Ok(header) = parse(&raw) {
            prop_assert_eq!(SparseHeader::parse(&header.to_bytes()), Ok(header.clone()));
            prop_assert!(header.gd_entries() <= GD_ENTRIES_MAX);
            header.check_file_len(len).ok();
        }
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        SparseHeader::parse(&bytes).ok();
        for (byte, magic) in bytes.iter_mut().zip(MAGIC) {
            *byte = magic;
        }
        if let Ok(header) = SparseHeader::parse(&bytes) {
            header.grain_of(Sector(u64::MAX));
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0..HEADER_LEN, value: u8) {
        let mut bytes = plain().as_bytes().to_vec();
        bytes[at] = value;
        if let Ok(header) = SparseHeader::parse(&bytes) {
            prop_assert_eq!(SparseHeader::parse(&header.to_bytes()), Ok(header));
        }
    }
}
