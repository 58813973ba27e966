//! The header: [`UnverifiedHeader`] is what can be said before the extensions are read, [`Header`]
//! is what may be relied on.
//!
//! Invariants of a [`Header`]: the L1 table has at most [`MAX_L1_BYTES`] and covers the disk; the
//! refcount table has 1 byte to [`MAX_REFCOUNT_TABLE_BYTES`]; at most [`MAX_SNAPSHOTS`] snapshots;
//! every table offset is a multiple of the cluster size and every table ends below 2^63; no
//! incompatible feature is set that [`Features`] does not name. What this version does not know (bits,
//! bytes after the known fields) is kept, so that a rewrite loses nothing; `encode.rs` writes it.
//!
//! Not here: whether the tables lie inside of the file (the header does not know its length).

use block_core::OpenError;
use block_core::error::Problem;
use block_core::range::{MAX_LEN, to_u64};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::geometry::{DataLocation, Geometry, L2Format, Version};
use crate::geometry::{MAX_CLUSTER_BITS, MIN_CLUSTER_BITS};
use crate::spec::extension::{Extensions, FeatureKind};
use crate::spec::{FORMAT, bad_field};
use crate::units::HostOffset;

mod encode;

/// First four bytes of an image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes that say all the header has to say to this version of the driver.
pub const HEADER_PREFIX: u64 = 112;
/// Largest L1 table in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Longest backing file name in bytes.
pub const MAX_BACKING_NAME: u64 = 1023;

/// Bytes of a version 2 header.
const V2_LEN: u32 = 72;
/// Bytes of the shortest version 3 header.
const V3_MIN_LEN: u32 = 104;
/// Bytes of a version 3 header as far as its fields are known.
const V3_KNOWN_LEN: u32 = 112;
/// No table ends beyond this offset.
const MAX_TABLE_END: u64 = 1 << 63;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U32,
    backing_name_offset: U64,
    backing_name_len: U32,
    cluster_bits: U32,
    disk_size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    snapshot_count: U32,
    snapshot_table_offset: U64,
}
const _: () = assert!(size_of::<RawHeader>() == 72);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeaderV3 {
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    header_length: U32,
}
const _: () = assert!(size_of::<RawHeaderV3>() == 32);

/// How guest data is encrypted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// AES-CBC by sectors, the old way.
    Aes,
    /// LUKS version 1.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Raw deflate, which tools call `zlib`.
    Deflate,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Name as tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deflate => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// The feature of this crate that it needs, if this program was built without it.
    pub const fn missing_feature(self) -> Option<&'static str> {
        let built = match self {
            Self::Deflate => cfg!(feature = "zlib"),
            Self::Zstd => cfg!(feature = "zstd"),
        };
        // Methods and features have the same names.
        if built { None } else { Some(self.name()) }
    }
}

/// The feature bits that this driver knows.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Refcounts may be too low or too high until repaired.
    pub dirty: bool,
    /// A writer found damage: the image must not be written.
    pub corrupt: bool,
    /// Guest data is in an external file.
    pub data_file: bool,
    /// The compression type is not the default.
    pub compression_type: bool,
    /// L2 entries are extended.
    pub extended_l2: bool,
    /// Refcounts are brought up to date lazily.
    pub lazy_refcounts: bool,
    /// The bitmaps extension is up to date.
    pub bitmaps: bool,
    /// The data file reads the same without the image.
    pub raw_data_file: bool,
}

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_INCOMPATIBLE: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
const LAZY_REFCOUNTS: u64 = 1 << 0;
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;
const KNOWN_COMPATIBLE: u64 = LAZY_REFCOUNTS;
pub(crate) const KNOWN_AUTOCLEAR: u64 = AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA_FILE;

/// A table of the image: where it is and how many entries it has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// First byte.
    pub offset: HostOffset,
    /// Number of entries (of clusters, for the refcount table).
    pub count: u32,
}

