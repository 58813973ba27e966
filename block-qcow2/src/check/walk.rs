//! The walk over all metadata that counts references.
//!
//! Invariant: every L2 table is read once, however many L1 entries point at it, and no L1 table is
//! followed that overlaps another structure; so the work is bounded by the bytes of the file that
//! are not holes, whatever the tables say.

use block_core::{Error, Node, Result};

use crate::check::counts::Counts;
use crate::check::judge::{Judged, Target};
use crate::check::layout::Layout;
use crate::check::log::Log;
use crate::check::refcounts::Blocks;
use crate::check::tables::TableReader;

/// An L1 table that can be followed.
#[derive(Copy, Clone, Debug)]
pub(super) struct L1 {
    pub(super) offset: u64,
    pub(super) count: u64,
}

/// What refers to each cluster of the file.
#[derive(Default)]
pub(super) struct References {
    /// Everything.
    pub(super) all: Counts,
    /// Metadata that must have its cluster for itself.
    pub(super) exclusive: Counts,
    /// L1 entries that point at an L2 table.
    pub(super) l2: Counts,
    /// Compressed clusters, which may share a cluster with each other.
    pub(super) compressed: Counts,
    /// L2 tables whose cluster the refcount table claims too, without reason as far as can be seen.
    disputed: Counts,
    /// L2 tables that were read.
    seen: Counts,
}

/// What a repair would have to see to.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Faults {
    /// L1 or L2 entries.
    pub(super) entries: bool,
    /// Entries of the refcount table, or where its blocks are.
    pub(super) blocks: bool,
    /// Entries of the snapshot table.
    pub(super) snapshots: bool,
    /// The bitmap directory or what it points at.
    pub(super) bitmaps: bool,
    /// The L1 table's size, which takes in other metadata.
    pub(super) excess: bool,
    /// The place of the L1 table contradicts the header's other fields: nothing can be told from it.
    pub(super) hopeless: bool,
    /// References beyond what refcounts of this width can say.
    pub(super) too_many: u64,
    /// Something was not followed: what it refers to looks like a leak and may be none.
    pub(super) unfollowed: bool,
}

/// One walk, and what it found.
pub(super) struct Walk<'a> {
    pub(super) file: &'a Node,
    pub(super) layout: &'a Layout,
    pub(super) log: Log<'a>,
    pub(super) refs: References,
    pub(super) blocks: Blocks,
    pub(super) faults: Faults,
    /// The L1 tables of snapshots that can be followed.
    pub(super) snapshots: Vec<L1>,
    /// COPIED flags that contradict the refcounts.
    pub(super) copied_wrong: u64,
    /// COPIED flags that a repair has changed.
    pub(super) copied_changed: u64,
}

impl<'a> Walk<'a> {
    /// Counts every reference and compares with the refcounts and COPIED flags.
    pub(super) async fn run(file: &'a Node, layout: &'a Layout, log: Log<'a>) -> Result<Self> {
        let mut walk = Self {
            file,
            layout,
            log,
            refs: References::default(),
            blocks: Blocks::default(),
            faults: Faults::default(),
            snapshots: Vec::new(),
            copied_wrong: 0,
            copied_changed: 0,
        };
        walk.log.report.total_clusters = layout.header.disk_len.div_ceil(layout.cluster_size());
        walk.refer_exclusive("the header", 0, layout.cluster_size())?;
        if let Some((offset, len)) = layout.extensions.crypto_header {
            walk.refer_exclusive("the encryption header", offset.bytes(), len)?;
        }
        walk.load_blocks().await?;
        let l1 = layout.header.l1;
        let active = L1 { offset: l1.offset.bytes(), count: l1.count.into() };
        walk.refer_active(active)?;
        walk.count_l2(active, "the L1 table").await?;
        walk.walk_snapshot_table().await?;
        for index in 0..walk.snapshots.len() {
            if let Some(l1) = walk.snapshots.get(index).copied() {
                walk.count_l2(l1, "the L1 table of a snapshot").await?;
            }
        }
        walk.walk_bitmaps().await?;
        walk.settle_disputes().await?;
        walk.walk_active(active).await?;
        walk.walk_inactive().await?;
        walk.judge_active(active);
        walk.find_overlaps();
        walk.compare_refcounts().await?;
        Ok(walk)
    }

