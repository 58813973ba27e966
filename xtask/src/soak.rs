//! The long runs: random games on images, in release mode, until there were enough of them.
//!
//! The tests that do it are ignored tests of the crates, so that one that fails here can be played again
//! by its seed under `cargo test`. Each prints the seeds that it has played; what fails is made small
//! and printed with its seed.

use clap::Args;

use crate::failure::Result;
use crate::run;

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Operations whose results are held against the flat disk.
    #[arg(long, default_value_t = 2_000_000)]
    operations: u64,
    /// Images as a crash may leave them.
    #[arg(long, default_value_t = 100_000)]
    crash_images: u64,
    /// Requests that fail.
    #[arg(long, default_value_t = 20_000)]
    faults: u64,
    /// The first seed; other seeds are other games.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// A long run: an ignored test, and how often it does what it does.
struct Soak {
    package: &'static str,
    file: &'static str,
    test: &'static str,
    target: fn(&Arguments) -> u64,
}

const SOAKS: &[Soak] = &[
    Soak {
        package: "block-qcow2",
        file: "model",
        test: "soak_model",
        target: |arguments| arguments.operations,
    },
    Soak {
        package: "block-qcow2",
        file: "crash",
        test: "soak_crash",
        target: |arguments| arguments.crash_images,
    },
    Soak {
        package: "block-qcow2",
        file: "faults",
        test: "soak_faults",
        target: |arguments| arguments.faults,
    },
    Soak {
        package: "block-vmdk",
        file: "model",
        test: "soak_model",
        target: |arguments| arguments.operations,
    },
    Soak {
        package: "block-vmdk",
        file: "crash",
        test: "soak_crash",
        target: |arguments| arguments.crash_images,
    },
    Soak {
        package: "block-vmdk",
        file: "faults",
        test: "soak_faults",
        target: |arguments| arguments.faults,
    },
    Soak {
        package: "block-iscsi",
        file: "pair",
        test: "soak_network",
        target: |arguments| arguments.operations,
    },
    Soak {
        package: "block-iscsi",
        file: "driver_model",
        test: "soak_iscsi_model",
        target: |arguments| arguments.operations,
    },
];

/// Runs all of them, one after the other, until one fails.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for soak in SOAKS {
        let target = (soak.target)(arguments);
        if target == 0 {
            continue;
        }
        let Soak { package, file, test, .. } = soak;
        println!("\n=== {package} {test}: {target} from seed {} on ===", arguments.seed);
        let mut cargo = run::cargo();
        cargo.args(["test", "--release", "--package", package, "--test", file]);
        cargo.args(["--", "--ignored", "--exact", "--nocapture", test]);
        cargo.env("BLOCK_TARGET", target.to_string());
        cargo.env("BLOCK_FIRST", arguments.seed.to_string());
        run::succeed(&mut cargo)?;
    }
    Ok(())
}
