//! Where the metadata of an image is, so that nothing else is ever written there.
//!
//! A last line of defence against images whose tables contradict each other (an L2 entry that points
//! at a refcount block) and against mistakes of this driver. Kept in memory and up to date as
//! metadata comes and goes; a check of a data write is one look into a bitmap of clusters.
//!
//! **Invariant.** A cluster belongs to at most one section; the header's cluster is always in its own.

use block_core::ByteRange;
use parking_lot::RwLock;
use roaring::RoaringTreemap;

use crate::geometry::{DataLocation, Geometry};
use crate::plan::Dropped;
use crate::spec::Fault;
use crate::units::HostOffset;

/// A kind of metadata.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Section {
    MainHeader,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
}

/// All sections with the names that options give them, and what a fault calls them.
const SECTIONS: [(Section, &str, &str); 9] = [
    (Section::MainHeader, "main-header", "write into the header at"),
    (Section::ActiveL1, "active-l1", "write into the active L1 table at"),
    (Section::ActiveL2, "active-l2", "write into an active L2 table at"),
    (Section::RefcountTable, "refcount-table", "write into the refcount table at"),
    (Section::RefcountBlock, "refcount-block", "write into a refcount block at"),
    (Section::SnapshotTable, "snapshot-table", "write into the snapshot table at"),
    (Section::InactiveL1, "inactive-l1", "write into an inactive L1 table at"),
    (Section::InactiveL2, "inactive-l2", "write into an inactive L2 table at"),
    (Section::BitmapDirectory, "bitmap-directory", "write into the bitmap directory at"),
];

/// Which sections data writes are checked against.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Guarded(u16);

impl Guarded {
    /// Nothing.
    pub(crate) const NONE: Self = Self(0);
    /// What has one place for long.
    pub(crate) const CONSTANT: Self = Self(1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 8);
    /// And what is known without reading anything.
    pub(crate) const CACHED: Self = Self(Self::CONSTANT.0 | 1 << 2 | 1 << 4 | 1 << 6);
    /// And the L2 tables of snapshots, which are read when the image is opened.
    pub(crate) const ALL: Self = Self(Self::CACHED.0 | 1 << 7);

    /// The template of this name.
    pub(crate) fn template(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::NONE),
            "constant" => Some(Self::CONSTANT),
            "cached" => Some(Self::CACHED),
            "all" => Some(Self::ALL),
            _ => None,
        }
    }

    /// Names of the sections, each an option of its own.
    pub(crate) fn names() -> impl Iterator<Item = (Section, &'static str)> {
        SECTIONS.iter().map(|(section, name, _)| (*section, *name))
    }

    /// The same with one section added or taken away.
    #[must_use]
    pub(crate) fn with(self, section: Section, guarded: Guard) -> Self {
        match guarded {
            Guard::On => Self(self.0 | 1 << index(section)),
            Guard::Off => Self(self.0 & !(1 << index(section))),
        }
    }

    pub(crate) fn has(self, section: Section) -> bool {
        self.0 & 1 << index(section) != 0
    }
}

/// Whether a section is guarded.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Guard {
    On,
    Off,
}

/// The metadata clusters of an image.
pub(crate) struct OverlapMap {
    geometry: Geometry,
    guarded: Guarded,
    /// Guards the sets; held for a look or a change.
    sets: RwLock<Sets>,
}

#[derive(Default)]
struct Sets {
    sections: [RoaringTreemap; SECTIONS.len()],
    /// The clusters of all guarded sections.
    guarded: RoaringTreemap,
    /// The clusters of all sections.
    all: RoaringTreemap,
}

impl OverlapMap {
    /// A map that knows of the header only.
    pub(crate) fn new(geometry: Geometry, guarded: Guarded) -> Self {
        let map = Self { geometry, guarded, sets: RwLock::default() };
        map.insert(Section::MainHeader, HostOffset::new(0), geometry.cluster_size());
        map
    }

    /// Knows what `other` knows from now on, and nothing else; `other` is of no use any more.
    pub(crate) fn take_over(&self, other: &Self) {
        let sets = std::mem::take(&mut *other.sets.write());
        *self.sets.write() = sets;
    }

