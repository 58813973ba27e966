//! Filling space in the middle of a file that nothing refers to with what is at its end, so that the end can be cut.
//!
//! Invariants: what is moved goes to where nothing is, nearer to the start, and is stable there before the
//! tables or the directory name it; where it was nothing is written.

use block_core::Result;
use block_core::range::to_usize;

use super::rewrite::{Changed, Table};
use super::space::Spare;
use super::walk::{State, Walk, Which};

/// Most runs of free sectors that are filled at once, and most grains.
const MAX_MOVES: usize = 1 << 20;

impl Walk<'_> {
    /// Runs of free sectors before the end of what is in use, each long enough for a grain.
    fn holes(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        if !self.examined.layout.is_compressed() {
            self.free_runs(|from, to| {
                if to - from >= self.grain() && runs.len() < MAX_MOVES {
                    runs.push((from, to));
                }
            });
        }
        runs
    }

    /// Moves tables that stand where the file could end.
    pub(super) async fn move_tables(&mut self) -> Result<Changed> {
        let holes = self.holes();
        let grain = self.grain();
        let free: u64 = holes.iter().map(|(from, to)| (to - from) / grain * grain).sum();
        if free == 0 {
            return Ok(Changed::No);
        }
        let from = self.used_end().saturating_sub(free);
        let mut spare = Spare::of_runs(self, holes);
        let mut readers = self.readers();
        let mut changed = Changed::No;
        for number in 0..self.table_count() {
            let places = self.places_of(number);
            let stays = places.map(|place| place.filter(|sector| u64::from(*sector) < from));
            let goes = places.iter().flatten().filter(|sector| u64::from(**sector) >= from).min();
            if goes.is_none_or(|sector| !spare.is_before((*sector).into())) {
                continue;
            }
            let Some(primary) = self.read(&mut readers, Which::Primary, number).await? else {
                continue;
            };
            let (wanted, redundant) = (primary.clone(), places[1].map(|_| primary.clone()));
            let primary = Some(primary);
            let table = Table { number, primary, redundant, wanted, places: stays };
            if self.write_table(table, &mut spare).await? == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }

    /// Moves the last grains of the file.
    pub(super) async fn move_grains(&mut self) -> Result<Changed> {
        let grain = self.grain();
        let mut holes = Vec::new();
        for (from, to) in self.holes() {
            let fitting = (from..to).step_by(to_usize(grain));
            let fitting = fitting.take_while(|start| start + grain <= to);
            let left = MAX_MOVES - holes.len();
            holes.extend(fitting.filter_map(|start| u32::try_from(start).ok()).take(left));
        }
        // Grains before the last table have nothing to gain: the file ends behind that.
        let end = self.claims.end();
        let pairs = self.starts.iter().rev().zip(&holes);
        let useful = pairs.take_while(|(start, hole)| {
            u64::from(**hole) + grain <= u64::from(*start) && u64::from(*start) >= end
        });
        let Some((from, _)) = useful.last() else { return Ok(Changed::No) };
        let mut spare = Spare::of_runs(self, Vec::new());
        let mut readers = self.readers();
        let mut holes = holes.into_iter();
        for number in 0..self.table_count() {
            let Some(primary) = self.read(&mut readers, Which::Primary, number).await? else {
                continue;
            };
            let mut wanted = primary.clone();
            for word in &mut wanted {
                if let State::Grain(sector) = self.state(*word)
                    && sector >= from
                    && let Some(hole) = holes.next()
                {
                    self.copy_to(sector, hole).await?;
                    *word = hole;
                }
            }
            if wanted != primary {
                let places = self.places_of(number);
                let redundant = places[1].map(|_| primary.clone());
                let primary = Some(primary);
                let table = Table { number, primary, redundant, wanted, places };
                self.write_table(table, &mut spare).await?;
            }
        }
        Ok(Changed::Yes)
    }
}
