//! Hosted and COWD extents: directories and tables of 32-bit entries.

use std::collections::{BTreeMap, BTreeSet};

use block_core::range::{to_u64, to_usize};

use super::super::sparse::SECTOR;
use super::{
    Directory, ExtentShape, Grain, Placement, Redundant, SLACK, Subformat, Tables, Tail,
    ZeroedGrains, append, half, put,
};

/// Sectors that are kept for an embedded descriptor.
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;

/// Directories and tables while they are filled.
pub(super) struct Mapping {
    gtes_per_gt: u64,
    pub(super) directory: u64,
    redundant: Option<u64>,
    /// Where the tables of each number are: the primary one and the redundant one.
    tables: BTreeMap<u64, [Option<u64>; 2]>,
}

impl Mapping {
    /// Appends `count` sectors for each directory, the redundant one first.
    fn new(file: &mut Vec<u8>, gtes_per_gt: u64, sectors: u64, redundant: Redundant) -> Self {
        let second = (redundant != Redundant::None).then(|| append(file, sectors));
        let directory = append(file, sectors);
        Self { gtes_per_gt, directory, redundant: second, tables: BTreeMap::new() }
    }

    /// Appends a table, primary (0) or redundant (1), unless there is one.
    fn add_table(&mut self, file: &mut Vec<u8>, number: u64, which: usize) {
        let places = self.tables.entry(number).or_default();
        if places[which].is_some() {
            return;
        }
        let start = append(file, (self.gtes_per_gt * 4).div_ceil(SECTOR));
        places[which] = Some(start);
        let directory = if which == 0 { Some(self.directory) } else { self.redundant };
        if let Some(directory) = directory {
            put(file, directory * SECTOR + number * 4, &half(start));
        }
    }

    fn set(&self, file: &mut Vec<u8>, grain: u64, entry: u64) {
        let places = self.tables.get(&(grain / self.gtes_per_gt)).copied().unwrap_or_default();
        for table in places.into_iter().flatten() {
            put(file, table * SECTOR + grain % self.gtes_per_gt * 4, &half(entry));
        }
    }
}

