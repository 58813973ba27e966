//! The snapshot table and the bitmaps: their entries, and the clusters that these take.

use block_core::range::to_u64;
use block_core::{Node, OpenError, Result};

use crate::check::layout::Layout;
use crate::check::tables::TableReader;
use crate::check::walk::{L1, Walk};
use crate::geometry::{DataLocation, Version};
use crate::snapshot::MAX_TABLE_BYTES;
use crate::spec::bitmap::Bitmap;
use crate::spec::extension::BitmapsExtension;
use crate::spec::header::{MAX_L1_BYTES, Table};
use crate::spec::snapshot;
use crate::table::EntryReader;

/// Bits of a bitmap table entry that hold an offset.
const BITMAP_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What a check needs of a snapshot.
struct Entry {
    l1: Table,
    has_disk_len: bool,
    len: u64,
}

impl Walk<'_> {
    /// Counts the snapshot table and the L1 tables of snapshots.
    pub(super) async fn walk_snapshot_table(&mut self) -> Result<()> {
        let place = self.layout.header.snapshots;
        if place.count == 0 {
            return Ok(());
        }
        let start = place.offset;
        if self.layout.geometry().data_location() == DataLocation::DataFile {
            self.log.corruption(|| "there are snapshots beside a data file".to_owned());
        }
        let mut reader = EntryReader::new(self.file, "snapshot table", start, MAX_TABLE_BYTES);
        let mut entries = Vec::new();
        for index in 0..place.count {
            let parse = |bytes: &[u8]| {
                let parsed = snapshot::parse(bytes)?;
                let has_disk_len = parsed.disk_len.is_some();
                Ok(Entry { l1: parsed.l1, has_disk_len, len: to_u64(bytes.len()) })
            };
            match reader.next_entry(snapshot::FIXED_BYTES, snapshot::entry_len, parse).await {
                Ok(entry) => entries.push(entry),
                Err(OpenError::Request { error, .. }) => {
                    self.unreadable("the snapshot table", start.bytes(), error)?;
                    break;
                }
                Err(error) => {
                    self.faults.snapshots = true;
                    self.faults.unfollowed = true;
                    self.log.corruption(|| format!("entry {index} of the snapshot table: {error}"));
                    break;
                }
            }
        }
        let len = entries.iter().map(|entry| entry.len).sum();
        if !self.refer_minor("the snapshot table", start.bytes(), len)? {
            self.faults.snapshots = true;
            self.log.corruption(|| "the snapshot table overlaps other metadata".to_owned());
        }
        for (index, entry) in entries.iter().enumerate() {
            if !entry.has_disk_len && self.layout.geometry().version() != Version::V2 {
                self.faults.snapshots = true;
                self.log.corruption(|| {
                    format!("entry {index} of the snapshot table does not say the disk's size")
                });
            }
            self.refer_snapshot(index, entry.l1)?;
        }
        Ok(())
    }

    fn refer_snapshot(&mut self, index: usize, l1: Table) -> Result<()> {
        let (offset, count) = (l1.offset.bytes(), u64::from(l1.count));
        let is_aligned = self.layout.geometry().offset_in_cluster(offset) == 0;
        if count == 0 && is_aligned && self.layout.is_inside(offset) {
            return Ok(());
        }
        let problem = if count * 8 > MAX_L1_BYTES {
            Some("is too large")
        } else if !is_aligned || offset == 0 {
            Some("is not aligned to a cluster")
        } else if !self.layout.is_inside(offset)
            || !self.refer_minor("the L1 table of a snapshot", offset, count * 8)?
        {
            Some("overlaps other metadata or the end of the file")
        } else {
            self.snapshots.push(L1 { offset, count });
            None
        };
        if let Some(problem) = problem {
            self.faults.snapshots = true;
            self.faults.unfollowed = true;
            self.log.corruption(|| {
                format!("the L1 table at {offset:#x} of snapshot {index} {problem}")
            });
        }
        Ok(())
    }

    /// Counts the bitmap directory, the tables and the bits.
    pub(super) async fn walk_bitmaps(&mut self) -> Result<()> {
        if !self.layout.header.features.bitmaps {
            return Ok(());
        }
        let Some(extension) = self.layout.extensions.bitmaps else {
            self.bad_bitmaps(|| "the bitmaps extension is missing".to_owned());
            return Ok(());
        };
        if let Err(error) = extension.verify(self.layout.geometry()) {
            self.bad_bitmaps(|| error.to_string());
            return Ok(());
        }
        let (start, len) = (extension.directory_offset.bytes(), extension.directory_size);
        if !self.refer_minor("the bitmap directory", start, len)? {
            self.bad_bitmaps(|| "the bitmap directory overlaps something".to_owned());
            return Ok(());
        }
        let bitmaps = match self.load_bitmaps(extension).await {
            Ok(bitmaps) => bitmaps,
            Err(OpenError::Request { error, .. }) => {
                return self.unreadable("the bitmap directory", start, error);
            }
            Err(error) => {
                self.bad_bitmaps(|| error.to_string());
                return Ok(());
            }
        };
        for bitmap in &bitmaps {
            self.walk_bitmap(bitmap).await?;
        }
        Ok(())
    }

    async fn load_bitmaps(&self, extension: BitmapsExtension) -> Result<Vec<Bitmap>, OpenError> {
        crate::persist_bitmap::load(self.file, self.layout.geometry(), extension).await
    }

    /// Bitmaps that are damaged are of no use: a writer drops them.
    fn bad_bitmaps(&mut self, text: impl FnOnce() -> String) {
        self.faults.bitmaps = true;
        self.faults.unfollowed = true;
        self.log.corruption(text);
    }

    async fn walk_bitmap(&mut self, bitmap: &Bitmap) -> Result<()> {
        let (start, count) = (bitmap.table_offset.bytes(), u64::from(bitmap.table_size));
        let cluster_size = self.layout.cluster_size();
        let bits = self.layout.header.disk_len.div_ceil(bitmap.granularity);
        let needed = bits.div_ceil(8).div_ceil(cluster_size);
        let name = &bitmap.name;
        // A bitmap that is in use may have missed a change of the disk's size.
        if count != needed && !bitmap.in_use {
            self.bad_bitmaps(|| {
                format!("bitmap '{name}' has {count} clusters instead of {needed}")
            });
        }
        if self.layout.geometry().offset_in_cluster(start) != 0 || (start == 0 && count != 0) {
            self.bad_bitmaps(|| format!("the table of bitmap '{name}' is not aligned: {start:#x}"));
            return Ok(());
        }
        if !self.refer_minor("a bitmap table", start, count * 8)? {
            self.bad_bitmaps(|| format!("the table of bitmap '{name}' overlaps something"));
            return Ok(());
        }
        let mut reader = TableReader::new(self.file, start, count * 8);
        loop {
            let piece = match reader.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => return self.unreadable("a bitmap table", start, error),
            };
            for (index, raw) in (piece.first..count).zip(piece.words()) {
                let offset = raw & BITMAP_OFFSET;
                let reserved = !BITMAP_OFFSET & !u64::from(offset == 0);
                let aligned = self.layout.geometry().offset_in_cluster(offset) == 0;
                if raw & reserved != 0 || !aligned {
                    self.bad_bitmaps(|| format!("entry {index} of bitmap '{name}' is {raw:#x}"));
                } else if offset != 0
                    && !self.refer_minor("bits of a bitmap", offset, cluster_size)?
                {
                    self.bad_bitmaps(|| {
                        format!("the bits at {offset:#x} of bitmap '{name}' overlap something")
                    });
                }
            }
        }
    }
}

