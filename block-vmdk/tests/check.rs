//! Checks and repairs of disks that are damaged by name, beside the slow checker's verdict; `qemu-img` reads
//! what was mended, where it reads such disks right.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod damaged;
mod kit;

use std::sync::Arc;

use block_core::ability::{CheckReport, Finding, Repair, Severity};
use block_core::driver::BlockDriver;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, Error, RequestFlags, graph};
use block_testkit::check::check_node;
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{NAME, Redundant, Subformat};
use block_testkit::op::{contents, io_vec};
use block_testkit::peer::{ImageDir, Verdict};
use block_vmdk::stream::{ReadError, StreamReader};
use damaged::{Damage, Lost, Sample, check_files, damages, sample, samples};
use futures::executor::block_on;
use futures::io::Cursor;
use futures::stream::TryStreamExt;
use kit::setups::setup;
use kit::{Disks, Setup, judge};

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
        if ["footer's", "header's descriptor", "header's overHead"]
            .iter()
            .any(|name| damage.name.starts_with(name))
        {
            // It takes the directory's place from the footer and all else from the header, and compares nothing.
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
        if damaged.is_stream() && *lost == Lost::Nothing {
            let file = after[NAME].clone();
            let forward =
                block_on(read_forward(file)).unwrap_or_else(|why| panic!("{place}: {why}"));
            assert!(forward == slow.contents, "{place}: read forward");
        }
    });
}

/// The disk of a stream that is read once from its first byte to its last.
async fn read_forward(file: Vec<u8>) -> Result<Vec<u8>, ReadError> {
    let reader = StreamReader::open(Cursor::new(file)).await?;
    let mut disk = vec![0; to_usize(reader.disk_len())];
    let mut pieces = std::pin::pin!(reader.into_pieces());
    while let Some(piece) = pieces.try_next().await? {
        let start = to_usize(piece.offset);
        piece.data.copy_to(0, &mut disk[start..start + piece.data.len()]);
    }
    Ok(disk)
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

fn named(sample: &Sample, name: &str) -> (Sample, Lost) {
    let damage = damages().into_iter().find(|damage| damage.name == name).unwrap();
    let mut damaged = sample.clone();
    let lost = (damage.apply)(&mut damaged).unwrap();
    (damaged, lost)
}

fn says(found: &[Finding], severity: Severity, text: &str) -> bool {
    found.iter().any(|f| f.severity == severity && f.text.contains(text))
}

#[test]
fn a_repair_of_leaks_touches_no_error() {
    let good = sample("4k zeroed");
    let (damaged, _) = named(&good, "grain of another");
    let (damaged, _) = named(&damaged, "space at the end");
    let (report, _, after) = check(&damaged.setup, &damaged.files, Repair::Leaks);
    assert!(report.corruptions > 0 && report.leaks > 0 && report.leaks_fixed == 0);
    assert!(after == damaged.files, "an image with errors was written to");
    let (damaged, _) = named(&good, "space at the end");
    let (damaged, _) = named(&damaged, "not closed, redundant entry behind");
    let (report, found, after) = check(&damaged.setup, &damaged.files, Repair::Leaks);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", texts(&found));
    assert!(after == good.files, "the file is what it was before");
}

#[test]
fn differences_are_errors_unless_the_file_was_not_closed() {
    let good = sample("4k zeroed");
    let (closed, _) = named(&good, "redundant entry 0");
    let (report, found, _) = check(&closed.setup, &closed.files, Repair::Nothing);
    assert_eq!((report.corruptions, report.leaks), (1, 0), "{:#?}", texts(&found));
    assert!(says(&found, Severity::Corruption, "grain table 0 at sector"));
    let (open, _) = named(&good, "not closed, redundant entry behind");
    let (report, found, _) = check(&open.setup, &open.files, Repair::Nothing);
    assert_eq!((report.corruptions, report.leaks), (0, 2), "{:#?}", texts(&found));
    assert!(says(&found, Severity::Leak, "uncleanShutdown"));
}

#[test]
fn flat_extents_beyond_their_file_are_found_and_made_longer() {
    for name in ["flat", "split flat"] {
        let mut sample = Sample::of(setup(name));
        let (_, found, _) = check(&sample.setup, &sample.files, Repair::Nothing);
        assert!(found.is_empty(), "{name}: {:#?}", texts(&found));
        let len = sample.file().len();
        sample.file_mut().truncate(len - 1024);
        let slow = judge(&sample.setup, &sample.files).unwrap();
        let (report, found, _) = check(&sample.setup, &sample.files, Repair::Nothing);
        assert_eq!((report.corruptions, slow.report.errors()), (1, 1), "{name}");
        let text = format!("which has {:#x}", len - 1024);
        assert!(says(&found, Severity::Corruption, &text), "{name}: {:#?}", texts(&found));
        let (report, _, after) = check(&sample.setup, &sample.files, Repair::All);
        assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1), "{name}");
        assert!(judge(&sample.setup, &after).unwrap().contents == slow.contents, "{name}");
        check(&sample.setup, &after, Repair::All).1.is_empty().then_some(()).unwrap();
    }
}

