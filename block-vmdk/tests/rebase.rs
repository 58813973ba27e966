//! Images that are emptied read as what is below them, and a crash meanwhile leaves each sector either as it was
//! or as it is below; what cannot be emptied, or given another parent, says so and stays as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::sync::{Arc, Weak};

use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Alignment, ByteRange, Error, Node, OpenError, RequestFlags, graph};
use block_testkit::disk::crash::{CrashDisk, Flushes};
use block_testkit::disk::mem::Discarded;
use block_testkit::naive::vmdk::Files;
use block_testkit::op::{contents, io_vec};
use futures::executor::block_on;
use kit::{Disks, Judged, Setup, judge, setups};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Files that a crash has left.
type Shots = Arc<Mutex<Vec<Files>>>;

/// The files of longer disks are not copied at every moment.
const MOST_BYTES: u64 = 300 << 10;

/// Takes a shot of all files at every moment of each, if the disk is short.
fn watch(setup: &Setup, disks: &Disks<CrashDisk>, seed: u64) -> Shots {
    let shots = Shots::default();
    if setup.shape.size > MOST_BYTES {
        return shots;
    }
    let weak = disks.0.iter().map(|(name, disk)| (name.clone(), Arc::downgrade(disk)));
    let weak: Arc<Vec<(String, Weak<CrashDisk>)>> = Arc::new(weak.collect());
    let rng = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed)));
    for (_, disk) in &disks.0 {
        let (shots, weak, rng) = (Arc::clone(&shots), Arc::clone(&weak), Arc::clone(&rng));
        disk.watch(move |_| {
            let mut rng = rng.lock();
            let left = weak.iter().filter_map(|(name, disk)| {
                Some((name.clone(), disk.upgrade()?.crash(&mut *rng).bytes))
            });
            let left = left.collect();
            shots.lock().push(left);
        });
    }
    shots
}

/// Writes to the second and third quarter of the disk, flushes, and empties it after `begin` was called.
async fn empty(node: &Node, size: u64, begin: impl FnOnce()) {
    let range = ByteRange::new(size / 4 / 512 * 512, size / 2 / 512 * 512).unwrap();
    let data = contents(3, range);
    node.write(range, io_vec(&data, Alignment::SECTOR, 1), RequestFlags::empty()).await.unwrap();
    node.flush().await.unwrap();
    begin();
    node.driver().as_rebase().unwrap().make_empty().await.unwrap();
    node.flush().await.unwrap();
}

/// What shows through a disk that holds nothing itself.
fn below(setup: &Setup) -> Vec<u8> {
    let mut below = setup.backing_contents().map_or(Vec::new(), |bytes| bytes.to_vec());
    below.resize(usize::try_from(setup.shape.size).unwrap(), 0);
    below
}

fn check_shot(setup: &Setup, left: &Files, before: &[u8], below: &[u8]) -> Judged {
    let judged = judge(setup, left).unwrap_or_else(|why| panic!("{}: {why}", setup.name));
    judged.no_errors().unwrap_or_else(|why| panic!("{}: {why}", setup.name));
    let sectors = judged.contents.chunks(512).zip(before.chunks(512)).zip(below.chunks(512));
    for (number, ((now, before), below)) in sectors.enumerate() {
        assert!(now == before || now == below, "{}: sector {number}", setup.name);
    }
    judged
}

#[test]
fn an_image_is_emptied_whatever_crashes() {
    let (mut shots_of_all, mut mixed) = (0, 0);
    for (seed, setup) in
        (0..).zip(setups().into_iter().filter(|setup| !setup.is_flat() && setup.room.is_none()))
    {
        let below = below(&setup);
        let disk = |bytes| CrashDisk::with(bytes, Discarded::Zeroes, Flushes::Kept);
        let disks = Disks::new(setup.make(), disk);
        let world = disks.world(&setup, |disk| -> Arc<dyn BlockDriver> { disk });
        let (shots, before) = block_on(async {
            let node = world.open().await.unwrap();
            let mut found = None;
            empty(&node, setup.shape.size, || {
                let files = disks.bytes(|disk| disk.to_vec());
                found =
                    Some((watch(&setup, &disks, seed), judge(&setup, &files).unwrap().contents));
            })
            .await;
            graph::close(&node).await.unwrap();
            found.unwrap()
        });
        for left in shots.lock().iter() {
            let judged = check_shot(&setup, left, &before, &below);
            mixed += u64::from(judged.contents != before && judged.contents != below);
            shots_of_all += 1;
        }
        let after = judge(&setup, &disks.bytes(|disk| disk.to_vec())).unwrap();
        after.clean().unwrap();
        assert!(after.contents == below, "{}", setup.name);
        assert_eq!((after.report.grains, after.report.zeroed), (0, 0), "{}", setup.name);
    }
    assert!(shots_of_all > 300 && mixed > 0, "{shots_of_all} shots, {mixed} between");
}

