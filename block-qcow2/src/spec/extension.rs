//! Header extensions: typed blocks between the header and the end of its cluster (or the backing
//! file name). Those that are not known are kept, for whoever writes the header again.
//!
//! Not here: what the numbers of the bitmaps extension point at ([`super::bitmap`]).

use std::borrow::Cow;

use block_core::OpenError;
use block_core::error::Problem;
use block_core::range::to_u64;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::spec::bad_field;
use crate::units::HostOffset;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE_NAME: u32 = 0x4441_5441;

/// Longest name of a backing format.
const MAX_FORMAT_NAME: u64 = 15;
/// Longest name of a data file.
pub const MAX_DATA_FILE_NAME: u64 = 1023;
/// Longest name of a feature bit.
pub const MAX_FEATURE_NAME: usize = 46;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtension {
    kind: U32,
    len: U32,
}
const _: () = assert!(size_of::<RawExtension>() == 8);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFeatureName {
    kind: u8,
    bit: u8,
    name: [u8; MAX_FEATURE_NAME],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBitmaps {
    count: U32,
    reserved: U32,
    directory_size: U64,
    directory_offset: U64,
}
const _: () = assert!(size_of::<RawBitmaps>() == 24);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCryptoHeader {
    offset: U64,
    len: U64,
}
const _: () = assert!(size_of::<RawCryptoHeader>() == 16);

/// Which set of feature bits a name belongs to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum FeatureKind {
    /// Readers that do not know it must refuse the image.
    Incompatible,
    /// Readers that do not know it may ignore it.
    Compatible,
    /// Writers that do not know it must clear it.
    Autoclear,
    /// A set that this version does not know.
    Unknown(u8),
}

impl FeatureKind {
    const fn of(raw: u8) -> Self {
        match raw {
            0 => Self::Incompatible,
            1 => Self::Compatible,
            2 => Self::Autoclear,
            other => Self::Unknown(other),
        }
    }

    const fn raw(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
            Self::Unknown(raw) => raw,
        }
    }
}

/// An entry of the feature name table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FeatureName {
    /// Set of bits.
    pub kind: FeatureKind,
    /// Number of the bit.
    pub bit: u8,
    /// Its name up to the first NUL, at most [`MAX_FEATURE_NAME`] bytes. The format does not say that
    /// it is text.
    pub name: Vec<u8>,
}

/// The names of all bits that this version knows.
pub fn known_feature_names() -> Vec<FeatureName> {
    let known = [
        (FeatureKind::Incompatible, 0, "dirty bit"),
        (FeatureKind::Incompatible, 1, "corrupt bit"),
        (FeatureKind::Incompatible, 2, "external data file"),
        (FeatureKind::Incompatible, 3, "compression type"),
        (FeatureKind::Incompatible, 4, "extended L2 entries"),
        (FeatureKind::Compatible, 0, "lazy refcounts"),
        (FeatureKind::Autoclear, 0, "bitmaps"),
        (FeatureKind::Autoclear, 1, "raw external data"),
    ];
    let entry = |(kind, bit, name): (_, _, &str)| FeatureName { kind, bit, name: name.into() };
    known.into_iter().map(entry).collect()
}

/// The bitmaps extension: where the bitmap directory is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct BitmapsExtension {
    /// How many bitmaps.
    pub count: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Its first byte.
    pub directory_offset: HostOffset,
}

impl BitmapsExtension {
    /// The whole extension: type, length, data.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawBitmaps {
            count: self.count.into(),
            reserved: self.reserved.into(),
            directory_size: self.directory_size.into(),
            directory_offset: self.directory_offset.bytes().into(),
        };
        let len = u32::try_from(size_of::<RawBitmaps>()).unwrap_or(u32::MAX);
        let head = RawExtension { kind: BITMAPS.into(), len: len.into() };
        [head.as_bytes(), raw.as_bytes()].concat()
    }
}

