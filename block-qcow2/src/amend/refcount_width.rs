//! Another width of refcounts: a new refcount structure, complete, in clusters that were free, then one
//! write of the header, then the old one goes.
//!
//! **Invariant.** A crash before the write of the header leaks the new structure, one after it the old
//! one. Both count themselves and each other.

use std::sync::atomic::Ordering;

use block_core::error::Problem;
use block_core::range::to_usize;
use block_core::{Error, OpenError, Result};

use super::{Progress, failed};
use crate::alloc::Reason;
use crate::driver::Qcow2Driver;
use crate::geometry::Geometry;
use crate::metadata_io::{encode_words, write_bytes};
use crate::overlap::Section;
use crate::spec::Fault;
use crate::spec::bad_field;
use crate::spec::header::{MAX_REFCOUNT_TABLE_BYTES, Table};
use crate::spec::refcount::{max_refcount, set_refcount, table_entry};
use crate::table::read_words;
use crate::units::HostOffset;

/// Times that the structure may turn out too small for what its own place made the old one grow.
const MAX_TRIES: usize = 8;

/// A refcount structure: the blocks, then the table, without a gap.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Structure {
    blocks: u64,
    table_clusters: u64,
}

impl Structure {
    /// What counts `clusters` clusters.
    fn of(geometry: Geometry, clusters: u64) -> Self {
        let blocks = clusters.div_ceil(geometry.refcounts_per_block()).max(1);
        Self { blocks, table_clusters: (blocks * 8).div_ceil(geometry.cluster_size()) }
    }

    fn clusters(self) -> u64 {
        self.blocks + self.table_clusters
    }

    /// What counts `clusters` clusters and itself behind them.
    fn with_itself(geometry: Geometry, clusters: u64) -> Self {
        let mut all = Self::of(geometry, clusters);
        loop {
            let more = Self::of(geometry, clusters + all.clusters());
            if more == all {
                return all;
            }
            all = more;
        }
    }
}

impl Qcow2Driver {
    /// Makes refcounts `1 << order` bits wide. In an exclusive turn, everything written back.
    pub(super) async fn change_refcount_width(
        &self,
        order: u32,
        progress: Progress<'_>,
    ) -> Result<(), OpenError> {
        let (old, new) = (self.geometry(), self.geometry().with_refcount_order(order));
        if old == new {
            return Ok(());
        }
        let what = failed("refcounts");
        self.check_counts(new).await?;
        let (structure, place) = self.place_structure(new).await?;
        let offset = place.plus(structure.blocks << old.cluster_bits());
        let written = self.write_structure(new, structure, place, progress).await;
        if let Err(error) = written {
            let mut meta = self.writer().map_err(&what)?.meta.lock().await;
            meta.drop_metadata(place, structure.clusters() << old.cluster_bits(), Reason::Other);
            return Err(what(error));
        }
        let before = self.header.with(|parts| parts.header.refcount_table);
        let words = u64::from(before.count) * (old.cluster_size() / 8);
        let old_table = read_words(&self.file, "refcount table", before.offset, words).await?;
        let count = u32::try_from(structure.table_clusters).map_err(|_| what(Error::Invalid))?;
        self.event("refcount_width_switch");
        let switched = self.header.update(|header| {
            header.refcount_table = Table { offset, count };
            header.geometry = new;
        });
        if let Err(error) = switched.await {
            // The file may have either structure, so neither may be written.
            self.read_only.store(true, Ordering::Release);
            return Err(what(error));
        }
        self.adopt().await?;
        self.file.flush().await.map_err(&what)?;
        {
            let mut meta = self.writer().map_err(&what)?.meta.lock().await;
            for raw in old_table {
                let block = table_entry(old, raw).map_err(|fault| what(fault.into()))?;
                if let Some(block) = block {
                    meta.drop_metadata(block, old.cluster_size(), Reason::Other);
                }
            }
            let bytes = u64::from(before.count) << old.cluster_bits();
            meta.drop_metadata(before.offset, bytes, Reason::Other);
        }
        self.settle_all().await.map_err(&what)
    }