    /// Notes that the clusters of `len` bytes at `offset` belong to `section`.
    pub(crate) fn insert(&self, section: Section, offset: HostOffset, len: u64) {
        let Some((first, last)) = self.clusters(offset.bytes(), len) else { return };
        let mut sets = self.sets.write();
        sets.sections[index(section)].insert_range(first..=last);
        sets.all.insert_range(first..=last);
        if self.guarded.has(section) {
            sets.guarded.insert_range(first..=last);
        }
    }

    /// Notes that the clusters of `len` bytes at `offset` hold no metadata any more.
    pub(crate) fn remove(&self, offset: HostOffset, len: u64) {
        let Some((first, last)) = self.clusters(offset.bytes(), len) else { return };
        let mut sets = self.sets.write();
        sets.sections.iter_mut().for_each(|set| {
            set.remove_range(first..=last);
        });
        sets.guarded.remove_range(first..=last);
        sets.all.remove_range(first..=last);
    }

    /// Whether guest data may be written to `range` of the file that it goes to: anywhere in a data
    /// file, which holds no metadata.
    #[inline]
    pub(crate) fn check_data(&self, range: ByteRange) -> Result<(), Fault> {
        if self.geometry.data_location() == DataLocation::DataFile {
            return Ok(());
        }
        let Some((first, last)) = self.clusters(range.offset(), range.len()) else { return Ok(()) };
        let sets = self.sets.read();
        if first == last && !sets.guarded.contains(first) {
            return Ok(());
        }
        match (first..=last).find(|cluster| sets.guarded.contains(*cluster)) {
            None => Ok(()),
            Some(cluster) => Err(self.fault(&sets, cluster)),
        }
    }

    /// Whether `section` may be written to `len` bytes at `offset`: there is no other metadata there.
    pub(crate) fn check_metadata(
        &self,
        section: Section,
        offset: HostOffset,
        len: u64,
    ) -> Result<(), Fault> {
        let Some((first, last)) = self.clusters(offset.bytes(), len) else { return Ok(()) };
        let sets = self.sets.read();
        let others = SECTIONS.iter().filter(|(other, ..)| *other != section);
        let mut hits = others.filter_map(|(other, _, what)| {
            Some((*what, first_in(&sets.sections[index(*other)], first, last)?))
        });
        match hits.next() {
            None => Ok(()),
            Some((what, cluster)) => Err(Fault::new(what, cluster << self.geometry.cluster_bits())),
        }
    }

    /// Whether the clusters of `len` bytes at `offset`, which the refcounts call free, are no metadata.
    pub(crate) fn check_free(&self, offset: HostOffset, len: u64) -> Result<(), Fault> {
        self.check_unused(offset.bytes(), len, "refcount 0 of metadata at")
    }

    /// Whether an L1 entry may point at `table`: there is no metadata but L2 tables.
    pub(crate) fn check_table(&self, table: HostOffset) -> Result<(), Fault> {
        let cluster = table.bytes() >> self.geometry.cluster_bits();
        let sets = self.sets.read();
        if sets.sections[index(Section::ActiveL2)].contains(cluster) {
            return Ok(());
        }
        let l2 = [Section::ActiveL2, Section::InactiveL2];
        let mut others = SECTIONS.iter().filter(|(section, ..)| !l2.contains(section));
        match others.any(|(section, ..)| sets.sections[index(*section)].contains(cluster)) {
            false => Ok(()),
            true => Err(Fault::new("L2 table in other metadata at", table.bytes())),
        }
    }

    /// Whether what an entry held may be given back or punched out: it is no metadata.
    pub(crate) fn check_dropped(&self, dropped: Dropped) -> Result<(), Fault> {
        if self.geometry.data_location() == DataLocation::DataFile {
            return Ok(());
        }
        let (offset, len) = match dropped {
            Dropped::Cluster(host) => (host.bytes(), self.geometry.cluster_size()),
            Dropped::Payload(payload) => (payload.offset.bytes(), payload.len),
        };
        self.check_unused(offset, len, "metadata to be given back at")
    }

