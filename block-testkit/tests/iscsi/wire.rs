//! An initiator by hand at the other end of a target's connection: PDUs out and in, numbers kept.

use std::collections::VecDeque;

use block_iscsi::chap::{CHALLENGE_LEN, Nonce};
use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::login::{
    Authentication, Login, LoginConfig, LoginError, Progress, SessionParameters, SessionTarget,
};
use block_iscsi::pdu::bhs::{BHS_LEN, Bhs};
use block_iscsi::pdu::data::{DataIn, DataInEnd, DataOut, ReadyToTransfer, Sequence};
use block_iscsi::pdu::digest::{Part, check, digest};
use block_iscsi::pdu::fields::{DataLen, Delivery, RequestSerials, Residual};
use block_iscsi::pdu::scsi::{
    Cdb, CommandOutcome, Direction, ScsiCommand, SenseSegment, TaskAttribute,
};
use block_iscsi::pdu::{Request, Response};
use block_iscsi::serial::Serial;
use block_testkit::iscsi::target::{Link, Target, TargetConfig};
use block_testkit::iscsi::{Device, LunConfig, SenseFormat};

pub(crate) const NAME: &str = "iqn.2026-01.org.example:disk";
pub(crate) const HOST: &str = "iqn.2026-01.org.example:host";

pub(crate) struct Wire {
    pub(crate) target: Target,
    pub(crate) link: Link,
    pub(crate) cmd_sn: Serial,
    pub(crate) exp_stat_sn: Serial,
    /// Of header and data.
    pub(crate) digests: (bool, bool),
    pub(crate) max_cmd_sn: Serial,
    pub(crate) exp_cmd_sn: Serial,
    next_tag: u32,
    bytes: Vec<u8>,
    heard: VecDeque<(Response, Vec<u8>)>,
}

pub(crate) type Heard = (Response, Vec<u8>);

/// A target with unit 0 of 4 MiB and unit 1, which is write protected by nobody.
pub(crate) fn target(change: impl FnOnce(&mut TargetConfig)) -> Target {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(0, LunConfig::thin(512, 8192)).unwrap();
    device.add(1, LunConfig::thin(4096, 1024)).unwrap();
    let mut config = TargetConfig::new(NAME);
    change(&mut config);
    Target::new(config, device)
}

pub(crate) fn login() -> LoginConfig {
    LoginConfig {
        initiator: HOST.to_owned(),
        initiator_alias: Some("host".to_owned()),
        target: SessionTarget::Normal(NAME.to_owned()),
        authentication: Authentication::None,
        nonce: Nonce { identifier: 3, challenge: [5; CHALLENGE_LEN] },
        offer: Offer { initial_r2t: false, max_outstanding_r2t: 4, ..Offer::default() },
        isid: [0x80, 0, 0, 1, 2, 3],
        cid: 4,
        task_tag: 0x1234,
        cmd_sn: Serial::new(u32::MAX),
    }
}

impl Wire {
    /// A connection without a login.
    pub(crate) fn new(mut target: Target) -> Self {
        let link = target.connect();
        Self {
            target,
            link,
            cmd_sn: Serial::new(0),
            exp_stat_sn: Serial::new(0),
            digests: (false, false),
            max_cmd_sn: Serial::new(0),
            exp_cmd_sn: Serial::new(0),
            next_tag: 1,
            bytes: Vec::new(),
            heard: VecDeque::new(),
        }
    }

    /// A session, whose units have told what they have to tell at first.
    pub(crate) fn up(target: Target, config: LoginConfig) -> (Self, SessionParameters) {
        let mut wire = Self::new(target);
        let parameters = wire.log_in(config).unwrap();
        for unit in [0, 1] {
            assert_eq!(wire.status(unit, &[0; 6], Direction::None, 0, &[]).0, 2);
        }
        (wire, parameters)
    }

    pub(crate) fn plain() -> Self {
        Self::up(target(|_| {}), login()).0
    }

    /// Another connection to the same target; the old one is left as it is.
    pub(crate) fn connect(&mut self) {
        self.link = self.target.connect();
        self.digests = (false, false);
        self.bytes.clear();
        self.heard.clear();
    }

    pub(crate) fn log_in(&mut self, config: LoginConfig) -> Result<SessionParameters, LoginError> {
        let mut login = Login::new(config)?;
        loop {
            let request = login.next_request()?.expect("a request is due");
            self.say(&request);
            let (head, data) = self.next_pdu().expect("a login request is answered");
            match login.handle(&head, &data)? {
                Progress::Continue => {}
                Progress::Done(parameters) => {
                    self.begin(&parameters);
                    return Ok(*parameters);
                }
                Progress::Redirect { addresses, .. } => panic!("sent to {addresses:?}"),
            }
        }
    }

