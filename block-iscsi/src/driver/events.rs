//! What the unit says of itself while it is in use, and changes of its length.

use std::sync::atomic::Ordering;

use block_core::driver::{Exactness, Prealloc};
use block_core::error::{Error, Result};

use crate::scsi::sense::Attention;
use crate::unit::UnitEvent;

use super::IscsiDriver;

impl IscsiDriver {
    /// Whatever happened, somebody else may have changed the medium.
    pub(super) fn heard(&self, event: UnitEvent) {
        self.forget();
        match event {
            UnitEvent::Attention(Attention::Capacity) => {
                self.capacity_is_old.store(true, Ordering::Release);
            }
            // Another medium, or a unit that is another one now, may have another length, too.
            UnitEvent::Attention(Attention::Medium | Attention::Inquiry) => {
                self.capacity_is_old.store(true, Ordering::Release);
                self.write_cache.store(true, Ordering::Release);
            }
            // Mode parameters may be others: who knows whether there is a cache now.
            UnitEvent::Attention(Attention::ModeParameters | Attention::Reset)
            | UnitEvent::Reset
            | UnitEvent::Reinstated => self.write_cache.store(true, Ordering::Release),
            UnitEvent::Attention(
                Attention::Reservations
                | Attention::Luns
                | Attention::SoftThreshold
                | Attention::Other,
            ) => {}
        }
    }

    /// Nothing is known any more, and what failed to be asked may be asked again.
    pub(super) fn forget(&self) {
        self.knowledge.forget();
        self.asking.start_anew();
    }

    /// Whether [`IscsiDriver::catch_up`] has something to do or to say.
    pub(super) fn needs_to_catch_up(&self) -> bool {
        self.capacity_is_old.load(Ordering::Acquire) || self.reformatted.load(Ordering::Acquire)
    }

    /// Comes first in every request: learns the length anew after the unit has said that it changed.
    pub(super) async fn catch_up(&self) -> Result<()> {
        if self.capacity_is_old.swap(false, Ordering::AcqRel) {
            let read = self.read_capacity().await;
            if read.is_err() {
                // The request itself may do; the next one tries again.
                self.capacity_is_old.store(true, Ordering::Release);
            }
        }
        if self.reformatted.load(Ordering::Acquire) { Err(Error::IO) } else { Ok(()) }
    }

    /// Asks the unit for its capacity. If it is another one, so is the length, and nothing is known.
    pub(super) async fn read_capacity(&self) -> Result<()> {
        let _alone = self.resizing.lock().await;
        let capacity = self.unit.capacity().await?;
        let reformatted = capacity.block_size() != self.facts.capacity.block_size();
        self.reformatted.store(reformatted, Ordering::Release);
        if reformatted {
            return Err(Error::IO);
        }
        let len = capacity.len();
        if len != self.len.load(Ordering::Acquire) {
            // The map goes first, so that nobody is told of bytes that it does not have.
            self.knowledge.resize(len, self.facts.grid(len));
            self.len.store(len, Ordering::Release);
        }
        Ok(())
    }

    /// A unit is resized by its target alone; here it can only be noticed.
    pub(super) async fn has_len(
        &self,
        wanted: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.read_capacity().await?;
        let len = self.len.load(Ordering::Acquire);
        let done = match exactness {
            Exactness::Exact => len == wanted,
            Exactness::AtLeast => len >= wanted,
        };
        if done && prealloc == Prealloc::Off { Ok(()) } else { Err(Error::Unsupported) }
    }
}
