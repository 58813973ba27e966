//! Reads that are not one run: the plan, and its pieces at once.
//!
//! Invariants: pieces cover the range without overlap, in order; runs that follow each other in the
//! file are one request to it, across slices too; at most [`AT_ONCE`] pieces are in flight; when the
//! read answers, no piece is in flight any more, also after an error.

use std::collections::VecDeque;
use std::sync::Arc;

use block_core::metadata::steps;
use block_core::range::to_usize;
use block_core::{ByteRange, IoVec, Node, Result};
use futures::{FutureExt, StreamExt, future, stream};

use crate::compress::inflate::{Group, Wanted};
use crate::driver::Qcow2Driver;
use crate::map::Kind;
use crate::reload::from_below;
use crate::spec::entry::Payload;
use crate::units::GuestOffset;

/// Most pieces of one read in flight.
const AT_ONCE: usize = 8;

/// A piece of a read that waits for something; zeroes are filled in while planning.
enum Piece {
    /// Read `range` of `node`, announced by `event`.
    Node { node: Node, event: &'static str, range: ByteRange, iov: IoVec },
    /// Inflate whole clusters.
    Clusters(Group),
    /// Inflate a cluster and take a part of it.
    PartOfCluster { payload: Payload, skip: u64, iov: IoVec },
}

/// A run of the guest's disk that is stored one way.
#[derive(Copy, Clone)]
struct Run {
    range: ByteRange,
    kind: Kind,
}

/// What is still to be read, and where to.
struct Plan {
    driver: Arc<Qcow2Driver>,
    iov: IoVec,
    /// Guest offset of the first byte of `iov`.
    start: u64,
    /// Not mapped yet.
    rest: ByteRange,
    /// Mapped, but not in a piece yet; at most two.
    ahead: VecDeque<Run>,
}

impl Qcow2Driver {
    /// Reads `range`, whatever it is made of. Bytes beyond the end of the disk become zeroes.
    pub(crate) async fn read(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let inside = self.part_with_meaning(range);
        let (len, whole) = (to_usize(inside.len()), to_usize(range.len()));
        iov.fill(len, whole - len, 0);
        let mut plan = Plan {
            driver: Arc::clone(&self),
            iov,
            start: range.offset(),
            rest: inside,
            ahead: VecDeque::new(),
        };
        let Some(first) = plan.next_piece().await? else {
            return Ok(());
        };
        match plan.next_piece().await {
            Ok(None) => self.read_piece(first).await,
            second => self.read_pieces(first, second, plan).await,
        }
    }

    async fn read_pieces(
        &self,
        first: Piece,
        second: Result<Option<Piece>>,
        plan: Plan,
    ) -> Result<()> {
        let first = stream::iter([Some(Ok(first)), second.transpose()]).filter_map(future::ready);
        let later = stream::unfold(plan, |mut plan| async {
            Some((plan.next_piece().await.transpose()?, plan))
        });
        let reads = first.chain(later).map(|piece| piece.map(|piece| self.read_piece(piece)));
        steps::run(AT_ONCE, reads).await
    }

    async fn read_piece(&self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Node { node, event, range, iov } => {
                self.event(event);
                from_below(node.read(range, iov).await)
            }
            Piece::Clusters(group) => {
                let filled = self.inflater.fill(group).await;
                filled.map_err(|e| self.reported(e))
            }
            Piece::PartOfCluster { payload, skip, iov } => {
                let load = || self.inflater.clone().whole(payload).boxed();
                let cluster = match self.clusters.peek(payload.offset.bytes()) {
                    Some(cluster) => cluster,
                    None => {
                        let loaded = self.clusters.peek_or_load(payload.offset.bytes(), load);
                        loaded.await.map_err(|e| self.reported(e))?
                    }
                };
                let skip = to_usize(skip).min(cluster.len());
                let end = (skip + iov.len()).min(cluster.len());
                iov.copy_from(0, &cluster[skip..end]);
                Ok(())
            }
        }
    }
}

