//! Sessions over a stream in memory, on a clock that the test moves: whoever waits for an alarm waits for ever.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::{Alignment, ByteRange, Error, IoBuf};
use block_iscsi::driver::{IscsiDriver, UnitOptions};
use block_iscsi::initiator::Initiator;
use block_iscsi::keys::Offer;
use block_iscsi::login::{Authentication, SessionTarget};
use block_iscsi::nexus::{Command, Nexus, TaskError};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::session::{Patience, SessionConfig, VIOLATIONS_MAX};
use block_iscsi::transport::{Alarm, Connector, Portal, ReceiveSlot, Stream, TransmitPart};
use block_iscsi::unit::{ConnectorSleep, Retries};
use block_iscsi::url::Host;
use block_testkit::iscsi::LunConfig;
use block_testkit::iscsi::target::{Link, Target};
use parking_lot::Mutex;

use crate::kit::{BLOCK, NAME, target, write, write_command};

/// A target in memory, what it has been sent, and the clock.
#[derive(Clone)]
struct Memory {
    target: Arc<Mutex<Target>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Bytes that were sent.
    sent: usize,
    /// No command can be sent.
    full: bool,
    /// What comes next, in place of what the target says; whether there is room to send from then on.
    forged: Option<(Vec<u8>, bool)>,
    /// The connection that is there is lost.
    cut: bool,
    now: Duration,
}

struct MemoryStream {
    memory: Memory,
    link: Link,
    received: Vec<u8>,
}

impl Stream for MemoryStream {
    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        slot: &mut ReceiveSlot<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.memory.state.lock();
        if std::mem::take(&mut state.cut) {
            self.memory.target.lock().disconnect(self.link);
            return Poll::Ready(Ok(0));
        }
        match state.forged.take() {
            Some((bytes, room)) => {
                self.received = bytes;
                (state.full, state.sent) = (!room, 0);
            }
            None => self.memory.target.lock().transmit(self.link, &mut self.received),
        }
        if self.received.is_empty() {
            return Poll::Pending;
        }
        let direct = slot.direct.len().min(self.received.len());
        slot.direct.copy_from(0, &self.received[..direct]);
        let staged = slot.staging.len().min(self.received.len() - direct);
        slot.staging[..staged].copy_from_slice(&self.received[direct..direct + staged]);
        self.received.drain(..direct + staged);
        Poll::Ready(Ok(direct + staged))
    }

    fn poll_transmit(
        &mut self,
        _: &mut Context<'_>,
        parts: &[TransmitPart<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| match part {
                TransmitPart::Bytes(bytes) => bytes.to_vec(),
                TransmitPart::Buf(buf) => buf.to_vec(),
            })
            .collect();
        let mut state = self.memory.state.lock();
        if state.full && bytes[0] & 0x3f == SCSI_COMMAND {
            return Poll::Pending;
        }
        state.sent += bytes.len();
        self.memory.target.lock().handle_bytes(self.link, &bytes);
        Poll::Ready(Ok(bytes.len()))
    }
}

const SCSI_COMMAND: u8 = 0x01;

struct Never;

impl Alarm for Never {
    fn poll_until(&mut self, _: &mut Context<'_>, _: Duration) -> Poll<()> {
        Poll::Pending
    }
}

#[async_trait]
impl Connector for Memory {
    async fn connect(&self, _: &Portal) -> io::Result<Box<dyn Stream>> {
        let link = self.target.lock().connect();
        Ok(Box::new(MemoryStream { memory: self.clone(), link, received: Vec::new() }))
    }

    fn now(&self) -> Duration {
        self.state.lock().now
    }

    fn alarm(&self) -> Box<dyn Alarm> {
        Box::new(Never)
    }
}

fn memory(target: Target) -> Memory {
    Memory { target: Arc::new(Mutex::new(target)), state: Arc::default() }
}

fn config() -> SessionConfig {
    SessionConfig {
        portal: Portal { host: Host::Name("one.example".to_owned()), port: 3260 },
        initiator: "iqn.2026-01.org.example:host".to_owned(),
        initiator_alias: None,
        target: SessionTarget::Normal(NAME.to_owned()),
        authentication: Authentication::None,
        offer: Offer { initial_r2t: false, ..Offer::default() },
        isid: [0x80, 0, 0, 0, 0, 1],
        depth: 64,
        patience: Patience::default(),
    }
}

/// Polls both until the pump sleeps; what came of `future`.
fn until_idle<T>(pump: &mut (impl Future + Unpin), future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    futures::executor::block_on(poll_fn(|cx| {
        for _ in 0..1000 {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let woken = Arc::new(Woken::default());
            let waker = futures::task::waker(Arc::clone(&woken));
            let ended = pin!(&mut *pump).poll(&mut Context::from_waker(&waker)).is_ready();
            if ended || !woken.0.load(Ordering::SeqCst) {
                break;
            }
        }
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        })
    }))
}

