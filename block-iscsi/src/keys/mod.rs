//! Text keys: what initiator and target agree on (RFC 7143, sections 6 and 13).
//!
//! * [`text`]: pairs of keys and values as bytes, over one or more PDUs.
//! * [`value`]: how numbers, booleans and bytes stand in values.
//! * [`Key`]: the keys of section 13, each with its rule.
//! * [`Negotiation`]: the initiator's half of a negotiation, which ends with [`Negotiated`].

mod negotiate;
mod offer;
mod table;
pub mod text;
pub mod value;

pub use negotiate::{Negotiation, Stage};
pub use offer::{DigestKind, Negotiated, Offer, SessionKind, TaskReporting};
pub use table::{Key, Rule, Scope, Sender, Spec, Use};

/// The answer of who does not know a key.
pub const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// The answer of who does not need a key.
pub const IRRELEVANT: &str = "Irrelevant";
/// The answer of who cannot accept a value.
pub const REJECT: &str = "Reject";

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// Its value, as text.
    pub value: String,
}

impl Pair {
    /// This key with this value.
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_owned() }
    }
}

/// Why a text, or what it asks for, cannot be accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// The last pair does not end with a zero byte.
    #[error("a text of {len} bytes does not end with a zero byte")]
    Unterminated {
        /// Length of the text in bytes.
        len: usize,
    },
    /// Not `key=value`, or the key has characters that no key has.
    #[error("{start:?} is not a key and a value")]
    NotAPair {
        /// Its first bytes.
        start: String,
    },
    /// A text grows too long.
    #[error("a text has {len} bytes, more than {limit}")]
    TextTooLong {
        /// Its length in bytes.
        len: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A value, or a part of it between commas, is too long.
    #[error("a value of {key} has {len} bytes, more than {limit}")]
    ValueTooLong {
        /// The key.
        key: String,
        /// The value's length in bytes.
        len: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A value that the key cannot have.
    #[error("{key} cannot be {value:?}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A key came twice.
    #[error("{key} came again, as {value:?}")]
    Repeated {
        /// The key.
        key: String,
        /// Its second value.
        value: String,
    },
    /// A key that only initiators send.
    #[error("{key}={value} came from a target")]
    WrongSender {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A key that has no place at this stage.
    #[error("{key}={value} has no place at this stage")]
    WrongStage {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// An answer that the key's rule does not allow for what was offered.
    #[error("{key}={offered} was offered, {key}={value} is no answer to it")]
    Answer {
        /// The key.
        key: String,
        /// The answer.
        value: String,
        /// What was offered.
        offered: String,
    },
    /// An answer to what was never offered.
    #[error("{key}={value} answers nothing")]
    Unasked {
        /// The key.
        key: String,
        /// The answer.
        value: String,
    },
    /// A key was refused, and its default is not what was offered.
    #[error("{key}={offered} was refused with {value}")]
    Refused {
        /// The key.
        key: String,
        /// How it was refused.
        value: String,
        /// What was offered.
        offered: String,
    },
    /// A key was not answered.
    #[error("{key}={offered} was not answered")]
    Unanswered {
        /// The key.
        key: &'static str,
        /// What was offered.
        offered: String,
    },
    /// A value that cannot be offered.
    #[error("{key} cannot be offered as {value}")]
    Offer {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
}
