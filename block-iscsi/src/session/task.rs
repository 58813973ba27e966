//! What was asked of a session and is not finished: a table of tasks, and their tags.
//!
//! Invariants: a tag names at most one task; a tag is not used again before 2^11 other tasks have had
//! its place; a place is free, or holds a task until its owner has taken the result.

use std::time::Duration;

use block_core::IoVec;

use super::ANSWER_LEN_MAX;
use crate::keys::Pair;
use crate::keys::text::TextBuffer;
use crate::nexus::{Command, Completion, TaskError};
use crate::scsi::luns::Lun;
use crate::serial::Serial;

/// Most tasks at a time.
pub const TASKS_MAX: usize = 1 << PLACE_BITS;

const PLACE_BITS: u32 = 20;
/// So that no tag is the one that means "none".
const TURN_MASK: u32 = (1 << 11) - 1;

/// Names a task of a session; also its Initiator Task Tag.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct TaskId(u32);

impl TaskId {
    /// Its place in the table: less than the number of tasks that were ever there at the same time.
    pub fn index(self) -> usize {
        usize::try_from(self.0 & ((1 << PLACE_BITS) - 1)).unwrap_or(usize::MAX)
    }

    pub(super) fn tag(self) -> u32 {
        self.0
    }

    pub(super) fn from_tag(tag: u32) -> Self {
        Self(tag)
    }
}

/// What came of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Of a SCSI command.
    Scsi(Completion),
    /// The unit was reset.
    Reset,
    /// The pairs of the target's text.
    Text(Vec<Pair>),
}

/// What a task is.
#[derive(Debug)]
pub(super) enum Kind {
    Scsi(Command),
    Reset(Lun),
    Text(TextTask),
    /// Aborts a task, which then fails so; nobody asked for it from outside.
    Abort(TaskId, TaskError),
}

/// A text request, and what has come of its answer.
#[derive(Debug)]
pub(super) struct TextTask {
    pub(super) text: Vec<u8>,
    pub(super) received: TextBuffer,
    /// The target has more to say, to a request that names this.
    pub(super) rest: Option<TextRest>,
    pub(super) exchanges: u32,
}

/// What a text request names that fetches more of an answer.
#[derive(Copy, Clone, Debug)]
pub(super) struct TextRest {
    pub(super) target_tag: u32,
    pub(super) lun: [u8; 8],
}

impl TextTask {
    pub(super) fn new(text: Vec<u8>) -> Self {
        let received = TextBuffer::new(ANSWER_LEN_MAX);
        Self { text, received, rest: None, exchanges: 0 }
    }

    /// It is sent from its beginning, over another connection.
    pub(super) fn start_anew(&mut self) {
        *self = Self::new(std::mem::take(&mut self.text));
    }
}

/// Where a task stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// It waits to be sent.
    Waiting,
    /// It was sent on the connection that is there.
    Active(Active),
    /// It has ended; `None` once the result is taken, by nobody if it was abandoned.
    Done(Result<Answer, TaskError>),
}

/// A task that the target has.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Active {
    /// Its place in the order of commands.
    pub(super) cmd_sn: Serial,
    /// How many bytes have come.
    pub(super) received: usize,
    /// DataSN of the next Data-In.
    pub(super) data_sn: Serial,
    /// R2TSN of the next R2T.
    pub(super) r2t_sn: Serial,
    /// How much of the data is sent or asked for.
    pub(super) asked: usize,
    /// R2Ts that are not answered in full.
    pub(super) open_r2ts: u16,
    /// Whether an abort is under way.
    pub(super) aborting: bool,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    pub(super) deadline: Option<Duration>,
    /// How many connections were lost while the target had it.
    pub(super) losses: u32,
    /// Its owner no longer wants to know.
    pub(super) abandoned: bool,
}

impl Task {
    pub(super) fn active(&mut self) -> Option<&mut Active> {
        match &mut self.stage {
            Stage::Active(active) => Some(active),
            Stage::Waiting | Stage::Done(_) => None,
        }
    }

