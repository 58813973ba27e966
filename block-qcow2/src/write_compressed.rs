//! Compressed writes: cluster by cluster, compressed on all processors, placed in order.
//!
//! The clusters of a write are compressed ahead, several at once. In its turn, which comes in the order
//! in which writes began, the write gives each of them a place, in order; then data moves, several
//! clusters at once; a cluster is linked once its data is in the write cache or in the file. So the same
//! writes make the same image, whatever the number of threads.
//!
//! A cluster that does not shrink is written plain, in its turn like the others; so is one whose place the
//! entry of a compressed cluster cannot name.
//!
//! **Invariants.** Whoever waits for a turn holds no running allocation and no place. Most bytes that
//! one write holds compressed are those of [`ahead`] clusters and of [`AT_ONCE`] steps. An entry in
//! memory points only at what the write cache or the file holds; a write-back empties the cache before
//! it writes entries.

use std::sync::Arc;

use block_core::budget::MemoryBudget;
use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, Error, IoVec, Node, OpenError, Options, OwnedBuf};
use block_core::{RequestFlags, Result};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;

use crate::compress::codec;
use crate::compress::turns::{Turn, Turns};
use crate::compress::write_cache::{Stored, WriteCache};
use crate::compress::{Encoding, Window};
use crate::driver::Qcow2Driver;
use crate::geometry::{DataLocation, Geometry};
use crate::open::bad_option;
use crate::overlap::OverlapMap;
use crate::plan::link_compressed;
use crate::refcounts::TOO_FAR;
use crate::reload::from_below;
use crate::spec::header::Compression;
use crate::units::GuestOffset;
use crate::write::{Payload, Work};
use block_core::metadata::inflight::{Blocker, Running};

/// Most steps of one write in flight.
const AT_ONCE: usize = 8;
/// Guest bytes that one write compresses ahead of its turn, if that is more than a cluster.
const AHEAD_BYTES: u64 = 1 << 20;
/// Bytes of host clusters that the write cache holds unless the options say otherwise.
const CACHE_BYTES: u64 = 4 << 20;

/// What compressed writes of an image need.
pub(crate) struct CompressedWrites {
    turns: Turns,
    /// The error of every compressed write where the feature is off that it needs.
    encoding: Result<Encoding>,
    /// `None`: every compressed cluster is written to the file by itself.
    pub(crate) cache: Option<Arc<WriteCache>>,
}

impl CompressedWrites {
    /// A turn for something else that allocates, in order with the compressed writes.
    pub(crate) fn turn(&self) -> Turn<'_> {
        self.turns.take()
    }
}

/// Options of compressed writes.
#[derive(Copy, Clone, Debug)]
pub(crate) struct CompressedOptions {
    level: Option<u32>,
    window: Window,
    cache_bytes: Option<u64>,
}

impl CompressedOptions {
    /// Takes them from `options`. Good for images that are opened for reading, too.
    pub(crate) fn take(options: &mut Options) -> Result<Self, OpenError> {
        let window = match options.take("compression-window") {
            None => Window::default(),
            Some(name) => Window::from_name(&name)
                .ok_or_else(|| bad_option("compression-window", Problem::Unknown))?,
        };
        let level = options.take_size("compression-level")?;
        let cache_bytes = options.take_size("compressed-cache-size")?;
        let level = level.map(|level| u32::try_from(level).unwrap_or(u32::MAX));
        Ok(Self { level, window, cache_bytes })
    }

    /// What they say for an image in `file`.
    pub(crate) fn apply(
        self,
        file: &Node,
        geometry: Geometry,
        compression: Compression,
        overlap: &Arc<OverlapMap>,
        budget: &Arc<MemoryBudget>,
    ) -> Result<CompressedWrites, OpenError> {
        let encoding = match codec::check_built(compression) {
            // Whoever asks for no level may never write compressed.
            Err(missing) if self.level.is_none() => Err(missing),
            _ => Ok(Encoding::new(compression, self.level, self.window)
                .map_err(|problem| bad_option("compression-level", problem))?),
        };
        // Where the file takes writes of any length, the page cache gathers them as well as this one.
        let aligned = file.limits().request_alignment > Alignment::ONE;
        let bytes = self.cache_bytes.unwrap_or(if aligned { CACHE_BYTES } else { 0 });
        let in_image = geometry.data_location() == DataLocation::Image;
        let cache = (bytes > 0 && in_image).then(|| {
            let (overlap, budget) = (Arc::clone(overlap), Arc::clone(budget));
            let bits = geometry.cluster_bits();
            Arc::new(WriteCache::new(file.clone(), bits, overlap, budget, bytes))
        });
        Ok(CompressedWrites { turns: Turns::default(), encoding, cache })
    }
}

