//! `copy-on-read`: what its file does not hold itself is written to it when it is read.
//!
//! A read that meets clusters of a backing file reads them whole, writes them to the file as unchanged, and
//! fails if that fails. A file that cannot be written to is read as it is.
//!
//! Invariants: no write of anybody else that passes here is in flight to a cluster while it is copied; a
//! cluster that the file holds is never copied over; memory is bounded by `PIECE` or one cluster. Zeroes
//! that tables tell of are not read.

use std::sync::Arc;

use async_trait::async_trait;

use crate::access::Access;
use crate::buf::{IoBuf, IoVec};
use crate::driver::{BlockDriver, Exactness, Prealloc, ReopenOptions, ReopenState};
use crate::error::{Error, OpenError, Result};
use crate::flags::{Capabilities, RequestFlags};
use crate::info::DriverInfo;
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::options::Options;
use crate::range::{Alignment, ByteRange, to_usize};
use crate::registry::{DriverFactory, OpenContext};
use crate::request::status::StatusDetail;
use crate::request::tracked::{Claim, Ticket, Tracker};

/// Most bytes that are copied at once, unless a cluster is longer.
const PIECE: u64 = 1 << 20;

/// The filter.
pub struct CopyOnReadDriver {
    file: Node,
    /// Copies claim their clusters for themselves, writes share theirs. Claimed after the request's place at
    /// this filter's own node, before those at the file.
    copies: Arc<Tracker>,
    access: Access,
}

impl CopyOnReadDriver {
    /// A filter on `file`.
    pub fn new(file: Node) -> Self {
        Self { file, copies: Arc::default(), access: Access::new(true) }
    }

    /// What is copied as a whole.
    fn cluster(&self) -> Alignment {
        let limits = self.file.limits();
        let info = below_filters(&self.file).driver().info();
        let cluster = info.subcluster_size.or(info.cluster_size).and_then(Alignment::new);
        let cluster = cluster.filter(|cluster| cluster.is_power_of_two());
        limits.request_alignment.max(cluster.unwrap_or(Alignment::SECTOR))
    }

    /// The place of a write, which no copy may overlap.
    async fn share(&self, range: ByteRange) -> Ticket {
        self.copies.begin(Claim::shared(range.expand(self.cluster()))).await
    }

    /// How many bytes from the start of `range` on are stored alike, and whether the file holds them.
    async fn run(&self, range: ByteRange) -> Result<(bool, u64)> {
        let status = self.file.block_status(range, StatusDetail::Allocation).await?;
        match status.len.min(range.len()) {
            0 => Ok((true, range.len())),
            len => Ok((status.is_allocated(), len)),
        }
    }

    /// Makes the clusters that hold the start of `range` read as zeroes without a backing file, if they do
    /// with it and the tables say so; gives how much of `range` that is.
    async fn copy_zeroes(&self, range: ByteRange) -> Result<Option<u64>> {
        let zero = self.zero_run(range).await?;
        let (cluster, disk_end) = (self.cluster(), self.file.len());
        let end = range.offset() + zero;
        let end = if end == disk_end { end } else { cluster.round_down(end) };
        if end <= range.offset() {
            return Ok(None);
        }
        let whole = ByteRange::from_bounds(cluster.round_down(range.offset()), end)?;
        let _alone = self.copies.begin(Claim::serialising(whole.expand(cluster))).await;
        // Somebody may have written there meanwhile; and what is before the range may be no zeroes.
        let (held, len) = self.run(whole).await?;
        if held || len < whole.len() || self.zero_run(whole).await? < whole.len() {
            return Ok(None);
        }
        self.file.driver().event("cor_write");
        self.file.write_zeroes(whole, RequestFlags::WRITE_UNCHANGED).await?;
        Ok(Some(end - range.offset()))
    }

    /// How many bytes from the start of `range` on read as zeroes, as far as tables tell.
    async fn zero_run(&self, range: ByteRange) -> Result<u64> {
        let mut rest = range;
        while !rest.is_empty() {
            let status = self.file.block_status_above(None, rest, StatusDetail::Zeroes).await?;
            if !status.is_zero() || status.len == 0 {
                break;
            }
            rest = rest.split_at(status.len).1;
        }
        Ok(range.len() - rest.len())
    }

