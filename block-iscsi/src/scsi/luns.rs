//! REPORT LUNS (SPC-4), and the eight bytes that a LUN has on the wire (SAM-5 4.7).

use super::inquiry::check_limit;
use super::wire::{Bytes, size};
use super::{AnswerError, Problem};

/// Most LUNs that are taken from one answer: as many as flat addressing can say.
pub const LUNS_MAX: usize = 1 << 14;

const HEADER_LEN: usize = 8;
const LUN_LEN: usize = 8;

/// A LUN as it stands in a PDU and in REPORT LUNS.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lun(pub [u8; LUN_LEN]);

impl Lun {
    /// The single level LUN `number`: by the peripheral device method up to 255, by the flat space
    /// method up to 16383. `None` beyond that.
    pub fn from_number(number: u16) -> Option<Self> {
        let [high, low] = number.to_be_bytes();
        let method = match number {
            0..=0xff => 0,
            0x100..=0x3fff => FLAT,
            _ => return None,
        };
        Some(Self([method | high, low, 0, 0, 0, 0, 0, 0]))
    }

    /// The number of a single level LUN; `None` if it has several levels, or is a well known one.
    pub fn number(self) -> Option<u16> {
        let [high, low, rest @ ..] = self.0;
        let number = u16::from_be_bytes([high & !METHOD, low]);
        match high & METHOD {
            _ if rest != [0; 6] => None,
            // The six bits are a bus here, and only bus 0 is this level.
            0 if high == 0 => Some(number),
            FLAT => Some(number),
            _ => None,
        }
    }
}

/// Reads the answer to REPORT LUNS.
///
/// An answer that was cut by the allocation length is an error that says how long it is.
pub fn parse_luns(bytes: &[u8]) -> Result<Vec<Lun>, AnswerError> {
    let bytes = Bytes::new("REPORT LUNS data", bytes);
    let len = bytes.u32(0)?;
    let unit = 8;
    if !len.is_multiple_of(unit) {
        let problem = Problem::NotMultiple { unit: unit.into() };
        return Err(AnswerError::field("LUN LIST LENGTH", len.into(), problem));
    }
    check_limit("number of LUNs", size(len) / LUN_LEN, LUNS_MAX)?;
    let list = bytes.first(size(len) + HEADER_LEN)?.from(HEADER_LEN);
    list.pieces(LUN_LEN).map(|lun| Ok(Lun(lun.u64(0)?.to_be_bytes()))).collect()
}

const METHOD: u8 = 0xc0;
const FLAT: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_at_the_borders_of_the_methods() {
        for (number, head) in
            [(0, [0, 0]), (255, [0, 255]), (256, [0x41, 0]), (0x3fff, [0x7f, 0xff])]
        {
            let lun = Lun::from_number(number).unwrap();
            assert_eq!((lun.0[0], lun.0[1]), (head[0], head[1]));
            assert_eq!(lun.number(), Some(number));
        }
        assert_eq!(Lun::from_number(0x4000), None);
        assert_eq!(Lun([0x40, 5, 0, 0, 0, 0, 0, 0]).number(), Some(5));
        for other in
            [[1, 0, 0, 0, 0, 0, 0, 0], [0xc1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
        {
            assert_eq!(Lun(other).number(), None);
        }
    }

    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        let mut bytes = vec![0, 0, 0, 16, 0, 0, 0, 0];
        bytes.extend(Lun::from_number(0).unwrap().0);
        bytes.extend(Lun::from_number(300).unwrap().0);
        let numbers: Vec<_> = parse_luns(&bytes).unwrap().iter().map(|lun| lun.number()).collect();
        assert_eq!(numbers, [Some(0), Some(300)]);
        let truncated = AnswerError::Truncated { what: "REPORT LUNS data", len: 23, needed: 24 };
        assert_eq!(parse_luns(&bytes[..23]), Err(truncated));
        assert_eq!(parse_luns(&[0; 8]), Ok(Vec::new()));
        assert!(parse_luns(&[0, 0, 0, 12, 0, 0, 0, 0]).is_err());
        // More than anybody has, with or without the bytes: refused before memory is taken.
        assert!(matches!(
            parse_luns(&[0xff, 0xff, 0xff, 0xf8, 0, 0, 0, 0]),
            Err(AnswerError::Field { field: "number of LUNs", .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            parse_luns(&bytes).ok();
        }

        #[test]
        fn numbers_are_read_as_they_were_written(number: u16, lun: [u8; 8]) {
            prop_assert!(Lun::from_number(number).is_none_or(|lun| lun.number() == Some(number)));
            prop_assert!(Lun(lun).number().is_none_or(|number| number < 0x4000));
        }
    }
}
