//! Moves a session on: connects, sends, receives, keeps the time.
//!
//! A turn of the pump: what is due is done, what was submitted is sent, what has come is taken, and whoever
//! waited for it is woken. It waits only if nothing of that can be done.
//!
//! Invariant: when the pump waits, it is woken by the stream for what it could not send or receive, by the
//! alarm for what the session has to do next, and by whoever hands the session something to do.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;

use super::random_nonce;
use super::shared::Shared;
use crate::session::{ConnectionError, Link, SessionError, Wanted};
use crate::transport::{Alarm, Portal, Stream};

/// Most turns before others have theirs.
const TURNS_MAX: usize = 16;

/// Makes a session go. Done when the session has ended for good.
///
/// Dropping it ends the session at once.
#[must_use = "a session does nothing unless its pump is polled"]
pub struct Pump {
    shared: Arc<Shared>,
    connection: Connection,
    alarm: Box<dyn Alarm>,
    /// When the session has something to do, as it was after the last turn.
    due: Option<Duration>,
}

enum Connection {
    None,
    Attempt { portal: Portal, stream: BoxFuture<'static, io::Result<Box<dyn Stream>>> },
    Open { stream: Box<dyn Stream>, link: Box<Link> },
}

/// What comes after a turn.
enum Next {
    /// Another one.
    Turn,
    /// Another one, once the others have had theirs.
    Yield,
    /// Another one, once the pump is woken, or when the session has something to do.
    Sleep,
    /// Nothing.
    End,
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let alarm = shared.connector.alarm();
        Self { shared, connection: Connection::None, alarm, due: None }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Next {
        let now = self.shared.connector.now();
        match self.move_on(cx, now) {
            // Nothing more is sent: tasks that the session's end has ended have their buffers back.
            Wanted::End => return Next::End,
            Wanted::Nothing => self.connection = Connection::None,
            Wanted::Connection(portal) => {
                if !matches!(&self.connection, Connection::Attempt { portal: p, .. } if *p == portal)
                {
                    self.connection = self.attempt(portal);
                }
            }
            Wanted::Stream => {}
        }
        match &mut self.connection {
            Connection::None => Next::Sleep,
            Connection::Attempt { stream, .. } => match stream.as_mut().poll(cx) {
                Poll::Pending => Next::Sleep,
                Poll::Ready(connected) => self.handle_connected(connected, now),
            },
            Connection::Open { .. } => self.exchange(cx, now),
        }
    }

    /// Lets the session do what is due and say what is to be sent, and what it wants.
    fn move_on(&mut self, cx: &mut Context<'_>, now: Duration) -> Wanted {
        let mut state = self.shared.lock();
        if state.goodbye.is_some_and(|goodbye| goodbye <= now) {
            drop(state);
            self.send_the_rest(cx);
            return Wanted::End;
        }
        let before = state.wake_for_more(cx.waker());
        if self.due.is_some_and(|due| due <= now) {
            state.session.handle_timeout(now);
        }
        let wanted = state.session.wanted(now);
        if let (Wanted::Stream, Connection::Open { link, .. }) = (&wanted, &mut self.connection) {
            state.session.fill(&mut link.outbound, now);
        }
        let due = state.session.poll_timeout();
        self.due = [due, state.goodbye].into_iter().flatten().min();
        let told = self.shared.tell(state);
        drop(before);
        if told.lost {
            self.connection = Connection::None;
        }
        wanted
    }

    fn attempt(&self, portal: Portal) -> Connection {
        let connector = Arc::clone(&self.shared.connector);
        let to = portal.clone();
        let stream = Box::pin(async move { connector.connect(&to).await });
        Connection::Attempt { portal, stream }
    }

    fn handle_connected(&mut self, connected: io::Result<Box<dyn Stream>>, now: Duration) -> Next {
        self.connection = Connection::None;
        let both = connected.and_then(|stream| Ok((stream, random_nonce()?)));
        let mut state = self.shared.lock();
        match both {
            Ok((stream, nonce)) => {
                let link = state.session.handle_connected(nonce, now);
                self.connection = Connection::Open { stream, link: Box::new(link) };
            }
            Err(error) => state.session.handle_disconnected((&error).into(), now),
        }
        self.shared.tell(state);
        Next::Turn
    }

    /// Sends and receives what can be without waiting.
    fn exchange(&mut self, cx: &mut Context<'_>, now: Duration) -> Next {
        // If so, the session may have more to send than what is there now.
        let was_full = match &self.connection {
            Connection::Open { link, .. } => link.outbound.is_full(),
            Connection::None | Connection::Attempt { .. } => false,
        };
        let sent = match self.transmit(cx) {
            Ok(sent) => sent,
            Err(error) => return self.disconnected((&error).into()),
        };
        let Connection::Open { stream, link } = &mut self.connection else { return Next::Turn };
        match stream.poll_receive(cx, &mut link.inbound.slot()) {
            Poll::Pending if sent > 0 && (was_full || !link.outbound.is_empty()) => Next::Turn,
            Poll::Pending => Next::Sleep,
            Poll::Ready(Ok(0)) => self.disconnected(ConnectionError::Closed),
            Poll::Ready(Ok(len)) => {
                let mut state = self.shared.lock();
                state.session.handle_received(link, len, now);
                // Those who are woken may have more to send, and then all of it goes together.
                if self.shared.tell(state).woke { Next::Yield } else { Next::Turn }
            }
            Poll::Ready(Err(error)) => self.disconnected((&error).into()),
        }
    }

    /// Sends what is there to be sent; how many bytes of it.
    fn transmit(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let Connection::Open { stream, link } = &mut self.connection else { return Ok(0) };
        if link.outbound.is_empty() {
            return Ok(0);
        }
        let polled = stream.poll_transmit(cx, &link.outbound.parts());
        match polled {
            Poll::Pending => Ok(0),
            Poll::Ready(sent) => {
                let sent = sent?;
                link.outbound.handle_transmitted(sent);
                Ok(sent)
            }
        }
    }

    fn disconnected(&mut self, error: ConnectionError) -> Next {
        self.connection = Connection::None;
        let now = self.shared.connector.now();
        let mut state = self.shared.lock();
        state.session.handle_disconnected(error, now);
        self.shared.tell(state);
        Next::Turn
    }

    /// Sends what is still to be sent, if that needs no waiting.
    fn send_the_rest(&mut self, cx: &mut Context<'_>) {
        while self.transmit(cx).is_ok_and(|sent| sent > 0) {}
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..TURNS_MAX {
            match this.turn(cx) {
                Next::Turn => {}
                Next::Yield => break,
                Next::End => {
                    this.connection = Connection::None;
                    return Poll::Ready(());
                }
                Next::Sleep => match this.due {
                    Some(due) if this.alarm.poll_until(cx, due).is_ready() => {}
                    _ => return Poll::Pending,
                },
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.end(SessionError::Closed);
    }
}
