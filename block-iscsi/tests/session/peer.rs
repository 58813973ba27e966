//! The other side of a session: hears requests, says what it is told to.

use std::collections::VecDeque;
use std::time::Duration;

use block_core::range::Alignment;
use block_core::{IoBuf, IoVec};
use block_iscsi::chap::{CHALLENGE_LEN, Nonce};
use block_iscsi::keys::text::{TextBuffer, encode};
use block_iscsi::keys::{Offer, Pair};
use block_iscsi::login::{Authentication, SessionTarget};
use block_iscsi::nexus::{Command, Data, TaskError};
use block_iscsi::pdu::bhs::{BHS_LEN, Bhs};
use block_iscsi::pdu::data::{DataIn, DataInEnd, ReadyToTransfer, Sequence};
use block_iscsi::pdu::digest::digest;
use block_iscsi::pdu::fields::{DataLen, Residual, ResponseSerials};
use block_iscsi::pdu::login::{LoginAnswer, LoginResponse, LoginStage, LoginStep};
use block_iscsi::pdu::reject::{Reject, RejectReason};
use block_iscsi::pdu::scsi::{CommandOutcome, ScsiResponse};
use block_iscsi::pdu::{Request, Response};
use block_iscsi::scsi::cdb::{Caching, Cdb, Replay};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::serial::Serial;
use block_iscsi::session::{
    Answer, Link, Patience, Session, SessionConfig, SessionEvent, TaskId, Wanted,
};
use block_iscsi::transport::{Portal, TransmitPart};
use block_iscsi::url::Host;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLI: Duration = Duration::from_millis(1);

/// What most tests agree on: nothing goes without being asked for, but what a command carries.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "1024"),
    ("MaxBurstLength", "4096"),
    ("FirstBurstLength", "2048"),
    ("MaxOutstandingR2T", "2"),
];

pub(crate) struct Peer {
    pub(crate) session: Session,
    pub(crate) link: Link,
    pub(crate) now: Duration,
    pub(crate) heard: VecDeque<(Request, Vec<u8>)>,
    pub(crate) stat_sn: Serial,
    pub(crate) exp_cmd_sn: Serial,
    /// How many commands are taken beyond those that have come.
    pub(crate) window: u32,
    /// Bytes of each receive.
    pub(crate) piece: usize,
    bytes: Vec<u8>,
    digests: bool,
}

pub(crate) fn config() -> SessionConfig {
    SessionConfig {
        portal: portal("one.example"),
        initiator: "iqn.2026-01.org.example:host".into(),
        initiator_alias: None,
        target: SessionTarget::Normal("iqn.2026-01.org.example:disk".into()),
        authentication: Authentication::None,
        offer: Offer {
            initial_r2t: false,
            max_outstanding_r2t: 8,
            max_recv_data_segment_len: 1 << 18,
            max_burst_len: 1 << 20,
            ..Offer::default()
        },
        isid: [0x80, 1, 2, 3, 4, 5],
        depth: 64,
        patience: Patience::default(),
    }
}

pub(crate) fn portal(name: &str) -> Portal {
    Portal { host: Host::Name(name.into()), port: 3260 }
}

impl Peer {
    pub(crate) fn new(config: SessionConfig) -> Self {
        let mut session = Session::new(config, Duration::ZERO).unwrap();
        let link = connect(&mut session, Duration::ZERO);
        Self {
            session,
            link,
            now: Duration::ZERO,
            heard: VecDeque::new(),
            stat_sn: Serial::new(0x7fff_fffe),
            exp_cmd_sn: Serial::new(0),
            window: 32,
            piece: usize::MAX,
            bytes: Vec::new(),
            digests: false,
        }
    }

    /// A session that is there.
    pub(crate) fn up(config: SessionConfig, keys: &[(&str, &str)]) -> Self {
        let mut peer = Self::new(config);
        peer.log_in(keys);
        assert_eq!(peer.events(), [SessionEvent::Up]);
        peer
    }

    /// The next connection.
    pub(crate) fn reconnect(&mut self) {
        assert!(matches!(self.session.wanted(self.now), Wanted::Connection(_)));
        self.link = connect(&mut self.session, self.now);
        self.bytes.clear();
        self.heard.clear();
        self.digests = false;
    }

    /// Answers every offer with `keys`, or else with itself.
    pub(crate) fn log_in(&mut self, keys: &[(&str, &str)]) {
        self.say_login(LoginStep::ToOperational, 0, &[("AuthMethod", "None")]);
        self.listen();
        let offers = pairs(&self.heard[0].1);
        let mut answers = keys.to_vec();
        for offer in &offers {
            let said = answers.iter().any(|(key, _)| *key == offer.key);
            if !said && offer.key != "MaxRecvDataSegmentLength" {
                answers.push((&offer.key, &offer.value));
            }
        }
        let last = LoginStep::ToFullFeature(LoginStage::Operational);
        self.say_login(last, 9, &answers);
        self.digests = keys.contains(&("HeaderDigest", "CRC32C"));
    }

