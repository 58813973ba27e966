//! Protocol data units, byte for byte. Pure: bytes in, checked types out, and back.
//!
//! Every PDU of RFC 7143, section 11, is a type here, for both directions. A type holds the header
//! and the length of the data segment, never the data: that goes from the socket to where it is
//! wanted without passing through here. Where a data segment has a structure of its own, the
//! PDU's module reads and writes it.
//!
//! Reserved bits are ignored in what is received and zero in what is sent; reserved codes, and
//! bits that exclude each other, are errors (section 11). So `to_bytes(parse(bytes)) == bytes` for
//! all bytes whose reserved bits are zero, and `parse(to_bytes(pdu)) == pdu` for all PDUs.

pub mod async_event;
pub mod bhs;
pub mod data;
pub mod digest;
mod dispatch;
pub mod fields;
pub mod login;
pub mod logout;
pub mod nop;
pub mod reject;
pub mod scsi;
pub mod snack;
pub mod task_mgmt;
pub mod text;

pub use dispatch::{Request, Response};

use bhs::{BHS_LEN, Bhs, Opcode};

/// A PDU whose header is the basic header segment alone.
pub trait Pdu: Sized {
    /// What it is.
    const OPCODE: Opcode;

    /// Takes the fields of a header of this opcode.
    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError>;

    /// The header.
    fn to_bhs(&self) -> Bhs;

    /// Reads the header that `bytes` start with.
    fn parse(bytes: &[u8]) -> Result<Self, PduError> {
        Self::from_bhs(&Bhs::parse(bytes)?)
    }

    /// The header as bytes. The data segment and its padding follow it.
    fn to_bytes(&self) -> [u8; BHS_LEN] {
        self.to_bhs().to_bytes()
    }
}

/// Why bytes are not a PDU that can be understood.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PduError {
    /// Fewer bytes than the header has.
    #[error("a basic header segment has {BHS_LEN} bytes, only {len} are there")]
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
    /// A PDU of another kind, or one that this side sends and never gets.
    #[error("a PDU of opcode {code:#04x} is not expected here")]
    Unexpected {
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
    /// A field has a value that is reserved, or that other fields exclude.
    #[error("{field} cannot be {value:#x}")]
    Field {
        /// The name of the field in RFC 7143.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A segment is shorter than what stands in it.
    #[error("{field} needs {needed} bytes, {len} are there")]
    Short {
        /// What is cut off.
        field: &'static str,
        /// How many bytes it has.
        needed: usize,
        /// How many bytes there are.
        len: usize,
    },
    /// Something is longer than it may be.
    #[error("{field} has {len} bytes, more than {limit}")]
    Long {
        /// What it is.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
        /// How many are allowed.
        limit: usize,
    },
}

impl PduError {
    fn field(field: &'static str, value: impl Into<u32>) -> Self {
        Self::Field { field, value: value.into() }
    }
}
