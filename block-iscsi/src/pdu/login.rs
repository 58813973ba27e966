//! Login Request and Login Response (RFC 7143, sections 11.12 and 11.13). Their data segments are
//! read by [`crate::keys`], their order is kept by [`crate::login`].

use zerocopy::byteorder::big_endian::U16;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    DataLen, FINAL, RawRequestSerials, RawResponseSerials, RequestSerials, ResponseSerials,
    check_no_ahs, tail,
};
use super::{Pdu, PduError};

/// The only version of the protocol there is.
pub const VERSION: u8 = 0;

const TRANSIT: u8 = FINAL;
const CONTINUE: u8 = 0x40;
const FULL_FEATURE: u8 = 3;

/// The stages that login PDUs belong to.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum LoginStage {
    /// SecurityNegotiation.
    Security,
    /// LoginOperationalNegotiation.
    Operational,
}

/// Where a login PDU stands: its stage, and what follows (the T, C, CSG and NSG fields).
///
/// Going from the operational stage to itself, or back, cannot be said.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum LoginStep {
    /// The text goes on in the next PDU.
    Partial(LoginStage),
    /// The text is complete and the stage goes on.
    Stay(LoginStage),
    /// From the security stage to the operational stage.
    ToOperational,
    /// From this stage to the full feature phase.
    ToFullFeature(LoginStage),
}

impl LoginStep {
    /// The stage that the PDU itself belongs to.
    pub fn stage(self) -> LoginStage {
        match self {
            Self::Partial(stage) | Self::Stay(stage) | Self::ToFullFeature(stage) => stage,
            Self::ToOperational => LoginStage::Security,
        }
    }

    fn decode(flags: u8) -> Result<Self, PduError> {
        let stage = match (flags >> 2) & 3 {
            0 => LoginStage::Security,
            1 => LoginStage::Operational,
            code => return Err(PduError::field("CSG", code)),
        };
        match (flags & TRANSIT != 0, flags & CONTINUE != 0) {
            (true, true) => Err(PduError::field("T and C", flags & (TRANSIT | CONTINUE))),
            (false, true) => Ok(Self::Partial(stage)),
            (false, false) => Ok(Self::Stay(stage)),
            (true, false) => match (stage, flags & 3) {
                (LoginStage::Security, 1) => Ok(Self::ToOperational),
                (_, FULL_FEATURE) => Ok(Self::ToFullFeature(stage)),
                (_, code) => Err(PduError::field("NSG", code)),
            },
        }
    }

    fn encode(self) -> u8 {
        let current = match self.stage() {
            LoginStage::Security => 0,
            LoginStage::Operational => 1 << 2,
        };
        current
            | match self {
                Self::Partial(_) => CONTINUE,
                Self::Stay(_) => 0,
                Self::ToOperational => TRANSIT | 1,
                Self::ToFullFeature(_) => TRANSIT | FULL_FEATURE,
            }
    }
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Why a target refuses a login, or sends it elsewhere (section 11.13.5).
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        pub enum LoginStatus {
            $($(#[$doc])* $name,)*
            /// Another detail of the classes 1 to 3.
            Other {
                /// Status-Class.
                class: u8,
                /// Status-Detail.
                detail: u8,
            },
        }

        impl LoginStatus {
            /// All that have a name, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Status-Class and Status-Detail.
            pub fn code(self) -> [u8; 2] {
                match self {
                    $(Self::$name => u16::to_be_bytes($code),)*
                    Self::Other { class, detail } => [class, detail],
                }
            }

            /// The meaning of a class from 1 to 3 and a detail. Details without a name are not an
            /// error, because the class says enough.
            pub fn from_code([class, detail]: [u8; 2]) -> Result<Self, PduError> {
                match u16::from_be_bytes([class, detail]) {
                    $($code => Ok(Self::$name),)*
                    _ if (1..=3).contains(&class) => Ok(Self::Other { class, detail }),
                    code => Err(PduError::field("Status", code)),
                }
            }
        }
    };
}

statuses! {
    /// The target is elsewhere for now.
    TargetMovedTemporarily = 0x0101,
    /// The target is elsewhere from now on.
    TargetMovedPermanently = 0x0102,
    /// The initiator made some error.
    InitiatorError = 0x0200,
    /// The initiator is not who it says, or authentication is needed.
    AuthenticationFailure = 0x0201,
    /// The initiator may not use this target.
    AuthorizationFailure = 0x0202,
    /// There is no such target.
    NotFound = 0x0203,
    /// The target was removed.
    TargetRemoved = 0x0204,
    /// The version is not supported.
    UnsupportedVersion = 0x0205,
    /// The session has too many connections.
    TooManyConnections = 0x0206,
    /// A parameter is missing, such as a name.
    MissingParameter = 0x0207,
    /// The connection cannot be added to the session.
    CannotIncludeInSession = 0x0208,
    /// The target does not serve this type of session.
    SessionTypeNotSupported = 0x0209,
    /// There is no such session.
    SessionDoesNotExist = 0x020a,
    /// A request was sent that has no place in a login.
    InvalidDuringLogin = 0x020b,
    /// The target made some error.
    TargetError = 0x0300,
    /// The target does not serve at present.
    ServiceUnavailable = 0x0301,
    /// The target is short of something.
    OutOfResources = 0x0302,
}

impl LoginStatus {
    /// Status-Class: 1 is redirection, 2 the initiator's fault, 3 the target's.
    pub fn class(self) -> u8 {
        let [class, _] = self.code();
        class
    }
}

/// A step of the login, from the initiator. Always for immediate delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoginRequest {
    /// Where it stands.
    pub step: LoginStep,
    /// The latest version that the initiator speaks.
    pub version_max: u8,
    /// The earliest one.
    pub version_min: u8,
    /// The initiator's half of the session's name.
    pub isid: [u8; 6],
    /// The target's half; 0 for a new session.
    pub tsih: u16,
    /// The task that the login is.
    pub task_tag: u32,
    /// The connection's number within the session.
    pub cid: u16,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
    /// Length of the text.
    pub data_len: DataLen,
}

