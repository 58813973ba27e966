//! `block-img`: makes, converts, compares and shows disk images.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use block_tools::img::{self, Output};
use block_tools::{program, signals};

fn main() -> ExitCode {
    signals::survive();
    program::name_from_command_line("block-img");
    ExitCode::from(img::main(std::env::args_os(), &mut Output::stdout()))
}
