//! The basic header segment (RFC 7143, section 11.2.1): the first 48 bytes of every PDU.
//!
//! [`Bhs`] holds the fields that all PDUs share. Those whose meaning depends on the opcode stay
//! bytes: [`Bhs::flags`] (byte 1, whose top bit is mostly the F bit), [`Bhs::specific_head`]
//! (bytes 2 and 3) and [`Bhs::specific_tail`] (bytes 20 to 47).
//!
//! Reserved bits are ignored in what is received and zero in what is sent, as the RFC demands.
//! Invariants: `data_len < 1 << 24`; `ahs_len <= 1020`, a multiple of 4.

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::PduError;
use super::fields::{DataLen, Delivery};

/// Length of the header in bytes.
pub const BHS_LEN: usize = 48;
/// Longest data segment that the 24-bit length can say, in bytes.
pub const DATA_LEN_MAX: u32 = (1 << 24) - 1;

const IMMEDIATE: u8 = 0x40;
const OPCODE: u8 = 0x3f;
const TARGET: u8 = 0x20;

/// The header as it stands on the wire; numbers big-endian.
#[derive(Copy, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBhs {
    opcode: u8,
    flags: u8,
    specific_head: [u8; 2],
    /// In words of four bytes.
    total_ahs_length: u8,
    data_segment_length: [u8; 3],
    lun: [u8; 8],
    initiator_task_tag: U32,
    specific_tail: [u8; 28],
}

