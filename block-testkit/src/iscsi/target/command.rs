//! SCSI tasks: their data from the initiator, immediate, unsolicited and asked for, and their ends
//! (RFC 7143, sections 4.2.5, 11.3, 11.4, 11.7, 11.8).
//!
//! Invariants: a task is carried out once, when all its data is there; data comes in order, so what is
//! held of a task is what has come; of one session at most [`SESSION_DATA_MAX`] bytes, or those of one
//! task, are asked for at the same time.

use std::collections::{BTreeMap, VecDeque};

use block_core::range::{to_u64, to_usize};
use block_iscsi::pdu::Pdu;
use block_iscsi::pdu::bhs::Bhs;
use block_iscsi::pdu::data::{DataOut, ReadyToTransfer, Sequence};
use block_iscsi::pdu::fields::{DataLen, Delivery, Residual};
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::pdu::scsi::{
    CommandOutcome, Direction, ScsiCommand, ScsiResponse, SenseSegment, Unsolicited,
};
use block_iscsi::serial::Serial;

use super::Core;
use super::data_in::Source;
use super::frame::Frame;
use super::output::Output;
use super::session::Session;
use crate::iscsi::{Answer, Residual as Moved};

/// Most bytes that one task may send. Units refuse what is longer than they take.
const TASK_DATA_MAX: u32 = 1 << 26;
/// Most bytes that are asked for from one session.
const SESSION_DATA_MAX: u64 = 1 << 28;
/// Most immediate commands under way.
const IMMEDIATE_MAX: usize = 16;
/// Tags of tasks that were aborted, whose data may still be on its way.
const ABORTED_MAX: usize = 256;
/// No unit has this number.
pub(super) const NO_UNIT: u16 = u16::MAX;

const CHECK_CONDITION: u8 = 0x02;

/// Conditions of RFC 7143, section 11.4.7.2: ABORTED COMMAND with these codes.
const UNEXPECTED_DATA: [u8; 2] = [0x0c, 0x0c];
const WRONG_AMOUNT: [u8; 2] = [0x0c, 0x0d];
const CRC_ERROR: [u8; 2] = [0x47, 0x05];

/// What is known of a command.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) tag: u32,
    pub(super) lun: [u8; 8],
    pub(super) number: u16,
    pub(super) cdb: [u8; 16],
    /// Bytes that are expected to the target.
    expected_out: u32,
    /// Bytes that are expected to the initiator.
    pub(super) expected_in: u32,
    delivery: Delivery,
}

/// A sequence of Data-Out PDUs.
#[derive(Debug)]
struct Burst {
    /// Of its R2T; none if it is not asked for.
    tag: Option<u32>,
    data_sn: Serial,
    at: u32,
    end: u32,
}

/// A command that waits for data.
#[derive(Debug)]
struct Task {
    head: Head,
    data: Vec<u8>,
    /// How many bytes are wanted.
    wanted: u32,
    /// Bytes that have come unasked or have been asked for.
    asked: u32,
    /// What is on its way, in its order.
    bursts: VecDeque<Burst>,
    r2t_sn: Serial,
    /// Whether its data is counted as asked for.
    admitted: bool,
    failure: Option<[u8; 2]>,
}

/// The tasks of a session that wait for data.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    open: BTreeMap<u32, Task>,
    ordered: u32,
    /// Bytes that admitted tasks want.
    admitted: u64,
    /// Who waits for being admitted.
    waiting: VecDeque<u32>,
    aborted: VecDeque<u32>,
    /// Commands that ran and are not answered yet.
    held: Vec<(Head, Answer)>,
    next_tag: u32,
}

impl Tasks {
    /// How many tasks take a place in the window.
    pub(super) fn ordered(&self) -> u32 {
        self.ordered
    }

    pub(super) fn is_open(&self, tag: u32) -> bool {
        self.open.contains_key(&tag) || self.held.iter().any(|(head, _)| head.tag == tag)
    }

