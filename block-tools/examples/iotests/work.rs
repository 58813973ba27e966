//! Many runs at once: each in its own thread and its own directory, and watched.
//!
//! A run that takes longer than its scenario allows is a failure that names the step. Its thread cannot be
//! stopped and is left behind; its place is taken by another.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use block_testkit::scenario::Outputs;

use crate::run::{Failure, Job, Mode, Position, run};

/// A run that has ended.
pub(crate) struct Ended {
    pub(crate) job: Job,
    pub(crate) result: Result<Outputs, Failure>,
    pub(crate) took: Duration,
    /// Where its files are, if they were kept.
    pub(crate) kept: Option<PathBuf>,
}

/// How the runs are done.
pub(crate) struct Plan<'a> {
    pub(crate) jobs: Vec<Job>,
    pub(crate) threads: usize,
    pub(crate) mode: Mode,
    /// Where directories for files are made.
    pub(crate) scratch: &'a Path,
    /// Whether the files of each run stay.
    pub(crate) keep: Keep,
    /// Once this is set, no run begins.
    pub(crate) stop: &'a AtomicBool,
}

/// What becomes of files.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Keep {
    Nothing,
    Everything,
}

/// A run that goes on.
struct Running {
    number: usize,
    job: Job,
    position: Position,
    started: Instant,
    directory: Option<PathBuf>,
}

/// Does all runs of a plan and tells each as it ends, with how many there are in flight or to come.
pub(crate) fn work(plan: Plan<'_>, mut ended: impl FnMut(Ended, usize)) {
    std::panic::set_hook(Box::new(note_panic));
    let (sender, receiver) = channel();
    let mut waiting: VecDeque<Job> = plan.jobs.into();
    let mut running: Vec<Running> = Vec::new();
    let mut number = 0;
    loop {
        while running.len() < plan.threads
            && !plan.stop.load(Ordering::Relaxed)
            && let Some(job) = waiting.pop_front()
        {
            number += 1;
            running.push(start(number, job, plan.scratch, plan.mode, &sender));
        }
        if running.is_empty() {
            return;
        }
        let due = running.iter().map(deadline).min().unwrap_or_else(Instant::now);
        let left = due.saturating_duration_since(Instant::now());
        let (number, result) = match receiver.recv_timeout(left) {
            Ok(done) => done,
            // The sender of this function lives.
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                let Some(late) = running.iter().find(|run| deadline(run) <= now) else { continue };
                let (line, step) = late.position.lock().clone();
                let seconds = late.job.scenario.head.timeout_secs;
                let what = format!("still running after {seconds} s");
                (late.number, Err(Failure { line, step, what }))
            }
        };
        // One that hung may end after all.
        let Some(at) = running.iter().position(|run| run.number == number) else { continue };
        let run = running.swap_remove(at);
        let kept = run.directory.filter(|path| match plan.keep {
            Keep::Everything => true,
            Keep::Nothing => {
                // What cannot be removed is in nobody's way.
                let _ = std::fs::remove_dir_all(path);
                false
            }
        });
        let (job, took) = (run.job, run.started.elapsed());
        ended(Ended { job, result, took, kept }, running.len() + waiting.len());
    }
}

fn deadline(run: &Running) -> Instant {
    run.started + Duration::from_secs(run.job.scenario.head.timeout_secs)
}

type Done = (usize, Result<Outputs, Failure>);

fn start(number: usize, job: Job, scratch: &Path, mode: Mode, sender: &Sender<Done>) -> Running {
    let position = Position::default();
    let is_real = job.config.protocol.family == "file";
    let directory = is_real.then(|| scratch.join(format!("{number}")));
    let run_here = Running {
        number,
        job: job.clone(),
        position: position.clone(),
        started: Instant::now(),
        directory: directory.clone(),
    };
    let sender = sender.clone();
    let failed = |what: String| Failure { line: 0, step: String::new(), what };
    let body = move || {
        let made = directory.as_ref().map_or(Ok(()), std::fs::create_dir_all);
        let result = match made {
            Err(error) => Err(failed(format!("cannot make a directory: {error}"))),
            Ok(()) => {
                let all = AssertUnwindSafe(|| run(&job, directory.clone(), mode, &position));
                catch_unwind(all).unwrap_or_else(|panic| {
                    let (line, step) = position.lock().clone();
                    Err(Failure { line, step, what: panic_text(&*panic) })
                })
            }
        };
        // Nobody waits any more for one that was taken to hang.
        let _ = sender.send((number, result));
    };
    let spawned = thread::Builder::new().name(format!("run {number}")).spawn(body);
    if let Err(error) = spawned {
        panic!("cannot start a thread: {error}");
    }
    run_here
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what a panic of a run says, with its place, for the report.
fn note_panic(info: &PanicHookInfo<'_>) {
    let is_run = thread::current().name().is_some_and(|name| name.starts_with("run "));
    if is_run {
        PANIC.with(|panic| *panic.borrow_mut() = Some(info.to_string()));
    } else {
        eprintln!("{info}");
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let noted = PANIC.with(|panic| panic.borrow_mut().take());
    let said = panic.downcast_ref::<String>().cloned();
    noted.or(said).unwrap_or_else(|| "a panic".to_owned())
}
