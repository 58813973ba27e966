//! Checks and repairs of images that are damaged by name, beside the peer's check and the slow one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod damaged;
mod kit;
mod support;

use std::sync::Arc;

use block_core::ability::{CheckReport, Repair, Severity};
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, graph};
use block_testkit::check::check_node;
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::MemConfig;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::naive::qcow2::Image;
use block_testkit::op::io_vec;
use block_testkit::peer::ImageDir;
use damaged::{Damage, LARGE, Lost, Peer, SHAPES, Sample, check_bytes, damages};
use futures::executor::block_on;
use kit::World;
use kit::setups::setup;
use serde_json::Value;

/// Exit status and numbers of the peer's check of `bytes`; no numbers if it made none.
fn peer(dir: &ImageDir, bytes: &[u8]) -> (i32, Option<Value>) {
    dir.write("peer.qcow2", bytes).unwrap();
    let args = ["check", "-f", "qcow2", "--output", "json", "peer.qcow2"];
    let output = dir.run("qemu-img", &args).unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).ok())
}

/// The exit status that our report means.
fn status(report: &CheckReport) -> i32 {
    match (report.check_errors, report.corruptions, report.leaks) {
        (0, 0, 0) => 0,
        (0, 0, _) => 3,
        (0, ..) => 2,
        _ => 1,
    }
}

