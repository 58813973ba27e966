//! The target's half of a login (RFC 7143, sections 6.3 and 11.12).
//!
//! Invariants: nobody reaches the full feature phase without what [`Admission`] asks for; at most
//! [`TEXT_LEN_MAX`] bytes of text are held, and a login has at most [`REQUESTS_MAX`] requests.

use block_iscsi::keys::text::{TEXT_LEN_MAX, TextBuffer, encode};
use block_iscsi::keys::{Pair, REJECT};
use block_iscsi::pdu::Pdu;
use block_iscsi::pdu::fields::{DataLen, ResponseSerials};
use block_iscsi::pdu::login::{
    LoginAnswer, LoginRequest, LoginResponse, LoginStage, LoginStatus, LoginStep, VERSION,
};
use block_iscsi::serial::Serial;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::chap::{self, Challenge};
use super::config::{Admission, Moved, TargetConfig};
use super::frame::Frame;
use super::keys::{Keys, Kind};
use super::output::Output;

/// Most requests of one login.
const REQUESTS_MAX: u32 = 64;
/// The one portal group.
pub(super) const PORTAL_GROUP: &str = "1";

/// Who logs in to what.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) initiator: String,
    /// Empty for discovery.
    pub(super) target: String,
    pub(super) kind: Kind,
    pub(super) isid: [u8; 6],
    pub(super) tsih: u16,
    pub(super) cid: u16,
}

impl Identity {
    /// The name of the initiator port (RFC 7143, section 4.4.2).
    pub(super) fn port(&self) -> String {
        let isid: String = self.isid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{},i,0x{isid}", self.initiator)
    }
}

#[derive(Debug)]
enum Proof {
    /// AuthMethod has not come.
    Method,
    /// CHAP is agreed on.
    Algorithm,
    Challenge(Challenge),
    /// Everything is proved that has to be.
    Done,
}

/// A login that is under way.
#[derive(Debug)]
pub(super) struct Login {
    stage: Option<LoginStage>,
    identity: Option<Identity>,
    /// What names the login: all its requests have the same.
    first: Option<LoginRequest>,
    text: TextBuffer,
    keys: Keys,
    proof: Proof,
    /// Whether our own values have been said.
    declared: bool,
    stat_sn: Serial,
    requests: u32,
    /// How many commands may be under way after the login; at least one.
    window: u32,
    /// What is left of an answer that is cut to pieces.
    rest: Option<Vec<u8>>,
    /// The last answer, which waits for the session's name.
    last: Option<(Vec<u8>, LoginStep)>,
}

/// Where a request has brought the login.
pub(super) enum Progress {
    Continues,
    /// It has failed: what is in the output is the last thing that is said.
    Over,
    /// The session may begin. The answer has not been sent: it names the session.
    Complete,
}

type Result<T> = std::result::Result<T, LoginStatus>;

