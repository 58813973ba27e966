//! io_uring: one ring of each thread that runs [`block_on`](super::exec::block_on), and one that all
//! other threads share.
//!
//! * A *thread's ring* is entered by its thread only, when it sleeps or has polled a batch of tasks:
//!   all operations queued meanwhile go down in one system call, and completions are reaped by the
//!   thread itself, so that nothing hops between threads.
//! * The *shared ring* serves futures polled by foreign executors: who queues an operation submits
//!   it, and a reaper thread, started with the ring, waits for completions and wakes the tasks.
//!
//! An [`Op`] moves bytes and ends by itself. A [`Wait`] may last for ever: it is given up when nobody
//! waits any more, and when the scope of the thread ends whose ring it is in.
//!
//! Invariants: what an entry points at stays in its slot from before the kernel hears of it until after
//! it was completed, whatever becomes of the future; at most [`MAX_IN_KERNEL`] operations are in the
//! kernel, so their completions always have room, and the rest waits in `backlog`; waits do not count,
//! so that they never keep an operation waiting (a completion that finds no room waits in the
//! kernel); `in_flight` counts all of them.

#[cfg_attr(not(feature = "net"), allow(dead_code, reason = "only sockets and timers wait"))]
mod wait;

use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use parking_lot::Mutex;
use smallvec::SmallVec;
pub(super) use wait::Wait;
#[cfg(feature = "net")]
pub(super) use wait::Waiting;

use super::op::Op;
use super::park::Parker;
use crate::error::{Error, Result};
use crate::range::{to_u64, to_usize};

/// Entries of the submission queue.
const SQ_ENTRIES: u32 = 256;

/// Entries of the completion queue.
const CQ_ENTRIES: u32 = 1024;

/// Most operations in the kernel: one completion is kept free for the wake-up poll.
const MAX_IN_KERNEL: usize = 1000;

/// `user_data` of the poll that wakes a sleeping thread; operations use their slot's index.
const WAKE: u64 = u64::MAX;

/// An io_uring and the operations in it.
pub(super) struct Ring {
    io: IoUring,
    /// Guards the submission queue, the completion queue and the slots. Innermost but for the
    /// kernel: no waker is called and nothing of the user's is dropped under it.
    state: Mutex<State>,
    /// Whether those who queue operations submit them, too.
    shared: bool,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose operations found no room, oldest first.
    backlog: VecDeque<usize>,
    /// Operations pushed to the submission queue and not completed.
    in_kernel: usize,
    /// The same of waits.
    waits_in_kernel: usize,
    /// Whether the poll of the wake-up descriptor is pending.
    wake_armed: bool,
}

struct Slot {
    work: Option<Work>,
    stage: Stage,
}

enum Work {
    Move(Op),
    Wait(Wait),
}

impl Work {
    fn entry(&self) -> squeue::Entry {
        match self {
            Self::Move(op) => op.entry(),
            Self::Wait(wait) => wait.entry(),
        }
    }
}

enum Stage {
    Free,
    /// Queued or in the kernel; who wants to know.
    Waiting(Waker),
    /// As above, but nobody wants to know.
    Abandoned,
    /// Completed with this result; the future will take the operation back.
    Done(i32),
}

/// Whether this system has io_uring with the operations needed here.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| probe().unwrap_or(false))
}

/// The ring that all threads share; `None` where io_uring or its thread is refused.
pub(super) fn shared() -> Option<Arc<Ring>> {
    static SHARED: OnceLock<Option<Arc<Ring>>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let ring = Arc::new(Ring::new(&mut IoUring::builder(), true)?);
        let reaped = Arc::clone(&ring);
        std::thread::Builder::new()
            .name("block-reaper".to_owned())
            .spawn(move || {
                loop {
                    reaped.enter_and_reap(1, || ());
                }
            })
            .ok()?;
        Some(ring)
    });
    shared.clone()
}

