//! Zero writes: WRITE SAME of one block of zeroes, with the UNMAP bit where the caller allows it and
//! the target then still reads as zeroes.
//!
//! Ways are tried in order, best first: WRITE SAME (16) and (10) with UNMAP, then without. One that
//! the target refuses is not tried again; where none is left, the layer writes the zeroes.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::atomic::Ordering;

use block_core::error::{Error, Result};
use block_core::flags::RequestFlags;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, IoBuf};

use crate::allocmap::Answer;
use crate::nexus::Data;
use crate::scsi::cdb::{Cdb, Deallocate, SameData};
use crate::scsi::limits::Granule;
use crate::unit::UnitError;

use super::IscsiDriver;
use super::knowledge::Change;
use super::open::Facts;

/// Longest WRITE SAME where the target names no limit, or may have to write it all before it answers.
const WRITTEN_MAX: u64 = 1 << 30;
/// Longest WRITE SAME at all.
const SAME_MAX: u64 = 4 << 30;

/// What a target may refuse.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    Same16Unmap,
    Same10Unmap,
    Same16,
    Same10,
    Unmap,
    Synchronize,
}

impl Refused {
    pub(super) fn bit(self) -> u8 {
        match self {
            Self::Same16Unmap => 1,
            Self::Same10Unmap => 1 << 1,
            Self::Same16 => 1 << 2,
            Self::Same10 => 1 << 3,
            Self::Unmap => 1 << 4,
            Self::Synchronize => 1 << 5,
        }
    }

    /// Whether the target only gives blocks back.
    fn unmaps(self) -> bool {
        matches!(self, Self::Same16Unmap | Self::Same10Unmap)
    }

    /// Whether it is the command of 10 bytes.
    fn is_short(self) -> bool {
        matches!(self, Self::Same10 | Self::Same10Unmap)
    }
}

/// Most bytes of one WRITE SAME, to begin with.
pub(super) fn same_max(facts: &Facts) -> u64 {
    let limits = &facts.limits;
    limits.max_write_same.unwrap_or(WRITTEN_MAX).min(SAME_MAX)
}

/// Length of the first command for `rest`: at most `max` bytes, and up to the end of a granule where
/// it is not all.
pub(super) fn first_len(rest: ByteRange, max: u64, granule: Option<Granule>) -> u64 {
    if rest.len() <= max {
        return rest.len();
    }
    let Some(granule) = granule else { return max };
    // Counted from one granule before the start of the disk, so that nothing is negative.
    let before = granule.len.bytes() - granule.offset;
    let end = granule.len.round_down(rest.offset() + max + before).saturating_sub(before);
    end.checked_sub(rest.offset()).filter(|len| *len > 0).unwrap_or(max)
}

impl IscsiDriver {
    /// Whether zero writes can give blocks back.
    pub(super) fn can_unmap_zeroes(&self) -> bool {
        let page = self.facts.provisioning.as_ref();
        self.reads_zeroes() && page.is_some_and(|page| page.write_same_16 || page.write_same_10)
    }

    pub(super) async fn zero(&self, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let unmap = flags.contains(RequestFlags::MAY_UNMAP);
        let at_once = flags.contains(RequestFlags::NO_FALLBACK);
        if unmap && self.knowledge.answer(range) == Answer::Zeroes {
            // There is nothing to write and nothing to give back.
            return Ok(());
        }
        if self.way(range, unmap, at_once).is_none() {
            return Err(Error::Unsupported);
        }
        let running = self.knowledge.begin(range, Change::Zeroes);
        let zeroed = self.zero_pieces(range, unmap, at_once).await;
        match zeroed {
            Ok(()) => self.knowledge.done(running),
            Err(_) => self.knowledge.failed(running),
        }
        zeroed
    }

