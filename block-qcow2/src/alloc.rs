//! Host clusters: taking them, and giving them back when nobody can need them any more.
//!
//! A cluster that is dropped from the mapping goes through stations before it can be given out again:
//!
//! 1. *dropped*: the mapping in memory does not refer to it, the one in the file may;
//! 2. *written*: tables that do not refer to it were written;
//! 3. *in limbo*: and are stable; requests that looked the mapping up before may still use it;
//! 4. released: they are gone, its space was punched out of the file, its refcount is lowered.
//!
//! **Invariants.** The refcount in memory, and so in the file, is never lower than the number of
//! references, in memory or in the file. A crash between any two stations leaks the cluster.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use block_core::range::to_u64;
use block_core::{Error, Result};

use crate::compress::write_cache::{Stored, WriteCache};
use crate::geometry::{DataLocation, Geometry};
use crate::header_store::HeaderStore;
use crate::overlap::{OverlapMap, Section};
use crate::plan::Dropped;
use crate::refcounts::{Refcounts, Run, Step, TOO_FAR, Want};
use crate::spec::Fault;
use crate::spec::entry::Payload;
use crate::units::{GuestOffset, HostOffset};
use block_core::metadata::gate::Epoch;

/// Why a cluster is not needed any more; decides whether its space is punched out of the file.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Reason {
    /// A guest discarded or zeroed it.
    Request,
    /// A snapshot was deleted.
    Snapshot,
    /// Anything else: it was rewritten elsewhere, a table moved.
    Other,
    /// It was given out, and what needed it failed.
    Unused,
}

/// Clusters on their way back.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Freed {
    pub(crate) run: Run,
    pub(crate) reason: Reason,
}

/// Freed clusters that only requests from before `since` may use.
pub(crate) struct Limbo {
    pub(crate) freed: Vec<Freed>,
    pub(crate) since: Epoch,
}

/// A place for guest data.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) host: HostOffset,
    /// Clusters.
    pub(crate) count: u64,
    /// It reads as zeroes: nothing was ever written there.
    pub(crate) fresh: bool,
}

/// What the metadata lock guards.
pub(crate) struct Meta {
    pub(crate) refcounts: Refcounts,
    /// Sectors of the L1 table that changed since the last write of them began.
    pub(crate) dirty_l1: BTreeSet<u64>,
    /// L2 tables that the L1 table in the file does not point at.
    pub(crate) unlinked: HashSet<HostOffset>,
    /// Station 1.
    pub(crate) dropped: Vec<Freed>,
    /// Station 2.
    pub(crate) written: Vec<Freed>,
    /// Station 3.
    pub(crate) limbo: VecDeque<Limbo>,
    /// Bytes of the file from here on were never written, and read as zeroes.
    pub(crate) fresh_from: u64,
    /// The length of the file, if it was made longer than it need be.
    pub(crate) grown_to: Option<u64>,
    /// Where the next compressed cluster goes, if it fits.
    pub(crate) packing: Option<Packing>,
    pub(crate) geometry: Geometry,
    pub(crate) overlap: Arc<OverlapMap>,
}

/// A host cluster that is being filled with compressed clusters.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Packing {
    /// Number of the host cluster. Each compressed cluster in it is a reference to it.
    pub(crate) cluster: u64,
    /// Bytes of it that were given out, from its start on. They are not given out again.
    pub(crate) used: u64,
}

impl Meta {
    /// The same with `overlap`, which others share, in place of its own map.
    pub(crate) fn sharing(mut self, overlap: &Arc<OverlapMap>) -> Self {
        overlap.take_over(&self.overlap);
        self.overlap = Arc::clone(overlap);
        self.refcounts.share(overlap);
        self
    }

    /// A place for the data of up to `count` guest clusters from `guest` on.
    pub(crate) async fn allocate_data(
        &mut self,
        guest: GuestOffset,
        count: u64,
        header: &HeaderStore,
    ) -> Result<Place> {
        if self.geometry.data_location() == DataLocation::DataFile {
            let host = HostOffset::new(guest.bytes());
            return Ok(Place { host, count, fresh: false });
        }
        let run = self.allocate(Want::UpTo(count), header).await?;
        Ok(self.place(run))
    }

    /// `count` clusters in a row for metadata of `section`.
    pub(crate) async fn allocate_metadata(
        &mut self,
        section: Section,
        count: u64,
        header: &HeaderStore,
    ) -> Result<HostOffset> {
        let run = self.allocate(Want::Exactly(count), header).await?;
        let place = self.place(run);
        self.overlap.insert(section, place.host, count << self.geometry.cluster_bits());
        Ok(place.host)
    }

