//! What comes from the target in the full feature phase, and in the login.

use std::time::Duration;

use block_core::IoVec;
use block_core::range::{to_u64, to_usize};

use super::error::{Awaited, SessionError, Violation};
use super::inbound::{Inbound, Received};
use super::lifecycle::State;
use super::outbound::Outbound;
use super::send::{DataJob, LOGOUT_TAG, PING_TAG, Urgent};
use super::task::{Active, Answer, Kind, Stage, Task, TaskId, TextRest};
use super::{Link, Session, SessionEvent, Up};
use crate::nexus::{Completion, Data, NexusEvent, TaskError};
use crate::pdu::async_event::{AsyncEvent, AsyncMessage};
use crate::pdu::bhs::{Bhs, Opcode};
use crate::pdu::data::{DataIn, DataInEnd, ReadyToTransfer};
use crate::pdu::fields::{Residual, ResponseSerials};
use crate::pdu::nop::NopIn;
use crate::pdu::reject::{Reject, RejectReason};
use crate::pdu::scsi::{CommandOutcome, ScsiResponse, SenseSegment};
use crate::pdu::task_mgmt::{TaskManagementResponse, TaskResult};
use crate::pdu::text::{TextReply, TextResponse};
use crate::pdu::{Pdu, Response};
use crate::scsi::luns::Lun;
use crate::scsi::sense::Status;
use crate::serial::Serial;

/// Most requests of one text task.
const TEXT_EXCHANGES_MAX: u32 = 1024;

impl Session {
    /// Takes `len` bytes, which were received into [`Inbound::slot`], and all that follows from them.
    pub fn handle_received(&mut self, link: &mut Link, len: usize, now: Duration) {
        let Link { inbound, outbound } = link;
        inbound.handle_received(len);
        if let State::Up(up) = &mut self.state {
            (up.heard, up.pinged) = (now, None);
        }
        loop {
            let step = match inbound.next() {
                Ok(None) => return,
                Ok(Some(received)) => self.handle_pdu(received, inbound, outbound, now),
                Err(violation) => Err(violation.into()),
            };
            if let Err(error) = step {
                self.lose(error, now);
                return;
            }
            if !matches!(self.state, State::Up(_) | State::LoggingIn(_)) {
                return;
            }
        }
    }

    fn handle_pdu(
        &mut self,
        received: Received,
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        now: Duration,
    ) -> Result<(), SessionError> {
        if let State::LoggingIn(_) = &self.state {
            let Received::Whole(bhs, data) = received else {
                return Err(unexpected(Opcode::DataIn).into());
            };
            let (head, data) = (bhs.to_bytes(), inbound.data(data).to_vec());
            return self.handle_login(&head, &data, inbound, outbound, now);
        }
        match received {
            Received::Whole(bhs, data) => {
                let data = inbound.data(data);
                self.handle_whole(&bhs, data, now)
            }
            Received::DataInHead(bhs) => {
                let place = self.place_of(&DataIn::from_bhs(&bhs).map_err(Violation::from)?)?;
                inbound.place(bhs, place);
                Ok(())
            }
            Received::DataIn(bhs) => {
                Ok(self.handle_data_in(&DataIn::from_bhs(&bhs).map_err(Violation::from)?)?)
            }
        }
    }

    fn handle_whole(&mut self, bhs: &Bhs, data: &[u8], now: Duration) -> Result<(), SessionError> {
        match Response::from_bhs(bhs).map_err(Violation::from)? {
            Response::ScsiResponse(pdu) => Ok(self.handle_scsi(&pdu, data)?),
            Response::DataIn(pdu) => {
                self.place_of(&pdu)?;
                Ok(self.handle_data_in(&pdu)?)
            }
            Response::ReadyToTransfer(pdu) => Ok(self.handle_r2t(&pdu)?),
            Response::NopIn(pdu) => Ok(self.handle_nop(&pdu, data)?),
            Response::TaskManagement(pdu) => self.handle_management(&pdu),
            Response::Text(pdu) => Ok(self.handle_text(&pdu, data)?),
            Response::Logout(pdu) => {
                self.take_status(Opcode::LogoutResponse, pdu.serials)?;
                same(Opcode::LogoutResponse, "Initiator Task Tag", pdu.task_tag, LOGOUT_TAG)?;
                // Whatever the answer is, the connection ends now.
                Err(SessionError::EndedByTarget)
            }
            Response::AsyncMessage(pdu) => self.handle_async(&pdu, data, now),
            Response::Reject(pdu) => self.handle_reject(&pdu, data, now),
            Response::Login(_) => Err(unexpected(Opcode::LoginResponse).into()),
        }
    }

