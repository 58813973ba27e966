//! A flat disk that knows, for every block, what it may hold after a crash.
//!
//! Every change is a *version* of the bytes that it covers. What a crash leaves of a block is one of its
//! versions: any that has begun, back to the newest that is certainly stable. A flush that succeeds
//! settles what had ended when it began: a settled version takes away every older one that had ended
//! before it began. A failed change may have happened in part, so it takes nothing away; the same goes
//! for a discard, which leaves a block as it was or zero.
//!
//! Lengths and snapshots have versions too. A snapshot whose creation is settled must be there with the
//! contents of its moment; until then it may be there or not; the same, the other way round, when it is
//! deleted.
//!
//! Which bytes of one block belong to one version is checked; which versions of different blocks go
//! together is not: requests promise nothing about that.
//!
//! Invariants: segments cover everything from zero on; each has at least one version.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block_core::ByteRange;
use block_core::range::{MAX_LEN, to_u64, to_usize};

use super::disk::{Outcome, Source};
use super::frozen::Frozen;
use crate::op::{OpId, contents};

/// The model. See the module for the rules.
#[derive(Clone, Debug)]
pub struct DurableModel {
    /// Bytes that are old or new together.
    block: u64,
    /// Counts beginnings and ends.
    now: u64,
    /// By their first bytes; each goes on to the next one's.
    segments: BTreeMap<u64, Vec<Version<Content>>>,
    lens: Vec<Version<u64>>,
    snapshots: BTreeMap<String, Vec<Version<Option<Arc<Frozen>>>>>,
    changes: BTreeMap<Change, Scope>,
}

/// A change that has begun.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[must_use]
pub struct Change(u64);

/// A flush that has begun.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Flush(u64);

/// What a change does to what was there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It takes its place.
    Replaces,
    /// It may take its place: a discard.
    MayReplace,
}

/// When a change that has succeeded is stable.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Stable {
    /// With the next flush.
    Later,
    /// At once: it was a FUA request.
    Now,
}

/// What is there, and until when it was written.
#[derive(Clone, Debug)]
struct Version<T> {
    what: T,
    change: Option<Change>,
    began: u64,
    /// `None` while it is in flight.
    ended: Option<u64>,
    /// Whether older ones go when it is settled.
    replaces: bool,
}

/// Bytes, and the operation that wrote them.
#[derive(Clone, Debug)]
struct Content {
    op: OpId,
    bytes: Source,
}

/// What a change is about.
#[derive(Clone, Debug)]
enum Scope {
    Bytes(ByteRange),
    Len(ByteRange),
    Snapshot(String),
}

/// A crash has left what must not be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Loss {
    /// The disk has a length that it never had, or has no more.
    Len {
        /// What it is.
        found: u64,
        /// What it may be.
        possible: Vec<u64>,
    },
    /// A block holds what cannot be there.
    Contents {
        /// First byte of the block, or of the part of it that was written together.
        offset: u64,
        /// What is found, the first bytes of it.
        found: Vec<u8>,
        /// What may be there: the operation, and its first bytes.
        possible: Vec<(OpId, Vec<u8>)>,
        /// How many blocks are wrong.
        blocks: u64,
    },
    /// A snapshot is missing.
    SnapshotGone {
        /// Its name.
        name: String,
    },
    /// A snapshot is there that must not be.
    SnapshotBack {
        /// Its name.
        name: String,
    },
    /// A snapshot does not hold what the disk held.
    SnapshotContents {
        /// Its name.
        name: String,
        /// First byte that is wrong; the length if that is.
        offset: u64,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Len { found, possible } => {
                write!(f, "the disk has {found:#x} bytes; possible: {possible:#x?}")
            }
            Self::Contents { offset, found, possible, blocks } => {
                write!(f, "{found:02x?} at {offset:#x} ({blocks} blocks wrong); possible:")?;
                possible.iter().try_for_each(|(op, bytes)| write!(f, " op {op} {bytes:02x?}"))
            }
            Self::SnapshotGone { name } => write!(f, "snapshot {name} is gone"),
            Self::SnapshotBack { name } => write!(f, "snapshot {name} was deleted and is there"),
            Self::SnapshotContents { name, offset } => {
                write!(f, "snapshot {name} is wrong at {offset:#x}")
            }
        }
    }
}

