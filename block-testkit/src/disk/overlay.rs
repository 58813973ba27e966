//! A layer over a backing file, in memory: the simplest driver that has clusters.
//!
//! Each cluster is absent (the backing file decides), zero, or data. A write to an absent cluster
//! copies the rest of it from the backing file first; as long as that takes, the cluster is busy and
//! other writes to it wait. For tests of block status and of jobs that walk chains.
//!
//! **Invariant:** what is beyond the end of the backing file reads as zeroes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Child, ChildRole, Children, Exactness, Prealloc};
use block_core::error::{Error, Result};
use block_core::flags::Support;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, IoBuf, IoVec, Node, RequestFlags,
};
use parking_lot::Mutex;

/// One cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cluster {
    /// The backing file decides.
    Absent,
    /// Zeroes.
    Zero,
    /// These bytes.
    Data(Vec<u8>),
}

/// The layer.
pub struct Overlay {
    cluster: Alignment,
    backing: Option<Node>,
    /// Guards the clusters; not held while the backing file is read.
    state: Mutex<State>,
}

struct State {
    len: u64,
    clusters: Vec<Cluster>,
    /// Clusters that are being written.
    busy: BTreeSet<usize>,
    waiters: Vec<Waker>,
}

impl Overlay {
    /// An empty layer of `len` bytes with clusters of `cluster` bytes.
    pub fn new(len: u64, cluster: Alignment, backing: Option<Node>) -> Arc<Self> {
        let count = index(cluster.count_up(len));
        let state = State {
            len,
            clusters: vec![Cluster::Absent; count],
            busy: BTreeSet::new(),
            waiters: Vec::new(),
        };
        Arc::new(Self { cluster, backing, state: Mutex::new(state) })
    }

    /// Sets cluster `index`. Data is as long as a cluster.
    pub fn set(&self, index: usize, cluster: Cluster) {
        self.state.lock().clusters[index] = cluster;
    }

    /// Whether this layer decides the byte at `offset`.
    pub fn holds(&self, offset: u64) -> bool {
        let at = index(offset / self.cluster.bytes());
        !matches!(self.state.lock().clusters.get(at), None | Some(Cluster::Absent))
    }

    /// The shares of the clusters in a range: index, offset in the cluster, range.
    fn shares(&self, range: ByteRange) -> Vec<(usize, usize, ByteRange)> {
        let mut shares = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let within = rest.offset() % self.cluster.bytes();
            let (piece, tail) = rest.split_at(self.cluster.bytes() - within);
            shares.push((index(piece.offset() / self.cluster.bytes()), index(within), piece));
            rest = tail;
        }
        shares
    }

    /// Waits until nobody writes a cluster, and takes it.
    async fn occupy(&self, at: usize) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.busy.insert(at) {
                return Poll::Ready(());
            }
            state.waiters.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn release(&self, at: usize) {
        let mut state = self.state.lock();
        state.busy.remove(&at);
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
    }

    /// What cluster `at` reads as.
    async fn content(&self, at: usize) -> Result<Vec<u8>> {
        let len = index(self.cluster.bytes());
        let here = self.state.lock().clusters.get(at).cloned();
        match (here, &self.backing) {
            (Some(Cluster::Data(bytes)), _) => Ok(bytes),
            (Some(Cluster::Absent), Some(backing)) => {
                let offset = u64::try_from(at).unwrap_or(u64::MAX) * self.cluster.bytes();
                let range = ByteRange::new(offset, self.cluster.bytes())?;
                let buf = IoBuf::zeroed(len, Alignment::PAGE)?;
                backing.read(range, buf.clone().into()).await?;
                Ok(buf.to_vec())
            }
            _ => Ok(vec![0; len]),
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[async_trait]
impl BlockDriver for Overlay {
    fn name(&self) -> &'static str {
        "test-overlay"
    }

    fn len(&self) -> u64 {
        self.state.lock().len
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { pwrite_zeroes_alignment: Some(self.cluster), ..BlockLimits::default() }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            write_zeroes: Support::Native,
            truncate: Support::Native,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn children(&self) -> Children {
        let backing = self.backing.iter();
        backing
            .map(|node| Child { name: "backing", role: ChildRole::Cow, node: node.clone() })
            .collect()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        for (at, within, piece) in self.shares(range) {
            let bytes = self.content(at).await?;
            let part = &bytes[within..within + index(piece.len())];
            iov.copy_from(index(piece.offset() - range.offset()), part);
        }
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, range: ByteRange, iov: IoVec, _: RequestFlags) -> Result<()> {
        for (at, within, piece) in self.shares(range) {
            self.occupy(at).await;
            let content = self.content(at).await;
            let result = content.map(|mut bytes| {
                let part = &mut bytes[within..within + index(piece.len())];
                iov.copy_to(index(piece.offset() - range.offset()), part);
                self.set(at, Cluster::Data(bytes));
            });
            self.release(at);
            result?;
        }
        Ok(())
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, _: RequestFlags) -> Result<()> {
        let whole = range.expand(self.cluster).intersect(ByteRange::up_to(self.len()));
        if whole != range {
            return Err(Error::Unsupported);
        }
        for (at, ..) in self.shares(range) {
            self.occupy(at).await;
            self.set(at, Cluster::Zero);
            self.release(at);
        }
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let state = self.state.lock();
        let kind = |at: usize| state.clusters.get(at).map(std::mem::discriminant);
        let shares = self.shares(range);
        let first = shares.first().and_then(|(at, ..)| kind(*at));
        let same = shares.iter().take_while(|(at, ..)| kind(*at) == first);
        let len = same.map(|(.., piece)| piece.len()).sum();
        let at = index(range.offset() / self.cluster.bytes());
        Ok(match state.clusters.get(at) {
            None | Some(Cluster::Absent) => DriverStatus::unallocated(len),
            Some(Cluster::Zero) => DriverStatus::zero(len),
            Some(Cluster::Data(_)) => DriverStatus::data(len),
        })
    }

    async fn truncate(self: Arc<Self>, len: u64, _: Exactness, _: Prealloc) -> Result<()> {
        let mut state = self.state.lock();
        // What is behind the end, or cut off now, must not show when the disk grows.
        let end = len.min(state.len);
        let within = index(end % self.cluster.bytes());
        let last = index(end / self.cluster.bytes());
        if let Some(Cluster::Data(bytes)) = state.clusters.get_mut(last)
            && within > 0
        {
            bytes[within..].fill(0);
        }
        state.clusters.resize(index(self.cluster.count_up(len)), Cluster::Absent);
        state.len = len;
        Ok(())
    }
}
