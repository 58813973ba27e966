//! Reading the image again, and what happens when it turns out to be damaged.

use std::sync::atomic::Ordering;

use block_core::{Error, OpenError, OpenFlags, Result};

use crate::compress::inflate::DAMAGED;
use crate::driver::{Lists, Qcow2Driver};
use crate::open::Image;

impl Qcow2Driver {
    /// Forgets everything and reads the image as it is now in the file. If it fails, all is as it was: what was
    /// written here and is not in the file yet must get there.
    pub(crate) async fn reload(&self) -> Result<()> {
        let _exclusive = match self.writer {
            Some(_) => Some(self.gate.exclusive().await),
            None => None,
        };
        self.replace_all().await?;
        self.is_stale.store(false, Ordering::Release);
        Ok(())
    }

    /// The same in an exclusive turn, after everything was written back and the file was changed beside what is
    /// in memory. If it fails, nothing is written until it succeeds.
    pub(crate) async fn read_again(&self) -> Result<()> {
        let read = self.replace_all().await;
        self.is_stale.store(read.is_err(), Ordering::Release);
        read
    }

    /// Reads all first, and puts it in place of what is known once nothing can fail any more.
    async fn replace_all(&self) -> Result<()> {
        // A flush takes no pass of the gate, and what it took out of `meta` must go back to the same.
        let _quiet = match &self.writer {
            Some(writer) => Some(writer.writeback.lock().await),
            None => None,
        };
        let flags = OpenFlags { writable: self.writer.is_some(), ..OpenFlags::READ_ONLY };
        let mut image = Image::read(&self.file, flags).await.map_err(request_error)?;
        if let Some(view) = &self.view {
            image.look_at(&self.file, view).await.map_err(request_error)?;
        }
        if let Some(writer) = &self.writer {
            let meta = writer.read(&self.file, &image).await.map_err(request_error)?;
            let mut known = writer.meta.lock().await;
            *known = meta.sharing(&writer.overlap);
            if let Some(cache) = &writer.compressed.cache {
                cache.clear();
            }
            writer.bitmaps.found(&image.bitmaps, image.parts.header.unknown_autoclear);
        }
        self.geometry.store(image.parts.header.geometry);
        self.disk_len.store(image.disk_len, Ordering::Release);
        self.header.replace(image.parts);
        *self.lists.write() = Lists { snapshots: image.snapshots, bitmaps: image.bitmaps };
        *self.l1.write() = image.l1;
        self.slices.clear();
        self.clusters.clear();
        Ok(())
    }

    /// The result of a request. Damage is reported, and marked in a writable image: whoever opens it
    /// next must know.
    pub(crate) async fn after<T>(&self, result: Result<T>) -> Result<T> {
        let Err(Error::Corrupt { what, value }) = result else { return result };
        let error = self.reported(Error::Corrupt { what, value });
        if what != DAMAGED
            && let Ok(writer) = self.writer()
            && !writer.marked_corrupt.swap(true, Ordering::AcqRel)
        {
            // The request has failed already; if this fails too, there is nobody else to tell.
            let _ = self.header.update(|header| header.features.corrupt = true).await;
            let _ = self.file.flush().await;
        }
        Err(error)
    }
}

/// An answer of a node below, as this image passes it on. Damage there is none of this image, which must
/// not be marked for it.
pub(crate) fn from_below<T>(answer: Result<T>) -> Result<T> {
    answer.map_err(|error| match error {
        Error::Corrupt { .. } => Error::IO,
        other => other,
    })
}

/// What a request says that had to open something.
pub(crate) fn request_error(error: OpenError) -> Error {
    match error {
        OpenError::Request { error, .. } | OpenError::File { error, .. } => error,
        OpenError::Field { field, value, .. } => Error::Corrupt { what: field, value },
        _ => Error::IO,
    }
}
