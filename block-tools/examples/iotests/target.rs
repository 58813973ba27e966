//! The iSCSI target in memory of one run, and the connections to it: no socket, no other thread.
//!
//! What the initiator sends is handled by the target within the same call, and waits there until it is
//! received.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use block_core::options::parse_size;
use block_core::range::to_usize;
use block_iscsi::transport::tcp::TcpConnector;
use block_iscsi::transport::{Alarm, Connector, Portal, ReceiveSlot, Stream, TransmitPart};
use block_testkit::iscsi::target::{Link, Target, TargetConfig};
use block_testkit::iscsi::{Access, Device, LunConfig, Nexus, Provisioning, SenseFormat, Unmapped};
use parking_lot::Mutex;

/// The name of the target.
const NAME: &str = "iqn.2026-01.test:iotests";

/// The URL of its unit.
pub(crate) const URL: &str = "iscsi://127.0.0.1:3260/iqn.2026-01.test:iotests/0";

/// The target of a run.
pub(crate) struct Local {
    state: Mutex<State>,
    clock: TcpConnector,
    /// Length of a block.
    block: u64,
}

struct State {
    target: Target,
    /// What was taken from the target and not received yet.
    arriving: BTreeMap<Link, Vec<u8>>,
    waiting: BTreeMap<Link, Waker>,
}

/// What the unit of a protocol is like.
fn unit(protocol: &str, len: u64) -> LunConfig {
    let thin = |block_size: u32, unmapped, granularity| {
        let provisioning = Provisioning::Thin { unmapped, granularity, alignment: 0 };
        let blocks = len.div_ceil(u64::from(block_size));
        LunConfig { provisioning, ..LunConfig::thick(block_size, blocks) }
    };
    match protocol {
        "iscsi-thick" => LunConfig::thick(512, len.div_ceil(512)),
        "iscsi-junk" => thin(512, Unmapped::Junk, 16),
        "iscsi-4k" => thin(4096, Unmapped::Zeroes, 2),
        _ => thin(512, Unmapped::Zeroes, 16),
    }
}

impl Local {
    /// A target with one unit of `len` bytes, rounded up to blocks.
    pub(crate) fn new(protocol: &str, len: u64) -> Result<Arc<Self>, String> {
        let mut device = Device::new(SenseFormat::Fixed);
        let unit = unit(protocol, len);
        let block = u64::from(unit.block_size);
        device.add(0, unit).map_err(|error| error.to_string())?;
        let target = Target::new(TargetConfig::new(NAME), device);
        let (arriving, waiting) = (BTreeMap::new(), BTreeMap::new());
        let state = Mutex::new(State { target, arriving, waiting });
        Ok(Arc::new(Self { state, clock: TcpConnector::new(), block }))
    }

    /// Does something to the target, and sends what comes of it.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Target) -> T) -> T {
        let mut state = self.state.lock();
        let result = act(&mut state.target);
        for link in state.target.take_cut() {
            state.target.disconnect(link);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
        result
    }
}

/// The words of [`Local::happen`].
const USAGE: &str = "target reset | resize SIZE | eject | insert | read-only | read-write | cut | \
    write PATTERN OFFSET LENGTH | unmap OFFSET LENGTH | \
    hold get-lba-status|read|write|unmap | release";

/// The commands that can be held back.
const HELD: &[(&str, u8)] =
    &[("get-lba-status", 0x9e), ("write", 0x2a), ("read", 0x28), ("unmap", 0x42)];

/// Who changes the unit behind the initiator's back.
const OTHER: Nexus = Nexus(u64::MAX);

