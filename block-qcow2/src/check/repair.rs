//! Mending what a check found, in rounds: each walks the whole image, mends one kind of thing, and
//! leaves the image no worse than it was at every moment.
//!
//! The order: refcounts that are too low are raised (or, where their structure is damaged, all of it
//! is written anew beside the old one); entries are mended, and what they gave up becomes a leak;
//! COPIED is cleared where it must be; refcounts that are too high are lowered; COPIED is set where
//! it may be. A flush stands between any two of these.
//!
//! Invariants: while a version 3 image is being mended it is marked dirty; the mark and the one that
//! says corrupt are taken away only when a last walk finds no error.

use block_core::ability::{CheckReport, Repair};
use block_core::metadata::bytes::write_bytes;
use block_core::range::to_u64;
use block_core::{Node, Result};

use crate::check::extras::snapshot_entries;
use crate::check::fix::{Pass, Spare};
use crate::check::layout::Layout;
use crate::check::log::{Found, Log};
use crate::check::refcounts::Difference;
use crate::check::tables::read_all;
use crate::check::walk::Walk;
use crate::geometry::Version;
use crate::spec::header::KNOWN_AUTOCLEAR;

/// Most rounds of a repair. Each kind of damage takes two at most.
const MAX_ROUNDS: usize = 8;
/// Most bytes of guest data that are copied out of the way of other things. Beyond, entries are
/// dropped.
const MAX_COPIED_BYTES: u64 = 1 << 30;

/// Place of the incompatible features in the header.
const INCOMPATIBLE_PLACE: u64 = 72;
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
/// Place of the autoclear features in the header.
const AUTOCLEAR_PLACE: u64 = 88;
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// Place of the number of L1 entries in the header.
const L1_SIZE_PLACE: u64 = 36;
/// Place of the number of snapshots in the header; the offset of their table follows.
const SNAPSHOTS_PLACE: u64 = 60;

/// Whether there is more to do.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Round {
    Again,
    Last,
}

/// Mends what `before` found and `repair` allows; the report of the walk afterwards.
pub(super) async fn mend(
    file: &Node,
    layout: &Layout,
    repair: Repair,
    before: CheckReport,
    found: Found<'_>,
) -> Result<CheckReport> {
    let is_clean = before.corruptions == 0 && before.leaks == 0;
    if before.check_errors > 0 {
        let mut log = Log::new(Some(found));
        log.check_error(|| "nothing is mended where something cannot be read".to_owned());
        return Ok(before);
    }
    let flags = if is_clean { None } else { mark_dirty(file, layout).await? };
    let mut after = before;
    if !is_clean {
        let flags = match repair {
            Repair::Nothing => 0,
            Repair::Leaks => lower_leaks(file, layout, found).await?,
            Repair::Refcounts | Repair::All => mend_all(file, repair, found).await?,
        };
        let layout = Layout::read(file).await?;
        after = Walk::run(file, &layout, Log::new(Some(found))).await?.log.report;
        after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions) + flags;
        after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
    }
    if after.corruptions == 0 && after.check_errors == 0 {
        clear_marks(file, layout).await?;
    } else if let Some(flags) = flags {
        write_bytes(file, INCOMPATIBLE_PLACE, &flags.to_be_bytes()).await?;
        file.flush().await?;
    }
    Ok(after)
}

async fn read_flags(file: &Node, place: u64) -> Result<u64> {
    Ok(read_all(file, place, 8).await?.first().copied().unwrap_or(0))
}

/// Marks the image as dirty, if its version can say so; the flags as they were.
async fn mark_dirty(file: &Node, layout: &Layout) -> Result<Option<u64>> {
    if layout.geometry().version() == Version::V2 {
        return Ok(None);
    }
    let flags = read_flags(file, INCOMPATIBLE_PLACE).await?;
    write_bytes(file, INCOMPATIBLE_PLACE, &(flags | DIRTY).to_be_bytes()).await?;
    file.flush().await?;
    Ok(Some(flags))
}

/// Takes the marks of unclean use away, once everything else is stable, and with them the autoclear
/// bits of what is not known here: whoever set them has to look at the image anew.
async fn clear_marks(file: &Node, layout: &Layout) -> Result<()> {
    if layout.geometry().version() == Version::V2 {
        return Ok(());
    }
    for (place, kept) in
        [(AUTOCLEAR_PLACE, KNOWN_AUTOCLEAR), (INCOMPATIBLE_PLACE, !(DIRTY | CORRUPT))]
    {
        let flags = read_flags(file, place).await?;
        if flags & !kept != 0 {
            file.flush().await?;
            write_bytes(file, place, &(flags & kept).to_be_bytes()).await?;
            file.flush().await?;
        }
    }
    Ok(())
}

