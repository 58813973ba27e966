//! Zero writes and discards: changes of the mapping, no data moves.
//!
//! Both go slice by slice under the metadata lock, and wait for allocations in their way. A zero write
//! of a part of a subcluster is accepted if the rest of it reads as zeroes anyway; otherwise the layer
//! writes zeroes.
//!
//! **Invariant.** A zero write that is refused has changed nothing. Only clusters of which it touches a
//! part can refuse it, and these are at its ends: they are looked at and changed first, both under one
//! hold of the metadata lock.

use std::sync::Arc;

use block_core::{ByteRange, Error, RequestFlags, Result, Support};

use crate::alloc::{Meta, Reason};
use crate::driver::Qcow2Driver;
use crate::geometry::{DataLocation, Geometry, Version};
use crate::map::Kind;
use crate::plan::{Dropped, dropped_by, mask, set_words, subcluster, words_at};
use crate::reload::from_below;
use crate::spec::Fault;
use crate::spec::entry::{Cluster, Copied, encode_plain, is_copied, mapping_entry};
use crate::tables::OwnSlice;
use crate::units::{GuestOffset, HostOffset};
use crate::writer::Freeing;
use block_core::metadata::inflight::Blocker;

/// What becomes of a cluster's entry.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Target {
    /// It reads as zeroes and keeps its host cluster.
    ZeroInPlace,
    /// It reads as zeroes and has no host cluster.
    Zero,
    /// It is not allocated.
    Unallocated,
}

/// A host cluster that an entry keeps although its contents are not needed.
type Kept = HostOffset;

/// A change of a slice.
#[derive(Default)]
struct Retargeted {
    /// The entries that change: where in the disk, and to what.
    entries: Vec<(u64, (u64, u64))>,
    /// What they let go.
    dropped: Vec<Dropped>,
    kept: Vec<Kept>,
}

/// Why the ends of a zero write are not zeroed.
enum Stop {
    /// An allocation is in the way.
    Blocked(Blocker),
    /// The rest of a subcluster or of a compressed cluster holds data.
    Partial,
}

impl Qcow2Driver {
    /// Makes `range` read as zeroes by changing the mapping.
    pub(crate) async fn zero(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let inside = range.intersect(ByteRange::up_to(self.disk_len()));
        let target = self.zero_target(inside, flags)?;
        self.check_data_file(flags)?;
        // Tables that it makes get their places in turn, as compressed clusters do. Nobody else is held up
        // by what it waits for.
        let turn = self.writer()?.compressed.turn();
        turn.served().await;
        let mut turn = Some(turn);
        let (ends, mut rest) = ends_and_middle(self.geometry(), inside);
        loop {
            self.relieve().await?;
            match self.zero_ends(&ends, target).await? {
                Ok(()) => break,
                Err(Stop::Partial) => return Err(Error::Unsupported),
                Err(Stop::Blocked(blocker)) => {
                    drop(turn.take());
                    self.allocations.wait(blocker).await;
                }
            }
        }
        while !rest.is_empty() {
            self.relieve().await?;
            match self.zero_some(rest, target).await? {
                Ok(done) => rest = rest.split_at(done).1,
                Err(blocker) => {
                    drop(turn.take());
                    self.allocations.wait(blocker).await;
                }
            }
        }
        Ok(())
    }

    /// How zeroes are told in this image.
    fn zero_target(&self, range: ByteRange, flags: RequestFlags) -> Result<Target> {
        let geometry = self.geometry();
        if geometry.version() == Version::V2 {
            // Without zero flags only what nothing shows through can be zero.
            let below = self.backing.as_ref().map_or(0, |backing| backing.len());
            let start = geometry.cluster_alignment().round_down(range.offset());
            return if start >= below { Ok(Target::Unallocated) } else { Err(Error::Unsupported) };
        }
        let keeps = self.has_raw_data_file();
        if flags.contains(RequestFlags::MAY_UNMAP) && !keeps {
            Ok(Target::Zero)
        } else {
            Ok(Target::ZeroInPlace)
        }
    }

