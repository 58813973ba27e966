//! The initiator's login, without I/O (RFC 7143, section 6.3).
//!
//! The caller sends what [`Login::next_request`] gives and hands what comes to [`Login::handle`],
//! until that says `Done` or `Redirect`, or fails. The login starts in the security stage with
//! AuthMethod, goes to the operational stage, offers all keys at once, and asks for the full
//! feature phase.
//!
//! Invariants: at most [`EXCHANGES_MAX`] requests; at most [`TEXT_LEN_MAX`] bytes of text are held;
//! after the end, or an error, nothing is sent and nothing is taken. The target is never let
//! through if CHAP was chosen and has not been completed.
//!
//! Timeouts are the caller's.

use crate::chap::{Chap, ChapConfig, ChapError, Nonce};
use crate::keys::text::{TEXT_LEN_MAX, TextBuffer, encode};
use crate::keys::{Key, KeyError, Negotiated, Negotiation, Offer, Pair, SessionKind, Stage};
use crate::pdu::fields::{DataLen, RequestSerials};
use crate::pdu::login::{
    LoginAnswer, LoginRequest, LoginResponse, LoginStage, LoginStatus, LoginStep, VERSION,
};
use crate::pdu::{Pdu, PduError, Request};
use crate::serial::{CommandWindow, Serial};
use crate::url::TARGET_LEN_MAX;

/// Most requests of one login.
pub const EXCHANGES_MAX: u32 = 32;

/// How we prove who we are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authentication {
    /// Not at all.
    None,
    /// By CHAP.
    Chap(ChapConfig),
    /// By CHAP, or not at all if the target does not want it.
    ChapOrNone(ChapConfig),
    /// Not at all, or by CHAP if the target wants it.
    NoneOrChap(ChapConfig),
}

/// What the session is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionTarget {
    /// Asks which targets there are.
    Discovery,
    /// Reads and writes LUNs of the target of this name.
    Normal(String),
}

/// What a login needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoginConfig {
    /// The initiator's name.
    pub initiator: String,
    /// What people call the initiator.
    pub initiator_alias: Option<String>,
    /// What the session is for.
    pub target: SessionTarget,
    /// How we prove who we are.
    pub authentication: Authentication,
    /// New random bytes, for CHAP.
    pub nonce: Nonce,
    /// What is offered.
    pub offer: Offer,
    /// The initiator's half of the session's name. A session of the same half is replaced.
    pub isid: [u8; 6],
    /// The connection's number.
    pub cid: u16,
    /// The login's task tag.
    pub task_tag: u32,
    /// The number of the first command after the login.
    pub cmd_sn: Serial,
}

/// What holds after a login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionParameters {
    /// The keys.
    pub negotiated: Negotiated,
    /// The target's half of the session's name.
    pub tsih: u16,
    /// The status that is expected next.
    pub exp_stat_sn: Serial,
    /// Which commands the target takes, as it says; `cmd_sn` should be the first of them.
    pub window: CommandWindow,
    /// The number of the next command.
    pub cmd_sn: Serial,
}

/// Where a response has brought the login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is a next request.
    Continue,
    /// The session is there.
    Done(Box<SessionParameters>),
    /// The target is elsewhere: the connection has to be closed and another login made.
    Redirect {
        /// Whether for now or from now on.
        status: LoginStatus,
        /// `host[:port][,portal-group]` of each address, as the target wrote it.
        addresses: Vec<String>,
    },
}

