//! One logical unit: its commands, sent until they are done or cannot be.
//!
//! [`Unit::execute`] runs a command and sends it again where status and sense data say that this is
//! worth it: at once after a unit attention, later after BUSY, TASK SET FULL or "becoming ready".
//! Whoever listens hears of every unit attention *before* the command is sent again, of what happens to
//! the session, and of writes that are lost: all that comes from the nexus, whoever waits for a command. A
//! [`UnitGate`] decides each time whether a command that names blocks means what it says, in the session
//! that there is then: in no other one is it sent.
//!
//! A unit knows nothing of what its medium holds: an allocation map belongs to the driver, which has
//! to hear of every command that changes the medium.

mod ask;
mod error;
mod pace;
mod reserve;

use std::sync::{Arc, OnceLock};

use block_core::{Alignment, Error, IoBuf, IoVec};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::nexus::{Command, Completion, Data, Nexus, NexusEvent, TaskError};
use crate::pdu::fields::Residual;
use crate::pdu::reject::RejectReason;
use crate::scsi::cdb::{Caching, Cdb, CdbBytes, Replay};
use crate::scsi::luns::Lun;
use crate::scsi::sense::{Attention, Retry, Sense, SenseKey, Status};

use pace::Tries;

pub use error::UnitError;
pub use pace::{ConnectorSleep, Retries, Sleep};

/// Something that happened to a unit.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum UnitEvent {
    /// It says so itself.
    Attention(Attention),
    /// It was reset by this initiator.
    Reset,
    /// A new session stands in for a lost one.
    Reinstated,
    /// What an earlier command had written is lost, though that command had ended well.
    WriteLost,
}

/// Who wants to know. Must not block.
pub type UnitListener = Arc<dyn Fn(UnitEvent) + Send + Sync>;

/// Whether a command that names blocks may be sent: whatever happened to the unit, they are still the blocks
/// that were meant. `None`: at once. Commands that name none never wait for it, so it may send such.
pub type UnitGate = Arc<dyn Fn() -> Option<BoxFuture<'static, Result<(), Error>>> + Send + Sync>;

/// What a command that is done has moved.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Bytes that came.
    pub received: usize,
    /// By how much it differs from what was expected.
    pub residual: Residual,
}

/// A logical unit behind a nexus.
pub struct Unit {
    nexus: Arc<dyn Nexus>,
    lun: Lun,
    sleep: Arc<dyn Sleep>,
    retries: Retries,
    /// Guards the list; listeners run outside of it.
    listeners: Mutex<Vec<UnitListener>>,
    gate: OnceLock<UnitGate>,
}

impl Unit {
    /// The unit `lun` behind `nexus`, which waits by `sleep`.
    pub fn new(
        nexus: Arc<dyn Nexus>,
        lun: Lun,
        sleep: Arc<dyn Sleep>,
        retries: Retries,
    ) -> Arc<Self> {
        let listeners = Mutex::default();
        let gate = OnceLock::new();
        let unit = Arc::new(Self { nexus, lun, sleep, retries, listeners, gate });
        let weak = Arc::downgrade(&unit);
        unit.nexus.listen(Arc::new(move |event| {
            if let Some(unit) = weak.upgrade()
                && let Some(event) = unit.event_of(event)
            {
                unit.tell(event);
            }
        }));
        unit
    }

    /// Its number.
    pub fn lun(&self) -> Lun {
        self.lun
    }

    /// The way to it.
    pub fn nexus(&self) -> &Arc<dyn Nexus> {
        &self.nexus
    }

    /// Tells `listener` of every event from now on.
    pub fn listen(&self, listener: UnitListener) {
        self.listeners.lock().push(listener);
    }

    /// Has commands pass `gate` from now on, whenever they are sent. Only the first gate counts.
    pub fn set_gate(&self, gate: UnitGate) {
        let set = self.gate.set(gate);
        debug_assert!(set.is_ok(), "a second gate");
    }