    /// Whether zeroes in a data file that must read like the disk are as quick as was asked for.
    fn check_data_file(&self, flags: RequestFlags) -> Result<()> {
        let data = self.data.as_ref().filter(|_| self.has_raw_data_file());
        let quick =
            data.is_none_or(|data| data.capabilities().zeroes_no_fallback == Support::Native);
        let slow = flags.contains(RequestFlags::NO_FALLBACK) && !quick;
        if slow { Err(Error::Unsupported) } else { Ok(()) }
    }

    /// Whether the data file must read like the disk.
    pub(crate) fn has_raw_data_file(&self) -> bool {
        self.header.with(|parts| parts.header.features.raw_data_file)
    }

    /// Zeroes the clusters of which only a part is touched: all of `ends`, or none.
    async fn zero_ends(&self, ends: &[ByteRange], target: Target) -> Result<Result<(), Stop>> {
        let cluster = self.geometry().cluster_alignment();
        let mut meta = self.writer()?.meta.lock().await;
        let mut widened = Vec::new();
        for end in ends {
            if let Err(blocker) = self.allocations.free_prefix(end.expand(cluster)) {
                return Ok(Err(Stop::Blocked(blocker)));
            }
            match self.widened(*end, target).await? {
                Some(aligned) => widened.push(aligned),
                None => return Ok(Err(Stop::Partial)),
            }
        }
        for (end, aligned) in ends.iter().zip(widened) {
            let slice = self.own_slice(&mut meta, GuestOffset::new(end.offset())).await?;
            self.zero_slice(&mut meta, slice, *end, aligned, target).await?;
        }
        Ok(Ok(()))
    }

    /// Zeroes the start of `rest`, whole clusters; the number of bytes that are done.
    async fn zero_some(&self, rest: ByteRange, target: Target) -> Result<Result<u64, Blocker>> {
        let geometry = self.geometry();
        let mut meta = self.writer()?.meta.lock().await;
        let free = match self.allocations.free_prefix(rest) {
            Ok(free) => free,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let offset = GuestOffset::new(rest.offset());
        if target == Target::Unallocated && self.l1_word(geometry.l1_index(offset))? == 0 {
            let coverage = geometry.l2_coverage();
            return Ok(Ok(rest.len().min(coverage - rest.offset() % coverage)));
        }
        let slice = self.own_slice(&mut meta, offset).await?;
        let within = free.intersect(ByteRange::up_to(slice.guest_end));
        self.zero_slice(&mut meta, slice, within, within, target).await?;
        Ok(Ok(within.len()))
    }

    /// Zeroes `range`, which lies in `slice`; `aligned` is what of the mapping changes with it.
    async fn zero_slice(
        &self,
        meta: &mut Meta,
        slice: OwnSlice,
        range: ByteRange,
        aligned: ByteRange,
        target: Target,
    ) -> Result<()> {
        if self.has_raw_data_file() {
            let data = self.data.as_ref().ok_or(Error::Unsupported)?;
            from_below(data.write_zeroes(range, RequestFlags::MAY_UNMAP).await)?;
        }
        self.retarget(meta, slice, aligned, target).await.map(drop)
    }

    /// `range`, a part of a cluster, in whole subclusters (clusters, where the target has no zero flag for
    /// parts); `None` if that would zero what is not zero.
    async fn widened(&self, range: ByteRange, target: Target) -> Result<Option<ByteRange>> {
        let geometry = self.geometry();
        let unit = match target {
            Target::ZeroInPlace | Target::Zero => geometry.subcluster_size(),
            Target::Unallocated => geometry.cluster_size(),
        };
        let start = range.offset() / unit * unit;
        let end = range.end().div_ceil(unit) * unit;
        let head = ByteRange::from_bounds(start, range.offset())?;
        let tail = ByteRange::from_bounds(range.end(), end)?;
        if !self.reads_zero(head).await? || !self.reads_zero(tail).await? {
            return Ok(None);
        }
        let aligned = ByteRange::from_bounds(start, end)?;
        let there = self.extent(GuestOffset::new(range.offset()), range.len()).await?;
        let compressed = matches!(there.kind, Kind::Compressed { .. });
        // A part of a compressed cluster cannot be told apart.
        let whole = aligned.is_aligned(geometry.cluster_alignment());
        Ok((whole || !compressed).then_some(aligned))
    }

    /// Discards the whole clusters of `range`; its end may be that of the disk.
    pub(crate) async fn discard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let geometry = self.geometry();
        let cluster = geometry.cluster_alignment();
        let to_the_end = range.end() >= self.disk_len();
        let end = if to_the_end { cluster.round_up(self.disk_len()) } else { range.end() };
        let whole =
            ByteRange::from_bounds(range.offset(), end.max(range.offset()))?.shrink(cluster);
        if whole.is_empty() {
            return Err(Error::Unsupported);
        }
        let v2 = geometry.version() == Version::V2;
        let target = match (self.writer()?.freeing, self.backing.is_some()) {
            _ if self.has_raw_data_file() => Target::ZeroInPlace,
            // Version 2, to which an image may have been changed meanwhile, cannot say that.
            (Freeing::Keep, _) if !v2 => Target::ZeroInPlace,
            // The backing file would show.
            (_, true) if v2 => return Err(Error::Unsupported),
            (_, true) => Target::Zero,
            (_, false) => Target::Unallocated,
        };
        let mut rest = whole;
        while !rest.is_empty() {
            self.relieve().await?;
            match self.discard_some(rest, target).await? {
                Ok(done) => rest = rest.split_at(done).1,
                Err(blocker) => self.allocations.wait(blocker).await,
            }
        }
        Ok(())
    }

