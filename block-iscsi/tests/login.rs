//! The login against a small scripted target: what is sent, what is agreed on, what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_iscsi::chap::{
    Algorithm, CHALLENGE_LEN, ChapConfig, ChapError, Nonce, Secret, TargetCredentials,
};
use block_iscsi::keys::text::{TEXT_LEN_MAX, TextBuffer, encode};
use block_iscsi::keys::value::{hex, parse_binary};
use block_iscsi::keys::{DigestKind, Key, KeyError, Offer, Pair};
use block_iscsi::login::{
    Authentication, EXCHANGES_MAX, Login, LoginConfig, LoginError, Progress, SessionParameters,
    SessionTarget,
};
use block_iscsi::pdu::fields::{DataLen, ResponseSerials};
use block_iscsi::pdu::login::{
    LoginAnswer, LoginRequest, LoginResponse, LoginStage, LoginStatus, LoginStep,
};
use block_iscsi::pdu::{Pdu, PduError};
use block_iscsi::serial::Serial;
use proptest::prelude::*;

const STAY: LoginAnswer = LoginAnswer::Accepted(LoginStep::Stay(LoginStage::Security));
const STAY_OPERATIONAL: LoginAnswer =
    LoginAnswer::Accepted(LoginStep::Stay(LoginStage::Operational));
const TO_OPERATIONAL: LoginAnswer = LoginAnswer::Accepted(LoginStep::ToOperational);
const TO_FULL: LoginAnswer =
    LoginAnswer::Accepted(LoginStep::ToFullFeature(LoginStage::Operational));

/// The two ends, and what the target has last heard.
struct Ends {
    login: Login,
    request: LoginRequest,
    heard: Vec<Pair>,
    response: LoginResponse,
}

impl Ends {
    /// After the first request.
    fn new(config: LoginConfig) -> Self {
        let mut login = Login::new(config).unwrap();
        let (request, heard) = hear(&mut login);
        let response = LoginResponse {
            answer: STAY,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: 0,
            task_tag: request.task_tag,
            serials: ResponseSerials {
                stat_sn: Serial::new(u32::MAX),
                exp_cmd_sn: request.serials.cmd_sn,
                max_cmd_sn: request.serials.cmd_sn.plus(31),
            },
            data_len: DataLen::ZERO,
        };
        Self { login, request, heard, response }
    }

    /// The target's response, without the initiator's next request.
    fn say(&mut self, answer: LoginAnswer, pairs: &[(&str, &str)]) -> Result<Progress, LoginError> {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| Pair::new(key, value)).collect();
        self.say_bytes(answer, &encode(&pairs))
    }

    fn say_bytes(&mut self, answer: LoginAnswer, text: &[u8]) -> Result<Progress, LoginError> {
        self.response.answer = answer;
        self.response.data_len = DataLen::of(text).unwrap();
        let progress = self.login.handle(&self.response.to_bytes(), text);
        self.response.serials.stat_sn = self.response.serials.stat_sn.next();
        progress
    }

    /// The target's response and the next request.
    fn step(&mut self, answer: LoginAnswer, pairs: &[(&str, &str)]) {
        assert_eq!(self.say(answer, pairs), Ok(Progress::Continue));
        (self.request, self.heard) = hear(&mut self.login);
        assert_eq!(self.request.serials.exp_stat_sn, self.response.serials.stat_sn);
    }

    fn heard(&self, key: &str) -> Option<&str> {
        self.heard.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
    }

    /// Answers every offer with itself.
    fn echo(&self) -> Vec<(String, String)> {
        let declared = ["MaxRecvDataSegmentLength"];
        let answered = self.heard.iter().filter(|pair| !declared.contains(&pair.key.as_str()));
        answered
            .map(|pair| {
                let first = pair.value.split(',').next().unwrap();
                (pair.key.clone(), first.to_owned())
            })
            .collect()
    }

    fn finish(&mut self) -> Result<SessionParameters, LoginError> {
        self.response.tsih = 77;
        let answers = self.echo();
        let answers: Vec<_> = answers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        match self.say(TO_FULL, &answers)? {
            Progress::Done(parameters) => Ok(*parameters),
            other => panic!("{other:?}"),
        }
    }
}

