//! Connections: wanted, made, logged in to, lost, and made again.

use std::cmp::Reverse;
use std::time::Duration;

use super::error::{ConnectionError, SessionError};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::send::{CID, Urgent};
use super::task::{Kind, Task, TaskId};
use super::{Leaving, Link, Session, SessionEvent, Up, VIOLATIONS_MAX, Wanted};
use crate::chap::{CHALLENGE_LEN, Nonce};
use crate::login::{Login, LoginConfig, LoginError, Progress, SessionParameters};
use crate::nexus::{Command, NexusEvent, TaskError};
use crate::pdu::logout::LogoutReason;
use crate::scsi::cdb::Replay;
use crate::serial::Serial;
use crate::session::SessionConfig;
use crate::transport::Portal;
use crate::url::parse_portal;

/// How often in a row a login may be sent to another place.
const REDIRECTS_MAX: u32 = 8;

/// Longest data segment of a target before the login is over: the default of
/// MaxRecvDataSegmentLength.
const LOGIN_DATA_LEN_MAX: u32 = 8192;

/// A session that was there for so long was no mere attempt, even if no task has ended in it.
const STEADY: Duration = Duration::from_secs(5);

/// How often a task may be under way when a connection is lost, before it is taken for the reason.
pub(super) const LOSSES_MAX: u32 = 32;

/// How many sessions in a row, none of them steady, may be left with commands that the target put off,
/// before those are taken for refused.
const PUT_OFF_MAX: u32 = 32;

/// Longest time for which the target can have us stay away. Who comes earlier than told is refused at
/// worst, and tries again.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The login's task tag: it is alone.
const LOGIN_TAG: u32 = 0;

/// Where the session stands.
#[derive(Debug)]
pub(super) enum State {
    /// No connection is wanted until then.
    Waiting { until: Duration },
    /// A connection is wanted; it must be there by then.
    Connecting { until: Duration },
    /// The login is under way.
    LoggingIn(Box<LoggingIn>),
    /// The full feature phase.
    Up(Box<Up>),
    /// It is over.
    Ended,
}

/// A login that is under way.
#[derive(Debug)]
pub(super) struct LoggingIn {
    login: Login,
    /// What is to be sent.
    pub(super) request: Option<Vec<u8>>,
    /// It must be over by then.
    pub(super) until: Duration,
}

/// How the attempts to have a session went.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    portal: Portal,
    redirects: u32,
    /// In a row.
    failures: u32,
    /// In a row without a task that ended in between.
    violations: u32,
    /// Sessions that were left with commands that the target had put off, since the last steady one.
    put_off: u32,
    /// There was a session before.
    was_up: bool,
    /// Since when there is none.
    pub(super) down_since: Option<Duration>,
    /// What the target wants us to wait.
    wait: Duration,
}

impl Attempt {
    pub(super) fn first(config: &SessionConfig, now: Duration) -> Self {
        Self {
            portal: config.portal.clone(),
            redirects: 0,
            failures: 0,
            violations: 0,
            put_off: 0,
            was_up: false,
            down_since: Some(now),
            wait: Duration::ZERO,
        }
    }

    /// A task has ended well: the session is of use.
    pub(super) fn well_behaved(&mut self) {
        (self.violations, self.failures) = (0, 0);
    }

    /// The target wants no connection for so long, of which [`WAIT_MAX`] is granted.
    pub(super) fn wait(&mut self, time: Duration) {
        self.wait = time.min(WAIT_MAX);
    }

    /// How long to wait before the next attempt, after one more failure.
    fn next_delay(&mut self, config: &SessionConfig) -> Duration {
        let doubled = |n: u32| config.patience.retry_first.saturating_mul(1 << n.min(16));
        let delay = match self.failures {
            0 => Duration::ZERO,
            n => doubled(n - 1).min(config.patience.retry_most),
        };
        self.failures = self.failures.saturating_add(1);
        delay.max(std::mem::take(&mut self.wait))
    }
}

impl Session {
    /// What the session wants now. A connection that is there when another one is wanted is to be
    /// closed first.
    pub fn wanted(&mut self, now: Duration) -> Wanted {
        if let State::Waiting { until } = self.state
            && until <= now
        {
            self.state = State::Connecting { until: now + self.config.patience.connect };
        }
        match &self.state {
            State::Waiting { .. } => Wanted::Nothing,
            State::Connecting { .. } => Wanted::Connection(self.attempt.portal.clone()),
            State::LoggingIn(_) | State::Up(_) => Wanted::Stream,
            State::Ended => Wanted::End,
        }
    }