    async fn discard_some(&self, rest: ByteRange, target: Target) -> Result<Result<u64, Blocker>> {
        let geometry = self.geometry();
        let mut meta = self.writer()?.meta.lock().await;
        let free = match self.allocations.free_prefix(rest) {
            Ok(free) => free,
            Err(blocker) => return Ok(Err(blocker)),
        };
        let offset = GuestOffset::new(rest.offset());
        if self.l1_word(geometry.l1_index(offset))? == 0 && self.backing.is_none() {
            let coverage = geometry.l2_coverage();
            return Ok(Ok(rest.len().min(coverage - rest.offset() % coverage)));
        }
        let slice = self.own_slice(&mut meta, offset).await?;
        let within = rest.intersect(free).intersect(ByteRange::up_to(slice.guest_end));
        let kept = self.retarget(&mut meta, slice, within, target).await?;
        // Within this request, so that nothing was written there meanwhile: discards serialise.
        self.punch_kept(kept).await?;
        if geometry.data_location() == DataLocation::DataFile {
            let data = self.data.as_ref().ok_or(Error::Unsupported)?;
            let there = within.intersect(ByteRange::up_to(data.len()));
            if there.is_empty() {
                // The data file ends before it.
            } else if self.has_raw_data_file() {
                from_below(data.write_zeroes(there, RequestFlags::MAY_UNMAP).await)?;
            } else if self.writer()?.discards.passes(Reason::Request) {
                from_below(data.discard(there).await)?;
            }
        }
        Ok(Ok(within.len()))
    }

    async fn punch_kept(&self, kept: Vec<Kept>) -> Result<()> {
        let writer = self.writer()?;
        let here = self.geometry().data_location() == DataLocation::Image;
        if !here || writer.freeing != Freeing::Keep || !writer.discards.passes(Reason::Request) {
            return Ok(());
        }
        for host in kept {
            let range = ByteRange::new(host.bytes(), self.geometry().cluster_size())?;
            let range = range.intersect(ByteRange::up_to(self.file.len()));
            from_below(self.file.discard(range).await)?;
        }
        Ok(())
    }

