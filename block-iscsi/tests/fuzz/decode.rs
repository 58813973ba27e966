//! The decoders of what a target sends: PDUs, text keys, logins, answers to SCSI commands; and URLs. Each answers any
//! bytes with a value or an error; what it understood is written back as the same.

use block_core::range::{MAX_LEN, to_u64};
use block_iscsi::chap::{Algorithm, CHALLENGE_LEN, ChapConfig, Nonce, Secret};
use block_iscsi::keys::text::{TEXT_LEN_MAX, TextBuffer, encode};
use block_iscsi::keys::value::{hex, parse_binary, parse_flag, parse_number};
use block_iscsi::keys::{Negotiation, Offer, Pair, SessionKind, Stage};
use block_iscsi::login::{Authentication, Login, LoginConfig, Progress, SessionTarget};
use block_iscsi::pdu::bhs::{BHS_LEN, Opcode};
use block_iscsi::pdu::reject::Reject;
use block_iscsi::pdu::scsi::SenseSegment;
use block_iscsi::pdu::{Request, Response};
use block_iscsi::redact;
use block_iscsi::scsi::capacity::{BlockSize, Capacity};
use block_iscsi::scsi::inquiry::{self, Designator, Inquiry, SupportedPages};
use block_iscsi::scsi::limits::{BlockLimits, Characteristics};
use block_iscsi::scsi::luns::parse_luns;
use block_iscsi::scsi::mode::ModeData;
use block_iscsi::scsi::opcodes;
use block_iscsi::scsi::provisioning::{LbaStatus, Provisioning};
use block_iscsi::scsi::sense::Sense;
use block_iscsi::serial::Serial;
use block_iscsi::url::{IscsiUrl, PortalUrl};
use block_testkit::fuzz::{Bytes, Target};
use block_testkit::iscsi::{Device, LunConfig, Nexus, SenseFormat};

pub const PDU: Target = Target { name: "iscsi-pdu", body: pdu, seeds: pdus, max_len: 400 };
pub const KEYS: Target = Target { name: "iscsi-keys", body: keys, seeds: texts, max_len: 2048 };
pub const LOGIN: Target = Target { name: "iscsi-login", body: login, seeds: logins, max_len: 1024 };
pub const ANSWERS: Target =
    Target { name: "iscsi-answers", body: answers, seeds: all_answers, max_len: 600 };
pub const URL: Target = Target { name: "iscsi-url", body: url, seeds: urls, max_len: 300 };

/// A header of each opcode.
fn pdus() -> Vec<Vec<u8>> {
    let header = |opcode: &Opcode| {
        let mut bytes = vec![0; BHS_LEN];
        bytes[0] = opcode.code();
        bytes[1] = 0x80;
        bytes
    };
    Opcode::ALL.iter().map(header).collect()
}

/// PDUs of both directions print back as they were read.
fn pdu(input: &[u8]) {
    if let Ok(request) = Request::parse(input) {
        let bytes = match &request {
            Request::ScsiCommand(command) => command.to_bytes(),
            other => other.to_bhs().to_bytes().to_vec(),
        };
        assert_eq!(Request::parse(&bytes), Ok(request));
    }
    if let Ok(response) = Response::parse(input) {
        assert_eq!(Response::parse(&response.to_bhs().to_bytes()), Ok(response));
    }
    let data = input.get(BHS_LEN..).unwrap_or_default();
    if let Ok(segment) = SenseSegment::parse(data) {
        assert!(data.is_empty() || segment.sense.len() + segment.rest.len() + 2 == data.len());
    }
    let _ = Reject::refused(data);
}

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "HeaderDigest=CRC32C\0DataDigest=None\0MaxRecvDataSegmentLength=8192\0InitialR2T=No\0\
         ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0DefaultTime2Wait=2\0\
         DefaultTime2Retain=20\0MaxOutstandingR2T=1\0ErrorRecoveryLevel=0\0MaxConnections=1\0",
        "TargetAlias=a disk\0TargetPortalGroupTag=1\0X-org.example=1\0DataPDUInOrder=Yes\0\
         TargetAddress=[::1]:3260,1\0TaskReporting=RFC3720\0IFMarker=Reject\0",
        "MaxBurstLength=0x10000\0FirstBurstLength=NotUnderstood\0HeaderDigest=Reject\0",
    ];
    texts.iter().map(|text| [&[0], text.as_bytes()].concat()).collect()
}

