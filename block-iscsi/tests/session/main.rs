//! The session against a target that says what each test wants it to say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

mod hostile;
mod loss;
mod peer;
mod reads;
mod tasks;
mod writes;
