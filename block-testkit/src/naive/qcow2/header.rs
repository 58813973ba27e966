//! The header and its extensions.
//!
//! What [`Header::parse`] returns keeps: `9 <= cluster_bits <= 21`, `refcount_order <= 6`, tables
//! aligned to clusters, table sizes at most what the format's description allows, and no
//! incompatible feature that is unknown.

use block_core::Problem;
use block_core::range::{to_u64, to_usize};

use super::error::{BadImage, field};
use crate::naive::bytes::Bytes;

const MAGIC: u32 = 0x5146_49fb;
const L1_BYTES_MAX: u64 = 32 << 20;
const REFTABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65536;
const BACKING_NAME_MAX: u32 = 1023;

const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_INCOMPATIBLE: u64 = 0x1f;
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_CRYPT: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// How compressed clusters are compressed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// A header extension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its data without padding.
    pub data: Vec<u8>,
}

/// One line of the feature name table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    pub kind: u8,
    /// Which bit.
    pub bit: u8,
    /// Its name, invalid UTF-8 replaced.
    pub name: String,
}

/// The header; field names are those of the format's description.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are those of the format's description")]
pub struct Header {
    pub version: u32,
    pub backing_file: Option<String>,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible_features: u64,
    pub compatible_features: u64,
    pub autoclear_features: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    pub compression: Compression,
    pub extensions: Vec<Extension>,
}

impl Header {
    pub(super) fn parse(file: Bytes<'_>) -> Result<Self, BadImage> {
        if file.u32(0) != MAGIC {
            return Err(field("magic", file.u32(0), Problem::Unknown));
        }
        let version = file.u32(4);
        if !(2..=3).contains(&version) {
            return Err(field("version", version, Problem::Unknown));
        }
        // Version 2 ends before these fields, and has the values that they stand for.
        let of_v3 = |value, v2| if version == 2 { v2 } else { value };
        let mut header = Self {
            version,
            backing_file: None,
            cluster_bits: file.u32(20),
            size: file.u64(24),
            crypt_method: file.u32(32),
            l1_size: file.u32(36),
            l1_table_offset: file.u64(40),
            refcount_table_offset: file.u64(48),
            refcount_table_clusters: file.u32(56),
            nb_snapshots: file.u32(60),
            snapshots_offset: file.u64(64),
            incompatible_features: of_v3(file.u64(72), 0),
            compatible_features: of_v3(file.u64(80), 0),
            autoclear_features: of_v3(file.u64(88), 0),
            refcount_order: if version == 2 { 4 } else { file.u32(96) },
            header_length: if version == 2 { 72 } else { file.u32(100) },
            compression: Compression::Zlib,
            extensions: Vec::new(),
        };
        header.check_numbers()?;
        header.check_tables()?;
        header.compression = header.read_compression(file)?;
        header.read_extensions(file)?;
        header.read_backing_name(file)?;
        header.check_features()?;
        Ok(header)
    }

