//! Compares a piece of the old and the new backing file and writes what differs to the overlay.
//!
//! Invariant: afterwards every cluster of the piece reads the same from the new backing file, or is held
//! by the overlay as it was read from the old one.

use crate::buf::IoBuf;
use crate::error::Error;
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_usize};
use crate::request::status::StatusDetail;

use super::{Image, Job, RebaseError, Rebased};

/// Settles `range`, which the overlay does not hold.
pub(super) async fn settle(job: &Job, range: ByteRange) -> Result<Rebased, RebaseError> {
    let old = Backing { image: Image::OldBacking, node: job.old.as_ref() };
    let new = Backing { image: Image::NewBacking, node: job.new.as_ref() };
    if old.is_zero(range).await? && new.is_zero(range).await? {
        return Ok(Rebased { same: range.len(), ..Rebased::default() });
    }
    let old = old.read(range).await?;
    let (old_bytes, new_bytes) = (old.to_vec(), new.read(range).await?.to_vec());
    let mut done = Rebased::default();
    let mut rest = range;
    while !rest.is_empty() {
        let differs =
            |unit: ByteRange| part(&old_bytes, range, unit) != part(&new_bytes, range, unit);
        let first = unit_of(job, rest);
        let run_differs = differs(first);
        let mut end = first.end();
        // Neighbours of one kind become one write.
        while end < range.end() {
            let next = unit_of(job, between(end, range.end()));
            if differs(next) != run_differs {
                break;
            }
            end = next.end();
        }
        let run = between(rest.offset(), end);
        if run_differs {
            let at = to_usize(run.offset() - range.offset());
            write(job, run, old.slice(at, to_usize(run.len()))).await?;
            done.written += run.len();
        } else {
            done.same += run.len();
        }
        rest = between(end, range.end());
    }
    Ok(done)
}

/// Settles a cluster that the overlay holds in part.
pub(super) async fn settle_mixed(job: &Job, range: ByteRange) -> Result<Rebased, RebaseError> {
    let old = Backing { image: Image::OldBacking, node: job.old.as_ref() };
    let new = Backing { image: Image::NewBacking, node: job.new.as_ref() };
    let overlay = Backing { image: Image::Overlay, node: Some(&job.overlay) };
    let mut rest = range;
    while !rest.is_empty() {
        let asked = job.overlay.is_allocated(rest).await;
        let (held, len) = asked.map_err(|error| RebaseError::Status {
            image: Image::Overlay,
            offset: rest.offset(),
            error,
        })?;
        let (part, after) = rest.split_at(if len == 0 { rest.len() } else { len });
        if !held && old.read(part).await?.to_vec() != new.read(part).await?.to_vec() {
            // It reads as it shall read, the held parts and the others.
            write(job, range, overlay.read(range).await?).await?;
            return Ok(Rebased { written: range.len(), ..Rebased::default() });
        }
        rest = after;
    }
    Ok(Rebased { same: range.len(), ..Rebased::default() })
}

/// One of the two backing files, or the overlay.
struct Backing<'a> {
    image: Image,
    /// `None`: zeroes.
    node: Option<&'a Node>,
}

impl Backing<'_> {
    /// Whether all of `range` is known to be zero.
    async fn is_zero(&self, range: ByteRange) -> Result<bool, RebaseError> {
        let Some(node) = self.node else {
            return Ok(true);
        };
        let inside = range.intersect(ByteRange::up_to(node.len()));
        if inside.is_empty() {
            return Ok(true);
        }
        let asked = node.block_status_above(None, inside, StatusDetail::Zeroes).await;
        let status = asked.map_err(|error| RebaseError::Status {
            image: self.image,
            offset: range.offset(),
            error,
        })?;
        Ok(status.is_zero() && status.len >= inside.len())
    }

    /// What `range` reads as.
    async fn read(&self, range: ByteRange) -> Result<IoBuf, RebaseError> {
        let align = self.node.map_or(Alignment::PAGE, |node| node.limits().opt_mem_alignment);
        let buf = IoBuf::zeroed(to_usize(range.len()), align.max(Alignment::PAGE));
        let buf = buf.map_err(RebaseError::Memory)?;
        if let Some(node) = self.node {
            let read = node.read(range, buf.clone().into()).await;
            read.map_err(|error| RebaseError::Read {
                image: self.image,
                offset: range.offset(),
                error,
            })?;
        }
        Ok(buf)
    }
}

/// The first cluster of `rest`, or what of it lies in there.
fn unit_of(job: &Job, rest: ByteRange) -> ByteRange {
    let cluster = job.cluster.bytes();
    rest.first(cluster - rest.offset() % cluster)
}

/// The bytes of `unit` among those of `range`.
fn part(bytes: &[u8], range: ByteRange, unit: ByteRange) -> &[u8] {
    let start = to_usize(unit.offset() - range.offset());
    bytes.get(start..start + to_usize(unit.len())).unwrap_or_default()
}

fn between(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start, end).unwrap_or_default()
}

/// Makes the overlay hold `buf` at `range`.
async fn write(job: &Job, range: ByteRange, buf: IoBuf) -> Result<(), RebaseError> {
    let failed = |error| RebaseError::Write { offset: range.offset(), error };
    if buf.is_zero() {
        return hold_zeroes(job, range, &buf).await.map_err(failed);
    }
    job.overlay.write(range, buf.into(), job.write_flags).await.map_err(failed)
}

/// Makes the overlay itself hold zeroes at `range`; `zeroes` is as long.
///
/// A zero write alone does not promise that: where the overlay reads as zeroes without holding
/// anything, a driver may do nothing, and the new backing file would show.
async fn hold_zeroes(job: &Job, range: ByteRange, zeroes: &IoBuf) -> Result<(), Error> {
    let flags = job.write_flags - RequestFlags::COMPRESSED;
    job.overlay.write_zeroes(range, flags).await?;
    let mut rest = range;
    while !rest.is_empty() {
        let (held, len) = job.overlay.is_allocated(rest).await?;
        let known = match len {
            0 => rest,
            len => rest.first(len),
        };
        if !held {
            let buf = zeroes.slice(0, to_usize(known.len()));
            job.overlay.write(known, buf.into(), flags).await?;
        }
        rest = between(known.end(), range.end());
    }
    Ok(())
}
