//! The state of a machine, which stands behind the disk among the guest's offsets: from the first L2
//! table that maps nothing of the disk.
//!
//! Invariants: no request for the disk comes that far, so what is behind [`Qcow2Driver::vm_state_start`]
//! is machine state, has nothing below it in a backing file, and is not cut off at the end of the disk.
//! The L1 table grows in an exclusive turn; the bytes move as those of any other request.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use block_core::ability::VmState;
use block_core::range::to_u64;
use block_core::{ByteRange, Error, IoVec, Result};
use futures::future::BoxFuture;

use crate::driver::Qcow2Driver;
use crate::geometry::DataLocation;
use crate::reload::request_error;
use crate::spec::header::MAX_L1_BYTES;
use crate::table::read_words;
use crate::write::Payload;

impl Qcow2Driver {
    /// The guest offset of the first byte of the machine state.
    pub(crate) fn vm_state_start(&self) -> u64 {
        let geometry = self.geometry();
        geometry.l1_entries_for(self.disk_len()) * geometry.l2_coverage()
    }

    /// What of `range` there is: the part on the disk, or all of it among the machine state.
    pub(crate) fn part_with_meaning(&self, range: ByteRange) -> ByteRange {
        match range.offset() >= self.vm_state_start() {
            true => range,
            false => range.intersect(ByteRange::up_to(self.disk_len())),
        }
    }

    /// The guest range of `iov` at `offset` of the machine state, and how many L1 entries map it.
    fn vm_state_range(&self, offset: u64, iov: &IoVec) -> Result<(ByteRange, u64)> {
        let start = self.vm_state_start().checked_add(offset).ok_or(Error::Os(libc::EFBIG))?;
        let range = ByteRange::new(start, to_u64(iov.len())).map_err(|_| Error::Os(libc::EFBIG))?;
        let needed = self.geometry().l1_entries_for(range.end());
        if needed > MAX_L1_BYTES / 8 {
            return Err(Error::Os(libc::EFBIG));
        }
        Ok((range, needed))
    }

    /// The driver itself, where this image can have machine state.
    fn with_vm_state(&self) -> Result<Arc<Self>> {
        self.check_access()?;
        // What is behind the disk has no place in a file that holds the disk and nothing else.
        if self.geometry().data_location() == DataLocation::DataFile {
            return Err(Error::Unsupported);
        }
        Weak::upgrade(&self.this).ok_or(Error::Closed)
    }

    /// Makes the L1 table map all of the state that is to be saved.
    async fn make_room_for(&self, offset: u64, iov: &IoVec) -> Result<()> {
        let _exclusive = self.alone().await?;
        let (_, needed) = self.vm_state_range(offset, iov)?;
        if needed > self.l1_len() { self.move_l1(needed).await } else { Ok(()) }
    }

    /// Has the rest of the L1 table in memory, of which an image that is only read has what the disk
    /// needs.
    async fn have_all_of_l1(&self) -> Result<()> {
        let l1 = self.header.with(|parts| parts.header.l1);
        if self.writer.is_some() || u64::from(l1.count) <= self.l1_len() {
            return Ok(());
        }
        if self.view.is_some() {
            // The table is that of the snapshot, of which the part for the disk was read.
            return Err(Error::Unsupported);
        }
        let words = read_words(&self.file, "L1 table", l1.offset, l1.count.into()).await;
        *self.l1.write() = words.map_err(request_error)?;
        Ok(())
    }

    async fn save_vm_state(self: Arc<Self>, offset: u64, iov: IoVec) -> Result<()> {
        self.writer()?;
        self.distrust_bitmaps().await?;
        loop {
            let pass = self.gate.enter().await;
            let (range, needed) = self.vm_state_range(offset, &iov)?;
            if needed <= self.l1_len() {
                self.event("vmstate_save");
                let saved = Arc::clone(&self).put(range, Payload::Memory(iov)).await;
                return self.after(saved).await;
            }
            drop(pass);
            let made = self.make_room_for(offset, &iov).await;
            self.after(made).await?;
        }
    }

    async fn load_vm_state(self: Arc<Self>, offset: u64, iov: IoVec) -> Result<()> {
        let _pass = match self.writer {
            Some(_) => Some(self.gate.enter().await),
            None => None,
        };
        self.have_all_of_l1().await?;
        self.event("vmstate_load");
        let (range, _) = self.vm_state_range(offset, &iov)?;
        // What the table does not reach was never saved.
        let mapped = self.l1_len() * self.geometry().l2_coverage();
        let there = usize::try_from(mapped.saturating_sub(range.offset())).unwrap_or(usize::MAX);
        let there = there.min(iov.len());
        iov.fill(there, iov.len() - there, 0);
        let part = range.intersect(ByteRange::up_to(mapped));
        let loaded = Arc::clone(&self).read(part, iov.slice(0, there)).await;
        self.after(loaded).await
    }
}

#[async_trait]
impl VmState for Qcow2Driver {
    async fn save(&self, offset: u64, iov: IoVec) -> Result<()> {
        let driver = self.with_vm_state()?;
        let saved: BoxFuture<'static, _> = Box::pin(driver.save_vm_state(offset, iov));
        saved.await
    }

    async fn load(&self, offset: u64, iov: IoVec) -> Result<()> {
        let driver = self.with_vm_state()?;
        let loaded: BoxFuture<'static, _> = Box::pin(driver.load_vm_state(offset, iov));
        loaded.await
    }
}