    /// There is a connection to the portal that was wanted. `nonce` is new and random.
    pub fn handle_connected(&mut self, nonce: Nonce, now: Duration) -> Link {
        let link =
            Link { inbound: Inbound::new(LOGIN_DATA_LEN_MAX), outbound: Outbound::default() };
        if let State::Connecting { .. } = self.state {
            match self.new_login(nonce) {
                Ok((login, request)) => {
                    let until = now + self.config.patience.login;
                    self.state = State::LoggingIn(Box::new(LoggingIn { login, request, until }));
                }
                Err(error) => self.lose(error.into(), now),
            }
        }
        link
    }

    /// The connection failed, or could not be made.
    pub fn handle_disconnected(&mut self, error: ConnectionError, now: Duration) {
        match self.state {
            State::Connecting { .. } | State::LoggingIn(_) | State::Up(_) => {
                self.lose(SessionError::Connection(error), now);
            }
            State::Waiting { .. } | State::Ended => {}
        }
    }

    /// Refuses what no login could send.
    pub(super) fn check_config(&self) -> Result<(), LoginError> {
        self.new_login(Nonce { identifier: 0, challenge: [0; CHALLENGE_LEN] }).map(|_| ())
    }

    fn new_login(&self, nonce: Nonce) -> Result<(Login, Option<Vec<u8>>), LoginError> {
        let config = &self.config;
        let mut login = Login::new(LoginConfig {
            initiator: config.initiator.clone(),
            initiator_alias: config.initiator_alias.clone(),
            target: config.target.clone(),
            authentication: config.authentication.clone(),
            nonce,
            offer: config.offer.clone(),
            isid: config.isid,
            cid: CID,
            task_tag: LOGIN_TAG,
            cmd_sn: Serial::new(1),
        })?;
        let request = login.next_request()?;
        Ok((login, request))
    }

    /// A PDU that came in the login.
    pub(super) fn handle_login(
        &mut self,
        head: &[u8],
        data: &[u8],
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        now: Duration,
    ) -> Result<(), SessionError> {
        let State::LoggingIn(logging_in) = &mut self.state else { return Ok(()) };
        match logging_in.login.handle(head, data)? {
            Progress::Continue => logging_in.request = logging_in.login.next_request()?,
            Progress::Done(parameters) => self.begin(*parameters, inbound, outbound, now),
            Progress::Redirect { addresses, .. } => {
                let address = addresses.into_iter().next().unwrap_or_default();
                let place = address.split(',').next().unwrap_or_default();
                let Ok((host, port)) = parse_portal(place) else {
                    return Err(SessionError::RedirectAddress { address });
                };
                self.attempt.redirects += 1;
                if self.attempt.redirects > REDIRECTS_MAX {
                    return Err(SessionError::Redirects { limit: REDIRECTS_MAX });
                }
                self.attempt.portal = Portal { host, port };
                self.state = State::Connecting { until: now + self.config.patience.connect };
            }
        }
        Ok(())
    }

    /// The session is there.
    fn begin(
        &mut self,
        parameters: SessionParameters,
        inbound: &mut Inbound,
        outbound: &mut Outbound,
        now: Duration,
    ) {
        let SessionParameters { negotiated, exp_stat_sn, window, cmd_sn, .. } = parameters;
        let (header, data) = (negotiated.header_digest, negotiated.data_digest);
        inbound.set_limits(header, data, negotiated.max_recv_data_segment_len);
        outbound.set_digests(header, data);
        self.state = State::Up(Box::new(Up {
            negotiated,
            window,
            cmd_sn,
            exp_stat_sn,
            jobs: Default::default(),
            urgent: Default::default(),
            resets: Default::default(),
            put_off: Default::default(),
            since: now,
            heard: now,
            pinged: None,
            leaving: None,
        }));
        if std::mem::replace(&mut self.attempt.was_up, true) {
            self.number += 1;
            self.events.push_back(SessionEvent::Nexus(NexusEvent::Reinstated));
            self.hand_back();
        }
        self.attempt.redirects = 0;
        self.attempt.down_since = None;
        self.events.push_back(SessionEvent::Up);
        self.start_resets();
    }

    /// Ends the commands that were meant for the session before this one.
    fn hand_back(&mut self) {
        for id in self.tasks.ids() {
            if let Some(Task {
                kind: Kind::Scsi(Command { session: Some(_), .. }), losses, ..
            }) = self.tasks.get(id)
            {
                let sent = *losses > 0;
                self.finish(id, Err(TaskError::Reinstated { sent }));
            }
        }
    }

