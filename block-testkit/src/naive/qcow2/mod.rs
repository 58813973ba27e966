//! qcow2 read and checked the slow way, from the published description of the format.
//!
//! [`Image`] works on the whole image file as bytes. It reads guest contents, the block status of
//! every (sub)cluster, snapshots and bitmaps, and [`Image::check`] counts every reference to every
//! host cluster and compares with the stored refcounts and COPIED flags.
//!
//! Bytes beyond the end of the file read as zeroes, as they do for every user of such an image.
//! The backing file is given as its guest contents; the caller reads the chain from the bottom up.
//!
//! Limits, so that bad input costs neither unbounded memory nor time: tables as the format's
//! description caps them, [`MAX_CONTENTS`] bytes a read, [`MAX_WORK`] entries a check. There is no
//! writing here but for [`make`], which makes images to start from, and no decryption: the contents of an encrypted image are a typed error.
//!
//! ```no_run
//! use block_testkit::naive::qcow2::Image;
//!
//! let file = std::fs::read("disk.qcow2")?;
//! let image = Image::open(&file)?;
//! let report = image.check()?;
//! assert!(report.is_clean(), "{report}");
//! for snapshot in image.snapshots()? {
//!     println!("{}: {} bytes", snapshot.name, image.snapshot_contents(&snapshot)?.len());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bitmap;
mod check;
mod entry;
mod error;
mod header;
mod inflate;
pub mod make;
mod map;
mod refcount;
mod snapshot;

pub use bitmap::Bitmap;
pub use check::{Finding, Kind, MAX_FINDINGS, MAX_WORK, Report, Role};
pub use entry::{L1Entry, L2Entry};
pub use error::BadImage;
pub use header::{Compression, Extension, FeatureName, Header};
pub use map::{MAX_CONTENTS, MAX_PIECES, Piece, Place};
pub use snapshot::Snapshot;

use super::bytes::Bytes;

/// A qcow2 image in memory.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    file: Bytes<'a>,
    data: Option<Bytes<'a>>,
    backing: Option<Bytes<'a>>,
    header: Header,
}

impl<'a> Image<'a> {
    /// The image whose file holds `file`; only the header is read.
    pub fn open(file: &'a [u8]) -> Result<Self, BadImage> {
        let file = Bytes::new(file);
        Ok(Self { file, data: None, backing: None, header: Header::parse(file)? })
    }

    /// With the bytes of the external data file.
    #[must_use]
    pub fn with_data_file(mut self, data: &'a [u8]) -> Self {
        self.data = Some(Bytes::new(data));
        self
    }

    /// With the guest contents of the backing file, which may be shorter or longer than the image.
    #[must_use]
    pub fn with_backing(mut self, contents: &'a [u8]) -> Self {
        self.backing = Some(Bytes::new(contents));
        self
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
}
