//! The parts of an iSCSI initiator (RFC 7143) that need no session: PDUs, the login, SCSI commands and
//! answers, target URLs, and the map of what a LUN is known to hold.
//!
//! # What is here
//! * [`pdu`]: every PDU of both directions, as bytes and as a checked type, and their digests.
//! * [`serial`]: serial numbers that wrap around, and the window of commands.
//! * [`keys`]: text keys, and what two sides make of what they offer.
//! * [`chap`]: CHAP, one-way and mutual.
//! * [`login`]: the initiator's login, bytes in and bytes out.
//! * [`transport`]: byte streams to portals, over TCP or of any runtime.
//! * [`initiator`]: a session that runs over a transport, and discovery.
//! * [`scsi`]: the commands of disks as bytes, and what answers say, checked.
//! * [`url`]: `iscsi://[user[%password]@]host[:port]/target/lun`, parsed and printed.
//! * [`allocmap`]: which pages of a LUN are known to be zero, so that reading them costs nothing.
//!
//! # What is not here
//! There is no initiator: no session, no transport and no driver.
//!
//! # Example
//! ```
//! use block_core::ByteRange;
//! use block_iscsi::allocmap::{AllocMap, Answer, Contents, PageGrid, Trust};
//! use block_iscsi::url::IscsiUrl;
//!
//! let url = IscsiUrl::parse("iscsi://[fd00::7]/iqn.2004-01.org.example:disk/3")?;
//! assert_eq!((url.port(), url.lun()), (3260, 3));
//!
//! let mut map = AllocMap::new(1 << 30, PageGrid::new(64 << 10), Trust::Cached)?;
//! map.update(ByteRange::new(0, 1 << 20)?, Contents::Zero);
//! assert_eq!(map.answer(ByteRange::new(4096, 4096)?), Answer::Zeroes);
//! map.update(ByteRange::new(4096, 512)?, Contents::Allocated);
//! assert_eq!(map.answer(ByteRange::new(4096, 4096)?), Answer::Read);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
