//! From the bytes of the stream to batches of compressed grains.
//!
//! Invariants: a batch has grains that follow one another on the disk, and no more bytes than [`batch_bytes`] when they
//! are inflated; it is not given before its grains were entered in the ledger.

use std::ops::Range;

use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use futures::io::AsyncRead;

use super::front::Front;
use super::input::Input;
use super::ledger::{Ledger, Named};
use super::{ReadError, TableProblem};
use crate::spec::marker::{
    GrainMarker, MARKER_LEN, Marker, MetadataKind, MetadataMarker, PAYLOAD_OFFSET,
};
use crate::spec::sparse::{GrainDirectory, HEADER_LEN, SparseHeader};
use crate::units::{GrainIndex, Sector, SectorCount};

/// Shortest batch, inflated, so that what a batch costs vanishes beside its bytes.
const BATCH_BYTES_MIN: u64 = 256 << 10;
/// Bytes of a grain directory that are looked at together.
const DIRECTORY_BYTES: u64 = 64 << 10;

/// Bytes of a full batch when it is inflated.
pub(super) fn batch_bytes(grain: SectorCount) -> usize {
    to_usize(BATCH_BYTES_MIN.next_multiple_of(grain.0 * SECTOR_SIZE))
}

/// Compressed grains that follow one another on the disk.
pub(super) struct Batch {
    /// Where the first is on the disk.
    pub(super) lba: Sector,
    pub(super) grains: Vec<Stored>,
    /// Their zlib streams.
    pub(super) bytes: Vec<u8>,
}

/// A compressed grain.
pub(super) struct Stored {
    /// Where its marker is in the stream.
    pub(super) offset: u64,
    /// Its zlib stream.
    pub(super) range: Range<usize>,
}

/// Where the tables are.
pub(super) enum Tables {
    /// They came before the grains.
    Front(Front),
    /// They come behind the grains; where the grain directory came, once it has.
    Behind(Option<Sector>),
    /// The stream has ended.
    Over,
}

/// Reads a stream.
pub(super) struct Parser<R> {
    pub(super) input: Input<R>,
    pub(super) header: SparseHeader,
    pub(super) tables: Tables,
    pub(super) ledger: Ledger,
}

