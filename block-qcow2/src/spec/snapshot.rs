//! Entries of the snapshot table: of variable length, each padded to 8 bytes.
//!
//! Not here: the L1 table of a snapshot; its place and size are kept as they stand in the entry.

use block_core::OpenError;
use block_core::error::Problem;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::spec::bad_field;
use crate::spec::header::Table;
use crate::units::HostOffset;

/// Most bytes of extra data in an entry.
pub const MAX_EXTRA_BYTES: u32 = 1024;
/// Instruction count of an entry that has none.
const NO_COUNT: u64 = u64::MAX;
/// Bytes of the fixed part of an entry.
pub const FIXED_BYTES: usize = size_of::<RawEntry>();

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    l1_table_offset: U64,
    l1_size: U32,
    id_len: U16,
    name_len: U16,
    date_seconds: U32,
    date_nanoseconds: U32,
    vm_clock_nanoseconds: U64,
    vm_state_size: U32,
    extra_len: U32,
}
const _: () = assert!(size_of::<RawEntry>() == 40);

/// The extra data that is known, each field there only if the data is long enough.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtra {
    vm_state_size: U64,
    disk_size: U64,
    instruction_count: U64,
}
const _: () = assert!(size_of::<RawExtra>() == 24);

/// One internal snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its L1 table, counted in entries. Not checked.
    pub l1: Table,
    /// Unique id.
    pub id: String,
    /// Name given by the user.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub date_seconds: u32,
    /// Nanoseconds part of the date.
    pub date_nanoseconds: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of saved machine state.
    pub vm_state_size: u64,
    /// Length of the disk, where the entry says so.
    pub disk_len: Option<u64>,
    /// Instruction count, where the entry has one.
    pub instruction_count: Option<u64>,
    /// Id and name as they stand in the entry, if one of them is not text: a rewrite keeps them.
    pub not_text: Option<(Vec<u8>, Vec<u8>)>,
    /// Extra data after what is known.
    pub unknown_extra: Vec<u8>,
}

/// Bytes of the entry that starts with these, padding included; `None` if they are not even its
/// fixed part.
pub fn entry_len(bytes: &[u8]) -> Result<Option<usize>, OpenError> {
    let Ok((raw, _)) = RawEntry::ref_from_prefix(bytes) else {
        return Ok(None);
    };
    let extra = raw.extra_len.get();
    if extra > MAX_EXTRA_BYTES {
        let problem = Problem::Above(MAX_EXTRA_BYTES.into());
        return Err(bad_field("snapshot extra data size", extra.into(), problem));
    }
    let parts = [raw.id_len.get(), raw.name_len.get()].map(usize::from);
    // Bounded by 40 + 1024 + 2 * 65535 + 7.
    let extra = usize::try_from(extra).unwrap_or(usize::MAX);
    let len = FIXED_BYTES + extra + parts[0] + parts[1];
    Ok(Some(len.next_multiple_of(8)))
}

