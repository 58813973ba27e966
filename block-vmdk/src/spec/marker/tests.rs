//! Tests of the markers.

use super::*;
use proptest::prelude::*;

const GRAIN: SectorCount = SectorCount(128);

fn refused(result: Result<impl std::fmt::Debug, MarkerError>) -> (&'static str, Problem) {
    match result {
        Err(MarkerError::Field { field, problem, .. }) => (field, problem),
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn markers_stand_where_the_format_says() {
    let grain = GrainMarker { lba: Sector(0x0102_0304_0506), len: 0x0708_090a };
    assert_eq!(grain.to_bytes(), [6, 5, 4, 3, 2, 1, 0, 0, 10, 9, 8, 7]);
    let kinds = [
        (MetadataKind::EndOfStream, 0, 0),
        (MetadataKind::GrainTable, 4, 1),
        (MetadataKind::GrainDirectory, 0x201, 2),
        (MetadataKind::Footer, 1, 3),
    ];
    for (kind, sectors, number) in kinds {
        let marker = MetadataMarker::new(kind, SectorCount(sectors));
        let sector = marker.to_sector();
        let [low, high] = u16::try_from(sectors).unwrap().to_le_bytes();
        assert_eq!(sector[..16], [low, high, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number, 0, 0, 0]);
        assert!(sector[16..].iter().all(|byte| *byte == 0));
        assert_eq!(Marker::parse(&sector), Ok(Marker::Metadata(marker)));
    }
}

#[test]
fn what_no_marker_says_is_refused() {
    assert_eq!(Marker::parse(&[0; 15]), Err(MarkerError::Truncated { len: 15 }));
    let parse = |value: u64, size: u32, kind: u32| {
        let (value, size, kind) = (value.into(), size.into(), kind.into());
        Marker::parse(RawMarker { value, size, kind }.as_bytes())
    };
    let most = MAX_LEN / SECTOR_SIZE;
    assert!(parse(most, 1, 9).is_ok());
    assert_eq!(refused(parse(most + 1, 1, 9)), ("grain marker LBA", Problem::Above(most)));
    assert_eq!(refused(parse(most + 1, 0, 1)), ("marker sectors", Problem::Above(most)));
    assert_eq!(refused(parse(0, 0, 4)), ("marker type", Problem::Unknown));
    assert_eq!(refused(parse(1, 0, 0)), ("end-of-stream marker sectors", Problem::Above(0)));
}

/// The stream starts twelve bytes in: it has less than two grains of room.
#[test]
fn a_grains_stream_has_bounds() {
    let capacity = SectorCount(1000);
    let check = |lba, len| GrainMarker { lba: Sector(lba), len }.check(GRAIN, capacity);
    let max = 2 * 65536 - 12;
    assert_eq!(GrainMarker::payload_max(GRAIN), u64::from(max));
    assert_eq!(check(896, max), Ok(GrainIndex(7)));
    assert_eq!(check(0, 1), Ok(GrainIndex(0)));
    assert_eq!(refused(check(0, max + 1)), ("grain marker size", Problem::Above(max.into())));
    assert_eq!(refused(check(0, 0)), ("grain marker size", Problem::Zero));
    assert_eq!(refused(check(1024, 1)), ("grain marker LBA", Problem::Above(999)));
    assert_eq!(refused(check(127, 1)), ("grain marker LBA", Problem::Misaligned(128)));
    let marker = GrainMarker { lba: Sector(0), len: 500 };
    assert_eq!((marker.stored_len(), marker.stored_sectors()), (512, SectorCount(1)));
    let marker = GrainMarker { len: 501, ..marker };
    assert_eq!((marker.stored_len(), marker.stored_sectors()), (513, SectorCount(2)));
}

#[test]
fn a_grain_that_would_begin_at_the_end_is_refused() {
    let whole = SectorCount(7 * 128);
    let check = |lba| GrainMarker { lba: Sector(lba), len: 1 }.check(GRAIN, whole);
    assert_eq!(check(6 * 128), Ok(GrainIndex(6)));
    assert_eq!(refused(check(7 * 128)), ("grain marker LBA", Problem::Above(895)));
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40), zeroes: bool) {
        let mut bytes = bytes;
        if zeroes && bytes.len() >= 16 {
            // Metadata is not met by chance.
            bytes[6..12].fill(0);
            bytes[13..16].fill(0);
            bytes[12] %= 5;
        }
        match Marker::parse(&bytes) {
            Ok(Marker::Grain(marker)) => {
                prop_assert_eq!(&marker.to_bytes(), &bytes[..12]);
                if let Ok(grain) = marker.check(GRAIN, SectorCount(1 << 40)) {
                    prop_assert_eq!(grain.0 * 128, marker.lba.0);
                    prop_assert!((13..=2 * 65536).contains(&marker.stored_len()));
                }
            }
            Ok(Marker::Metadata(marker)) => {
                prop_assert_eq!(&marker.to_sector()[..16], &bytes[..16]);
            }
            Err(MarkerError::Truncated { len }) => prop_assert!(len < 16),
            Err(MarkerError::Field { .. }) => {}
        }
    }

    #[test]
    fn grain_markers_are_read_as_they_are_printed(lba in 0..=MAX_LEN / 512, len in 1u32..) {
        let marker = GrainMarker { lba: Sector(lba), len };
        let mut bytes = marker.to_bytes().to_vec();
        bytes.extend([0x78, 0x9c, 1, 2]);
        prop_assert_eq!(Marker::parse(&bytes), Ok(Marker::Grain(marker)));
    }
}
