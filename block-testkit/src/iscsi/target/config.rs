//! What a target is like: its names, who may log in, what it agrees to.

use block_iscsi::chap::{Algorithm, Secret};
use block_iscsi::keys::DigestKind;

/// What a target is like.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Its names; all have the same units.
    pub names: Vec<String>,
    /// What people call it.
    pub alias: Option<String>,
    /// `host:port` of its portal, which discovery tells.
    pub portal: String,
    /// Who may log in.
    pub admission: Admission,
    /// Where it says that it has moved to.
    pub moved: Option<Moved>,
    /// What it agrees to.
    pub limits: Limits,
    /// Where its random numbers start: challenges and the first serial numbers.
    pub seed: u64,
}

/// Who may log in.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Everybody.
    Open,
    /// Who proves by CHAP to have one of these accounts.
    Chap(Vec<Account>),
    /// Everybody; who offers CHAP before `None` has to prove it.
    Either(Vec<Account>),
}

/// An account for CHAP.
#[derive(Clone, Debug)]
pub struct Account {
    /// The initiator's name.
    pub user: String,
    /// The initiator's secret.
    pub secret: Secret,
    /// The target's own name and secret, for initiators that ask it to prove itself.
    pub mutual: Option<(String, Secret)>,
    /// Algorithms that are accepted.
    pub algorithms: Vec<Algorithm>,
}

/// Where a target has moved to: `host:port`, as TargetAddress has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Moved {
    /// For now.
    Temporarily(String),
    /// From now on.
    Permanently(String),
}

/// What a target offers and agrees to. Lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// HeaderDigest: what is accepted.
    pub header_digest: Vec<DigestKind>,
    /// DataDigest: what is accepted.
    pub data_digest: Vec<DigestKind>,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength of the target.
    pub max_recv_data_segment_len: u32,
    /// MaxBurstLength.
    pub max_burst_len: u32,
    /// FirstBurstLength; at most MaxBurstLength.
    pub first_burst_len: u32,
    /// DefaultTime2Wait.
    pub time_to_wait_secs: u16,
    /// DefaultTime2Retain.
    pub time_to_retain_secs: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// How many commands may be under way; at least one.
    pub window: u32,
    /// Longest data segment of texts that are sent: longer texts are cut to pieces.
    pub text_len: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let any = vec![DigestKind::None, DigestKind::Crc32c];
        Self {
            header_digest: any.clone(),
            data_digest: any,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_len: 1 << 18,
            max_burst_len: 1 << 20,
            first_burst_len: 1 << 18,
            time_to_wait_secs: 2,
            time_to_retain_secs: 0,
            max_outstanding_r2t: 8,
            window: 128,
            text_len: 8192,
        }
    }
}

impl TargetConfig {
    /// A target of this name that everybody may use.
    pub fn new(name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            alias: None,
            portal: "127.0.0.1:3260".to_owned(),
            admission: Admission::Open,
            moved: None,
            limits: Limits::default(),
            seed: 0,
        }
    }
}

impl Account {
    /// An account without a secret of the target's.
    pub fn new(user: &str, secret: &str) -> Self {
        Self {
            user: user.to_owned(),
            secret: Secret::new(secret.as_bytes()),
            mutual: None,
            algorithms: Algorithm::ALL.to_vec(),
        }
    }
}

impl Admission {
    pub(super) fn accounts(&self) -> &[Account] {
        match self {
            Self::Open => &[],
            Self::Chap(accounts) | Self::Either(accounts) => accounts,
        }
    }
}
