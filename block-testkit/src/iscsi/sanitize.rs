//! SANITIZE (SBC-3): everything that a unit holds is gone.
//!
//! There is no clock: an operation that goes on for a while (`LunConfig::sanitize_steps`) makes a step
//! whenever a command is refused because of it, whether IMMED was set or not. What the unit holds
//! changes when it begins; nobody can read it before it ends.

use block_core::range::to_usize;

use super::check::Check;
use super::command::{Cdb, Entry, Op};
use super::lun::Lun;

/// The largest unit that can be overwritten: every block of it takes memory.
const OVERWRITE_BYTES_MAX: u64 = 64 << 20;
/// AUSE: a failed operation can be left.
const UNRESTRICTED_EXIT: u8 = 0x20;

/// What goes on.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Sanitizing {
    /// Nothing.
    #[default]
    Idle,
    /// An operation, which may be left if it fails.
    Running { done: u32, exit: bool },
    /// One has failed. Nothing else can be done until one succeeds, or it is left.
    Failed { exit: bool },
}

impl Lun {
    pub(super) fn can_be_overwritten(&self) -> bool {
        self.config.blocks * self.block() <= OVERWRITE_BYTES_MAX
    }

    pub(super) fn sanitize(&mut self, op: Op, cdb: Cdb, data: &[u8]) -> Result<(), Check> {
        if op == Op::Overwrite {
            let block = self.overwriting_block(cdb, data)?;
            self.store.fill(0, self.config.blocks, &block);
        } else if cdb.u16(7) != 0 {
            return Err(Check::field(7, 7));
        } else if op == Op::ExitFailureMode {
            if self.sanitizing == (Sanitizing::Failed { exit: false }) {
                return Err(Check::field(1, 4));
            }
            self.sanitizing = Sanitizing::Idle;
            return Ok(());
        } else {
            self.store.truncate(0);
        }
        self.sanitizing = match self.config.sanitize_steps {
            0 => Sanitizing::Idle,
            _ => Sanitizing::Running { done: 0, exit: cdb.has(1, UNRESTRICTED_EXIT) },
        };
        Ok(())
    }

    /// What each block holds after the last pass (the parameter list of OVERWRITE, SBC-3).
    fn overwriting_block(&self, cdb: Cdb, data: &[u8]) -> Result<Vec<u8>, Check> {
        let (len, block) = (usize::from(cdb.u16(7)), to_usize(self.block()));
        if len < 5 || len > block + 4 {
            return Err(Check::field(7, 7));
        }
        let list = data.get(..len).ok_or(Check::LIST_LENGTH)?;
        let head = Cdb::new(list);
        let (inverts, test, passes) = (head.has(0, 0x80), head.u8(0) & 0x60, head.u8(0) & 0x1f);
        if test != 0 {
            return Err(Check::parameter(0, 6));
        }
        if passes == 0 {
            return Err(Check::parameter(0, 4));
        }
        let pattern = list[4..].get(..usize::from(head.u16(2))).unwrap_or(&[]);
        if pattern.is_empty() {
            return Err(Check::parameter(2, 7));
        }
        // INVERT: each pass inverts what the one before it wrote.
        let mask = if inverts && passes % 2 == 0 { 0xff } else { 0 };
        Ok(pattern.iter().cycle().take(block).map(|byte| byte ^ mask).collect())
    }

    /// Refuses a command while the unit is being sanitized, which is a step of it, and after that
    /// failed.
    pub(super) fn check_sanitizing(&mut self, entry: &Entry) -> Result<(), Check> {
        match self.sanitizing {
            Sanitizing::Failed { .. } if !entry.sanitizes() => Err(Check::SANITIZE_FAILED),
            _ => self.sanitize_step().map_or(Ok(()), Err),
        }
    }

    /// Makes a step of an operation; says how far it was, or that it has ended.
    pub(super) fn sanitize_step(&mut self) -> Option<Check> {
        let steps = self.config.sanitize_steps;
        let Sanitizing::Running { done, exit } = self.sanitizing else { return None };
        if done >= steps {
            self.sanitizing = Sanitizing::Idle;
            return None;
        }
        self.sanitizing = Sanitizing::Running { done: done + 1, exit };
        let progress = u64::from(done) * 0x1_0000 / u64::from(steps);
        Some(Check::sanitizing(u16::try_from(progress).unwrap_or(u16::MAX)))
    }

    /// Lets an operation fail. Says whether there is one.
    pub(super) fn fail_sanitize(&mut self) -> bool {
        let Sanitizing::Running { exit, .. } = self.sanitizing else { return false };
        self.sanitizing = Sanitizing::Failed { exit };
        true
    }
}
