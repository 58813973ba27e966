//! The bytes of a streamOptimized image, from the first to the last.
//!
//! Invariants: what is put is whole sectors; a table goes out as soon as a grain of another one comes; the grain
//! directory names what is in the file already.

use block_core::OpenError;
use block_core::job::stream::{Forward, Pieces, Report};
use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use futures::io::AsyncWrite;

use super::pack::Grains;
use super::{GRAIN, Head, WriteError};
use crate::create::{STREAM_OVERHEAD, stream_header};
use crate::spec::marker::{MetadataKind, MetadataMarker};
use crate::spec::sparse::{GTES_PER_GT_MAX, GrainDirectory};
use crate::units::{Sector, SectorCount};

/// Entries of a grain table.
const ENTRIES: u64 = 512;
const _: () = assert!(GTES_PER_GT_MAX == 512);
/// Sectors of the disk that a grain table maps.
const COVERAGE: u64 = GRAIN.0 * ENTRIES;

/// An image that is being written.
pub(super) struct Image<'a, S> {
    out: Forward<'a, S>,
    head: Head,
    /// Sectors of the grain tables that were written; 0 where there is none.
    directory: Vec<u32>,
    /// The grain table that is being filled, if it has a grain.
    table: Option<Table>,
}

/// A grain table.
struct Table {
    index: u64,
    entries: Vec<u32>,
    /// Where the last of its grains is on the disk.
    last: Sector,
}

impl<'a, S: AsyncWrite + Unpin + Send> Image<'a, S> {
    pub(super) fn new(out: Forward<'a, S>, head: Head) -> Self {
        let entries = head.capacity.0.div_ceil(COVERAGE);
        Self { out, head, directory: vec![0; to_usize(entries)], table: None }
    }

    /// Writes everything; gives the length of the file.
    pub(super) async fn write(
        mut self,
        pieces: &mut Pieces<Grains>,
        report: Report,
    ) -> Result<u64, WriteError> {
        report.tell(self.out.watch(), 0);
        let header = stream_header(self.head.capacity, GrainDirectory::InFooter);
        let header = header.map_err(OpenError::from)?;
        self.out.put(&header.to_bytes()).await?;
        self.out.put(&self.head.descriptor).await?;
        self.out.pad_to(STREAM_OVERHEAD.0 * SECTOR_SIZE).await?;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            for (lba, bytes) in piece.packed().grains() {
                // What fits into what is held back does not wait for the sink.
                if bytes.len() < self.out.room() && !self.ends_table(lba) {
                    self.put_grain(lba, bytes).await?;
                } else {
                    pieces.during(self.put_grain(lba, bytes)).await?;
                }
            }
            report.tell(self.out.watch(), piece.piece().end);
            pieces.recycle(piece);
        }
        self.put_table().await?;
        self.put_end().await?;
        report.tell(self.out.watch(), report.total);
        Ok(self.out.finish().await?)
    }

    /// Whether a grain at `lba` belongs to another table than the one before it.
    fn ends_table(&self, lba: Sector) -> bool {
        self.table.as_ref().is_some_and(|table| table.index != lba.0 / COVERAGE)
    }

    async fn put_grain(&mut self, lba: Sector, bytes: &[u8]) -> Result<(), WriteError> {
        if self.ends_table(lba) {
            self.put_table().await?;
        }
        let at = self.entry(lba)?;
        let new =
            || Table { index: lba.0 / COVERAGE, entries: vec![0; to_usize(ENTRIES)], last: lba };
        let table = self.table.get_or_insert_with(new);
        table.last = lba;
        if let Some(entry) = table.entries.get_mut(to_usize(lba.0 % COVERAGE / GRAIN.0)) {
            *entry = at;
        }
        Ok(self.out.put(bytes).await?)
    }

    /// Writes the table that is being filled.
    async fn put_table(&mut self) -> Result<(), WriteError> {
        let Some(table) = self.table.take() else { return Ok(()) };
        self.put_marker(MetadataKind::GrainTable, SectorCount::of_bytes(ENTRIES * 4)).await?;
        let at = self.entry(table.last)?;
        if let Some(entry) = self.directory.get_mut(to_usize(table.index)) {
            *entry = at;
        }
        self.put_entries(&table.entries).await
    }

    /// Writes the grain directory, the footer and the end of the stream.
    async fn put_end(&mut self) -> Result<(), WriteError> {
        let directory = std::mem::take(&mut self.directory);
        let sectors = SectorCount::of_bytes(to_u64(directory.len()) * 4);
        self.put_marker(MetadataKind::GrainDirectory, sectors).await?;
        let gd = GrainDirectory::At(Sector(self.out.at() / SECTOR_SIZE));
        self.put_entries(&directory).await?;
        self.put_marker(MetadataKind::Footer, SectorCount(1)).await?;
        let footer = stream_header(self.head.capacity, gd).map_err(OpenError::from)?;
        self.out.put(&footer.to_bytes()).await?;
        self.put_marker(MetadataKind::EndOfStream, SectorCount(0)).await
    }

    async fn put_marker(
        &mut self,
        kind: MetadataKind,
        sectors: SectorCount,
    ) -> Result<(), WriteError> {
        Ok(self.out.put(&MetadataMarker::new(kind, sectors).to_sector()).await?)
    }

    /// Writes numbers, and zeroes up to the end of the sector.
    async fn put_entries(&mut self, entries: &[u32]) -> Result<(), WriteError> {
        for entry in entries {
            self.out.put(&entry.to_le_bytes()).await?;
        }
        Ok(self.out.pad_to(self.out.at().next_multiple_of(SECTOR_SIZE)).await?)
    }

    /// The sector that is written next, as an entry of a table; `lba` is the grain that is to be found by it.
    fn entry(&self, lba: Sector) -> Result<u32, WriteError> {
        entry_at(self.out.at(), lba)
    }
}

/// The sector at byte `at` of the file, as an entry of a table.
fn entry_at(at: u64, lba: Sector) -> Result<u32, WriteError> {
    u32::try_from(at / SECTOR_SIZE).map_err(|_| WriteError::TooLong { offset: lba.0 * SECTOR_SIZE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_32_bits() {
        let last = u64::from(u32::MAX) * SECTOR_SIZE;
        assert!(matches!(entry_at(last, Sector(0)), Ok(u32::MAX)));
        let beyond = entry_at(last + SECTOR_SIZE, Sector(256));
        assert!(matches!(beyond, Err(WriteError::TooLong { offset: 0x2_0000 })));
    }
}
