//! Discards: UNMAP of the whole granules of a range.
//!
//! What the blocks read as afterwards is asked for when it is needed: a target may keep them.

use std::num::NonZeroU32;

use block_core::ByteRange;
use block_core::error::{Error, Result};

use crate::scsi::cdb::Cdb;
use crate::scsi::limits::{Granule, Unmapping};
use crate::scsi::provisioning::{UNMAP_DESCRIPTORS_MAX, UnmapExtent, UnmapList};
use crate::unit::UnitError;

use super::IscsiDriver;
use super::knowledge::Change;
use super::zeroes::{Refused, first_len};

impl IscsiDriver {
    /// What UNMAP takes, if it is there.
    fn unmapping(&self) -> Option<Unmapping> {
        let knows = self.facts.provisioning.as_ref().is_some_and(|page| page.unmap);
        self.facts.limits.unmapping.filter(|_| knows && !self.has_refused(Refused::Unmap))
    }

    /// Whether discards do anything.
    pub(super) fn can_unmap(&self) -> bool {
        self.unmapping().is_some()
    }

    pub(super) async fn unmap(&self, range: ByteRange) -> Result<()> {
        let unmapping = self.unmapping().ok_or(Error::Unsupported)?;
        let mut rest = match unmapping.granule {
            Some(granule) => within(range, granule),
            None => range,
        };
        while !rest.is_empty() {
            let (list, len) = self.list(rest, &unmapping)?;
            let (piece, after) = rest.split_at(len);
            let running = self.knowledge.begin(piece, Change::Unknown);
            let cdb = Cdb::Unmap { list_len: list.list_len() };
            // A residual means nothing: some targets have one with every UNMAP.
            let unmapped = self.unit.execute_with(cdb, list.as_slice()).await;
            self.knowledge.done(running);
            if let Err(error) = unmapped {
                return Err(self.refused_unmap(error));
            }
            rest = after;
        }
        Ok(())
    }

    /// The extents of one command for the first bytes of `rest`, and how many bytes those are.
    fn list(&self, rest: ByteRange, unmapping: &Unmapping) -> Result<(UnmapList, u64)> {
        let Unmapping { max_len, max_descriptors, granule } = *unmapping;
        let extent_max = u64::from(u32::MAX) * self.block();
        let most = usize::try_from(max_descriptors.get()).unwrap_or(usize::MAX);
        let most = most.min(UNMAP_DESCRIPTORS_MAX);
        let mut left = rest.first(first_len(rest, max_len, granule));
        let mut extents = Vec::new();
        let mut len = 0;
        while !left.is_empty() && extents.len() < most {
            let (extent, after) = left.split_at(first_len(left, extent_max, granule));
            let (lba, blocks) = self.blocks(extent)?;
            let blocks = NonZeroU32::new(blocks).ok_or(Error::Invalid)?;
            extents.push(UnmapExtent { lba, blocks });
            len += extent.len();
            left = after;
        }
        let list = UnmapList::new(&extents).map_err(|_| Error::Invalid)?;
        Ok((list, len))
    }

    /// A target that does not know UNMAP after all is not asked again; one that does not take this one
    /// leaves things as they are. All else is an error.
    fn refused_unmap(&self, error: UnitError) -> Error {
        if error.is_unknown_command() {
            self.refuse(Refused::Unmap);
        }
        if error.is_refusal() { Error::Unsupported } else { error.into() }
    }
}

/// The whole granules in `range`; empty if there is none.
fn within(range: ByteRange, granule: Granule) -> ByteRange {
    let unit = granule.len;
    let before = unit.bytes() - granule.offset;
    // Moved up by less than a granule, so that granules begin at multiples; in `u64`, whose end is far
    // beyond the longest disk.
    let start = (range.offset() + before).div_ceil(unit.bytes()) * unit.bytes() - before;
    let end = (range.end() + before) / unit.bytes() * unit.bytes();
    let end = end.saturating_sub(before);
    ByteRange::from_bounds(start.min(range.end()), end).unwrap_or_default()
}
