//! Reads: answered from what is known, or by asking what is mapped, or by READ.

use block_core::error::Result;
use block_core::{ByteRange, IoVec};

use crate::allocmap::{Answer, Trust};
use crate::scsi::cdb::Caching;
use crate::scsi::provisioning::LbaStatus;
use crate::unit::UnitError;

use super::IscsiDriver;
use super::knowledge::{Question, Stretch};

/// Descriptors that one question has room for.
const DESCRIPTORS: usize = 256;

/// An answer to GET LBA STATUS, and whether it can still be used.
pub(super) struct Told<'a> {
    driver: &'a IscsiDriver,
    question: Question<'a>,
    stretches: Vec<Stretch>,
}

impl Told<'_> {
    /// What the target said of the byte at `offset` and those that follow; `None` if it did not say, or
    /// if they may have changed since it was asked.
    pub(super) fn stretch_at(&self, offset: u64) -> Option<Stretch> {
        let holds =
            |stretch: &&Stretch| stretch.range.offset() <= offset && offset < stretch.range.end();
        let stretch = self.stretches.iter().find(holds)?;
        let range = ByteRange::from_bounds(offset, stretch.range.end()).ok()?;
        let unchanged = !stretch.zero || self.driver.knowledge.holds(&self.question, range);
        unchanged.then_some(Stretch { range, zero: stretch.zero })
    }

    /// Whether all of `range` reads as zeroes.
    fn is_zero(&self, range: ByteRange) -> bool {
        let zero = |stretch: &&Stretch| stretch.zero && stretch.range.contains(range);
        self.stretches.iter().any(|stretch| zero(&stretch))
            && self.driver.knowledge.holds(&self.question, range)
    }
}

impl IscsiDriver {
    /// Fills `iov` if `range` is known to be zeroes.
    pub(super) fn read_zeroes_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        if self.knowledge.answer(range) != Answer::Zeroes || self.shape_is_old() {
            return None;
        }
        iov.fill(0, iov.len(), 0);
        Some(Ok(()))
    }

    pub(super) async fn read(&self, range: ByteRange, iov: IoVec) -> Result<()> {
        if self.finds_zeroes(range).await {
            iov.fill(0, iov.len(), 0);
            return Ok(());
        }
        let (lba, blocks) = self.blocks(range)?;
        Ok(self.unit.read(lba, blocks, iov, Caching::DEFAULT).await?)
    }

    /// Whether `range` reads as zeroes: from what is known, or by asking if that is worth it.
    async fn finds_zeroes(&self, range: ByteRange) -> bool {
        let trust = self.knowledge.trust();
        match self.knowledge.answer(range) {
            Answer::Zeroes => return true,
            Answer::Read => return false,
            Answer::Ask => {}
        }
        // Of what nobody trusts, an answer to somebody else's question is too old.
        if trust == Trust::Cached && self.asking.wait_for_others(range).await {
            match self.knowledge.answer(range) {
                Answer::Zeroes => return true,
                Answer::Read => return false,
                Answer::Ask => {}
            }
        }
        if !self.asking.may_ask(range.len(), trust) {
            return false;
        }
        self.ask(range).await.is_some_and(|told| told.is_zero(range))
    }

    /// Asks what is mapped from the page that holds the first byte of `range` on, and learns from the
    /// answer. `None`: there is none that is of use.
    pub(super) async fn ask(&self, range: ByteRange) -> Option<Told<'_>> {
        let start = self.knowledge.pages_around(range.first(1)).offset();
        let question = self.knowledge.ask();
        let turn = self.asking.begin(start);
        let len = self.len.load(std::sync::atomic::Ordering::Acquire);
        let (lba, blocks) = (start / self.block(), len / self.block());
        let told = match self.unit.lba_status(lba, blocks, DESCRIPTORS).await {
            Ok(status) => self.stretches(&status),
            Err(error) => {
                self.could_not_ask(range, &error);
                return None;
            }
        };
        self.knowledge.learn(&question, &told);
        let end = told.last().map_or(start, |last| last.range.end());
        self.asking.succeeded(end - start, told.iter().any(|stretch| stretch.zero));
        drop(turn);
        Some(Told { driver: self, question, stretches: told })
    }

    /// The read itself will tell if something is wrong.
    fn could_not_ask(&self, range: ByteRange, error: &UnitError) {
        self.knowledge.give_up(range);
        self.asking.failed(error);
    }

    /// What a status says, in bytes; neighbours that say the same are one.
    fn stretches(&self, status: &LbaStatus) -> Vec<Stretch> {
        let size = self.facts.capacity.block_size();
        let mut stretches: Vec<Stretch> = Vec::with_capacity(status.extents().len());
        for extent in status.extents() {
            let zero = extent.state.is_unmapped() && self.reads_zeroes();
            // Its end is on the medium.
            let Some(range) = size.range(extent.lba, extent.blocks) else { break };
            match stretches.last_mut() {
                Some(last) if last.zero == zero => {
                    let joined = ByteRange::from_bounds(last.range.offset(), range.end());
                    last.range = joined.unwrap_or(last.range);
                }
                _ => stretches.push(Stretch { range, zero }),
            }
        }
        stretches
    }
}
