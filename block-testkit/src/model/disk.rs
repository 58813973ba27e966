//! A flat disk that knows, for every byte, which values a read may give.
//!
//! Operations have a beginning and an end. While a write is in flight its range may hold old or new
//! data; when it has succeeded, it has replaced everything whose write ended before it began, and
//! nothing else: the order of writes that overlap in time is the disk's to choose, byte by byte. A
//! failed write replaces nothing, but may have written any of its bytes. A read may give whatever was
//! possible at some time between its beginning and its end; once a read has seen a byte that nobody
//! is writing, that byte stays what it was seen to be.
//!
//! Invariants: the segments cover the disk without gaps; every segment has at least one possible
//! [`Source`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block_core::ByteRange;

use super::frozen::Frozen;
use crate::op::{OpId, content};

/// Where a byte comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// [`content`] of this operation.
    Op(OpId),
    /// Zero.
    Zero,
    /// Anything at all: what a discard leaves.
    Anything,
    /// Known bytes, the first of which is at the given offset of the disk.
    Bytes(u64, Arc<[u8]>),
}

impl Source {
    pub(super) fn allows(&self, offset: u64, byte: u8) -> bool {
        match self {
            Self::Op(id) => content(*id, offset) == byte,
            Self::Zero => byte == 0,
            Self::Anything => true,
            Self::Bytes(start, bytes) => {
                let at = offset.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| bytes.get(at)) == Some(&byte)
            }
        }
    }
}

/// How a write ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It failed: any of its bytes may have been written.
    Failed,
    /// It was refused: nothing may have changed.
    Refused,
}

