//! Sends operations to a node, several at a time, and checks every answer against a model.
//!
//! [`Player::play`] starts operations in order, up to `depth` at once, each in a task of its own,
//! labelled with its number; which of them moves next is the executor's choice. The model hears of
//! the beginning and the end of each. At the end the whole disk is read.

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::error::{Error, Result};
use block_core::flags::Support;
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;

use crate::exec::{Exec, poll_times};
use crate::model::disk::{DiskModel, Outcome, Source};
use crate::op::{Op, OpId, contents, io_vec};

/// Sends operations to a node. Clones share the model.
#[derive(Clone)]
pub struct Player {
    exec: Exec,
    node: Node,
    model: Arc<Mutex<DiskModel>>,
    /// Called before an operation is sent, with its number.
    announce: Announce,
    /// One operation in this many is dropped after a few polls; zero: none.
    drop_one_in: u64,
}

type Announce = Arc<dyn Fn(OpId, &Op) + Send + Sync>;

/// What became of an operation.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Played {
    /// It returned this.
    Returned(Result<()>),
    /// It was dropped before it returned, and may still run.
    Dropped,
}

impl Player {
    /// Plays on `node`, which holds what `model` says.
    pub fn new(exec: Exec, node: Node, model: DiskModel) -> Self {
        let model = Arc::new(Mutex::new(model));
        Self { exec, node, model, announce: Arc::new(|_, _| ()), drop_one_in: 0 }
    }

    /// Calls `announce` before an operation is sent.
    #[must_use]
    pub fn announcing(mut self, announce: impl Fn(OpId, &Op) + Send + Sync + 'static) -> Self {
        self.announce = Arc::new(announce);
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

    /// Plays `ops`, at most `depth` at once, and gives what became of each.
    ///
    /// # Panics
    /// If a read gives what cannot be there; the message names the operation.
    pub async fn play(&self, ops: &[Op], depth: usize) -> Vec<Played> {
        let mut results = vec![Played::Dropped; ops.len()];
        let mut running = FuturesUnordered::new();
        for (index, op) in ops.iter().enumerate() {
            if running.len() >= depth.max(1)
                && let Some((at, played)) = running.next().await
            {
                results[at] = played;
            }
            let id = OpId::try_from(index + 1).unwrap_or(OpId::MAX);
            let (player, op) = (self.clone(), op.clone());
            let task = self.exec.spawn_labelled(u64::from(id), format!("op {id}: {op:?}"), {
                async move { player.one(id, &op).await }
            });
            running.push(async move { (index, task.await) });
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
        let len = self.node.len();
        assert_eq!(len, self.model.lock().len(), "length of the disk");
        let range = ByteRange::up_to(len);
        let buf = self.buffer(range);
        let token = self.model.lock().begin_read(range);
        let read = self.node.read(range, buf.clone()).await;
        assert_eq!(read, Ok(()), "final read");
        if let Err(mismatch) = self.model.lock().end_read(token, &buf.to_vec()) {
            panic!("final read: {mismatch}");
        }
    }

    /// Sends one operation.
    async fn one(&self, id: OpId, op: &Op) -> Played {
        (self.announce)(id, op);
        match op {
            Op::Read { range } => self.read(id, *range).await,
            Op::Write { range, flags, buffers } => {
                let align = self.node.limits().min_mem_alignment;
                let iov = io_vec(&contents(id, *range), align, *buffers);
                let request = self.node.write(*range, iov, *flags);
                self.change(*range, Source::Op(id), request).await
            }
            Op::WriteZeroData { range } => {
                let request = self.node.write(*range, self.buffer(*range), Default::default());
                self.change(*range, Source::Zero, request).await
            }
            Op::Zero { range, flags } => {
                let request = self.node.write_zeroes(*range, *flags);
                self.change(*range, Source::Zero, request).await
            }
            Op::Discard { range } => {
                let discards = self.node.options().unmap
                    && self.node.capabilities().discard == Support::Native;
                let range_changed = if discards { *range } else { ByteRange::default() };
                let request = self.node.discard(*range);
                self.change(range_changed, Source::Anything, request).await
            }
            Op::Flush => Played::Returned(self.node.flush().await),
            Op::Truncate { len } => {
                let request = self.node.truncate(*len, Exactness::Exact, Prealloc::Off);
                let result = request.await;
                if result.is_ok() {
                    self.model.lock().truncate(*len);
                }
                Played::Returned(result)
            }
        }
    }

    async fn read(&self, id: OpId, range: ByteRange) -> Played {
        let buf = self.buffer(range);
        let token = self.model.lock().begin_read(range);
        let played = self.drive(self.node.read(range, buf.clone())).await;
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

    async fn change(
        &self,
        range: ByteRange,
        source: Source,
        request: block_core::request::Request,
    ) -> Played {
        let mut range = range;
        if range.end() > self.node.len() && !self.node.capabilities().grows_on_write {
            // It will be refused, and must not make the model longer.
            range = ByteRange::default();
        }
        let token = self.model.lock().begin_write(range, source);
        let played = self.drive(request).await;
        let outcome = match played {
            Played::Returned(Ok(())) => Outcome::Done,
            Played::Returned(Err(
                Error::Unsupported | Error::OutOfRange { .. } | Error::Invalid | Error::ReadOnly,
            )) => Outcome::Refused,
            Played::Returned(Err(_)) => Outcome::Failed,
            // It goes on by itself: its range may hold old or new data from here on.
            Played::Dropped => return played,
        };
        self.model.lock().end_write(token, outcome);
        played
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

    fn buffer(&self, range: ByteRange) -> IoVec {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let align = self.node.limits().min_mem_alignment.max(Alignment::ONE);
        match IoBuf::zeroed(len, align) {
            Ok(buf) => buf.into(),
            Err(error) => panic!("{error}"),
        }
    }
}
