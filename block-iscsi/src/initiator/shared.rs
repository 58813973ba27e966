//! What the pump and those who wait for commands have in common.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::nexus::{NexusEvent, NexusListener, TaskError};
use crate::session::{Answer, Session, SessionError, SessionEvent, TaskId};
use crate::transport::Connector;

/// How long a session whose last owner is gone may take to end what it has begun.
const GOODBYE: Duration = Duration::from_secs(5);

/// Wakers that are called once the lock is free.
pub(super) type Wakers = SmallVec<[Waker; 32]>;

/// A session, who waits for what of it, and its connector.
pub(super) struct Shared {
    pub(super) connector: Arc<dyn Connector>,
    /// Guards the session. Nothing is called under it but the session, and wakers are only cloned.
    state: Mutex<State>,
    /// Guards the list; they are called without it.
    listeners: Mutex<Vec<NexusListener>>,
    /// The number of the session that all listeners have heard of. Written by the pump alone.
    session: AtomicU64,
}

/// What the lock guards.
pub(super) struct State {
    pub(super) session: Session,
    /// The task that is the pump, if it is to be woken when there is something to do.
    pump: Option<Waker>,
    /// Who waits for tasks, by [`TaskId::index`].
    waiters: Vec<Place>,
    stage: Stage,
    /// Who waits for the stage to change.
    watchers: Vec<Waker>,
    /// The owner is gone; when the session has to be, too.
    pub(super) goodbye: Option<Duration>,
}

/// What has happened, for the pump.
#[derive(Default)]
pub(super) struct Told {
    /// Somebody was woken.
    pub(super) woke: bool,
    /// The connection, or the attempt to make one, is no longer of use.
    pub(super) lost: bool,
}

/// Whether the session is there.
enum Stage {
    Opening,
    Opened,
    Ended(SessionError),
}

/// Who waits for a task. The task that the place is for now may be another one than the last event
/// about the place told of.
#[derive(Default)]
struct Place {
    id: Option<TaskId>,
    waiter: Waiter,
}

/// Somebody who waits for a task, or nobody.
#[derive(Default)]
enum Waiter {
    #[default]
    None,
    /// To be woken.
    Waiting(Waker),
    /// The task has ended, and what happened before that has been told.
    Told,
}

impl Shared {
    pub(super) fn new(session: Session, connector: Arc<dyn Connector>) -> Self {
        let state = State {
            session,
            pump: None,
            waiters: Vec::new(),
            stage: Stage::Opening,
            watchers: Vec::new(),
            goodbye: None,
        };
        let (state, listeners) = (Mutex::new(state), Mutex::default());
        Self { connector, state, listeners, session: AtomicU64::new(0) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn with_session<T>(&self, ask: impl FnOnce(&Session) -> T) -> T {
        ask(&self.lock().session)
    }

    /// Hands a task to the session. Its future gives the result.
    pub(super) fn submit(
        &self,
        submit: impl FnOnce(&mut Session, Duration) -> Result<TaskId, TaskError>,
    ) -> Result<Running<'_>, TaskError> {
        let now = self.connector.now();
        let (id, pump) = {
            let mut state = self.lock();
            if let Stage::Ended(_) = state.stage {
                return Err(TaskError::Ended);
            }
            let id = submit(&mut state.session, now)?;
            state.place(id).id = Some(id);
            (id, state.pump.take())
        };
        wake(pump);
        Ok(Running { shared: self, id: Some(id) })
    }

    /// Ends the session when nothing is open any more.
    pub(super) fn close(&self) {
        let now = self.connector.now();
        let pump = {
            let mut state = self.lock();
            state.session.close(now);
            state.pump.take()
        };
        wake(pump);
    }

    /// Ends the session soon: nobody owns it any more.
    pub(super) fn orphan(&self) {
        let now = self.connector.now();
        let pump = {
            let mut state = self.lock();
            state.session.close(now);
            state.goodbye.get_or_insert(now + GOODBYE);
            state.pump.take()
        };
        wake(pump);
    }

    pub(super) fn ended(&self) -> Option<SessionError> {
        match &self.lock().stage {
            Stage::Ended(error) => Some(error.clone()),
            Stage::Opening | Stage::Opened => None,
        }
    }

    pub(super) fn poll_opened(&self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        let mut state = self.lock();
        match &state.stage {
            Stage::Opening => state.watch(cx),
            Stage::Opened => Poll::Ready(Ok(())),
            Stage::Ended(error) => Poll::Ready(Err(error.clone())),
        }
    }

    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        match &state.stage {
            Stage::Opening | Stage::Opened => state.watch(cx),
            Stage::Ended(_) => Poll::Ready(()),
        }
    }

    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    pub(super) fn listen(&self, listener: NexusListener) {
        self.listeners.lock().push(listener);
    }

