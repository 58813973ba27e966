//! Mending L1 and L2 entries: what they become is decided by [`crate::check::judge`] for an entry by
//! itself, and here for what it refers to.
//!
//! * An L1 entry that points beyond the end of the file or at other metadata is cleared; so is one
//!   that had to be rounded to an L2 table which has an entry of its own.
//! * An L2 entry that points beyond the end of the file is dropped. One that had to be rounded to a
//!   cluster that is in use too.
//! * Guest data in a cluster that other metadata, an L2 table or compressed data claims is copied to
//!   a cluster of its own: the guest reads what it read before. Compressed data in such a place is
//!   dropped.
//!
//! Invariants: the refcount of a copy is stable before the copy is written, and the copy is stable
//! before an entry refers to it; what an entry gives up stays referenced until the refcounts are
//! lowered, last of all.

use block_core::metadata::bytes::{read_bytes, write_bytes};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Node, Result};

use crate::check::counts::Counts;
use crate::check::judge::{Judged, Target, Words};
use crate::check::tables::{Piece, TableReader};
use crate::check::walk::{L1, Walk};
use crate::spec::entry::{Copied, with_copied};
use crate::spec::refcount::max_refcount;

/// What a pass over the tables changes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Pass {
    /// What points at refcounts and must not be left there when these move: L1 entries and compressed
    /// data. It needs no room.
    Untangle,
    /// Whatever is wrong besides COPIED, in all tables.
    Entries,
    /// COPIED where the refcount is not one, in the tables of the disk.
    ClearCopied,
    /// COPIED where the refcount is one, in the tables of the disk.
    SetCopied,
}

/// Clusters at the end of the file that refcount blocks cover and nothing uses.
#[derive(Copy, Clone, Debug)]
pub(super) struct Spare {
    pub(super) next: u64,
    pub(super) end: u64,
}

impl Spare {
    /// The next `count` of them in a row.
    pub(super) fn take(&mut self, count: u64) -> Option<u64> {
        let first = self.next;
        let end = first.checked_add(count).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(first)
    }
}

