//! A medium that can be taken out: START STOP UNIT (SBC-3), PREVENT ALLOW MEDIUM REMOVAL
//! (SPC-4).
//!
//! Invariant: while a nexus prevents it, the medium neither comes nor goes.

use super::check::Check;
use super::command::Cdb;
use super::device::{MEDIUM_CHANGED, Nexus};
use super::lun::{Lun, Medium};

const START: u8 = 0x01;
const LOAD_EJECT: u8 = 0x02;

impl Lun {
    /// There are no power conditions and no motor: each is as good as any other. LOEJ counts only
    /// where no power condition is asked for.
    pub(super) fn start_stop(&mut self, nexus: Nexus, cdb: Cdb) -> Result<(), Check> {
        let power_condition = cdb.u8(4) >> 4;
        if power_condition != 0 || !cdb.has(4, LOAD_EJECT) {
            return Ok(());
        }
        if self.config.medium == Medium::Fixed {
            return Err(Check::field(4, 1));
        }
        if !self.may_be_removed() {
            return Err(Check::REMOVAL_PREVENTED);
        }
        let load = cdb.has(4, START);
        if load && !self.medium_present {
            self.tell_others(nexus, MEDIUM_CHANGED);
        }
        self.medium_present = load;
        Ok(())
    }

    pub(super) fn prevent_removal(&mut self, nexus: Nexus, cdb: Cdb) {
        if cdb.has(4, 1) {
            self.preventing.insert(nexus);
        } else {
            self.preventing.remove(&nexus);
        }
    }

    /// Whether nobody prevents it.
    pub(super) fn may_be_removed(&self) -> bool {
        self.preventing.is_empty()
    }
}
