//! A walk over the tables of a hosted or COWD extent.
//!
//! First all that the header and the directories name is claimed, then all tables are read once, both
//! copies side by side. Where the copies of a table differ, or a table's place is doubtful, what the other
//! tables refer to decides ([`Walk::settle`]). Only where something is wrong a second pass names the
//! entries.
//!
//! Invariants: memory is that of both directories and of a few bits for each grain that is referred to; a
//! table is read once in a pass, whatever the directories say, so that no pass takes longer than the file
//! is long.

use block_core::error::Problem;
use block_core::range::to_usize;
use block_core::{Error, Node, Result};
use roaring::RoaringBitmap;

use super::examine::{Examined, FOOTER_SECTORS};
use super::log::Log;
use super::places::{Claims, Directory, table_problem};
use super::refused;
use super::tables::TableReader;
use crate::extent::geometry::{Entry, SECTOR};
use crate::extent::layout::{BadTables, Header};
use crate::units::Sector;

/// Sectors that an entry can name.
pub(super) const SECTORS_MAX: u64 = 1 << 32;

/// What kinds of damage a walk met.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Faults {
    /// Entries of tables are wrong.
    pub(super) entries: bool,
    /// Something was not followed, so that what it refers to looks like a leak.
    pub(super) unfollowed: bool,
    /// A directory stands over something else: nothing can be written to it.
    pub(super) hopeless: bool,
    /// Tables lack their redundant copy.
    pub(super) holes: bool,
    /// Markers of tables are missing.
    pub(super) markers: bool,
}

/// What an entry of a table says, as far as it can be told from itself and the file's length.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// No grain.
    Empty,
    /// A grain that starts at this sector.
    Grain(u32),
    /// A grain that is not in the file.
    Beyond,
}

/// A walk, and what it found.
pub(super) struct Walk<'a> {
    pub(super) file: &'a Node,
    pub(super) examined: &'a Examined,
    pub(super) log: Log<'a>,
    /// Sectors that hold metadata.
    pub(super) claims: Claims,
    /// The same without tables.
    fixed: Claims,
    pub(super) primary: Directory,
    pub(super) redundant: Option<Directory>,
    /// Where grains start.
    pub(super) starts: RoaringBitmap,
    /// Starts of grains that overlap others, or that several entries name.
    pub(super) shared: RoaringBitmap,
    /// Starts of grains that stand over metadata.
    pub(super) over: RoaringBitmap,
    /// Sectors of compressed grains.
    pub(super) packed: RoaringBitmap,
    /// Tables whose copies differ, or whose place is doubtful.
    pub(super) differ: RoaringBitmap,
    /// Of them, those whose redundant copy is the sound one.
    pub(super) from_redundant: RoaringBitmap,
    pub(super) faults: Faults,
}

impl<'a> Walk<'a> {
    /// Walks over the extent in `file`.
    pub(super) async fn run(file: &'a Node, examined: &'a Examined, log: Log<'a>) -> Result<Self> {
        let layout = &examined.layout;
        let primary = Self::directory(file, examined, "grain directory", layout.gd).await?;
        let redundant = match layout.redundant_gd {
            Some(place) => {
                Some(Self::directory(file, examined, "redundant grain directory", place).await?)
            }
            None => None,
        };
        let mut walk = Self {
            file,
            examined,
            log,
            claims: Claims::default(),
            fixed: Claims::default(),
            primary,
            redundant,
            starts: RoaringBitmap::new(),
            shared: RoaringBitmap::new(),
            over: RoaringBitmap::new(),
            packed: RoaringBitmap::new(),
            differ: RoaringBitmap::new(),
            from_redundant: RoaringBitmap::new(),
            faults: Faults::default(),
        };
        for fault in &examined.faults {
            walk.log.corruption(|| fault.clone());
        }
        walk.claim_fixed();
        walk.claim_tables();
        walk.look_at_markers().await?;
        walk.read_tables().await?;
        walk.settle().await?;
        walk.find_overlaps();
        walk.name_entries().await?;
        walk.count_leaks();
        walk.look_at_header();
        Ok(walk)
    }

    async fn directory(
        file: &Node,
        examined: &Examined,
        name: &'static str,
        place: Sector,
    ) -> Result<Directory> {
        let count = examined.layout.geometry.table_count();
        let read = examined.layout.read_directory(file, place, count, BadTables::Refused);
        let tables = read.await.map_err(refused)?;
        Ok(Directory { name, place, tables, bad: RoaringBitmap::new() })
    }

