//! Sends operations to a node, several at a time, and checks every answer against a model.
//!
//! [`Player::play`] starts operations in order, up to `depth` at once, each in a task of its own,
//! labelled with its number; which of them moves next is the executor's choice. What must be alone
//! ([`Op::is_alone`]) waits for all that runs, and all that follows waits for it. The model hears of
//! the beginning and the end of each, and so does the model of what survives a crash, where there is
//! one. At the end the whole disk is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block_core::ability::NewSnapshot;
use block_core::driver::{Exactness, Prealloc};
use block_core::error::{Error, OpenError, Result};
use block_core::flags::Support;
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node, RequestFlags, graph};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;

use crate::exec::{Exec, poll_times};
use crate::model::disk::{DiskModel, Outcome, Source};
use crate::model::durable::{DurableModel, Effect, Stable};
use crate::model::frozen::Frozen;
use crate::op::{Op, OpId, SnapshotOp, contents, io_vec};

/// Sends operations to a node. Clones share the node and the models.
#[derive(Clone)]
pub struct Player {
    exec: Exec,
    /// The node; another one after each reopen.
    node: Arc<Mutex<Node>>,
    model: Arc<Mutex<DiskModel>>,
    durable: Option<Arc<Mutex<DurableModel>>>,
    /// Names and contents of the snapshots that are there, the oldest first.
    snapshots: Arc<Mutex<Vec<(String, Frozen)>>>,
    /// How many operations were sent in all.
    sent: Arc<AtomicU32>,
    /// Called before an operation is sent, with its number.
    announce: Announce,
    /// Opens the node again.
    open: Option<Open>,
    /// What a discard leaves.
    discarded: Discarded,
    /// Whether operations are cut at the end of the disk.
    cuts: bool,
    /// One operation in this many is dropped after a few polls; zero: none.
    drop_one_in: u64,
}

type Announce = Arc<dyn Fn(OpId, &Op) + Send + Sync>;
type Open = Arc<dyn Fn() -> BoxFuture<'static, Result<Node, OpenError>> + Send + Sync>;

/// What a discard leaves.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Discarded {
    /// Anything at all.
    Anything,
    /// What was there, or zeroes.
    OldOrZero,
}

/// What became of an operation.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Played {
    /// It returned this.
    Returned(Result<()>),
    /// It was dropped before it returned, and may still run.
    Dropped,
}

/// The operations that failed and may not, for a message.
pub fn failures(
    ops: &[Op],
    played: &[Played],
    may_fail: impl Fn(&Op, Error) -> bool,
) -> Vec<String> {
    let failed = ops.iter().zip(played).filter(|(op, played)| match played {
        Played::Returned(Err(error)) => !may_fail(op, *error),
        _ => false,
    });
    failed.map(|(op, played)| format!("{op:?}: {played:?}")).collect()
}

/// Keeps the first error that somebody finds.
#[derive(Clone, Default)]
pub struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    /// Notes an error.
    pub fn hear<T>(&self, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(why) => {
                self.0.lock().get_or_insert(why);
                None
            }
        }
    }

    /// The error, if there was one.
    pub fn result(&self) -> Result<(), String> {
        self.0.lock().clone().map_or(Ok(()), Err)
    }
}

impl Player {
    /// Plays on `node`, which holds what `model` says.
    pub fn new(exec: Exec, node: Node, model: DiskModel) -> Self {
        Self {
            exec,
            node: Arc::new(Mutex::new(node)),
            model: Arc::new(Mutex::new(model)),
            durable: None,
            snapshots: Arc::default(),
            sent: Arc::default(),
            announce: Arc::new(|_, _| ()),
            open: None,
            discarded: Discarded::Anything,
            cuts: false,
            drop_one_in: 0,
        }
    }

    /// Calls `announce` before an operation is sent.
    #[must_use]
    pub fn announcing(mut self, announce: impl Fn(OpId, &Op) + Send + Sync + 'static) -> Self {
        self.announce = Arc::new(announce);
        self
    }

    /// Tells `durable` of everything, too. Nobody else may hold its lock across a wait.
    #[must_use]
    pub fn telling(mut self, durable: Arc<Mutex<DurableModel>>) -> Self {
        self.durable = Some(durable);
        self
    }

    /// Opens the node again by `open`, which is called when it has been closed.
    #[must_use]
    pub fn reopening(
        mut self,
        open: impl Fn() -> BoxFuture<'static, Result<Node, OpenError>> + Send + Sync + 'static,
    ) -> Self {
        self.open = Some(Arc::new(open));
        self
    }

