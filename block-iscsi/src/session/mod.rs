//! A session with a target, without I/O and without a clock (RFC 7143, section 4).
//!
//! The caller moves bytes and tells the time; time is what has passed since any fixed moment.
//!
//! 1. [`Session::wanted`] says whether a connection is wanted. After [`Session::handle_connected`]
//!    the caller has a [`Link`]: it receives into [`Inbound::slot`] and reports with
//!    [`Session::handle_received`]; it asks [`Session::fill`] for what to send, sends
//!    [`Outbound::parts`], and reports with [`Outbound::handle_transmitted`]. A connection that fails
//!    is reported with [`Session::handle_disconnected`].
//! 2. [`Session::poll_timeout`] says when [`Session::handle_timeout`] is due.
//! 3. [`Session::submit`] and its like take tasks; [`Session::poll_event`] says what happened, and
//!    [`Session::take`] gives the result of a task that is done.
//!
//! At error recovery level 0 a lost connection is a lost session. Another one is made, which ends what
//! the target had of the old one (section 6.3.5, session reinstatement), and tasks that may run twice
//! are sent again, in the order in which they were sent before. Tasks that must not
//! ([`Replay::Unsafe`](crate::scsi::cdb::Replay)) fail with [`TaskError::Unknown`] if they had been
//! handed to the connection. Commands that are meant for one session wait for the next one, too, and are
//! handed back then, sent or not ([`TaskError::Reinstated`]). What a target does not take any more because
//! it waits for a logout was not sent.
//!
//! Invariants: commands go out in the order of CmdSN and within the target's window; a PDU of the
//! target is believed only after all its fields were checked against the task that it names, and
//! nothing is written outside of that task's buffers; of one who breaks the protocol the connection is
//! given up, and after [`VIOLATIONS_MAX`] times without a task that ended in between, the session.
//! Memory is that of the tasks, the longest PDU, and what [`Outbound`] holds.
//!
//! One connection is used. What belongs to it is in one place (`Up`), so that there could be several.

mod config;
mod error;
mod inbound;
mod lifecycle;
mod outbound;
mod receive;
mod send;
mod task;
mod timeout;

use std::collections::VecDeque;
use std::time::Duration;

pub use config::{Patience, SessionConfig};
pub use error::{Awaited, ConnectionError, SessionError, Violation};
pub use inbound::Inbound;
pub use outbound::{Outbound, Parts};
pub use task::{Answer, TASKS_MAX, TaskId};

use crate::keys::text::encode;
use crate::keys::{Negotiated, Pair};
use crate::login::LoginError;
use crate::nexus::{Command, NexusEvent, TaskError};
use crate::scsi::luns::Lun;
use crate::transport::Portal;
use lifecycle::{Attempt, State};
use send::DataJob;
use task::{Kind, Tasks, TextTask};

/// How many connections in a row may end with a breach of the protocol.
pub const VIOLATIONS_MAX: u32 = 3;

/// Most bytes of text that an answer to a text request may have.
pub const ANSWER_LEN_MAX: usize = 1 << 20;

/// What the session wants of whoever moves its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// A connection to this portal. If it takes too long the session changes its mind.
    Connection(Portal),
    /// The connection that is there, with its bytes moved.
    Stream,
    /// No connection until the next timeout; one that is there is to be closed.
    Nothing,
    /// No connection ever again; one that is there is to be closed, with nothing more sent over it.
    End,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// The session is there, for the first time or again.
    Up,
    /// The connection was lost, or an attempt to come back failed. The session will try again.
    Down(SessionError),
    /// A task is done; [`Session::take`] has its result.
    Done(TaskId),
    /// For listeners. It happened before what the next events tell of.
    Nexus(NexusEvent),
    /// The session has ended for good.
    Ended(SessionError),
}

/// The two halves of a connection, for who moves its bytes.
#[derive(Debug)]
pub struct Link {
    /// The receiving half.
    pub inbound: Inbound,
    /// The sending half.
    pub outbound: Outbound,
}

/// A session. See the module.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    attempt: Attempt,
    tasks: Tasks,
    /// Commands and texts that wait to be sent, the next one first. May name tasks that have ended.
    queue: VecDeque<TaskId>,
    events: VecDeque<SessionEvent>,
    /// No task's patience ends before that; `None` if none's ends.
    sweep: Option<Duration>,
    /// It is to end once nothing is open.
    closing: bool,
    /// How many sessions have stood in for a lost one.
    number: u64,
}

