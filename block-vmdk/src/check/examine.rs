//! The layout of a sparse extent as far as a check can tell it, where the header or the footer is damaged.
//!
//! What readers and writers refuse is a fault here if something is left to read tables by: one of two
//! directories, or the marker of a directory whose footer is lost. Everything else is refused here too.
//!
//! **Invariant.** [`Mending`] holds what makes the faults go away: bytes for the header, and bytes for the
//! end of the file. Written as they are, the file has the layout that is in [`Examined::layout`].

use block_core::error::Problem;
use block_core::metadata::bytes::read_bytes;
use block_core::range::to_usize;
use block_core::{ByteRange, Node, OpenError};

use crate::error::bad_field;
use crate::extent::geometry::SECTOR;
use crate::extent::layout::{Header, SparseLayout};
use crate::identity::Identity;
use crate::spec::cowd;
use crate::spec::marker::{Marker, MetadataKind, MetadataMarker};
use crate::spec::sparse::{GrainDirectory, HEADER_LEN, MAGIC, SectorRange, SparseHeader};
use crate::units::{Sector, SectorCount};

/// Sectors of a footer: its marker, itself, the end of the stream.
pub(super) const FOOTER_SECTORS: u64 = 3;
/// How far from the end of the file a lost footer or directory is looked for, beside its length.
const SEARCH_BYTES: u64 = 1 << 20;
/// Places of fields in the header.
const FLAGS_AT: usize = 8;
const GD_AT: usize = 56;
const OVERHEAD_AT: usize = 64;
const UNCLEAN_AT: usize = crate::spec::sparse::UNCLEAN_SHUTDOWN_AT;
/// The flag of a redundant directory, in the first byte of the flags.
const FLAG_REDUNDANT_GD: u8 = 1 << 1;

/// A sparse extent's layout, and what is wrong with what says it.
pub(crate) struct Examined {
    pub(crate) layout: SparseLayout,
    /// What is wrong; a handful at most.
    pub(super) faults: Vec<String>,
    pub(super) mending: Mending,
    /// Where the footer's marker stands, if there is a footer.
    pub(super) footer: Option<Sector>,
    /// Whether the place of the directory is in the footer: then every table has a marker.
    pub(super) is_stream: bool,
    /// Whether the header says that the file was not closed.
    pub(super) unclean: bool,
}

/// What the file must hold for the faults to go away.
#[derive(Default)]
pub(super) struct Mending {
    /// The first sector.
    pub(super) header: Option<Vec<u8>>,
    /// The last sectors of the file, and where they start.
    pub(super) end: Option<(Sector, Vec<u8>)>,
}

/// Reads the layout of the extent in `file`.
pub(crate) async fn examine(file: &Node) -> Result<Examined, OpenError> {
    let head = read_sectors(file, 0, 1).await?;
    if !head.starts_with(&MAGIC) {
        let mut examined = Examined::sound(SparseLayout::read(file).await?);
        if let Header::Cowd(_) = examined.layout.header {
            let rest = read_sectors(file, 3, 1).await?;
            let at = cowd::UNCLEAN_SHUTDOWN_AT % HEADER_LEN;
            examined.unclean = rest.get(at..at + 4).is_some_and(|word| word != [0; 4]);
        }
        return Ok(examined);
    }
    let header = SparseHeader::parse(&head)?;
    match header.grain_directory() {
        GrainDirectory::At(gd) => of_header(file, head, &header, gd).await,
        GrainDirectory::InFooter => of_footer(file, head, &header).await,
    }
}

impl Examined {
    fn sound(layout: SparseLayout) -> Self {
        Self {
            layout,
            faults: Vec::new(),
            mending: Mending::default(),
            footer: None,
            is_stream: false,
            unclean: false,
        }
    }
}

