//! An empty streamOptimized image: everything that closes a stream, and no grain.
//!
//! Layout: header, descriptor, and from the first multiple of the grain on the grain directory without a
//! table, the footer, which is the header with the place of the directory, and the end of the stream; each
//! behind its marker.

use block_core::driver::Prealloc;
use block_core::metadata::new_file::{clear, seal, write as write_at};
use block_core::{Node, OpenError};

use super::layout::{DESCRIPTOR, GRAIN_SECTORS};
use crate::extent::geometry::SECTOR;
use crate::spec::marker::{MetadataKind, MetadataMarker};
use crate::spec::sparse::{GrainDirectory, HeaderError, SparseHeader};
use crate::units::{Sector, SectorCount};

/// Sectors of the marker of the footer, the footer, and the end of the stream.
pub(crate) const TAIL_SECTORS: u64 = 3;
/// Sectors before the first marker.
pub(crate) const OVERHEAD: SectorCount = SectorCount(GRAIN_SECTORS);

const _: () = assert!(DESCRIPTOR.start.0 + DESCRIPTOR.count.0 <= OVERHEAD.0);

/// Writes an image of a disk of so many `sectors`, with the descriptor `text`.
pub(super) async fn write(file: &Node, sectors: SectorCount, text: &[u8]) -> Result<(), OpenError> {
    let head = header(sectors, GrainDirectory::InFooter)?;
    let directory = SectorCount::of_bytes(head.gd_entries() * 4);
    let marker = OVERHEAD.0;
    let footer = header(sectors, GrainDirectory::At(Sector(marker + 1)))?;
    let tail = marker + 1 + directory.0;
    clear("image file", file, (tail + TAIL_SECTORS) * SECTOR, Prealloc::Off).await?;

    let sector = |kind, count| MetadataMarker::new(kind, SectorCount(count)).to_sector();
    write_at("descriptor", file, DESCRIPTOR.start.0 * SECTOR, text).await?;
    let directory = sector(MetadataKind::GrainDirectory, directory.0);
    write_at("grain directory", file, marker * SECTOR, &directory).await?;
    let closing =
        [sector(MetadataKind::Footer, 1), footer.to_bytes(), sector(MetadataKind::EndOfStream, 0)];
    write_at("footer", file, tail * SECTOR, closing.as_flattened()).await?;
    seal("header", file, &head.to_bytes()).await
}

/// The header, or the footer, of a disk of so many `sectors`.
pub(crate) fn header(
    sectors: SectorCount,
    gd: GrainDirectory,
) -> Result<SparseHeader, HeaderError> {
    SparseHeader::stream_optimized(sectors, SectorCount(GRAIN_SECTORS), DESCRIPTOR, OVERHEAD, gd)
}
