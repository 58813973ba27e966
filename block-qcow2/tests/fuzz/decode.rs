//! The decoders of qcow2's structures. Each answers any bytes with a value or an error; what it understood is
//! written back as the same.

use block_core::range::to_usize;
use block_qcow2::compress::codec::Codec;
use block_qcow2::geometry::{DataLocation, Geometry, L2Format, Version};
use block_qcow2::spec::entry::{self, Cluster, Copied};
use block_qcow2::spec::extension::Extensions;
use block_qcow2::spec::header::{Compression, UnverifiedHeader};
use block_qcow2::spec::{bitmap, refcount, snapshot};
use block_testkit::fuzz::{Bytes, Target, noise};
use block_testkit::naive;

use super::kit::setups;

pub const HEADER: Target =
    Target { name: "qcow2-header", body: header, seeds: headers, max_len: 4096 };
pub const ENTRIES: Target =
    Target { name: "qcow2-entries", body: entries, seeds: || noise(8, 64, 2), max_len: 64 };
pub const SNAPSHOTS: Target =
    Target { name: "qcow2-snapshots", body: snapshots, seeds: tables, max_len: 2048 };
pub const BITMAPS: Target =
    Target { name: "qcow2-bitmaps", body: bitmaps, seeds: directories, max_len: 2048 };
pub const PAYLOADS: Target =
    Target { name: "qcow2-payloads", body: payloads, seeds: compressed, max_len: 4096 };

/// The first clusters of the images that games start from.
fn headers() -> Vec<Vec<u8>> {
    let first = |setup: super::kit::Setup| {
        let mut file = setup.make().file;
        file.truncate(to_usize(setup.shape.cluster_size().min(1024)));
        file
    };
    setups().into_iter().map(first).collect()
}

/// Header and extensions: what is taken has checked numbers, and is written back as it was read.
fn header(input: &[u8]) {
    let Ok(parsed) = UnverifiedHeader::parse(input) else { return };
    let area = parsed.extension_area();
    assert!(area.start <= area.end && area.end <= parsed.cluster_size());
    let Ok(extensions) = Extensions::parse(area.of(input)) else { return };
    let name = parsed.backing_name().map(|part| part.of(input).to_vec());
    let Ok(mut header) = parsed.verify(&extensions) else { return };
    let geometry = header.geometry;
    assert!((9..=21).contains(&geometry.cluster_bits()));
    assert!(u64::from(header.l1.count) * 8 <= 32 << 20);
    // A name that is cut off by the end of what there is cannot be written back.
    let whole =
        header.backing_name.is_none_or(|part| part.end <= block_core::range::to_u64(input.len()));
    let Ok(cluster) = header.encode(&extensions, name.as_deref()) else { return };
    let again = UnverifiedHeader::parse(&cluster).expect("what was written is read");
    let area = again.extension_area();
    let extensions_again = Extensions::parse(area.of(&cluster)).expect("and its extensions");
    assert_eq!(extensions_again, extensions);
    assert_eq!(again.verify(&extensions_again), Ok(header.clone()));
    if let (true, Some(name)) = (whole, name.filter(|name| !name.is_empty())) {
        assert_eq!(header.backing_name.map(|part| part.of(&cluster).to_vec()), Some(name));
    }
}

fn geometry(bytes: &mut Bytes<'_>) -> Option<Geometry> {
    let (flags, cluster_bits, order) = (bytes.byte(), bytes.byte(), bytes.byte());
    let version = if flags & 1 == 0 { Version::V3 } else { Version::V2 };
    let format = if flags & 2 == 0 { L2Format::Standard } else { L2Format::Extended };
    let location = if flags & 4 == 0 { DataLocation::Image } else { DataLocation::DataFile };
    Geometry::new(version, (cluster_bits % 24).into(), (order % 8).into(), format, location).ok()
}

/// Entries of all tables, and refcounts of all widths.
fn entries(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let Some(geometry) = geometry(bytes) else { return };
    let (raw, second) = (bytes.u64(), bytes.u64());
    let cluster = geometry.cluster_size();
    for entry in [entry::l1_entry(geometry, raw), refcount::table_entry(geometry, raw)] {
        if let Ok(Some(offset)) = entry {
            assert!(offset.bytes().is_multiple_of(cluster) && offset.bytes() != 0);
        }
    }
    match entry::l2_entry(geometry, raw, second) {
        Ok(Cluster::Plain { host, alloc, zero }) => {
            assert!(host.is_none_or(|host| host.bytes().is_multiple_of(cluster)));
            assert_eq!(alloc & zero, 0, "a subcluster is data or zero");
            assert!(alloc == 0 || host.is_some(), "data is somewhere");
            let (first, bitmap) = entry::encode_plain(geometry, host, alloc, zero, Copied::Yes);
            let again = entry::l2_entry(geometry, first, bitmap);
            assert_eq!(again, Ok(Cluster::Plain { host, alloc, zero }));
        }
        Ok(Cluster::Compressed(payload)) => {
            assert!(payload.len > 0 && payload.len <= 2 * cluster);
            assert!(payload.end() > payload.offset.bytes());
            if payload.offset.bytes() <= geometry.max_payload_offset() && payload.len <= cluster {
                let (first, bitmap) =
                    entry::encode_compressed(geometry, payload.offset, payload.len);
                let again = entry::l2_entry(geometry, first, bitmap);
                assert_eq!(again, Ok(Cluster::Compressed(payload)));
            }
        }
        Err(_) => {}
    }
    let (index, value) = (bytes.u16(), bytes.u64());
    let mut block = bytes.rest().to_vec();
    let before = block.clone();
    let index = u64::from(index % 300);
    let set = refcount::set_refcount(geometry, &mut block, index, value);
    if set.is_none() {
        assert_eq!(block, before, "refused and changed");
    }
    for at in 0..300 {
        let now = refcount::refcount(geometry, &block, at);
        let expected = match set {
            Some(()) if at == index => Some(value),
            _ => refcount::refcount(geometry, &before, at),
        };
        assert_eq!(now, expected, "refcount {at} after setting {index}");
    }
}

