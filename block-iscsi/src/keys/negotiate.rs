//! The initiator's half of a negotiation (RFC 7143, section 6.2).
//!
//! Invariants: a key is settled at most once; what is settled is what its rule makes of the offer
//! and the answer; nothing is kept of keys that are not in the table.

use super::offer::{DigestKind, Negotiated, Offer, SessionKind, TaskReporting, is_segment_len};
use super::table::{Key, OBSOLETE, Rule, Sender, Use, Value};
use super::value::parse_number;
use super::{IRRELEVANT, KeyError, NOT_UNDERSTOOD, Pair, REJECT};

/// The stages of a login at which keys come.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// SecurityNegotiation.
    Security,
    /// LoginOperationalNegotiation.
    Operational,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    /// Nobody has said anything.
    Silent,
    /// This side has made its offer.
    Offered,
    /// Both sides have spoken, or need not.
    Settled,
}

/// A key that is negotiated.
#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    own: Value,
    agreed: Value,
    state: State,
}

/// A negotiation that is under way.
#[derive(Clone, Debug)]
pub struct Negotiation {
    kind: SessionKind,
    entries: Vec<Entry>,
    own_segment_len: u32,
    /// Declarations of the target that have come.
    declared: Vec<Key>,
    target_segment_len: u32,
    target_alias: Option<String>,
    target_portal_group_tag: Option<u16>,
}

impl Negotiation {
    /// A negotiation in which nothing has been said. Values that cannot be offered are refused.
    pub fn new(kind: SessionKind, offer: &Offer) -> Result<Self, KeyError> {
        let mut entries = Vec::new();
        let level = (Key::IscsiProtocolLevel, Value::Number(1));
        for (key, mut own) in offer.values()?.into_iter().chain([level]) {
            if (kind, key) == (SessionKind::Discovery, Key::ErrorRecoveryLevel) {
                // Nothing is recovered there (section 7.4.1).
                own = Value::Number(0);
            }
            let default = key.spec().rule.parse(key.spec().default);
            let agreed = default.unwrap_or_else(|| own.clone());
            entries.push(Entry { key, own, agreed, state: State::Silent });
        }
        Ok(Self {
            kind,
            entries,
            own_segment_len: offer.max_recv_data_segment_len,
            declared: Vec::new(),
            target_segment_len: Offer::default().max_recv_data_segment_len,
            target_alias: None,
            target_portal_group_tag: None,
        })
    }

    /// What this side offers and declares in the operational stage. Newer keys are left out while
    /// their defaults are wanted, because older targets do not know them.
    pub fn offers(&mut self) -> Vec<Pair> {
        let own_len = self.own_segment_len.to_string();
        let mut pairs = vec![Pair::new(Key::MaxRecvDataSegmentLength.name(), &own_len)];
        for entry in &mut self.entries {
            let newer = matches!(entry.key, Key::TaskReporting | Key::IscsiProtocolLevel);
            let left_out = newer && entry.own == entry.agreed;
            let relevant = self.kind == SessionKind::Normal || entry.key.spec().in_discovery;
            if entry.state == State::Silent && relevant && !left_out {
                entry.state = State::Offered;
                if entry.key.spec().rule.is_settled_by(&entry.own) {
                    entry.agreed = entry.own.clone();
                }
                pairs.push(Pair::new(entry.key.name(), &entry.own.text()));
            }
        }
        pairs
    }