impl std::error::Error for Loss {}

impl DurableModel {
    /// A disk of `len` bytes that come from `source` and are stable. Of each block of `block` bytes a
    /// crash leaves one version whole.
    pub fn new(len: u64, source: Source, block: u64) -> Self {
        let mut model = Self {
            block: block.max(1),
            now: 1,
            segments: BTreeMap::new(),
            lens: vec![Version::first(len)],
            snapshots: BTreeMap::new(),
            changes: BTreeMap::new(),
        };
        let content = |bytes| vec![Version::first(Content { op: 0, bytes })];
        model.segments.insert(0, content(spelled(source, 0, ByteRange::up_to(len))));
        model.segments.insert(len, content(Source::Zero));
        model
    }

    /// With a snapshot that is stable.
    #[must_use]
    pub fn holding(mut self, name: &str, frozen: Frozen) -> Self {
        let there = Version::first(Some(Arc::new(frozen)));
        self.snapshots.insert(name.to_owned(), vec![there]);
        self
    }

    /// A change of `range` by `op` begins, which leaves `source` there.
    pub fn begin(&mut self, op: OpId, range: ByteRange, source: Source, effect: Effect) -> Change {
        let change = self.change(Scope::Bytes(range));
        let bytes = spelled(source, op, range);
        self.push(change, range, &Content { op, bytes }, effect == Effect::Replaces);
        change
    }

    /// The change has ended.
    pub fn end(&mut self, change: Change, outcome: Outcome, stable: Stable) {
        self.now += 1;
        let now = self.now;
        let range = match self.changes.remove(&change) {
            None => return,
            Some(Scope::Bytes(range)) => range,
            Some(Scope::Len(range)) => {
                end_in(&mut self.lens, change, outcome, now);
                range
            }
            Some(Scope::Snapshot(name)) => {
                let versions = self.snapshots.get_mut(&name);
                versions.into_iter().for_each(|v| end_in(v, change, outcome, now));
                return;
            }
        };
        self.for_each_segment(range, |versions| {
            end_in(versions, change, outcome, now);
            if outcome == Outcome::Done && stable == Stable::Now {
                settle(versions, Settled::Only(change));
            }
        });
    }

    /// A flush begins.
    pub fn begin_flush(&mut self) -> Flush {
        self.now += 1;
        Flush(self.now)
    }

    /// The flush has succeeded. One that fails is simply dropped.
    pub fn end_flush(&mut self, flush: Flush) {
        self.now += 1;
        let settled = Settled::EndedBefore(flush.0);
        self.segments.values_mut().for_each(|versions| settle(versions, settled));
        settle(&mut self.lens, settled);
        self.snapshots.values_mut().for_each(|versions| settle(versions, settled));
        self.snapshots.retain(|_, versions| versions.iter().any(|v| v.what.is_some()));
    }

    /// A change of the length begins. What is cut off, and what is added, is zero.
    pub fn begin_truncate(&mut self, op: OpId, len: u64) -> Change {
        // Lengths change one after the other, so the newest is what the disk has.
        let now = self.lens.last().map_or(0, |version| version.what);
        let range = ByteRange::from_bounds(now.min(len), MAX_LEN).unwrap_or_default();
        let change = self.begin_len(range, len);
        self.push(change, range, &Content { op, bytes: Source::Zero }, true);
        change
    }

    /// The disk begins to become what it was when the snapshot was taken.
    pub fn begin_apply(&mut self, op: OpId, frozen: &Frozen) -> Change {
        let change = self.begin_len(ByteRange::up_to(MAX_LEN), frozen.len());
        for (piece, source) in frozen.pieces() {
            let bytes = match source {
                Source::Op(id) => spelled(Source::Op(*id), *id, *piece),
                other => other.clone(),
            };
            self.push(change, *piece, &Content { op, bytes }, true);
        }
        let behind = ByteRange::from_bounds(frozen.len(), MAX_LEN).unwrap_or_default();
        self.push(change, behind, &Content { op, bytes: Source::Zero }, true);
        change
    }