const _: () = assert!(size_of::<RawBhs>() == BHS_LEN);

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What a PDU is. Codes from 0x20 on are sent by targets.
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Opcode {
            $($(#[$doc])* $name,)*
        }

        impl Opcode {
            /// All of them, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The six bits on the wire.
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The opcode of these six bits.
            pub fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    /// Are you there, or an answer to that question.
    NopOut = 0x00,
    /// A SCSI command.
    ScsiCommand = 0x01,
    /// Abort, reset and the like.
    TaskManagementRequest = 0x02,
    /// A step of the login.
    LoginRequest = 0x03,
    /// Keys and values outside of the login.
    TextRequest = 0x04,
    /// Data of a write.
    DataOut = 0x05,
    /// Ends a session or a connection.
    LogoutRequest = 0x06,
    /// Asks for lost PDUs again.
    SnackRequest = 0x10,
    /// Are you there, or an answer to that question.
    NopIn = 0x20,
    /// The end of a SCSI command.
    ScsiResponse = 0x21,
    /// Answers a task management request.
    TaskManagementResponse = 0x22,
    /// Answers a step of the login.
    LoginResponse = 0x23,
    /// Answers a text request.
    TextResponse = 0x24,
    /// Data of a read.
    DataIn = 0x25,
    /// Answers a logout.
    LogoutResponse = 0x26,
    /// Asks for data of a write.
    ReadyToTransfer = 0x31,
    /// Something happened at the target.
    AsyncMessage = 0x32,
    /// A PDU was not understood or not allowed.
    Reject = 0x3f,
}

impl Opcode {
    /// Whether targets send it.
    pub fn is_from_target(self) -> bool {
        self.code() & TARGET != 0
    }
}

/// A checked header. See the module for what holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bhs {
    opcode: Opcode,
    immediate: bool,
    ahs_words: u8,
    data_len: u32,
    /// Byte 1: the F bit, and bits that depend on the opcode.
    pub flags: u8,
    /// Bytes 2 and 3.
    pub specific_head: [u8; 2],
    /// Bytes 8 to 15: the LUN, or what the opcode puts there.
    pub lun: [u8; 8],
    /// Which task of the session this belongs to.
    pub initiator_task_tag: u32,
    /// Bytes 20 to 47.
    pub specific_tail: [u8; 28],
}

impl Bhs {
    /// A header of this opcode with everything else zero.
    pub fn new(opcode: Opcode) -> Self {
        Self {
            opcode,
            immediate: false,
            ahs_words: 0,
            data_len: 0,
            flags: 0,
            specific_head: [0; 2],
            lun: [0; 8],
            initiator_task_tag: 0,
            specific_tail: [0; 28],
        }
    }

    /// For immediate delivery, outside of the order of commands. Targets' PDUs cannot ask for it.
    #[must_use]
    pub fn immediate(mut self) -> Self {
        self.immediate = !self.opcode.is_from_target();
        self
    }

    /// With a data segment of `len` bytes, padding not counted.
    pub fn with_data_len(mut self, len: u32) -> Result<Self, PduError> {
        self.data_len = len;
        self.check_data_len(DATA_LEN_MAX)?;
        Ok(self)
    }

    pub(super) fn with_data(mut self, len: DataLen) -> Self {
        self.data_len = len.bytes();
        self
    }

    pub(super) fn with_delivery(self, delivery: Delivery) -> Self {
        match delivery {
            Delivery::Ordered => self,
            Delivery::Immediate => self.immediate(),
        }
    }

    /// With `words` words of four bytes of additional header segments.
    #[must_use]
    pub fn with_ahs_words(mut self, words: u8) -> Self {
        self.ahs_words = words;
        self
    }

    /// Reads the header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, PduError> {
        let truncated = PduError::Truncated { len: bytes.len() };
        let (raw, _) = RawBhs::read_from_prefix(bytes).map_err(|_| truncated)?;
        let code = raw.opcode & OPCODE;
        let opcode = Opcode::from_code(code).ok_or(PduError::Opcode { code })?;
        let [high, middle, low] = raw.data_segment_length;
        Ok(Self {
            opcode,
            immediate: raw.opcode & IMMEDIATE != 0 && !opcode.is_from_target(),
            ahs_words: raw.total_ahs_length,
            data_len: u32::from_be_bytes([0, high, middle, low]),
            flags: raw.flags,
            specific_head: raw.specific_head,
            lun: raw.lun,
            initiator_task_tag: raw.initiator_task_tag.get(),
            specific_tail: raw.specific_tail,
        })
    }

    /// The header as bytes; parsing them gives this header again.
    pub fn to_bytes(&self) -> [u8; BHS_LEN] {
        let [_, high, middle, low] = self.data_len.to_be_bytes();
        let raw = RawBhs {
            opcode: self.opcode.code() | if self.immediate { IMMEDIATE } else { 0 },
            flags: self.flags,
            specific_head: self.specific_head,
            total_ahs_length: self.ahs_words,
            data_segment_length: [high, middle, low],
            lun: self.lun,
            initiator_task_tag: self.initiator_task_tag.into(),
            specific_tail: self.specific_tail,
        };
        zerocopy::transmute!(raw)
    }

    /// What the PDU is.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// Whether it is delivered outside of the order of commands.
    pub fn is_immediate(&self) -> bool {
        self.immediate
    }

    /// When it is delivered.
    pub fn delivery(&self) -> Delivery {
        if self.immediate { Delivery::Immediate } else { Delivery::Ordered }
    }

    /// Length of the additional header segments in bytes.
    pub fn ahs_len(&self) -> u32 {
        u32::from(self.ahs_words) * 4
    }

    pub(super) fn ahs_words(&self) -> u8 {
        self.ahs_words
    }

    /// Length of the data segment in bytes, padding not counted.
    pub fn data_len(&self) -> u32 {
        self.data_len
    }

    pub(super) fn data(&self) -> DataLen {
        DataLen::new(self.data_len).unwrap_or(DataLen::MAX)
    }

    /// Length of the data segment on the wire: padded to words of four bytes.
    pub fn padded_data_len(&self) -> u32 {
        self.data_len.next_multiple_of(4)
    }

    /// Refuses a data segment of more than `limit` bytes (MaxRecvDataSegmentLength), before memory
    /// is taken for it.
    pub fn check_data_len(&self, limit: u32) -> Result<(), PduError> {
        if self.data_len > limit {
            return Err(PduError::DataTooLong { len: self.data_len, limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = Bhs> {
        let opcode = prop::sample::select(Opcode::ALL);
        let lens = (any::<u8>(), 0..=DATA_LEN_MAX);
        (opcode, any::<bool>(), lens, any::<[u8; 16]>(), any::<[u8; 23]>()).prop_map(
            |(opcode, immediate, (words, data), head, tail)| {
                let mut bhs = Bhs::new(opcode).with_ahs_words(words);
                bhs = bhs.with_data_len(data).unwrap();
                bhs.flags = head[0];
                bhs.specific_head = [head[1], head[2]];
                bhs.lun.copy_from_slice(&head[3..11]);
                bhs.initiator_task_tag = u32::from_be_bytes(head[11..15].try_into().unwrap());
                bhs.specific_tail[..23].copy_from_slice(&tail);
                if immediate { bhs.immediate() } else { bhs }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_are_parsed_as_they_are_printed(bhs in headers()) {
            prop_assert_eq!(Bhs::parse(&bhs.to_bytes()), Ok(bhs));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(bhs) = Bhs::parse(&bytes) {
                let printed = bhs.to_bytes();
                // Only reserved bits of the first byte may differ.
                prop_assert_eq!(&printed[1..], &bytes[1..BHS_LEN]);
                prop_assert_eq!(Bhs::parse(&printed), Ok(bhs));
            }
        }
    }

    #[test]
    fn fields_stand_where_the_rfc_puts_them() {
        let mut bhs = Bhs::new(Opcode::LoginRequest).immediate().with_ahs_words(2);
        bhs = bhs.with_data_len(0x01_0203).unwrap();
        bhs.flags = 0x87;
        bhs.lun = [8, 9, 10, 11, 12, 13, 14, 15];
        bhs.initiator_task_tag = 0x1011_1213;
        bhs.specific_tail[0] = 20;
        let bytes = bhs.to_bytes();
        assert_eq!(bytes[..8], [0x43, 0x87, 0, 0, 2, 1, 2, 3]);
        assert_eq!(bytes[8..21], [8, 9, 10, 11, 12, 13, 14, 15, 0x10, 0x11, 0x12, 0x13, 20]);
        assert_eq!((bhs.ahs_len(), bhs.padded_data_len()), (8, 0x01_0204));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(Bhs::parse(&[0; 47]), Err(PduError::Truncated { len: 47 }));
        for code in (0..64).filter(|code| Opcode::from_code(*code).is_none()) {
            let mut bytes = [0; BHS_LEN];
            bytes[0] = code;
            assert_eq!(Bhs::parse(&bytes), Err(PduError::Opcode { code }));
        }
        let too_long = PduError::DataTooLong { len: 1 << 24, limit: DATA_LEN_MAX };
        assert_eq!(Bhs::new(Opcode::DataOut).with_data_len(1 << 24), Err(too_long));
        let bhs = Bhs::new(Opcode::DataIn).immediate().with_data_len(8193).unwrap();
        assert!(!bhs.is_immediate());
        let refused = bhs.check_data_len(8192).unwrap_err();
        assert_eq!(refused.to_string(), "the data segment has 8193 bytes, more than 8192");
    }

    #[test]
    fn there_are_eighteen_opcodes() {
        assert_eq!(Opcode::ALL.len(), 18);
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::from_code(opcode.code()), Some(*opcode));
        }
    }
}