/// Why a login failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoginError {
    /// A name cannot be sent.
    #[error("{key} cannot be {value:?}")]
    Name {
        /// The key that would carry it.
        key: &'static str,
        /// The name.
        value: String,
    },
    /// Not a login response, or one that cannot be.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// A text or a key that cannot be accepted.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// CHAP failed.
    #[error(transparent)]
    Chap(#[from] ChapError),
    /// The target refuses the login; status class 2 or 3.
    #[error("the target refused the login: {status:?}")]
    Refused {
        /// Why.
        status: LoginStatus,
    },
    /// The target sends us elsewhere and does not say where.
    #[error("the target has moved ({status:?}) and does not say where to")]
    RedirectNowhere {
        /// Whether for now or from now on.
        status: LoginStatus,
    },
    /// A field is not what it has to be in this login.
    #[error("{field} is {found:#x}, not {expected:#x}")]
    Mismatch {
        /// The field's name in RFC 7143.
        field: &'static str,
        /// What came.
        found: u64,
        /// What had to come.
        expected: u64,
    },
    /// The target takes a step that was not asked for.
    #[error("the target answers {asked:?} with {found:?}")]
    Step {
        /// What was asked for.
        asked: LoginStep,
        /// What came.
        found: LoginStep,
    },
    /// The target did not say which AuthMethod it wants, or wants one that was not offered.
    #[error("AuthMethod is {found:?}, offered was {offered}")]
    AuthMethod {
        /// What came.
        found: Option<String>,
        /// What was offered.
        offered: String,
    },
    /// The target leaves the stage before it has proved who it is, or heard who we are.
    #[error("the target ends authentication before it is complete")]
    Unauthenticated,
    /// The target makes offers with the response that ends the stage.
    #[error("{key} is offered when it can no longer be answered")]
    LateOffer {
        /// The first of them.
        key: String,
    },
    /// The login does not come to an end.
    #[error("the login takes more than {EXCHANGES_MAX} requests")]
    TooLong,
    /// A response when none was awaited: before the request, or after the end.
    #[error("no response is awaited")]
    NotAwaited,
}

#[derive(Clone, Debug)]
enum State {
    /// AuthMethod is offered.
    Method,
    /// CHAP_A is offered.
    Algorithms,
    /// Our response to the challenge is sent.
    Proof,
    /// Nothing is left to be said in the security stage.
    Secure,
    /// The keys are offered.
    Operational,
    /// It is over.
    Over,
}

/// A login that is under way.
#[derive(Clone, Debug)]
pub struct Login {
    request: LoginRequest,
    state: State,
    chap: Option<Chap>,
    methods: &'static [&'static str],
    negotiation: Negotiation,
    received: TextBuffer,
    /// What the next request says; `None` while a response is awaited.
    pending: Option<Vec<Pair>>,
    /// The StatSN that has to come; the first one is the target's choice.
    exp_stat_sn: Option<Serial>,
    exchanges: u32,
}

