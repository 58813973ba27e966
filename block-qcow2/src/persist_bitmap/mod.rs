//! Persistent dirty bitmaps: from the image to the node and back.
//!
//! A bitmap of the image that is not marked as in use is *trusted*: it knows of every change of the
//! disk. Nothing changes the disk before the trusted ones are marked ([`Qcow2Driver::distrust_bitmaps`]),
//! whoever opened the image and whether the bitmaps were loaded or not. Storing them makes them
//! trusted again, until the next change. So a crash leaves them in use, and never behind the disk; an
//! image that is opened for writing and not changed keeps its bitmaps, whatever happens.
//!
//! **Invariants.** `Lists::bitmaps` is what the directory in the file says. A bitmap's table has the
//! clusters that the disk's length needs, unless it is in use. The turn of [`BitmapGuard`] comes
//! before the gate and before `writeback` in the lock order.
//!
//! [`bits`] is pure; [`load`](mod@load) reads, [`store`] writes.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use block_core::ability::PersistentBitmaps;
use block_core::dirty::{DirtyBitmaps, Granularity};
use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{Error, Node, OpenError, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::driver::Qcow2Driver;
use crate::geometry::{Geometry, Version};
use crate::metadata_io::{flush, write_bytes};
use crate::overlap::Section;
use crate::reload::request_error;
use crate::spec::bad_field;
use crate::spec::bitmap::{Bitmap, FIXED_BYTES, MAX_BITMAPS, MAX_DIRECTORY_BYTES};
use crate::spec::bitmap::{encode, entry_len, parse};
use crate::spec::extension::BitmapsExtension;
use crate::table::EntryReader;
use crate::units::HostOffset;

mod bits;
mod load;
mod store;

/// Bytes of bitmaps that are read or written at once, unless a cluster is larger.
const PIECE: u64 = 256 << 10;
/// Most bytes of the clusters of one bitmap.
const MAX_DATA_BYTES: u64 = 512 << 20;
/// Most bytes of bits that all bitmaps of an image have in the file: those that are held in memory at worst.
const MAX_ALL_BYTES: u64 = 1 << 30;

/// Reads the bitmap directory.
pub(crate) async fn load(
    file: &Node,
    geometry: Geometry,
    extension: BitmapsExtension,
) -> Result<Vec<Bitmap>, OpenError> {
    extension.verify(geometry)?;
    let (offset, size) = (extension.directory_offset, extension.directory_size);
    let mut entries = EntryReader::new(file, "bitmap directory", offset, size);
    let mut all = Vec::new();
    for _ in 0..extension.count {
        all.push(entries.next_entry(FIXED_BYTES, entry_len, parse).await?);
    }
    if !entries.is_at_end() {
        let problem = Problem::Contradicts("the bitmap directory's size");
        return Err(bad_field("bitmap count", extension.count.into(), problem));
    }
    Ok(all)
}

/// What a writer knows of the bitmaps in the file.
pub(crate) struct BitmapGuard {
    /// Some are trusted, or may be (`unsure`), or unknown autoclear bits are set.
    trusted: AtomicBool,
    /// Some were marked as in use since they were loaded or stored.
    marked: AtomicBool,
    /// The revision of the node's bitmaps that is in the file; `None`: they were not loaded.
    known: Mutex<Option<u64>>,
    /// Directories that the file may refer to, though the header in memory does not: a change of it failed.
    /// With their bitmaps, marked as in use, which they need not be in the file.
    unsure: Mutex<Vec<(BitmapsExtension, Vec<Bitmap>)>>,
    /// Held by the one change of the directory that is under way.
    turn: futures::lock::Mutex<()>,
}

impl BitmapGuard {
    /// For an image of these bitmaps. `unknown_autoclear` are the bits of what else in the image a writer
    /// makes stale who does not know it.
    pub(crate) fn of(bitmaps: &[Bitmap], unknown_autoclear: u64) -> Self {
        Self {
            trusted: AtomicBool::new(is_trusted(bitmaps, unknown_autoclear)),
            marked: AtomicBool::new(false),
            known: Mutex::new(None),
            unsure: Mutex::default(),
            turn: futures::lock::Mutex::default(),
        }
    }

    /// These stand in the file now.
    pub(crate) fn found(&self, bitmaps: &[Bitmap], unknown_autoclear: u64) {
        self.unsure.lock().clear();
        self.trusted.store(is_trusted(bitmaps, unknown_autoclear), Ordering::Release);
    }

    /// Whether they have to be marked before a change of the disk. One atomic load.
    #[inline]
    pub(crate) fn are_trusted(&self) -> bool {
        self.trusted.load(Ordering::Acquire)
    }
}

fn is_trusted(bitmaps: &[Bitmap], unknown_autoclear: u64) -> bool {
    any_trusted(bitmaps) || unknown_autoclear != 0
}

fn any_trusted(bitmaps: &[Bitmap]) -> bool {
    bitmaps.iter().any(|bitmap| !bitmap.in_use)
}

impl Qcow2Driver {
    /// Marks all bitmaps of the image as in use, clears unknown autoclear bits, and returns once that is
    /// stable. To be called before
    /// anything that changes what a guest reads, and with no pass of the gate.
    pub(crate) fn distrust_bitmaps(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let guard = &self.writer()?.bitmaps;
            if !guard.are_trusted() {
                return Ok(());
            }
            let _turn = guard.turn.lock().await;
            // Who has an exclusive turn may be changing where the directory is, and the header.
            let _pass = self.gate.enter().await;
            self.writer()?;
            if !guard.are_trusted() {
                return Ok(());
            }
            self.mark_unsure().await?;
            let mut bitmaps = self.lists.read().bitmaps.clone();
            bitmaps.iter_mut().for_each(|bitmap| bitmap.in_use = true);
            if let Some(place) = self.bitmaps_extension() {
                // In place: only flags change, and each lies in one sector.
                let (offset, len) = (place.directory_offset, place.directory_size);
                self.write_directory(offset, len, &bitmaps).await?;
                flush(&self.file).await?;
            }
            self.clear_unknown().await?;
            self.lists.write().bitmaps = bitmaps;
            guard.marked.store(true, Ordering::Release);
            guard.trusted.store(false, Ordering::Release);
            Ok(())
        })
    }

    /// Marks the bitmaps of directories that the file may refer to since a store failed, and returns once that
    /// is stable. Called in the turn of the guard or in an exclusive one of the gate: before a change of the
    /// disk, and before clusters that nothing is known to refer to may be given back.
    pub(crate) async fn mark_unsure(&self) -> Result<()> {
        let guard = &self.writer()?.bitmaps;
        let unsure = guard.unsure.lock().clone();
        if unsure.is_empty() {
            return Ok(());
        }
        for (place, marked) in &unsure {
            self.write_directory(place.directory_offset, place.directory_size, marked).await?;
        }
        flush(&self.file).await?;
        guard.unsure.lock().clear();
        Ok(())
    }

    /// Clears the autoclear bits that are not known here, and returns once that is stable. To be called
    /// before anything is written: what they vouch for may not be true afterwards.
    pub(crate) async fn clear_unknown(&self) -> Result<()> {
        if self.header.with(|parts| parts.header.unknown_autoclear == 0) {
            return Ok(());
        }
        self.header.update(|header| header.unknown_autoclear = 0).await?;
        flush(&self.file).await
    }

    /// Where the directory is, if it is up to date.
    fn bitmaps_extension(&self) -> Option<BitmapsExtension> {
        let extension = |parts: &crate::header_store::Parts| {
            parts.extensions.bitmaps.filter(|_| parts.header.features.bitmaps)
        };
        self.header.with(extension)
    }

    /// Writes a directory of `len` bytes, filled up with zeroes.
    async fn write_directory(
        &self,
        offset: HostOffset,
        len: u64,
        bitmaps: &[Bitmap],
    ) -> Result<()> {
        self.writer()?.overlap.check_metadata(Section::BitmapDirectory, offset, len)?;
        let (mut at, mut piece) = (0, Vec::new());
        for bitmap in bitmaps {
            if to_u64(piece.len()) >= PIECE {
                write_bytes(&self.file, offset.plus(at), &piece).await?;
                at += to_u64(piece.len());
                piece.clear();
            }
            piece.extend(encode(bitmap).map_err(request_error)?);
        }
        // The padding of the last entry may be missing.
        piece.resize(to_usize(len.saturating_sub(at)), 0);
        write_bytes(&self.file, offset.plus(at), &piece).await
    }
}

