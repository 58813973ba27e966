//! Which copy of a table is the sound one, where they differ or a place is doubtful.
//!
//! A copy is bad if an entry of it is beyond the file or over metadata, if grains of other tables stand where it is, or if
//! another table wants its place. The primary one counts unless it is bad and the redundant one is not. A
//! table that only the redundant directory has counts too, unless the file was not closed: a crash leaves
//! that.

use block_core::Result;

use super::walk::{State, Walk, Which};

/// What is to be said of a table whose copies differ.
struct Difference {
    number: u32,
    text: String,
}

impl Walk<'_> {
    /// Decides what [`Walk::read_tables`] left open, and notes the grains of what counts.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.differ.is_empty() {
            return Ok(());
        }
        let mut readers = self.readers();
        for number in self.differ.clone() {
            let primary = self.read(&mut readers, Which::Primary, number).await?;
            let redundant = self.read(&mut readers, Which::Redundant, number).await?;
            self.decide(number, primary.as_deref(), redundant.as_deref());
        }
        if self.claims.has_contests() {
            self.claim_again();
        }
        let mut readers = self.readers();
        for number in self.differ.clone() {
            if self.place_of(Which::Redundant, number).is_none() {
                self.from_redundant.remove(number);
            }
            if let Some(entries) = self.read(&mut readers, self.sound_copy(number), number).await? {
                self.note(number, &entries).await?;
            }
        }
        // What lost may stand where grains are, which only now are all known.
        for number in self.differ.clone() {
            let lost = match self.sound_copy(number) {
                Which::Primary => Which::Redundant,
                Which::Redundant => Which::Primary,
            };
            if self.has_grain_over(lost, number) {
                self.refuse_place(lost, number);
            }
        }
        self.claim_again();
        self.name_differences().await
    }

    /// The copy of a table that counts.
    pub(super) fn sound_copy(&self, number: u32) -> Which {
        match self.from_redundant.contains(number) {
            true => Which::Redundant,
            false => Which::Primary,
        }
    }

    fn decide(&mut self, number: u32, primary: Option<&[u32]>, redundant: Option<&[u32]>) {
        match (primary, redundant) {
            (Some(primary), Some(redundant)) if primary != redundant => {
                let bad = |which, entries: &[u32]| {
                    self.has_garbage(entries)
                        || self.is_over_metadata(which, number, entries)
                        || self.has_grain_over(which, number)
                        || self.is_contested_copy(which, number)
                };
                let primary = bad(Which::Primary, primary);
                let lost = match primary && !bad(Which::Redundant, redundant) {
                    true => {
                        self.from_redundant.insert(number);
                        Which::Primary
                    }
                    false => Which::Redundant,
                };
                if self.is_contested_copy(lost, number) {
                    self.refuse_place(lost, number);
                }
            }
            (None, Some(redundant)) => {
                let has_place = self.primary.entry(number).is_some_and(|sector| sector != 0);
                let is_left_over = self.examined.unclean || self.has_garbage(redundant);
                if has_place {
                    self.from_redundant.insert(number);
                } else if redundant.iter().all(|word| *word == 0) {
                    self.differ.remove(number);
                } else if !is_left_over {
                    self.from_redundant.insert(number);
                }
            }
            _ => {}
        }
    }

    fn is_contested_copy(&self, which: Which, number: u32) -> bool {
        self.place_of(which, number).is_some_and(|sector| self.is_contested(sector))
    }

    /// Whether an entry of a copy names a grain over metadata: other than the other copy, whose place may be
    /// what is wrong.
    fn is_over_metadata(&self, which: Which, number: u32, entries: &[u32]) -> bool {
        let other = match which {
            Which::Primary => Which::Redundant,
            Which::Redundant => Which::Primary,
        };
        let (start, count) = self.place_of(other, number).map_or((0, 0), |s| self.table_place(s));
        let compressed = self.examined.layout.is_compressed();
        let grain = if compressed { 1 } else { self.grain() };
        entries.iter().any(|word| match self.state(*word) {
            State::Grain(sector) => {
                let first = u64::from(sector);
                let end = first + grain;
                let both = end.min(start + count).saturating_sub(first.max(start));
                self.claims.count(first, grain) > both
            }
            State::Empty | State::Beyond => false,
        })
    }

    fn has_garbage(&self, entries: &[u32]) -> bool {
        entries.iter().any(|word| self.state(*word) == State::Beyond)
    }

    /// Says how copies differ. Where a place is bad, that was said.
    async fn name_differences(&mut self) -> Result<()> {
        let mut readers = self.readers();
        let mut same = Vec::new();
        for number in self.differ.clone() {
            let bad = |directory: &super::places::Directory| directory.bad.contains(number);
            if bad(&self.primary) || self.redundant.as_ref().is_some_and(bad) {
                continue;
            }
            let primary = self.read(&mut readers, Which::Primary, number).await?;
            let redundant = self.read(&mut readers, Which::Redundant, number).await?;
            let Some(redundant) = redundant else {
                // Its place was doubtful, and nothing else.
                self.look_for_hole(number);
                continue;
            };
            match self.difference(number, primary.as_deref(), &redundant) {
                Some(difference) => self.say(difference),
                None if primary.is_some() => same.push(number),
                None => {}
            }
        }
        same.into_iter().for_each(|number| {
            self.differ.remove(number);
        });
        Ok(())
    }

    fn difference(
        &self,
        number: u32,
        primary: Option<&[u32]>,
        redundant: &[u32],
    ) -> Option<Difference> {
        let place = |which| self.place_of(which, number).unwrap_or(0);
        let second = place(Which::Redundant);
        let Some(primary) = primary else {
            let text = format!(
                "redundant grain table {number} at sector {second:#x} has entries, and there is \
                 no primary one"
            );
            return Some(Difference { number, text });
        };
        let mut differ =
            (0u64..).zip(primary.iter().zip(redundant)).filter(|(_, (one, other))| one != other);
        let (index, (one, other)) = differ.next()?;
        let count = differ.count() + 1;
        let first = place(Which::Primary);
        let text = format!(
            "grain table {number} at sector {first:#x} and its redundant copy at {second:#x} \
             differ in {count} entries, the first is {index}: {one:#x} and {other:#x}"
        );
        Some(Difference { number, text })
    }

    fn say(&mut self, difference: Difference) {
        let Difference { number, text } = difference;
        let sound = self.sound_copy(number);
        if self.examined.unclean && sound == Which::Primary {
            self.log.leaks(1, || format!("{text}; the file was not closed"));
            return;
        }
        self.log.corruption(|| match sound {
            Which::Primary => format!("{text}; the primary one is taken to be sound"),
            Which::Redundant => format!("{text}; the redundant one is taken to be sound"),
        });
    }
}
