//! The stored refcounts: the table, its blocks, and their comparison with what was counted.
//!
//! Invariants: a block is used for one entry of the table only, the first that names it; what is in
//! [`Blocks::table`] is aligned and inside of the file.

use std::collections::BTreeSet;

use block_core::metadata::bytes::write_bytes;
use block_core::range::{to_u64, to_usize};
use block_core::{Error, Node, Result};

use crate::check::counts::Counts;
use crate::check::layout::Layout;
use crate::check::tables::{TableReader, read_all};
use crate::check::walk::Walk;
use crate::geometry::Geometry;
use crate::spec::refcount::{max_refcount, refcount, set_refcount};

/// Bytes of blocks that are kept for random access.
const CACHE_BYTES: u64 = 8 << 20;
/// Refcounts that are compared at once.
const WINDOW: u64 = 32 << 10;

/// The refcount blocks that can be used.
#[derive(Default)]
pub(super) struct Blocks {
    /// Where each block starts; 0: there is none.
    pub(super) table: Vec<u64>,
    /// Clusters that were counted as blocks, whether they can be used or not.
    pub(super) counted: Vec<u64>,
    /// Blocks that were used last, the latest at the end.
    cache: Vec<(u64, Vec<u8>)>,
}

/// A refcount that is not what was counted.
#[derive(Copy, Clone, Debug)]
pub(super) struct Difference {
    pub(super) cluster: u64,
    pub(super) stored: u64,
    pub(super) counted: u64,
}

impl Blocks {
    /// The stored refcount of a cluster; 0 where no block covers it.
    pub(super) async fn stored(
        &mut self,
        file: &Node,
        layout: &Layout,
        cluster: u64,
    ) -> Result<u64> {
        let per_block = layout.geometry().refcounts_per_block();
        let (index, place) = (cluster / per_block, cluster % per_block);
        let start = self.table.get(to_usize(index)).copied().unwrap_or(0);
        if start == 0 {
            return Ok(0);
        }
        if self.cache.last().is_none_or(|(last, _)| *last != index) {
            let block = match self.cache.iter().position(|(cached, _)| *cached == index) {
                Some(at) => self.cache.remove(at).1,
                None => read_block(file, layout, start).await?,
            };
            if to_u64(self.cache.len()) >= (CACHE_BYTES / layout.cluster_size()).clamp(2, 128) {
                self.cache.remove(0);
            }
            self.cache.push((index, block));
        }
        let block = self.cache.last().map(|(_, block)| block.as_slice()).unwrap_or_default();
        Ok(refcount(layout.geometry(), block, place).unwrap_or(0))
    }

    /// Stores a refcount that fits in a block that exists.
    pub(super) async fn store(
        &mut self,
        file: &Node,
        layout: &Layout,
        cluster: u64,
        value: u64,
    ) -> Result<()> {
        self.stored(file, layout, cluster).await?;
        let per_block = layout.geometry().refcounts_per_block();
        let (index, place) = (cluster / per_block, cluster % per_block);
        let start = self.table.get(to_usize(index)).copied().unwrap_or(0);
        let Some((_, block)) = self.cache.last_mut().filter(|(cached, _)| *cached == index) else {
            return Err(Error::Invalid);
        };
        set_refcount(layout.geometry(), block, place, value).ok_or(Error::Invalid)?;
        let sector = place * layout.geometry().refcount_bits() / 8 / 512 * 512;
        let bytes = block.get(to_usize(sector)..to_usize(sector) + 512).unwrap_or_default();
        write_bytes(file, start + sector, bytes).await
    }

    /// The first index from `from` on that has a block or covers a cluster that was counted.
    fn next_index(&self, from: u64, per_block: u64, counted: &Counts) -> Option<u64> {
        let rest = self.table.iter().skip(to_usize(from));
        let block = rest.zip(from..).find(|(start, _)| **start != 0).map(|(_, index)| index);
        let cluster = from.checked_mul(per_block).and_then(|first| counted.next(first));
        let count = cluster.map(|(cluster, _)| cluster / per_block);
        block.into_iter().chain(count).min()
    }

    /// Calls `each` for every cluster that has a refcount or was counted, and stores what it returns.
    /// A block is written if it has changed. How many clusters were left as they should not be,
    /// because no block covers them or the count does not fit.
    pub(super) async fn visit(
        &mut self,
        file: &Node,
        layout: &Layout,
        counted: &Counts,
        mut each: impl FnMut(Difference) -> Option<u64> + Send,
    ) -> Result<u64> {
        let geometry = layout.geometry();
        let per_block = geometry.refcounts_per_block();
        let (mut from, mut missed) = (0, 0);
        let mut counts = vec![0; to_usize(WINDOW.min(per_block))];
        while let Some(index) = self.next_index(from, per_block, counted) {
            from = index + 1;
            let start = self.table.get(to_usize(index)).copied().unwrap_or(0);
            let mut block =
                if start == 0 { Vec::new() } else { read_block(file, layout, start).await? };
            let mut changed = false;
            for first in (0..per_block).step_by(to_usize(WINDOW)) {
                counted.copy_to(index * per_block + first, &mut counts);
                if counts.iter().all(|count| *count == 0) && is_zero(geometry, &block, first) {
                    continue;
                }
                for (place, counted) in (first..per_block).zip(&counts) {
                    let stored = refcount(geometry, &block, place).unwrap_or(0);
                    if stored == 0 && *counted == 0 {
                        continue;
                    }
                    let cluster = index * per_block + place;
                    let Some(value) = each(Difference { cluster, stored, counted: *counted })
                    else {
                        continue;
                    };
                    let fits = value.min(max_refcount(geometry));
                    let set = set_refcount(geometry, &mut block, place, fits);
                    changed |= set.is_some() && fits != stored;
                    missed += u64::from(set.is_none() || fits != value);
                }
            }
            if changed {
                write_bytes(file, start, &block).await?;
                self.cache.retain(|(cached, _)| *cached != index);
            }
        }
        Ok(missed)
    }
}