#[async_trait]
impl PersistentBitmaps for Qcow2Driver {
    async fn load(&self, into: &DirtyBitmaps) -> Result<(), OpenError> {
        self.load_bitmaps(into).await
    }

    async fn store(&self, from: &DirtyBitmaps) -> Result<()> {
        let stored: BoxFuture<'_, _> = Box::pin(self.store_bitmaps(from));
        let stored = stored.await;
        self.after(stored).await
    }

    fn can_store(&self, name: &str, granularity: u64) -> Result<()> {
        self.writer()?;
        let entry = Bitmap {
            name: name.to_owned(),
            granularity,
            in_use: false,
            auto: true,
            table_offset: HostOffset::new(0),
            table_size: table_size(self.geometry(), self.disk_len(), granularity)?,
            extra: Vec::new(),
        };
        let mut all = self.lists.read().bitmaps.clone();
        all.push(entry);
        check_storable(self.geometry(), self.disk_len(), &all)
    }
}

/// Entries of the table of a bitmap that can be stored.
fn table_size(geometry: Geometry, disk_len: u64, granularity: u64) -> Result<u32> {
    Granularity::new(granularity).map_err(|_| Error::Invalid)?;
    let clusters = bits::table_entries(geometry, disk_len, granularity);
    let size = u32::try_from(clusters).ok();
    let size = size.filter(|_| clusters.saturating_mul(geometry.cluster_size()) <= MAX_DATA_BYTES);
    size.ok_or(Error::Os(libc::EFBIG))
}

/// Whether an image may have these bitmaps; the bytes of their directory are bounded then.
fn check_storable(geometry: Geometry, disk_len: u64, bitmaps: &[Bitmap]) -> Result<()> {
    if geometry.version() == Version::V2 {
        return Err(Error::Unsupported);
    }
    if disk_len == 0 {
        // Its tables would be empty, which others do not read.
        return Err(Error::Invalid);
    }
    let mut bytes = 0;
    for bitmap in bitmaps {
        bytes += to_u64(encode(bitmap).map_err(|_| Error::Invalid)?.len());
    }
    if to_u64(bitmaps.len()) > MAX_BITMAPS.into() || bytes > MAX_DIRECTORY_BYTES {
        return Err(Error::Os(libc::EFBIG));
    }
    Ok(())
}
