//! A small pool of threads for calls that block, where io_uring is refused or has no such call.
//!
//! Invariants: at most [`MAX_THREADS`] threads, none before the first call; a thread without work
//! for [`IDLE`] ends; a call that was queued runs even if nobody waits for its result; everything a
//! call owns is dropped or handed back before its result can be seen.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::channel::oneshot;
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// Most threads.
const MAX_THREADS: usize = 16;

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Runs `work` on the pool. Queued by the call itself, not by the first poll; dropping the future
/// does not stop it.
pub(crate) fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let (sender, receiver) = oneshot::channel();
    POOL.push(Box::new(move || {
        let result = work();
        // Nobody may be waiting any more.
        drop(sender.send(result));
    }));
    // The sender is dropped without a result only if the work panicked.
    async move { receiver.await.unwrap_or(Err(Error::Closed)) }
}

type Work = Box<dyn FnOnce() + Send>;

static POOL: Pool = Pool {
    state: Mutex::new(State { queue: VecDeque::new(), threads: 0, idle: 0 }),
    wake: Condvar::new(),
};

struct Pool {
    /// Guards the queue and the counts; no work runs under it.
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    queue: VecDeque<Work>,
    threads: usize,
    /// Threads that wait or were just woken; each takes the head of the queue when it runs.
    idle: usize,
}

impl Pool {
    fn push(&'static self, work: Work) {
        let mut state = self.state.lock();
        state.queue.push_back(work);
        if state.queue.len() <= state.idle {
            self.wake.notify_one();
            return;
        }
        if state.threads == MAX_THREADS {
            return;
        }
        let started =
            std::thread::Builder::new().name("block-pool".to_owned()).spawn(|| self.serve());
        match started {
            Ok(_) => state.threads += 1,
            // Out of threads: those there are will come to it; without any it is done here.
            Err(_) if state.threads > 0 => {}
            Err(_) => {
                let work = state.queue.pop_back();
                drop(state);
                if let Some(work) = work {
                    work();
                }
            }
        }
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some(work) = state.queue.pop_front() {
                drop(state);
                // A panic is reported by the hook, and to the caller by the missing result.
                drop(std::panic::catch_unwind(AssertUnwindSafe(work)));
                state = self.state.lock();
            }
            state.idle += 1;
            let timed_out = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::sync::mpsc;

    #[test]
    fn calls_run_beside_each_other_on_a_bounded_number_of_threads() {
        let (tx, rx) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let calls: Vec<_> = (0..100)
            .map(|i| {
                let (tx, gate) = (tx.clone(), Arc::clone(&gate));
                run(move || {
                    tx.send(std::thread::current().id()).unwrap();
                    let mut open = gate.0.lock();
                    while !*open {
                        gate.1.wait(&mut open);
                    }
                    Ok(i)
                })
            })
            .collect();
        let running: HashSet<_> = rx.iter().take(2).collect();
        assert_eq!(running.len(), 2, "two calls must run at once");
        *gate.0.lock() = true;
        gate.1.notify_all();
        let results = futures::executor::block_on(futures::future::join_all(calls));
        assert_eq!(results, (0..100).map(Ok).collect::<Vec<_>>());
        drop(tx);
        let all: HashSet<_> = rx.iter().chain(running).collect();
        assert!(all.len() <= MAX_THREADS);
    }

    #[test]
    fn a_dropped_call_still_runs() {
        let (tx, rx) = mpsc::channel();
        drop(run(move || {
            tx.send(1).unwrap();
            Ok(())
        }));
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)), Ok(1));
    }

    #[test]
    fn a_panicking_call_fails_and_the_pool_goes_on() {
        let panicked = run(|| -> Result<()> { panic!("this panic is part of the test") });
        assert_eq!(futures::executor::block_on(panicked), Err(Error::Closed));
        assert_eq!(futures::executor::block_on(run(|| Ok(2))), Ok(2));
    }
}
