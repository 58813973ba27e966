//! The checker: everything that the tables of a file refer to, sector by sector.
//!
//! Every sector of a file has one user at most. What an entry points at is inside of the file, and where
//! there are redundant tables they say what the primary ones say. Nothing found is worth stopping for: the
//! check goes on with what can still be understood. It changes nothing.

use std::fmt;

use block_core::range::{to_u64, to_usize};

use super::error::BadImage;
use super::sparse::{Entry, Kind, SECTOR, Sparse};
use super::{Content, Image};

/// Most table entries that one check visits.
pub const MAX_WORK: u64 = 1 << 26;

/// Most texts of a kind that are kept.
pub const MAX_FINDINGS: usize = 1 << 12;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Damage: data is lost, or will be by the next writes.
    pub errors: Vec<String>,
    /// Where redundant tables say something else than the primary ones. Damage, but where the file is
    /// [`Report::unclean`]: a crash may leave that.
    pub redundant: Vec<String>,
    /// Whether a file is marked as not closed.
    pub unclean: bool,
    /// Grains that the tables refer to.
    pub grains: u64,
    /// Entries that stand for zeroes.
    pub zeroed: u64,
    /// Tables that have no redundant copy, in files that have a redundant directory. No damage.
    pub holes: u64,
    /// Grains that the file ends inside of. No damage: the rest reads as zeroes.
    pub short: u64,
    /// COWD files whose header names a first free sector before the end of what is in use. No damage for
    /// readers, and a crash may leave it; a writer that trusts it does damage.
    pub stale: u64,
    /// Space as long as a grain, behind the overhead, that nothing refers to. No damage.
    pub leaks: u64,
}

impl Report {
    /// How much is wrong, what a crash may leave not counted.
    pub fn errors(&self) -> usize {
        let differ = if self.unclean { 0 } else { self.redundant.len() };
        self.errors.len() + differ
    }

    /// Whether nothing is wrong, nothing is leaked, and all files are closed.
    pub fn is_clean(&self) -> bool {
        self.errors() == 0 && self.leaks == 0 && self.stale == 0 && !self.unclean
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unclean = if self.unclean { ", unclean" } else { "" };
        writeln!(
            f,
            "{} errors, {} differences, {} leaks, {} grains{unclean}",
            self.errors.len(),
            self.redundant.len(),
            self.leaks,
            self.grains
        )?;
        for text in &self.errors {
            writeln!(f, "error: {text}")?;
        }
        self.redundant.iter().try_for_each(|text| writeln!(f, "redundant: {text}"))
    }
}

impl Image<'_> {
    /// Looks at all that the files refer to.
    ///
    /// Fails only where more than [`MAX_WORK`] entries would have to be visited.
    pub fn check(&self) -> Result<Report, BadImage> {
        let mut report = Report::default();
        if let Some(text) = &self.text {
            report.errors.extend(text.problems());
        }
        let mut work = 0;
        for (number, extent) in self.extents.iter().enumerate() {
            let name = extent.name.as_deref().unwrap_or_default();
            match &extent.content {
                Content::Zero => {}
                Content::Flat { file, offset } => {
                    let end = offset.saturating_add(extent.sectors).saturating_mul(SECTOR);
                    if end > file.len() {
                        let len = file.len();
                        report.errors.push(format!(
                            "extent {number} ends at {end:#x}, its file {name:?} at {len:#x}"
                        ));
                    }
                }
                Content::Sparse(sparse) => {
                    work += sparse.grains() + sparse.tables() + sparse.sectors();
                    if work > MAX_WORK {
                        let (what, limit) = ("entries to check", MAX_WORK);
                        return Err(BadImage::TooLarge { what, value: work, limit });
                    }
                    Checker::new(name, sparse, &mut report).check();
                }
            }
        }
        Ok(report)
    }
}

/// What a sector is used for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Role {
    Free,
    Header,
    Descriptor,
    Directory,
    RedundantDirectory,
    Table,
    RedundantTable,
    Grain(u64),
    Marker,
    Footer,
    Journal,
}