/// Where the bitmaps extension is in an extension area, in bytes from its start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// There, and whether the end marker follows it.
    At {
        /// Its first byte.
        at: u64,
        /// Whether it is the last one.
        last: bool,
    },
    /// Nowhere.
    None {
        /// Where the end marker is.
        end: u64,
    },
    /// It cannot be changed where it is: there are two, or the list ends without the marker.
    Unmarked,
}

/// Finds the bitmaps extension.
pub fn place_bitmaps(area: &[u8]) -> Place {
    let mut found = None;
    let mut at = 0;
    loop {
        let rest = area.get(at..).unwrap_or_default();
        let Ok((raw, rest)) = RawExtension::ref_from_prefix(rest) else { return Place::Unmarked };
        let (kind, len) = (raw.kind.get(), usize::try_from(raw.len.get()).unwrap_or(usize::MAX));
        if len > rest.len() {
            return Place::Unmarked;
        }
        let whole = size_of::<RawExtension>() + len.next_multiple_of(8);
        match kind {
            END => {
                return match found {
                    None => Place::None { end: to_u64(at) },
                    Some((first, end)) => Place::At { at: to_u64(first), last: end == at },
                };
            }
            BITMAPS if found.is_some() || len != size_of::<RawBitmaps>() => {
                return Place::Unmarked;
            }
            BITMAPS => found = Some((at, at + whole)),
            _ => {}
        }
        at += whole;
    }
}

/// An extension that this version does not know, or knows and keeps as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownExtension {
    /// Its type.
    pub kind: u32,
    /// Its contents, without padding.
    pub data: Vec<u8>,
}

/// The extensions of a header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// Names of feature bits.
    pub feature_names: Vec<FeatureName>,
    /// Where the bitmaps are.
    pub bitmaps: Option<BitmapsExtension>,
    /// First byte and length of the encryption header.
    pub crypto_header: Option<(HostOffset, u64)>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// Everything else, in order.
    pub unknown: Vec<UnknownExtension>,
}

impl Extensions {
    /// Parses the bytes between the header and the end of the extension area. An area that ends
    /// without the end marker ends the list all the same.
    pub fn parse(mut area: &[u8]) -> Result<Self, OpenError> {
        let mut all = Self::default();
        while let Ok((raw, rest)) = RawExtension::ref_from_prefix(area) {
            let (kind, len) = (raw.kind.get(), u64::from(raw.len.get()));
            if kind == END {
                break;
            }
            let room = to_u64(rest.len());
            let data = usize::try_from(len).ok().and_then(|n| rest.get(..n));
            let Some(data) = data else {
                let problem = Problem::Truncated(room);
                return Err(bad_field("header extension length", len, problem));
            };
            all.add(kind, data)?;
            // The padding of the last extension may be cut off by the end of the area.
            let padded = data.len().next_multiple_of(8).min(rest.len());
            area = rest.get(padded..).unwrap_or_default();
        }
        Ok(all)
    }

    fn add(&mut self, kind: u32, data: &[u8]) -> Result<(), OpenError> {
        match kind {
            BACKING_FORMAT => {
                let name = text("backing format", data, MAX_FORMAT_NAME)?;
                self.backing_format = Some(name);
            }
            DATA_FILE_NAME => {
                let name = text("data file name", data, MAX_DATA_FILE_NAME)?;
                self.data_file = Some(name);
            }
            FEATURE_NAMES => self.feature_names.extend(feature_names(data)),
            BITMAPS => {
                let raw: &RawBitmaps = exact("bitmaps extension length", data)?;
                self.bitmaps = Some(BitmapsExtension {
                    count: raw.count.get(),
                    reserved: raw.reserved.get(),
                    directory_size: raw.directory_size.get(),
                    directory_offset: HostOffset::new(raw.directory_offset.get()),
                });
            }
            CRYPTO_HEADER => {
                let raw: &RawCryptoHeader = exact("encryption header extension length", data)?;
                let offset = HostOffset::new(raw.offset.get());
                self.crypto_header = Some((offset, raw.len.get()));
            }
            _ => self.unknown.push(UnknownExtension { kind, data: data.to_vec() }),
        }
        Ok(())
    }