impl<R: AsyncRead + Unpin + Send> Parser<R> {
    /// The next batch; `None` once everything has come.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        let grain = self.header.grain_size();
        let most = batch_bytes(grain) / to_usize(grain.0 * SECTOR_SIZE);
        let mut batch: Option<Batch> = None;
        loop {
            let full = batch.as_ref().is_some_and(|batch| batch.grains.len() >= most);
            if full || matches!(self.tables, Tables::Over) {
                return Ok(batch);
            }
            if matches!(self.tables, Tables::Front(_)) && self.input.is_at_end().await? {
                self.end_of_front()?;
                continue;
            }
            let offset = self.input.offset();
            let marker = Marker::parse(self.input.peek(MARKER_LEN, "a marker").await?);
            match marker.map_err(|error| ReadError::Marker { offset, error })? {
                Marker::Grain(marker) => {
                    let follows = |batch: &Batch| {
                        batch.lba.0 + to_u64(batch.grains.len()) * grain.0 == marker.lba.0
                    };
                    if batch.as_ref().is_some_and(|batch| !follows(batch)) {
                        return Ok(batch);
                    }
                    let new = || Batch { lba: marker.lba, grains: Vec::new(), bytes: Vec::new() };
                    self.grain(marker, batch.get_or_insert_with(new)).await?;
                }
                Marker::Metadata(marker) => self.metadata(marker).await?,
            }
        }
    }

    async fn grain(&mut self, marker: GrainMarker, batch: &mut Batch) -> Result<(), ReadError> {
        let offset = self.input.offset();
        let at = Sector(offset / SECTOR_SIZE);
        let index = marker.check(self.header.grain_size(), self.header.capacity());
        let index = index.map_err(|error| ReadError::Marker { offset, error })?;
        let named = match &self.tables {
            Tables::Front(front) => named_by(front, index, at)?,
            Tables::Behind(None) => Named::No,
            Tables::Behind(Some(_)) | Tables::Over => {
                let (what, problem) = ("a grain", "the grain directory came already");
                return Err(ReadError::Order { offset, what, problem });
            }
        };
        self.ledger.grain(index, at, named)?;
        let len = to_usize(marker.stored_sectors().0 * SECTOR_SIZE);
        let stored = self.input.take(len, "a grain").await?;
        let end = PAYLOAD_OFFSET + to_usize(u64::from(marker.len));
        let start = batch.bytes.len();
        batch.bytes.extend_from_slice(stored.get(PAYLOAD_OFFSET..end).unwrap_or_default());
        batch.grains.push(Stored { offset, range: start..batch.bytes.len() });
        Ok(())
    }

    async fn metadata(&mut self, marker: MetadataMarker) -> Result<(), ReadError> {
        let offset = self.input.offset();
        let refuse = |what, problem| Err(ReadError::Order { offset, what, problem });
        let gd = match &self.tables {
            Tables::Front(_) if marker.kind == MetadataKind::EndOfStream => {
                self.end_of_front()?;
                return self.input.drain().await;
            }
            Tables::Front(_) => return refuse("metadata", "the tables stand at the front"),
            Tables::Over => return refuse("metadata", "the stream has ended"),
            Tables::Behind(gd) => *gd,
        };
        match (marker.kind, gd) {
            (MetadataKind::GrainTable, None) => self.grain_table(marker).await,
            (MetadataKind::GrainDirectory, None) => self.grain_directory(marker).await,
            (MetadataKind::Footer, Some(gd)) => self.footer(gd).await,
            (MetadataKind::GrainTable, Some(_)) => {
                refuse("a grain table", "the grain directory came already")
            }
            (MetadataKind::GrainDirectory, Some(_)) => {
                refuse("a grain directory", "it is the second")
            }
            (MetadataKind::Footer, None) => refuse("the footer", "no grain directory came"),
            (MetadataKind::EndOfStream, _) => refuse("the end of the stream", "no footer came"),
        }
    }

    /// Passes the marker and gives the sector behind it, where there are `needed` bytes at least.
    async fn enter(
        &mut self,
        marker: MetadataMarker,
        needed: u64,
        what: &'static str,
    ) -> Result<Sector, ReadError> {
        let offset = self.input.offset();
        if marker.sectors < SectorCount::of_bytes(needed) {
            let problem = "its marker says fewer sectors than it has";
            return Err(ReadError::Order { offset, what, problem });
        }
        self.input.skip(SECTOR_SIZE, what).await?;
        Ok(Sector(self.input.offset() / SECTOR_SIZE))
    }

    async fn grain_table(&mut self, marker: MetadataMarker) -> Result<(), ReadError> {
        let len = u64::from(self.header.gtes_per_gt()) * 4;
        let at = self.enter(marker, len, "a grain table").await?;
        let entries = self.input.take(to_usize(len), "a grain table").await?;
        self.ledger.table(at, entries)?;
        self.pass_rest(marker, len, "a grain table").await
    }

    async fn grain_directory(&mut self, marker: MetadataMarker) -> Result<(), ReadError> {
        let what = "the grain directory";
        let len = self.header.gd_entries() * 4;
        let at = self.enter(marker, len, what).await?;
        let mut done = 0;
        while done < len {
            let now = (len - done).min(DIRECTORY_BYTES);
            let entries = self.input.take(to_usize(now), what).await?;
            self.ledger.directory(done / 4, entries)?;
            done += now;
        }
        self.ledger.check_all_named()?;
        self.tables = Tables::Behind(Some(at));
        self.pass_rest(marker, len, what).await
    }

    /// Passes what a marker announced beside the `len` bytes that were read.
    async fn pass_rest(
        &mut self,
        marker: MetadataMarker,
        len: u64,
        what: &'static str,
    ) -> Result<(), ReadError> {
        let announced = marker.sectors.bytes().unwrap_or_default();
        self.input.skip(announced.saturating_sub(len), what).await
    }

    /// Reads the footer and the end of the stream.
    async fn footer(&mut self, gd: Sector) -> Result<(), ReadError> {
        self.input.skip(SECTOR_SIZE, "the footer").await?;
        let offset = self.input.offset();
        let footer = SparseHeader::parse(self.input.take(HEADER_LEN, "the footer").await?)?;
        let header = &self.header;
        let wrong = |field| Err(ReadError::Footer { offset, field });
        if footer.grain_directory() != GrainDirectory::At(gd) {
            return wrong("gdOffset");
        }
        if footer.capacity() != header.capacity() {
            return wrong("capacity");
        }
        if footer.grain_size() != header.grain_size() {
            return wrong("grainSize");
        }
        if footer.gtes_per_gt() != header.gtes_per_gt() {
            return wrong("numGTEsPerGT");
        }
        if !footer.is_compressed() || !footer.has_markers() {
            return wrong("flags");
        }
        let offset = self.input.offset();
        let what = "the end-of-stream marker";
        let sector = self.input.take(to_usize(SECTOR_SIZE), what).await?;
        match Marker::parse(sector).map_err(|error| ReadError::Marker { offset, error })? {
            Marker::Metadata(MetadataMarker { kind: MetadataKind::EndOfStream, .. }) => {}
            _ => {
                let problem = "another marker stands there";
                return Err(ReadError::Order { offset, what, problem });
            }
        }
        if !self.input.is_at_end().await? {
            return Err(ReadError::Trailing { offset: self.input.offset() });
        }
        self.tables = Tables::Over;
        Ok(())
    }

    /// No grain comes any more, and the tables stood at the front.
    fn end_of_front(&mut self) -> Result<(), ReadError> {
        if let Tables::Front(front) = &self.tables
            && front.named() != self.ledger.count()
        {
            let what = "the grains that its tables name";
            return Err(ReadError::Truncated { offset: self.input.offset(), what });
        }
        self.tables = Tables::Over;
        Ok(())
    }
}

/// Tables that stand at the front must name every grain that comes.
fn named_by(front: &Front, grain: GrainIndex, at: Sector) -> Result<Named, ReadError> {
    if front.place_of(grain) == Some(at) {
        return Ok(Named::Yes);
    }
    let problem = TableProblem::GrainLeftOut;
    Err(ReadError::Table { sector: at.0, problem })
}
