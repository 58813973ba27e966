//! What a write needs: to go to where the data is, or a new place. Pure, no I/O, no locks.
//!
//! Neighbours that have places of their own, one after the other in the file, are one step, whether all
//! of them hold data or some only the place for it: the file sees one write.
//!
//! **Invariants** of an [`Allocation`]: `write ⊆ fill ⊆ clusters`; `clusters` are whole and lie in one
//! slice; `fill` begins and ends at borders of subclusters, or where `write` does if the subcluster
//! there is allocated already; outside of `fill` every subcluster keeps its state.

use block_core::ByteRange;
use block_core::range::to_usize;
use smallvec::SmallVec;

use crate::compress::write_cache::Stored;
use crate::geometry::{DataLocation, Geometry};
use crate::spec::Fault;
use crate::spec::entry::{
    Cluster, Copied, Payload, encode_compressed, encode_plain, is_copied, l2_entry, mapping_entry,
};
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

impl Class {
    /// The host cluster that the guest cluster has for itself already.
    fn place(self) -> Option<HostOffset> {
        match self {
            Self::InPlace(host) | Self::Keep(host) => Some(host),
            Self::New => None,
        }
    }
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
    let place = first.class.place();
    let mut fills = matches!(first.class, Class::Keep(_));
    let (head, first_start) = (fill_start(geometry, &first, range), first.start);
    let mut last = first;
    loop {
        let next = last.start + cluster_size;
        if next >= range.end() {
            break;
        }
        let Ok(there) = touched(geometry, slice, first_entry, range, next) else { break };
        let distance = next - first_start;
        if place.map(|first| first.plus(distance)) != there.class.place() {
            break;
        }
        fills |= matches!(there.class, Class::Keep(_));
        last = there;
    }
    let end = last.start + cluster_size;
    let write = range.split_at(end.min(range.end()) - range.offset()).0;
    if let Some(host) = place.filter(|_| !fills) {
        let host = host.plus(range.offset() - first_start);
        return Ok(WriteStep::InPlace { len: write.len(), host });
    }
    let outside = Fault::new("guest offset", range.offset());
    let fill_end = fill_end(geometry, &last, write);
    Ok(WriteStep::Allocate(Allocation {
        clusters: ByteRange::from_bounds(first_start, end).map_err(|_| outside)?,
        write,
        fill: ByteRange::from_bounds(head, fill_end).map_err(|_| outside)?,
        keep: place,
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
    let start = geometry.cluster_alignment().round_down(offset);
    let cluster = mapping_entry(geometry, raw, bitmap, GuestOffset::new(start))?;
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
) -> Result<SmallVec<[Dropped; 1]>, Fault> {
    let mut dropped = SmallVec::new();
    let mut entries: SmallVec<[_; 1]> = SmallVec::new();
    let mut offset = allocation.clusters.offset();
    while offset < allocation.clusters.end() {
        let guest = GuestOffset::new(offset);
        let (raw, bitmap) = words_at(geometry, slice, first_entry, guest)?;
        let old = mapping_entry(geometry, raw, bitmap, guest)?;
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

/// Puts the entry of a compressed cluster into `slice` and gives what it held before. Nothing is changed
/// on error; `may_drop` can object to what would be dropped.
pub(crate) fn link_compressed(
    geometry: Geometry,
    slice: &mut [u64],
    first_entry: u64,
    guest: GuestOffset,
    stored: Stored,
    may_drop: impl Fn(Dropped) -> Result<(), Fault>,
) -> Result<Option<Dropped>, Fault> {
    let (raw, bitmap) = words_at(geometry, slice, first_entry, guest)?;
    let dropped = dropped_by(geometry, l2_entry(geometry, raw, bitmap)?);
    dropped.map_or(Ok(()), may_drop)?;
    let words = encode_compressed(geometry, stored.offset, stored.len);
    set_words(geometry, slice, first_entry, guest, words)?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::{L2Format, Version};
    use crate::units::HostOffset;

    const BITS: u32 = 14;
    const CLUSTER: u64 = 1 << BITS;
    const CLUSTERS: u64 = 6;
    /// Where a new place is: beyond all that the entries hold.
    const NEW: u64 = 1 << 30;
    const COPIED: u64 = 1 << 63;

    fn geometry(format: L2Format) -> Geometry {
        Geometry::new(Version::V3, BITS, 4, format, DataLocation::Image).unwrap()
    }

    /// What the slow twin knows of a subcluster.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    enum Sub {
        Unallocated,
        Zero,
        Data,
    }

    /// What the slow twin knows of a cluster.
    #[derive(Clone, PartialEq, Eq, Debug)]
    struct Known {
        subs: Vec<Sub>,
        /// The host cluster that may be written.
        own: Option<u64>,
        compressed: bool,
        dropped: Option<Dropped>,
    }

    fn known(g: Geometry, slice: &[u64], cluster: u64) -> Known {
        let (raw, bits) = words_at(g, slice, 0, GuestOffset::new(cluster * CLUSTER)).unwrap();
        let entry = l2_entry(g, raw, bits).unwrap();
        let count = g.subclusters();
        let dropped = dropped_by(g, entry);
        match entry {
            Cluster::Compressed(_) => Known {
                subs: vec![Sub::Data; to_usize(count.into())],
                own: None,
                compressed: true,
                dropped,
            },
            Cluster::Plain { host, alloc, zero } => {
                let sub = |index: u32| match (alloc >> index & 1, zero >> index & 1) {
                    (1, _) => Sub::Data,
                    (_, 1) => Sub::Zero,
                    _ => Sub::Unallocated,
                };
                let own = host.filter(|_| is_copied(raw)).map(HostOffset::bytes);
                Known { subs: (0..count).map(sub).collect(), own, compressed: false, dropped }
            }
        }
    }

    /// The subclusters of a cluster that `range` touches.
    fn touched_by(g: Geometry, cluster: u64, range: ByteRange) -> Vec<bool> {
        let size = g.subcluster_size();
        let start = |index: u32| cluster * CLUSTER + u64::from(index) * size;
        let sub = |index| ByteRange::new(start(index), size).unwrap();
        (0..g.subclusters()).map(|index| range.overlaps(sub(index))).collect()
    }

    /// Whether a write to `range` finds all that it touches of a cluster in a host cluster of its own.
    fn in_place(g: Geometry, known: &Known, cluster: u64, range: ByteRange) -> Option<u64> {
        let touched = touched_by(g, cluster, range);
        let there = known.subs.iter().zip(touched).all(|(sub, hit)| !hit || *sub == Sub::Data);
        known.own.filter(|_| there && !known.compressed)
    }

    /// Plays a write to `range` step by step and holds each against the twin.
    fn play(g: Geometry, mut slice: Vec<u64>, range: ByteRange) {
        let mut rest = range;
        let mut next_host = NEW;
        while !rest.is_empty() {
            let before: Vec<_> = (0..CLUSTERS).map(|at| known(g, &slice, at)).collect();
            let first = rest.offset() / CLUSTER;
            let there = |at: u64| in_place(g, &before[to_usize(at)], at, rest);
            let done = match plan(g, &slice, 0, rest).unwrap() {
                WriteStep::InPlace { len, host } => {
                    let end = rest.offset() + len;
                    let start = there(first).expect("in place") + rest.offset() % CLUSTER;
                    assert_eq!(host.bytes(), start);
                    for at in first..end.div_ceil(CLUSTER) {
                        assert_eq!(there(at), Some(start + at * CLUSTER - rest.offset()));
                    }
                    // It ends only where it must.
                    let after = (end < rest.end()).then(|| &before[to_usize(end / CLUSTER)]);
                    let more = after.filter(|known| !known.compressed).and_then(|known| known.own);
                    let next = start + end / CLUSTER * CLUSTER - rest.offset();
                    assert_ne!(more, Some(next));
                    len
                }
                WriteStep::Allocate(step) => {
                    let last = (step.write.end() - 1) / CLUSTER;
                    let all = (first..=last).all(|at| there(at).is_some());
                    assert!(!all || step.keep.is_none(), "it could be written in place");
                    assert!(there(first).is_none() || step.keep.is_some(), "it has a place");
                    let place = step.keep.unwrap_or(HostOffset::new(next_host));
                    next_host += step.clusters.len();
                    check_step(g, &before, &step, rest);
                    let dropped = link(g, &mut slice, 0, &step, place, |_| Ok(())).unwrap();
                    check_link(g, &before, &slice, &step, place, &dropped);
                    step.write.len()
                }
            };
            rest = rest.split_at(done).1;
        }
    }

    /// The invariants of an allocation, and that nothing is lost or overwritten by it.
    fn check_step(g: Geometry, before: &[Known], step: &Allocation, rest: ByteRange) {
        let Allocation { clusters, write, fill, keep } = *step;
        assert!(clusters.is_aligned(g.cluster_alignment()));
        assert!(fill.contains(write) && clusters.contains(fill) && !write.is_empty());
        assert_eq!(write.offset(), rest.offset());
        assert!(write.end() == rest.end() || write.end() == clusters.end());
        let size = g.subcluster_size();
        for at in clusters.offset() / CLUSTER..clusters.end() / CLUSTER {
            let known = &before[to_usize(at)];
            let own = known.own.map(|host| host + clusters.offset());
            assert_eq!(own, keep.map(|keep| keep.bytes() + at * CLUSTER), "cluster {at}");
            for (index, sub) in (0..).zip(&known.subs) {
                let sub_range = ByteRange::new(at * CLUSTER + index * size, size).unwrap();
                match (keep, sub) {
                    // Somebody may write there meanwhile.
                    (Some(_), Sub::Data) => {
                        let filled = fill.intersect(sub_range);
                        assert!(filled.is_empty() || write.contains(filled), "{at}/{index}");
                    }
                    (None, Sub::Data) => assert!(fill.contains(sub_range), "{at}/{index} is lost"),
                    _ if write.overlaps(sub_range) => assert!(fill.contains(sub_range)),
                    _ => {}
                }
            }
        }
    }

    fn check_link(
        g: Geometry,
        before: &[Known],
        slice: &[u64],
        step: &Allocation,
        place: HostOffset,
        dropped: &[Dropped],
    ) {
        let mut expected = Vec::new();
        for (at, old) in (0..).zip(before) {
            let new = known(g, slice, at);
            let range = ByteRange::new(at * CLUSTER, CLUSTER).unwrap();
            if !step.clusters.contains(range) {
                assert_eq!(new, *old, "cluster {at} is none of its business");
                continue;
            }
            let filled = touched_by(g, at, step.fill);
            let subs = old.subs.iter().zip(filled);
            let subs: Vec<_> = subs.map(|(sub, hit)| if hit { Sub::Data } else { *sub }).collect();
            assert_eq!(new.subs, subs);
            assert_eq!(new.own, Some(place.bytes() + at * CLUSTER - step.clusters.offset()));
            assert!(!new.compressed);
            expected.extend(old.dropped.filter(|_| step.keep.is_none()));
        }
        assert_eq!(dropped, expected);
    }

    /// An entry; hosts follow each other often.
    fn entry(extended: bool) -> impl Strategy<Value = (u64, u64)> {
        let kind = 0u32..6;
        let masks = prop_oneof![
            Just((u32::MAX, 0)),
            Just((0, u32::MAX)),
            Just((0, 0)),
            any::<(u32, u32)>(),
            (0u32..32).prop_map(|bit| (1 << bit, !(1 << bit))),
        ];
        (kind, masks, any::<bool>()).prop_map(move |(kind, (alloc, zero), copied)| {
            let flags = if copied { COPIED } else { 0 };
            let bitmap = u64::from(zero & !alloc) << 32 | u64::from(alloc);
            match (kind, extended) {
                (0, true) => (0, bitmap >> 32 << 32),
                (1, _) => (1 << 62 | 0x7_0123, 0),
                (_, true) => (flags | CLUSTER, bitmap),
                (0, false) => (0, 0),
                (2, false) => (1, 0),
                (3, false) => (flags | CLUSTER | 1, 0),
                (_, false) => (flags | CLUSTER, 0),
            }
        })
    }

    proptest! {
        /// Each step of a write is what the slow twin says of each of its subclusters.
        #[test]
        fn steps_are_what_the_subclusters_say(
            extended: bool,
            entries in prop::collection::vec((entry(false), entry(true), 0u64..3), 6),
            offset in 0..CLUSTERS * CLUSTER,
            len in 1..CLUSTERS * CLUSTER,
        ) {
            let format = if extended { L2Format::Extended } else { L2Format::Standard };
            let mut host = 16;
            let mut slice = Vec::new();
            for (plain, sub, gap) in entries {
                let (raw, bitmap) = if extended { sub } else { plain };
                // Two of three follow the one before.
                host += 1 + gap / 2;
                let has_host = raw & CLUSTER != 0 && raw >> 62 & 1 == 0;
                slice.push(if has_host { raw - CLUSTER + host * CLUSTER } else { raw });
                slice.extend(extended.then_some(bitmap));
            }
            let range = ByteRange::new(offset, len.min(CLUSTERS * CLUSTER - offset)).unwrap();
            play(geometry(format), slice, range);
        }
    }

    #[test]
    fn neighbours_with_places_of_their_own_are_one_step() {
        let g = geometry(L2Format::Standard);
        let data = |at: u64| COPIED | ((20 + at) * CLUSTER);
        // Data, a place that reads as zeroes, data.
        let slice = vec![data(0), data(1) | 1, data(2)];
        let range = ByteRange::new(100, 3 * CLUSTER - 200).unwrap();
        let WriteStep::Allocate(step) = plan(g, &slice, 0, range).unwrap() else {
            panic!("the middle has to be linked");
        };
        assert_eq!((step.write, step.fill), (range, range), "nothing is copied");
        assert_eq!(step.keep, Some(HostOffset::new(20 * CLUSTER)));
        let mut linked = slice.clone();
        link(g, &mut linked, 0, &step, HostOffset::new(20 * CLUSTER), |_| Ok(())).unwrap();
        assert_eq!(linked, [data(0), data(1), data(2)]);
    }

    #[test]
    fn an_objection_leaves_every_entry_as_it_was() {
        let g = geometry(L2Format::Standard);
        let mut slice = vec![0, CLUSTER * 20, CLUSTER * 21];
        let step = match plan(g, &slice, 0, ByteRange::up_to(3 * CLUSTER)).unwrap() {
            WriteStep::Allocate(step) => step,
            other => panic!("{other:?}"),
        };
        assert_eq!(step.clusters.len(), 3 * CLUSTER);
        let fault = Fault::new("objection", 1);
        let last = Dropped::Cluster(HostOffset::new(CLUSTER * 21));
        let object = |dropped| if dropped == last { Err(fault) } else { Ok(()) };
        let before = slice.clone();
        let place = HostOffset::new(NEW);
        assert_eq!(link(g, &mut slice, 0, &step, place, object), Err(fault));
        assert_eq!(slice, before);
    }
}
