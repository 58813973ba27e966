//! The VMDK image format: a driver for [`block_core`].
//!
//! A VMDK is a disk in one file or in many. A text, the descriptor, lists its *extents*, each with its length and
//! its file; where a disk is one sparse extent, the descriptor stands inside of it. What is read and written:
//!
//! | extents | read | written |
//! |---|---|---|
//! | flat, on VMFS or elsewhere; of zeroes | yes | yes |
//! | hosted sparse (`KDMV`), versions 1 and 2, with zeroed grains or without | yes | yes |
//! | of ESX (`COWD`) | yes | yes |
//! | streamOptimized, version 3 | yes | once, from start to end: [`stream`] |
//! | seSparse | yes | no |
//!
//! Images have parents, which are VMDKs too. They are made ([`create`]), checked and repaired, measured,
//! committed and rebased. Raw devices, and what else is not in this table, are refused by name. An extent that is `RDONLY` is
//! not written to, one that is `NOACCESS` is not read either.
//!
//! # Names inside of images
//! The file of an extent is in the directory of the descriptor, by a plain name, unless the option
//! `allow-outside-extents=on` allows others. It is never probed for a format.
//!
//! # Content ids
//! Each image has a content id, and knows the one that its parent had. An image gets a new one before its first
//! change after it was opened, so that an overlay whose parent was changed behind its back is refused, and
//! does not read as a mixture. A commit through the overlay gives the overlay the parent's new one; a parent that
//! was changed by itself is taken back by an unsafe rebase.
//!
//! # What a crash leaves
//! What was flushed is there. What was not is, in each block, old or new. Grains may be lost to the file, and nothing
//! worse: guest data and new tables are stable before anything refers to them. The redundant tables may be
//! behind the primary ones; the header says so until the image is closed, and the next one who writes brings them up to
//! date.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//!
//! use block_core::io::exec::block_on;
//! use block_core::registry::{DriverFactory, OpenContext};
//! use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry, RequestFlags};
//! use block_vmdk::VmdkFactory;
//! # use block_core::proto::file::FileFactory;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let image = dir.path().join("disk.vmdk");
//! # let image = image.to_str().ok_or("no text")?;
//! block_on(async {
//!     let registry = Arc::new(Registry::new().with(VmdkFactory).with(FileFactory));
//!     let context = OpenContext::new(registry, OpenFlags::READ_WRITE);
//!     let new = Options::filename(image).with("size", "20G").with("zeroed_grain", "on");
//!     VmdkFactory.create(new, context.clone()).await?;
//!
//!     let disk = context.open(Options::filename(image).with("driver", "vmdk")).await?;
//!     let place = ByteRange::new(5 << 30, 4096)?;
//!     let data = IoBuf::zeroed(4096, Alignment::PAGE)?;
//!     data.fill(0x5a);
//!     disk.write(place, data.into(), RequestFlags::empty()).await?;
//!     disk.flush().await?;
//!
//!     let back = IoBuf::zeroed(4096, Alignment::PAGE)?;
//!     disk.read(place, back.clone().into()).await?;
//!     assert_eq!(back.to_vec(), [0x5a; 4096]);
//!     block_core::graph::close(&disk).await?;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! Without I/O: [`descriptor`] is the text, kept byte for byte but for what is changed; [`spec`] what stands in
//! the files, as bytes and as checked types; [`probe()`] tells VMDKs from other files.
#![forbid(unsafe_code)]

mod check;
pub mod compress;
pub mod create;
pub mod descriptor;
mod driver;
mod error;
mod extent;
mod factory;
mod identity;
mod info;
mod measure;
mod open;
pub mod probe;
mod rebase;
pub mod spec;
pub mod stream;
pub mod units;

pub use driver::VmdkDriver;
pub use factory::VmdkFactory;
pub use probe::{FileKind, probe};

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