struct Checker<'a> {
    name: &'a str,
    sparse: &'a Sparse<'a>,
    /// The user of each sector of the file.
    roles: Vec<Role>,
    report: &'a mut Report,
}

impl<'a> Checker<'a> {
    fn new(name: &'a str, sparse: &'a Sparse<'a>, report: &'a mut Report) -> Self {
        let roles = vec![Role::Free; to_usize(sparse.sectors())];
        Self { name, sparse, roles, report }
    }

    fn error(&mut self, text: &str) {
        if self.report.errors.len() < MAX_FINDINGS {
            self.report.errors.push(format!("{}: {text}", self.name));
        }
    }

    fn differs(&mut self, text: &str) {
        if self.report.redundant.len() < MAX_FINDINGS {
            self.report.redundant.push(format!("{}: {text}", self.name));
        }
    }

    fn check(mut self) {
        let sparse = self.sparse;
        self.report.unclean |= sparse.unclean;
        self.take_fixed();
        for index in 0..sparse.tables() {
            let primary = self.table(sparse.directory, index, Role::Table);
            let second = match sparse.redundant {
                Some(directory) => self.table(directory, index, Role::RedundantTable),
                None => None,
            };
            if sparse.redundant.is_some() {
                self.compare(index, primary, second);
            }
            if let Some(table) = primary {
                self.walk(index, table);
            }
        }
        if sparse.footer {
            self.walk_stream();
        }
        self.count_leaks();
        let used = self.roles.iter().rposition(|role| *role != Role::Free);
        let end = used.map_or(0, |last| to_u64(last) + 1);
        self.report.stale += u64::from(sparse.free.is_some_and(|free| free < end));
    }

    /// Takes what is at places that the header names.
    fn take_fixed(&mut self) {
        let sparse = self.sparse;
        let header = if sparse.kind == Kind::Cowd { 4 } else { 1 };
        self.take(Role::Header, 0, header);
        if let Some(area) = sparse.descriptor {
            self.take(Role::Descriptor, area.start, area.count);
        }
        let count = sparse.directory_sectors();
        self.take(Role::Directory, sparse.directory, count);
        if let Some(directory) = sparse.redundant {
            self.take(Role::RedundantDirectory, directory, count);
        }
        if sparse.footer {
            // Its marker, itself, and the end of the stream.
            self.take(Role::Footer, sparse.sectors().saturating_sub(3), 3);
        }
        for area in sparse.other_areas() {
            self.take(Role::Journal, area.start, area.count);
        }
    }

    /// Takes `count` sectors from `start` on. Who had one of them before is named.
    fn take(&mut self, role: Role, start: u64, count: u64) {
        for sector in start..start.saturating_add(count) {
            let Some(place) = self.roles.get_mut(to_usize(sector)) else { break };
            let before = std::mem::replace(place, role);
            if before != Role::Free {
                return self.error(&format!("sector {sector:#x} is {before:?} and {role:?}"));
            }
        }
    }

    fn table(&mut self, directory: u64, index: u64, role: Role) -> Option<u64> {
        match self.sparse.table(directory, index) {
            Ok(found) => {
                if let Some(start) = found {
                    self.take(role, start, self.sparse.table_sectors());
                }
                found
            }
            Err(bad) => {
                self.error(&format!("{role:?}: {bad}"));
                None
            }
        }
    }

    /// Grains that the table `index` maps.
    fn entries(&self, index: u64) -> std::ops::Range<u64> {
        let first = index * self.sparse.gtes_per_gt;
        first..(first + self.sparse.gtes_per_gt).min(self.sparse.grains())
    }

    /// Compares a table with its copy; one that is not there holds nothing.
    fn compare(&mut self, index: u64, primary: Option<u64>, second: Option<u64>) {
        let sparse = self.sparse;
        if second.is_none() {
            self.report.holes += u64::from(primary.is_some());
            return;
        }
        for grain in self.entries(index) {
            let entry = |table: Option<u64>| match table {
                Some(table) => sparse.entry(table, grain % sparse.gtes_per_gt).ok(),
                None => Some(Entry::Unallocated),
            };
            let (one, other) = (entry(primary), entry(second));
            if one != other {
                self.differs(&format!("grain {grain} is {one:?}, redundant {other:?}"));
            }
        }
    }

