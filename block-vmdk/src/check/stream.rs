//! Compressed grains and the markers of streamOptimized extents.

use block_core::metadata::bytes::write_bytes;
use block_core::range::MAX_LEN;
use block_core::{Problem, Result};

use super::examine::read_sectors;
use super::refused;
use super::walk::{State, Walk, Which};
use crate::extent::geometry::SECTOR;
use crate::spec::marker::{GrainMarker, Marker, MarkerError, MetadataKind, MetadataMarker};
use crate::units::SectorCount;

/// Why there is no compressed grain where an entry says.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum GrainFault {
    /// Its marker is none, or not one of this extent.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// A marker of metadata is there.
    #[error("a marker of metadata is there")]
    Metadata,
    /// It is another grain.
    #[error("the grain marker's LBA is {found:#x}, not {expected:#x}")]
    Lba {
        /// Of the marker.
        found: u64,
        /// Of the entry.
        expected: u64,
    },
}

impl Walk<'_> {
    /// How many sectors the compressed grain of an entry takes.
    pub(super) async fn packed_grain(
        &mut self,
        number: u32,
        index: u64,
        sector: u32,
    ) -> Result<Result<u64, GrainFault>> {
        let layout = &self.examined.layout;
        let geometry = layout.geometry;
        let sectors = |bytes: u64| SectorCount(bytes / SECTOR);
        let expected = u64::from(number) * geometry.coverage() + index * geometry.grain_size();
        let bytes = read_sectors(self.file, sector.into(), 1).await.map_err(refused)?;
        let marker = match Marker::parse(&bytes) {
            Ok(Marker::Grain(marker)) => marker,
            Ok(Marker::Metadata(_)) => return Ok(Err(GrainFault::Metadata)),
            Err(error) => return Ok(Err(error.into())),
        };
        if marker.lba.0 != expected / SECTOR {
            let (found, expected) = (marker.lba.0, expected / SECTOR);
            return Ok(Err(GrainFault::Lba { found, expected }));
        }
        if let Err(error) = marker.check(sectors(geometry.grain_size()), sectors(geometry.len())) {
            return Ok(Err(error.into()));
        }
        let room = self.file.len().saturating_sub(u64::from(sector) * SECTOR);
        Ok(in_file(marker, room).map_err(GrainFault::from).map(|()| marker.stored_sectors().0))
    }

    /// In a stream every table has a marker, and the directory has one. Where a table has none, and no
    /// entry of it names a grain of its own, there is no table.
    pub(super) async fn look_at_markers(&mut self) -> Result<()> {
        if !self.examined.is_stream {
            return Ok(());
        }
        let mut readers = self.readers();
        let mut refused = false;
        for place in self.marked_places() {
            if self.has_marker(place).await? {
                continue;
            }
            self.faults.markers = true;
            let Marked { table, sector, .. } = place;
            let what =
                table.map_or("the grain directory".to_owned(), |n| format!("grain table {n}"));
            self.log.corruption(|| format!("there is no marker of {what} at sector {sector:#x}"));
            let Some(number) = table else { continue };
            let entries = self.read(&mut readers, Which::Primary, number).await?;
            if !self.has_own_grain(number, &entries.unwrap_or_default()).await? {
                self.refuse_place(Which::Primary, number);
                refused = true;
            }
        }
        if refused {
            self.claim_again();
        }
        Ok(())
    }

    /// Whether an entry of the table names a grain of this entry, or there are no entries to tell by.
    async fn has_own_grain(&mut self, number: u32, entries: &[u32]) -> Result<bool> {
        let mut seen = false;
        for (index, word) in (0u64..).zip(entries) {
            seen |= *word != 0;
            if let State::Grain(sector) = self.state(*word)
                && self.packed_grain(number, index, sector).await?.is_ok()
            {
                return Ok(true);
            }
        }
        Ok(!seen)
    }

    /// Writes the markers that are not there, but not over grains.
    pub(super) async fn write_markers(&mut self) -> Result<()> {
        for place in self.marked_places() {
            let Marked { sector, marker, .. } = place;
            if !self.has_marker(place).await? && !self.has_grain_in(sector, 1) {
                write_bytes(self.file, sector * SECTOR, &marker.to_sector()).await?;
                self.log.repaired(|| format!("the marker at sector {sector:#x} was written anew"));
            }
        }
        self.file.flush().await
    }

    /// Where markers of metadata must be.
    fn marked_places(&self) -> Vec<Marked> {
        let layout = &self.examined.layout;
        let count = SectorCount::of_bytes(layout.directory_bytes());
        let marker = MetadataMarker::new(MetadataKind::GrainDirectory, count);
        let sector = layout.gd.0.saturating_sub(1);
        let mut places = vec![Marked { table: None, sector, marker }];
        let marker = MetadataMarker::new(MetadataKind::GrainTable, layout.table_sectors());
        for number in 0..self.table_count() {
            if let Some(table) = self.place_of(Which::Primary, number) {
                let sector = u64::from(table).saturating_sub(1);
                places.push(Marked { table: Some(number), sector, marker });
            }
        }
        places
    }

    async fn has_marker(&self, place: Marked) -> Result<bool> {
        let bytes = read_sectors(self.file, place.sector, 1).await.map_err(refused)?;
        Ok(Marker::parse(&bytes) == Ok(Marker::Metadata(place.marker)))
    }
}

/// A marker of metadata, and where it must be.
#[derive(Clone, Copy)]
struct Marked {
    /// The table that it is of; `None`: the directory.
    table: Option<u32>,
    sector: u64,
    marker: MetadataMarker,
}

/// Whether a grain ends inside of the file.
fn in_file(marker: GrainMarker, room: u64) -> Result<(), MarkerError> {
    if marker.stored_len() <= room.min(MAX_LEN) {
        return Ok(());
    }
    let (field, value) = ("grain marker size", marker.len.into());
    Err(MarkerError::Field { field, value, problem: Problem::Truncated(room) })
}
