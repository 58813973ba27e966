//! Internal snapshots: taking, applying, deleting and listing them.
//!
//! Each change has an exclusive turn, begins with everything written back, and goes in an order that a
//! crash anywhere leaves intact: what gains a reference is counted first, one write of the header's
//! sector makes the change, and only then what lost a reference is given back. In between, COPIED flags
//! may contradict the refcounts; images of version 3 are marked dirty meanwhile.
//!
//! Images with a data file have no snapshots: the data there would not be counted.
//!
//! Not here: the table ([`table`]), reading a snapshot ([`view`]), the counting
//! ([`crate::references`]).

mod table;
mod view;

pub(crate) use table::{MAX_TABLE_BYTES, NotReplaced, load, stored_bytes};
pub(crate) use view::{Selector, l1_of, read_view};

use view::{check_l1, find};

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use block_core::ability::{NewSnapshot, Snapshots};
use block_core::info::SnapshotInfo;
use block_core::io::exec::to_the_end;
use block_core::range::{to_u64, to_usize};
use block_core::{Error, Result};

use crate::alloc::Reason;
use crate::driver::Qcow2Driver;
use crate::geometry::{DataLocation, Version};
use crate::metadata_io::{encode_words, write_bytes};
use crate::overlap::Section;
use crate::spec::Fault;
use crate::spec::entry::{Copied, with_copied};
use crate::spec::header::{MAX_SNAPSHOTS, Table};
use crate::spec::snapshot::Snapshot;
use crate::units::HostOffset;
use crate::writeback::Extent;

#[async_trait]
impl Snapshots for Qcow2Driver {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.lists.read().snapshots.iter().map(info).collect()
    }

    async fn create(&self, new: &NewSnapshot) -> Result<()> {
        let (this, new) = (self.shared()?, new.clone());
        to_the_end(async move { this.create_snapshot(&new).await }).await
    }

    async fn apply(&self, which: &str) -> Result<()> {
        let (this, which) = (self.shared()?, which.to_owned());
        to_the_end(async move { this.apply_snapshot(&which).await }).await
    }

    async fn delete(&self, which: &str) -> Result<()> {
        let (this, which) = (self.shared()?, which.to_owned());
        to_the_end(async move { this.delete_snapshot(&which).await }).await
    }
}

impl Qcow2Driver {
    async fn create_snapshot(&self, new: &NewSnapshot) -> Result<()> {
        self.writer()?;
        let _exclusive = self.alone().await?;
        let settled = self.begin().await;
        let done = match settled {
            Ok(()) => self.take(new).await,
            failed => failed,
        };
        self.finish(done).await
    }

    async fn apply_snapshot(&self, which: &str) -> Result<()> {
        self.writer()?;
        if !self.lists.read().bitmaps.is_empty() {
            // They would not know what changed.
            return Err(Error::Busy);
        }
        let _exclusive = self.alone().await?;
        let snapshot = self.snapshot(which)?;
        let (len, l1) = self.applicable(&snapshot).await?;
        let done = match self.begin().await {
            Ok(()) => {
                self.mark_changing().await?;
                self.event("snapshot_apply_refcounts");
                if let Err(error) = self.count_up(&l1).await {
                    // Damage of a snapshot is no reason to stop using the disk: told, and no more.
                    self.settle_all().await?;
                    return Err(error);
                }
                self.return_to(len, l1).await
            }
            failed => failed,
        };
        self.finish(done).await
    }

    async fn delete_snapshot(&self, which: &str) -> Result<()> {
        self.writer()?;
        let _exclusive = self.alone().await?;
        let snapshot = self.snapshot(which)?;
        let done = match self.begin().await {
            Ok(()) => {
                let l1 = l1_of(&self.file, self.geometry(), &snapshot, snapshot.l1.count).await?;
                self.check_removable(&snapshot, &l1).await?;
                self.remove(&snapshot, &l1).await
            }
            failed => failed,
        };
        self.finish(done).await
    }

    /// Writes everything back.
    async fn begin(&self) -> Result<()> {
        if self.geometry().data_location() == DataLocation::DataFile {
            return Err(Error::Unsupported);
        }
        self.clear_unknown().await?;
        self.settle_all().await
    }

    /// Writes the rest back, and marks the image as clean again.
    async fn finish(&self, done: Result<()>) -> Result<()> {
        let settled = match done {
            // Refused before anything was begun.
            Err(Error::Unsupported) => Ok(()),
            Ok(()) => self.settle_all().await,
            Err(_) => self.settle_after_error().await,
        };
        self.after(done.and(settled)).await
    }

    /// Whatever step failed, the refcounts say what COPIED must be.
    async fn settle_after_error(&self) -> Result<()> {
        self.settle_before_refresh().await?;
        self.refresh_copied().await?;
        self.settle_all().await
    }

