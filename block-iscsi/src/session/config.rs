//! What a session needs to know, and the times after which it loses patience.

use std::time::Duration;

use crate::keys::Offer;
use crate::login::{Authentication, SessionTarget};
use crate::transport::Portal;

/// How a session is made and kept.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Where the target is.
    pub portal: Portal,
    /// The initiator's name.
    pub initiator: String,
    /// What people call the initiator.
    pub initiator_alias: Option<String>,
    /// What the session is for.
    pub target: SessionTarget,
    /// How we prove who we are.
    pub authentication: Authentication,
    /// What is offered.
    pub offer: Offer,
    /// The initiator's half of the session's name (ISID). A session of the same initiator, target and
    /// ISID is replaced, so no two at the same time may share one.
    pub isid: [u8; 6],
    /// Most commands that are sent before one of them ends; at least 1.
    pub depth: usize,
    /// When to lose patience.
    pub patience: Patience,
}

/// The times that a session waits.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the whole login.
    pub login: Duration,
    /// Without a sign of the target, before it is asked for one (NOP-Out).
    pub ping_after: Duration,
    /// For any sign once the target was asked for one, before the connection is given up.
    pub ping: Duration,
    /// For a command, from the moment it is handed over; `None`: for ever.
    pub command: Option<Duration>,
    /// For the answer to an abort, before the connection is given up.
    pub abort: Duration,
    /// For a reset, which holds back all commands, before the connection is given up.
    pub reset: Duration,
    /// For the answer to a logout.
    pub logout: Duration,
    /// Before the second attempt to come back; the first is made at once. Doubled each time.
    pub retry_first: Duration,
    /// Longest time between two attempts to come back.
    pub retry_most: Duration,
    /// Without a session, before it is given up for good; `None`: never.
    pub outage: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            login: Duration::from_secs(15),
            ping_after: Duration::from_secs(5),
            ping: Duration::from_secs(10),
            command: None,
            abort: Duration::from_secs(5),
            reset: Duration::from_secs(30),
            logout: Duration::from_secs(2),
            retry_first: Duration::from_millis(50),
            retry_most: Duration::from_millis(400),
            outage: None,
        }
    }
}
