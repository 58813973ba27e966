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
        let unit = unit(request.lun);
        let exists = core.device.numbers().contains(&unit);
        let result = match request.function {
            TaskFunction::AbortTask { task_tag, cmd_sn } => {
                self.abort_task(task_tag, cmd_sn, request.serials.cmd_sn)
            }
            TaskFunction::AbortTaskSet
            | TaskFunction::ClearTaskSet
            | TaskFunction::LogicalUnitReset
                if !exists =>
            {
                TaskResult::NoSuchLun
            }
            TaskFunction::AbortTaskSet => {
                self.tasks.abort_all(Some(unit));
                TaskResult::Complete
            }
            TaskFunction::ClearTaskSet => self.sweep(Sweep::Unit(unit), core),
            TaskFunction::LogicalUnitReset => {
                core.device.reset(unit);
                self.sweep(Sweep::Unit(unit), core)
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

    /// A task that could still come, of a number before that of the request, counts as received and
    /// aborted, whether it waits for its turn or was lost (section 11.6.1).
    fn abort_task(&mut self, tag: u32, cmd_sn: Serial, own_cmd_sn: Serial) -> TaskResult {
        if self.tasks.abort(tag) {
            return TaskResult::Complete;
        }
        let serials = self.serials();
        let in_window =
            !cmd_sn.is_before(serials.exp_cmd_sn) && !cmd_sn.is_after(serials.max_cmd_sn);
        if !(in_window && cmd_sn.is_before(own_cmd_sn)) {
            return TaskResult::NoSuchTask;
        }
        self.forget(cmd_sn);
        TaskResult::Complete
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
            Sweep::Unit(unit) => self.tasks.abort_all(Some(unit)),
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

#[cfg(test)]
mod tests {
    use block_iscsi::keys::Pair;
    use block_iscsi::keys::text::encode;
    use block_iscsi::pdu::fields::{Delivery, RequestSerials};
    use block_iscsi::pdu::login::{LoginRequest, LoginStage, LoginStep};
    use block_iscsi::pdu::nop::NopOut;
    use block_iscsi::pdu::{Request, Response};

    use super::*;
    use crate::iscsi::target::{Link, Target, TargetConfig};
    use crate::iscsi::{Device, SenseFormat};

    const NAME: &str = "iqn.2026-01.org.example:disk";

    fn say(target: &mut Target, link: Link, request: Request, text: &[u8]) -> Response {
        let (mut bytes, mut answer) = (Vec::new(), Vec::new());
        request.append_to(text, &mut bytes).unwrap();
        target.handle_bytes(link, &bytes);
        target.transmit(link, &mut answer);
        Response::parse(&answer).unwrap()
    }

    fn serials(cmd_sn: u32) -> RequestSerials {
        RequestSerials { cmd_sn: Serial::new(cmd_sn), exp_stat_sn: Serial::new(0) }
    }

    /// A session whose first command has the number 7.
    fn session() -> (Target, Link) {
        let device = Device::new(SenseFormat::Fixed);
        let mut target = Target::new(TargetConfig::new(NAME), device);
        let link = target.connect();
        let text = encode(&[
            Pair::new("InitiatorName", "iqn.2026-01.org.example:host"),
            Pair::new("TargetName", NAME),
        ]);
        let request = LoginRequest {
            step: LoginStep::ToFullFeature(LoginStage::Operational),
            version_max: 0,
            version_min: 0,
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            task_tag: 1,
            cid: 0,
            serials: serials(7),
            data_len: DataLen::of(&text).unwrap(),
        };
        let Response::Login(answer) = say(&mut target, link, request.into(), &text) else {
            panic!("no login response")
        };
        assert_ne!(answer.tsih, 0);
        (target, link)
    }

    fn abort(target: &mut Target, link: Link, cmd_sn: u32, own: u32) -> TaskResult {
        let request = TaskManagementRequest {
            delivery: Delivery::Immediate,
            function: TaskFunction::AbortTask { task_tag: 99, cmd_sn: Serial::new(cmd_sn) },
            lun: [0; 8],
            task_tag: 2,
            serials: serials(own),
        };
        match say(target, link, request.into(), &[]) {
            Response::TaskManagement(answer) => answer.result,
            other => panic!("{other:?}"),
        }
    }

    fn exp_cmd_sn(target: &mut Target, link: Link) -> u32 {
        let ping = NopOut {
            delivery: Delivery::Immediate,
            lun: [0; 8],
            task_tag: Some(3),
            target_tag: None,
            serials: serials(8),
            data_len: DataLen::ZERO,
        };
        match say(target, link, ping.into(), &[]) {
            Response::NopIn(answer) => answer.serials.exp_cmd_sn.value(),
            other => panic!("{other:?}"),
        }
    }

    /// The number of a command that was lost is taken up by aborting it, so that those behind it are
    /// not stuck.
    #[test]
    fn aborting_a_command_that_was_lost_takes_its_number_up() {
        let (mut target, link) = session();
        assert_eq!(exp_cmd_sn(&mut target, link), 7);
        // 6 is in the past, and 8 is not before the request.
        assert_eq!(abort(&mut target, link, 6, 8), TaskResult::NoSuchTask);
        assert_eq!(abort(&mut target, link, 8, 8), TaskResult::NoSuchTask);
        assert_eq!(exp_cmd_sn(&mut target, link), 7);
        assert_eq!(abort(&mut target, link, 7, 8), TaskResult::Complete);
        assert_eq!(exp_cmd_sn(&mut target, link), 8);
        assert_eq!(abort(&mut target, link, 7, 8), TaskResult::NoSuchTask);
    }
}
