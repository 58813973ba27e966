//! A target device: its logical units, who talks to them, and the way of a command (SAM-5 5).
//!
//! Invariants: a nexus is told each unit attention once, in order; a command that is refused changes
//! nothing; `Data-In` never is longer than the allocation length.

use std::collections::{BTreeMap, BTreeSet};

use block_core::range::to_u64;

use super::check::{Check, Refusal, SenseFormat};
use super::command::{self, Cdb, Entry, Op};
use super::lun::{Access, ConfigError, Lun, LunConfig, Medium};
use super::mode::Mode;
use super::{copy, describe};

/// An I_T nexus: an initiator's session, named by whoever drives the device. A session that comes
/// back under the same name finds its registrations.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nexus(pub u64);

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u8,
    /// Sense data; empty unless the status is CHECK CONDITION.
    pub sense: Vec<u8>,
    /// Data for the initiator, cut at the allocation length.
    pub data_in: Vec<u8>,
    /// How many bytes the command wants from the initiator.
    pub data_out_len: u64,
}

/// The difference between what an initiator expected to move and what there was to move (RFC 7143,
/// section 11.4.5).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Residual {
    /// As expected.
    None,
    /// So many bytes less.
    Underflow(u64),
    /// So many bytes more, which did not move.
    Overflow(u64),
}

impl Answer {
    /// The residual, if the initiator expected `expected` bytes to move.
    pub fn residual(&self, expected: u64) -> Residual {
        let moves = self.data_out_len.max(to_u64(self.data_in.len()));
        match moves.cmp(&expected) {
            std::cmp::Ordering::Equal => Residual::None,
            std::cmp::Ordering::Less => Residual::Underflow(expected - moves),
            std::cmp::Ordering::Greater => Residual::Overflow(moves - expected),
        }
    }
}

/// What was asked so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// By operation code and, where there is one in byte 1, service action.
    commands: BTreeMap<(u8, Option<u8>), u64>,
    /// Bytes of answers.
    pub data_in: u64,
    /// Bytes that came with commands.
    pub data_out: u64,
}

impl Counters {
    /// Commands with this operation code.
    pub fn of(&self, opcode: u8) -> u64 {
        let range = self.commands.range((opcode, None)..=(opcode, Some(u8::MAX)));
        range.map(|(_, count)| count).sum()
    }

    /// Operation codes that were seen, with the service actions of SERVICE ACTION IN (16), and how often.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Option<u8>, u64)> {
        self.commands.iter().map(|((opcode, action), count)| (*opcode, *action, *count))
    }

    /// Counts a command, by its first two bytes.
    pub(super) fn count(&mut self, opcode: u8, second: u8) {
        const SERVICE_ACTION_IN_16: u8 = 0x9e;
        let action = (opcode == SERVICE_ACTION_IN_16).then_some(second & 0x1f);
        *self.commands.entry((opcode, action)).or_default() += 1;
    }

    /// All commands.
    pub fn total(&self) -> u64 {
        self.commands.values().sum()
    }
}

/// A target with its logical units.
#[derive(Debug, Default)]
pub struct Device {
    pub(super) luns: BTreeMap<u16, Lun>,
    nexuses: BTreeSet<Nexus>,
    /// The names of initiator ports, also of sessions that have ended.
    names: BTreeMap<Nexus, String>,
    pub(super) counters: Counters,
    format: SenseFormat,
}

/// The service action of PERSISTENT RESERVE IN.
const FULL_STATUS: u8 = 3;

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const RESERVATION_CONFLICT: u8 = 0x18;

const POWER_ON: (u8, u8) = (0x29, 0x00);
const DEVICE_RESET: (u8, u8) = (0x29, 0x03);
pub(super) const MEDIUM_CHANGED: (u8, u8) = (0x28, 0x00);
pub(super) const MODE_CHANGED: (u8, u8) = (0x2a, 0x01);
const CAPACITY_CHANGED: (u8, u8) = (0x2a, 0x09);
const LUNS_CHANGED: (u8, u8) = (0x3f, 0x0e);

impl Device {
    /// A device without units that sends sense data in `format`.
    pub fn new(format: SenseFormat) -> Self {
        Self { format, ..Self::default() }
    }

    /// Adds a unit. Everybody who is connected is told.
    pub fn add(&mut self, number: u16, config: LunConfig) -> Result<(), ConfigError> {
        if number > 0x3fff || self.luns.contains_key(&number) {
            return Err(ConfigError::Number(number));
        }
        let lun = Lun::new(config, Mode::new(self.format))?;
        self.tell_all(LUNS_CHANGED);
        self.luns.insert(number, lun);
        self.tell(number, POWER_ON);
        Ok(())
    }

    /// Takes a unit away, with what it holds. Says whether there was one.
    pub fn remove(&mut self, number: u16) -> bool {
        let found = self.luns.remove(&number).is_some();
        if found {
            self.tell_all(LUNS_CHANGED);
        }
        found
    }