    /// Tells everybody what has happened to the session. `state` is let go for that.
    pub(super) fn tell<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Told {
        match state.session.poll_event() {
            // Mostly.
            None => Told::default(),
            first => self.tell_from(first, state),
        }
    }

    fn tell_from<'a>(
        &'a self,
        mut next: Option<SessionEvent>,
        mut state: MutexGuard<'a, State>,
    ) -> Told {
        let mut told = Told::default();
        loop {
            let mut wakers = Wakers::new();
            let event = state.take_events(next.take(), &mut wakers, &mut told);
            drop(state);
            told.woke |= !wakers.is_empty();
            wakers.into_iter().for_each(Waker::wake);
            let Some(event) = event else { return told };
            let listeners = self.listeners.lock().clone();
            for listener in listeners {
                listener(&event);
            }
            if event == NexusEvent::Reinstated {
                self.session.fetch_add(1, Ordering::AcqRel);
            }
            state = self.lock();
        }
    }

    /// Ends everything: nobody moves the session on any more.
    pub(super) fn end(&self, error: SessionError) {
        let mut wakers = Wakers::new();
        {
            let mut state = self.lock();
            for place in &mut state.waiters {
                if let Waiter::Waiting(waker) = std::mem::replace(&mut place.waiter, Waiter::Told) {
                    wakers.push(waker);
                }
            }
            state.set_stage(Stage::Ended(error), &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    /// The pump is woken for what is submitted from now on. Who was to be before is not to be dropped
    /// under the lock.
    #[must_use]
    pub(super) fn wake_for_more(&mut self, pump: &Waker) -> Option<Waker> {
        match &self.pump {
            Some(known) if known.will_wake(pump) => None,
            _ => self.pump.replace(pump.clone()),
        }
    }

    /// Takes what has happened, up to the first event that listeners are to hear of.
    fn take_events(
        &mut self,
        mut first: Option<SessionEvent>,
        wakers: &mut Wakers,
        told: &mut Told,
    ) -> Option<NexusEvent> {
        while let Some(event) = first.take().or_else(|| self.session.poll_event()) {
            match event {
                SessionEvent::Done(id) => {
                    let place = self.place(id);
                    if place.id == Some(id)
                        && let Waiter::Waiting(waker) =
                            std::mem::replace(&mut place.waiter, Waiter::Told)
                    {
                        wakers.push(waker);
                    }
                }
                SessionEvent::Nexus(event) => return Some(event),
                SessionEvent::Up => self.set_stage(Stage::Opened, wakers),
                SessionEvent::Down(_) => told.lost = true,
                SessionEvent::Ended(error) => self.set_stage(Stage::Ended(error), wakers),
            }
        }
        None
    }

    fn set_stage(&mut self, stage: Stage, wakers: &mut Wakers) {
        if !matches!(self.stage, Stage::Ended(_)) {
            self.stage = stage;
        }
        wakers.extend(self.watchers.drain(..));
    }

    fn watch<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.watchers.iter().any(|known| known.will_wake(cx.waker())) {
            self.watchers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn place(&mut self, id: TaskId) -> &mut Place {
        let index = id.index();
        if index >= self.waiters.len() {
            self.waiters.resize_with(index + 1, Place::default);
        }
        &mut self.waiters[index]
    }

    /// The result of a task, or who is to be woken when it is there. Who was before is not to be
    /// dropped under the lock.
    fn poll_task(
        &mut self,
        id: TaskId,
        cx: &Context<'_>,
    ) -> (Poll<Result<Answer, TaskError>>, Waiter) {
        let place = self.place(id);
        match &place.waiter {
            Waiter::Waiting(known) if known.will_wake(cx.waker()) => (Poll::Pending, Waiter::None),
            Waiter::None | Waiter::Waiting(_) => {
                let waiting = Waiter::Waiting(cx.waker().clone());
                (Poll::Pending, std::mem::replace(&mut place.waiter, waiting))
            }
            Waiter::Told => {
                *place = Place::default();
                // It is not there only if nobody moved the session on to its end.
                let result = self.session.take(id).unwrap_or(Err(TaskError::Ended));
                (Poll::Ready(result), Waiter::None)
            }
        }
    }
}

/// A task that runs. Dropping it lets the task run to its end.
pub(super) struct Running<'a> {
    shared: &'a Shared,
    /// `None` once it has ended.
    id: Option<TaskId>,
}

impl Future for Running<'_> {
    type Output = Result<Answer, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(id) = self.id else { return Poll::Pending };
        let (polled, before) = {
            let mut state = self.shared.lock();
            state.poll_task(id, cx)
        };
        drop(before);
        if polled.is_ready() {
            self.id = None;
        }
        polled
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut state = self.shared.lock();
            state.session.abandon(id);
            let before = std::mem::take(state.place(id));
            drop(state);
            drop(before);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
