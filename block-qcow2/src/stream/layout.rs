//! Where everything stands in an image that is written from its first byte to its last.
//!
//! The order is header, refcount table, refcount blocks, L1 table, L2 tables, data clusters in the
//! guest's order. The header names the places of all tables and comes first, so everything has to be
//! known before the first byte goes out: the lengths in the list are enough.
//!
//! Invariants: places ascend and do not overlap; a plain cluster stands in a host cluster of its own; a
//! compressed one starts where the last one ended, or at the next host cluster if the last one was plain
//! or the host cluster has as many references as its refcount can count; every host cluster has at least
//! one reference.

use std::iter::Peekable;

use super::list::{ClusterList, Stored};
use crate::create::Layout;
use crate::geometry::Geometry;
use crate::spec::refcount::max_refcount;
use crate::units::{GuestOffset, HostOffset};

/// A cluster and where it stands.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) stored: Stored,
    pub(super) offset: HostOffset,
}

/// Where what the list holds stands in the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct StreamLayout {
    geometry: Geometry,
    pub(super) tables: Layout,
}

impl StreamLayout {
    /// The layout of a disk of `disk_len` bytes with these clusters.
    pub(super) fn new(geometry: Geometry, disk_len: u64, list: &ClusterList) -> Self {
        let mut placer = Placer::new(geometry, HostOffset::new(0));
        let mut l2_tables = 0;
        let mut last = None;
        for stored in list.iter() {
            let index = l1_index(geometry, stored.cluster);
            if last != Some(index) {
                l2_tables += 1;
                last = Some(index);
            }
            placer.place(stored);
        }
        let data = placer.at.div_ceil(geometry.cluster_size());
        let l1_entries = geometry.l1_entries_for(disk_len);
        Self { geometry, tables: Layout::with_counts(geometry, l1_entries, l2_tables, data) }
    }

    /// The places of the clusters in the list, which is the one that the layout was made for.
    pub(super) fn places<'a>(
        &self,
        list: &'a ClusterList,
    ) -> impl Iterator<Item = Place> + Send + 'a {
        let mut placer = Placer::new(self.geometry, self.tables.data_offset());
        list.iter().map(move |stored| placer.place(stored))
    }

    /// The refcounts of all clusters of the file, in order.
    pub(super) fn refcounts<'a>(
        &self,
        list: &'a ClusterList,
    ) -> impl Iterator<Item = u64> + Send + 'a {
        let size = self.geometry.cluster_size();
        let tables = self.tables.data_offset().bytes() / size;
        let data =
            HostRefcounts { places: self.places(list).peekable(), size, host: tables, carried: 0 };
        let count = usize::try_from(tables).unwrap_or(usize::MAX);
        std::iter::repeat_n(1, count).chain(data)
    }

    /// The L1 indexes that have an L2 table, in order.
    pub(super) fn l1_indexes<'a>(
        &self,
        list: &'a ClusterList,
    ) -> impl Iterator<Item = u64> + Send + 'a {
        let geometry = self.geometry;
        let mut last = None;
        list.iter().filter_map(move |stored| {
            let index = l1_index(geometry, stored.cluster);
            (last.replace(index) != Some(index)).then_some(index)
        })
    }
}

/// Which L1 entry maps the cluster of this number.
pub(super) fn l1_index(geometry: Geometry, cluster: u64) -> u64 {
    geometry.l1_index(GuestOffset::new(cluster << geometry.cluster_bits()))
}

/// Finds the place of one cluster after the other.
struct Placer {
    size: u64,
    max_refs: u64,
    /// First free byte.
    at: u64,
    /// References on the host cluster of the byte `at`; 0 at its start.
    refs: u64,
}

impl Placer {
    /// The first cluster stands at `start`, which is a multiple of the cluster size.
    fn new(geometry: Geometry, start: HostOffset) -> Self {
        let max_refs = max_refcount(geometry);
        Self { size: geometry.cluster_size(), max_refs, at: start.bytes(), refs: 0 }
    }

    fn place(&mut self, stored: Stored) -> Place {
        let is_plain = stored.len >= self.size;
        if is_plain || self.refs >= self.max_refs {
            self.at = self.at.next_multiple_of(self.size);
            self.refs = 0;
        }
        let start = self.at;
        self.at += stored.len;
        self.refs = if self.at.is_multiple_of(self.size) {
            0
        } else if self.at / self.size == start / self.size {
            self.refs + 1
        } else {
            // It runs over, and is the first one there.
            1
        };
        Place { stored, offset: HostOffset::new(start) }
    }
}

/// Counts the references of one data cluster of the file after the other.
struct HostRefcounts<I: Iterator<Item = Place>> {
    places: Peekable<I>,
    size: u64,
    /// The next host cluster.
    host: u64,
    /// References on it by payloads that start before it.
    carried: u64,
}

impl<I: Iterator<Item = Place>> Iterator for HostRefcounts<I> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut refs = std::mem::take(&mut self.carried);
        let (host, size) = (self.host, self.size);
        while let Some(place) = self.places.next_if(|p| p.offset.bytes() / size == host) {
            refs += 1;
            let last = place.offset.plus(place.stored.len - 1).bytes() / size;
            self.carried += u64::from(last > host);
        }
        self.host += 1;
        (refs > 0).then_some(refs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};
    use crate::stream::list::Lengths;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_ascend_and_every_reference_is_counted(
            order in 0u32..=6,
            lens in prop::collection::vec(prop_oneof![1u64..512, Just(511), Just(512), 1u64..20], 0..400),
        ) {
            let g = Geometry::new(Version::V3, 9, order, L2Format::Standard, DataLocation::Image);
            let g = g.unwrap();
            let mut list = ClusterList::new(512, Lengths::Own, u64::MAX);
            for (cluster, len) in (0..).zip(&lens) {
                list.push(Stored { cluster: cluster * 3, len: *len }).unwrap();
            }
            let layout = StreamLayout::new(g, 4 << 20, &list);
            let clusters = usize::try_from(layout.tables.clusters()).unwrap();
            let mut counts = vec![0u64; clusters];
            let first = layout.tables.data_offset().bytes();
            (0..first / 512).for_each(|host| counts[usize::try_from(host).unwrap()] = 1);
            let mut end = first;
            for place in layout.places(&list) {
                let start = place.offset.bytes();
                prop_assert!(start >= end && start - end < 512);
                prop_assert!(place.stored.len < 512 || start.is_multiple_of(512));
                end = start + place.stored.len;
                for host in start / 512..=(end - 1) / 512 {
                    counts[usize::try_from(host).unwrap()] += 1;
                }
            }
            prop_assert_eq!(end.next_multiple_of(512), layout.tables.len());
            prop_assert!(counts.iter().all(|count| (1..=max_refcount(g)).contains(count)));
            prop_assert_eq!(layout.refcounts(&list).collect::<Vec<_>>(), counts);
        }
    }

    #[test]
    fn one_bit_refcounts_give_each_payload_a_host_cluster() {
        let g = Geometry::new(Version::V3, 16, 0, L2Format::Standard, DataLocation::Image).unwrap();
        let mut placer = Placer::new(g, HostOffset::new(0));
        let mut place = |len| placer.place(Stored { cluster: 0, len }).offset.bytes();
        assert_eq!(
            [place(10), place(10), place(65536), place(5)],
            [0, 0x1_0000, 0x2_0000, 0x3_0000]
        );
    }
}