/// A connection in the full feature phase.
#[derive(Debug)]
struct Up {
    negotiated: Negotiated,
    window: crate::serial::CommandWindow,
    /// The number of the next command.
    cmd_sn: crate::serial::Serial,
    /// The status that is expected next.
    exp_stat_sn: crate::serial::Serial,
    /// Data that the target asked for, or takes unasked.
    jobs: VecDeque<DataJob>,
    /// PDUs out of order, encoded but for their numbers.
    urgent: VecDeque<send::Urgent>,
    /// Resets that may be under way: those that have ended are dropped when somebody looks.
    resets: Vec<TaskId>,
    /// Commands and texts that the target did not take any more, with the numbers that they had. They wait
    /// for the next connection.
    put_off: Vec<(crate::serial::Serial, TaskId)>,
    /// When it began.
    since: Duration,
    /// When the last byte came.
    heard: Duration,
    /// When the target was asked for a sign.
    pinged: Option<Duration>,
    leaving: Option<Leaving>,
}

/// A logout, from the wish on.
#[derive(Copy, Clone, Debug)]
struct Leaving {
    /// What is under way is waited for until then.
    patience: Duration,
    /// It was sent, and its answer is waited for until then.
    sent: Option<Duration>,
}

impl Session {
    /// A session that wants its first connection. Names and offers that cannot be sent are refused.
    pub fn new(config: SessionConfig, now: Duration) -> Result<Self, LoginError> {
        let attempt = Attempt::first(&config, now);
        let session = Self {
            state: State::Connecting { until: now + config.patience.connect },
            config,
            attempt,
            tasks: Tasks::default(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            sweep: None,
            closing: false,
            number: 0,
        };
        session.check_config()?;
        Ok(session)
    }

    /// Hands over a SCSI command. One that is meant for a session before this one ends at once.
    pub fn submit(&mut self, command: Command, now: Duration) -> Result<TaskId, TaskError> {
        if u32::try_from(command.data.len()).is_err() {
            return Err(TaskError::TooLong { len: command.data.len() });
        }
        let too_late = command.session.is_some_and(|session| session != self.number);
        let id = self.enqueue(Kind::Scsi(command), now)?;
        if too_late {
            self.finish(id, Err(TaskError::Reinstated { sent: false }));
        }
        Ok(id)
    }

    /// Hands over the reset of a unit.
    pub fn submit_reset(&mut self, lun: Lun, now: Duration) -> Result<TaskId, TaskError> {
        let id = self.add(Kind::Reset(lun), now)?;
        self.start_resets();
        Ok(id)
    }

    /// Hands over a text, of at most 8 KiB.
    pub fn submit_text(&mut self, pairs: &[Pair], now: Duration) -> Result<TaskId, TaskError> {
        let text = encode(pairs);
        if text.len() > crate::keys::text::TEXT_LEN_MAX {
            return Err(TaskError::TooLong { len: text.len() });
        }
        self.enqueue(Kind::Text(TextTask::new(text)), now)
    }

    /// The result of a task that is done, once. Its [`TaskId`] means nothing after that.
    pub fn take(&mut self, id: TaskId) -> Option<Result<Answer, TaskError>> {
        self.tasks.take(id)
    }

    /// Says that nobody will take the task's result. It runs to its end.
    pub fn abandon(&mut self, id: TaskId) {
        self.tasks.abandon(id);
    }

    /// Ends a task before its time. It is done, as aborted or as it happened to end, once the target
    /// no longer has it.
    pub fn abort(&mut self, id: TaskId, now: Duration) {
        self.abort_task(id, TaskError::Aborted, now);
    }

    /// Takes no more tasks, and ends the session once those that are there have ended.
    pub fn close(&mut self, now: Duration) {
        if !self.closing {
            self.closing = true;
            self.check_leaving(now);
        }
    }

    /// The next of the things that happened.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Most commands that the target takes at the same time.
    pub fn depth(&self) -> usize {
        let State::Up(up) = &self.state else { return 1 };
        let window = up.window.max().plus(1).steps_from(up.window.exp()).unwrap_or(0);
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        window.min(self.config.depth).max(1)
    }

    /// What the two sides have agreed on, while the session is there.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        match &self.state {
            State::Up(up) => Some(&up.negotiated),
            _ => None,
        }
    }

    fn add(&mut self, kind: Kind, now: Duration) -> Result<TaskId, TaskError> {
        if self.closing || matches!(self.state, State::Ended) {
            return Err(TaskError::Ended);
        }
        let Patience { command, reset, .. } = self.config.patience;
        let patience = match kind {
            Kind::Reset(_) => Some(command.map_or(reset, |command| command.min(reset))),
            _ => command,
        };
        let deadline = patience.map(|patience| now + patience);
        let id = self.tasks.add(kind, deadline).ok_or(TaskError::TooMany { limit: TASKS_MAX })?;
        self.note_deadline(deadline);
        Ok(id)
    }

    fn enqueue(&mut self, kind: Kind, now: Duration) -> Result<TaskId, TaskError> {
        let id = self.add(kind, now)?;
        self.queue.push_back(id);
        Ok(id)
    }

    /// Ends a task and says so to whoever wants to know.
    fn finish(&mut self, id: TaskId, result: Result<Answer, TaskError>) {
        if self.tasks.finish(id, result) {
            self.events.push_back(SessionEvent::Done(id));
        }
    }
}