/// A part of a write that has its place.
enum Step {
    /// The compressed bytes of a cluster.
    Packed { guest: GuestOffset, stored: Stored, bytes: Vec<u8>, running: Running },
    /// A part of a cluster that is not compressed.
    Plain { work: Work, data: IoVec },
}

/// A cluster of the guest's write, compressed if that makes it smaller.
struct Chunk {
    guest: ByteRange,
    data: IoVec,
    compressed: Option<Vec<u8>>,
}

/// What is left of a write.
struct Rest<'a, S> {
    chunks: S,
    /// What is left of a cluster that did not shrink.
    plain: Option<(ByteRange, IoVec)>,
    /// `None` once nothing is left to be placed.
    turn: Option<Turn<'a>>,
    /// Where the write ends.
    end: u64,
}

impl Qcow2Driver {
    /// Writes `iov` to `range`, which begins at a cluster and ends at one or at the end of the disk.
    pub(crate) async fn write_compressed(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
    ) -> Result<()> {
        let geometry = self.geometry();
        let end = geometry.cluster_alignment().round_up(self.disk_len());
        let inside = range.intersect(ByteRange::up_to(end));
        let whole = geometry.offset_in_cluster(inside.offset()) == 0
            && (geometry.offset_in_cluster(inside.end()) == 0 || inside.end() >= self.disk_len());
        if !whole {
            return Err(Error::Invalid);
        }
        let writes = &self.writer()?.compressed;
        let rest = Rest {
            chunks: Box::pin(compressed(geometry, writes.encoding?, inside, &iov)),
            plain: None,
            turn: Some(writes.turns.take()),
            end: inside.end(),
        };
        // Guards the first error; held for a store.
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let (this, errors) = (&self, &failed);
        let steps = stream::unfold(rest, |mut rest| async move {
            if errors.lock().is_some() {
                return None;
            }
            let step = this.next_step(&mut rest).await.transpose()?;
            if step.is_err() {
                rest.turn = None;
            }
            Some((step, rest))
        });
        steps
            .for_each_concurrent(AT_ONCE, |step| async {
                let done = match step {
                    Ok(step) => self.do_step(step).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = done {
                    failed.lock().get_or_insert(error);
                }
            })
            .await;
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Gives the next part of a write its place.
    async fn next_step<S>(&self, rest: &mut Rest<'_, S>) -> Result<Option<Step>>
    where
        S: Stream<Item = Result<Chunk>> + Unpin,
    {
        // Clusters are compressed while the turn is waited for: the first look starts that.
        let Some(turn) = &rest.turn else { return Ok(None) };
        let chunk = match rest.plain.take() {
            Some((guest, data)) => Chunk { guest, data, compressed: None },
            None => match rest.chunks.next().await {
                Some(chunk) => chunk?,
                None => return Ok(None),
            },
        };
        turn.served().await;
        let Chunk { guest, data, compressed } = chunk;
        let packed = match compressed {
            Some(bytes) => match self.pack(guest, bytes).await {
                // Entries of plain clusters reach farther.
                Err(TOO_FAR) => None,
                packed => Some(packed?),
            },
            None => None,
        };
        let (step, done) = match packed {
            Some(step) => (step, guest.end()),
            None => {
                let work = self.next_work(guest).await?;
                let (now, later) = guest.split_at(work.guest().len());
                let (here, after) = (to_usize(now.len()), to_usize(later.len()));
                if !later.is_empty() {
                    rest.plain = Some((later, data.slice(here, after)));
                }
                (Step::Plain { work, data: data.slice(0, here) }, now.end())
            }
        };
        if done == rest.end {
            rest.turn = None;
        }
        Ok(Some(step))
    }

    /// Gives a compressed cluster its place. Waits for allocations in its way, and for room in the cache.
    async fn pack(&self, guest: ByteRange, bytes: Vec<u8>) -> Result<Step> {
        let writer = self.writer()?;
        loop {
            if let Some(cache) = &writer.compressed.cache {
                cache.room().await?;
            }
            self.relieve().await?;
            match self.try_pack(guest, to_u64(bytes.len())).await? {
                Ok((stored, running)) => {
                    let guest = GuestOffset::new(guest.offset());
                    return Ok(Step::Packed { guest, stored, bytes, running });
                }
                Err(blocker) => self.allocations.wait(blocker).await,
            }
        }
    }

    async fn try_pack(
        &self,
        guest: ByteRange,
        len: u64,
    ) -> Result<Result<(Stored, Running), Blocker>> {
        let writer = self.writer()?;
        let geometry = self.geometry();
        let mut meta = writer.meta.lock().await;
        let cluster = guest.expand(geometry.cluster_alignment());
        if let Err(blocker) = self.allocations.free_prefix(cluster) {
            return Ok(Err(blocker));
        }
        // The table is made before the data is written, so that linking needs no space.
        self.own_slice(&mut meta, GuestOffset::new(cluster.offset())).await?;
        self.event("cluster_alloc_bytes");
        let cache = writer.compressed.cache.as_deref();
        let stored = meta.allocate_compressed(len, &self.header, cache).await?;
        let end = geometry.cluster_alignment().round_up(stored.offset.bytes() + len);
        self.grow_ahead(&mut meta, end).await;
        Ok(Ok((stored, self.allocations.begin(cluster))))
    }

    async fn do_step(self: &Arc<Self>, step: Step) -> Result<()> {
        let (guest, stored, bytes, _running) = match step {
            Step::Plain { work, data } => return self.do_work(work, Payload::Memory(data)).await,
            Step::Packed { guest, stored, bytes, running } => (guest, stored, bytes, running),
        };
        let writer = self.writer()?;
        let put = match &writer.compressed.cache {
            Some(cache) => cache.put(stored, &bytes).await,
            None => self.put_through(stored, &bytes).await,
        };
        let linked = match put {
            Ok(()) => self.link_packed(guest, stored).await,
            failed => failed,
        };
        if linked.is_err() {
            if let Some(cache) = writer.compressed.cache.as_ref().filter(|_| put.is_ok()) {
                cache.abandon(stored);
            }
            writer.meta.lock().await.give_back_compressed(stored);
        }
        linked
    }

    /// Writes compressed bytes to the file. Others may write to the same block at the same time: the
    /// file's request layer keeps their read-modify-writes apart.
    async fn put_through(&self, stored: Stored, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(stored.offset.bytes(), stored.len)?;
        let overlap = &self.writer()?.overlap;
        overlap.check_data(range).map_err(|fault| self.fault(fault))?;
        let buf = OwnedBuf::copy_of(bytes, Alignment::PAGE)?;
        self.event("write_compressed");
        let iov = buf.into_shared().into();
        from_below(self.file.write(range, iov, RequestFlags::empty()).await)
    }

    /// Puts a compressed cluster whose data was written into the mapping.
    async fn link_packed(&self, guest: GuestOffset, stored: Stored) -> Result<()> {
        let geometry = self.geometry();
        let mut meta = self.writer()?.meta.lock().await;
        let slice = self.own_slice(&mut meta, guest).await?;
        let overlap = Arc::clone(&meta.overlap);
        let change = |words: &mut [u64]| {
            let may_drop = |dropped| overlap.check_dropped(dropped);
            link_compressed(geometry, words, slice.first_entry, guest, stored, may_drop)
        };
        self.event("l2_update_compressed");
        if let Some(dropped) = self.change_slice(slice, change).await? {
            meta.drop_data(dropped, crate::alloc::Reason::Other);
        }
        Ok(())
    }
}

/// The clusters of `range`, compressed ahead, in order.
fn compressed(
    geometry: Geometry,
    encoding: Encoding,
    range: ByteRange,
    iov: &IoVec,
) -> impl Stream<Item = Result<Chunk>> + use<> {
    let size = geometry.cluster_size();
    let (start, end, iov) = (range.offset(), range.end(), iov.clone());
    let clusters = (start..end).step_by(to_usize(size));
    let chunks = clusters.map(move |offset| {
        let guest = ByteRange::from_bounds(offset, end.min(offset + size));
        let len = to_usize(end.min(offset + size) - offset);
        let data = iov.slice(to_usize(offset - start), len);
        let source = data.clone();
        let compressing = codec::on_pool(move |codec| {
            let fill = |cluster: &mut [u8]| {
                let (data, beyond) = cluster.split_at_mut(len);
                source.copy_to(0, data);
                beyond.fill(0);
            };
            Ok(codec.compress_with(encoding, to_usize(size), fill))
        });
        async move {
            let compressed = compressing.await?;
            Ok(Chunk { guest: guest?, data, compressed })
        }
    });
    stream::iter(chunks).buffered(ahead(size))
}

/// How many clusters are compressed ahead.
fn ahead(cluster_size: u64) -> usize {
    to_usize(AHEAD_BYTES / cluster_size).clamp(2, 64)
}