fn hear(login: &mut Login) -> (LoginRequest, Vec<Pair>) {
    let bytes = login.next_request().unwrap().unwrap();
    assert_eq!(login.next_request(), Ok(None));
    let request = LoginRequest::parse(&bytes).unwrap();
    let len = usize::try_from(request.data_len.bytes()).unwrap();
    assert_eq!(bytes.len(), 48 + len.next_multiple_of(4));
    let mut buffer = TextBuffer::new(TEXT_LEN_MAX);
    buffer.push(&bytes[48..48 + len]).unwrap();
    (request, buffer.take_pairs().unwrap())
}

fn config(authentication: Authentication) -> LoginConfig {
    LoginConfig {
        initiator: "iqn.2004-01.org.example:us".to_owned(),
        initiator_alias: None,
        target: SessionTarget::Normal("iqn.2004-01.org.example:disk".to_owned()),
        authentication,
        nonce: Nonce { identifier: 3, challenge: [5; CHALLENGE_LEN] },
        offer: Offer {
            header_digest: vec![DigestKind::Crc32c, DigestKind::None],
            ..Offer::default()
        },
        isid: [0x80, 0, 0, 1, 2, 3],
        cid: 4,
        task_tag: 0x1234,
        cmd_sn: Serial::new(u32::MAX),
    }
}

fn chap(mutual: bool) -> ChapConfig {
    ChapConfig {
        user: "alice".to_owned(),
        secret: Secret::new(b"the initiator's"),
        algorithms: vec![Algorithm::Sha256, Algorithm::Md5],
        target: mutual
            .then(|| TargetCredentials { user: None, secret: Secret::new(b"the target's") }),
    }
}

/// Up to the response of CHAP; the target has heard it.
fn until_proof(mutual: bool) -> Ends {
    let mut pair = Ends::new(config(Authentication::Chap(chap(mutual))));
    assert_eq!(pair.heard("AuthMethod"), Some("CHAP"));
    assert_eq!(pair.request.step, LoginStep::Stay(LoginStage::Security));
    pair.step(STAY, &[("AuthMethod", "CHAP"), ("TargetPortalGroupTag", "1")]);
    assert_eq!(pair.heard("CHAP_A"), Some("7,5"));
    pair.step(STAY, &[("CHAP_A", "7"), ("CHAP_I", "0x7f"), ("CHAP_C", "0x010203")]);
    let proof = Algorithm::Sha256.response(0x7f, &Secret::new(b"the initiator's"), &[1, 2, 3]);
    assert_eq!(pair.heard("CHAP_N"), Some("alice"));
    assert_eq!(pair.heard("CHAP_R"), Some(hex(&proof).as_str()));
    assert_eq!(pair.heard("CHAP_C").is_some(), mutual);
    assert_eq!(pair.request.step, LoginStep::ToOperational);
    pair
}

/// Up to the offers.
fn until_offers() -> Ends {
    let mut pair = Ends::new(config(Authentication::None));
    pair.step(TO_OPERATIONAL, &[("AuthMethod", "None")]);
    pair
}

