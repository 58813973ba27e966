//! Grain tables, read in large pieces, and without reading the holes of the file.
//!
//! Invariant: a [`TableReader`] holds at most [`CHUNK`] bytes, and one table if that is longer.

use block_core::metadata::bytes::{is_hole, read_inside};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Node, OwnedBuf, Result};

use super::places::Directory;
use crate::extent::geometry::SECTOR;
use crate::extent::layout::SparseLayout;
use crate::extent::words::words;

/// Most bytes of tables that are read at once.
const CHUNK: u64 = 1 << 20;

/// Reads the tables of one directory.
pub(super) struct TableReader<'a> {
    file: &'a Node,
    sectors: u64,
    table_bytes: u64,
    /// The first sector of what was read.
    first: u64,
    bytes: Option<OwnedBuf>,
    /// Up to this sector, from `first` on, the file is known to be a hole.
    hole_end: u64,
}

impl<'a> TableReader<'a> {
    pub(super) fn new(file: &'a Node, layout: &SparseLayout) -> Self {
        let (sectors, table_bytes) = (layout.table_sectors().0, layout.table_bytes());
        Self { file, sectors, table_bytes, first: 0, bytes: None, hole_end: 0 }
    }

    /// The entries of the table `number` of the directory, which has a place inside of the file.
    pub(super) async fn read(&mut self, directory: &Directory, number: u32) -> Result<Vec<u32>> {
        let sector = u64::from(directory.table(number).unwrap_or(0));
        let end = sector + self.sectors;
        if sector >= self.first && end <= self.hole_end {
            return Ok(vec![0; to_usize(self.table_bytes / 4)]);
        }
        if let Some(table) = self.held(sector) {
            return Ok(words(table).collect());
        }
        let most = (CHUNK / SECTOR / self.sectors).max(1);
        let count = directory.run(number, self.sectors, most);
        let stride = self.sectors * SECTOR;
        let range = ByteRange::new(sector * SECTOR, (count - 1) * stride + self.table_bytes)?;
        let range = range.intersect(ByteRange::up_to(self.file.len()));
        let is_hole = is_hole(self.file, range).await?;
        self.first = sector;
        if is_hole {
            self.hole_end = sector + count * self.sectors;
            self.bytes = None;
            return Ok(vec![0; to_usize(self.table_bytes / 4)]);
        }
        self.hole_end = 0;
        self.bytes = None;
        let read = read_inside(self.file, "grain table", range.offset(), range.len());
        self.bytes = Some(read.await?);
        Ok(self.held(sector).map(|table| words(table).collect()).unwrap_or_default())
    }

    fn held(&self, sector: u64) -> Option<&[u8]> {
        let start = to_usize(sector.checked_sub(self.first)?.checked_mul(SECTOR)?);
        self.bytes.as_ref()?.get(start..start.checked_add(to_usize(self.table_bytes))?)
    }
}

/// Entries as they stand in the file.
pub(super) fn encode(entries: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 4);
    entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_le_bytes()));
    debug_assert_eq!(to_u64(bytes.len()), to_u64(entries.len()) * 4);
    bytes
}
