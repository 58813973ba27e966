//! An executor for tools, and the place where requests go that nobody polls any more.
//!
//! [`block_on`] runs a future on the calling thread, which sleeps where the I/O of its requests
//! completes, so that no other thread is involved. [`spawn_detached`] is how a request whose caller
//! has gone away runs to its end: on the thread's current spawner ([`enter`]), else on one background
//! thread shared by all.
//!
//! A task that wakes itself gives way to the future of [`block_on`] and to all tasks that are ready.
//!
//! Invariants: a task is in at most one queue; a task given to [`spawn_detached`] is polled until it
//! is done, whatever becomes of the executor that took it; there is at most one background thread.
//!
//! What is not here: work stealing, timers, join handles.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::park::Parker;
use super::thread::Entered;

/// Where a thread's detached tasks go.
pub trait Spawn: Send + Sync {
    /// Polls `task` to its end, now or later, on any thread.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// Makes `spawner` the current one of this thread until the guard is dropped.
pub fn enter(spawner: Arc<dyn Spawn>) -> EnterGuard {
    let before = CURRENT.with(|current| current.replace(Some(spawner)));
    EnterGuard { before, _this_thread: PhantomData }
}

/// Puts back the spawner that was current before [`enter`]. Guards are dropped in reverse order.
#[must_use = "the spawner is current only while the guard lives"]
pub struct EnterGuard {
    before: Option<Arc<dyn Spawn>>,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for EnterGuard {
    fn drop(&mut self) {
        let before = self.before.take();
        // While the thread ends there is no current spawner to put back.
        let after = CURRENT.try_with(|current| current.replace(before));
        drop(after);
    }
}

/// Runs `task` to its end without anybody waiting for it: on the current spawner of this thread, or
/// on the background thread, which is started when it is first needed.
pub fn spawn_detached(task: BoxFuture<'static, ()>) {
    let current = CURRENT.try_with(|current| current.borrow().clone());
    match current {
        Ok(Some(spawner)) => spawner.spawn(task),
        _ => push_to_background(Task::new(task, Arc::clone(&background().executor))),
    }
}

/// A future that is run as a whole: see [`to_the_end`].
#[must_use = "nothing is done before it is polled"]
pub struct ToTheEnd<T: Send + 'static> {
    future: BoxFuture<'static, T>,
    /// It was polled, and is not done.
    running: bool,
}

/// Runs `future` to its end once it was polled, as a request is: if what is returned is dropped, the rest
/// runs detached ([`spawn_detached`]), and its result is lost.
///
/// For changes of several steps that must not stop in between.
pub fn to_the_end<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> ToTheEnd<T> {
    ToTheEnd { future: Box::pin(future), running: false }
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Not while it is polled: one that panics has nothing left to run.
        self.running = false;
        let polled = self.future.as_mut().poll(cx);
        self.running = polled.is_pending();
        polled
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        if self.running {
            let nothing = Box::pin(std::future::pending());
            let rest = std::mem::replace(&mut self.future, nothing);
            spawn_detached(Box::pin(async move { drop(rest.await) }));
        }
    }
}

