//! What is sent in the full feature phase, and in which order.
//!
//! First what is urgent (answers to pings, task management, logout), then commands and data in turns,
//! so that neither waits for the other. A command carries as much of its data as was agreed on, and
//! is followed by what the target takes without asking.
//!
//! While the reset of a unit is under way no command is sent: what the target has when it answers was
//! sent before the reset, and has ended with it.

use std::time::Duration;

use super::outbound::Outbound;
use super::task::{Active, Kind, Stage, Task, TaskId, TextTask};
use super::{Session, State, Up};
use crate::keys::Negotiated;
use crate::nexus::{Command, Data};
use crate::pdu::Pdu;
use crate::pdu::data::{DataOut, Sequence};
use crate::pdu::fields::{DataLen, Delivery, RequestSerials};
use crate::pdu::logout::{LogoutReason, LogoutRequest};
use crate::pdu::nop::NopOut;
use crate::pdu::scsi::{Cdb as PduCdb, Direction, ScsiCommand, TaskAttribute, Unsolicited};
use crate::pdu::task_mgmt::{TaskFunction, TaskManagementRequest};
use crate::pdu::text::{TextRequest, TextStep};
use crate::serial::Serial;
use block_core::range::to_usize;

/// The connection's number.
pub(super) const CID: u16 = 1;

/// Most answers to pings of the target that wait to be sent. Who asks more often gets fewer answers.
const URGENT_MAX: usize = 64;

/// The tag of our own pings: no task has it.
pub(super) const PING_TAG: u32 = 0xffff_fffe;

/// The tag of our logout: no task has it.
pub(super) const LOGOUT_TAG: u32 = 0xffff_fffd;

/// A part of a task's data that is to be sent.
#[derive(Copy, Clone, Debug)]
pub(super) struct DataJob {
    pub(super) id: TaskId,
    /// The tag of the R2T; `None` for data that nobody has asked for.
    pub(super) target_tag: Option<u32>,
    pub(super) lun: [u8; 8],
    pub(super) at: usize,
    pub(super) end: usize,
    pub(super) data_sn: Serial,
}

/// A PDU that waits for no turn.
#[derive(Clone, Debug)]
pub(super) enum Urgent {
    Ping,
    Pong { lun: [u8; 8], target_tag: u32, data: Vec<u8> },
    Manage { id: TaskId, lun: [u8; 8], function: TaskFunction },
    Logout(LogoutReason),
}

