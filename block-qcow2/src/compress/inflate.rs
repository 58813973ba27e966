//! Reads compressed clusters and inflates them to where they are wanted.
//!
//! Invariants: a group is read by one request of at most [`MAX_BLOB`] bytes, or holds one cluster;
//! what its clusters inflate to is at most [`MAX_BLOB`] bytes, or one cluster; nothing is inflated
//! on the caller's thread while another compressed cluster of the image is wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, IoVec, Node, OwnedBuf, Result};
use futures::future::join_all;
use smallvec::SmallVec;

use crate::compress::codec;
use crate::compress::write_cache::WriteCache;
use crate::metadata_io::read_bytes;
use crate::spec::entry::Payload;
use crate::spec::header::Compression;

/// Most bytes that are read, or inflated, for one group of clusters.
pub(crate) const MAX_BLOB: u64 = 1 << 20;
/// Most bytes that are read for nothing between two payloads of a group.
const MAX_GAP: u64 = 16 << 10;

/// Inflates clusters of one image. Clones share the count of clusters in flight.
#[derive(Clone)]
pub(crate) struct Inflater {
    file: Node,
    compression: Compression,
    cluster_size: u64,
    in_flight: Arc<AtomicUsize>,
    /// Compressed clusters that the file may not hold yet.
    unwritten: Option<Arc<WriteCache>>,
}

/// A cluster that is wanted from its first byte on, and the buffers for it.
pub(crate) struct Wanted {
    pub(crate) payload: Payload,
    pub(crate) iov: IoVec,
}

/// Clusters whose payloads are read together, in the order of the file.
#[derive(Default)]
pub(crate) struct Group {
    clusters: SmallVec<[Wanted; 1]>,
}

impl Group {
    /// The cluster alone.
    pub(crate) fn of(wanted: Wanted) -> Self {
        let mut group = Self::default();
        group.clusters.push(wanted);
        group
    }

    /// Whether a cluster with this payload can join a group of an image with such clusters.
    pub(crate) fn accepts(&self, payload: Payload, cluster_size: u64) -> bool {
        let (Some(first), Some(last)) = (self.clusters.first(), self.clusters.last()) else {
            return true;
        };
        let start = first.payload.offset.bytes();
        let offset = payload.offset.bytes();
        offset >= last.payload.offset.bytes()
            && offset <= last.payload.end().saturating_add(MAX_GAP)
            && payload.end() - start <= MAX_BLOB
            && (to_u64(self.clusters.len()) + 1) * cluster_size <= MAX_BLOB
    }

    pub(crate) fn push(&mut self, wanted: Wanted) {
        self.clusters.push(wanted);
    }

    /// The bytes of the file that hold all payloads.
    fn bounds(&self) -> (u64, u64) {
        let start = self.clusters.first().map_or(0, |w| w.payload.offset.bytes());
        let end = self.clusters.iter().map(|w| w.payload.end()).max();
        (start, end.unwrap_or(start))
    }
}

/// Bytes of the file, or on their way to it, and where they start in it.
struct Blob {
    bytes: Bytes,
    start: u64,
}

enum Bytes {
    Read(OwnedBuf),
    Held(Vec<u8>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Held(bytes) => bytes,
        }
    }
}

impl Blob {
    /// The bytes of a payload and what follows it in its last sector.
    fn payload(&self, payload: Payload) -> &[u8] {
        let bytes = self.bytes.as_slice();
        let start = to_usize(payload.offset.bytes().saturating_sub(self.start));
        let end = to_usize(payload.end().saturating_sub(self.start)).min(bytes.len());
        bytes.get(start..end).unwrap_or_default()
    }
}

/// Counts clusters in flight for as long as it lives.
struct InFlight<'a> {
    count: &'a AtomicUsize,
    added: usize,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(self.added, Ordering::Relaxed);
    }
}

impl Inflater {
    pub(crate) fn new(
        file: Node,
        compression: Compression,
        cluster_size: u64,
        unwritten: Option<Arc<WriteCache>>,
    ) -> Self {
        Self { file, compression, cluster_size, in_flight: Arc::default(), unwritten }
    }

    /// Reads a group and fills the buffers of each of its clusters.
    pub(crate) async fn fill(&self, group: Group) -> Result<()> {
        codec::check_built(self.compression)?;
        let in_flight = self.enter(group.clusters.len());
        // Looked up before the file is read: what is not in the cache any more is in the file.
        let held = group.clusters.iter().map(|wanted| self.held(wanted.payload));
        let held: SmallVec<[_; 1]> = held.collect();
        let blob = if held.iter().all(Option::is_some) {
            None
        } else {
            let (start, end) = group.bounds();
            Some(Arc::new(self.read(start, end).await?))
        };
        let inline = in_flight.is_alone();
        let mut held = held.into_iter();
        let mut work = |wanted: Wanted| {
            let (this, blob) = (self.clone(), held.next().flatten().or_else(|| blob.clone()));
            move |codec: &mut codec::Codec| this.inflate_to(codec, blob, &wanted)
        };
        if inline {
            let mut all = group.clusters.into_iter().map(work);
            return all.try_for_each(codec::with_thread_codec);
        }
        let running = group.clusters.into_iter().map(|w| codec::on_pool(work(w)));
        // All are waited for, also after an error: they write to the caller's buffers.
        join_all(running).await.into_iter().collect()
    }