    /// Waits until a command may be sent, and says for which session that is so.
    async fn pass_gate(&self, cdb: &Cdb) -> Result<Option<u64>, UnitError> {
        if !cdb.names_blocks() {
            return Ok(None);
        }
        // Before the gate: it knows of what was told until now.
        let session = self.nexus.session();
        if let Some(passed) = self.gate.get().and_then(|gate| gate()) {
            let opcode = cdb.opcode();
            passed.await.map_err(|error| UnitError::Gate { opcode, error })?;
        }
        Ok(Some(session))
    }

    fn tell(&self, event: UnitEvent) {
        let listeners = self.listeners.lock().clone();
        listeners.iter().for_each(|listener| listener(event));
    }

    /// What an event of the session is to this unit.
    fn event_of(&self, event: &NexusEvent) -> Option<UnitEvent> {
        match event {
            NexusEvent::Reinstated => Some(UnitEvent::Reinstated),
            NexusEvent::Reset { lun } => {
                lun.is_none_or(|lun| lun == self.lun).then_some(UnitEvent::Reset)
            }
            NexusEvent::Sense { lun, sense } if *lun == self.lun => match Sense::parse(sense) {
                Ok(sense) => event_of_sense(&sense),
                // Something happened, and nobody knows what.
                Err(_) => Some(UnitEvent::Attention(Attention::Other)),
            },
            NexusEvent::Sense { .. } => None,
        }
    }

