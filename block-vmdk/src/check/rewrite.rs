//! Writing tables anew, so that every entry says what is there, and both copies say the same.
//!
//! The order, for each table: copies of grains and new tables, a flush, the primary copy, a flush, the
//! redundant copy. **Invariant.** At every moment one of the copies that a reader finds is no worse than
//! what was there before.

use block_core::metadata::bytes::{read_bytes, write_bytes};
use block_core::range::to_usize;
use block_core::{ByteRange, Result};

use super::entries::{Owned, Wrong};
use super::examine::put;
use super::places::Directory;
use super::space::Spare;
use super::tables::encode;
use super::walk::{State, Walk, Which};
use crate::extent::geometry::SECTOR;

/// Bytes of a grain that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// The contents of both copies of a table as they are, and what they are to be.
pub(super) struct Table {
    pub(super) number: u32,
    pub(super) primary: Option<Vec<u32>>,
    pub(super) redundant: Option<Vec<u32>>,
    pub(super) wanted: Vec<u32>,
    /// Where the copies are, primary first; a copy that has no place gets one.
    pub(super) places: [Option<u32>; 2],
}

/// Whether something was written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Changed {
    No,
    Yes,
}

impl Walk<'_> {
    /// Mends the entries of all tables, and their places.
    pub(super) async fn rewrite(&mut self) -> Result<Changed> {
        let mut spare = Spare::new(self.file, self);
        let mut readers = self.readers();
        let mut owned = Owned::default();
        let mut changed = Changed::No;
        for number in 0..self.table_count() {
            let differs = self.differ.contains(number) || self.has_bad_place(number);
            let hole = self.faults.holes && self.is_hole(number);
            if !differs && !hole && !self.has_wrong_entries() {
                continue;
            }
            let primary = self.read(&mut readers, Which::Primary, number).await?;
            let redundant = match differs {
                true => self.read(&mut readers, Which::Redundant, number).await?,
                false => primary.clone().filter(|_| !hole),
            };
            let (sound, other) = match self.sound_copy(number) {
                Which::Primary => (&primary, &redundant),
                Which::Redundant => (&redundant, &primary),
            };
            let (sound, other) = (sound.clone(), other.clone().filter(|_| differs));
            let wanted = match sound {
                Some(sound) => {
                    self.mend_entries(number, sound, other, &mut owned, &mut spare).await?
                }
                None => Vec::new(),
            };
            let places = self.places_of(number);
            let table = Table { number, primary, redundant, wanted, places };
            if self.write_table(table, &mut spare).await? == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        self.file.flush().await?;
        Ok(changed)
    }

    fn has_bad_place(&self, number: u32) -> bool {
        let redundant = self.redundant.as_ref();
        self.primary.bad.contains(number) || redundant.is_some_and(|r| r.bad.contains(number))
    }

    fn is_hole(&self, number: u32) -> bool {
        self.place_of(Which::Primary, number).is_some()
            && self.redundant.as_ref().is_some_and(|r| r.entry(number) == Some(0))
    }

    /// What the entries of a table are to be.
    async fn mend_entries(
        &mut self,
        number: u32,
        mut entries: Vec<u32>,
        other: Option<Vec<u32>>,
        owned: &mut Owned,
        spare: &mut Spare,
    ) -> Result<Vec<u32>> {
        let other = other.unwrap_or_default();
        for (index, word) in (0u64..).zip(&mut entries) {
            let old = *word;
            let copy = other.get(to_usize(index)).copied().filter(|copy| *copy != old);
            let is_shared = matches!(self.state(old), State::Grain(s) if self.shared.contains(s));
            let unused = match copy {
                Some(copy) => self.is_unused(number, index, copy).await?,
                None => false,
            };
            if let (true, true, Some(copy)) = (is_shared, unused, copy) {
                *word = copy;
            } else {
                let Some(wrong) = self.wrong(number, index, old, owned).await? else { continue };
                *word = match (copy, wrong) {
                    (Some(copy), _) if unused => copy,
                    (_, Wrong::Shared) => self.copy_grain(old, spare).await?,
                    _ => 0,
                };
            }
            if let State::Grain(sector) = self.state(*word) {
                self.starts.insert(sector);
            }
            let new = *word;
            let text =
                || format!("entry {index} of grain table {number} was {old:#x}, is {new:#x}");
            self.log.repaired(text);
        }
        Ok(entries)
    }

    /// Whether an entry names a grain that is there and that no other entry has.
    async fn is_unused(&mut self, number: u32, index: u64, word: u32) -> Result<bool> {
        let State::Grain(sector) = self.state(word) else { return Ok(false) };
        let count = match self.examined.layout.is_compressed() {
            true => match self.packed_grain(number, index, sector).await? {
                Ok(count) => count,
                Err(_) => return Ok(false),
            },
            false => self.grain(),
        };
        let start = u64::from(sector);
        Ok(!self.has_grain_in(start, count) && !self.claims.overlaps(start, count))
    }

    /// Copies the grain that an entry names; the entry of the copy, 0 where there is no room for it.
    async fn copy_grain(&mut self, word: u32, spare: &mut Spare) -> Result<u32> {
        let Some(place) = spare.grain() else { return Ok(0) };
        self.copy_to(word, place).await?;
        Ok(place)
    }

    /// Copies a grain. What of it is beyond the end of the file is zero.
    pub(super) async fn copy_to(&self, from: u32, to: u32) -> Result<()> {
        let (from, to) = (u64::from(from) * SECTOR, u64::from(to) * SECTOR);
        let mut done = 0;
        let len = self.grain() * SECTOR;
        while done < len {
            let range = ByteRange::new(from + done, COPY_BYTES.min(len - done))?;
            let bytes = read_bytes(self.file, range).await?;
            write_bytes(self.file, to + done, &bytes).await?;
            done += range.len();
        }
        Ok(())
    }

    /// Writes both copies of a table, and their entries in the directories.
    pub(super) async fn write_table(&mut self, table: Table, spare: &mut Spare) -> Result<Changed> {
        let Table { number, primary, redundant, wanted, places } = table;
        let is_empty = wanted.iter().all(|word| *word == 0);
        let has_redundant = self.redundant.is_some();
        let keeps = places[0].is_some() || !is_empty;
        let wants = [keeps, has_redundant && (keeps || places[1].is_some())];
        let sectors = self.examined.layout.table_sectors().0;
        let mut targets = [0; 2];
        for ((target, place), wants) in targets.iter_mut().zip(places).zip(wants) {
            let found = match (place, wants) {
                (Some(place), true) => Some(place),
                (None, true) => spare.table(sectors),
                (_, false) => Some(0),
            };
            let Some(found) = found else {
                self.log.repaired(|| format!("grain table {number} is left: there is no room"));
                return Ok(Changed::No);
            };
            *target = found;
        }
        let bytes = self.padded(&wanted);
        let is_new = |target: u32, place: Option<u32>| target != 0 && place != Some(target);
        for (target, place) in targets.into_iter().zip(places) {
            if is_new(target, place) {
                write_bytes(self.file, u64::from(target) * SECTOR, &bytes).await?;
            }
        }
        self.file.flush().await?;
        let mut changed = Changed::No;
        let copies = [(Which::Primary, primary), (Which::Redundant, redundant)];
        for ((which, old), (target, place)) in
            copies.into_iter().zip(targets.into_iter().zip(places))
        {
            if target != 0 && !is_new(target, place) && !same(old.as_deref(), &wanted) {
                write_bytes(self.file, u64::from(target) * SECTOR, &bytes).await?;
                self.log.repaired(|| format!("{} {number} was written anew", which.table_name()));
                changed = Changed::Yes;
            }
            if self.write_place(which, number, target).await? == Changed::Yes {
                changed = Changed::Yes;
            }
            self.file.flush().await?;
        }
        Ok(changed)
    }

    /// Where the copies of a table are.
    pub(super) fn places_of(&self, number: u32) -> [Option<u32>; 2] {
        [Which::Primary, Which::Redundant].map(|which| self.place_of(which, number))
    }

    /// The bytes of a table; what maps nothing is zero.
    fn padded(&self, entries: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(self.examined.layout.table_bytes())];
        put(&mut bytes, 0, &encode(entries));
        bytes
    }

    /// Writes the entry of a directory, if it says something else.
    async fn write_place(&mut self, which: Which, number: u32, sector: u32) -> Result<Changed> {
        let directory: &Directory = match (which, &self.redundant) {
            (Which::Primary, _) => &self.primary,
            (Which::Redundant, Some(redundant)) => redundant,
            (Which::Redundant, None) => return Ok(Changed::No),
        };
        let old = directory.entry(number).unwrap_or(0);
        if old == sector {
            return Ok(Changed::No);
        }
        let at = directory.place.0 * SECTOR + u64::from(number) * 4;
        write_bytes(self.file, at, &sector.to_le_bytes()).await?;
        let name = directory.name;
        self.log.repaired(|| format!("{name} entry {number} was {old:#x}, is {sector:#x}"));
        Ok(Changed::Yes)
    }
}

impl Which {
    fn table_name(self) -> &'static str {
        match self {
            Self::Primary => "grain table",
            Self::Redundant => "redundant grain table",
        }
    }
}

/// Whether a table that is in the file, or is not, maps what is wanted.
fn same(old: Option<&[u32]>, wanted: &[u32]) -> bool {
    match old {
        Some(old) if wanted.is_empty() => old.iter().all(|word| *word == 0),
        Some(old) => old == wanted,
        None => false,
    }
}
