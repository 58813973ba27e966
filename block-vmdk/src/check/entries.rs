//! Naming the entries of tables that are wrong, and saying what becomes of each.
//!
//! Grains that overlap belong to the first of their entries, in the order of the disk.

use block_core::Result;
use roaring::RoaringBitmap;

use super::stream::GrainFault;
use super::walk::{State, Walk};

/// What is wrong with an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// Its grain is not in the file.
    Beyond,
    /// Its grain stands over metadata.
    OverMetadata,
    /// Another entry has its grain, or part of it.
    Shared,
    /// What is there is not the grain.
    Packed(GrainFault),
}

impl Wrong {
    fn text(&self) -> String {
        match self {
            Self::Beyond => "its grain is beyond the end of the file".to_owned(),
            Self::OverMetadata => "its grain overlaps metadata".to_owned(),
            Self::Shared => "its grain is, or overlaps, that of another entry".to_owned(),
            Self::Packed(fault) => fault.to_string(),
        }
    }
}

/// Which overlapping grains have an owner already.
#[derive(Default)]
pub(super) struct Owned {
    starts: RoaringBitmap,
}

impl Owned {
    /// Whether a grain at `sector` overlaps one that is owned.
    pub(super) fn overlaps(&self, sector: u32, grain: u64) -> bool {
        let reach = u32::try_from(grain - 1).unwrap_or(u32::MAX);
        let (first, last) = (sector.saturating_sub(reach), sector.saturating_add(reach));
        self.starts.range_cardinality(first..=last) > 0
    }

    pub(super) fn insert(&mut self, sector: u32) {
        self.starts.insert(sector);
    }
}

impl Walk<'_> {
    /// Whether entries of tables are wrong.
    pub(super) fn has_wrong_entries(&self) -> bool {
        self.faults.entries || !self.over.is_empty() || !self.shared.is_empty()
    }

    /// What is wrong with the entry `index` of the table `number`; `owned` has the grains of entries before.
    pub(super) async fn wrong(
        &mut self,
        number: u32,
        index: u64,
        word: u32,
        owned: &mut Owned,
    ) -> Result<Option<Wrong>> {
        let sector = match self.state(word) {
            State::Empty => return Ok(None),
            State::Beyond => return Ok(Some(Wrong::Beyond)),
            State::Grain(sector) => sector,
        };
        let compressed = self.examined.layout.is_compressed();
        if compressed && let Err(fault) = self.packed_grain(number, index, sector).await? {
            return Ok(Some(Wrong::Packed(fault)));
        }
        if self.over.contains(sector) {
            return Ok(Some(Wrong::OverMetadata));
        }
        if !self.shared.contains(sector) {
            return Ok(None);
        }
        if compressed || owned.overlaps(sector, self.grain()) {
            return Ok(Some(Wrong::Shared));
        }
        owned.insert(sector);
        Ok(None)
    }

    /// Says what is wrong with entries, one by one.
    pub(super) async fn name_entries(&mut self) -> Result<()> {
        if !self.has_wrong_entries() {
            return Ok(());
        }
        let mut readers = self.readers();
        let mut owned = Owned::default();
        for number in 0..self.table_count() {
            let which = self.sound_copy(number);
            let Some(entries) = self.read(&mut readers, which, number).await? else { continue };
            for (index, word) in (0u64..).zip(entries) {
                if let Some(wrong) = self.wrong(number, index, word, &mut owned).await? {
                    let text = wrong.text();
                    self.log.corruption(|| {
                        format!("entry {index} of grain table {number} is {word:#x}: {text}")
                    });
                }
            }
        }
        Ok(())
    }
}