    /// Runs a command until it is done, or trying again is not worth it or not allowed.
    pub async fn execute(&self, cdb: Cdb, data: Data) -> Result<Reply, UnitError> {
        let (bytes, replay) = (cdb.encode(), cdb.replay());
        let mut tries = Tries::new(self.retries);
        loop {
            let session = self.pass_gate(&cdb).await?;
            let completion = self.send(bytes, replay, data.clone(), session).await;
            let (error, retry) = match Self::judge(cdb.opcode(), replay, completion) {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            if !error.is_unsent() && !tries.again(retry, &*self.sleep).await {
                return Err(error);
            }
        }
    }

    /// Sends a command once, whatever it is, and gives what the target says. It is sent in the session that
    /// there is now, and in no other one.
    pub async fn pass_through(
        &self,
        cdb: CdbBytes,
        replay: Replay,
        data: Data,
    ) -> Result<Completion, TaskError> {
        let session = Some(self.nexus.session());
        self.send(cdb, replay, data, session).await
    }

    async fn send(
        &self,
        cdb: CdbBytes,
        replay: Replay,
        data: Data,
        session: Option<u64>,
    ) -> Result<Completion, TaskError> {
        self.nexus.execute(Command { lun: self.lun, cdb, data, replay, session }).await
    }

    /// Whether the command is done; if not, why, and when to send it again.
    fn judge(
        opcode: u8,
        replay: Replay,
        completion: Result<Completion, TaskError>,
    ) -> Result<Reply, (UnitError, Retry)> {
        let completion = match completion {
            Ok(completion) => completion,
            Err(error) => {
                let retry = retry_of_task(&error, replay);
                return Err((UnitError::Task { opcode, error }, retry));
            }
        };
        let Completion { status, sense, residual, received } = completion;
        let sense = match status {
            Status::CheckCondition => Sense::parse(&sense).ok(),
            _ => None,
        };
        let Some(retry) = status.retry(sense.as_ref()) else {
            return Ok(Reply { received, residual });
        };
        // After a unit attention nothing was done; a command that was aborted may have begun.
        let attention = sense.is_some_and(|sense| sense.key == SenseKey::UnitAttention);
        let retry = match retry {
            Retry::Now if replay == Replay::Unsafe && !attention => Retry::Never,
            retry => retry,
        };
        let error = match sense {
            Some(sense) => UnitError::Sense { opcode, sense },
            None => UnitError::Status { opcode, status },
        };
        Err((error, retry))
    }

    /// READ into `iov`: all of it, or an error.
    pub async fn read(
        &self,
        lba: u64,
        blocks: u32,
        iov: IoVec,
        caching: Caching,
    ) -> Result<(), UnitError> {
        let cdb = Cdb::read(lba, blocks, caching);
        let expected = iov.len();
        let reply = self.execute(cdb, Data::In(iov)).await?;
        moved_all(&cdb, expected, reply, reply.received)
    }

    /// WRITE of `iov`: all of it, or an error.
    pub async fn write(
        &self,
        lba: u64,
        blocks: u32,
        iov: IoVec,
        caching: Caching,
    ) -> Result<(), UnitError> {
        let cdb = Cdb::write(lba, blocks, caching);
        let expected = iov.len();
        let reply = self.execute(cdb, Data::Out(iov)).await?;
        moved_all(&cdb, expected, reply, expected)
    }

    /// COMPARE AND WRITE (SBC-3 5.2): `data` is what must be there, then what shall be there, each of
    /// `blocks` blocks. A miscompare is an error with the sense key of that name.
    pub async fn compare_and_write(
        &self,
        lba: u64,
        blocks: u8,
        data: IoVec,
        caching: Caching,
    ) -> Result<(), UnitError> {
        let cdb = Cdb::CompareAndWrite { lba, blocks, caching };
        let expected = data.len();
        let reply = self.execute(cdb, Data::Out(data)).await?;
        moved_all(&cdb, expected, reply, expected)
    }

    /// Sends `parameters` along with a command. Residuals are ignored: some targets have them without
    /// a reason.
    pub(crate) async fn execute_with(
        &self,
        cdb: Cdb,
        parameters: &[u8],
    ) -> Result<Reply, UnitError> {
        let buf = buffer(&cdb, parameters.len())?;
        buf.copy_from(0, parameters);
        self.execute(cdb, Data::Out(buf.into())).await
    }

    /// Resets the unit. Who listens hears of it by the session.
    pub async fn reset(&self) -> Result<(), TaskError> {
        self.nexus.reset(self.lun).await
    }
}

/// What sense data says of the unit, beside the command that it came with.
fn event_of_sense(sense: &Sense) -> Option<UnitEvent> {
    match sense.key {
        SenseKey::NoSense | SenseKey::RecoveredError if sense.deferred => None,
        _ if sense.deferred => Some(UnitEvent::WriteLost),
        _ => sense.attention().map(UnitEvent::Attention),
    }
}

/// When to send a command again that has no status.
fn retry_of_task(error: &TaskError, replay: Replay) -> Retry {
    match error {
        // It was not run.
        TaskError::Rejected {
            reason: RejectReason::TooManyImmediateCommands | RejectReason::LongOperation,
        } => Retry::After,
        // Only what may run again is handed back.
        TaskError::Reinstated { .. } => Retry::Now,
        TaskError::Aborted | TaskError::Rejected { reason: RejectReason::DataDigestError }
            if replay == Replay::Safe =>
        {
            Retry::Now
        }
        _ => Retry::Never,
    }
}

/// Refuses a command that moved less than all, or would have moved more.
fn moved_all(cdb: &Cdb, expected: usize, reply: Reply, moved: usize) -> Result<(), UnitError> {
    let Reply { received, residual } = reply;
    if residual != Residual::None || moved != expected {
        return Err(UnitError::Residual { opcode: cdb.opcode(), expected, received, residual });
    }
    Ok(())
}

/// Memory for the parameters of a command.
fn buffer(cdb: &Cdb, len: usize) -> Result<IoBuf, UnitError> {
    let too_long = || {
        let error = TaskError::TooLong { len };
        UnitError::Task { opcode: cdb.opcode(), error }
    };
    IoBuf::zeroed(len, Alignment::ONE).map_err(|_| too_long())
}