    /// Counts the clusters of `[offset, offset + len)`, which nothing else may use. `false` if some
    /// are not in the file, or in use.
    pub(super) fn refer_exclusive(&mut self, what: &str, offset: u64, len: u64) -> Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let first = self.layout.cluster_of(offset);
        let last = self.layout.cluster_of(offset.saturating_add(len - 1));
        if last >= self.layout.clusters {
            self.log.corruption(|| {
                format!("{what} at {offset:#x} (length {len:#x}) is beyond the end of the file")
            });
        }
        let mut alone = last < self.layout.clusters;
        for cluster in first..=last.min(self.layout.clusters.saturating_sub(1)) {
            alone &= self.refs.exclusive.get(cluster) == 0;
            self.refs.all.add(cluster, 1)?;
            self.refs.exclusive.add(cluster, 1)?;
        }
        Ok(alone)
    }

    /// Counts the clusters of metadata that the disk can do without. They are not claimed, and this is
    /// `false`, where they are not in the file or belong to other metadata.
    pub(super) fn refer_minor(&mut self, what: &str, offset: u64, len: u64) -> Result<bool> {
        let first = self.layout.cluster_of(offset);
        let last = self.layout.cluster_of(offset.saturating_add(len.saturating_sub(1)));
        let is_free =
            |cluster| self.refs.exclusive.get(cluster) == 0 && self.refs.l2.get(cluster) == 0;
        let may = last < self.layout.clusters && (first..=last).all(is_free);
        Ok((may || len == 0) && self.refer_exclusive(what, offset, len)?)
    }

    /// Counts the clusters of the L1 table of the disk.
    fn refer_active(&mut self, l1: L1) -> Result<()> {
        let table = self.layout.header.refcount_table;
        let start = self.layout.cluster_of(table.offset.bytes());
        let (first, needed) = self.clusters_of_l1(l1);
        let other = 0..u64::from(self.layout.extensions.crypto_header.is_some()) + 1;
        let tables = first < start + u64::from(table.count) && start < needed;
        self.faults.hopeless = tables || other.contains(&first) || needed > self.layout.clusters;
        self.refer_exclusive("the L1 table", l1.offset, l1.count * 8)?;
        Ok(())
    }

    /// The first cluster of an L1 table, and the end of those that hold what the disk needs.
    fn clusters_of_l1(&self, l1: L1) -> (u64, u64) {
        let needed = self.layout.geometry().l1_entries_for(self.layout.header.disk_len);
        let end = l1.offset.saturating_add(needed.max(1) * 8 - 1);
        (self.layout.cluster_of(l1.offset), self.layout.cluster_of(end) + 1)
    }

    /// Whether the entries that the disk does not need stand where something else does.
    fn judge_active(&mut self, l1: L1) {
        let (_, needed) = self.clusters_of_l1(l1);
        let end =
            self.layout.cluster_of(l1.offset.saturating_add(l1.count * 8).saturating_sub(1)) + 1;
        self.faults.excess = (needed..end).any(|cluster| self.refs.all.get(cluster) != 1);
    }

    /// Counts the references of one L1 table to L2 tables.
    async fn count_l2(&mut self, l1: L1, what: &str) -> Result<()> {
        let mut reader = TableReader::new(self.file, l1.offset, l1.count * 8);
        loop {
            let piece = match reader.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => return self.unreadable(what, l1.offset, error),
            };
            for (index, raw) in (piece.first..l1.count).zip(piece.words()) {
                if raw == 0 {
                    continue;
                }
                let judged = self.layout.judge_l1(raw);
                self.say_problems(&judged, || format!("entry {index} of {what} ({raw:#x})"));
                let Target::Cluster(offset) = judged.target else { continue };
                if !self.layout.is_inside(offset) {
                    self.faults.entries = true;
                    self.faults.unfollowed = true;
                    self.log.corruption(|| {
                        format!("L2 table at {offset:#x} is beyond the end of the file")
                    });
                    continue;
                }
                let cluster = self.layout.cluster_of(offset);
                self.refs.all.add(cluster, 1)?;
                self.refs.l2.add(cluster, 1)?;
            }
        }
    }

    /// Where an L1 entry and the refcount structure claim the same cluster, its contents decide: the
    /// refcounts can be written anew elsewhere, an L2 table cannot.
    async fn settle_disputes(&mut self) -> Result<()> {
        let place = self.layout.header.refcount_table;
        let first = self.layout.cluster_of(place.offset.bytes());
        let table = first..first.saturating_add(place.count.into());
        let claimed: Vec<_> = table.chain(self.blocks.counted.iter().copied()).collect();
        for cluster in claimed {
            let is_new = self.refs.disputed.get(cluster) == 0 && self.refs.l2.get(cluster) != 0;
            let offset = cluster << self.layout.geometry().cluster_bits();
            if is_new && self.looks_like_l2(offset).await? {
                self.refs.disputed.add(cluster, 1)?;
            }
        }
        Ok(())
    }

    /// Whether a cluster holds nothing that an L2 table would not, and refers to guest data.
    async fn looks_like_l2(&self, offset: u64) -> Result<bool> {
        let geometry = self.layout.geometry();
        let mut refers = false;
        let mut reader = TableReader::new(self.file, offset, geometry.cluster_size());
        while let Some(piece) = reader.next().await? {
            let mut words = piece.words();
            while let Some(raw) = words.next() {
                let bitmap =
                    if geometry.l2_entry_words() == 2 { words.next().unwrap_or(0) } else { 0 };
                let judged = self.layout.judge_l2((raw, bitmap), None);
                let is_sound = match judged.target {
                    Target::None => true,
                    // Nothing in a data file is shared.
                    Target::External => judged.is_copied(),
                    Target::Cluster(offset) => self.layout.is_inside(offset),
                    Target::Compressed(payload) => self.layout.is_inside(payload.end() - 1),
                };
                if judged.problems[0].is_some() || !is_sound {
                    return Ok(false);
                }
                refers |= judged.target != Target::None;
            }
        }
        Ok(refers)
    }

    /// Walks the L2 tables of the disk in guest order.
    async fn walk_active(&mut self, l1: L1) -> Result<()> {
        let mut reader = TableReader::new(self.file, l1.offset, l1.count * 8);
        // An error was reported when the references were counted.
        while let Ok(Some(piece)) = reader.next().await {
            for (index, raw) in (piece.first..l1.count).zip(piece.words()) {
                let judged = self.layout.judge_l1(raw);
                let Target::Cluster(offset) = judged.target else { continue };
                if judged.problems[0].is_none() {
                    let stored = self.stored(self.layout.cluster_of(offset)).await;
                    if judged.is_copied() != (stored == 1) {
                        self.copied_wrong += 1;
                        self.log.corruption(|| {
                            format!(
                                "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} \
                                 refcount={stored}"
                            )
                        });
                    }
                }
                // What such an entry should point at looks like a leak.
                let is_table =
                    self.layout.is_inside(offset) && self.refs.may_be_l2(self.layout, offset);
                self.faults.unfollowed |= !is_table;
                if is_table {
                    let guest = index.saturating_mul(self.layout.geometry().l2_coverage());
                    self.walk_l2(offset, Some(guest)).await?;
                }
            }
        }
        Ok(())
    }

    /// Walks the L2 tables that only snapshots use.
    async fn walk_inactive(&mut self) -> Result<()> {
        let mut from = 0;
        while let Some((cluster, _)) = self.refs.l2.next(from) {
            from = cluster + 1;
            let offset = cluster << self.layout.geometry().cluster_bits();
            if self.refs.may_be_l2(self.layout, offset) {
                self.walk_l2(offset, None).await?;
            } else {
                self.faults.unfollowed = true;
            }
        }
        Ok(())
    }

    /// Counts what the L2 table at `offset` refers to, once for each L1 entry that points at it. The
    /// entries map the guest bytes from `guest` on, if the disk uses the table.
    async fn walk_l2(&mut self, offset: u64, guest: Option<u64>) -> Result<()> {
        let table = self.layout.cluster_of(offset);
        if self.refs.seen.get(table) != 0 {
            return Ok(());
        }
        self.refs.seen.add(table, 1)?;
        let times = self.refs.l2.get(table);
        let geometry = self.layout.geometry();
        let mut next_offset = None;
        let mut reader = TableReader::new(self.file, offset, geometry.cluster_size());
        loop {
            let piece = match reader.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => return self.unreadable("an L2 table", offset, error),
            };
            let mut words = piece.words();
            let first = piece.first >> (geometry.l2_entry_bits() - 3);
            for index in first..geometry.l2_entries() {
                let Some(raw) = words.next() else { break };
                let bitmap =
                    if geometry.l2_entry_words() == 2 { words.next().unwrap_or(0) } else { 0 };
                if raw == 0 && bitmap == 0 {
                    continue;
                }
                let guest =
                    guest.map(|start| start.saturating_add(index * geometry.cluster_size()));
                let judged = self.layout.judge_l2((raw, bitmap), guest);
                self.say_problems(&judged, || {
                    format!("entry {index} of the L2 table at {offset:#x} ({raw:#x} {bitmap:#x})")
                });
                self.refer(&judged, times)?;
                if guest.is_some() {
                    self.count_fragments(&judged, &mut next_offset);
                    self.check_copied(&judged).await;
                }
            }
        }
    }

    /// Counts the clusters of an L2 entry.
    fn refer(&mut self, judged: &Judged, times: u64) -> Result<()> {
        let (start, len) = match judged.target {
            Target::None | Target::External => return Ok(()),
            Target::Cluster(offset) => (offset, 1),
            Target::Compressed(payload) => (payload.offset.bytes(), payload.len),
        };
        let last = self.layout.cluster_of(start.saturating_add(len - 1));
        if last >= self.layout.clusters {
            self.faults.entries = true;
            self.faults.unfollowed = true;
            self.log
                .corruption(|| format!("guest data at {start:#x} is beyond the end of the file"));
            return Ok(());
        }
        for cluster in self.layout.cluster_of(start)..=last {
            self.refs.all.add(cluster, times)?;
            if matches!(judged.target, Target::Compressed(_)) {
                self.refs.compressed.add(cluster, times)?;
            }
        }
        Ok(())
    }

    fn count_fragments(&mut self, judged: &Judged, next: &mut Option<u64>) {
        let report = &mut self.log.report;
        let offset = match judged.target {
            Target::None => return,
            Target::Compressed(_) => {
                report.allocated_clusters += 1;
                report.compressed_clusters += 1;
                // It does not stand where its neighbours end.
                report.fragmented_clusters += 1;
                return;
            }
            Target::Cluster(_) | Target::External => judged.fixed.0 & 0x00ff_ffff_ffff_fe00,
        };
        report.allocated_clusters += 1;
        if next.is_some_and(|next| next != offset) {
            report.fragmented_clusters += 1;
        }
        *next = Some(offset.saturating_add(self.layout.cluster_size()));
    }

    /// COPIED must be set where the refcount is one, and only there.
    async fn check_copied(&mut self, judged: &Judged) {
        let stored = match judged.target {
            Target::Cluster(offset) => self.stored(self.layout.cluster_of(offset)).await,
            // Clusters of a data file have no refcount and count as used once.
            Target::External => 1,
            Target::None | Target::Compressed(_) => return,
        };
        if judged.is_copied() != (stored == 1) {
            self.copied_wrong += 1;
            let raw = judged.fixed.0;
            self.log.corruption(|| {
                format!("OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={stored}")
            });
        }
    }

    /// The stored refcount; 0 where it cannot be read, which was said elsewhere.
    pub(super) async fn stored(&mut self, cluster: u64) -> u64 {
        self.blocks.stored(self.file, self.layout, cluster).await.unwrap_or(0)
    }

    fn say_problems(&mut self, judged: &Judged, place: impl Fn() -> String) {
        for problem in judged.problems.iter().flatten() {
            self.faults.entries = true;
            self.log.corruption(|| format!("{}: {problem}", place()));
        }
    }

    /// Something that could not be read: the check goes on without it.
    pub(super) fn unreadable(&mut self, what: &str, offset: u64, error: Error) -> Result<()> {
        if let Error::NoMemory { .. } = error {
            return Err(error);
        }
        self.faults.unfollowed = true;
        self.log.check_error(|| format!("{what} at {offset:#x} cannot be read: {error}"));
        Ok(())
    }

    /// Metadata has its cluster for itself; L2 tables and guest data may be shared, but only with
    /// their like.
    fn find_overlaps(&mut self) {
        let (refs, log) = (&self.refs, &mut self.log);
        for (cluster, count) in refs.exclusive.iter_from(0) {
            if refs.all.get(cluster) != 1 {
                self.faults.entries |= refs.all.get(cluster) != count;
                log.corruption(|| format!("metadata in cluster {cluster} is overlapped"));
            }
        }
        for (kind, counts) in [("an L2 table", &refs.l2), ("compressed data", &refs.compressed)] {
            for (cluster, count) in counts.iter_from(0) {
                if refs.exclusive.get(cluster) == 0 && refs.all.get(cluster) != count {
                    self.faults.entries = true;
                    log.corruption(|| format!("{kind} in cluster {cluster} is overlapped"));
                }
            }
        }
    }
}

impl References {
    /// Whether the cluster at `offset` can be taken for an L2 table: no other metadata is in it.
    pub(super) fn may_be_l2(&self, layout: &Layout, offset: u64) -> bool {
        let cluster = layout.cluster_of(offset);
        self.exclusive.get(cluster) == 0 || self.disputed.get(cluster) != 0
    }
}