/// A part of the first cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Part {
    /// Bytes.
    pub fn len(self) -> usize {
        block_core::range::to_usize(self.end.saturating_sub(self.start))
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// These bytes of `cluster`, as far as it holds them.
    pub fn of(self, cluster: &[u8]) -> &[u8] {
        let at = |bytes| usize::try_from(bytes).map_or(cluster.len(), |n| n.min(cluster.len()));
        cluster.get(at(self.start)..at(self.end)).unwrap_or_default()
    }
}

/// A header whose extensions have not been looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnverifiedHeader {
    version: Version,
    cluster_bits: u32,
    header_length: u32,
    backing_name: Option<Part>,
    disk_size: u64,
    crypt_method: u32,
    l1: Table,
    refcount_table: Table,
    snapshots: Table,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    refcount_order: u32,
    compression_type: u8,
    additional: Vec<u8>,
}

/// A header that was checked as far as that is possible without the rest of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Sizes of the image.
    pub geometry: Geometry,
    /// Length of the disk in bytes.
    pub disk_len: u64,
    /// How guest data is encrypted.
    pub crypt_method: CryptMethod,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The features.
    pub features: Features,
    /// The L1 table, counted in entries.
    pub l1: Table,
    /// The refcount table, counted in clusters.
    pub refcount_table: Table,
    /// The snapshot table, counted in snapshots.
    pub snapshots: Table,
    /// Compatible bits that [`Features`] does not name.
    pub unknown_compatible: u64,
    /// Autoclear bits that [`Features`] does not name. Whoever opens the image for writing clears them.
    pub unknown_autoclear: u64,
    /// Where the backing file name stands in the first cluster.
    pub backing_name: Option<Part>,
    /// The bytes from the compression type's padding to the end of the header: 7 of padding, then
    /// fields that are not known. Empty if the header is of version 2 or ends before them.
    pub additional: Vec<u8>,
}

impl UnverifiedHeader {
    /// Parses the first bytes of an image: [`HEADER_PREFIX`] for the fields, the first cluster for what
    /// a rewrite must keep as well.
    pub fn parse(bytes: &[u8]) -> Result<Self, OpenError> {
        let Ok((raw, rest)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(too_short(bytes, V2_LEN));
        };
        if raw.magic != MAGIC {
            let value = u64::from(u32::from_be_bytes(raw.magic));
            return Err(bad_field("magic", value, Problem::Unknown));
        }
        let version = match raw.version.get() {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(bad_field("version", other.into(), Problem::Unknown)),
        };
        let mut header = Self::of_v2(raw, version)?;
        if version == Version::V3 {
            let Ok((v3, rest)) = RawHeaderV3::ref_from_prefix(rest) else {
                return Err(too_short(bytes, V3_MIN_LEN));
            };
            header.add_v3(v3, rest)?;
        }
        header.backing_name = backing_name(raw, header.header_length, header.cluster_size())?;
        Ok(header)
    }

    fn of_v2(raw: &RawHeader, version: Version) -> Result<Self, OpenError> {
        let cluster_bits = raw.cluster_bits.get();
        let problem = match cluster_bits {
            bits if bits < MIN_CLUSTER_BITS => Some(Problem::Below(MIN_CLUSTER_BITS.into())),
            bits if bits > MAX_CLUSTER_BITS => Some(Problem::Above(MAX_CLUSTER_BITS.into())),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(bad_field("cluster bits", cluster_bits.into(), problem));
        }
        let table = |offset: U64, count: U32| Table {
            offset: HostOffset::new(offset.get()),
            count: count.get(),
        };
        Ok(Self {
            version,
            cluster_bits,
            header_length: V2_LEN,
            backing_name: None,
            disk_size: raw.disk_size.get(),
            crypt_method: raw.crypt_method.get(),
            l1: table(raw.l1_table_offset, raw.l1_size),
            refcount_table: table(raw.refcount_table_offset, raw.refcount_table_clusters),
            snapshots: table(raw.snapshot_table_offset, raw.snapshot_count),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression_type: 0,
            additional: Vec::new(),
        })
    }

