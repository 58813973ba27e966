//! Everything fixed of a sparse extent's file: its header, checked, and where its tables are.
//!
//! [`SparseLayout::read`] is the only way from a file to it. **Invariant:** the directories lie inside of
//! the file; every place of a grain table in them is nonzero or means that there is none. Whether the
//! tables themselves lie inside of the file is checked when they are read.

use block_core::error::Problem;
use block_core::metadata::bytes::{read_bytes, read_inside};
use block_core::range::to_usize;
use block_core::{ByteRange, Node, OpenError};

use super::geometry::{EntryFormat, Geometry, SECTOR, ZeroedGrains};
use super::words::{long_words, words};
use crate::error::bad_field;
use crate::spec::cowd::{self, CowdHeader};
use crate::spec::marker::{Marker, MetadataKind};
use crate::spec::sesparse::{self, SeSparseHeader, VolatileHeader, decode_gde};
use crate::spec::sparse::{GrainDirectory, SectorRange, SparseHeader};
use crate::units::{Sector, SectorCount};

/// Bytes read of a directory at once.
const CHUNK: u64 = 1 << 20;

/// The header, by kind of extent.
#[derive(Clone, Debug)]
pub(crate) enum Header {
    /// `KDMV`.
    Hosted(SparseHeader),
    /// `COWD`.
    Cowd(Box<CowdHeader>),
    /// seSparse.
    SeSparse(SeSparseHeader),
}

/// What is fixed of a sparse extent.
#[derive(Clone, Debug)]
pub(crate) struct SparseLayout {
    /// The header that counts: the footer's copy where there is a footer.
    pub(crate) header: Header,
    pub(crate) geometry: Geometry,
    pub(crate) entries: EntryFormat,
    /// Where the grain directory is.
    pub(crate) gd: Sector,
    /// Where the redundant one is.
    pub(crate) redundant_gd: Option<Sector>,
    /// Where the embedded descriptor is.
    pub(crate) descriptor: Option<SectorRange>,
}

/// What becomes of an entry of a directory that is not one of the format (seSparse).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum BadTables {
    /// The directory is refused.
    Refused,
    /// The table's place is one that no file has, so that requests for it fail.
    Unreadable,
}