    /// Takes the grains of a table.
    fn walk(&mut self, index: u64, table: u64) {
        for grain in self.entries(index) {
            match self.sparse.entry(table, grain % self.sparse.gtes_per_gt) {
                Ok(Entry::Unallocated) => {}
                Ok(Entry::Zero) => self.report.zeroed += 1,
                Ok(Entry::At(start)) => self.take_grain(grain, start),
                Err(bad) => self.error(&bad.to_string()),
            }
        }
    }

    fn take_grain(&mut self, grain: u64, start: u64) {
        let sparse = self.sparse;
        self.report.grains += 1;
        let mut count = sparse.grain;
        if sparse.compressed {
            match sparse.unpack(grain, start) {
                Ok(packed) => count = packed.sectors,
                Err(bad) => return self.error(&format!("grain {grain}: {bad}")),
            }
        }
        let end = start.saturating_add(count);
        if start >= sparse.sectors() {
            let sectors = sparse.sectors();
            self.error(&format!("grain {grain} at {start:#x} is beyond the end at {sectors:#x}"));
        } else if end.saturating_mul(SECTOR) > sparse.file.len() {
            self.report.short += 1;
        }
        if sparse.kind != Kind::SeSparse && end > 1 << 32 {
            self.error(&format!("grain {grain} ends at {end:#x}, beyond what an entry can say"));
        }
        self.take(Role::Grain(grain), start, count);
    }

    /// Counts runs of sectors that nothing uses and that a grain fits into.
    fn count_leaks(&mut self) {
        let overhead = to_usize(self.sparse.overhead);
        let behind = self.roles.get(overhead..).unwrap_or_default();
        let runs = behind.chunk_by(|a, b| (*a == Role::Free) == (*b == Role::Free));
        let free = runs.filter(|run| run.first() == Some(&Role::Free));
        // What is left of compressed grains has any length.
        let unit = if self.sparse.compressed { 1 } else { self.sparse.grain };
        self.report.leaks += free.map(|run| to_u64(run.len()) / unit).sum::<u64>();
    }
}

/// Types of markers.
const GRAIN_TABLE: u32 = 1;
const GRAIN_DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;

impl Checker<'_> {
    /// Reads a file with a footer from its first marker to its last, as from a pipe.
    fn walk_stream(&mut self) {
        let sparse = self.sparse;
        let file = sparse.file;
        let mut at = sparse.overhead;
        let mut last_lba = None;
        while at < sparse.sectors() {
            let start = at * SECTOR;
            let (value, size, kind) =
                (file.le_u64(start), file.le_u32(start + 8), file.le_u32(start + 12));
            if size != 0 {
                let grain = value / sparse.grain;
                if sparse.grain_at(grain).ok() != Some(Entry::At(at)) {
                    return self.error(&format!("grain {grain} at {at:#x} is not in its table"));
                }
                if last_lba >= Some(value) {
                    self.error(&format!("grain {grain} at {at:#x} comes after a later one"));
                }
                last_lba = Some(value);
                at += (12 + u64::from(size)).div_ceil(SECTOR);
                continue;
            }
            let next = at + 1;
            let expected = match kind {
                GRAIN_TABLE => Role::Table,
                GRAIN_DIRECTORY => Role::Directory,
                FOOTER if next + 2 == sparse.sectors() => return,
                _ => return self.error(&format!("no marker at {at:#x}: type {kind}")),
            };
            let found = self.roles.get(to_usize(next)).copied();
            // A table of nothing but zeroes may stand there unused.
            if found != Some(expected) && found != Some(Role::Free) {
                return self.error(&format!("{found:?} at {next:#x}, not {expected:?}"));
            }
            self.take(Role::Marker, at, 1);
            at = next.saturating_add(value);
        }
        self.error("the stream has no end");
    }
}