/// Gives back what nothing refers to, unless something was not followed that may refer to it. How many
/// COPIED flags became wrong with that, and were mended.
async fn lower_leaks(file: &Node, layout: &Layout, found: Found<'_>) -> Result<u64> {
    let mut walk = Walk::run(file, layout, Log::new(None)).await?;
    walk.log = Log::new(Some(found));
    if walk.faults.unfollowed {
        walk.log.repaired(|| "no leaks, as damaged structures may refer to them".to_owned());
        return Ok(0);
    }
    walk.set_refcounts(|Difference { stored, counted, .. }| (stored > counted).then_some(counted))
        .await?;
    walk.rewrite(Pass::SetCopied, &mut Spare { next: 0, end: 0 }).await?;
    file.flush().await?;
    Ok(walk.copied_changed.saturating_sub(walk.copied_wrong))
}

/// Rounds until nothing is left to do. How many COPIED flags became wrong meanwhile, and were mended.
async fn mend_all(file: &Node, repair: Repair, found: Found<'_>) -> Result<u64> {
    let mut flags = 0;
    for _ in 0..MAX_ROUNDS {
        let layout = Layout::read(file).await?;
        let mut walk = Walk::run(file, &layout, Log::new(None)).await?;
        let report = walk.log.report;
        walk.log = Log::new(Some(found));
        let is_clean = report.corruptions == 0 && report.leaks == 0;
        if is_clean || report.check_errors > 0 {
            break;
        }
        let round = round(&mut walk, repair).await?;
        flags += walk.copied_changed.saturating_sub(walk.copied_wrong);
        if round == Round::Last {
            break;
        }
    }
    Ok(flags)
}

/// Mends one kind of thing.
async fn round(walk: &mut Walk<'_>, repair: Repair) -> Result<Round> {
    let faults = walk.faults;
    let beyond_refcounts = faults.excess || faults.entries || faults.snapshots || faults.bitmaps;
    if repair == Repair::Refcounts && beyond_refcounts {
        walk.log.repaired(|| "nothing: more than refcounts is damaged".to_owned());
        return Ok(Round::Last);
    }
    if faults.hopeless {
        walk.log.repaired(|| "nothing: the L1 table is where it cannot be".to_owned());
        return Ok(Round::Last);
    }
    if faults.excess {
        walk.cut_l1().await?;
        return Ok(Round::Again);
    }
    let copies = walk.clusters_to_copy();
    let snapshots = if faults.snapshots { walk.snapshot_table_clusters().await? } else { 0 };
    let mut spare = walk.spare(copies + snapshots);
    let lacks_room = walk.lacks_blocks(spare);
    if faults.blocks || lacks_room {
        walk.rewrite(Pass::Untangle, &mut spare).await?;
        walk.file.flush().await?;
        walk.rebuild(copies + snapshots).await?;
        return Ok(Round::Again);
    }
    // Whatever is raised is stable before anything relies on it.
    walk.set_refcounts(|Difference { stored, counted, .. }| (stored < counted).then_some(counted))
        .await?;
    if faults.entries || faults.snapshots || faults.bitmaps {
        if faults.bitmaps {
            walk.drop_bitmaps().await?;
        }
        if faults.snapshots {
            walk.rewrite_snapshots(&mut spare).await?;
        }
        walk.rewrite(Pass::Entries, &mut spare).await?;
        walk.file.flush().await?;
        return Ok(Round::Again);
    }
    walk.rewrite(Pass::ClearCopied, &mut spare).await?;
    walk.file.flush().await?;
    walk.set_refcounts(|difference| Some(difference.counted)).await?;
    walk.rewrite(Pass::SetCopied, &mut spare).await?;
    walk.file.flush().await?;
    Ok(Round::Last)
}