    /// Takes the fields of version 3 and what follows them in the header, as far as `rest` has it.
    fn add_v3(&mut self, raw: &RawHeaderV3, rest: &[u8]) -> Result<(), OpenError> {
        let len = raw.header_length.get();
        let problem = if len < V3_MIN_LEN {
            Some(Problem::Below(V3_MIN_LEN.into()))
        } else if u64::from(len) > self.cluster_size() {
            Some(Problem::Above(self.cluster_size()))
        } else if !len.is_multiple_of(8) {
            Some(Problem::Misaligned(8))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(bad_field("header length", len.into(), problem));
        }
        self.header_length = len;
        self.incompatible = raw.incompatible.get();
        self.compatible = raw.compatible.get();
        self.autoclear = raw.autoclear.get();
        self.refcount_order = raw.refcount_order.get();
        // A header that ends before the field means the default.
        let more = usize::try_from(len - V3_MIN_LEN).unwrap_or(usize::MAX);
        let more = rest.get(..more).unwrap_or(rest);
        if let Some((compression_type, additional)) = more.split_first() {
            self.compression_type = *compression_type;
            self.additional = additional.to_vec();
        }
        Ok(())
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the extensions are.
    pub fn extension_area(&self) -> Part {
        Part {
            start: self.header_length.into(),
            end: self.backing_name.map_or(self.cluster_size(), |n| n.start),
        }
    }

    /// Where the backing file name is, if there is one.
    pub fn backing_name(&self) -> Option<Part> {
        self.backing_name
    }

    /// Checks everything that depends on features, with the names that `extensions` give them.
    pub fn verify(self, extensions: &Extensions) -> Result<Header, OpenError> {
        let features = self.check_features(extensions)?;
        let compression = self.check_compression(features)?;
        let geometry = self.check_geometry(features)?;
        let crypt_method = match self.crypt_method {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            2 => CryptMethod::Luks,
            other => {
                return Err(bad_field("encryption method", other.into(), Problem::Unknown));
            }
        };
        if self.disk_size > MAX_LEN {
            let problem = Problem::Above(MAX_LEN);
            return Err(bad_field("disk size", self.disk_size, problem));
        }
        self.check_tables(geometry)?;
        Ok(Header {
            geometry,
            disk_len: self.disk_size,
            crypt_method,
            compression,
            features,
            l1: self.l1,
            refcount_table: self.refcount_table,
            snapshots: self.snapshots,
            unknown_compatible: self.compatible & !KNOWN_COMPATIBLE,
            unknown_autoclear: self.autoclear & !KNOWN_AUTOCLEAR,
            backing_name: self.backing_name,
            additional: self.additional,
        })
    }

    fn check_features(&self, extensions: &Extensions) -> Result<Features, OpenError> {
        let unknown = self.incompatible & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            let names = (0..64).filter(|bit| unknown & (1 << bit) != 0).map(|bit| match extensions
                .feature_name(FeatureKind::Incompatible, bit)
            {
                Some(name) => name.into_owned(),
                None => format!("incompatible bit {bit}"),
            });
            return Err(unsupported(names.collect::<Vec<_>>().join(", ")));
        }
        let has = |set: u64, bit: u64| set & bit != 0;
        Ok(Features {
            dirty: has(self.incompatible, DIRTY),
            corrupt: has(self.incompatible, CORRUPT),
            data_file: has(self.incompatible, DATA_FILE),
            compression_type: has(self.incompatible, COMPRESSION_TYPE),
            extended_l2: has(self.incompatible, EXTENDED_L2),
            lazy_refcounts: has(self.compatible, LAZY_REFCOUNTS),
            bitmaps: has(self.autoclear, AUTOCLEAR_BITMAPS),
            raw_data_file: has(self.autoclear, AUTOCLEAR_RAW_DATA_FILE),
        })
    }

    fn check_compression(&self, features: Features) -> Result<Compression, OpenError> {
        let kind = self.compression_type;
        if (kind != 0) != features.compression_type {
            let problem = Problem::Contradicts("the compression type feature bit");
            return Err(bad_field("compression type", kind.into(), problem));
        }
        match kind {
            0 => Ok(Compression::Deflate),
            1 => Ok(Compression::Zstd),
            other => Err(unsupported(format!("compression type {other}"))),
        }
    }

