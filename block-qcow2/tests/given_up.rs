//! Changes whose futures are dropped half-way: they are finished, and nothing of the disk is lost by it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::sync::Arc;

use block_core::ability::{NewSnapshot, Repair};
use block_core::dirty::{DirtyBitmap, Granularity};
use block_core::driver::BlockDriver;
use block_core::{Alignment, ByteRange, Node, Options, RequestFlags, graph};
use block_testkit::disk::mem::MemConfig;
use block_testkit::exec::{Exec, poll_times, yield_now};
use block_testkit::naive::qcow2::Image;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::io_vec;
use kit::setups::{Setup, TINY, empty};
use kit::{World, cluster_bytes, index, judge};

const CLUSTER: u64 = 4096;
/// What is written before the change, and behind it.
const EARLY: [u64; 3] = [2, 3, 40];
const LATE: u64 = 5;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Change {
    Create,
    Apply,
    Delete,
    Check,
    Mend,
    Widen,
    Downgrade,
    NameBacking,
    Empty,
}

impl Change {
    async fn make(self, driver: Arc<dyn BlockDriver>) {
        let amend = |name, value| {
            let options = Options::new().with(name, value);
            driver.as_amend().unwrap().amend(options, Arc::new(|_, _| ()))
        };
        let check = |repair| driver.as_check().unwrap().check(repair, Arc::new(|_| ()));
        let (snapshots, rebase) = (driver.as_snapshots().unwrap(), driver.as_rebase().unwrap());
        match self {
            Self::Create => snapshots.create(&snapshot("new")).await.unwrap(),
            Self::Apply => snapshots.apply("old").await.unwrap(),
            Self::Delete => snapshots.delete("old").await.unwrap(),
            Self::Check => drop(check(Repair::Nothing).await.unwrap()),
            Self::Mend => drop(check(Repair::All).await.unwrap()),
            Self::Widen => amend("refcount_bits", "64").await.unwrap(),
            Self::Downgrade => amend("compat", "0.10").await.unwrap(),
            Self::NameBacking => rebase.change_backing(Some("b"), Some("raw")).await.unwrap(),
            Self::Empty => rebase.make_empty().await.unwrap(),
        }
    }
}

fn snapshot(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.to_owned(), ..NewSnapshot::default() }
}

#[test]
fn what_is_given_up_half_way_is_finished() {
    use Change::{Apply, Check, Create, Delete, Downgrade, Empty, Mend, NameBacking, Widen};
    let setup = empty(TINY);
    for change in [Create, Apply, Delete, Check, Mend, Widen, Downgrade, NameBacking, Empty] {
        let mut polls = 0;
        while !give_up(&setup, change, polls) {
            polls += 1;
            assert!(polls < 1000, "{change:?} never ends");
        }
        assert!(polls > 3, "{change:?}: {polls} polls");
    }
}

/// Closing stores bitmaps, which takes clusters that an amendment or a repair must know of.
#[test]
fn bitmaps_are_stored_behind_what_was_given_up() {
    let setup = empty(TINY);
    for change in [Change::Widen, Change::Mend] {
        let mut polls = 0;
        while !give_up_and_close(&setup, change, polls) {
            polls += 1;
            assert!(polls < 1000, "{change:?} never ends");
        }
        assert!(polls > 3, "{change:?}: {polls} polls");
    }
}

/// Gives up after so many polls, and closes the disk, which has a bitmap; whether it was done before.
fn give_up_and_close(setup: &Setup, change: Change, polls: usize) -> bool {
    let disk = MemConfig { step: Some(512), ..MemConfig::file() }.holding(&setup.make().file);
    let world = World::new(setup, Arc::clone(&disk) as _, None);
    let done = Exec::run(u64::try_from(polls).unwrap(), move |_| async move {
        let node = world.open().await.unwrap();
        let granularity = Granularity::new(512).unwrap();
        let mut bitmap = DirtyBitmap::new(Some("b"), granularity, node.len()).unwrap();
        bitmap.make_persistent().unwrap();
        node.dirty_bitmaps().insert(bitmap).unwrap();
        for cluster in EARLY {
            put(&node, 2, cluster).await;
        }
        let change = Box::pin(change.make(Arc::clone(node.driver())));
        let done = poll_times(change, polls).await.is_some();
        graph::close(&node).await.unwrap();
        for _ in 0..64 {
            yield_now().await;
        }
        done
    });
    let file = disk.to_vec();
    let judged = judge(setup, &Made { file: file.clone(), data: Vec::new() }).unwrap();
    judged.no_errors().unwrap_or_else(|why| panic!("{change:?} after {polls}: {why}"));
    let image = Image::open(&file).unwrap();
    let [bitmap] = &image.bitmaps().unwrap()[..] else { panic!("{change:?} after {polls}") };
    assert!(!bitmap.is_in_use(), "{change:?} after {polls}");
    let bits = image.bitmap_bits(bitmap).unwrap();
    let dirty = bits.iter().filter(|dirty| **dirty).count();
    assert_eq!(dirty, EARLY.len() * 8, "{change:?} after {polls}");
    done
}

async fn put(node: &Node, op: u32, cluster: u64) {
    let bytes = cluster_bytes(op, cluster, CLUSTER);
    let range = ByteRange::new(cluster * CLUSTER, CLUSTER).unwrap();
    let iov = io_vec(&bytes, Alignment::PAGE, 1);
    node.write(range, iov, RequestFlags::empty()).await.unwrap();
}

/// Gives up after so many polls, and goes on with the disk; whether it was done before.
fn give_up(setup: &Setup, change: Change, polls: usize) -> bool {
    let disk = MemConfig { step: Some(512), ..MemConfig::file() }.holding(&setup.make().file);
    let world = World::new(setup, Arc::clone(&disk) as _, None);
    let done = Exec::run(u64::try_from(polls).unwrap(), move |_| async move {
        let node = world.open().await.unwrap();
        let driver = Arc::clone(node.driver());
        put(&node, 1, EARLY[0]).await;
        driver.as_snapshots().unwrap().create(&snapshot("old")).await.unwrap();
        for cluster in EARLY {
            put(&node, 2, cluster).await;
        }
        let done = poll_times(Box::pin(change.make(driver)), polls).await.is_some();
        put(&node, 3, LATE).await;
        node.flush().await.unwrap();
        for _ in 0..64 {
            yield_now().await;
        }
        done
    });
    // As if the machine had stopped behind the flush.
    let judged = judge(setup, &Made { file: disk.to_vec(), data: Vec::new() }).unwrap();
    judged.no_errors().unwrap_or_else(|why| panic!("{change:?} after {polls}: {why}"));
    let there = |cluster: u64| {
        let start = index(cluster * CLUSTER);
        &judged.contents[start..start + index(CLUSTER)]
    };
    let is = |op: u32, cluster| there(cluster) == cluster_bytes(op, cluster, CLUSTER);
    let zero = |cluster| there(cluster).iter().all(|byte| *byte == 0);
    assert!(is(3, LATE), "{change:?} after {polls}: the late write is lost");
    let kept = EARLY.iter().all(|cluster| is(2, *cluster));
    let changed = match change {
        Change::Apply => is(1, EARLY[0]) && EARLY[1..].iter().all(|cluster| zero(*cluster)),
        Change::Empty => EARLY.iter().all(|cluster| zero(*cluster)),
        _ => kept,
    };
    // What was begun is finished.
    let right = if polls == 0 { kept } else { changed };
    assert!(right, "{change:?} after {polls}: the early writes are lost");
    done
}
