//! What the driver's tests share: a [`MemoryNexus`], which runs commands on the test kit's device without
//! any network, and helpers to open a unit behind it.
//!
//! Every command may be held before the device runs it or before its answer is told, and may end in
//! another way than the device says. Answers may take random times.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use block_core::node::NodeOptions;
use block_core::options::OpenFlags;
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node, OpenError, RequestFlags};
use block_iscsi::driver::{IscsiDriver, UnitOptions};
use block_iscsi::nexus::{Command, Completion, Data, Nexus, NexusEvent, NexusListener, TaskError};
use block_iscsi::pdu::fields::Residual;
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_iscsi::unit::{Retries, Sleep};
use block_testkit::exec::Exec;
use block_testkit::iscsi::{self, Device, LunConfig, Provisioning, SenseFormat, Unmapped};
use futures::channel::oneshot;
use parking_lot::{Mutex, MutexGuard};

/// The unit that tests open.
pub const LUN: u16 = 0;
/// Who the driver is to the device, and who somebody else is.
pub const US: iscsi::Nexus = iscsi::Nexus(1);
pub const THEM: iscsi::Nexus = iscsi::Nexus(2);

pub const READ10: u8 = 0x28;
pub const WRITE10: u8 = 0x2a;
pub const SYNC10: u8 = 0x35;
pub const SAME10: u8 = 0x41;
pub const UNMAP: u8 = 0x42;
pub const SAME16: u8 = 0x93;
pub const READ16: u8 = 0x88;

/// A command as the target sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    pub cdb: Vec<u8>,
    pub data: Vec<u8>,
    pub expected: usize,
}

impl Sent {
    pub fn opcode(&self) -> u8 {
        self.cdb[0]
    }

    pub fn is_lba_status(&self) -> bool {
        self.opcode() == 0x9e && self.cdb[1] & 0x1f == 0x12
    }

    pub fn is_capacity(&self) -> bool {
        self.opcode() == 0x9e && self.cdb[1] & 0x1f == 0x10
    }

    /// First block, of commands that have it in byte 2.
    pub fn lba(&self) -> u64 {
        match self.opcode() >> 5 {
            1 | 2 => u32::from_be_bytes(self.cdb[2..6].try_into().unwrap()).into(),
            _ => u64::from_be_bytes(self.cdb[2..10].try_into().unwrap()),
        }
    }

    /// How many blocks.
    pub fn blocks(&self) -> u64 {
        match self.opcode() >> 5 {
            1 | 2 => u16::from_be_bytes(self.cdb[7..9].try_into().unwrap()).into(),
            _ => u32::from_be_bytes(self.cdb[10..14].try_into().unwrap()).into(),
        }
    }
}

/// Where a command is held.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Point {
    /// Before the device runs it.
    Before,
    /// After that, before its answer is told.
    After,
}

type Matches = Box<dyn Fn(&Sent) -> bool + Send>;

struct Rule {
    point: Point,
    matches: Matches,
    arrived: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

/// A command that is held, or will be.
pub struct Held {
    arrived: oneshot::Receiver<()>,
    release: oneshot::Sender<()>,
}

impl Held {
    /// Waits until the command is there.
    pub async fn arrived(&mut self) {
        (&mut self.arrived).await.expect("the command is held");
    }

    pub fn release(self) {
        self.release.send(()).expect("the command is held");
    }
}

type Forge = Box<dyn Fn(&mut Completion, &mut Vec<u8>) + Send>;

/// How a command ends in another way than the device says.
pub enum Ending {
    /// With this status; the device does not see it.
    Status(Status, Vec<u8>),
    /// With this error; the device does not see it.
    Task(TaskError),
    /// With this error, after the device has run it.
    Lost(TaskError),
    /// With what becomes of the device's answer.
    Forged(Forge),
}

struct Injection {
    matches: Matches,
    times: u32,
    ending: Ending,
}

struct State {
    device: Device,
    listeners: Vec<NexusListener>,
    log: Vec<Sent>,
    rules: Vec<Rule>,
    injections: Vec<Injection>,
    /// Counts resets: what was sent before one and did not run ends as aborted.
    resets: u64,
    closed: bool,
}

/// See the module.
pub struct MemoryNexus {
    exec: Exec,
    /// Whether answers take random times.
    dawdles: bool,
    state: Mutex<State>,
}

impl MemoryNexus {
    pub fn new(exec: &Exec, config: LunConfig) -> Arc<Self> {
        Self::with_device(exec, device(config), false)
    }

    pub fn dawdling(exec: &Exec, config: LunConfig) -> Arc<Self> {
        Self::with_device(exec, device(config), true)
    }