impl Walk<'_> {
    /// Makes one pass over the tables.
    pub(super) async fn rewrite(&mut self, pass: Pass, spare: &mut Spare) -> Result<()> {
        let l1 = self.layout.header.l1;
        let active = L1 { offset: l1.offset.bytes(), count: l1.count.into() };
        let mut done = Counts::default();
        let mut reader = TableReader::new(self.file, active.offset, active.count * 8);
        while let Some(piece) = reader.next().await? {
            let mut changed = Changed::default();
            for (index, raw) in (piece.first..active.count).zip(piece.words()) {
                let Target::Cluster(offset) = self.layout.judge_l1(raw).target else {
                    let new = self.new_l1(pass, index, raw).await;
                    changed.note(index - piece.first, raw, new);
                    continue;
                };
                let new = self.new_l1(pass, index, raw).await;
                changed.note(index - piece.first, raw, new);
                if self.is_table(offset) && done.get(self.layout.cluster_of(offset)) == 0 {
                    done.add(self.layout.cluster_of(offset), 1)?;
                    let guest = index.saturating_mul(self.layout.geometry().l2_coverage());
                    self.rewrite_l2(pass, offset, Some(guest), spare).await?;
                }
            }
            changed.write(self.file, active.offset, &piece).await?;
        }
        if matches!(pass, Pass::Entries | Pass::Untangle) {
            self.rewrite_inactive(pass, &mut done, spare).await?;
        }
        Ok(())
    }

    async fn rewrite_inactive(
        &mut self,
        pass: Pass,
        done: &mut Counts,
        spare: &mut Spare,
    ) -> Result<()> {
        for number in 0..self.snapshots.len() {
            let Some(l1) = self.snapshots.get(number).copied() else { break };
            let mut reader = TableReader::new(self.file, l1.offset, l1.count * 8);
            while let Some(piece) = reader.next().await? {
                let mut changed = Changed::default();
                for (index, raw) in (piece.first..l1.count).zip(piece.words()) {
                    let new = self.new_l1(pass, index, raw).await;
                    changed.note(index - piece.first, raw, new);
                }
                changed.write(self.file, l1.offset, &piece).await?;
            }
        }
        let mut from = 0;
        while let Some((cluster, _)) = self.refs.l2.next(from) {
            from = cluster + 1;
            let offset = cluster << self.layout.geometry().cluster_bits();
            if done.get(cluster) == 0 && self.is_table(offset) {
                self.rewrite_l2(pass, offset, None, spare).await?;
            }
        }
        Ok(())
    }

    /// Whether the cluster at `offset` can be followed as an L2 table.
    fn is_table(&self, offset: u64) -> bool {
        self.layout.is_inside(offset) && self.refs.may_be_l2(self.layout, offset)
    }

    async fn new_l1(&mut self, pass: Pass, index: u64, raw: u64) -> u64 {
        let judged = self.layout.judge_l1(raw);
        let Target::Cluster(offset) = judged.target else {
            return if pass == Pass::Entries { judged.fixed.0 } else { raw };
        };
        let cluster = self.layout.cluster_of(offset);
        match pass {
            Pass::Untangle if self.layout.is_inside(offset) && !self.is_table(offset) => 0,
            Pass::Untangle => raw,
            Pass::Entries if !self.is_table(offset) => 0,
            Pass::Entries if judged.rounded && self.refs.l2.get(cluster) > 1 => 0,
            Pass::Entries => judged.fixed.0,
            _ => {
                let what = || format!("L2 cluster: l1_index={index} l1_entry={raw:x}");
                self.new_copied(pass, raw, cluster, what).await
            }
        }
    }

    /// An entry with the COPIED flag that the pass gives it.
    async fn new_copied(
        &mut self,
        pass: Pass,
        raw: u64,
        cluster: u64,
        what: impl FnOnce() -> String,
    ) -> u64 {
        let stored = self.stored(cluster).await;
        let once = stored == 1 && self.refs.all.get(cluster) == 1;
        let new = match (pass, once) {
            (Pass::ClearCopied, false) => with_copied(raw, Copied::No),
            (Pass::SetCopied, true) => with_copied(raw, Copied::Yes),
            _ => raw,
        };
        if new != raw {
            self.copied_changed += 1;
            self.log.repaired(|| format!("OFLAG_COPIED {} refcount={stored}", what()));
        }
        new
    }

    async fn rewrite_l2(
        &mut self,
        pass: Pass,
        offset: u64,
        guest: Option<u64>,
        spare: &mut Spare,
    ) -> Result<()> {
        let geometry = self.layout.geometry();
        let step = to_u64(geometry.l2_entry_words());
        let times = self.refs.l2.get(self.layout.cluster_of(offset));
        let mut reader = TableReader::new(self.file, offset, geometry.cluster_size());
        while let Some(piece) = reader.next().await? {
            let mut changed = Changed::default();
            let mut copies = false;
            let mut words = piece.words();
            let count = to_u64(words.len()).min(geometry.cluster_size() / 8 - piece.first);
            for at in (0..count).step_by(geometry.l2_entry_words()) {
                let Some(raw) = words.next() else { break };
                let bitmap = if step == 2 { words.next().unwrap_or(0) } else { 0 };
                if raw == 0 && bitmap == 0 {
                    continue;
                }
                let index = (piece.first + at) / step;
                let guest = guest.map(|g| g.saturating_add(index * geometry.cluster_size()));
                let judged = self.layout.judge_l2((raw, bitmap), guest);
                let new = match (pass, judged.target) {
                    (Pass::Entries, Target::Cluster(_)) if self.is_claimed(&judged) => {
                        copies = true;
                        self.copied(&judged, times, spare).await?
                    }
                    (Pass::Entries, _) => self.new_l2(&judged, times),
                    (Pass::Untangle, Target::Compressed(payload))
                        if self.layout.is_inside(payload.end().saturating_sub(1)) =>
                    {
                        self.new_l2(&judged, times)
                    }
                    (Pass::Untangle, _) => (raw, bitmap),
                    (_, Target::Cluster(host)) => {
                        let cluster = self.layout.cluster_of(host);
                        let what = || format!("data cluster: l2_entry={raw:x}");
                        (self.new_copied(pass, raw, cluster, what).await, bitmap)
                    }
                    (Pass::SetCopied, Target::External) => (with_copied(raw, Copied::Yes), bitmap),
                    _ => (raw, bitmap),
                };
                changed.note(at, raw, new.0);
                if step == 2 {
                    changed.note(at + 1, bitmap, new.1);
                }
            }
            if copies {
                self.file.flush().await?;
            }
            changed.write(self.file, offset, &piece).await?;
        }
        Ok(())
    }

    /// Whether guest data that an entry keeps stands in a cluster that something else claims, or that more
    /// refer to than a refcount can say.
    fn is_claimed(&self, judged: &Judged) -> bool {
        let Target::Cluster(offset) = judged.target else { return false };
        if !judged.keeps_cluster() {
            return false;
        }
        let cluster = self.layout.cluster_of(offset);
        let claimed = [&self.refs.exclusive, &self.refs.l2, &self.refs.compressed]
            .iter()
            .any(|counts| counts.get(cluster) != 0);
        let too_many = self.refs.all.get(cluster) > max_refcount(self.layout.geometry());
        self.layout.is_inside(offset) && !judged.rounded && (claimed || too_many)
    }

    /// What an L2 entry in a table that `times` L1 entries point at becomes without a copy.
    fn new_l2(&self, judged: &Judged, times: u64) -> Words {
        let layout = self.layout;
        let keep = match judged.target {
            Target::None | Target::External => true,
            Target::Cluster(offset) => {
                let others = self.refs.all.get(layout.cluster_of(offset)) > times;
                layout.is_inside(offset) && !(judged.rounded && others)
            }
            Target::Compressed(payload) => {
                let first = layout.cluster_of(payload.offset.bytes());
                let last = layout.cluster_of(payload.end().saturating_sub(1));
                last < layout.clusters
                    && (first..=last).all(|cluster| {
                        self.refs.exclusive.get(cluster) == 0 && self.refs.l2.get(cluster) == 0
                    })
            }
        };
        if keep { judged.fixed } else { layout.dropped() }
    }

    /// Copies the data of an entry to a spare cluster; the entry that refers to the copy. Without a
    /// spare cluster the entry is dropped.
    async fn copied(&mut self, judged: &Judged, times: u64, spare: &mut Spare) -> Result<Words> {
        let Target::Cluster(from) = judged.target else { return Ok(judged.fixed) };
        let layout = self.layout;
        let fits = times <= max_refcount(layout.geometry());
        let Some(cluster) = spare.take(1).filter(|_| fits) else { return Ok(layout.dropped()) };
        self.blocks.store(self.file, layout, cluster, times).await?;
        let to = cluster << layout.geometry().cluster_bits();
        self.file.flush().await?;
        copy(self.file, from, to, layout.cluster_size()).await?;
        self.refs.all.sub(layout.cluster_of(from), times)?;
        self.log.repaired(|| format!("guest data in {from:#x} was copied to {to:#x}"));
        let (raw, bitmap) = judged.fixed;
        Ok((with_copied(raw, Copied::No) - from + to, bitmap))
    }
}

