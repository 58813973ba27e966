//! The qcow2 image format, versions 2 and 3: a driver for [`block_core`].
//!
//! What it reads: standard, zero, compressed (deflate and Zstandard) and extended L2 entries,
//! external data files, backing files of any format that the registry knows, internal snapshots. It
//! writes all of that. It makes images ([`create`]), takes, applies and
//! deletes snapshots, keeps persistent bitmaps, checks and repairs, amends and measures. What it
//! refuses, each with an error that says so: encrypted images (their metadata can be looked at),
//! features that it does not know.
//!
//! [`spec`] is the format on disk, [`geometry`] its arithmetic, [`map`] the way from an L2 table to
//! extents; these are pure. The driver around them answers *where* bytes live; the request layer of
//! `block-core` moves them.
//!
//! # What a crash leaves
//! What was flushed is there. What was not is, in each block, old or new. Clusters may be leaked, and
//! nothing worse: refcounts are written before the L2 tables that need them, L2 tables before the L1
//! table, data before the entries that show it.
//!
//! # Compressed writes
//! A write with [`RequestFlags::COMPRESSED`](block_core::RequestFlags) covers whole clusters (the last one
//! as far as the disk goes). They are compressed on as many threads as the machine runs at once, and placed in
//! the order in which writes began: the same writes make the same image. A cluster that does not shrink is
//! written plain; what was compressed may be written again, either way. Options of opening:
//!
//! - `compression-level`: 1 to 9 for deflate (5), 1 to 22 for Zstandard (3).
//! - `compression-window`: how far back deflate may reach. `4k` is what every reader has, as QEMU's declares no
//!   more; `32k` is smaller and faster, and was read by all readers that were tried.
//! - `compressed-cache-size`: bytes of host clusters that wait until they are full; 0 is none. By default
//!   4 MiB where the file takes whole blocks only (O_DIRECT): there, each compressed cluster by itself costs two reads
//!   and a write of the blocks around it. By default none where the file takes any length: the page cache
//!   gathers small writes as well, and two caches hold everything twice.
//!
//! What waits in that cache is written by a flush, before the tables that refer to it, and read from there. If it
//! cannot be written, it stays, and flushes and further compressed writes fail with that error until it can.
//!
//! ```
//! use std::sync::Arc;
//!
//! use block_core::io::exec::block_on;
//! use block_core::registry::{DriverFactory, OpenContext};
//! use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry, RequestFlags};
//! use block_qcow2::Qcow2Factory;
//! # use block_core::proto::file::FileFactory;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let image = dir.path().join("disk.qcow2");
//! # let image = image.to_str().ok_or("no text")?;
//! block_on(async {
//!     let registry = Arc::new(Registry::new().with(Qcow2Factory).with(FileFactory));
//!     let context = OpenContext::new(registry, OpenFlags::READ_WRITE);
//!     let new = Options::filename(image).with("size", "1T").with("cluster_size", "1M");
//!     Qcow2Factory.create(new, context.clone()).await?;
//!
//!     let disk = context.open(Options::filename(image).with("driver", "qcow2")).await?;
//!     let data = IoBuf::zeroed(4096, Alignment::PAGE)?;
//!     data.fill(0x5a);
//!     disk.write(ByteRange::new(1 << 39, 4096)?, data.into(), RequestFlags::empty()).await?;
//!     disk.flush().await?;
//!     block_core::graph::close(&disk).await?;
//!     assert!(std::fs::metadata(image)?.len() < 10 << 20);
//!     Ok(())
//! })
//! # }
//! ```

#![forbid(unsafe_code)]

mod alloc;
mod amend;
mod check;
mod cleaner;
pub mod compress;
mod cow;
pub mod create;
mod driver;
mod file_len;
pub mod geometry;
mod header_store;
mod info;
pub mod map;
mod mapping;
mod measure;
mod metadata_io;
mod open;
mod overlap;
mod persist_bitmap;
mod plan;
mod read;
mod rebase;
mod refcounts;
mod references;
mod reload;
mod resize;
mod room;
mod snapshot;
pub mod spec;
mod status;
pub mod stream;
mod table;
mod tables;
pub mod units;
mod vm_state;
mod write;
mod write_compressed;
mod write_now;
mod writeback;
mod writer;
mod zero;

pub use driver::Qcow2Driver;
pub use open::Qcow2Factory;

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