    pub(crate) fn say_login(&mut self, step: LoginStep, tsih: u16, pairs: &[(&str, &str)]) {
        self.answer_login(LoginAnswer::Accepted(step), tsih, pairs);
    }

    pub(crate) fn answer_login(&mut self, answer: LoginAnswer, tsih: u16, pairs: &[(&str, &str)]) {
        let (request, _) = self.hear();
        let Request::Login(request) = request else { panic!("{request:?}") };
        self.exp_cmd_sn = request.serials.cmd_sn;
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| Pair::new(key, value)).collect();
        let text = encode(&pairs);
        let response = LoginResponse {
            answer,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih,
            task_tag: request.task_tag,
            serials: self.next_status(),
            data_len: DataLen::of(&text).unwrap(),
        };
        self.say(response, &text);
    }

    /// The numbers of a PDU that takes up a StatSN.
    pub(crate) fn next_status(&mut self) -> ResponseSerials {
        let serials = self.serials();
        self.stat_sn = self.stat_sn.next();
        serials
    }

    pub(crate) fn serials(&self) -> ResponseSerials {
        let max_cmd_sn = self.exp_cmd_sn.plus(self.window).minus(1);
        ResponseSerials { stat_sn: self.stat_sn, exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn }
    }

    /// Sends a PDU to the session.
    pub(crate) fn say(&mut self, response: impl Into<Response>, data: &[u8]) {
        let bytes = self.encode(&response.into(), data);
        self.say_bytes(&bytes);
    }

    pub(crate) fn encode(&self, response: &Response, data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        response.append_to(data, &mut plain).unwrap();
        if !self.digests {
            return plain;
        }
        let (head, segment) = plain.split_at(BHS_LEN);
        let mut bytes = [head, &digest(head), segment].concat();
        if !data.is_empty() {
            bytes.extend_from_slice(&digest(data));
        }
        bytes
    }

    pub(crate) fn say_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let slot = self.link.inbound.slot();
            let direct = slot.direct.len().min(bytes.len()).min(self.piece);
            slot.direct.copy_from(0, &bytes[..direct]);
            let rest = &bytes[direct..];
            let staged = if direct < slot.direct.len() {
                0
            } else {
                slot.staging.len().min(rest.len()).min(self.piece - direct)
            };
            slot.staging[..staged].copy_from_slice(&rest[..staged]);
            assert!(direct + staged > 0, "a slot is never empty");
            bytes = &bytes[direct + staged..];
            self.session.handle_received(&mut self.link, direct + staged, self.now);
        }
    }

    /// Takes all that the session sends.
    pub(crate) fn listen(&mut self) {
        loop {
            self.session.fill(&mut self.link.outbound, self.now);
            if self.link.outbound.is_empty() {
                break;
            }
            let mut len = 0;
            for part in self.link.outbound.parts() {
                let bytes = match part {
                    TransmitPart::Bytes(bytes) => bytes.to_vec(),
                    TransmitPart::Buf(buf) => buf.to_vec(),
                };
                len += bytes.len();
                self.bytes.extend_from_slice(&bytes);
            }
            // In two pieces, so that pieces are sent in part.
            let first = len.div_ceil(3);
            self.link.outbound.handle_transmitted(first);
            self.link.outbound.handle_transmitted(len - first);
        }
        while let Some((request, data)) = self.take_pdu() {
            self.heard.push_back((request, data));
        }
    }

    fn take_pdu(&mut self) -> Option<(Request, Vec<u8>)> {
        let head = self.bytes.get(..BHS_LEN)?.to_vec();
        let request = Request::parse(&head).unwrap();
        let bhs = request.to_bhs();
        let (len, padded) = (bhs.data_len(), bhs.padded_data_len());
        let (len, padded) = (usize::try_from(len).unwrap(), usize::try_from(padded).unwrap());
        let digest_len = if self.digests { 4 } else { 0 };
        let data_at = BHS_LEN + digest_len;
        let data = self.bytes.get(data_at..data_at + len)?.to_vec();
        assert!(self.bytes.len() >= data_at + padded);
        if self.digests {
            assert_eq!(self.bytes[BHS_LEN..data_at], digest(&head));
        }
        let mut total = data_at + padded;
        if self.digests && len > 0 {
            assert_eq!(self.bytes[total..total + 4], digest(&data));
            total += 4;
        }
        self.bytes.drain(..total);
        Some((request, data))
    }

    /// The next request; there must be one.
    pub(crate) fn hear(&mut self) -> (Request, Vec<u8>) {
        self.listen();
        self.heard.pop_front().expect("the session sends nothing")
    }

    /// That nothing is sent.
    pub(crate) fn hear_nothing(&mut self) {
        self.listen();
        assert_eq!(self.heard, []);
    }

    /// The next request, which must be a command; it is taken.
    pub(crate) fn hear_command(&mut self) -> (block_iscsi::pdu::scsi::ScsiCommand, Vec<u8>) {
        match self.hear() {
            (Request::ScsiCommand(command), data) => {
                assert_eq!(command.serials.cmd_sn, self.exp_cmd_sn, "commands come in order");
                self.exp_cmd_sn = self.exp_cmd_sn.next();
                (command, data)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Ends a command.
    pub(crate) fn say_status(&mut self, task_tag: u32, status: u8, data: &[u8]) {
        let response = ScsiResponse {
            outcome: CommandOutcome::Completed {
                status,
                residual: Residual::None,
                read_residual: Residual::None,
            },
            task_tag,
            snack_tag: None,
            serials: self.next_status(),
            exp_data_sn: Serial::new(0),
            data_len: DataLen::of(data).unwrap(),
        };
        self.say(response, data);
    }

    /// Refuses a PDU.
    pub(crate) fn say_rejected(&mut self, refused: &Bhs, reason: RejectReason) {
        let refused = refused.to_bytes();
        let reject = Reject {
            reason,
            serials: self.next_status(),
            data_sn: Serial::new(0),
            data_len: DataLen::of(&refused).unwrap(),
        };
        self.say(reject, &refused);
    }

    /// Data of a read, with a status behind the last of it.
    pub(crate) fn data_in(&mut self, task_tag: u32, sn: u32, at: u32, data: &[u8], last: bool) {
        let pdu = self.data_in_pdu(task_tag, sn, at, data, last);
        self.say(pdu, data);
    }

    pub(crate) fn data_in_pdu(
        &mut self,
        task_tag: u32,
        sn: u32,
        at: u32,
        data: &[u8],
        last: bool,
    ) -> DataIn {
        DataIn {
            end: if last {
                DataInEnd::Status { status: 0, residual: Residual::None }
            } else {
                DataInEnd::Open(Sequence::GoesOn)
            },
            acknowledge: None,
            task_tag,
            serials: if last { self.next_status() } else { self.serials() },
            data_sn: Serial::new(sn),
            buffer_offset: at,
            data_len: DataLen::of(data).unwrap(),
        }
    }

    pub(crate) fn ask(&mut self, task_tag: u32, sn: u32, at: u32, len: u32) {
        let r2t = ReadyToTransfer {
            lun: [0, 5, 0, 0, 0, 0, 0, 0],
            task_tag,
            target_tag: 100 + sn,
            serials: self.serials(),
            r2t_sn: Serial::new(sn),
            buffer_offset: at,
            desired_len: len,
        };
        self.say(r2t, &[]);
    }

    pub(crate) fn events(&mut self) -> Vec<SessionEvent> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    pub(crate) fn submit(&mut self, command: Command) -> TaskId {
        self.session.submit(command, self.now).unwrap()
    }

    pub(crate) fn result(&mut self, id: TaskId) -> Option<Result<Answer, TaskError>> {
        self.session.take(id)
    }

    /// Lets time pass, with all that is due.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            if matches!(self.session.wanted(self.now), Wanted::Connection(_) | Wanted::End) {
                break;
            }
        }
        self.now = end;
    }
}

