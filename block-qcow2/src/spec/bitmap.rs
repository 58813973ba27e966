//! Entries of the bitmap directory: of variable length, each padded to 8 bytes.
//!
//! Not here: the bitmap tables and the bits themselves; this issue lists bitmaps and reads none.

use block_core::OpenError;
use block_core::error::Problem;
use block_core::range::to_u64;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::geometry::Geometry;
use crate::spec::bad_field;
use crate::spec::extension::{BitmapsExtension, text};
use crate::spec::header::check_place;
use crate::units::HostOffset;

/// Most bitmaps of an image.
pub const MAX_BITMAPS: u32 = 65535;
/// Largest directory in bytes.
pub const MAX_DIRECTORY_BYTES: u64 = 1024 * 65535;
/// Longest name in bytes.
pub const MAX_NAME: u64 = 1023;
/// Largest bitmap table in entries.
pub const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
/// Bytes of the fixed part of an entry.
pub const FIXED_BYTES: usize = size_of::<RawEntry>();

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
const TYPE_DIRTY_TRACKING: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    table_offset: U64,
    table_size: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_len: U16,
    extra_len: U32,
}
const _: () = assert!(size_of::<RawEntry>() == 24);

/// One bitmap of the directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Guest bytes that one bit stands for.
    pub granularity: u64,
    /// It was not saved properly: its bits are not to be trusted.
    pub in_use: bool,
    /// It records writes as soon as the image is opened.
    pub auto: bool,
    /// First byte of its table.
    pub table_offset: HostOffset,
    /// Entries of its table.
    pub table_size: u32,
    /// Extra data, which may be ignored: an entry whose extra data must not be is refused.
    pub extra: Vec<u8>,
}

impl BitmapsExtension {
    /// Checks the numbers before anything is read by them.
    pub fn verify(&self, geometry: Geometry) -> Result<(), OpenError> {
        if self.reserved != 0 {
            let (value, problem) = (self.reserved.into(), Problem::Reserved(u32::MAX.into()));
            return Err(bad_field("reserved field of the bitmaps extension", value, problem));
        }
        let (count, size) = (u64::from(self.count), self.directory_size);
        let above = |field, value, max| {
            if value == 0 {
                Err(bad_field(field, value, Problem::Zero))
            } else if value > max {
                Err(bad_field(field, value, Problem::Above(max)))
            } else {
                Ok(())
            }
        };
        above("bitmap count", count, MAX_BITMAPS.into())?;
        above("bitmap directory size", size, MAX_DIRECTORY_BYTES)?;
        check_place("bitmap directory offset", geometry, self.directory_offset, size)
    }
}

/// Bytes of the entry that starts with these, padding included; `None` if they are not even its
/// fixed part.
pub fn entry_len(bytes: &[u8]) -> Result<Option<usize>, OpenError> {
    let Ok((raw, _)) = RawEntry::ref_from_prefix(bytes) else {
        return Ok(None);
    };
    let extra = u64::from(raw.extra_len.get());
    if extra > MAX_DIRECTORY_BYTES {
        let problem = Problem::Above(MAX_DIRECTORY_BYTES);
        return Err(bad_field("bitmap extra data size", extra, problem));
    }
    let extra = block_core::range::to_usize(extra);
    let len = FIXED_BYTES + extra + usize::from(raw.name_len.get());
    Ok(Some(len.next_multiple_of(8)))
}

/// Parses an entry of [`entry_len`] bytes. The padding may be missing.
pub fn parse(bytes: &[u8]) -> Result<Bitmap, OpenError> {
    let truncated = || {
        let len = to_u64(bytes.len());
        bad_field("bitmap directory entry", len, Problem::Truncated(len))
    };
    entry_len(bytes)?;
    let (raw, rest) = RawEntry::ref_from_prefix(bytes).map_err(|_| truncated())?;
    check(raw)?;
    let extra = usize::try_from(raw.extra_len.get()).map_err(|_| truncated())?;
    let (extra, rest) = rest.split_at_checked(extra).ok_or_else(truncated)?;
    let name = rest.get(..raw.name_len.get().into()).ok_or_else(truncated)?;
    if name.is_empty() {
        return Err(bad_field("bitmap name length", 0, Problem::Zero));
    }
    let flags = raw.flags.get();
    Ok(Bitmap {
        name: text("bitmap name", name, MAX_NAME)?,
        granularity: 1 << raw.granularity_bits,
        in_use: flags & IN_USE != 0,
        auto: flags & AUTO != 0,
        table_offset: HostOffset::new(raw.table_offset.get()),
        table_size: raw.table_size.get(),
        extra: extra.to_vec(),
    })
}