    /// Whether there is no metadata of any kind, guarded or not; `what` is what there is else.
    fn check_unused(&self, offset: u64, len: u64, what: &'static str) -> Result<(), Fault> {
        let Some((first, last)) = self.clusters(offset, len) else { return Ok(()) };
        let sets = self.sets.read();
        if first == last && !sets.all.contains(first) {
            return Ok(());
        }
        match first_in(&sets.all, first, last) {
            None => Ok(()),
            Some(cluster) => Err(Fault::new(what, cluster << self.geometry.cluster_bits())),
        }
    }

    /// The first and the last cluster of a range; `None` for an empty one.
    fn clusters(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let last = offset.checked_add(len.checked_sub(1)?)?;
        let bits = self.geometry.cluster_bits();
        Some((offset >> bits, last >> bits))
    }

    fn fault(&self, sets: &Sets, cluster: u64) -> Fault {
        let hit = SECTIONS.iter().find(|(s, ..)| sets.sections[index(*s)].contains(cluster));
        let what = hit.map_or("write into metadata at", |(_, _, what)| *what);
        Fault::new(what, cluster << self.geometry.cluster_bits())
    }
}

/// The first cluster of `set` from `first` to `last`, both included.
fn first_in(set: &RoaringTreemap, first: u64, last: u64) -> Option<u64> {
    let before = first.checked_sub(1).map_or(0, |before| set.rank(before));
    if set.rank(last) == before { None } else { set.select(before) }
}

/// Place in [`SECTIONS`].
const fn index(section: Section) -> usize {
    match section {
        Section::MainHeader => 0,
        Section::ActiveL1 => 1,
        Section::ActiveL2 => 2,
        Section::RefcountTable => 3,
        Section::RefcountBlock => 4,
        Section::SnapshotTable => 5,
        Section::InactiveL1 => 6,
        Section::InactiveL2 => 7,
        Section::BitmapDirectory => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{L2Format, Version};

    fn map(guarded: Guarded) -> OverlapMap {
        let location = DataLocation::Image;
        let geometry = Geometry::new(Version::V3, 16, 4, L2Format::Standard, location);
        OverlapMap::new(geometry.unwrap(), guarded)
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    #[test]
    fn data_is_kept_off_what_is_guarded() {
        let map = map(Guarded::CACHED);
        map.insert(Section::ActiveL2, HostOffset::new(0x5_0000), 0x1_0000);
        map.insert(Section::InactiveL2, HostOffset::new(0x7_0000), 0x1_0000);
        assert!(map.check_data(range(0x1_0000, 0x4_0000)).is_ok());
        let fault = map.check_data(range(0x4_ffff, 2)).unwrap_err();
        assert_eq!(fault, Fault::new("write into an active L2 table at", 0x5_0000));
        assert!(map.check_data(range(512, 512)).unwrap_err().what.contains("header"));
        assert!(map.check_data(range(0x7_0000, 512)).is_ok(), "not guarded");
        assert!(map.check_free(HostOffset::new(0x7_0000), 512).is_err(), "and yet not free");
        map.remove(HostOffset::new(0x5_0000), 0x1_0000);
        assert!(map.check_data(range(0x4_ffff, 2)).is_ok());
    }

    #[test]
    fn metadata_is_kept_off_other_metadata() {
        let map = map(Guarded::NONE);
        map.insert(Section::ActiveL2, HostOffset::new(0x5_0000), 0x1_0000);
        let at = HostOffset::new(0x5_0000);
        assert!(map.check_metadata(Section::ActiveL2, at, 512).is_ok());
        assert!(map.check_metadata(Section::RefcountBlock, at, 512).is_err());
        assert!(map.check_data(range(0x5_0000, 1)).is_ok(), "nothing is guarded");
    }

    #[test]
    fn templates_and_single_sections() {
        let names: Vec<_> = Guarded::names().filter(|(s, _)| Guarded::ALL.has(*s)).collect();
        assert_eq!(names.len(), SECTIONS.len());
        let less = Guarded::CACHED.with(Section::ActiveL2, Guard::Off);
        assert!(!less.has(Section::ActiveL2) && less.has(Section::RefcountBlock));
        assert!(less.with(Section::InactiveL2, Guard::On).has(Section::InactiveL2));
        assert_eq!(Guarded::template("constant"), Some(Guarded::CONSTANT));
        assert_eq!(Guarded::template("some"), None);
    }
}
