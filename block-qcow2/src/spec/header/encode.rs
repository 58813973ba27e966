//! Headers back to bytes: the first cluster, or only the fields at its start.
//!
//! Invariants: what [`Header::encode`] returns parses to the header and the extensions it was made
//! from; what [`Header::encode_fixed`] returns lies in the first sector, so that a write of it is
//! atomic, and moves nothing that stands behind it.

use block_core::OpenError;
use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use zerocopy::IntoBytes;

use super::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE, COMPRESSION_TYPE, CORRUPT, Compression,
    CryptMethod, DATA_FILE, DIRTY, EXTENDED_L2, Features, Header, LAZY_REFCOUNTS, MAGIC,
    MAX_BACKING_NAME, Part, RawHeader, RawHeaderV3, UnverifiedHeader, V2_LEN, V3_KNOWN_LEN,
    V3_MIN_LEN,
};
use crate::geometry::Version;
use crate::spec::bad_field;
use crate::spec::extension::Extensions;

/// Bytes that storage writes as a whole or not at all.
const SECTOR: usize = 512;

impl Features {
    /// The incompatible bits.
    pub fn incompatible(self) -> u64 {
        bits(&[
            (self.dirty, DIRTY),
            (self.corrupt, CORRUPT),
            (self.data_file, DATA_FILE),
            (self.compression_type, COMPRESSION_TYPE),
            (self.extended_l2, EXTENDED_L2),
        ])
    }

    /// The compatible bits.
    pub fn compatible(self) -> u64 {
        bits(&[(self.lazy_refcounts, LAZY_REFCOUNTS)])
    }

    /// The autoclear bits.
    pub fn autoclear(self) -> u64 {
        bits(&[(self.bitmaps, AUTOCLEAR_BITMAPS), (self.raw_data_file, AUTOCLEAR_RAW_DATA_FILE)])
    }
}

fn bits(all: &[(bool, u64)]) -> u64 {
    all.iter().filter(|(set, _)| *set).fold(0, |sum, (_, bit)| sum | bit)
}

impl Header {
    /// Bytes of the header, where the extensions start.
    pub fn header_length(&self) -> u32 {
        match self.geometry.version() {
            Version::V2 => V2_LEN,
            Version::V3 if self.additional.is_empty() => V3_MIN_LEN,
            // No header is longer than a cluster.
            Version::V3 => u32::try_from(self.additional.len())
                .map_or(u32::MAX, |more| more.saturating_add(V3_MIN_LEN + 1)),
        }
    }

    /// The used bytes of the first cluster: header, extensions, backing file name. A header of version 3
    /// is written with all the fields that are known, however short it was.
    ///
    /// Records where the name now stands, so that [`Header::encode_fixed`] agrees from here on. Fails,
    /// with nothing changed, if the cluster is too small or the header would not be read back.
    pub fn encode(
        &mut self,
        extensions: &Extensions,
        backing_name: Option<&[u8]>,
    ) -> Result<Vec<u8>, OpenError> {
        let mut new = self.clone();
        let known = to_usize((V3_KNOWN_LEN - V3_MIN_LEN - 1).into());
        match new.geometry.version() {
            Version::V2 => new.additional.clear(),
            Version::V3 if new.additional.len() < known => new.additional.resize(known, 0),
            Version::V3 => {}
        }
        let area = extensions.encode()?;
        let name = backing_name.unwrap_or_default();
        let start = u64::from(new.header_length()) + to_u64(area.len());
        new.backing_name = place(start, to_u64(name.len()), self.geometry.cluster_size())?;

        let cluster = [new.fields(), area, name.to_vec()].concat();
        UnverifiedHeader::parse(&cluster)?.verify(extensions)?;
        *self = new;
        Ok(cluster)
    }

    /// The header alone, as far as it lies in the first sector: what may be written in place.
    pub fn encode_fixed(&self) -> Vec<u8> {
        let mut fields = self.fields();
        fields.truncate(SECTOR);
        fields
    }

    fn fields(&self) -> Vec<u8> {
        let geometry = self.geometry;
        let name = self.backing_name.unwrap_or(Part { start: 0, end: 0 });
        let version: u32 = match geometry.version() {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        let crypt_method: u32 = match self.crypt_method {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
        };
        let raw = RawHeader {
            magic: MAGIC,
            version: version.into(),
            backing_name_offset: name.start.into(),
            backing_name_len: u32::try_from(name.len()).unwrap_or(u32::MAX).into(),
            cluster_bits: geometry.cluster_bits().into(),
            disk_size: self.disk_len.into(),
            crypt_method: crypt_method.into(),
            l1_size: self.l1.count.into(),
            l1_table_offset: self.l1.offset.bytes().into(),
            refcount_table_offset: self.refcount_table.offset.bytes().into(),
            refcount_table_clusters: self.refcount_table.count.into(),
            snapshot_count: self.snapshots.count.into(),
            snapshot_table_offset: self.snapshots.offset.bytes().into(),
        };
        let mut fields = raw.as_bytes().to_vec();
        if geometry.version() == Version::V3 {
            let v3 = RawHeaderV3 {
                incompatible: self.features.incompatible().into(),
                compatible: (self.features.compatible() | self.unknown_compatible).into(),
                autoclear: (self.features.autoclear() | self.unknown_autoclear).into(),
                refcount_order: geometry.refcount_bits().ilog2().into(),
                header_length: self.header_length().into(),
            };
            fields.extend_from_slice(v3.as_bytes());
            if !self.additional.is_empty() {
                fields.push(match self.compression {
                    Compression::Deflate => 0,
                    Compression::Zstd => 1,
                });
                fields.extend_from_slice(&self.additional);
            }
        }
        fields
    }
}

/// Where a backing file name of `len` bytes stands if the extensions end at `start`.
fn place(start: u64, len: u64, cluster_size: u64) -> Result<Option<Part>, OpenError> {
    if len > MAX_BACKING_NAME {
        let problem = Problem::Above(MAX_BACKING_NAME);
        return Err(bad_field("backing file name length", len, problem));
    }
    let end = start.saturating_add(len);
    if end > cluster_size {
        return Err(bad_field(
            "length of header and extensions",
            end,
            Problem::Above(cluster_size),
        ));
    }
    Ok((len > 0).then_some(Part { start, end }))
}
