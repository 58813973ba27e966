//! Times after which something has to happen.

use std::time::Duration;

use super::Session;
use super::error::{Awaited, SessionError};
use super::lifecycle::State;
use super::send::Urgent;
use super::task::{Kind, Task, TaskId};
use crate::nexus::TaskError;

impl Session {
    /// When [`Session::handle_timeout`] is due, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let patience = &self.config.patience;
        let of_state = match &self.state {
            State::Waiting { until } | State::Connecting { until } => Some(*until),
            State::LoggingIn(login) => Some(login.until),
            State::Up(up) => {
                let ping = match up.pinged {
                    Some(at) => at + patience.ping,
                    None => up.heard + patience.ping_after,
                };
                let leaving = up.leaving.map(|leaving| leaving.sent.unwrap_or(leaving.patience));
                Some(leaving.map_or(ping, |leaving| leaving.min(ping)))
            }
            State::Ended => return None,
        };
        let outage = self.outage_end();
        [of_state, self.sweep, outage].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.outage_end().is_some_and(|end| end <= now) {
            return self.end(SessionError::TimedOut(Awaited::Outage));
        }
        if self.sweep.is_some_and(|sweep| sweep <= now) {
            self.sweep_tasks(now);
        }
        self.check_leaving(now);
        match &mut self.state {
            State::Connecting { until } if *until <= now => {
                self.lose(SessionError::TimedOut(Awaited::Connection), now);
            }
            State::LoggingIn(login) if login.until <= now => {
                self.lose(SessionError::TimedOut(Awaited::Login), now);
            }
            State::Up(_) => self.handle_timeout_up(now),
            State::Waiting { .. }
            | State::Connecting { .. }
            | State::LoggingIn(_)
            | State::Ended => {}
        }
    }

    fn handle_timeout_up(&mut self, now: Duration) {
        let patience = self.config.patience;
        let State::Up(up) = &mut self.state else { return };
        if up.leaving.and_then(|leaving| leaving.sent).is_some_and(|until| until <= now) {
            return self.lose(SessionError::TimedOut(Awaited::Logout), now);
        }
        match up.pinged {
            Some(at) if at + patience.ping <= now => {
                self.lose(SessionError::TimedOut(Awaited::Ping), now);
            }
            None if up.heard + patience.ping_after <= now => {
                up.pinged = Some(now);
                up.urgent.push_back(Urgent::Ping);
            }
            Some(_) | None => {}
        }
    }

    /// There is a task whose patience ends then.
    pub(super) fn note_deadline(&mut self, deadline: Option<Duration>) {
        self.sweep = [self.sweep, deadline].into_iter().flatten().min();
    }

    /// Ends the tasks whose time is over.
    fn sweep_tasks(&mut self, now: Duration) {
        let mut late: Vec<TaskId> = Vec::new();
        let mut next = None;
        for id in self.tasks.ids() {
            match self.tasks.get(id).and_then(|task| task.deadline) {
                Some(deadline) if deadline <= now => late.push(id),
                Some(deadline) => next = [next, Some(deadline)].into_iter().flatten().min(),
                None => {}
            }
        }
        self.sweep = next;
        for id in late {
            if let Some(Task { kind: Kind::Abort(..), .. }) = self.tasks.get(id) {
                self.lose(SessionError::TimedOut(Awaited::TaskManagement), now);
            } else {
                self.abort_task(id, TaskError::TimedOut, now);
            }
        }
    }

    /// When the session is given up if it does not come back. The first login has its own patience.
    fn outage_end(&self) -> Option<Duration> {
        Some(self.attempt.down_since? + self.config.patience.outage?)
    }
}