impl Local {
    /// Lets something happen to the unit, as words say it.
    pub(crate) fn happen(&self, words: &[&str]) -> Result<(), &'static str> {
        let size = |text: &str| parse_size(text).ok_or(USAGE);
        let block = self.block;
        self.with(|target| {
            let device = target.device_mut();
            let well = match words {
                ["reset"] => device.reset(0),
                ["resize", len] => device.resize(0, size(len)? / block).is_ok(),
                ["eject"] => device.eject(0),
                ["insert"] => device.insert(0),
                ["read-only"] => device.set_access(0, Access::ReadOnly),
                ["read-write"] => device.set_access(0, Access::ReadWrite),
                ["cut"] => {
                    for link in target.links() {
                        target.disconnect(link);
                    }
                    true
                }
                ["write", pattern, offset, len] => {
                    let pattern = u8::try_from(size(pattern)?).map_err(|_| USAGE)?;
                    let (offset, len) = (size(offset)?, size(len)?);
                    let mut well = true;
                    let mut done = 0;
                    while done < len {
                        let piece = (len - done).min(PIECE);
                        let data = vec![pattern; to_usize(piece)];
                        let cdb = cdb_16(WRITE_16, (offset + done) / block, piece / block);
                        well &= other(device, &cdb.ok_or(USAGE)?, &data);
                        done += piece;
                    }
                    well
                }
                ["unmap", offset, len] => {
                    let (first, count) = (size(offset)? / block, size(len)? / block);
                    let count = u32::try_from(count).map_err(|_| USAGE)?;
                    // One descriptor, behind a header with its length.
                    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                    list.extend(first.to_be_bytes());
                    list.extend(count.to_be_bytes());
                    list.extend([0; 4]);
                    other(device, &[UNMAP, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list)
                }
                ["hold", name] => {
                    let (_, code) = HELD.iter().find(|held| held.0 == *name).ok_or(USAGE)?;
                    target.hold(*code);
                    true
                }
                ["release"] => {
                    target.release();
                    true
                }
                _ => return Err(USAGE),
            };
            if well { Ok(()) } else { Err("target: the unit refuses it") }
        })
    }
}

/// Bytes that a unit takes with one command.
const PIECE: u64 = 8 << 20;

const WRITE_16: u8 = 0x8a;
const UNMAP: u8 = 0x42;

/// A command with an address of eight bytes and a length of four.
fn cdb_16(code: u8, lba: u64, count: u64) -> Option<[u8; 16]> {
    let mut cdb = [0; 16];
    cdb[0] = code;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&u32::try_from(count).ok()?.to_be_bytes());
    Some(cdb)
}

/// Runs a command of another initiator, past what it is told first.
fn other(device: &mut Device, cdb: &[u8], data: &[u8]) -> bool {
    device.connect(OTHER);
    // Of attentions that wait for it, each takes one command.
    let attentions = 4;
    (0..attentions).any(|_| device.execute(OTHER, 0, cdb, data).status == 0)
}

/// Connects to a target in this process.
pub(crate) struct LocalConnector(pub(crate) Arc<Local>);

#[async_trait]
impl Connector for LocalConnector {
    async fn connect(&self, _: &Portal) -> io::Result<Box<dyn Stream>> {
        let link = self.0.state.lock().target.connect();
        Ok(Box::new(LocalStream { link, local: Arc::clone(&self.0) }))
    }

    fn now(&self) -> Duration {
        self.0.clock.now()
    }

    fn alarm(&self) -> Box<dyn Alarm> {
        self.0.clock.alarm()
    }
}

/// One connection.
struct LocalStream {
    link: Link,
    local: Arc<Local>,
}

impl Drop for LocalStream {
    fn drop(&mut self) {
        let mut state = self.local.state.lock();
        state.target.disconnect(self.link);
        state.arriving.remove(&self.link);
        state.waiting.remove(&self.link);
    }
}

impl Stream for LocalStream {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        slot: &mut ReceiveSlot<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.local.state.lock();
        let State { target, arriving, waiting } = &mut *state;
        let bytes = arriving.entry(self.link).or_default();
        if bytes.is_empty() {
            target.transmit(self.link, bytes);
        }
        if bytes.is_empty() {
            if !target.is_open(self.link) {
                return Poll::Ready(Ok(0));
            }
            waiting.insert(self.link, cx.waker().clone());
            return Poll::Pending;
        }
        let direct = bytes.len().min(slot.direct.len());
        slot.direct.copy_from(0, &bytes[..direct]);
        let staged = (bytes.len() - direct).min(slot.staging.len());
        slot.staging[..staged].copy_from_slice(&bytes[direct..direct + staged]);
        bytes.drain(..direct + staged);
        Poll::Ready(Ok(direct + staged))
    }

    fn poll_transmit(
        &mut self,
        _: &mut Context<'_>,
        parts: &[TransmitPart<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut sent = Vec::new();
        for part in parts {
            match part {
                TransmitPart::Bytes(bytes) => sent.extend_from_slice(bytes),
                TransmitPart::Buf(buf) => sent.extend(buf.to_vec()),
            }
        }
        if !self.local.state.lock().target.is_open(self.link) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let link = self.link;
        self.local.with(|target| target.handle_bytes(link, &sent));
        Poll::Ready(Ok(sent.len()))
    }
}

/// Bytes that a unit needs for an image of `len` bytes of a format.
pub(crate) fn unit_len(driver: &str, len: u64) -> u64 {
    // Metadata and snapshots of a format have room beside the disk.
    const ROOM: u64 = 32 << 20;
    if driver == "raw" { len } else { len.saturating_mul(2).saturating_add(ROOM) }
}
