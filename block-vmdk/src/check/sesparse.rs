//! A check of seSparse extents, as far as the format is known: areas, the directory, tables and grains.
//!
//! Nothing is mended: these files have a journal, a bitmap of free grains and a back map, which would have to
//! follow.

use block_core::ability::CheckReport;
use block_core::metadata::bytes::{read_bytes, read_inside};
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Node, Problem, Result};
use roaring::{RoaringBitmap, RoaringTreemap};

use super::log::Log;
use crate::extent::geometry::{Entry, SECTOR};
use crate::extent::layout::SparseLayout;
use crate::extent::words::long_words;
use crate::spec::sesparse::{GT_SECTORS, SeSparseHeader, decode_gde};

/// Bytes of the directory that are read at once.
const CHUNK: u64 = 1 << 20;

/// Checks the extent in `file`.
pub(super) async fn check(
    file: &Node,
    layout: &SparseLayout,
    header: &SeSparseHeader,
    log: Log<'_>,
) -> Result<CheckReport> {
    let (tables, grains) = (RoaringBitmap::new(), RoaringTreemap::new());
    let mut walk = SeWalk { file, layout, header, log, tables, grains };
    walk.look_at_areas();
    walk.walk().await?;
    Ok(walk.log.report)
}

struct SeWalk<'a> {
    file: &'a Node,
    layout: &'a SparseLayout,
    header: &'a SeSparseHeader,
    log: Log<'a>,
    /// Indexes of tables that the directory names.
    tables: RoaringBitmap,
    /// First sectors of grains.
    grains: RoaringTreemap,
}

impl SeWalk<'_> {
    /// No two areas may overlap, the header's sector included. That of grains has no end.
    fn look_at_areas(&mut self) {
        let mut areas: Vec<_> = self
            .header
            .areas()
            .filter(|(_, place)| place.count.0 > 0)
            .map(|(name, place)| (place.start.0, place.start.0 + place.count.0, name))
            .collect();
        areas.push((0, 1, "header"));
        areas.sort_unstable();
        for pair in areas.windows(2) {
            if let [(_, end, one), (start, _, other)] = pair
                && start < end
            {
                self.log.corruption(|| {
                    format!("{other} is {start:#x}, and {one} ends at sector {end:#x}: overlap")
                });
            }
        }
    }

    async fn walk(&mut self) -> Result<()> {
        let start = self.layout.gd.0 * SECTOR;
        let len = self.layout.directory_bytes();
        let mut done = 0;
        while done < len {
            let range = ByteRange::new(start + done, CHUNK.min(len - done))?;
            let bytes = read_bytes(self.file, range).await?;
            for (number, word) in (done / 8..).zip(long_words(&bytes)) {
                self.follow(number, word).await?;
            }
            done += range.len();
        }
        Ok(())
    }

    async fn follow(&mut self, number: u64, word: u64) -> Result<()> {
        let index = match decode_gde(word) {
            Ok(None) => return Ok(()),
            Ok(Some(index)) => index,
            Err(_) => {
                self.bad_place(number, word, Problem::Unknown);
                return Ok(());
            }
        };
        let area = self.header.grain_tables().count.0;
        let Some(sector) = self.header.grain_table(index) else {
            self.bad_place(number, word, Problem::Truncated(area));
            return Ok(());
        };
        let at = sector.0.saturating_mul(SECTOR);
        let len = GT_SECTORS * SECTOR;
        if at.saturating_add(len) > self.file.len() {
            self.bad_place(number, word, Problem::Truncated(self.file.len().div_ceil(SECTOR)));
            return Ok(());
        }
        if !self.tables.insert(index) {
            self.bad_place(number, word, Problem::Overlap);
            return Ok(());
        }
        let bytes = read_inside(self.file, "grain table", at, len).await?;
        let geometry = self.layout.geometry;
        let mapped = geometry.grain_alignment().count_up(geometry.table_range(number).len());
        for (index, word) in (0u64..).zip(long_words(&bytes)).take(to_usize(mapped)) {
            if let Some(problem) = self.note(word) {
                self.log.corruption(|| {
                    format!("entry {index} of grain table {number} is {word:#x}: {problem}")
                });
            }
        }
        debug_assert_eq!(to_u64(bytes.len()), len);
        Ok(())
    }

    fn bad_place(&mut self, number: u64, word: u64, problem: Problem) {
        self.log.corruption(|| format!("grain directory entry {number} is {word:#x}: {problem}"));
    }

    /// Notes the grain of an entry; what is wrong with it.
    fn note(&mut self, word: u64) -> Option<Problem> {
        let at = match self.layout.entries.decode(word) {
            Ok(Entry::Unallocated | Entry::Zeroed) => return None,
            Ok(Entry::At(at)) => at,
            Err(_) => return Some(Problem::Unknown),
        };
        if at >= self.file.len() {
            return Some(Problem::Truncated(self.file.len().div_ceil(SECTOR)));
        }
        (!self.grains.insert(at / SECTOR)).then_some(Problem::Overlap)
    }
}