    fn up(&mut self, opcode: Opcode) -> Result<&mut Up, Violation> {
        match &mut self.state {
            State::Up(up) => Ok(up),
            _ => Err(unexpected(opcode)),
        }
    }

    /// Takes the numbers of a PDU that takes up a StatSN, which has to be the next one: at error
    /// recovery level 0 nothing can be missing (section 7.1.5).
    fn take_status(&mut self, opcode: Opcode, serials: ResponseSerials) -> Result<(), Violation> {
        self.take_window(opcode, serials)?;
        let up = self.up(opcode)?;
        same(opcode, "StatSN", serials.stat_sn.value(), up.exp_stat_sn.value())?;
        up.exp_stat_sn = up.exp_stat_sn.next();
        Ok(())
    }

    fn take_window(&mut self, opcode: Opcode, serials: ResponseSerials) -> Result<(), Violation> {
        let up = self.up(opcode)?;
        if serials.exp_cmd_sn.is_after(up.cmd_sn) {
            let (found, limit) = (serials.exp_cmd_sn.value().into(), up.cmd_sn.value().into());
            return Err(Violation::Beyond { opcode, field: "ExpCmdSN", found, limit });
        }
        up.window.update(serials.exp_cmd_sn, serials.max_cmd_sn);
        Ok(())
    }

    /// Where the data of a Data-In belongs. It has to be the next of its task's data.
    fn place_of(&mut self, pdu: &DataIn) -> Result<IoVec, Violation> {
        let opcode = Opcode::DataIn;
        let (active, iov) = match self.tasks.active_task(TaskId::from_tag(pdu.task_tag)) {
            Some(Task { kind: Kind::Scsi(command), stage: Stage::Active(active), .. }) => {
                match &command.data {
                    Data::In(iov) => (active, iov),
                    _ => return Err(no_task(opcode, pdu.task_tag)),
                }
            }
            _ => return Err(no_task(opcode, pdu.task_tag)),
        };
        same(opcode, "DataSN", pdu.data_sn.value(), active.data_sn.value())?;
        same(opcode, "Buffer Offset", pdu.buffer_offset, to_u64(active.received))?;
        let len = to_usize(pdu.data_len.bytes().into());
        let left = iov.len() - active.received;
        if len > left {
            let (found, limit) = (to_u64(len), to_u64(left));
            return Err(Violation::Beyond { opcode, field: "DataSegmentLength", found, limit });
        }
        Ok(iov.slice(active.received, len))
    }

    /// The data has arrived at its place.
    fn handle_data_in(&mut self, pdu: &DataIn) -> Result<(), Violation> {
        let opcode = Opcode::DataIn;
        let id = TaskId::from_tag(pdu.task_tag);
        if matches!(pdu.end, DataInEnd::Status { .. }) {
            self.take_status(opcode, pdu.serials)?;
        } else {
            self.take_window(opcode, pdu.serials)?;
        }
        let task = self.tasks.active_task(id).ok_or_else(|| no_task(opcode, pdu.task_tag))?;
        if let Some(active) = task.active() {
            active.received += to_usize(pdu.data_len.bytes().into());
            active.data_sn = active.data_sn.next();
        }
        if let DataInEnd::Status { status, residual } = pdu.end {
            self.complete(id, status, residual, &[]);
        }
        Ok(())
    }

    fn handle_scsi(&mut self, pdu: &ScsiResponse, data: &[u8]) -> Result<(), Violation> {
        let opcode = Opcode::ScsiResponse;
        self.take_status(opcode, pdu.serials)?;
        let id = TaskId::from_tag(pdu.task_tag);
        match self.tasks.active_task(id) {
            Some(Task { kind: Kind::Scsi(_), .. }) => {}
            _ => return Err(no_task(opcode, pdu.task_tag)),
        }
        match pdu.outcome {
            CommandOutcome::Completed { status, residual, .. } => {
                let sense = SenseSegment::parse(data)?.sense;
                self.complete(id, status, residual, sense);
            }
            CommandOutcome::TargetFailure => {
                self.finish(id, Err(TaskError::TargetFailure { response: 1 }));
            }
            CommandOutcome::Vendor(response) => {
                self.finish(id, Err(TaskError::TargetFailure { response }));
            }
        }
        Ok(())
    }