    fn snapshot(&self, which: &str) -> Result<Snapshot> {
        let lists = self.lists.read();
        let found = find(&lists.snapshots, &Selector::Any(which.to_owned()));
        found.cloned().ok_or(Error::Os(libc::ENOENT))
    }

    /// Makes a snapshot of the disk as it is.
    async fn take(&self, new: &NewSnapshot) -> Result<()> {
        let old = self.lists.read().snapshots.clone();
        if to_u64(old.len()) >= u64::from(MAX_SNAPSHOTS) {
            return Err(Error::Os(libc::EFBIG));
        }
        let id = next_id(&old)?;
        self.mark_changing().await?;
        let error = match self.count_for_snapshot().await {
            Ok(l1) => match self.add(old, id, new, &l1).await {
                // All that the disk refers to is shared now, as the cleared flags say.
                Ok(()) => return self.copied_are_right(),
                // The file may refer to the snapshot: everything stays counted.
                Err(NotReplaced::Unsure(error)) => return Err(error),
                Err(NotReplaced::Before(error)) => {
                    // What fails here leaks.
                    let _ = self.count_down_again(&l1).await;
                    error
                }
            },
            Err(error) => error,
        };
        Err(error)
    }

    /// Counts everything that the disk refers to once more; its L1 table with COPIED clear.
    async fn count_for_snapshot(&self) -> Result<Vec<u64>> {
        self.clear_copied().await?;
        self.write_back(Extent::Everything).await?;
        self.barrier().await?;
        let l1 = self.l1.read().clone();
        self.event("snapshot_create_refcounts");
        self.count_up(&l1).await?;
        Ok(l1)
    }

    /// Adds a snapshot whose references are counted.
    async fn add(
        &self,
        mut list: Vec<Snapshot>,
        id: String,
        new: &NewSnapshot,
        l1: &[u64],
    ) -> Result<(), NotReplaced> {
        let l1 = Table {
            offset: self.place_l1(Section::InactiveL1, l1).await?,
            count: u32::try_from(l1.len()).map_err(|_| Error::Os(libc::EFBIG))?,
        };
        list.push(Snapshot {
            l1,
            id,
            name: new.name.clone(),
            date_seconds: new.date_seconds,
            date_nanoseconds: new.date_nanoseconds,
            vm_clock_nanoseconds: 0,
            vm_state_size: 0,
            disk_len: Some(self.disk_len()),
            instruction_count: None,
            not_text: None,
            unknown_extra: Vec::new(),
        });
        let replaced = self.replace_snapshot_table(list).await;
        if let Err(NotReplaced::Before(_)) = &replaced {
            self.drop_l1(l1, Reason::Other).await?;
        }
        replaced
    }

    /// Length and L1 table of the disk that a snapshot would make.
    async fn applicable(&self, snapshot: &Snapshot) -> Result<(u64, Vec<u64>)> {
        if self.geometry().data_location() == DataLocation::DataFile {
            return Err(Error::Unsupported);
        }
        let len = snapshot.disk_len.unwrap_or(self.disk_len());
        // Other snapshots of version 2 do not say how long the disk was.
        if len != self.disk_len() && self.geometry().version() == Version::V2 {
            return Err(Error::Unsupported);
        }
        check_l1(&self.file, self.geometry(), snapshot, len)?;
        self.check_own_l1()?;
        let l1 = l1_of(&self.file, self.geometry(), snapshot, snapshot.l1.count).await?;
        Ok((len, shared(&l1)))
    }

    /// Makes the disk `len` bytes long and what `l1` says, the L1 table of a snapshot, whose references
    /// are counted.
    async fn return_to(&self, len: u64, l1: Vec<u64>) -> Result<()> {
        let place = match self.prepare_l1(&l1).await {
            Ok(place) => place,
            Err(error) => {
                // Whatever fails here leaks.
                let _ = self.count_down_again(&l1).await;
                return Err(error);
            }
        };
        let old = self.header.with(|parts| parts.header.l1);
        self.event("snapshot_apply_switch");
        let switched = self.header.update(|header| {
            header.l1 = place;
            header.disk_len = len;
        });
        if let Err(error) = switched.await {
            // Unless the old header is there for certain, everything stays counted.
            if self.header.restore().await.is_ok() {
                self.drop_l1(place, Reason::Other).await?;
                let _ = self.count_down_again(&l1).await;
            }
            return Err(error);
        }
        let before = std::mem::replace(&mut *self.l1.write(), l1);
        self.disk_len.store(len, Ordering::Release);
        self.drop_l1(old, Reason::Snapshot).await?;
        let dropped = self.drop_references(&before, Reason::Snapshot).await;
        self.note_active_tables()?;
        dropped?;
        self.settle_before_refresh().await?;
        self.refresh_copied().await
    }

