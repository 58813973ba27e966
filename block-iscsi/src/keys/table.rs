//! The keys of RFC 7143, section 13, and their rules, as data.

use super::value::{parse_flag, parse_number};

/// Keys of RFC 3720 that are no longer used. Whoever offers one gets a refusal, not the answer of
/// who does not know it (section 13.25).
pub(super) const OBSOLETE: [&str; 4] = ["IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"];

/// Longest data segment or burst that a key can say, in bytes.
const LEN_MAX: u32 = (1 << 24) - 1;
const DIGESTS: &[&str] = &["None", "CRC32C"];

/// Who may send a key.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Sender {
    /// Only the initiator.
    Initiator,
    /// Only the target.
    Target,
    /// Both.
    Both,
}

/// What a key holds for.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// The connection.
    Connection,
    /// The session with all its connections.
    Session,
}

/// When a key may be sent.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// In every login.
    Login,
    /// In the login of a session's first connection.
    LeadingLogin,
    /// In every login, its security stage too.
    LoginAtAnyStage,
    /// In the login of a session's first connection, its security stage too.
    LeadingLoginAtAnyStage,
    /// In the security stage of every login.
    Security,
    /// At any time, the security stage included.
    Always,
    /// At any time but in the security stage.
    AlwaysButSecurity,
    /// After the login.
    FullFeature,
}

/// How two sides come to a value (section 6.2).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// Each side says its own; there is no answer.
    Declare,
    /// The first of the offered values that the other side knows too.
    Choose(&'static [&'static str]),
    /// Yes if both say so.
    And,
    /// Yes if one says so.
    Or,
    /// The smaller number, from `min` to `max`, both included.
    Minimum {
        /// The smallest that can be said.
        min: u32,
        /// The largest that can be said.
        max: u32,
    },
    /// The larger number, from `min` to `max`, both included.
    Maximum {
        /// The smallest that can be said.
        min: u32,
        /// The largest that can be said.
        max: u32,
    },
}

/// What section 13 says of a key.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// How its value is found.
    pub rule: Rule,
    /// What holds if nobody says anything; empty if there is no default.
    pub default: &'static str,
    /// Who may send it.
    pub sender: Sender,
    /// What it holds for.
    pub scope: Scope,
    /// When it may be sent.
    pub used: Use,
    /// Whether it means something in a discovery session.
    pub in_discovery: bool,
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident($text:literal, $default:literal, $sender:ident, $scope:ident, $used:ident, $discovery:literal) = $rule:expr;)*) => {
        /// A key of section 13.
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Key {
            $($(#[$doc])* $name,)*
        }

        impl Key {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What the RFC says of it.
            pub const fn spec(self) -> Spec {
                match self {
                    $(Self::$name => Spec {
                        name: $text,
                        rule: $rule,
                        default: $default,
                        sender: Sender::$sender,
                        scope: Scope::$scope,
                        used: Use::$used,
                        in_discovery: $discovery,
                    },)*
                }
            }
        }
    };
}

keys! {
    /// How headers are protected.
    HeaderDigest("HeaderDigest", "None", Both, Connection, Login, true) = Rule::Choose(DIGESTS);
    /// How data segments are protected.
    DataDigest("DataDigest", "None", Both, Connection, Login, true) = Rule::Choose(DIGESTS);
    /// How many connections a session may have.
    MaxConnections("MaxConnections", "1", Both, Session, LeadingLogin, false) =
        Rule::Minimum { min: 1, max: 65535 };
    /// Asks for the names of targets.
    SendTargets("SendTargets", "", Initiator, Session, FullFeature, true) = Rule::Declare;
    /// The target's name.
    TargetName("TargetName", "", Both, Session, LoginAtAnyStage, true) = Rule::Declare;
    /// The initiator's name.
    InitiatorName("InitiatorName", "", Initiator, Session, LoginAtAnyStage, true) = Rule::Declare;
    /// What people call the target.
    TargetAlias("TargetAlias", "", Target, Session, Always, true) = Rule::Declare;
    /// What people call the initiator.
    InitiatorAlias("InitiatorAlias", "", Initiator, Session, Always, true) = Rule::Declare;
    /// Where the target is.
    TargetAddress("TargetAddress", "", Target, Session, Always, true) = Rule::Declare;
    /// The portal group that serves the session.
    TargetPortalGroupTag("TargetPortalGroupTag", "", Target, Session, LoginAtAnyStage, true) =
        Rule::Declare;
    /// Whether data is sent only after an R2T.
    InitialR2T("InitialR2T", "Yes", Both, Session, LeadingLogin, false) = Rule::Or;
    /// Whether commands carry data.
    ImmediateData("ImmediateData", "Yes", Both, Session, LeadingLogin, false) = Rule::And;
    /// The longest data segment that the sender takes.
    MaxRecvDataSegmentLength(
        "MaxRecvDataSegmentLength", "8192", Both, Connection, AlwaysButSecurity, true
    ) = Rule::Declare;
    /// The most data in a burst.
    MaxBurstLength("MaxBurstLength", "262144", Both, Session, LeadingLogin, false) =
        Rule::Minimum { min: 512, max: LEN_MAX };
    /// The most data that is sent unasked.
    FirstBurstLength("FirstBurstLength", "65536", Both, Session, LeadingLogin, false) =
        Rule::Minimum { min: 512, max: LEN_MAX };
    /// After how many seconds a lost connection may be made again.
    DefaultTime2Wait("DefaultTime2Wait", "2", Both, Session, LeadingLogin, true) =
        Rule::Maximum { min: 0, max: 3600 };
    /// How many seconds tasks are kept after that.
    DefaultTime2Retain("DefaultTime2Retain", "20", Both, Session, LeadingLogin, true) =
        Rule::Minimum { min: 0, max: 3600 };
    /// How many R2Ts of a task may be open.
    MaxOutstandingR2T("MaxOutstandingR2T", "1", Both, Session, LeadingLogin, false) =
        Rule::Minimum { min: 1, max: 65535 };
    /// Whether the PDUs of a burst come in order.
    DataPDUInOrder("DataPDUInOrder", "Yes", Both, Session, LeadingLogin, false) = Rule::Or;
    /// Whether bursts come in order.
    DataSequenceInOrder("DataSequenceInOrder", "Yes", Both, Session, LeadingLogin, false) =
        Rule::Or;
    /// What is recovered.
    ErrorRecoveryLevel("ErrorRecoveryLevel", "0", Both, Session, LeadingLogin, true) =
        Rule::Minimum { min: 0, max: 2 };
    /// Whether the session reads and writes, or asks for targets.
    SessionType("SessionType", "Normal", Initiator, Session, LeadingLoginAtAnyStage, true) =
        Rule::Declare;
    /// What is said of tasks that others ended.
    TaskReporting("TaskReporting", "RFC3720", Both, Session, LeadingLogin, false) =
        Rule::Choose(&["RFC3720", "ResponseFence", "FastAbort"]);
    /// Which revision of the protocol is spoken (RFC 7144, section 7.1.1).
    IscsiProtocolLevel("iSCSIProtocolLevel", "1", Both, Session, LeadingLogin, false) =
        Rule::Minimum { min: 0, max: 31 };
    /// What the sender runs on.
    NodeArchitecture("X#NodeArchitecture", "", Both, Session, LeadingLogin, true) = Rule::Declare;
    /// How the sides prove who they are (section 12.1).
    AuthMethod("AuthMethod", "", Both, Connection, Security, true) =
        Rule::Choose(&["None", "CHAP"]);
}

impl Key {
    /// The key of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| key.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }
}

/// A value of a key that is negotiated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    Flag(bool),
    Number(u32),
    /// In the order of preference. An answer is a list of one.
    List(Vec<&'static str>),
}

impl Value {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Flag(flag) => super::value::flag_text(*flag).to_owned(),
            Self::Number(number) => number.to_string(),
            Self::List(names) => names.join(","),
        }
    }
}

