//! `block-img`: makes, converts, compares and shows disk images.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use block_tools::img::{self, Output};

fn main() -> ExitCode {
    ExitCode::from(img::main(std::env::args_os(), &mut Output::stdout()))
}