#[test]
fn what_cannot_be_emptied_stays_as_it_is() {
    for setup in setups().into_iter().filter(Setup::is_flat) {
        let disks = memory(&setup);
        let world = disks.world(&setup, |disk| -> Arc<dyn BlockDriver> { disk });
        block_on(async {
            let node = world.open().await.unwrap();
            let rebase = node.driver().as_rebase().unwrap();
            assert_eq!(rebase.make_empty().await, Err(Error::Unsupported));
            let refused = rebase.change_backing(Some("base.vmdk"), Some("vmdk")).await;
            assert!(matches!(refused, Err(OpenError::Unsupported { .. })), "{refused:?}");
            graph::close(&node).await.unwrap();
        });
        assert_eq!(disks.bytes(|disk| disk.to_bytes()), setup.make(), "{}", setup.name);
    }
    // Nor what is open for reading.
    let setup = setups().into_iter().find(|setup| setup.backing.is_some()).unwrap();
    let disks = memory(&setup);
    let world = disks.world(&setup, |disk| -> Arc<dyn BlockDriver> { disk });
    block_on(async {
        let node = world.open_with(OpenFlags::READ_ONLY).await.unwrap();
        let rebase = node.driver().as_rebase().unwrap();
        assert_eq!(rebase.make_empty().await, Err(Error::ReadOnly));
        assert!(rebase.change_backing(None, None).await.is_err());
        graph::close(&node).await.unwrap();
    });
    assert_eq!(disks.bytes(|disk| disk.to_bytes()), setup.make());
}

#[test]
fn a_parent_is_taken_away_and_nothing_else() {
    for setup in setups().into_iter().filter(|setup| setup.backing.is_some()) {
        let disks = memory(&setup);
        let world = disks.world(&setup, |disk| -> Arc<dyn BlockDriver> { disk });
        let before = judge(&setup, &setup.make()).unwrap();
        block_on(async {
            let node = world.open().await.unwrap();
            let rebase = node.driver().as_rebase().unwrap();
            let refused = rebase.change_backing(Some("a\"b"), Some("vmdk")).await;
            assert!(matches!(refused, Err(OpenError::Reference { .. })), "{refused:?}");
            let refused = rebase.change_backing(Some("base.raw"), Some("raw")).await;
            assert!(matches!(refused, Err(OpenError::Unsupported { .. })), "{refused:?}");
            rebase.change_backing(None, None).await.unwrap();
            graph::close(&node).await.unwrap();
        });
        let mut alone = setup.clone();
        alone.backing = None;
        alone.shape.backing = None;
        let after = judge(&alone, &disks.bytes(|disk| disk.to_bytes())).unwrap();
        assert_eq!(after.report.grains, before.report.grains, "{}", setup.name);
        assert_eq!(after.cid, before.cid);
        let text = String::from_utf8(after.text).unwrap();
        assert!(text.contains("parentCID=ffffffff") && !text.contains("parentFileNameHint"));
        let kept = String::from_utf8(before.text).unwrap();
        for line in kept.lines().filter(|line| !line.starts_with("parent")) {
            assert!(text.lines().any(|other| other == line), "{}: {line}", setup.name);
        }
    }
}

/// The files of the disk in memory.
fn memory(setup: &Setup) -> Disks<MemDriver> {
    Disks::new(setup.make(), |bytes| Arc::new(MemDriver::from_bytes(&bytes).unwrap()))
}
