//! What the fields of several PDUs have in common.

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::PduError;
use super::bhs::{Bhs, DATA_LEN_MAX, Opcode};
use crate::serial::Serial;

/// The tag that stands for "no tag" (RFC 7143, sections 11.2.1.8 and 11.18.2).
pub const NO_TAG: u32 = 0xffff_ffff;

/// Byte 1 of most PDUs: the last of its sequence, or a bit that is always 1.
pub(super) const FINAL: u8 = 0x80;

/// Length of a data segment in bytes, padding not counted. Invariant: less than 2^24.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DataLen(u32);

impl DataLen {
    /// No data segment.
    pub const ZERO: Self = Self(0);
    /// The longest data segment.
    pub const MAX: Self = Self(DATA_LEN_MAX);

    /// A data segment of `len` bytes.
    pub fn new(len: u32) -> Result<Self, PduError> {
        if len > DATA_LEN_MAX {
            return Err(PduError::DataTooLong { len, limit: DATA_LEN_MAX });
        }
        Ok(Self(len))
    }

    /// The length of `data`.
    pub fn of(data: &[u8]) -> Result<Self, PduError> {
        Self::new(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// In bytes, without padding.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// How many zeroes follow the segment so that it ends with a word of four bytes: 0 to 3.
    pub fn padding(self) -> &'static [u8] {
        match self.0 % 4 {
            1 => &[0; 3],
            2 => &[0; 2],
            3 => &[0; 1],
            _ => &[],
        }
    }
}

/// Whether a request waits for its turn (RFC 7143, section 4.2.2.1).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Delivery {
    /// In the order of CmdSN, which it takes up.
    Ordered,
    /// At once; its CmdSN is not taken up.
    Immediate,
}

/// The numbers that every request carries.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RequestSerials {
    /// CmdSN: the request's place in the order of the session.
    pub cmd_sn: Serial,
    /// ExpStatSN: the status of the connection that is expected next.
    pub exp_stat_sn: Serial,
}

/// The numbers that nearly every PDU of a target carries.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ResponseSerials {
    /// StatSN: the number of this status, or of the next one if the PDU carries none.
    pub stat_sn: Serial,
    /// ExpCmdSN: the first request that has not been seen.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN: the last request that would be taken.
    pub max_cmd_sn: Serial,
}

/// [`RequestSerials`] as they stand on the wire.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRequestSerials {
    cmd_sn: U32,
    exp_stat_sn: U32,
}

/// [`ResponseSerials`] as they stand on the wire.
#[derive(Copy, Clone, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawResponseSerials {
    stat_sn: U32,
    exp_cmd_sn: U32,
    max_cmd_sn: U32,
}

const _: () = assert!(size_of::<RawRequestSerials>() == 8);
const _: () = assert!(size_of::<RawResponseSerials>() == 12);

impl From<RawRequestSerials> for RequestSerials {
    fn from(raw: RawRequestSerials) -> Self {
        Self { cmd_sn: raw.cmd_sn.into(), exp_stat_sn: raw.exp_stat_sn.into() }
    }
}

impl From<RequestSerials> for RawRequestSerials {
    fn from(serials: RequestSerials) -> Self {
        Self { cmd_sn: serials.cmd_sn.into(), exp_stat_sn: serials.exp_stat_sn.into() }
    }
}

impl From<RawResponseSerials> for ResponseSerials {
    fn from(raw: RawResponseSerials) -> Self {
        Self {
            stat_sn: raw.stat_sn.into(),
            exp_cmd_sn: raw.exp_cmd_sn.into(),
            max_cmd_sn: raw.max_cmd_sn.into(),
        }
    }
}

impl From<ResponseSerials> for RawResponseSerials {
    fn from(serials: ResponseSerials) -> Self {
        Self {
            stat_sn: serials.stat_sn.into(),
            exp_cmd_sn: serials.exp_cmd_sn.into(),
            max_cmd_sn: serials.max_cmd_sn.into(),
        }
    }
}

impl From<U32> for Serial {
    fn from(raw: U32) -> Self {
        Self::new(raw.get())
    }
}

impl From<Serial> for U32 {
    fn from(serial: Serial) -> Self {
        Self::new(serial.value())
    }
}

/// How the data that was moved differs from what was expected (RFC 7143, section 11.4.5).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Residual {
    /// It does not.
    #[default]
    None,
    /// So many bytes of the expected ones were not moved.
    Underflow(u32),
    /// So many bytes more would have been moved.
    Overflow(u32),
}

