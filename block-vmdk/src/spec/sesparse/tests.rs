//! Tests of the headers and entries of seSparse extents.

use super::*;
use proptest::prelude::*;

fn area(start: u64, count: u64) -> RawArea {
    RawArea { start: start.into(), count: count.into() }
}

/// A disk of 1 GiB: 64 grain tables, a grain directory of one sector.
fn plain() -> RawHeader {
    RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        capacity: (2 << 20).into(),
        grain_size: 8.into(),
        grain_table_size: 64.into(),
        flags: 0.into(),
        reserved: [0.into(); 4],
        areas: [
            area(1, 1),
            area(2, 2),
            area(2048, 2048),
            area(4096, 1),
            area(6144, 4096),
            area(10240, 64),
            area(12288, 4096),
            area(16384, 2 << 20),
        ],
        padding: [0; 304],
    }
}

fn plain_volatile() -> RawVolatile {
    RawVolatile {
        magic: VOLATILE_MAGIC.into(),
        free_gt_number: 3.into(),
        next_txn_seq_number: 10.into(),
        replay_journal: 0.into(),
        padding: [0; 480],
    }
}

fn parse(raw: &RawHeader) -> Result<SeSparseHeader, HeaderError> {
    SeSparseHeader::parse(raw.as_bytes())
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
    assert_eq!(header.gd_entries(), 64);
    assert_eq!(header.volatile_header().start, Sector(1));
    assert_eq!(header.grain_directory().start, Sector(4096));
    assert_eq!(header.grain_of(Sector(15)), Some(GrainIndex(1)));
    assert_eq!(header.grain_of(Sector(2 << 20)), None);
    assert_eq!(header.grain_table(0), Some(Sector(6144)));
    assert_eq!(header.grain_table(63), Some(Sector(6144 + 63 * 64)));
    assert_eq!(header.grain_table(64), None);
    assert_eq!(header.grain_table(u32::MAX), None);
    assert_eq!(header.grain(2), Some(Sector(16400)));
    let last = (MAX_LEN / 512 - 16384) / 8 - 1;
    assert_eq!(header.grain(last), Some(Sector(16384 + last * 8)));
    assert_eq!(header.grain(last + 1), None);
    assert_eq!(header.grain(u64::MAX), None);
    assert_eq!(header.check_file_len(4097 * 512), Ok(()));
    let cut = header.check_file_len(4096 * 512).unwrap_err();
    assert_eq!(cut.to_string(), "grainDirOffset is 0x1000: ends beyond 0x1000");
}

#[test]
fn wrong_fields_are_named() {
    let unknown = |field| (field, Problem::Unknown);
    assert_eq!(rejected(|r| r.magic = VOLATILE_MAGIC.into()), unknown("magic"));
    assert_eq!(rejected(|r| r.version = 0x2_0000_0002.into()), unknown("version"));
    assert_eq!(rejected(|r| r.grain_size = 16.into()), unknown("grainSize"));
    assert_eq!(rejected(|r| r.grain_size = 0.into()), unknown("grainSize"));
    assert_eq!(rejected(|r| r.grain_table_size = 0.into()), unknown("grainTableSize"));
    assert_eq!(rejected(|r| r.flags = 1.into()), unknown("flags"));
    for index in 0..4 {
        let found = rejected(|r| r.reserved[index] = 1.into());
        assert_eq!(found, ("reserved", Problem::Reserved(u64::MAX)));
    }
    assert_eq!(rejected(|r| r.padding[303] = 1), ("padding", Problem::Reserved(0xff)));
    for (index, (name, need)) in AREA_NAMES.iter().enumerate() {
        let far = rejected(|r| r.areas[index].start = (MAX_LEN / 512 + 1).into());
        assert_eq!(far, (*name, Problem::Above(MAX_LEN / 512)));
        let wrapped = rejected(|r| r.areas[index].count = u64::MAX.into());
        assert_eq!(wrapped, (*name, Problem::Above(MAX_LEN / 512)));
        let mut raw = plain();
        raw.areas[index] = area(0, 1);
        assert_eq!(parse(&raw).is_err(), *need == Need::Always, "{name}");
    }
    assert_eq!(rejected(|r| r.areas[0] = area(1, 0)), ("volatileHeaderSize", Problem::Zero));
    let above = |max| ("grainDirSize", Problem::Above(max));
    assert_eq!(rejected(|r| r.areas[3] = area(9, (1 << 16) + 1)), above(1 << 16));
    let above = |max| ("capacity", Problem::Above(max));
    assert_eq!(rejected(|r| r.capacity = ((2 << 20) + 1).into()), above(2 << 20));
    assert_eq!(rejected(|r| r.areas[3] = area(9, 0)), above(0));
    let short = SeSparseHeader::parse(&plain().as_bytes()[..511]).unwrap_err();
    assert_eq!(short, HeaderError::Truncated { len: 511 });
}

#[test]
fn the_longest_disk_is_accepted() {
    let mut raw = plain();
    raw.areas[GRAIN_DIR] = area(4096, GD_SECTORS_MAX);
    raw.capacity = (64u64 << 40 >> 9).into();
    assert_eq!(parse(&raw).unwrap().gd_entries(), 4 << 20);
    raw.capacity = ((64u64 << 40 >> 9) + 1).into();
    parse(&raw).unwrap_err();
}