    /// The node has a snapshot already, the newest one.
    #[must_use]
    pub fn holding(self, name: &str, frozen: Frozen) -> Self {
        self.snapshots.lock().push((name.to_owned(), frozen));
        self
    }

    /// Sends of each operation only what is inside of the disk.
    #[must_use]
    pub fn cutting(mut self) -> Self {
        self.cuts = true;
        self
    }

    /// Discards leave `discarded`, rather than anything.
    #[must_use]
    pub fn discards_leave(mut self, discarded: Discarded) -> Self {
        self.discarded = discarded;
        self
    }

    /// Drops one future in `count` in the middle.
    #[must_use]
    pub fn dropping_one_in(mut self, count: u64) -> Self {
        self.drop_one_in = count;
        self
    }

    /// The model.
    pub fn model(&self) -> &Arc<Mutex<DiskModel>> {
        &self.model
    }

    /// The node as it is now.
    pub fn node(&self) -> Node {
        self.node.lock().clone()
    }

    /// Names and contents of the snapshots that are there, the oldest first.
    pub fn snapshots(&self) -> Vec<(String, Frozen)> {
        self.snapshots.lock().clone()
    }

    /// Plays `ops`, at most `depth` at once, and gives what became of each.
    ///
    /// # Panics
    /// If a read gives what cannot be there, or the node cannot be closed or opened again; the message
    /// names the operation.
    pub async fn play(&self, ops: &[Op], depth: usize) -> Vec<Played> {
        let mut results = vec![Played::Dropped; ops.len()];
        let mut running = FuturesUnordered::new();
        for (index, op) in ops.iter().enumerate() {
            let most = if op.is_alone() { 0 } else { depth.max(1) - 1 };
            while running.len() > most
                && let Some((at, played)) = running.next().await
            {
                results[at] = played;
            }
            let id = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
            let op_is_alone = op.is_alone();
            let (player, mut op) = (self.clone(), op.clone());
            if self.cuts {
                op = op.within(self.node().len());
            }
            let task = self.exec.spawn_labelled(u64::from(id), format!("op {id}: {op:?}"), {
                async move { player.one(id, &op).await }
            });
            if op_is_alone {
                results[index] = task.await;
            } else {
                running.push(async move { (index, task.await) });
            }
        }
        while let Some((at, played)) = running.next().await {
            results[at] = played;
        }
        results
    }

    /// Reads the whole disk and checks it.
    ///
    /// # Panics
    /// If it is not as it must be.
    pub async fn check_all(&self) {
        let node = self.node();
        let len = node.len();
        assert_eq!(len, self.model.lock().len(), "length of the disk");
        let range = ByteRange::up_to(len);
        let buf = buffer(&node, range);
        let token = self.model.lock().begin_read(range);
        let read = node.read(range, buf.clone()).await;
        assert_eq!(read, Ok(()), "final read");
        if let Err(mismatch) = self.model.lock().end_read(token, &buf.to_vec()) {
            panic!("final read: {mismatch}");
        }
    }

    /// Sends one operation.
    async fn one(&self, id: OpId, op: &Op) -> Played {
        (self.announce)(id, op);
        let node = self.node();
        match op {
            Op::Read { range } => self.read(&node, id, *range).await,
            Op::Write { range, flags, buffers } => {
                let iov = io_vec(&contents(id, *range), node.limits().min_mem_alignment, *buffers);
                let request = node.write(*range, iov, *flags);
                let change = Change { id, range: *range, source: Source::Op(id), flags: *flags };
                self.change(&node, change, Effect::Replaces, request).await
            }
            Op::WriteZeroData { range } => {
                let flags = RequestFlags::empty();
                let request = node.write(*range, buffer(&node, *range), flags);
                let change = Change { id, range: *range, source: Source::Zero, flags };
                self.change(&node, change, Effect::Replaces, request).await
            }
            Op::Zero { range, flags } => {
                let request = node.write_zeroes(*range, *flags);
                let change = Change { id, range: *range, source: Source::Zero, flags: *flags };
                self.change(&node, change, Effect::Replaces, request).await
            }
            Op::Discard { range } => self.discard(&node, id, *range).await,
            Op::Flush => {
                let flush = self.durable.as_ref().map(|durable| durable.lock().begin_flush());
                let result = node.flush().await;
                if let (Some(durable), Some(flush), Ok(())) = (&self.durable, flush, result) {
                    durable.lock().end_flush(flush);
                }
                Played::Returned(result)
            }
            Op::Truncate { len } => Played::Returned(self.truncate(&node, id, *len).await),
            Op::Snapshot(SnapshotOp::Create) => Played::Returned(self.create(&node, id).await),
            Op::Snapshot(SnapshotOp::Apply(n)) => Played::Returned(self.apply(&node, id, *n).await),
            Op::Snapshot(SnapshotOp::Delete(n)) => Played::Returned(self.delete(&node, *n).await),
            Op::Reopen => {
                drop(node);
                Played::Returned(self.reopen(id).await)
            }
        }
    }

