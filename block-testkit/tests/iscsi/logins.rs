//! Logins: the initiator's own against the target, and requests by hand that it must refuse.

use block_iscsi::chap::{Algorithm, ChapConfig, ChapError, Secret, TargetCredentials};
use block_iscsi::keys::text::{TextBuffer, encode};
use block_iscsi::keys::{DigestKind, Offer, Pair};
use block_iscsi::login::{Authentication, LoginConfig, LoginError, SessionTarget};
use block_iscsi::pdu::fields::{DataLen, RequestSerials};
use block_iscsi::pdu::login::{
    LoginAnswer, LoginRequest, LoginResponse, LoginStage, LoginStatus, LoginStep,
};
use block_iscsi::pdu::nop::NopOut;
use block_iscsi::pdu::{Response, fields::Delivery};
use block_iscsi::serial::Serial;
use block_testkit::iscsi::target::{Account, Admission, Moved, Target};

use crate::wire::*;

const OPERATIONAL: LoginStage = LoginStage::Operational;
const SECURITY: LoginStage = LoginStage::Security;

fn chap(mutual: bool, algorithms: &[Algorithm]) -> ChapConfig {
    ChapConfig {
        user: "alice".to_owned(),
        secret: Secret::new(b"initiator 12"),
        algorithms: algorithms.to_vec(),
        target: mutual.then(|| TargetCredentials {
            user: Some("disk".to_owned()),
            secret: Secret::new(b"target 12345"),
        }),
    }
}

fn guarded() -> Target {
    let mut account = Account::new("alice", "initiator 12");
    account.mutual = Some(("disk".to_owned(), Secret::new(b"target 12345")));
    target(|config| config.admission = Admission::Chap(vec![account]))
}

fn refusal(config: LoginConfig, target: Target) -> LoginError {
    let mut wire = Wire::new(target);
    let error = wire.log_in(config).unwrap_err();
    assert!(!wire.is_open());
    error
}

#[test]
fn every_digest_goes_with_every_way_to_prove_who_one_is() {
    let kinds = [DigestKind::None, DigestKind::Crc32c];
    let mut sessions = 0;
    for header_digest in kinds {
        for data_digest in kinds {
            for (algorithm, mutual) in
                Algorithm::ALL.iter().flat_map(|kind| [(kind, false), (kind, true)])
            {
                let chap = chap(mutual, &[*algorithm]);
                let offer = Offer {
                    header_digest: vec![header_digest],
                    data_digest: vec![data_digest],
                    ..login().offer
                };
                let authentication = Authentication::Chap(chap);
                let config = LoginConfig { authentication, offer, ..login() };
                let (mut wire, parameters) = Wire::up(guarded(), config);
                let agreed = wire.target.agreed(wire.link).unwrap();
                let negotiated = parameters.negotiated;
                assert_eq!(
                    (agreed.header_digest, agreed.data_digest),
                    (header_digest, data_digest)
                );
                assert_eq!(agreed.max_burst_len, negotiated.max_burst_len);
                assert_eq!(wire.read(0, &[0x12, 0, 0, 0, 36, 0], 36).0.len(), 36);
                sessions += 1;
            }
        }
    }
    assert_eq!(sessions, 32);
}

#[test]
fn both_sides_agree_on_the_same_values() {
    let offers = [
        Offer::default(),
        Offer { initial_r2t: false, immediate_data: false, ..Offer::default() },
        Offer {
            max_burst_len: 4096,
            first_burst_len: 1024,
            max_outstanding_r2t: 3,
            max_recv_data_segment_len: 1 << 20,
            time_to_wait_secs: 9,
            error_recovery_level: 2,
            max_connections: 8,
            ..Offer::default()
        },
        Offer { max_burst_len: (1 << 24) - 1, first_burst_len: (1 << 24) - 1, ..Offer::default() },
    ];
    for offer in offers {
        let own_len = offer.max_recv_data_segment_len;
        let (wire, parameters) = Wire::up(target(|_| {}), LoginConfig { offer, ..login() });
        let (agreed, negotiated) = (wire.target.agreed(wire.link).unwrap(), parameters.negotiated);
        assert_eq!(agreed.initial_r2t, negotiated.initial_r2t);
        assert_eq!(agreed.immediate_data, negotiated.immediate_data);
        assert_eq!(agreed.max_burst_len, negotiated.max_burst_len);
        assert_eq!(agreed.first_burst_len, negotiated.first_burst_len);
        assert_eq!(agreed.max_outstanding_r2t, negotiated.max_outstanding_r2t);
        assert_eq!(agreed.time_to_wait_secs, negotiated.time_to_wait_secs);
        assert_eq!(agreed.time_to_retain_secs, negotiated.time_to_retain_secs);
        assert_eq!(agreed.max_send_data_segment_len, own_len);
        assert_eq!(negotiated.max_send_data_segment_len, 1 << 18);
        assert_eq!((negotiated.error_recovery_level, negotiated.max_connections), (0, 1));
        assert_eq!(negotiated.target_portal_group_tag, Some(1));
        assert_eq!(parameters.window.room(parameters.cmd_sn), 128);
    }
}

