//! Sense data, as a target makes it (SPC-4 4.5).

/// In which format sense data is sent (D_SENSE of the control page).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum SenseFormat {
    /// Fixed format.
    #[default]
    Fixed,
    /// Descriptor format.
    Descriptor,
}

/// A wrong field.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Pointer {
    /// C/D: in the CDB, not in its data.
    in_cdb: bool,
    byte: u16,
    bit: u8,
}

/// What is specific to a sense key (SPC-4).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Specific {
    Field(Pointer),
    /// How much of an operation is done, in parts of 65536.
    Progress(u16),
}

/// Why a command ends with CHECK CONDITION.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Check {
    key: u8,
    code: (u8, u8),
    specific: Option<Specific>,
    information: Option<u64>,
}

/// Why a command does not end with GOOD.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Check(Check),
    ReservationConflict,
}

impl From<Check> for Refusal {
    fn from(check: Check) -> Self {
        Self::Check(check)
    }
}

const ILLEGAL_REQUEST: u8 = 5;
/// COPY ABORTED.
const COPY: u8 = 0x0a;

impl Check {
    pub(super) const NO_SENSE: Self = Self::new(0, (0, 0));
    pub(super) const INVALID_OPCODE: Self = Self::new(ILLEGAL_REQUEST, (0x20, 0));
    pub(super) const OUT_OF_RANGE: Self = Self::new(ILLEGAL_REQUEST, (0x21, 0));
    pub(super) const NO_LUN: Self = Self::new(ILLEGAL_REQUEST, (0x25, 0));
    pub(super) const LIST_LENGTH: Self = Self::new(ILLEGAL_REQUEST, (0x1a, 0));
    pub(super) const TOO_LITTLE_DATA: Self = Self::new(ILLEGAL_REQUEST, (0x0e, 3));
    pub(super) const INVALID_RELEASE: Self = Self::new(ILLEGAL_REQUEST, (0x26, 4));
    pub(super) const NO_SAVED_PAGES: Self = Self::new(ILLEGAL_REQUEST, (0x39, 0));
    pub(super) const REMOVAL_PREVENTED: Self = Self::new(ILLEGAL_REQUEST, (0x53, 2));
    pub(super) const MANY_TARGETS: Self = Self::new(ILLEGAL_REQUEST, (0x26, 6));
    pub(super) const UNKNOWN_TARGET: Self = Self::new(ILLEGAL_REQUEST, (0x26, 7));
    pub(super) const MANY_SEGMENTS: Self = Self::new(ILLEGAL_REQUEST, (0x26, 8));
    pub(super) const UNKNOWN_SEGMENT: Self = Self::new(ILLEGAL_REQUEST, (0x26, 9));
    pub(super) const INLINE_DATA: Self = Self::new(ILLEGAL_REQUEST, (0x26, 0x0b));
    pub(super) const WRITE_PROTECTED: Self = Self::new(7, (0x27, 0));
    pub(super) const SOFTWARE_WRITE_PROTECTED: Self = Self::new(7, (0x27, 2));
    pub(super) const NO_MEDIUM: Self = Self::new(2, (0x3a, 0));
    pub(super) const SANITIZE_FAILED: Self = Self::new(3, (0x31, 3));
    /// A segment of a copy is not on the medium.
    pub(super) const COPY_ABORTED: Self = Self::new(COPY, (0, 0));
    pub(super) const UNREACHABLE_COPY_TARGET: Self = Self::new(COPY, (0x08, 4));
    pub(super) const COPY_TARGET_FAILED: Self = Self::new(COPY, (0x0d, 1));
    pub(super) const COPY_TARGET_NOT_FOUND: Self = Self::new(COPY, (0x0d, 2));
    pub(super) const INEXACT_SEGMENT: Self = Self::new(COPY, (0x26, 0x0a));

    const fn new(key: u8, code: (u8, u8)) -> Self {
        Self { key, code, specific: None, information: None }
    }

    /// A unit attention.
    pub(super) const fn attention(code: (u8, u8)) -> Self {
        Self::new(6, code)
    }

    /// The field of the CDB whose highest bit is `bit` of byte `byte`.
    pub(super) fn field(byte: u16, bit: u8) -> Self {
        let specific = Some(Specific::Field(Pointer { in_cdb: true, byte, bit }));
        Self { specific, ..Self::new(ILLEGAL_REQUEST, (0x24, 0)) }
    }

    /// The same, of the parameter list.
    pub(super) fn parameter(byte: u16, bit: u8) -> Self {
        let specific = Some(Specific::Field(Pointer { in_cdb: false, byte, bit }));
        Self { specific, ..Self::new(ILLEGAL_REQUEST, (0x26, 0)) }
    }

    /// What was compared differs from byte `offset` of the data on.
    pub(super) fn miscompare(offset: u64) -> Self {
        Self { information: Some(offset), ..Self::new(0x0e, (0x1d, 0)) }
    }

    /// A SANITIZE goes on, of which so many parts of 65536 are done.
    pub(super) fn sanitizing(done: u16) -> Self {
        Self { specific: Some(Specific::Progress(done)), ..Self::new(2, (0x04, 0x1b)) }
    }

    pub(super) fn sense(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.fixed(),
            SenseFormat::Descriptor => self.descriptors(),
        }
    }

    /// The three bytes of SENSE KEY SPECIFIC.
    fn specific(specific: Specific) -> [u8; 3] {
        let (flags, value) = match specific {
            Specific::Field(Pointer { in_cdb, byte, bit }) => {
                (if in_cdb { 0xc8 | bit } else { 0x88 | bit }, byte)
            }
            Specific::Progress(done) => (0x80, done),
        };
        let [high, low] = value.to_be_bytes();
        [flags, high, low]
    }

    /// Fixed format (SPC-4 4.5.3). INFORMATION of more than 32 bits is not valid there.
    fn fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        if let Some(Ok(information)) = self.information.map(u32::try_from) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[7] = 10;
        (bytes[12], bytes[13]) = self.code;
        if let Some(specific) = self.specific {
            bytes[15..18].copy_from_slice(&Self::specific(specific));
        }
        bytes
    }

    /// Descriptor format (SPC-4 4.5.2).
    fn descriptors(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key, self.code.0, self.code.1, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend([0x00, 0x0a, 0x80, 0]);
            bytes.extend(information.to_be_bytes());
            bytes[7] += 12;
        }
        if let Some(specific) = self.specific {
            bytes.extend([0x02, 0x06, 0, 0]);
            bytes.extend(Self::specific(specific));
            bytes.push(0);
            bytes[7] += 8;
        }
        bytes
    }
}
