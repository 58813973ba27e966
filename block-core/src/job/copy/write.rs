//! Writes one piece to the target: runs of data as data, zeroes as the options say.

use crate::buf::IoBuf;
use crate::error::Error;
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{ByteRange, to_u64, to_usize};

use super::pipeline::Contents;
use super::runs::{Run, Runs};
use super::scan::Piece;
use super::{Copied, CopyError, Plan, Sparseness, TargetContents};

/// Writes a piece: its runs of data one after the other, its zeroes as the options say.
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
    let Sparseness::Holes { min_bytes } = plan.options.sparseness else {
        write_data(target, plan, piece.to, buf).await?;
        copied.data = piece.to.len();
        return Ok(copied);
    };
    for run in Runs::new(buf.clone(), min_bytes) {
        let len = to_u64(run.len);
        let range = run_in(piece, run)?;
        if !run.is_zero {
            write_data(target, plan, range, buf.slice(run.offset, run.len)).await?;
            copied.data += len;
        } else if plan.options.target == TargetContents::Zeroes {
            copied.skipped += len;
        } else {
            write_zeroes(target, plan, range).await?;
            copied.zeroes += len;
        }
    }
    Ok(copied)
}

/// Where in the target a run of the buffer belongs.
fn run_in(piece: Piece, run: Run) -> Result<ByteRange, CopyError> {
    let offset = piece.to.offset() + to_u64(run.offset);
    ByteRange::new(offset, to_u64(run.len))
        .map_err(|error| CopyError::Write { offset, error: error.into() })
}

async fn write_data(
    target: &Node,
    plan: &Plan,
    range: ByteRange,
    buf: IoBuf,
) -> Result<(), CopyError> {
    let written = target.write(range, buf.into(), plan.options.write_flags);
    written.await.map_err(|error| write_failed(range, error))
}

async fn write_zeroes(target: &Node, plan: &Plan, range: ByteRange) -> Result<(), CopyError> {
    let flags = plan.options.write_flags | RequestFlags::MAY_UNMAP;
    let written = target.write_zeroes(range, flags);
    written.await.map_err(|error| write_failed(range, error))
}

fn write_failed(range: ByteRange, error: Error) -> CopyError {
    CopyError::Write { offset: range.offset(), error }
}