impl Residual {
    /// Reads the two bits and the count that belongs to them; the count means nothing without a bit.
    pub(super) fn decode(
        field: &'static str,
        [overflow, underflow]: [u8; 2],
        flags: u8,
        count: u32,
    ) -> Result<Self, PduError> {
        match (flags & overflow != 0, flags & underflow != 0) {
            (false, false) => Ok(Self::None),
            (false, true) => Ok(Self::Underflow(count)),
            (true, false) => Ok(Self::Overflow(count)),
            (true, true) => Err(PduError::field(field, flags & (overflow | underflow))),
        }
    }

    /// The bit that is set, and the count.
    pub(super) fn encode(self, [overflow, underflow]: [u8; 2]) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (underflow, count),
            Self::Overflow(count) => (overflow, count),
        }
    }
}

/// A tag, or none.
pub(super) fn optional_tag(tag: u32) -> Option<u32> {
    (tag != NO_TAG).then_some(tag)
}

/// What stands on the wire for a tag or none.
pub(super) fn tag_code(tag: Option<u32>) -> u32 {
    tag.unwrap_or(NO_TAG)
}

/// Refuses a header of another opcode.
pub(super) fn check_opcode(bhs: &Bhs, opcode: Opcode) -> Result<(), PduError> {
    if bhs.opcode() != opcode {
        return Err(PduError::Unexpected { code: bhs.opcode().code() });
    }
    Ok(())
}

/// As [`check_opcode`], for PDUs without additional header segments: their TotalAHSLength is 0
/// (RFC 7143, section 11.2.1.5).
pub(super) fn check_no_ahs(bhs: &Bhs, opcode: Opcode) -> Result<(), PduError> {
    check_opcode(bhs, opcode)?;
    match bhs.ahs_len() {
        0 => Ok(()),
        len => Err(PduError::field("TotalAHSLength", len / 4)),
    }
}

/// Refuses a data segment where none can be (RFC 7143, section 11.2.1.6).
pub(super) fn check_no_data(bhs: &Bhs) -> Result<(), PduError> {
    match bhs.data_len() {
        0 => Ok(()),
        len => Err(PduError::field("DataSegmentLength", len)),
    }
}

/// The seven bits below a bit of byte 1 that is always 1.
pub(super) fn below_final(bhs: &Bhs) -> Result<u8, PduError> {
    if bhs.flags & FINAL == 0 {
        return Err(PduError::field("F", 0_u8));
    }
    Ok(bhs.flags & !FINAL)
}

/// The 28 bytes of a header from byte 20 on, as a struct of big-endian fields.
macro_rules! tail {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Copy,
            Clone,
            Default,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::KnownLayout,
            zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        struct $name {
            $($field: $kind,)*
        }

        const _: () = assert!(size_of::<$name>() == 28);

        impl $name {
            fn of(bhs: &$crate::pdu::bhs::Bhs) -> Self {
                zerocopy::transmute!(bhs.specific_tail)
            }

            fn bytes(self) -> [u8; 28] {
                zerocopy::transmute!(self)
            }
        }
    };
}

/// An enum of codes; a reserved code is an error that names the field.
macro_rules! codes {
    (
        $(#[$doc:meta])*
        $name:ident: $field:literal {
            $($(#[$item_doc:meta])* $item:ident = $code:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        pub enum $name {
            $($(#[$item_doc])* $item,)*
        }

        impl $name {
            /// All of them, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$item,)*];

            /// What stands on the wire.
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$item => $code,)*
                }
            }

            /// The meaning of a code.
            pub fn from_code(code: u8) -> Result<Self, $crate::pdu::PduError> {
                match code {
                    $($code => Ok(Self::$item),)*
                    _ => Err($crate::pdu::PduError::field($field, code)),
                }
            }
        }
    };
}

pub(super) use {codes, tail};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_fills_the_last_word() {
        for len in 0..9 {
            let len = DataLen::new(len).unwrap();
            let padding = u32::try_from(len.padding().len()).unwrap();
            assert_eq!(len.bytes() + padding, len.bytes().next_multiple_of(4));
        }
        assert_eq!(DataLen::new(DATA_LEN_MAX), Ok(DataLen::MAX));
        let limit = DATA_LEN_MAX;
        assert_eq!(DataLen::new(1 << 24), Err(PduError::DataTooLong { len: 1 << 24, limit }));
    }

    #[test]
    fn overflow_and_underflow_exclude_each_other() {
        assert_eq!(Residual::decode("OU", [4, 2], 0, 7), Ok(Residual::None));
        assert_eq!(Residual::decode("OU", [4, 2], 4, 7), Ok(Residual::Overflow(7)));
        assert_eq!(Residual::decode("OU", [4, 2], 2, 7), Ok(Residual::Underflow(7)));
        let both = PduError::Field { field: "OU", value: 6 };
        assert_eq!(Residual::decode("OU", [4, 2], 6, 7), Err(both));
    }
}
