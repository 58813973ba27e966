//! streamOptimized extents: compressed grains behind markers.

use std::collections::BTreeMap;
use std::io::Write as _;

use block_core::range::{to_u64, to_usize};

use super::super::sparse::SECTOR;
use super::{Directory, ExtentShape, Grain, Placement, ZeroedGrains, append, half, put};

/// Grains are compressed, and have markers.
const FLAGS: u64 = 1 << 16 | 1 << 17;
const OVERHEAD: u64 = 128;

impl ExtentShape<'_> {
    pub(super) fn stream(&self, directory: Directory, embedded: Option<&str>) -> Vec<u8> {
        assert_eq!(self.shape.placement, Placement::Ascending, "a stream goes forward");
        match directory {
            Directory::InHeader => self.stream_with_header(embedded),
            Directory::InFooter => self.stream_with_footer(embedded),
        }
    }

    /// All tables before the grains.
    fn stream_with_header(&self, embedded: Option<&str>) -> Vec<u8> {
        let mut file = self.head(embedded);
        let tables = self.tables();
        let directory = append(&mut file, (tables * 4).div_ceil(SECTOR));
        let per_table = self.shape.gtes_per_gt;
        let first = append(&mut file, tables * table_sectors(per_table));
        for number in 0..tables {
            let start = first + number * table_sectors(per_table);
            put(&mut file, directory * SECTOR + number * 4, &half(start));
        }
        let end = to_u64(file.len()) / SECTOR;
        let overhead = end.next_multiple_of(OVERHEAD);
        append(&mut file, overhead - end);
        for number in self.used_tables(per_table) {
            let start = first + number * table_sectors(per_table);
            let table = self.table(&mut file, number);
            put(&mut file, start * SECTOR, &table);
        }
        let header = self.header(FLAGS, [0, directory, overhead], embedded.is_some());
        put(&mut file, 0, &header);
        file
    }

    /// Each table behind its grains, then the directory, the footer and the end.
    fn stream_with_footer(&self, embedded: Option<&str>) -> Vec<u8> {
        let mut file = self.head(embedded);
        let end = to_u64(file.len()) / SECTOR;
        append(&mut file, OVERHEAD - end);
        let mut places = BTreeMap::new();
        for number in self.used_tables(self.shape.gtes_per_gt) {
            let table = self.table(&mut file, number);
            places.insert(number, marked(&mut file, 1, &table));
        }
        let mut directory = vec![0; to_usize((self.tables() * 4).next_multiple_of(SECTOR))];
        for (number, start) in places {
            put(&mut directory, number * 4, &half(start));
        }
        let directory = marked(&mut file, 2, &directory);
        let embedded = embedded.is_some();
        let footer = self.header(FLAGS, [0, directory, OVERHEAD], embedded);
        marked(&mut file, 3, &footer);
        append(&mut file, 1);
        let header = self.header(FLAGS, [0, u64::MAX, OVERHEAD], embedded);
        put(&mut file, 0, &header);
        file
    }

    fn tables(&self) -> u64 {
        self.sectors.div_ceil(self.shape.grain_sectors).div_ceil(self.shape.gtes_per_gt)
    }

    /// Appends the grains of a table; the table.
    fn table(&self, file: &mut Vec<u8>, number: u64) -> Vec<u8> {
        let per_table = self.shape.gtes_per_gt;
        let mut table = vec![0; to_usize(table_sectors(per_table) * SECTOR)];
        let first = number * per_table;
        for (at, grain) in self.grains.range(first..first + per_table) {
            let entry = match grain {
                Grain::Data(bytes) => {
                    self.check_data(*at, bytes);
                    self.pack(file, *at, bytes)
                }
                Grain::Zero => {
                    assert_eq!(self.shape.zeroed_grains, ZeroedGrains::Yes, "a zeroed grain");
                    1
                }
                Grain::Unmapped => panic!("an unmapped grain without seSparse"),
            };
            put(&mut table, (at - first) * 4, &half(entry));
        }
        table
    }

    /// Appends a compressed grain; its sector.
    fn pack(&self, file: &mut Vec<u8>, number: u64, bytes: &[u8]) -> u64 {
        let mut whole = bytes.to_vec();
        whole.resize(to_usize(self.shape.grain_size()), 0);
        let packed = zlib(&whole);
        let mut marker = (number * self.shape.grain_sectors).to_le_bytes().to_vec();
        marker.extend(half(to_u64(packed.len())));
        marker.extend(packed);
        let start = append(file, to_u64(marker.len()).div_ceil(SECTOR));
        put(file, start * SECTOR, &marker);
        start
    }
}

fn table_sectors(gtes_per_gt: u64) -> u64 {
    (gtes_per_gt * 4).div_ceil(SECTOR)
}

/// Appends metadata behind its marker; its first sector.
fn marked(file: &mut Vec<u8>, kind: u32, bytes: &[u8]) -> u64 {
    let count = to_u64(bytes.len()).div_ceil(SECTOR);
    let marker = append(file, 1);
    put(file, marker * SECTOR, &count.to_le_bytes());
    put(file, marker * SECTOR + 12, &kind.to_le_bytes());
    let start = append(file, count);
    put(file, start * SECTOR, bytes);
    start
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}