    fn check_numbers(&self) -> Result<(), BadImage> {
        if self.cluster_bits < 9 {
            return Err(field("cluster_bits", self.cluster_bits, Problem::Below(9)));
        }
        if self.cluster_bits > 21 {
            return Err(field("cluster_bits", self.cluster_bits, Problem::Above(21)));
        }
        let unknown = self.incompatible_features & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(BadImage::Features { bits: unknown });
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(field("cluster_bits", self.cluster_bits, Problem::Below(14)));
        }
        if self.refcount_order > 6 {
            return Err(field("refcount_order", self.refcount_order, Problem::Above(6)));
        }
        if self.crypt_method > 2 {
            return Err(field("crypt_method", self.crypt_method, Problem::Unknown));
        }
        if self.version == 3 {
            let (name, length) = ("header_length", self.header_length);
            if length < 104 {
                return Err(field(name, length, Problem::Below(104)));
            }
            if !length.is_multiple_of(8) {
                return Err(field(name, length, Problem::Misaligned(8)));
            }
            if u64::from(length) > self.cluster_size() {
                return Err(field(name, length, Problem::Above(self.cluster_size())));
            }
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), BadImage> {
        let l1_bytes = u64::from(self.l1_size) * 8;
        let reftable_bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if l1_bytes > L1_BYTES_MAX {
            return Err(field("l1_size", self.l1_size, Problem::Above(L1_BYTES_MAX / 8)));
        }
        if reftable_bytes > REFTABLE_BYTES_MAX {
            let max = Problem::Above(REFTABLE_BYTES_MAX >> self.cluster_bits);
            return Err(field("refcount_table_clusters", self.refcount_table_clusters, max));
        }
        if self.refcount_table_clusters == 0 {
            return Err(field("refcount_table_clusters", 0u64, Problem::Zero));
        }
        if self.nb_snapshots > SNAPSHOTS_MAX {
            let max = Problem::Above(u64::from(SNAPSHOTS_MAX));
            return Err(field("nb_snapshots", self.nb_snapshots, max));
        }
        self.check_offset("l1_table_offset", self.l1_table_offset)?;
        self.check_offset("refcount_table_offset", self.refcount_table_offset)?;
        if self.nb_snapshots > 0 {
            self.check_offset("snapshots_offset", self.snapshots_offset)?;
        }
        let covered = u128::from(self.l1_size) * u128::from(self.l2_coverage());
        if u128::from(self.size) > covered {
            return Err(field("l1_size", self.l1_size, Problem::Contradicts("size")));
        }
        Ok(())
    }

    /// A table starts at a cluster, and nowhere near where its end would overflow.
    fn check_offset(&self, name: &'static str, offset: u64) -> Result<(), BadImage> {
        if !offset.is_multiple_of(self.cluster_size()) {
            return Err(field(name, offset, Problem::Misaligned(self.cluster_size())));
        }
        if offset > 1 << 62 {
            return Err(field(name, offset, Problem::Above(1 << 62)));
        }
        Ok(())
    }

    fn read_compression(&self, file: Bytes<'_>) -> Result<Compression, BadImage> {
        let present = self.version == 3 && self.header_length > 104;
        let kind = if present { file.u8(104) } else { 0 };
        let flagged = self.incompatible_features & COMPRESSION != 0;
        if flagged != (kind != 0) {
            let problem = Problem::Contradicts("incompatible_features");
            return Err(field("compression_type", kind, problem));
        }
        match kind {
            0 => Ok(Compression::Zlib),
            1 => Ok(Compression::Zstd),
            _ => Err(field("compression_type", kind, Problem::Unknown)),
        }
    }

    fn read_extensions(&mut self, file: Bytes<'_>) -> Result<(), BadImage> {
        let backing = file.u64(8);
        let end = match backing {
            0 => self.cluster_size(),
            offset => offset.min(self.cluster_size()),
        };
        let mut at = u64::from(self.header_length);
        while at + 8 <= end {
            let (kind, len) = (file.u32(at), u64::from(file.u32(at + 4)));
            if kind == EXT_END {
                break;
            }
            at += 8;
            if len > end - at {
                return Err(field("extension length", len, Problem::Truncated(end)));
            }
            let mut data = vec![0; to_usize(len)];
            file.copy_to(at, &mut data);
            self.extensions.push(Extension { kind, data });
            at += len.next_multiple_of(8);
        }
        Ok(())
    }

    fn read_backing_name(&mut self, file: Bytes<'_>) -> Result<(), BadImage> {
        let (offset, len) = (file.u64(8), file.u32(16));
        if offset == 0 {
            return Ok(());
        }
        if len > BACKING_NAME_MAX {
            let max = Problem::Above(u64::from(BACKING_NAME_MAX));
            return Err(field("backing_file_size", len, max));
        }
        if offset.saturating_add(u64::from(len)) > self.cluster_size() {
            let problem = Problem::Truncated(self.cluster_size());
            return Err(field("backing_file_offset", offset, problem));
        }
        let name = std::str::from_utf8(file.slice(offset, u64::from(len)));
        let name = name.map_err(|_| field("backing_file", offset, Problem::NotText))?;
        self.backing_file = Some(name.to_owned());
        Ok(())
    }