impl Login {
    /// A login that has not begun. Names and offers that cannot be sent are refused.
    pub fn new(config: LoginConfig) -> Result<Self, LoginError> {
        let (methods, chap): (&'static [&'static str], _) = match config.authentication {
            Authentication::None => (&["None"], None),
            Authentication::Chap(chap) => (&["CHAP"], Some(chap)),
            Authentication::ChapOrNone(chap) => (&["CHAP", "None"], Some(chap)),
            Authentication::NoneOrChap(chap) => (&["None", "CHAP"], Some(chap)),
        };
        let chap = chap.map(|chap| Chap::new(chap, config.nonce)).transpose()?;
        let mut pairs = vec![name(Key::InitiatorName, &config.initiator)?];
        if let Some(alias) = &config.initiator_alias {
            pairs.push(name(Key::InitiatorAlias, alias)?);
        }
        let kind = match &config.target {
            SessionTarget::Discovery => {
                pairs.push(Pair::new(Key::SessionType.name(), "Discovery"));
                SessionKind::Discovery
            }
            SessionTarget::Normal(target) => {
                pairs.push(Pair::new(Key::SessionType.name(), "Normal"));
                pairs.push(name(Key::TargetName, target)?);
                SessionKind::Normal
            }
        };
        pairs.push(Pair::new(Key::AuthMethod.name(), &methods.join(",")));
        let step = match chap {
            None => LoginStep::ToOperational,
            Some(_) => LoginStep::Stay(LoginStage::Security),
        };
        Ok(Self {
            request: LoginRequest {
                step,
                version_max: VERSION,
                version_min: VERSION,
                isid: config.isid,
                tsih: 0,
                task_tag: config.task_tag,
                cid: config.cid,
                serials: RequestSerials { cmd_sn: config.cmd_sn, exp_stat_sn: Serial::new(0) },
                data_len: DataLen::ZERO,
            },
            state: State::Method,
            chap,
            methods,
            negotiation: Negotiation::new(kind, &config.offer)?,
            received: TextBuffer::new(TEXT_LEN_MAX),
            pending: Some(pairs),
            exp_stat_sn: None,
            exchanges: 0,
        })
    }

    /// The next request, whole; `None` while a response is awaited, and after the end.
    pub fn next_request(&mut self) -> Result<Option<Vec<u8>>, LoginError> {
        let Some(pairs) = self.pending.take() else {
            return Ok(None);
        };
        self.exchanges += 1;
        if self.exchanges > EXCHANGES_MAX {
            self.state = State::Over;
            return Err(LoginError::TooLong);
        }
        let text = encode(&pairs);
        self.request.data_len = DataLen::of(&text)?;
        self.request.serials.exp_stat_sn = self.exp_stat_sn.unwrap_or_default();
        let mut bytes = Vec::new();
        Request::from(self.request.clone()).append_to(&text, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Takes a PDU: its header, and its data segment without padding. After an error the login is
    /// over.
    pub fn handle(&mut self, head: &[u8], data: &[u8]) -> Result<Progress, LoginError> {
        if self.pending.is_some() || matches!(self.state, State::Over) {
            self.end();
            return Err(LoginError::NotAwaited);
        }
        let progress = self.take_response(head, data);
        if !matches!(progress, Ok(Progress::Continue)) {
            self.end();
        }
        progress
    }

    fn end(&mut self) {
        self.state = State::Over;
        self.pending = None;
    }

    fn take_response(&mut self, head: &[u8], data: &[u8]) -> Result<Progress, LoginError> {
        let response = LoginResponse::parse(head)?;
        let data_len = u64::from(DataLen::of(data)?.bytes());
        same("DataSegmentLength", u64::from(response.data_len.bytes()), data_len)?;
        same("Initiator Task Tag", response.task_tag, self.request.task_tag)?;
        let step = match response.answer {
            LoginAnswer::Refused(status) => return self.refused(status, data),
            LoginAnswer::Accepted(step) => step,
        };
        same("ISID", isid_number(response.isid), isid_number(self.request.isid))?;
        same("Version-active", response.version_active, VERSION)?;
        let stat_sn = response.serials.stat_sn;
        let expected = self.exp_stat_sn.unwrap_or(stat_sn);
        same("StatSN", stat_sn.value(), expected.value())?;
        self.exp_stat_sn = Some(stat_sn.next());
        self.check_step(step)?;

        self.received.push(data)?;
        if matches!(step, LoginStep::Partial(_)) {
            // An empty request fetches the rest (section 6.2), and asks for no step meanwhile.
            self.request.step = LoginStep::Stay(step.stage());
            self.pending = Some(Vec::new());
            return Ok(Progress::Continue);
        }
        let pairs = self.received.take_pairs()?;
        match self.request.step.stage() {
            LoginStage::Security => self.secure(step, pairs),
            LoginStage::Operational => self.operate(step, &pairs, &response),
        }
    }

    /// The target stays, or does what was asked for (sections 6.3 and 6.3.3).
    fn check_step(&self, found: LoginStep) -> Result<(), LoginError> {
        let asked = self.request.step;
        let stays = matches!(found, LoginStep::Stay(_) | LoginStep::Partial(_));
        if found.stage() != asked.stage() || !(stays || found == asked) {
            return Err(LoginError::Step { asked, found });
        }
        Ok(())
    }

    fn refused(&mut self, status: LoginStatus, data: &[u8]) -> Result<Progress, LoginError> {
        if status.class() != 1 {
            return Err(LoginError::Refused { status });
        }
        self.received.push(data)?;
        let pairs = self.received.take_pairs()?;
        let is_address = |pair: &Pair| pair.key == Key::TargetAddress.name();
        let addresses: Vec<_> =
            pairs.into_iter().filter(is_address).map(|pair| pair.value).collect();
        if addresses.is_empty() {
            return Err(LoginError::RedirectNowhere { status });
        }
        Ok(Progress::Redirect { status, addresses })
    }

    /// A response in the security stage.
    fn secure(&mut self, step: LoginStep, pairs: Vec<Pair>) -> Result<Progress, LoginError> {
        let of_security =
            |pair: &Pair| pair.key == Key::AuthMethod.name() || pair.key.starts_with("CHAP_");
        let (auth, others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(of_security);
        let mut answers = self.negotiate(Stage::Security, &others)?;
        if step == LoginStep::ToOperational && !answers.is_empty() {
            return Err(late(&answers));
        }
        let asked = match std::mem::replace(&mut self.state, State::Over) {
            State::Method => self.choose_method(&auth)?,
            State::Algorithms => {
                self.state = State::Proof;
                answers.extend(self.chap()?.respond(&auth)?);
                LoginStep::ToOperational
            }
            State::Proof => {
                self.chap()?.finish(&auth)?;
                self.state = State::Secure;
                LoginStep::ToOperational
            }
            _ if auth.is_empty() => {
                self.state = State::Secure;
                LoginStep::ToOperational
            }
            _ => return Err(late(&auth)),
        };
        if step == LoginStep::ToOperational {
            if !matches!(self.state, State::Secure) {
                return Err(LoginError::Unauthenticated);
            }
            self.state = State::Operational;
            self.request.step = LoginStep::ToFullFeature(LoginStage::Operational);
            self.pending = Some(self.negotiation.offers());
            return Ok(Progress::Continue);
        }
        if matches!(self.state, State::Algorithms) {
            answers.extend(self.chap()?.offer());
        }
        self.request.step = asked;
        self.pending = Some(answers);
        Ok(Progress::Continue)
    }

    /// Takes the target's choice of AuthMethod.
    fn choose_method(&mut self, auth: &[Pair]) -> Result<LoginStep, LoginError> {
        let found = match auth {
            [pair] if pair.key == Key::AuthMethod.name() => Some(pair.value.as_str()),
            _ => None,
        };
        match found {
            Some("None") if self.methods.contains(&"None") => {
                self.state = State::Secure;
                Ok(LoginStep::ToOperational)
            }
            Some("CHAP") if self.methods.contains(&"CHAP") => {
                self.state = State::Algorithms;
                Ok(LoginStep::Stay(LoginStage::Security))
            }
            _ => Err(LoginError::AuthMethod {
                found: found.map(str::to_owned),
                offered: self.methods.join(","),
            }),
        }
    }

    fn chap(&mut self) -> Result<&mut Chap, LoginError> {
        self.chap.as_mut().ok_or(LoginError::Unauthenticated)
    }

    /// A response in the operational stage.
    fn operate(
        &mut self,
        step: LoginStep,
        pairs: &[Pair],
        response: &LoginResponse,
    ) -> Result<Progress, LoginError> {
        let answers = self.negotiate(Stage::Operational, pairs)?;
        if !matches!(step, LoginStep::ToFullFeature(_)) {
            self.request.step = LoginStep::ToFullFeature(LoginStage::Operational);
            self.pending = Some(answers);
            return Ok(Progress::Continue);
        }
        if !answers.is_empty() {
            return Err(late(&answers));
        }
        // The last response names the session (section 11.13.3).
        if response.tsih == 0 {
            return Err(PduError::Field { field: "TSIH", value: 0 }.into());
        }
        let cmd_sn = self.request.serials.cmd_sn;
        let mut window = CommandWindow::closed(response.serials.exp_cmd_sn);
        window.update(response.serials.exp_cmd_sn, response.serials.max_cmd_sn);
        Ok(Progress::Done(Box::new(SessionParameters {
            negotiated: self.negotiation.finish()?,
            tsih: response.tsih,
            exp_stat_sn: response.serials.stat_sn.next(),
            window,
            cmd_sn,
        })))
    }

    fn negotiate(&mut self, stage: Stage, pairs: &[Pair]) -> Result<Vec<Pair>, LoginError> {
        let mut answers = Vec::new();
        for pair in pairs {
            answers.extend(self.negotiation.receive(stage, pair)?);
        }
        Ok(answers)
    }
}

/// A name that may stand in a text: not empty, no longer than a name is, no control characters.
fn name(key: Key, value: &str) -> Result<Pair, LoginError> {
    let len_allowed = (1..=TARGET_LEN_MAX).contains(&value.len());
    if !len_allowed || value.contains(|c: char| c.is_control() || c == ',') {
        return Err(LoginError::Name { key: key.name(), value: value.to_owned() });
    }
    Ok(Pair::new(key.name(), value))
}

fn late(pairs: &[Pair]) -> LoginError {
    let key = pairs.first().map_or_else(String::new, |pair| pair.key.clone());
    LoginError::LateOffer { key }
}

fn same(
    field: &'static str,
    found: impl Into<u64>,
    expected: impl Into<u64>,
) -> Result<(), LoginError> {
    let (found, expected) = (found.into(), expected.into());
    if found != expected {
        return Err(LoginError::Mismatch { field, found, expected });
    }
    Ok(())
}

fn isid_number([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