    /// The data that the task sends.
    pub(super) fn data_out(&self) -> Option<&IoVec> {
        match &self.kind {
            Kind::Scsi(Command { data: crate::nexus::Data::Out(iov), .. }) => Some(iov),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Place {
    turn: u32,
    task: Option<Task>,
}

/// The tasks of a session.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Tasks that are not done.
    open: usize,
    active: usize,
}

impl Tasks {
    /// Tasks that are not done.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Tasks that the target has.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn add(&mut self, kind: Kind, deadline: Option<Duration>) -> Option<TaskId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < TASKS_MAX => {
                self.places.push(Place::default());
                u32::try_from(self.places.len() - 1).ok()?
            }
            None => return None,
        };
        let place = self.places.get_mut(usize::try_from(index).ok()?)?;
        place.task =
            Some(Task { kind, stage: Stage::Waiting, deadline, losses: 0, abandoned: false });
        self.open += 1;
        Some(TaskId((place.turn & TURN_MASK) << PLACE_BITS | index))
    }

    pub(super) fn get(&mut self, id: TaskId) -> Option<&mut Task> {
        let place = self.places.get_mut(id.index())?;
        if (place.turn & TURN_MASK) << PLACE_BITS != id.0 & !((1 << PLACE_BITS) - 1) {
            return None;
        }
        place.task.as_mut()
    }

    /// The task, if the target has it.
    pub(super) fn active_task(&mut self, id: TaskId) -> Option<&mut Task> {
        self.get(id).filter(|task| matches!(task.stage, Stage::Active(_)))
    }

    pub(super) fn activate(&mut self, id: TaskId, active: Active) {
        if let Some(task) = self.get(id)
            && matches!(task.stage, Stage::Waiting)
        {
            task.stage = Stage::Active(active);
            self.active += 1;
        }
    }

    /// Back to those that wait to be sent.
    pub(super) fn deactivate(&mut self, id: TaskId) {
        if let Some(task) = self.active_task(id) {
            task.stage = Stage::Waiting;
            self.active -= 1;
        }
    }

    /// Ends a task. Says whether somebody wants to know; the place of a task that nobody does is free.
    pub(super) fn finish(&mut self, id: TaskId, result: Result<Answer, TaskError>) -> bool {
        let Some(task) = self.get(id) else { return false };
        let was_active = match task.stage {
            Stage::Waiting => false,
            Stage::Active(_) => true,
            Stage::Done(_) => return false,
        };
        task.stage = Stage::Done(result);
        // The buffers belong to their owner again.
        if let Kind::Scsi(command) = &mut task.kind {
            command.data = crate::nexus::Data::None;
        }
        let wanted = !task.abandoned && !matches!(task.kind, Kind::Abort(..));
        self.active -= usize::from(was_active);
        self.open -= 1;
        if !wanted {
            self.release(id);
        }
        wanted
    }

    /// Takes the result of a task that is done.
    pub(super) fn take(&mut self, id: TaskId) -> Option<Result<Answer, TaskError>> {
        let task = self.get(id)?;
        match std::mem::replace(&mut task.stage, Stage::Waiting) {
            Stage::Done(result) => {
                self.release(id);
                Some(result)
            }
            other => {
                task.stage = other;
                None
            }
        }
    }

    /// Its owner no longer wants to know how the task ends.
    pub(super) fn abandon(&mut self, id: TaskId) {
        if self.take(id).is_none()
            && let Some(task) = self.get(id)
        {
            task.abandoned = true;
        }
    }

    fn release(&mut self, id: TaskId) {
        if let Some(place) = self.places.get_mut(id.index()) {
            place.task = None;
            place.turn = place.turn.wrapping_add(1);
            self.free.extend(u32::try_from(id.index()));
        }
    }

    /// Those that are not done, in the order of their places.
    pub(super) fn ids(&self) -> Vec<TaskId> {
        let id = |(index, place): (usize, &Place)| {
            let open = place.task.as_ref().is_some_and(|t| !matches!(t.stage, Stage::Done(_)));
            let index = u32::try_from(index).ok().filter(|_| open)?;
            Some(TaskId((place.turn & TURN_MASK) << PLACE_BITS | index))
        };
        self.places.iter().enumerate().filter_map(id).collect()
    }
}