    fn check_features(&self) -> Result<(), BadImage> {
        if self.data_file_is_raw() && !self.has_data_file() {
            let problem = Problem::Contradicts("incompatible_features");
            return Err(field("autoclear_features", self.autoclear_features, problem));
        }
        let luks = self.crypt_method == 2;
        match self.crypt_header() {
            Some((offset, _)) if luks => self.check_offset("crypt header offset", offset),
            None if luks => Err(field("crypt header", 0u64, Problem::Missing)),
            _ => Ok(()),
        }
    }

    fn extension(&self, kind: u32) -> Option<&[u8]> {
        let found = self.extensions.iter().find(|e| e.kind == kind)?;
        Some(&found.data)
    }

    fn text_extension(&self, kind: u32) -> Option<String> {
        let data = self.extension(kind)?;
        Some(String::from_utf8_lossy(data).into_owned())
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bits of a refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Whether guest data is in another file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible_features & DATA_FILE != 0
    }

    /// Whether the data file can be read without this image.
    pub fn data_file_is_raw(&self) -> bool {
        self.autoclear_features & AUTOCLEAR_RAW_DATA != 0
    }

    /// Whether L2 entries have a bitmap of subclusters.
    pub fn extended_l2(&self) -> bool {
        self.incompatible_features & EXTENDED_L2 != 0
    }

    /// Bytes of one L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries() * self.cluster_size()
    }

    /// Bytes of the unit of allocation: a subcluster, or a cluster where there are none.
    pub fn granularity(&self) -> u64 {
        if self.extended_l2() { self.cluster_size() / 32 } else { self.cluster_size() }
    }

    /// Format of the backing file, where the image says so.
    pub fn backing_format(&self) -> Option<String> {
        self.text_extension(EXT_BACKING_FORMAT)
    }

    /// Name of the data file, where the image says so.
    pub fn data_file(&self) -> Option<String> {
        self.text_extension(EXT_DATA_FILE)
    }

    /// The feature name table; empty if there is none.
    pub fn feature_names(&self) -> Vec<FeatureName> {
        let table = self.extension(EXT_FEATURE_NAMES).unwrap_or_default();
        let entries = table.chunks_exact(48).map(Bytes::new);
        let parse = |entry: Bytes<'_>| {
            let name = entry.slice(2, 46).split(|b| *b == 0).next();
            FeatureName {
                kind: entry.u8(0),
                bit: entry.u8(1),
                name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
            }
        };
        entries.map(parse).collect()
    }

    /// Offset and length of the encryption header, where there is one.
    pub(super) fn crypt_header(&self) -> Option<(u64, u64)> {
        let data = Bytes::new(self.extension(EXT_CRYPT)?);
        Some((data.u64(0), data.u64(8)))
    }

    /// Count, directory size and directory offset of the bitmaps; `None` if there are none or the
    /// image says that they are not to be trusted.
    pub(super) fn bitmaps(&self) -> Result<Option<(u32, u64, u64)>, BadImage> {
        if self.autoclear_features & AUTOCLEAR_BITMAPS == 0 {
            return Ok(None);
        }
        let Some(data) = self.extension(EXT_BITMAPS) else {
            return Err(field("bitmaps extension", 0u64, Problem::Missing));
        };
        if data.len() != 24 {
            let len = to_u64(data.len());
            return Err(field("bitmaps extension length", len, Problem::Unknown));
        }
        let data = Bytes::new(data);
        let (count, reserved) = (data.u32(0), data.u32(4));
        let (size, offset) = (data.u64(8), data.u64(16));
        if count == 0 {
            return Err(field("nb_bitmaps", count, Problem::Zero));
        }
        if reserved != 0 {
            let mask = Problem::Reserved(u64::from(u32::MAX));
            return Err(field("bitmaps extension", reserved, mask));
        }
        self.check_offset("bitmap_directory_offset", offset)?;
        Ok(Some((count, size, offset)))
    }
}