    /// Changes the entries that map `range`, whole subclusters of one slice. Gives the host clusters
    /// that are kept although nothing in them is needed. Of a compressed cluster `range` has all or
    /// nothing; otherwise it is refused, with nothing changed.
    async fn retarget(
        &self,
        meta: &mut Meta,
        slice: OwnSlice,
        range: ByteRange,
        target: Target,
    ) -> Result<Vec<Kept>> {
        let geometry = self.geometry();
        let overlap = Arc::clone(&meta.overlap);
        let look = |words: &[u64]| {
            let may_drop = |dropped| overlap.check_dropped(dropped);
            retarget(geometry, words, slice.first_entry, range, target, may_drop)
        };
        let Retargeted { entries, dropped, kept } =
            self.look_at_slice(slice, look).await?.ok_or(Error::Unsupported)?;
        // A table that stays as it is need not be written.
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let change = |words: &mut [u64]| {
            entries.into_iter().try_for_each(|(start, new)| {
                set_words(geometry, words, slice.first_entry, GuestOffset::new(start), new)
            })
        };
        self.change_slice(slice, change).await?;
        for dropped in dropped {
            meta.drop_data(dropped, Reason::Request);
        }
        Ok(kept)
    }
}

/// The parts of `range` that lie in clusters of which it touches only a part, and the whole clusters
/// between them.
fn ends_and_middle(geometry: Geometry, range: ByteRange) -> (Vec<ByteRange>, ByteRange) {
    let cluster = geometry.cluster_alignment();
    let (head, rest) = range.split_at(cluster.round_up(range.offset()) - range.offset());
    let whole = cluster.round_down(rest.end()).saturating_sub(rest.offset());
    let (middle, tail) = rest.split_at(whole);
    let ends = [head, tail].into_iter().filter(|end| !end.is_empty());
    (ends.collect(), middle)
}

/// How the entries that map `range` change; not at all if a part of a compressed cluster is in it, or if
/// `may_drop` objects to what would be let go.
fn retarget(
    geometry: Geometry,
    words: &[u64],
    first_entry: u64,
    range: ByteRange,
    target: Target,
    may_drop: impl Fn(Dropped) -> Result<(), Fault>,
) -> Result<Option<Retargeted>, Fault> {
    let mut change = Retargeted::default();
    let cluster_size = geometry.cluster_size();
    let mut start = geometry.cluster_alignment().round_down(range.offset());
    while start < range.end() {
        let old = words_at(geometry, words, first_entry, GuestOffset::new(start))?;
        let cluster = mapping_entry(geometry, old.0, old.1, GuestOffset::new(start))?;
        let from = range.offset().max(start) - start;
        let to = range.end().min(start + cluster_size) - start;
        let touched = mask(subcluster(geometry, from), subcluster(geometry, to - 1));
        let whole = to - from == cluster_size;
        let target = if whole { target } else { Target::ZeroInPlace };
        let Some(new) = retargeted(geometry, old.0, cluster, touched, target) else {
            return Ok(None);
        };
        if new.0 != old {
            match new.1 {
                Some(host) => {
                    may_drop(Dropped::Cluster(host))?;
                    change.kept.extend(whole.then_some(host));
                }
                None => {
                    let dropped = dropped_by(geometry, cluster);
                    dropped.map_or(Ok(()), &may_drop)?;
                    change.dropped.extend(dropped);
                }
            }
            change.entries.push((start, new.0));
        }
        start += cluster_size;
    }
    Ok(Some(change))
}

/// An entry's new words and the host cluster that it keeps. `None`: a part of a compressed cluster
/// cannot be told apart.
fn retargeted(
    geometry: Geometry,
    raw: u64,
    cluster: Cluster,
    touched: u32,
    target: Target,
) -> Option<((u64, u64), Option<HostOffset>)> {
    let all = mask(0, geometry.subclusters() - 1);
    let own = is_copied(raw);
    match (cluster, target) {
        (Cluster::Compressed(_), _) if touched != all => None,
        (_, Target::Unallocated) => Some(((0, 0), None)),
        (Cluster::Plain { host: Some(host), alloc, zero }, Target::ZeroInPlace)
            if own || touched != all =>
        {
            let copied = if own { Copied::Yes } else { Copied::No };
            let (alloc, zero) = (alloc & !touched, zero | touched);
            Some((encode_plain(geometry, Some(host), alloc, zero, copied), Some(host)))
        }
        (Cluster::Plain { host: None, zero, .. }, _) => {
            Some((encode_plain(geometry, None, 0, zero | touched, Copied::No), None))
        }
        _ => Some((encode_plain(geometry, None, 0, all, Copied::No), None)),
    }
}
