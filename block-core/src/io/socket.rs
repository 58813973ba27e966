//! TCP sockets whose bytes go straight to and from the memory of requests.
//!
//! A [`Socket`] receives and sends with one system call each, without waiting
//! ([`Socket::try_receive`], [`Socket::try_send`]), and waits for its turn separately
//! ([`Socket::poll_readable`], [`Socket::poll_writable`]): in the io_uring of the thread that runs
//! [`exec::block_on`](super::exec::block_on), in the one that all other threads share, or, where io_uring
//! is refused or not wanted, by the thread that waits for all descriptors of the process.
//!
//! Invariants: the descriptor is non-blocking and lives as long as any wait for it; dropping a socket
//! ends the connection at once.

use std::io;
use std::mem;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_io::Async;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use smallvec::SmallVec;

use super::race::race;
use super::timer::Timer;
use super::uring::{Wait, Waiting};
use super::{Engine, pool};
use crate::buf::{IoBuf, IoVec};
use crate::limits::IOV_MAX;

/// How long an address of a host has to answer before the next one is tried beside it.
pub const HEAD_START: Duration = Duration::from_millis(250);

/// A piece of what is to be sent.
#[derive(Copy, Clone, Debug)]
pub enum Piece<'a> {
    /// Bytes that are nobody else's.
    Bytes(&'a [u8]),
    /// Memory of a request.
    Buf(&'a IoBuf),
}

/// A connection over TCP. Dropping it closes it.
pub struct Socket {
    fd: Arc<OwnedFd>,
    engine: Engine,
    readable: Option<Waiting>,
    writable: Option<Waiting>,
    /// Waits where there is no ring. Made when it is first needed.
    watched: Option<Async<Arc<OwnedFd>>>,
    /// The last receive took all that was there: the next one would be in vain.
    drained: bool,
    /// The last send filled all the room that was there.
    full: bool,
}

impl Socket {
    /// Connects to `port` of `host`, a name or an address, whichever of its addresses answers first.
    /// They are tried in the order in which the system names them, each [`HEAD_START`] after the one
    /// before, or once that has failed.
    ///
    /// Fails with the error of the address that failed last. Small messages leave at once (TCP_NODELAY), and a
    /// peer that has silently gone is noticed in the end (SO_KEEPALIVE). Dropping the future gives up.
    pub async fn connect(host: &str, port: u16, engine: Engine) -> io::Result<Self> {
        let addresses = look_up(host, port).await?;
        let connect = |address| Self::connect_to(address, engine);
        let head_start = || async move {
            Timer::new(engine).until(Instant::now() + HEAD_START).await;
        };
        race(addresses, connect, head_start).await
    }

    /// Connects to one address; otherwise as [`Socket::connect`].
    pub async fn connect_to(address: SocketAddr, engine: Engine) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let mut socket = Self::of_nonblocking(fd, engine)?;
        match rustix::net::connect(&socket.fd, &address) {
            Ok(()) => return Ok(socket),
            // A signal does not stop it.
            Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            std::future::poll_fn(|cx| socket.poll_writable(cx)).await?;
            sockopt::socket_error(&socket.fd)??;
            match rustix::net::getpeername(&socket.fd) {
                Ok(_) => return Ok(socket),
                // The wait ended too early.
                Err(rustix::io::Errno::NOTCONN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes over a connection that is there.
    pub fn from_std(stream: std::net::TcpStream, engine: Engine) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::of_nonblocking(stream.into(), engine)
    }

    fn of_nonblocking(fd: OwnedFd, engine: Engine) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        sockopt::set_socket_keepalive(&fd, true)?;
        let fd = Arc::new(fd);
        let (readable, writable, watched) = (None, None, None);
        Ok(Self { fd, engine, readable, writable, watched, drained: false, full: false })
    }

    /// Receives what is there: first into `direct`, all of it, then into `staging`. Returns how many
    /// bytes came; 0 if none ever will, `None` if none are there yet.
    ///
    /// Fewer bytes than there was room for means that nothing more was there.
    pub fn try_receive(&self, direct: &IoVec, staging: &mut [u8]) -> io::Result<Option<usize>> {
        let mut vecs: SmallVec<[libc::iovec; 8]> =
            direct.bufs().iter().take(IOV_MAX).map(of_buf).collect();
        if vecs.len() < IOV_MAX && !staging.is_empty() {
            let base = staging.as_mut_ptr().cast();
            vecs.push(libc::iovec { iov_base: base, iov_len: staging.len() });
        }
        transfer(|| match vecs.as_slice() {
            [only] => {
                // SAFETY: `only` is `staging`, which is borrowed mutably, or memory that `direct` keeps
                // alive and that is only ever accessed by address or atomically.
                unsafe { libc::recv(self.raw(), only.iov_base, only.iov_len, libc::MSG_DONTWAIT) }
            }
            _ => {
                let mut message = message(&mut vecs);
                // SAFETY: the message has nothing but `vecs`, whose memory is as above.
                unsafe { libc::recvmsg(self.raw(), &raw mut message, libc::MSG_DONTWAIT) }
            }
        })
    }

    /// Sends as much as there is room for, from the start of `pieces`; `None` if there is none.
    pub fn try_send<'a>(
        &self,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> io::Result<Option<usize>> {
        // SAFETY: the addresses are those of memory that the pieces borrow, or that is kept alive by
        // buffers that they borrow.
        unsafe { self.send(&mut pieces.into_iter().take(IOV_MAX).map(of_piece).collect()) }
    }

    /// One call to send.
    ///
    /// # Safety
    /// The memory of `vecs` is readable until this returns.
    unsafe fn send(&self, vecs: &mut SmallVec<[libc::iovec; 16]>) -> io::Result<Option<usize>> {
        // A connection that is gone is an error here and no signal.
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        transfer(|| match vecs.as_slice() {
            [only] => {
                // SAFETY: by the caller's promise; the kernel only reads the memory.
                unsafe { libc::send(self.raw(), only.iov_base, only.iov_len, flags) }
            }
            _ => {
                let message = message(vecs);
                // SAFETY: the message has nothing but `vecs`, and the rest is as above.
                unsafe { libc::sendmsg(self.raw(), &raw const message, flags) }
            }
        })
    }

    /// Ready when receiving is worth a try; sometimes too early.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let begin = |fd: &Arc<OwnedFd>| Wait::readable(Arc::clone(fd));
        match poll_ring(&mut self.readable, self.engine, &self.fd, cx, begin) {
            Some(polled) => polled.map(Ok),
            None => watch(&mut self.watched, &self.fd)?.poll_readable(cx),
        }
    }

    /// Ready when sending is worth a try; otherwise as [`Socket::poll_readable`].
    pub fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let begin = |fd: &Arc<OwnedFd>| Wait::writable(Arc::clone(fd));
        match poll_ring(&mut self.writable, self.engine, &self.fd, cx, begin) {
            Some(polled) => polled.map(Ok),
            None => watch(&mut self.watched, &self.fd)?.poll_writable(cx),
        }
    }

    /// Receives at least one byte as [`Socket::try_receive`] does; 0 if none ever will come.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        direct: &IoVec,
        staging: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let room = direct.len().saturating_add(staging.len());
        loop {
            if !self.drained
                && let Some(n) = self.try_receive(direct, staging)?
            {
                self.drained = n < room;
                return Poll::Ready(Ok(n));
            }
            self.drained = true;
            ready!(self.poll_readable(cx))?;
            self.drained = false;
        }
    }

    /// Sends at least one byte as [`Socket::try_send`] does.
    pub fn poll_send<'a>(
        &mut self,
        cx: &mut Context<'_>,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> Poll<io::Result<usize>> {
        if self.full {
            ready!(self.poll_writable(cx))?;
            self.full = false;
        }
        let mut vecs = pieces.into_iter().take(IOV_MAX).map(of_piece).collect();
        loop {
            // SAFETY: as in `try_send`: the pieces borrow the memory for longer than this call.
            let sent = unsafe { self.send(&mut vecs) }?;
            let len = vecs.iter().map(|vec| vec.iov_len).fold(0, usize::saturating_add);
            self.full = sent.is_none_or(|n| n < len);
            if let Some(n) = sent {
                return Poll::Ready(Ok(n));
            }
            ready!(self.poll_writable(cx))?;
        }
    }

    fn raw(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A wait that is given up may keep the descriptor for a while. It fails only if the connection
        // is gone already.
        let ended = rustix::net::shutdown(&self.fd, Shutdown::Both);
        debug_assert!(ended != Err(rustix::io::Errno::BADF));
    }
}