impl Walk<'_> {
    /// Stores the refcounts that `value` gives, and makes them stable.
    async fn set_refcounts(
        &mut self,
        mut value: impl FnMut(Difference) -> Option<u64> + Send,
    ) -> Result<()> {
        let log = &self.log;
        let set = |difference| {
            let new = value(difference)?;
            let Difference { cluster, stored, counted } = difference;
            if new != stored {
                log.repaired(|| format!("cluster {cluster} refcount={stored} reference={counted}"));
            }
            Some(new)
        };
        self.blocks.visit(self.file, self.layout, &self.refs.all, set).await?;
        self.file.flush().await
    }

    /// How many clusters of guest data stand where something else does, up to the limit.
    fn clusters_to_copy(&self) -> u64 {
        if !self.faults.entries {
            return 0;
        }
        let max = MAX_COPIED_BYTES / self.layout.cluster_size();
        let sets = [&self.refs.exclusive, &self.refs.l2, &self.refs.compressed];
        let overlapping = sets.into_iter().flat_map(|counts| counts.iter_from(0));
        let over = |(cluster, count): (u64, u64)| self.refs.all.get(cluster).saturating_sub(count);
        overlapping.map(over).fold(self.faults.too_many, u64::saturating_add).min(max)
    }

    /// `count` clusters behind everything that is there.
    fn spare(&self, count: u64) -> Spare {
        let grows = self.file.capabilities().grows_on_write;
        let next = if grows { self.layout.clusters } else { self.refs.all.end() };
        let end = next.saturating_add(count);
        Spare { next, end: if grows { end } else { end.min(self.layout.clusters) } }
    }

    /// Whether some spare cluster has no refcount block.
    fn lacks_blocks(&self, spare: Spare) -> bool {
        let per_block = self.layout.geometry().refcounts_per_block();
        let has = |index: u64| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            self.blocks.table.get(index).is_some_and(|start| *start != 0)
        };
        spare.next < spare.end && !(spare.next / per_block..=(spare.end - 1) / per_block).all(has)
    }

    /// Cuts the L1 table to what the disk needs: the rest is no table.
    async fn cut_l1(&mut self) -> Result<()> {
        let layout = self.layout;
        let needed = layout.geometry().l1_entries_for(layout.header.disk_len);
        let count = u32::try_from(needed).unwrap_or(u32::MAX).min(layout.header.l1.count);
        write_bytes(self.file, L1_SIZE_PLACE, &count.to_be_bytes()).await?;
        self.file.flush().await?;
        self.log.repaired(|| format!("the L1 table was cut to {count} entries"));
        Ok(())
    }

    /// Bitmaps that contradict themselves are dropped, all of them: whoever relies on one has to
    /// start over anyway, and must not rely on one that lies.
    async fn drop_bitmaps(&mut self) -> Result<()> {
        let flags = read_flags(self.file, AUTOCLEAR_PLACE).await? & !AUTOCLEAR_BITMAPS;
        write_bytes(self.file, AUTOCLEAR_PLACE, &flags.to_be_bytes()).await?;
        self.log.repaired(|| "the bitmaps were dropped".to_owned());
        Ok(())
    }

    async fn snapshot_table_clusters(&self) -> Result<u64> {
        let (bytes, _) = snapshot_entries(self.file, self.layout, &self.snapshots).await?;
        Ok(to_u64(bytes.len()).div_ceil(self.layout.cluster_size()))
    }

    /// Writes the snapshots that can be understood to a table of their own, and switches to it.
    async fn rewrite_snapshots(&mut self, spare: &mut Spare) -> Result<()> {
        let layout = self.layout;
        let (bytes, count) = snapshot_entries(self.file, layout, &self.snapshots).await?;
        let clusters = to_u64(bytes.len()).div_ceil(layout.cluster_size());
        let offset = match spare.take(clusters) {
            Some(_) if clusters == 0 => 0,
            Some(first) => {
                for cluster in first..first + clusters {
                    self.blocks.store(self.file, layout, cluster, 1).await?;
                }
                first << layout.geometry().cluster_bits()
            }
            // No room: what is wrong remains.
            None => return Ok(()),
        };
        if clusters > 0 {
            write_bytes(self.file, offset, &bytes).await?;
        }
        self.file.flush().await?;
        let fields = [&count.to_be_bytes()[..], &offset.to_be_bytes()].concat();
        write_bytes(self.file, SNAPSHOTS_PLACE, &fields).await?;
        self.file.flush().await?;
        let old = layout.header.snapshots.count;
        self.log.repaired(|| format!("the snapshot table has {count} of {old} snapshots left"));
        Ok(())
    }
}
