//! The only I/O of this crate: byte streams to portals, and who moves a session's bytes over them.
//!
//! A [`Connector`] makes [`Stream`]s and tells the time. Which runtime they belong to is their own
//! business; nothing here starts a thread or demands an executor.

pub mod futures_io;
#[cfg(feature = "tcp")]
pub mod tcp;

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use block_core::{IoBuf, IoVec};

use crate::url::Host;

/// Where a target can be reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Portal {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

/// Where the next bytes of a stream belong: first into `direct`, all of it, then into `staging`.
#[derive(Debug)]
pub struct ReceiveSlot<'a> {
    /// Memory of requests: the rest of a data segment.
    pub direct: IoVec,
    /// Memory of the session, for headers and short data segments.
    pub staging: &'a mut [u8],
}

/// A piece of what is to be sent.
#[derive(Copy, Clone, Debug)]
pub enum TransmitPart<'a> {
    /// Bytes of the session: headers, digests, padding.
    Bytes(&'a [u8]),
    /// Memory of requests.
    Buf(&'a IoBuf),
}

/// A byte stream to a portal, closed when it is dropped.
pub trait Stream: Send {
    /// Receives at least one byte; 0 means that the other side will send nothing any more.
    ///
    /// Bytes are put where `slot` says, without gaps.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        slot: &mut ReceiveSlot<'_>,
    ) -> Poll<io::Result<usize>>;

    /// Sends at least one byte from the start of `parts`, which are not empty.
    fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[TransmitPart<'_>],
    ) -> Poll<io::Result<usize>>;
}

/// Wakes a task at a time.
pub trait Alarm: Send {
    /// Ready at `deadline` or later, on the clock of [`Connector::now`]. A new deadline replaces the
    /// one of the last call.
    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Duration) -> Poll<()>;
}

/// Makes connections, and is the clock of what uses them.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to a portal. Dropping the future gives up.
    async fn connect(&self, portal: &Portal) -> io::Result<Box<dyn Stream>>;

    /// The time since any fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// A new alarm.
    fn alarm(&self) -> Box<dyn Alarm>;
}
