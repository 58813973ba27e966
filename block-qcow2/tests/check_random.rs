//! Random damage: a check ends, says what it finds, and what it mends stays mended; a repair that is
//! cut off anywhere loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod damaged;
mod support;

use std::sync::{Arc, OnceLock};

use block_core::ability::Repair;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_testkit::disk::noting::{Noting, after_crash};
use block_testkit::naive::qcow2::Image;
use block_testkit::peer::ImageDir;
use damaged::{Lost, Sample, check_bytes, check_driver, damages, open_for_check};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One of the images, made once.
fn sample(index: usize) -> &'static Sample {
    const SHAPES: [&str; 6] = [
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=4k,refcount_bits=64",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=4k,data_file=data.raw",
    ];
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    let make = |shape| Sample::make(&ImageDir::new().unwrap(), shape);
    let samples = SAMPLES.get_or_init(|| SHAPES.into_iter().map(make).collect());
    &samples[index % samples.len()]
}

/// A word that means something to a table.
fn word() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![Just(0), Just(1u64 << 63), Just(1 << 62), Just(1), Just(1 << 60)];
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        (0u64..80, flags.clone()).prop_map(|(n, flags)| (n * 4096) | flags),
        (0u64..400, flags).prop_map(|(n, flags)| (n * 512) | flags),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_check_of_any_damage_ends_and_a_repair_says_what_remains(
        which in 0usize..6,
        pokes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..64, word()), 1..6),
        header in prop::option::weighted(0.2, (24usize..96, any::<u8>())),
    ) {
        let good = sample(which);
        let mut bytes = good.bytes.clone();
        let cluster = to_usize(good.cluster);
        for (at, index, word) in pokes {
            let at = at.index(bytes.len() / cluster).max(1) * cluster + index * 8;
            if at + 8 <= bytes.len() {
                bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
        }
        if let Some((at, value)) = header {
            bytes[at] = value;
        }
        let disk = Arc::new(MemDriver::from_bytes(&bytes).unwrap());
        if open_for_check(Arc::clone(&disk) as _).is_err() {
            return Ok(());
        }
        let (before, ..) = check_bytes(&bytes, Repair::Nothing);
        let Ok((report, said)) = check_driver(Arc::clone(&disk) as _, Repair::All) else {
            return Ok(());
        };
        let after = disk.to_bytes();
        let (again, found, _) = check_bytes(&after, Repair::Nothing);
        prop_assert_eq!(
            (report.corruptions, report.leaks, report.check_errors),
            (again.corruptions, again.leaks, again.check_errors),
            "{:?}", found
        );
        prop_assert!(report.corruptions <= before.corruptions, "{:#?}", said);
        let is_clean = again.corruptions == 0 && again.leaks == 0;
        if let (true, Ok(image)) = (is_clean, Image::open(&after)) {
            let slow = image.check().unwrap();
            prop_assert!(slow.is_clean(), "{}", slow);
        }
    }
}

#[test]
fn a_repair_that_is_cut_off_loses_nothing() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut images = 0;
    for which in [0, 3] {
        for damage in damages() {
            let mut damaged = sample(which).clone();
            let Some(lost) = (damage.apply)(&mut damaged) else { continue };
            let noting = Noting::new(&damaged.bytes);
            check_driver(Arc::clone(&noting) as _, Repair::All).unwrap();
            let notes = noting.notes();
            let place = format!("{}: {}", damaged.shape, damage.name);
            assert!(notes.len() >= 2, "{place}: nothing was mended");
            for count in 0..=notes.len() {
                // Nothing of what was not flushed, all of it, and some of it.
                for share in [0, 4, 2] {
                    let bytes = after_crash(&damaged.bytes, &notes[..count], || {
                        random.random_range(0..4) < share
                    });
                    let cut = Sample { bytes, ..damaged.clone() };
                    images += 1;
                    no_worse(&damaged, &cut, &lost, &format!("{place} cut off after {count}"));
                }
            }
        }
    }
    assert!(images > 1000, "only {images} images");
}

/// A repair that starts over leads to a clean image with the same contents, and what was right is
/// right in between.
fn no_worse(damaged: &Sample, cut: &Sample, lost: &Lost, place: &str) {
    let (report, _, after) = check_bytes(&cut.bytes, Repair::All);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}");
    if matches!(lost, Lost::Nothing) {
        let mended = Sample { bytes: after, ..damaged.clone() };
        let good = sample_of(damaged.shape);
        let old = good.naive().contents().unwrap();
        assert!(old == mended.naive().contents().unwrap(), "{place}: contents");
        assert_eq!(good.naive().snapshots(), mended.naive().snapshots(), "{place}");
    }
}

fn sample_of(shape: &str) -> &'static Sample {
    (0..6).map(sample).find(|sample| sample.shape == shape).unwrap()
}
