//! The qcow2 image format, versions 2 and 3, for reading: a driver for [`block_core`].
//!
//! What it reads: standard, zero, compressed (deflate and Zstandard) and extended L2 entries,
//! external data files, backing files of any format that the registry knows. It lists internal
//! snapshots and persistent bitmaps. What it refuses, each with an error that says so: writing,
//! encrypted images (their metadata can be looked at), features that it does not know.
//!
//! [`spec`] is the format on disk, [`geometry`] its arithmetic, [`map`] the way from an L2 table to
//! extents; these are pure. The driver around them answers *where* bytes live; the request layer of
//! `block-core` moves them.
//!
//! ```
//! use std::sync::Arc;
//!
//! use block_core::proto::mem::{MemDriver, MemFactory};
//! use block_core::registry::OpenContext;
//! use block_core::options::OpenFlags;
//! use block_core::{Options, Registry};
//! use block_qcow2::Qcow2Factory;
//!
//! let registry = Registry::new().with(Qcow2Factory).with(MemFactory);
//! let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_ONLY);
//! let options = Options::new()
//!     .with("driver", "qcow2")
//!     .with("file.driver", "mem")
//!     .with("file.size", "1M");
//! // A megabyte of zeroes is no image, and the error says why.
//! let err = futures::executor::block_on(context.open(options)).unwrap_err();
//! assert_eq!(err.to_string(), "qcow2: magic is 0x0: unknown value");
//! ```

#![forbid(unsafe_code)]

mod alloc;
mod cache;
mod check;
pub mod compress;
mod cow;
pub mod create;
mod driver;
mod file_len;
mod gate;
pub mod geometry;
mod header_store;
mod inflight;
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
mod snapshot;
pub mod spec;
mod status;
mod table;
mod tables;
pub mod units;
mod write;
mod writeback;
mod writer;
mod zero;

pub use driver::Qcow2Driver;
pub use open::Qcow2Factory;