#[test]
fn a_login_without_authentication_takes_two_requests() {
    let mut pair = Ends::new(config(Authentication::None));
    assert_eq!(pair.request.step, LoginStep::ToOperational);
    assert_eq!((pair.request.tsih, pair.request.cid, pair.request.task_tag), (0, 4, 0x1234));
    assert_eq!(pair.heard("InitiatorName"), Some("iqn.2004-01.org.example:us"));
    assert_eq!(pair.heard("TargetName"), Some("iqn.2004-01.org.example:disk"));
    assert_eq!(pair.heard("SessionType"), Some("Normal"));
    assert_eq!(pair.heard("AuthMethod"), Some("None"));
    pair.step(TO_OPERATIONAL, &[("AuthMethod", "None"), ("TargetPortalGroupTag", "9")]);
    assert_eq!(pair.request.step, LoginStep::ToFullFeature(LoginStage::Operational));
    assert_eq!(pair.heard("HeaderDigest"), Some("CRC32C,None"));
    assert_eq!(pair.heard("TaskReporting"), None);
    let done = pair.finish().unwrap();
    assert_eq!((done.tsih, done.cmd_sn), (77, Serial::new(u32::MAX)));
    assert_eq!(done.exp_stat_sn, Serial::new(1));
    assert_eq!(done.window.room(done.cmd_sn), 32);
    assert_eq!(done.negotiated.header_digest, DigestKind::Crc32c);
    assert_eq!(done.negotiated.target_portal_group_tag, Some(9));
    assert_eq!(pair.login.next_request(), Ok(None));
    assert_eq!(pair.say(TO_FULL, &[]), Err(LoginError::NotAwaited));
}

#[test]
fn discovery_names_no_target_and_offers_what_matters_to_it() {
    let mut pair =
        Ends::new(LoginConfig { target: SessionTarget::Discovery, ..config(Authentication::None) });
    assert_eq!(pair.heard("SessionType"), Some("Discovery"));
    assert_eq!(pair.heard("TargetName"), None);
    pair.step(TO_OPERATIONAL, &[("AuthMethod", "None")]);
    assert_eq!(pair.heard("MaxBurstLength"), None);
    assert_eq!(pair.heard("ErrorRecoveryLevel"), Some("0"));
    // The target offers what does not matter here.
    pair.step(STAY_OPERATIONAL, &[("MaxConnections", "4"), ("X-org.example.key", "1")]);
    assert_eq!(pair.heard("MaxConnections"), Some("Irrelevant"));
    assert_eq!(pair.heard("X-org.example.key"), Some("NotUnderstood"));
    pair.response.tsih = 1;
    let refused = pair.say(TO_FULL, &[]).unwrap_err();
    assert!(matches!(refused, LoginError::Key(KeyError::Unanswered { .. })), "{refused}");
}

#[test]
fn chap_one_way_leads_to_the_operational_stage() {
    let mut pair = until_proof(false);
    pair.step(TO_OPERATIONAL, &[]);
    assert!(pair.finish().is_ok());
}

#[test]
fn chap_mutual_needs_the_proof_of_the_target() {
    let proof = |pair: &Ends| {
        let challenge = parse_binary(pair.heard("CHAP_C").unwrap()).unwrap();
        assert_eq!(pair.heard("CHAP_I"), Some("3"));
        hex(&Algorithm::Sha256.response(3, &Secret::new(b"the target's"), &challenge))
    };
    let mut pair = until_proof(true);
    let good = proof(&pair);
    pair.step(TO_OPERATIONAL, &[("CHAP_N", "disk"), ("CHAP_R", &good)]);
    assert!(pair.finish().is_ok());

    let mut pair = until_proof(true);
    let missing = LoginError::Chap(ChapError::Missing { key: "CHAP_N" });
    assert_eq!(pair.say(TO_OPERATIONAL, &[]), Err(missing));
    let mut pair = until_proof(true);
    let wrong = pair.say(TO_OPERATIONAL, &[("CHAP_N", "disk"), ("CHAP_R", "0x00")]);
    assert_eq!(wrong, Err(LoginError::Chap(ChapError::TargetResponse)));
    let mut pair = until_proof(true);
    let own = pair.heard("CHAP_R").unwrap().to_owned();
    let reflected = pair.say(TO_OPERATIONAL, &[("CHAP_N", "disk"), ("CHAP_R", &own)]);
    assert_eq!(reflected, Err(LoginError::Chap(ChapError::ReflectedResponse)));
    assert_eq!(pair.login.next_request(), Ok(None));
}