/// Text keys print back as they were read; a negotiation takes or refuses them, and what it agrees on keeps to the
/// rules.
fn keys(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let flags = bytes.byte();
    let mut buffer = TextBuffer::new(TEXT_LEN_MAX);
    let (first, second) = bytes.rest().split_at(bytes.rest().len() / 2);
    if buffer.push(first).is_err() || buffer.push(second).is_err() {
        return;
    }
    let Ok(pairs) = buffer.take_pairs() else { return };
    buffer.push(&encode(&pairs)).expect("no longer than it was");
    assert_eq!(buffer.take_pairs(), Ok(pairs.clone()));
    let kind = if flags & 1 == 0 { SessionKind::Normal } else { SessionKind::Discovery };
    let offer =
        Offer { initial_r2t: flags & 2 == 0, immediate_data: flags & 4 == 0, ..Offer::default() };
    let mut negotiation = Negotiation::new(kind, &offer).expect("an offer");
    if flags & 8 == 0 {
        negotiation.offers();
    }
    let stage = if flags & 16 == 0 { Stage::Operational } else { Stage::Security };
    for Pair { value, .. } in &pairs {
        let _ = (parse_flag(value), parse_number(value));
        if let Some(binary) = parse_binary(value) {
            assert_eq!(parse_binary(&hex(&binary)), Some(binary));
        }
    }
    for pair in &pairs {
        if negotiation.receive(stage, pair).is_err() {
            return;
        }
    }
    let Ok(agreed) = negotiation.finish() else { return };
    assert!((512..1 << 24).contains(&agreed.max_send_data_segment_len));
    assert!((512..1 << 24).contains(&agreed.max_burst_len));
    assert!((512..1 << 24).contains(&agreed.first_burst_len));
    let asks_for_all = agreed.initial_r2t && !agreed.immediate_data;
    assert!(agreed.first_burst_len <= agreed.max_burst_len || asks_for_all || flags & 1 == 1);
    // What was never offered has its default.
    let offered = flags & 9 == 0;
    assert!(!offered || agreed.immediate_data <= offer.immediate_data);
}

fn logins() -> Vec<Vec<u8>> {
    // What the responses say beside the fields that a target cannot choose.
    let response = |step: u8, text: &str| {
        let mut bytes = vec![step, 0, 0, 0];
        bytes.extend(u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    };
    let none = response(0x81, "AuthMethod=None\0TargetPortalGroupTag=1\0");
    let keys = "HeaderDigest=None\0DataDigest=None\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0\
                ErrorRecoveryLevel=0\0MaxBurstLength=8192\0FirstBurstLength=4096\0InitialR2T=Yes\0\
                ImmediateData=No\0MaxOutstandingR2T=1\0MaxConnections=1\0";
    let full = response(0x87, keys);
    let chap = response(0, "AuthMethod=CHAP\0");
    let challenge = response(0, "CHAP_A=5\0CHAP_I=7\0CHAP_C=0x00112233445566778899aabbccddeeff\0");
    let elsewhere = [&[0, 1, 1, 0][..], &[0, 0]].concat();
    vec![
        [vec![0], none, full].concat(),
        [vec![1], chap, challenge].concat(),
        [vec![0], elsewhere].concat(),
    ]
}

/// A login before a target that says anything: it ends, and is done only after all that was asked for.
fn login(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let flags = bytes.byte();
    let chap = ChapConfig {
        user: "us".to_owned(),
        secret: Secret::new(b"a secret of ours"),
        algorithms: vec![Algorithm::Sha256, Algorithm::Md5],
        target: None,
    };
    let authentication = match flags % 4 {
        0 | 3 => Authentication::None,
        1 => Authentication::Chap(chap),
        _ => Authentication::ChapOrNone(chap),
    };
    let asks_for_chap = flags % 4 == 1;
    let mut login = Login::new(LoginConfig {
        initiator: "iqn.2004-01.org.example:us".to_owned(),
        initiator_alias: None,
        target: SessionTarget::Normal("iqn.2004-01.org.example:disk".to_owned()),
        authentication,
        nonce: Nonce { identifier: 3, challenge: [5; CHALLENGE_LEN] },
        offer: Offer::default(),
        isid: [0x80, 1, 2, 3, 4, 5],
        task_tag: 9,
        cid: 1,
        cmd_sn: Serial::new(5),
    })
    .expect("a login");
    let mut stat_sn = 1u32;
    let mut said = Vec::new();
    for _ in 0..40 {
        let Ok(Some(_)) = login.next_request() else { return };
        let [step, class, detail, mangle] = bytes.array();
        let len = usize::from(bytes.u16());
        let text = bytes.take(len);
        said.extend_from_slice(text);
        let mut head = [0; BHS_LEN];
        head[0] = 0x23;
        head[1] = step;
        head[5..8].copy_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes()[1..]);
        head[8..14].copy_from_slice(&[0x80, 1, 2, 3, 4, 5]);
        head[15] = u8::from(step & 3 == 3);
        head[19] = 9;
        head[24..28].copy_from_slice(&stat_sn.to_be_bytes());
        head[31] = 5;
        head[35] = 20;
        head[36] = class;
        head[37] = detail;
        if mangle & 0x80 != 0 {
            head[usize::from(mangle & 0x7f) % BHS_LEN] ^= detail;
        }
        match login.handle(&head, text) {
            Ok(Progress::Continue) => stat_sn = stat_sn.wrapping_add(1),
            Ok(Progress::Done(_)) => {
                let met = said.windows(7).any(|part| part == b"CHAP_C=");
                assert!(
                    met || !asks_for_chap,
                    "done without the authentication that was asked for"
                );
                return;
            }
            Ok(Progress::Redirect { .. }) | Err(_) => {
                assert!(!matches!(login.next_request(), Ok(Some(_))), "it is over");
                return;
            }
        }
    }
}