    /// Ends a SCSI task with a status. Sense data may tell of more than the task, so that all hear of it.
    fn complete(&mut self, id: TaskId, status: u8, residual: Residual, sense: &[u8]) {
        let Some(Task { kind: Kind::Scsi(command), stage: Stage::Active(active), .. }) =
            self.tasks.active_task(id)
        else {
            return;
        };
        let Ok(status) = Status::from_code(status) else {
            return self.finish(id, Err(TaskError::Status { status }));
        };
        let (received, lun) = (active.received, command.lun);
        let expected = match &command.data {
            Data::In(iov) => iov.len(),
            Data::None | Data::Out(_) => 0,
        };
        let said_missing = match residual {
            Residual::Underflow(count) => to_usize(count.into()),
            Residual::None | Residual::Overflow(_) => 0,
        };
        let short = expected > 0 && expected.saturating_sub(said_missing) > received;
        if short && status == Status::Good {
            return self.finish(id, Err(TaskError::Short { received, expected }));
        }
        self.attempt.well_behaved();
        let sense = sense.to_vec();
        if status == Status::CheckCondition {
            let event = NexusEvent::Sense { lun, sense: sense.clone() };
            self.events.push_back(SessionEvent::Nexus(event));
        }
        self.finish(id, Ok(Answer::Scsi(Completion { status, sense, residual, received })));
    }

    fn handle_r2t(&mut self, pdu: &ReadyToTransfer) -> Result<(), Violation> {
        let opcode = Opcode::ReadyToTransfer;
        self.take_window(opcode, pdu.serials)?;
        let id = TaskId::from_tag(pdu.task_tag);
        let State::Up(up) = &mut self.state else { return Err(unexpected(opcode)) };
        let task = self.tasks.active_task(id).ok_or_else(|| no_task(opcode, pdu.task_tag))?;
        let total = task.data_out().map_or(0, IoVec::len);
        let Some(active) = task.active().filter(|_| total > 0) else {
            return Err(no_task(opcode, pdu.task_tag));
        };
        same(opcode, "R2TSN", pdu.r2t_sn.value(), active.r2t_sn.value())?;
        same(opcode, "Buffer Offset", pdu.buffer_offset, to_u64(active.asked))?;
        let len = to_usize(pdu.desired_len.into());
        let most = to_usize(up.negotiated.max_burst_len.into()).min(total - active.asked);
        if len > most {
            let (found, limit) = (to_u64(len), to_u64(most));
            let field = "Desired Data Transfer Length";
            return Err(Violation::Beyond { opcode, field, found, limit });
        }
        active.open_r2ts += 1;
        if active.open_r2ts > up.negotiated.max_outstanding_r2t {
            let limit = up.negotiated.max_outstanding_r2t.into();
            let found = active.open_r2ts.into();
            return Err(Violation::Beyond { opcode, field: "MaxOutstandingR2T", found, limit });
        }
        active.r2t_sn = active.r2t_sn.next();
        active.asked += len;
        let at = to_usize(pdu.buffer_offset.into());
        up.jobs.push_back(DataJob {
            id,
            target_tag: Some(pdu.target_tag),
            lun: pdu.lun,
            at,
            end: at + len,
            data_sn: Serial::new(0),
        });
        Ok(())
    }

    /// A ping of the target is answered; the answer to ours has done its work by coming.
    fn handle_nop(&mut self, pdu: &NopIn, data: &[u8]) -> Result<(), Violation> {
        let opcode = Opcode::NopIn;
        match (pdu.task_tag, pdu.target_tag) {
            // StatSN is only taken up by an answer (section 11.19.2).
            (None, _) => self.take_window(opcode, pdu.serials)?,
            (Some(PING_TAG), _) => self.take_status(opcode, pdu.serials)?,
            (Some(tag), _) => return Err(no_task(opcode, tag)),
        }
        if let Some(target_tag) = pdu.target_tag {
            let up = self.up(opcode)?;
            let most = to_usize(up.negotiated.max_send_data_segment_len.into());
            let data = data.get(..data.len().min(most)).unwrap_or_default().to_vec();
            up.push_pong(Urgent::Pong { lun: pdu.lun, target_tag, data });
        }
        Ok(())
    }

