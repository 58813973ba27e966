//! The SCSI side of the target in memory: each command right and wrong, reservations, random commands
//! against a flat model, and the initiator's encoders and decoders against it. Then its iSCSI side:
//! logins, transfers, sessions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

mod agree;
mod commands;
mod copy;
mod kit;
mod lengths;
mod logins;
mod mode;
mod model;
mod nexus;
mod removable;
mod reservations;
mod sanitize;
mod serving;
mod sessions;
mod transfers;
mod verify;
mod wire;
