//! Moves the pieces that the scanner cuts: reads in flight, then writes in flight, then the next.
//!
//! Invariants: pieces in flight (being read, waiting for their turn, being written) are at most
//! `parallel`; a buffer belongs to one piece or lies in `free`, and there are never more buffers than
//! that; after the first error nothing begins, and the loop ends when the last piece has come back.
//! With writes in order, a piece is polled for the first time after all before it were: it begins after
//! them.

use std::collections::BTreeSet;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, FuturesUnordered, Stream, StreamExt, try_unfold};

use smallvec::SmallVec;

use crate::buf::IoBuf;
use crate::cancel::Cancel;
use crate::node::Node;
use crate::range::{ByteRange, to_usize};

use super::offload::{self, Outcome};
use super::salvage;
use super::scan::{Kind, Piece, Scanner};
use super::write::write_piece;
use super::{
    Copied, CopyError, CopySource, Counted, Offload, OnReadError, Plan, Progress, Sparseness,
    TargetContents, Unreadable, Watch, WriteOrder,
};

/// Events after which the loop lets its executor have a look at other tasks, and at completions.
const EVENTS_A_TURN: u32 = 32;

/// A copy in progress.
pub(super) struct Pipeline {
    sources: Vec<CopySource>,
    target: Node,
    plan: Plan,
    cancel: Cancel,
    scan: Option<BoxStream<'static, Result<Piece, CopyError>>>,
    /// The scanner begins nothing more.
    stop: Arc<AtomicBool>,
    reads: Reads,
    /// Pieces that were read and wait until they may be written, in order.
    turns: FuturesOrdered<BoxFuture<'static, (Piece, Contents)>>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    free: Vec<IoBuf>,
    /// All zero, for targets that are to be fully allocated; shared by all writes, never changed.
    zeroes: Option<IoBuf>,
    state: State,
    /// What the progress counts.
    counted: Counted,
    events: u32,
    /// Cleared by the first piece that the storage could not copy.
    offloads: Arc<AtomicBool>,
}

/// How far it is.
struct State {
    /// Where in the target the pieces in flight start.
    active: BTreeSet<u64>,
    /// Everything from here on was not begun.
    begun: u64,
    /// Start of the first piece that was begun and given up.
    abandoned: u64,
    progress: Progress,
    copied: Copied,
    failed: Option<CopyError>,
}

/// What a piece is written from.
pub(super) enum Contents {
    /// The bytes that were read.
    Data(IoBuf),
    /// Zeroes.
    Zero,
    /// The storage has put them there already; the buffer was not needed.
    Copied(IoBuf),
}

struct ReadDone {
    piece: Piece,
    result: Result<Contents, (CopyError, IoBuf)>,
    /// What of it is zero because it could not be read.
    unreadable: Vec<Unreadable>,
}

/// What of a piece one source has.
struct Part {
    source_index: usize,
    node: Node,
    from: ByteRange,
    into: IoBuf,
}

struct Written {
    piece: Piece,
    /// To be used again.
    buf: Option<IoBuf>,
    result: Result<Copied, CopyError>,
}

