//! Reads compressed grains and inflates them to where they are wanted.
//!
//! Invariants: what is read at once is at most [`MAX_BLOB`] bytes, or one grain with what it may have grown by; a
//! grain is given only if its marker says that it is the one that was asked for; nothing is inflated on the caller's
//! thread while another grain of the extent is wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_core::metadata::bytes::read_bytes;
use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use block_core::{Alignment, ByteRange, Error, IoVec, Node, OwnedBuf, Problem, Result, cpu};
use futures::future::join_all;

use super::{COMPRESSED_GRAIN_SECTORS_MAX, inflate, inflate_with};
use crate::spec::marker::{GrainMarker, Marker, MarkerError, PAYLOAD_OFFSET};
use crate::spec::sparse::SparseHeader;
use crate::units::{Sector, SectorCount};

/// Most bytes of the file that are read at once for more than one grain.
const MAX_BLOB: u64 = 1 << 20;
/// Most bytes that are read for nothing between two grains.
const MAX_GAP: u64 = 16 << 10;
/// Length of what stands before a stream where there are no markers: its length in 32 bits.
const LENGTH_LEN: usize = 4;

/// Reads the compressed grains of one extent. Clones share the count of grains in flight.
#[derive(Clone, Debug)]
pub struct GrainReader {
    file: Node,
    grain: SectorCount,
    capacity: SectorCount,
    prefix: Prefix,
    in_flight: Arc<AtomicUsize>,
}

/// What stands before a stream.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Prefix {
    /// A marker.
    Marker,
    /// The stream's length.
    Length,
}

/// A compressed grain of the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct StoredGrain {
    /// Where its marker is in the file.
    pub at: Sector,
    /// Where the grain starts in the extent.
    pub lba: Sector,
}

/// A part of a grain that is wanted, and the buffers for it.
#[derive(Debug)]
pub struct Wanted {
    /// The grain.
    pub grain: StoredGrain,
    /// Bytes of the grain before those that are wanted.
    pub skip: usize,
    /// Where they go; not longer than what is left of the grain.
    pub iov: IoVec,
}

impl GrainReader {
    /// For the extent in `file` with this header. Refuses grains of more than
    /// [`COMPRESSED_GRAIN_SECTORS_MAX`].
    pub fn new(file: Node, header: &SparseHeader) -> Result<Self, Problem> {
        let (grain, capacity) = (header.grain_size(), header.capacity());
        if grain.0 > COMPRESSED_GRAIN_SECTORS_MAX {
            return Err(Problem::Above(COMPRESSED_GRAIN_SECTORS_MAX));
        }
        let prefix = if header.has_markers() { Prefix::Marker } else { Prefix::Length };
        Ok(Self { file, grain, capacity, prefix, in_flight: Arc::default() })
    }

    /// Reads grains and fills the buffers of each. Those that stand behind one another in the file are
    /// read together.
    pub async fn fill(&self, wanted: Vec<Wanted>) -> Result<()> {
        let mut groups: Vec<Vec<Wanted>> = Vec::new();
        for wanted in wanted {
            match groups.last_mut().filter(|group| self.joins(group, wanted.grain)) {
                Some(group) => group.push(wanted),
                None => groups.push(vec![wanted]),
            }
        }
        let running = groups.into_iter().map(|group| self.fill_group(group));
        // All are waited for, also after an error: they write to the caller's buffers.
        join_all(running).await.into_iter().collect()
    }

    /// Reads and inflates a whole grain; what of it is beyond the end of the extent has no meaning.
    pub async fn whole(&self, grain: StoredGrain) -> Result<Arc<OwnedBuf>> {
        let in_flight = self.enter(1);
        let blob = self.read(grain.at, grain.at).await?;
        let blob = self.with_stream(Arc::new(blob), grain).await?;
        let (len, needed) = (self.grain_len(), self.needed(grain));
        let this = self.clone();
        let work = move || {
            let mut bytes = OwnedBuf::zeroed(len, Alignment::ONE)?;
            let inflated = inflate(this.stream(&blob, grain)?, &mut bytes, needed);
            inflated.map_err(|_| damaged(grain))?;
            Ok(Arc::new(bytes))
        };
        if in_flight.is_alone() { work() } else { cpu::run(work).await }
    }

