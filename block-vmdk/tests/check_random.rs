//! Random damage: a check ends, says what it finds, and what it mends stays mended; grains that no damage
//! touched hold what they held; a repair that is cut off anywhere loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod damaged;
mod kit;

use std::sync::OnceLock;

use block_core::ability::Repair;
use block_core::range::{to_u64, to_usize};
use block_testkit::check::check_node;
use block_testkit::disk::noting::{Noting, after_crash};
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::naive::vmdk::{Content, Entry, Image};
use damaged::{Lost, Sample, check_files, damages, open_for_check, samples};
use futures::executor::block_on;
use kit::{Disks, judge};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn sample(index: usize) -> &'static Sample {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    let samples = SAMPLES.get_or_init(samples);
    &samples[index % samples.len()]
}

/// A word that means something to a table.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        Just(0u32),
        Just(1),
        Just(u32::MAX),
        0u32..64,
        (0u32..400).prop_map(|n| n * 8),
    ]
}

/// Places of the words of directories and tables.
fn table_words(sample: &Sample) -> Vec<u64> {
    let mut words = Vec::new();
    for directory in std::iter::once(sample.gd()).chain(sample.rgd()) {
        for table in 0..sample.tables() {
            words.push(sample.gde(directory, table));
            let sector = sample.table(directory, table);
            if sector != 0 {
                words.extend((0..sample.gtes().min(64)).map(|n| sector * 512 + n * 4));
            }
        }
    }
    words
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_check_of_any_damage_ends_and_a_repair_stays(
        which in 0usize..64,
        pokes in prop::collection::vec((any::<prop::sample::Index>(), word()), 1..8),
        header in prop::option::weighted(0.2, (4usize..80, any::<u8>())),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut s = sample(which).clone();
        let words = table_words(&s);
        for (at, word) in pokes {
            let at = words[at.index(words.len())];
            s.put32(at, word.into());
        }
        if let Some((at, value)) = header {
            s.put(to_u64(at), &[value]);
        }
        if let Some(cut) = cut {
            let len = cut.index(s.file().len() / 512) * 512 + 512;
            s.file_mut().truncate(len);
        }
        let Ok(checked) = check_files(&s.setup, &s.files, Repair::Nothing) else { return Ok(()) };
        prop_assert!(checked.files == s.files, "a check wrote");
        let Ok((before, _)) = checked.result else { return Ok(()) };
        let checked = check_files(&s.setup, &s.files, Repair::All).unwrap();
        let Ok((report, said)) = checked.result else { return Ok(()) };
        let after = checked.files;
        let again = check_files(&s.setup, &after, Repair::Nothing).unwrap();
        let (again, found) = again.result.unwrap();
        prop_assert_eq!(
            (report.corruptions, report.leaks, report.check_errors),
            (again.corruptions, again.leaks, again.check_errors),
            "{:#?}", found
        );
        prop_assert!(report.corruptions <= before.corruptions, "{:#?}", said);
        if again.corruptions == 0 && again.leaks == 0
            && let Ok(slow) = judge(&s.setup, &after)
        {
            // A grain that was lost is still in the stream.
            let is_clean = slow.clean().is_ok() || s.is_stream();
            prop_assert!(is_clean, "{}\n{:#?}", slow.report, said);
        }
    }

    /// Damage to entries alone is always mended, and costs no grain whose entries are right in both copies.
    #[test]
    fn entries_are_always_mended_and_others_are_safe(
        which in 0usize..64,
        pokes in prop::collection::vec((any::<prop::sample::Index>(), word()), 1..5),
    ) {
        let good = sample(which);
        let mut s = good.clone();
        let words = table_words(&s);
        let entries: Vec<_> = {
            let directories: Vec<_> = std::iter::once(s.gd()).chain(s.rgd()).collect();
            let places = |d: u64| (0..s.tables()).map(move |n| (d, n)).collect::<Vec<_>>();
            let gdes: Vec<_> =
                directories.iter().flat_map(|d| places(*d)).map(|(d, n)| s.gde(d, n)).collect();
            words.into_iter().filter(|at| !gdes.contains(at)).collect()
        };
        let mut touched = Vec::new();
        for (at, word) in pokes {
            let at = entries[at.index(entries.len())];
            s.put32(at, word.into());
            touched.push(at);
        }
        let (_, _, after) = check_files(&s.setup, &s.files, Repair::All).unwrap().done();
        let (report, found, twice) = check_files(&s.setup, &after, Repair::All).unwrap().done();
        prop_assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", found);
        prop_assert!(found.is_empty() && twice == after, "{:#?}", found);
        let old = judge(&good.setup, &good.files).unwrap().contents;
        let new = judge(&good.setup, &after).unwrap().contents;
        for grain in untouched(good, &touched) {
            let range = good.guest(grain);
            let range = to_usize(range.start)..to_usize(range.end);
            prop_assert!(old[range.clone()] == new[range], "grain {} changed: {:#?}", grain, found);
        }
    }
}

