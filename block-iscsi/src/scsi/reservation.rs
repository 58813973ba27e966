//! Persistent reservations (SPC-4): who may use a unit, and who has said so.
//!
//! Left out: READ FULL STATUS, REGISTER AND MOVE, and registering for other initiators (SPEC_I_PT).

use super::inquiry::check_limit;
use super::wire::{Bytes, size};
use super::{AnswerError, Problem};

/// Most keys that are taken from one answer.
pub const KEYS_MAX: usize = 4096;
/// Length of the parameter list of PERSISTENT RESERVE OUT.
pub const RESERVE_LIST_LEN: usize = 24;

const HEADER_LEN: usize = 8;
const KEY_LEN: usize = 8;

/// The type of a reservation (TYPE).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReservationType {
    /// Others read.
    WriteExclusive,
    /// Others do nothing.
    ExclusiveAccess,
    /// Who is not registered reads.
    WriteExclusiveRegistrantsOnly,
    /// Who is not registered does nothing.
    ExclusiveAccessRegistrantsOnly,
    /// As registrants only, and all registrants hold it.
    WriteExclusiveAllRegistrants,
    /// As registrants only, and all registrants hold it.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The four bits on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 3,
            Self::WriteExclusiveRegistrantsOnly => 5,
            Self::ExclusiveAccessRegistrantsOnly => 6,
            Self::WriteExclusiveAllRegistrants => 7,
            Self::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// The type of these four bits.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// What PERSISTENT RESERVE IN asks (SERVICE ACTION).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReserveIn {
    /// Which keys are registered: [`Keys`].
    Keys,
    /// Who holds the reservation: [`Reservation`].
    Reservation,
    /// What the unit can do: [`Capabilities`].
    Capabilities,
}

impl ReserveIn {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Keys => 0,
            Self::Reservation => 1,
            Self::Capabilities => 2,
        }
    }
}

/// What PERSISTENT RESERVE OUT does (SERVICE ACTION).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReserveOut {
    /// Registers the service action key in place of the reservation key; zero ends a registration.
    Register,
    /// The same, whatever is registered.
    RegisterAndIgnore,
    /// Reserves the unit.
    Reserve(ReservationType),
    /// Gives the reservation of this type up.
    Release(ReservationType),
    /// Ends all registrations and the reservation.
    Clear,
    /// Ends the registrations of the service action key, and takes its reservation.
    Preempt(ReservationType),
    /// The same, and aborts the commands of who lost it.
    PreemptAndAbort(ReservationType),
}

impl ReserveOut {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Register => 0,
            Self::Reserve(_) => 1,
            Self::Release(_) => 2,
            Self::Clear => 3,
            Self::Preempt(_) => 4,
            Self::PreemptAndAbort(_) => 5,
            Self::RegisterAndIgnore => 6,
        }
    }

    /// SCOPE (the logical unit, always) and TYPE.
    pub(super) fn scope_and_type(self) -> u8 {
        match self {
            Self::Register | Self::RegisterAndIgnore | Self::Clear => 0,
            Self::Reserve(kind)
            | Self::Release(kind)
            | Self::Preempt(kind)
            | Self::PreemptAndAbort(kind) => kind.code(),
        }
    }
}

/// Whether a registration survives a loss of power (APTPL).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Persistence {
    /// It does not.
    UntilPowerLoss,
    /// It does.
    ThroughPowerLoss,
}

/// The parameter list of PERSISTENT RESERVE OUT.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReserveList {
    /// RESERVATION KEY: the one that is registered; zero if there is none.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY: the new one, or whose registrations are preempted.
    pub action_key: u64,
    /// Whether a registration survives a loss of power.
    pub persistence: Persistence,
}

impl ReserveList {
    /// The bytes of the Data-Out buffer.
    pub fn encode(&self) -> [u8; RESERVE_LIST_LEN] {
        let mut bytes = [0; RESERVE_LIST_LEN];
        bytes[..8].copy_from_slice(&self.key.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.action_key.to_be_bytes());
        bytes[20] = u8::from(self.persistence == Persistence::ThroughPowerLoss);
        bytes
    }
}

/// The answer to READ KEYS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    /// PRGENERATION: counts the changes of registrations.
    pub generation: u32,
    /// The keys that are registered.
    pub keys: Vec<u64>,
}

impl Keys {
    /// Reads the answer. One that was cut by the allocation length is an error that says how long it
    /// is.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("READ KEYS data", bytes);
        let (generation, len) = (bytes.u32(0)?, bytes.u32(4)?);
        if !len.is_multiple_of(8) {
            let problem = Problem::NotMultiple { unit: 8 };
            return Err(AnswerError::field(ADDITIONAL_LENGTH, len.into(), problem));
        }
        check_limit("number of keys", size(len) / KEY_LEN, KEYS_MAX)?;
        let list = bytes.first(size(len) + HEADER_LEN)?.from(HEADER_LEN);
        let keys = list.pieces(KEY_LEN).map(|key| key.u64(0)).collect::<Result<_, _>>()?;
        Ok(Self { generation, keys })
    }
}

/// Who holds the reservation.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holder {
    /// Its key; zero if all registrants hold it.
    pub key: u64,
    /// The type.
    pub kind: ReservationType,
}

