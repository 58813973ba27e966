//! A target that goes away and comes back while it is written to: no request fails, and writing goes on
//! soon after the target is back.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::{LOAD, Lab, PLAIN, attempt};
use crate::failure::{Failure, Result};
use crate::peer::Finding;
use crate::run;

/// How long the target is away.
const AWAY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];
/// Longest time from the target's return to the next write; half a second on an idle machine.
const BACK_MAX: Duration = Duration::from_secs(3);
/// Writes of 4 KiB: several seconds of them.
const WRITES: &str = "150000";

/// A program that goes with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
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
    let mut load = Running(child);
    for away in AWAY {
        wait_for_write(&file, SystemTime::now(), Duration::from_secs(20))?;
        lab.daemon.kill();
        let ended = load.0.try_wait().map_err(Failure::io("look at the load"))?;
        if let Some(status) = ended {
            finding.differences.push(format!("the load had ended with {status}"));
        }
        std::thread::sleep(away);
        let (start, now) = (Instant::now(), SystemTime::now());
        lab.daemon.start_again()?;
        let open = start.elapsed();
        match wait_for_write(&file, now, BACK_MAX)? {
            None => finding.differences.push(format!("no write after {BACK_MAX:?}")),
            Some(_) => {
                let back = start.elapsed().saturating_sub(open);
                println!("away for {away:?}: written to again after {back:?}");
            }
        }
    }
    let output = wait(&mut load.0)?;
    if !output.0 {
        finding.differences.push(format!("the load failed: {}", output.1));
    }
    let read = ["-f", "raw", &url, "-c", "read -P 77 0 64M"];
    attempt(&mut lab.command(&lab.io, &read), finding)?;
    Ok(())
}

/// Waits until a file was written to after a time.
fn wait_for_write(file: &Path, after: SystemTime, most: Duration) -> Result<Option<()>> {
    let start = Instant::now();
    while start.elapsed() < most {
        let metadata = fs::metadata(file).and_then(|metadata| metadata.modified());
        let written = metadata.map_err(Failure::io(format!("look at {}", file.display())))?;
        if written > after {
            return Ok(Some(()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}

/// Whether the program succeeds, and what it says.
fn wait(child: &mut Child) -> Result<(bool, String)> {
    let mut said = String::new();
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>);
    for mut pipe in stdout.into_iter().chain(stderr) {
        pipe.read_to_string(&mut said).map_err(Failure::io("read what the load says"))?;
    }
    let status = child.wait().map_err(Failure::io("wait for the load"))?;
    Ok((status.success(), said))
}
