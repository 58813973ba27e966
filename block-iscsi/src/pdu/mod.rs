//! Protocol data units, byte for byte. Pure: bytes in, checked types out, and back.

pub mod bhs;

/// Why bytes are not a PDU that can be understood.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PduError {
    /// Fewer bytes than the header has.
    #[error("a basic header segment has {} bytes, only {len} are there", bhs::BHS_LEN)]
    Truncated {
        /// How many bytes there are.
        len: usize,
    },
    /// The opcode is reserved or belongs to a vendor.
    #[error("opcode {code:#04x} is unknown")]
    Opcode {
        /// The six bits of the opcode.
        code: u8,
    },
    /// The data segment is longer than the receiver allows, or than its length field can say.
    #[error("the data segment has {len} bytes, more than {limit}")]
    DataTooLong {
        /// Its length in bytes.
        len: u32,
        /// How many are allowed.
        limit: u32,
    },
}
