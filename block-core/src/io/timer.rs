//! A timer that sleeps where the rest of its thread does.
//!
//! Deadlines of protocols are far away and move on with every message. So a timer that has been set
//! for a moment stays set for it when its deadline moves to a later one, and is set again when the
//! moment has come: moving a deadline costs no system call, and no look at the clock.
//!
//! Invariant: a timer that is set is set for its deadline or for a moment before it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Engine;
use super::uring::{Wait, Waiting};

/// Wakes a task at a time.
pub struct Timer {
    engine: Engine,
    set: Option<Set>,
}

/// What the timer is set for, and who counts the time.
struct Set {
    moment: Instant,
    by: By,
}

enum By {
    Ring(Waiting),
    Thread(async_io::Timer),
}

impl Timer {
    /// A timer that sleeps in an io_uring if `engine` does, else by the thread that waits for all of
    /// them.
    pub fn new(engine: Engine) -> Self {
        Self { engine, set: None }
    }

    /// Ready at `deadline` or later. Only the deadline of the last call counts.
    pub fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            match &mut self.set {
                Some(set) if set.moment <= deadline => {
                    if set.by.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.set = None;
                }
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.set = Some(Set { moment: deadline, by: By::new(self.engine, cx, left) });
            if matches!(&self.set, Some(Set { by: By::Ring(_), .. })) {
                return Poll::Pending;
            }
        }
    }

    /// Waits for `deadline`.
    pub async fn until(&mut self, deadline: Instant) {
        std::future::poll_fn(|cx| self.poll_until(cx, deadline)).await;
    }
}

impl By {
    fn new(engine: Engine, cx: &Context<'_>, left: Duration) -> Self {
        match engine.ring() {
            Some(ring) => Self::Ring(ring.wait(Wait::time(left), cx.waker().clone())),
            None => Self::Thread(async_io::Timer::after(left)),
        }
    }

    /// Ready when the moment has come, and sometimes before.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Ring(waiting) => waiting.poll(cx),
            Self::Thread(timer) => Pin::new(timer).poll(cx).map(|_| ()),
        }
    }
}