impl Login {
    pub(super) fn new(window: u32, rng: &mut ChaCha8Rng) -> Self {
        Self {
            stage: None,
            identity: None,
            first: None,
            text: TextBuffer::new(TEXT_LEN_MAX),
            keys: Keys::default(),
            proof: Proof::Method,
            declared: false,
            stat_sn: Serial::new(rng.random()),
            requests: 0,
            window: window.max(1),
            rest: None,
            last: None,
        }
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The number of the next status.
    pub(super) fn stat_sn(&self) -> Serial {
        self.stat_sn
    }

    /// CmdSN of the first command after the login.
    pub(super) fn cmd_sn(&self) -> Serial {
        self.first.as_ref().map_or_else(Serial::default, |first| first.serials.cmd_sn)
    }

    /// Takes a PDU.
    pub(super) fn handle(
        &mut self,
        frame: Frame<'_>,
        config: &TargetConfig,
        rng: &mut ChaCha8Rng,
        output: &mut Output,
    ) -> Progress {
        let Ok(request) = LoginRequest::parse(frame.header) else {
            // What it is can still be said of a login that has begun (section 11.12).
            if self.first.is_some() {
                self.refuse(LoginStatus::InvalidDuringLogin, &[], output);
            }
            return Progress::Over;
        };
        if self.first.is_none() {
            self.first = Some(request.clone());
        }
        match self.step(&request, frame.data, config, rng) {
            Ok((step, text)) => self.answer(step, text, config, output),
            Err(status) => {
                let moved = match (&config.moved, status.class()) {
                    (Some(Moved::Temporarily(to) | Moved::Permanently(to)), 1) => {
                        vec![Pair::new("TargetAddress", to)]
                    }
                    _ => Vec::new(),
                };
                self.refuse(status, &moved, output);
                Progress::Over
            }
        }
    }

    /// What is to be answered, and with which step.
    fn step(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        config: &TargetConfig,
        rng: &mut ChaCha8Rng,
    ) -> Result<(LoginStep, Vec<u8>)> {
        self.check(request)?;
        let stage = request.step.stage();
        if let Some(rest) = self.rest.take() {
            // Only an empty request fetches the rest (section 6.2).
            if !data.is_empty() {
                return Err(LoginStatus::InitiatorError);
            }
            return Ok((self.granted(request), rest));
        }
        self.text.push(data).map_err(|_| LoginStatus::InitiatorError)?;
        if matches!(request.step, LoginStep::Partial(_)) {
            return Ok((LoginStep::Stay(stage), Vec::new()));
        }
        let pairs = self.text.take_pairs().map_err(|_| LoginStatus::InitiatorError)?;
        for pair in &pairs {
            self.keys.see(&pair.key)?;
        }
        let mut answers = Vec::new();
        if self.identity.is_none() {
            self.identify(request, &pairs, config, &mut answers)?;
        }
        let pairs: Vec<_> = pairs.into_iter().filter(|pair| !names_somebody(&pair.key)).collect();
        match stage {
            LoginStage::Security => self.secure(&pairs, config, rng, &mut answers)?,
            LoginStage::Operational => self.operate(&pairs, config, &mut answers)?,
        }
        Ok((self.granted(request), encode(&answers)))
    }

    /// The step that is asked for, once everything is proved; else the stage goes on.
    fn granted(&self, request: &LoginRequest) -> LoginStep {
        let done = matches!(self.proof, Proof::Done);
        match request.step {
            step @ (LoginStep::ToOperational | LoginStep::ToFullFeature(_)) if done => step,
            step => LoginStep::Stay(step.stage()),
        }
    }

    /// What all requests of a login have in common.
    fn check(&mut self, request: &LoginRequest) -> Result<()> {
        let Some(first) = &self.first else { return Err(LoginStatus::InitiatorError) };
        if request.version_min > VERSION {
            return Err(LoginStatus::UnsupportedVersion);
        }
        let name = |request: &LoginRequest| {
            (request.isid, request.tsih, request.cid, request.task_tag, request.serials.cmd_sn)
        };
        let stage = request.step.stage();
        self.requests += 1;
        if name(first) != name(request)
            || *self.stage.get_or_insert(stage) != stage
            || self.requests > REQUESTS_MAX
        {
            return Err(LoginStatus::InitiatorError);
        }
        Ok(())
    }

    /// The first text says who is there and what is wanted (section 6.3).
    fn identify(
        &mut self,
        request: &LoginRequest,
        pairs: &[Pair],
        config: &TargetConfig,
        answers: &mut Vec<Pair>,
    ) -> Result<()> {
        let value =
            |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
        let initiator = value("InitiatorName").ok_or(LoginStatus::MissingParameter)?;
        let (kind, target) = match value("SessionType") {
            None | Some("Normal") => {
                (Kind::Normal, value("TargetName").ok_or(LoginStatus::MissingParameter)?)
            }
            Some("Discovery") => (Kind::Discovery, ""),
            Some(_) => return Err(LoginStatus::SessionTypeNotSupported),
        };
        if kind == Kind::Normal {
            if !config.names.iter().any(|name| name == target) {
                return Err(LoginStatus::NotFound);
            }
            match &config.moved {
                Some(Moved::Temporarily(_)) => return Err(LoginStatus::TargetMovedTemporarily),
                Some(Moved::Permanently(_)) => return Err(LoginStatus::TargetMovedPermanently),
                None => {}
            }
            answers.push(Pair::new("TargetPortalGroupTag", PORTAL_GROUP));
        }
        answers.extend(config.alias.as_ref().map(|alias| Pair::new("TargetAlias", alias)));
        self.identity = Some(Identity {
            initiator: initiator.to_owned(),
            target: target.to_owned(),
            kind,
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
        });
        Ok(())
    }

    fn secure(
        &mut self,
        pairs: &[Pair],
        config: &TargetConfig,
        rng: &mut ChaCha8Rng,
        answers: &mut Vec<Pair>,
    ) -> Result<()> {
        let chap = |pair: &&Pair| pair.key.starts_with("CHAP_");
        for pair in pairs.iter().filter(|pair| !chap(pair) && pair.key != "AuthMethod") {
            // Nothing else has a place in this stage (section 12), but what nobody knows.
            let known = ["HeaderDigest", "DataDigest", "MaxBurstLength", "InitialR2T"];
            if known.contains(&pair.key.as_str()) {
                return Err(LoginStatus::InitiatorError);
            }
            answers.extend(self.keys.answer(pair, Kind::Discovery, &config.limits));
        }
        let value =
            |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
        let accounts = config.admission.accounts();
        match (&self.proof, value("AuthMethod")) {
            (Proof::Method, None) => self.without_method(config)?,
            (Proof::Method, Some(offered)) => answers.push(self.choose(offered, config)?),
            (_, Some(_)) => return Err(LoginStatus::InitiatorError),
            (Proof::Algorithm, None) => {
                let offered = value("CHAP_A").ok_or(LoginStatus::InitiatorError)?;
                let algorithm = chap::choose(offered, accounts)?;
                let challenge =
                    Challenge { identifier: rng.random(), bytes: rng.random(), algorithm };
                answers.extend(challenge.pairs());
                self.proof = Proof::Challenge(challenge);
            }
            (Proof::Challenge(challenge), None) => {
                answers.extend(challenge.check(pairs, accounts)?);
                self.proof = Proof::Done;
            }
            (Proof::Done, None) if pairs.iter().any(|pair| chap(&pair)) => {
                return Err(LoginStatus::InitiatorError);
            }
            (Proof::Done, None) => {}
        }
        Ok(())
    }

    /// Nobody spoke of authentication.
    fn without_method(&mut self, config: &TargetConfig) -> Result<()> {
        if matches!(config.admission, Admission::Chap(_)) {
            return Err(LoginStatus::AuthenticationFailure);
        }
        self.proof = Proof::Done;
        Ok(())
    }

    /// The first AuthMethod on the list that is good enough.
    fn choose(&mut self, offered: &str, config: &TargetConfig) -> Result<Pair> {
        let (open, chap) = match config.admission {
            Admission::Open => (true, false),
            Admission::Chap(_) => (false, true),
            Admission::Either(_) => (true, true),
        };
        let good = |name: &&str| (*name == "None" && open) || (*name == "CHAP" && chap);
        let method = offered.split(',').find(good).ok_or(LoginStatus::AuthenticationFailure)?;
        self.proof = if method == "CHAP" { Proof::Algorithm } else { Proof::Done };
        Ok(Pair::new("AuthMethod", method))
    }

    fn operate(
        &mut self,
        pairs: &[Pair],
        config: &TargetConfig,
        answers: &mut Vec<Pair>,
    ) -> Result<()> {
        if matches!(self.proof, Proof::Method) {
            self.without_method(config)?;
        }
        let kind = self.identity.as_ref().map_or(Kind::Normal, |identity| identity.kind);
        for pair in pairs {
            if pair.key == "AuthMethod" {
                // That stage is over, or was left out (section 12.1).
                answers.push(Pair::new(&pair.key, REJECT));
            } else {
                answers.extend(self.keys.answer(pair, kind, &config.limits));
            }
        }
        if !std::mem::replace(&mut self.declared, true) {
            let len = config.limits.max_recv_data_segment_len.to_string();
            answers.push(Pair::new("MaxRecvDataSegmentLength", &len));
        }
        Ok(())
    }

    /// Sends an answer, or its first piece.
    fn answer(
        &mut self,
        step: LoginStep,
        mut text: Vec<u8>,
        config: &TargetConfig,
        output: &mut Output,
    ) -> Progress {
        let piece = config.limits.text_len.clamp(1, TEXT_LEN_MAX);
        if text.len() > piece {
            // The stage goes on until the last piece has been fetched.
            self.rest = Some(text.split_off(piece));
            let step = LoginStep::Partial(step.stage());
            self.send(LoginAnswer::Accepted(step), 0, &text, output);
            return Progress::Continues;
        }
        if step == LoginStep::ToOperational {
            self.stage = Some(LoginStage::Operational);
        }
        if matches!(step, LoginStep::ToFullFeature(_)) {
            self.last = Some((text, step));
            return Progress::Complete;
        }
        self.send(LoginAnswer::Accepted(step), 0, &text, output);
        Progress::Continues
    }

    /// Sends the last answer, which names the session.
    pub(super) fn complete(&mut self, tsih: u16, output: &mut Output) {
        if let Some((text, step)) = self.last.take() {
            self.send(LoginAnswer::Accepted(step), tsih, &text, output);
        }
    }

    /// Ends the login.
    pub(super) fn refuse(&mut self, status: LoginStatus, pairs: &[Pair], output: &mut Output) {
        self.send(LoginAnswer::Refused(status), 0, &encode(pairs), output);
    }

    fn send(&mut self, answer: LoginAnswer, tsih: u16, text: &[u8], output: &mut Output) {
        let Some(first) = &self.first else { return };
        let cmd_sn = first.serials.cmd_sn;
        let response = LoginResponse {
            answer,
            version_max: VERSION,
            version_active: VERSION,
            isid: first.isid,
            tsih: if tsih == 0 { first.tsih } else { tsih },
            task_tag: first.task_tag,
            serials: ResponseSerials {
                stat_sn: self.stat_sn,
                exp_cmd_sn: cmd_sn,
                max_cmd_sn: cmd_sn.plus(self.window - 1),
            },
            data_len: DataLen::of(text).unwrap_or_default(),
        };
        self.stat_sn = self.stat_sn.next();
        output.put(&response.to_bytes(), text);
    }
}

/// Keys that [`Login::identify`] has read.
fn names_somebody(key: &str) -> bool {
    matches!(key, "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType")
}
