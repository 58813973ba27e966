//! The short way of an allocating write: within one call, without a future and without waiting.
//!
//! It takes the commonest case only: a small write into one cluster that has no place yet and reads as
//! zeroes, and all that it needs is in memory. Everything else is left to [`crate::write`], whose steps
//! it shares.
//!
//! **Invariants.** One turn of the metadata lock, which is never waited for. Data is written before
//! anything else changes, to a cluster that is free and was never used: if the node below does not take
//! it, nothing has happened. The entry is linked after the data was written.
//!
//! This is the one place where a lock is held while guest data moves: a copy of at most [`LEN_MAX`]
//! bytes into the page cache. To let go of it in between would take a second turn, for which a call
//! that must not wait could not wait.

use block_core::{ByteRange, IoVec, Result};

use crate::driver::Qcow2Driver;
use crate::map::{Kind, first_extent};
use crate::plan::{WriteStep, plan};
use crate::reload::from_below;
use crate::units::GuestOffset;

/// Most bytes that are written under the metadata lock.
const LEN_MAX: u64 = 64 << 10;

impl Qcow2Driver {
    /// Writes `iov` to `range`, all of it in one cluster that gets a place by this. `None`, and nothing
    /// has changed, where that takes anything but memory and the page cache. Called inside of the gate.
    pub(crate) fn allocate_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let geometry = self.geometry();
        let cluster = range.expand(geometry.cluster_alignment());
        if cluster.len() > geometry.cluster_size() || range.len() > LEN_MAX {
            return None;
        }
        let node = self.data.as_ref().filter(|node| node.may_go_inline(range))?;
        let writer = self.writer().ok()?;
        // Nobody is overtaken.
        if !writer.turns.is_idle() {
            return None;
        }
        let mut meta = writer.meta.try_lock()?;
        let in_the_way = self.allocations.free_prefix(cluster) != Ok(cluster);
        if in_the_way || self.strain(&meta).is_some() {
            return None;
        }
        let slice = self.own_slice_at_once(GuestOffset::new(range.offset()))?;
        meta.overlap.check_table(slice.at).ok()?;
        let words = self.slices.peek(slice.at.bytes())?;
        let first_entry = slice.first_entry;
        let start = GuestOffset::new(cluster.offset());
        let old = first_extent(geometry, &words, first_entry, start, cluster.len()).ok()?;
        let is_zero = match old.kind {
            Kind::Zero(None) => true,
            Kind::Unallocated(None) => {
                self.backing.as_ref().is_none_or(|below| below.len() <= cluster.offset())
            }
            _ => false,
        };
        if !is_zero || old.len < cluster.len() {
            return None;
        }
        // Nothing is dropped by linking it, and nothing is to be filled.
        let Ok(WriteStep::Allocate(allocation)) = plan(geometry, &words, first_entry, range) else {
            return None;
        };
        let place = meta.fresh_at_hand()?;
        if place.host.bytes() + geometry.cluster_size() > node.len() {
            return None;
        }
        // The place is no metadata: it was looked at when it was told.
        let host = self.host_range(&allocation, place, range).ok()?;
        let written = from_below(node.write_now(host, iov)?);
        if let Err(fault) = meta.take_fresh(place) {
            return Some(Err(fault.into()));
        }
        let linked = written
            .and_then(|()| Ok(self.link_loaded(&mut meta, slice, words, &allocation, place)?));
        if linked.is_err() {
            meta.give_back(place);
        }
        Some(linked)
    }
}