/// Grains of the first extent that hold data, and whose entries nobody touched.
fn untouched(good: &Sample, touched: &[u64]) -> Vec<u64> {
    let image = Image::open(&good.files, NAME).unwrap();
    let Content::Sparse(sparse) = &image.extents()[0].content else { return Vec::new() };
    let holds = |grain: &u64| matches!(sparse.grain_at(*grain), Ok(Entry::At(_)));
    let directories: Vec<_> = std::iter::once(good.gd()).chain(good.rgd()).collect();
    let is_safe = |grain: &u64| {
        directories.iter().all(|d| good.gte(*d, *grain).is_none_or(|at| !touched.contains(&at)))
    };
    (0..sparse.grains()).filter(holds).filter(is_safe).collect()
}

#[test]
fn a_repair_that_is_cut_off_loses_nothing() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut images = 0;
    for name in ["4k zeroed", "cowd preallocated", "stream"] {
        let good = damaged::sample(name);
        let old = judge(&good.setup, &good.files).unwrap().contents;
        for damage in damages() {
            let mut damaged = good.clone();
            let Some(lost) = (damage.apply)(&mut damaged) else { continue };
            let disks = Disks::new(damaged.files.clone(), |bytes| Noting::new(&bytes));
            let node = open_for_check(&damaged.setup, &disks).unwrap();
            block_on(check_node(&node, Repair::All)).unwrap();
            let (_, noting) = disks.0.iter().find(|(name, _)| *name == damaged.name).unwrap();
            let notes = noting.notes();
            let place = format!("{name}: {}", damage.name);
            assert!(notes.len() >= 2, "{place}: nothing was mended");
            for count in 0..=notes.len() {
                // All of what was not flushed, or some of it.
                for share in [4, 2] {
                    let mut cut = damaged.clone();
                    let keeps = || random.random_range(0..4) < share;
                    *cut.file_mut() = after_crash(damaged.file(), &notes[..count], keeps);
                    images += 1;
                    let place = format!("{place} cut off after {count}, share {share}");
                    no_worse(&cut, &old, &lost, &place);
                }
            }
        }
    }
    assert!(images > 500, "only {images} images");
}

/// A repair that starts over leads to a clean disk with the same contents.
fn no_worse(cut: &Sample, old: &[u8], lost: &Lost, place: &str) {
    let checked = check_files(&cut.setup, &cut.files, Repair::All);
    let (report, said, after) = checked.unwrap_or_else(|e| panic!("{place}: {e}")).done();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}: {said:#?}");
    let new = judge(&cut.setup, &after).unwrap_or_else(|why| panic!("{place}: {why}")).contents;
    let gone = match lost {
        Lost::Nothing => 0..0,
        Lost::Guest(range) => to_usize(range.start)..to_usize(range.end),
    };
    let differs = (0..old.len()).find(|at| old[*at] != new[*at] && !gone.contains(at));
    assert_eq!(differs, None, "{place}: {said:#?}");
}