    /// The creation of the snapshot `name` begins.
    pub fn begin_create(&mut self, name: &str) -> Change {
        self.begin_snapshot(name, Some(Arc::new(Frozen::anything())))
    }

    /// The snapshot was created while the disk held `frozen`.
    pub fn end_create(&mut self, change: Change, outcome: Outcome, frozen: Frozen) {
        let frozen = Some(Arc::new(frozen));
        for version in self.snapshots.values_mut().flatten().filter(|v| v.change == Some(change)) {
            version.what.clone_from(&frozen);
        }
        self.end(change, outcome, Stable::Later);
    }

    /// The deletion of the snapshot `name` begins.
    pub fn begin_delete(&mut self, name: &str) -> Change {
        self.begin_snapshot(name, None)
    }

    /// Checks all that is found after a crash.
    ///
    /// # Errors
    /// If the length or a block is not what it may be.
    pub fn check(&self, found: &[u8]) -> Result<(), Loss> {
        let len = to_u64(found.len());
        if !self.lens.iter().any(|version| version.what == len) {
            let possible = self.lens.iter().map(|version| version.what).collect();
            return Err(Loss::Len { found: len, possible });
        }
        let mut loss: Option<Loss> = None;
        for (piece, versions) in self.pieces(len) {
            let bytes = &found[to_usize(piece.offset())..to_usize(piece.end())];
            if versions.iter().any(|version| version.what.is(piece.offset(), bytes)) {
                continue;
            }
            match &mut loss {
                Some(Loss::Contents { blocks, .. }) => *blocks += 1,
                _ => loss = Some(wrong(piece, bytes, versions)),
            }
        }
        loss.map_or(Ok(()), Err)
    }