/// A table of entries in its cluster, and how many the header says there are.
fn tables() -> Vec<Vec<u8>> {
    let entry = |id: &str, name: &str, extra: usize| {
        let mut bytes = vec![0; 40];
        bytes[6] = 0x10;
        bytes[11] = 4;
        bytes[13] = u8::try_from(id.len()).unwrap_or(0);
        bytes[15] = u8::try_from(name.len()).unwrap_or(0);
        bytes[39] = u8::try_from(extra).unwrap_or(0);
        bytes.extend(vec![0; extra]);
        bytes.extend(id.bytes().chain(name.bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let three = [entry("1", "first", 24), entry("2", "", 16), entry("3", "another", 0)].concat();
    vec![[vec![1], entry("1", "a", 24)].concat(), [vec![3], three].concat()]
}

/// The snapshot table: entries alone are written back as they were read; and an image with such a table opens or
/// says why not, lists what it has, and is checked.
fn snapshots(input: &[u8]) {
    let Some((count, table)) = input.split_first() else { return };
    let mut rest = table;
    for _ in 0..*count {
        let Ok(Some(len)) = snapshot::entry_len(rest) else { break };
        assert!(len >= snapshot::FIXED_BYTES && len.is_multiple_of(8));
        let Some((entry, after)) = rest.split_at_checked(len) else { break };
        let Ok(parsed) = snapshot::parse(entry) else { break };
        let encoded = snapshot::encode(&parsed).expect("what was read is written");
        assert_eq!(snapshot::parse(&encoded), Ok(parsed));
        rest = after;
    }
    super::image::with_snapshot_table(*count, table);
}

fn directories() -> Vec<Vec<u8>> {
    let entry = |name: &str, flags: u8, extra: usize| {
        let mut bytes = vec![0; 24];
        bytes[6] = 0x20;
        bytes[11] = 1;
        bytes[15] = flags;
        bytes[16] = 1;
        bytes[17] = 9;
        bytes[19] = u8::try_from(name.len()).unwrap_or(0);
        bytes[23] = u8::try_from(extra).unwrap_or(0);
        bytes.extend(vec![0; extra]);
        bytes.extend(name.bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let two = [entry("a", 0, 0), entry("another", 3, 8)].concat();
    vec![[vec![1], entry("one", 2, 0)].concat(), [vec![2], two].concat()]
}

/// The bitmap directory, as the snapshot table.
fn bitmaps(input: &[u8]) {
    let Some((count, directory)) = input.split_first() else { return };
    let mut rest = directory;
    for _ in 0..*count {
        let Ok(Some(len)) = bitmap::entry_len(rest) else { break };
        let Some((entry, after)) = rest.split_at_checked(len) else { break };
        let Ok(parsed) = bitmap::parse(entry) else { break };
        let encoded = bitmap::encode(&parsed).expect("what was read is written");
        assert_eq!(bitmap::parse(&encoded), Ok(parsed));
        rest = after;
    }
    super::image::with_bitmap_directory(*count, directory);
}

/// Payloads of both kinds, and what they must not be.
fn compressed() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..1200u32).flat_map(|n| (n * n % 97).to_string().into_bytes()).collect();
    let mut seeds = Vec::new();
    for (at, kind) in [Compression::Deflate, Compression::Zstd].into_iter().enumerate() {
        let encoding =
            block_qcow2::compress::Encoding::new(kind, None, block_qcow2::compress::Window::Small);
        let Ok(encoding) = encoding else { continue };
        for len in [512, 2048] {
            let mut payload = vec![0; len - 1];
            let room = Codec::new().compress(encoding, &text[..len], &mut payload);
            payload.truncate(room.unwrap_or(0));
            seeds.push([vec![u8::try_from(at).unwrap_or(0), 3], payload].concat());
        }
    }
    seeds
}

/// Any payload inflates to a cluster or is refused; what the strict inflater takes, this one takes, and the same.
fn payloads(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let kind = if bytes.flag() { Compression::Zstd } else { Compression::Deflate };
    let cluster = 512 << (bytes.byte() % 6);
    let mut to = vec![0xee; cluster];
    let inflated = Codec::new().inflate(kind, bytes.rest(), &mut to);
    if kind == Compression::Deflate
        && let Ok(strict) = naive::inflate::inflate(bytes.rest(), 32 << 10, cluster)
        && strict.bytes.len() == cluster
    {
        assert!(inflated.is_ok(), "a good payload is refused");
        assert!(to == strict.bytes, "it inflates to something else");
    }
}
