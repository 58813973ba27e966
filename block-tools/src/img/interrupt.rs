//! Ctrl-C: the first asks the running jobs to stop between two of their requests, the second ends the
//! process at once, and so does time ([`GRACE`]): storage that does not answer holds nobody up. SIGTERM and
//! SIGHUP do the same; what the program was started to ignore stays so.
//!
//! A process has one handler, from its first job on. What runs is on a list, so that several jobs of
//! one process, one after the other or at a time, all hear of it.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use block_core::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{signals, surroundings};

use super::Failure;

/// What asks the jobs to stop.
const STOPPING: &[i32] = &[SIGINT, SIGTERM, SIGHUP];

/// How long jobs that were asked to stop, and the closing of their images, may take. What the process then
/// leaves is what a crash would leave.
const GRACE: Duration = Duration::from_secs(5);

/// The signal that came last.
static SIGNAL: AtomicI32 = AtomicI32::new(SIGINT);

/// The jobs that run, by number.
static RUNNING: Mutex<Vec<(u64, Cancel)>> = Mutex::new(Vec::new());

/// The number of the next job.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The one handler; an error if the system refused it.
static HANDLER: LazyLock<Result<(), String>> =
    LazyLock::new(|| listen().map_err(|error| error.to_string()));

/// A job that hears of Ctrl-C, until this is dropped.
#[must_use = "the job hears of Ctrl-C only while this is there"]
pub(super) struct Listening(u64);

impl Drop for Listening {
    fn drop(&mut self) {
        running().retain(|(number, _)| *number != self.0);
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP cancel `cancel`; nothing does in a thread that has other
/// [`surroundings`] than a program: what runs there has its own ways.
pub(super) fn cancel_on_signal(cancel: &Cancel) -> Result<Listening, Failure> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if surroundings::are_set() {
        return Ok(Listening(number));
    }
    if let Err(error) = &*HANDLER {
        return Err(Failure::new(format_args!("Cannot wait for signals: {error}")));
    }
    running().push((number, cancel.clone()));
    Ok(Listening(number))
}

/// Exit status of a command that was interrupted: as a shell gives it for the signal.
pub(super) fn status() -> u8 {
    u8::try_from(128 + SIGNAL.load(Ordering::Relaxed)).unwrap_or(u8::MAX)
}

fn listen() -> io::Result<()> {
    let mut signals = Signals::new(signals::not_ignored(STOPPING))?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        signals.forever().for_each(interrupt);
    })?;
    Ok(())
}

/// Cancels what runs; ends the process if that was done before, or nothing runs.
fn interrupt(signal: i32) {
    SIGNAL.store(signal, Ordering::Relaxed);
    let running = running();
    if running.iter().all(|(_, cancel)| cancel.is_cancelled()) {
        std::process::exit(i32::from(status()));
    }
    running.iter().for_each(|(_, cancel)| cancel.cancel());
    let asked: Vec<u64> = running.iter().map(|(number, _)| *number).collect();
    // Without a thread for it, a second signal is what ends the process.
    let _ = thread::Builder::new().name("grace".to_owned()).spawn(move || {
        thread::sleep(GRACE);
        if self::running().iter().any(|(number, _)| asked.contains(number)) {
            std::process::exit(i32::from(status()));
        }
    });
}

fn running() -> MutexGuard<'static, Vec<(u64, Cancel)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_one_process_hear_of_a_signal_while_they_run() {
        let [first, second, over] = [(); 3].map(|()| Cancel::new());
        let _first = cancel_on_signal(&first).unwrap();
        drop(cancel_on_signal(&over).unwrap());
        let _second = cancel_on_signal(&second).unwrap();
        interrupt(SIGINT);
        assert!(first.is_cancelled() && second.is_cancelled());
        assert!(!over.is_cancelled());
    }
}