    /// How many commands ran and are not answered.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    fn hold(&mut self, head: Head, answer: Answer) {
        if head.delivery == Delivery::Ordered {
            self.ordered += 1;
        }
        self.held.push((head, answer));
    }

    fn let_go(&mut self, fits: impl Fn(&Head) -> bool) -> Vec<(Head, Answer)> {
        let gone: Vec<_> = self.held.extract_if(.., |(head, _)| fits(head)).collect();
        let ordered = gone.iter().filter(|(head, _)| head.delivery == Delivery::Ordered).count();
        self.ordered -= u32::try_from(ordered).unwrap_or(u32::MAX).min(self.ordered);
        gone
    }

    fn take(&mut self, tag: u32) -> Option<Task> {
        let task = self.open.remove(&tag)?;
        if task.head.delivery == Delivery::Ordered {
            self.ordered -= 1;
        }
        if task.admitted {
            self.admitted -= u64::from(task.wanted);
        }
        self.waiting.retain(|waiting| *waiting != tag);
        Some(task)
    }

    /// Forgets a task. Says whether there was one.
    pub(super) fn abort(&mut self, tag: u32) -> bool {
        if !self.let_go(|head| head.tag == tag).is_empty() {
            return true;
        }
        let found = self.take(tag).is_some();
        if found {
            if self.aborted.len() == ABORTED_MAX {
                self.aborted.pop_front();
            }
            self.aborted.push_back(tag);
        }
        found
    }

    /// Forgets the tasks of a unit, or all of them.
    pub(super) fn abort_all(&mut self, unit: Option<u16>) {
        let of_unit = |head: &Head| unit.is_none_or(|unit| head.number == unit);
        let heads = self.open.values().map(|task| &task.head);
        let tags: Vec<_> = heads.filter(|head| of_unit(head)).map(|head| head.tag).collect();
        for tag in tags {
            self.abort(tag);
        }
        self.let_go(of_unit);
    }
}

impl Task {
    /// The sequence that a PDU belongs to must be the one that is next.
    fn take_data(&mut self, pdu: &DataOut, data: &[u8]) {
        let Some(burst) = self.bursts.front_mut() else { return };
        let len = pdu.data_len.bytes();
        let end = burst.at.saturating_add(len);
        let in_order = pdu.data_sn == burst.data_sn && pdu.buffer_offset == burst.at;
        if !in_order {
            // Something is missing (section 7.9).
            self.failure.get_or_insert(CRC_ERROR);
        } else if end > burst.end {
            self.failure.get_or_insert(WRONG_AMOUNT);
        } else {
            let room = to_usize(self.wanted.into()).saturating_sub(self.data.len());
            self.data.extend(data.iter().take(room));
            burst.at = end;
            burst.data_sn = burst.data_sn.next();
        }
        if pdu.sequence == Sequence::Ends {
            // Unsolicited data may end early; what is missing is asked for.
            if burst.tag.is_none() {
                self.asked = burst.at;
            } else if burst.at != burst.end {
                self.failure.get_or_insert(WRONG_AMOUNT);
            }
            self.bursts.pop_front();
        }
    }
}

impl Session {
    /// Takes a SCSI command.
    pub(super) fn command(
        &mut self,
        pdu: &ScsiCommand,
        frame: Frame<'_>,
        out: &mut Output,
        core: &mut Core,
    ) {
        if self.tasks.is_open(pdu.task_tag) {
            return self.reject(RejectReason::TaskInProgress, frame.header, out);
        }
        if pdu.delivery == Delivery::Immediate
            && self.tasks.open.len() - to_usize(self.tasks.ordered().into()) >= IMMEDIATE_MAX
        {
            return self.reject(RejectReason::TooManyImmediateCommands, frame.header, out);
        }
        let (expected_out, expected_in, unsolicited) = match pdu.direction {
            Direction::None => (0, 0, Unsolicited::None),
            Direction::Read => (0, pdu.expected_len, Unsolicited::None),
            Direction::Write(unsolicited) => (pdu.expected_len, 0, unsolicited),
            Direction::Both { write, read_len } => (pdu.expected_len, read_len, write),
        };
        let head = Head {
            tag: pdu.task_tag,
            lun: pdu.lun,
            number: unit(pdu.lun),
            cdb: *pdu.cdb.head(),
            expected_out,
            expected_in,
            delivery: pdu.delivery,
        };
        if expected_out == 0 {
            return self.run(&head, &[], out, core);
        }
        self.write(head, unsolicited, frame.data, out, core);
    }