pub(crate) fn connect(session: &mut Session, now: Duration) -> Link {
    session.handle_connected(Nonce { identifier: 1, challenge: [7; CHALLENGE_LEN] }, now)
}

pub(crate) fn buffer(len: usize) -> IoBuf {
    IoBuf::zeroed(len, Alignment::ONE).unwrap()
}

/// A read into `to`, which has whole blocks of 512 bytes.
pub(crate) fn read(to: &IoBuf) -> Command {
    let blocks = u32::try_from(to.len() / 512).unwrap();
    let data = Data::In(IoVec::from(to.clone()));
    command(Cdb::read(8, blocks, Caching::DEFAULT), data)
}

pub(crate) fn write(from: &[u8]) -> Command {
    let blocks = u32::try_from(from.len() / 512).unwrap();
    let buf = buffer(from.len());
    buf.copy_from(0, from);
    command(Cdb::write(8, blocks, Caching::DEFAULT), Data::Out(IoVec::from(buf)))
}

pub(crate) fn command(cdb: Cdb, data: Data) -> Command {
    let lun = Lun::from_number(5).unwrap();
    Command { lun, cdb: cdb.encode(), data, replay: cdb.replay(), session: None }
}

pub(crate) fn unsafe_write(from: &[u8]) -> Command {
    Command { replay: Replay::Unsafe, ..write(from) }
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

pub(crate) fn pairs(text: &[u8]) -> Vec<Pair> {
    let mut buffer = TextBuffer::new(8192);
    buffer.push(text).unwrap();
    buffer.take_pairs().unwrap()
}