impl ExtentShape<'_> {
    /// Entries of a table of this extent.
    fn gtes_per_gt(&self) -> u64 {
        match self.shape.subformat {
            Subformat::Cowd(_) => 4096,
            _ => self.shape.gtes_per_gt,
        }
    }

    fn table_count(&self) -> u64 {
        self.sectors.div_ceil(self.shape.grain_sectors).div_ceil(self.gtes_per_gt())
    }

    /// The directories, and those tables that stand before all grains.
    fn mapping(&self, file: &mut Vec<u8>, redundant: Redundant, tables: Tables) -> Mapping {
        let sectors = (self.table_count() * 4).div_ceil(SECTOR);
        let mut mapping = Mapping::new(file, self.gtes_per_gt(), sectors, redundant);
        for number in 0..self.table_count() {
            let preallocated = tables == Tables::Preallocated && has_copy(redundant, number);
            if redundant == Redundant::Spare || preallocated {
                mapping.add_table(file, number, 1);
            }
        }
        if tables == Tables::Preallocated {
            for number in 0..self.table_count() {
                mapping.add_table(file, number, 0);
            }
        }
        mapping
    }

    /// Appends the grains, and tables that are still missing.
    fn fill(&self, file: &mut Vec<u8>, mapping: &mut Mapping, redundant: Redundant) {
        let mut last = None;
        for (number, grain) in self.placed() {
            let table = number / mapping.gtes_per_gt;
            if has_copy(redundant, table) {
                mapping.add_table(file, table, 1);
            }
            mapping.add_table(file, table, 0);
            let entry = match grain {
                Grain::Data(bytes) => {
                    self.check_data(number, bytes);
                    let start = append(file, self.shape.grain_sectors);
                    put(file, start * SECTOR, bytes);
                    let end = to_usize(start * SECTOR) + bytes.len();
                    file[end..].fill(SLACK);
                    last = Some((end, bytes.len()));
                    start
                }
                Grain::Zero => {
                    let zeroed = self.shape.zeroed_grains == ZeroedGrains::Yes;
                    assert!(zeroed && self.gtes_per_gt() <= 512, "a zeroed grain");
                    1
                }
                Grain::Unmapped => panic!("an unmapped grain without seSparse"),
            };
            mapping.set(file, number, entry);
        }
        if let (Some((end, len)), Tail::Short) = (last, self.shape.tail) {
            // The last sectors of the grain are zero in a file that ends before them.
            let zeroes = file[..end].iter().rev().take_while(|byte| **byte == 0).count();
            file.truncate(end - zeroes.min(len - 1));
        }
    }

    pub(super) fn hosted(&self, embedded: Option<&str>) -> Vec<u8> {
        let mut file = self.head(embedded);
        let redundant = self.shape.redundant;
        let mut mapping = self.mapping(&mut file, redundant, self.shape.tables);
        let end = to_u64(file.len()) / SECTOR;
        let overhead = end.next_multiple_of(self.shape.grain_sectors);
        append(&mut file, overhead - end);
        self.fill(&mut file, &mut mapping, redundant);
        let places = [mapping.redundant.unwrap_or(0), mapping.directory, overhead];
        let flags = u64::from(mapping.redundant.is_some()) << 1;
        let header = self.header(flags, places, embedded.is_some());
        put(&mut file, 0, &header);
        file
    }

    /// A file with the place of the header, and the descriptor.
    pub(super) fn head(&self, embedded: Option<&str>) -> Vec<u8> {
        let mut file = Vec::new();
        append(&mut file, 1);
        if let Some(text) = embedded {
            let start = append(&mut file, DESCRIPTOR_SECTORS);
            assert!(to_u64(text.len()) < DESCRIPTOR_SECTORS * SECTOR, "a long descriptor");
            put(&mut file, start * SECTOR, text.as_bytes());
        }
        file
    }

    /// The header of a hosted extent; `places` are those of the redundant directory, the directory and
    /// the first grain.
    pub(super) fn header(&self, flags: u64, places: [u64; 3], embedded: bool) -> Vec<u8> {
        let shape = self.shape;
        let zeroed = shape.zeroed_grains == ZeroedGrains::Yes;
        let in_footer = Subformat::StreamOptimized(Directory::InFooter);
        let lowest = match (shape.subformat == in_footer, zeroed) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 1,
        };
        let compressed = flags >> 16 & 1;
        let flags = flags | 1 | u64::from(zeroed) << 2;
        let descriptor = if embedded { [1, DESCRIPTOR_SECTORS] } else { [0, 0] };
        let mut header = b"KDMV".to_vec();
        header.extend(shape.version.unwrap_or(lowest).to_le_bytes());
        header.extend(half(flags));
        for number in [self.sectors, shape.grain_sectors, descriptor[0], descriptor[1]] {
            header.extend(number.to_le_bytes());
        }
        header.extend(half(shape.gtes_per_gt));
        for place in places {
            header.extend(place.to_le_bytes());
        }
        header.push(0);
        header.extend(b"\n \r\n");
        header.extend(&half(compressed)[..2]);
        header.resize(to_usize(SECTOR), 0);
        header
    }

    pub(super) fn cowd(&self) -> Vec<u8> {
        let mut file = Vec::new();
        append(&mut file, 4);
        let mut mapping = self.mapping(&mut file, Redundant::None, self.shape.tables);
        self.fill(&mut file, &mut mapping, Redundant::None);
        let free = to_u64(file.len()).div_ceil(SECTOR);
        let numbers = [
            1,
            3,
            self.sectors,
            self.shape.grain_sectors,
            mapping.directory,
            self.table_count(),
            free,
        ];
        let mut header = b"COWD".to_vec();
        header.extend(numbers.into_iter().flat_map(half));
        match &self.shape.backing {
            Some((name, _)) => header.extend(name.as_bytes()),
            None => {
                let cylinders = self.sectors / (16 * 63);
                header.extend([cylinders, 16, 63].into_iter().flat_map(half));
            }
        }
        put(&mut file, 0, &header);
        file
    }

    /// Tables that have entries, in the order in which they are placed.
    pub(super) fn used_tables(&self, gtes_per_gt: u64) -> Vec<u64> {
        let used: BTreeSet<u64> = self.grains.keys().map(|at| at / gtes_per_gt).collect();
        let mut used: Vec<u64> = used.into_iter().collect();
        if self.shape.placement == Placement::Descending {
            used.reverse();
        }
        used
    }
}

/// Whether the primary table `number` has a redundant one.
fn has_copy(redundant: Redundant, number: u64) -> bool {
    match redundant {
        Redundant::None => false,
        Redundant::Holes => number.is_multiple_of(2),
        Redundant::Kept | Redundant::Spare => true,
    }
}