    /// Refuses a width that some count does not fit.
    async fn check_counts(&self, new: Geometry) -> Result<(), OpenError> {
        let what = failed("refcounts");
        let most = max_refcount(new);
        let mut meta = self.writer().map_err(&what)?.meta.lock().await;
        for cluster in 0..meta.refcounts.end().await.map_err(&what)? {
            let count = meta.refcounts.get(cluster).await.map_err(&what)?;
            if count > most {
                return Err(bad_field("refcount of a cluster", count, Problem::Above(most)));
            }
        }
        Ok(())
    }

    /// Clusters for a structure that counts everything, itself and what the old one needs to count it.
    async fn place_structure(&self, new: Geometry) -> Result<(Structure, HostOffset), OpenError> {
        let what = failed("refcounts");
        let bits = new.cluster_bits();
        let mut end = self.counted_clusters().await.map_err(&what)?;
        for _ in 0..MAX_TRIES {
            let structure = Structure::with_itself(new, end);
            if structure.table_clusters << bits > MAX_REFCOUNT_TABLE_BYTES {
                return Err(what(Error::Os(libc::EFBIG)));
            }
            let place = {
                let mut meta = self.writer().map_err(&what)?.meta.lock().await;
                let count = structure.clusters();
                let section = Section::RefcountBlock;
                let place = meta.allocate_metadata(section, count, &self.header).await;
                place.map_err(&what)?
            };
            self.settle_all().await.map_err(&what)?;
            end = self.counted_clusters().await.map_err(&what)?;
            let enough = end <= structure.blocks.saturating_mul(new.refcounts_per_block());
            if enough {
                return Ok((structure, place));
            }
            {
                let mut meta = self.writer().map_err(&what)?.meta.lock().await;
                meta.drop_metadata(place, structure.clusters() << bits, Reason::Other);
            }
            self.settle_all().await.map_err(&what)?;
        }
        Err(what(Error::NO_SPACE))
    }

    async fn counted_clusters(&self) -> Result<u64> {
        self.writer()?.meta.lock().await.refcounts.end().await
    }

    /// Writes the counts as they are to the new structure, and makes it stable.
    async fn write_structure(
        &self,
        new: Geometry,
        structure: Structure,
        place: HostOffset,
        progress: Progress<'_>,
    ) -> Result<()> {
        let bits = new.cluster_bits();
        let end = self.counted_clusters().await?;
        let per_block = new.refcounts_per_block();
        let mut table = Vec::new();
        for index in 0..structure.blocks {
            progress(index, structure.blocks);
            let mut block = vec![0; to_usize(new.cluster_size())];
            {
                let mut meta = self.writer()?.meta.lock().await;
                let first = index * per_block;
                for cluster in first..(first + per_block).min(end) {
                    let count = meta.refcounts.get(cluster).await?;
                    let outside = Fault::new("refcount index", cluster);
                    set_refcount(new, &mut block, cluster - first, count).ok_or(outside)?;
                }
            }
            let offset = place.plus(index << bits);
            write_bytes(&self.file, offset, &block).await?;
            table.push(offset.bytes());
        }
        table.resize(to_usize(structure.table_clusters << bits) / 8, 0);
        let offset = place.plus(structure.blocks << bits);
        write_bytes(&self.file, offset, &encode_words(&table)).await?;
        progress(structure.blocks, structure.blocks);
        self.barrier().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_structure_counts_itself(bits in 9u32..=21, order in 0u32..=6, clusters in 1u64..1 << 30) {
            let image = DataLocation::Image;
            let g = Geometry::new(Version::V3, bits, order, L2Format::Standard, image).unwrap();
            let all = Structure::with_itself(g, clusters);
            prop_assert!(all.blocks * g.refcounts_per_block() >= clusters + all.clusters());
            prop_assert!(all.table_clusters * g.cluster_size() / 8 >= all.blocks);
        }
    }
}