/// Parses an entry of [`entry_len`] bytes. The padding may be missing.
pub fn parse(bytes: &[u8]) -> Result<Snapshot, OpenError> {
    let truncated = || {
        let len = block_core::range::to_u64(bytes.len());
        bad_field("snapshot table entry", len, Problem::Truncated(len))
    };
    entry_len(bytes)?;
    let (raw, rest) = RawEntry::ref_from_prefix(bytes).map_err(|_| truncated())?;
    let extra = usize::try_from(raw.extra_len.get()).map_err(|_| truncated())?;
    let (extra, rest) = rest.split_at_checked(extra).ok_or_else(truncated)?;
    let id = rest.split_at_checked(raw.id_len.get().into());
    let (id, rest) = id.ok_or_else(truncated)?;
    let name = rest.get(..raw.name_len.get().into()).ok_or_else(truncated)?;
    let field = |index: usize| {
        let bytes = extra.get(index * 8..index * 8 + 8)?;
        Some(U64::ref_from_bytes(bytes).ok()?.get())
    };
    let is_text = std::str::from_utf8(id).is_ok() && std::str::from_utf8(name).is_ok();
    Ok(Snapshot {
        l1: Table { offset: HostOffset::new(raw.l1_table_offset.get()), count: raw.l1_size.get() },
        id: String::from_utf8_lossy(id).into_owned(),
        name: String::from_utf8_lossy(name).into_owned(),
        date_seconds: raw.date_seconds.get(),
        date_nanoseconds: raw.date_nanoseconds.get(),
        vm_clock_nanoseconds: raw.vm_clock_nanoseconds.get(),
        vm_state_size: field(0).unwrap_or_else(|| raw.vm_state_size.get().into()),
        disk_len: field(1),
        instruction_count: field(2).filter(|count| *count != NO_COUNT),
        not_text: (!is_text).then(|| (id.to_vec(), name.to_vec())),
        unknown_extra: extra.get(size_of::<RawExtra>()..).unwrap_or_default().to_vec(),
    })
}

/// The entry of `snapshot`, padding included. It has the extra data that is known as soon as it knows
/// the length of the disk, as version 3 demands. Fails if a length does not fit its field.
pub fn encode(snapshot: &Snapshot) -> Result<Vec<u8>, OpenError> {
    let as_text = (snapshot.id.as_bytes(), snapshot.name.as_bytes());
    let raw = snapshot.not_text.as_ref().map(|(id, name)| (id.as_slice(), name.as_slice()));
    let (id, name) = raw.unwrap_or(as_text);
    let extra = extra_of(snapshot);
    let entry = RawEntry {
        l1_table_offset: snapshot.l1.offset.bytes().into(),
        l1_size: snapshot.l1.count.into(),
        id_len: len16("snapshot id length", id)?.into(),
        name_len: len16("snapshot name length", name)?.into(),
        date_seconds: snapshot.date_seconds.into(),
        date_nanoseconds: snapshot.date_nanoseconds.into(),
        vm_clock_nanoseconds: snapshot.vm_clock_nanoseconds.into(),
        // A state that is too large for this field stands in the extra data.
        vm_state_size: u32::try_from(snapshot.vm_state_size).unwrap_or(0).into(),
        extra_len: u32::try_from(extra.len()).unwrap_or(u32::MAX).into(),
    };
    let mut bytes = [entry.as_bytes(), &extra, id, name].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    // Refuses extra data that is too long.
    entry_len(&bytes)?;
    Ok(bytes)
}

fn extra_of(snapshot: &Snapshot) -> Vec<u8> {
    let Some(disk_len) = snapshot.disk_len else {
        let is_large = snapshot.vm_state_size > u32::MAX.into();
        return if is_large { snapshot.vm_state_size.to_be_bytes().to_vec() } else { Vec::new() };
    };
    let known = RawExtra {
        vm_state_size: snapshot.vm_state_size.into(),
        disk_size: disk_len.into(),
        instruction_count: snapshot.instruction_count.unwrap_or(NO_COUNT).into(),
    };
    [known.as_bytes(), &snapshot.unknown_extra].concat()
}

fn len16(field: &'static str, bytes: &[u8]) -> Result<u16, OpenError> {
    u16::try_from(bytes.len()).map_err(|_| {
        let len = block_core::range::to_u64(bytes.len());
        bad_field(field, len, Problem::Above(u16::MAX.into()))
    })
}

