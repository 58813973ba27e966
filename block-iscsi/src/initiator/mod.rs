//! An initiator that runs: a session, a transport, and who moves bytes between the two.
//!
//! An [`Initiator`] is a [`Nexus`]: it takes commands and waits for their ends. Beside it runs a future, the
//! [`Pump`], which connects, sends and receives, comes back when a connection is lost, and keeps the
//! time. [`Initiator::connect`] gives the pump to the executor of the thread; inside of
//! [`block_core::io::exec::block_on`] it then runs on the same thread as its callers, and no request
//! goes to another one. [`Initiator::new`] leaves the pump to the caller, and to any runtime.
//!
//! The pump sends what was submitted since its last turn with one call, and takes all that has come
//! before it wakes anybody. Before it waits it lets those run that it has woken, so that their next
//! commands go together.
//!
//! Invariants: the lock of the session is not held while bytes are moved, nor while a waker or a listener
//! runs; a listener has heard of an event before the end of a command that comes after it can be seen;
//! commands end even if the pump is dropped.

mod discovery;
mod pump;
mod shared;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use block_core::io::exec;

pub use discovery::{DiscoveredTarget, DiscoveryError, TARGETS_MAX, TargetAddress, discover};
pub use pump::Pump;

use crate::chap::{CHALLENGE_LEN, Nonce};
use crate::keys::{Negotiated, Pair};
use crate::nexus::{Command, Completion, Nexus, NexusListener, TaskError};
use crate::scsi::luns::Lun;
use crate::session::{Answer, Session, SessionConfig, SessionError, TaskId};
use crate::transport::Connector;
use shared::{Running, Shared};

/// A session that somebody runs commands on. Dropping it ends the session, in good manners if that does
/// not take long.
pub struct Initiator {
    shared: Arc<Shared>,
}

impl Initiator {
    /// A session, and the future that makes it go, which the caller has to poll until it is done.
    pub fn new(
        config: SessionConfig,
        connector: Arc<dyn Connector>,
    ) -> Result<(Self, Pump), SessionError> {
        let session = Session::new(config, connector.now())?;
        let shared = Arc::new(Shared::new(session, connector));
        Ok((Self { shared: Arc::clone(&shared) }, Pump::new(shared)))
    }

    /// A session that is there. Its pump runs detached ([`exec::spawn_detached`]).
    ///
    /// Fails as the first login does. Dropping the future gives up.
    pub async fn connect(
        config: SessionConfig,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, SessionError> {
        let (initiator, pump) = Self::new(config, connector)?;
        exec::spawn_detached(Box::pin(pump));
        initiator.opened().await?;
        Ok(initiator)
    }

    /// Waits until the session is there for the first time, or has failed.
    pub async fn opened(&self) -> Result<(), SessionError> {
        poll_fn(|cx| self.shared.poll_opened(cx)).await
    }

    /// Why the session has ended; `None` if it has not.
    pub fn ended(&self) -> Option<SessionError> {
        self.shared.ended()
    }

    /// What the two sides have agreed on, while the session is there.
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.shared.with_session(|session| session.negotiated().cloned())
    }

    /// Sends a text, of at most 8 KiB, and waits for the pairs of the answer.
    pub async fn text(&self, pairs: &[Pair]) -> Result<Vec<Pair>, TaskError> {
        match self.run(|session, now| session.submit_text(pairs, now))?.await? {
            Answer::Text(pairs) => Ok(pairs),
            Answer::Scsi(_) | Answer::Reset => Err(TaskError::Ended),
        }
    }

    fn run(
        &self,
        submit: impl FnOnce(&mut Session, Duration) -> Result<TaskId, TaskError>,
    ) -> Result<Running<'_>, TaskError> {
        self.shared.submit(submit)
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        self.shared.orphan();
    }
}

#[async_trait]
impl Nexus for Initiator {
    async fn execute(&self, command: Command) -> Result<Completion, TaskError> {
        match self.run(|session, now| session.submit(command, now))?.await? {
            Answer::Scsi(completion) => Ok(completion),
            Answer::Text(_) | Answer::Reset => Err(TaskError::Ended),
        }
    }

    async fn reset(&self, lun: Lun) -> Result<(), TaskError> {
        self.run(|session, now| session.submit_reset(lun, now))?.await.map(|_| ())
    }

    fn listen(&self, listener: NexusListener) {
        self.shared.listen(listener);
    }

    fn session(&self) -> u64 {
        self.shared.session()
    }

    fn depth(&self) -> usize {
        self.shared.with_session(|session| session.depth())
    }

    async fn close(&self) {
        self.shared.close();
        poll_fn(|cx| self.shared.poll_ended(cx)).await;
    }
}

/// A random name for the initiator's end of a session (ISID, RFC 7143, section 11.12.5): of those that
/// nobody has to be asked for.
pub fn random_isid() -> io::Result<[u8; 6]> {
    /// The type of such names.
    const RANDOM: u8 = 0x80;
    let mut isid = [0; 6];
    fill_random(&mut isid)?;
    isid[0] = RANDOM;
    Ok(isid)
}

fn random_nonce() -> io::Result<Nonce> {
    let mut bytes = [0; 1 + CHALLENGE_LEN];
    fill_random(&mut bytes)?;
    let [identifier, challenge @ ..] = bytes;
    Ok(Nonce { identifier, challenge })
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::ErrorKind::Unsupported.into(),
    })
}
