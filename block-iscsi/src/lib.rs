//! An iSCSI initiator (RFC 7143) as a block driver: logical units of targets are disks, as image files are.
//!
//! # Example
//! A unit by its URL, and its first block. Secrets are better in a file (`password-file`) or in the
//! environment than in the URL; [`config`] lists all options.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use block_core::io::exec::block_on;
//! use block_core::registry::OpenContext;
//! use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry};
//! use block_iscsi::factory::IscsiFactory;
//! use block_iscsi::transport::tcp::TcpConnector;
//!
//! let iscsi = IscsiFactory::new(Arc::new(TcpConnector::new()));
//! let registry = Arc::new(Registry::new().with(iscsi));
//! let options = Options::new()
//!     .with("driver", "iscsi")
//!     .with("filename", "iscsi://joe@san.example/iqn.2004-01.org.example:disk/3")
//!     .with("password-file", "/etc/disk.secret")
//!     .with("header-digest", "crc32c");
//! block_on(async {
//!     let disk = OpenContext::new(registry, OpenFlags::READ_ONLY).open(options).await?;
//!     let block = IoBuf::zeroed(512, Alignment::PAGE)?;
//!     disk.read(ByteRange::new(0, 512)?, block.clone().into()).await?;
//!     disk.close().await?;
//!     println!("{:02x?}", block.to_vec());
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Format drivers go above it: with them in the registry, `Options::filename("iscsi://...")` without a
//! driver opens whatever the unit holds.
//!
//! # What is here, from above
//! * [`factory`], [`config`]: the driver by its name, from a URL and options.
//! * [`driver`]: requests to one logical unit as SCSI commands. What is known to be zero is not read
//!   ([`allocmap`]).
//! * [`mod@unit`]: commands to a unit, sent until they are done or cannot be.
//! * [`nexus`]: what a unit asks of a session, whoever carries it out.
//! * [`initiator`]: a session that runs over a transport and comes back when its connection is lost;
//!   discovery of targets.
//! * [`session`]: that session, bytes in and bytes out, told the time.
//! * [`transport`]: byte streams to portals, over TCP without a runtime, or of any runtime.
//! * [`login`], [`chap`], [`keys`]: the login, CHAP one-way and mutual, text keys and what two sides make of
//!   what they offer.
//! * [`pdu`], [`serial`]: every PDU of both directions, as bytes and as a checked type, and their digests;
//!   serial numbers that wrap around.
//! * [`scsi`]: the commands of disks as bytes, and what answers say, checked.
//! * [`url`], [`redact`]: `iscsi://[user[%password]@]host[:port]/target/lun`, parsed and printed; texts
//!   without passwords.
//!
//! Whoever has a runtime of his own takes [`initiator::Initiator::new`], whose pump is a future like any
//! other, with [`transport::futures_io`], and gives it to [`driver::IscsiDriver::open`].
//!
//! # What is not here
//! More than one connection per session, error recovery levels 1 and 2, iSER, copies inside of a target.
#![forbid(unsafe_code)]

pub mod allocmap;
pub mod chap;
pub mod config;
pub mod driver;
pub mod factory;
pub mod initiator;
pub mod keys;
pub mod login;
pub mod nexus;
pub mod pdu;
pub mod redact;
pub mod scsi;
pub mod serial;
pub mod session;
pub mod transport;
pub mod unit;
pub mod url;

/// The README's example, compiled with the documentation's tests.
#[cfg(all(doctest, feature = "tcp"))]
#[doc = include_str!("../README.md")]
struct Readme;
