//! From a byte of the extent to where it is stored.

use block_core::metadata::bytes::read_inside;
use block_core::range::to_usize;
use block_core::{ByteRange, Error, Result};
use futures::FutureExt;

use super::{SparseExtent, Table};
use crate::extent::geometry::{Entry, EntryFormat, Geometry, SECTOR};
use crate::extent::words::{long_words, words};

/// A run of the extent that is stored one way.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Bytes.
    pub(crate) len: u64,
    pub(crate) kind: Kind,
}

/// How a run is stored.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Not here: the backing file shows, or zeroes.
    Unallocated,
    /// Zeroes.
    Zero,
    /// At this byte of the file, one after the other.
    Data(u64),
    /// In the one compressed grain at this byte of the file.
    Compressed {
        /// Where its marker is.
        grain: u64,
        /// Bytes of the grain before the run.
        skip: u64,
    },
}

/// What the entries of a table say of the start of `range`, which lies in what the table maps.
pub(super) fn run_in(
    geometry: Geometry,
    format: EntryFormat,
    entries: &[u64],
    range: ByteRange,
) -> Result<Run> {
    let grain = geometry.grain_size();
    let first = geometry.entry_of(range.offset());
    let lookup = |index: usize| match entries.get(index) {
        Some(word) => format.decode(*word),
        None => Err(Error::Invalid),
    };
    let skip = range.offset() % grain;
    let start = lookup(first)?;
    let mut len = (grain - skip).min(range.len());
    for index in first + 1.. {
        if len >= range.len() {
            break;
        }
        let next = lookup(index)?;
        let continues = match (start, next) {
            (Entry::At(at), Entry::At(next)) => at.checked_add(skip + len) == Some(next),
            (start, next) => start == next,
        };
        if !continues {
            break;
        }
        len = (len + grain).min(range.len());
    }
    let kind = match start {
        Entry::Unallocated => Kind::Unallocated,
        Entry::Zeroed => Kind::Zero,
        Entry::At(at) => Kind::Data(at.saturating_add(skip)),
    };
    Ok(Run { len, kind })
}

impl SparseExtent {
    /// How the start of `range` is stored.
    pub(crate) async fn run(&self, range: ByteRange) -> Result<Run> {
        if let Some(run) = self.run_at_once(range) {
            return run;
        }
        let number = self.geometry.table_of(range.offset());
        let table = self.table(number).await?;
        self.run_of(range, &table)
    }

    /// The same, if no table must be read for it.
    #[inline]
    pub(crate) fn run_at_once(&self, range: ByteRange) -> Option<Result<Run>> {
        let number = self.geometry.table_of(range.offset());
        if let Some(run) = self.tables.with(number, |table| self.run_of(range, table)) {
            return Some(run);
        }
        if self.table_sector(number) != 0 {
            return None;
        }
        let len = self.geometry.table_range(number).intersect(range).len();
        Some(Ok(Run { len, kind: Kind::Unallocated }))
    }

    fn run_of(&self, range: ByteRange, table: &Table) -> Result<Run> {
        let number = self.geometry.table_of(range.offset());
        let mut within = range.intersect(self.geometry.table_range(number));
        let grain = self.geometry.grain_size();
        let compressed = self.layout.is_compressed();
        if compressed {
            within = within.first(grain - within.offset() % grain);
        }
        let run = run_in(self.geometry, self.layout.entries, table, within)?;
        Ok(match run.kind {
            Kind::Data(at) if compressed => {
                let skip = within.offset() % grain;
                Run { kind: Kind::Compressed { grain: at - skip, skip }, ..run }
            }
            _ => run,
        })
    }

    /// The sector of a table in the file, zero if it has none.
    pub(super) fn table_sector(&self, number: u64) -> u32 {
        self.gd.read().get(to_usize(number)).copied().unwrap_or(0)
    }

    /// The entries of a table; all unallocated if the file has none.
    pub(super) async fn table(&self, number: u64) -> Result<Table> {
        if let Some(table) = self.tables.peek(number) {
            return Ok(table);
        }
        let sector = self.table_sector(number);
        if sector == 0 {
            return Ok(Table::new(vec![0; to_usize(self.geometry.gtes_per_gt())]));
        }
        let (file, layout) = (self.file.clone(), self.layout.clone());
        let load = move || {
            async move {
                let at = u64::from(sector) * SECTOR;
                let bytes = read_inside(&file, "grain table", at, layout.table_bytes()).await?;
                Ok(Table::new(decode_table(layout.entries, &bytes)))
            }
            .boxed()
        };
        self.tables.peek_or_load(number, load).await
    }
}

/// The entries of a table as it stands in the file.
pub(super) fn decode_table(format: EntryFormat, bytes: &[u8]) -> Vec<u64> {
    match format {
        EntryFormat::Sectors { .. } => words(bytes).map(u64::from).collect(),
        EntryFormat::SeSparse { .. } => long_words(bytes).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::geometry::ZeroedGrains;
    use crate::units::SectorCount;
    use proptest::prelude::*;

    proptest! {
        /// A run says of every byte what the entry of its grain says.
        #[test]
        fn runs_are_what_the_entries_say(
            entries in prop::collection::vec(prop_oneof![
                Just(0u64), Just(1), (8u64..12).prop_map(|n| n * 8), 8u64..100], 8),
            start in 0u64..8 * 4096,
            len in 1u64..8 * 4096,
        ) {
            let format = EntryFormat::Sectors { zeroed: ZeroedGrains::Known };
            let geometry = Geometry::new(SectorCount(64), SectorCount(8), 8).unwrap();
            let range = ByteRange::new(start, len.min(8 * 4096 - start)).unwrap();
            let run = run_in(geometry, format, &entries, range).unwrap();
            prop_assert!(run.len > 0 && run.len <= range.len());
            for byte in (0..run.len).step_by(512) {
                let at = start + byte;
                let expected = match entries[usize::try_from(at / 4096).unwrap()] {
                    0 => Kind::Unallocated,
                    1 => Kind::Zero,
                    sector => Kind::Data(sector * 512 + at % 4096),
                };
                let said = match run.kind {
                    Kind::Data(host) => Kind::Data(host + byte),
                    other => other,
                };
                prop_assert_eq!(said, expected);
            }
        }
    }
}
