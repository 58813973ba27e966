//! The references of an L1 table: the L2 tables that it points at, and the host clusters that their
//! entries do.
//!
//! Everything here is called in an exclusive turn, with everything written back: tables are read from
//! the file. One L2 table is in memory at a time.
//!
//! **Invariants.** A reference that is added is counted before anything refers by it; one that is
//! dropped goes the way of all clusters ([`crate::alloc`]). COPIED is set only where the table that
//! holds the entry, and what the entry points at, are referenced once.

use std::sync::atomic::Ordering;

use block_core::Result;
use block_core::range::{to_u64, to_usize};

use crate::alloc::{Meta, Reason, run_of};
use crate::driver::Qcow2Driver;
use crate::geometry::{Geometry, Version};
use crate::mapping::words;
use crate::metadata_io::read_bytes;
use crate::overlap::Section;
use crate::plan::{Dropped, dropped_by};
use crate::refcounts::{Run, Step};
use crate::spec::Fault;
use crate::spec::entry::{Cluster, Copied, is_copied, l1_entry, l2_entry, with_copied};
use crate::tables::OwnSlice;
use crate::units::HostOffset;

impl Qcow2Driver {
    /// The words of an L2 table as they stand in the file; zeroes where the file ends.
    pub(crate) async fn read_l2(&self, table: HostOffset) -> Result<Vec<u64>> {
        let bytes = read_bytes(&self.file, self.table_range(table)?).await?;
        let mut all: Vec<u64> = words(&bytes).collect();
        all.resize(to_usize(self.geometry().cluster_size() / 8), 0);
        Ok(all)
    }

    /// Counts everything that `l1` refers to once more. On error nothing is counted.
    pub(crate) async fn count_up(&self, l1: &[u64]) -> Result<()> {
        let mut done = 0;
        let counted = self.step_references(l1, Step::Up, &mut done, u64::MAX).await;
        if counted.is_err() {
            // What cannot be counted down again is a leak.
            let _ = self.step_references(l1, Step::Down, &mut 0, done).await;
        }
        counted
    }

    /// Takes back [`Qcow2Driver::count_up`], as long as nothing came to rely on it.
    pub(crate) async fn count_down_again(&self, l1: &[u64]) -> Result<()> {
        self.step_references(l1, Step::Down, &mut 0, u64::MAX).await
    }

    /// Changes the count of the first `most` references by one; `done` tells how many were.
    async fn step_references(
        &self,
        l1: &[u64],
        step: Step,
        done: &mut u64,
        most: u64,
    ) -> Result<()> {
        let geometry = self.geometry();
        for raw in l1 {
            let Some(table) = l1_entry(geometry, *raw)? else { continue };
            let own = Run { first: table.bytes() >> geometry.cluster_bits(), count: 1 };
            let mut runs = vec![own];
            for dropped in referred(geometry, &self.read_l2(table).await?)? {
                push_merged(&mut runs, run_of(geometry, dropped));
            }
            {
                let mut meta = self.writer()?.meta.lock().await;
                for run in runs {
                    if *done >= most {
                        return Ok(());
                    }
                    meta.refcounts.step(run, step).await?;
                    *done += 1;
                }
            }
            self.relieve().await?;
        }
        Ok(())
    }

