//! Headers that are right, wrong in one field, and made of any bytes.

use proptest::prelude::*;

use block_core::range::to_usize;

use super::*;
use crate::spec::extension::{UnknownExtension, known_feature_names};

/// A header of a 1 GiB disk with 64 KiB clusters.
fn sample() -> (RawHeader, RawHeaderV3) {
    let header = RawHeader {
        magic: MAGIC,
        version: 3.into(),
        backing_name_offset: 0.into(),
        backing_name_len: 0.into(),
        cluster_bits: 16.into(),
        disk_size: (1 << 30).into(),
        crypt_method: 0.into(),
        l1_size: 2.into(),
        l1_table_offset: 0x3_0000.into(),
        refcount_table_offset: 0x1_0000.into(),
        refcount_table_clusters: 1.into(),
        snapshot_count: 0.into(),
        snapshot_table_offset: 0.into(),
    };
    let v3 = RawHeaderV3 {
        incompatible: 0.into(),
        compatible: 0.into(),
        autoclear: 0.into(),
        refcount_order: 4.into(),
        header_length: 112.into(),
    };
    (header, v3)
}

fn bytes_of(change: impl FnOnce(&mut RawHeader, &mut RawHeaderV3)) -> Vec<u8> {
    let (mut header, mut v3) = sample();
    change(&mut header, &mut v3);
    [header.as_bytes(), v3.as_bytes(), &[0; 8]].concat()
}

fn verify(bytes: &[u8]) -> Result<Header, OpenError> {
    UnverifiedHeader::parse(bytes)?.verify(&Extensions::default())
}

#[test]
fn a_good_header_is_read() {
    let header = verify(&bytes_of(|h, v3| {
        h.l1_size = 4.into();
        v3.incompatible = 0b1_0111.into();
        v3.compatible = 0xff.into();
        v3.autoclear = 0xff.into();
    }))
    .unwrap();
    assert_eq!(header.disk_len, 1 << 30);
    assert!(header.features.dirty && header.features.corrupt && header.features.bitmaps);
    assert_eq!(header.geometry.l2_format(), L2Format::Extended);
    assert_eq!(header.compression, Compression::Deflate);
}

#[test]
fn version_2_ignores_what_it_does_not_have() {
    let mut bytes = bytes_of(|h, v3| {
        h.version = 2.into();
        v3.incompatible = u64::MAX.into();
        v3.refcount_order = 99.into();
    });
    assert_eq!(verify(&bytes).unwrap().geometry.refcount_bits(), 16);
    bytes.truncate(72);
    assert!(verify(&bytes).is_ok());
}

#[test]
fn each_wrong_field_is_named_with_its_value() {
    type Change = fn(&mut RawHeader, &mut RawHeaderV3);
    let cases: &[(Change, &str)] = &[
        (|h, _| h.magic = *b"QFI\xfa", "magic is 0x514649fa"),
        (|h, _| h.version = 1.into(), "version is 0x1"),
        (|h, _| h.version = 4.into(), "version is 0x4"),
        (|h, _| h.cluster_bits = 8.into(), "cluster bits is 0x8: must be at least 0x9"),
        (|h, _| h.cluster_bits = 22.into(), "cluster bits is 0x16: must be at most 0x15"),
        (|h, _| h.cluster_bits = u32::MAX.into(), "cluster bits"),
        (|h, _| h.disk_size = u64::MAX.into(), "disk size is 0xffffffffffffffff"),
        (|h, _| h.crypt_method = 3.into(), "encryption method is 0x3"),
        (|h, _| h.l1_size = 1.into(), "L1 size is 0x1: must be at least 0x2"),
        (|h, _| h.l1_size = 0x40_0001.into(), "L1 size is 0x400001: must be at most 0x400000"),
        (|h, _| h.l1_table_offset = 0.into(), "L1 table offset is 0x0: must not be zero"),
        (|h, _| h.l1_table_offset = 0x3_0200.into(), "L1 table offset is 0x30200"),
        (|h, _| h.l1_table_offset = (u64::MAX - 0xffff).into(), "L1 table offset"),
        (|h, _| h.refcount_table_offset = 1.into(), "refcount table offset is 0x1"),
        (|h, _| h.refcount_table_clusters = 0.into(), "refcount table clusters is 0x0"),
        (|h, _| h.refcount_table_clusters = 129.into(), "refcount table clusters is 0x81"),
        (|h, _| h.snapshot_count = 65537.into(), "snapshot count is 0x10001"),
        (|h, _| h.snapshot_count = 1.into(), "snapshot table offset is 0x0"),
        (|_, v3| v3.refcount_order = 7.into(), "refcount order is 0x7"),
        (|_, v3| v3.header_length = 103.into(), "header length is 0x67: must be at least 0x68"),
        (|_, v3| v3.header_length = 0x1_0008.into(), "header length is 0x10008"),
        (|_, v3| v3.header_length = 108.into(), "header length is 0x6c: must be a multiple"),
        (|_, v3| v3.incompatible = 8.into(), "compression type is 0x0: contradicts"),
        (|_, v3| v3.incompatible = (1 << 5).into(), "incompatible bit 5"),
        (|_, v3| v3.incompatible = (1 << 63).into(), "incompatible bit 63"),
    ];
    for (change, expect) in cases {
        let err = verify(&bytes_of(change)).unwrap_err().to_string();
        assert!(err.contains(expect), "expected {expect:?} in {err:?}");
    }
}