/// A header that names its directories.
async fn of_header(
    file: &Node,
    mut head: Vec<u8>,
    header: &SparseHeader,
    gd: Sector,
) -> Result<Examined, OpenError> {
    let mut faults = Vec::new();
    let fixed = Fixed::new(file, header);
    let redundant = header.redundant_grain_directory();
    let primary_problem = fixed.problem_of(gd);
    let overlaps = |place: Sector| {
        (primary_problem.is_none() && fixed.overlap(gd, place)).then_some(Problem::Overlap)
    };
    let redundant_problem =
        redundant.and_then(|place| fixed.problem_of(place).or_else(|| overlaps(place)));
    match (primary_problem, redundant, redundant_problem) {
        (Some(problem), Some(place), None) => {
            let text = "the redundant directory is the only one";
            faults.push(format!("gdOffset is {:#x}: {problem}; {text}", gd.0));
            put(&mut head, GD_AT, &place.0.to_le_bytes());
            clear_redundant(&mut head);
        }
        (_, Some(place), Some(problem)) => {
            let text = "there is no redundant directory";
            faults.push(format!("rgdOffset is {:#x}: {problem}; {text}", place.0));
            clear_redundant(&mut head);
        }
        _ => {}
    }
    if header.overhead().0 > u64::from(u32::MAX) {
        let problem = Problem::Above(u32::MAX.into());
        faults.push(format!("overHead is {:#x}: {problem}", header.overhead().0));
        put(&mut head, OVERHEAD_AT, &fixed.end(header).to_le_bytes());
    }
    let mended = SparseHeader::parse(&head)?;
    let GrainDirectory::At(gd) = mended.grain_directory() else {
        return Err(bad_field("gdOffset", u64::MAX, Problem::Unknown));
    };
    let (markers, unclean) = (header.has_markers(), header.unclean_shutdown());
    let layout = SparseLayout::of_hosted(mended, gd, file)?;
    let mut examined = Examined { unclean, ..Examined::sound(layout) };
    if !faults.is_empty() {
        examined.mending.header = Some(head.clone());
    }
    examined.faults = faults;
    if markers {
        examined.look_at_spare_footer(file, &head).await?;
    }
    Ok(examined)
}

impl Examined {
    /// A footer that nobody needs, as the header has all that is in it: where there is one, it says so too.
    async fn look_at_spare_footer(&mut self, file: &Node, head: &[u8]) -> Result<(), OpenError> {
        let sectors = file.len().div_ceil(SECTOR);
        let Some(place) = sectors.checked_sub(FOOTER_SECTORS) else { return Ok(()) };
        let found = read_sectors(file, place, FOOTER_SECTORS).await?;
        if !sector(&found, 1).starts_with(&MAGIC) {
            return Ok(());
        }
        self.footer = Some(Sector(place));
        self.compare_footer(&found, head, Sector(place));
        Ok(())
    }

    /// The header as it must be. Where header and footer of a stream differ in the place of the descriptor or of
    /// the first marker, what stands in the file tells which of them is right.
    async fn settle(
        &mut self,
        file: &Node,
        header: &SparseHeader,
        mut head: Vec<u8>,
        footer: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        let descriptor = header.descriptor();
        let wrong_descriptor = descriptor != self.layout.descriptor
            && !has_descriptor(file, descriptor).await?
            && has_descriptor(file, self.layout.descriptor).await?;
        if !wrong_descriptor {
            self.layout.descriptor = descriptor;
        }
        let wrong_overhead = is_wrong_overhead(file, header, word(footer, OVERHEAD_AT)).await?;
        for (name, at, len) in FIELDS {
            let is = head.get(at..at + len).unwrap_or_default();
            let should = footer.get(at..at + len).unwrap_or_default();
            let wrong = match name {
                "descriptorOffset" | "descriptorSize" => wrong_descriptor,
                "overHead" => wrong_overhead,
                _ => false,
            };
            if wrong && is != should {
                self.faults.push(format!("{name} is {}, not {}", hex(is), hex(should)));
                put(&mut head, at, should);
                self.mending.header = Some(head.clone());
            }
        }
        Ok(head)
    }

    /// Holds the three last sectors against what they must be.
    fn compare_footer(&mut self, found: &[u8], head: &[u8], place: Sector) {
        let mut footer = head.to_vec();
        put(&mut footer, GD_AT, &self.layout.gd.0.to_le_bytes());
        let expected = footer_of(&footer);
        let before = self.faults.len();
        let mut differs = |what: &str, at: usize, len: usize| {
            let (is, should) = (found.get(at..at + len), expected.get(at..at + len));
            if is != should {
                let text = format!("{what} is {}", hex(is.unwrap_or_default()));
                self.faults.push(format!("{text}, not {}", hex(should.unwrap_or_default())));
            }
        };
        differs("the footer's marker: sectors", 0, 8);
        differs("the footer's marker: size", 8, 4);
        differs("the footer's marker: type", 12, 4);
        for (name, at, len) in FIELDS {
            differs(&format!("footer: {name}"), HEADER_LEN + at, len);
        }
        differs("the end-of-stream marker", 2 * HEADER_LEN, 16);
        if found.get(2 * HEADER_LEN + 16..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
            self.faults.push("the end-of-stream marker is followed by other bytes".to_owned());
        }
        if self.faults.len() > before {
            self.mending.end = Some((place, expected));
        }
    }
}