/// Tries the system calls themselves: a filter may allow one and refuse the other.
fn probe() -> std::io::Result<bool> {
    let mut ring = IoUring::new(4)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::Timeout::CODE,
        opcode::AsyncCancel::CODE,
    ];
    let supported = needed.iter().all(|code| probe.is_supported(*code));
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-op refers to no memory.
    let pushed = unsafe { ring.submission().push(&nop) };
    ring.submit_and_wait(1)?;
    Ok(supported && pushed.is_ok() && ring.completion().next().is_some())
}

impl Ring {
    /// A ring for the calling thread alone.
    pub(super) fn for_this_thread() -> Option<Arc<Self>> {
        let mut deferred = IoUring::builder();
        // Completions are only worked on when the thread asks for them: fewer interruptions. Refused
        // by kernels before 6.1.
        deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let ring = Self::new(&mut deferred, false)
            .or_else(|| Self::new(&mut IoUring::builder(), false))?;
        Some(Arc::new(ring))
    }

    fn new(builder: &mut io_uring::Builder, shared: bool) -> Option<Self> {
        if !is_available() {
            return None;
        }
        let io = builder.setup_cqsize(CQ_ENTRIES).dontfork().build(SQ_ENTRIES);
        Some(Self { io: io.ok()?, state: Mutex::default(), shared })
    }

    /// Runs `op` in this ring. The future does nothing until polled, and must first be polled by a
    /// thread that may enter the ring; later polls, and the drop, may happen anywhere.
    pub(super) fn run(self: Arc<Self>, op: Op) -> Running {
        Running { ring: self, progress: Progress::New(op) }
    }

    /// Sleeps until an operation completes or `parker` is woken. For a thread's ring.
    pub(super) fn sleep(&self, parker: &Parker) {
        let armed = self.arm(parker);
        let woken = if armed && parker.begin() {
            self.enter_and_reap(1, || parker.end())
        } else {
            self.enter_and_reap(0, || ())
        };
        if woken {
            parker.clear_eventfd();
        }
    }