/// The bytes of an entry whose extra data ends before the length of the disk, with extra data that
/// says it. `parsed` is what [`parse`] makes of `bytes`.
pub(crate) fn with_disk_len(bytes: &[u8], parsed: &Snapshot, disk_len: u64) -> Vec<u8> {
    let Ok((raw, rest)) = RawEntry::ref_from_prefix(bytes) else {
        return bytes.to_vec();
    };
    let old = usize::try_from(raw.extra_len.get()).unwrap_or(usize::MAX).min(rest.len());
    let extra = [parsed.vm_state_size.to_be_bytes(), disk_len.to_be_bytes()].concat();
    let fixed = RawEntry { extra_len: 16.into(), ..*raw };
    let names = rest.get(old..).unwrap_or_default();
    [fixed.as_bytes(), &extra, names].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(extra: &[u8], id: &str, name: &str) -> Vec<u8> {
        let raw = RawEntry {
            l1_table_offset: 0x5_0000.into(),
            l1_size: 3.into(),
            id_len: u16::try_from(id.len()).unwrap().into(),
            name_len: u16::try_from(name.len()).unwrap().into(),
            date_seconds: 4.into(),
            date_nanoseconds: 5.into(),
            vm_clock_nanoseconds: 6.into(),
            vm_state_size: 7.into(),
            extra_len: u32::try_from(extra.len()).unwrap().into(),
        };
        [raw.as_bytes(), extra, id.as_bytes(), name.as_bytes()].concat()
    }

    #[test]
    fn old_and_new_entries_are_read() {
        let old = parse(&entry(&[], "1", "first")).unwrap();
        assert_eq!((old.id.as_str(), old.name.as_str()), ("1", "first"));
        assert_eq!((old.vm_state_size, old.disk_len), (7, None));
        let extra = RawExtra {
            vm_state_size: (1 << 40).into(),
            disk_size: (1 << 30).into(),
            instruction_count: u64::MAX.into(),
        };
        let new = parse(&entry(extra.as_bytes(), "2", "")).unwrap();
        assert_eq!((new.vm_state_size, new.disk_len), (1 << 40, Some(1 << 30)));
        assert_eq!(new.instruction_count, None);
        assert_eq!(new.l1.count, 3);
    }

    #[test]
    fn lengths_that_do_not_fit_are_not_written() {
        let good = parse(&entry(&[0; 24], "1", "name")).unwrap();
        let cases = [
            (Snapshot { id: "i".repeat(65536), ..good.clone() }, "snapshot id length is 0x10000"),
            (
                Snapshot { name: "n".repeat(65536), ..good.clone() },
                "snapshot name length is 0x10000",
            ),
            (Snapshot { unknown_extra: vec![0; 1001], ..good }, "extra data size is 0x401"),
        ];
        for (snapshot, expect) in cases {
            let err = encode(&snapshot).unwrap_err().to_string();
            assert!(err.contains(expect), "{err}");
        }
    }

    #[test]
    fn lengths_are_bounded_and_padded() {
        assert_eq!(entry_len(&entry(&[], "1", "ab")), Ok(Some(48)));
        assert_eq!(entry_len(&[0; 39]), Ok(None));
        let err = entry_len(&entry(&[0; 1025], "", "")).unwrap_err();
        assert!(err.to_string().contains("snapshot extra data size is 0x401"));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = entry_len(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn what_is_read_is_written_the_same(
            mut fixed in prop::collection::vec(any::<u8>(), 40),
            extra in prop::collection::vec(any::<u8>(), 0..64),
            id in prop::collection::vec(any::<u8>(), 0..8),
            name in prop::collection::vec(any::<u8>(), 0..32),
        ) {
            fixed[12..16].copy_from_slice(&[0, u8::try_from(id.len()).unwrap(), 0, u8::try_from(name.len()).unwrap()]);
            fixed[36..40].copy_from_slice(&u32::try_from(extra.len()).unwrap().to_be_bytes());
            let snapshot = parse(&[fixed, extra, id, name].concat()).unwrap();
            let bytes = encode(&snapshot).unwrap();
            prop_assert_eq!(entry_len(&bytes).unwrap(), Some(bytes.len()));
            prop_assert_eq!(parse(&bytes).unwrap(), snapshot);
        }
    }
}