/// The entries of the snapshot table that can be kept, and how many: those whose L1 table is among
/// `good`, each with the disk's size where the version needs it.
pub(super) async fn snapshot_entries(
    file: &Node,
    layout: &Layout,
    good: &[L1],
) -> Result<(Vec<u8>, u32)> {
    let place = layout.header.snapshots;
    let mut reader = EntryReader::new(file, "snapshot table", place.offset, MAX_TABLE_BYTES);
    let (mut table, mut count) = (Vec::new(), 0);
    for _ in 0..place.count {
        let parse = |bytes: &[u8]| Ok((snapshot::parse(bytes)?, bytes.to_vec()));
        let entry = reader.next_entry(snapshot::FIXED_BYTES, snapshot::entry_len, parse).await;
        let Ok((parsed, bytes)) = entry else { break };
        let (offset, size) = (parsed.l1.offset.bytes(), u64::from(parsed.l1.count));
        let is_empty = size == 0 && layout.is_inside(offset);
        if !is_empty && !good.iter().any(|l1| l1.offset == offset && l1.count == size) {
            continue;
        }
        let v2 = layout.geometry().version() == Version::V2;
        if parsed.disk_len.is_some() || v2 {
            table.extend_from_slice(&bytes);
        } else {
            table.extend(snapshot::with_disk_len(&bytes, &parsed, layout.header.disk_len));
        }
        table.resize(table.len().next_multiple_of(8), 0);
        count += 1;
    }
    Ok((table, count))
}
