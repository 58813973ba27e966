//! A target that goes away and comes back while it is written to: no request fails, and writing goes on
//! soon after the target is back.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::{LOAD, Lab, PLAIN, attempt};
use crate::failure::{Failure, Result};
use crate::peer::Finding;
use crate::run;

/// How long the target is away.
const AWAY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];
/// Longest time from the target's return to the next write; half a second on an idle machine.
const BACK_MAX: Duration = Duration::from_secs(3);
/// Longest time until the load writes.
const START_MAX: Duration = Duration::from_secs(20);
/// Writes of 4 KiB: several seconds of them.
const WRITES: &str = "150000";

/// A program that goes with the value.
struct Running(Option<Child>);

impl Running {
    /// How it ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.0.as_mut().map_or(Ok(None), Child::try_wait);
        ended.map_err(Failure::io("look at the load"))
    }

    /// Waits for its end.
    fn finish(mut self) -> Result<Option<Output>> {
        let output = self.0.take().map(Child::wait_with_output).transpose();
        output.map_err(Failure::io("wait for the load"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended already.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }
}

/// Kills the target twice while block-img writes to it.
pub(super) fn restarts(lab: &mut Lab, finding: &mut Finding) -> Result<()> {
    let url = lab.daemon.url("", PLAIN, LOAD);
    let file = lab.scratch.file("load");
    let mut command = run::command(&lab.ours);
    let bench = ["bench", "-w", "-f", "raw", "-c", WRITES, "-d", "32", "-s", "4k"];
    command.args(bench).args(["--pattern", "77", &url]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(Failure::io("start the load"))?;
    let mut load = Running(Some(child));
    for away in AWAY {
        if !wait_for_write(&file, SystemTime::now(), START_MAX)? {
            finding.differences.push("the load writes nothing".to_owned());
        }
        lab.daemon.kill();
        if let Some(status) = load.ended()? {
            finding.differences.push(format!("the load had ended with {status}"));
        }
        std::thread::sleep(away);
        let (start, now) = (Instant::now(), SystemTime::now());
        lab.daemon.start_again()?;
        let open = start.elapsed();
        if wait_for_write(&file, now, BACK_MAX)? {
            let back = start.elapsed().saturating_sub(open);
            println!("away for {away:?}: written to again after {back:?}");
        } else {
            finding.differences.push(format!("no write within {BACK_MAX:?}"));
        }
    }
    if let Some(output) = load.finish()?
        && !output.status.success()
    {
        let said = String::from_utf8_lossy(&output.stderr);
        finding.differences.push(format!("the load ended with {}: {said}", output.status));
    }
    let read = ["-f", "raw", &url, "-c", "read -P 77 0 64M"];
    attempt(&mut lab.command(&lab.io, &read), finding)?;
    Ok(())
}

/// Waits until a file was written to after a time; whether it was.
fn wait_for_write(file: &Path, after: SystemTime, most: Duration) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < most {
        let metadata = fs::metadata(file).and_then(|metadata| metadata.modified());
        let written = metadata.map_err(Failure::io(format!("look at {}", file.display())))?;
        if written > after {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(false)
}