    /// Name of a feature bit, if the image gives one.
    pub fn feature_name(&self, kind: FeatureKind, bit: u32) -> Option<Cow<'_, str>> {
        let found = self.feature_names.iter().find(|f| f.kind == kind && u32::from(f.bit) == bit);
        found.filter(|f| !f.name.is_empty()).map(|f| String::from_utf8_lossy(&f.name))
    }

    /// The extension area: every extension, padded, and the end marker. Unknown ones come last, in
    /// their order. Refuses what [`Extensions::parse`] would not read back.
    pub fn encode(&self) -> Result<Vec<u8>, OpenError> {
        let mut area = Vec::new();
        if let Some(name) = &self.backing_format {
            text("backing format", name.as_bytes(), MAX_FORMAT_NAME)?;
            push(&mut area, BACKING_FORMAT, name.as_bytes())?;
        }
        if let Some(name) = &self.data_file {
            text("data file name", name.as_bytes(), MAX_DATA_FILE_NAME)?;
            push(&mut area, DATA_FILE_NAME, name.as_bytes())?;
        }
        if let Some((offset, len)) = self.crypto_header {
            let raw = RawCryptoHeader { offset: offset.bytes().into(), len: len.into() };
            push(&mut area, CRYPTO_HEADER, raw.as_bytes())?;
        }
        if !self.feature_names.is_empty() {
            let names: Result<Vec<_>, _> =
                self.feature_names.iter().map(FeatureName::raw).collect();
            push(&mut area, FEATURE_NAMES, names?.as_bytes())?;
        }
        if let Some(bitmaps) = &self.bitmaps {
            area.extend(bitmaps.encode());
        }
        for extension in &self.unknown {
            push(&mut area, extension.kind, &extension.data)?;
        }
        push(&mut area, END, &[])?;
        Ok(area)
    }
}

/// Appends an extension and its padding.
fn push(area: &mut Vec<u8>, kind: u32, data: &[u8]) -> Result<(), OpenError> {
    let len = u32::try_from(data.len()).map_err(|_| {
        let (len, problem) = (to_u64(data.len()), Problem::Above(u32::MAX.into()));
        bad_field("header extension length", len, problem)
    })?;
    area.extend_from_slice(RawExtension { kind: kind.into(), len: len.into() }.as_bytes());
    area.extend_from_slice(data);
    area.resize(area.len().next_multiple_of(8), 0);
    Ok(())
}

impl FeatureName {
    fn raw(&self) -> Result<RawFeatureName, OpenError> {
        let mut name = [0; MAX_FEATURE_NAME];
        let Some(place) = name.get_mut(..self.name.len()) else {
            let problem = Problem::Above(to_u64(MAX_FEATURE_NAME));
            return Err(bad_field("feature name", to_u64(self.name.len()), problem));
        };
        place.copy_from_slice(&self.name);
        Ok(RawFeatureName { kind: self.kind.raw(), bit: self.bit, name })
    }
}

/// The table's whole entries.
fn feature_names(data: &[u8]) -> impl Iterator<Item = FeatureName> {
    data.chunks_exact(size_of::<RawFeatureName>()).filter_map(|chunk| {
        let raw = RawFeatureName::ref_from_bytes(chunk).ok()?;
        let name = raw.name.split(|b| *b == 0).next().unwrap_or_default();
        Some(FeatureName { kind: FeatureKind::of(raw.kind), bit: raw.bit, name: name.to_vec() })
    })
}

/// The struct that fills `data`, no more and no less.
fn exact<'a, T>(field: &'static str, data: &'a [u8]) -> Result<&'a T, OpenError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let len = to_u64(data.len());
    T::ref_from_bytes(data).map_err(|_| {
        let size = to_u64(size_of::<T>());
        let problem = if len < size { Problem::Below(size) } else { Problem::Above(size) };
        bad_field(field, len, problem)
    })
}

