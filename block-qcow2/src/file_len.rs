//! How long the image file is: longer than it need be while it grows, as long as it must be at the end.
//!
//! A write that makes a file longer is slow and excludes others. So before clusters beyond the end are
//! written, the file is made longer by more than they need, as a hole. What was too much is cut off when
//! the image is closed; after a crash it stays, which harms nothing.

use block_core::driver::{Exactness, Prealloc};
use block_core::{Alignment, Result, Support};

use crate::alloc::Meta;
use crate::driver::Qcow2Driver;
use crate::geometry::DataLocation;
use crate::reload::from_below;

/// Least growth in bytes.
const MIN_STEP: u64 = 1 << 20;
/// Most growth in bytes.
const MAX_STEP: u64 = 256 << 20;

impl Qcow2Driver {
    /// Makes the file reach beyond `end`, if that is beyond its end.
    pub(crate) async fn grow_ahead(&self, meta: &mut Meta, end: u64) {
        let len = self.file.len();
        let capabilities = self.file.capabilities();
        let grows = capabilities.truncate == Support::Native
            && capabilities.grows_on_write
            && capabilities.has_zero_init;
        if end <= len || !grows {
            return;
        }
        let step = (len / 4).clamp(MIN_STEP, MAX_STEP);
        // Whole pages: a file that ends inside of one is made longer through the page cache, and direct
        // writes to that page which are under way fail.
        let unit = self.geometry().cluster_alignment().max(Alignment::PAGE);
        let wanted = unit.round_up(end.saturating_add(step));
        // If this fails, so will the write, or it makes the file longer itself.
        if self.file.truncate(wanted, Exactness::Exact, Prealloc::Off).await.is_ok() {
            meta.grown_to = Some(wanted);
        }
    }

    /// Cuts off what [`Qcow2Driver::grow_ahead`] added and nobody used.
    pub(crate) async fn take_back_growth(&self) -> Result<()> {
        let grown_to = self.writer()?.meta.lock().await.grown_to.take();
        if grown_to == Some(self.file.len()) { self.trim_file().await } else { Ok(()) }
    }

    /// Cuts the file behind the last cluster in use. A device keeps its length, and what is behind that
    /// cluster is as it was.
    pub(crate) async fn trim_file(&self) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        let end = meta.refcounts.end().await?.checked_mul(self.geometry().cluster_size());
        // What cannot be told in bytes is beyond the end of every file.
        if let Some(end) = end.filter(|end| *end < self.file.len() && *end > 0) {
            from_below(self.file.truncate(end, Exactness::AtLeast, Prealloc::Off).await)?;
            if self.file.capabilities().has_zero_init && self.file.len() <= end {
                meta.fresh_from = meta.fresh_from.min(end);
            }
        }
        if self.geometry().data_location() == DataLocation::DataFile
            && let Some(data) = self.data.as_ref().filter(|data| data.len() > self.disk_len())
        {
            let cut = data.truncate(self.disk_len(), Exactness::AtLeast, Prealloc::Off);
            from_below(cut.await)?;
        }
        Ok(())
    }
}