#[test]
fn a_journal_that_is_to_be_replayed_is_refused() {
    let plain = plain_volatile();
    let header = VolatileHeader::parse(plain.as_bytes()).unwrap();
    assert_eq!((header.free_gt_number, header.next_txn_seq_number), (3, 10));
    assert_eq!(header.to_bytes(), plain.as_bytes());
    let error = |change: &dyn Fn(&mut RawVolatile)| {
        let mut raw = plain;
        change(&mut raw);
        VolatileHeader::parse(raw.as_bytes()).unwrap_err().to_string()
    };
    let text = error(&|r| r.replay_journal = 1.into());
    assert_eq!(text, "volatileHeader.replayJournal is 0x1: must be at most 0x0");
    let text = error(&|r| r.magic = MAGIC.into());
    assert_eq!(text, "volatileHeader.magic is 0xcafebabe: unknown value");
    let text = error(&|r| r.padding[0] = 2);
    assert_eq!(text, "padding is 0x2: reserved bits are set (mask 0xff)");
}

#[test]
fn entries_of_every_kind() {
    let bad_gde = |raw| Err(Error::Corrupt { what: "grain directory entry", value: raw });
    assert_eq!(decode_gde(0), Ok(None));
    assert_eq!(decode_gde(0x1000_0000_0000_0000), Ok(Some(0)));
    assert_eq!(decode_gde(0x1000_0000_ffff_ffff), Ok(Some(u32::MAX)));
    for raw in [1, 0x1000_0001_0000_0000, 0x2000_0000_0000_0000, u64::MAX] {
        assert_eq!(decode_gde(raw), bad_gde(raw));
    }
    let bad_gte = |raw| Err(Error::Corrupt { what: "grain table entry", value: raw });
    assert_eq!(decode_gte(0), Ok(SeGrain::Unallocated));
    assert_eq!(decode_gte(0x1000_0000_0000_0000), Ok(SeGrain::Unmapped));
    assert_eq!(decode_gte(0x2000_0000_0000_0000), Ok(SeGrain::Zero));
    assert_eq!(decode_gte(0x3000_0000_0000_0000), Ok(SeGrain::At(0)));
    assert_eq!(decode_gte(0x3001_0000_0000_0000), Ok(SeGrain::At(1)));
    assert_eq!(decode_gte(0x3000_0000_0000_0001), Ok(SeGrain::At(4096)));
    assert_eq!(decode_gte(0x3fff_ffff_ffff_ffff), Ok(SeGrain::At((1 << 60) - 1)));
    for raw in [1, 0x4000_0000_0000_0000, u64::MAX] {
        assert_eq!(decode_gte(raw), bad_gte(raw));
    }
}

/// Mostly plausible headers, so that many pass the checks.
fn raw_headers() -> impl Strategy<Value = RawHeader> {
    let place = prop_oneof![0..1u64 << 30, any::<u64>()];
    let areas = prop::collection::vec((place, 0..1u64 << 17), AREAS);
    (0..1u64 << 38, areas).prop_map(|(capacity, areas)| RawHeader {
        capacity: capacity.into(),
        areas: std::array::from_fn(|index| area(areas[index].0, areas[index].1)),
        ..plain()
    })
}

proptest! {
    #[test]
    fn headers_are_printed_as_they_were_parsed(raw in raw_headers(), index: u32, len: u64) {
        if let Ok(header) = parse(&raw) {
            let bytes = header.to_bytes();
            prop_assert_eq!(&bytes[..], raw.as_bytes());
            prop_assert_eq!(SeSparseHeader::parse(&bytes), Ok(header.clone()));
            prop_assert!(header.gd_entries() <= 4 << 20);
            header.grain_table(index);
            header.grain(len);
            header.grain_of(Sector(len));
            header.check_file_len(len).ok();
        }
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        SeSparseHeader::parse(&bytes).ok();
        VolatileHeader::parse(&bytes).ok();
        for (byte, plain) in bytes.iter_mut().zip(&plain().as_bytes()[..80]) {
            *byte = *plain;
        }
        SeSparseHeader::parse(&bytes).ok();
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0..HEADER_LEN, value: u8) {
        let mut bytes = plain().as_bytes().to_vec();
        bytes[at] = value;
        if let Ok(header) = SeSparseHeader::parse(&bytes) {
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..]);
        }
        let mut bytes = plain_volatile().as_bytes().to_vec();
        bytes[at] = value;
        if let Ok(header) = VolatileHeader::parse(&bytes) {
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..]);
        }
    }

    #[test]
    fn any_entry_is_decoded_or_refused(raw: u64) {
        if let Ok(Some(index)) = decode_gde(raw) {
            prop_assert_eq!(raw, GDE_ALLOCATED << 32 | u64::from(index));
        }
        if let Ok(SeGrain::At(index)) = decode_gte(raw) {
            prop_assert_eq!(raw, 3 << 60 | (index & 0xfff) << 48 | index >> 12);
        }
    }
}
