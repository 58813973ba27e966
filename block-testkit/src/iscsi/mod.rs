//! The SCSI side of a target in memory: a [`Device`] with several logical units, which answers
//! commands as SPC-4 and SBC-3 say. No iSCSI, no I/O: a command's bytes in, an answer's bytes out.
//!
//! It decodes commands by itself and shares no code with `block_iscsi::scsi`, so that the two check
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
mod removable;
mod reserve;
mod sanitize;
mod store;
mod table;
mod verify;

pub use check::SenseFormat;
pub use device::{Answer, Counters, Device, Nexus, Residual};
pub use lun::{Access, ConfigError, LunConfig, Medium, Provisioning, Unmapped};