/// Whether no refcount of a window is set.
fn is_zero(geometry: Geometry, block: &[u8], first: u64) -> bool {
    let bits = geometry.refcount_bits();
    let (start, end) = (first * bits / 8, (first + WINDOW) * bits / 8);
    let end = to_usize(end).min(block.len());
    let bytes = block.get(to_usize(start)..end).unwrap_or_default();
    bytes.iter().all(|byte| *byte == 0)
}

/// A block whose contents are not read where the file has a hole.
async fn read_block(file: &Node, layout: &Layout, start: u64) -> Result<Vec<u8>> {
    let mut block = vec![0; to_usize(layout.cluster_size())];
    let mut reader = TableReader::new(file, start, layout.cluster_size());
    while let Some(piece) = reader.next().await? {
        let place = block.get_mut(to_usize(piece.first * 8)..).unwrap_or_default();
        place.iter_mut().zip(&piece.bytes).for_each(|(place, byte)| *place = *byte);
    }
    Ok(block)
}

impl Walk<'_> {
    /// Reads the refcount table and counts its blocks.
    pub(super) async fn load_blocks(&mut self) -> Result<()> {
        let (layout, place) = (self.layout, self.layout.header.refcount_table);
        let (start, len) = (place.offset.bytes(), u64::from(place.count) * layout.cluster_size());
        if !self.refer_exclusive("the refcount table", start, len)? {
            self.faults.blocks = true;
        }
        let mut table = match read_all(self.file, start, len).await {
            Ok(table) => table,
            Err(error) => {
                self.unreadable("the refcount table", start, error)?;
                Vec::new()
            }
        };
        let mut used = BTreeSet::new();
        let mut all = Vec::new();
        for (index, entry) in table.iter_mut().enumerate().filter(|(_, entry)| **entry != 0) {
            let raw = *entry;
            *entry = raw & !0x1ff;
            let problem = if *entry != layout.geometry().cluster_alignment().round_down(*entry) {
                *entry = 0;
                Some("the block is not aligned to a cluster")
            } else if !layout.is_inside(*entry) {
                *entry = 0;
                Some("the block is beyond the end of the file")
            } else if raw != *entry {
                Some("reserved bits are set")
            } else {
                None
            };
            if let Some(problem) = problem {
                self.faults.blocks = true;
                self.log.corruption(|| {
                    format!("entry {index} of the refcount table ({raw:#x}): {problem}")
                });
            }
            if *entry != 0 {
                let cluster = layout.cluster_of(*entry);
                self.refs.all.add(cluster, 1)?;
                self.refs.exclusive.add(cluster, 1)?;
                all.push(cluster);
                if !used.insert(cluster) {
                    *entry = 0;
                }
            }
        }
        self.blocks = Blocks { table, counted: all, cache: Vec::new() };
        Ok(())
    }

    /// Compares every refcount with what was counted.
    pub(super) async fn compare_refcounts(&mut self) -> Result<()> {
        let (mut end, log, layout) = (0, &mut self.log, self.layout);
        let (mut lacking, mut too_many) = (false, 0u64);
        let max = max_refcount(layout.geometry());
        let per_block = layout.geometry().refcounts_per_block();
        let covered: Vec<bool> = self.blocks.table.iter().map(|start| *start != 0).collect();
        let compared = self.blocks.visit(self.file, layout, &self.refs.all, |difference| {
            let Difference { cluster, stored, counted } = difference;
            if cluster < layout.clusters {
                end = end.max(cluster + 1);
            }
            too_many = too_many.saturating_add(counted.saturating_sub(max));
            if stored < counted {
                lacking |= !covered.get(to_usize(cluster / per_block)).copied().unwrap_or(false);
                log.corruption(|| {
                    format!("cluster {cluster} refcount={stored} reference={counted}")
                });
            } else if stored > counted {
                log.leak(|| format!("cluster {cluster} refcount={stored} reference={counted}"));
            }
            None
        });
        let compared = compared.await;
        log.report.image_end_offset = end << layout.geometry().cluster_bits();
        self.faults.entries |= too_many > 0;
        self.faults.too_many = too_many;
        self.faults.blocks |= lacking | self.blocks_are_overlapped();
        match compared {
            Ok(_) => Ok(()),
            Err(error) => self.unreadable("a refcount block", 0, error),
        }
    }

    /// Whether a refcount block shares its cluster.
    fn blocks_are_overlapped(&self) -> bool {
        let place = self.layout.header.refcount_table;
        let first = self.layout.cluster_of(place.offset.bytes());
        let table = first..first + u64::from(place.count);
        let blocks = self.blocks.table.iter().filter(|start| **start != 0);
        let blocks = blocks.map(|start| self.layout.cluster_of(*start));
        table.chain(blocks).any(|cluster| self.refs.all.get(cluster) != 1)
    }
}
