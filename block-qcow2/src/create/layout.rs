//! Where everything stands in a new image, and how much it needs.
//!
//! Invariants: the order is header, refcount table, refcount blocks, L1 table, L2 tables, data, with no
//! gap; the refcount structures cover every cluster up to [`Layout::clusters`], their own included.
//!
//! Not here: I/O.

use crate::geometry::Geometry;
use crate::units::HostOffset;

/// Numbers of clusters, in the order in which they stand in the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    geometry: Geometry,
    /// Clusters of the refcount table.
    pub(crate) refcount_table: u64,
    /// Refcount blocks.
    pub(crate) refcount_blocks: u64,
    /// Entries of the L1 table.
    pub(crate) l1_entries: u64,
    /// L2 tables.
    pub(crate) l2_tables: u64,
    /// Clusters of data in the image file.
    pub(crate) data: u64,
}

/// What of the disk has clusters from the start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mapped {
    /// Nothing.
    Nothing,
    /// All of it has L2 entries; the data is elsewhere.
    Tables,
    /// All of it has L2 entries and data clusters.
    All,
}

impl Layout {
    /// The layout of an image whose disk has `disk_len` bytes, at most [`block_core::range::MAX_LEN`].
    pub(crate) fn new(geometry: Geometry, disk_len: u64, mapped: Mapped) -> Self {
        let l1_entries = geometry.l1_entries_for(disk_len);
        let l2_tables = if mapped == Mapped::Nothing { 0 } else { l1_entries };
        let clusters = disk_len.div_ceil(geometry.cluster_size());
        let data = if mapped == Mapped::All { clusters } else { 0 };
        Self::with_counts(geometry, l1_entries, l2_tables, data)
    }

    /// The layout of an image with so many L1 entries, L2 tables and data clusters.
    pub(crate) fn with_counts(
        geometry: Geometry,
        l1_entries: u64,
        l2_tables: u64,
        data: u64,
    ) -> Self {
        let mut layout =
            Self { geometry, refcount_table: 1, refcount_blocks: 1, l1_entries, l2_tables, data };
        // Each round needs at most a few clusters more than the last one: it ends at the smallest
        // numbers that cover themselves.
        loop {
            let blocks = layout.clusters().div_ceil(geometry.refcounts_per_block());
            let table = (blocks * 8).div_ceil(geometry.cluster_size());
            if (table, blocks) == (layout.refcount_table, layout.refcount_blocks) {
                return layout;
            }
            (layout.refcount_table, layout.refcount_blocks) = (table, blocks);
        }
    }

    /// Clusters of the L1 table.
    pub(crate) fn l1_clusters(&self) -> u64 {
        (self.l1_entries * 8).div_ceil(self.geometry.cluster_size())
    }

    /// Clusters of the whole file.
    pub(crate) fn clusters(&self) -> u64 {
        let refcounts = self.refcount_table + self.refcount_blocks;
        1 + refcounts + self.l1_clusters() + self.l2_tables + self.data
    }

    /// First byte of the refcount table.
    pub(crate) fn refcount_table_offset(&self) -> HostOffset {
        self.offset(1)
    }

    /// First byte of the first refcount block.
    pub(crate) fn refcount_blocks_offset(&self) -> HostOffset {
        self.offset(1 + self.refcount_table)
    }

    /// First byte of the L1 table.
    pub(crate) fn l1_offset(&self) -> HostOffset {
        self.offset(1 + self.refcount_table + self.refcount_blocks)
    }

    /// First byte of the first L2 table.
    pub(crate) fn l2_offset(&self) -> HostOffset {
        self.l1_offset().plus(self.bytes(self.l1_clusters()))
    }

    /// First byte of the first data cluster.
    pub(crate) fn data_offset(&self) -> HostOffset {
        self.l2_offset().plus(self.bytes(self.l2_tables))
    }

    /// Bytes of the data clusters.
    pub(crate) fn data_len(&self) -> u64 {
        self.bytes(self.data)
    }

    /// Bytes of the whole file.
    pub(crate) fn len(&self) -> u64 {
        self.bytes(self.clusters())
    }

    fn offset(&self, cluster: u64) -> HostOffset {
        HostOffset::new(self.bytes(cluster))
    }

    fn bytes(&self, clusters: u64) -> u64 {
        clusters.saturating_mul(self.geometry.cluster_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};
    use block_core::range::MAX_LEN;
    use proptest::prelude::*;

    fn geometry(bits: u32, order: u32) -> Geometry {
        Geometry::new(Version::V3, bits, order, L2Format::Standard, DataLocation::Image).unwrap()
    }

    #[test]
    fn an_empty_image_has_three_clusters_and_its_l1_table() {
        let layout = Layout::new(geometry(16, 4), 1 << 30, Mapped::Nothing);
        assert_eq!((layout.refcount_table, layout.refcount_blocks), (1, 1));
        assert_eq!((layout.l1_offset().bytes(), layout.len()), (0x3_0000, 0x4_0000));
        assert_eq!(Layout::new(geometry(16, 4), 0, Mapped::All).clusters(), 3);
    }

    proptest! {
        #[test]
        fn the_refcounts_cover_the_file_and_little_more(
            bits in 9u32..=21,
            order in 0u32..=6,
            len in 0..=MAX_LEN,
            small: bool,
            mapped in prop::sample::select(vec![Mapped::Nothing, Mapped::Tables, Mapped::All]),
        ) {
            let geometry = geometry(bits, order);
            let len = if small { len >> 30 } else { len };
            let layout = Layout::new(geometry, len, mapped);
            let covered = u128::from(layout.refcount_blocks) * u128::from(geometry.refcounts_per_block());
            prop_assert!(covered >= layout.clusters().into());
            prop_assert!(layout.refcount_table * geometry.cluster_size() / 8 >= layout.refcount_blocks);
            let spare = covered - u128::from(layout.clusters());
            prop_assert!(spare < 2 * u128::from(geometry.refcounts_per_block()));
        }
    }
}