    async fn read(&self, node: &Node, id: OpId, range: ByteRange) -> Played {
        let buf = buffer(node, range);
        let token = self.model.lock().begin_read(range);
        let played = self.drive(node.read(range, buf.clone())).await;
        let mut model = self.model.lock();
        match played {
            Played::Returned(Ok(())) => {
                if let Err(mismatch) = model.end_read(token, &buf.to_vec()) {
                    drop(model);
                    panic!("op {id}: read {range}: {mismatch}");
                }
            }
            _ => model.drop_read(token),
        }
        played
    }

    async fn discard(&self, node: &Node, id: OpId, range: ByteRange) -> Played {
        let discards = node.options().unmap && node.capabilities().discard == Support::Native;
        let changed = if discards { range } else { ByteRange::default() };
        let source = match self.discarded {
            Discarded::Anything => Source::Anything,
            Discarded::OldOrZero => Source::Zero,
        };
        let change = Change { id, range: changed, source, flags: RequestFlags::empty() };
        self.change(node, change, Effect::MayReplace, node.discard(range)).await
    }

    async fn change(
        &self,
        node: &Node,
        change: Change,
        effect: Effect,
        request: block_core::request::Request,
    ) -> Played {
        let Change { id, mut range, source, flags } = change;
        if range.end() > node.len() && !node.capabilities().grows_on_write {
            // It will be refused, and must not make the model longer.
            range = ByteRange::default();
        }
        let durable = self.durable.as_ref();
        let survives = durable.map(|d| d.lock().begin(id, range, source.clone(), effect));
        let keeps_old = effect == Effect::MayReplace && source != Source::Anything;
        let token = self.model.lock().begin_write(range, source);
        let played = self.drive(request).await;
        let outcome = match played {
            Played::Returned(Err(Error::OutOfRange { .. })) => Outcome::Refused,
            Played::Returned(result) => outcome(result),
            // It goes on by itself: its range may hold old or new data from here on.
            Played::Dropped => return played,
        };
        if let (Some(durable), Some(change)) = (durable, survives) {
            let fua = flags.contains(RequestFlags::FUA);
            let stable = if fua { Stable::Now } else { Stable::Later };
            durable.lock().end(change, outcome, stable);
        }
        let outcome = match outcome {
            // Like a failed write, it leaves old or new.
            Outcome::Done if keeps_old => Outcome::Failed,
            outcome => outcome,
        };
        self.model.lock().end_write(token, outcome);
        played
    }

    async fn truncate(&self, node: &Node, id: OpId, len: u64) -> Result<()> {
        let change = self.durable.as_ref().map(|durable| durable.lock().begin_truncate(id, len));
        let (lost, token) = {
            let mut model = self.model.lock();
            let lost = ByteRange::from_bounds(len, model.len()).unwrap_or_default();
            (lost, model.begin_write(lost, Source::Zero))
        };
        let result = node.truncate(len, Exactness::Exact, Prealloc::Off).await;
        let mut model = self.model.lock();
        if result.is_ok() || node.len() == len {
            model.end_write(token, Outcome::Refused);
            model.truncate(len);
        } else {
            // What was to be cut off may be gone already.
            let refused = lost.is_empty() || result == Err(Error::Unsupported);
            let outcome = if refused { Outcome::Refused } else { Outcome::Failed };
            model.end_write(token, outcome);
        }
        drop(model);
        self.end(change, result);
        result
    }