#[test]
fn who_proves_nothing_is_kept_out() {
    let refused = |status| LoginError::Refused { status };
    let keys = [Algorithm::Sha256];
    assert_eq!(refusal(login(), guarded()), refused(LoginStatus::AuthenticationFailure));
    for (user, secret) in [("alice", "initiator 13"), ("bob", "initiator 12")] {
        let chap = ChapConfig {
            user: user.to_owned(),
            secret: Secret::new(secret.as_bytes()),
            ..chap(false, &keys)
        };
        let config = LoginConfig { authentication: Authentication::Chap(chap), ..login() };
        assert_eq!(refusal(config, guarded()), refused(LoginStatus::AuthenticationFailure));
    }
    // The target's own secret is another.
    let mut wrong = chap(true, &keys);
    wrong.target.as_mut().unwrap().secret = Secret::new(b"not this one");
    let config = LoginConfig { authentication: Authentication::Chap(wrong), ..login() };
    let mut wire = Wire::new(guarded());
    assert_eq!(wire.log_in(config), Err(LoginError::Chap(ChapError::TargetResponse)));
    // It has none to prove itself with.
    let account = Account::new("alice", "initiator 12");
    let one_way = target(|config| config.admission = Admission::Chap(vec![account]));
    let config = LoginConfig { authentication: Authentication::Chap(chap(true, &keys)), ..login() };
    assert_eq!(refusal(config, one_way), refused(LoginStatus::AuthenticationFailure));
    // CHAP where nobody has an account.
    let config =
        LoginConfig { authentication: Authentication::Chap(chap(false, &keys)), ..login() };
    assert_eq!(refusal(config, target(|_| {})), refused(LoginStatus::AuthenticationFailure));
}

#[test]
fn names_and_kinds_of_sessions_are_checked() {
    let elsewhere = SessionTarget::Normal("iqn.2026-01.org.example:other".to_owned());
    let error = refusal(LoginConfig { target: elsewhere, ..login() }, target(|_| {}));
    assert_eq!(error, LoginError::Refused { status: LoginStatus::NotFound });
    let cases: [(&[(&str, &str)], LoginStatus); 4] = [
        (&[("TargetName", NAME)], LoginStatus::MissingParameter),
        (&[("InitiatorName", HOST)], LoginStatus::MissingParameter),
        (
            &[("InitiatorName", HOST), ("SessionType", "Other")],
            LoginStatus::SessionTypeNotSupported,
        ),
        (&[("InitiatorName", HOST), ("InitiatorName", HOST)], LoginStatus::InitiatorError),
    ];
    for (pairs, status) in cases {
        let mut wire = Wire::new(target(|_| {}));
        wire.send_login(LoginStep::ToFullFeature(OPERATIONAL), pairs);
        assert_eq!(wire.hear_login().0.answer, LoginAnswer::Refused(status), "{pairs:?}");
        assert!(!wire.is_open());
    }
}

#[test]
fn a_target_that_has_moved_says_where_to() {
    type Make = fn(String) -> Moved;
    let cases: [(Make, LoginStatus); 2] = [
        (Moved::Temporarily, LoginStatus::TargetMovedTemporarily),
        (Moved::Permanently, LoginStatus::TargetMovedPermanently),
    ];
    for (moved, status) in cases {
        let to = "there.example:3261".to_owned();
        let mut wire = Wire::new(target(|config| config.moved = Some(moved(to))));
        wire.send_login(LoginStep::ToFullFeature(OPERATIONAL), NAMES);
        let (response, pairs) = wire.hear_login();
        assert_eq!(response.answer, LoginAnswer::Refused(status));
        assert_eq!(pairs, [Pair::new("TargetAddress", "there.example:3261")]);
    }
}

const NAMES: &[(&str, &str)] = &[("InitiatorName", HOST), ("TargetName", NAME)];

fn request(step: LoginStep) -> LoginRequest {
    LoginRequest {
        step,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 0, 0, 0, 0, 1],
        tsih: 0,
        task_tag: 7,
        cid: 1,
        serials: RequestSerials { cmd_sn: Serial::new(5), exp_stat_sn: Serial::new(0) },
        data_len: DataLen::ZERO,
    }
}

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| Pair::new(key, value)).collect();
    encode(&pairs)
}