#[derive(Default)]
struct Woken(AtomicBool);

impl futures::task::ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.0.store(true, Ordering::SeqCst);
    }
}

/// Many data segments that are short are many pieces and few bytes.
#[test]
fn short_data_segments_are_sent_without_a_pause() {
    let mut target = target();
    target.config().limits.max_recv_data_segment_len = 512;
    let memory = memory(target);
    let (initiator, mut pump) = Initiator::new(config(), Arc::new(memory.clone())).unwrap();
    assert_eq!(until_idle(&mut pump, initiator.opened()), Some(Ok(())));
    let bytes = vec![7; 512 * BLOCK];
    // The unit attention of a new session is over with the first write.
    for _ in 0..2 {
        assert_eq!(until_idle(&mut pump, write(&initiator, 0, &bytes)), Some(Ok(())));
    }
}

/// The owners of commands that have ended may do what they like with their buffers.
#[test]
fn nothing_is_sent_of_commands_that_the_sessions_end_has_ended() {
    let memory = memory(target());
    let (initiator, mut pump) = Initiator::new(config(), Arc::new(memory.clone())).unwrap();
    assert_eq!(until_idle(&mut pump, initiator.opened()), Some(Ok(())));
    assert_eq!(until_idle(&mut pump, write(&initiator, 0, &[7; BLOCK])), Some(Ok(())));
    memory.state.lock().full = true;
    // An opcode that there is not.
    let no_pdu = vec![0x3e; 48];
    let buf = IoBuf::zeroed(16 * BLOCK, Alignment::PAGE).unwrap();
    let (cdb, data) = write_command(0, buf);
    let lun = Lun::from_number(0).unwrap();
    let mut run = initiator.execute(Command {
        lun,
        cdb: cdb.encode(),
        data,
        replay: cdb.replay(),
        session: None,
    });
    assert_eq!(until_idle(&mut pump, &mut run), None);
    for _ in 1..VIOLATIONS_MAX {
        memory.state.lock().forged = Some((no_pdu.clone(), false));
        assert_eq!(until_idle(&mut pump, &mut run), None);
        // It comes back, and has the command to send again.
        memory.state.lock().now += Duration::from_secs(1);
        assert_eq!(until_idle(&mut pump, &mut run), None);
    }
    memory.state.lock().forged = Some((no_pdu, true));
    assert_eq!(until_idle(&mut pump, &mut run), Some(Err(TaskError::Ended)));
    assert_eq!(until_idle(&mut pump, std::future::pending::<()>()), None);
    assert_eq!(memory.state.lock().sent, 0);
}

const UNMAP: u8 = 0x42;

/// How often UNMAP has reached the device.
fn unmaps(memory: &Memory) -> usize {
    let target = memory.target.lock();
    target.journal().iter().filter(|entry| entry.cdb[0] == UNMAP).count()
}

/// A unit that comes back as another one: what was under way, and what follows it, names other blocks than it meant.
#[test]
fn nothing_is_unmapped_in_a_new_session_before_the_unit_has_told_its_shape() {
    let memory = memory(target());
    let connector: Arc<dyn Connector> = Arc::new(memory.clone());
    let (initiator, mut pump) = Initiator::new(config(), Arc::clone(&connector)).unwrap();
    assert_eq!(until_idle(&mut pump, initiator.opened()), Some(Ok(())));
    let options = UnitOptions {
        lun: Lun::from_number(0).unwrap(),
        flags: OpenFlags::READ_WRITE,
        filename: "disk".to_owned(),
        retries: Retries::default(),
    };
    let sleep = Arc::new(ConnectorSleep::new(connector));
    let open = IscsiDriver::open(Arc::new(initiator), sleep, options);
    let driver = until_idle(&mut pump, open).unwrap().unwrap();
    memory.target.lock().keep_journal();
    memory.target.lock().hold(UNMAP);
    let discard = |at: u64| {
        let range = ByteRange::new(at << 20, 1 << 20).unwrap();
        Arc::clone(&driver).pdiscard(range)
    };
    let mut both = futures::future::join(discard(1), discard(3));
    assert_eq!(until_idle(&mut pump, &mut both), None);
    assert_eq!(memory.target.lock().held(), 2);
    assert_eq!(unmaps(&memory), 2);
    {
        let mut target = memory.target.lock();
        target.device_mut().remove(0);
        target.device_mut().add(0, LunConfig::thin(4096, 1 << 14)).unwrap();
    }
    memory.state.lock().cut = true;
    assert_eq!(until_idle(&mut pump, &mut both), Some((Err(Error::IO), Err(Error::IO))));
    assert_eq!(until_idle(&mut pump, discard(5)), Some(Err(Error::IO)));
    assert_eq!(unmaps(&memory), 2);
}
