//! What a write needs: to go to where the data is, or a new place. Pure, no I/O, no locks.
//!
//! **Invariants** of an [`Allocation`]: `write ⊆ fill ⊆ clusters`; `clusters` are whole and lie in one
//! slice; `fill` begins and ends at borders of subclusters, or where `write` does if the subcluster
//! there is allocated already; outside of `fill` every subcluster keeps its state.

use block_core::ByteRange;
use block_core::range::to_usize;

use crate::geometry::{DataLocation, Geometry};
use crate::spec::Fault;
use crate::spec::entry::{Cluster, Copied, Payload, encode_plain, is_copied, l2_entry};
use crate::units::{GuestOffset, HostOffset};

/// The first thing to do for a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum WriteStep {
    /// Write `len` bytes to `host`.
    InPlace { len: u64, host: HostOffset },
    /// Find a place, or use the one that is kept, fill and link it.
    Allocate(Allocation),
}

/// Clusters that need a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Allocation {
    /// Guest range, in whole clusters.
    pub(crate) clusters: ByteRange,
    /// What the guest writes of it.
    pub(crate) write: ByteRange,
    /// What must be in the new place when it is linked.
    pub(crate) fill: ByteRange,
    /// The place, if the entries have one of their own.
    pub(crate) keep: Option<HostOffset>,
}

/// What an entry held that is not referred to any more.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Dropped {
    /// A whole host cluster.
    Cluster(HostOffset),
    /// A compressed cluster.
    Payload(Payload),
}

/// How a cluster takes a write of some of its subclusters.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Class {
    InPlace(HostOffset),
    Keep(HostOffset),
    New,
}

/// A cluster and the subclusters of it that a write touches.
struct Touched {
    cluster: Cluster,
    class: Class,
    /// Guest offset of the cluster.
    start: u64,
    /// Touched subclusters, from the first to the last.
    first: u32,
    last: u32,
}

/// The first step of a write to `range`, which is not empty. `slice` holds the entries from
/// `first_entry` of their table on, among them that of `range.offset()`.
pub(crate) fn plan(
    geometry: Geometry,
    slice: &[u64],
    first_entry: u64,
    range: ByteRange,
) -> Result<WriteStep, Fault> {
    let first = touched(geometry, slice, first_entry, range, range.offset())?;
    let cluster_size = geometry.cluster_size();
    let first_class = first.class;
    let (head, first_start) = (fill_start(geometry, &first, range), first.start);
    let mut last = first;
    loop {
        let next = last.start + cluster_size;
        if next >= range.end() {
            break;
        }
        let Ok(there) = touched(geometry, slice, first_entry, range, next) else { break };
        let distance = next - first_start;
        let continues = match (first_class, there.class) {
            (Class::New, Class::New) => true,
            (Class::InPlace(first), Class::InPlace(host))
            | (Class::Keep(first), Class::Keep(host)) => first.plus(distance) == host,
            _ => false,
        };
        if !continues {
            break;
        }
        last = there;
    }
    let end = last.start + cluster_size;
    let write = range.split_at(end.min(range.end()) - range.offset()).0;
    if let Class::InPlace(host) = first_class {
        let host = host.plus(range.offset() - first_start);
        return Ok(WriteStep::InPlace { len: write.len(), host });
    }
    let outside = Fault::new("guest offset", range.offset());
    let fill_end = fill_end(geometry, &last, write);
    let keep = match first_class {
        Class::Keep(host) => Some(host),
        _ => None,
    };
    Ok(WriteStep::Allocate(Allocation {
        clusters: ByteRange::from_bounds(first_start, end).map_err(|_| outside)?,
        write,
        fill: ByteRange::from_bounds(head, fill_end).map_err(|_| outside)?,
        keep,
    }))
}

/// The cluster at `offset`, and what the write to `range` does to it.
fn touched(
    geometry: Geometry,
    slice: &[u64],
    first_entry: u64,
    range: ByteRange,
    offset: u64,
) -> Result<Touched, Fault> {
    let (raw, bitmap) = words_at(geometry, slice, first_entry, GuestOffset::new(offset))?;
    let cluster = l2_entry(geometry, raw, bitmap)?;
    let start = geometry.cluster_alignment().round_down(offset);
    let end = range.end().min(start + geometry.cluster_size());
    let first = subcluster(geometry, offset.max(range.offset()) - start);
    let last = subcluster(geometry, end - 1 - start);
    let touched = mask(first, last);
    let class = match cluster {
        Cluster::Plain { host: Some(host), alloc, .. } if is_copied(raw) => {
            if touched & !alloc == 0 { Class::InPlace(host) } else { Class::Keep(host) }
        }
        _ => Class::New,
    };
    Ok(Touched { cluster, class, start, first, last })
}

/// Where the filling of an allocation starts whose first cluster is this.
fn fill_start(geometry: Geometry, there: &Touched, write: ByteRange) -> u64 {
    let index = match (there.class, there.cluster) {
        (_, Cluster::Compressed(_)) => 0,
        (Class::New, Cluster::Plain { alloc, .. }) => there.first.min(alloc.trailing_zeros()),
        (_, Cluster::Plain { alloc, .. }) if alloc >> there.first & 1 == 1 => {
            return write.offset();
        }
        _ => there.first,
    };
    there.start + (u64::from(index) << geometry.subcluster_bits())
}