    async fn create(&self, node: &Node, id: OpId) -> Result<()> {
        let name = format!("s{id}");
        let driver = Arc::clone(node.driver());
        let snapshots = driver.as_snapshots().ok_or(Error::Unsupported)?;
        let change = self.durable.as_ref().map(|durable| durable.lock().begin_create(&name));
        let (token, model) = {
            let mut model = self.model.lock();
            let all = ByteRange::up_to(model.len());
            (model.begin_read(all), &self.model)
        };
        let new = NewSnapshot { name: name.clone(), ..NewSnapshot::default() };
        let result = snapshots.create(&new).await;
        let frozen = model.lock().end_snapshot(token);
        if let (Some(durable), Some(change)) = (&self.durable, change) {
            durable.lock().end_create(change, outcome(result), frozen.clone());
        }
        // One that fails at the very end may have been taken.
        if snapshots.list().iter().any(|snapshot| snapshot.name == name) {
            self.snapshots.lock().push((name, frozen));
        }
        result
    }

    async fn apply(&self, node: &Node, id: OpId, number: usize) -> Result<()> {
        let Some((name, frozen)) = self.pick(number) else { return Ok(()) };
        let driver = Arc::clone(node.driver());
        let snapshots = driver.as_snapshots().ok_or(Error::Unsupported)?;
        let durable = self.durable.as_ref();
        let change = durable.map(|durable| durable.lock().begin_apply(id, &frozen));
        let result = snapshots.apply(&name).await;
        let mut model = self.model.lock();
        if result.is_ok() || node.len() != model.len() {
            model.restore(&frozen);
        } else if outcome(result) == Outcome::Failed {
            model.restore_or_not(&frozen);
        }
        drop(model);
        self.end(change, result);
        result
    }

    async fn delete(&self, node: &Node, number: usize) -> Result<()> {
        let Some((name, _)) = self.pick(number) else { return Ok(()) };
        let driver = Arc::clone(node.driver());
        let snapshots = driver.as_snapshots().ok_or(Error::Unsupported)?;
        let change = self.durable.as_ref().map(|durable| durable.lock().begin_delete(&name));
        let result = snapshots.delete(&name).await;
        if !snapshots.list().iter().any(|snapshot| snapshot.name == name) {
            self.snapshots.lock().retain(|(other, _)| *other != name);
        }
        self.end(change, result);
        result
    }

    /// Closes everything and opens it again.
    async fn reopen(&self, id: OpId) -> Result<()> {
        let Some(open) = self.open.clone() else { return Ok(()) };
        let flush = self.durable.as_ref().map(|durable| durable.lock().begin_flush());
        graph::close(&self.node()).await?;
        if let (Some(durable), Some(flush)) = (&self.durable, flush) {
            durable.lock().end_flush(flush);
        }
        match open().await {
            Ok(node) => *self.node.lock() = node,
            Err(error) => panic!("op {id}: reopen: {error}"),
        }
        Ok(())
    }

    /// One of the snapshots that are there.
    fn pick(&self, number: usize) -> Option<(String, Frozen)> {
        let snapshots = self.snapshots.lock();
        let at = number.checked_rem(snapshots.len())?;
        snapshots.get(at).cloned()
    }

    /// Tells the model of what survives that a change has ended.
    fn end(&self, change: Option<crate::model::durable::Change>, result: Result<()>) {
        if let (Some(durable), Some(change)) = (&self.durable, change) {
            durable.lock().end(change, outcome(result), Stable::Later);
        }
    }

    /// Polls a request to its end, or now and then only a few times.
    async fn drive(&self, request: block_core::request::Request) -> Played {
        if self.drop_one_in > 0 && self.exec.random(self.drop_one_in) == 0 {
            let polls = usize::try_from(self.exec.random(6)).unwrap_or(0);
            return match poll_times(request, polls).await {
                Some(result) => Played::Returned(result),
                None => Played::Dropped,
            };
        }
        Played::Returned(request.await)
    }
}

/// What a write, zero write or discard changes.
struct Change {
    id: OpId,
    range: ByteRange,
    source: Source,
    flags: RequestFlags,
}

fn outcome(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(Error::Unsupported | Error::Invalid | Error::ReadOnly) => Outcome::Refused,
        Err(_) => Outcome::Failed,
    }
}

/// Zeroed memory for `range` of `node`.
fn buffer(node: &Node, range: ByteRange) -> IoVec {
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let align = node.limits().min_mem_alignment.max(Alignment::ONE);
    match IoBuf::zeroed(len, align) {
        Ok(buf) => buf.into(),
        Err(error) => panic!("{error}"),
    }
}