    fn check_geometry(&self, features: Features) -> Result<Geometry, OpenError> {
        let l2_format = if features.extended_l2 { L2Format::Extended } else { L2Format::Standard };
        let data_location =
            if features.data_file { DataLocation::DataFile } else { DataLocation::Image };
        let order = self.refcount_order;
        Geometry::new(self.version, self.cluster_bits, order, l2_format, data_location)
    }

    fn check_tables(&self, geometry: Geometry) -> Result<(), OpenError> {
        let needed = geometry.l1_entries_for(self.disk_size);
        let l1 = u64::from(self.l1.count);
        if l1 > MAX_L1_BYTES / 8 {
            return Err(bad_field("L1 size", l1, Problem::Above(MAX_L1_BYTES / 8)));
        }
        if l1 < needed {
            return Err(bad_field("L1 size", l1, Problem::Below(needed)));
        }
        check_place("L1 table offset", geometry, self.l1.offset, l1 * 8)?;

        let clusters = u64::from(self.refcount_table.count);
        let max = MAX_REFCOUNT_TABLE_BYTES / geometry.cluster_size();
        if clusters == 0 {
            return Err(bad_field("refcount table clusters", 0, Problem::Zero));
        }
        if clusters > max {
            let problem = Problem::Above(max);
            return Err(bad_field("refcount table clusters", clusters, problem));
        }
        let bytes = clusters * geometry.cluster_size();
        check_place("refcount table offset", geometry, self.refcount_table.offset, bytes)?;

        let count = self.snapshots.count;
        if count > MAX_SNAPSHOTS {
            let problem = Problem::Above(MAX_SNAPSHOTS.into());
            return Err(bad_field("snapshot count", count.into(), problem));
        }
        check_place("snapshot table offset", geometry, self.snapshots.offset, count.into())
    }
}

/// Whether a table of `bytes` may be at `offset`. A table without entries may be anywhere.
pub(crate) fn check_place(
    field: &'static str,
    geometry: Geometry,
    offset: HostOffset,
    bytes: u64,
) -> Result<(), OpenError> {
    let value = offset.bytes();
    let problem = if bytes == 0 {
        return Ok(());
    } else if value == 0 {
        Problem::Zero
    } else if geometry.offset_in_cluster(value) != 0 {
        Problem::Misaligned(geometry.cluster_size())
    } else if value.checked_add(bytes).is_none_or(|end| end > MAX_TABLE_END) {
        Problem::Above(MAX_TABLE_END - bytes)
    } else {
        return Ok(());
    };
    Err(bad_field(field, value, problem))
}

fn backing_name(
    raw: &RawHeader,
    header_length: u32,
    cluster_size: u64,
) -> Result<Option<Part>, OpenError> {
    let (start, len) = (raw.backing_name_offset.get(), u64::from(raw.backing_name_len.get()));
    if start == 0 || len == 0 {
        return Ok(None);
    }
    let bad_offset = |problem| Err(bad_field("backing file name offset", start, problem));
    if start > cluster_size {
        return bad_offset(Problem::Above(cluster_size));
    }
    if start < header_length.into() {
        return bad_offset(Problem::Overlap);
    }
    let max = MAX_BACKING_NAME.min(cluster_size - start);
    if len > max {
        let problem = Problem::Above(max);
        return Err(bad_field("backing file name length", len, problem));
    }
    let end = start + len;
    Ok(Some(Part { start, end }))
}

fn too_short(bytes: &[u8], needed: u32) -> OpenError {
    let problem = Problem::Below(needed.into());
    bad_field("file length", to_u64(bytes.len()), problem)
}

pub(crate) fn unsupported(names: String) -> OpenError {
    OpenError::UnsupportedFeature { format: FORMAT, names }
}

#[cfg(test)]
mod tests;
