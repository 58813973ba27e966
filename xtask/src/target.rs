//! An iSCSI target in memory, for trying initiators by hand: the test kit's, built for speed.

use std::ffi::OsString;

use clap::Args;

use crate::failure::Result;
use crate::run;

#[derive(Args)]
pub(crate) struct Arguments {
    /// What the target is like: `--listen`, `--lun` and others; `-- --help` tells them all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    target: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let program = ["run", "--quiet", "--release", "--package", "block-testkit"];
    let example = ["--example", "iscsi-target", "--"];
    run::succeed(run::cargo().args(program).args(example).args(&arguments.target))
}
