//! Writes and flushes.

use std::sync::atomic::Ordering;

use block_core::error::{Error, Result};
use block_core::flags::RequestFlags;
use block_core::{ByteRange, IoVec};

use crate::scsi::cdb::Caching;

use super::IscsiDriver;
use super::knowledge::Change;
use super::zeroes::Refused;

impl IscsiDriver {
    pub(super) async fn write(
        &self,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let fua = flags.contains(RequestFlags::FUA);
        let caching = if fua { Caching::FUA } else { Caching::DEFAULT };
        let (lba, blocks) = self.blocks(range)?;
        let running = self.knowledge.begin(range, Change::Data);
        let written = self.unit.write(lba, blocks, iov, caching).await;
        match &written {
            Ok(()) => self.knowledge.done(running),
            Err(_) => self.knowledge.failed(running),
        }
        Ok(written?)
    }

    /// Makes everything stable that was written, where there is a cache that it may be in. Once
    /// something is lost, this fails until the disk is closed and opened anew: no later flush could bring it
    /// back.
    pub(super) async fn synchronize(&self) -> Result<()> {
        let unseen = self.unseen.load(Ordering::Acquire);
        let emptied = self.empty_cache().await;
        // Also where somebody else's command was told of the loss meanwhile.
        if self.write_lost.load(Ordering::Acquire) {
            return Err(Error::IO);
        }
        if emptied.is_ok() {
            self.unseen_flushed.fetch_max(unseen, Ordering::AcqRel);
        }
        emptied
    }

    /// Runs a command that is no request of the layer and may change the medium.
    pub(super) async fn unseen<T>(&self, command: impl Future<Output = T>) -> T {
        self.unseen_running.fetch_add(1, Ordering::AcqRel);
        let completion = command.await;
        self.unseen.fetch_add(1, Ordering::AcqRel);
        // Not if this is dropped: it may run on.
        self.unseen_running.fetch_sub(1, Ordering::AcqRel);
        completion
    }

    /// Comes first in every flush of the layer, which leaves out the rest where it has written nothing
    /// itself.
    pub(super) async fn flush_unseen(&self) -> Result<()> {
        if self.no_flush.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.write_lost.load(Ordering::Acquire) {
            return Err(Error::IO);
        }
        let running = self.unseen_running.load(Ordering::Acquire);
        let flushed = self.unseen_flushed.load(Ordering::Acquire);
        if running == 0 && flushed == self.unseen.load(Ordering::Acquire) {
            return Ok(());
        }
        self.catch_up().await?;
        self.synchronize().await
    }

    async fn empty_cache(&self) -> Result<()> {
        if self.write_lost.load(Ordering::Acquire) {
            return Err(Error::IO);
        }
        if !self.write_cache.load(Ordering::Acquire) || self.has_refused(Refused::Synchronize) {
            return Ok(());
        }
        match self.unit.synchronize().await {
            Err(error) if error.is_unknown_command() => {
                // A unit that has a cache must know how to empty it.
                self.refuse(Refused::Synchronize);
                Ok(())
            }
            Err(error) => {
                if error.is_medium_failure() {
                    self.write_lost.store(true, Ordering::Release);
                }
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }
}
