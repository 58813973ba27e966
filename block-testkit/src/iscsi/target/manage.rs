//! Task management and asynchronous messages (RFC 7143, sections 11.5, 11.6 and 11.9).

use block_iscsi::pdu::Pdu;
use block_iscsi::pdu::async_event::{AsyncEvent, AsyncMessage};
use block_iscsi::pdu::fields::DataLen;
use block_iscsi::pdu::scsi::SenseSegment;
use block_iscsi::pdu::task_mgmt::{
    TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResult,
};
use block_iscsi::serial::Serial;

use super::Core;
use super::command::unit;
use super::output::Output;
use super::session::{Fate, Session, Sweep};

impl Session {
    /// Carries out a task management function and answers it.
    pub(super) fn manage(
        &mut self,
        request: &TaskManagementRequest,
        out: &mut Output,
        core: &mut Core,
    ) -> Fate {
        let lun = request.lun;
        let exists = core.device.numbers().contains(&unit(lun));
        let result = match request.function {
            TaskFunction::AbortTask { task_tag, cmd_sn } => self.abort_task(task_tag, cmd_sn),
            TaskFunction::AbortTaskSet
            | TaskFunction::ClearTaskSet
            | TaskFunction::LogicalUnitReset
                if !exists =>
            {
                TaskResult::NoSuchLun
            }
            TaskFunction::AbortTaskSet => {
                self.tasks.abort_all(Some(lun));
                TaskResult::Complete
            }
            TaskFunction::ClearTaskSet => self.sweep(Sweep::Unit(lun), core),
            TaskFunction::LogicalUnitReset => {
                core.device.reset(unit(lun));
                self.sweep(Sweep::Unit(lun), core)
            }
            TaskFunction::TargetWarmReset => {
                reset_all(core);
                self.sweep(Sweep::All, core)
            }
            TaskFunction::TargetColdReset => {
                reset_all(core);
                self.sweep(Sweep::Connections, core)
            }
            TaskFunction::ClearAca => TaskResult::NotSupported,
            TaskFunction::TaskReassign { .. } => TaskResult::ReassignmentNotSupported,
        };
        let response = TaskManagementResponse {
            result,
            task_tag: request.task_tag,
            serials: self.take_serials(),
        };
        out.put(&response.to_bytes(), &[]);
        let cold = matches!(request.function, TaskFunction::TargetColdReset);
        if cold { Fate::Ends } else { Fate::Stays }
    }

    /// A task that has not come yet counts as aborted (section 11.5.5).
    fn abort_task(&mut self, tag: u32, cmd_sn: Serial) -> TaskResult {
        let serials = self.serials();
        let comes = !cmd_sn.is_before(serials.exp_cmd_sn) && !cmd_sn.is_after(serials.max_cmd_sn);
        if self.tasks.abort(tag) || (comes && self.forget_early(cmd_sn)) {
            return TaskResult::Complete;
        }
        TaskResult::NoSuchTask
    }

    /// Something that other sessions have to be swept for, too.
    fn sweep(&mut self, sweep: Sweep, core: &mut Core) -> TaskResult {
        self.swept(sweep);
        core.sweeps.push(sweep);
        TaskResult::Complete
    }

    /// Does what a task management function does to a session's tasks.
    pub(super) fn swept(&mut self, sweep: Sweep) {
        match sweep {
            Sweep::Unit(lun) => self.tasks.abort_all(Some(lun)),
            Sweep::All | Sweep::Connections => self.tasks.abort_all(None),
        }
    }

    /// Tells the initiator that something happened. `sense` goes with [`AsyncEvent::Scsi`].
    pub(super) fn tell(&mut self, event: AsyncEvent, lun: [u8; 8], sense: &[u8], out: &mut Output) {
        let data = match sense {
            [] => Vec::new(),
            sense => SenseSegment { sense, rest: &[] }.to_bytes().unwrap_or_default(),
        };
        let message = AsyncMessage {
            event,
            lun,
            serials: self.take_serials(),
            data_len: DataLen::of(&data).unwrap_or_default(),
        };
        out.put(&message.to_bytes(), &data);
    }
}

fn reset_all(core: &mut Core) {
    for number in core.device.numbers() {
        core.device.reset(number);
    }
}
