//! What the driver knows of the medium, and when an answer of the target is too old to add to it.
//!
//! An answer to GET LBA STATUS tells how the medium was at some time between question and answer.
//! Meanwhile a write may have been acknowledged, which the answer does not know of. So everything that
//! changes the medium has a beginning and an end here, and both are events with a number. **Invariant:**
//! what was asked at event `n` is believed only of pages that no change touched which is under way or
//! began or ended after `n`. The same holds for what a zero write claims about its own range.
//!
//! While a write is under way, the pages that it touches are taken for data. A change whose end is
//! never heard of stays under way, so nothing is claimed of its pages again.
//!
//! Memory is bounded: what is under way is as much as there are requests, and of what has ended no more
//! than [`ENDED_MAX`] are kept, and none that nobody waits with an older question for. Where there
//! are more, all older questions are void.

use std::collections::VecDeque;

use block_core::ByteRange;
use block_core::range::MAX_LEN;
use parking_lot::Mutex;

use crate::allocmap::{AllocMap, Answer, Contents, PageGrid, Run, Trust};

/// Most changes that are remembered for answers that are still to come.
const ENDED_MAX: usize = 256;

/// What a command does to the medium.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Writes something.
    Data,
    /// Writes zeroes.
    Zeroes,
    /// Gives blocks back, or does whatever.
    Unknown,
}

/// A change that is under way.
#[must_use = "a change that never ends makes its pages unknown for ever"]
#[derive(Debug)]
pub(super) struct Running {
    number: u64,
    range: ByteRange,
    change: Change,
}

/// Blocks in a row of which a target says the same.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    pub(super) range: ByteRange,
    /// Whether they read as zeroes; else they hold data.
    pub(super) zero: bool,
}

/// A question that is under way; ends when it is dropped.
pub(super) struct Question<'a> {
    knowledge: &'a Knowledge,
    asked: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.knowledge.inner.lock().stop_observing(self.asked);
    }
}

