//! A target on the network: one thread that accepts connections, and one for each of them.
//!
//! Invariants: bytes of one connection are sent by one thread at a time, in the order in which the
//! target made them; of two locks, a connection's is taken before the target's. A server that is
//! stopped gives its target back, so that another can go on with the same device. What an initiator does
//! over a new connection comes after the end of those that it closed before.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::net::{RecvFlags, recv};

use super::target::{Link, Target};

/// Bytes that are received at once.
const RECEIVE_LEN: usize = 1 << 19;

/// A target that serves connections until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    addr: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

/// What a server does beside serving.
#[derive(Copy, Clone, Debug, Default)]
pub struct Mischief {
    /// Cuts each connection after so many PDUs from the initiator.
    pub cut_after: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<Target>,
    connections: Mutex<BTreeMap<Link, Arc<Connection>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
    mischief: Mischief,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// What is being sent. Its lock is before the target's.
    sending: Mutex<Vec<u8>>,
}

impl Server {
    /// Serves a target on a free port of the loopback interface.
    pub fn start(target: Target) -> io::Result<Self> {
        Self::start_at("127.0.0.1:0", target, Mischief::default())
    }

    /// Serves a target. Discovery tells the address that is listened on.
    pub fn start_at(
        addr: impl ToSocketAddrs,
        mut target: Target,
        mischief: Mischief,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        let addr = listener.local_addr()?;
        target.config().portal = addr.to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            connections: Mutex::default(),
            threads: Mutex::default(),
            stopping: AtomicBool::new(false),
            mischief,
        });
        let acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new().spawn(move || accept(&acceptor, &listener))?;
        Ok(Self { shared, addr, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Does something to the target, and sends what comes of it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Target) -> T) -> T {
        let result = act(&mut self.shared.target.lock());
        for (link, connection) in self.shared.all() {
            if self.shared.send(link, &connection).is_err() {
                connection.close();
            }
        }
        self.shared.close_cut();
        result
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().len()
    }

    /// Cuts all connections; new ones are served.
    pub fn cut(&self) {
        for (_, connection) in self.shared.all() {
            connection.close();
        }
    }

    /// Stops listening and cuts all connections. The target is as if they had been lost.
    pub fn stop(mut self) -> Target {
        self.end();
        let config = self.shared.target.lock().config().clone();
        let empty = Target::new(config, super::Device::default());
        std::mem::replace(&mut self.shared.target.lock(), empty)
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.addr));
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
        self.cut();
        let threads = std::mem::take(&mut *self.shared.threads.lock());
        for thread in threads {
            let _ended = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.end();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        shared.forget_closed();
        let link = shared.target.lock().connect();
        let connection = Arc::new(Connection { stream, sending: Mutex::default() });
        shared.connections.lock().insert(link, Arc::clone(&connection));
        let here = Arc::clone(shared);
        let thread = thread::Builder::new().spawn(move || here.serve(link, &connection));
        let mut threads = shared.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        match thread {
            Ok(thread) => threads.push(thread),
            Err(_) => shared.forget(link),
        }
    }
}

impl Connection {
    fn close(&self) {
        // It may be closed already.
        let _closed = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Serves a connection to its end.
    fn serve(&self, link: Link, connection: &Connection) {
        let mut buffer = vec![0; RECEIVE_LEN];
        while let Ok(len @ 1..) = (&connection.stream).read(&mut buffer) {
            let received = {
                let mut target = self.target.lock();
                target.handle_bytes(link, buffer.get(..len).unwrap_or_default());
                target.received(link)
            };
            if self.send(link, connection).is_err()
                || self.mischief.cut_after.is_some_and(|most| received >= most)
            {
                break;
            }
            self.close_cut();
            if !self.target.lock().is_open(link) {
                break;
            }
        }
        connection.close();
        self.forget(link);
    }

    /// Sends what the target has for a connection.
    fn send(&self, link: Link, connection: &Connection) -> io::Result<()> {
        let mut bytes = connection.sending.lock();
        loop {
            self.target.lock().transmit(link, &mut bytes);
            if bytes.is_empty() {
                return Ok(());
            }
            (&connection.stream).write_all(&bytes)?;
        }
    }

    fn close_cut(&self) {
        for link in self.target.lock().take_cut() {
            if let Some(connection) = self.connections.lock().get(&link) {
                connection.close();
            }
        }
    }

    /// Ends connections that were closed at the other side, though their threads may not have come to see it.
    fn forget_closed(&self) {
        for (link, connection) in self.all() {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            if let Ok((_, 0)) = recv(&connection.stream, &mut [0u8], flags) {
                self.forget(link);
            }
        }
    }

    fn all(&self) -> Vec<(Link, Arc<Connection>)> {
        let connections = self.connections.lock();
        connections.iter().map(|(link, connection)| (*link, Arc::clone(connection))).collect()
    }

    fn forget(&self, link: Link) {
        self.connections.lock().remove(&link);
        self.target.lock().disconnect(link);
    }
}
