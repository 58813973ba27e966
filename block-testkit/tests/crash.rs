//! A flat disk over [`CrashDisk`] keeps what the model of durability says, at every crash; disks that do
//! not are caught.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::Error;
use block_core::node::NodeOptions;
use block_core::{ByteRange, Node};
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_testkit::disk::{CrashDisk, CrashImage};
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::model::durable::{DurableModel, Loss};
use block_testkit::op::{Discards, Op, OpSpace, contents};
use block_testkit::play::{Discarded, Player};
use parking_lot::Mutex;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const LEN: u64 = 16 << 10;

/// How the disk below lies.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Lie {
    None,
    /// Flushes succeed and do nothing.
    Flush,
    /// One write in eight is dropped.
    Write,
    /// FUA is taken for an ordinary write.
    Fua,
}

struct Liar(Lie);

#[async_trait]
impl Tap for Liar {
    async fn before(&self, call: &Call) -> Verdict {
        match self.0 {
            Lie::Flush if call.kind == Kind::FlushToDisk => Verdict::Fail(Error::Busy),
            Lie::Write if call.kind == Kind::Write && call.number.is_multiple_of(8) => {
                Verdict::Fail(Error::Busy)
            }
            _ => Verdict::Pass,
        }
    }
}

/// Turns the errors of a [`Liar`] into success, and takes FUA away.
struct Smooth {
    below: Arc<dyn BlockDriver>,
    lie: Lie,
}

#[async_trait]
impl BlockDriver for Smooth {
    fn name(&self) -> &'static str {
        "smooth"
    }

    fn len(&self) -> u64 {
        self.below.len()
    }

    fn limits(&self) -> block_core::BlockLimits {
        self.below.limits()
    }

    fn capabilities(&self) -> block_core::Capabilities {
        self.below.capabilities()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(
        self: Arc<Self>,
        range: ByteRange,
        iov: block_core::IoVec,
    ) -> block_core::Result<()> {
        Arc::clone(&self.below).preadv(range, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: block_core::IoVec,
        mut flags: block_core::RequestFlags,
    ) -> block_core::Result<()> {
        if self.lie == Lie::Fua {
            flags = block_core::RequestFlags::empty();
        }
        smooth(Arc::clone(&self.below).pwritev(range, iov, flags).await)
    }

    async fn pwrite_zeroes(
        self: Arc<Self>,
        range: ByteRange,
        flags: block_core::RequestFlags,
    ) -> block_core::Result<()> {
        Arc::clone(&self.below).pwrite_zeroes(range, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> block_core::Result<()> {
        Arc::clone(&self.below).pdiscard(range).await
    }

    async fn flush_to_disk(self: Arc<Self>) -> block_core::Result<()> {
        smooth(Arc::clone(&self.below).flush_to_disk().await)
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: block_core::driver::Exactness,
        prealloc: block_core::driver::Prealloc,
    ) -> block_core::Result<()> {
        Arc::clone(&self.below).truncate(len, exactness, prealloc).await
    }
}

fn smooth(result: block_core::Result<()>) -> block_core::Result<()> {
    if result == Err(Error::Busy) { Ok(()) } else { result }
}

/// Plays `ops` and gives every crash image with what the model said at that moment.
fn crashes(lie: Lie, ops: Vec<Op>, depth: usize, seed: u64) -> Vec<(CrashImage, DurableModel)> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let images = Arc::clone(&found);
    Exec::run(seed, |exec| async move {
        let all = ByteRange::up_to(LEN);
        let disk = CrashDisk::new(contents(0, all));
        let durable = Arc::new(Mutex::new(DurableModel::new(LEN, Source::Op(0), 512)));
        let (of, model) = (Arc::downgrade(&disk), Arc::clone(&durable));
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        disk.watch(move |_| {
            let disk = of.upgrade().unwrap();
            let model = model.lock().clone();
            for _ in 0..3 {
                images.lock().push((disk.crash(&mut *rng.lock()), model.clone()));
            }
        });
        let below: Arc<dyn BlockDriver> = Tapped::new(disk, Arc::new(Liar(lie)));
        let options = NodeOptions { unmap: true, ..NodeOptions::default() };
        let node = Node::new(Arc::new(Smooth { below, lie }), options);
        let live = DiskModel::new(LEN, Source::Op(0));
        let player = Player::new(exec, node, live)
            .telling(durable)
            .cutting()
            .discards_leave(Discarded::OldOrZero);
        player.play(&ops, depth).await;
        if lie == Lie::None {
            player.check_all().await;
        }
    });
    Arc::into_inner(found).unwrap().into_inner()
}

fn space() -> OpSpace {
    OpSpace {
        discards: Discards::Sometimes,
        truncates: Some(LEN),
        ..OpSpace::new(LEN, &[512, 1000, 4096])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_flat_disk_keeps_what_it_has_promised(
        ops in space().ops(30),
        depth in 1..=8usize,
        seed: u64,
    ) {
        for (image, model) in crashes(Lie::None, ops, depth, seed) {
            prop_assert_eq!(model.check(&image.bytes), Ok(()), "{}", image);
        }
    }
}

/// Plays enough random operations for any lie to show.
fn caught(lie: Lie) -> Option<Loss> {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let ops = space().ops(40);
    // A truncated disk would be reported as having the wrong length by disks that lose flushes.
    let mut plays = (0..20).map(|seed| (ops.new_tree(&mut runner).unwrap().current(), seed));
    plays.find_map(|(ops, seed)| {
        let ops: Vec<_> = ops
            .into_iter()
            .filter(|op| !matches!(op, Op::Truncate { .. } | Op::Read { .. }))
            .collect();
        crashes(lie, ops, 4, seed).into_iter().find_map(|(image, m)| m.check(&image.bytes).err())
    })
}

#[test]
fn disks_that_lie_are_caught() {
    assert_eq!(caught(Lie::None), None);
    for lie in [Lie::Flush, Lie::Write, Lie::Fua] {
        assert!(matches!(caught(lie), Some(Loss::Contents { .. })), "{lie:?}");
    }
}

/// The image of a crash in the middle shows old and new, so the checks above meet torn writes.
#[test]
fn crashes_tear_writes_and_reorder_them() {
    let write = |offset| Op::Write {
        range: ByteRange::new(offset, 2048).unwrap(),
        flags: block_core::RequestFlags::empty(),
        buffers: 1,
    };
    let images = crashes(Lie::None, vec![write(0), write(4096), Op::Flush], 1, 1);
    let has = |image: &CrashImage, op, sector: u64| {
        let at = ByteRange::new(sector * 512, 512).unwrap();
        let start = usize::try_from(at.offset()).unwrap();
        image.bytes[start..start + 512] == contents(op, at)
    };
    let torn = |i: &CrashImage| has(i, 1, 0) != has(i, 1, 1);
    assert!(images.iter().any(|(image, _)| torn(image)));
    let reordered = |i: &CrashImage| has(i, 2, 8) && !(0..4).any(|sector| has(i, 1, sector));
    assert!(images.iter().any(|(image, _)| reordered(image)));
}