/// Copies a cluster inside of the file.
async fn copy(file: &Node, from: u64, to: u64, len: u64) -> Result<()> {
    let end = from.saturating_add(len).min(file.len());
    let mut bytes = read_bytes(file, ByteRange::from_bounds(from, end)?).await?.to_vec();
    bytes.resize(to_usize(len), 0);
    write_bytes(file, to, &bytes).await
}

/// Words of a piece that are to be written.
#[derive(Default)]
struct Changed {
    words: Vec<(u64, u64)>,
}

impl Changed {
    fn note(&mut self, at: u64, old: u64, new: u64) {
        if old != new {
            self.words.push((at, new));
        }
    }

    /// Writes the sectors from the first that has changed to the last.
    async fn write(self, file: &Node, table: u64, piece: &Piece) -> Result<()> {
        let (Some((first, _)), Some((last, _))) = (self.words.first(), self.words.last()) else {
            return Ok(());
        };
        let (start, end) = (first * 8 / 512 * 512, (last * 8 + 8).next_multiple_of(512));
        let (from, until) = (to_usize(start), to_usize(end).min(piece.bytes.len()));
        let mut bytes = piece.bytes.get(from..until).unwrap_or_default().to_vec();
        for (at, word) in &self.words {
            let place = bytes.get_mut(to_usize(at * 8 - start)..to_usize(at * 8 - start) + 8);
            place.unwrap_or_default().copy_from_slice(&word.to_be_bytes());
        }
        write_bytes(file, table + piece.first * 8 + start, &bytes).await
    }
}
