//! What the tests of jobs share: chains of layers in memory that can change their backing file.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use block_core::ability::Rebase;
use block_core::driver::{BlockDriver, Children, Exactness, Prealloc};
use block_core::error::{OpenError, Result};
use block_core::flags::Support;
use block_core::info::DriverInfo;
use block_core::io::exec::block_on;
use block_core::node::NodeOptions;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, Error, IoBuf, IoVec, Node, RequestFlags,
};
use block_testkit::disk::overlay::{Cluster, Overlay};
use parking_lot::Mutex;
use proptest::prelude::*;

/// Bytes in a cluster of every layer.
pub const CLUSTER: u64 = 4096;

/// A layer whose backing file can be changed by name, and that can be emptied.
pub struct Layer {
    pub overlay: Arc<Overlay>,
    /// The last backing file name and format that were written to the header.
    pub header: Mutex<Option<(Option<String>, Option<String>)>>,
    /// Zero writes do nothing where the disk reads as zeroes already.
    pub lazy_zeroes: bool,
    /// Every write fails.
    pub fails: AtomicBool,
    /// Every flush fails.
    pub flushes_fail: AtomicBool,
    /// Takes compressed writes of multiples of this.
    pub packs: Option<Alignment>,
    /// What was written.
    pub writes: Mutex<Vec<ByteRange>>,
    /// What of it was compressed.
    pub packed: Mutex<Vec<ByteRange>>,
    pub flushes: Mutex<Vec<&'static str>>,
    /// Names states of its backing file.
    pub names_state: AtomicBool,
}

impl Layer {
    pub fn new(len: u64, backing: Option<Node>) -> Arc<Self> {
        Self::lazy(len, backing, false)
    }

    pub fn lazy(len: u64, backing: Option<Node>, lazy_zeroes: bool) -> Arc<Self> {
        Arc::new(Self::plain(len, backing, lazy_zeroes))
    }

    /// With compressed writes of clusters of this size.
    pub fn packing(spec: &Spec, backing: Option<Node>, cluster: u64) -> Arc<Self> {
        let mut layer = Self::plain(spec.len, backing, false);
        layer.packs = Alignment::new(cluster);
        let layer = Arc::new(layer);
        layer.fill(spec);
        layer
    }

    fn plain(len: u64, backing: Option<Node>, lazy_zeroes: bool) -> Self {
        Self {
            overlay: Overlay::new(len, Alignment::new(CLUSTER).unwrap(), backing),
            header: Mutex::new(None),
            lazy_zeroes,
            fails: AtomicBool::new(false),
            flushes_fail: AtomicBool::new(false),
            packs: None,
            writes: Mutex::default(),
            packed: Mutex::default(),
            flushes: Mutex::default(),
            names_state: AtomicBool::new(false),
        }
    }

    /// A layer of these clusters.
    pub fn of(spec: &Spec, backing: Option<Node>, lazy_zeroes: bool) -> Arc<Self> {
        let layer = Self::lazy(spec.len, backing, lazy_zeroes);
        layer.fill(spec);
        layer
    }

    fn fill(&self, spec: &Spec) {
        for (index, kind) in spec.clusters.iter().enumerate() {
            let cluster = match kind {
                0 => Cluster::Absent,
                1 => Cluster::Zero,
                value => {
                    let mut bytes = vec![*value; usize::try_from(CLUSTER).unwrap()];
                    let end = spec.len - CLUSTER * u64::try_from(index).unwrap();
                    let end = usize::try_from(end).unwrap().min(bytes.len());
                    bytes[end..].fill(0);
                    Cluster::Data(bytes)
                }
            };
            self.overlay.set(index, cluster);
        }
    }

    fn check(&self) -> Result<()> {
        if self.fails.load(Ordering::Relaxed) { Err(Error::NO_SPACE) } else { Ok(()) }
    }
}