    /// Takes a pair of the target's, and gives what has to be answered.
    pub fn receive(&mut self, stage: Stage, pair: &Pair) -> Result<Option<Pair>, KeyError> {
        let Pair { key, value } = pair;
        let is_refusal = [NOT_UNDERSTOOD, IRRELEVANT, REJECT].contains(&value.as_str());
        let Some(known) = Key::from_name(key) else {
            if is_refusal {
                return Err(KeyError::Unasked { key: key.clone(), value: value.clone() });
            }
            let answer = if OBSOLETE.contains(&key.as_str()) { REJECT } else { NOT_UNDERSTOOD };
            return Ok(Some(Pair::new(key, answer)));
        };
        let spec = known.spec();
        if spec.sender == Sender::Initiator {
            return Err(KeyError::WrongSender { key: key.clone(), value: value.clone() });
        }
        let in_time = match (spec.used, stage) {
            (Use::FullFeature, _) => false,
            (Use::LoginAtAnyStage | Use::LeadingLoginAtAnyStage | Use::Always, _) => true,
            (Use::Security, stage) => stage == Stage::Security,
            (_, stage) => stage == Stage::Operational,
        };
        if !in_time || matches!(known, Key::AuthMethod | Key::TargetName) {
            return Err(KeyError::WrongStage { key: key.clone(), value: value.clone() });
        }
        if spec.rule == Rule::Declare {
            return self.declare(known, value).map(|()| None);
        }
        let irrelevant = self.kind == SessionKind::Discovery && !spec.in_discovery;
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.key == known) else {
            return Ok(None);
        };
        match entry.state {
            State::Settled => Err(KeyError::Repeated { key: key.clone(), value: value.clone() }),
            State::Offered => entry.take_answer(value).map(|()| None),
            State::Silent if is_refusal => {
                Err(KeyError::Unasked { key: key.clone(), value: value.clone() })
            }
            State::Silent if irrelevant => {
                entry.state = State::Settled;
                Ok(Some(Pair::new(key, IRRELEVANT)))
            }
            State::Silent => Ok(Some(Pair::new(key, &entry.take_offer(value)))),
        }
    }

    /// Whether all offers that need an answer have one.
    pub fn is_complete(&self) -> bool {
        self.entries.iter().all(|entry| !entry.waits())
    }

    /// What holds from now on.
    pub fn finish(&self) -> Result<Negotiated, KeyError> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.waits()) {
            let offered = entry.own.text();
            return Err(KeyError::Unanswered { key: entry.key.name(), offered });
        }
        let max_burst_len = self.number(Key::MaxBurstLength);
        let (initial_r2t, immediate_data) =
            (self.flag(Key::InitialR2T), self.flag(Key::ImmediateData));
        let mut first_burst_len = self.number(Key::FirstBurstLength);
        if first_burst_len > max_burst_len {
            // Without unsolicited data nobody looks at it (section 13.14).
            if self.kind == SessionKind::Normal && (!initial_r2t || immediate_data) {
                let key = Key::FirstBurstLength.name().to_owned();
                return Err(KeyError::Value { key, value: first_burst_len.to_string() });
            }
            first_burst_len = max_burst_len;
        }
        Ok(Negotiated {
            header_digest: self.digest(Key::HeaderDigest),
            data_digest: self.digest(Key::DataDigest),
            max_connections: self.small(Key::MaxConnections),
            initial_r2t,
            immediate_data,
            max_recv_data_segment_len: self.own_segment_len,
            max_send_data_segment_len: self.target_segment_len,
            max_burst_len,
            first_burst_len,
            time_to_wait_secs: self.small(Key::DefaultTime2Wait),
            time_to_retain_secs: self.small(Key::DefaultTime2Retain),
            max_outstanding_r2t: self.small(Key::MaxOutstandingR2T),
            data_pdu_in_order: self.flag(Key::DataPDUInOrder),
            data_sequence_in_order: self.flag(Key::DataSequenceInOrder),
            error_recovery_level: u8::try_from(self.number(Key::ErrorRecoveryLevel))
                .unwrap_or_default(),
            task_reporting: match self.choice(Key::TaskReporting) {
                Some("ResponseFence") => TaskReporting::ResponseFence,
                Some("FastAbort") => TaskReporting::FastAbort,
                _ => TaskReporting::Rfc3720,
            },
            target_alias: self.target_alias.clone(),
            target_portal_group_tag: self.target_portal_group_tag,
        })
    }

    /// The portal group that the target has named so far.
    pub fn target_portal_group_tag(&self) -> Option<u16> {
        self.target_portal_group_tag
    }

    fn declare(&mut self, key: Key, value: &str) -> Result<(), KeyError> {
        let (name, text) = (key.name().to_owned(), value.to_owned());
        // A target may have several addresses (section 6.3).
        if key != Key::TargetAddress && self.declared.contains(&key) {
            return Err(KeyError::Repeated { key: name, value: text });
        }
        self.declared.push(key);
        let number = parse_number(value);
        match key {
            Key::MaxRecvDataSegmentLength => {
                let len = number.and_then(|len| u32::try_from(len).ok());
                let Some(len) = len.filter(|len| is_segment_len(*len)) else {
                    return Err(KeyError::Value { key: name, value: text });
                };
                self.target_segment_len = len;
            }
            Key::TargetPortalGroupTag => {
                let Some(tag) = number.and_then(|tag| u16::try_from(tag).ok()) else {
                    return Err(KeyError::Value { key: name, value: text });
                };
                self.target_portal_group_tag = Some(tag);
            }
            Key::TargetAlias => self.target_alias = Some(text),
            _ => {}
        }
        Ok(())
    }

    fn agreed(&self, key: Key) -> Option<&Value> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.agreed)
    }

    fn number(&self, key: Key) -> u32 {
        match self.agreed(key) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    fn small(&self, key: Key) -> u16 {
        u16::try_from(self.number(key)).unwrap_or(u16::MAX)
    }

    fn flag(&self, key: Key) -> bool {
        matches!(self.agreed(key), Some(Value::Flag(true)))
    }

    fn choice(&self, key: Key) -> Option<&'static str> {
        match self.agreed(key) {
            Some(Value::List(names)) => names.first().copied(),
            _ => None,
        }
    }

    fn digest(&self, key: Key) -> DigestKind {
        match self.choice(key) {
            Some("CRC32C") => DigestKind::Crc32c,
            _ => DigestKind::None,
        }
    }
}

