//! A session as the initiator of a pair, and targets for it.

use std::time::Duration;

use block_core::range::Alignment;
use block_core::{IoBuf, IoVec};
use block_iscsi::chap::Nonce;
use block_iscsi::keys::Offer;
use block_iscsi::login::{Authentication, SessionTarget};
use block_iscsi::nexus::{Command, Completion, Data, TaskError};
use block_iscsi::scsi::cdb::{Caching, Cdb};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::session::{
    Answer, ConnectionError, Link, Patience, Session, SessionConfig, SessionEvent, TaskId, Wanted,
};
use block_iscsi::transport::{Portal, TransmitPart};
use block_iscsi::url::Host;
use block_testkit::iscsi::pair::{Initiator, Network, Pair, Wish};
use block_testkit::iscsi::target::{Target, TargetConfig};
use block_testkit::iscsi::{Device, LunConfig, SenseFormat};

pub(crate) const NAME: &str = "iqn.2026-01.org.example:disk";
pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 1 << 16;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn config() -> SessionConfig {
    SessionConfig {
        portal: Portal { host: Host::Name("one.example".into()), port: 3260 },
        initiator: "iqn.2026-01.org.example:host".into(),
        initiator_alias: None,
        target: SessionTarget::Normal(NAME.into()),
        authentication: Authentication::None,
        offer: Offer { initial_r2t: false, max_outstanding_r2t: 8, ..Offer::default() },
        isid: [0x80, 1, 2, 3, 4, 5],
        depth: 64,
        patience: Patience::default(),
    }
}

/// A target with a thin unit 0.
pub(crate) fn target(change: impl FnOnce(&mut TargetConfig)) -> Target {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(0, LunConfig::thin(512, BLOCKS)).unwrap();
    let mut config = TargetConfig::new(NAME);
    change(&mut config);
    Target::new(config, device)
}

/// The bytes of a session, moved.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) session: Session,
    link: Option<Link>,
}

impl Side {
    /// Without a connection.
    pub(crate) fn new(session: Session) -> Self {
        Self { session, link: None }
    }
}

impl Initiator for Side {
    fn wish(&mut self, now: Duration) -> Wish {
        let wish = match self.session.wanted(now) {
            Wanted::Connection(_) => Wish::Connection,
            Wanted::Stream => return Wish::Stream,
            Wanted::Nothing => Wish::Nothing,
            // What is left may still be sent.
            Wanted::End => return Wish::End,
        };
        self.link = None;
        wish
    }

    fn connected(&mut self, random: [u8; 32], now: Duration) {
        let nonce = Nonce { identifier: random[0], challenge: random };
        self.link = Some(self.session.handle_connected(nonce, now));
    }

    fn disconnected(&mut self, now: Duration) {
        self.link = None;
        self.session.handle_disconnected(ConnectionError::Closed, now);
    }

    fn receive(&mut self, mut bytes: &[u8], now: Duration) {
        while !bytes.is_empty() {
            let Some(link) = &mut self.link else { return };
            let slot = link.inbound.slot();
            let direct = slot.direct.len().min(bytes.len());
            slot.direct.copy_from(0, &bytes[..direct]);
            let rest = &bytes[direct..];
            let full = direct == slot.direct.len();
            let staged = if full { slot.staging.len().min(rest.len()) } else { 0 };
            slot.staging[..staged].copy_from_slice(&rest[..staged]);
            assert!(direct + staged > 0, "a slot is never empty");
            bytes = &bytes[direct + staged..];
            self.session.handle_received(link, direct + staged, now);
            if self.session.wanted(now) != Wanted::Stream {
                // It has given the connection up: nobody receives what is left.
                return;
            }
        }
    }

    fn transmit(&mut self, bytes: &mut Vec<u8>, now: Duration) {
        let Some(link) = &mut self.link else { return };
        loop {
            self.session.fill(&mut link.outbound, now);
            if link.outbound.is_empty() {
                return;
            }
            let before = bytes.len();
            for part in link.outbound.parts() {
                match part {
                    TransmitPart::Bytes(part) => bytes.extend_from_slice(part),
                    TransmitPart::Buf(part) => bytes.extend(part.to_vec()),
                }
            }
            link.outbound.handle_transmitted(bytes.len() - before);
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        self.session.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Duration) {
        self.session.handle_timeout(now);
    }
}

pub(crate) type Net = Pair<Side>;

/// A session that is there, over a calm network.
pub(crate) fn up(config: SessionConfig, target: Target, seed: u64) -> Net {
    let session = Session::new(config, Duration::ZERO).unwrap();
    let mut pair = Pair::new(Side::new(session), target, Network::calm(), seed);
    let is_up = |pair: &mut Net| pair.initiator.session.negotiated().is_some();
    assert!(pair.run_until(HOUR, is_up), "{:?}", events(&mut pair));
    assert_eq!(events(&mut pair), [SessionEvent::Up]);
    pair
}

pub(crate) fn events(pair: &mut Net) -> Vec<SessionEvent> {
    std::iter::from_fn(|| pair.initiator.session.poll_event()).collect()
}

pub(crate) fn submit(pair: &mut Net, cdb: Cdb, data: Data) -> TaskId {
    let command = Command {
        lun: Lun::from_number(0).unwrap(),
        cdb: cdb.encode(),
        data,
        replay: cdb.replay(),
        session: None,
    };
    let now = pair.now();
    pair.initiator.session.submit(command, now).unwrap()
}

/// Waits for a task.
pub(crate) fn finish(pair: &mut Net, id: TaskId) -> Result<Completion, TaskError> {
    let mut result = None;
    let done = |pair: &mut Net| {
        result = result.take().or_else(|| pair.initiator.session.take(id));
        result.is_some()
    };
    assert!(pair.run_until(HOUR, done), "a task does not end");
    scsi(result.unwrap())
}

pub(crate) fn scsi(result: Result<Answer, TaskError>) -> Result<Completion, TaskError> {
    result.map(|answer| match answer {
        Answer::Scsi(completion) => completion,
        other => panic!("{other:?}"),
    })
}

pub(crate) fn buffer(len: usize) -> IoBuf {
    IoBuf::zeroed(len, Alignment::ONE).unwrap()
}

pub(crate) fn filled(bytes: &[u8]) -> IoBuf {
    let buf = buffer(bytes.len());
    buf.copy_from(0, bytes);
    buf
}

pub(crate) fn read(lba: u64, to: &IoBuf) -> (Cdb, Data) {
    let blocks = u32::try_from(to.len() / BLOCK).unwrap();
    (Cdb::read(lba, blocks, Caching::DEFAULT), Data::In(IoVec::from(to.clone())))
}

pub(crate) fn write(lba: u64, bytes: &[u8]) -> (Cdb, Data) {
    let blocks = u32::try_from(bytes.len() / BLOCK).unwrap();
    (Cdb::write(lba, blocks, Caching::DEFAULT), Data::Out(IoVec::from(filled(bytes))))
}

/// Whether a command met a unit attention, and has not run.
pub(crate) fn met_attention(completion: &Completion) -> bool {
    completion.sense.get(2).is_some_and(|key| key & 0x0f == 6)
}