/// Pieces being read, to be had in the order of their offsets or as they come.
enum Reads {
    InOrder(FuturesOrdered<BoxFuture<'static, ReadDone>>),
    Any(FuturesUnordered<BoxFuture<'static, ReadDone>>),
}

enum Event {
    Found(Result<Piece, CopyError>),
    Read(ReadDone),
    /// Its turn to be written has come.
    Turn(Piece, Contents),
    Written(Written),
}

impl Pipeline {
    pub(super) fn new(
        sources: Vec<CopySource>,
        target: Node,
        plan: Plan,
        total: u64,
        cancel: Cancel,
    ) -> Self {
        let offloads =
            plan.options.offload == Offload::WherePossible && plan.options.write_flags.is_empty();
        let stop = Arc::new(AtomicBool::new(false));
        let scanner = Scanner::new(sources.clone(), plan, Arc::clone(&stop));
        let reads = match plan.options.order {
            WriteOrder::InOrder => Reads::InOrder(FuturesOrdered::new()),
            WriteOrder::Any => Reads::Any(FuturesUnordered::new()),
        };
        Self {
            sources,
            target,
            plan,
            cancel,
            scan: Some(try_unfold(scanner, Scanner::next).boxed()),
            stop,
            reads,
            turns: FuturesOrdered::new(),
            writes: FuturesUnordered::new(),
            free: Vec::new(),
            zeroes: None,
            state: State::new(total),
            counted: Counted::default(),
            events: 0,
            offloads: Arc::new(AtomicBool::new(offloads)),
        }
    }

    /// Copies everything; gives what was done, or the first error.
    pub(super) async fn run(mut self, mut watch: impl Watch) -> Result<Copied, CopyError> {
        self.counted = watch.counted();
        if self.counted == Counted::Data {
            self.state.progress.total = self.count().await?;
        }
        watch.progress(self.state.progress);
        while let Some(event) = poll_fn(|cx| self.poll_event(cx)).await {
            let outcome = match event {
                Event::Found(found) => found.and_then(|piece| self.begin(piece)),
                Event::Read(read) => self.take_turn(read, &mut watch),
                Event::Turn(piece, contents) => {
                    self.write(piece, contents);
                    Ok(())
                }
                Event::Written(written) => self.finish(written),
            };
            if let Err(error) = outcome {
                self.fail(error);
            }
            self.cancel.set_done(self.state.low_water());
            watch.progress(self.state.progress);
        }
        match self.state.failed {
            None => Ok(self.state.copied),
            Some(CopyError::Cancelled { .. }) => {
                Err(CopyError::Cancelled { done: self.state.low_water() })
            }
            Some(error) => Err(error),
        }
    }

    /// How many bytes [`Counted::Data`] counts in all.
    async fn count(&self) -> Result<u64, CopyError> {
        let mut scanner = Scanner::to_count(self.sources.clone(), self.plan);
        let mut total = 0u64;
        while let Some((piece, rest)) = scanner.next().await? {
            total += self.counts(&piece);
            scanner = rest;
            if self.cancel.is_cancelled() {
                return Err(CopyError::Cancelled { done: 0 });
            }
        }
        Ok(total)
    }

    /// How many bytes the progress counts of a piece.
    fn counts(&self, piece: &Piece) -> u64 {
        let full = self.plan.options.sparseness == Sparseness::Full;
        match (self.counted, piece.kind) {
            (Counted::Everything, _) | (Counted::Data, Kind::Data) => piece.to.len(),
            (Counted::Data, Kind::Zero) if full => piece.to.len(),
            (Counted::Data, Kind::Zero | Kind::Below) => 0,
        }
    }

    /// The next thing that happened; `None` when nothing is in flight and nothing is left to begin.
    ///
    /// What is nearest to its end comes first: a piece that was just read is written while it is
    /// still in the cache, and a buffer is used again before another one is touched.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.events >= EVENTS_A_TURN {
            self.events = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.events += 1;
        if let Poll::Ready(Some(written)) = self.writes.poll_next_unpin(cx) {
            return Poll::Ready(Some(Event::Written(written)));
        }
        if let Poll::Ready(Some((piece, contents))) = self.turns.poll_next_unpin(cx) {
            return Poll::Ready(Some(Event::Turn(piece, contents)));
        }
        if let Poll::Ready(Some(read)) = self.reads.poll_next(cx) {
            return Poll::Ready(Some(Event::Read(read)));
        }
        let stopped = self.state.failed.is_some();
        if self.cancel.is_cancelled() && self.scan.is_some() && !stopped {
            let done = self.state.low_water();
            return Poll::Ready(Some(Event::Found(Err(CopyError::Cancelled { done }))));
        }
        if (self.state.active.len() < self.plan.options.parallel || stopped)
            && let Some(scan) = &mut self.scan
        {
            match scan.poll_next_unpin(cx) {
                Poll::Ready(Some(found)) if !stopped => {
                    return Poll::Ready(Some(Event::Found(found)));
                }
                Poll::Ready(_) => self.scan = None,
                Poll::Pending => {}
            }
        }
        if self.scan.is_none() && self.state.active.is_empty() {
            return Poll::Ready(None);
        }
        self.events = 0;
        Poll::Pending
    }

    /// Starts to read a piece, or hands it on if there is nothing to read.
    fn begin(&mut self, piece: Piece) -> Result<(), CopyError> {
        let options = self.plan.options;
        self.state.begun = piece.to.end();
        let full = options.sparseness == Sparseness::Full;
        let (len, counts) = (piece.to.len(), self.counts(&piece));
        let read = match piece.kind {
            Kind::Below => {
                self.state.progress.done += counts;
                self.state.copied.below += len;
                return Ok(());
            }
            Kind::Zero if !full && options.target == TargetContents::Zeroes => {
                self.state.progress.done += counts;
                self.state.copied.skipped += len;
                return Ok(());
            }
            Kind::Data => self.read(piece),
            Kind::Zero if full => {
                self.zero_buffer(piece).map(|buf| at_once(piece, Contents::Data(buf)))
            }
            Kind::Zero => Ok(at_once(piece, Contents::Zero)),
        };
        match read {
            Ok(read) => {
                self.state.active.insert(piece.to.offset());
                self.reads.push(read);
                Ok(())
            }
            Err(error) => {
                self.state.abandon(&piece);
                Err(error)
            }
        }
    }

    fn read(&mut self, piece: Piece) -> Result<BoxFuture<'static, ReadDone>, CopyError> {
        let buf = match self.free.pop() {
            Some(buf) => buf,
            None => self.buffer()?,
        };
        let parts = self.parts(&piece, &buf);
        let on_error = self.plan.options.on_read_error;
        let offload = self.offloads.load(Ordering::Relaxed).then(|| {
            let source = self.sources.get(piece.source_index).map(|source| source.node.clone());
            (source, self.target.clone(), Arc::clone(&self.offloads))
        });
        Ok(Box::pin(async move {
            let mut unreadable = Vec::new();
            if let Some((Some(source), target, works)) = offload {
                match offload::copy(&source, &target, &piece).await {
                    Outcome::Copied => {
                        let result = Ok(Contents::Copied(buf));
                        return ReadDone { piece, result, unreadable };
                    }
                    Outcome::NotHere => {}
                    Outcome::Refused => works.store(false, Ordering::Relaxed),
                }
            }
            for part in &parts {
                match part.read(on_error).await {
                    Ok(lost) => unreadable.extend(lost),
                    Err(error) => {
                        return ReadDone { piece, result: Err((error, buf)), unreadable };
                    }
                }
            }
            ReadDone { piece, result: Ok(Contents::Data(buf)), unreadable }
        }))
    }