    pub fn with_device(exec: &Exec, device: Device, dawdles: bool) -> Arc<Self> {
        let state = State {
            device,
            listeners: Vec::new(),
            log: Vec::new(),
            rules: Vec::new(),
            injections: Vec::new(),
            resets: 0,
            closed: false,
        };
        Arc::new(Self { exec: exec.clone(), dawdles, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Does something to the device.
    pub fn device<T>(&self, act: impl FnOnce(&mut Device) -> T) -> T {
        act(&mut self.state().device)
    }

    /// Holds the next command of which `matches` is true.
    pub fn hold(&self, point: Point, matches: impl Fn(&Sent) -> bool + Send + 'static) -> Held {
        let (arrived_tx, arrived) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let rule = Rule { point, matches: Box::new(matches), arrived: arrived_tx, released };
        self.state().rules.push(rule);
        Held { arrived, release }
    }

    /// The next `times` commands of which `matches` is true end so.
    pub fn inject(
        &self,
        times: u32,
        ending: Ending,
        matches: impl Fn(&Sent) -> bool + Send + 'static,
    ) {
        let injection = Injection { matches: Box::new(matches), times, ending };
        self.state().injections.push(injection);
    }

    /// Whether everything that was injected has been met.
    pub fn has_met_all(&self) -> bool {
        self.state().injections.is_empty()
    }

    /// The commands since the last call.
    pub fn take_log(&self) -> Vec<Sent> {
        std::mem::take(&mut self.state().log)
    }

    /// How many commands of this operation code were sent since the last [`MemoryNexus::take_log`].
    pub fn count(&self, opcode: u8) -> usize {
        self.state().log.iter().filter(|sent| sent.opcode() == opcode).count()
    }

    pub fn lba_statuses(&self) -> usize {
        self.state().log.iter().filter(|sent| sent.is_lba_status()).count()
    }

    pub fn tell(&self, event: &NexusEvent) {
        let listeners = self.state().listeners.clone();
        listeners.iter().for_each(|listener| listener(event));
    }

    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Somebody else's command.
    pub fn theirs(&self, cdb: &[u8], data: &[u8]) -> iscsi::Answer {
        let mut state = self.state();
        // Whatever they must be told first.
        for _ in 0..8 {
            state.device.execute(THEM, LUN, &[0; 6], &[]);
        }
        state.device.execute(THEM, LUN, cdb, data)
    }

    /// Somebody else writes whole blocks.
    pub fn they_write(&self, block_size: u64, offset: u64, bytes: &[u8]) {
        let lba = u32::try_from(offset / block_size).unwrap().to_be_bytes();
        let count = u16::try_from(to_u64(bytes.len()) / block_size).unwrap().to_be_bytes();
        let mut cdb = vec![WRITE10, 0];
        cdb.extend(lba);
        cdb.push(0);
        cdb.extend(count);
        cdb.push(0);
        assert_eq!(self.theirs(&cdb, bytes).status, 0);
    }

    /// Somebody else maps whole blocks, which hold zeroes then.
    pub fn they_map(&self, block_size: u64, offset: u64, len: u64) {
        let mut cdb = vec![SAME16, 0];
        cdb.extend((offset / block_size).to_be_bytes());
        cdb.extend(u32::try_from(len / block_size).unwrap().to_be_bytes());
        cdb.extend([0, 0]);
        assert_eq!(self.theirs(&cdb, &vec![0; to_usize(block_size)]).status, 0);
    }

    fn find_rule(&self, point: Point, sent: &Sent) -> Option<Rule> {
        let mut state = self.state();
        let found = |rule: &Rule| rule.point == point && (rule.matches)(sent);
        let at = state.rules.iter().position(found)?;
        Some(state.rules.remove(at))
    }

    async fn pass(&self, point: Point, sent: &Sent) {
        if let Some(rule) = self.find_rule(point, sent) {
            rule.arrived.send(()).ok();
            rule.released.await.ok();
        }
        if self.dawdles {
            self.exec.sleep(Duration::from_micros(self.exec.random(5) * 100)).await;
        }
    }

    /// Runs a command on the device, or whatever was injected.
    fn run(&self, sent: &Sent) -> Result<(Completion, Vec<u8>), TaskError> {
        let mut state = self.state();
        let State { device, injections, .. } = &mut *state;
        let at = injections.iter().position(|injection| (injection.matches)(sent));
        let status =
            |status, sense| Completion { status, sense, residual: Residual::None, received: 0 };
        let injection = at.map(|at| {
            injections[at].times -= 1;
            at
        });
        if let Some(at) = injection {
            let spent = injections[at].times == 0;
            let result = match &injections[at].ending {
                Ending::Status(code, sense) => Some(Ok((status(*code, sense.clone()), Vec::new()))),
                Ending::Task(error) => Some(Err(error.clone())),
                Ending::Lost(error) => {
                    device.execute(US, LUN, &sent.cdb, &sent.data);
                    Some(Err(error.clone()))
                }
                Ending::Forged(forge) => {
                    let (mut completion, mut data) = run_on(device, sent);
                    forge(&mut completion, &mut data);
                    completion.received = data.len().min(sent.expected);
                    Some(Ok((completion, data)))
                }
            };
            if spent {
                injections.remove(at);
            }
            if let Some(result) = result {
                return result;
            }
        }
        Ok(run_on(device, sent))
    }
}

fn run_on(device: &mut Device, sent: &Sent) -> (Completion, Vec<u8>) {
    let answer = device.execute(US, LUN, &sent.cdb, &sent.data);
    let cut = |len: u64| u32::try_from(len).unwrap();
    let residual = match answer.residual(to_u64(sent.expected)) {
        iscsi::Residual::None => Residual::None,
        iscsi::Residual::Underflow(len) => Residual::Underflow(cut(len)),
        iscsi::Residual::Overflow(len) => Residual::Overflow(cut(len)),
    };
    let status = Status::from_code(answer.status).unwrap();
    let received = answer.data_in.len().min(sent.expected);
    (Completion { status, sense: answer.sense, residual, received }, answer.data_in)
}

#[async_trait]
impl Nexus for MemoryNexus {
    async fn execute(&self, command: Command) -> Result<Completion, TaskError> {
        let data = match &command.data {
            Data::Out(iov) => iov.to_vec(),
            _ => Vec::new(),
        };
        let cdb = command.cdb.as_slice().to_vec();
        let sent = Sent { cdb, data, expected: command.data.len() };
        let resets = {
            let mut state = self.state();
            assert!(!state.closed, "a command after the end: {sent:?}");
            state.log.push(sent.clone());
            state.resets
        };
        self.pass(Point::Before, &sent).await;
        if self.state().resets != resets {
            return Err(TaskError::Aborted);
        }
        let answer = self.run(&sent);
        self.pass(Point::After, &sent).await;
        let (completion, data) = answer?;
        if let Data::In(iov) = &command.data {
            iov.copy_from(0, &data[..data.len().min(iov.len())]);
        }
        Ok(completion)
    }

    async fn reset(&self, lun: Lun) -> Result<(), TaskError> {
        {
            let mut state = self.state();
            state.resets += 1;
            state.device.reset(LUN);
        }
        self.tell(&NexusEvent::Reset { lun: Some(lun) });
        Ok(())
    }

    fn listen(&self, listener: NexusListener) {
        self.state().listeners.push(listener);
    }

    fn depth(&self) -> usize {
        32
    }

    async fn close(&self) {
        self.state().closed = true;
    }
}

/// The executor's virtual clock.
pub struct VirtualSleep(pub Exec);

#[async_trait]
impl Sleep for VirtualSleep {
    fn now(&self) -> Duration {
        self.0.now()
    }

    async fn sleep(&self, span: Duration) {
        self.0.sleep(span).await;
    }
}

/// A device with one unit, to which both initiators are connected.
pub fn device(config: LunConfig) -> Device {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(LUN, config).expect("a unit");
    device.connect(US);
    device.connect(THEM);
    device
}

/// A thin unit that reads zeroes, with granules of `granularity` blocks from block `alignment` on.
pub fn thin(block_size: u32, blocks: u64, granularity: u32, alignment: u32) -> LunConfig {
    let unmapped = Unmapped::Zeroes;
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    LunConfig { provisioning, ..LunConfig::thin(block_size, blocks) }
}

/// 1 GiB in blocks of 512 bytes, with granules of 64 KiB.
pub fn gib() -> LunConfig {
    thin(512, 2 << 20, 128, 0)
}

pub const CACHED: OpenFlags = OpenFlags::READ_WRITE;
pub const DIRECT: OpenFlags = OpenFlags { direct: true, ..CACHED };

pub fn options(flags: OpenFlags) -> UnitOptions {
    UnitOptions {
        lun: Lun::from_number(LUN).unwrap(),
        flags,
        filename: "iscsi://host/iqn.2026-01.org.example:disk/0".to_owned(),
        retries: Retries::default(),
    }
}

pub async fn try_open(
    exec: &Exec,
    nexus: &Arc<MemoryNexus>,
    flags: OpenFlags,
) -> Result<Arc<IscsiDriver>, OpenError> {
    let sleep = Arc::new(VirtualSleep(exec.clone()));
    IscsiDriver::open(Arc::clone(nexus) as Arc<dyn Nexus>, sleep, options(flags)).await
}

pub fn node_of(driver: &Arc<IscsiDriver>) -> Node {
    let options = NodeOptions { unmap: true, ..NodeOptions::default() };
    Node::new(Arc::clone(driver) as Arc<_>, options)
}

/// A unit that is open, and the ways to it.
#[derive(Clone)]
pub struct World {
    pub exec: Exec,
    pub nexus: Arc<MemoryNexus>,
    pub driver: Arc<IscsiDriver>,
    pub node: Node,
}

impl World {
    pub async fn open(exec: Exec, config: LunConfig, flags: OpenFlags) -> Self {
        let nexus = MemoryNexus::new(&exec, config);
        Self::around(exec, nexus, flags).await
    }

    pub async fn around(exec: Exec, nexus: Arc<MemoryNexus>, flags: OpenFlags) -> Self {
        let driver = try_open(&exec, &nexus, flags).await.unwrap_or_else(|e| panic!("open: {e}"));
        let node = node_of(&driver);
        nexus.take_log();
        Self { exec, nexus, driver, node }
    }

    pub async fn try_read(&self, offset: u64, len: u64) -> Result<Vec<u8>, block_core::Error> {
        let buf = memory(len);
        self.node.read(range(offset, len), buf.clone().into()).await?;
        Ok(buf.to_vec())
    }

    pub async fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        self.try_read(offset, len).await.unwrap_or_else(|error| panic!("read {offset}: {error}"))
    }

    pub async fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), block_core::Error> {
        let buf = memory(to_u64(bytes.len()));
        buf.copy_from(0, bytes);
        let at = range(offset, to_u64(bytes.len()));
        self.node.write(at, buf.into(), RequestFlags::empty()).await
    }

    pub async fn write(&self, offset: u64, bytes: &[u8]) {
        let written = self.try_write(offset, bytes).await;
        written.unwrap_or_else(|error| panic!("write {offset}: {error}"));
    }

    pub async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) {
        let zeroed = self.node.write_zeroes(range(offset, len), flags).await;
        zeroed.unwrap_or_else(|error| panic!("zero {offset}: {error}"));
    }

