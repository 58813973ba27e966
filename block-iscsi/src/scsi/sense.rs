//! How a command ended (SAM-5 5.3) and why (sense data, SPC-4 4.5): both formats, and what to do next.
//!
//! [`Status::retry`] decides by status and sense data together. It knows nothing of how often a
//! command was sent already, nor whether it may run twice ([`super::cdb::Replay`]); both are the
//! caller's.

use super::wire::Bytes;
use super::{AnswerError, Problem};

/// Most bytes of sense data that are looked at (SPC-4 4.5).
pub const SENSE_LEN_MAX: usize = 252;

/// A status code (SAM-5 5.3).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// It is done.
    Good,
    /// The sense data tells.
    CheckCondition,
    /// It is done, and what was looked for was found.
    ConditionMet,
    /// The unit cannot take it now.
    Busy,
    /// Somebody else has reserved the unit.
    ReservationConflict,
    /// The queue is full.
    TaskSetFull,
    /// Somebody must clear a contingent allegiance first.
    AcaActive,
    /// Somebody else has aborted it.
    TaskAborted,
}

impl Status {
    /// The code on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Good => 0x00,
            Self::CheckCondition => 0x02,
            Self::ConditionMet => 0x04,
            Self::Busy => 0x08,
            Self::ReservationConflict => 0x18,
            Self::TaskSetFull => 0x28,
            Self::AcaActive => 0x30,
            Self::TaskAborted => 0x40,
        }
    }

    /// The status of a code.
    pub fn from_code(code: u8) -> Result<Self, AnswerError> {
        Ok(match code {
            0x00 => Self::Good,
            0x02 => Self::CheckCondition,
            0x04 => Self::ConditionMet,
            0x08 => Self::Busy,
            0x18 => Self::ReservationConflict,
            0x28 => Self::TaskSetFull,
            0x30 => Self::AcaActive,
            0x40 => Self::TaskAborted,
            _ => return Err(AnswerError::field("STATUS", code.into(), Problem::Reserved)),
        })
    }

    /// Whether a command that ended so is worth sending again; `None` if it did what was asked.
    ///
    /// GOOD is good whatever sense data comes with it: some targets send old sense data along.
    pub fn retry(self, sense: Option<&Sense>) -> Option<Retry> {
        match self {
            Self::Good | Self::ConditionMet => None,
            Self::Busy | Self::TaskSetFull | Self::AcaActive => Some(Retry::After),
            Self::TaskAborted => Some(Retry::Now),
            Self::ReservationConflict => Some(Retry::Never),
            Self::CheckCondition => sense.map_or(Some(Retry::Never), Sense::retry),
        }
    }
}

/// When to send a command again.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Retry {
    /// It will end the same way.
    Never,
    /// The reason is gone already.
    Now,
    /// The reason passes by itself.
    After,
}

