//! From a guest offset to an extent: the L1 table in memory, L2 slices from the cache or the file.
//!
//! Invariant: a slice is `slices.entry_bytes()` bytes of an L2 table that lies inside of the file,
//! keyed by its host offset. A lookup that hits takes one short lock and allocates nothing.

use std::sync::Arc;

use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Node, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U64;

use crate::driver::Qcow2Driver;
use crate::map::{Extent, Kind, first_extent};
use crate::metadata_io::read_bytes;
use crate::spec::Fault;
use crate::spec::entry::l1_entry;
use crate::units::{GuestOffset, HostOffset};

/// A part of an L2 table: its words in memory order of the host.
pub(crate) type Slice = Arc<[u64]>;

/// Where the L2 entry of an offset is.
#[derive(Copy, Clone)]
enum Place {
    /// There is no L2 table; the number of bytes that this holds for.
    Nowhere(u64),
    /// In the slice at this host offset, whose first entry has this index in its table.
    Slice { at: HostOffset, first_entry: u64 },
}

impl Qcow2Driver {
    /// The extent at `offset`, of at most `len` bytes; `None` if a slice must be read first.
    #[inline]
    pub(crate) fn extent_at_once(
        &self,
        offset: GuestOffset,
        len: u64,
    ) -> Option<Result<Extent, Fault>> {
        let geometry = self.geometry();
        match self.place(offset) {
            Err(fault) => Some(Err(fault)),
            Ok(Place::Nowhere(room)) => Some(Ok(unallocated(len.min(room)))),
            Ok(Place::Slice { at, first_entry }) => self
                .slices
                .with(at.bytes(), |slice| first_extent(geometry, slice, first_entry, offset, len)),
        }
    }

    /// The extent at `offset`, of at most `len` bytes (at least one).
    pub(crate) async fn extent(&self, offset: GuestOffset, len: u64) -> Result<Extent> {
        let geometry = self.geometry();
        let place = self.place(offset).map_err(|f| self.fault(f))?;
        let (at, first_entry) = match place {
            Place::Nowhere(room) => return Ok(unallocated(len.min(room))),
            Place::Slice { at, first_entry } => (at, first_entry),
        };
        let slice = self.slice_at(at).await?;
        let extent = first_extent(geometry, &slice, first_entry, offset, len);
        extent.map_err(|f| self.fault(f))
    }

    /// Looks the L1 entry up.
    #[inline]
    fn place(&self, offset: GuestOffset) -> Result<Place, Fault> {
        let geometry = self.geometry();
        let index = geometry.l1_index(offset);
        let raw = self.l1.read().get(to_usize(index)).copied();
        let raw = raw.ok_or(Fault::new("L1 index", index))?;
        let coverage = geometry.l2_coverage();
        let Some(table) = l1_entry(geometry, raw)? else {
            return Ok(Place::Nowhere(coverage - offset.bytes() % coverage));
        };
        let slice_bytes = self.slices.entry_bytes();
        // A power of two, and at least one entry.
        let slice_bits = slice_bytes.trailing_zeros() - geometry.l2_entry_bits();
        let slice = geometry.l2_index(offset) >> slice_bits;
        Ok(Place::Slice { at: table.plus(slice * slice_bytes), first_entry: slice << slice_bits })
    }

    /// A slice, from the cache or the file.
    pub(crate) async fn slice_at(&self, at: HostOffset) -> Result<Slice> {
        match self.slices.peek(at.bytes()) {
            Some(slice) => Ok(slice),
            None => self.load_slice(at).await,
        }
    }

    pub(crate) async fn load_slice(&self, at: HostOffset) -> Result<Slice> {
        let range = ByteRange::new(at.bytes(), self.slices.entry_bytes());
        let range = range.ok().filter(|range| range.end() <= self.file.len());
        let beyond = Fault::new("L2 table beyond the end of the file", at.bytes());
        let range = range.ok_or_else(|| self.fault(beyond))?;
        self.event("l2_load");
        let load = || load(self.file.clone(), range);
        self.slices.peek_or_load(at.bytes(), load).await
    }
}

fn unallocated(len: u64) -> Extent {
    let kind = Kind::Unallocated(None);
    Extent { len, kind }
}

fn load(file: Node, range: ByteRange) -> BoxFuture<'static, Result<Slice>> {
    async move {
        let bytes = read_bytes(&file, range).await?;
        Ok(words(&bytes).collect())
    }
    .boxed()
}

/// The big-endian 64-bit words of a table; bytes after the last whole word are left out.
pub(crate) fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> {
    let whole = bytes.len() - bytes.len() % 8;
    let words = <[U64]>::ref_from_bytes(bytes.get(..whole).unwrap_or_default());
    words.unwrap_or_default().iter().map(|word| word.get())
}

/// Slices of how many bytes serve a disk of `l2_bytes` of L2 entries, with `cache_bytes` for them.
///
/// Small ones where the cache does not hold everything: a random read then costs little to map.
pub(crate) fn slice_bytes(cluster_size: u64, l2_bytes: u64, cache_bytes: u64) -> u64 {
    let best = if l2_bytes <= cache_bytes { LARGE_SLICE } else { SMALL_SLICE };
    best.min(cluster_size)
}

/// Bytes of a slice where the cache holds the whole mapping.
const LARGE_SLICE: u64 = 64 << 10;
/// Bytes of a slice where it does not.
const SMALL_SLICE: u64 = 4 << 10;

/// How many slices are kept: those that fit in `cache_bytes`, and no more than there are.
pub(crate) fn slice_count(
    slice_bytes: u64,
    tables: u64,
    cluster_size: u64,
    cache_bytes: u64,
) -> usize {
    let all = tables.saturating_mul(cluster_size / slice_bytes.max(1));
    to_usize(all.min(cache_bytes / slice_bytes.max(1)).max(to_u64(MIN_SLICES)))
}

/// Slices that an image keeps whatever the budget says: enough for a sequential reader or two.
pub(crate) const MIN_SLICES: usize = 2;