    /// Checks the snapshots that are found after a crash, by name.
    ///
    /// # Errors
    /// If one is missing, or back, or holds what it must not.
    pub fn check_snapshots(&self, found: &BTreeMap<String, Vec<u8>>) -> Result<(), Loss> {
        for (name, versions) in &self.snapshots {
            let must = versions.iter().all(|version| version.what.is_some());
            let Some(bytes) = found.get(name) else {
                if must {
                    return Err(Loss::SnapshotGone { name: name.clone() });
                }
                continue;
            };
            let mut possible = versions.iter().filter_map(|version| version.what.as_ref());
            let Some(frozen) = possible.next_back() else {
                return Err(Loss::SnapshotBack { name: name.clone() });
            };
            if let Err(offset) = frozen.check(bytes) {
                return Err(Loss::SnapshotContents { name: name.clone(), offset });
            }
        }
        match found.keys().find(|name| !self.snapshots.contains_key(*name)) {
            Some(name) => Err(Loss::SnapshotBack { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn change(&mut self, scope: Scope) -> Change {
        self.now += 1;
        let change = Change(self.now);
        self.changes.insert(change, scope);
        change
    }

    fn begin_snapshot(&mut self, name: &str, what: Option<Arc<Frozen>>) -> Change {
        let change = self.change(Scope::Snapshot(name.to_owned()));
        let versions =
            self.snapshots.entry(name.to_owned()).or_insert_with(|| vec![Version::first(None)]);
        let began = self.now;
        versions.push(Version { what, change: Some(change), began, ended: None, replaces: true });
        change
    }

    fn begin_len(&mut self, range: ByteRange, len: u64) -> Change {
        let change = self.change(Scope::Len(range));
        let began = self.now;
        self.lens.push(Version {
            what: len,
            change: Some(change),
            began,
            ended: None,
            replaces: true,
        });
        change
    }

    fn push(&mut self, change: Change, range: ByteRange, what: &Content, replaces: bool) {
        let (began, change) = (self.now, Some(change));
        self.for_each_segment(range, |versions| {
            let what = what.clone();
            versions.push(Version { what, change, began, ended: None, replaces });
        });
    }

    fn for_each_segment(
        &mut self,
        range: ByteRange,
        mut change: impl FnMut(&mut Vec<Version<Content>>),
    ) {
        if range.is_empty() {
            return;
        }
        self.cut_at(range.offset());
        self.cut_at(range.end());
        for (_, versions) in self.segments.range_mut(range.offset()..range.end()) {
            change(versions);
        }
    }

    /// Makes a segment start at `offset`.
    fn cut_at(&mut self, offset: u64) {
        if let Some((start, versions)) = self.segments.range(..=offset).next_back()
            && *start < offset
        {
            let versions = versions.clone();
            self.segments.insert(offset, versions);
        }
    }

    /// The pieces of `[0, len)` that lie in one block and one segment.
    fn pieces(&self, len: u64) -> impl Iterator<Item = (ByteRange, &Vec<Version<Content>>)> {
        let starts = self.segments.keys().skip(1).copied().chain([u64::MAX]);
        let segments = self.segments.iter().zip(starts).take_while(move |((s, _), _)| **s < len);
        segments.flat_map(move |((start, versions), end)| {
            let mut at = *start;
            let end = end.min(len);
            std::iter::from_fn(move || {
                let next = (at / self.block + 1).saturating_mul(self.block).min(end);
                let piece = ByteRange::from_bounds(at, next).ok().filter(|p| !p.is_empty())?;
                at = next;
                Some((piece, versions))
            })
        })
    }
}

/// What a settled version is told by.
#[derive(Copy, Clone, Debug)]
enum Settled {
    EndedBefore(u64),
    Only(Change),
}

/// A change of these versions has ended.
fn end_in<T>(versions: &mut Vec<Version<T>>, change: Change, outcome: Outcome, now: u64) {
    if outcome == Outcome::Refused {
        versions.retain(|version| version.change != Some(change));
    }
    for version in versions.iter_mut().filter(|version| version.change == Some(change)) {
        version.ended = Some(now);
        version.replaces &= outcome == Outcome::Done;
    }
}

/// Takes away what settled versions have replaced.
fn settle<T>(versions: &mut Vec<Version<T>>, settled: Settled) {
    let is_settled = |version: &Version<T>| match settled {
        Settled::EndedBefore(flush) => version.ended.is_some_and(|ended| ended < flush),
        Settled::Only(change) => version.change == Some(change),
    };
    let newest = versions.iter().filter(|v| v.replaces && is_settled(v)).map(|v| v.began).max();
    if let Some(began) = newest {
        versions.retain(|version| version.ended.is_none_or(|ended| ended >= began));
    }
}

impl<T> Version<T> {
    /// What is there and stable from the start.
    fn first(what: T) -> Self {
        Self { what, change: None, began: 0, ended: Some(0), replaces: true }
    }
}

impl Content {
    /// Whether it has `bytes` at `offset`.
    fn is(&self, offset: u64, bytes: &[u8]) -> bool {
        match &self.bytes {
            Source::Bytes(start, all) => {
                let from = offset.checked_sub(*start).map(to_usize);
                from.and_then(|from| all.get(from..from + bytes.len())) == Some(bytes)
            }
            source => bytes.iter().zip(offset..).all(|(byte, at)| source.allows(at, *byte)),
        }
    }
}

/// The bytes of an operation written out, so that comparing them is quick.
fn spelled(source: Source, op: OpId, range: ByteRange) -> Source {
    match source {
        Source::Op(id) if id == op => Source::Bytes(range.offset(), contents(id, range).into()),
        other => other,
    }
}

fn wrong(piece: ByteRange, bytes: &[u8], versions: &[Version<Content>]) -> Loss {
    const SHOWN: usize = 4;
    let show = |version: &Version<Content>| {
        let Content { op, bytes } = &version.what;
        let shown = match bytes {
            Source::Bytes(start, all) => {
                let from = to_usize(piece.offset().saturating_sub(*start));
                all.iter().skip(from).take(SHOWN).copied().collect()
            }
            Source::Op(id) => contents(*id, piece.first(4)),
            Source::Zero => vec![0; SHOWN],
            Source::Anything => Vec::new(),
        };
        (*op, shown)
    };
    Loss::Contents {
        offset: piece.offset(),
        found: bytes.iter().take(SHOWN).copied().collect(),
        possible: versions.iter().map(show).collect(),
        blocks: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 4096;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    fn model() -> DurableModel {
        DurableModel::new(LEN, Source::Zero, 512)
    }

    fn begin(model: &mut DurableModel, id: OpId, at: ByteRange) -> Change {
        model.begin(id, at, Source::Op(id), Effect::Replaces)
    }

    fn write(model: &mut DurableModel, id: OpId, at: ByteRange) {
        let change = begin(model, id, at);
        model.end(change, Outcome::Done, Stable::Later);
    }

    fn flush(model: &mut DurableModel) {
        let flush = model.begin_flush();
        model.end_flush(flush);
    }

    /// Which operations may be found in the block at `offset`.
    fn possible(model: &DurableModel, offset: u64) -> Vec<OpId> {
        let block = range(offset, offset + 512);
        let may_be = |id: &OpId| {
            let mut disk = vec![0; to_usize(LEN)];
            for (piece, versions) in model.pieces(LEN) {
                // Any version of the other blocks will do.
                if let Source::Bytes(start, all) = &versions[0].what.bytes {
                    let from = to_usize(piece.offset() - start);
                    let to = to_usize(piece.offset())..to_usize(piece.end());
                    disk[to].copy_from_slice(&all[from..from + to_usize(piece.len())]);
                }
            }
            let bytes = if *id == 0 { vec![0; 512] } else { contents(*id, block) };
            disk[to_usize(offset)..to_usize(offset + 512)].copy_from_slice(&bytes);
            model.check(&disk).is_ok()
        };
        (0..10).filter(may_be).collect()
    }

    #[test]
    fn what_ended_before_a_flush_that_succeeded_must_be_there_or_something_newer() {
        let mut model = model();
        write(&mut model, 1, range(0, 1024));
        assert_eq!(possible(&model, 0), [0, 1], "old or new, block by block");
        flush(&mut model);
        assert_eq!((possible(&model, 0), possible(&model, 1024)), (vec![1], vec![0]));
        write(&mut model, 2, range(0, 512));
        write(&mut model, 3, range(0, 512));
        let in_flight = begin(&mut model, 4, range(0, 512));
        assert_eq!(possible(&model, 0), [1, 2, 3, 4]);
        flush(&mut model);
        assert_eq!(possible(&model, 0), [3, 4], "the flush settles what had ended only");
        model.end(in_flight, Outcome::Done, Stable::Later);
        assert_eq!(possible(&model, 0), [3, 4]);
        flush(&mut model);
        assert_eq!(possible(&model, 0), [4]);
    }

    #[test]
    fn a_flush_covers_what_had_ended_when_it_began() {
        let mut model = model();
        let first = model.begin_flush();
        write(&mut model, 1, range(0, 512));
        model.end_flush(first);
        assert_eq!(possible(&model, 0), [0, 1]);
        let failed = model.begin_flush();
        let _ = failed;
        assert_eq!(possible(&model, 0), [0, 1]);
    }

    #[test]
    fn writes_that_overlapped_in_time_may_both_be_last() {
        let mut model = model();
        let a = begin(&mut model, 1, range(0, 512));
        let b = begin(&mut model, 2, range(0, 512));
        model.end(a, Outcome::Done, Stable::Later);
        model.end(b, Outcome::Done, Stable::Later);
        flush(&mut model);
        assert_eq!(possible(&model, 0), [1, 2]);
    }

    #[test]
    fn a_failed_change_or_a_discard_takes_nothing_away() {
        let mut model = model();
        write(&mut model, 1, range(0, 1024));
        flush(&mut model);
        let failed = begin(&mut model, 2, range(0, 512));
        model.end(failed, Outcome::Failed, Stable::Later);
        let refused = begin(&mut model, 3, range(0, 512));
        model.end(refused, Outcome::Refused, Stable::Later);
        let discard = model.begin(4, range(512, 1024), Source::Zero, Effect::MayReplace);
        model.end(discard, Outcome::Done, Stable::Later);
        flush(&mut model);
        assert_eq!((possible(&model, 0), possible(&model, 512)), (vec![1, 2], vec![0, 1]));
        write(&mut model, 5, range(0, 1024));
        flush(&mut model);
        assert_eq!((possible(&model, 0), possible(&model, 512)), (vec![5], vec![5]));
    }

    #[test]
    fn a_fua_write_settles_itself() {
        let mut model = model();
        write(&mut model, 1, range(0, 1024));
        let fua = begin(&mut model, 2, range(0, 512));
        model.end(fua, Outcome::Done, Stable::Now);
        assert_eq!((possible(&model, 0), possible(&model, 512)), (vec![2], vec![0, 1]));
    }

    #[test]
    fn a_block_is_not_mixed_but_parts_that_were_written_apart_are_apart() {
        let mut model = model();
        write(&mut model, 1, range(0, 512));
        let mut disk = vec![0; to_usize(LEN)];
        disk[..512].copy_from_slice(&contents(1, range(0, 512)));
        assert_eq!(model.check(&disk), Ok(()));
        disk[100] = 0;
        assert!(matches!(model.check(&disk), Err(Loss::Contents { offset: 0, blocks: 1, .. })));
        write(&mut model, 2, range(0, 100));
        disk[..100].copy_from_slice(&contents(2, range(0, 100)));
        disk[100..512].fill(0);
        assert_eq!(model.check(&disk), Ok(()));
    }

    #[test]
    fn lengths_are_old_or_new_until_a_flush() {
        let mut model = model();
        write(&mut model, 1, range(0, LEN));
        flush(&mut model);
        let mut disk = contents(1, range(0, LEN));
        let truncate = model.begin_truncate(2, 1024);
        model.end(truncate, Outcome::Done, Stable::Later);
        assert_eq!((model.check(&disk), model.check(&disk[..1024])), (Ok(()), Ok(())));
        assert_eq!(
            model.check(&disk[..512]).unwrap_err(),
            Loss::Len { found: 512, possible: vec![LEN, 1024] }
        );
        flush(&mut model);
        assert!(matches!(model.check(&disk), Err(Loss::Len { .. })));
        let truncate = model.begin_truncate(3, 2048);
        model.end(truncate, Outcome::Done, Stable::Later);
        flush(&mut model);
        disk.truncate(2048);
        assert!(matches!(model.check(&disk), Err(Loss::Contents { offset: 1024, .. })));
        disk[1024..].fill(0);
        assert_eq!(model.check(&disk), Ok(()));
    }

    #[test]
    fn snapshots_are_there_once_they_are_settled_and_until_their_deletion_begins() {
        let mut model = model();
        let with = |byte| BTreeMap::from([("s".to_owned(), vec![byte; 512])]);
        let gone = BTreeMap::new();
        let create = model.begin_create("s");
        assert_eq!(
            (model.check_snapshots(&gone), model.check_snapshots(&with(7))),
            (Ok(()), Ok(()))
        );
        model.end_create(create, Outcome::Done, Frozen::filled(512, Source::Zero));
        assert_eq!(model.check_snapshots(&gone), Ok(()));
        flush(&mut model);
        assert!(matches!(model.check_snapshots(&gone), Err(Loss::SnapshotGone { .. })));
        assert!(matches!(
            model.check_snapshots(&with(7)),
            Err(Loss::SnapshotContents { offset: 0, .. })
        ));
        assert_eq!(model.check_snapshots(&with(0)), Ok(()));
        let delete = model.begin_delete("s");
        model.end(delete, Outcome::Done, Stable::Later);
        assert_eq!(
            (model.check_snapshots(&gone), model.check_snapshots(&with(0))),
            (Ok(()), Ok(()))
        );
        flush(&mut model);
        assert!(matches!(model.check_snapshots(&with(0)), Err(Loss::SnapshotBack { .. })));
    }

    #[test]
    fn an_applied_snapshot_replaces_all_and_its_length_too() {
        let mut model = model();
        write(&mut model, 1, range(0, LEN));
        flush(&mut model);
        let apply = model.begin_apply(2, &Frozen::filled(1024, Source::Zero));
        model.end(apply, Outcome::Done, Stable::Later);
        assert_eq!(model.check(&contents(1, range(0, LEN))), Ok(()));
        flush(&mut model);
        assert_eq!(model.check(&[0; 1024]), Ok(()));
        assert!(model.check(&contents(1, range(0, 1024))).is_err());
    }
}
