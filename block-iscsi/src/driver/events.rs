//! What the unit says of itself while it is in use, and changes of its length.

use std::sync::atomic::Ordering;

use block_core::driver::{Exactness, Prealloc};
use block_core::error::{Error, Result};

use crate::scsi::sense::Attention;
use crate::unit::UnitEvent;

use super::{IscsiDriver, open};

/// How often a unit that changes while it is asked for its capacity is asked again.
const ASKS_MAX: u32 = 16;

/// How a question for the unit's shape ended.
#[derive(Default)]
pub(super) struct Asked {
    /// How many had been asked then, with this one.
    number: u64,
    /// What had happened before it was asked: as in `shape_events`.
    events: u64,
    failure: Option<Error>,
}

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

    /// Whether something has happened since the shape was asked for, so that no request means what it says
    /// before [`IscsiDriver::catch_up`].
    pub(super) fn shape_is_old(&self) -> bool {
        self.shape_known.load(Ordering::Acquire) != self.shape_events.load(Ordering::Acquire)
    }

    /// Comes first in every request, and before a command of one is sent: learns the unit's shape anew after
    /// something has happened to it. All wait for the answer; who does not get one fails, and so do those
    /// with whom the answer would have been shared.
    pub(super) async fn catch_up(&self) -> Result<()> {
        if !self.shape_is_old() {
            return Ok(());
        }
        let asks = self.asks.load(Ordering::Acquire);
        let events = self.shape_events.load(Ordering::Acquire);
        let mut last = self.resizing.lock().await;
        if let Some(error) = last.failure
            && last.number > asks
            && last.events >= events
        {
            return Err(error);
        }
        for _ in 0..ASKS_MAX {
            if !self.shape_is_old() {
                return Ok(());
            }
            self.learn_shape(&mut last).await?;
        }
        if self.shape_is_old() { Err(Error::Busy) } else { Ok(()) }
    }

    /// Asks the unit for its capacity, whether or not something has happened to it.
    pub(super) async fn read_capacity(&self) -> Result<()> {
        self.learn_shape(&mut *self.resizing.lock().await).await
    }

    /// Asks for the shape, and notes how that ended.
    async fn learn_shape(&self, asked: &mut Asked) -> Result<()> {
        // What happens from now on may be news to the answer.
        let events = self.shape_events.load(Ordering::Acquire);
        let learned = self.ask_for_shape().await;
        if learned.is_ok() {
            self.shape_known.store(events, Ordering::Release);
        }
        let number = self.asks.fetch_add(1, Ordering::AcqRel) + 1;
        *asked = Asked { number, events, failure: learned.err() };
        learned
    }

    /// Takes in what READ CAPACITY says: the lengths of the unit and of its blocks, and what unmapped
    /// ones read as. If anything of that is new, nothing is known of the medium. A unit whose blocks have
    /// another length than when it was opened has no shape that requests could mean, and is asked again
    /// by the next one.
    async fn ask_for_shape(&self) -> Result<()> {
        let capacity = self.unit.capacity().await?;
        let known = &self.facts.capacity;
        if capacity.block_size() != known.block_size() {
            self.forget();
            self.shape_may_be_another();
            return Err(Error::IO);
        }
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