    /// Reads and inflates a whole cluster.
    pub(crate) async fn whole(self, payload: Payload) -> Result<Arc<OwnedBuf>> {
        codec::check_built(self.compression)?;
        let in_flight = self.enter(1);
        let blob = match self.held(payload) {
            Some(held) => held,
            None => Arc::new(self.read(payload.offset.bytes(), payload.end()).await?),
        };
        let (compression, len) = (self.compression, to_usize(self.cluster_size));
        let work = move |codec: &mut codec::Codec| {
            let mut cluster = OwnedBuf::zeroed(len, block_core::Alignment::ONE)?;
            codec
                .inflate(compression, blob.payload(payload), &mut cluster)
                .map_err(|_| damaged(payload))?;
            Ok(Arc::new(cluster))
        };
        if in_flight.is_alone() {
            return codec::with_thread_codec(work);
        }
        codec::on_pool(work).await
    }

    fn inflate_to(
        &self,
        codec: &mut codec::Codec,
        blob: Option<Arc<Blob>>,
        wanted: &Wanted,
    ) -> Result<()> {
        let len = to_usize(self.cluster_size);
        let src = blob.as_ref().map_or(&[][..], |blob| blob.payload(wanted.payload));
        let copy = |cluster: &[u8]| {
            let part = cluster.get(..wanted.iov.len()).unwrap_or(cluster);
            wanted.iov.copy_from(0, part);
        };
        codec.inflate_with(self.compression, src, len, copy).map_err(|_| damaged(wanted.payload))
    }

    /// A compressed cluster that the file may not hold yet.
    fn held(&self, payload: Payload) -> Option<Arc<Blob>> {
        let bytes = self.unwritten.as_ref()?.read(payload.offset)?;
        Some(Arc::new(Blob { bytes: Bytes::Held(bytes), start: payload.offset.bytes() }))
    }

    fn enter(&self, added: usize) -> InFlight<'_> {
        self.in_flight.fetch_add(added, Ordering::Relaxed);
        InFlight { count: &self.in_flight, added }
    }

    /// Reads the bytes `[start, end)` of the file; those beyond its end are left out.
    async fn read(&self, start: u64, end: u64) -> Result<Blob> {
        let limits = self.file.limits();
        let start = limits.request_alignment.round_down(start);
        let end = limits.request_alignment.round_up(end).min(self.file.len());
        let range = ByteRange::from_bounds(start, end).map_err(|_| Error::Corrupt {
            what: "compressed cluster beyond the end of the file",
            value: start,
        })?;
        self.file.driver().event("read_compressed");
        let bytes = Bytes::Read(read_bytes(&self.file, range).await?);
        Ok(Blob { bytes, start })
    }
}

impl InFlight<'_> {
    /// Whether the image has no other compressed cluster in flight, so that a thread would be idle.
    fn is_alone(&self) -> bool {
        self.added == 1 && self.count.load(Ordering::Relaxed) == 1
    }
}

/// What the error says of guest data that cannot be inflated.
pub(crate) const DAMAGED: &str = "damaged compressed cluster at";

fn damaged(payload: Payload) -> Error {
    Error::Corrupt { what: DAMAGED, value: payload.offset.bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::HostOffset;

    fn wanted(offset: u64, len: u64) -> Wanted {
        let offset = HostOffset::new(offset);
        let payload = Payload { offset, len };
        let iov = IoVec::new();
        Wanted { payload, iov }
    }

    #[test]
    fn a_group_takes_what_follows_closely_and_is_bounded() {
        let mut group = Group::of(wanted(1000, 500));
        let accepts =
            |group: &Group, offset, len| group.accepts(wanted(offset, len).payload, 1 << 16);
        assert!(accepts(&group, 1400, 600) && accepts(&group, 1500 + MAX_GAP, 1));
        assert!(!accepts(&group, 999, 600) && !accepts(&group, 1501 + MAX_GAP, 1));
        assert!(!accepts(&group, 1500, MAX_BLOB));
        (0..15).for_each(|n| group.push(wanted(1500 + n, 1)));
        assert!(!accepts(&group, 1600, 1));
        assert_eq!(group.bounds(), (1000, 1515));
        assert!(!Group::of(wanted(0, 1)).accepts(wanted(1, 1).payload, 2 << 20));
    }
}
