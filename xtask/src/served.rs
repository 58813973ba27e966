//! The test kit's iSCSI target, in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::failure::{Failure, Result};
use crate::run;

const NAME: &str = "iqn.2026-01.org.example:served";

/// A target that serves until it is dropped.
pub(crate) struct Served {
    child: Child,
    stdout: BufReader<ChildStdout>,
    portal: String,
}

/// How often the target was sent a command, by what it prints of the command.
pub(crate) type Counts = Vec<(String, u64)>;

impl Served {
    /// Starts `program` with these units on a free port.
    pub(crate) fn start(program: &Path, units: &[&str]) -> Result<Self> {
        let mut command = run::command(program);
        command.args(["--count", "--listen", "127.0.0.1:0", "--target", NAME]);
        for unit in units {
            command.args(["--lun", unit]);
        }
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let line = run::line(&command);
        let wrong = |problem: String| Failure::Output { command: line.clone(), problem };
        let mut child =
            command.stdout(Stdio::piped()).spawn().map_err(Failure::io(format!("start {line}")))?;
        let stdout = child.stdout.take().ok_or_else(|| wrong("no output".to_owned()))?;
        let mut served = Self { child, stdout: BufReader::new(stdout), portal: String::new() };
        let mut first = String::new();
        let what = format!("read from {line}");
        served.stdout.read_line(&mut first).map_err(Failure::io(what))?;
        let portal = first.strip_prefix("listening on ").and_then(|rest| rest.split(": ").next());
        served.portal = portal.ok_or_else(|| wrong(format!("{first:?}: no address")))?.to_owned();
        Ok(served)
    }

    /// A unit, by its place in what it was started with.
    pub(crate) fn url(&self, unit: usize) -> String {
        format!("iscsi://{}/{NAME}/{unit}", self.portal)
    }

    /// Where it listens.
    pub(crate) fn portal(&self) -> &str {
        &self.portal
    }

    /// Ends it.
    pub(crate) fn stop(mut self) -> Result<Counts> {
        let pid = self.child.id().to_string();
        run::succeed(run::command("kill").args(["-INT", &pid]))?;
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).map_err(Failure::io("read the target's counts"))?;
        let count = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        Ok(text.lines().filter_map(count).collect())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}
