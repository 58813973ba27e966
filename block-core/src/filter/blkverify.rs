//! `blkverify`: writes to two images, and compares what reads of both give.
//!
//! `raw` is the image that is trusted, `test` the one in question; callers see what `test` holds. Bytes that
//! differ fail the read with [`Error::Mismatch`], a request that only one of the images fails with
//! [`Error::Diverged`].
//!
//! Invariants: a request is done to both images before it is answered, and requests that overlap go one after
//! the other, or the images would differ by who was quicker; memory is bounded by `PIECE`. Zero
//! writes and discards are left to the layer, so that both images get the same bytes.

use std::sync::Arc;

use async_trait::async_trait;

use crate::access::Access;
use crate::buf::{IoBuf, IoVec};
use crate::driver::{BlockDriver, Child, ChildRole, Children, ReopenOptions, ReopenState};
use crate::error::{Error, OpenError, Problem, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::options::Options;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::registry::{DriverFactory, OpenContext};
use crate::request::tracked::{Claim, Tracker};

/// The name of the driver and of its scheme.
const NAME: &str = "blkverify";

/// Bytes of the trusted image in memory at once.
const PIECE: u64 = 1 << 20;

/// Bytes that are compared in one go.
const CHUNK: usize = 4096;

/// The filter.
pub struct BlkverifyDriver {
    raw: Node,
    test: Node,
    /// Every request claims its range for itself, after its place at this filter's own node and before those
    /// at the images.
    turns: Arc<Tracker>,
    access: Access,
}

impl BlkverifyDriver {
    /// A filter that holds `test` against `raw`.
    pub fn new(raw: Node, test: Node) -> Self {
        Self { raw, test, turns: Arc::default(), access: Access::new(true) }
    }

    /// Compares `iov`, read from `range` of the image in question, with the trusted image.
    async fn compare(&self, range: ByteRange, iov: &IoVec) -> Result<()> {
        let mut rest = range;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(PIECE);
            let buf = IoBuf::zeroed(to_usize(piece.len()), Alignment::PAGE)?;
            let trusted = self.raw.read(piece, buf.clone().into()).await;
            trusted.map_err(|error| Error::Diverged { range, errno: error.errno() })?;
            let skip = to_usize(piece.offset() - range.offset());
            if let Some(at) = first_difference(&buf, &iov.slice(skip, buf.len())) {
                let offset = piece.offset() + to_u64(at);
                return Err(Error::Mismatch { range, offset });
            }
            rest = after;
        }
        Ok(())
    }
}

/// The place of the first byte that differs; both are of one length.
fn first_difference(trusted: &IoBuf, found: &IoVec) -> Option<usize> {
    let (mut left, mut right) = ([0; CHUNK], [0; CHUNK]);
    let mut done = 0;
    while done < trusted.len() {
        let n = CHUNK.min(trusted.len() - done);
        trusted.copy_to(done, &mut left[..n]);
        found.copy_to(done, &mut right[..n]);
        if let Some(at) = left[..n].iter().zip(&right[..n]).position(|(a, b)| a != b) {
            return Some(done + at);
        }
        done += n;
    }
    None
}

/// The result of a request to both images.
fn agreed(range: ByteRange, trusted: Result<()>, found: Result<()>) -> Result<()> {
    match (trusted, found) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(one), Err(other)) if one.errno() == other.errno() => Err(other),
        (Err(error), _) | (_, Err(error)) => Err(Error::Diverged { range, errno: error.errno() }),
    }
}

#[async_trait]
impl BlockDriver for BlkverifyDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.test.len()
    }

    fn limits(&self) -> BlockLimits {
        // The nodes below pad and bounce; what both take as it is is a matter of speed.
        let (raw, test) = (self.raw.limits(), self.test.limits());
        let align = raw.request_alignment.max(test.request_alignment);
        BlockLimits { request_alignment: align, ..BlockLimits::default() }
    }

    fn capabilities(&self) -> Capabilities {
        let grows = |node: &Node| node.capabilities().grows_on_write;
        Capabilities {
            write_fua: Support::Emulated,
            write_zeroes: Support::Emulated,
            grows_on_write: grows(&self.raw) && grows(&self.test),
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        let below = self.raw.is_read_only() || self.test.is_read_only();
        below || self.access.is_read_only()
    }

    fn children(&self) -> Children {
        let raw = Child { name: "raw", role: ChildRole::Filtered, node: self.raw.clone() };
        let test = Child { name: "test", role: ChildRole::Data, node: self.test.clone() };
        [raw, test].into_iter().collect()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let _turn = self.turns.begin(Claim::serialising(range)).await;
        match self.test.read(range, iov.clone()).await {
            Ok(()) => self.compare(range, &iov).await,
            Err(error) => {
                let trusted = self.raw.read(range, iov).await;
                agreed(range, trusted, Err(error))
            }
        }
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let _turn = self.turns.begin(Claim::serialising(range)).await;
        let trusted = self.raw.write(range, iov.clone(), flags).await;
        let found = self.test.write(range, iov, flags).await;
        agreed(range, trusted, found)
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

/// Opens `blkverify`: `raw`, `test`; or the name `blkverify:RAW:TEST`.
pub struct BlkverifyFactory;

#[async_trait]
impl DriverFactory for BlkverifyFactory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn schemes(&self) -> &'static [&'static str] {
        &[NAME]
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        if let Some(name) = options.take("filename") {
            let both = name.strip_prefix("blkverify:").and_then(|both| both.split_once(':'));
            let missing =
                || OpenError::Option { option: "raw".to_owned(), problem: Problem::Missing };
            let (raw, test) = both.ok_or_else(missing)?;
            options.set("raw.filename", raw);
            options.set("test.filename", test);
        }
        let raw = context.open_child(&mut options, "raw").await?;
        let test = context.open_image(&mut options, "test").await?;
        options.finish()?;
        let mut driver = BlkverifyDriver::new(raw, test);
        driver.access = Access::new(context.flags.writable);
        Ok(Arc::new(driver))
    }
}
