//! The request layer: what every node does between its callers and its driver.
//!
//! The order is the same for every kind of request:
//! 1. **check** the arguments, without any effect;
//! 2. **pad** to the request alignment (an unaligned write becomes read-modify-write);
//! 3. **begin**: take a ticket and wait for older conflicting requests ([`tracked`]);
//! 4. **hooks**: detect zeroes;
//! 5. **fragment** to the driver's limits;
//! 6. **driver**: the one dynamic call;
//! 7. **fallback**: zero buffers for zero writes, bounce buffers for memory that does not suit, one
//!    flush for FUA, unless the request forbids it;
//! 8. **finish**: write generation, dirty bits (also when a write failed), write threshold; the
//!    ticket is given back and waiters wake.
//!
//! An aligned request that waits for nothing and fits the driver takes the fast path: one lock pair
//! for the ticket and the driver's own future, polled in place. Everything else is a boxed future.
//!
//! **Invariant:** a request that was polled once runs to completion. Dropping the future detaches it:
//! the rest runs on the current executor's spawner, or on a thread for such strays.

pub mod status;

pub(crate) mod tracked;

mod discard;
mod flush;
mod fragment;
mod pad;
mod read;
mod truncate;
mod write;
mod zeroes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;

use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::driver::{Exactness, Prealloc};
use crate::error::Result;
use crate::flags::RequestFlags;
use crate::io::exec::spawn_detached;
use crate::node::Node;
use crate::range::ByteRange;

use tracked::Ticket;

/// A request: a future of its result. Does nothing until polled; see the module for what dropping does.
#[must_use = "a request does nothing until it is polled"]
pub struct Request {
    state: State,
}

enum State {
    /// Not polled yet.
    New(Node, Op),
    /// In the driver, by the fast path.
    Driver(BoxFuture<'static, Result<()>>, InFlight),
    /// On the way through the steps.
    Steps(BoxFuture<'static, Result<()>>),
    /// Its result is given, or it was detached.
    Done,
}

/// What a request asks for.
pub(crate) enum Op {
    Read { range: ByteRange, iov: IoVec, flags: RequestFlags },
    Write { range: ByteRange, iov: IoVec, flags: RequestFlags },
    Zeroes { range: ByteRange, flags: RequestFlags, cancel: Option<Cancel> },
    Discard { range: ByteRange },
    Flush,
    Truncate { len: u64, exactness: Exactness, prealloc: Prealloc },
}

/// What there is to do when the driver is done with a fast request.
struct InFlight {
    node: Node,
    /// For a write: what it wrote, and how.
    written: Option<(ByteRange, RequestFlags)>,
    _ticket: Ticket,
}

impl InFlight {
    /// Step 8, whatever the result: a failed write may have changed something.
    fn finish(self) {
        if let Some((range, flags)) = self.written {
            self.node.finish_write(range, flags);
        }
    }
}

impl Request {
    pub(crate) fn new(node: &Node, op: Op) -> Self {
        Self { state: State::New(node.clone(), op) }
    }

    /// Steps 1 to 5 for a request that needs none of them; the operation again if it does.
    fn start(node: Node, op: Op) -> State {
        let started = match &op {
            Op::Read { range, iov, flags } => read::fast(&node, *range, iov, *flags),
            Op::Write { range, iov, flags } => write::fast(&node, *range, iov, *flags),
            _ => None,
        };
        match (started, op) {
            (Some(ticket), Op::Read { range, iov, .. }) => {
                let driver = Arc::clone(node.driver()).preadv(range, iov);
                State::Driver(driver, InFlight { node, written: None, _ticket: ticket })
            }
            (Some(ticket), Op::Write { range, iov, flags }) => {
                let driver = Arc::clone(node.driver()).pwritev(range, iov, flags);
                let written = Some((range, flags));
                State::Driver(driver, InFlight { node, written, _ticket: ticket })
            }
            (_, op) => State::Steps(Box::pin(steps(node, op))),
        }
    }
}

/// The whole way through the layer.
async fn steps(node: Node, op: Op) -> Result<()> {
    match op {
        Op::Read { range, iov, flags } => read::read(&node, range, iov, flags).await,
        Op::Write { range, iov, flags } => write::write(&node, range, iov, flags).await,
        Op::Zeroes { range, flags, cancel } => zeroes::zeroes(&node, range, flags, cancel).await,
        Op::Discard { range } => discard::discard(&node, range).await,
        Op::Flush => flush::flush(&node).await,
        Op::Truncate { len, exactness, prealloc } => {
            truncate::truncate(&node, len, exactness, prealloc).await
        }
    }
}

impl Future for Request {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let State::New(..) = self.state
            && let State::New(node, op) = std::mem::replace(&mut self.state, State::Done)
        {
            self.state = Self::start(node, op);
        }
        let result = match &mut self.state {
            State::Driver(future, _) | State::Steps(future) => {
                std::task::ready!(future.as_mut().poll(cx))
            }
            State::New(..) | State::Done => unreachable!("polled after its result was given"),
        };
        // The driver's future goes first: it may hold the caller's memory.
        if let State::Driver(future, in_flight) = std::mem::replace(&mut self.state, State::Done) {
            drop(future);
            in_flight.finish();
        }
        Poll::Ready(result)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::New(..) | State::Done => {}
            State::Driver(future, in_flight) => spawn_detached(Box::pin(async move {
                // Nobody is left to hear of an error; a lost write shows at the next flush.
                let _ = future.await;
                in_flight.finish();
            })),
            State::Steps(future) => spawn_detached(Box::pin(async move {
                let _ = future.await;
            })),
        }
    }
}