    pub async fn discard(&self, offset: u64, len: u64) {
        let discarded = self.node.discard(range(offset, len)).await;
        discarded.unwrap_or_else(|error| panic!("discard {offset}: {error}"));
    }

    /// Whether a read sends nothing to the target.
    pub async fn reads_free_zeroes(&self, offset: u64, len: u64) -> bool {
        self.nexus.take_log();
        let zeroes = self.read(offset, len).await.iter().all(|byte| *byte == 0);
        zeroes && self.nexus.take_log().is_empty()
    }

    /// What is sent for the answers that `count` block statuses of everything give, and the answers as
    /// lengths with whether they are zeroes.
    pub async fn map(&self) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        let mut rest = ByteRange::up_to(self.node.len());
        while !rest.is_empty() {
            let detail = block_core::request::status::StatusDetail::Zeroes;
            let status = self.node.block_status(rest, detail).await.unwrap();
            assert!(status.is_allocated() && status.len > 0);
            found.push((status.len, status.is_zero()));
            rest = rest.split_at(status.len).1;
        }
        found
    }
}

/// Plays `test` on a unit like `config`.
pub fn on<T, F>(
    config: LunConfig,
    flags: OpenFlags,
    test: impl FnOnce(World) -> F + Send + 'static,
) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    Exec::run(7, |exec| async move { test(World::open(exec, config, flags).await).await })
}