    /// Sees to it that a wake-up of `parker` completes something in this ring.
    fn arm(&self, parker: &Parker) -> bool {
        let Some(eventfd) = parker.eventfd() else {
            return false;
        };
        let mut state = self.state.lock();
        if !state.wake_armed {
            let poll = opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), POLLIN);
            // SAFETY: the lock is held; a poll refers to no memory.
            state.wake_armed = unsafe { self.push(&poll.build().user_data(WAKE)) };
        }
        state.wake_armed
    }

    /// Submits what is queued and reaps what has completed, without waiting.
    pub(super) fn tick(&self, parker: &Parker) {
        let (queued, completed) = {
            let _state = self.state.lock();
            // SAFETY: both queues are only touched under the lock, which is held.
            let (sq, cq) = unsafe { (self.io.submission_shared(), self.io.completion_shared()) };
            (!sq.is_empty() || sq.taskrun(), !cq.is_empty())
        };
        let woken = if queued { self.enter_and_reap(0, || ()) } else { completed && self.reap() };
        if woken {
            parker.clear_eventfd();
        }
    }

    /// Waits until every operation has completed, and ends every wait.
    pub(super) fn drain(&self) {
        let waits: Vec<usize> = {
            let slots = &self.state.lock().slots;
            let lasting = |slot: &Slot| matches!(&slot.work, Some(Work::Wait(wait)) if wait.cancels().is_none());
            (0..slots.len()).filter(|index| slots.get(*index).is_some_and(lasting)).collect()
        };
        for index in waits {
            self.start(Work::Wait(Wait::Cancel(index)), Stage::Abandoned);
        }
        while self.state.lock().in_flight() > 0 {
            // A wake-up that comes meanwhile stays in the eventfd until the next sleep.
            self.enter_and_reap(1, || ());
        }
    }

    /// Submits what is queued, waits for `want` completions, calls `awake`, reaps; whether the
    /// wake-up poll was among them.
    fn enter_and_reap(&self, want: usize, awake: impl FnOnce()) -> bool {
        if let Err(err) = self.io.submit_and_wait(want) {
            match err.raw_os_error() {
                // A signal, or completions that are to be reaped first.
                Some(libc::EINTR | libc::EBUSY) => {}
                // The kernel is short of memory: it will not stay so.
                _ => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
        awake();
        self.reap()
    }

    fn reap(&self) -> bool {
        let mut woken = false;
        let mut wakers: SmallVec<[Waker; 32]> = SmallVec::new();
        let mut abandoned: SmallVec<[Work; 2]> = SmallVec::new();
        {
            let mut state = self.state.lock();
            // SAFETY: the completion queue is only touched under the lock, which is held.
            for entry in unsafe { self.io.completion_shared() } {
                if entry.user_data() == WAKE {
                    state.wake_armed = false;
                    woken = true;
                } else {
                    state.complete(entry.user_data(), entry.result(), &mut wakers, &mut abandoned);
                }
            }
            self.refill(&mut state);
        }
        // May free guest memory and run other people's code.
        drop(abandoned);
        wakers.into_iter().for_each(Waker::wake);
        woken
    }

    /// Moves operations from the backlog to the submission queue.
    fn refill(&self, state: &mut State) {
        while state.has_room()
            && let Some(index) = state.backlog.pop_front()
        {
            if !self.push_slot(state, index) {
                state.backlog.push_front(index);
                return;
            }
        }
    }

    /// Puts `work` in a slot and queues it.
    fn start(&self, work: Work, stage: Stage) -> usize {
        let index = self.queue(&mut self.state.lock(), work, stage);
        self.submit_if_shared();
        index
    }

    /// The same without a submission.
    fn queue(&self, state: &mut State, work: Work, stage: Stage) -> usize {
        let behind = match &work {
            Work::Move(_) => !state.backlog.is_empty() || !state.has_room(),
            // Waits overtake operations, and a cancellation all but what it cancels.
            Work::Wait(wait) => wait.cancels().is_some_and(|it| state.backlog.contains(&it)),
        };
        let index = state.allocate(work, stage);
        if behind || !self.push_slot(state, index) {
            state.backlog.push_back(index);
        }
        index
    }

    fn submit_if_shared(&self) {
        if self.shared {
            self.submit();
        }
    }

    /// Queues the operation of a slot; `false` if the queue is full.
    fn push_slot(&self, state: &mut State, index: usize) -> bool {
        let Some(work) = &state.slots[index].work else {
            return true;
        };
        let waits = matches!(work, Work::Wait(_));
        let entry = work.entry().user_data(to_u64(index));
        // SAFETY: the entry points into memory owned by `work`, which stays in its slot until the
        // completion was reaped: `complete` and `take` are the only ones to take it out.
        let pushed = usize::from(unsafe { self.push(&entry) });
        *state.count_of(waits) += pushed;
        pushed == 1
    }

    /// Pushes to the submission queue, making room by a submission if it is full.
    ///
    /// # Safety
    /// The caller holds the lock of `state`, and what `entry` points at outlives the operation.
    unsafe fn push(&self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: the lock is held, so nobody else touches the queue; `entry` is valid by the
            // caller's promise.
            if unsafe { self.io.submission_shared().push(entry) }.is_ok() {
                return true;
            }
            self.submit();
        }
        false
    }

    /// Submits without waiting. An error leaves the operations queued: whoever enters the ring next
    /// submits them, and somebody does, since the queue is full or its reaper is about to be woken.
    fn submit(&self) {
        while let Err(err) = self.io.submit() {
            match err.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => std::thread::yield_now(),
                _ => return,
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if state.in_flight() > 0 {
            // The kernel may still write to their buffers: better to lose the memory than to reuse it.
            std::mem::forget(std::mem::take(&mut state.slots));
        }
    }
}

impl State {
    fn in_flight(&self) -> usize {
        self.in_kernel + self.waits_in_kernel + self.backlog.len()
    }

    fn has_room(&self) -> bool {
        self.in_kernel < MAX_IN_KERNEL
    }

    /// How many operations, or waits, the kernel has.
    fn count_of(&mut self, waits: bool) -> &mut usize {
        if waits { &mut self.waits_in_kernel } else { &mut self.in_kernel }
    }

    fn allocate(&mut self, work: Work, stage: Stage) -> usize {
        let slot = Slot { work: Some(work), stage };
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    fn complete(
        &mut self,
        user_data: u64,
        result: i32,
        wakers: &mut SmallVec<[Waker; 32]>,
        abandoned: &mut SmallVec<[Work; 2]>,
    ) {
        let index = to_usize(user_data);
        let waits = matches!(self.slots[index].work, Some(Work::Wait(_)));
        *self.count_of(waits) -= 1;
        let slot = &mut self.slots[index];
        match std::mem::replace(&mut slot.stage, Stage::Done(result)) {
            Stage::Waiting(waker) => wakers.push(waker),
            Stage::Abandoned => {
                abandoned.extend(slot.work.take());
                slot.stage = Stage::Free;
                self.free.push(index);
            }
            Stage::Free | Stage::Done(_) => {
                debug_assert!(false, "a completion of an operation that is not in flight");
            }
        }
    }

    /// Takes what has completed out of its slot, with its result.
    fn take(&mut self, index: usize) -> Option<(i32, Work)> {
        let slot = &mut self.slots[index];
        let Stage::Done(result) = slot.stage else {
            return None;
        };
        slot.stage = Stage::Free;
        let work = slot.work.take();
        self.free.push(index);
        work.map(|work| (result, work))
    }

    /// Nobody wants to know any more of what is in a slot.
    fn abandon(&mut self, index: usize) -> Before {
        match self.take(index) {
            Some((_, work)) => Before::Done { _work: work },
            None => {
                let stage = &mut self.slots[index].stage;
                Before::Waiting { _stage: std::mem::replace(stage, Stage::Abandoned) }
            }
        }
    }

    /// Says who is to be woken by what is in a slot; gives back who was before.
    fn set_waker(&mut self, index: usize, waker: &Waker) -> Option<Stage> {
        match &mut self.slots[index].stage {
            Stage::Waiting(before) if before.will_wake(waker) => None,
            stage => Some(std::mem::replace(stage, Stage::Waiting(waker.clone()))),
        }
    }
}

/// What was in a slot before it was abandoned. To be dropped outside of the lock.
enum Before {
    Done { _work: Work },
    Waiting { _stage: Stage },
}

/// An operation in a ring: a future of its result (bytes moved) and of the operation itself, whose
/// buffers nobody else holds any more.
///
/// Dropping it lets the operation run to its end, with its buffers kept alive.
#[must_use = "an operation does nothing until it is polled"]
pub(super) struct Running {
    ring: Arc<Ring>,
    progress: Progress,
}

enum Progress {
    New(Op),
    Started(usize),
    Ended,
}

impl Future for Running {
    type Output = (Result<usize>, Op);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.progress, Progress::Ended) {
            Progress::New(op) => {
                let waiting = Stage::Waiting(cx.waker().clone());
                let index = self.ring.start(Work::Move(op), waiting);
                self.progress = Progress::Started(index);
                Poll::Pending
            }
            Progress::Started(index) => {
                let mut state = self.ring.state.lock();
                if let Some((result, Work::Move(op))) = state.take(index) {
                    let result = usize::try_from(result).map_err(|_| Error::Os(-result));
                    return Poll::Ready((result, op));
                }
                let before = state.set_waker(index, cx.waker());
                drop(state);
                drop(before);
                self.progress = Progress::Started(index);
                Poll::Pending
            }
            // Polled after it was ready, which the contract of futures forbids.
            Progress::Ended => Poll::Pending,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Progress::Started(index) = self.progress {
            let mut state = self.ring.state.lock();
            let taken = state.abandon(index);
            drop(state);
            // Buffers and wakers are other people's code: not under the lock.
            drop(taken);
        }
    }
}

/// `POLLIN` as an operation takes it.
const POLLIN: u32 = 1;