    /// A place for a compressed cluster of `len` bytes, which is less than a cluster. What `cache`
    /// should know of it, it is told; there must be room in it.
    ///
    /// [`TOO_FAR`] if the place would be behind what the entry of a compressed cluster can name.
    ///
    /// Places follow one another, from the end of one host cluster into the next if that adjoins. No
    /// place is in a host cluster that was in use before.
    pub(crate) async fn allocate_compressed(
        &mut self,
        len: u64,
        header: &HeaderStore,
        cache: Option<&WriteCache>,
    ) -> Result<Stored> {
        let bits = self.geometry.cluster_bits();
        let size = self.geometry.cluster_size();
        let open = match self.packing {
            Some(packing) if self.refcounts.can_step_up(packing.cluster).await? => Some(packing),
            _ => None,
        };
        let (stored, next) = match open {
            Some(Packing { cluster, used }) if used + len <= size => {
                self.refcounts.step(Run { first: cluster, count: 1 }, Step::Up).await?;
                let next = Packing { cluster, used: used + len };
                (HostOffset::new((cluster << bits) + used), next)
            }
            open => {
                let next = match self.packing {
                    Some(packing) => self.refcounts.allocate_at(packing.cluster + 1).await?,
                    None => None,
                };
                let run = match next {
                    Some(next) => next,
                    None => self.allocate(Want::Exactly(1), header).await?,
                };
                self.place(run);
                let cluster = run.first;
                match open.filter(|open| open.cluster + 1 == cluster && open.used < size) {
                    None => (HostOffset::new(cluster << bits), Packing { cluster, used: len }),
                    Some(open) => {
                        let start = HostOffset::new((open.cluster << bits) + open.used);
                        let first = Run { first: open.cluster, count: 1 };
                        if let Err(error) = self.refcounts.step(first, Step::Up).await {
                            self.push_dropped(Freed { run, reason: Reason::Other });
                            return Err(error);
                        }
                        (start, Packing { cluster, used: open.used + len - size })
                    }
                }
            }
        };
        let stored = Stored { offset: stored, len };
        if stored.offset.bytes() + len - 1 > self.geometry.max_payload_offset() {
            self.give_back_compressed(stored);
            return Err(TOO_FAR);
        }
        let before = self.packing.replace(next).filter(|before| before.cluster != next.cluster);
        let expected = cache.map_or(Ok(()), |cache| {
            // One that the new place reaches the end of is full, which the cache sees.
            if let Some(before) = before.filter(|b| b.cluster != stored.offset.bytes() >> bits) {
                cache.seal(HostOffset::new(before.cluster << bits));
            }
            cache.expect(stored)
        });
        self.pack_into(self.packing.filter(|packing| packing.used < size));
        if let Err(error) = expected {
            self.give_back_compressed(stored);
            return Err(error);
        }
        Ok(stored)
    }

    /// Where the next compressed cluster goes. The host cluster behind it is kept free, if it is, so that
    /// it can go on there, whatever else is allocated meanwhile.
    pub(crate) fn pack_into(&mut self, packing: Option<Packing>) {
        self.packing = packing;
        self.refcounts.keep(packing.map(|packing| packing.cluster + 1));
    }

    /// Gives back the place of a compressed cluster that was never linked.
    pub(crate) fn give_back_compressed(&mut self, stored: Stored) {
        let payload = Payload { offset: stored.offset, len: stored.len };
        self.drop_data(Dropped::Payload(payload), Reason::Unused);
    }

    /// Clusters for bitmaps: no data of the guest, and nothing that the overlap map knows.
    pub(crate) async fn allocate_bitmap(
        &mut self,
        want: Want,
        header: &HeaderStore,
    ) -> Result<Place> {
        let run = self.allocate(want, header).await?;
        Ok(self.place(run))
    }

    async fn allocate(&mut self, want: Want, header: &HeaderStore) -> Result<Run> {
        let mut run = self.refcounts.allocate(want, header).await;
        if run == Err(Error::NO_SPACE) && self.refcounts.stop_keeping() {
            run = self.refcounts.allocate(want, header).await;
        }
        for run in std::mem::take(&mut self.refcounts.left) {
            self.push_dropped(Freed { run, reason: Reason::Other });
        }
        let written_to = std::mem::take(&mut self.refcounts.written_to);
        self.fresh_from = self.fresh_from.max(written_to << self.geometry.cluster_bits());
        run
    }

    fn place(&mut self, run: Run) -> Place {
        let bits = self.geometry.cluster_bits();
        let start = run.first << bits;
        let fresh = start >= self.fresh_from;
        self.fresh_from = self.fresh_from.max((run.first + run.count) << bits);
        Place { host: HostOffset::new(start), count: run.count, fresh }
    }

    /// The place that the next guest cluster would get, if it is fresh and known without reading. Not
    /// taken yet: see [`Meta::take_fresh`].
    pub(crate) fn fresh_at_hand(&self) -> Option<Place> {
        let host = HostOffset::new(self.refcounts.next_at_hand()? << self.geometry.cluster_bits());
        let fresh =
            host.bytes() >= self.fresh_from && self.geometry.data_location() == DataLocation::Image;
        fresh.then_some(Place { host, count: 1, fresh })
    }