/// The text of a descriptor file with another text in place of one.
fn edited(sample: &Sample, old: &str, new: &str) -> Files {
    let mut files = sample.files.clone();
    let text = String::from_utf8(files[NAME].clone()).unwrap();
    assert!(text.contains(old), "{text}");
    files.insert(NAME.to_owned(), text.replace(old, new).into_bytes());
    files
}

#[test]
fn extents_longer_than_their_capacity_are_found() {
    let sample = sample("split 64k");
    let sectors = sample.setup.shape.extents()[0];
    let (old, new) = (format!("RW {sectors} "), format!("RW {} ", sectors + 7));
    let files = edited(&sample, &old, &new);
    let (report, found, after) = check(&sample.setup, &files, Repair::All);
    assert_eq!(report.corruptions, 1, "{:#?}", texts(&found));
    assert!(says(&found, Severity::Corruption, "extent 0 has"), "{:#?}", texts(&found));
    assert!(after == files, "a repair changed something");
}

#[test]
fn the_parent_must_be_what_the_disk_was_made_on() {
    let sample = sample("4k longer backing");
    let mut other = sample.clone();
    let at = other.file().windows(10).position(|bytes| bytes == b"parentCID=").unwrap() + 10;
    other.put(u64::try_from(at).unwrap(), b"01234567");
    let (report, found, after) = check(&other.setup, &other.files, Repair::All);
    assert_eq!((report.corruptions, report.check_errors), (1, 0), "{:#?}", texts(&found));
    assert!(says(&found, Severity::Corruption, "parentCID is 01234567"), "{:#?}", texts(&found));
    assert!(after == other.files, "the parent's content id is left alone");
    // Nobody gives a parent.
    let mut lone = sample;
    lone.setup.backing = None;
    let (report, found, _) = check(&lone.setup, &lone.files, Repair::Nothing);
    assert_eq!((report.corruptions, report.check_errors), (0, 1), "{:#?}", texts(&found));
    assert!(says(&found, Severity::CheckError, "the parent cannot be opened"));
    // Nobody wants one.
    lone.setup.options = &[("backing", "")];
    let (report, found, _) = check(&lone.setup, &lone.files, Repair::Nothing);
    assert_eq!(report, CheckReport::default(), "{:#?}", texts(&found));
}

#[test]
fn sesparse_tables_are_checked() {
    let mut setup = setup("4k");
    setup.filled = kit::setups::Filled::Mixed;
    setup.shape.subformat = Subformat::SeSparse;
    setup.shape.redundant = Redundant::None;
    let good = Sample::of(setup);
    let (_, found, _) = check(&good.setup, &good.files, Repair::All);
    assert!(found.is_empty(), "{:#?}", texts(&found));
    let gd = good.take(16 * 8, 8) * 512;
    let table = good.take(18 * 8, 8) * 512;
    let first = good.take(table, 8);
    let cases = [
        ("directory entry of another kind", gd, 0x2000_0000_0000_0000, true),
        ("table beyond its area", gd, 0x1000_0000_0000_ffff, true),
        ("an entry of another kind", table, 5 << 60, true),
        ("a grain beyond the end", table, (3 << 60) | 0xffff, true),
        ("a grain of another", table + 5 * 8, first, true),
        ("a grain over the header", 24 * 8, 0, false),
    ];
    for (name, at, value, slow_finds) in cases {
        let mut damaged = good.clone();
        damaged.put(at, &u64::to_le_bytes(value));
        let Ok(checked) = check_files(&damaged.setup, &damaged.files, Repair::All) else {
            assert!(!slow_finds, "{name}");
            continue;
        };
        let (report, found, after) = checked.done();
        assert!(report.corruptions > 0, "{name}: {:#?}", texts(&found));
        assert!(after == damaged.files, "{name}: nothing is mended");
        if slow_finds {
            assert!(judge_errors(&damaged) > 0, "{name}");
        }
    }
}

fn judge_errors(sample: &Sample) -> usize {
    judge(&sample.setup, &sample.files).map_or(1, |slow| slow.report.errors())
}

#[test]
fn a_disk_that_is_being_written_to_is_checked_and_not_mended() {
    let sample = sample("4k zeroed");
    let disks =
        Disks::new(sample.files.clone(), |bytes| Arc::new(MemDriver::from_bytes(&bytes).unwrap()));
    let node = block_on(disks.world(&sample.setup, |disk| -> Arc<dyn BlockDriver> { disk }).open());
    let node = node.unwrap();
    for round in 0..2u64 {
        let range = ByteRange::new(damaged::EMPTY * 4096 + round * 4096 * 8, 512).unwrap();
        let iov = io_vec(&contents(3, range), Alignment::ONE, 1);
        block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
        let (report, found) = block_on(check_node(&node, Repair::Nothing)).unwrap();
        assert_eq!(report, CheckReport::default(), "{:#?}", texts(&found));
        assert_eq!(block_on(check_node(&node, Repair::All)).unwrap_err(), Error::Unsupported);
    }
    block_on(graph::close(&node)).unwrap();
    judge(&sample.setup, &disks.bytes(|disk| disk.to_bytes())).unwrap().clean().unwrap();
}