#[test]
fn authentication_cannot_be_skipped() {
    let mut pair = Ends::new(config(Authentication::Chap(chap(false))));
    let refused = pair.say(STAY, &[("AuthMethod", "None")]).unwrap_err();
    assert_eq!(refused.to_string(), "AuthMethod is Some(\"None\"), offered was CHAP");
    let mut pair = Ends::new(config(Authentication::Chap(chap(false))));
    assert!(matches!(pair.say(STAY, &[]), Err(LoginError::AuthMethod { found: None, .. })));
    // A step to the operational stage that was not asked for.
    let mut pair = Ends::new(config(Authentication::Chap(chap(false))));
    let skipped = pair.say(TO_OPERATIONAL, &[("AuthMethod", "CHAP")]);
    assert!(matches!(skipped, Err(LoginError::Step { .. })));
    // Our own challenge, sent back.
    let mut pair = Ends::new(config(Authentication::Chap(chap(true))));
    pair.step(STAY, &[("AuthMethod", "CHAP")]);
    let challenge = hex(&[5; CHALLENGE_LEN]);
    let reflected = pair.say(STAY, &[("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", &challenge)]);
    assert_eq!(reflected, Err(LoginError::Chap(ChapError::ReflectedChallenge)));
    // An algorithm that was not offered.
    let mut pair = Ends::new(config(Authentication::Chap(chap(true))));
    pair.step(STAY, &[("AuthMethod", "CHAP")]);
    let refused = pair.say(STAY, &[("CHAP_A", "6"), ("CHAP_I", "1"), ("CHAP_C", "0x01")]);
    let bad = ChapError::Value { key: "CHAP_A", value: "6".to_owned() };
    assert_eq!(refused, Err(LoginError::Chap(bad)));
}

#[test]
fn the_target_chooses_among_the_methods_that_are_offered() {
    let mut pair = Ends::new(config(Authentication::ChapOrNone(chap(false))));
    assert_eq!(pair.heard("AuthMethod"), Some("CHAP,None"));
    pair.step(STAY, &[("AuthMethod", "None")]);
    assert_eq!((pair.heard.len(), pair.request.step), (0, LoginStep::ToOperational));
    pair.step(TO_OPERATIONAL, &[]);
    assert!(pair.finish().is_ok());
    let mut pair = Ends::new(config(Authentication::NoneOrChap(chap(false))));
    assert_eq!(pair.heard("AuthMethod"), Some("None,CHAP"));
    pair.step(STAY, &[("AuthMethod", "CHAP")]);
    assert_eq!(pair.heard("CHAP_A"), Some("7,5"));
}

#[test]
fn texts_over_several_responses_are_joined() {
    let mut pair = until_offers();
    let answers = pair.echo();
    let pairs: Vec<_> = answers.iter().map(|(key, value)| Pair::new(key, value)).collect();
    let text = encode(&pairs);
    let partial = LoginAnswer::Accepted(LoginStep::Partial(LoginStage::Operational));
    let (first, rest) = text.split_at(30);
    assert_eq!(pair.say_bytes(partial, first), Ok(Progress::Continue));
    (pair.request, pair.heard) = hear(&mut pair.login);
    assert_eq!(pair.request.step, LoginStep::Stay(LoginStage::Operational));
    assert_eq!(pair.heard, []);
    assert_eq!(pair.say_bytes(STAY_OPERATIONAL, rest), Ok(Progress::Continue));
    (pair.request, pair.heard) = hear(&mut pair.login);
    assert_eq!(pair.request.step, LoginStep::ToFullFeature(LoginStage::Operational));
    assert!(pair.finish().is_ok());
    // More text than is allowed before a limit is agreed on.
    let mut pair = until_offers();
    assert_eq!(pair.say_bytes(partial, &[b'A'; 8192]), Ok(Progress::Continue));
    let _ = hear(&mut pair.login);
    let too_long = KeyError::TextTooLong { len: 8193, limit: 8192 };
    assert_eq!(pair.say_bytes(partial, b"A"), Err(LoginError::Key(too_long)));
}