    fn claim_fixed(&mut self) {
        let layout = &self.examined.layout;
        let directory = layout.directory_bytes().div_ceil(SECTOR);
        let mut places = vec![("the header", 0, layout.header_sectors().0)];
        if let Some(place) = layout.descriptor {
            places.push(("the descriptor", place.start.0, place.count.0));
        }
        // The marker before it, where there are markers.
        let before = u64::from(self.examined.is_stream);
        let gd = layout.gd.0.saturating_sub(before);
        places.push(("the grain directory", gd, directory + before));
        if let Some(place) = layout.redundant_gd {
            places.push(("the redundant grain directory", place.0, directory));
        }
        if let Some(place) = self.examined.footer {
            places.push(("the footer", place.0, FOOTER_SECTORS));
        }
        for (what, start, count) in places {
            if count > 0 && !self.fixed.claim(start, count) {
                self.faults.unfollowed = true;
                self.faults.hopeless = true;
                self.log.corruption(|| format!("{what} at sector {start:#x} overlaps others"));
            }
        }
    }

    /// Sectors before a table that belong to it: its marker.
    pub(super) fn marker_sectors(&self) -> u64 {
        u64::from(self.examined.is_stream)
    }

    /// Sectors of the file that a table at `sector` takes.
    pub(super) fn table_place(&self, sector: u32) -> (u64, u64) {
        let before = self.marker_sectors();
        let count = self.examined.layout.table_sectors().0;
        (u64::from(sector).saturating_sub(before), count + before)
    }

    /// Number of tables of the extent.
    pub(super) fn table_count(&self) -> u32 {
        u32::try_from(self.primary.tables.len()).unwrap_or(u32::MAX)
    }

    /// Claims the places of tables; says which are none.
    fn claim_tables(&mut self) {
        let (layout, len) = (&self.examined.layout, self.file.len());
        self.claims = self.fixed.clone();
        let before = self.marker_sectors();
        let count = layout.table_sectors().0 + before;
        for directory in std::iter::once(&mut self.primary).chain(&mut self.redundant) {
            for (number, sector) in (0u32..).zip(&directory.tables) {
                if *sector == 0 {
                    continue;
                }
                if let Some(problem) = table_problem(layout, &self.fixed, *sector, len) {
                    directory.bad.insert(number);
                    let name = directory.name;
                    self.log
                        .corruption(|| format!("{name} entry {number} is {sector:#x}: {problem}"));
                    continue;
                }
                self.claims.claim(u64::from(*sector).saturating_sub(before), count);
            }
        }
        let bad = |directory: &Directory| !directory.bad.is_empty();
        self.faults.unfollowed |= bad(&self.primary) || self.redundant.as_ref().is_some_and(bad);
    }

    /// Whether several tables want the place of this one.
    pub(super) fn is_contested(&self, sector: u32) -> bool {
        let (start, count) = self.table_place(sector);
        self.claims.is_contested(start, count)
    }

    /// Claims places anew, after some turned out to be none. A table in another's place is not followed.
    pub(super) fn claim_again(&mut self) {
        let mut claims = self.fixed.clone();
        let before = self.marker_sectors();
        let count = self.examined.layout.table_sectors().0 + before;
        for directory in std::iter::once(&mut self.primary).chain(&mut self.redundant) {
            for (number, sector) in (0u32..).zip(&directory.tables) {
                if *sector == 0 || directory.bad.contains(number) {
                    continue;
                }
                if !claims.claim(u64::from(*sector).saturating_sub(before), count) {
                    self.faults.unfollowed = true;
                    directory.bad.insert(number);
                    let (name, problem) = (directory.name, Problem::Overlap);
                    self.log
                        .corruption(|| format!("{name} entry {number} is {sector:#x}: {problem}"));
                }
            }
        }
        self.claims = claims;
    }

    /// Says that a table's place is none, as something else is there.
    pub(super) fn refuse_place(&mut self, which: Which, number: u32) {
        let Some(directory) = self.directory_mut(which) else { return };
        let (name, sector) = (directory.name, directory.entry(number).unwrap_or(0));
        if directory.bad.insert(number) {
            let problem = Problem::Overlap;
            self.log.corruption(|| format!("{name} entry {number} is {sector:#x}: {problem}"));
        }
    }

    fn directory_mut(&mut self, which: Which) -> Option<&mut Directory> {
        match which {
            Which::Primary => Some(&mut self.primary),
            Which::Redundant => self.redundant.as_mut(),
        }
    }

    /// The place of a copy of a table, if there is one to follow.
    pub(super) fn place_of(&self, which: Which, number: u32) -> Option<u32> {
        match which {
            Which::Primary => self.primary.table(number),
            Which::Redundant => self.redundant.as_ref()?.table(number),
        }
    }

