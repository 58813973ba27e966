//! Wall clock and CPU time, of a part of this program or of another program.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

use crate::Failure;

/// Runs since it was made.
pub struct Stopwatch {
    start: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts.
    pub fn start() -> Result<Self, Failure> {
        let (user, system) = usage(UsageWho::RUSAGE_SELF)?;
        Ok(Self { cpu: user + system, start: Instant::now() })
    }

    /// Wall clock and CPU time of this process since the start.
    pub fn stop(&self) -> Result<(Duration, Duration), Failure> {
        let wall = self.start.elapsed();
        let (user, system) = usage(UsageWho::RUSAGE_SELF)?;
        Ok((wall, (user + system).saturating_sub(self.cpu)))
    }
}

/// Runs a program to its successful end.
pub fn measure(command: &[OsString]) -> Result<Value, Failure> {
    let (program, arguments) = command.split_first().ok_or("no program")?;
    let start = Instant::now();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    let wall = start.elapsed();
    // This process has had no other child.
    let (user, system) = usage(UsageWho::RUSAGE_CHILDREN)?;
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, stderr.trim()).into());
    }
    Ok(json!({
        "seconds": wall.as_secs_f64(),
        "user_seconds": user.as_secs_f64(),
        "system_seconds": system.as_secs_f64(),
        "peak_kib": peak,
        "stdout": String::from_utf8_lossy(&output.stdout),
    }))
}

/// User and system time.
fn usage(who: UsageWho) -> Result<(Duration, Duration), Failure> {
    let usage = getrusage(who)?;
    Ok((duration(usage.user_time())?, duration(usage.system_time())?))
}

fn duration(time: TimeVal) -> Result<Duration, Failure> {
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec())?);
    Ok(seconds + Duration::from_micros(u64::try_from(time.tv_usec())?))
}
