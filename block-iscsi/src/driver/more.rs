//! What a unit can do beside requests: commands of somebody else, COMPARE AND WRITE, reservations.
//!
//! All of it passes by here, and not by the unit itself, because what is known of the medium must hear
//! of whatever changes it. The layer does not hear of it: no request waits for it, and dirty bitmaps do not
//! know what it writes. Flushes do.

use std::sync::atomic::Ordering;

use block_core::error::{Error, Result};
use block_core::{ByteRange, IoVec};

use crate::nexus::{Completion, Data, TaskError};
use crate::scsi::cdb::{Caching, CdbBytes, Replay};
use crate::scsi::inquiry::Designator;
use crate::scsi::luns::Lun;
use crate::scsi::reservation::{Capabilities, Keys, Reservation, ReserveList, ReserveOut};
use crate::scsi::sense::SenseKey;
use crate::unit::UnitError;

use super::IscsiDriver;
use super::knowledge::Change;

/// How a COMPARE AND WRITE that was carried out has ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Compared {
    /// The medium held what was expected, and holds the new data.
    Written,
    /// It held something else, from this byte of the range on if the unit says so. Nothing changed.
    Differs {
        /// Offset of the first byte that differs.
        offset: Option<u64>,
    },
}

impl IscsiDriver {
    /// Sends a command as it is, once, and gives the target's answer as it is. Unless the command is
    /// known to leave the medium alone, everything that is known of the medium is forgotten, and the unit is
    /// asked for its shape; also if the future is dropped. A command whose connection is lost fails with
    /// [`TaskError::Reinstated`] if it could be sent again.
    pub async fn execute_raw(&self, cdb: CdbBytes, data: Data) -> Result<Completion, TaskError> {
        if leaves_medium_alone(&cdb) {
            return self.unit.pass_through(cdb, Replay::Safe, data).await;
        }
        let running = self.knowledge.begin_anything();
        // It may run without anybody who waits for its end.
        self.shape_may_be_another();
        let completion = self.unseen(self.unit.pass_through(cdb, Replay::Unsafe, data)).await;
        self.knowledge.done(running);
        self.shape_may_be_another();
        completion
    }

    /// Writes `new` to `range`, of at most 255 blocks, if that holds `expected`; nobody else's command
    /// comes in between. `ReadOnly` if the disk was not opened for writing.
    ///
    /// Must not run beside writes of a node to the same blocks: the layer may read blocks and write them
    /// back. A flush that begins after its end makes it stable.
    pub async fn compare_and_write(
        &self,
        range: ByteRange,
        expected: &IoVec,
        new: &IoVec,
        caching: Caching,
    ) -> Result<Compared> {
        if self.read_only.load(Ordering::Acquire) {
            return Err(Error::ReadOnly);
        }
        let max = self.facts.limits.max_compare_and_write.ok_or(Error::Unsupported)?;
        let aligned = range.is_aligned(self.facts.limits.block) && !range.is_empty();
        let len = block_core::range::to_usize(range.len());
        if !aligned || range.len() > max || [expected.len(), new.len()] != [len; 2] {
            return Err(Error::Invalid);
        }
        self.catch_up().await?;
        let (lba, blocks) = self.blocks(range)?;
        let blocks = u8::try_from(blocks).map_err(|_| Error::Invalid)?;
        let data: IoVec = expected.bufs().iter().chain(new.bufs()).cloned().collect();
        let running = self.knowledge.begin(range, Change::Data);
        let written = self.unseen(self.unit.compare_and_write(lba, blocks, data, caching)).await;
        match written {
            Ok(()) => {
                self.knowledge.done(running);
                Ok(Compared::Written)
            }
            Err(error) => {
                self.knowledge.failed(running);
                differs(error)
            }
        }
    }

    /// RESERVE (6): the unit for this initiator alone.
    pub async fn reserve(&self) -> Result<(), UnitError> {
        self.unit.reserve().await
    }

    /// RELEASE (6).
    pub async fn release(&self) -> Result<(), UnitError> {
        self.unit.release().await
    }

    /// PERSISTENT RESERVE OUT.
    pub async fn persistent_reserve(
        &self,
        action: ReserveOut,
        list: &ReserveList,
    ) -> Result<(), UnitError> {
        self.unit.persistent_reserve(action, list).await
    }

    /// The keys that are registered.
    pub async fn persistent_keys(&self) -> Result<Keys, UnitError> {
        self.unit.persistent_keys().await
    }

    /// Who holds the persistent reservation.
    pub async fn persistent_reservation(&self) -> Result<Reservation, UnitError> {
        self.unit.persistent_reservation().await
    }

    /// Which persistent reservations there can be.
    pub async fn persistent_capabilities(&self) -> Result<Capabilities, UnitError> {
        self.unit.persistent_capabilities().await
    }

    /// The units of the target.
    pub async fn report_luns(&self) -> Result<Vec<Lun>, UnitError> {
        self.unit.report_luns().await
    }

    /// Who the unit is, its target and its port.
    pub async fn designators(&self) -> Result<Vec<Designator>, UnitError> {
        self.unit.designators().await
    }

    /// Resets the unit: what is under way ends as aborted and is sent again.
    pub async fn reset(&self) -> Result<(), TaskError> {
        self.unit.reset().await
    }
}

fn differs(error: UnitError) -> Result<Compared> {
    match error {
        UnitError::Sense { sense, .. } if sense.key == SenseKey::Miscompare => {
            Ok(Compared::Differs { offset: sense.information })
        }
        error if error.is_unknown_command() => Err(Error::Unsupported),
        error => Err(error.into()),
    }
}

/// Whether a command is known to change neither the blocks nor what they read as.
fn leaves_medium_alone(cdb: &CdbBytes) -> bool {
    let bytes = cdb.as_slice();
    let action = bytes.get(1).map(|byte| byte & 0x1f);
    match bytes.first() {
        // TEST UNIT READY, REQUEST SENSE, READ (6), INQUIRY, MODE SENSE (6)
        Some(0x00 | 0x03 | 0x08 | 0x12 | 0x1a) => true,
        // READ CAPACITY (10), READ (10), SYNCHRONIZE CACHE (10), LOG SENSE, MODE SENSE (10)
        Some(0x25 | 0x28 | 0x35 | 0x4d | 0x5a) => true,
        // PERSISTENT RESERVE IN, READ (16), SYNCHRONIZE CACHE (16)
        Some(0x5e | 0x88 | 0x91) => true,
        // READ CAPACITY (16), GET LBA STATUS
        Some(0x9e) => matches!(action, Some(0x10 | 0x12)),
        // REPORT LUNS, READ (12)
        Some(0xa0 | 0xa8) => true,
        // REPORT SUPPORTED OPERATION CODES
        Some(0xa3) => action == Some(0x0c),
        _ => false,
    }
}