impl Up {
    fn serials(&self) -> RequestSerials {
        RequestSerials { cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// The numbers of a command, which takes its place in the order.
    fn take_serials(&mut self) -> RequestSerials {
        let serials = self.serials();
        self.cmd_sn = self.cmd_sn.next();
        serials
    }

    /// Queues an answer to a ping.
    pub(super) fn push_pong(&mut self, pong: Urgent) {
        if self.urgent.len() < URGENT_MAX {
            self.urgent.push_back(pong);
        }
    }

    fn push_urgent(&self, urgent: Urgent, outbound: &mut Outbound) {
        let (delivery, serials) = (Delivery::Immediate, self.serials());
        match urgent {
            Urgent::Ping => {
                let (task_tag, target_tag) = (Some(PING_TAG), None);
                let (lun, data_len) = ([0; 8], DataLen::ZERO);
                let ping = NopOut { delivery, lun, task_tag, target_tag, serials, data_len };
                outbound.push_small(&ping.to_bytes(), &[]);
            }
            Urgent::Pong { lun, target_tag, data } => {
                let data_len = DataLen::of(&data).unwrap_or_default();
                let (task_tag, target_tag) = (None, Some(target_tag));
                let pong = NopOut { delivery, lun, task_tag, target_tag, serials, data_len };
                outbound.push_small(&pong.to_bytes(), &data);
            }
            Urgent::Manage { id, lun, function } => {
                let task_tag = id.tag();
                let request = TaskManagementRequest { delivery, function, lun, task_tag, serials };
                outbound.push_small(&request.to_bytes(), &[]);
            }
            Urgent::Logout(reason) => {
                let (task_tag, cid) = (LOGOUT_TAG, CID);
                let request = LogoutRequest { delivery, reason, task_tag, cid, serials };
                outbound.push_small(&request.to_bytes(), &[]);
            }
        }
    }

    /// Sends the next piece of a job; whether that was its last.
    fn push_data(&self, job: &mut DataJob, task: &Task, outbound: &mut Outbound) -> bool {
        let Some(iov) = task.data_out() else { return true };
        let most = to_usize(self.negotiated.max_send_data_segment_len.into());
        let len = (job.end - job.at).min(most);
        let ends = job.at + len == job.end;
        let pdu = DataOut {
            sequence: if ends { Sequence::Ends } else { Sequence::GoesOn },
            lun: job.lun,
            task_tag: job.id.tag(),
            target_tag: job.target_tag,
            exp_stat_sn: self.exp_stat_sn,
            data_sn: job.data_sn,
            buffer_offset: u32::try_from(job.at).unwrap_or(u32::MAX),
            data_len: data_len(len),
        };
        outbound.push(&pdu.to_bytes(), &iov.slice(job.at, len));
        job.at += len;
        job.data_sn = job.data_sn.next();
        ends
    }
}

impl Session {
    /// Adds to `outbound` what is to be sent, as much as is worth sending at once.
    pub fn fill(&mut self, outbound: &mut Outbound, now: Duration) {
        match &mut self.state {
            State::LoggingIn(login) => {
                if let Some(request) = login.request.take() {
                    outbound.push_raw(&request);
                }
            }
            State::Up(_) => {
                self.check_leaving(now);
                self.fill_up(outbound);
            }
            State::Waiting { .. } | State::Connecting { .. } | State::Ended => {}
        }
    }

    fn fill_up(&mut self, outbound: &mut Outbound) {
        while !outbound.is_full() {
            if let State::Up(up) = &mut self.state
                && let Some(urgent) = up.urgent.pop_front()
            {
                up.push_urgent(urgent, outbound);
                continue;
            }
            let sent_command = self.push_command(outbound);
            let sent_data = self.push_job(outbound);
            if !sent_command && !sent_data {
                return;
            }
        }
    }

    /// Sends the next piece of data that the target wants; whether there was any.
    fn push_job(&mut self, outbound: &mut Outbound) -> bool {
        let State::Up(up) = &mut self.state else { return false };
        let Some(mut job) = up.jobs.pop_front() else { return false };
        let Some(task) = self.tasks.active_task(job.id) else { return true };
        if !up.push_data(&mut job, task, outbound) {
            match job.target_tag {
                // What nobody asked for goes in the order of the commands.
                None => up.jobs.push_front(job),
                // R2Ts of one task are fulfilled in the order in which they came (section 11.8).
                Some(_) if up.jobs.iter().any(|other| other.id == job.id) => {
                    up.jobs.push_front(job);
                }
                // Other tasks have their turn, too.
                Some(_) => up.jobs.push_back(job),
            }
        } else if job.target_tag.is_some()
            && let Some(active) = task.active()
        {
            active.open_r2ts = active.open_r2ts.saturating_sub(1);
        }
        true
    }

    /// Sends the next command that may be sent; whether there was one.
    fn push_command(&mut self, outbound: &mut Outbound) -> bool {
        let State::Up(up) = &mut self.state else { return false };
        if up.leaving.is_some() {
            return false;
        }
        up.resets.retain(|reset| self.tasks.active_task(*reset).is_some());
        if !up.resets.is_empty() {
            return false;
        }
        let under_way = self.tasks.active();
        while let Some(id) = self.queue.front().copied() {
            let Some(task) = self.tasks.get(id).filter(|t| matches!(t.stage, Stage::Waiting))
            else {
                self.queue.pop_front();
                continue;
            };
            let active = match &mut task.kind {
                _ if !up.window.contains(up.cmd_sn) => return false,
                _ if under_way >= self.config.depth.max(1) => return false,
                Kind::Scsi(command) => up.push_scsi(id, command, outbound),
                Kind::Text(text) => up.push_text(id, text, outbound),
                Kind::Reset(_) | Kind::Abort(..) => Active::default(),
            };
            self.queue.pop_front();
            self.tasks.activate(id, active);
            return true;
        }
        false
    }

    /// Sends the resets that wait. They wait for no window and for no other task.
    pub(super) fn start_resets(&mut self) {
        let State::Up(up) = &mut self.state else { return };
        for id in self.tasks.ids() {
            if let Some(Task { kind: Kind::Reset(lun), stage: Stage::Waiting, .. }) =
                self.tasks.get(id)
            {
                let function = TaskFunction::LogicalUnitReset;
                up.urgent.push_back(Urgent::Manage { id, lun: lun.0, function });
                up.resets.push(id);
                self.tasks.activate(id, Active::default());
            }
        }
    }
}

impl Up {
    fn push_scsi(&mut self, id: TaskId, command: &Command, outbound: &mut Outbound) -> Active {
        let expected = command.data.len();
        let (immediate, unsolicited) = match &command.data {
            Data::Out(_) => unasked(&self.negotiated, expected),
            Data::None | Data::In(_) => (0, 0),
        };
        let direction = match &command.data {
            Data::None => Direction::None,
            Data::In(_) => Direction::Read,
            Data::Out(_) if unsolicited > 0 => Direction::Write(Unsolicited::Follows),
            Data::Out(_) => Direction::Write(Unsolicited::None),
        };
        let serials = self.take_serials();
        let pdu = ScsiCommand {
            delivery: Delivery::Ordered,
            direction,
            attribute: TaskAttribute::Simple,
            lun: command.lun.0,
            task_tag: id.tag(),
            expected_len: u32::try_from(expected).unwrap_or(u32::MAX),
            serials,
            cdb: PduCdb::short(command.cdb.padded()),
            data_len: data_len(immediate),
        };
        let header = pdu.to_bhs().to_bytes();
        match &command.data {
            Data::Out(iov) if immediate > 0 => outbound.push(&header, &iov.slice(0, immediate)),
            _ => outbound.push_small(&header, &[]),
        }
        let end = immediate + unsolicited;
        if unsolicited > 0 {
            self.jobs.push_back(DataJob {
                id,
                target_tag: None,
                lun: command.lun.0,
                at: immediate,
                end,
                data_sn: Serial::new(0),
            });
        }
        Active { cmd_sn: serials.cmd_sn, asked: end, ..Active::default() }
    }

    fn push_text(&mut self, id: TaskId, text: &mut TextTask, outbound: &mut Outbound) -> Active {
        let serials = self.take_serials();
        text.exchanges += 1;
        // What follows the first request only fetches the rest of the answer.
        let data: &[u8] = if text.rest.is_none() { &text.text } else { &[] };
        let pdu = TextRequest {
            delivery: Delivery::Ordered,
            step: TextStep::Final,
            lun: text.rest.map_or([0; 8], |rest| rest.lun),
            task_tag: id.tag(),
            target_tag: text.rest.map(|rest| rest.target_tag),
            serials,
            data_len: data_len(data.len()),
        };
        outbound.push_small(&pdu.to_bytes(), data);
        Active { cmd_sn: serials.cmd_sn, ..Active::default() }
    }
}

/// How much of the data of a write goes with the command, and how much behind it without being asked
/// for (section 4.2.5.2 and the keys ImmediateData, InitialR2T and FirstBurstLength).
fn unasked(agreed: &Negotiated, expected: usize) -> (usize, usize) {
    let first = to_usize(agreed.first_burst_len.into()).min(expected);
    let segment = to_usize(agreed.max_send_data_segment_len.into());
    let immediate = if agreed.immediate_data { first.min(segment) } else { 0 };
    let unsolicited = if agreed.initial_r2t { 0 } else { first - immediate };
    (immediate, unsolicited)
}

/// The length of a data segment that is no longer than what was agreed on.
fn data_len(len: usize) -> DataLen {
    u32::try_from(len).ok().and_then(|len| DataLen::new(len).ok()).unwrap_or(DataLen::MAX)
}