#[test]
fn redirection_is_given_to_the_caller() {
    for status in [LoginStatus::TargetMovedTemporarily, LoginStatus::TargetMovedPermanently] {
        let mut pair = Ends::new(config(Authentication::None));
        let moved = pair.say(
            LoginAnswer::Refused(status),
            &[("TargetAddress", "[fd00::7]:3261,1"), ("TargetAddress", "host")],
        );
        let addresses = vec!["[fd00::7]:3261,1".to_owned(), "host".to_owned()];
        assert_eq!(moved, Ok(Progress::Redirect { status, addresses }));
        assert_eq!(pair.login.next_request(), Ok(None));
        let mut pair = Ends::new(config(Authentication::None));
        let nowhere = pair.say(LoginAnswer::Refused(status), &[]);
        assert_eq!(nowhere, Err(LoginError::RedirectNowhere { status }));
    }
}

#[test]
fn every_refusal_is_an_error_with_its_name() {
    let other = LoginStatus::Other { class: 3, detail: 0x55 };
    let refusals = LoginStatus::ALL.iter().copied().filter(|status| status.class() != 1);
    let mut seen = 0;
    for status in refusals.chain([other]) {
        let mut pair = Ends::new(config(Authentication::None));
        let refused = pair.say(LoginAnswer::Refused(status), &[]);
        assert_eq!(refused, Err(LoginError::Refused { status }));
        assert_eq!(pair.login.next_request(), Ok(None));
        seen += 1;
    }
    assert_eq!(seen, 16);
}

#[test]
fn fields_that_are_not_of_this_login_are_named() {
    type Change = fn(&mut LoginResponse);
    let changes: [(&str, Change); 4] = [
        ("Initiator Task Tag", |response| response.task_tag += 1),
        ("ISID", |response| response.isid[5] += 1),
        ("Version-active", |response| response.version_active = 1),
        ("StatSN", |response| response.serials.stat_sn = Serial::new(5)),
    ];
    for (name, change) in changes {
        let mut pair = until_offers();
        change(&mut pair.response);
        match pair.say(STAY_OPERATIONAL, &[]) {
            Err(LoginError::Mismatch { field, .. }) => assert_eq!(field, name),
            other => panic!("{other:?}"),
        }
    }
    let mut pair = until_offers();
    let head = pair.response.to_bytes();
    let refused = pair.login.handle(&head, b"A=b\0").unwrap_err();
    assert!(matches!(refused, LoginError::Mismatch { field: "DataSegmentLength", .. }));
    // The last response has to name the session.
    let mut pair = until_offers();
    let answers = pair.echo();
    let answers: Vec<_> = answers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let zero = PduError::Field { field: "TSIH", value: 0 };
    assert_eq!(pair.say(TO_FULL, &answers), Err(LoginError::Pdu(zero)));
    // A stage that was left.
    let mut pair = until_offers();
    assert!(matches!(pair.say(STAY, &[]), Err(LoginError::Step { .. })));
    let mut pair = until_offers();
    let refused = LoginError::Pdu(PduError::Unexpected { code: 0x3f });
    assert_eq!(pair.login.handle(&[0x3f; 48], &[]), Err(refused));
}

#[test]
fn offers_that_can_no_longer_be_answered_are_refused() {
    let mut pair = until_offers();
    pair.response.tsih = 1;
    let late = LoginError::LateOffer { key: "TaskReporting".to_owned() };
    assert_eq!(pair.say(TO_FULL, &[("TaskReporting", "FastAbort,RFC3720")]), Err(late));
    let mut pair = until_offers();
    pair.step(STAY_OPERATIONAL, &[("TaskReporting", "FastAbort,RFC3720")]);
    assert_eq!(pair.heard("TaskReporting"), Some("RFC3720"));
}