    /// What the sources have of a piece, which is to be read to the start of `buf`.
    fn parts(&self, piece: &Piece, buf: &IoBuf) -> SmallVec<[Part; 1]> {
        let mut parts = SmallVec::new();
        let (mut done, mut from) = (0, piece.from);
        for (source_index, source) in self.sources.iter().enumerate().skip(piece.source_index) {
            let into = buf.slice(to_usize(done), to_usize(from.len()));
            parts.push(Part { source_index, node: source.node.clone(), from, into });
            done += from.len();
            if done >= piece.to.len() {
                break;
            }
            let next = self.sources.get(source_index + 1).map_or(0, |next| next.len);
            from = ByteRange::up_to(next.min(piece.to.len() - done));
        }
        parts
    }

    fn buffer(&self) -> Result<IoBuf, CopyError> {
        IoBuf::zeroed(to_usize(self.plan.piece_bytes), self.plan.memory).map_err(CopyError::Memory)
    }

    fn zero_buffer(&mut self, piece: Piece) -> Result<IoBuf, CopyError> {
        let whole = match &self.zeroes {
            Some(buf) => buf.clone(),
            None => self.zeroes.insert(self.buffer()?).clone(),
        };
        Ok(whole.slice(0, to_usize(piece.to.len())))
    }

