//! Checks and repairs of disks that are damaged by name, beside the slow checker's verdict; `qemu-img` reads
//! what was mended, where it reads such disks right.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod damaged;
mod kit;

use block_core::ability::{CheckReport, Finding, Repair, Severity};
use block_core::range::to_usize;
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::peer::{ImageDir, Verdict};
use damaged::{Damage, Lost, Sample, check_files, damages, samples};
use kit::{Setup, judge};

fn texts(found: &[Finding]) -> Vec<String> {
    found.iter().map(|f| format!("{:?}: {}", f.severity, f.text)).collect()
}

fn check(setup: &Setup, files: &Files, repair: Repair) -> (CheckReport, Vec<Finding>, Files) {
    check_files(setup, files, repair).unwrap_or_else(|error| panic!("open: {error}")).done()
}

/// Runs `each` for every damage that every sample can have.
fn for_each_damage(each: impl Fn(&Sample, &Sample, &Damage, &Lost, &str)) {
    let mut done = std::collections::BTreeMap::new();
    for good in samples() {
        for damage in damages() {
            let mut damaged = good.clone();
            let Some(lost) = (damage.apply)(&mut damaged) else { continue };
            *done.entry(damage.name).or_insert(0) += 1;
            let place = format!("{}: {}", good.setup.name, damage.name);
            each(&good, &damaged, &damage, &lost, &place);
        }
    }
    for damage in damages() {
        assert!(done.contains_key(damage.name), "no sample can have: {}", damage.name);
    }
}

#[test]
fn sound_disks_are_clean_and_left_alone() {
    for sample in samples() {
        let name = sample.setup.name;
        let slow = judge(&sample.setup, &sample.files).unwrap();
        slow.clean().unwrap();
        let (report, found, after) = check(&sample.setup, &sample.files, Repair::Nothing);
        assert_eq!(report.corruptions, 0, "{name}: {:#?}", texts(&found));
        let holes =
            found.iter().filter(|f| f.text.contains("entry") && f.text.contains("is 0")).count();
        assert_eq!(found.len(), holes, "{name}: {:#?}", texts(&found));
        assert_eq!(slow.report.holes > 0, holes > 0, "{name}");
        assert!(after == sample.files, "{name}: a check wrote");
        if holes == 0 {
            let (_, found, after) = check(&sample.setup, &sample.files, Repair::All);
            assert!(found.is_empty() && after == sample.files, "{name}: a repair wrote");
        }
    }
}

#[test]
fn every_damage_is_found() {
    for_each_damage(|_, damaged, damage, _, place| {
        let (report, found, after) = check(&damaged.setup, &damaged.files, Repair::Nothing);
        let said = texts(&found);
        assert!(after == damaged.files, "{place}: a check wrote");
        let count = |severity| found.iter().filter(|f| f.severity == severity).count();
        assert_eq!(to_usize(report.corruptions), count(Severity::Corruption), "{place}");
        assert_eq!(report.check_errors, 0, "{place}: {said:#?}");
        assert!(report.corruptions + report.leaks > 0, "{place}: nothing was found");
        // What the slow checker cannot open is damaged.
        let Ok(slow) = judge(&damaged.setup, &damaged.files) else {
            assert!(report.corruptions > 0, "{place}: {said:#?}");
            return;
        };
        let slow = slow.report;
        if damage.name.starts_with("footer's") {
            // It takes the directory's place from the footer, and nothing else.
            assert!(report.corruptions > 0, "{place}");
            return;
        }
        assert_eq!(report.corruptions > 0, slow.errors() > 0, "{place}: {said:#?}\n{slow}");
        if slow.errors() == 0 && !damaged.is_stream() {
            let behind: u64 =
                found.iter().filter(|f| !f.text.contains("not referred to")).map(|_| 1).sum();
            assert_eq!(report.leaks, slow.leaks + behind, "{place}: {said:#?}\n{slow}");
        }
    });
}

#[test]
fn every_damage_is_mended_and_nothing_else_changes() {
    for_each_damage(|good, damaged, _, lost, place| {
        let (report, found, after) = check(&damaged.setup, &damaged.files, Repair::All);
        let said = texts(&found);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}: {said:#?}");
        let (before, ..) = check(&damaged.setup, &damaged.files, Repair::Nothing);
        let fixed = (report.corruptions_fixed, report.leaks_fixed);
        assert_eq!(fixed, (before.corruptions, before.leaks), "{place}");
        let (_, found, twice) = check(&damaged.setup, &after, Repair::All);
        assert!(found.is_empty(), "{place}: {:#?}", texts(&found));
        assert!(twice == after, "{place}: a second repair wrote");
        let slow = judge(&damaged.setup, &after).unwrap_or_else(|why| panic!("{place}: {why}"));
        // In a stream the grain that was lost is still there, and only its entry is not.
        let reads_on = damaged.is_stream() && *lost != Lost::Nothing;
        slow.clean()
            .or_else(|why| if reads_on { Ok(()) } else { Err(why) })
            .unwrap_or_else(|why| panic!("{place}: {why}\n{said:#?}"));
        assert!(slow.report.leaks == 0 || damaged.is_stream(), "{place}: {}", slow.report);
        same_contents(good, &slow.contents, lost, place);
        peer_reads(&damaged.setup, &after, &slow.contents, place);
    });
}

/// What was not lost reads as before.
fn same_contents(good: &Sample, new: &[u8], lost: &Lost, place: &str) {
    let old = judge(&good.setup, &good.files).unwrap().contents;
    assert_eq!(old.len(), new.len(), "{place}");
    let gone = match lost {
        Lost::Nothing => 0..0,
        Lost::Guest(range) => to_usize(range.start)..to_usize(range.end),
    };
    let differs = (0..old.len()).find(|at| old[*at] != new[*at] && !gone.contains(at));
    assert_eq!(differs, None, "{place}: contents changed");
}

/// `qemu-img` reads the disk as the slow reader does, and finds nothing wrong.
fn peer_reads(setup: &Setup, files: &Files, contents: &[u8], place: &str) {
    // Extents of odd lengths it reads wrong; the others are alike.
    if !["64k", "4k lone tables", "cowd 4k", "stream"].contains(&setup.name) {
        return;
    }
    let dir = ImageDir::new().unwrap();
    for (name, bytes) in files {
        dir.write(name, bytes).unwrap();
    }
    let raw = dir.raw_contents(NAME, &["-f", "vmdk"]).unwrap_or_else(|e| panic!("{place}: {e}"));
    assert!(raw == contents, "{place}: the peer reads something else");
    assert_eq!(dir.check(NAME).unwrap(), Verdict::Clean, "{place}");
}
