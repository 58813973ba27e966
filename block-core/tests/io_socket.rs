//! Promises of sockets and timers: the same bytes wherever one waits, connections that end when they are
//! dropped, and waits that keep nobody from ending.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use block_core::io::socket::{Piece, Socket};
use block_core::io::timer::Timer;
use block_core::io::{Engine, exec};
use block_core::{Alignment, IoBuf, IoVec};
use futures::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Ways to run a future to its end.
type Run = fn(BoxFuture<'static, ()>);
const EXECUTORS: [(&str, Run); 3] = [
    ("block_on", exec::block_on),
    ("futures", futures::executor::block_on),
    ("smol", |future| smol::block_on(smol::spawn(future))),
];

/// Runs a test on every executor with every engine.
fn everywhere<F: Future<Output = ()> + Send + 'static>(test: impl Fn(Engine) -> F) {
    for engine in [Engine::IoUring, Engine::Threads] {
        for (name, run) in EXECUTORS {
            println!("{name}, {}", engine.name());
            run(Box::pin(test(engine)));
        }
    }
}

/// A connection and its other side, which blocks.
async fn connected(engine: Engine) -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = Socket::connect("127.0.0.1", address.port(), engine).await.unwrap();
    (socket, listener.accept().unwrap().0)
}

async fn both_sides(engine: Engine) -> (Socket, Socket) {
    let (one, other) = connected(engine).await;
    (one, Socket::from_std(other, engine).unwrap())
}

/// Memory of this many bytes in several buffers.
fn memory(rng: &mut SmallRng, mut len: usize) -> IoVec {
    let mut iov = IoVec::new();
    while len > 0 {
        let part = rng.random_range(1..=len.min(50_000));
        iov.push(IoBuf::zeroed(part, Alignment::ONE).unwrap());
        len -= part;
    }
    iov
}

/// Sends `bytes` in pieces of both kinds.
async fn send_all(rng: &mut SmallRng, socket: &mut Socket, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let (own, shared) = rest.split_at(rng.random_range(0..=rest.len().min(300)));
        let iov = memory(rng, shared.len());
        iov.copy_from(0, shared);
        let pieces = [Piece::Bytes(own)].into_iter().filter(|_| !own.is_empty());
        let pieces = pieces.chain(iov.bufs().iter().map(Piece::Buf));
        done += poll_fn(|cx| socket.poll_send(cx, pieces.clone())).await.unwrap();
    }
}

/// Receives `len` bytes, in part into memory of requests.
async fn receive_all(rng: &mut SmallRng, socket: &mut Socket, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let left = len - all.len();
        let direct = rng.random_range(0..=left.min(200_000));
        let direct = memory(rng, direct);
        let mut staging = vec![0; rng.random_range(1..=60_000).min(left.max(1))];
        staging.truncate((left - direct.len()).max(usize::from(direct.is_empty())));
        let n = poll_fn(|cx| socket.poll_receive(cx, &direct, &mut staging)).await.unwrap();
        assert!(n > 0, "the connection ended early");
        let mut bytes = direct.to_vec();
        bytes.extend(staging);
        all.extend(&bytes[..n]);
    }
    all
}

#[test]
fn the_bytes_that_are_sent_are_those_that_come() {
    let seed = rand::random();
    println!("seed {seed}");
    everywhere(|engine| async move {
        let (mut one, mut other) = both_sides(engine).await;
        let mut rng = SmallRng::seed_from_u64(seed);
        for len in [1, 100, 5_000_000] {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes[..]);
            let (mut a, mut b) = (rng.clone(), rng.clone());
            let sent = send_all(&mut a, &mut one, &bytes);
            let ((), received) = futures::join!(sent, receive_all(&mut b, &mut other, len));
            assert!(received == bytes);
        }
        drop(one);
        let mut byte = [0];
        let end = poll_fn(|cx| other.poll_receive(cx, &IoVec::new(), &mut byte)).await;
        assert_eq!(end.unwrap(), 0);
    });
}