    /// Puts an L1 table where the header may point at it.
    async fn prepare_l1(&self, l1: &[u64]) -> Result<Table> {
        let count = u32::try_from(l1.len()).map_err(|_| Error::Os(libc::EFBIG))?;
        let offset = self.place_l1(Section::ActiveL1, l1).await?;
        let place = Table { offset, count };
        let written = match self.write_back(Extent::Everything).await {
            Ok(()) => self.barrier().await,
            failed => failed,
        };
        if let Err(error) = written {
            self.drop_l1(place, Reason::Other).await?;
            return Err(error);
        }
        Ok(place)
    }

    /// Whether all that a snapshot refers to, and its L1 table `l1` itself, can be given back.
    async fn check_removable(&self, snapshot: &Snapshot, l1: &[u64]) -> Result<()> {
        let (offset, len) = (snapshot.l1.offset, u64::from(snapshot.l1.count) * 8);
        let bits = self.geometry().cluster_bits();
        let clusters = |l1: Table| {
            let start = l1.offset.bytes() >> bits;
            start..start.saturating_add((u64::from(l1.count) * 8).div_ceil(1 << bits))
        };
        let own = clusters(snapshot.l1);
        let has_some = |other: &&Snapshot| {
            let there = clusters(other.l1);
            there.start < own.end && own.start < there.end
        };
        // It is one of them.
        if self.lists.read().snapshots.iter().filter(has_some).count() > 1 {
            return Err(Fault::new("L1 table of two snapshots at", offset.bytes()).into());
        }
        {
            let mut meta = self.writer()?.meta.lock().await;
            meta.overlap.check_metadata(Section::InactiveL1, offset, len)?;
            for cluster in own {
                meta.refcounts.check_in_use(cluster).await?;
            }
        }
        self.check_references(l1).await
    }

    /// Takes a snapshot, whose L1 table this is, out of the image.
    async fn remove(&self, snapshot: &Snapshot, l1: &[u64]) -> Result<()> {
        self.mark_changing().await?;
        let mut list = self.lists.read().snapshots.clone();
        if let Some(at) = list.iter().position(|other| other == snapshot) {
            list.remove(at);
        }
        self.replace_snapshot_table(list).await.map_err(NotReplaced::error)?;
        self.event("snapshot_delete_refcounts");
        self.drop_l1(snapshot.l1, Reason::Snapshot).await?;
        self.drop_references(l1, Reason::Snapshot).await?;
        self.settle_before_refresh().await?;
        self.refresh_copied().await
    }

    /// Gives back what was dropped, so that the refcounts say what COPIED must.
    async fn settle_before_refresh(&self) -> Result<()> {
        self.write_back(Extent::Everything).await?;
        self.write_back(Extent::Everything).await
    }

    /// Writes an L1 table to new clusters. An empty one needs none.
    async fn place_l1(&self, section: Section, words: &[u64]) -> Result<HostOffset> {
        let bits = self.geometry().cluster_bits();
        let bytes = to_u64(words.len()) * 8;
        if bytes == 0 {
            return Ok(HostOffset::new(0));
        }
        let clusters = bytes.div_ceil(1 << bits);
        let offset = {
            let mut meta = self.writer()?.meta.lock().await;
            meta.allocate_metadata(section, clusters, &self.header).await?
        };
        // To the end of the cluster: what stood there before would look like entries.
        let mut encoded = encode_words(words);
        encoded.resize(to_usize(clusters << bits), 0);
        self.event("snapshot_l1_write");
        if let Err(error) = write_bytes(&self.file, offset, &encoded).await {
            let count = u32::try_from(words.len()).unwrap_or(0);
            self.drop_l1(Table { offset, count }, Reason::Other).await?;
            return Err(error);
        }
        Ok(offset)
    }

    async fn drop_l1(&self, l1: Table, reason: Reason) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        meta.drop_metadata(l1.offset, u64::from(l1.count) * 8, reason);
        Ok(())
    }
}

/// The same entries for a table whose L2 tables are shared.
fn shared(l1: &[u64]) -> Vec<u64> {
    l1.iter().map(|raw| with_copied(*raw, Copied::No)).collect()
}

/// The id after all that are numbers.
fn next_id(list: &[Snapshot]) -> Result<String> {
    let last = list.iter().filter_map(|snapshot| snapshot.id.parse::<u64>().ok()).max();
    let next = last.unwrap_or(0).checked_add(1).ok_or(Error::Os(libc::EFBIG))?;
    Ok(next.to_string())
}

fn info(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        vm_state_size: snapshot.vm_state_size,
        date_seconds: snapshot.date_seconds.into(),
        date_nanoseconds: snapshot.date_nanoseconds,
        vm_clock_nanoseconds: snapshot.vm_clock_nanoseconds,
        instruction_count: snapshot.instruction_count,
        disk_len: snapshot.disk_len,
    }
}