fn same_numbers(report: &CheckReport, peer: &Value, place: &str) {
    let number = |name: &str| peer[name].as_u64().unwrap_or(0);
    let ours = [
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("check-errors", report.check_errors),
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    for (name, value) in ours {
        assert_eq!(value, number(name), "{name} of {place}");
    }
}

#[test]
fn images_of_the_peer_are_clean_and_counted_alike() {
    for shape in SHAPES {
        let dir = ImageDir::new().unwrap();
        let sample = Sample::make(&dir, shape);
        let (report, found, after) = check_bytes(&sample.bytes, Repair::All);
        assert!(found.is_empty(), "{shape}: {found:?}");
        assert!(after == sample.bytes, "{shape}: a clean image was written to");
        let (code, numbers) = peer(&dir, &sample.bytes);
        assert_eq!((status(&report), code), (0, 0), "{shape}");
        same_numbers(&report, &numbers.unwrap(), shape);
    }
}

#[test]
fn every_damage_is_found_as_the_peer_finds_it() {
    for_each_damage(|dir, damaged, damage, _, place| {
        let (report, found, after) = check_bytes(&damaged.bytes, Repair::Nothing);
        assert!(after == damaged.bytes, "{place}: a check wrote");
        let count = |severity| found.iter().filter(|f| f.severity == severity).count();
        let said = [Severity::Corruption, Severity::Leak].map(|s| u64::try_from(count(s)).unwrap());
        assert_eq!(said, [report.corruptions, report.leaks], "{place}: all is said");
        assert_ne!(status(&report), 0, "{place}: nothing was found");
        let (code, numbers) = peer(dir, &damaged.bytes);
        match damage.peer {
            Peer::Same => {
                assert_eq!(status(&report), code, "{place}: {found:?}");
                // The peer counts no further than a refcount can.
                if damaged.refcount_bits > 1 {
                    same_numbers(&report, &numbers.unwrap(), place);
                }
            }
            Peer::Counts(_) => assert_eq!(status(&report), code, "{place}: {found:?}"),
            Peer::Other(_) => {}
        }
        let slow = Image::open(&damaged.bytes).unwrap().check().unwrap();
        assert_eq!(report.corruptions > 0, slow.errors() > 0, "{place}: {found:?}\n{slow}");
        if slow.errors() == 0 {
            assert_eq!(report.leaks, slow.leaks(), "{place}: {found:?}\n{slow}");
        }
    });
}

#[test]
fn every_damage_is_mended_and_nothing_else_changes() {
    for_each_damage(|dir, damaged, _, lost, place| {
        let (report, found, after) = check_bytes(&damaged.bytes, Repair::All);
        let texts: Vec<_> = found.iter().map(|f| &f.text).collect();
        assert_eq!(status(&report), 0, "{place}: {texts:#?}");
        let (before, _, _) = check_bytes(&damaged.bytes, Repair::Nothing);
        assert_eq!(report.leaks_fixed, before.leaks, "{place}");
        // Flags that were right before the refcounts were mended count, too.
        assert!(report.corruptions_fixed >= before.corruptions, "{place}: {report:?}");
        let (again, found, twice) = check_bytes(&after, Repair::All);
        assert!(found.is_empty() && twice == after, "{place}: {found:?}");
        let mended = Sample { bytes: after, ..damaged.clone() };
        let slow = mended.naive().check().unwrap();
        assert!(slow.is_clean(), "{place}: {slow}");
        let (code, numbers) = peer(dir, &mended.bytes);
        assert_eq!(code, 0, "{place}: {numbers:?}");
        same_numbers(&again, &numbers.unwrap(), place);
        same_contents(dir, &mended, lost, place);
    });
}

/// Runs `each` for every damage that every shape can have.
fn for_each_damage(each: impl Fn(&ImageDir, &Sample, &Damage, &Lost, &str)) {
    let few = ["refcount too low", "no refcount block", "data on an L2 table"];
    for shape in SHAPES.into_iter().chain([LARGE]) {
        let dir = ImageDir::new().unwrap();
        let good = Sample::make(&dir, shape);
        let mut done = 0;
        let all = damages().into_iter();
        for damage in all.filter(|damage| shape != LARGE || few.contains(&damage.name)) {
            let mut damaged = good.clone();
            let Some(lost) = (damage.apply)(&mut damaged) else { continue };
            done += 1;
            each(&dir, &damaged, &damage, &lost, &format!("{shape}: {}", damage.name));
        }
        assert!(
            done >= 20 || (shape == LARGE && done == few.len()),
            "{shape}: only {done} damages"
        );
    }
}

/// What was not lost reads as before.
fn same_contents(dir: &ImageDir, mended: &Sample, lost: &Lost, place: &str) {
    let good = dir.bytes("x.qcow2").unwrap();
    let good = Sample { bytes: good, ..mended.clone() };
    let (mut old, mut new) = (good.naive().contents().unwrap(), mended.naive().contents().unwrap());
    let gone = match lost {
        Lost::Guest(range) => range.clone(),
        Lost::Disk => 0..mended.disk_len,
        _ => 0..0,
    };
    let gone = usize::try_from(gone.start).unwrap()..usize::try_from(gone.end).unwrap();
    old[gone.clone()].fill(0);
    new[gone].fill(0);
    assert!(old == new, "{place}: contents changed");
    let (old, new) = (good.naive(), mended.naive());
    let (snapshots, left) = (old.snapshots().unwrap(), new.snapshots().unwrap());
    if !matches!(lost, Lost::Snapshots) {
        assert_eq!(snapshots.len(), left.len(), "{place}: snapshots");
    }
    for snapshot in &left {
        let was = snapshots.iter().find(|s| s.id == snapshot.id).expect("a snapshot that was");
        let was = old.snapshot_contents(was).unwrap();
        assert!(was == new.snapshot_contents(snapshot).unwrap(), "{place}: a snapshot changed");
    }
    if !matches!(lost, Lost::Bitmaps) {
        let (old, new) = (old.bitmaps().unwrap(), new.bitmaps().unwrap());
        assert_eq!(old.len(), new.len(), "{place}: bitmaps");
    }
}

#[test]
fn leaks_are_given_back_and_errors_left_alone() {
    let dir = ImageDir::new().unwrap();
    let good = Sample::make(&dir, "compat=1.1");
    let mut damaged = good.clone();
    let host = damaged.host(damaged::DATA);
    damaged.set_refcount(host, 4);
    let reserved = damaged.entry(damaged::NEXT);
    damaged.put(reserved, damaged.word(reserved) | 2);
    let (report, _, after) = check_bytes(&damaged.bytes, Repair::Leaks);
    assert_eq!((report.corruptions, report.leaks, report.leaks_fixed), (1, 0, 1));
    // What became a cluster of its own again has its flag, and the error is as it was.
    let mended = Sample { bytes: after, ..damaged.clone() };
    assert_ne!(mended.word(mended.entry(damaged::DATA)) & damaged::COPIED, 0);
    assert_eq!(mended.word(reserved), damaged.word(reserved));
}

#[test]
fn what_damaged_structures_may_refer_to_is_no_leak() {
    let dir = ImageDir::new().unwrap();
    let mut damaged = Sample::make(&dir, "compat=1.1");
    damaged.put(damaged.l1, 1 << 40);
    let (before, ..) = check_bytes(&damaged.bytes, Repair::Nothing);
    assert!(before.leaks > 0, "the damage leaves clusters behind");
    let (report, _, after) = check_bytes(&damaged.bytes, Repair::Leaks);
    assert_eq!((report.leaks, report.leaks_fixed), (before.leaks, 0));
    assert!(after == damaged.bytes, "only the mark of a repair came and went");
}

#[test]
fn marks_of_unclean_use_go_when_nothing_is_wrong_any_more() {
    let dir = ImageDir::new().unwrap();
    let mut marked = Sample::make(&dir, "compat=1.1");
    marked.put(72, 0b11);
    let (_, _, after) = check_bytes(&marked.bytes, Repair::All);
    assert_eq!(damaged::take(&after, 72, 8), 0);
    // An error that stays keeps them.
    let host = marked.host(damaged::DATA);
    marked.set_refcount(host, 0);
    let (report, _, after) = check_bytes(&marked.bytes, Repair::Leaks);
    assert!(report.corruptions > 0);
    assert_eq!(damaged::take(&after, 72, 8), 0b11);
}

/// What is in memory after a repair is of no use if it is not what the repair has left.
#[test]
fn an_image_that_was_mended_and_cannot_be_read_again_is_not_written() {
    let dir = ImageDir::new().unwrap();
    let good = Sample::make(&dir, "cluster_size=4k");
    let names = ["data on an L2 table", "data on the refcount block", "refcount too low"];
    for damage in damages().iter().filter(|damage| names.contains(&damage.name)) {
        let mut damaged = good.clone();
        (damage.apply)(&mut damaged).unwrap();
        let (mut mended, mut refused) = (0, 0);
        for skip in 0.. {
            let place = format!("{}, read {skip}", damage.name);
            let faults = Fault::new();
            let disk = Arc::new(MemDriver::from_bytes(&damaged.bytes).unwrap());
            let tapped = Tapped::new(Arc::clone(&disk) as _, Arc::clone(&faults));
            let flags = OpenFlags { no_backing: true, ..OpenFlags::READ_WRITE };
            let Ok(node) = support::open_driver(tapped, flags) else { panic!("{place}: open") };
            faults.add(Rule::new(Kind::Read).skip(skip).once());
            let checked = block_on(check_node(&node, Repair::All));
            faults.clear();
            let after = Sample { bytes: disk.to_bytes(), ..damaged.clone() };
            if after.naive().check().unwrap().errors() > 0 {
                // It has said that it could mend nothing.
                assert!(faults.injected() > 0, "{place}");
                continue;
            }
            mended += 1;
            refused += i32::from(write_after(&node, &after, &place) == Err(Error::ReadOnly));
            let now = Sample { bytes: disk.to_bytes(), ..damaged.clone() };
            let report = now.naive().check().unwrap();
            assert!(report.errors() == 0, "{place}: {report}");
            if faults.injected() == 0 {
                checked.unwrap();
                break;
            }
        }
        println!("{}: {mended} mended, {refused} read-only", damage.name);
        assert!(refused > 2 && mended > refused, "{}", damage.name);
    }
}

/// Writes clusters that have no place yet and closes; what else the disk holds stays as it is in `before`.
fn write_after(node: &Node, before: &Sample, place: &str) -> Result<(), Error> {
    let mut wanted = before.naive().contents().unwrap();
    let range = ByteRange::new(damaged::EMPTY * before.cluster, 5 * before.cluster).unwrap();
    let len = usize::try_from(range.len()).unwrap();
    let buf = IoBuf::zeroed(len, Alignment::PAGE).unwrap();
    buf.fill(0x77);
    let written = block_on(node.write(range, buf.into(), RequestFlags::empty()));
    if written.is_ok() {
        let start = usize::try_from(range.offset()).unwrap();
        wanted[start..start + len].fill(0x77);
        let now = support::contents(node, 1 << 20);
        assert!(now == wanted, "{place}: contents");
    }
    block_on(graph::close(node)).unwrap();
    written
}

#[test]
fn what_was_written_gets_to_an_image_that_could_not_be_read_anew() {
    let dir = ImageDir::new().unwrap();
    let sample = Sample::make(&dir, "cluster_size=4k");
    let mut failed = 0;
    for skip in 0.. {
        let faults = Fault::new();
        let disk = Arc::new(MemDriver::from_bytes(&sample.bytes).unwrap());
        let tapped = Tapped::new(Arc::clone(&disk) as _, Arc::clone(&faults));
        let flags = OpenFlags { no_backing: true, ..OpenFlags::READ_WRITE };
        let node = support::open_driver(tapped, flags).unwrap();
        let range = ByteRange::new(damaged::EMPTY * sample.cluster, sample.cluster).unwrap();
        let data = vec![0x77; usize::try_from(range.len()).unwrap()];
        let iov = io_vec(&data, Alignment::PAGE, 1);
        block_on(node.write(range, iov, RequestFlags::empty())).unwrap();
        faults.add(Rule::new(Kind::Read).skip(skip).once());
        let read_anew = block_on(graph::invalidate_cache(&node));
        faults.clear();
        if read_anew.is_ok() {
            // What was not flushed before is forgotten then.
            break;
        }
        failed += 1;
        block_on(node.flush()).unwrap();
        block_on(graph::close(&node)).unwrap();
        let now = Sample { bytes: disk.to_bytes(), ..sample.clone() };
        let start = usize::try_from(range.offset()).unwrap();
        assert!(now.naive().contents().unwrap()[start..][..data.len()] == data, "read {skip}");
        assert!(now.naive().check().unwrap().is_clean(), "read {skip}");
    }
    assert!(failed > 2, "{failed} reads");
}

/// Whoever waits for a repair whose image cannot be read again is refused; another repair can be tried.
#[test]
fn what_waits_for_a_repair_is_not_done_to_an_image_that_is_not_known_any_more() {
    let dir = ImageDir::new().unwrap();
    let mut damaged = Sample::make(&dir, "cluster_size=4k");
    let all = damages();
    let damage = all.iter().find(|damage| damage.name == "data on an L2 table").unwrap();
    (damage.apply)(&mut damaged).unwrap();
    let mut refused = 0;
    for skip in 0.. {
        let disk = MemConfig { step: Some(512), ..MemConfig::file() }.holding(&damaged.bytes);
        let (below, faults) = (Arc::clone(&disk), Fault::new());
        let rules = Arc::clone(&faults);
        let read_only = Exec::run(skip, move |_| async move {
            let tapped = Tapped::new(below, Arc::clone(&rules));
            let node = World::new(&setup("4k tiny"), tapped, None).open().await.unwrap();
            rules.add(Rule::new(Kind::Read).skip(skip).once());
            let rebase = node.driver().as_rebase().unwrap();
            let both = futures::future::join(
                check_node(&node, Repair::All),
                rebase.change_backing(Some("b"), Some("raw")),
            );
            let renamed = both.await.1;
            rules.clear();
            let read_only = node.driver().is_read_only();
            if read_only {
                renamed.unwrap_err();
                check_node(&node, Repair::All).await.unwrap();
                assert!(!node.driver().is_read_only(), "it is read by now");
            }
            graph::close(&node).await.unwrap();
            read_only
        });
        if read_only {
            refused += 1;
            let after = Sample { bytes: disk.to_vec(), ..damaged.clone() };
            let report = after.naive().check().unwrap();
            assert!(report.errors() == 0, "read {skip}: {report}");
            assert_eq!(after.word(8), 0, "read {skip}: there is no backing file");
        }
        if faults.injected() == 0 {
            break;
        }
    }
    assert!(refused > 2, "{refused} times");
}