pub fn memory(len: u64) -> IoBuf {
    IoBuf::zeroed(to_usize(len), Alignment::PAGE).unwrap()
}

pub fn iov_of(bytes: &[u8]) -> IoVec {
    let buf = memory(to_u64(bytes.len()));
    buf.copy_from(0, bytes);
    buf.into()
}

pub fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

/// Fixed format sense data.
pub fn sense(key: u8, asc: u8, ascq: u8) -> Vec<u8> {
    let mut bytes = vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq];
    bytes.resize(18, 0);
    bytes
}

/// A command that the target refuses with this sense data.
pub fn refuses(key: u8, asc: u8, ascq: u8) -> Ending {
    Ending::Status(Status::CheckCondition, sense(key, asc, ascq))
}

/// The data of a GET LBA STATUS of these descriptors: first block, blocks, state.
pub fn lba_status(descriptors: &[(u64, u32, u8)]) -> Vec<u8> {
    let mut bytes = u32::try_from(descriptors.len() * 16 + 4).unwrap().to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    for (lba, blocks, state) in descriptors {
        bytes.extend(lba.to_be_bytes());
        bytes.extend(blocks.to_be_bytes());
        bytes.extend([*state, 0, 0, 0]);
    }
    bytes
}

/// GET LBA STATUS tells this.
pub fn tells(descriptors: &'static [(u64, u32, u8)]) -> Ending {
    Ending::Forged(Box::new(|_, data| *data = lba_status(descriptors)))
}
