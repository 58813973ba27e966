//! The block driver `iscsi`: requests to one logical unit as SCSI commands.
//!
//! Reads and writes are one command each: the request layer cuts them to [`BlockDriver::limits`]. Zero
//! writes and discards of any length are cut here, where granules may begin anywhere: one command where
//! the target takes so much.
//!
//! What is known of the medium (`knowledge.rs`) answers reads without the target, and is asked for where
//! that may save reads (`asking.rs`). **Invariant:** every command that may change the medium begins and
//! ends in `knowledge`, whoever sends it; nothing here claims zeroes but `knowledge`, and an answer of
//! the target that nothing has made old.
//!
//! What the target refuses (a command it does not know, a field) is remembered and not tried again.
//!
//! Not here: the session, reconnecting, and copies inside of the target (EXTENDED COPY).

mod asking;
mod discard;
mod events;
mod knowledge;
mod more;
mod open;
mod read;
mod reopen;
mod status;
mod write;
mod zeroes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc, ReopenOptions, ReopenState};
use block_core::error::{Error, OpenError, Result};
use block_core::flags::{Capabilities, RequestFlags, Support};
use block_core::info::{DriverInfo, InfoValue};
use block_core::limits::BlockLimits;
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{Alignment, ByteRange, IoVec};
use futures::lock::Mutex as AsyncMutex;

use crate::allocmap::Trust;
use crate::nexus::Nexus;
use crate::unit::{Sleep, Unit};

use asking::Asking;
use events::Asked;
use knowledge::Knowledge;
use open::Facts;
use zeroes::Refused;

pub use more::Compared;
pub use open::UnitOptions;

/// The name of the driver.
pub const NAME: &str = "iscsi";

/// Longest read or write, whatever the target takes: a command's data is in flight as a whole.
const TRANSFER_MAX: u64 = 16 << 20;

/// A logical unit as a disk. See the module.
pub struct IscsiDriver {
    unit: Arc<Unit>,
    filename: String,
    facts: Facts,
    len: AtomicU64,
    read_only: AtomicBool,
    /// Writes may end before the medium has them, or nobody knows any more.
    write_cache: AtomicBool,
    knowledge: Knowledge,
    asking: Asking,
    /// What of zero writes and discards the target does not take: bits of [`Refused`].
    refused: AtomicU8,
    /// Most bytes of one WRITE SAME, as learned from a refusal.
    same_max: AtomicU64,
    /// What was acknowledged is lost: no flush succeeds any more.
    write_lost: AtomicBool,
    /// Counts what may have changed the medium without a request of the layer.
    unseen: AtomicU64,
    /// So many of them are stable.
    unseen_flushed: AtomicU64,
    /// How many of them may be under way, with those that nobody waits for: their end is not known.
    unseen_running: AtomicU64,
    /// Flushes stop here, as the layer knows, too.
    no_flush: AtomicBool,
    /// Unmapped blocks read as zeroes, and have since the unit was opened.
    reads_zeroes: AtomicBool,
    /// Counts what may have given the unit another shape: another length, other blocks.
    shape_events: AtomicU64,
    /// So many of them had happened when the shape was asked for that is known. Written under
    /// `resizing`.
    shape_known: AtomicU64,
    /// How often the shape was asked for. Written under `resizing`.
    asks: AtomicU64,
    /// Held while the shape is asked for, so that answers come in order and are waited for; holds how the
    /// last question ended.
    resizing: AsyncMutex<Asked>,
}

impl IscsiDriver {
    /// Opens the unit that `options` name behind `nexus`, which belongs to the driver from then on:
    /// it is closed with it, and if the unit cannot be opened.
    pub async fn open(
        nexus: Arc<dyn Nexus>,
        sleep: Arc<dyn Sleep>,
        options: UnitOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let (unit, facts) = match open::probe(Arc::clone(&nexus), sleep, &options).await {
            Ok(found) => found,
            Err(error) => {
                nexus.close().await;
                return Err(error);
            }
        };
        let len = facts.capacity.len();
        let trust = trust(options.flags.direct);
        let driver = Arc::new(Self {
            knowledge: Knowledge::new(len, facts.grid(len), trust),
            asking: Asking::default(),
            unit,
            filename: options.filename,
            len: AtomicU64::new(len),
            read_only: AtomicBool::new(!options.flags.writable),
            write_cache: AtomicBool::new(facts.write_cache),
            refused: AtomicU8::new(0),
            same_max: AtomicU64::new(zeroes::same_max(&facts)),
            write_lost: AtomicBool::new(false),
            unseen: AtomicU64::new(0),
            unseen_flushed: AtomicU64::new(0),
            unseen_running: AtomicU64::new(0),
            no_flush: AtomicBool::new(options.flags.no_flush),
            reads_zeroes: AtomicBool::new(facts.reads_zeroes),
            shape_events: AtomicU64::new(0),
            shape_known: AtomicU64::new(0),
            asks: AtomicU64::new(0),
            resizing: AsyncMutex::default(),
            facts,
        });
        let weak = Arc::downgrade(&driver);
        driver.unit.listen(Arc::new(move |event| {
            if let Some(driver) = weak.upgrade() {
                driver.heard(event);
            }
        }));
        let weak = Arc::downgrade(&driver);
        driver.unit.set_gate(Arc::new(move || {
            let Some(driver) = weak.upgrade() else {
                return Some(Box::pin(async { Err(Error::Closed) }));
            };
            if !driver.shape_is_old() {
                return None;
            }
            Some(Box::pin(async move { driver.catch_up().await }))
        }));
        Ok(driver)
    }