    /// Copies the clusters that hold the start of `range`, and gives how much of it was read into `iov`.
    async fn copy(&self, range: ByteRange, iov: &IoVec) -> Result<u64> {
        let cluster = self.cluster();
        let disk = ByteRange::up_to(self.file.len());
        let part = range.first(PIECE.max(cluster.bytes()));
        let whole = part.expand(cluster).intersect(disk);
        let _alone = self.copies.begin(Claim::serialising(part.expand(cluster))).await;
        // Somebody may have written it meanwhile.
        let (held, len) = self.run(range).await?;
        if held {
            let here = range.first(len);
            self.file.read(here, iov.slice(0, to_usize(len))).await?;
            return Ok(len);
        }
        let here = part.first(len);
        let whole = here.expand(cluster).intersect(whole);
        let buf = IoBuf::zeroed(to_usize(whole.len()), Alignment::PAGE)?;
        self.file.read(whole, buf.clone().into()).await?;
        self.file.driver().event("cor_write");
        let data = IoVec::from(buf);
        if data.is_zero() {
            self.file.write_zeroes(whole, RequestFlags::WRITE_UNCHANGED).await?;
        } else {
            self.file.write(whole, data.clone(), RequestFlags::WRITE_UNCHANGED).await?;
        }
        let mut bytes = vec![0; to_usize(here.len())];
        data.copy_to(to_usize(here.offset() - whole.offset()), &mut bytes);
        iov.copy_from(0, &bytes);
        Ok(here.len())
    }
}

#[async_trait]
impl BlockDriver for CopyOnReadDriver {
    fn name(&self) -> &'static str {
        "copy-on-read"
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn limits(&self) -> BlockLimits {
        // The file's node sees to that, where it matters.
        BlockLimits { min_mem_alignment: Alignment::ONE, ..self.file.limits() }
    }

    fn capabilities(&self) -> Capabilities {
        self.file.capabilities()
    }

    fn is_read_only(&self) -> bool {
        self.access.is_read_only() || self.file.is_read_only()
    }

    fn filtered(&self) -> Option<&Node> {
        Some(&self.file)
    }

    fn info(&self) -> DriverInfo {
        self.file.driver().info().of_filter()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        if self.file.is_read_only() {
            return self.file.read(range, iov).await;
        }
        let inside = range.intersect(ByteRange::up_to(self.file.len()));
        let mut rest = inside;
        while !rest.is_empty() {
            let here = iov.slice(to_usize(rest.offset() - range.offset()), to_usize(rest.len()));
            let done = match self.run(rest).await? {
                (true, len) => {
                    self.file.read(rest.first(len), here.slice(0, to_usize(len))).await?;
                    len
                }
                (false, len) => {
                    let piece = rest.first(len);
                    match self.copy_zeroes(piece).await? {
                        Some(done) => {
                            here.fill(0, to_usize(done), 0);
                            done
                        }
                        None => self.copy(piece, &here).await?,
                    }
                }
            };
            rest = rest.split_at(done).1;
        }
        let done = to_usize(inside.len());
        iov.fill(done, iov.len() - done, 0);
        Ok(())
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let _place = self.share(range).await;
        self.file.write(range, iov, flags).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let _place = self.share(range).await;
        self.file.write_zeroes(range, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        let _place = self.share(range).await;
        self.file.discard(range).await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        let from = len.min(self.file.len());
        let tail = ByteRange::from_bounds(from, crate::range::MAX_LEN);
        let _place = self.share(tail.map_err(|_| Error::Invalid)?).await;
        self.file.truncate(len, exactness, prealloc).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        Ok(Access::prepare(options))
    }

    fn reopen_commit(&self, state: ReopenState) {
        self.access.commit(state);
    }
}

/// The node that filters pass requests to.
fn below_filters(node: &Node) -> Node {
    match node.driver().filtered() {
        Some(below) => below_filters(below),
        None => node.clone(),
    }
}

/// Opens `copy-on-read`: `file`, which must be writable.
pub struct CopyOnReadFactory;

#[async_trait]
impl DriverFactory for CopyOnReadFactory {
    fn name(&self) -> &'static str {
        "copy-on-read"
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let file = context.open_child(&mut options, "file").await?;
        options.finish()?;
        if !context.flags.writable {
            let (driver, what) = ("copy-on-read", "an image that is open for reading only");
            return Err(OpenError::Unsupported { driver, what });
        }
        let mut driver = CopyOnReadDriver::new(file);
        driver.access = Access::new(context.flags.writable);
        Ok(Arc::new(driver))
    }
}