    /// The connection is no longer of use. Another one is made, unless this is the end.
    pub(super) fn lose(&mut self, error: SessionError, now: Duration) {
        let lost = std::mem::replace(&mut self.state, State::Waiting { until: now });
        if matches!(lost, State::Ended) {
            self.state = State::Ended;
            return;
        }
        if let State::Up(up) = &lost {
            if up.since + STEADY <= now {
                (self.attempt.failures, self.attempt.put_off) = (0, 0);
            }
            self.attempt.put_off += u32::from(!up.put_off.is_empty());
            self.take_back(up);
        }
        if self.closing && self.tasks.open() == 0 {
            return self.end(SessionError::Closed);
        }
        if matches!(error, SessionError::Violation(_)) {
            self.attempt.violations += 1;
        }
        if !self.attempt.was_up || self.attempt.violations >= VIOLATIONS_MAX {
            return self.end(error);
        }
        self.attempt.down_since.get_or_insert(now);
        (self.attempt.portal, self.attempt.redirects) = (self.config.portal.clone(), 0);
        let until = now + self.attempt.next_delay(&self.config);
        self.state = State::Waiting { until };
        self.events.push_back(SessionEvent::Down(error));
    }

    /// The end for good.
    pub(super) fn end(&mut self, error: SessionError) {
        self.state = State::Ended;
        for id in self.tasks.ids() {
            self.finish(id, Err(TaskError::Ended));
        }
        self.queue.clear();
        self.events.push_back(SessionEvent::Ended(error));
    }

    /// Whether a command that the target puts off may wait for the next connection.
    pub(super) fn may_put_off(&self) -> bool {
        self.attempt.put_off < PUT_OFF_MAX
    }

    /// The target takes no more commands before a logout, and did not run this one (section 11.9.1). It
    /// goes over the next connection. What is under way has some time to end.
    pub(super) fn put_off(&mut self, id: TaskId, now: Duration) {
        let State::Up(up) = &mut self.state else { return };
        let Some(active) = self.tasks.active_task(id).and_then(Task::active) else { return };
        up.put_off.push((active.cmd_sn, id));
        self.tasks.deactivate(id);
        self.leave(now + self.config.patience.logout, now);
    }

    /// The tasks of a lost connection wait to be sent again, if they may be, in the order of their numbers.
    fn take_back(&mut self, up: &Up) {
        let ids = self.tasks.ids();
        for id in &ids {
            if let Some(Task { kind: Kind::Abort(of, error), .. }) = self.tasks.get(*id) {
                let (of, error) = (*of, error.clone());
                self.finish(of, Err(error));
                self.finish(*id, Err(TaskError::Aborted));
            }
        }
        let age = |cmd_sn| Reverse(up.cmd_sn.steps_from(cmd_sn).unwrap_or(0));
        let mut again: Vec<_> = up.put_off.iter().map(|(cmd_sn, id)| (age(*cmd_sn), *id)).collect();
        for id in ids {
            let Some(task) = self.tasks.get(id) else { continue };
            if let Kind::Text(text) = &mut task.kind {
                text.start_anew();
            }
            let Some(cmd_sn) = task.active().map(|active| active.cmd_sn) else { continue };
            match &mut task.kind {
                Kind::Scsi(command) if command.replay == Replay::Unsafe => {
                    self.finish(id, Err(TaskError::Unknown));
                    continue;
                }
                _ if task.losses >= LOSSES_MAX => {
                    self.finish(id, Err(TaskError::Lost { times: LOSSES_MAX }));
                    continue;
                }
                Kind::Scsi(_) | Kind::Text(_) | Kind::Reset(_) | Kind::Abort(..) => {}
            }
            task.losses += 1;
            let is_reset = matches!(task.kind, Kind::Reset(_));
            self.tasks.deactivate(id);
            if is_reset {
                continue;
            }
            again.push((age(cmd_sn), id));
        }
        again.sort_by_key(|(age, _)| *age);
        for (_, id) in again.into_iter().rev() {
            self.queue.push_front(id);
        }
    }

    /// Ends the connection in good manners, at the latest when `patience` is over.
    pub(super) fn leave(&mut self, patience: Duration, now: Duration) {
        if let State::Up(up) = &mut self.state {
            up.leaving.get_or_insert(Leaving { patience, sent: None });
            self.check_leaving(now);
        }
    }

    /// Says goodbye if it is time for that.
    pub(super) fn check_leaving(&mut self, now: Duration) {
        let nothing_open = self.tasks.open() == 0;
        let nothing_active = self.tasks.active() == 0;
        let patience = self.config.patience.logout;
        match &mut self.state {
            State::Up(up) => {
                if self.closing && nothing_open && up.leaving.is_none() {
                    up.leaving = Some(Leaving { patience: now, sent: None });
                }
                if let Some(leaving) = &mut up.leaving
                    && leaving.sent.is_none()
                    && (nothing_active || leaving.patience <= now)
                {
                    leaving.sent = Some(now + patience);
                    up.urgent.push_back(Urgent::Logout(LogoutReason::CloseSession));
                }
            }
            State::Ended => {}
            _ if self.closing && nothing_open => self.end(SessionError::Closed),
            _ => {}
        }
    }
}
