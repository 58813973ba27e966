//! How a target answers the keys of RFC 7143, section 13, each by its own rule.
//!
//! Written from the RFC alone: nothing here is shared with the initiator's negotiation.

use std::collections::BTreeSet;

use block_iscsi::keys::value::{parse_flag, parse_number};
use block_iscsi::keys::{DigestKind, IRRELEVANT, NOT_UNDERSTOOD, Pair, REJECT};
use block_iscsi::pdu::login::LoginStatus;

use super::config::Limits;

/// Longest segment or burst that a key can say.
const LEN_MAX: u32 = (1 << 24) - 1;
/// Most keys of one login.
const KEYS_MAX: usize = 256;

/// What holds for a session and its connection. Lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// HeaderDigest.
    pub header_digest: DigestKind,
    /// DataDigest.
    pub data_digest: DigestKind,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength of the initiator.
    pub max_send_data_segment_len: u32,
    /// MaxBurstLength.
    pub max_burst_len: u32,
    /// FirstBurstLength.
    pub first_burst_len: u32,
    /// DefaultTime2Wait.
    pub time_to_wait_secs: u16,
    /// DefaultTime2Retain.
    pub time_to_retain_secs: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
}

impl Default for Agreed {
    /// What holds if nobody says anything.
    fn default() -> Self {
        Self {
            header_digest: DigestKind::None,
            data_digest: DigestKind::None,
            initial_r2t: true,
            immediate_data: true,
            max_send_data_segment_len: 8192,
            max_burst_len: 262_144,
            first_burst_len: 65_536,
            time_to_wait_secs: 2,
            time_to_retain_secs: 20,
            max_outstanding_r2t: 1,
        }
    }
}

/// Whether keys that only normal sessions have mean anything.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Normal,
    Discovery,
}

/// What is being agreed on.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) agreed: Agreed,
    seen: BTreeSet<String>,
}

/// Why a login ends at a key.
type Result<T> = std::result::Result<T, LoginStatus>;

impl Keys {
    /// Notes that a key has come; it may do so once in a login (section 6.3).
    pub(super) fn see(&mut self, key: &str) -> Result<()> {
        if self.seen.len() == KEYS_MAX || !self.seen.insert(key.to_owned()) {
            return Err(LoginStatus::InitiatorError);
        }
        Ok(())
    }

    /// The answer to a key of the operational stage, if it needs one.
    pub(super) fn answer(&mut self, pair: &Pair, kind: Kind, limits: &Limits) -> Option<Pair> {
        let value = self.value(pair, kind, limits)?;
        Some(Pair::new(&pair.key, &value))
    }

    fn value(&mut self, Pair { key, value }: &Pair, kind: Kind, limits: &Limits) -> Option<String> {
        if kind == Kind::Discovery && of_normal_sessions(key) {
            return Some(IRRELEVANT.to_owned());
        }
        let agreed = &mut self.agreed;
        match key.as_str() {
            "InitiatorAlias" | "X#NodeArchitecture" => None,
            "MaxRecvDataSegmentLength" => declare_len(&mut agreed.max_send_data_segment_len, value),
            "HeaderDigest" => choose(&mut agreed.header_digest, value, &limits.header_digest),
            "DataDigest" => choose(&mut agreed.data_digest, value, &limits.data_digest),
            "InitialR2T" => {
                flag(&mut agreed.initial_r2t, value, |theirs| theirs || limits.initial_r2t)
            }
            "ImmediateData" => {
                flag(&mut agreed.immediate_data, value, |theirs| theirs && limits.immediate_data)
            }
            "DataPDUInOrder" | "DataSequenceInOrder" => flag(&mut true, value, |_| true),
            "MaxBurstLength" => {
                least(&mut agreed.max_burst_len, value, (512, LEN_MAX), limits.max_burst_len)
            }
            "FirstBurstLength" => {
                least(&mut agreed.first_burst_len, value, (512, LEN_MAX), limits.first_burst_len)
            }
            "DefaultTime2Wait" => {
                let ours = limits.time_to_wait_secs;
                number16(&mut agreed.time_to_wait_secs, value, (0, 3600), |theirs| theirs.max(ours))
            }
            "DefaultTime2Retain" => {
                let (ours, to) = (limits.time_to_retain_secs, &mut agreed.time_to_retain_secs);
                number16(to, value, (0, 3600), |theirs| theirs.min(ours))
            }
            "MaxOutstandingR2T" => {
                let (ours, to) = (limits.max_outstanding_r2t, &mut agreed.max_outstanding_r2t);
                number16(to, value, (1, u16::MAX), |theirs| theirs.min(ours))
            }
            "MaxConnections" => number16(&mut 0, value, (1, u16::MAX), |_| 1),
            "ErrorRecoveryLevel" => number16(&mut 0, value, (0, 2), |_| 0),
            "iSCSIProtocolLevel" => number16(&mut 0, value, (0, 31), |theirs| theirs.min(1)),
            "TaskReporting" => {
                let known = value.split(',').any(|name| name == "RFC3720");
                Some(if known { "RFC3720" } else { REJECT }.to_owned())
            }
            // Only the target may send these.
            "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" => Some(REJECT.to_owned()),
            // Keys of RFC 3720 that must not be called unknown (section 13.25).
            "IFMarker" | "OFMarker" | "IFMarkInt" | "OFMarkInt" => Some(REJECT.to_owned()),
            _ => Some(NOT_UNDERSTOOD.to_owned()),
        }
    }
}