    fn handle_management(&mut self, pdu: &TaskManagementResponse) -> Result<(), SessionError> {
        let opcode = Opcode::TaskManagementResponse;
        self.take_status(opcode, pdu.serials)?;
        let id = TaskId::from_tag(pdu.task_tag);
        match self.tasks.active_task(id).map(|task| &task.kind) {
            Some(Kind::Abort(of, error)) => {
                let (of, error) = (*of, error.clone());
                self.finish(id, Err(TaskError::Aborted));
                match pdu.result {
                    // The target no longer has it, and has said all that it has to say of it.
                    TaskResult::Complete | TaskResult::NoSuchTask => self.finish(of, Err(error)),
                    _ => return self.abort_failed(of, error),
                }
            }
            Some(Kind::Reset(lun)) => {
                let lun = *lun;
                match pdu.result {
                    TaskResult::Complete => {
                        let event = NexusEvent::Reset { lun: Some(lun) };
                        self.events.push_back(SessionEvent::Nexus(event));
                        self.end_tasks_of(lun);
                        self.finish(id, Ok(Answer::Reset));
                    }
                    result => self.finish(id, Err(TaskError::TaskManagement { result })),
                }
            }
            _ => return Err(no_task(opcode, pdu.task_tag).into()),
        }
        Ok(())
    }

    /// A task was not aborted. Unless it has ended all the same, only the connection's end makes sure
    /// that the target no longer has it.
    fn abort_failed(&mut self, of: TaskId, error: TaskError) -> Result<(), SessionError> {
        if self.tasks.active_task(of).is_none() {
            return Ok(());
        }
        self.finish(of, Err(error));
        Err(SessionError::TimedOut(Awaited::TaskManagement))
    }

    /// The unit was reset: what the target had of it is gone, and nothing was sent since.
    fn end_tasks_of(&mut self, lun: Lun) {
        for id in self.tasks.ids() {
            if let Some(Task { kind: Kind::Scsi(command), .. }) = self.tasks.active_task(id)
                && command.lun == lun
            {
                self.finish(id, Err(TaskError::Aborted));
            }
        }
    }

    fn handle_text(&mut self, pdu: &TextResponse, data: &[u8]) -> Result<(), Violation> {
        let opcode = Opcode::TextResponse;
        self.take_status(opcode, pdu.serials)?;
        let id = TaskId::from_tag(pdu.task_tag);
        let Some(Task { kind: Kind::Text(text), .. }) = self.tasks.active_task(id) else {
            return Err(no_task(opcode, pdu.task_tag));
        };
        if let Err(error) = text.received.push(data) {
            self.finish(id, Err(error.into()));
            return Ok(());
        }
        match pdu.reply {
            TextReply::Final => {
                let result = text.received.take_pairs();
                self.attempt.well_behaved();
                self.finish(id, result.map(Answer::Text).map_err(TaskError::from));
            }
            TextReply::Partial { target_tag } | TextReply::Open { target_tag } => {
                if text.exchanges >= TEXT_EXCHANGES_MAX {
                    let (found, limit) = (text.exchanges.into(), TEXT_EXCHANGES_MAX.into());
                    let field = "number of text requests";
                    return Err(Violation::Beyond { opcode, field, found, limit });
                }
                text.rest = Some(TextRest { target_tag, lun: pdu.lun });
                self.tasks.deactivate(id);
                self.queue.push_front(id);
            }
        }
        Ok(())
    }

    fn handle_async(
        &mut self,
        pdu: &AsyncMessage,
        data: &[u8],
        now: Duration,
    ) -> Result<(), SessionError> {
        let opcode = Opcode::AsyncMessage;
        self.take_status(opcode, pdu.serials)?;
        match pdu.event {
            AsyncEvent::Scsi => {
                let sense = SenseSegment::parse(data).map_err(Violation::from)?.sense.to_vec();
                let event = NexusEvent::Sense { lun: Lun(pdu.lun), sense };
                self.events.push_back(SessionEvent::Nexus(event));
            }
            AsyncEvent::LogoutRequested { within_secs }
            | AsyncEvent::NegotiationRequested { within_secs } => {
                // The next login is a negotiation, too.
                let within = Duration::from_secs(within_secs.into());
                self.leave(now + within / 2, now);
            }
            AsyncEvent::DropsConnection { time_to_wait_secs, .. }
            | AsyncEvent::DropsAllConnections { time_to_wait_secs, .. } => {
                self.attempt.wait(Duration::from_secs(time_to_wait_secs.into()));
                return Err(SessionError::EndedByTarget);
            }
            // The answers to the tasks will not come: a new session brings them back.
            AsyncEvent::TasksTerminated => return Err(SessionError::EndedByTarget),
            AsyncEvent::Vendor { .. } => {}
        }
        Ok(())
    }

