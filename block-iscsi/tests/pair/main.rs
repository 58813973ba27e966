//! Sessions and a target with a virtual network between them: what holds however the network behaves,
//! and what a session makes of a target that misbehaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

mod game;
mod hostile;
mod network;
mod plan;
mod side;