    fn begin(&mut self, parameters: &SessionParameters) {
        let crc = DigestKind::Crc32c;
        let negotiated = &parameters.negotiated;
        self.digests = (negotiated.header_digest == crc, negotiated.data_digest == crc);
        self.cmd_sn = parameters.cmd_sn;
        self.exp_stat_sn = parameters.exp_stat_sn;
    }

    /// Sends bytes.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.target.handle_bytes(self.link, bytes);
        self.take_bytes();
    }

    /// Takes what the target has to say.
    pub(crate) fn take_bytes(&mut self) {
        let mut bytes = Vec::new();
        loop {
            self.target.transmit(self.link, &mut bytes);
            if bytes.is_empty() {
                return;
            }
            self.bytes.extend_from_slice(&bytes);
        }
    }

    /// Sends a PDU.
    pub(crate) fn send(&mut self, request: impl Into<Request>, data: &[u8]) {
        let bytes = self.encode(&request.into(), data);
        self.say(&bytes);
    }

    pub(crate) fn encode(&self, request: &Request, data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        request.append_to(data, &mut plain).unwrap();
        let padded = data.len().next_multiple_of(4);
        let (head, segment) = plain.split_at(plain.len() - padded);
        let mut bytes = head.to_vec();
        if self.digests.0 {
            bytes.extend(digest(head));
        }
        bytes.extend_from_slice(segment);
        if self.digests.1 && !data.is_empty() {
            bytes.extend(digest(data));
        }
        bytes
    }

    /// The next PDU, whose digests must be right.
    pub(crate) fn next_pdu(&mut self) -> Option<([u8; BHS_LEN], Vec<u8>)> {
        let head = *self.bytes.first_chunk::<BHS_LEN>()?;
        let bhs = Bhs::parse(&head).unwrap();
        let mut at = BHS_LEN;
        if self.digests.0 {
            let sum = self.bytes[at..].first_chunk().unwrap();
            check(Part::Header, &head, *sum).unwrap();
            at += 4;
        }
        let len = usize::try_from(bhs.data_len()).unwrap();
        let data = self.bytes[at..at + len].to_vec();
        at += len.next_multiple_of(4);
        if self.digests.1 && len > 0 {
            let sum = self.bytes[at..].first_chunk().unwrap();
            check(Part::Data, &data, *sum).unwrap();
            at += 4;
        }
        self.bytes.drain(..at);
        Some((head, data))
    }

    /// All that the target has said.
    pub(crate) fn hear_all(&mut self) -> Vec<Heard> {
        let mut all: Vec<_> = self.heard.drain(..).collect();
        while let Some((head, data)) = self.next_pdu() {
            let response = Response::parse(&head).unwrap();
            self.note(&response);
            all.push((response, data));
        }
        all
    }

    /// Keeps the numbers; statuses must come in their order.
    fn note(&mut self, response: &Response) {
        let (serials, counts) = match response {
            Response::ScsiResponse(pdu) => (pdu.serials, true),
            Response::DataIn(pdu) => (pdu.serials, matches!(pdu.end, DataInEnd::Status { .. })),
            Response::NopIn(pdu) => (pdu.serials, pdu.task_tag.is_some()),
            Response::TaskManagement(pdu) => (pdu.serials, true),
            Response::Text(pdu) => (pdu.serials, true),
            Response::Logout(pdu) => (pdu.serials, true),
            Response::AsyncMessage(pdu) => (pdu.serials, true),
            Response::Reject(pdu) => (pdu.serials, true),
            Response::ReadyToTransfer(pdu) => {
                assert_eq!(pdu.serials.stat_sn, self.exp_stat_sn, "{response:?}");
                (pdu.serials, false)
            }
            Response::Login(_) => return,
        };
        if counts {
            assert_eq!(serials.stat_sn, self.exp_stat_sn, "{response:?}");
            self.exp_stat_sn = self.exp_stat_sn.next();
        }
        (self.exp_cmd_sn, self.max_cmd_sn) = (serials.exp_cmd_sn, serials.max_cmd_sn);
    }

    /// The next PDU; there must be one.
    pub(crate) fn hear(&mut self) -> Heard {
        let all = self.hear_all();
        self.heard.extend(all);
        self.heard.pop_front().expect("the target says nothing")
    }

    pub(crate) fn hear_nothing(&mut self) {
        assert_eq!(self.hear_all(), []);
    }

    pub(crate) fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    /// The numbers of an ordered request, which it takes.
    pub(crate) fn serials(&mut self) -> RequestSerials {
        let serials = self.immediate_serials();
        self.cmd_sn = self.cmd_sn.next();
        serials
    }

    pub(crate) fn immediate_serials(&self) -> RequestSerials {
        RequestSerials { cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// A command that has not been sent.
    pub(crate) fn command(
        &mut self,
        unit: u8,
        cdb: &[u8],
        direction: Direction,
        expected_len: u32,
        data: &[u8],
    ) -> ScsiCommand {
        ScsiCommand {
            delivery: Delivery::Ordered,
            direction,
            attribute: TaskAttribute::Simple,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            task_tag: self.tag(),
            expected_len,
            serials: self.serials(),
            cdb: Cdb::new(cdb).unwrap(),
            data_len: DataLen::of(data).unwrap(),
        }
    }

    /// Sends a command; its tag.
    pub(crate) fn start(
        &mut self,
        unit: u8,
        cdb: &[u8],
        direction: Direction,
        expected_len: u32,
        data: &[u8],
    ) -> u32 {
        let command = self.command(unit, cdb, direction, expected_len, data);
        let tag = command.task_tag;
        self.send(command, data);
        tag
    }

    /// Runs a command that ends with a SCSI Response: status, sense data, residual.
    pub(crate) fn status(
        &mut self,
        unit: u8,
        cdb: &[u8],
        direction: Direction,
        expected_len: u32,
        data: &[u8],
    ) -> (u8, Vec<u8>, Residual) {
        let tag = self.start(unit, cdb, direction, expected_len, data);
        self.hear_status(tag)
    }

    /// The SCSI Response of a command.
    pub(crate) fn hear_status(&mut self, tag: u32) -> (u8, Vec<u8>, Residual) {
        match self.hear() {
            (Response::ScsiResponse(pdu), data) => {
                assert_eq!(pdu.task_tag, tag);
                let sense = SenseSegment::parse(&data).unwrap().sense.to_vec();
                match pdu.outcome {
                    CommandOutcome::Completed { status, residual, .. } => (status, sense, residual),
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Runs a read: its data and its residual.
    pub(crate) fn read(&mut self, unit: u8, cdb: &[u8], expected_len: u32) -> (Vec<u8>, Residual) {
        let tag = self.start(unit, cdb, Direction::Read, expected_len, &[]);
        let (pdus, data, residual) = self.hear_data(tag);
        assert!(!pdus.is_empty());
        (data, residual)
    }

    /// All Data-In of a read, which must come in order.
    pub(crate) fn hear_data(&mut self, tag: u32) -> (Vec<DataIn>, Vec<u8>, Residual) {
        let (mut pdus, mut all) = (Vec::new(), Vec::new());
        loop {
            let (Response::DataIn(pdu), data) = self.hear() else { panic!("no Data-In") };
            assert_eq!(pdu.task_tag, tag);
            assert_eq!(usize::try_from(pdu.buffer_offset).unwrap(), all.len());
            assert_eq!(pdu.data_sn.value(), u32::try_from(pdus.len()).unwrap());
            all.extend(data);
            let end = pdu.end;
            pdus.push(pdu);
            if let DataInEnd::Status { status, residual } = end {
                assert_eq!(status, 0);
                return (pdus, all, residual);
            }
        }
    }

    pub(crate) fn hear_r2t(&mut self) -> ReadyToTransfer {
        match self.hear() {
            (Response::ReadyToTransfer(pdu), _) => pdu,
            other => panic!("{other:?}"),
        }
    }

    /// Sends Data-Out, as it is.
    pub(crate) fn data_out(
        &mut self,
        (task_tag, target_tag): (u32, Option<u32>),
        sn: u32,
        at: u32,
        data: &[u8],
        sequence: Sequence,
    ) {
        let pdu = DataOut {
            sequence,
            lun: [0; 8],
            task_tag,
            target_tag,
            exp_stat_sn: self.exp_stat_sn,
            data_sn: Serial::new(sn),
            buffer_offset: at,
            data_len: DataLen::of(data).unwrap(),
        };
        self.send(pdu, data);
    }

    /// Answers an R2T with bytes of `all`, in one PDU.
    pub(crate) fn answer_r2t(&mut self, r2t: &ReadyToTransfer, all: &[u8]) {
        let at = usize::try_from(r2t.buffer_offset).unwrap();
        let data = &all[at..at + usize::try_from(r2t.desired_len).unwrap()];
        let tags = (r2t.task_tag, Some(r2t.target_tag));
        self.data_out(tags, 0, r2t.buffer_offset, data, Sequence::Ends);
    }

    /// Bytes that have come and are no PDU.
    pub(crate) fn bytes_left(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.target.is_open(self.link)
    }
}

/// Key and codes of sense data in fixed format.
pub(crate) fn sense_of(sense: &[u8]) -> (u8, u8, u8) {
    (sense[2], sense[12], sense[13])
}

pub(crate) const READ: Direction = Direction::Read;
pub(crate) const WRITE: Direction = Direction::Write(block_iscsi::pdu::scsi::Unsolicited::None);
pub(crate) const WRITE_MORE: Direction =
    Direction::Write(block_iscsi::pdu::scsi::Unsolicited::Follows);

/// READ (10) or WRITE (10).
pub(crate) fn range(opcode: u8, lba: u32, blocks: u16) -> Vec<u8> {
    crate::kit::range10(opcode, 0, lba, blocks)
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}