/// See the module.
pub(super) struct Knowledge {
    /// Guards everything; held for the moment of an update, never across a wait.
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None`: nothing can be known of this unit.
    map: Option<AllocMap>,
    trust: Trust,
    /// Number of the last event.
    event: u64,
    running: Vec<(u64, ByteRange)>,
    /// Changes that have begun or ended, with the event, the oldest first.
    past: VecDeque<(u64, ByteRange)>,
    /// The last event that may have changed everything.
    all_changed: u64,
    /// The events at which questions that are under way were asked, and zero writes began.
    observers: Vec<u64>,
}

impl Knowledge {
    /// Nothing is known yet. Without a `grid`, nothing ever is.
    pub(super) fn new(len: u64, grid: Option<PageGrid>, trust: Trust) -> Self {
        let map = grid.and_then(|grid| AllocMap::new(len, grid, trust).ok());
        let inner = Inner {
            map,
            trust,
            event: 0,
            running: Vec::new(),
            past: VecDeque::new(),
            all_changed: 0,
            observers: Vec::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Whether anything can be known.
    pub(super) fn exists(&self) -> bool {
        self.inner.lock().map.is_some()
    }

    /// How far what is known is trusted.
    pub(super) fn trust(&self) -> Trust {
        self.inner.lock().trust
    }

    /// What to do about a read of `range`.
    pub(super) fn answer(&self, range: ByteRange) -> Answer {
        self.inner.lock().map.as_ref().map_or(Answer::Read, |map| map.answer(range))
    }

    /// What is certain from `offset` on.
    pub(super) fn run(&self, offset: u64) -> Option<Run> {
        self.inner.lock().map.as_ref()?.run(offset)
    }

    /// The pages around `range`.
    pub(super) fn pages_around(&self, range: ByteRange) -> ByteRange {
        self.inner.lock().map.as_ref().map_or(range, |map| map.pages_around(range))
    }

    /// A command that changes `range` is about to be sent.
    pub(super) fn begin(&self, range: ByteRange, change: Change) -> Running {
        let mut inner = self.inner.lock();
        let number = inner.happened(range);
        inner.running.push((number, range));
        if change == Change::Zeroes {
            inner.observers.push(number);
        }
        if change == Change::Data
            && let Some(map) = &mut inner.map
        {
            map.suspect(range);
        }
        Running { number, range, change }
    }

    /// A command that changes anything at all is about to be sent.
    pub(super) fn begin_anything(&self) -> Running {
        let running = self.begin(ByteRange::up_to(MAX_LEN), Change::Unknown);
        self.forget();
        running
    }

    /// The command is done.
    pub(super) fn done(&self, running: Running) {
        let Running { number, range, change } = running;
        let mut inner = self.inner.lock();
        inner.running.retain(|(other, _)| *other != number);
        match change {
            Change::Data => inner.update(range, Contents::Allocated),
            Change::Unknown => inner.update(range, Contents::Unknown),
            Change::Zeroes => {
                for piece in inner.undisturbed(range, number) {
                    inner.update(piece, Contents::Zero);
                }
                inner.stop_observing(number);
            }
        }
        inner.happened(range);
    }

    /// The command failed: it may have changed anything of its range, or nothing.
    pub(super) fn failed(&self, running: Running) {
        self.done(Running { change: Change::Unknown, ..running });
        if running.change == Change::Zeroes {
            self.inner.lock().stop_observing(running.number);
        }
    }

    /// A question is about to be sent.
    pub(super) fn ask(&self) -> Question<'_> {
        let mut inner = self.inner.lock();
        // A number of its own, which no change has.
        inner.event += 1;
        let asked = inner.event;
        inner.observers.push(asked);
        Question { knowledge: self, asked }
    }

    /// Learns from the answer to `question` about `range`, whose first byte is that of a page;
    /// `stretches` follow each other from there on.
    pub(super) fn learn(&self, question: &Question<'_>, stretches: &[Stretch]) {
        let (Some(first), Some(last)) = (stretches.first(), stretches.last()) else { return };
        let Ok(told) = ByteRange::from_bounds(first.range.offset(), last.range.end()) else {
            return;
        };
        let mut inner = self.inner.lock();
        let Some(map) = &inner.map else { return };
        let whole = map.pages_within(told);
        if whole.is_empty() {
            // So little is said at a time that asking is not worth it.
            inner.suspect(told);
            return;
        }
        for piece in inner.undisturbed(whole, question.asked) {
            // A page that is zero only in part holds data.
            inner.update(piece, Contents::Allocated);
            for zero in stretches.iter().filter(|stretch| stretch.zero) {
                inner.update(zero.range.intersect(piece), Contents::Zero);
            }
        }
    }

    /// Whether nothing has changed in `range` since `question` was asked, nor is about to.
    pub(super) fn holds(&self, question: &Question<'_>, range: ByteRange) -> bool {
        let inner = self.inner.lock();
        let disturbed = inner.disturbances(question.asked).any(|changed| changed.overlaps(range));
        inner.all_changed <= question.asked && !disturbed
    }

    /// The first page that holds a byte of `range` is not asked about again before something changes
    /// there: an answer was of no use.
    pub(super) fn give_up(&self, range: ByteRange) {
        self.inner.lock().suspect(range.first(1));
    }

    /// Anything may have changed: everything is forgotten, and answers that are still to come count for
    /// nothing.
    pub(super) fn forget(&self) {
        let mut inner = self.inner.lock();
        inner.all_changed();
        if let Some(map) = &mut inner.map {
            map.forget();
        }
    }

    /// The unit has another length; everything is forgotten.
    pub(super) fn resize(&self, len: u64, grid: Option<PageGrid>) {
        let mut inner = self.inner.lock();
        inner.all_changed();
        let trust = inner.trust;
        inner.map = grid.and_then(|grid| AllocMap::new(len, grid, trust).ok());
    }

    /// Others may write from now on, or may not any more. If that is new, everything is forgotten.
    pub(super) fn set_trust(&self, trust: Trust) {
        let mut inner = self.inner.lock();
        if std::mem::replace(&mut inner.trust, trust) == trust {
            return;
        }
        inner.all_changed();
        if let Some(map) = &mut inner.map {
            map.forget();
            map.set_trust(trust);
        }
    }
}

impl Inner {
    fn update(&mut self, range: ByteRange, contents: Contents) {
        if let Some(map) = &mut self.map {
            map.update(range, contents);
        }
    }

    fn suspect(&mut self, range: ByteRange) {
        if let Some(map) = &mut self.map {
            map.suspect(range);
        }
    }

    /// A new event, which is about `range`.
    fn happened(&mut self, range: ByteRange) -> u64 {
        self.event += 1;
        if !self.observers.is_empty() {
            if self.past.len() >= ENDED_MAX {
                self.all_changed();
            } else {
                self.past.push_back((self.event, range));
            }
        }
        self.event
    }

    fn all_changed(&mut self) {
        self.event += 1;
        self.all_changed = self.event;
        self.past.clear();
    }

    /// Whoever asked at `asked` wants to know no more.
    fn stop_observing(&mut self, asked: u64) {
        if let Some(at) = self.observers.iter().position(|other| *other == asked) {
            self.observers.swap_remove(at);
        }
        match self.observers.iter().min() {
            None => self.past.clear(),
            Some(oldest) => {
                while self.past.front().is_some_and(|(event, _)| event <= oldest) {
                    self.past.pop_front();
                }
            }
        }
    }

    /// What is changing, or began or ended to change after event `since`; not the change of that number
    /// itself.
    fn disturbances(&self, since: u64) -> impl Iterator<Item = ByteRange> + '_ {
        let running = self.running.iter().filter(move |(number, _)| *number != since);
        let past = self.past.iter().filter(move |(event, _)| *event > since);
        running.chain(past).map(|(_, range)| *range)
    }

    /// The pieces of `range`, in whole pages, that nothing has changed since event `since`.
    fn undisturbed(&self, range: ByteRange, since: u64) -> Vec<ByteRange> {
        let Some(map) = &self.map else { return Vec::new() };
        if self.all_changed > since {
            return Vec::new();
        }
        let mut disturbed: Vec<_> = self
            .disturbances(since)
            .map(|changed| map.pages_around(changed))
            .filter(|changed| changed.overlaps(range))
            .collect();
        disturbed.sort_unstable_by_key(|changed| changed.offset());
        let mut pieces = Vec::new();
        let mut next = range.offset();
        for changed in disturbed {
            pieces.extend(ByteRange::from_bounds(next, changed.offset()));
            next = next.max(changed.end());
        }
        pieces.extend(ByteRange::from_bounds(next, range.end()));
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}