    /// Takes the place that [`Meta::fresh_at_hand`] told, in the same turn of the lock.
    pub(crate) fn take_fresh(&mut self, place: Place) -> Result<(), Fault> {
        let first = place.host.bytes() >> self.geometry.cluster_bits();
        self.place(Run { first, count: place.count });
        self.refcounts.take_next(first)
    }

    /// Gives back what an entry held.
    pub(crate) fn drop_data(&mut self, dropped: Dropped, reason: Reason) {
        self.push_dropped(Freed { run: run_of(self.geometry, dropped), reason });
    }

    /// Gives back `len` bytes of whole clusters that held metadata.
    pub(crate) fn drop_metadata(&mut self, offset: HostOffset, len: u64, reason: Reason) {
        let bits = self.geometry.cluster_bits();
        let count = len.div_ceil(1 << bits);
        if count > 0 {
            self.overlap.remove(offset, len);
            let run = Run { first: offset.bytes() >> bits, count };
            self.push_dropped(Freed { run, reason });
        }
    }

    /// Gives back a place that was never linked.
    pub(crate) fn give_back(&mut self, place: Place) {
        if self.geometry.data_location() == DataLocation::Image {
            let first = place.host.bytes() >> self.geometry.cluster_bits();
            let run = Run { first, count: place.count };
            self.push_dropped(Freed { run, reason: Reason::Unused });
        }
    }

    fn push_dropped(&mut self, freed: Freed) {
        if let Some(last) = self.dropped.last_mut()
            && last.reason == freed.reason
            && last.run.first + last.run.count == freed.run.first
        {
            last.run.count += freed.run.count;
            return;
        }
        self.dropped.push(freed);
    }

    /// Whether so much waits at stations 1 and 2 that it should be moved on.
    pub(crate) fn is_hoarding(&self) -> bool {
        let waiting = self.dropped.iter().chain(&self.written).map(|freed| freed.run.count);
        let lists = to_u64(self.dropped.len() + self.written.len());
        lists > MAX_WAITING_RUNS
            || waiting.sum::<u64>() << self.geometry.cluster_bits() > MAX_WAITING_BYTES
    }

    /// Whether clusters are on their way back that were in use: those of what failed for want of room make
    /// none.
    pub(crate) fn has_waiting(&self) -> bool {
        let limbo = self.limbo.iter().flat_map(|limbo| &limbo.freed);
        let mut waiting = self.dropped.iter().chain(&self.written).chain(limbo);
        waiting.any(|freed| freed.reason != Reason::Unused)
    }

    /// Takes what is in limbo and used by nobody, merged where it adjoins.
    pub(crate) fn take_ready(&mut self, is_past: impl Fn(Epoch) -> bool) -> Vec<Freed> {
        let mut ready = Vec::new();
        while self.limbo.front().is_some_and(|first| is_past(first.since)) {
            ready.extend(self.limbo.pop_front().into_iter().flat_map(|limbo| limbo.freed));
        }
        merged(ready)
    }
}

/// The host clusters that an entry refers to, each once.
pub(crate) fn run_of(geometry: Geometry, dropped: Dropped) -> Run {
    let bits = geometry.cluster_bits();
    let (start, end) = match dropped {
        Dropped::Cluster(host) => (host.bytes(), host.bytes() + 1),
        Dropped::Payload(payload) => (payload.offset.bytes(), payload.end()),
    };
    let first = start >> bits;
    Run { first, count: (end.saturating_sub(1).max(start) >> bits) - first + 1 }
}

/// The same clusters in as few runs as possible. A cluster may be in several: each is one reference.
fn merged(mut freed: Vec<Freed>) -> Vec<Freed> {
    freed.sort_by_key(|f| (f.reason, f.run.first));
    let mut all: Vec<Freed> = Vec::with_capacity(freed.len());
    for next in freed {
        match all.last_mut() {
            Some(last)
                if last.reason == next.reason
                    && last.run.first + last.run.count == next.run.first =>
            {
                last.run.count += next.run.count;
            }
            _ => all.push(next),
        }
    }
    all
}

/// Bytes of clusters that may wait for the next write of the tables before one is made for their sake.
const MAX_WAITING_BYTES: u64 = 256 << 20;
/// Runs of them, which take memory here.
const MAX_WAITING_RUNS: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_runs_are_one_punch() {
        let freed = |first, count| Freed { run: Run { first, count }, reason: Reason::Request };
        let all = vec![freed(7, 1), freed(3, 2), freed(5, 2), freed(20, 1), freed(20, 1)];
        assert_eq!(merged(all), [freed(3, 5), freed(20, 1), freed(20, 1)]);
        let other = Freed { reason: Reason::Other, ..freed(4, 1) };
        assert_eq!(merged(vec![freed(3, 1), other]), [freed(3, 1), other]);
    }
}