    /// A command with data from the initiator.
    fn write(
        &mut self,
        head: Head,
        unsolicited: Unsolicited,
        data: &[u8],
        out: &mut Output,
        core: &mut Core,
    ) {
        let wanted = core.device.data_out_len(head.number, &head.cdb);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let wanted = wanted.min(head.expected_out).min(TASK_DATA_MAX);
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let first_burst = self.agreed.first_burst_len.min(self.agreed.max_burst_len);
        let follows = unsolicited == Unsolicited::Follows;
        let failure =
            if (len > 0 && !self.agreed.immediate_data) || (follows && self.agreed.initial_r2t) {
                Some(UNEXPECTED_DATA)
            } else if len > first_burst {
                Some(WRONG_AMOUNT)
            } else {
                None
            };
        if !follows {
            if let Some(code) = failure {
                return self.fail(&head, code, out);
            }
            // More than is wanted is the device's to judge.
            if len >= wanted {
                return self.run(&head, data, out, core);
            }
        }
        let mut bursts = VecDeque::new();
        if follows {
            let end = head.expected_out.min(first_burst);
            bursts.push_back(Burst { tag: None, data_sn: Serial::new(0), at: len, end });
        }
        let mut task = Task {
            data: Vec::new(),
            wanted,
            asked: len,
            bursts,
            r2t_sn: Serial::new(0),
            admitted: false,
            failure,
            head,
        };
        task.data.extend(data.iter().take(to_usize(wanted.into())));
        let tag = task.head.tag;
        if task.head.delivery == Delivery::Ordered {
            self.tasks.ordered += 1;
        }
        self.tasks.open.insert(tag, task);
        self.go_on(tag, out, core);
    }

    /// Takes data of a write.
    pub(super) fn data_out(
        &mut self,
        pdu: &DataOut,
        frame: Frame<'_>,
        out: &mut Output,
        core: &mut Core,
    ) {
        let Some(task) = self.tasks.open.get_mut(&pdu.task_tag) else {
            if !self.tasks.aborted.contains(&pdu.task_tag) {
                self.reject(RejectReason::ProtocolError, frame.header, out);
            }
            return;
        };
        let next = task.bursts.front();
        if next.is_none_or(|burst| burst.tag != pdu.target_tag) {
            return self.reject(RejectReason::InvalidField, frame.header, out);
        }
        if !frame.intact {
            // What it says of itself counts, its data does not (section 7.8).
            task.failure.get_or_insert(CRC_ERROR);
        }
        task.take_data(pdu, frame.data);
        self.go_on(pdu.task_tag, out, core);
    }

    /// Does what can be done for a task: waits, asks for data, carries it out.
    fn go_on(&mut self, tag: u32, out: &mut Output, core: &mut Core) {
        let Some(task) = self.tasks.open.get(&tag) else { return };
        let unasked = task.bursts.front().is_some_and(|burst| burst.tag.is_none());
        let ends = task.failure.is_some() || task.asked >= task.wanted;
        if unasked || (ends && !task.bursts.is_empty()) {
            return;
        }
        if !ends {
            return self.ask(tag, out);
        }
        let Some(task) = self.tasks.take(tag) else { return };
        match task.failure {
            Some(code) => self.fail(&task.head, code, out),
            None => self.run(&task.head, &task.data, out, core),
        }
        self.admit_waiting(out);
    }

    /// Asks for more data of a task, if there is room for it.
    fn ask(&mut self, tag: u32, out: &mut Output) {
        if !self.admit(tag) {
            return;
        }
        let most = usize::from(self.agreed.max_outstanding_r2t.max(1));
        loop {
            let serials = self.serials();
            let Some(task) = self.tasks.open.get_mut(&tag) else { return };
            if task.bursts.len() >= most || task.asked >= task.wanted {
                return;
            }
            let len = self.agreed.max_burst_len.min(task.wanted - task.asked);
            self.tasks.next_tag = self.tasks.next_tag.wrapping_add(1) & 0x7fff_ffff;
            let target_tag = self.tasks.next_tag;
            let r2t = ReadyToTransfer {
                lun: task.head.lun,
                task_tag: tag,
                target_tag,
                serials,
                r2t_sn: task.r2t_sn,
                buffer_offset: task.asked,
                desired_len: len,
            };
            task.bursts.push_back(Burst {
                tag: Some(target_tag),
                data_sn: Serial::new(0),
                at: task.asked,
                end: task.asked + len,
            });
            task.r2t_sn = task.r2t_sn.next();
            task.asked += len;
            out.put(&r2t.to_bytes(), &[]);
        }
    }

    /// Whether data of a task may be asked for now. If not, it waits.
    fn admit(&mut self, tag: u32) -> bool {
        let tasks = &mut self.tasks;
        let Some(task) = tasks.open.get_mut(&tag) else { return false };
        if task.admitted {
            return true;
        }
        let wanted = u64::from(task.wanted);
        task.admitted = tasks.admitted == 0 || tasks.admitted + wanted <= SESSION_DATA_MAX;
        if task.admitted {
            tasks.admitted += wanted;
        } else if !tasks.waiting.contains(&tag) {
            tasks.waiting.push_back(tag);
        }
        task.admitted
    }

