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

/// Why a command ends with CHECK CONDITION.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Check {
    key: u8,
    code: (u8, u8),
    pointer: Option<Pointer>,
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

impl Check {
    pub(super) const NO_SENSE: Self = Self::new(0, (0, 0));
    pub(super) const INVALID_OPCODE: Self = Self::new(ILLEGAL_REQUEST, (0x20, 0));
    pub(super) const OUT_OF_RANGE: Self = Self::new(ILLEGAL_REQUEST, (0x21, 0));
    pub(super) const NO_LUN: Self = Self::new(ILLEGAL_REQUEST, (0x25, 0));
    pub(super) const LIST_LENGTH: Self = Self::new(ILLEGAL_REQUEST, (0x1a, 0));
    pub(super) const TOO_LITTLE_DATA: Self = Self::new(ILLEGAL_REQUEST, (0x0e, 3));
    pub(super) const INVALID_RELEASE: Self = Self::new(ILLEGAL_REQUEST, (0x26, 4));
    pub(super) const NO_SAVED_PAGES: Self = Self::new(ILLEGAL_REQUEST, (0x39, 0));
    pub(super) const WRITE_PROTECTED: Self = Self::new(7, (0x27, 0));
    pub(super) const NO_MEDIUM: Self = Self::new(2, (0x3a, 0));

    const fn new(key: u8, code: (u8, u8)) -> Self {
        Self { key, code, pointer: None, information: None }
    }

    /// A unit attention.
    pub(super) const fn attention(code: (u8, u8)) -> Self {
        Self::new(6, code)
    }

    /// The field of the CDB whose highest bit is `bit` of byte `byte`.
    pub(super) fn field(byte: u16, bit: u8) -> Self {
        let pointer = Some(Pointer { in_cdb: true, byte, bit });
        Self { pointer, ..Self::new(ILLEGAL_REQUEST, (0x24, 0)) }
    }

    /// The same, of the parameter list.
    pub(super) fn parameter(byte: u16, bit: u8) -> Self {
        let pointer = Some(Pointer { in_cdb: false, byte, bit });
        Self { pointer, ..Self::new(ILLEGAL_REQUEST, (0x26, 0)) }
    }

    /// What was compared differs from byte `offset` of the data on.
    pub(super) fn miscompare(offset: u64) -> Self {
        Self { information: Some(offset), ..Self::new(0x0e, (0x1d, 0)) }
    }

    pub(super) fn sense(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.fixed(),
            SenseFormat::Descriptor => self.descriptors(),
        }
    }

    /// The three bytes of SENSE KEY SPECIFIC.
    fn specific(pointer: Pointer) -> [u8; 3] {
        let [high, low] = pointer.byte.to_be_bytes();
        let place = if pointer.in_cdb { 0x40 } else { 0 };
        [0x80 | place | 0x08 | pointer.bit, high, low]
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
        if let Some(pointer) = self.pointer {
            bytes[15..18].copy_from_slice(&Self::specific(pointer));
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
        if let Some(pointer) = self.pointer {
            bytes.extend([0x02, 0x06, 0, 0]);
            bytes.extend(Self::specific(pointer));
            bytes.push(0);
            bytes[7] += 8;
        }
        bytes
    }
}