#[test]
fn the_backing_name_stays_inside_the_first_cluster() {
    let with_name = |offset: u64, len: u32| {
        let bytes = bytes_of(|h, _| {
            h.backing_name_offset = offset.into();
            h.backing_name_len = len.into();
        });
        UnverifiedHeader::parse(&bytes)
    };
    let ok = with_name(0x200, 1023).unwrap();
    assert_eq!(ok.extension_area().end, 0x200);
    assert_eq!(ok.backing_name().unwrap().end, 0x200 + 1023);
    assert_eq!(with_name(0x200, 0).unwrap().backing_name(), None);
    for (offset, len, expect) in [
        (0x200, 1024, "backing file name length is 0x400: must be at most 0x3ff"),
        (0xffff, 2, "backing file name length is 0x2: must be at most 0x1"),
        (0x1_0001, 2, "backing file name offset is 0x10001"),
        (u64::MAX, u32::MAX, "backing file name offset"),
        (100, 2, "backing file name offset is 0x64: overlaps"),
    ] {
        let err = with_name(offset, len).unwrap_err().to_string();
        assert!(err.contains(expect), "{err}");
    }
}

#[test]
fn extended_entries_need_large_clusters() {
    let bytes = bytes_of(|h, v3| {
        h.cluster_bits = 13.into();
        h.l1_size = 0x1000.into();
        v3.incompatible = EXTENDED_L2.into();
    });
    let err = verify(&bytes).unwrap_err().to_string();
    assert!(err.contains("cluster bits is 0xd: must be at least 0xe"), "{err}");
}

#[test]
fn compression_types_need_their_bit() {
    let mut bytes = bytes_of(|_, v3| v3.incompatible = 8.into());
    bytes[104] = 1;
    assert_eq!(verify(&bytes).unwrap().compression, Compression::Zstd);
    bytes[104] = 2;
    let err = verify(&bytes).unwrap_err().to_string();
    assert!(err.contains("compression type 2"), "{err}");
    let mut bytes = bytes_of(|_, _| ());
    bytes[104] = 1;
    assert!(verify(&bytes).unwrap_err().to_string().contains("compression type is 0x1"));
}

#[test]
fn a_short_file_is_named() {
    let bytes = bytes_of(|_, _| ());
    for len in 0..104 {
        let err = verify(&bytes[..len]).unwrap_err().to_string();
        assert!(err.contains("file length is"), "{len}: {err}");
    }
}