/// Where the filling of an allocation ends whose last cluster is this.
fn fill_end(geometry: Geometry, there: &Touched, write: ByteRange) -> u64 {
    let index = match (there.class, there.cluster) {
        (_, Cluster::Compressed(_)) => geometry.subclusters() - 1,
        (Class::New, Cluster::Plain { alloc, .. }) => {
            there.last.max(31u32.saturating_sub(alloc.leading_zeros()))
        }
        (_, Cluster::Plain { alloc, .. }) if alloc >> there.last & 1 == 1 => return write.end(),
        _ => there.last,
    };
    there.start + (u64::from(index + 1) << geometry.subcluster_bits())
}

/// Puts the entries of an allocation at `host` into `slice` and gives what they held before. Nothing is
/// changed on error; `may_drop` can object to what would be dropped.
pub(crate) fn link(
    geometry: Geometry,
    slice: &mut [u64],
    first_entry: u64,
    allocation: &Allocation,
    host: HostOffset,
    may_drop: impl Fn(Dropped) -> Result<(), Fault>,
) -> Result<Vec<Dropped>, Fault> {
    let mut dropped = Vec::new();
    let mut entries = Vec::new();
    let mut offset = allocation.clusters.offset();
    while offset < allocation.clusters.end() {
        let guest = GuestOffset::new(offset);
        let (raw, bitmap) = words_at(geometry, slice, first_entry, guest)?;
        let old = l2_entry(geometry, raw, bitmap)?;
        let end = allocation.fill.end().min(offset + geometry.cluster_size());
        let start = allocation.fill.offset().max(offset);
        let filled =
            mask(subcluster(geometry, start - offset), subcluster(geometry, end - 1 - offset));
        let (alloc, zero) = match old {
            // Without a place of its own, all that was allocated is in `fill`.
            Cluster::Plain { alloc, zero, .. } => {
                let kept = if allocation.keep.is_some() { alloc } else { 0 };
                (kept | filled, zero & !filled)
            }
            Cluster::Compressed(_) => (filled, 0),
        };
        if let Some(old) = dropped_by(geometry, old).filter(|_| allocation.keep.is_none()) {
            may_drop(old)?;
            dropped.push(old);
        }
        let there = host.plus(offset - allocation.clusters.offset());
        entries.push((guest, encode_plain(geometry, Some(there), alloc, zero, Copied::Yes)));
        offset += geometry.cluster_size();
    }
    for (guest, words) in entries {
        set_words(geometry, slice, first_entry, guest, words)?;
    }
    Ok(dropped)
}

/// What is dropped with an entry. Clusters of a data file are nobody's: they stay where they are.
pub(crate) fn dropped_by(geometry: Geometry, old: Cluster) -> Option<Dropped> {
    match old {
        Cluster::Compressed(payload) => Some(Dropped::Payload(payload)),
        Cluster::Plain { host: Some(host), .. }
            if geometry.data_location() == DataLocation::Image =>
        {
            Some(Dropped::Cluster(host))
        }
        Cluster::Plain { .. } => None,
    }
}

/// The words of the entry that maps `offset`; the second one is 0 where entries are standard.
pub(crate) fn words_at(
    geometry: Geometry,
    slice: &[u64],
    first_entry: u64,
    offset: GuestOffset,
) -> Result<(u64, u64), Fault> {
    let index = word_index(geometry, first_entry, offset)?;
    let outside = Fault::new("L2 index", geometry.l2_index(offset));
    let raw = *slice.get(index).ok_or(outside)?;
    match geometry.l2_entry_words() {
        1 => Ok((raw, 0)),
        _ => Ok((raw, *slice.get(index + 1).ok_or(outside)?)),
    }
}

/// Replaces the words of the entry that maps `offset`.
pub(crate) fn set_words(
    geometry: Geometry,
    slice: &mut [u64],
    first_entry: u64,
    offset: GuestOffset,
    words: (u64, u64),
) -> Result<(), Fault> {
    let index = word_index(geometry, first_entry, offset)?;
    let outside = Fault::new("L2 index", geometry.l2_index(offset));
    let entry = slice.get_mut(index..index + geometry.l2_entry_words()).ok_or(outside)?;
    for (word, new) in entry.iter_mut().zip([words.0, words.1]) {
        *word = new;
    }
    Ok(())
}

fn word_index(geometry: Geometry, first_entry: u64, offset: GuestOffset) -> Result<usize, Fault> {
    let index = geometry.l2_index(offset);
    let within = index.checked_sub(first_entry).ok_or(Fault::new("L2 index", index))?;
    Ok(to_usize(within) * geometry.l2_entry_words())
}

/// Number of the subcluster that holds byte `within` of a cluster.
pub(crate) fn subcluster(geometry: Geometry, within: u64) -> u32 {
    u32::try_from(within >> geometry.subcluster_bits()).unwrap_or(u32::MAX)
}

/// The bits from `first` to `last`, both included; `last` is below 32.
pub(crate) fn mask(first: u32, last: u32) -> u32 {
    (u32::MAX >> (31 - last.min(31))) & (u32::MAX << first.min(31))
}