    async fn zero_pieces(&self, range: ByteRange, unmap: bool, at_once: bool) -> Result<()> {
        let block = IoBuf::zeroed(to_usize(self.block()), Alignment::ONE)?;
        let mut rest = range;
        while !rest.is_empty() {
            let Some(way) = self.way(rest, unmap, at_once) else {
                // What is done already is zero, and the layer writes all of it again. One who forbade
                // that is not told that nothing has changed.
                let changed = rest.offset() > range.offset();
                return Err(if changed && at_once { Error::IO } else { Error::Unsupported });
            };
            let (piece, after) = rest.split_at(self.same_len(rest, way));
            match self.write_same(piece, way, &block).await {
                Ok(()) => rest = after,
                Err(error) if error.is_refusal() => self.learn_refusal(way, piece, &error),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The best way to zero the first blocks of `range`. With `at_once` only those that do not write.
    fn way(&self, range: ByteRange, unmap: bool, at_once: bool) -> Option<Refused> {
        let page = self.facts.provisioning.as_ref();
        let unmaps = unmap && self.can_unmap_zeroes();
        let ways = [
            (Refused::Same16Unmap, unmaps && page.is_some_and(|page| page.write_same_16)),
            (Refused::Same10Unmap, unmaps && page.is_some_and(|page| page.write_same_10)),
            (Refused::Same16, !at_once),
            (Refused::Same10, !at_once),
        ];
        let short = range.offset() / self.block() <= u64::from(u32::MAX);
        let usable = |(way, there): &(Refused, bool)| {
            *there && !self.has_refused(*way) && (short || !way.is_short())
        };
        ways.into_iter().find(usable).map(|(way, _)| way)
    }

    /// How much of `rest` one command zeroes.
    fn same_len(&self, rest: ByteRange, way: Refused) -> u64 {
        let counted = if way.is_short() { u64::from(u16::MAX) } else { u64::from(u32::MAX) };
        let work = if way.unmaps() { SAME_MAX } else { WRITTEN_MAX };
        let max = self.same_max.load(Ordering::Acquire).min(counted * self.block()).min(work);
        first_len(rest, max, self.facts.limits.write_same_granule)
    }

    async fn write_same(
        &self,
        piece: ByteRange,
        way: Refused,
        block: &IoBuf,
    ) -> Result<(), UnitError> {
        let lba = piece.offset() / self.block();
        let count = piece.len() / self.block();
        let deallocate = if way.unmaps() { Deallocate::Unmap } else { Deallocate::No };
        // The fields are wide enough for what `way` and `same_len` allow.
        let cdb = if way.is_short() {
            let blocks = u16::try_from(count).ok().and_then(NonZeroU16::new);
            let lba = u32::try_from(lba).unwrap_or(u32::MAX);
            blocks.map(|blocks| Cdb::WriteSame10 { lba, blocks, deallocate })
        } else {
            let blocks = u32::try_from(count).ok().and_then(NonZeroU32::new);
            let data = SameData::Block;
            blocks.map(|blocks| Cdb::WriteSame16 { lba, blocks, deallocate, data })
        };
        debug_assert!(cdb.is_some(), "{piece} by {way:?}");
        match cdb {
            Some(cdb) => self.unit.execute(cdb, Data::Out(block.clone().into())).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// A way that the target refuses is no way; but where it has named no limit, and refuses a long
    /// command by a field, the length may be what it does not take.
    fn learn_refusal(&self, way: Refused, piece: ByteRange, error: &UnitError) {
        let modest = u64::from(u16::MAX) * self.block();
        let named = self.facts.limits.max_write_same.is_some();
        if !named && !error.is_unknown_command() && piece.len() > modest {
            self.same_max.fetch_min(modest, Ordering::AcqRel);
            return;
        }
        self.refuse(way);
        if error.is_unknown_command() {
            self.refuse(if way.is_short() { Refused::Same10 } else { Refused::Same16 });
            self.refuse(if way.is_short() { Refused::Same10Unmap } else { Refused::Same16Unmap });
        }
    }
}