    /// Starts to write a piece that was read, when its turn has come.
    fn take_turn(&mut self, read: ReadDone, watch: &mut impl Watch) -> Result<(), CopyError> {
        let ReadDone { piece, result, unreadable } = read;
        unreadable.into_iter().for_each(|part| watch.unreadable(part));
        let contents = match result {
            Ok(contents) => contents,
            Err((error, buf)) => {
                self.state.abandon(&piece);
                self.free.push(buf);
                return Err(error);
            }
        };
        let turn = match contents {
            _ if self.state.failed.is_some() => None,
            Contents::Data(_) | Contents::Copied(_) => watch.before_write(piece.to.len()),
            Contents::Zero => None,
        };
        if turn.is_none() && self.turns.is_empty() {
            self.write(piece, contents);
            return Ok(());
        }
        self.turns.push_back(Box::pin(async move {
            if let Some(turn) = turn {
                turn.await;
            }
            (piece, contents)
        }));
        Ok(())
    }

    /// Starts to write a piece.
    fn write(&mut self, piece: Piece, contents: Contents) {
        if self.state.failed.is_some() {
            // Read for nothing.
            self.state.abandon(&piece);
            return;
        }
        let (target, plan) = (self.target.clone(), self.plan);
        self.writes.push(Box::pin(async move {
            let result = write_piece(&target, &plan, piece, &contents).await;
            let buf = match contents {
                Contents::Data(buf) | Contents::Copied(buf) if piece.kind == Kind::Data => {
                    Some(buf)
                }
                _ => None,
            };
            Written { piece, buf, result }
        }));
    }

    fn finish(&mut self, written: Written) -> Result<(), CopyError> {
        let Written { piece, buf, result } = written;
        self.free.extend(buf);
        let copied = result.inspect_err(|_| self.state.abandon(&piece))?;
        self.state.active.remove(&piece.to.offset());
        self.state.progress.done += self.counts(&piece);
        self.state.copied.data += copied.data;
        self.state.copied.zeroes += copied.zeroes;
        self.state.copied.skipped += copied.skipped;
        Ok(())
    }

    /// Begins nothing more, but lets the scanner have the answer it waits for; keeps the first error.
    fn fail(&mut self, error: CopyError) {
        self.stop.store(true, Ordering::Relaxed);
        self.state.failed.get_or_insert(error);
    }
}

impl State {
    fn new(total: u64) -> Self {
        Self {
            active: BTreeSet::new(),
            begun: 0,
            abandoned: u64::MAX,
            progress: Progress { done: 0, total },
            copied: Copied::default(),
            failed: None,
        }
    }

    /// Everything below is in the target.
    fn low_water(&self) -> u64 {
        let active = self.active.first().copied().unwrap_or(u64::MAX);
        active.min(self.begun).min(self.abandoned)
    }

    /// The piece is not in flight any more, and not in the target.
    fn abandon(&mut self, piece: &Piece) {
        self.active.remove(&piece.to.offset());
        self.abandoned = self.abandoned.min(piece.to.offset());
    }
}

impl Reads {
    fn push(&mut self, read: BoxFuture<'static, ReadDone>) {
        match self {
            Self::InOrder(reads) => reads.push_back(read),
            Self::Any(reads) => reads.push(read),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ReadDone>> {
        match self {
            Self::InOrder(reads) => Pin::new(reads).poll_next(cx),
            Self::Any(reads) => Pin::new(reads).poll_next(cx),
        }
    }
}

impl Part {
    /// Reads it; gives what of it could not be read, where that is no error.
    async fn read(&self, on_error: OnReadError) -> Result<Vec<Unreadable>, CopyError> {
        let read = self.node.read(self.from, self.into.clone().into()).await;
        match (read, on_error) {
            (Ok(()), _) => Ok(Vec::new()),
            (Err(_), OnReadError::Salvage) => {
                Ok(salvage::read(&self.node, self.source_index, self.from, &self.into).await)
            }
            (Err(error), OnReadError::Fail) => Err(CopyError::Read {
                source_index: self.source_index,
                offset: self.from.offset(),
                error,
            }),
        }
    }
}

/// A read of what needs no reading.
fn at_once(piece: Piece, contents: Contents) -> BoxFuture<'static, ReadDone> {
    let result = Ok(contents);
    Box::pin(ready(ReadDone { piece, result, unreadable: Vec::new() }))
}
