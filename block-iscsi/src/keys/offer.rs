//! What an initiator offers, and what comes of it.

use super::KeyError;
use super::table::{Key, Rule, Value};

/// What a session is for.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum SessionKind {
    /// Asks which targets there are.
    Discovery,
    /// Reads and writes.
    Normal,
}

/// How headers or data segments are protected.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum DigestKind {
    /// They are not.
    None,
    /// By CRC32C.
    Crc32c,
}

/// What the target says of tasks that others ended.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum TaskReporting {
    /// As RFC 3720 has it.
    Rfc3720,
    /// Responses to task management wait for acknowledgements of others.
    ResponseFence,
    /// Tasks are ended without waiting.
    FastAbort,
}

/// What an initiator offers. Lists stand in the order of preference; lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// HeaderDigest.
    pub header_digest: Vec<DigestKind>,
    /// DataDigest.
    pub data_digest: Vec<DigestKind>,
    /// MaxConnections.
    pub max_connections: u16,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength: what this side takes.
    pub max_recv_data_segment_len: u32,
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
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// TaskReporting; not sent if it is the default alone. Anything else names RFC3720 and
    /// ResponseFence (section 13.23).
    pub task_reporting: Vec<TaskReporting>,
}

impl Default for Offer {
    /// The defaults of section 13: what holds if nobody says anything.
    fn default() -> Self {
        Self {
            header_digest: vec![DigestKind::None],
            data_digest: vec![DigestKind::None],
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_recv_data_segment_len: 8192,
            max_burst_len: 262_144,
            first_burst_len: 65_536,
            time_to_wait_secs: 2,
            time_to_retain_secs: 20,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            task_reporting: vec![TaskReporting::Rfc3720],
        }
    }
}

/// What holds for a session and its connection after the login. Lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// HeaderDigest.
    pub header_digest: DigestKind,
    /// DataDigest.
    pub data_digest: DigestKind,
    /// MaxConnections.
    pub max_connections: u16,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength of the initiator: the longest data segment that may come.
    pub max_recv_data_segment_len: u32,
    /// MaxRecvDataSegmentLength of the target: the longest data segment that may be sent.
    pub max_send_data_segment_len: u32,
    /// MaxBurstLength.
    pub max_burst_len: u32,
    /// FirstBurstLength; never more than MaxBurstLength.
    pub first_burst_len: u32,
    /// DefaultTime2Wait.
    pub time_to_wait_secs: u16,
    /// DefaultTime2Retain.
    pub time_to_retain_secs: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// TaskReporting.
    pub task_reporting: TaskReporting,
    /// TargetAlias, if the target said one.
    pub target_alias: Option<String>,
    /// TargetPortalGroupTag, if the target said it.
    pub target_portal_group_tag: Option<u16>,
}

impl Offer {
    /// The value that is offered for each key, in the order in which they are sent. Those that the
    /// rules of their keys do not allow are refused.
    pub(super) fn values(&self) -> Result<Vec<(Key, Value)>, KeyError> {
        let digests = |list: &[DigestKind]| Value::List(list.iter().map(|d| d.name()).collect());
        let reporting = self.task_reporting.iter().map(|t| t.name()).collect();
        let values = vec![
            (Key::HeaderDigest, digests(&self.header_digest)),
            (Key::DataDigest, digests(&self.data_digest)),
            (Key::MaxConnections, Value::Number(self.max_connections.into())),
            (Key::InitialR2T, Value::Flag(self.initial_r2t)),
            (Key::ImmediateData, Value::Flag(self.immediate_data)),
            (Key::MaxBurstLength, Value::Number(self.max_burst_len)),
            (Key::FirstBurstLength, Value::Number(self.first_burst_len)),
            (Key::DefaultTime2Wait, Value::Number(self.time_to_wait_secs.into())),
            (Key::DefaultTime2Retain, Value::Number(self.time_to_retain_secs.into())),
            (Key::MaxOutstandingR2T, Value::Number(self.max_outstanding_r2t.into())),
            (Key::DataPDUInOrder, Value::Flag(self.data_pdu_in_order)),
            (Key::DataSequenceInOrder, Value::Flag(self.data_sequence_in_order)),
            (Key::ErrorRecoveryLevel, Value::Number(self.error_recovery_level.into())),
            (Key::TaskReporting, Value::List(reporting)),
        ];
        for (key, value) in &values {
            if key.spec().rule.parse(&value.text()).as_ref() != Some(value) {
                return Err(KeyError::Offer { key: key.name(), value: value.text() });
            }
        }
        let reporting = &self.task_reporting;
        let musts = [TaskReporting::Rfc3720, TaskReporting::ResponseFence];
        let is_default = *reporting == [TaskReporting::Rfc3720];
        if !is_default && !musts.iter().all(|must| reporting.contains(must)) {
            let names: Vec<_> = reporting.iter().map(|t| t.name()).collect();
            return Err(KeyError::Offer { key: Key::TaskReporting.name(), value: names.join(",") });
        }
        let own_len = self.max_recv_data_segment_len;
        if !is_segment_len(own_len) {
            let key = Key::MaxRecvDataSegmentLength.name();
            return Err(KeyError::Offer { key, value: own_len.to_string() });
        }
        if self.first_burst_len > self.max_burst_len {
            let key = Key::FirstBurstLength.name();
            return Err(KeyError::Offer { key, value: self.first_burst_len.to_string() });
        }
        Ok(values)
    }
}

/// Whether MaxRecvDataSegmentLength can be this: a burst has the same bounds.
pub(super) fn is_segment_len(len: u32) -> bool {
    match Key::MaxBurstLength.spec().rule {
        Rule::Minimum { min, max } => (min..=max).contains(&len),
        _ => false,
    }
}

impl DigestKind {
    /// Its name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Crc32c => "CRC32C",
        }
    }
}

impl TaskReporting {
    /// Its name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rfc3720 => "RFC3720",
            Self::ResponseFence => "ResponseFence",
            Self::FastAbort => "FastAbort",
        }
    }
}