/// Fields of a footer that are those of the header: name, place and bytes.
const FIELDS: [(&str, usize, usize); 12] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("flags", FLAGS_AT, 4),
    ("capacity", 12, 8),
    ("grainSize", 20, 8),
    ("descriptorOffset", 28, 8),
    ("descriptorSize", 36, 8),
    ("numGTEsPerGT", 44, 4),
    ("rgdOffset", 48, 8),
    ("gdOffset", GD_AT, 8),
    ("overHead", OVERHEAD_AT, 8),
    ("compressAlgorithm", 77, 2),
];

/// A header whose footer names the directory.
async fn of_footer(
    file: &Node,
    head: Vec<u8>,
    header: &SparseHeader,
) -> Result<Examined, OpenError> {
    let unclean = header.unclean_shutdown();
    let sectors = file.len().div_ceil(SECTOR);
    let refused = match SparseLayout::of_footer(header, file).await {
        Ok(layout) => {
            let place = sectors.saturating_sub(FOOTER_SECTORS);
            let found = read_sectors(file, place, FOOTER_SECTORS).await?;
            let place = Sector(place);
            let footer = Some(place);
            let sound = Examined::sound(layout);
            let mut examined = Examined { unclean, footer, is_stream: true, ..sound };
            let other = sector(&found, 1);
            let head = examined.settle(file, header, head, other).await?;
            examined.compare_footer(&found, &head, place);
            return Ok(examined);
        }
        Err(error @ OpenError::Request { .. }) => return Err(error),
        Err(refused) => refused,
    };
    let Some((gd, place)) = find_directory(file, header).await? else { return Err(refused) };
    let mut footer = head;
    put(&mut footer, GD_AT, &gd.0.to_le_bytes());
    let layout = SparseLayout::of_hosted(SparseHeader::parse(&footer)?, gd, file)?;
    let expected = footer_of(&footer);
    let end = place.0 + FOOTER_SECTORS;
    let mut faults = vec![refused.to_string()];
    let found = read_sectors(file, place.0, FOOTER_SECTORS).await?;
    if found == expected && end < sectors {
        let bytes = file.len() - end * SECTOR;
        faults = vec![format!("{bytes} bytes follow the end of the stream")];
    }
    let mending = Mending { header: None, end: Some((place, expected)) };
    Ok(Examined { layout, faults, mending, footer: Some(place), is_stream: true, unclean })
}

/// Whether a descriptor stands there.
async fn has_descriptor(file: &Node, place: Option<SectorRange>) -> Result<bool, OpenError> {
    match Identity::read_embedded(file, place).await {
        Err(error @ OpenError::Request { .. }) => Err(error),
        found => Ok(matches!(found, Ok(Some(_)))),
    }
}

/// Whether the first marker of a stream stands where the footer says and not where the header does: of two
/// places that have one, the first is right.
async fn is_wrong_overhead(
    file: &Node,
    header: &SparseHeader,
    of_footer: u64,
) -> Result<bool, OpenError> {
    let own = header.overhead().0;
    Ok(own != of_footer
        && has_first_marker(file, header, of_footer).await?
        && (of_footer < own || !has_first_marker(file, header, own).await?))
}

/// Whether the sector has a marker that a stream can begin with.
async fn has_first_marker(
    file: &Node,
    header: &SparseHeader,
    place: u64,
) -> Result<bool, OpenError> {
    if place == 0 || place >= file.len() / SECTOR {
        return Ok(false);
    }
    let bytes = read_sectors(file, place, 1).await?;
    Ok(match Marker::parse(&bytes) {
        Ok(Marker::Grain(marker)) => marker.check(header.grain_size(), header.capacity()).is_ok(),
        Ok(Marker::Metadata(marker)) => {
            matches!(marker.kind, MetadataKind::GrainTable | MetadataKind::GrainDirectory)
        }
        Err(_) => false,
    })
}