impl SparseLayout {
    /// Reads the header of the extent in `file`, and its footer if it has one.
    pub(crate) async fn read(file: &Node) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Request { what: "header", error };
        let head = ByteRange::up_to(file.len().min(SECTOR));
        let bytes = read_bytes(file, head).await.map_err(failed)?;
        if bytes.starts_with(&cowd::MAGIC) {
            return Self::of_cowd(CowdHeader::parse(&bytes)?, file);
        }
        if bytes.starts_with(&sesparse::MAGIC.to_le_bytes()) {
            return Self::of_sesparse(SeSparseHeader::parse(&bytes)?, file).await;
        }
        let header = SparseHeader::parse(&bytes)?;
        match header.grain_directory() {
            GrainDirectory::At(gd) => Self::of_hosted(header, gd, file),
            GrainDirectory::InFooter => Self::of_footer(&header, file).await,
        }
    }

    /// The footer is one sector, before the end-of-stream marker; its own marker stands before it.
    pub(crate) async fn of_footer(header: &SparseHeader, file: &Node) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Request { what: "footer", error };
        let truncated = || bad_field("footer", file.len(), Problem::Truncated(file.len()));
        let start = file.len().checked_sub(3 * SECTOR).ok_or_else(truncated)?;
        let range = ByteRange::new(start, 3 * SECTOR).map_err(|_| truncated())?;
        let bytes = read_bytes(file, range).await.map_err(failed)?;
        let sector = |n: usize| {
            let start = n * to_usize(SECTOR);
            bytes.get(start..start + to_usize(SECTOR)).unwrap_or_default()
        };
        let kinds = [
            ("footer marker type", sector(0), MetadataKind::Footer),
            ("end-of-stream marker type", sector(2), MetadataKind::EndOfStream),
        ];
        for (field, bytes, expected) in kinds {
            match Marker::parse(bytes)? {
                Marker::Metadata(found) if found.kind == expected => {}
                Marker::Metadata(found) => {
                    return Err(bad_field(field, found.kind.number().into(), Problem::Unknown));
                }
                Marker::Grain(grain) => {
                    return Err(bad_field(field, grain.lba.0, Problem::Unknown));
                }
            }
        }
        let footer = SparseHeader::parse(sector(1))?;
        let GrainDirectory::At(gd) = footer.grain_directory() else {
            return Err(bad_field("footer: gdOffset", u64::MAX, Problem::Unknown));
        };
        let same = [
            ("footer: capacity", footer.capacity(), header.capacity()),
            ("footer: grainSize", footer.grain_size(), header.grain_size()),
        ];
        for (field, own, other) in same {
            if own != other {
                return Err(bad_field(field, own.0, Problem::Contradicts("the header")));
            }
        }
        if footer.gtes_per_gt() != header.gtes_per_gt() {
            let (value, problem) =
                (footer.gtes_per_gt().into(), Problem::Contradicts("the header"));
            return Err(bad_field("footer: numGTEsPerGT", value, problem));
        }
        Self::of_hosted(footer, gd, file)
    }

    pub(crate) fn of_hosted(
        header: SparseHeader,
        gd: Sector,
        file: &Node,
    ) -> Result<Self, OpenError> {
        header.check_file_len(file.len())?;
        let zeroed = match header.has_zeroed_grains() {
            true => ZeroedGrains::Known,
            false => ZeroedGrains::Unknown,
        };
        let gtes = u64::from(header.gtes_per_gt());
        let geometry = geometry_of(header.capacity(), header.grain_size(), gtes)?;
        Ok(Self {
            geometry,
            entries: EntryFormat::Sectors { zeroed },
            gd,
            redundant_gd: header.redundant_grain_directory(),
            descriptor: header.descriptor(),
            header: Header::Hosted(header),
        })
    }

    fn of_cowd(header: CowdHeader, file: &Node) -> Result<Self, OpenError> {
        header.check_file_len(file.len())?;
        let gtes = u64::from(cowd::GTES_PER_GT);
        let geometry = geometry_of(header.capacity(), header.grain_size(), gtes)?;
        Ok(Self {
            geometry,
            entries: EntryFormat::Sectors { zeroed: ZeroedGrains::Unknown },
            gd: header.gd_offset(),
            redundant_gd: None,
            descriptor: None,
            header: Header::Cowd(Box::new(header)),
        })
    }

    async fn of_sesparse(header: SeSparseHeader, file: &Node) -> Result<Self, OpenError> {
        header.check_file_len(file.len())?;
        let volatile = header.volatile_header().start.offset().unwrap_or(file.len());
        let failed = |error| OpenError::Request { what: "volatile header", error };
        let bytes = read_inside(file, "volatile header", volatile, SECTOR).await;
        VolatileHeader::parse(&bytes.map_err(failed)?)?;
        let grain = SectorCount(sesparse::GRAIN_SECTORS);
        let geometry = geometry_of(header.capacity(), grain, sesparse::GTES_PER_GT)?;
        let (gd, grains) = (header.grain_directory(), header.grains());
        let too_far = || bad_field("grain offset", grains.start.0, Problem::Truncated(file.len()));
        let grains_at = grains.start.offset().ok_or_else(too_far)?;
        let grain_size = geometry.grain_size();
        Ok(Self {
            geometry,
            entries: EntryFormat::SeSparse { grains_at, grain_size },
            gd: gd.start,
            redundant_gd: None,
            descriptor: None,
            header: Header::SeSparse(header),
        })
    }

    /// Bytes of a grain directory.
    pub(crate) fn directory_bytes(&self) -> u64 {
        self.geometry.table_count() * self.entries.entry_bytes()
    }

    /// Bytes of a grain table.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.geometry.gtes_per_gt() * self.entries.entry_bytes()
    }

    /// Sectors that a grain table takes in the file.
    pub(crate) fn table_sectors(&self) -> SectorCount {
        SectorCount::of_bytes(self.table_bytes())
    }

    /// The hosted header, if it is one.
    pub(crate) fn hosted(&self) -> Option<&SparseHeader> {
        match &self.header {
            Header::Hosted(header) => Some(header),
            _ => None,
        }
    }

    /// The next free sector, where the header names it; zero elsewhere.
    pub(crate) fn free_sector(&self) -> u64 {
        match &self.header {
            Header::Cowd(header) => header.free_sector().0,
            Header::Hosted(_) | Header::SeSparse(_) => 0,
        }
    }

    /// Whether grains are compressed.
    pub(crate) fn is_compressed(&self) -> bool {
        self.hosted().is_some_and(SparseHeader::is_compressed)
    }

    /// Where the header itself and what belongs to it end.
    pub(crate) fn header_sectors(&self) -> SectorCount {
        match &self.header {
            Header::Hosted(_) => SectorCount(1),
            Header::Cowd(_) => SectorCount(cowd::HEADER_SECTORS),
            Header::SeSparse(_) => SectorCount(1),
        }
    }

    /// Reads the first `count` entries of the directory at `place`: the sector of each table, zero where there is
    /// none.
    pub(crate) async fn read_directory(
        &self,
        file: &Node,
        place: Sector,
        count: u64,
        bad: BadTables,
    ) -> Result<Vec<u32>, OpenError> {
        let what = "grain directory";
        let failed = |error| OpenError::Request { what, error };
        let truncated = || bad_field(what, place.0, Problem::Truncated(file.len()));
        let bytes = count * self.entries.entry_bytes();
        let mut tables = Vec::new();
        let no_memory = |_| failed(block_core::Error::NoMemory { bytes });
        tables.try_reserve_exact(to_usize(count)).map_err(no_memory)?;
        let start = place.offset().ok_or_else(truncated)?;
        let mut done = 0;
        while done < bytes {
            let len = CHUNK.min(bytes - done);
            let range = ByteRange::new(start + done, len).map_err(|_| truncated())?;
            if range.end() > file.len() {
                return Err(truncated());
            }
            let chunk = read_bytes(file, range).await.map_err(failed)?;
            match &self.header {
                Header::SeSparse(header) => {
                    for word in long_words(&chunk) {
                        tables.push(match (se_table(header, word), bad) {
                            (Err(_), BadTables::Unreadable) => u32::MAX,
                            (table, _) => table?,
                        });
                    }
                }
                Header::Hosted(_) | Header::Cowd(_) => tables.extend(words(&chunk)),
            }
            done += len;
        }
        Ok(tables)
    }
}

/// The sector of the table that an entry of a seSparse directory names; zero if it names none.
fn se_table(header: &SeSparseHeader, word: u64) -> Result<u32, OpenError> {
    let failed = |error| OpenError::Request { what: "grain directory", error };
    let Some(index) = decode_gde(word).map_err(failed)? else {
        return Ok(0);
    };
    let sector = header.grain_table(index).and_then(|sector| u32::try_from(sector.0).ok());
    let problem = Problem::Truncated(header.grain_tables().count.0);
    sector.ok_or_else(|| bad_field("grain directory entry", word, problem))
}

fn geometry_of(
    capacity: SectorCount,
    grain: SectorCount,
    gtes_per_gt: u64,
) -> Result<Geometry, OpenError> {
    let too_large = || bad_field("capacity", capacity.0, Problem::Unknown);
    Geometry::new(capacity, grain, gtes_per_gt).ok_or_else(too_large)
}
