//! A deterministic executor: a seed decides which ready task is polled next, time is virtual, and a
//! deadlock is a test failure.
//!
//! [`Exec::run`] polls one main future and every task that it spawns, on the calling thread. Nothing
//! here looks at the clock, so one seed gives one order of polls. Time passes only when no task is
//! ready: then the clock jumps to the next timer.
//!
//! A driver may have threads of its own (to inflate clusters). Where no task is ready and no timer is
//! set, the executor gives them a moment to wake somebody before it says that nobody can go on; what
//! they wake comes in the order in which they do.
//!
//! The executor is the thread's current spawner while it runs, so a request that a task dropped is a
//! task of this executor too. Such tasks inherit the *label* of the task that dropped them, which
//! says on whose behalf a driver is called ([`current_label`]).
//!
//! **Invariant:** `run` returns only when every task is done. Tasks that wait for something that
//! cannot happen any more are a [`Stuck`], with their names and the seed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use block_core::io::exec::{EnterGuard, Spawn, enter};
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt};
use parking_lot::{Condvar, Mutex};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Polls after which a run is taken to go on for ever.
const MOST_POLLS: u64 = 20_000_000;

/// One poll in this many goes to a task that nobody woke, because futures must bear that.
const SPURIOUS: u32 = 32;

/// How long other threads may take before a run is stuck.
const PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static LABEL: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The label of the task that this thread is polling, if it has one.
pub fn current_label() -> Option<u64> {
    LABEL.get()
}

/// A handle on the executor; clones are handles on the same one.
#[derive(Clone)]
pub struct Exec {
    shared: Arc<Shared>,
}

/// The run cannot go on: nobody is ready and no timer is set, or it never ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// Reproduces it.
    pub seed: u64,
    /// Names of the tasks that are not done, in the order in which they were spawned.
    pub pending: Vec<String>,
    /// Polls that were made.
    pub polls: u64,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, pending, polls } = self;
        let what = if *polls < MOST_POLLS { "deadlock" } else { "no end" };
        write!(f, "{what} after {polls} polls, seed {seed}; not done: {}", pending.join(", "))
    }
}

/// The result of a spawned task; a future. Dropping it leaves the task running.
pub struct JoinHandle<T> {
    result: oneshot::Receiver<T>,
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    /// # Panics
    /// If the task panicked.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.result.poll_unpin(cx).map(|result| match result {
            Ok(value) => value,
            Err(oneshot::Canceled) => panic!("the task was dropped before it was done"),
        })
    }
}

struct Shared {
    seed: u64,
    /// Guards everything; not held while a task is polled or a waker runs.
    state: Mutex<State>,
    /// A task became ready.
    woken: Condvar,
}

struct State {
    rng: ChaCha8Rng,
    next_id: u64,
    tasks: BTreeMap<u64, Task>,
    ready: Vec<u64>,
    now: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    polls: u64,
}

struct Task {
    name: String,
    label: Option<u64>,
    /// `None` while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

struct TaskWaker {
    id: u64,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.shared.state.lock();
        if state.tasks.contains_key(&self.id) && !state.ready.contains(&self.id) {
            state.ready.push(self.id);
            self.shared.woken.notify_one();
        }
    }
}