/// Runs `future` to its end on this thread, together with the tasks that it detaches.
///
/// Tasks that are not done when `future` is move to the background thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let thread = Entered::new();
    let executor = Executor::new(Arc::clone(thread.parker()));
    let _entered = enter(executor.clone());
    let _closing = CloseOnDrop(&executor);
    let mut future = pin!(future);
    let main =
        Arc::new(MainWaker { woken: AtomicBool::new(true), parker: Arc::clone(&executor.parker) });
    let waker = Waker::from(Arc::clone(&main));
    let mut context = Context::from_waker(&waker);
    loop {
        if main.woken.swap(false, Ordering::AcqRel)
            && let Poll::Ready(output) = future.as_mut().poll(&mut context)
        {
            return output;
        }
        executor.run_ready();
        thread.notice();
        if executor.has_ready() || main.woken.load(Ordering::Acquire) {
            thread.tick();
        } else {
            thread.sleep();
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Spawn>>> = const { RefCell::new(None) };
    /// This thread does what the background thread should, which it could not start.
    static STANDING_IN: Cell<bool> = const { Cell::new(false) };
}

/// Most tasks polled before the executor looks at anything else.
const BATCH: usize = 64;

/// Tasks that are ready, and where their thread sleeps.
struct Executor {
    /// Guards the queue; innermost, nothing is called under it.
    queue: Mutex<Queue>,
    parker: Arc<Parker>,
    /// Itself, for the tasks that come home to it.
    this: Weak<Self>,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Task>>,
    /// The thread has gone; what is ready goes to the background thread.
    closed: bool,
}

impl Executor {
    fn new(parker: Arc<Parker>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { queue: Mutex::default(), parker, this: this.clone() })
    }

    /// Queues `task` here, or on the background thread once this one is closed.
    fn push(&self, task: Arc<Task>) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            push_to_background(task);
        } else {
            queue.ready.push_back(task);
            drop(queue);
            self.parker.unpark();
        }
    }

    /// Queues `task` here, whatever `closed` says.
    fn push_anyway(&self, task: Arc<Task>) {
        self.queue.lock().ready.push_back(task);
        self.parker.unpark();
    }

    /// Polls the tasks that are ready now, each once.
    fn run_ready(&self) {
        let ready = self.queue.lock().ready.len().min(BATCH);
        for _ in 0..ready {
            let task = self.queue.lock().ready.pop_front();
            match task {
                Some(task) => task.run(),
                None => return,
            }
        }
    }

    fn has_ready(&self) -> bool {
        !self.queue.lock().ready.is_empty()
    }

    /// Sends what is ready, now and later, to the background thread.
    fn close(&self) {
        let ready = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.ready)
        };
        ready.into_iter().for_each(push_to_background);
    }
}

impl Spawn for Executor {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        if let Some(home) = self.this.upgrade() {
            self.push(Task::new(future, home));
        }
    }
}

struct CloseOnDrop<'a>(&'a Executor);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct MainWaker {
    woken: AtomicBool,
    parker: Arc<Parker>,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.parker.unpark();
        }
    }
}

/// A detached future; the `Arc` is its waker.
struct Task {
    /// `None` when done. Locked while it is polled, by the only thread that has it from a queue.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    /// Whether it is in a queue.
    queued: AtomicBool,
    home: Arc<Executor>,
}

impl Task {
    fn new(future: BoxFuture<'static, ()>, home: Arc<Executor>) -> Arc<Self> {
        Arc::new(Self { future: Mutex::new(Some(future)), queued: AtomicBool::new(true), home })
    }

    fn run(self: Arc<Self>) {
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self));
        let mut slot = self.future.lock();
        let Some(future) = slot.as_mut() else {
            return;
        };
        let mut context = Context::from_waker(&waker);
        // A task that panics is done; the others are not to suffer for it. The hook has reported it.
        let polled =
            std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        if !matches!(polled, Ok(Poll::Pending)) {
            *slot = None;
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let home = Arc::clone(&self.home);
            home.push(self);
        }
    }
}

/// The executor that takes over what others leave behind, and whether it has its thread.
///
/// Invariant: its queue is closed from the start, so that every wake comes by
/// [`push_to_background`], which sees to the thread.
struct Background {
    executor: Arc<Executor>,
    /// Guards the starting of the thread.
    running: Mutex<bool>,
}

impl Background {
    /// Starts the thread, unless it runs or the system refuses it; whether it runs.
    fn has_thread(&self) -> bool {
        let mut running = self.running.lock();
        if !*running {
            let executor = Arc::clone(&self.executor);
            let thread = std::thread::Builder::new().name("block-detached".to_owned());
            *running = thread.spawn(move || run_forever(&executor)).is_ok();
        }
        *running
    }
}

fn background() -> &'static Background {
    static BACKGROUND: OnceLock<Background> = OnceLock::new();
    BACKGROUND.get_or_init(|| {
        let executor = Executor::new(Arc::default());
        executor.queue.lock().closed = true;
        Background { executor, running: Mutex::new(false) }
    })
}