    /// Readers of both copies.
    pub(super) fn readers(&self) -> Readers<'a> {
        let layout = &self.examined.layout;
        Readers {
            primary: TableReader::new(self.file, layout),
            redundant: TableReader::new(self.file, layout),
        }
    }

    /// The entries of a copy of a table that map something; `None` if there is none, or it cannot be read.
    pub(super) async fn read(
        &mut self,
        readers: &mut Readers<'a>,
        which: Which,
        number: u32,
    ) -> Result<Option<Vec<u32>>> {
        if self.place_of(which, number).is_none() {
            return Ok(None);
        }
        let read = match (which, &self.redundant) {
            (Which::Redundant, Some(redundant)) => readers.redundant.read(redundant, number).await,
            _ => readers.primary.read(&self.primary, number).await,
        };
        match read {
            Ok(mut entries) => {
                entries.truncate(self.mapped(number));
                Ok(Some(entries))
            }
            Err(error) => {
                self.unreadable(&format!("grain table {number}"), error)?;
                Ok(None)
            }
        }
    }

    /// Entries of a table that map something: the last one may map less than others.
    fn mapped(&self, number: u32) -> usize {
        let geometry = self.examined.layout.geometry;
        let len = geometry.table_range(number.into()).len();
        to_usize(geometry.grain_alignment().count_up(len))
    }

    /// Reads all tables, and notes the grains of those about which there is no doubt.
    async fn read_tables(&mut self) -> Result<()> {
        let mut readers = self.readers();
        for number in 0..self.table_count() {
            let places =
                [Which::Primary, Which::Redundant].map(|which| self.place_of(which, number));
            let contested = self.claims.has_contests()
                && places.iter().flatten().any(|sector| self.is_contested(*sector));
            match places {
                [None, None] => {}
                [None, Some(_)] => {
                    self.differ.insert(number);
                }
                _ if contested => {
                    self.differ.insert(number);
                }
                [Some(_), _] => {
                    let primary = self.read(&mut readers, Which::Primary, number).await?;
                    let redundant = self.read(&mut readers, Which::Redundant, number).await?;
                    let Some(primary) = primary else { continue };
                    if redundant.is_some_and(|redundant| redundant != primary) {
                        self.differ.insert(number);
                    } else {
                        self.note(number, &primary).await?;
                        self.look_for_hole(number);
                    }
                }
            }
        }
        Ok(())
    }

    /// A table without a redundant copy, where others have one.
    pub(super) fn look_for_hole(&mut self, number: u32) {
        let Some(redundant) = &self.redundant else { return };
        if redundant.entry(number) == Some(0) {
            self.faults.holes = true;
            let sector = self.primary.entry(number).unwrap_or(0);
            self.log.leaks(1, || {
                format!(
                    "redundant grain directory entry {number} is 0, the primary one {sector:#x}"
                )
            });
        }
    }

    /// What an entry says.
    pub(super) fn state(&self, word: u32) -> State {
        match self.examined.layout.entries.decode(word.into()) {
            Ok(Entry::Unallocated | Entry::Zeroed) => State::Empty,
            Ok(Entry::At(at))
                if at < self.file.len() && at / SECTOR + self.grain() <= SECTORS_MAX =>
            {
                State::Grain(word)
            }
            _ => State::Beyond,
        }
    }

    /// Sectors of a grain.
    pub(super) fn grain(&self) -> u64 {
        self.examined.layout.geometry.grain_size() / SECTOR
    }

    /// Notes the grains of a table.
    pub(super) async fn note(&mut self, number: u32, entries: &[u32]) -> Result<()> {
        let compressed = self.examined.layout.is_compressed();
        for (index, word) in (0u64..).zip(entries) {
            match self.state(*word) {
                State::Empty => {}
                State::Beyond => self.faults.entries = true,
                State::Grain(sector) if compressed => {
                    match self.packed_grain(number, index, sector).await? {
                        Ok(count) => self.note_packed(sector, count),
                        Err(_) => self.faults.entries = true,
                    }
                }
                State::Grain(sector) => {
                    if !self.starts.insert(sector) {
                        self.shared.insert(sector);
                    }
                }
            }
        }
        Ok(())
    }

    fn note_packed(&mut self, sector: u32, count: u64) {
        self.starts.insert(sector);
        let last = u64::from(sector) + count - 1;
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        if self.claims.overlaps(sector.into(), count) {
            self.over.insert(sector);
        }
        if self.packed.insert_range(sector..=last) != count {
            self.shared.insert(sector);
        }
    }

    /// Whether a grain that was noted stands in these sectors.
    pub(super) fn has_grain_in(&self, start: u64, count: u64) -> bool {
        let Some(last) = start.checked_add(count).and_then(|end| end.checked_sub(1)) else {
            return false;
        };
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        let compressed = self.examined.layout.is_compressed();
        let from = if compressed { start } else { start.saturating_sub(self.grain() - 1) };
        let Ok(first) = u32::try_from(from) else { return false };
        let grains = if compressed { &self.packed } else { &self.starts };
        first <= last && grains.range_cardinality(first..=last) > 0
    }

    /// Whether a grain stands where a copy of a table does.
    pub(super) fn has_grain_over(&self, which: Which, number: u32) -> bool {
        self.place_of(which, number).is_some_and(|sector| {
            let (start, count) = self.table_place(sector);
            self.has_grain_in(start, count)
        })
    }

    /// Finds grains over others and over metadata, by their starts.
    fn find_overlaps(&mut self) {
        if self.examined.layout.is_compressed() {
            return;
        }
        let (grain, end) = (self.grain(), self.claims.end());
        let mut before: Option<u32> = None;
        for start in &self.starts {
            if u64::from(start) < end && self.claims.overlaps(start.into(), grain) {
                self.over.insert(start);
            }
            if let Some(before) = before
                && u64::from(start - before) < grain
            {
                self.shared.insert(before);
                self.shared.insert(start);
            }
            before = Some(start);
        }
    }

    /// Counts runs of sectors that nothing refers to and that a grain fits into.
    fn count_leaks(&mut self) {
        if self.examined.layout.is_compressed() || self.examined.is_stream {
            return;
        }
        let grain = self.grain();
        let mut log = std::mem::replace(&mut self.log, Log::new(None, ""));
        let mut free = |from: u64, to: u64| {
            let count = to.saturating_sub(from) / grain;
            if count > 0 {
                log.leaks(count, || {
                    format!("{count} grains from sector {from:#x} on are not referred to")
                });
            }
        };
        let end = self.free_runs(&mut free);
        // A device is as long as it is.
        if self.file.capabilities().grows_on_write {
            free(end, self.file.len().div_ceil(SECTOR));
        }
        self.log = log;
    }

    /// Calls `free` for runs of sectors behind the overhead that nothing refers to; where the last of what
    /// is in use ends.
    pub(super) fn free_runs(&self, mut free: impl FnMut(u64, u64)) -> u64 {
        let grain = self.grain();
        let mut at = self.overhead();
        let mut grains = self.starts.iter().peekable();
        let mut metadata = self.claims.sectors().iter();
        let mut claimed = metadata.next_range();
        loop {
            let is_grain_next = match (grains.peek(), &claimed) {
                (Some(start), Some(range)) => start < range.start(),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return at,
            };
            let (start, end) = match (is_grain_next, &claimed) {
                (false, Some(range)) => {
                    let range = (u64::from(*range.start()), u64::from(*range.end()) + 1);
                    claimed = metadata.next_range();
                    range
                }
                _ => {
                    let start = u64::from(grains.next().unwrap_or(0));
                    (start, start + grain)
                }
            };
            if start > at {
                free(at, start);
            }
            at = at.max(end);
        }
    }

    /// Where grains may start.
    pub(super) fn overhead(&self) -> u64 {
        match &self.examined.layout.header {
            Header::Hosted(header) => header.overhead().0,
            Header::Cowd(header) => header.gd_offset().0 + header.gd_sectors().0,
            Header::SeSparse(_) => 0,
        }
    }

    /// The sector behind all that is in use.
    pub(super) fn used_end(&self) -> u64 {
        let grains = self.starts.max().map_or(0, |last| u64::from(last) + self.grain());
        grains.max(self.claims.end())
    }

    fn look_at_header(&mut self) {
        if self.examined.unclean {
            self.log.leaks(1, || "the file was not closed (uncleanShutdown is set)".to_owned());
        }
        if let Some((free, end)) = self.stale_free_sector() {
            self.log
                .leaks(1, || format!("freeSector is {free:#x}, the file is in use up to {end:#x}"));
        }
    }

    /// The first free sector in a COWD header that lies before the end of what is in use, and that end.
    pub(super) fn stale_free_sector(&self) -> Option<(u64, u64)> {
        let Header::Cowd(header) = &self.examined.layout.header else { return None };
        let (free, end) = (header.free_sector().0, self.used_end());
        let end = end.min(self.file.len().div_ceil(SECTOR));
        (free < end).then_some((free, end))
    }

    /// Something that could not be read: the check goes on without it.
    pub(super) fn unreadable(&mut self, what: &str, error: Error) -> Result<()> {
        if let Error::NoMemory { .. } = error {
            return Err(error);
        }
        self.faults.unfollowed = true;
        self.log.check_error(|| format!("{what} cannot be read: {error}"));
        Ok(())
    }
}

/// One of the two copies of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    Primary,
    Redundant,
}

/// Readers of both copies of the tables.
pub(super) struct Readers<'a> {
    primary: TableReader<'a>,
    redundant: TableReader<'a>,
}
