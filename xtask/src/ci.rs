//! Everything that must pass before a change is good, in the order in which it fails fastest.
//!
//! The steps are data, so that `tidy` can hold the README to them. Nothing runs here that `.ci/run`
//! does not run, and the other way round: `.ci/run` only calls this.

use std::time::{Duration, Instant};

use crate::failure::Result;
use crate::{demo, examples, features, fuzz, iotests, package, peer, run, setup, test, tidy};

/// How a step ended that did not fail.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Outcome {
    Passed,
    /// A tool that not everybody has is absent; the step has said how to get it.
    Skipped,
}

/// One step.
pub(crate) struct Step {
    /// As the heading shows it; what can be called alone has the name of its `cargo xtask` command.
    pub(crate) name: &'static str,
    run: fn() -> Result<Outcome>,
}

/// The steps in order.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "setup", run: || setup::peers(&[setup::QEMU, setup::LIBQCOW]).map(passed) },
    Step { name: "fmt", run: || cargo(&["fmt", "--all", "--check"]) },
    Step { name: "tidy", run: || tidy::run().map(passed) },
    Step {
        name: "clippy",
        run: || {
            let lint = ["clippy", "--workspace", "--all-targets", "--locked"];
            cargo(&[&lint[..], &["--", "-D", "warnings"]].concat())?;
            fuzz::lint().map(passed)
        },
    },
    Step {
        name: "test", // the documentation's tests are among them, and some inputs of each fuzz target
        run: || test::run().map(passed),
    },
    Step { name: "examples", run: || examples::run().map(passed) },
    Step { name: "features", run: || features::run().map(passed) },
    Step {
        name: "doc",
        run: || {
            let mut doc = run::cargo();
            doc.env("RUSTDOCFLAGS", "-D warnings");
            doc.args(["doc", "--workspace", "--no-deps", "--locked"]);
            run::succeed(&mut doc).map(passed)
        },
    },
    Step { name: "package", run: || package::run().map(passed) },
    Step { name: "deny", run: deny },
    Step { name: "miri", run: miri },
    Step { name: "iotests", run: || iotests::scenarios::quick().map(passed) },
    Step { name: "peer", run: || peer::run(&peer::Arguments::default()).map(passed) },
    Step { name: "demo", run: || demo::run(&demo::Arguments::ci()).map(passed) },
];

/// Runs the steps until one fails.
pub(crate) fn run() -> Result<()> {
    let mut done: Vec<(&str, Outcome, Duration)> = Vec::new();
    for step in STEPS {
        println!("\n=== {} ===", step.name);
        let start = Instant::now();
        let outcome = (step.run)().inspect_err(|_| {
            println!("=== {} failed after {} ===", step.name, seconds(start.elapsed()));
        })?;
        println!("=== {}: {} ===", step.name, seconds(start.elapsed()));
        done.push((step.name, outcome, start.elapsed()));
    }
    println!();
    for (name, outcome, time) in &done {
        let note = match outcome {
            Outcome::Passed => "passed",
            Outcome::Skipped => "SKIPPED, see above",
        };
        println!("{name:>8}  {:>8}  {note}", seconds(*time));
    }
    let total = done.iter().map(|(_, _, time)| *time).sum();
    println!("ci: every step passed or was skipped as shown, in {}", seconds(total));
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<Outcome> {
    run::succeed(run::cargo().args(arguments)).map(passed)
}

fn passed((): ()) -> Outcome {
    Outcome::Passed
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Licences and advisories of the dependencies, by cargo-deny where it is installed.
fn deny() -> Result<Outcome> {
    if !run::works("cargo", &["deny", "--version"]) {
        println!("SKIPPED: cargo-deny is not installed; to run it: cargo install cargo-deny");
        return Ok(Outcome::Skipped);
    }
    cargo(&["deny", "check", "licenses", "bans", "sources"])
}

/// The buffer module, where the unsafe code for guest memory is, under miri.
fn miri() -> Result<Outcome> {
    if run::output(run::nightly().args(["miri", "setup"]))
        .is_ok_and(|output| !output.status.success())
    {
        println!(
            "SKIPPED: there is no nightly toolchain with miri and the library's source; to run it:"
        );
        println!("  rustup toolchain install nightly --component miri,rust-src");
        return Ok(Outcome::Skipped);
    }
    let mut miri = run::nightly();
    miri.args(["miri", "test", "--package", "block-core", "--lib", "buf::"]);
    run::succeed(&mut miri).map(passed)
}
