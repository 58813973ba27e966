//! Running programs: cargo, the workspace's binaries, the peers' tools.
//!
//! Standard input is always closed, so that nothing ever waits for an answer.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use serde_json::Value;

use crate::failure::{Failure, Result};

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Whether a file or directory is git's, or what cargo builds: `target` beside a manifest. Anywhere else that
/// is a name like others.
pub(crate) fn is_no_source(path: &Path) -> bool {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(".git") => true,
        Some("target") => path.with_file_name("Cargo.toml").exists(),
        _ => false,
    }
}

/// A command with standard input closed, run in the workspace's root unless said otherwise.
pub(crate) fn command(program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    command.stdin(Stdio::null()).current_dir(root());
    command
}

/// A command from its words; after the first ` | `, each part is one script and stands after a `-c`.
pub(crate) fn words(text: &str) -> Command {
    let mut parts = text.split(" | ");
    let mut words = parts.next().unwrap_or_default().split_whitespace();
    let mut command = command(words.next().unwrap_or_default());
    command.args(words);
    for script in parts {
        command.args(["-c", script.trim()]);
    }
    command
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Cargo of the nightly toolchain, chosen anew: the variables name the toolchain that runs us.
pub(crate) fn nightly() -> Command {
    let mut command = command("cargo");
    command.arg("+nightly");
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command.env("CI", "true"); // or `miri setup` asks before it installs anything
    command
}

/// Runs to a successful end; the program writes to our standard output and error.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(start(command))?;
    check(command, status, &[])
}

/// Runs to a successful end, and returns what the program wrote to standard output.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    check(command, output.status, &output.stderr)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// [`stdout`], as JSON.
pub(crate) fn json(command: &mut Command) -> Result<Value> {
    let text = stdout(command)?;
    serde_json::from_str(&text).map_err(|error| Failure::Output {
        command: line(command),
        problem: format!("no JSON: {error}"),
    })
}

/// Runs to its end, however that is, and returns everything.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().map_err(start(command))
}

/// Whether a program can be started and likes its arguments.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = command(program);
    command.args(arguments);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as a line that can be typed.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| match word.to_string_lossy() {
            word if word.is_empty() || word.contains(' ') => format!("'{word}'"),
            word => word.into_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The profile of measurements and of what users install.
pub(crate) const RELEASE: &str = "release";

/// The profile of tests that run programs: built sooner, and with the compiler's checks.
pub(crate) const QUICK: &str = "quick";

/// The profile of `cargo test`, which has built every program: what CI runs is not built twice.
pub(crate) const DEV: &str = "dev";

/// Builds a program of the workspace with a profile of cargo's, and returns where cargo says it is.
pub(crate) fn binary(profile: &str, package: &str, name: &str) -> Result<PathBuf> {
    build(profile, package, "--bin", name)
}

/// The same of an example.
pub(crate) fn example(profile: &str, package: &str, name: &str) -> Result<PathBuf> {
    build(profile, package, "--example", name)
}

fn build(profile: &str, package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--locked", "--profile", profile]);
    match profile {
        // With all others, or the features of what they depend on were not those of `cargo test`.
        DEV => build.args(["--workspace", "--bins", "--examples"]),
        _ => build.args(["--package", package, kind, name]),
    };
    let messages = messages(&mut build)?;
    executable(&messages, name).ok_or_else(|| Failure::Output {
        command: line(&build),
        problem: format!("no executable {name}"),
    })
}

/// Runs a `cargo build` or `cargo test --no-run`, and returns its messages, a line each, for [`executables`].
pub(crate) fn messages(build: &mut Command) -> Result<String> {
    build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    stdout(build)
}

/// Runs a `cargo build` or `cargo test --no-run`, and returns where cargo says the programs are, by the
/// directory of their crate and their name.
pub(crate) fn built(build: &mut Command) -> Result<BTreeMap<(String, String), PathBuf>> {
    let messages = messages(build)?;
    let programs = executables(&messages).filter_map(|message| {
        let manifest = Path::new(message["manifest_path"].as_str()?);
        let directory = manifest.parent()?.file_name()?.to_string_lossy().into_owned();
        let name = message["target"]["name"].as_str()?.to_owned();
        Some(((directory, name), PathBuf::from(message["executable"].as_str()?)))
    });
    Ok(programs.collect())
}

/// The executable of this name in the messages of `cargo build` or `cargo test`.
pub(crate) fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let mut ours = executables(messages).filter(|message| message["target"]["name"] == name);
    ours.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The messages about executables.
pub(crate) fn executables(messages: &str) -> impl Iterator<Item = Value> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter(|message| message["executable"].is_string())
}

fn start(command: &Command) -> impl FnOnce(std::io::Error) -> Failure + use<> {
    let program = command.get_program().to_string_lossy().into_owned();
    move |source| Failure::Start { program, source }
}

fn check(command: &Command, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Failure::Exit {
        command: line(command),
        status: status.to_string(),
        stderr: String::from_utf8_lossy(stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_a_failure_with_its_standard_error() {
        let failure = stdout(command("sh").args(["-c", "echo oh >&2; exit 3"])).unwrap_err();
        let text = failure.to_string();
        assert!(text.contains("oh") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let failure = succeed(&mut command("no-such-program")).unwrap_err();
        assert!(failure.to_string().contains("no-such-program"));
        assert!(!works("no-such-program", &[]));
    }

    #[test]
    fn output_that_is_no_json_is_a_failure() {
        assert!(json(command("echo").arg("{")).is_err());
        assert_eq!(json(command("echo").arg("{\"a\": 1}")).unwrap()["a"], 1);
    }

    #[test]
    fn each_script_is_one_argument() {
        let command = words("qemu-io -f raw x | write 0 1k | read 0 1");
        assert_eq!(line(&command), "qemu-io -f raw x -c 'write 0 1k' -c 'read 0 1'");
    }

    #[test]
    fn an_executable_is_where_cargo_says() {
        let messages = "{\"target\":{\"name\":\"a\"},\"executable\":null}\n\
                        {\"target\":{\"name\":\"b\"},\"executable\":\"x/b\"}\n\
                        {\"target\":{\"name\":\"a\"},\"executable\":\"x/a\"}\n";
        assert_eq!(executable(messages, "a"), Some(PathBuf::from("x/a")));
        assert_eq!(executable(messages, "c"), None);
    }

    #[test]
    fn a_line_can_be_typed() {
        let mut command = command("echo");
        assert_eq!(line(command.args(["a b", "c"])), "echo 'a b' c");
    }
}
