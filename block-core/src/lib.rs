//! The request layer of a block stack: every disk, whatever its format or protocol, is a [`Node`]
//! that takes reads, writes, zeroes, discards and flushes of any range.
//!
//! A *driver* ([`BlockDriver`]) answers where bytes live; the *request layer* ([`request`]) pads,
//! tracks, splits and emulates what the driver cannot do; a *node* is both together. Nodes form a
//! graph: a format node has a file node below it, and perhaps a backing file.
//!
//! No runtime is demanded: any executor can poll the requests. [`io::exec::block_on`] is an executor
//! that waits in the io_uring of the file driver, so that a tool pays no thread hop.
//!
//! ```
//! use std::sync::Arc;
//! use block_core::proto::mem::MemDriver;
//! use block_core::{Alignment, ByteRange, IoBuf, Node, RequestFlags};
//! # use block_core::io::exec::block_on;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! block_on(async {
//!     let disk = Node::new(Arc::new(MemDriver::new(1 << 20)), Default::default());
//!     let range = ByteRange::new(4096, 512)?;
//!
//!     let data = IoBuf::zeroed(512, Alignment::PAGE)?;
//!     data.fill(0x5a);
//!     disk.write(range, data.into(), RequestFlags::FUA).await?;
//!
//!     let back = IoBuf::zeroed(512, Alignment::PAGE)?;
//!     disk.read(range, back.clone().into()).await?;
//!     assert_eq!(back.to_vec(), vec![0x5a; 512]);
//!
//!     disk.write_zeroes(ByteRange::up_to(disk.len()), RequestFlags::MAY_UNMAP).await?;
//!     disk.flush().await?;
//!     Ok(())
//! })
//! # }
//! ```

pub mod ability;
mod access;
pub mod backend;
pub mod budget;
pub mod buf;
pub mod cancel;
pub mod cpu;
pub mod dirty;
pub mod driver;
pub mod error;
pub mod filter;
pub mod flags;
pub mod format;
pub mod graph;
pub mod info;
pub mod io;
pub mod job;
pub mod limits;
mod made;
pub mod metadata;
pub mod node;
pub mod options;
pub mod proto;
pub mod range;
pub mod registry;
pub mod request;

pub use backend::BlockBackend;
pub use buf::{IoBuf, IoVec, OwnedBuf};
pub use cancel::Cancel;
pub use driver::BlockDriver;
pub use error::{Error, OpenError, Problem, Result};
pub use flags::{Capabilities, RequestFlags, Support};
pub use limits::BlockLimits;
pub use node::Node;
pub use options::{OpenFlags, Options};
pub use range::{Alignment, ByteRange};
pub use registry::Registry;

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
