//! Sectors, grains and content ids: numbers that must not be mixed up.
//!
//! A [`Sector`] says where, a [`SectorCount`] how much; both count 512 bytes. Turning them into
//! bytes is checked: results never exceed [`block_core::range::MAX_LEN`].

use std::fmt;

use block_core::Error;
use block_core::range::{MAX_LEN, SECTOR_SIZE};

/// A place in a file or on a disk, in sectors of 512 bytes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sector(pub u64);

impl Sector {
    /// The same place in bytes; `None` beyond the longest disk.
    pub fn offset(self) -> Option<u64> {
        bytes(self.0)
    }

    /// The sector `count` sectors on; `None` beyond the longest disk.
    pub fn plus(self, count: SectorCount) -> Option<Self> {
        let sum = Self(self.0.checked_add(count.0)?);
        sum.offset().map(|_| sum)
    }
}

/// A length in sectors of 512 bytes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SectorCount(pub u64);

impl SectorCount {
    /// The same length in bytes; `None` if it is more than the longest disk has.
    pub fn bytes(self) -> Option<u64> {
        bytes(self.0)
    }

    /// Both together; `None` if that is more than the longest disk has.
    pub fn plus(self, other: Self) -> Option<Self> {
        let sum = Self(self.0.checked_add(other.0)?);
        sum.bytes().map(|_| sum)
    }

    /// How many sectors `bytes` take, a partial last one counted.
    pub fn of_bytes(bytes: u64) -> Self {
        Self(bytes.div_ceil(SECTOR_SIZE))
    }
}

/// Which grain of an extent, counted from its start.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GrainIndex(pub u64);

/// The cylinders, heads and sectors by which old systems know a disk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// How many cylinders.
    pub cylinders: u64,
    /// Heads of a cylinder.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
}

/// Changes whenever the contents of an image change, so that a child sees that its parent did.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct ContentId(pub u32);

impl ContentId {
    /// What an image without a parent has as its parent's id.
    pub const NO_PARENT: Self = Self(u32::MAX);

    /// An id that no other image has, as far as the system's random numbers go; never one that stands
    /// for something else. Fails where the system has none.
    pub fn random() -> Result<Self, Error> {
        /// With this id, an id in another setting counts.
        const LONG_ID: u32 = u32::MAX - 1;
        loop {
            let id = getrandom::u32()
                .map_err(|error| error.raw_os_error().map_or(Error::IO, Error::Os))?;
            if !matches!(id, 0 | LONG_ID | u32::MAX) {
                return Ok(Self(id));
            }
        }
    }

    /// Reads 1 to 8 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits || !(1..=8).contains(&text.len()) {
            return None;
        }
        u32::from_str_radix(text, 16).ok().map(Self)
    }
}

/// Eight lower-case hexadecimal digits, as in a descriptor.
impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

fn bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR_SIZE).filter(|bytes| *bytes <= MAX_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_never_wrap(sectors: u64, more: u64) {
            let exact = u128::from(sectors) * 512;
            let expected = (exact <= u128::from(MAX_LEN)).then_some(sectors.wrapping_mul(512));
            prop_assert_eq!(Sector(sectors).offset(), expected);
            prop_assert_eq!(SectorCount(sectors).bytes(), expected);
            let sum = (u128::from(sectors) + u128::from(more)) * 512;
            let fits = sum <= u128::from(MAX_LEN);
            prop_assert_eq!(Sector(sectors).plus(SectorCount(more)).is_some(), fits);
            prop_assert_eq!(SectorCount(sectors).plus(SectorCount(more)).is_some(), fits);
        }

        #[test]
        fn content_ids_are_read_as_they_are_printed(id: u32) {
            prop_assert_eq!(ContentId::parse(&ContentId(id).to_string()), Some(ContentId(id)));
        }
    }

    #[test]
    fn random_ids_differ_and_mean_nothing_else() {
        let ids: Vec<_> = (0..64).map(|_| ContentId::random().unwrap()).collect();
        assert!(ids.iter().all(|id| ![0, u32::MAX - 1, u32::MAX].contains(&id.0)));
        let different: std::collections::HashSet<_> = ids.iter().collect();
        assert!(different.len() > 60, "{ids:?}");
    }

    #[test]
    fn content_ids_are_one_to_eight_digits() {
        assert_eq!(ContentId::parse("FFFFfffe"), Some(ContentId(0xffff_fffe)));
        assert_eq!(ContentId::parse("1"), Some(ContentId(1)));
        for text in ["", "123456789", "0x12", "+1", "12 "] {
            assert_eq!(ContentId::parse(text), None, "{text:?}");
        }
    }
}