/// Queues `task` on the background thread. Where the system is out of threads, whoever wakes a task polls
/// it, and tries again to start one.
fn push_to_background(task: Arc<Task>) {
    let background = background();
    background.executor.push_anyway(task);
    // A task that is woken while this thread polls one, by itself perhaps, is polled after that one.
    let polls_already = STANDING_IN.with(|standing_in| standing_in.replace(true));
    if polls_already {
        return;
    }
    while background.executor.has_ready() && !background.has_thread() {
        background.executor.run_ready();
    }
    STANDING_IN.with(|standing_in| standing_in.set(false));
}

fn run_forever(executor: &Arc<Executor>) {
    let thread = Entered::at(Arc::clone(&executor.parker));
    let _entered = enter(executor.clone());
    loop {
        executor.run_ready();
        thread.notice();
        if executor.has_ready() {
            thread.tick();
        } else {
            thread.sleep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A future that is done when `gate` is sent something; counts its polls.
    fn gated(
        gate: futures::channel::oneshot::Receiver<u32>,
        done: mpsc::Sender<u32>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let value = gate.await.unwrap();
            done.send(value).unwrap();
        })
    }

    #[test]
    fn a_wake_from_another_thread_ends_the_sleep() {
        let (tx, rx) = futures::channel::oneshot::channel();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            tx.send(7).unwrap();
        });
        assert_eq!(block_on(rx), Ok(7));
        thread.join().unwrap();
    }

    #[test]
    fn detached_tasks_run_beside_the_main_future() {
        let (tx, rx) = futures::channel::oneshot::channel();
        let answer = block_on(async move {
            spawn_detached(Box::pin(async move { tx.send(3).unwrap() }));
            rx.await
        });
        assert_eq!(answer, Ok(3));
    }

    #[test]
    fn what_block_on_leaves_behind_runs_to_its_end() {
        let (tx, rx) = futures::channel::oneshot::channel();
        let (done_tx, done_rx) = mpsc::channel();
        block_on(async { spawn_detached(gated(rx, done_tx)) });
        assert!(done_rx.recv_timeout(Duration::from_millis(10)).is_err());
        tx.send(5).unwrap();
        assert_eq!(done_rx.recv_timeout(Duration::from_secs(10)), Ok(5));
    }

    #[test]
    fn without_a_spawner_the_background_thread_takes_it() {
        let (done_tx, done_rx) = mpsc::channel();
        let mut gates = Vec::new();
        for _ in 0..100 {
            let (tx, rx) = futures::channel::oneshot::channel();
            spawn_detached(gated(rx, done_tx.clone()));
            gates.push(tx);
        }
        for (gate, i) in gates.into_iter().zip(0..) {
            gate.send(i).unwrap();
        }
        let mut seen: Vec<u32> = done_rx.iter().take(100).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_panicking_task_hurts_no_other() {
        let (done_tx, done_rx) = mpsc::channel();
        spawn_detached(Box::pin(async { panic!("this panic is part of the test") }));
        spawn_detached(Box::pin(async move { done_tx.send(1).unwrap() }));
        assert_eq!(done_rx.recv_timeout(Duration::from_secs(10)), Ok(1));
    }

    #[test]
    fn the_spawner_entered_last_is_current_until_its_guard_drops() {
        struct Count(std::sync::atomic::AtomicU32);
        impl Spawn for Count {
            fn spawn(&self, _: BoxFuture<'static, ()>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (outer, inner) = (Arc::new(Count(0.into())), Arc::new(Count(0.into())));
        let _outer = enter(outer.clone());
        {
            let _inner = enter(inner.clone());
            spawn_detached(Box::pin(async {}));
        }
        spawn_detached(Box::pin(async {}));
        spawn_detached(Box::pin(async {}));
        assert_eq!(inner.0.load(Ordering::Relaxed), 1);
        assert_eq!(outer.0.load(Ordering::Relaxed), 2);
    }
}