/// What the test kit's device answers, and what it does not.
fn all_answers() -> Vec<Vec<u8>> {
    const US: Nexus = Nexus(1);
    let mut device = Device::new(SenseFormat::Descriptor);
    device.add(0, LunConfig::thin(512, 4096)).expect("a unit");
    device.connect(US);
    let inquiry = |page: u8| vec![0x12, 1, page, 0, 255, 0];
    let cdbs = [
        vec![0x12, 0, 0, 0, 96, 0],
        inquiry(0),
        inquiry(0x80),
        inquiry(0x83),
        inquiry(0xb0),
        inquiry(0xb1),
        inquiry(0xb2),
        vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        vec![0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0],
        vec![0x1a, 0, 0x3f, 0, 255, 0],
        vec![0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255, 0],
        vec![0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0],
        vec![0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 255, 0, 0],
        vec![0xff, 0, 0, 0, 0, 0],
    ];
    let mut seeds = Vec::new();
    for cdb in cdbs {
        // The unit attention of the beginning comes first.
        let answers = [device.execute(US, 0, &cdb, &[]), device.execute(US, 0, &cdb, &[])];
        for answer in answers {
            for data in [answer.data_in, answer.sense] {
                if !data.is_empty() {
                    seeds.push([vec![0, 0, 0, 0, 0, 0, 0, 16], data].concat());
                }
            }
        }
    }
    seeds
}

/// Answers to SCSI commands: what is taken has its numbers within their bounds.
fn answers(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let (asked, blocks, size) = (bytes.u16(), bytes.u32(), bytes.u16());
    let (asked, blocks) = (u64::from(asked), u64::from(blocks) + 1);
    let data = bytes.rest();
    let _ = (Inquiry::parse(data).map(|inquiry| inquiry.is_disk()), inquiry::parse_serial(data));
    if let Ok(pages) = SupportedPages::parse(data) {
        assert!(pages.iter().all(|page| pages.has(page)));
    }
    let _ = (Designator::parse_page(data), parse_luns(data), opcodes::parse_all(data));
    let _ = (ModeData::parse6(data), ModeData::parse10(data), Provisioning::parse(data));
    let _ = (Characteristics::parse(data), opcodes::OneCommand::parse(data));
    if let Ok(capacity) = Capacity::parse16(data) {
        assert!(capacity.blocks() > 0 && capacity.len() <= MAX_LEN);
        let _ = capacity.physical_block_size();
    }
    let _ = Capacity::parse10(data);
    let size = BlockSize::new(u32::from(size) * 16).or(BlockSize::new(512)).expect("a size");
    if let Ok(Ok(limits)) = BlockLimits::parse(data).map(|limits| limits.in_bytes(size)) {
        assert!(limits.write_same_step() > 0 && limits.write_same_step() <= MAX_LEN);
        assert!(limits.max_transfer != Some(0) && limits.opt_transfer != Some(0));
        if let Some(unmapping) = limits.unmapping {
            assert!(unmapping.step() > 0 && unmapping.step() <= unmapping.max_len);
        }
    }
    if asked < blocks
        && let Ok(status) = LbaStatus::parse(data, asked, blocks)
    {
        let mut next = asked;
        for extent in status.extents() {
            assert_eq!(extent.lba, next, "extents in a row");
            assert!(extent.blocks > 0);
            next += extent.blocks;
        }
        assert!(next <= blocks && next == status.end() && !status.extents().is_empty());
        assert!(to_u64(status.extents().len()) <= to_u64(data.len()) / 16);
    }
    if let Ok(sense) = Sense::parse(data) {
        let _ = (sense.attention(), sense.code);
    }
}

fn urls() -> Vec<Vec<u8>> {
    let urls = [
        "iscsi://user%password@192.0.2.1:3261/iqn.2026-01.org.example:disk/1",
        "iscsi://[2001:db8::1]/iqn.2026-01.org.example%3adisk/0",
        "iscsi://host/iqn.2026-01.org.example:disk/255",
        "iscsi://user@host:3260/iqn.x",
        "iscsi://host",
        "error for iscsi://u%p%25q@h/t/0: see iscsi://u%p@h",
    ];
    urls.iter().map(|url| url.as_bytes().to_vec()).collect()
}

/// URLs print back as they were read, and a password is shown by nothing but the way that says so.
fn url(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(url) = IscsiUrl::parse(&text) {
        let whole = url.to_string_with_password();
        assert_eq!(IscsiUrl::parse(&whole), Ok(url.clone()), "{whole}");
        let password = url.credentials().and_then(|credentials| credentials.password());
        let other =
            password.map(|password| whole.replacen(&format!("%{password}@"), "%another@", 1));
        if let Some(Ok(other)) = other.map(|whole| IscsiUrl::parse(&whole)) {
            assert_eq!(format!("{url} {url:?}"), format!("{other} {other:?}"));
        }
    }
    if let Ok(url) = PortalUrl::parse(&text) {
        let _ = (url.target(), url.host(), url.port());
    }
    let redacted = redact::without_passwords(&text);
    assert_eq!(redact::without_passwords(&redacted), redacted, "nothing is left to be taken out");
}