    /// Whether everything that `l1` refers to can be told and is counted.
    pub(crate) async fn check_references(&self, l1: &[u64]) -> Result<()> {
        let geometry = self.geometry();
        for raw in l1 {
            let Some(table) = l1_entry(geometry, *raw)? else { continue };
            let entries = referred(geometry, &self.read_l2(table).await?)?;
            let mut meta = self.writer()?.meta.lock().await;
            meta.overlap.check_table(table)?;
            entries.iter().try_for_each(|dropped| meta.overlap.check_dropped(*dropped))?;
            let all = entries.into_iter().chain([Dropped::Cluster(table)]);
            for run in all.map(|dropped| run_of(geometry, dropped)) {
                for cluster in run.first..run.first + run.count {
                    meta.refcounts.check_in_use(cluster).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives back one reference to everything that `l1` refers to, which is not the active table. What
    /// cannot be told is leaked, and the rest is given back all the same.
    pub(crate) async fn drop_references(&self, l1: &[u64], reason: Reason) -> Result<()> {
        let mut result = Ok(());
        for (index, raw) in (0..).zip(l1) {
            let Some(table) = l1_entry(self.geometry(), *raw)? else { continue };
            let dropped = self.drop_table_references(index, table, reason).await;
            if dropped.is_err() {
                // Once more: what is not given back now is lost until the image is checked.
                let _ = self.drop_table_references(index, table, reason).await;
            }
            result = result.and(dropped).and(self.relieve().await);
        }
        result
    }

    /// Gives back one reference to an L2 table, and to everything that it refers to; on error to nothing.
    /// `index` is its place in the L1 table that held it.
    pub(crate) async fn drop_table_references(
        &self,
        index: u64,
        table: HostOffset,
        reason: Reason,
    ) -> Result<()> {
        let geometry = self.geometry();
        let entries = referred(geometry, &self.read_l2(table).await?)?;
        let mut meta = self.writer()?.meta.lock().await;
        meta.overlap.check_table(table)?;
        entries.iter().try_for_each(|dropped| meta.overlap.check_dropped(*dropped))?;
        let shared = meta.refcounts.get(table.bytes() >> geometry.cluster_bits()).await? != 1;
        for dropped in entries {
            meta.drop_data(dropped, reason);
        }
        meta.drop_metadata(table, geometry.cluster_size(), reason);
        // Tables that share one have it at the same place: each is a copy of the other.
        let active =
            self.l1_word(index).ok().and_then(|raw| l1_entry(geometry, raw).ok().flatten());
        if active == Some(table) {
            meta.overlap.insert(Section::ActiveL2, table, geometry.cluster_size());
        } else if shared {
            meta.overlap.insert(Section::InactiveL2, table, geometry.cluster_size());
        }
        Ok(())
    }

    /// Notes the tables of the L1 table as active ones.
    pub(crate) fn note_active_tables(&self) -> Result<()> {
        let geometry = self.geometry();
        let overlap = &self.writer()?.overlap;
        for raw in self.l1.read().iter() {
            let Some(table) = l1_entry(geometry, *raw)? else { continue };
            overlap.remove(table, geometry.cluster_size());
            overlap.insert(Section::ActiveL2, table, geometry.cluster_size());
        }
        Ok(())
    }

    /// Sets and clears COPIED in the active tables as the refcounts say.
    pub(crate) async fn refresh_copied(&self) -> Result<()> {
        self.change_copied(Flags::AsCounted).await?;
        self.copied_are_right()
    }

    /// Says that COPIED flags are what the refcounts say.
    pub(crate) fn copied_are_right(&self) -> Result<()> {
        self.writer()?.copied_wrong.store(false, Ordering::Release);
        Ok(())
    }

    /// Clears COPIED in the active tables, before what they refer to is counted once more: a flag that
    /// is missing costs a copy, one too many costs a snapshot.
    pub(crate) async fn clear_copied(&self) -> Result<()> {
        self.change_copied(Flags::Cleared).await
    }

    async fn change_copied(&self, flags: Flags) -> Result<()> {
        let geometry = self.geometry();
        self.writer()?.copied_wrong.store(true, Ordering::Release);
        for index in 0..self.l1_len() {
            let raw = self.l1_word(index)?;
            let Some(table) = l1_entry(geometry, raw)? else { continue };
            {
                let mut meta = self.writer()?.meta.lock().await;
                let own = match flags {
                    Flags::Cleared => false,
                    Flags::AsCounted => is_single(&mut meta, geometry, table).await?,
                };
                let copied = if own { Copied::Yes } else { Copied::No };
                if with_copied(raw, copied) != raw {
                    self.set_l1_word(&mut meta, index, with_copied(raw, copied))?;
                }
                self.refresh_table(&mut meta, index, table, copied).await?;
            }
            self.relieve().await?;
        }
        Ok(())
    }

    async fn refresh_table(
        &self,
        meta: &mut Meta,
        index: u64,
        table: HostOffset,
        own: Copied,
    ) -> Result<()> {
        let geometry = self.geometry();
        let slice_bytes = self.slices.entry_bytes();
        for number in 0..geometry.cluster_size() / slice_bytes {
            let slice = OwnSlice {
                at: table.plus(number * slice_bytes),
                first_entry: number * (slice_bytes >> geometry.l2_entry_bits()),
                guest_end: (index + 1).saturating_mul(geometry.l2_coverage()),
            };
            let now = self.look_at_slice(slice, |words| Ok(words.to_vec())).await?;
            let mut changes = Vec::new();
            for (at, entry) in (0..).zip(now.chunks_exact(geometry.l2_entry_words())) {
                let (raw, bitmap) = pair(entry);
                let Cluster::Plain { host: Some(host), .. } = l2_entry(geometry, raw, bitmap)?
                else {
                    continue;
                };
                let single = own == Copied::Yes && is_single(meta, geometry, host).await?;
                if single != is_copied(raw) {
                    let copied = if single { Copied::Yes } else { Copied::No };
                    changes.push((at * geometry.l2_entry_words(), with_copied(raw, copied)));
                }
            }
            if changes.is_empty() {
                continue;
            }
            let change = |words: &mut [u64]| {
                for (at, word) in changes {
                    let outside = Fault::new("L2 index", to_u64(at));
                    *words.get_mut(at).ok_or(outside)? = word;
                }
                Ok(())
            };
            self.change_slice(slice, change).await?;
        }
        Ok(())
    }

    /// Marks the image dirty for a change of COPIED flags, where the format can say so.
    pub(crate) async fn mark_changing(&self) -> Result<()> {
        match self.geometry().version() {
            Version::V2 => Ok(()),
            Version::V3 => self.mark_dirty().await,
        }
    }
}

/// What becomes of COPIED flags.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Flags {
    /// All are cleared.
    Cleared,
    /// They say what the refcounts do.
    AsCounted,
}

/// Whether a host cluster is referenced once.
async fn is_single(meta: &mut Meta, geometry: Geometry, host: HostOffset) -> Result<bool> {
    Ok(meta.refcounts.get(host.bytes() >> geometry.cluster_bits()).await? == 1)
}

/// The words of an entry.
pub(crate) fn pair(entry: &[u64]) -> (u64, u64) {
    (entry.first().copied().unwrap_or(0), entry.get(1).copied().unwrap_or(0))
}

/// What the entries of an L2 table refer to in the image file.
pub(crate) fn referred(geometry: Geometry, words: &[u64]) -> Result<Vec<Dropped>, Fault> {
    let mut all = Vec::new();
    for entry in words.chunks_exact(geometry.l2_entry_words()) {
        let (raw, bitmap) = pair(entry);
        all.extend(dropped_by(geometry, l2_entry(geometry, raw, bitmap)?));
    }
    Ok(all)
}

/// Adds a run; to the last one, if it follows it.
fn push_merged(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.first + last.count == run.first => last.count += run.count,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format};

    #[test]
    fn compressed_clusters_refer_to_all_that_they_touch() {
        let image = DataLocation::Image;
        let geometry = Geometry::new(Version::V3, 16, 4, L2Format::Standard, image).unwrap();
        // A sector more than the first, from the last sector of cluster 5.
        let compressed = 1 << 62 | 1 << 54 | 0x5_fe00;
        let found = referred(geometry, &[0, 0x7_0000, 1, compressed]).unwrap();
        let runs: Vec<_> = found.into_iter().map(|one| run_of(geometry, one)).collect();
        assert_eq!(runs, [Run { first: 7, count: 1 }, Run { first: 5, count: 2 }]);
        assert!(referred(geometry, &[2]).is_err());
    }

    #[test]
    fn only_adjoining_runs_become_one() {
        let run = |first, count| Run { first, count };
        let mut runs = vec![run(3, 1)];
        for next in [run(4, 2), run(5, 1), run(6, 1)] {
            push_merged(&mut runs, next);
        }
        assert_eq!(runs, [run(3, 3), run(5, 2)]);
    }
}