macro_rules! sense_keys {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// SENSE KEY (SPC-4 4.5).
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        pub enum SenseKey {
            $($(#[$doc])* $name,)*
            /// Reserved.
            Reserved,
        }

        impl SenseKey {
            /// The key of the low four bits of `code`.
            pub fn from_code(code: u8) -> Self {
                match code & 0x0f {
                    $($code => Self::$name,)*
                    _ => Self::Reserved,
                }
            }
        }
    };
}

sense_keys! {
    /// Nothing to tell.
    NoSense = 0x0,
    /// Done, with some trouble.
    RecoveredError = 0x1,
    /// The unit cannot be accessed.
    NotReady = 0x2,
    /// The medium is damaged.
    MediumError = 0x3,
    /// The hardware failed.
    HardwareError = 0x4,
    /// The command or its parameters cannot be.
    IllegalRequest = 0x5,
    /// Something happened since the last command.
    UnitAttention = 0x6,
    /// The blocks are protected.
    DataProtect = 0x7,
    /// Blank or written where the other was expected.
    BlankCheck = 0x8,
    /// The vendor's.
    VendorSpecific = 0x9,
    /// A copy was aborted.
    CopyAborted = 0xa,
    /// The target aborted the command.
    AbortedCommand = 0xb,
    /// No room for what was buffered.
    VolumeOverflow = 0xd,
    /// What is there is not what was expected.
    Miscompare = 0xe,
    /// Done, and there is something to tell.
    Completed = 0xf,
}

/// ADDITIONAL SENSE CODE and its qualifier (SPC-4 has the list). The constants are those that a
/// driver of disks meets.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SenseCode {
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

macro_rules! sense_codes {
    ($($(#[$doc:meta])* $name:ident = $asc:literal $ascq:literal,)*) => {
        impl SenseCode {
            $($(#[$doc])* pub const $name: Self = Self { asc: $asc, ascq: $ascq };)*

            /// The name of one of the constants.
            pub fn name(self) -> Option<&'static str> {
                match (self.asc, self.ascq) {
                    $(($asc, $ascq) => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

sense_codes! {
    /// Nothing to tell.
    NONE = 0x00 0x00,
    /// The unit is becoming ready.
    BECOMING_READY = 0x04 0x01,
    /// START STOP UNIT must come first.
    START_NEEDED = 0x04 0x02,
    /// Somebody must do something.
    MANUAL_INTERVENTION = 0x04 0x03,
    /// A FORMAT UNIT is running.
    FORMATTING = 0x04 0x04,
    /// Something is running.
    OPERATION_RUNNING = 0x04 0x07,
    /// A self-test is running.
    SELF_TEST_RUNNING = 0x04 0x09,
    /// The port is changing its access state.
    PORT_IN_TRANSITION = 0x04 0x0a,
    /// The port is in standby.
    PORT_STANDBY = 0x04 0x0b,
    /// The port is unavailable.
    PORT_UNAVAILABLE = 0x04 0x0c,
    /// Room is being made.
    SPACE_ALLOCATION_RUNNING = 0x04 0x14,
    /// What the transport says of the command contradicts it, such as a length.
    INVALID_FIELD_IN_INFORMATION_UNIT = 0x0e 0x03,
    /// The block could not be written.
    WRITE_ERROR = 0x0c 0x00,
    /// The block could not be read.
    UNRECOVERED_READ_ERROR = 0x11 0x00,
    /// PARAMETER LIST LENGTH is wrong.
    PARAMETER_LIST_LENGTH_ERROR = 0x1a 0x00,
    /// What is there is not what was expected.
    MISCOMPARE_DURING_VERIFY = 0x1d 0x00,
    /// The operation code is unknown.
    INVALID_OPCODE = 0x20 0x00,
    /// The range leaves the medium.
    LBA_OUT_OF_RANGE = 0x21 0x00,
    /// A field of the command.
    INVALID_FIELD_IN_CDB = 0x24 0x00,
    /// There is no such LUN.
    LUN_NOT_SUPPORTED = 0x25 0x00,
    /// A field of the parameter list.
    INVALID_FIELD_IN_PARAMETER_LIST = 0x26 0x00,
    /// The reservation to release is of another type.
    INVALID_RELEASE = 0x26 0x04,
    /// The medium cannot be written.
    WRITE_PROTECTED = 0x27 0x00,
    /// A thin unit has no room left.
    SPACE_ALLOCATION_FAILED = 0x27 0x07,
    /// The medium may be another one.
    MEDIUM_MAY_HAVE_CHANGED = 0x28 0x00,
    /// Power on, reset, or the like.
    RESET_OCCURRED = 0x29 0x00,
    /// Power was lost.
    POWER_ON_OCCURRED = 0x29 0x01,
    /// The unit was reset.
    DEVICE_RESET_OCCURRED = 0x29 0x03,
    /// The session was lost.
    NEXUS_LOSS_OCCURRED = 0x29 0x07,
    /// Mode parameters changed.
    MODE_PARAMETERS_CHANGED = 0x2a 0x01,
    /// Reservations were preempted.
    RESERVATIONS_PREEMPTED = 0x2a 0x03,
    /// Reservations were released.
    RESERVATIONS_RELEASED = 0x2a 0x04,
    /// Registrations were preempted.
    REGISTRATIONS_PREEMPTED = 0x2a 0x05,
    /// The access state of the port changed.
    ACCESS_STATE_CHANGED = 0x2a 0x06,
    /// The capacity changed.
    CAPACITY_CHANGED = 0x2a 0x09,
    /// Somebody else's task management.
    COMMANDS_CLEARED = 0x2f 0x00,
    /// A thin unit is running out of room.
    SOFT_THRESHOLD_REACHED = 0x38 0x07,
    /// There is no medium.
    MEDIUM_NOT_PRESENT = 0x3a 0x00,
    /// The unit has not configured itself yet.
    UNIT_NOT_CONFIGURED = 0x3e 0x00,
    /// INQUIRY data changed.
    INQUIRY_DATA_CHANGED = 0x3f 0x03,
    /// There are other LUNs than before.
    LUNS_CHANGED = 0x3f 0x0e,
    /// Something inside of the target.
    INTERNAL_TARGET_FAILURE = 0x44 0x00,
    /// Data was damaged on its way.
    PROTOCOL_CRC_ERROR = 0x47 0x05,
}

impl std::fmt::Display for SenseCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}/{:02x}", self.asc, self.ascq)?;
        self.name().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

/// SENSE KEY SPECIFIC (SPC-4 4.5): its meaning depends on the key.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum KeySpecific {
    /// ILLEGAL REQUEST: which field is wrong.
    Field {
        /// In what.
        place: FieldPlace,
        /// The byte that it begins in.
        byte: u16,
        /// Its highest bit in that byte (BPV and BIT POINTER).
        bit: Option<u8>,
    },
    /// NOT READY and NO SENSE: how much of the running operation is done, of 65536.
    Progress(u16),
    /// RECOVERED, MEDIUM and HARDWARE ERROR: how often the unit tried.
    Retries(u16),
    /// Of a key that gives it another meaning.
    Other([u8; 3]),
}

/// Where a wrong field is (C/D).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum FieldPlace {
    /// In the command.
    Cdb,
    /// In its data.
    ParameterList,
}

/// Sense data, of whatever format.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sense {
    /// It is about an earlier command; this one did not run.
    pub deferred: bool,
    /// What kind of thing happened.
    pub key: SenseKey,
    /// What happened.
    pub code: SenseCode,
    /// INFORMATION, if it is valid: mostly an LBA; of a miscompare, the offset of the first byte
    /// that differs.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION; zero where there is none.
    pub command_specific: u64,
    /// SENSE KEY SPECIFIC, if it is valid.
    pub specific: Option<KeySpecific>,
}

impl Sense {
    /// Reads sense data of fixed (70h, 71h) or descriptor (72h, 73h) format. Fields beyond its end are
    /// as if they were zero, since targets may send less.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("sense data", bytes).at_most(SENSE_LEN_MAX);
        let response = bytes.u8(0)? & 0x7f;
        match response {
            0x70 | 0x71 => Self::parse_fixed(bytes, response == 0x71),
            0x72 | 0x73 => Self::parse_descriptors(bytes, response == 0x73),
            _ => Err(AnswerError::field("RESPONSE CODE", response.into(), Problem::Reserved)),
        }
    }

    /// Fixed format (SPC-4 4.5.3).
    fn parse_fixed(bytes: Bytes<'_>, deferred: bool) -> Result<Self, AnswerError> {
        let valid = bytes.u8(0)? & 0x80 != 0;
        let key = SenseKey::from_code(bytes.u8(2)?);
        // What ADDITIONAL SENSE LENGTH does not count is not there.
        let len = bytes.u8(7).map_or(7, |more| usize::from(more) + 8);
        let bytes = bytes.at_most(len);
        let byte = |at| bytes.u8(at).unwrap_or(0);
        Ok(Self {
            deferred,
            key,
            code: SenseCode { asc: byte(12), ascq: byte(13) },
            information: bytes.u32(3).ok().filter(|_| valid).map(u64::from),
            command_specific: bytes.u32(8).unwrap_or(0).into(),
            specific: key_specific(key, [byte(15), byte(16), byte(17)]),
        })
    }

    /// Descriptor format (SPC-4 4.5.2).
    fn parse_descriptors(bytes: Bytes<'_>, deferred: bool) -> Result<Self, AnswerError> {
        let mut sense = Self {
            deferred,
            key: SenseKey::from_code(bytes.u8(1)?),
            code: SenseCode { asc: bytes.u8(2)?, ascq: bytes.u8(3)? },
            information: None,
            command_specific: 0,
            specific: None,
        };
        let len = usize::from(bytes.u8(7).unwrap_or(0)) + 8;
        let mut rest = bytes.at_most(len).from(8);
        // A descriptor that was cut off, and what comes after it, is not there.
        while let (Ok(kind), Ok(more)) = (rest.u8(0), rest.u8(1)) {
            let Ok(descriptor) = rest.first(usize::from(more) + 2) else { break };
            sense.keep(kind, descriptor);
            rest = rest.from(descriptor.len());
        }
        Ok(sense)
    }

    /// A descriptor of type `kind`; those that are too short say nothing.
    fn keep(&mut self, kind: u8, descriptor: Bytes<'_>) {
        match kind {
            0x00 => {
                let valid = descriptor.u8(2).is_ok_and(|flags| flags & 0x80 != 0);
                self.information = descriptor.u64(4).ok().filter(|_| valid);
            }
            0x01 => self.command_specific = descriptor.u64(4).unwrap_or(0),
            0x02 => {
                if let (Ok(flags), Ok(value)) = (descriptor.u8(4), descriptor.u16(5)) {
                    let [high, low] = value.to_be_bytes();
                    self.specific = key_specific(self.key, [flags, high, low]);
                }
            }
            _ => {}
        }
    }

    /// Whether a command that ended so is worth sending again; `None` if it did what was asked.
    fn retry(&self) -> Option<Retry> {
        if self.deferred {
            // An earlier write is lost, which sending this command again would hide.
            return match self.key {
                SenseKey::NoSense | SenseKey::RecoveredError => Some(Retry::Now),
                _ => Some(Retry::Never),
            };
        }
        match self.key {
            SenseKey::RecoveredError | SenseKey::Completed => None,
            SenseKey::UnitAttention | SenseKey::AbortedCommand => Some(Retry::Now),
            SenseKey::NotReady => Some(match self.code {
                SenseCode::BECOMING_READY
                | SenseCode::FORMATTING
                | SenseCode::OPERATION_RUNNING
                | SenseCode::SELF_TEST_RUNNING
                | SenseCode::PORT_IN_TRANSITION
                | SenseCode::SPACE_ALLOCATION_RUNNING
                | SenseCode::UNIT_NOT_CONFIGURED => Retry::After,
                _ => Retry::Never,
            }),
            _ => Some(Retry::Never),
        }
    }

    /// What happened to the unit, if this is a unit attention.
    pub fn attention(&self) -> Option<Attention> {
        if self.key != SenseKey::UnitAttention {
            return None;
        }
        Some(match self.code {
            SenseCode { asc: 0x29, .. } => Attention::Reset,
            SenseCode::CAPACITY_CHANGED => Attention::Capacity,
            SenseCode::MEDIUM_MAY_HAVE_CHANGED => Attention::Medium,
            SenseCode::MODE_PARAMETERS_CHANGED => Attention::ModeParameters,
            SenseCode::RESERVATIONS_PREEMPTED
            | SenseCode::RESERVATIONS_RELEASED
            | SenseCode::REGISTRATIONS_PREEMPTED => Attention::Reservations,
            SenseCode::INQUIRY_DATA_CHANGED => Attention::Inquiry,
            SenseCode::LUNS_CHANGED => Attention::Luns,
            SenseCode::SOFT_THRESHOLD_REACHED => Attention::SoftThreshold,
            _ => Attention::Other,
        })
    }
}

/// What a unit attention tells, as far as an initiator acts on it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Attention {
    /// The unit, the target or the session began anew: 29h with any qualifier.
    Reset,
    /// The capacity is another one.
    Capacity,
    /// The medium may be another one.
    Medium,
    /// Write protection, caching and the like.
    ModeParameters,
    /// Somebody else has ended this initiator's registrations or a reservation.
    Reservations,
    /// What INQUIRY says.
    Inquiry,
    /// Which LUNs there are.
    Luns,
    /// A thin unit is running out of room.
    SoftThreshold,
    /// Anything else.
    Other,
}

/// The three bytes of SENSE KEY SPECIFIC; `None` without SKSV.
fn key_specific(key: SenseKey, bytes: [u8; 3]) -> Option<KeySpecific> {
    let [flags, high, low] = bytes;
    if flags & 0x80 == 0 {
        return None;
    }
    let value = u16::from_be_bytes([high, low]);
    Some(match key {
        SenseKey::IllegalRequest => KeySpecific::Field {
            place: if flags & 0x40 != 0 { FieldPlace::Cdb } else { FieldPlace::ParameterList },
            byte: value,
            bit: (flags & 0x08 != 0).then_some(flags & 0x07),
        },
        SenseKey::NotReady | SenseKey::NoSense => KeySpecific::Progress(value),
        SenseKey::RecoveredError | SenseKey::MediumError | SenseKey::HardwareError => {
            KeySpecific::Retries(value)
        }
        _ => KeySpecific::Other(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed(key: u8, code: SenseCode) -> Vec<u8> {
        let mut bytes = vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code.asc, code.ascq];
        bytes.resize(18, 0);
        bytes
    }

    fn ends(key: u8, code: SenseCode) -> Option<Retry> {
        Status::CheckCondition.retry(Some(&Sense::parse(&fixed(key, code)).unwrap()))
    }

    #[test]
    fn fixed_format() {
        let mut bytes = fixed(5, SenseCode::INVALID_FIELD_IN_CDB);
        bytes[0] |= 0x80;
        bytes[3..7].copy_from_slice(&[1, 2, 3, 4]);
        bytes[8..12].copy_from_slice(&[0, 0, 0, 9]);
        bytes[15..18].copy_from_slice(&[0xcd, 0, 7]);
        let sense = Sense::parse(&bytes).unwrap();
        assert_eq!((sense.key, sense.deferred), (SenseKey::IllegalRequest, false));
        assert_eq!(sense.code, SenseCode::INVALID_FIELD_IN_CDB);
        assert_eq!((sense.information, sense.command_specific), (Some(0x0102_0304), 9));
        let field = KeySpecific::Field { place: FieldPlace::Cdb, byte: 7, bit: Some(5) };
        assert_eq!(sense.specific, Some(field));
        bytes[0] = 0x71;
        bytes[7] = 5;
        let short = Sense::parse(&bytes).unwrap();
        assert_eq!((short.deferred, short.information, short.specific), (true, None, None));
        assert_eq!(short.code, SenseCode { asc: 0x24, ascq: 0 });
        bytes[7] = 4;
        assert_eq!(Sense::parse(&bytes).unwrap().code, SenseCode::NONE);
        assert!(Sense::parse(&bytes[..3]).is_ok());
        assert!(Sense::parse(&bytes[..2]).is_err());
    }

    #[test]
    fn descriptor_format() {
        let mut bytes = vec![0x72, 0x0e, 0x1d, 0, 0, 0, 0, 32];
        bytes.extend([0, 10, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 7]);
        bytes.extend([2, 6, 0, 0, 0x80, 0x12, 0x34, 0]);
        bytes.extend([1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        let sense = Sense::parse(&bytes).unwrap();
        assert_eq!(sense.key, SenseKey::Miscompare);
        assert_eq!(sense.code, SenseCode::MISCOMPARE_DURING_VERIFY);
        assert_eq!((sense.information, sense.command_specific), (Some((1 << 56) + 7), 3));
        assert_eq!(sense.specific, Some(KeySpecific::Other([0x80, 0x12, 0x34])));
        // The last descriptor is cut off.
        assert_eq!(Sense::parse(&bytes[..39]).unwrap().command_specific, 0);
        bytes[10] = 0;
        assert_eq!(Sense::parse(&bytes).unwrap().information, None);
        assert!(Sense::parse(&[0x72, 0, 0]).is_err());
        assert!(Sense::parse(&[0x74, 0, 0, 0]).is_err());
        assert!(Sense::parse(&[]).is_err());
    }

    #[test]
    fn the_key_decides_what_is_specific() {
        for (key, specific) in [
            (2, KeySpecific::Progress(0x0102)),
            (3, KeySpecific::Retries(0x0102)),
            (0xb, KeySpecific::Other([0x80, 1, 2])),
        ] {
            let mut bytes = fixed(key, SenseCode::NONE);
            bytes[15..18].copy_from_slice(&[0x80, 1, 2]);
            assert_eq!(Sense::parse(&bytes).unwrap().specific, Some(specific));
        }
    }

    #[test]
    fn what_is_sent_again_and_when() {
        use Retry::{After, Never, Now};
        let none = SenseCode::NONE;
        for (key, code, retry) in [
            (0x0, none, Some(Never)),
            (0x1, none, None),
            (0x2, SenseCode::BECOMING_READY, Some(After)),
            (0x2, SenseCode::FORMATTING, Some(After)),
            (0x2, SenseCode::UNIT_NOT_CONFIGURED, Some(After)),
            (0x2, SenseCode::PORT_IN_TRANSITION, Some(After)),
            (0x2, SenseCode::START_NEEDED, Some(Never)),
            (0x2, SenseCode::MEDIUM_NOT_PRESENT, Some(Never)),
            (0x3, SenseCode::UNRECOVERED_READ_ERROR, Some(Never)),
            (0x4, SenseCode::INTERNAL_TARGET_FAILURE, Some(Never)),
            (0x5, SenseCode::INVALID_OPCODE, Some(Never)),
            (0x6, SenseCode::CAPACITY_CHANGED, Some(Now)),
            (0x7, SenseCode::WRITE_PROTECTED, Some(Never)),
            (0x7, SenseCode::SPACE_ALLOCATION_FAILED, Some(Never)),
            (0xb, SenseCode::PROTOCOL_CRC_ERROR, Some(Now)),
            (0xc, none, Some(Never)),
            (0xe, SenseCode::MISCOMPARE_DURING_VERIFY, Some(Never)),
            (0xf, none, None),
        ] {
            assert_eq!(ends(key, code), retry, "{key:x} {code}");
        }
        for (code, retry) in [
            (0x00, None),
            (0x02, Some(Never)),
            (0x04, None),
            (0x08, Some(After)),
            (0x18, Some(Never)),
            (0x28, Some(After)),
            (0x30, Some(After)),
            (0x40, Some(Now)),
        ] {
            let status = Status::from_code(code).unwrap();
            assert_eq!((status.code(), status.retry(None)), (code, retry));
        }
        assert!(Status::from_code(0x10).is_err());
    }

    #[test]
    fn sense_data_does_not_spoil_a_good_status() {
        let sense = Sense::parse(&fixed(5, SenseCode::LUN_NOT_SUPPORTED)).unwrap();
        assert_eq!(Status::Good.retry(Some(&sense)), None);
    }

    #[test]
    fn an_error_of_an_earlier_command_is_not_hidden_by_trying_again() {
        let mut bytes = fixed(3, SenseCode::WRITE_ERROR);
        bytes[0] = 0x71;
        let sense = Sense::parse(&bytes).unwrap();
        assert_eq!(Status::CheckCondition.retry(Some(&sense)), Some(Retry::Never));
        bytes[2] = 1;
        let sense = Sense::parse(&bytes).unwrap();
        assert_eq!(Status::CheckCondition.retry(Some(&sense)), Some(Retry::Now));
    }

    #[test]
    fn unit_attentions_say_what_to_ask_again() {
        let attention = |key, code| Sense::parse(&fixed(key, code)).unwrap().attention();
        for (code, what) in [
            (SenseCode::RESET_OCCURRED, Attention::Reset),
            (SenseCode { asc: 0x29, ascq: 0x77 }, Attention::Reset),
            (SenseCode::CAPACITY_CHANGED, Attention::Capacity),
            (SenseCode::MEDIUM_MAY_HAVE_CHANGED, Attention::Medium),
            (SenseCode::MODE_PARAMETERS_CHANGED, Attention::ModeParameters),
            (SenseCode::RESERVATIONS_PREEMPTED, Attention::Reservations),
            (SenseCode::INQUIRY_DATA_CHANGED, Attention::Inquiry),
            (SenseCode::LUNS_CHANGED, Attention::Luns),
            (SenseCode::SOFT_THRESHOLD_REACHED, Attention::SoftThreshold),
            (SenseCode::COMMANDS_CLEARED, Attention::Other),
        ] {
            assert_eq!(attention(6, code), Some(what));
        }
        assert_eq!(attention(5, SenseCode::CAPACITY_CHANGED), None);
        assert_eq!(SenseCode::CAPACITY_CHANGED.to_string(), "2a/09 CAPACITY_CHANGED");
        assert_eq!(SenseCode { asc: 0xff, ascq: 1 }.to_string(), "ff/01");
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(
            response in prop_oneof![0x70u8..=0x73, 0xf0u8..=0xf3, any::<u8>()],
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [&[response], tail.as_slice()].concat();
            if let Ok(sense) = Sense::parse(&bytes) {
                sense.attention();
                Status::CheckCondition.retry(Some(&sense));
            }
            Sense::parse(&tail).ok();
        }
    }
}