    /// Length of a block in bytes.
    fn block(&self) -> u64 {
        self.facts.capacity.block_size().bytes()
    }

    /// A range in blocks. The layer aligns requests, and their lengths have bounds.
    fn blocks(&self, range: ByteRange) -> Result<(u64, u32)> {
        let count = u32::try_from(range.len() / self.block()).map_err(|_| Error::Invalid)?;
        Ok((range.offset() / self.block(), count))
    }

    /// Whether unmapped blocks read as zeroes.
    fn reads_zeroes(&self) -> bool {
        self.reads_zeroes.load(Ordering::Acquire)
    }

    fn has_refused(&self, what: Refused) -> bool {
        self.refused.load(Ordering::Acquire) & what.bit() != 0
    }

    fn refuse(&self, what: Refused) {
        self.refused.fetch_or(what.bit(), Ordering::AcqRel);
    }

    /// Granules of discards and zero writes, where the layer can align to them: it counts from the start
    /// of the disk.
    fn granule(&self) -> Option<Alignment> {
        let limits = &self.facts.limits;
        let unmap = limits.unmapping.and_then(|unmapping| unmapping.granule);
        let granule = unmap.or(limits.write_same_granule)?;
        (granule.offset == 0).then_some(granule.len)
    }
}

fn trust(direct: bool) -> Trust {
    if direct { Trust::Never } else { Trust::Cached }
}

fn support(native: bool) -> Support {
    if native { Support::Native } else { Support::None }
}

#[async_trait]
impl BlockDriver for IscsiDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn limits(&self) -> BlockLimits {
        let limits = &self.facts.limits;
        let max = limits.max_transfer.map_or(TRANSFER_MAX, |max| max.min(TRANSFER_MAX));
        BlockLimits {
            request_alignment: limits.block,
            max_transfer: Some(max),
            opt_transfer: limits.opt_transfer.map(|best| best.min(max)),
            pwrite_zeroes_alignment: self.granule().filter(|_| self.can_unmap_zeroes()),
            pdiscard_alignment: self.granule().filter(|_| self.can_unmap()),
            ..BlockLimits::default()
        }
    }

    fn capabilities(&self) -> Capabilities {
        let emulated = if self.facts.dpofua { Support::Native } else { Support::Emulated };
        Capabilities {
            write_fua: emulated,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Emulated,
            zeroes_may_unmap: support(self.can_unmap_zeroes()),
            zeroes_no_fallback: support(self.can_unmap_zeroes()),
            discard: support(self.can_unmap()),
            truncate: Support::Native,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    fn info(&self) -> DriverInfo {
        let Facts { inquiry, serial, capacity, .. } = &self.facts;
        let text = |text: &str| InfoValue::Text(text.to_owned());
        let mut specific = vec![
            ("vendor", text(&inquiry.vendor)),
            ("product", text(&inquiry.product)),
            ("revision", text(&inquiry.revision)),
        ];
        specific.extend(serial.as_deref().map(|serial| ("serial", text(serial))));
        specific.push(("logical-block-size", InfoValue::Int(self.block())));
        specific.push(("physical-block-size", InfoValue::Int(capacity.physical_block_size())));
        specific.push(("thin", InfoValue::Bool(capacity.management.managed)));
        DriverInfo {
            filename: Some(self.filename.clone()),
            cluster_size: self.granule().map(Alignment::bytes),
            specific,
            ..DriverInfo::default()
        }
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.read_zeroes_now(range, iov)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.catch_up().await?;
        self.read(range, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.catch_up().await?;
        self.write(range, iov, flags).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.catch_up().await?;
        self.zero(range, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        self.catch_up().await?;
        self.unmap(range).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        self.catch_up().await?;
        match detail {
            StatusDetail::Zeroes => Ok(self.status(range).await),
            // There is one layer, and it holds everything.
            StatusDetail::Allocation => Ok(DriverStatus::data(range.len())),
        }
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        self.flush_unseen().await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.catch_up().await?;
        self.synchronize().await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.has_len(len, exactness, prealloc).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        self.prepare_reopen(*options).await
    }

    fn reopen_commit(&self, state: ReopenState) {
        self.commit_reopen(state);
    }

    async fn invalidate_cache(self: Arc<Self>) -> Result<()> {
        self.forget();
        self.read_capacity().await
    }

    async fn close(self: Arc<Self>) -> Result<()> {
        self.unit.nexus().close().await;
        Ok(())
    }
}
