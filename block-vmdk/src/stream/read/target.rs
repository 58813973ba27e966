//! Writing what a stream holds to a node.
//!
//! Invariants: the pieces in flight are bounded; writes begin in the order of the stream; after an error nothing
//! begins, and what is in flight is waited for.

use std::future::poll_fn;
use std::task::Poll;

use block_core::job::copy::{Progress, Runs, TargetContents, Watch};
use block_core::range::to_u64;
use block_core::{ByteRange, Cancel, Error, Node, RequestFlags};
use futures::future::BoxFuture;
use futures::io::AsyncRead;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};

use super::{GrainPiece, ReadError, StreamReader};

/// Writes in flight after which no piece is begun.
const WRITES: usize = 8;
/// Longest zero write: bounds how long a cancel waits.
const ZERO_BYTES: u64 = 256 << 20;

/// How the contents of a stream are written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ReadInto {
    /// What the target holds before. If it is not known, all of it is made zero first, because only the end of the
    /// stream tells where no grain came.
    pub target: TargetContents,
    /// Shortest run of zeroes inside of a grain that is not written, at least 512 bytes.
    pub min_zero_bytes: u64,
    /// Flags of every write of data. Compressed clusters must be no longer than a grain.
    pub write_flags: RequestFlags,
}

impl Default for ReadInto {
    fn default() -> Self {
        Self {
            target: TargetContents::Unknown,
            min_zero_bytes: 4096,
            write_flags: RequestFlags::empty(),
        }
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> StreamReader<R> {
    /// Writes the disk to the start of `target`, which must be long enough. The target is not flushed.
    ///
    /// Looks at `cancel` between pieces; `watch` hears of each, and of how far on the disk the stream is.
    pub async fn read_into(
        self,
        target: &Node,
        options: ReadInto,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<(), ReadError> {
        let total = self.disk_len();
        check_clusters(target, options, self.grain_bytes())?;
        watch.progress(Progress { done: 0, total });
        if options.target == TargetContents::Unknown {
            write_zeroes(target, total, cancel).await?;
        }
        let pieces = self.into_pieces().boxed();
        let mut writing = Writing {
            target,
            options,
            cancel,
            watch: &mut watch,
            pieces: Some(pieces),
            writes: FuturesUnordered::new(),
            progress: Progress { done: 0, total },
            result: Ok(()),
        };
        writing.run().await;
        let result = writing.result;
        if result.is_ok() {
            watch.progress(Progress { done: total, total });
        }
        result
    }
}

/// A stream that is being written.
struct Writing<'a> {
    target: &'a Node,
    options: ReadInto,
    cancel: &'a Cancel,
    watch: &'a mut dyn Watch,
    pieces: Option<BoxStream<'static, Result<GrainPiece, ReadError>>>,
    writes: FuturesUnordered<BoxFuture<'static, Result<(), ReadError>>>,
    progress: Progress,
    result: Result<(), ReadError>,
}

enum Step {
    Piece(Result<GrainPiece, ReadError>),
    Written(Result<(), ReadError>),
    Over,
}

impl Writing<'_> {
    /// Runs until everything is written or nothing more is to be.
    async fn run(&mut self) {
        loop {
            let done = match self.step().await {
                Step::Over => return,
                Step::Written(done) => done,
                Step::Piece(piece) if self.cancel.is_cancelled() => {
                    piece.and(Err(ReadError::Cancelled))
                }
                Step::Piece(Ok(piece)) => self.begin(piece).await,
                Step::Piece(Err(error)) => Err(error),
            };
            if let Err(error) = done {
                self.pieces = None;
                if self.result.is_ok() {
                    self.result = Err(error);
                }
            }
        }
    }

    /// What happens next: a write ends or, while few are in flight, a piece comes.
    async fn step(&mut self) -> Step {
        let (writes, pieces) = (&mut self.writes, &mut self.pieces);
        poll_fn(|cx| {
            if let Poll::Ready(Some(done)) = writes.poll_next_unpin(cx) {
                return Poll::Ready(Step::Written(done));
            }
            let Some(stream) = pieces.as_mut() else {
                return if writes.is_empty() { Poll::Ready(Step::Over) } else { Poll::Pending };
            };
            if writes.len() >= WRITES {
                return Poll::Pending;
            }
            match stream.poll_next_unpin(cx) {
                Poll::Ready(Some(piece)) => Poll::Ready(Step::Piece(piece)),
                Poll::Ready(None) => {
                    *pieces = None;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Begins the writes of a piece.
    async fn begin(&mut self, piece: GrainPiece) -> Result<(), ReadError> {
        let (offset, len) = (piece.offset, to_u64(piece.data.len()));
        if let Some(turn) = self.watch.before_write(len) {
            turn.await;
        }
        let flags = self.options.write_flags;
        let cluster = match flags.contains(RequestFlags::COMPRESSED) {
            true => self.target.limits().compressed_write_alignment,
            false => None,
        };
        let runs = match cluster {
            Some(cluster) => Runs::of_clusters(piece.data.clone(), cluster),
            None => Runs::new(piece.data.clone(), self.options.min_zero_bytes),
        };
        for run in runs.filter(|run| !run.is_zero) {
            let offset = offset + to_u64(run.offset);
            let failed = move |error| ReadError::Write { offset, error };
            let range = ByteRange::new(offset, to_u64(run.len));
            let range = range.map_err(|error| failed(error.into()))?;
            let part = piece.data.slice(run.offset, run.len);
            let write = self.target.write(range, part.into(), flags);
            self.writes.push(Box::pin(async move { write.await.map_err(failed) }));
        }
        self.progress.done = self.progress.done.max(offset + len);
        self.watch.progress(self.progress);
        Ok(())
    }
}

/// Compressed writes are whole clusters, and grains come one by one.
fn check_clusters(target: &Node, options: ReadInto, grain: u64) -> Result<(), ReadError> {
    if !options.write_flags.contains(RequestFlags::COMPRESSED) {
        return Ok(());
    }
    match target.limits().compressed_write_alignment {
        Some(cluster) if cluster.is_aligned(grain) => Ok(()),
        Some(cluster) => Err(ReadError::Clusters { cluster: cluster.bytes(), grain }),
        None => Err(ReadError::Write { offset: 0, error: Error::Unsupported }),
    }
}

/// Makes the first `len` bytes zero.
async fn write_zeroes(target: &Node, len: u64, cancel: &Cancel) -> Result<(), ReadError> {
    let mut offset = 0;
    while offset < len {
        if cancel.is_cancelled() {
            return Err(ReadError::Cancelled);
        }
        let failed = |error| ReadError::Write { offset, error };
        let range = ByteRange::new(offset, ZERO_BYTES.min(len - offset));
        let range = range.map_err(|error| failed(error.into()))?;
        target.write_zeroes(range, RequestFlags::MAY_UNMAP).await.map_err(failed)?;
        offset = range.end();
    }
    Ok(())
}