impl Entry {
    fn waits(&self) -> bool {
        self.state == State::Offered && !self.key.spec().rule.is_settled_by(&self.own)
    }

    /// Takes the target's answer to the offer. If the target refuses the key, its default holds,
    /// provided that the target could have answered with it. A key that the target calls
    /// irrelevant is used by nobody.
    fn take_answer(&mut self, text: &str) -> Result<(), KeyError> {
        let rule = self.key.spec().rule;
        let (key, value) = (self.key.name().to_owned(), text.to_owned());
        let offered = self.own.text();
        match text {
            NOT_UNDERSTOOD | REJECT if !rule.allows(&self.own, &self.agreed) => {
                return Err(KeyError::Refused { key, value, offered });
            }
            NOT_UNDERSTOOD | REJECT => {}
            IRRELEVANT => {
                if let Some(harmless) = rule.combine(&self.own, &self.agreed) {
                    self.agreed = harmless;
                }
            }
            _ => {
                let answer = rule.parse(text).filter(|_| !text.contains(','));
                let answer = answer
                    .ok_or_else(|| KeyError::Value { key: key.clone(), value: value.clone() })?;
                if !rule.allows(&self.own, &answer) {
                    return Err(KeyError::Answer { key, value, offered });
                }
                self.agreed = answer;
            }
        }
        self.state = State::Settled;
        Ok(())
    }

    /// Takes the target's offer, and gives the answer. A value that the key cannot have is
    /// rejected, and the default holds.
    fn take_offer(&mut self, text: &str) -> String {
        let rule = self.key.spec().rule;
        self.state = State::Settled;
        match rule.parse(text).and_then(|offered| rule.combine(&offered, &self.own)) {
            Some(agreed) => {
                self.agreed = agreed;
                self.agreed.text()
            }
            None => REJECT.to_owned(),
        }
    }
}
