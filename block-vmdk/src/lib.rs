//! The parts of the VMDK image format that need no I/O: the text descriptor, the header of hosted
//! sparse extents, and telling VMDK files from others.
//!
//! # What is here
//! * [`descriptor`]: the text that says which extents a disk has. It is parsed to typed values and
//!   printed back byte for byte; changing a content id changes nothing else.
//! * [`spec::sparse`]: the 512-byte header of hosted sparse extents (`KDMV`: monolithicSparse,
//!   twoGbMaxExtentSparse, streamOptimized), as bytes and as a checked type.
//! * [`spec::cowd`] and [`spec::sesparse`]: the same for the sparse extents of ESX.
//! * [`spec::marker`]: what stands before each grain and each table of streamOptimized extents.
//! * [`compress`]: one grain as a zlib stream.
//! * [`probe()`]: whether a file starts like a VMDK, and like which kind.
//! * [`units`]: sectors, grains and content ids as types of their own.
//!
//! # Example
//! ```
//! use block_vmdk::descriptor::{Descriptor, ExtentKind};
//!
//! let text = b"# Disk DescriptorFile\nversion=1\nCID=4f2a3d1c\nparentCID=ffffffff\n\
//!              createType=\"monolithicFlat\"\n\nRW 20480 FLAT \"disk-flat.vmdk\" 0\n";
//! let descriptor = Descriptor::parse(text)?;
//! let extent = &descriptor.extents()[0];
//! assert_eq!(extent.kind, ExtentKind::Flat);
//! assert_eq!(extent.sectors.bytes(), Some(10 << 20));
//! assert!(!descriptor.has_parent());
//! assert_eq!(descriptor.to_bytes(), text);
//! # Ok::<(), block_vmdk::descriptor::DescriptorError>(())
//! ```
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
