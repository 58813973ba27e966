//! A new refcount structure in place of one that cannot be mended where it is.
//!
//! Invariants: the new blocks and the new table stand where nothing that is referenced stands; all of
//! it is stable before the header names it, which takes one write of one sector. Before that write
//! the image is what it was, after it every refcount is what was counted.

use std::collections::BTreeMap;

use block_core::metadata::bytes::write_bytes;
use block_core::range::to_usize;
use block_core::{Error, Node, Result};

use crate::check::counts::Counts;
use crate::check::layout::Layout;
use crate::check::walk::Walk;
use crate::spec::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::spec::refcount::{max_refcount, set_refcount};

/// Place of the refcount table's offset and size in the header.
const HEADER_PLACE: u64 = 48;
/// Refcounts that are fetched at once.
const WINDOW: u64 = 32 << 10;

/// Where the new structure goes.
struct Plan {
    /// Cluster of the first block; the others follow, then the table.
    base: u64,
    /// Which block each index of the table gets.
    blocks: BTreeMap<u64, u64>,
    table_clusters: u64,
}

impl Plan {
    /// For `counted`, the structure itself, and `spare` clusters behind it.
    fn new(layout: &Layout, counted: &Counts, base: u64, spare: u64) -> Option<Self> {
        let per_block = layout.geometry().refcounts_per_block();
        let max_index = MAX_REFCOUNT_TABLE_BYTES / 8;
        let mut needed = BTreeMap::new();
        let mut from = 0;
        while let Some((cluster, _)) = counted.next(from) {
            let index = cluster / per_block;
            needed.insert(index, 0);
            from = (index + 1).checked_mul(per_block)?;
            if index >= max_index {
                return None;
            }
        }
        let mut total = 1;
        loop {
            let last = base.checked_add(total)?.checked_add(spare)? / per_block;
            if last >= max_index {
                return None;
            }
            let mut blocks = needed.clone();
            blocks.extend((base / per_block..=last).map(|index| (index, 0)));
            blocks.values_mut().zip(base..).for_each(|(place, cluster)| *place = cluster);
            let entries = blocks.last_key_value().map_or(1, |(index, _)| index + 1);
            let table_clusters = (entries * 8).div_ceil(layout.cluster_size());
            let now = block_core::range::to_u64(blocks.len()) + table_clusters;
            if now <= total {
                // What is left over between blocks and table stays free.
                return Some(Self { base, blocks, table_clusters });
            }
            total = now;
        }
    }

    fn table(&self) -> u64 {
        self.base + block_core::range::to_u64(self.blocks.len())
    }
}

impl Walk<'_> {
    /// Writes a refcount structure that says what was counted and covers `spare` clusters after
    /// itself. The walk is of no use afterwards.
    pub(super) async fn rebuild(&mut self, spare: u64) -> Result<()> {
        let layout = self.layout;
        let old = layout.header.refcount_table;
        let first = layout.cluster_of(old.offset.bytes());
        let table = first..(first + u64::from(old.count)).min(layout.clusters);
        let blocks = std::mem::take(&mut self.blocks.counted);
        for cluster in table.chain(blocks) {
            self.refs.all.sub(cluster, 1)?;
        }
        let grows = self.file.capabilities().grows_on_write;
        let ends = [layout.clusters, self.refs.all.end()];
        // At the end of the file nothing is overwritten that somebody might want to look for.
        let plans = ends.into_iter().skip(usize::from(!grows));
        let plan = plans.filter_map(|base| Plan::new(layout, &self.refs.all, base, spare)).next();
        let plan = plan.ok_or(Error::NO_SPACE)?;
        for cluster in plan.base..plan.table() + plan.table_clusters {
            self.refs.all.add(cluster, 1)?;
        }
        write_blocks(self.file, layout, &self.refs.all, &plan).await?;
        let mut bytes = vec![0; to_usize(plan.table_clusters * layout.cluster_size())];
        for (index, cluster) in &plan.blocks {
            let offset = cluster << layout.geometry().cluster_bits();
            let place = bytes.get_mut(to_usize(index * 8)..to_usize(index * 8) + 8);
            place.unwrap_or_default().copy_from_slice(&offset.to_be_bytes());
        }
        let table = plan.table() << layout.geometry().cluster_bits();
        write_bytes(self.file, table, &bytes).await?;
        self.file.flush().await?;
        let count = u32::try_from(plan.table_clusters).map_err(|_| Error::Invalid)?;
        let fields = [&table.to_be_bytes()[..], &count.to_be_bytes()].concat();
        write_bytes(self.file, HEADER_PLACE, &fields).await?;
        self.file.flush().await?;
        self.log.repaired(|| format!("the refcount structure was rebuilt at {table:#x}"));
        Ok(())
    }
}

async fn write_blocks(file: &Node, layout: &Layout, counted: &Counts, plan: &Plan) -> Result<()> {
    let geometry = layout.geometry();
    let per_block = geometry.refcounts_per_block();
    let mut counts = vec![0; to_usize(WINDOW.min(per_block))];
    for (index, cluster) in &plan.blocks {
        let mut block = vec![0; to_usize(layout.cluster_size())];
        for first in (0..per_block).step_by(to_usize(WINDOW)) {
            counted.copy_to(index * per_block + first, &mut counts);
            for (place, count) in (first..per_block).zip(&counts).filter(|(_, count)| **count != 0)
            {
                let fits = (*count).min(max_refcount(geometry));
                // The place is inside of the block and the count fits.
                let _ = set_refcount(geometry, &mut block, place, fits);
            }
        }
        write_bytes(file, cluster << geometry.cluster_bits(), &block).await?;
    }
    Ok(())
}
