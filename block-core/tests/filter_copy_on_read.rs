//! The filter `copy-on-read`: its users see the disk; what they read from the backing file is in the file
//! afterwards, once, and never over what was written.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Child, ChildRole, Children};
use block_core::error::Result;
use block_core::filter::copy_on_read::CopyOnReadDriver;
use block_core::info::DriverInfo;
use block_core::io::exec::block_on;
use block_core::node::NodeOptions;
use block_core::range::{to_u64, to_usize};
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{BlockLimits, ByteRange, Capabilities, Error, IoVec, Node, RequestFlags};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::{Exec, yield_now};
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::{Op, OpSpace, contents};
use block_testkit::play::{Played, Player};
use parking_lot::Mutex;
use proptest::prelude::*;
use request_support::{align, buffer, cases, data, span};

const CLUSTER: u64 = 4096;

/// The smallest image with a backing file: whole clusters in memory, and which of them it holds.
struct Overlay {
    own: Node,
    backing: Node,
    held: Mutex<BTreeSet<u64>>,
    /// Clusters that were put down as unchanged.
    copied: AtomicU64,
}

impl Overlay {
    fn clusters(range: ByteRange) -> std::ops::Range<u64> {
        range.offset() / CLUSTER..range.end().div_ceil(CLUSTER)
    }
}

#[async_trait]
impl BlockDriver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn len(&self) -> u64 {
        self.own.len()
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { request_alignment: align(CLUSTER), ..BlockLimits::default() }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn children(&self) -> Children {
        let (name, role) = ("backing", ChildRole::Cow);
        Children::from_iter([Child { name, role, node: self.backing.clone() }])
    }

    fn info(&self) -> DriverInfo {
        DriverInfo { cluster_size: Some(CLUSTER), ..DriverInfo::default() }
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        for cluster in Self::clusters(range) {
            let here = span(cluster * CLUSTER, (cluster + 1) * CLUSTER);
            let part = iov.slice(to_usize(here.offset() - range.offset()), to_usize(CLUSTER));
            let held = self.held.lock().contains(&cluster);
            yield_now().await;
            let node = if held { &self.own } else { &self.backing };
            node.read(here, part).await?;
        }
        Ok(())
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        if flags.contains(RequestFlags::WRITE_UNCHANGED) {
            let held = self.held.lock();
            for cluster in Self::clusters(range) {
                assert!(!held.contains(&cluster), "cluster {cluster} is copied over");
                self.copied.fetch_add(1, Ordering::Relaxed);
            }
        }
        yield_now().await;
        self.own.write(range, iov, RequestFlags::empty()).await?;
        self.held.lock().extend(Self::clusters(range));
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let held = self.held.lock();
        let first = held.contains(&(range.offset() / CLUSTER));
        let alike = Self::clusters(range).take_while(|cluster| held.contains(cluster) == first);
        let len = (to_u64(alike.count()) * CLUSTER).min(range.len());
        Ok(if first { DriverStatus::data(len) } else { DriverStatus::unallocated(len) })
    }
}

/// The overlay of `len` bytes, the filter on it, and what fails writes to the overlay.
fn filter(len: u64, base: &MemDisk) -> (Arc<Overlay>, Node, Arc<Fault>) {
    let node = |driver| Node::new(driver, NodeOptions::default());
    let bytes = contents(0, ByteRange::up_to(len));
    base.load(0, &bytes);
    let overlay = Arc::new(Overlay {
        own: node(MemConfig::new(len.next_multiple_of(CLUSTER)).build()),
        backing: node(MemConfig::new(len.next_multiple_of(CLUSTER)).build()),
        held: Mutex::default(),
        copied: AtomicU64::new(0),
    });
    let range = ByteRange::up_to(len);
    let buf = buffer(&overlay.backing, range);
    buf.copy_from(0, &bytes);
    block_on(overlay.backing.write(range, buf, RequestFlags::empty())).unwrap();
    let fault = Fault::new();
    let file = node(Tapped::new(overlay.clone(), Arc::clone(&fault)));
    (overlay, node(Arc::new(CopyOnReadDriver::new(file))), fault)
}

fn game() -> impl Strategy<Value = (Vec<Op>, usize, u64)> {
    let space = OpSpace { write_flags: RequestFlags::FUA, ..OpSpace::new(40_960, &[512, CLUSTER]) };
    (space.ops(24), 1..=8usize, any::<u64>())
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_interleaving_equals_the_flat_disk((ops, depth, seed) in game()) {
        let base = MemConfig::new(40_960).build();
        let (overlay, node, _) = filter(40_960, &base);
        Exec::run(seed, |exec| async move {
            let player = Player::new(exec, node, DiskModel::new(40_960, Source::Op(0)));
            let played = player.play(&ops, depth).await;
            player.check_all().await;
            for (op, played) in ops.iter().zip(&played) {
                assert!(matches!(played, Played::Returned(Ok(()))), "{op:?}: {played:?}");
            }
            // All of it was read at the end, so all of it is there.
            assert_eq!(overlay.held.lock().len(), 10);
        });
    }
}

#[test]
fn a_part_of_a_cluster_brings_all_of_it_once() {
    let base = MemConfig::new(40_960).build();
    let (overlay, node, _) = filter(40_960, &base);
    for _ in 0..2 {
        let range = span(5000, 9000);
        let buf = buffer(&node, range);
        block_on(node.read(range, buf.clone())).unwrap();
        assert_eq!(buf.to_vec(), contents(0, range));
    }
    assert_eq!(*overlay.held.lock(), BTreeSet::from([1, 2]));
    assert_eq!(overlay.copied.load(Ordering::Relaxed), 2);
}

#[test]
fn a_copy_that_fails_fails_the_read_and_a_later_one_is_tried_again() {
    let base = MemConfig::new(40_960).build();
    let (overlay, node, fault) = filter(40_960, &base);
    fault.add(Rule::new(Kind::Write).error(Error::NO_SPACE).once());
    let range = span(0, 512);
    let read = || block_on(node.read(range, buffer(&node, range)));
    assert_eq!(read(), Err(Error::NO_SPACE));
    assert_eq!((fault.injected(), overlay.held.lock().len()), (1, 0));
    assert_eq!(read(), Ok(()));
    let written = data(&node, 3, range);
    block_on(node.write(range, written, RequestFlags::empty())).unwrap();
    assert_eq!(*overlay.held.lock(), BTreeSet::from([0]));
}