    async fn fill_group(&self, group: Vec<Wanted>) -> Result<()> {
        let in_flight = self.enter(group.len());
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let blob = Arc::new(self.read(first.grain.at, last.grain.at).await?);
        let inline = in_flight.is_alone();
        let running = group.into_iter().map(|wanted| {
            let (this, blob) = (self.clone(), Arc::clone(&blob));
            async move {
                let blob = this.with_stream(blob, wanted.grain).await?;
                if inline {
                    return this.inflate_to(&blob, &wanted);
                }
                cpu::run(move || this.inflate_to(&blob, &wanted)).await
            }
        });
        join_all(running).await.into_iter().collect()
    }

    fn inflate_to(&self, blob: &Blob, wanted: &Wanted) -> Result<()> {
        let src = self.stream(blob, wanted.grain)?;
        let copy = |bytes: &[u8]| {
            let end = wanted.skip.saturating_add(wanted.iov.len());
            let part = bytes.get(wanted.skip..end.min(bytes.len())).unwrap_or_default();
            wanted.iov.copy_from(0, part);
        };
        let done = inflate_with(src, self.grain_len(), self.needed(wanted.grain), copy);
        done.map_err(|_| damaged(wanted.grain))
    }

    /// Whether `next` is read with a group: it stands closely behind its last grain.
    fn joins(&self, group: &[Wanted], next: StoredGrain) -> bool {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return true };
        let within = |from: Sector, most: u64| {
            next.at.0.checked_sub(from.0).is_some_and(|gap| gap <= most / SECTOR_SIZE)
        };
        let likely = self.likely_len();
        (to_u64(group.len()) + 1) * likely <= MAX_BLOB
            && within(first.grain.at, MAX_BLOB.saturating_sub(likely))
            && within(last.grain.at, likely + MAX_GAP)
    }

    /// Bytes that most grains do not exceed in the file: those that compression makes longer do.
    fn likely_len(&self) -> u64 {
        to_u64(self.grain_len()) + SECTOR_SIZE
    }

    /// Reads from the grain at `first` to that at `last`, and of this one what is likely to be there.
    async fn read(&self, first: Sector, last: Sector) -> Result<Blob> {
        let end = offset_of(last)?.saturating_add(self.likely_len());
        self.read_blob(offset_of(first)?, end).await
    }

    /// `blob` if all of the grain is in it, else one that has it.
    async fn with_stream(&self, blob: Arc<Blob>, grain: StoredGrain) -> Result<Arc<Blob>> {
        let start = offset_of(grain.at)?;
        let len = self.prefix_len() + self.stream_len(&blob, grain)?;
        if blob.since(start).len() >= len {
            return Ok(blob);
        }
        let blob = self.read_blob(start, start.saturating_add(to_u64(len))).await?;
        Ok(Arc::new(blob))
    }

    /// Reads the bytes `[start, end)` of the file; those beyond its end are left out.
    async fn read_blob(&self, start: u64, end: u64) -> Result<Blob> {
        let (limits, len) = (self.file.limits(), self.file.len());
        let start = limits.request_alignment.round_down(start);
        let end = limits.request_alignment.round_up(end.min(len)).min(len);
        let range = ByteRange::from_bounds(start, end).map_err(|_| Error::Corrupt {
            what: "compressed grain beyond the end of the file",
            value: start,
        })?;
        Ok(Blob { bytes: read_bytes(&self.file, range).await?, start })
    }

    /// The grain's stream. All of it is in `blob`, or it is not in the file.
    fn stream<'a>(&self, blob: &'a Blob, grain: StoredGrain) -> Result<&'a [u8]> {
        let len = self.stream_len(blob, grain)?;
        let start = self.prefix_len();
        let bytes = blob.since(offset_of(grain.at)?);
        bytes.get(start..start + len).ok_or_else(|| beyond_the_end(grain))
    }

    /// Length of the grain's stream, as what stands before it says.
    fn stream_len(&self, blob: &Blob, grain: StoredGrain) -> Result<usize> {
        let bytes = blob.since(offset_of(grain.at)?);
        let marker = match self.prefix {
            Prefix::Marker => match Marker::parse(bytes) {
                Ok(Marker::Grain(marker)) => marker,
                Ok(Marker::Metadata(_)) => {
                    return Err(Error::Corrupt { what: "grain marker size", value: 0 });
                }
                Err(MarkerError::Truncated { .. }) => return Err(beyond_the_end(grain)),
                Err(error) => return Err(error.into()),
            },
            Prefix::Length => {
                let len = bytes.first_chunk::<LENGTH_LEN>().ok_or_else(|| beyond_the_end(grain))?;
                GrainMarker { lba: grain.lba, len: u32::from_le_bytes(*len) }
            }
        };
        if marker.lba != grain.lba {
            return Err(Error::Corrupt { what: "grain marker LBA", value: marker.lba.0 });
        }
        marker.check(self.grain, self.capacity)?;
        Ok(to_usize(u64::from(marker.len)))
    }

    fn prefix_len(&self) -> usize {
        match self.prefix {
            Prefix::Marker => PAYLOAD_OFFSET,
            Prefix::Length => LENGTH_LEN,
        }
    }

    fn grain_len(&self) -> usize {
        to_usize(self.grain.bytes().unwrap_or_default())
    }

    /// Bytes of the grain that are inside of the extent.
    fn needed(&self, grain: StoredGrain) -> usize {
        let left = SectorCount(self.capacity.0.saturating_sub(grain.lba.0).min(self.grain.0));
        to_usize(left.bytes().unwrap_or_default())
    }

    fn enter(&self, added: usize) -> InFlight<'_> {
        self.in_flight.fetch_add(added, Ordering::Relaxed);
        InFlight { count: &self.in_flight, added }
    }
}