    fn admit_waiting(&mut self, out: &mut Output) {
        while let Some(tag) = self.tasks.waiting.front().copied() {
            if !self.admit(tag) {
                return;
            }
            self.tasks.waiting.pop_front();
            self.ask(tag, out);
        }
    }

    /// Carries a command out and answers it.
    fn run(&mut self, head: &Head, data: &[u8], out: &mut Output, core: &mut Core) {
        let [opcode, ..] = head.cdb;
        if core.held.contains(&opcode) {
            let answer = core.execute(self.nexus, head.number, &head.cdb, data);
            return self.tasks.hold(head.clone(), answer);
        }
        if head.expected_in > 0
            && let Some(blocks) = core.device.read(self.nexus, head.number, &head.cdb)
        {
            return self.answer_read(head, Source::Blocks(blocks), out);
        }
        let answer = core.execute(self.nexus, head.number, &head.cdb, data);
        self.end_command(head, &answer, out);
    }

    /// Answers what was held.
    pub(super) fn release(&mut self, out: &mut Output) {
        for (head, answer) in self.tasks.let_go(|_| true) {
            self.end_command(&head, &answer, out);
        }
    }

    fn end_command(&mut self, head: &Head, answer: &Answer, out: &mut Output) {
        if answer.status == 0 && !answer.data_in.is_empty() && head.expected_in > 0 {
            return self.answer_read(head, Source::Bytes(&answer.data_in), out);
        }
        self.respond(head, answer, out);
    }

    fn respond(&mut self, head: &Head, answer: &Answer, out: &mut Output) {
        let of = |expected: u32| match answer.residual(expected.into()) {
            Moved::None => Residual::None,
            Moved::Underflow(count) => Residual::Underflow(short(count)),
            Moved::Overflow(count) => Residual::Overflow(short(count)),
        };
        let both = head.expected_out > 0 && head.expected_in > 0;
        let outcome = CommandOutcome::Completed {
            status: answer.status,
            residual: of(if head.expected_out > 0 { head.expected_out } else { head.expected_in }),
            read_residual: if both { of(head.expected_in) } else { Residual::None },
        };
        self.send_response(head, outcome, &answer.sense, out);
    }

    /// Ends a command whose data was not as it has to be.
    fn fail(&mut self, head: &Head, [asc, ascq]: [u8; 2], out: &mut Output) {
        let mut sense = [0; 18];
        (sense[0], sense[2], sense[7]) = (0x70, 0x0b, 10);
        (sense[12], sense[13]) = (asc, ascq);
        let outcome = CommandOutcome::Completed {
            status: CHECK_CONDITION,
            residual: Residual::None,
            read_residual: Residual::None,
        };
        self.send_response(head, outcome, &sense, out);
    }

    fn send_response(
        &mut self,
        head: &Head,
        outcome: CommandOutcome,
        sense: &[u8],
        out: &mut Output,
    ) {
        let data = match sense {
            [] => Vec::new(),
            sense => SenseSegment { sense, rest: &[] }.to_bytes().unwrap_or_default(),
        };
        let response = ScsiResponse {
            outcome,
            task_tag: head.tag,
            snack_tag: None,
            serials: self.take_serials(),
            exp_data_sn: Serial::new(0),
            data_len: DataLen::of(&data).unwrap_or_default(),
        };
        // The tag that SNACKs need is 0 here (section 11.4).
        let mut bhs: Bhs = response.to_bhs();
        bhs.specific_tail[..4].fill(0);
        out.put(&bhs.to_bytes(), &data);
    }
}

pub(super) fn short(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The number of a unit: a single level, by peripheral or flat addressing (SAM-5 4.7).
pub(super) fn unit([high, low, rest @ ..]: [u8; 8]) -> u16 {
    match high >> 6 {
        _ if rest != [0; 6] => NO_UNIT,
        0 if high == 0 => low.into(),
        1 => u16::from_be_bytes([high & 0x3f, low]),
        _ => NO_UNIT,
    }
}

/// How many bytes of an answer fit what is expected, and how its length differs from that.
pub(super) fn residual(len: u64, expected: u32) -> (u32, Residual) {
    let moved = short(len.min(expected.into()));
    let residual = match len.cmp(&u64::from(expected)) {
        std::cmp::Ordering::Equal => Residual::None,
        std::cmp::Ordering::Less => Residual::Underflow(expected - moved),
        std::cmp::Ordering::Greater => {
            Residual::Overflow(short(len - to_u64(to_usize(expected.into()))))
        }
    };
    (moved, residual)
}
