//! A [`Nexus`] whose target is the test kit's device, and what a test can do to the commands on their way.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use block_core::range::{to_u64, to_usize};
use block_iscsi::nexus::{Command, Completion, Data, Nexus, NexusEvent, NexusListener, TaskError};
use block_iscsi::pdu::fields::Residual;
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_testkit::exec::Exec;
use block_testkit::iscsi::{self, Device, LunConfig};
use futures::channel::oneshot;
use parking_lot::{Mutex, MutexGuard};

use super::{LUN, SAME16, THEM, US, WRITE10, device};

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
    /// For the commands, which run whether or not anybody waits for them.
    this: Weak<Self>,
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
        Arc::new_cyclic(|this| Self {
            exec: exec.clone(),
            dawdles,
            this: Weak::clone(this),
            state: Mutex::new(state),
        })
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
            // Now and then one is late, and others pass it by.
            let most = if self.exec.random(4) == 0 { 60 } else { 4 };
            self.exec.sleep(Duration::from_micros(self.exec.random(most) * 100)).await;
        }
    }

    /// Runs a command that was sent after so many resets.
    async fn run_to_the_end(
        &self,
        command: Command,
        sent: Sent,
        resets: u64,
    ) -> Result<Completion, TaskError> {
        self.pass(Point::Before, &sent).await;
        if self.state().resets != resets {
            return Err(TaskError::Aborted);
        }
        let answer = self.run(&sent);
        self.pass(Point::After, &sent).await;
        let (completion, data) = answer?;
        if completion.status == Status::CheckCondition {
            let (lun, sense) = (command.lun, completion.sense.clone());
            self.tell(&NexusEvent::Sense { lun, sense });
        }
        if let Data::In(iov) = &command.data {
            iov.copy_from(0, &data[..data.len().min(iov.len())]);
        }
        Ok(completion)
    }

    /// Runs a command on the device, or whatever was injected.
    fn run(&self, sent: &Sent) -> Result<(Completion, Vec<u8>), TaskError> {
        let mut state = self.state();
        let State { device, injections, .. } = &mut *state;
        let at = injections.iter().position(|injection| (injection.matches)(sent));
        let status =
            |status, sense| Completion { status, sense, residual: Residual::None, received: 0 };
        if let Some(at) = at {
            injections[at].times -= 1;
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
        let this = self.this.upgrade().unwrap();
        let run = async move { this.run_to_the_end(command, sent, resets).await };
        self.exec.spawn("command", run).await
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

    fn session(&self) -> u64 {
        0
    }

    fn depth(&self) -> usize {
        32
    }

    async fn close(&self) {
        self.state().closed = true;
    }
}