/// Bytes of the file, and where they start in it.
struct Blob {
    bytes: OwnedBuf,
    start: u64,
}

impl Blob {
    /// What is there of the file from `offset` on.
    fn since(&self, offset: u64) -> &[u8] {
        let start = offset.checked_sub(self.start).map_or(self.bytes.len(), to_usize);
        self.bytes.get(start..).unwrap_or_default()
    }
}

/// Counts grains in flight for as long as it lives.
struct InFlight<'a> {
    count: &'a AtomicUsize,
    added: usize,
}

impl InFlight<'_> {
    /// Whether the extent has no other grain in flight, so that a thread would be idle.
    fn is_alone(&self) -> bool {
        self.added == 1 && self.count.load(Ordering::Relaxed) == 1
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(self.added, Ordering::Relaxed);
    }
}

impl From<MarkerError> for Error {
    fn from(error: MarkerError) -> Self {
        match error {
            MarkerError::Truncated { len } => {
                Self::Corrupt { what: "length of a marker", value: to_u64(len) }
            }
            MarkerError::Field { field, value, .. } => Self::Corrupt { what: field, value },
        }
    }
}

fn offset_of(at: Sector) -> Result<u64> {
    at.offset().ok_or(Error::Corrupt { what: "grain table entry", value: at.0 })
}

fn damaged(grain: StoredGrain) -> Error {
    Error::Corrupt { what: "damaged compressed grain at sector", value: grain.at.0 }
}

fn beyond_the_end(grain: StoredGrain) -> Error {
    Error::Corrupt { what: "compressed grain beyond the end of the file", value: grain.at.0 }
}

#[cfg(test)]
mod tests;