/// What a discovery session has no use for (section 13, and section 7.1.1 of RFC 7144).
fn of_normal_sessions(key: &str) -> bool {
    matches!(
        key,
        "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "TaskReporting"
            | "iSCSIProtocolLevel"
    )
}

/// The other side says its own; there is no answer unless it cannot be.
pub(super) fn declare_len(to: &mut u32, value: &str) -> Option<String> {
    match number(value, (512, LEN_MAX)) {
        Some(len) => {
            *to = len;
            None
        }
        None => Some(REJECT.to_owned()),
    }
}

/// The first of their values that we have too.
fn choose(to: &mut DigestKind, value: &str, ours: &[DigestKind]) -> Option<String> {
    let found = value.split(',').find_map(|name| ours.iter().find(|kind| kind.name() == name));
    Some(match found {
        Some(kind) => {
            *to = *kind;
            kind.name().to_owned()
        }
        None => REJECT.to_owned(),
    })
}

fn flag(to: &mut bool, value: &str, rule: impl FnOnce(bool) -> bool) -> Option<String> {
    Some(match parse_flag(value) {
        Some(theirs) => {
            *to = rule(theirs);
            if *to { "Yes" } else { "No" }.to_owned()
        }
        None => REJECT.to_owned(),
    })
}

fn least(to: &mut u32, value: &str, range: (u32, u32), ours: u32) -> Option<String> {
    Some(match number(value, range) {
        Some(theirs) => {
            *to = theirs.min(ours);
            to.to_string()
        }
        None => REJECT.to_owned(),
    })
}

fn number16(
    to: &mut u16,
    value: &str,
    (min, max): (u16, u16),
    rule: impl FnOnce(u16) -> u16,
) -> Option<String> {
    let theirs = number(value, (min.into(), max.into())).and_then(|n| u16::try_from(n).ok());
    Some(match theirs {
        Some(theirs) => {
            *to = rule(theirs);
            to.to_string()
        }
        None => REJECT.to_owned(),
    })
}

fn number(value: &str, (min, max): (u32, u32)) -> Option<u32> {
    let number = u32::try_from(parse_number(value)?).ok()?;
    (min..=max).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_of_no_use_are_not_called_unknown() {
        let answer = |key: &str, value: &str, kind| {
            let pair = Pair::new(key, value);
            Keys::default().answer(&pair, kind, &Limits::default()).map(|pair| pair.value)
        };
        for key in ["IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"] {
            assert_eq!(answer(key, "No", Kind::Normal).as_deref(), Some(REJECT));
        }
        assert_eq!(answer("X-org.example", "1", Kind::Normal).as_deref(), Some(NOT_UNDERSTOOD));
        let level = |kind| answer("iSCSIProtocolLevel", "2", kind);
        assert_eq!(level(Kind::Normal).as_deref(), Some("1"));
        assert_eq!(level(Kind::Discovery).as_deref(), Some(IRRELEVANT));
    }
}
