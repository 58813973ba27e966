//! REPORT SUPPORTED OPERATION CODES (SPC-4 6.35): which commands a unit knows, and which bits of
//! them.

use super::inquiry::check_limit;
use super::wire::{Bytes, size};
use super::{AnswerError, Problem};

/// Most commands that are taken from one answer.
pub const COMMANDS_MAX: usize = 1024;
/// Longest usage data of one command, in bytes: the longest CDB that the standard knows.
pub const USAGE_LEN_MAX: usize = 260;

/// Whether a command is supported (SUPPORT).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Support {
    /// The target does not know at the moment.
    Unknown,
    /// No.
    No,
    /// As the standard says.
    Standard,
    /// In the vendor's way.
    Vendor,
}

/// The answer about one command (one_command).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OneCommand {
    /// Whether it is supported.
    pub support: Support,
    /// Its CDB, with the bits set that the unit looks at; empty if it is not supported.
    pub usage: Vec<u8>,
}

impl OneCommand {
    /// Reads the answer about one command.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("one supported operation code", bytes);
        let support = match bytes.u8(1)? & 0x07 {
            0 => Support::Unknown,
            1 => Support::No,
            3 => Support::Standard,
            5 => Support::Vendor,
            code => {
                return Err(AnswerError::field("SUPPORT", code.into(), Problem::Reserved));
            }
        };
        let supported = matches!(support, Support::Standard | Support::Vendor);
        let len = if supported { usize::from(bytes.u16(2)?) } else { 0 };
        check_limit("CDB SIZE", len, USAGE_LEN_MAX)?;
        Ok(Self { support, usage: bytes.slice(4, len)?.to_vec() })
    }
}

/// A command of the list of all (all_commands).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct SupportedCommand {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, if the command has some.
    pub action: Option<u16>,
    /// CDB LENGTH in bytes.
    pub cdb_len: u16,
}

/// Reads the answer about all commands.
///
/// An answer that was cut by the allocation length is an error that says how long it is.
pub fn parse_all(bytes: &[u8]) -> Result<Vec<SupportedCommand>, AnswerError> {
    let bytes = Bytes::new("supported operation codes", bytes);
    let list = bytes.first(size(bytes.u32(0)?).saturating_add(LIST_HEADER_LEN))?;
    let mut rest = list.from(LIST_HEADER_LEN);
    let mut found = Vec::new();
    while rest.len() > 0 {
        check_limit("number of commands", found.len() + 1, COMMANDS_MAX)?;
        let flags = rest.u8(5)?;
        let action = (flags & SERVACTV != 0).then_some(rest.u16(2)?);
        let command = SupportedCommand { opcode: rest.u8(0)?, action, cdb_len: rest.u16(6)? };
        let len = if flags & CTDP == 0 { 8 } else { 8 + TIMEOUTS_LEN };
        rest.slice(0, len)?;
        rest = rest.from(len);
        found.push(command);
    }
    Ok(found)
}

const LIST_HEADER_LEN: usize = 4;
const TIMEOUTS_LEN: usize = 12;
const CTDP: u8 = 0x02;
const SERVACTV: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_command_and_its_usage() {
        let known = OneCommand::parse(&[0, 3, 0, 3, 0x42, 1, 0xff]).unwrap();
        assert_eq!(
            (known.support, known.usage.as_slice()),
            (Support::Standard, &[0x42, 1, 0xff][..])
        );
        let unknown = OneCommand { support: Support::No, usage: Vec::new() };
        assert_eq!(OneCommand::parse(&[0, 1, 0xff, 0xff]), Ok(unknown));
        for code in [2, 4, 6, 7] {
            let reserved = AnswerError::field("SUPPORT", code.into(), Problem::Reserved);
            assert_eq!(OneCommand::parse(&[0, code, 0, 0]), Err(reserved));
        }
        assert!(OneCommand::parse(&[0, 3, 0xff, 0xff]).is_err());
        assert!(OneCommand::parse(&[0, 3, 0, 1]).is_err());
    }

    #[test]
    fn lists_with_service_actions_and_timeouts() {
        let mut bytes = vec![0, 0, 0, 28, 0x42, 0, 0, 0, 0, 2, 0, 10];
        bytes.extend([0; 12]);
        bytes.extend([0x9e, 0, 0, 0x10, 0, 1, 0, 16]);
        let found = parse_all(&bytes).unwrap();
        assert_eq!(found[0], SupportedCommand { opcode: 0x42, action: None, cdb_len: 10 });
        assert_eq!(found[1], SupportedCommand { opcode: 0x9e, action: Some(16), cdb_len: 16 });
        assert!(parse_all(&bytes[..31]).is_err());
        bytes[3] = 20;
        assert!(parse_all(&bytes[..24]).unwrap().len() == 1);
        bytes[3] = 19;
        assert!(parse_all(&bytes).is_err());
    }

    #[test]
    fn endless_lists_are_refused() {
        let list = |count: usize| {
            let len = u32::try_from(count * 8).unwrap().to_be_bytes();
            parse_all(&[&len, vec![0; count * 8].as_slice()].concat())
        };
        assert_eq!(list(COMMANDS_MAX).unwrap().len(), COMMANDS_MAX);
        assert!(list(COMMANDS_MAX + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), len in 0u8..60) {
            OneCommand::parse(&bytes).ok();
            parse_all(&bytes).ok();
            parse_all(&[&[0, 0, 0, len], bytes.as_slice()].concat()).ok();
        }
    }
}