/// A first cluster that says everything a header can say.
fn rich_cluster(header_length: u32, additional: u8) -> Vec<u8> {
    let mut bytes = bytes_of(|h, v3| {
        h.l1_size = 4.into();
        h.snapshot_count = 2.into();
        h.snapshot_table_offset = 0x9_0000.into();
        v3.incompatible = 0b1_1011.into();
        v3.compatible = 0xff00_0000_0000_00ff.into();
        v3.autoclear = 0xf0.into();
        v3.refcount_order = 3.into();
        v3.header_length = header_length.into();
    });
    bytes[104] = 1;
    bytes.resize(to_usize(header_length.into()), additional);
    let mut extensions = Extensions {
        backing_format: Some("qcow2".to_owned()),
        feature_names: known_feature_names(),
        ..Extensions::default()
    };
    extensions.unknown.push(UnknownExtension { kind: 7, data: b"kept".to_vec() });
    bytes.extend(extensions.encode().unwrap());
    let name = b"dir/\xffbase.qcow2";
    let start = to_u64(bytes.len());
    bytes[8..16].copy_from_slice(&start.to_be_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
    bytes.extend(name);
    bytes
}

/// Header, extensions and backing file name of a first cluster.
fn read_all(cluster: &[u8]) -> (Header, Extensions, Option<Vec<u8>>) {
    let header = UnverifiedHeader::parse(cluster).unwrap();
    let extensions = Extensions::parse(header.extension_area().of(cluster)).unwrap();
    let name = header.backing_name().map(|part| part.of(cluster).to_vec());
    (header.verify(&extensions).unwrap(), extensions, name)
}

#[test]
fn a_rewrite_keeps_everything() {
    for (header_length, additional) in [(112, 0), (120, 0xa5), (600, 0x5a)] {
        let cluster = rich_cluster(header_length, additional);
        let (mut header, extensions, name) = read_all(&cluster);
        assert_eq!(header.unknown_compatible, 0xff00_0000_0000_00fe);
        assert_eq!(header.unknown_autoclear, 0xf0);
        assert_eq!(header.header_length(), header_length);
        let before = header.clone();
        let rewritten = header.encode(&extensions, name.as_deref()).unwrap();
        assert_eq!(header, before);
        assert_eq!(rewritten, cluster);
        let fixed = header.encode_fixed();
        assert_eq!(fixed.len(), to_usize(header_length.into()).min(512));
        assert!(cluster.starts_with(&fixed));
    }
}

#[test]
fn a_short_header_grows_on_a_rewrite_and_not_in_place() {
    let bytes = bytes_of(|_, v3| v3.header_length = 104.into());
    let (mut header, extensions, _) = read_all(&bytes);
    assert_eq!(header.encode_fixed(), bytes[..104]);
    let cluster = header.encode(&extensions, Some(b"base")).unwrap();
    let (again, _, name) = read_all(&cluster);
    assert_eq!((again.header_length(), name.as_deref()), (112, Some(b"base".as_slice())));
    assert_eq!(again, header);
    assert_eq!(header.encode_fixed(), cluster[..112]);
}

#[test]
fn version_2_is_written_short() {
    let bytes = bytes_of(|h, _| h.version = 2.into());
    let (mut header, extensions, _) = read_all(&bytes);
    let cluster = header.encode(&extensions, Some(b"base")).unwrap();
    assert_eq!(header.encode_fixed(), cluster[..72]);
    assert_eq!(cluster.len(), 72 + 8 + 4);
    assert_eq!(read_all(&cluster).0, header);
}

#[test]
fn what_does_not_fit_the_cluster_is_refused() {
    let bytes = bytes_of(|h, _| {
        h.cluster_bits = 9.into();
        h.disk_size = 0.into();
    });
    let (mut header, mut extensions, _) = read_all(&bytes);
    let room = 512 - 112 - 8;
    assert!(header.encode(&extensions, Some(&vec![b'a'; room])).is_ok());
    let before = header.clone();
    let err = header.encode(&extensions, Some(&vec![b'a'; room + 1])).unwrap_err().to_string();
    assert!(err.contains("length of header and extensions is 0x201"), "{err}");
    extensions.unknown.push(UnknownExtension { kind: 7, data: vec![0; room] });
    let err = header.encode(&extensions, None).unwrap_err().to_string();
    assert!(err.contains("length of header and extensions is 0x208"), "{err}");
    assert_eq!(header, before);

    let (mut header, extensions, _) = read_all(&bytes_of(|_, _| ()));
    let err = header.encode(&extensions, Some(&[b'a'; 1024])).unwrap_err().to_string();
    assert!(err.contains("backing file name length is 0x400"), "{err}");
}

#[test]
fn a_header_that_contradicts_itself_is_not_written() {
    let (mut header, extensions, _) = read_all(&bytes_of(|_, _| ()));
    header.compression = Compression::Zstd;
    let err = header.encode(&extensions, None).unwrap_err().to_string();
    assert!(err.contains("compression type is 0x1: contradicts"), "{err}");
}

proptest! {
    #[test]
    fn what_is_written_is_read_the_same(
        at in 8usize..104,
        value: u64,
        additional in prop::collection::vec(any::<u8>(), 0..64),
        name in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = bytes_of(|_, v3| v3.header_length = (112 + 8 * 8).into());
        bytes.extend(additional);
        bytes.resize(112 + 64, 7);
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        if let Ok(mut header) = verify(&bytes) {
            let cluster = header.encode(&Extensions::default(), Some(&name)).unwrap();
            let (again, _, read_name) = read_all(&cluster);
            prop_assert_eq!(&again, &header);
            prop_assert_eq!(read_name.unwrap_or_default(), name);
            prop_assert!(cluster.starts_with(&header.encode_fixed()));
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = verify(&bytes);
    }

    #[test]
    fn any_bytes_after_the_magic(
        version in 2u8..4,
        bits in 0u8..32,
        mut bytes in prop::collection::vec(any::<u8>(), 112..200),
    ) {
        bytes[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        bytes[20..24].copy_from_slice(&[0, 0, 0, bits]);
        let _ = verify(&bytes);
    }

    #[test]
    fn any_field_value_is_kept_or_refused(at in 8usize..104, value: u64) {
        let mut bytes = bytes_of(|_, _| ());
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        if let Ok(header) = verify(&bytes) {
            let needed = header.geometry.l1_entries_for(header.disk_len);
            prop_assert!(u64::from(header.l1.count) >= needed);
            prop_assert!(u64::from(header.l1.count) <= MAX_L1_BYTES / 8);
            prop_assert!(header.disk_len <= MAX_LEN);
        }
    }
}