    /// A session begins: every unit tells it so (power on, reset or bus device reset occurred).
    pub fn connect(&mut self, nexus: Nexus) {
        self.nexuses.insert(nexus);
        for lun in self.luns.values_mut() {
            lun.forget(nexus);
            lun.tell(nexus, POWER_ON);
        }
    }

    /// Names the initiator port of a nexus, for READ FULL STATUS.
    pub fn name(&mut self, nexus: Nexus, port: &str) {
        self.names.insert(nexus, port.to_owned());
    }

    /// A session ends: what RESERVE (6) did is over, registrations stay.
    pub fn disconnect(&mut self, nexus: Nexus) {
        self.nexuses.remove(&nexus);
        for lun in self.luns.values_mut() {
            lun.forget(nexus);
            lun.reservations.forget_simple(nexus);
        }
    }

    /// Resets a unit (LOGICAL UNIT RESET). Says whether there is one.
    pub fn reset(&mut self, number: u16) -> bool {
        if let Some(lun) = self.luns.get_mut(&number) {
            lun.reset();
        }
        self.tell(number, DEVICE_RESET)
    }

    /// Gives a unit another length in blocks.
    pub fn resize(&mut self, number: u16, blocks: u64) -> Result<(), ConfigError> {
        let lun = self.luns.get_mut(&number).ok_or(ConfigError::Number(number))?;
        lun.resize(blocks)?;
        self.tell(number, CAPACITY_CHANGED);
        Ok(())
    }

    /// Write protects a unit or ends that. Says whether there is one.
    pub fn set_access(&mut self, number: u16, access: Access) -> bool {
        if let Some(lun) = self.luns.get_mut(&number) {
            lun.config.access = access;
        }
        self.tell(number, MODE_CHANGED)
    }

    /// Takes the medium out of a unit. Says whether that could be done: nobody prevents it.
    pub fn eject(&mut self, number: u16) -> bool {
        self.removable(number).is_some_and(|lun| std::mem::replace(&mut lun.medium_present, false))
    }

    /// Lets a SANITIZE that goes on fail. Says whether there is one.
    pub fn fail_sanitize(&mut self, number: u16) -> bool {
        self.luns.get_mut(&number).is_some_and(Lun::fail_sanitize)
    }

    /// Puts the medium back in. Says whether that could be done.
    pub fn insert(&mut self, number: u16) -> bool {
        let done = self
            .removable(number)
            .is_some_and(|lun| !std::mem::replace(&mut lun.medium_present, true));
        done && self.tell(number, MEDIUM_CHANGED)
    }

    fn removable(&mut self, number: u16) -> Option<&mut Lun> {
        let lun = self.luns.get_mut(&number)?;
        (lun.config.medium == Medium::Removable && lun.may_be_removed()).then_some(lun)
    }

    /// Tells everybody who is connected something of one unit; `false` if there is none.
    fn tell(&mut self, number: u16, code: (u8, u8)) -> bool {
        let Some(lun) = self.luns.get_mut(&number) else { return false };
        for nexus in &self.nexuses {
            lun.tell(*nexus, code);
        }
        true
    }

    fn tell_all(&mut self, code: (u8, u8)) {
        let numbers: Vec<_> = self.luns.keys().copied().collect();
        for number in numbers {
            self.tell(number, code);
        }
    }

    /// What was asked so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Begins to count anew.
    pub fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    /// The numbers of all units.
    pub fn numbers(&self) -> Vec<u16> {
        self.luns.keys().copied().collect()
    }

    /// Bytes of memory that the contents of all units take.
    pub fn memory(&self) -> u64 {
        self.luns.values().map(|lun| lun.store.memory()).sum()
    }

    /// Whether block `lba` of a unit is mapped; every block of a thick unit is.
    pub fn is_mapped(&self, number: u16, lba: u64) -> bool {
        self.luns.get(&number).is_some_and(|lun| !lun.is_thin() || lun.store.is_mapped(lba))
    }

    /// How many bytes a command wants from the initiator; zero if it will be refused as unknown.
    pub fn data_out_len(&self, number: u16, cdb: &[u8]) -> u64 {
        let cdb = Cdb::new(cdb);
        let block = self.luns.get(&number).map_or(0, |lun| lun.config.block_size.into());
        command::decode(cdb).map_or(0, |entry| command::data_out_len(entry, cdb, block))
    }