/// All addresses of a host, the look-up of a name being done on a thread that may block.
async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    let work = move || Ok((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
    pool::run(work).await.map_err(|_| io::Error::from(io::ErrorKind::Other))?
}

/// Waits in a ring, or says that there is none.
fn poll_ring(
    waiting: &mut Option<Waiting>,
    engine: Engine,
    fd: &Arc<OwnedFd>,
    cx: &mut Context<'_>,
    begin: impl FnOnce(&Arc<OwnedFd>) -> Wait,
) -> Option<Poll<()>> {
    match waiting {
        Some(begun) => {
            let polled = begun.poll(cx);
            if polled.is_ready() {
                *waiting = None;
            }
            Some(polled)
        }
        None => {
            *waiting = Some(engine.ring()?.wait(begin(fd), cx.waker().clone()));
            Some(Poll::Pending)
        }
    }
}

/// The descriptor as the thread knows it that waits for all of them.
fn watch<'a>(
    watched: &'a mut Option<Async<Arc<OwnedFd>>>,
    fd: &Arc<OwnedFd>,
) -> io::Result<&'a Async<Arc<OwnedFd>>> {
    match watched {
        Some(watched) => Ok(watched),
        None => Ok(watched.insert(Async::new_nonblocking(Arc::clone(fd))?)),
    }
}

/// Makes a call that moves bytes until no signal interrupts it; `None` if it would have to wait.
fn transfer(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(Some(n));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

fn of_buf(buf: &IoBuf) -> libc::iovec {
    libc::iovec { iov_base: buf.as_ptr().cast(), iov_len: buf.len() }
}

/// For sending only: the kernel does not write to it.
fn of_piece(piece: Piece<'_>) -> libc::iovec {
    match piece {
        Piece::Bytes(bytes) => {
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }
        Piece::Buf(buf) => of_buf(buf),
    }
}

/// A message of these bytes, without an address and without anything beside them. Valid while `vecs` is.
fn message(vecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all of its fields are numbers and addresses, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = vecs.as_mut_ptr();
    message.msg_iovlen = vecs.len();
    message
}
