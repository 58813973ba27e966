//! seSparse extents: 64-bit entries, and areas of fixed places.

use block_core::range::{to_u64, to_usize};

use super::super::sparse::{SE_MAGIC, SE_VOLATILE_MAGIC, SECTOR};
use super::{ExtentShape, Grain, SLACK, append, put};

const GRAIN_SECTORS: u64 = 8;
const GTES_PER_GT: u64 = 4096;
const TABLE_SECTORS: u64 = GTES_PER_GT * 8 / SECTOR;
const VERSION: u64 = 0x0000_0002_0000_0001;
/// Areas begin and end at multiples of this.
const UNIT: u64 = 64;

impl ExtentShape<'_> {
    pub(super) fn sesparse(&self) -> Vec<u8> {
        assert_eq!(self.shape.grain_sectors, GRAIN_SECTORS, "grains of seSparse");
        let tables = self.sectors.div_ceil(GRAIN_SECTORS).div_ceil(GTES_PER_GT);
        let mut file = Vec::new();
        let mut area = |sectors: u64| [append(&mut file, sectors), sectors];
        area(1);
        let volatile = area(1);
        let journal_header = area(2);
        area(UNIT - 4);
        let journal = area(UNIT);
        let directory = area((tables * 8).div_ceil(SECTOR).next_multiple_of(UNIT));
        let table_area = area(tables * TABLE_SECTORS);
        let bitmap = area(UNIT);
        let backmap = area(UNIT);
        let grains_at = area(0)[0];
        for (place, number) in (0..).zip(self.used_tables(GTES_PER_GT)) {
            // Tables are given out in the order of use.
            let entry = 0x1000_0000u64 << 32 | place;
            put(&mut file, directory[0] * SECTOR + number * 8, &entry.to_le_bytes());
            self.fill_table(&mut file, number, table_area[0] + place * TABLE_SECTORS, grains_at);
        }
        let grains = [grains_at, to_u64(file.len()) / SECTOR - grains_at];
        let mut header = vec![SE_MAGIC, VERSION, self.sectors, GRAIN_SECTORS, TABLE_SECTORS];
        header.extend([0; 5]);
        for area in
            [volatile, journal_header, journal, directory, table_area, bitmap, backmap, grains]
        {
            header.extend(area);
        }
        let bytes: Vec<u8> = header.into_iter().flat_map(u64::to_le_bytes).collect();
        put(&mut file, 0, &bytes);
        put(&mut file, volatile[0] * SECTOR, &SE_VOLATILE_MAGIC.to_le_bytes());
        file
    }

    fn fill_table(&self, file: &mut Vec<u8>, number: u64, table: u64, grains_at: u64) {
        for (at, grain) in self.placed() {
            if at / GTES_PER_GT != number {
                continue;
            }
            let entry = match grain {
                Grain::Unmapped => 1 << 60,
                Grain::Zero => 2 << 60,
                Grain::Data(bytes) => {
                    self.check_data(at, bytes);
                    let start = append(file, GRAIN_SECTORS);
                    put(file, start * SECTOR, bytes);
                    let len = file.len();
                    let rest = start * SECTOR + to_u64(bytes.len());
                    let junk = vec![SLACK; len - to_usize(rest)];
                    put(file, rest, &junk);
                    let index = (start - grains_at) / GRAIN_SECTORS;
                    // The lowest twelve bits of the number stand above the others.
                    3 << 60 | (index & 0xfff) << 48 | index >> 12
                }
            };
            put(file, table * SECTOR + at % GTES_PER_GT * 8, &u64::to_le_bytes(entry));
        }
    }
}