/// What the target says to a step.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum LoginAnswer {
    /// Status 0: the login goes on, or is complete.
    Accepted(LoginStep),
    /// The login is over. Its stage bits mean nothing.
    Refused(LoginStatus),
}

/// Answers a step of the login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoginResponse {
    /// What the target says.
    pub answer: LoginAnswer,
    /// The latest version that the target speaks.
    pub version_max: u8,
    /// The version that is spoken.
    pub version_active: u8,
    /// The initiator's half of the session's name.
    pub isid: [u8; 6],
    /// The target's half; not 0 in the response that completes the login.
    pub tsih: u16,
    /// The task that the login is.
    pub task_tag: u32,
    /// The serial numbers.
    pub serials: ResponseSerials,
    /// Length of the text.
    pub data_len: DataLen,
}

tail! { RequestTail {
    cid: U16,
    _reserved_a: [u8; 2],
    serials: RawRequestSerials,
    _reserved_b: [u8; 16],
} }

tail! { ResponseTail {
    _reserved_a: [u8; 4],
    serials: RawResponseSerials,
    status: [u8; 2],
    _reserved_b: [u8; 10],
} }

/// ISID and TSIH, which stand where other PDUs have the LUN.
fn split_ssid([a, b, c, d, e, f, high, low]: [u8; 8]) -> ([u8; 6], u16) {
    ([a, b, c, d, e, f], u16::from_be_bytes([high, low]))
}

fn join_ssid([a, b, c, d, e, f]: [u8; 6], tsih: u16) -> [u8; 8] {
    let [high, low] = tsih.to_be_bytes();
    [a, b, c, d, e, f, high, low]
}

impl Pdu for LoginRequest {
    const OPCODE: Opcode = Opcode::LoginRequest;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        if !bhs.is_immediate() {
            return Err(PduError::field("I", 0_u8));
        }
        let [version_max, version_min] = bhs.specific_head;
        if version_min > version_max {
            return Err(PduError::field("Version-min", version_min));
        }
        let (isid, tsih) = split_ssid(bhs.lun);
        let tail = RequestTail::of(bhs);
        Ok(Self {
            step: LoginStep::decode(bhs.flags)?,
            version_max,
            version_min,
            isid,
            tsih,
            task_tag: bhs.initiator_task_tag,
            cid: tail.cid.get(),
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE).immediate().with_data(self.data_len);
        bhs.flags = self.step.encode();
        bhs.specific_head = [self.version_max, self.version_min];
        bhs.lun = join_ssid(self.isid, self.tsih);
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = RequestTail {
            cid: self.cid.into(),
            serials: self.serials.into(),
            ..RequestTail::default()
        }
        .bytes();
        bhs
    }
}

impl Pdu for LoginResponse {
    const OPCODE: Opcode = Opcode::LoginResponse;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        let tail = ResponseTail::of(bhs);
        let answer = match tail.status {
            [0, 0] => LoginAnswer::Accepted(LoginStep::decode(bhs.flags)?),
            code => LoginAnswer::Refused(LoginStatus::from_code(code)?),
        };
        let [version_max, version_active] = bhs.specific_head;
        let (isid, tsih) = split_ssid(bhs.lun);
        Ok(Self {
            answer,
            version_max,
            version_active,
            isid,
            tsih,
            task_tag: bhs.initiator_task_tag,
            serials: tail.serials.into(),
            data_len: bhs.data(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let (flags, status) = match self.answer {
            LoginAnswer::Accepted(step) => (step.encode(), [0, 0]),
            LoginAnswer::Refused(status) => (0, status.code()),
        };
        let mut bhs = Bhs::new(Self::OPCODE).with_data(self.data_len);
        bhs.flags = flags;
        bhs.specific_head = [self.version_max, self.version_active];
        bhs.lun = join_ssid(self.isid, self.tsih);
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail =
            ResponseTail { serials: self.serials.into(), status, ..ResponseTail::default() }
                .bytes();
        bhs
    }
}
