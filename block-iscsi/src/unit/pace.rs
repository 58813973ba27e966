//! How often and how fast a command is sent again.
//!
//! Invariant: a command that goes on failing is given up after [`Retries::tries_max`] times or
//! [`Retries::total_max`], whichever comes first. That time begins with the first answer that asks for
//! patience: what a command waits for its session does not count, nor what was before a unit attention.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::scsi::sense::Retry;
use crate::transport::Connector;

/// A clock to wait by. Which runtime it belongs to is its own business.
#[async_trait]
pub trait Sleep: Send + Sync + 'static {
    /// The time since any fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Ends when `span` has passed.
    async fn sleep(&self, span: Duration);
}

/// The clock of a [`Connector`].
pub struct ConnectorSleep(Arc<dyn Connector>);

impl ConnectorSleep {
    /// Waits by the clock of `connector`.
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        Self(connector)
    }
}

#[async_trait]
impl Sleep for ConnectorSleep {
    fn now(&self) -> Duration {
        self.0.now()
    }

    async fn sleep(&self, span: Duration) {
        let deadline = self.0.now().saturating_add(span);
        let mut alarm = self.0.alarm();
        poll_fn(|cx| alarm.poll_until(cx, deadline)).await;
    }
}

/// Bounds of trying again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Retries {
    /// How often a command is sent at most; at least once.
    pub tries_max: u32,
    /// A command that is to be sent again later is not after this time.
    pub total_max: Duration,
    /// The first wait where the reason must pass by itself; each further one is twice as long.
    pub wait_first: Duration,
    /// The longest wait.
    pub wait_max: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            tries_max: 32,
            total_max: Duration::from_secs(60),
            wait_first: Duration::from_millis(10),
            wait_max: Duration::from_secs(2),
        }
    }
}

/// The tries of one command.
#[derive(Debug)]
pub(super) struct Tries {
    bounds: Retries,
    /// Since when patience is asked for.
    since: Option<Duration>,
    made: u32,
    wait: Duration,
}

impl Tries {
    pub(super) fn new(bounds: Retries) -> Self {
        Self { bounds, since: None, made: 1, wait: bounds.wait_first }
    }

    /// Waits as long as `retry` wants; `false` if the command is not to be sent again.
    pub(super) async fn again(&mut self, retry: Retry, sleep: &dyn Sleep) -> bool {
        if retry == Retry::Never || self.made >= self.bounds.tries_max {
            return false;
        }
        self.made += 1;
        if retry == Retry::Now {
            self.since = None;
            return true;
        }
        let now = sleep.now();
        let passed = now.saturating_sub(*self.since.get_or_insert(now));
        if passed.saturating_add(self.wait) > self.bounds.total_max {
            return false;
        }
        sleep.sleep(self.wait).await;
        self.wait = self.wait.saturating_mul(2).min(self.bounds.wait_max);
        true
    }
}
