//! Connections over TCP that need no runtime: whoever polls them waits in its own io_uring inside of
//! [`block_core::io::exec::block_on`], and by one thread of the process elsewhere.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use block_core::io::Engine;
use block_core::io::socket::{Piece, Socket};
use block_core::io::timer::Timer;

use super::{Alarm, Connector, Portal, ReceiveSlot, Stream, TransmitPart};
use crate::url::Host;

/// Connects over TCP. Data goes straight from and to the memory of requests.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    engine: Engine,
    /// Where its clock begins.
    start: Instant,
}

impl TcpConnector {
    /// Waits in the quickest way that this system allows.
    pub fn new() -> Self {
        Self::with_engine(Engine::best())
    }

    /// Waits as `engine` does.
    pub fn with_engine(engine: Engine) -> Self {
        Self { engine, start: Instant::now() }
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, portal: &Portal) -> io::Result<Box<dyn Stream>> {
        let socket = match &portal.host {
            Host::Name(name) => Socket::connect(name, portal.port, self.engine).await?,
            Host::V4(address) => {
                let address = SocketAddr::from((*address, portal.port));
                Socket::connect_to(address, self.engine).await?
            }
            Host::V6(address, None) => {
                let address = SocketAddr::from((*address, portal.port));
                Socket::connect_to(address, self.engine).await?
            }
            // Zones have names that the system knows.
            Host::V6(address, Some(zone)) => {
                let host = format!("{address}%{zone}");
                Socket::connect(&host, portal.port, self.engine).await?
            }
        };
        Ok(Box::new(TcpStream { socket }))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn alarm(&self) -> Box<dyn Alarm> {
        Box::new(TcpAlarm { timer: Timer::new(self.engine), start: self.start })
    }
}

struct TcpStream {
    socket: Socket,
}

impl Stream for TcpStream {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        slot: &mut ReceiveSlot<'_>,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_receive(cx, &slot.direct, slot.staging)
    }

    fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[TransmitPart<'_>],
    ) -> Poll<io::Result<usize>> {
        let pieces = parts.iter().map(|part| match *part {
            TransmitPart::Bytes(bytes) => Piece::Bytes(bytes),
            TransmitPart::Buf(buf) => Piece::Buf(buf),
        });
        self.socket.poll_send(cx, pieces)
    }
}

struct TcpAlarm {
    timer: Timer,
    start: Instant,
}

impl Alarm for TcpAlarm {
    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Duration) -> Poll<()> {
        match self.start.checked_add(deadline) {
            Some(deadline) => self.timer.poll_until(cx, deadline),
            // Beyond all time.
            None => Poll::Pending,
        }
    }
}