/// The answer to READ RESERVATION.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reservation {
    /// PRGENERATION.
    pub generation: u32,
    /// Who holds the reservation, if there is one.
    pub holder: Option<Holder>,
}

impl Reservation {
    /// Reads the answer.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("READ RESERVATION data", bytes);
        let (generation, len) = (bytes.u32(0)?, bytes.u32(4)?);
        let holder = match len {
            0 => None,
            16 => Some(Self::parse_holder(bytes.from(HEADER_LEN))?),
            _ => {
                let problem = Problem::Unexpected { expected: 16 };
                return Err(AnswerError::field(ADDITIONAL_LENGTH, len.into(), problem));
            }
        };
        Ok(Self { generation, holder })
    }

    fn parse_holder(bytes: Bytes<'_>) -> Result<Holder, AnswerError> {
        let bytes = bytes.first(16)?;
        let code = bytes.u8(13)?;
        if code >> 4 != 0 {
            return Err(AnswerError::field("SCOPE", (code >> 4).into(), Problem::Reserved));
        }
        let reserved = AnswerError::field("TYPE", code.into(), Problem::Reserved);
        let kind = ReservationType::from_code(code).ok_or(reserved)?;
        Ok(Holder { key: bytes.u64(0)?, kind })
    }
}

/// The answer to REPORT CAPABILITIES.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Registrations can survive a loss of power (PTPL_C).
    pub through_power_loss: bool,
    /// RESERVE (6) and RELEASE (6) are compatible with registrations (CRH).
    pub compatible_reservations: bool,
    /// The types that are there, if the unit tells (TMV).
    pub types: Option<Vec<ReservationType>>,
}

impl Capabilities {
    /// Reads the answer.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("REPORT CAPABILITIES data", bytes).first(8)?;
        let (flags, mask) = (bytes.u8(2)?, bytes.u16(4)?);
        // The bit of a type is its code, counted from bit 0 of byte 4 for codes below 8 and from
        // bit 0 of byte 5 for the others.
        let has = |kind: &ReservationType| mask.swap_bytes() >> kind.code() & 1 != 0;
        let types = ReservationType::ALL.into_iter().filter(has).collect();
        Ok(Self {
            through_power_loss: flags & 0x01 != 0,
            compatible_reservations: flags & 0x10 != 0,
            types: (bytes.u8(3)? & 0x80 != 0).then_some(types),
        })
    }
}

const ADDITIONAL_LENGTH: &str = "ADDITIONAL LENGTH";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_read_whole_or_not_at_all() {
        let mut bytes = vec![0, 0, 0, 5, 0, 0, 0, 16];
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(u64::MAX.to_be_bytes());
        let found = Keys { generation: 5, keys: vec![7, u64::MAX] };
        assert_eq!(Keys::parse(&bytes), Ok(found));
        assert!(Keys::parse(&bytes[..23]).is_err());
        assert!(Keys::parse(&[0, 0, 0, 5, 0, 0, 0, 9]).is_err());
        assert!(matches!(
            Keys::parse(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xf8]),
            Err(AnswerError::Field { field: "number of keys", .. })
        ));
    }

    #[test]
    fn a_reservation_has_a_holder_or_not() {
        assert_eq!(Reservation::parse(&[0; 8]), Ok(Reservation { generation: 0, holder: None }));
        let answer = |code| {
            let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 16];
            bytes.extend(9u64.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 0, code, 0, 0]);
            Reservation::parse(&bytes).map(|found| found.holder)
        };
        for code in 0..=255 {
            match ReservationType::from_code(code) {
                Some(kind) => assert_eq!(answer(code), Ok(Some(Holder { key: 9, kind }))),
                None => assert!(answer(code).is_err()),
            }
        }
        assert!(Reservation::parse(&[0, 0, 0, 1, 0, 0, 0, 16]).is_err());
        assert!(Reservation::parse(&[0, 0, 0, 1, 0, 0, 0, 8]).is_err());
    }

    #[test]
    fn capabilities_name_the_types() {
        let found = Capabilities::parse(&[0, 8, 0x11, 0x80, 0xea, 0x01, 0, 0]).unwrap();
        assert_eq!(found.types, Some(ReservationType::ALL.to_vec()));
        assert!(found.through_power_loss && found.compatible_reservations);
        let one = Capabilities::parse(&[0, 8, 0, 0x80, 0x08, 0, 0, 0]).unwrap();
        assert_eq!(one.types, Some(vec![ReservationType::ExclusiveAccess]));
        let silent = Capabilities::parse(&[0, 8, 0, 0, 0xea, 0x01, 0, 0]).unwrap();
        assert_eq!((silent.types, silent.through_power_loss), (None, false));
    }

    #[test]
    fn the_list_of_reserve_out() {
        let persistence = Persistence::ThroughPowerLoss;
        let bytes = ReserveList { key: 1, action_key: 0x0203, persistence }.encode();
        assert_eq!(bytes[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[8..], [0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), len in 0u8..40) {
            let framed = [&[0, 0, 0, 0, 0, 0, 0, len], bytes.as_slice()].concat();
            for bytes in [&bytes, &framed] {
                Keys::parse(bytes).ok();
                Reservation::parse(bytes).ok();
                Capabilities::parse(bytes).ok();
            }
        }
    }
}