/// Text without NUL, of at most `max` bytes.
pub(crate) fn text(field: &'static str, data: &[u8], max: u64) -> Result<String, OpenError> {
    let len = to_u64(data.len());
    if len > max {
        return Err(bad_field(field, len, Problem::Above(max)));
    }
    match std::str::from_utf8(data) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(bad_field(field, len, Problem::NotText)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).unwrap();
        let mut bytes = [kind.to_be_bytes(), len.to_be_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn each_kind_is_read_and_unknown_ones_are_kept() {
        let mut name = [0u8; 48];
        name[1] = 5;
        name[2..6].copy_from_slice(b"many");
        let area = [
            extension(BACKING_FORMAT, b"raw"),
            extension(0x1234_5678, b"xyz"),
            extension(FEATURE_NAMES, &name),
            extension(DATA_FILE_NAME, b"data.raw"),
            extension(CRYPTO_HEADER, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
            extension(END, b""),
            extension(BACKING_FORMAT, b"not looked at"),
        ];
        let all = Extensions::parse(&area.concat()).unwrap();
        assert_eq!(all.backing_format.as_deref(), Some("raw"));
        assert_eq!(all.data_file.as_deref(), Some("data.raw"));
        assert_eq!(all.crypto_header, Some((HostOffset::new(0x1_0000), 9)));
        assert_eq!(all.feature_name(FeatureKind::Incompatible, 5).as_deref(), Some("many"));
        assert_eq!(all.feature_name(FeatureKind::Compatible, 5), None);
        let kept = [(0x1234_5678, b"xyz".to_vec())];
        let kept = kept.map(|(kind, data)| UnknownExtension { kind, data });
        assert_eq!(all.unknown, kept);
    }

    #[test]
    fn lengths_that_do_not_fit_are_named() {
        let check = |area: &[u8], expect: &str| {
            let err = Extensions::parse(area).unwrap_err().to_string();
            assert!(err.contains(expect), "{err}");
        };
        check(&[0xff, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3], "header extension length is 0x100");
        check(&[0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], "0xffffffff");
        check(&extension(BITMAPS, &[0; 23]), "bitmaps extension length is 0x17");
        check(&extension(CRYPTO_HEADER, &[0; 17]), "encryption header extension length is 0x11");
        check(&extension(BACKING_FORMAT, &[b'a'; 16]), "backing format is 0x10");
        check(&extension(BACKING_FORMAT, &[0xff]), "not valid text");
        check(&extension(DATA_FILE_NAME, b"a\0b"), "data file name is not valid text");
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let long =
            |name: FeatureName| Extensions { feature_names: vec![name], ..Default::default() };
        let name = FeatureName { kind: FeatureKind::Compatible, bit: 0, name: vec![b'a'; 47] };
        let cases = [
            (long(name), "feature name is 0x2f"),
            (
                Extensions { backing_format: Some("a".repeat(16)), ..Default::default() },
                "backing format is 0x10",
            ),
            (
                Extensions { data_file: Some("a\0".to_owned()), ..Default::default() },
                "data file name is not valid text",
            ),
        ];
        for (extensions, expect) in cases {
            let err = extensions.encode().unwrap_err().to_string();
            assert!(err.contains(expect), "{err}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(all) = Extensions::parse(&bytes) {
                let encoded = all.encode().unwrap();
                prop_assert_eq!(encoded.len() % 8, 0);
                prop_assert_eq!(Extensions::parse(&encoded).unwrap(), all);
            }
        }

        #[test]
        fn any_lengths_of_known_kinds(
            kinds in prop::collection::vec((0usize..7, 0usize..64), 0..6),
        ) {
            let all = [0, BACKING_FORMAT, FEATURE_NAMES, BITMAPS, CRYPTO_HEADER, DATA_FILE_NAME, 9];
            let area: Vec<_> = kinds
                .iter()
                .flat_map(|(kind, len)| extension(all[*kind], &vec![b'x'; *len]))
                .collect();
            if let Ok(all) = Extensions::parse(&area) {
                prop_assert_eq!(Extensions::parse(&all.encode().unwrap()).unwrap(), all);
            }
        }
    }
}
