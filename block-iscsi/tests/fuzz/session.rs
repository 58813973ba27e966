//! A session before a target that misbehaves, and the test kit's target before an initiator that does.

use std::time::Duration;

use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::nexus::TaskError;
use block_iscsi::pdu::bhs::Opcode;
use block_iscsi::pdu::digest::Part;
use block_iscsi::pdu::fields::Residual;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::scsi::sense::Status;
use block_iscsi::session::{Session, SessionConfig};
use block_testkit::fuzz::{Bytes, Target, noise};
use block_testkit::iscsi::pair::{Initiator, Network, Pair, Wish};
use block_testkit::iscsi::script::{Fault, On, Script};

use super::side::{
    HOUR, Net, buffer, config, finish, met_attention, read, scsi, submit, target, up, write,
};

pub const SESSION: Target =
    Target { name: "iscsi-session", body: session, seeds: || noise(24, 60, 5), max_len: 120 };
pub const TARGET: Target =
    Target { name: "iscsi-target", body: target_of_any_bytes, seeds: sayings, max_len: 2048 };

const READ: u8 = 0x28;
const WRITE: u8 = 0x2a;

/// Small segments, so that reads have four PDUs.
fn offer(flags: u8) -> Offer {
    let kind = |on: bool| vec![if on { DigestKind::Crc32c } else { DigestKind::None }];
    Offer {
        max_recv_data_segment_len: 512,
        initial_r2t: flags & 1 == 0,
        immediate_data: flags & 2 != 0,
        max_burst_len: 1024,
        first_burst_len: 512,
        max_outstanding_r2t: 1 + u16::from(flags >> 6),
        header_digest: kind(flags & 4 != 0),
        data_digest: kind(flags & 8 != 0),
        ..Offer::default()
    }
}

fn fault(bytes: &mut Bytes<'_>) -> Fault {
    let kind = bytes.byte();
    let number = u32::from_le_bytes(bytes.array());
    let small = usize::from(number.to_le_bytes()[0]);
    match kind % 24 {
        0 => Fault::StatSn(number),
        1 => Fault::Window { exp: number & 0xff, max: number >> 8 },
        2 => Fault::DataSn(number),
        3 => Fault::BufferOffset(number),
        4 => Fault::Count(number),
        5 => Fault::TaskTag(number),
        6 => Fault::Length(number & 0xff_ffff),
        7 => Fault::ShortData(small),
        8 => Fault::Data(bytes.take(small).to_vec()),
        9 => Fault::Twice,
        10 => Fault::MoreR2ts(number % 8),
        11 => Fault::Late(number % 8),
        12 => Fault::Swallow,
        13 => Fault::Silence,
        14 => Fault::Digest(if number & 1 == 0 { Part::Header } else { Part::Data }),
        15 => Fault::Garbage(bytes.take(small).to_vec()),
        16 => Fault::Cut(small),
        17 => Fault::Reject(RejectReason::ALL[small % RejectReason::ALL.len()]),
        _ => Fault::Header { at: small % 48, bits: number.to_le_bytes()[1].max(1) },
    }
}

fn script(bytes: &mut Bytes<'_>) -> Script {
    let mut script = Script::new();
    for _ in 0..6 {
        if bytes.is_empty() {
            break;
        }
        let (on, nth) = (bytes.byte(), bytes.byte());
        let on = match on % 8 {
            0 => On::Answer(READ),
            1 => On::Answer(WRITE),
            2 => On::Pdu(Opcode::ReadyToTransfer),
            3 => On::Pdu(Opcode::DataIn),
            4 => On::Pdu(Opcode::ScsiResponse),
            5 => On::Pdu(Opcode::LoginResponse),
            _ => On::Any,
        };
        script = script.with(on, 1 + u64::from(nth % 12), fault(bytes));
    }
    script
}

/// Whatever the target says of commands, nothing is written outside of their buffers, and what ends well with all
/// its data under a digest has read what there is.
fn session(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let (flags, writes) = (bytes.byte(), bytes.byte());
    let mut pair = up(SessionConfig { offer: offer(flags), ..config() }, target(|_| {}), 1);
    let data: Vec<u8> = (0..2048).map(|at| u8::try_from(at % 249).unwrap()).collect();
    loop {
        let (cdb, out) = write(8, &data);
        let id = submit(&mut pair, cdb, out);
        if !met_attention(&finish(&mut pair, id).unwrap()) {
            break;
        }
    }
    let script = script(bytes);
    let protects = flags & 12 == 12 && is_seen_by_digests(&script);
    pair.target.set_script(script);
    for number in 0..3 {
        if !one(&mut pair, writes >> number & 1 != 0, &data, protects) {
            return;
        }
    }
}

