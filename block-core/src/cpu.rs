//! Threads for work that takes processor time, so that the executor's thread goes on meanwhile: formats
//! compress and inflate on them.
//!
//! Invariants: at most as many threads as the machine runs at once, shared by everybody in the
//! process; a thread that had nothing to do for some seconds ends. The queue holds no more tasks than
//! requests in flight brought: each request bounds its own.
//!
//! A hop to a thread costs some microseconds: work that takes less is done where it is wanted.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;

use futures::channel::oneshot;
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// How long a thread waits for a task before it ends.
const IDLE: Duration = Duration::from_secs(5);

type Task = Box<dyn FnOnce() + Send>;

struct Pool {
    /// Guards the queue; held for a push or a pop.
    state: Mutex<State>,
    wake: Condvar,
    max_threads: usize,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    threads: usize,
    idle: usize,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        state: Mutex::new(State::default()),
        wake: Condvar::new(),
        max_threads: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// Runs `work` on one of the threads, in the order of the calls; starts when called, not when polled.
/// Dropping the future does not stop it.
///
/// # Errors
/// What `work` says; `Closed` if it panicked.
pub fn run<R: Send + 'static>(
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> impl Future<Output = Result<R>> + Send {
    let (send, receive) = oneshot::channel();
    pool().push(Box::new(move || {
        // Nobody listens if the request is gone.
        let _ = send.send(work());
    }));
    async move { receive.await.unwrap_or(Err(Error::Closed)) }
}

impl Pool {
    fn push(&'static self, task: Task) {
        let mut state = self.state.lock();
        state.tasks.push_back(task);
        if state.idle >= state.tasks.len() {
            self.wake.notify_one();
            return;
        }
        if state.threads >= self.max_threads {
            return;
        }
        state.threads += 1;
        drop(state);
        let thread = std::thread::Builder::new().name("block-cpu".to_owned());
        if thread.spawn(|| self.serve()).is_err() {
            self.do_without_a_thread();
        }
    }

    /// The system has no thread for us: the queue is worked off here, unless others do it.
    fn do_without_a_thread(&self) {
        let tasks = {
            let mut state = self.state.lock();
            state.threads -= 1;
            if state.threads > 0 {
                return;
            }
            std::mem::take(&mut state.tasks)
        };
        tasks.into_iter().for_each(do_it);
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                drop(state);
                do_it(task);
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.tasks.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// A panic is reported by the hook, and to the caller by the missing result; the thread goes on.
fn do_it(task: Task) {
    drop(std::panic::catch_unwind(AssertUnwindSafe(task)));
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::join_all;

    use super::*;

    #[test]
    fn every_task_runs_and_answers() {
        let all = (0..500u32).map(|n| run(move || Ok(n * 2)));
        let answers = block_on(join_all(all.collect::<Vec<_>>()));
        for (n, answer) in (0..).zip(answers) {
            assert_eq!(answer, Ok(n * 2));
        }
        let state = pool().state.lock();
        assert!(state.threads <= pool().max_threads);
    }

    #[test]
    fn a_task_that_nobody_awaits_is_no_trouble() {
        drop(run(|| Ok(1)));
        assert_eq!(block_on(run(|| Ok(2))), Ok(2));
    }

    #[test]
    fn a_task_that_panics_fails_and_its_thread_goes_on() {
        for _ in 0..=pool().max_threads {
            let panics = run(|| -> Result<()> { panic!("this is part of the test") });
            assert_eq!(block_on(panics), Err(Error::Closed));
        }
        assert_eq!(block_on(run(|| Ok(2))), Ok(2));
    }
}