    /// A rejected command fails, unless it only came too late for this connection; whatever else is
    /// rejected, the two sides do not understand each other.
    fn handle_reject(
        &mut self,
        pdu: &Reject,
        data: &[u8],
        now: Duration,
    ) -> Result<(), SessionError> {
        self.take_status(Opcode::Reject, pdu.serials)?;
        let reason = pdu.reason;
        let refused = Reject::refused(data).map_err(Violation::from)?;
        let id = TaskId::from_tag(refused.initiator_task_tag);
        let task = self.tasks.active_task(id);
        let is_task = task.is_some();
        let (abort, may_wait) = match task {
            Some(Task { kind: Kind::Abort(of, error), .. }) => (Some((*of, error.clone())), false),
            Some(Task {
                kind: Kind::Scsi(_) | Kind::Text(_),
                stage: Stage::Active(active),
                ..
            }) => (None, !active.aborting),
            _ => (None, false),
        };
        let is_request = matches!(
            refused.opcode(),
            Opcode::ScsiCommand | Opcode::TextRequest | Opcode::TaskManagementRequest
        );
        match refused.opcode() {
            Opcode::ScsiCommand | Opcode::TextRequest
                if may_wait && reason == RejectReason::WaitingForLogout && self.may_put_off() =>
            {
                self.put_off(id, now);
                Ok(())
            }
            _ if is_task && is_request && reason != RejectReason::DataDigestError => {
                self.finish(id, Err(TaskError::Rejected { reason }));
                abort.map_or(Ok(()), |(of, error)| self.abort_failed(of, error))
            }
            // Too many pings: it is there.
            Opcode::NopOut => Ok(()),
            _ => Err(Violation::Rejected { reason }.into()),
        }
    }

    /// Ends a task that the target has, by asking it to abort it.
    pub(super) fn abort_task(&mut self, id: TaskId, error: TaskError, now: Duration) {
        let Some(task) = self.tasks.get(id) else { return };
        let lun = match (&task.kind, &task.stage) {
            (_, Stage::Done(_)) | (Kind::Abort(..), _) => return,
            (_, Stage::Waiting) => return self.finish(id, Err(error)),
            (Kind::Scsi(command), _) => command.lun.0,
            // Nothing aborts these: the connection has to end.
            (Kind::Reset(_) | Kind::Text(_), _) => {
                self.finish(id, Err(error));
                return self.lose(SessionError::TimedOut(Awaited::TaskManagement), now);
            }
        };
        let Some(Active { cmd_sn, aborting: aborting @ false, .. }) = task.active() else { return };
        *aborting = true;
        let (task_tag, cmd_sn) = (id.tag(), *cmd_sn);
        let patience = now + self.config.patience.abort;
        let function = crate::pdu::task_mgmt::TaskFunction::AbortTask { task_tag, cmd_sn };
        self.note_deadline(Some(patience));
        let abort = self.tasks.add(Kind::Abort(id, error.clone()), Some(patience));
        let (Some(abort), State::Up(up)) = (abort, &mut self.state) else {
            return self.finish(id, Err(error));
        };
        up.urgent.push_back(Urgent::Manage { id: abort, lun, function });
        self.tasks.activate(abort, Active::default());
    }
}

fn unexpected(opcode: Opcode) -> Violation {
    Violation::Unexpected { opcode }
}

fn no_task(opcode: Opcode, tag: u32) -> Violation {
    Violation::Task { opcode, tag }
}

fn same(
    opcode: Opcode,
    field: &'static str,
    found: impl Into<u64>,
    expected: impl Into<u64>,
) -> Result<(), Violation> {
    let (found, expected) = (found.into(), expected.into());
    if found != expected {
        return Err(Violation::Mismatch { opcode, field, found, expected });
    }
    Ok(())
}