impl Wire {
    fn send_login(&mut self, step: LoginStep, pairs: &[(&str, &str)]) {
        self.send_changed(step, pairs, |_| {});
    }

    fn send_changed(
        &mut self,
        step: LoginStep,
        pairs: &[(&str, &str)],
        change: impl FnOnce(&mut LoginRequest),
    ) {
        let text = text(pairs);
        let mut request = LoginRequest { data_len: DataLen::of(&text).unwrap(), ..request(step) };
        change(&mut request);
        self.send(request, &text);
    }

    fn hear_login(&mut self) -> (LoginResponse, Vec<Pair>) {
        let (Response::Login(response), data) = self.hear() else { panic!("no login response") };
        let mut buffer = TextBuffer::new(8192);
        buffer.push(&data).unwrap();
        (response, buffer.take_pairs().unwrap())
    }
}

#[test]
fn each_key_is_answered_by_its_rule() {
    let cases = [
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "X-sum,None", "None"),
        ("HeaderDigest", "X-sum", "Reject"),
        ("MaxConnections", "8", "1"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("ImmediateData", "maybe", "Reject"),
        ("MaxBurstLength", "512", "512"),
        ("MaxBurstLength", "16777215", "1048576"),
        ("MaxBurstLength", "511", "Reject"),
        ("FirstBurstLength", "0x1000", "4096"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("MaxOutstandingR2T", "65535", "8"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "Yes", "Yes"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("X-org.example.what", "1", "NotUnderstood"),
        ("TargetAlias", "me", "Reject"),
        ("MaxRecvDataSegmentLength", "1", "Reject"),
    ];
    for (key, value, expected) in cases {
        let mut wire = Wire::new(target(|_| {}));
        wire.send_login(LoginStep::Stay(OPERATIONAL), &[NAMES, &[(key, value)]].concat());
        let (response, pairs) = wire.hear_login();
        assert_eq!(response.answer, LoginAnswer::Accepted(LoginStep::Stay(OPERATIONAL)));
        let answers: Vec<_> = pairs.iter().filter(|pair| pair.key == key).collect();
        assert_eq!(answers[0].value, expected, "{key}={value}");
        assert!(pairs.contains(&Pair::new("TargetPortalGroupTag", "1")));
    }
    // Declarations have no answer.
    let mut wire = Wire::new(target(|_| {}));
    let declared = [("MaxRecvDataSegmentLength", "4096"), ("InitiatorAlias", "me")];
    wire.send_login(LoginStep::ToFullFeature(OPERATIONAL), &[NAMES, &declared].concat());
    let (response, pairs) = wire.hear_login();
    let own = Pair::new("MaxRecvDataSegmentLength", "262144");
    assert_eq!(pairs, [Pair::new("TargetPortalGroupTag", "1"), own]);
    assert_ne!(response.tsih, 0);
    assert_eq!(wire.target.agreed(wire.link).unwrap().max_send_data_segment_len, 4096);
}

#[test]
fn keys_of_normal_sessions_mean_nothing_to_discovery() {
    let mut wire = Wire::new(target(|_| {}));
    let pairs = [
        ("InitiatorName", HOST),
        ("SessionType", "Discovery"),
        ("MaxBurstLength", "4096"),
        ("DefaultTime2Wait", "5"),
    ];
    wire.send_login(LoginStep::Stay(OPERATIONAL), &pairs);
    let (_, answers) = wire.hear_login();
    assert!(answers.contains(&Pair::new("MaxBurstLength", "Irrelevant")));
    assert!(answers.contains(&Pair::new("DefaultTime2Wait", "5")));
    assert!(answers.iter().all(|pair| pair.key != "TargetPortalGroupTag"));
}

#[test]
fn texts_are_cut_to_pieces_in_both_directions() {
    // The target's: every answer in pieces of five bytes.
    let small = target(|config| config.limits.text_len = 5);
    let offer = Offer { first_burst_len: 1024, ..login().offer };
    let mut wire = Wire::new(small);
    assert_eq!(wire.log_in(LoginConfig { offer, ..login() }), Err(LoginError::TooLong));
    let small = target(|config| config.limits.text_len = 50);
    let (wire, _) = Wire::up(small, login());
    assert!(wire.target.received(wire.link) > 8);
    // The initiator's, cut within a key.
    let mut wire = Wire::new(target(|_| {}));
    let all = text(&[NAMES, &[("ImmediateData", "No")]].concat());
    let (first, second) = all.split_at(all.len() - 9);
    for (step, piece) in
        [(LoginStep::Partial(OPERATIONAL), first), (LoginStep::ToFullFeature(OPERATIONAL), second)]
    {
        let data_len = DataLen::of(piece).unwrap();
        wire.send(LoginRequest { data_len, ..request(step) }, piece);
    }
    let (partial, nothing) = wire.hear_login();
    assert_eq!(partial.answer, LoginAnswer::Accepted(LoginStep::Stay(OPERATIONAL)));
    assert_eq!(nothing, []);
    let (last, pairs) = wire.hear_login();
    assert_eq!(last.answer, LoginAnswer::Accepted(LoginStep::ToFullFeature(OPERATIONAL)));
    assert!(pairs.contains(&Pair::new("ImmediateData", "No")));
}

#[test]
fn requests_that_do_not_fit_the_login_end_it() {
    type Change = fn(&mut LoginRequest);
    let changes: [(Change, LoginStatus); 6] = [
        (|request| request.isid[0] ^= 1, LoginStatus::InitiatorError),
        (|request| request.cid += 1, LoginStatus::InitiatorError),
        (|request| request.task_tag += 1, LoginStatus::InitiatorError),
        (|request| request.serials.cmd_sn = Serial::new(9), LoginStatus::InitiatorError),
        (|request| request.step = LoginStep::Stay(SECURITY), LoginStatus::InitiatorError),
        (
            |request| (request.version_max, request.version_min) = (3, 1),
            LoginStatus::UnsupportedVersion,
        ),
    ];
    for (change, status) in changes {
        let mut wire = Wire::new(target(|_| {}));
        wire.send_login(LoginStep::Stay(OPERATIONAL), NAMES);
        wire.hear_login();
        wire.send_changed(LoginStep::Stay(OPERATIONAL), &[], change);
        assert_eq!(wire.hear_login().0.answer, LoginAnswer::Refused(status));
        assert!(!wire.is_open());
    }
    // What is no login has no place before its end.
    let nop = NopOut {
        delivery: Delivery::Immediate,
        lun: [0; 8],
        task_tag: Some(1),
        target_tag: None,
        serials: RequestSerials::default(),
        data_len: DataLen::ZERO,
    };
    let mut wire = Wire::new(target(|_| {}));
    wire.send(nop.clone(), &[]);
    wire.hear_nothing();
    assert!(!wire.is_open());
    let mut wire = Wire::new(target(|_| {}));
    wire.send_login(LoginStep::Stay(OPERATIONAL), NAMES);
    wire.hear_login();
    wire.send(nop, &[]);
    let refused = LoginAnswer::Refused(LoginStatus::InvalidDuringLogin);
    assert_eq!(wire.hear_login().0.answer, refused);
}

#[test]
fn a_session_of_the_same_port_replaces_the_old_one() {
    let mut wire = Wire::plain();
    let old = wire.link;
    // A write that waits for its data.
    let tag = wire.start(0, &range(0x2a, 0, 64), WRITE, 64 * 512, &[]);
    assert_eq!(wire.hear_r2t().task_tag, tag);
    wire.connect();
    wire.log_in(login()).unwrap();
    assert_eq!(wire.target.take_cut(), [old]);
    assert!(!wire.target.is_open(old));
    // The units tell it as they tell every new session.
    assert_eq!(sense_of(&wire.status(0, &[0; 6], READ, 0, &[]).1), (6, 0x29, 0));
    let before = wire.target.device().counters().total();
    let current = std::mem::replace(&mut wire.link, old);
    wire.say(&[0; 48]);
    assert_eq!(wire.target.device().counters().total(), before);
    // Another port is another session.
    wire.link = current;
    let first = wire.link;
    wire.connect();
    wire.log_in(LoginConfig { isid: [0x80, 0, 0, 1, 2, 4], ..login() }).unwrap();
    assert!(wire.target.is_open(first) && wire.target.take_cut().is_empty());
}

#[test]
fn a_connection_is_replaced_and_others_cannot_be_added() {
    let mut wire = Wire::new(target(|_| {}));
    let log_in = |wire: &mut Wire, tsih: u16, cid: u16| {
        wire.send_changed(LoginStep::ToFullFeature(OPERATIONAL), NAMES, |request| {
            (request.tsih, request.cid) = (tsih, cid);
        });
        wire.hear_login().0
    };
    let tsih = log_in(&mut wire, 0, 1).tsih;
    let old = wire.link;
    wire.connect();
    let refused = log_in(&mut wire, tsih, 2).answer;
    assert_eq!(refused, LoginAnswer::Refused(LoginStatus::TooManyConnections));
    wire.connect();
    let refused = log_in(&mut wire, tsih + 1, 1).answer;
    assert_eq!(refused, LoginAnswer::Refused(LoginStatus::SessionDoesNotExist));
    wire.connect();
    let response = log_in(&mut wire, tsih, 1);
    assert_eq!(response.tsih, tsih);
    assert_eq!(wire.target.take_cut(), [old]);
    assert!(wire.is_open());
}