/// A read gave a byte that cannot be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Offset on the disk.
    pub offset: u64,
    /// What was read.
    pub byte: u8,
    /// What may be there.
    pub possible: Vec<Source>,
    /// How many bytes of the read are wrong.
    pub wrong: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, byte, possible, wrong } = self;
        write!(f, "{byte:#04x} read at {offset:#x} ({wrong} bytes wrong); possible: ")?;
        for source in possible {
            match source {
                Source::Op(id) => write!(f, "op {id} ({:#04x}) ", content(*id, *offset))?,
                other => write!(f, "{other:?} ")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mismatch {}

/// A read or write that has begun.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[must_use]
pub struct Token(u64);

/// The model. See the module for the rules.
#[derive(Clone, Debug)]
pub struct DiskModel {
    len: u64,
    /// By their first bytes; each goes on to the next one's, the last to `len`.
    segments: BTreeMap<u64, Vec<Possible>>,
    /// Counts beginnings and ends.
    now: u64,
    writes: BTreeMap<Token, Write>,
    reads: BTreeMap<Token, Read>,
}

/// One thing that a segment may hold.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Possible {
    source: Source,
    /// Who wrote it, for taking it back.
    token: Option<Token>,
    /// When its write ended; `None` while in flight. What was there at the start ended at zero.
    ended: Option<u64>,
}

#[derive(Clone, Debug)]
struct Write {
    range: ByteRange,
    began: u64,
}

#[derive(Clone, Debug)]
struct Read {
    range: ByteRange,
    began: u64,
    /// What was possible in its range when it began, or has begun since.
    possible: Vec<(ByteRange, Source)>,
}

impl DiskModel {
    /// A disk of `len` bytes that come from `source`.
    pub fn new(len: u64, source: Source) -> Self {
        let mut model = Self {
            len,
            segments: BTreeMap::new(),
            now: 1,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        model.segments.insert(0, vec![Possible { source, token: None, ended: Some(0) }]);
        model
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A write (or zero write, or discard) of `range` begins, which leaves `source` there. One that
    /// ends beyond the end makes the disk longer.
    pub fn begin_write(&mut self, range: ByteRange, source: Source) -> Token {
        if !range.is_empty() {
            self.grow(range.end());
        }
        let token = self.token();
        self.writes.insert(token, Write { range, began: self.now });
        for read in self.reads.values_mut() {
            let part = read.range.intersect(range);
            if !part.is_empty() {
                read.possible.push((part, source.clone()));
            }
        }
        self.for_each_segment(range, |possible| {
            possible.push(Possible { source: source.clone(), token: Some(token), ended: None });
        });
        token
    }

    /// The write has ended.
    pub fn end_write(&mut self, token: Token, outcome: Outcome) {
        self.now += 1;
        let Some(write) = self.writes.remove(&token) else { return };
        let now = self.now;
        self.for_each_segment(write.range, |possible| match outcome {
            Outcome::Refused => possible.retain(|p| p.token != Some(token)),
            Outcome::Failed | Outcome::Done => {
                let replaced = |p: &Possible| {
                    p.token != Some(token) && p.ended.is_some_and(|e| e < write.began)
                };
                if outcome == Outcome::Done {
                    possible.retain(|p| !replaced(p));
                }
                for p in possible.iter_mut().filter(|p| p.token == Some(token)) {
                    p.ended = Some(now);
                }
            }
        });
    }

    /// A read of `range` begins. What is beyond the end reads as zeroes.
    pub fn begin_read(&mut self, range: ByteRange) -> Token {
        let token = self.token();
        let mut possible = Vec::new();
        for (segment, sources) in self.segments_in(range) {
            possible.extend(sources.iter().map(|p| (segment, p.source.clone())));
        }
        if let Ok(beyond) = ByteRange::from_bounds(range.offset().max(self.len), range.end()) {
            possible.push((beyond, Source::Zero));
        }
        self.reads.insert(token, Read { range, began: self.now, possible });
        token
    }

    /// The read has ended and gave `bytes`.
    ///
    /// # Errors
    /// If one of them was not possible at any time of the read.
    pub fn end_read(&mut self, token: Token, bytes: &[u8]) -> Result<(), Mismatch> {
        self.now += 1;
        let Some(read) = self.reads.remove(&token) else { return Ok(()) };
        let mut right = vec![false; bytes.len()];
        for (part, source) in &read.possible {
            for at in part.offset()..part.end() {
                let i = index(at - read.range.offset());
                right[i] |= bytes.get(i).is_some_and(|byte| source.allows(at, *byte));
            }
        }
        if let Some(first) = right.iter().position(|right| !right) {
            let offset = read.range.offset() + u64::try_from(first).unwrap_or(0);
            let here =
                read.possible.iter().filter(|(r, _)| r.offset() <= offset && offset < r.end());
            let possible = here.map(|(_, source)| source.clone()).collect();
            let wrong = right.iter().filter(|right| !**right).count();
            let wrong = u64::try_from(wrong).unwrap_or(u64::MAX);
            return Err(Mismatch { offset, byte: bytes[first], possible, wrong });
        }
        self.learn(&read, bytes);
        Ok(())
    }

    /// The read has failed, or nobody saw what it gave.
    pub fn drop_read(&mut self, token: Token) {
        self.reads.remove(&token);
    }

    /// The read of the whole disk has ended and gave a snapshot: what may be in it.
    pub fn end_snapshot(&mut self, token: Token) -> Frozen {
        self.now += 1;
        let read = self.reads.remove(&token);
        let pieces = read.map(|read| read.possible).unwrap_or_default();
        Frozen::new(self.len, pieces)
    }

    /// Makes the disk what a snapshot holds, while nothing is in flight.
    pub fn restore(&mut self, frozen: &Frozen) {
        self.now += 1;
        self.len = frozen.len();
        let sources = |sources: Vec<Source>| {
            let possible = |source| Possible { source, token: None, ended: Some(0) };
            sources.into_iter().map(possible).collect()
        };
        self.segments = frozen.segments().into_iter().map(|(at, of)| (at, sources(of))).collect();
    }

    /// Each byte may be what it is or, if the length is the same, what the snapshot holds.
    pub fn restore_or_not(&mut self, frozen: &Frozen) {
        let mut old = self.clone();
        if frozen.len() != self.len {
            return;
        }
        self.restore(frozen);
        for start in old.segments.keys().copied().collect::<Vec<_>>() {
            self.cut_at(start);
        }
        for start in self.segments.keys().copied().collect::<Vec<_>>() {
            old.cut_at(start);
        }
        for (start, possible) in old.segments {
            self.segments.entry(start).or_default().extend(possible);
        }
    }

    /// Checks bytes that were read while nothing else was going on.
    ///
    /// # Errors
    /// As [`DiskModel::end_read`].
    pub fn check(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let range = ByteRange::new(offset, len).unwrap_or_default();
        let token = self.begin_read(range);
        self.end_read(token, bytes)
    }

    /// Changes the length while nothing is in flight. What is added is zero.
    pub fn truncate(&mut self, len: u64) {
        self.now += 1;
        if len < self.len {
            self.cut_at(len);
            self.segments.split_off(&len);
            if self.segments.is_empty() {
                let nothing = Possible { source: Source::Zero, token: None, ended: Some(0) };
                self.segments.insert(0, vec![nothing]);
            }
            self.len = len;
        } else {
            self.grow(len);
        }
    }

    fn token(&mut self) -> Token {
        self.now += 1;
        Token(self.now)
    }

    fn grow(&mut self, end: u64) {
        if end > self.len {
            let zeroes = Possible { source: Source::Zero, token: None, ended: Some(0) };
            self.segments.insert(self.len, vec![zeroes]);
            self.len = end;
        }
    }

    /// Makes a segment start at `offset`.
    fn cut_at(&mut self, offset: u64) {
        if offset < self.len
            && let Some((start, possible)) = self.segments.range(..=offset).next_back()
            && *start < offset
        {
            let possible = possible.clone();
            self.segments.insert(offset, possible);
        }
    }

    fn for_each_segment(&mut self, range: ByteRange, change: impl FnMut(&mut Vec<Possible>)) {
        if range.is_empty() {
            return;
        }
        self.cut_at(range.offset());
        self.cut_at(range.end());
        let segments = self.segments.range_mut(range.offset()..range.end());
        segments.map(|(_, possible)| possible).for_each(change);
    }

    /// The segments that overlap `range`, cut to it.
    fn segments_in(&self, range: ByteRange) -> Vec<(ByteRange, &Vec<Possible>)> {
        let mut found = Vec::new();
        let mut end = self.len;
        for (start, possible) in self.segments.range(..range.end().min(self.len)).rev() {
            let segment = ByteRange::from_bounds(*start, end).unwrap_or_default();
            let part = range.intersect(segment);
            if !part.is_empty() {
                found.push((part, possible));
            }
            end = *start;
            if *start <= range.offset() {
                break;
            }
        }
        found.reverse();
        found
    }

    /// Keeps, where nobody was writing during the read, only what it saw.
    fn learn(&mut self, read: &Read, bytes: &[u8]) {
        let quiet = |p: &Possible| p.ended.is_some_and(|ended| ended < read.began);
        let segments: Vec<_> = self
            .segments_in(read.range)
            .into_iter()
            .filter(|(_, possible)| possible.iter().all(quiet))
            .filter(|(_, p)| p.len() > 1 || p.iter().any(|p| p.source == Source::Anything))
            .map(|(segment, _)| segment)
            .collect();
        for segment in segments {
            let start = index(segment.offset() - read.range.offset());
            let seen = &bytes[start..start + index(segment.len())];
            let source = Source::Bytes(segment.offset(), seen.into());
            self.for_each_segment(segment, |possible| {
                *possible = vec![Possible { source: source.clone(), token: None, ended: Some(0) }];
            });
        }
    }
}

fn index(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::contents;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    fn done(model: &mut DiskModel, range: ByteRange, id: OpId) {
        let token = model.begin_write(range, Source::Op(id));
        model.end_write(token, Outcome::Done);
    }

    #[test]
    fn a_finished_write_replaces_what_was_there_and_nothing_beside_it() {
        let mut model = DiskModel::new(100, Source::Zero);
        done(&mut model, range(10, 20), 1);
        done(&mut model, range(15, 30), 2);
        let mut bytes = vec![0; 100];
        bytes[10..15].copy_from_slice(&contents(1, range(10, 15)));
        bytes[15..30].copy_from_slice(&contents(2, range(15, 30)));
        assert_eq!(model.check(0, &bytes), Ok(()));
        bytes[15] = content(1, 15);
        let wrong = model.check(0, &bytes).unwrap_err();
        assert_eq!((wrong.offset, wrong.possible, wrong.wrong), (15, vec![Source::Op(2)], 1));
        bytes[15] = content(2, 15);
        bytes[30] = content(2, 30);
        assert_eq!(model.check(0, &bytes).unwrap_err().offset, 30);
    }

    #[test]
    fn writes_that_overlap_in_time_end_in_any_order_and_then_stay() {
        let mut model = DiskModel::new(10, Source::Zero);
        let a = model.begin_write(range(0, 10), Source::Op(1));
        let b = model.begin_write(range(0, 10), Source::Op(2));
        model.end_write(a, Outcome::Done);
        model.end_write(b, Outcome::Done);
        let mut torn = contents(1, range(0, 10));
        torn[5..].copy_from_slice(&contents(2, range(5, 10)));
        assert!(model.clone().check(0, &[0; 10]).is_err(), "what was before both is gone");
        assert_eq!(model.check(0, &torn), Ok(()));
        let flapped = contents(1, range(0, 10));
        assert_eq!(model.check(0, &flapped).unwrap_err().offset, 5);
    }

    #[test]
    fn a_failed_write_leaves_old_or_new_and_a_refused_one_old() {
        let mut model = DiskModel::new(10, Source::Op(7));
        let failed = model.begin_write(range(0, 5), Source::Op(1));
        model.end_write(failed, Outcome::Failed);
        let refused = model.begin_write(range(5, 10), Source::Op(2));
        model.end_write(refused, Outcome::Refused);
        let mut bytes = contents(7, range(0, 10));
        bytes[2] = content(1, 2);
        assert_eq!(model.clone().check(0, &bytes), Ok(()));
        bytes[7] = content(2, 7);
        assert_eq!(model.check(0, &bytes).unwrap_err().offset, 7);
    }

    #[test]
    fn a_read_beside_a_write_gives_old_or_new() {
        let mut model = DiskModel::new(4, Source::Zero);
        let read = model.begin_read(range(0, 4));
        let write = model.begin_write(range(0, 4), Source::Op(3));
        model.end_write(write, Outcome::Done);
        let mut bytes = contents(3, range(0, 4));
        bytes[0] = 0;
        assert_eq!(model.end_read(read, &bytes), Ok(()));
        assert_eq!(model.check(0, &bytes).unwrap_err().offset, 0, "by now it is all new");
        assert_eq!(model.check(0, &contents(3, range(0, 4))), Ok(()));
    }

    #[test]
    fn a_read_does_not_settle_what_was_being_written() {
        let mut model = DiskModel::new(4, Source::Zero);
        let a = model.begin_write(range(0, 4), Source::Op(1));
        let b = model.begin_write(range(0, 4), Source::Op(2));
        let read = model.begin_read(range(0, 4));
        model.end_write(a, Outcome::Done);
        model.end_write(b, Outcome::Done);
        assert_eq!(model.end_read(read, &contents(1, range(0, 4))), Ok(()));
        assert_eq!(model.check(0, &contents(2, range(0, 4))), Ok(()));
    }

    #[test]
    fn a_discard_leaves_anything_but_one_thing() {
        let mut model = DiskModel::new(8, Source::Zero);
        let token = model.begin_write(range(2, 6), Source::Anything);
        model.end_write(token, Outcome::Done);
        assert_eq!(model.check(0, &[0, 0, 9, 9, 9, 9, 0, 0]), Ok(()));
        assert_eq!(model.check(0, &[0, 0, 9, 8, 9, 9, 0, 0]).unwrap_err().offset, 3);
    }

    #[test]
    fn lengths_change_and_what_is_added_is_zero() {
        let mut model = DiskModel::new(8, Source::Op(4));
        model.truncate(4);
        model.truncate(6);
        let mut bytes = contents(4, range(0, 4));
        bytes.extend([0; 6]);
        assert_eq!(model.check(0, &bytes), Ok(()), "beyond the end there are zeroes");
        done(&mut model, range(8, 10), 5);
        assert_eq!(model.len(), 10);
        bytes[8..].copy_from_slice(&contents(5, range(8, 10)));
        assert_eq!(model.check(0, &bytes), Ok(()));
        model.truncate(0);
        assert_eq!(model.check(0, &[0; 4]), Ok(()));
    }
}