impl Rule {
    /// The value that a text says, if it is one of this rule's. Of a list, the names that are not
    /// known are left out; at least one is left.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::Declare => None,
            Self::And | Self::Or => parse_flag(text).map(Value::Flag),
            Self::Minimum { min, max } | Self::Maximum { min, max } => {
                let number = u32::try_from(parse_number(text)?).ok()?;
                (min..=max).contains(&number).then_some(Value::Number(number))
            }
            Self::Choose(known) => {
                let mut names = Vec::new();
                for part in text.split(',') {
                    let name = known.iter().copied().find(|name| *name == part);
                    names.extend(name.filter(|name| !names.contains(name)));
                }
                (!names.is_empty()).then_some(Value::List(names))
            }
        }
    }

    /// What the responder makes of the originator's value and its own; `None` if lists have
    /// nothing in common.
    pub(super) fn combine(self, offered: &Value, own: &Value) -> Option<Value> {
        match (self, offered, own) {
            (Self::And, Value::Flag(a), Value::Flag(b)) => Some(Value::Flag(*a && *b)),
            (Self::Or, Value::Flag(a), Value::Flag(b)) => Some(Value::Flag(*a || *b)),
            (Self::Minimum { .. }, Value::Number(a), Value::Number(b)) => {
                Some(Value::Number(*a.min(b)))
            }
            (Self::Maximum { .. }, Value::Number(a), Value::Number(b)) => {
                Some(Value::Number(*a.max(b)))
            }
            (Self::Choose(_), Value::List(a), Value::List(b)) => {
                a.iter().find(|name| b.contains(name)).map(|name| Value::List(vec![name]))
            }
            _ => None,
        }
    }

    /// Whether `answer` can come of `offered` with some value of the other side's.
    pub(super) fn allows(self, offered: &Value, answer: &Value) -> bool {
        if let Value::List(names) = answer
            && names.len() != 1
        {
            return false;
        }
        self.combine(offered, answer).as_ref() == Some(answer)
    }

    /// Whether the offer alone says what comes of it, so that an answer may be left out
    /// (section 6.2.2).
    pub(super) fn is_settled_by(self, offered: &Value) -> bool {
        matches!((self, offered), (Self::And, Value::Flag(false)) | (Self::Or, Value::Flag(true)))
    }
}