impl Plan {
    /// The next piece that waits for something; what reads as zeroes on the way is filled in.
    async fn next_piece(&mut self) -> Result<Option<Piece>> {
        while let Some(run) = self.next_run().await? {
            let piece = match run.kind {
                Kind::Zero(_) => {
                    self.fill(run.range);
                    None
                }
                // Machine state, with nothing below it.
                Kind::Unallocated(_) if run.range.offset() >= self.driver.vm_state_start() => {
                    self.fill(run.range);
                    None
                }
                Kind::Unallocated(_) => {
                    let backing = self.driver.backing.clone();
                    let offset = run.range.offset();
                    self.node_piece(backing.as_ref(), "read_backing_aio", offset, run.range)
                }
                Kind::Data(host) => {
                    let data = self.driver.data.clone();
                    self.node_piece(data.as_ref(), "read_aio", host.bytes(), run.range)
                }
                Kind::Compressed { payload, skip } => {
                    Some(self.compressed_piece(run.range, payload, skip).await?)
                }
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    /// A read of `range` from `offset` of `node`; beyond the node's end there are zeroes.
    fn node_piece(
        &self,
        node: Option<&Node>,
        event: &'static str,
        offset: u64,
        range: ByteRange,
    ) -> Option<Piece> {
        let room = node.map_or(0, |node| node.len().saturating_sub(offset));
        let (stored, beyond) = range.split_at(room);
        self.fill(beyond);
        // An offset that no node can have is beyond its end.
        let there = ByteRange::new(offset, stored.len()).ok()?;
        if stored.is_empty() {
            return None;
        }
        Some(Piece::Node { node: node?.clone(), event, range: there, iov: self.part(stored) })
    }

    async fn compressed_piece(
        &mut self,
        range: ByteRange,
        payload: Payload,
        skip: u64,
    ) -> Result<Piece> {
        let iov = self.part(range);
        if !self.is_whole(range, skip) {
            return Ok(Piece::PartOfCluster { payload, skip, iov });
        }
        let cluster_size = self.driver.geometry().cluster_size();
        let mut group = Group::of(Wanted { payload, iov });
        while let Some(run) = self.next_run().await? {
            match run.kind {
                Kind::Compressed { payload, skip }
                    if self.is_whole(run.range, skip) && group.accepts(payload, cluster_size) =>
                {
                    let iov = self.part(run.range);
                    group.push(Wanted { payload, iov });
                }
                _ => {
                    self.ahead.push_front(run);
                    break;
                }
            }
        }
        Ok(Piece::Clusters(group))
    }

    /// Whether a run is all that the disk has of its cluster.
    fn is_whole(&self, range: ByteRange, skip: u64) -> bool {
        let to_the_end = range.end() == self.driver.disk_len();
        skip == 0 && (range.len() == self.driver.geometry().cluster_size() || to_the_end)
    }

    /// The next run, merged with those that continue it.
    async fn next_run(&mut self) -> Result<Option<Run>> {
        let Some(mut run) = self.fetch().await? else {
            return Ok(None);
        };
        while let Some(next) = self.fetch().await? {
            let merged = ByteRange::from_bounds(run.range.offset(), next.range.end());
            match merged {
                Ok(range) if run.kind.continues_in(run.range.len(), next.kind) => run.range = range,
                _ => {
                    self.ahead.push_front(next);
                    break;
                }
            }
        }
        Ok(Some(run))
    }

    async fn fetch(&mut self) -> Result<Option<Run>> {
        if let Some(run) = self.ahead.pop_front() {
            return Ok(Some(run));
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let offset = GuestOffset::new(self.rest.offset());
        let extent = self.driver.extent(offset, self.rest.len()).await?;
        let (range, rest) = self.rest.split_at(extent.len);
        self.rest = rest;
        let kind = extent.kind;
        Ok(Some(Run { range, kind }))
    }

    /// The buffers of a part of the range.
    fn part(&self, range: ByteRange) -> IoVec {
        let offset = to_usize(range.offset() - self.start);
        self.iov.slice(offset, to_usize(range.len()))
    }

    fn fill(&self, range: ByteRange) {
        let offset = to_usize(range.offset() - self.start);
        self.iov.fill(offset, to_usize(range.len()), 0);
    }
}