/// What a layer holds: a length, and for each cluster 0 (nothing), 1 (zeroes) or a byte.
#[derive(Clone, Debug)]
pub struct Spec {
    pub len: u64,
    pub clusters: Vec<u8>,
}

/// A layer of at most `max` clusters; its values are few, so that layers agree often.
pub fn spec(max: usize) -> impl Strategy<Value = Spec> {
    let cluster = prop_oneof![3 => Just(0u8), 1 => Just(1u8), 2 => 2..4u8];
    (prop::collection::vec(cluster, 1..=max), 0..8u64).prop_map(|(clusters, cut)| {
        let len = u64::try_from(clusters.len()).unwrap() * CLUSTER - cut * 512;
        Spec { len, clusters }
    })
}

pub fn node(layer: &Arc<Layer>) -> Node {
    Node::new(layer.clone(), NodeOptions { unmap: true, ..NodeOptions::default() })
}

/// What the first `len` bytes read as.
pub fn contents(node: &Node, len: u64) -> Vec<u8> {
    let buf = IoBuf::zeroed(usize::try_from(len).unwrap(), Alignment::PAGE).unwrap();
    block_on(node.read(ByteRange::up_to(len), buf.clone().into())).unwrap();
    buf.to_vec()
}

#[async_trait]
impl BlockDriver for Layer {
    fn name(&self) -> &'static str {
        "test-layer"
    }
    fn len(&self) -> u64 {
        self.overlay.len()
    }
    fn limits(&self) -> BlockLimits {
        BlockLimits { compressed_write_alignment: self.packs, ..self.overlay.limits() }
    }
    fn capabilities(&self) -> Capabilities {
        let compressed_write = self.packs.map_or(Support::None, |_| Support::Native);
        Capabilities { compressed_write, ..self.overlay.capabilities() }
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn children(&self) -> Children {
        self.overlay.children()
    }
    fn info(&self) -> DriverInfo {
        DriverInfo { cluster_size: Some(CLUSTER), ..DriverInfo::default() }
    }
    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.overlay.clone().preadv(range, iov).await
    }
    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.check()?;
        self.writes.lock().push(range);
        if flags.contains(RequestFlags::COMPRESSED) {
            self.packed.lock().push(range);
        }
        self.overlay.clone().pwritev(range, iov, flags).await
    }
    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.check()?;
        let nothing_below = self.overlay.children().is_empty();
        let end = range.end();
        if self.lazy_zeroes && nothing_below && !self.overlay.holds(range.offset()) && end > 0 {
            return Ok(());
        }
        self.writes.lock().push(range);
        self.overlay.clone().pwrite_zeroes(range, flags).await
    }
    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        self.overlay.clone().block_status(range, detail).await
    }
    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        self.flushes.lock().push("flush");
        if self.flushes_fail.load(Ordering::Relaxed) { Err(Error::IO) } else { Ok(()) }
    }
    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.check()?;
        self.overlay.clone().truncate(len, exactness, prealloc).await
    }
    fn as_rebase(&self) -> Option<&dyn Rebase> {
        Some(self)
    }
}

#[async_trait]
impl Rebase for Layer {
    async fn change_backing(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), OpenError> {
        self.flushes.lock().push("header");
        *self.header.lock() = Some((name.map(str::to_owned), format.map(str::to_owned)));
        Ok(())
    }
    fn names_state(&self) -> bool {
        self.names_state.load(Ordering::Relaxed)
    }
    async fn renew_state(&self) -> Result<()> {
        self.check()?;
        self.flushes.lock().push("renew");
        Ok(())
    }
    async fn follow_backing(&self) -> Result<()> {
        self.check()?;
        self.flushes.lock().push("follow");
        Ok(())
    }
    async fn make_empty(&self) -> Result<()> {
        self.flushes.lock().push("empty");
        for index in 0..self.len().div_ceil(CLUSTER) {
            self.overlay.set(usize::try_from(index).unwrap(), Cluster::Absent);
        }
        Ok(())
    }
}
