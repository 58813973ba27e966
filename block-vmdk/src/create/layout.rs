//! Where everything stands in a new sparse extent.
//!
//! Invariant: the order in a hosted extent is header, descriptor, redundant grain directory and its
//! tables, grain directory and its tables, grains; the first grain starts at a multiple of the grain, and
//! every place before it fits into the 32 bits of an entry.
//!
//! Not here: I/O.

use crate::spec::sparse::{
    GD_ENTRIES_MAX, GTES_PER_GT_MAX, HeaderError, HostedPlaces, SectorRange, SparseHeader,
    ZeroedGrains,
};
use crate::units::{Sector, SectorCount};

/// Sectors of a grain of a hosted extent: 64 KiB.
pub(crate) const GRAIN_SECTORS: u64 = 128;
/// Sectors of a grain of an ESX extent.
pub(crate) const COWD_GRAIN_SECTORS: u64 = 1;
/// Where an embedded descriptor stands, and its room.
pub(crate) const DESCRIPTOR: SectorRange = SectorRange { start: Sector(1), count: SectorCount(20) };
/// Sectors that the tables of one entry of a grain directory map.
pub(crate) const GT_COVERAGE: u64 = GRAIN_SECTORS * 512;
/// Longest hosted extent: its grain directory has as many entries as any reader takes.
pub(crate) const HOSTED_SECTORS_MAX: u64 = GD_ENTRIES_MAX * GT_COVERAGE;

/// Sectors of a grain table.
const GT_SECTORS: u64 = 4;

const _: () = assert!(GTES_PER_GT_MAX == 512);

/// Whether a hosted extent holds the descriptor of the image.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Embedded {
    /// It does.
    Yes,
    /// The descriptor is a file of its own.
    No,
}

/// The layout of a hosted extent, at most [`HOSTED_SECTORS_MAX`] long.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct HostedLayout {
    /// Length of the extent.
    pub(crate) capacity: SectorCount,
    /// Where the descriptor is.
    pub(crate) descriptor: Option<SectorRange>,
    /// Entries of the grain directory, each with a table.
    pub(crate) gd_entries: u64,
}

impl HostedLayout {
    /// The layout of an extent of `capacity`.
    pub(crate) fn new(capacity: SectorCount, embedded: Embedded) -> Self {
        let descriptor = match embedded {
            Embedded::Yes => Some(DESCRIPTOR),
            Embedded::No => None,
        };
        Self { capacity, descriptor, gd_entries: capacity.0.div_ceil(GT_COVERAGE) }
    }

    /// Where the redundant grain directory is.
    pub(crate) fn redundant_gd(&self) -> Sector {
        Sector(self.descriptor.map_or(1, |range| range.start.0 + range.count.0))
    }

    /// Where the grain directory is.
    pub(crate) fn gd(&self) -> Sector {
        Sector(self.redundant_gd().0 + self.gd_sectors() + self.gd_entries * GT_SECTORS)
    }

    /// Where table `index` of a directory at `gd` is.
    pub(crate) fn table(&self, gd: Sector, index: u64) -> Sector {
        Sector(gd.0 + self.gd_sectors() + index * GT_SECTORS)
    }

    /// Sectors before the first grain: the whole file of an empty extent.
    pub(crate) fn overhead(&self) -> SectorCount {
        let end = self.table(self.gd(), self.gd_entries);
        SectorCount(end.0.next_multiple_of(GRAIN_SECTORS))
    }

    /// The header that says so.
    pub(crate) fn header(&self, zeroed_grains: ZeroedGrains) -> Result<SparseHeader, HeaderError> {
        let places = HostedPlaces {
            capacity: self.capacity,
            grain_size: SectorCount(GRAIN_SECTORS),
            descriptor: self.descriptor,
            redundant_gd: self.redundant_gd(),
            gd: self.gd(),
            overhead: self.overhead(),
        };
        SparseHeader::hosted(places, zeroed_grains)
    }

    fn gd_sectors(&self) -> u64 {
        SectorCount::of_bytes(self.gd_entries * 4).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::sparse::GrainDirectory;
    use proptest::prelude::*;

    #[test]
    fn five_gibibytes() {
        let layout = HostedLayout::new(SectorCount(10 << 20), Embedded::Yes);
        assert_eq!(layout.gd_entries, 160);
        assert_eq!((layout.redundant_gd(), layout.gd()), (Sector(21), Sector(663)));
        assert_eq!(layout.table(layout.gd(), 0), Sector(665));
        assert_eq!(layout.overhead(), SectorCount(1408));
        let apart = HostedLayout::new(SectorCount(10 << 20), Embedded::No);
        assert_eq!(apart.redundant_gd(), Sector(1));
        let empty = HostedLayout::new(SectorCount(0), Embedded::Yes);
        assert_eq!((empty.gd(), empty.overhead()), (Sector(21), SectorCount(128)));
    }

    proptest! {
        #[test]
        fn every_place_is_in_order_and_fits(capacity in 0..=HOSTED_SECTORS_MAX, small: bool) {
            let capacity = SectorCount(if small { capacity >> 20 } else { capacity });
            for embedded in [Embedded::Yes, Embedded::No] {
                let layout = HostedLayout::new(capacity, embedded);
                let (redundant, gd) = (layout.redundant_gd(), layout.gd());
                prop_assert_eq!(layout.table(redundant, layout.gd_entries), gd);
                prop_assert!(layout.table(gd, layout.gd_entries).0 <= layout.overhead().0);
                prop_assert!(layout.overhead().0 <= u64::from(u32::MAX));
                let header = layout.header(ZeroedGrains::Yes).unwrap();
                prop_assert_eq!(SparseHeader::parse(&header.to_bytes()), Ok(header.clone()));
                prop_assert_eq!(header.gd_entries(), layout.gd_entries);
                prop_assert_eq!(header.grain_directory(), GrainDirectory::At(gd));
                prop_assert_eq!(header.version(), 2);
                header.check_file_len(layout.overhead().bytes().unwrap()).unwrap();
            }
        }
    }
}
