//! The request layer: what every node does between its callers and its driver.
//!
//! The order is the same for every kind of request:
//! 1. **check** the arguments, without any effect;
//! 2. **pad** to the request alignment (an unaligned write becomes read-modify-write);
//! 3. **begin**: take a ticket and wait for conflicting requests that came before (`tracked`);
//! 4. **hooks**: detect zeroes;
//! 5. **fragment** to the driver's limits;
//! 6. **driver**: the one dynamic call;
//! 7. **fallback**: zero buffers for zero writes, bounce buffers for memory that does not suit, one
//!    flush for FUA, unless the request forbids it;
//! 8. **finish**: write generation, dirty bits (also when a write failed), write threshold; the
//!    ticket is given back and waiters wake.
//!
//! An aligned request that waits for nothing and fits the driver takes the fast path: one lock pair
//! for the ticket and the driver's own future, polled in place. A read or a write that the driver can
//! answer at once needs not even that: it is counted and answered by [`BlockDriver::read_now`] or
//! [`BlockDriver::write_now`]. Everything else is a boxed future.
//!
//! **Invariant:** a request that was polled once runs to completion. Dropping the future detaches it:
//! the rest runs on the current executor's spawner, or on a thread for such strays.
//!
//! [`BlockDriver::read_now`]: crate::BlockDriver::read_now
//! [`BlockDriver::write_now`]: crate::BlockDriver::write_now

pub mod status;

pub(crate) mod flush;
pub(crate) mod tracked;

mod copy;
mod discard;
mod fragment;
mod pad;
mod read;
mod truncate;
mod vm_state;
mod write;
mod zeroes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;

use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::driver::{CopySource, Exactness, Prealloc};
use crate::error::Result;
use crate::flags::RequestFlags;
use crate::io::exec::spawn_detached;
use crate::node::Node;
use crate::range::ByteRange;

use tracked::Place;

/// A request: a future of its result. Does nothing until polled; see the module for what dropping does.
#[must_use = "a request does nothing until it is polled"]
pub struct Request {
    node: Node,
    /// Its memory is taken when it starts.
    op: Op,
    state: State,
    /// Inside a poll; stays set only if that panicked.
    polling: bool,
}

enum State {
    /// Not polled yet.
    New,
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
    Copy { range: ByteRange, source: CopySource },
    Zeroes { range: ByteRange, flags: RequestFlags, cancel: Option<Cancel> },
    Discard { range: ByteRange },
    Flush,
    Truncate { len: u64, exactness: Exactness, prealloc: Prealloc },
}

/// What there is to do when the driver is done with a fast request.
struct InFlight {
    place: Place,
    /// For a write: what it wrote, and how.
    written: Option<(ByteRange, RequestFlags)>,
}

impl InFlight {
    /// Step 8, whatever the result: a failed write may have changed something.
    fn finish(&self, node: &Node) {
        if let Some((range, flags)) = self.written {
            node.finish_write(range, flags);
        }
        node.tracker().end(&self.place);
    }
}

impl Request {
    pub(crate) fn new(node: &Node, op: Op) -> Self {
        Self { node: node.clone(), op, state: State::New, polling: false }
    }

    /// The result of a request that the driver answers at once. Its memory is let go of.
    fn answer_now(&mut self) -> Option<Result<()>> {
        let (result, iov) = match &mut self.op {
            Op::Read { range, iov, flags } if flags.is_empty() => {
                (self.node.read_now(*range, iov)?, iov)
            }
            Op::Write { range, iov, flags } if flags.is_empty() => {
                (self.node.write_now(*range, iov)?, iov)
            }
            _ => return None,
        };
        drop(std::mem::take(iov));
        Some(result)
    }

    /// To the driver at once if the request needs none of the steps before it; else on its way.
    fn start(&mut self) -> State {
        let driver = self.node.driver();
        match &mut self.op {
            Op::Read { range, iov, flags } => {
                if let Some(place) = read::fast(&self.node, *range, iov, *flags) {
                    let future = Arc::clone(driver).preadv(*range, std::mem::take(iov));
                    return State::Driver(future, InFlight { place, written: None });
                }
            }
            Op::Write { range, iov, flags } => {
                if let Some(place) = write::fast(&self.node, *range, iov, *flags) {
                    let written = Some((*range, *flags));
                    let future = Arc::clone(driver).pwritev(*range, std::mem::take(iov), *flags);
                    return State::Driver(future, InFlight { place, written });
                }
            }
            _ => {}
        }
        let op = std::mem::replace(&mut self.op, Op::Flush);
        State::Steps(Box::pin(steps(self.node.clone(), op)))
    }
}

/// The whole way through the layer.
async fn steps(node: Node, op: Op) -> Result<()> {
    match op {
        Op::Read { range, iov, flags } => read::read(&node, range, iov, flags).await,
        Op::Write { range, iov, flags } => write::write(&node, range, iov, flags).await,
        Op::Copy { range, source } => copy::copy(&node, range, source).await,
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
        let this = &mut *self;
        if let State::New = this.state {
            if let Some(result) = this.answer_now() {
                this.state = State::Done;
                return Poll::Ready(result);
            }
            this.state = this.start();
        }
        let result = match &mut this.state {
            State::Driver(future, _) | State::Steps(future) => {
                this.polling = true;
                let polled = future.as_mut().poll(cx);
                this.polling = false;
                std::task::ready!(polled)
            }
            State::New | State::Done => unreachable!("polled after its result was given"),
        };
        // The driver's future goes first: it may hold the caller's memory.
        if let State::Driver(future, in_flight) = std::mem::replace(&mut this.state, State::Done) {
            drop(future);
            in_flight.finish(&this.node);
        }
        Poll::Ready(result)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::New | State::Done => {}
            // The driver panicked: nothing is left to run, and its place must not stay taken.
            State::Driver(future, in_flight) if self.polling => {
                drop(future);
                in_flight.finish(&self.node);
            }
            State::Steps(_) if self.polling => {}
            State::Driver(future, in_flight) => {
                let node = self.node.clone();
                spawn_detached(Box::pin(async move {
                    // Nobody is left to hear of an error; a lost write shows at the next flush.
                    let _ = future.await;
                    in_flight.finish(&node);
                }));
            }
            State::Steps(future) => spawn_detached(Box::pin(async move {
                let _ = future.await;
            })),
        }
    }
}
