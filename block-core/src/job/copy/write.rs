//! Writes one piece to the target: runs of data as data, zeroes as the options say.
//!
//! Invariants: plain runs follow one another; compressed ones all begin when the piece is polled for the
//! first time, in order of offset, so that the target sees the clusters of all pieces in order whatever
//! the others wait for.

use std::future::poll_fn;
use std::task::Poll;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::buf::IoBuf;
use crate::error::Error;
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};

use super::pipeline::Contents;
use super::runs::{Run, Runs};
use super::scan::Piece;
use super::{Copied, CopyError, Plan, Sparseness, TargetContents};

/// Writes a piece: its runs of data as data, its zeroes as the options say.
pub(super) async fn write_piece(
    target: &Node,
    plan: &Plan,
    piece: Piece,
    contents: &Contents,
) -> Result<Copied, CopyError> {
    let mut copied = Copied::default();
    let buf = match contents {
        Contents::Copied(_) => {
            copied.data = piece.to.len();
            return Ok(copied);
        }
        Contents::Data(buf) => buf.slice(0, to_usize(piece.to.len())),
        Contents::Zero => {
            write_zeroes(target, plan, piece.to).await?;
            copied.zeroes = piece.to.len();
            return Ok(copied);
        }
    };
    if let Some(cluster) = plan.cluster {
        return write_clusters(target, plan, piece, &buf, cluster).await;
    }
    let Sparseness::Holes { min_bytes } = plan.options.sparseness else {
        write_data(target, piece.to, buf, plan.options.write_flags).await?;
        copied.data = piece.to.len();
        return Ok(copied);
    };
    for run in Runs::new(buf.clone(), min_bytes) {
        let range = run_in(piece, run)?;
        match fate(plan, run) {
            Fate::Data => {
                write_data(target, range, buf.slice(run.offset, run.len), plan.options.write_flags)
                    .await?;
                copied.data += range.len();
            }
            Fate::Zeroes => {
                write_zeroes(target, plan, range).await?;
                copied.zeroes += range.len();
            }
            Fate::Skip => copied.skipped += range.len(),
        }
    }
    Ok(copied)
}

/// What becomes of a run.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Fate {
    Data,
    Zeroes,
    Skip,
}

fn fate(plan: &Plan, run: Run) -> Fate {
    match plan.options.target {
        _ if !run.is_zero => Fate::Data,
        TargetContents::Zeroes => Fate::Skip,
        TargetContents::Unknown => Fate::Zeroes,
    }
}

/// Writes the clusters of a piece compressed. `buf` is as long as the piece.
async fn write_clusters(
    target: &Node,
    plan: &Plan,
    piece: Piece,
    buf: &IoBuf,
    cluster: Alignment,
) -> Result<Copied, CopyError> {
    let runs: Vec<Run> = match plan.options.sparseness {
        Sparseness::Full => vec![Run { offset: 0, len: buf.len(), is_zero: false }],
        Sparseness::Holes { .. } => Runs::of_clusters(buf.clone(), cluster).collect(),
    };
    let mut copied = Copied::default();
    let mut writes: Vec<BoxFuture<'_, Result<(), CopyError>>> = Vec::new();
    for run in runs {
        let range = run_in(piece, run)?;
        match fate(plan, run) {
            Fate::Data => {
                copied.data += range.len();
                let flags = plan.options.write_flags;
                let part = buf.slice(run.offset, run.len);
                let (whole, rest) = whole_clusters(range, target.len(), cluster);
                let (first, last) = (to_usize(whole.len()), to_usize(rest.len()));
                if !whole.is_empty() {
                    writes.push(Box::pin(write_data(target, whole, part.slice(0, first), flags)));
                }
                if !rest.is_empty() {
                    let part = part.slice(first, last);
                    writes.push(Box::pin(write_last(target, plan, rest, part, cluster)));
                }
            }
            Fate::Zeroes => {
                copied.zeroes += range.len();
                writes.push(Box::pin(write_zeroes(target, plan, range)));
            }
            Fate::Skip => copied.skipped += range.len(),
        }
    }
    begin_in_order(writes).await?;
    Ok(copied)
}

/// What of `range`, which starts at a cluster, are whole clusters of a target of `len` bytes, and the rest.
fn whole_clusters(range: ByteRange, len: u64, cluster: Alignment) -> (ByteRange, ByteRange) {
    let end = if range.end() == len { len } else { cluster.round_down(range.end()) };
    range.split_at(end.saturating_sub(range.offset()))
}

/// Runs futures to their ends, all of them; each is polled once, in order, before any is polled again.
/// Gives the first error that comes up.
async fn begin_in_order(
    futures: Vec<BoxFuture<'_, Result<(), CopyError>>>,
) -> Result<(), CopyError> {
    let mut result = Ok(());
    let mut rest = FuturesUnordered::new();
    for mut future in futures {
        match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            Poll::Ready(done) => result = result.and(done),
            Poll::Pending => rest.push(future),
        }
    }
    while let Some(done) = rest.next().await {
        result = result.and(done);
    }
    result
}

/// Where in the target a run of the buffer belongs.
fn run_in(piece: Piece, run: Run) -> Result<ByteRange, CopyError> {
    let offset = piece.to.offset() + to_u64(run.offset);
    ByteRange::new(offset, to_u64(run.len))
        .map_err(|error| CopyError::Write { offset, error: error.into() })
}

async fn write_data(
    target: &Node,
    range: ByteRange,
    buf: IoBuf,
    flags: RequestFlags,
) -> Result<(), CopyError> {
    let written = target.write(range, buf.into(), flags);
    written.await.map_err(|error| write_failed(range, error))
}

/// Writes the last part of a copy, which ends inside of a cluster: the target keeps what is behind it.
async fn write_last(
    target: &Node,
    plan: &Plan,
    range: ByteRange,
    buf: IoBuf,
    cluster: Alignment,
) -> Result<(), CopyError> {
    let whole = range.expand(cluster).intersect(ByteRange::up_to(target.len()));
    let (_, behind) = whole.split_at(range.len());
    let kept = IoBuf::zeroed(to_usize(behind.len()), plan.memory).map_err(CopyError::Memory)?;
    let read = target.read(behind, kept.clone().into()).await;
    read.map_err(|error| write_failed(range, error))?;
    let written = target.write(whole, [buf, kept].into_iter().collect(), plan.options.write_flags);
    written.await.map_err(|error| write_failed(range, error))
}

async fn write_zeroes(target: &Node, plan: &Plan, range: ByteRange) -> Result<(), CopyError> {
    let flags = (plan.options.write_flags - RequestFlags::COMPRESSED) | RequestFlags::MAY_UNMAP;
    let written = target.write_zeroes(range, flags);
    written.await.map_err(|error| write_failed(range, error))
}

fn write_failed(range: ByteRange, error: Error) -> CopyError {
    CopyError::Write { offset: range.offset(), error }
}