#[test]
fn many_round_trips_lose_no_wake_up() {
    everywhere(|engine| async move {
        let (mut one, mut other) = both_sides(engine).await;
        let echo = async {
            let mut buf = [0; 64];
            loop {
                let n = poll_fn(|cx| other.poll_receive(cx, &IoVec::new(), &mut buf)).await;
                let (Ok(n @ 1..), pieces) = (n, &buf) else { return };
                poll_fn(|cx| other.poll_send(cx, [Piece::Bytes(&pieces[..n])])).await.unwrap();
            }
        };
        let ask = async move {
            for i in 0..2000u32 {
                let message = i.to_be_bytes();
                poll_fn(|cx| one.poll_send(cx, [Piece::Bytes(&message)])).await.unwrap();
                let mut back = [0; 64];
                let n = poll_fn(|cx| one.poll_receive(cx, &IoVec::new(), &mut back)).await;
                assert_eq!(&back[..n.unwrap()], message);
            }
        };
        futures::join!(ask, echo);
    });
}

#[test]
fn dropping_a_socket_that_somebody_waits_for_ends_the_connection() {
    everywhere(|engine| async move {
        let (mut socket, mut other) = connected(engine).await;
        {
            let mut byte = [0];
            let iov = IoVec::new();
            let receive = poll_fn(|cx| socket.poll_receive(cx, &iov, &mut byte));
            let mut receive = pin!(receive);
            assert!(futures::poll!(&mut receive).is_pending());
        }
        drop(socket);
        other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn connecting_says_why_it_failed_and_looks_names_up() {
    everywhere(|engine| async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Socket::connect("localhost", port, engine).await.unwrap();
        drop(listener);
        let refused = Socket::connect("127.0.0.1", port, engine).await.err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(Socket::connect("no such host.invalid", port, engine).await.is_err());
    });
}

#[test]
fn a_timer_fires_at_its_deadline_wherever_that_was_moved() {
    everywhere(|engine| async move {
        let mut timer = Timer::new(engine);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        timer.until(at(20)).await;
        assert!(Instant::now() >= at(20));
        // Set, then moved to a later moment, and then to an earlier one.
        for (first, second) in [(40, 60), (10_000, 80)] {
            let polled =
                poll_fn(|cx| std::task::Poll::Ready(timer.poll_until(cx, at(first)))).await;
            assert!(polled.is_pending());
            timer.until(at(second)).await;
            assert!(Instant::now() >= at(second));
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        timer.until(start).await;
    });
}

#[test]
fn a_wait_that_never_ends_keeps_nobody_in_block_on() {
    for engine in [Engine::IoUring, Engine::Threads] {
        let (tx, rx) = mpsc::channel();
        let start = Instant::now();
        let other = exec::block_on(async {
            let (mut socket, other) = connected(engine).await;
            exec::spawn_detached(Box::pin(async move {
                let (mut timer, mut byte) = (Timer::new(engine), [0]);
                let far = Instant::now() + Duration::from_secs(1000);
                let n = poll_fn(|cx| {
                    assert!(timer.poll_until(cx, far).is_pending());
                    socket.poll_receive(cx, &IoVec::new(), &mut byte)
                });
                tx.send((n.await.unwrap(), byte)).unwrap();
            }));
            // Long enough for the detached task to wait.
            Timer::new(engine).until(Instant::now() + Duration::from_millis(10)).await;
            other
        });
        assert!(start.elapsed() < Duration::from_secs(5));
        // It goes on elsewhere.
        std::io::Write::write_all(&mut &other, &[7]).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok((1, [7])));
    }
}

#[test]
fn waits_that_were_given_up_leave_room_for_others() {
    everywhere(|engine| async move {
        let far = Instant::now() + Duration::from_secs(1000);
        for _ in 0..3000 {
            let mut timer = Timer::new(engine);
            assert!(
                poll_fn(|cx| std::task::Poll::Ready(timer.poll_until(cx, far))).await.is_pending()
            );
        }
        let (mut one, mut other) = both_sides(engine).await;
        let mut rng = SmallRng::seed_from_u64(0);
        send_all(&mut rng, &mut one, b"still here").await;
        assert_eq!(receive_all(&mut rng, &mut other, 10).await, b"still here");
    });
}
