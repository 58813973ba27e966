//! Task Management Function Request and Response (RFC 7143, sections 11.5 and 11.6).

use zerocopy::byteorder::big_endian::U32;

use super::bhs::{Bhs, Opcode};
use super::fields::{
    Delivery, FINAL, NO_TAG, RawRequestSerials, RawResponseSerials, RequestSerials,
    ResponseSerials, below_final, check_no_ahs, check_no_data, codes, tail,
};
use super::{Pdu, PduError};
use crate::serial::Serial;

/// What is to be done, with what only that function needs.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum TaskFunction {
    /// Aborts one task.
    AbortTask {
        /// Its tag.
        task_tag: u32,
        /// RefCmdSN: its CmdSN; that of this request, if the task was sent for immediate delivery
        /// (section 11.5.5).
        cmd_sn: Serial,
    },
    /// Aborts all tasks of this initiator on the LUN.
    AbortTaskSet,
    /// Clears the auto contingent allegiance.
    ClearAca,
    /// Aborts all tasks of all initiators on the LUN.
    ClearTaskSet,
    /// Resets the LUN.
    LogicalUnitReset,
    /// Resets the target.
    TargetWarmReset,
    /// Resets the target and closes all connections.
    TargetColdReset,
    /// Moves one task to this connection.
    TaskReassign {
        /// Its tag.
        task_tag: u32,
        /// ExpDataSN: the first Data-In that was not acknowledged; 0 leaves it as the target has it
        /// (section 11.5.6).
        exp_data_sn: Serial,
    },
}

impl TaskFunction {
    /// The code on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::AbortTask { .. } => 1,
            Self::AbortTaskSet => 2,
            Self::ClearAca => 3,
            Self::ClearTaskSet => 4,
            Self::LogicalUnitReset => 5,
            Self::TargetWarmReset => 6,
            Self::TargetColdReset => 7,
            Self::TaskReassign { .. } => 8,
        }
    }
}

codes! {
    /// How a task management function went.
    TaskResult: "Response" {
        /// It was done.
        Complete = 0,
        /// There is no such task.
        NoSuchTask = 1,
        /// There is no such LUN.
        NoSuchLun = 2,
        /// The task still belongs to another connection.
        StillAllegiant = 3,
        /// Tasks cannot be reassigned.
        ReassignmentNotSupported = 4,
        /// The function is not supported.
        NotSupported = 5,
        /// This initiator may not do it.
        NotAuthorized = 6,
        /// It was refused.
        Rejected = 255,
    }
}

/// Asks for a task management function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskManagementRequest {
    /// When it is delivered.
    pub delivery: Delivery,
    /// What is to be done.
    pub function: TaskFunction,
    /// The LUN; means nothing to functions on targets.
    pub lun: [u8; 8],
    /// The task that this request is.
    pub task_tag: u32,
    /// CmdSN and ExpStatSN.
    pub serials: RequestSerials,
}

/// Answers a task management request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskManagementResponse {
    /// How it went.
    pub result: TaskResult,
    /// The task of the request.
    pub task_tag: u32,
    /// The serial numbers.
    pub serials: ResponseSerials,
}

tail! { RequestTail {
    referenced_task_tag: U32,
    serials: RawRequestSerials,
    ref_cmd_sn: U32,
    exp_data_sn: U32,
    _reserved: [u8; 8],
} }

tail! { ResponseTail {
    _reserved_a: [u8; 4],
    serials: RawResponseSerials,
    _reserved_b: [u8; 12],
} }

impl Pdu for TaskManagementRequest {
    const OPCODE: Opcode = Opcode::TaskManagementRequest;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        let tail = RequestTail::of(bhs);
        let task_tag = tail.referenced_task_tag.get();
        let function = match below_final(bhs)? {
            1 => TaskFunction::AbortTask { task_tag, cmd_sn: tail.ref_cmd_sn.into() },
            2 => TaskFunction::AbortTaskSet,
            3 => TaskFunction::ClearAca,
            4 => TaskFunction::ClearTaskSet,
            5 => TaskFunction::LogicalUnitReset,
            6 => TaskFunction::TargetWarmReset,
            7 => TaskFunction::TargetColdReset,
            8 => TaskFunction::TaskReassign { task_tag, exp_data_sn: tail.exp_data_sn.into() },
            code => return Err(PduError::field("Function", code)),
        };
        let names_a_task =
            matches!(function, TaskFunction::AbortTask { .. } | TaskFunction::TaskReassign { .. });
        if !names_a_task && task_tag != NO_TAG {
            return Err(PduError::field("Referenced Task Tag", task_tag));
        }
        Ok(Self {
            delivery: bhs.delivery(),
            function,
            lun: bhs.lun,
            task_tag: bhs.initiator_task_tag,
            serials: tail.serials.into(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut tail = RequestTail {
            referenced_task_tag: NO_TAG.into(),
            serials: self.serials.into(),
            ..RequestTail::default()
        };
        match self.function {
            TaskFunction::AbortTask { task_tag, cmd_sn } => {
                tail.referenced_task_tag = task_tag.into();
                tail.ref_cmd_sn = cmd_sn.into();
            }
            TaskFunction::TaskReassign { task_tag, exp_data_sn } => {
                tail.referenced_task_tag = task_tag.into();
                tail.exp_data_sn = exp_data_sn.into();
            }
            _ => {}
        }
        let mut bhs = Bhs::new(Self::OPCODE).with_delivery(self.delivery);
        bhs.flags = FINAL | self.function.code();
        bhs.lun = self.lun;
        bhs.initiator_task_tag = self.task_tag;
        bhs.specific_tail = tail.bytes();
        bhs
    }
}

impl Pdu for TaskManagementResponse {
    const OPCODE: Opcode = Opcode::TaskManagementResponse;

    fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        check_no_ahs(bhs, Self::OPCODE)?;
        check_no_data(bhs)?;
        below_final(bhs)?;
        let [result, _] = bhs.specific_head;
        Ok(Self {
            result: TaskResult::from_code(result)?,
            task_tag: bhs.initiator_task_tag,
            serials: ResponseTail::of(bhs).serials.into(),
        })
    }

    fn to_bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Self::OPCODE);
        bhs.flags = FINAL;
        bhs.specific_head = [self.result.code(), 0];
        bhs.initiator_task_tag = self.task_tag;
        let serials = self.serials.into();
        bhs.specific_tail = ResponseTail { serials, ..ResponseTail::default() }.bytes();
        bhs
    }
}