impl Exec {
    /// An executor whose order of polls is chosen by `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: ChaCha8Rng::seed_from_u64(seed),
            next_id: 0,
            tasks: BTreeMap::new(),
            ready: Vec::new(),
            now: Duration::ZERO,
            timers: BTreeMap::new(),
            next_timer: 0,
            polls: 0,
        };
        let (state, woken) = (Mutex::new(state), Condvar::new());
        Self { shared: Arc::new(Shared { seed, state, woken }) }
    }

    /// Runs the future that `main` makes, and everything that it spawns, to the end.
    ///
    /// # Panics
    /// With the seed and the names of the pending tasks, if that is not possible.
    pub fn run<T, F>(seed: u64, main: impl FnOnce(Self) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        match Self::try_run(seed, main) {
            Ok(value) => value,
            Err(stuck) => panic!("{stuck}"),
        }
    }

    /// [`Exec::run`] with the failure as a value, for tests that expect it.
    pub fn try_run<T, F>(seed: u64, main: impl FnOnce(Self) -> F) -> Result<T, Stuck>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let exec = Self::new(seed);
        let spawner = Detached { shared: Arc::clone(&exec.shared) };
        let _entered: EnterGuard = enter(Arc::new(spawner));
        let _clear = ClearOnDrop(Arc::clone(&exec.shared));
        let mut result = exec.spawn("main", main(exec.clone()));
        exec.run_all()?;
        match result.result.try_recv() {
            Ok(Some(value)) => Ok(value),
            _ => Err(exec.stuck()),
        }
    }

    /// Adds a task. `name` is shown where it gets stuck.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_with(name.into(), current_label(), future)
    }

    /// [`Exec::spawn`] on behalf of `label`.
    pub fn spawn_labelled<T: Send + 'static>(
        &self,
        label: u64,
        name: impl Into<String>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_with(name.into(), Some(label), future)
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.shared.state.lock().now
    }

    /// Ends when the virtual clock has moved on by `time`.
    pub async fn sleep(&self, time: Duration) {
        let until = self.now() + time;
        std::future::poll_fn(|cx| {
            let mut state = self.shared.state.lock();
            if state.now >= until {
                return Poll::Ready(());
            }
            let number = state.next_timer;
            state.next_timer += 1;
            state.timers.insert((until, number), cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A number below `bound`, from the seed.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn random(&self, bound: u64) -> u64 {
        self.shared.state.lock().rng.random_range(0..bound)
    }

    fn spawn_with<T: Send + 'static>(
        &self,
        name: String,
        label: Option<u64>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let (sender, result) = oneshot::channel();
        let task = async move {
            // Nobody may be interested any more.
            let _ = sender.send(future.await);
        };
        self.shared.add(name, label, Box::pin(task));
        JoinHandle { result }
    }

    /// Polls ready tasks until none is left at all.
    fn run_all(&self) -> Result<(), Stuck> {
        loop {
            let next = self.shared.state.lock().next_task();
            match next {
                Next::Poll(id) => self.shared.poll(id),
                Next::Timer(waker) => waker.wake(),
                Next::Done => return Ok(()),
                Next::Stuck if self.woken_from_outside() => {}
                Next::Stuck => return Err(self.stuck()),
            }
        }
    }

    /// Whether a thread wakes a task within [`PATIENCE`].
    fn woken_from_outside(&self) -> bool {
        let mut state = self.shared.state.lock();
        if state.polls >= MOST_POLLS {
            return false;
        }
        let nobody = |state: &mut State| state.ready.is_empty();
        !self.shared.woken.wait_while_for(&mut state, nobody, PATIENCE).timed_out()
    }

    fn stuck(&self) -> Stuck {
        let state = self.shared.state.lock();
        let pending = state.tasks.values().map(|task| task.name.clone()).collect();
        Stuck { seed: self.shared.seed, pending, polls: state.polls }
    }
}

/// Gives the thread's other tasks a turn: pending once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls `future` at most `times` times, yielding in between; `None` if it is still not done. It is
/// then dropped: a request is thereby detached in the middle.
pub async fn poll_times<F: Future + Unpin>(mut future: F, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        let poll = std::future::poll_fn(|cx| Poll::Ready(future.poll_unpin(cx))).await;
        if let Poll::Ready(output) = poll {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

enum Next {
    Poll(u64),
    Timer(Waker),
    Done,
    Stuck,
}

impl State {
    fn next_task(&mut self) -> Next {
        if self.polls >= MOST_POLLS {
            return Next::Stuck;
        }
        self.polls += 1;
        if self.ready.is_empty() {
            return match self.timers.pop_first() {
                Some(((at, _), waker)) => {
                    self.now = at;
                    Next::Timer(waker)
                }
                None if self.tasks.is_empty() => Next::Done,
                None => Next::Stuck,
            };
        }
        if self.rng.random_range(0..SPURIOUS) == 0 {
            let at = self.rng.random_range(0..self.tasks.len());
            if let Some(id) = self.tasks.keys().nth(at) {
                return Next::Poll(*id);
            }
        }
        let at = self.rng.random_range(0..self.ready.len());
        Next::Poll(self.ready.swap_remove(at))
    }
}

impl Shared {
    fn add(&self, name: String, label: Option<u64>, future: BoxFuture<'static, ()>) {
        let mut state = self.state.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.tasks.insert(id, Task { name, label, future: Some(future) });
        state.ready.push(id);
    }

    fn poll(self: &Arc<Self>, id: u64) {
        let (mut future, label) = {
            let mut state = self.state.lock();
            let Some(task) = state.tasks.get_mut(&id) else { return };
            let Some(future) = task.future.take() else { return };
            (future, task.label)
        };
        let waker = Waker::from(Arc::new(TaskWaker { id, shared: Arc::clone(self) }));
        let labelled = Labelled(LABEL.replace(label));
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if done {
            // What it drops may detach requests, which are its own.
            drop(future);
            drop(labelled);
            let mut state = self.state.lock();
            state.ready.retain(|ready| *ready != id);
            let task = state.tasks.remove(&id);
            drop(state);
            drop(task);
        } else {
            drop(labelled);
            if let Some(task) = self.state.lock().tasks.get_mut(&id) {
                task.future = Some(future);
            }
        }
    }
}

/// Puts the label before back, also when a poll panics: the test may go on with another run.
struct Labelled(Option<u64>);

impl Drop for Labelled {
    fn drop(&mut self) {
        LABEL.set(self.0);
    }
}

/// Takes the tasks that are detached while the executor runs.
struct Detached {
    shared: Arc<Shared>,
}

impl Spawn for Detached {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.shared.add("detached request".to_owned(), current_label(), task);
    }
}

/// Drops what a stuck run leaves behind, so that tasks and executor do not keep each other alive.
struct ClearOnDrop(Arc<Shared>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        // Dropping a task may detach requests, which come back as tasks: these are dropped too, a
        // bounded number of times, since they were polled and will not all end.
        for _ in 0..8 {
            let tasks = std::mem::take(&mut self.0.state.lock().tasks);
            if tasks.is_empty() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order in which three tasks that yield five times run.
    fn order(seed: u64) -> Vec<usize> {
        Exec::run(seed, |exec| async move {
            let log = Arc::new(Mutex::new(Vec::new()));
            let tasks = (0..3).map(|n| {
                let log = Arc::clone(&log);
                exec.spawn(format!("task {n}"), async move {
                    for _ in 0..5 {
                        log.lock().push(n);
                        yield_now().await;
                    }
                })
            });
            futures::future::join_all(tasks.collect::<Vec<_>>()).await;
            log.lock().clone()
        })
    }

    #[test]
    fn a_seed_gives_one_order_and_other_seeds_give_others() {
        assert_eq!(order(7), order(7));
        let orders: std::collections::BTreeSet<_> = (0..20).map(order).collect();
        assert!(orders.len() > 10);
    }

    #[test]
    fn a_deadlock_is_found_and_says_who_waits() {
        let stuck = Exec::try_run(3, |exec| async move {
            let (first_tx, first) = oneshot::channel::<()>();
            let (second_tx, second) = oneshot::channel::<()>();
            let a = exec.spawn("a", async move {
                let _ = first.await;
                let _ = second_tx.send(());
            });
            let b = exec.spawn("b", async move {
                let _ = second.await;
                let _ = first_tx.send(());
            });
            a.await;
            b.await;
        })
        .unwrap_err();
        assert_eq!(stuck.pending, ["main", "a", "b"]);
        assert!(stuck.to_string().contains("seed 3"));
    }

    #[test]
    fn a_task_that_outlives_main_is_run_to_its_end() {
        let done = Arc::new(Mutex::new(false));
        let seen = Arc::clone(&done);
        Exec::run(1, |exec| async move {
            drop(exec.spawn("slow", {
                let exec = exec.clone();
                async move {
                    exec.sleep(Duration::from_secs(3600)).await;
                    *seen.lock() = true;
                }
            }));
        });
        assert!(*done.lock());
    }

    #[test]
    fn timers_end_in_the_order_of_their_times() {
        let order = Exec::run(11, |exec| async move {
            let log = Arc::new(Mutex::new(Vec::new()));
            for seconds in [30, 10, 20] {
                let (log, sleeper) = (Arc::clone(&log), exec.clone());
                drop(exec.spawn("sleeper", async move {
                    sleeper.sleep(Duration::from_secs(seconds)).await;
                    log.lock().push(sleeper.now().as_secs());
                }));
            }
            exec.sleep(Duration::from_secs(60)).await;
            log.lock().clone()
        });
        assert_eq!(order, [10, 20, 30]);
    }

    #[test]
    fn a_detached_request_is_a_task_with_the_label_of_its_owner() {
        let label = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&label);
        Exec::run(5, |exec| async move {
            let task = exec.spawn_labelled(42, "owner", async move {
                block_core::io::exec::spawn_detached(Box::pin(async move {
                    yield_now().await;
                    *seen.lock() = current_label();
                }));
            });
            task.await;
        });
        assert_eq!(*label.lock(), Some(42));
        assert_eq!(current_label(), None);
    }

    #[test]
    fn a_run_that_panics_leaves_no_label_behind() {
        let result = std::panic::catch_unwind(|| {
            Exec::run(5, |exec| async move {
                exec.spawn_labelled(7, "fails", async { panic!("on purpose") }).await
            })
        });
        assert!(result.is_err());
        assert_eq!(current_label(), None);
    }

    #[test]
    fn poll_times_drops_what_is_not_done() {
        Exec::run(5, |_| async move {
            assert!(poll_times(Box::pin(futures::future::pending::<()>()), 3).await.is_none());
            assert_eq!(poll_times(Box::pin(async { 9 }), 1).await, Some(9));
        });
    }
}
