//! A target in memory. Its SCSI side is a [`Device`] with several logical units, which answers
//! commands as SPC-4 and SBC-3 say: a command's bytes in, an answer's bytes out. Its iSCSI side is a
//! [`target::Target`], which owns a device: bytes of connections in and out, no I/O. [`serve`] puts one
//! on the network, [`script`] makes one misbehave, and [`pair`]
//! puts one at the other end of a virtual network.
//!
//! The device decodes commands by itself and shares no code with `block_iscsi::scsi`, so that the two check
//! each other. Memory is proportional to what was written. Everything is deterministic.
//!
//! What is not here: FORMAT UNIT, copies between devices and by tokens, REGISTER AND MOVE, power
//! conditions.

mod check;
mod command;
mod copy;
mod describe;
mod device;
mod lun;
mod medium;
mod mode;
pub mod pair;
mod read;
mod removable;
mod reserve;
mod sanitize;
pub mod script;
pub mod serve;
mod store;
mod table;
pub mod target;
mod verify;

pub use check::SenseFormat;
pub use device::{Answer, Counters, Device, Nexus, Residual};
pub use lun::{Access, ConfigError, LunConfig, Medium, NoBlocks, Provisioning, Unmapped};
pub use read::Blocks;