/// The last directory in the file that has a marker, and where the footer belongs: behind it.
async fn find_directory(
    file: &Node,
    header: &SparseHeader,
) -> Result<Option<(Sector, Sector)>, OpenError> {
    let count = SectorCount::of_bytes(header.gd_entries() * 4).0;
    let sectors = file.len() / SECTOR;
    let far = sectors.saturating_sub(count + SEARCH_BYTES / SECTOR).max(header.overhead().0);
    let mut end = sectors.saturating_sub(count);
    while end > far {
        let start = end.saturating_sub(128).max(far);
        let bytes = read_sectors(file, start, end - start).await?;
        for n in (0..end - start).rev() {
            let is_directory = match Marker::parse(sector(&bytes, n)) {
                Ok(Marker::Metadata(found)) => {
                    found.kind == MetadataKind::GrainDirectory && found.sectors.0 == count
                }
                _ => false,
            };
            let gd = start + n + 1;
            if is_directory && gd + count <= sectors {
                return Ok(Some((Sector(gd), Sector(gd + count))));
            }
        }
        end = start;
    }
    Ok(None)
}

/// What of the file is taken by what the header names, and how long the file is.
struct Fixed {
    sectors: u64,
    descriptor: (u64, u64),
    /// Sectors of a directory.
    directory: u64,
}

impl Fixed {
    fn new(file: &Node, header: &SparseHeader) -> Self {
        let descriptor = header.descriptor().map_or((0, 1), |place| (place.start.0, place.count.0));
        Self {
            sectors: file.len().div_ceil(SECTOR),
            descriptor,
            directory: SectorCount::of_bytes(header.gd_entries() * 4).0,
        }
    }

    /// Why there is no directory at `place`.
    fn problem_of(&self, place: Sector) -> Option<Problem> {
        let (start, count) = self.descriptor;
        if place.0.saturating_add(self.directory) > self.sectors {
            Some(Problem::Truncated(self.sectors))
        } else if place.0 == 0 || (place.0 < start + count && start < place.0 + self.directory) {
            Some(Problem::Overlap)
        } else {
            None
        }
    }

    fn overlap(&self, one: Sector, other: Sector) -> bool {
        one.0.abs_diff(other.0) < self.directory
    }

    /// A number of sectors that is enough for what is at fixed places.
    fn end(&self, header: &SparseHeader) -> u64 {
        let grain = header.grain_size().0;
        self.sectors.min(u32::MAX.into()) / grain * grain
    }
}

/// Footer, its marker and the end of the stream.
fn footer_of(footer: &[u8]) -> Vec<u8> {
    let marker = MetadataMarker::new(MetadataKind::Footer, SectorCount(1));
    let mut bytes = marker.to_sector().to_vec();
    let mut footer = footer.to_vec();
    put(&mut footer, UNCLEAN_AT, &[0]);
    bytes.extend(footer);
    bytes.resize(3 * HEADER_LEN, 0);
    bytes
}

fn clear_redundant(head: &mut [u8]) {
    if let Some(flags) = head.get_mut(FLAGS_AT) {
        *flags &= !FLAG_REDUNDANT_GD;
    }
}

pub(super) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
}

/// A field of the format as the number that it is.
fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().rev().skip_while(|byte| **byte == 0);
    let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
    format!("0x{}", if digits.is_empty() { "0" } else { &digits })
}

/// The 64-bit number there.
fn word(bytes: &[u8], at: usize) -> u64 {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_le_bytes(number.copied().unwrap_or_default())
}

/// The sector of this number among `bytes`.
fn sector(bytes: &[u8], number: u64) -> &[u8] {
    let start = to_usize(number * SECTOR);
    bytes.get(start..start + HEADER_LEN).unwrap_or_default()
}

/// Sectors of the file; what is beyond its end is zero.
pub(super) async fn read_sectors(
    file: &Node,
    start: u64,
    count: u64,
) -> Result<Vec<u8>, OpenError> {
    let failed = |error| OpenError::Request { what: "header", error };
    let truncated = || bad_field("sector", start, Problem::Truncated(file.len()));
    let range = ByteRange::new(start * SECTOR, count * SECTOR).map_err(|_| truncated())?;
    Ok(read_bytes(file, range).await.map_err(failed)?.to_vec())
}
