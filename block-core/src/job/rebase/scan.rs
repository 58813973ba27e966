//! Looks for the parts of the overlay that a backing file decides.
//!
//! Invariants: parts follow each other without gap from the start to the end of the overlay; a part
//! that is to be compared holds nothing that the overlay holds, is at most `piece_bytes` long, and ends
//! at a multiple of it, where it ends being unallocated, or at the end. Where whole clusters are asked
//! for, every part but the last ends at one, and one that is held in part is a part of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::range::{ByteRange, MAX_LEN};
use crate::request::status::StatusDetail;

use super::{Image, Job, RebaseError};

/// Longest part that is passed over at once: bounds how long a cancel goes unseen.
const SETTLED_BYTES: u64 = 256 << 20;

/// A part of the overlay.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// It will read the same from the new backing file, or does not depend on it.
    Settled(ByteRange),
    /// The two backing files may differ there.
    Compare(ByteRange),
    /// A cluster that the overlay holds in part. In the rest the two backing files may differ.
    Mixed(ByteRange),
}

/// Position in the overlay.
pub(super) struct Scanner {
    job: Arc<Job>,
    offset: u64,
}

impl Scanner {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self { job, offset: 0 }
    }

    /// The next part, and the scanner behind it; `None` at the end or when the job stops.
    pub(super) async fn next(mut self) -> Result<Option<(Part, Self)>, RebaseError> {
        let len = self.job.overlay.len();
        if self.offset >= len || self.job.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let longest = self.job.cluster.round_up(SETTLED_BYTES);
        let end = len.min(self.offset.saturating_add(longest)).min(MAX_LEN);
        let rest = self.range_to(end);
        let (allocated, known) = self.look(Image::Overlay, rest).await?;
        let part = match self.whole(rest, known) {
            part if part.is_empty() => Part::Mixed(rest.first(self.job.cluster.bytes())),
            part if allocated => Part::Settled(part),
            part => self.below(part).await?,
        };
        self.offset = match part {
            Part::Settled(range) | Part::Compare(range) | Part::Mixed(range) => range.end(),
        };
        Ok(Some((part, self)))
    }

    /// The first `len` bytes of `range`, in whole clusters where these are asked for and it does not
    /// end there.
    fn whole(&self, range: ByteRange, len: u64) -> ByteRange {
        match self.job.whole_clusters {
            true if len < range.len() => range.first(self.job.cluster.round_down(len)),
            _ => range.first(len),
        }
    }

    /// The first part of `range`, which the overlay does not hold.
    async fn below(&self, range: ByteRange) -> Result<Part, RebaseError> {
        let mut range = range;
        if self.job.in_chain.is_some() {
            let (differs, known) = self.look(Image::OldBacking, range).await?;
            // What differs is written in whole clusters, so they are compared as a whole; to compare
            // more than what may differ does no harm.
            let (start, end) = (range.offset(), range.offset().saturating_add(known));
            let whole = match known < range.len() {
                true => self.job.cluster.round_down(end).saturating_sub(start),
                false => known,
            };
            if !differs && whole > 0 {
                return Ok(Part::Settled(range.first(whole)));
            }
            range = range.first(self.job.cluster.round_up(end) - start);
        }
        let room = self.job.piece_bytes - range.offset() % self.job.piece_bytes;
        Ok(Part::Compare(range.first(room)))
    }

    /// Whether the first bytes of `range` are held by the overlay itself, or by a layer between it and
    /// the node of the chain that is the new backing file; and for how many bytes that is so.
    async fn look(&self, image: Image, range: ByteRange) -> Result<(bool, u64), RebaseError> {
        let job = &self.job;
        let asked = match (image, &job.old) {
            (Image::OldBacking, Some(old)) if !is_in_chain_itself(job) => {
                // What is beyond the end of the old backing file reads as zeroes, whatever is below.
                if range.offset() >= old.len() {
                    return Ok((true, range.len()));
                }
                old.block_status_above(job.in_chain.as_ref(), range, StatusDetail::Allocation)
                    .await
                    .map(|status| (status.is_allocated() || status.is_zero(), status.len))
            }
            (Image::OldBacking, _) => return Ok((false, range.len())),
            _ => job.overlay.is_allocated(range).await,
        };
        let offset = range.offset();
        match asked {
            // The image became shorter.
            Ok((_, 0)) => Ok((true, range.len())),
            Ok((held, len)) => Ok((held, len.min(range.len()))),
            Err(error) => Err(RebaseError::Status { image, offset, error }),
        }
    }

    fn range_to(&self, end: u64) -> ByteRange {
        ByteRange::from_bounds(self.offset, end).unwrap_or_default()
    }
}

/// Whether the new backing file is the old one.
fn is_in_chain_itself(job: &Job) -> bool {
    match (&job.old, &job.in_chain) {
        (Some(old), Some(node)) => old.same(node),
        _ => false,
    }
}