#[test]
fn a_target_that_never_ends_is_left() {
    let mut pair = until_offers();
    // Two requests are out; the rest of the allowance is used up by a target that just stays.
    for _ in 2..EXCHANGES_MAX {
        pair.step(STAY_OPERATIONAL, &[]);
    }
    assert_eq!(pair.say(STAY_OPERATIONAL, &[]), Ok(Progress::Continue));
    assert_eq!(pair.login.next_request(), Err(LoginError::TooLong));
    assert_eq!(pair.login.next_request(), Ok(None));
}

#[test]
fn names_that_cannot_be_sent_are_refused() {
    for bad in ["", "a\0b", "a,b", &"x".repeat(224)] {
        let bad_config = LoginConfig { initiator: bad.to_owned(), ..config(Authentication::None) };
        let refused = Login::new(bad_config).unwrap_err();
        let key = Key::InitiatorName.name();
        assert_eq!(refused, LoginError::Name { key, value: bad.to_owned() });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A target that says anything, mostly in good form.
    #[test]
    fn any_keys_and_bits_end_and_never_pass_the_authentication(
        script in prop::collection::vec(
            (
                any::<u8>(),
                prop::sample::select(vec![0x00_u8, 0x04, 0x40, 0x44, 0x81, 0x83, 0x87, 0xff]),
                prop::collection::vec(
                    (
                        prop_oneof![
                            prop::sample::select(Key::ALL).prop_map(|key| key.name().to_owned()),
                            "CHAP_[AICNR]",
                            "AuthMethod",
                            "X-[a-z]{1,4}",
                        ],
                        prop_oneof![
                            "CHAP|None|Yes|No|Reject|Irrelevant|NotUnderstood|CRC32C",
                            "[0-9]{1,6}|0x[0-9a-f]{2,6}",
                            "\\PC{0,8}",
                        ],
                    ),
                    0..4,
                ),
                any::<u16>(),
            ),
            1..60,
        )
    ) {
        let mut pair = Ends::new(config(Authentication::Chap(chap(true))));
        let mut requests = 1;
        for (noise, flags, pairs, tsih) in script {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| Pair::new(key, value)).collect();
            let text = encode(&pairs);
            pair.response.tsih = tsih;
            pair.response.data_len = DataLen::of(&text).unwrap();
            let mut head = pair.response.to_bytes();
            head[1] = flags;
            if noise < 8 {
                head[36] = noise;
            }
            pair.response.serials.stat_sn = pair.response.serials.stat_sn.next();
            let progress = pair.login.handle(&head, &text);
            prop_assert!(!matches!(progress, Ok(Progress::Done(_))));
            match pair.login.next_request() {
                Ok(Some(_)) => requests += 1,
                _ => break,
            }
        }
        prop_assert!(requests <= EXCHANGES_MAX);
    }

    #[test]
    fn any_answers_to_the_offers_never_panic(
        head in prop::collection::vec(any::<u8>(), 0..60),
        text in prop::collection::vec(any::<u8>(), 0..60),
        values in prop::collection::vec("Yes|No|[0-9]{1,8}|Reject|None|CRC32C", 16),
    ) {
        let mut pair = until_offers();
        pair.response.tsih = 1;
        let answers = pair.echo();
        let answers: Vec<_> = answers
            .iter()
            .zip(&values)
            .map(|((key, _), value)| (key.as_str(), value.as_str()))
            .collect();
        let _ = pair.say(TO_FULL, &answers);
        let mut pair = until_offers();
        prop_assert!(pair.login.handle(&head, &text).is_err());
        prop_assert_eq!(pair.login.next_request(), Ok(None));
    }
}