    /// Runs a command. Of a write, the whole blocks of `data_out` are written, at most as many as the
    /// CDB says.
    pub fn execute(&mut self, nexus: Nexus, number: u16, cdb: &[u8], data_out: &[u8]) -> Answer {
        let opcode = cdb.first().copied().unwrap_or(0);
        self.counters.count(opcode, cdb.get(1).copied().unwrap_or(0));
        self.counters.data_out += to_u64(data_out.len());
        let data_out_len = self.data_out_len(number, cdb);
        let result = self.run(nexus, number, Cdb::new(cdb), data_out);
        let mut answer =
            Answer { status: GOOD, sense: Vec::new(), data_in: Vec::new(), data_out_len };
        match result {
            Ok(data) => answer.data_in = data,
            Err(Refusal::ReservationConflict) => answer.status = RESERVATION_CONFLICT,
            Err(Refusal::Check(check)) => {
                answer.status = CHECK_CONDITION;
                let lun = self.luns.get(&number);
                answer.sense = check.sense(lun.map_or(self.format, |lun| lun.mode.format));
            }
        }
        self.counters.data_in += to_u64(answer.data_in.len());
        answer
    }

    fn run(
        &mut self,
        nexus: Nexus,
        number: u16,
        cdb: Cdb,
        data: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let entry = command::decode(cdb);
        let ignores = entry.as_ref().is_ok_and(|entry| entry.ignores_attention());
        if let Some(lun) = self.luns.get_mut(&number)
            && !ignores
            && let Some(attention) = lun.take_attention(nexus)
        {
            return Err(attention.into());
        }
        // These answer for LUNs that do not exist, too.
        match entry.as_ref().map(|entry| entry.op) {
            Ok(Op::Inquiry) => return Ok(describe::inquiry(self.luns.get(&number), cdb)?),
            Ok(Op::RequestSense) => return Ok(self.request_sense(nexus, number, cdb)),
            Ok(Op::ReportLuns) => {
                return Ok(describe::report_luns(self.luns.keys().copied(), cdb)?);
            }
            _ => {}
        }
        let lun = self.luns.get_mut(&number).ok_or(Check::NO_LUN)?;
        let entry = entry?;
        if !lun.has(entry) {
            let unknown = entry.action().map_or(Check::INVALID_OPCODE, |_| Check::field(1, 4));
            return Err(unknown.into());
        }
        lun.reservations.check(nexus, entry.kind(cdb))?;
        lun.check_sanitizing(entry)?;
        match entry.op {
            Op::ReserveOut => {
                for (other, code) in lun.reservations.change(nexus, cdb, data)? {
                    lun.tell(other, code);
                }
                Ok(Vec::new())
            }
            Op::ReserveIn if cdb.u8(1) == FULL_STATUS => {
                let unnamed = |nexus: Nexus| format!("iqn.2000-01.invalid:nexus-{}", nexus.0);
                let name = |nexus| self.names.get(&nexus).cloned().unwrap_or(unnamed(nexus));
                Ok(describe::cut(lun.reservations.full_status(name)?, cdb.u16(7)))
            }
            Op::ExtendedCopy => self.copy(nexus, number, cdb, data).map(|()| Vec::new()),
            _ => Self::run_on(lun, entry, nexus, cdb, data),
        }
    }

    fn run_on(
        lun: &mut Lun,
        entry: &Entry,
        nexus: Nexus,
        cdb: Cdb,
        data: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        if entry.needs_medium() && !lun.medium_present {
            return Err(Check::NO_MEDIUM.into());
        }
        if entry.writes() {
            lun.check_writable()?;
        }
        match entry.op {
            Op::Reserve6 => lun.reservations.reserve6(nexus)?,
            Op::Release6 => lun.reservations.release6(nexus)?,
            Op::ModeSelect6 | Op::ModeSelect10 => lun.mode_select(nexus, entry.op, cdb, data)?,
            Op::StartStop => lun.start_stop(nexus, cdb)?,
            Op::PreventRemoval => lun.prevent_removal(nexus, cdb),
            Op::ReserveIn => {
                return Ok(describe::cut(lun.reservations.answer(cdb.u8(1))?, cdb.u16(7)));
            }
            Op::ModeSense6 | Op::ModeSense10 => return Ok(lun.mode_sense(entry.op, cdb)?),
            Op::ReportOpcodes => return Ok(lun.report_opcodes(cdb)?),
            Op::ReadDefects10 | Op::ReadDefects12 => return Ok(describe::defects(entry.op, cdb)),
            Op::CopyStatus => return Ok(copy::status(&lun.copies, nexus, cdb)?),
            Op::CopyParameters => return Ok(copy::parameters(cdb)),
            op => return Ok(lun.run_medium(op, cdb, data)?),
        }
        Ok(Vec::new())
    }

    /// REQUEST SENSE (SPC-4): what the nexus must be told, as data.
    fn request_sense(&mut self, nexus: Nexus, number: u16, cdb: Cdb) -> Vec<u8> {
        let check = match self.luns.get_mut(&number) {
            None => Check::NO_LUN,
            Some(lun) => {
                let attention = lun.take_attention(nexus);
                attention.or_else(|| lun.sanitize_step()).unwrap_or(Check::NO_SENSE)
            }
        };
        let wanted = if cdb.has(1, 1) { SenseFormat::Descriptor } else { SenseFormat::Fixed };
        describe::cut(check.sense(wanted), cdb.u8(4))
    }
}