/// The entry of `bitmap`, padding included. Fails if it would not be read back.
pub fn encode(bitmap: &Bitmap) -> Result<Vec<u8>, OpenError> {
    if !bitmap.granularity.is_power_of_two() {
        return Err(bad_field("bitmap granularity", bitmap.granularity, Problem::NotPowerOfTwo));
    }
    let extra_len = to_u64(bitmap.extra.len());
    let too_long = |_| {
        let problem = Problem::Above(MAX_DIRECTORY_BYTES);
        bad_field("bitmap extra data size", extra_len, problem)
    };
    let name_len = to_u64(bitmap.name.len());
    let long_name = |_| bad_field("bitmap name", name_len, Problem::Above(MAX_NAME));
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(bitmap.in_use, IN_USE)
        | flag(bitmap.auto, AUTO)
        | flag(!bitmap.extra.is_empty(), EXTRA_DATA_COMPATIBLE);
    let raw = RawEntry {
        table_offset: bitmap.table_offset.bytes().into(),
        table_size: bitmap.table_size.into(),
        flags: flags.into(),
        kind: TYPE_DIRTY_TRACKING,
        // A logarithm of 64 bits fits.
        granularity_bits: u8::try_from(bitmap.granularity.ilog2()).unwrap_or(u8::MAX),
        name_len: u16::try_from(name_len).map_err(long_name)?.into(),
        extra_len: u32::try_from(extra_len).map_err(too_long)?.into(),
    };
    let mut bytes = [raw.as_bytes(), &bitmap.extra, bitmap.name.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    parse(&bytes)?;
    Ok(bytes)
}

fn check(raw: &RawEntry) -> Result<(), OpenError> {
    if raw.kind != TYPE_DIRTY_TRACKING {
        return Err(bad_field("bitmap type", raw.kind.into(), Problem::Unknown));
    }
    let bits = u64::from(raw.granularity_bits);
    let granularity = |problem| Err(bad_field("bitmap granularity bits", bits, problem));
    if bits < 9 {
        return granularity(Problem::Below(9));
    }
    if bits > 31 {
        return granularity(Problem::Above(31));
    }
    let unknown = raw.flags.get() & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE);
    if unknown != 0 {
        let problem = Problem::Reserved(unknown.into());
        return Err(bad_field("bitmap flags", raw.flags.get().into(), problem));
    }
    // Extra data that nobody knows may change what the bits mean, unless its writer says otherwise.
    if raw.extra_len.get() != 0 && raw.flags.get() & EXTRA_DATA_COMPATIBLE == 0 {
        let len = raw.extra_len.get().into();
        return Err(bad_field("bitmap extra data size", len, Problem::Above(0)));
    }
    let size = raw.table_size.get();
    if size > MAX_TABLE_ENTRIES {
        let problem = Problem::Above(MAX_TABLE_ENTRIES.into());
        return Err(bad_field("bitmap table size", size.into(), problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(change: impl FnOnce(&mut RawEntry)) -> Vec<u8> {
        let mut raw = RawEntry {
            table_offset: 0x7_0000.into(),
            table_size: 1.into(),
            flags: AUTO.into(),
            kind: 1,
            granularity_bits: 16,
            name_len: 4.into(),
            extra_len: 0.into(),
        };
        change(&mut raw);
        [raw.as_bytes(), b"name\0\0\0\0"].concat()
    }

    #[test]
    fn a_good_entry_is_read_and_wrong_fields_are_named() {
        let bitmap = parse(&entry(|_| ())).unwrap();
        assert_eq!((bitmap.name.as_str(), bitmap.granularity), ("name", 65536));
        assert!(bitmap.auto && !bitmap.in_use);
        type Change = fn(&mut RawEntry);
        let cases: &[(Change, &str)] = &[
            (|r| r.kind = 2, "bitmap type is 0x2"),
            (|r| r.granularity_bits = 8, "bitmap granularity bits is 0x8"),
            (|r| r.granularity_bits = 255, "bitmap granularity bits is 0xff"),
            (|r| r.flags = 8.into(), "bitmap flags is 0x8"),
            (|r| r.extra_len = 4.into(), "bitmap extra data size is 0x4"),
            (|r| r.extra_len = u32::MAX.into(), "bitmap extra data size is 0xffffffff"),
            (|r| r.table_size = u32::MAX.into(), "bitmap table size"),
            (|r| r.name_len = 0.into(), "bitmap name length is 0x0"),
            (|r| r.name_len = 1024.into(), "bitmap directory entry"),
        ];
        for (change, expect) in cases {
            let err = parse(&entry(change)).unwrap_err().to_string();
            assert!(err.contains(expect), "expected {expect:?} in {err:?}");
        }
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let good = parse(&entry(|_| ())).unwrap();
        let cases = [
            (Bitmap { granularity: 3, ..good.clone() }, "bitmap granularity is 0x3"),
            (Bitmap { granularity: 256, ..good.clone() }, "bitmap granularity bits is 0x8"),
            (Bitmap { name: String::new(), ..good.clone() }, "bitmap name length is 0x0"),
            (Bitmap { name: "a".repeat(1024), ..good.clone() }, "bitmap name is 0x400"),
            (Bitmap { name: "a".repeat(65536), ..good.clone() }, "bitmap name is 0x10000"),
            (Bitmap { table_size: u32::MAX, ..good }, "bitmap table size"),
        ];
        for (bitmap, expect) in cases {
            let err = encode(&bitmap).unwrap_err().to_string();
            assert!(err.contains(expect), "expected {expect:?} in {err:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = entry_len(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read_the_same(
            name in "[a-z\u{e4}]{1,40}",
            bits in 9u32..=31,
            (in_use, auto) in any::<(bool, bool)>(),
            table_offset: u64,
            table_size in 0..=MAX_TABLE_ENTRIES,
            extra in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (granularity, table_offset) = (1 << bits, HostOffset::new(table_offset));
            let bitmap =
                Bitmap { name, granularity, in_use, auto, table_offset, table_size, extra };
            let bytes = encode(&bitmap).unwrap();
            prop_assert_eq!(entry_len(&bytes).unwrap(), Some(bytes.len()));
            prop_assert_eq!(parse(&bytes).unwrap(), bitmap);
        }
    }
}