/// Whether nothing of it changes data and then makes the digest fit. Scripts are applied before digests are made.
fn is_seen_by_digests(script: &Script) -> bool {
    !format!("{script:?}").contains("Data(")
}

/// One command; whether the session goes on.
fn one(pair: &mut Net, is_write: bool, data: &[u8], protects: bool) -> bool {
    let guarded = buffer(4096);
    let (cdb, moved) = if is_write { write(8, data) } else { read(8, &guarded.slice(1024, 2048)) };
    let now = pair.now();
    let command = block_iscsi::nexus::Command {
        lun: block_iscsi::scsi::luns::Lun::from_number(0).unwrap(),
        cdb: cdb.encode(),
        data: moved,
        replay: cdb.replay(),
        session: None,
    };
    let Ok(id) = pair.initiator.session.submit(command, now) else { return false };
    let mut result = None;
    pair.run_until(HOUR / 60, |pair| {
        result = result.take().or_else(|| pair.initiator.session.take(id));
        result.is_some()
    });
    if result.is_none() {
        let now = pair.now();
        pair.initiator.session.abort(id, now);
        result = Some(Err(TaskError::Aborted));
    }
    let bytes = guarded.to_vec();
    let outside = bytes[..1024].iter().chain(&bytes[3072..]);
    assert!(outside.into_iter().all(|byte| *byte == 0), "written outside of the buffer");
    let Ok(completion) = scsi(result.unwrap()) else { return true };
    assert!(completion.received <= 2048);
    let whole = completion.status == Status::Good
        && completion.received == 2048
        && completion.residual == Residual::None;
    if whole && !is_write && protects {
        assert!(bytes[1024..3072] == *data, "a read that ended well is wrong");
    }
    true
}

/// What one initiator has said, as bytes.
fn sayings() -> Vec<Vec<u8>> {
    let mut seeds = noise(2, 200, 7);
    for flags in [0, 3, 12] {
        let session =
            Session::new(SessionConfig { offer: offer(flags), ..config() }, Duration::ZERO);
        let heard = Ear { side: super::side::Side::new(session.unwrap()), said: Vec::new() };
        let mut pair = Pair::new(heard, target(|_| {}), Network::calm(), 1);
        pair.run_until(HOUR, |pair| pair.initiator.side.session.negotiated().is_some());
        let (cdb, data) = write(8, &[7; 1024]);
        let command = block_iscsi::nexus::Command {
            lun: block_iscsi::scsi::luns::Lun::from_number(0).unwrap(),
            cdb: cdb.encode(),
            data,
            replay: cdb.replay(),
            session: None,
        };
        let now = pair.now();
        let id = pair.initiator.side.session.submit(command, now).unwrap();
        pair.run_until(HOUR, |pair| pair.initiator.side.session.take(id).is_some());
        let mut said = vec![0xff];
        said.extend(&pair.initiator.said);
        said.truncate(2048);
        seeds.push(said);
    }
    seeds
}

/// A side that notes what it sends.
struct Ear {
    side: super::side::Side,
    said: Vec<u8>,
}

impl Initiator for Ear {
    fn wish(&mut self, now: Duration) -> Wish {
        self.side.wish(now)
    }

    fn connected(&mut self, random: [u8; 32], now: Duration) {
        self.side.connected(random, now);
    }

    fn disconnected(&mut self, now: Duration) {
        self.side.disconnected(now);
    }

    fn receive(&mut self, bytes: &[u8], now: Duration) {
        self.side.receive(bytes, now);
    }

    fn transmit(&mut self, bytes: &mut Vec<u8>, now: Duration) {
        let before = bytes.len();
        self.side.transmit(bytes, now);
        self.said.extend_from_slice(&bytes[before..]);
    }

    fn poll_timeout(&self) -> Option<Duration> {
        self.side.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Duration) {
        self.side.handle_timeout(now);
    }
}

/// The test kit's target answers or refuses any bytes, and what a connection holds has a bound. The first byte says
/// in pieces of which length they come.
fn target_of_any_bytes(input: &[u8]) {
    let Some((piece, rest)) = input.split_first() else { return };
    let mut target = target(|_| {});
    let link = target.connect();
    let mut out = Vec::new();
    for part in rest.chunks(usize::from(*piece).max(1) * 8) {
        target.handle_bytes(link, part);
        target.transmit(link, &mut out);
        assert!(out.len() < 16 << 20, "{} bytes for {}", out.len(), input.len());
        if !target.is_open(link) {
            break;
        }
    }
    target.disconnect(link);
}
