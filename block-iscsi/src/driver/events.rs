//! What the unit says of itself while it is in use, and changes of its length.

use std::sync::atomic::Ordering;

use block_core::driver::{Exactness, Prealloc};
use block_core::error::{Error, Result};

use crate::scsi::sense::Attention;
use crate::unit::UnitEvent;

use super::{IscsiDriver, open};

/// How often a unit that changes while it is asked for its capacity is asked again.
const ASKS_MAX: u32 = 16;

impl IscsiDriver {
    /// Whatever happened, somebody else may have changed the medium.
    pub(super) fn heard(&self, event: UnitEvent) {
        self.forget();
        match event {
            UnitEvent::Attention(
                Attention::Reservations | Attention::Luns | Attention::SoftThreshold,
            ) => {}
            UnitEvent::WriteLost => {
                self.write_lost.store(true, Ordering::Release);
                self.shape_may_be_another();
            }
            // Of all that happened while nobody could hear of it, a target may name one thing only.
            UnitEvent::Attention(_) | UnitEvent::Reset | UnitEvent::Reinstated => {
                self.shape_may_be_another();
            }
        }
    }

    /// Who knows how long the unit is now, how long its blocks are, and whether it has a cache.
    pub(super) fn shape_may_be_another(&self) {
        self.write_cache.store(true, Ordering::Release);
        self.shape_events.fetch_add(1, Ordering::AcqRel);
    }

    /// Nothing is known any more, and what failed to be asked may be asked again.
    pub(super) fn forget(&self) {
        self.knowledge.forget();
        self.asking.start_anew();
    }

    fn shape_is_old(&self) -> bool {
        self.shape_known.load(Ordering::Acquire) != self.shape_events.load(Ordering::Acquire)
    }

    /// Whether [`IscsiDriver::catch_up`] has something to do or to say.
    pub(super) fn needs_to_catch_up(&self) -> bool {
        self.shape_is_old() || self.reformatted.load(Ordering::Acquire)
    }

    /// Comes first in every request, and before a command of one is sent again: learns the unit's shape
    /// anew after something has happened to it. All wait for the answer; who does not get one fails.
    pub(super) async fn catch_up(&self) -> Result<()> {
        if self.shape_is_old() {
            let _alone = self.resizing.lock().await;
            let mut asks = 0;
            while self.shape_is_old() {
                if asks == ASKS_MAX {
                    return Err(Error::Busy);
                }
                asks += 1;
                self.learn_shape().await?;
            }
        }
        if self.reformatted.load(Ordering::Acquire) { Err(Error::IO) } else { Ok(()) }
    }

    /// Asks the unit for its capacity, whether or not something has happened to it.
    pub(super) async fn read_capacity(&self) -> Result<()> {
        let _alone = self.resizing.lock().await;
        self.learn_shape().await?;
        if self.reformatted.load(Ordering::Acquire) { Err(Error::IO) } else { Ok(()) }
    }

    /// Takes in what READ CAPACITY says: the lengths of the unit and of its blocks, and what unmapped
    /// ones read as. If anything of that is new, nothing is known of the medium. `resizing` is held.
    async fn learn_shape(&self) -> Result<()> {
        // What happens from now on may be news to the answer.
        let events = self.shape_events.load(Ordering::Acquire);
        let capacity = self.unit.capacity().await?;
        let known = &self.facts.capacity;
        let reformatted = capacity.block_size() != known.block_size();
        self.reformatted.store(reformatted, Ordering::Release);
        if !reformatted {
            let says_less = known.management.reads_zeroes && !capacity.management.reads_zeroes;
            let page = self.facts.provisioning.as_ref();
            let read_zeroes = self.reads_zeroes();
            if says_less || !open::reads_zeroes(&capacity, page) {
                // For good: zeroes that were unmapped meanwhile would be none.
                self.reads_zeroes.store(false, Ordering::Release);
            }
            let len = capacity.len();
            if len != self.len.load(Ordering::Acquire) || read_zeroes != self.reads_zeroes() {
                // The map goes first, so that nobody is told of bytes that it does not have.
                let grid = self.facts.grid(len).filter(|_| self.reads_zeroes());
                self.knowledge.resize(len, grid);
                self.len.store(len, Ordering::Release);
            }
        }
        self.shape_known.store(events, Ordering::Release);
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
