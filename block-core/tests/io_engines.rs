//! Promises of the engines: the same bytes on every executor, buffers that live as long as they are
//! needed and not longer, and requests that outlive those who sent them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use block_core::io::exec;
use block_core::io::{self, Durability, Engine, Fallocate, Handle};
use block_core::{Alignment, ByteRange, Error, IoBuf, IoVec};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;

/// Ways to run a future to its end.
type Run = fn(BoxFuture<'static, ()>);
const EXECUTORS: [(&str, Run); 5] = [
    ("block_on", exec::block_on),
    ("futures", futures::executor::block_on),
    ("tokio, one thread", |future| {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    }),
    ("tokio, two threads", |future| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
        let runtime = runtime.unwrap();
        runtime.block_on(async { tokio::spawn(future).await.unwrap() });
    }),
    ("smol", |future| smol::block_on(smol::spawn(future))),
];

fn engines() -> Vec<Engine> {
    let all = [Engine::Threads, Engine::IoUring];
    all.into_iter().filter(|engine| engine.is_available()).collect()
}

fn directory() -> tempfile::TempDir {
    // Not /tmp, which may be a file system without direct I/O.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn scratch(directory: &tempfile::TempDir) -> File {
    let path = directory.path().join("scratch");
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The same file, past the page cache; `None` where the file system has no direct I/O.
fn direct(directory: &tempfile::TempDir) -> Option<Arc<Handle>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(directory.path().join("scratch")).ok()?;
    Some(Arc::new(Handle::direct(file.into(), Alignment::PAGE)))
}

fn buffered(file: &File) -> Arc<Handle> {
    Arc::new(Handle::buffered(file.try_clone().unwrap().into()))
}

fn random_bytes(rng: &mut SmallRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

fn buf_of(bytes: &[u8]) -> IoBuf {
    block_core::OwnedBuf::copy_of(bytes, Alignment::PAGE).unwrap().into_shared()
}

fn zeroed(len: usize) -> IoBuf {
    IoBuf::zeroed(len, Alignment::PAGE).unwrap()
}

fn rng() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// Random reads and writes of whole blocks at depth 64, each block in one request at a time, against
/// the file as plain reads see it.
async fn churn(engine: Engine, handle: Arc<Handle>, plain: Arc<File>, mut rng: SmallRng) {
    let mut running = FuturesUnordered::new();
    let mut busy = vec![false; usize::try_from(BLOCKS).unwrap()];
    let mut left = 400;
    while left > 0 || !running.is_empty() {
        while left > 0 && running.len() < 64 {
            left -= 1;
            let index = loop {
                let index = rng.random_range(0..busy.len());
                if !std::mem::replace(&mut busy[index], true) {
                    break index;
                }
            };
            let offset = u64::try_from(index * BLOCK).unwrap();
            let (handle, plain) = (Arc::clone(&handle), Arc::clone(&plain));
            let expect = random_bytes(&mut rng, BLOCK);
            let write = rng.random_bool(0.5);
            running.push(async move {
                let mut seen = vec![0; BLOCK];
                let buf = if write {
                    let buf = buf_of(&expect);
                    let durability =
                        if index % 16 == 0 { Durability::Stable } else { Durability::Cached };
                    engine.write(handle, offset, buf.clone().into(), durability).await.unwrap();
                    plain.read_exact_at(&mut seen, offset).unwrap();
                    buf
                } else {
                    plain.read_exact_at(&mut seen, offset).unwrap();
                    let buf = zeroed(BLOCK);
                    engine.read(handle, offset, buf.clone().into()).await.unwrap();
                    buf
                };
                // Nobody else holds the buffer any more once the request is done.
                let bytes = buf.try_into_owned().expect("the engine still holds the buffer");
                assert!(bytes[..] == seen[..], "block {index} differs, write: {write}");
                assert!(!write || seen == expect);
                index
            });
        }
        if let Some(index) = running.next().await {
            busy[index] = false;
        }
    }
}

#[test]
fn depth_64_gives_the_bytes_of_pread_on_every_executor() {
    let directory = directory();
    let file = scratch(&directory);
    let mut rng = rng();
    file.write_all_at(&random_bytes(&mut rng, BLOCK * usize::try_from(BLOCKS).unwrap()), 0)
        .unwrap();
    let plain = Arc::new(file.try_clone().unwrap());
    let handles = [Some(buffered(&file)), direct(&directory)];
    for handle in handles.into_iter().flatten() {
        for engine in engines() {
            for (name, run) in EXECUTORS {
                println!("{engine:?}, direct {}, {name}", handle.is_direct());
                let rng = SmallRng::seed_from_u64(rng.random());
                run(Box::pin(churn(engine, Arc::clone(&handle), Arc::clone(&plain), rng)));
            }
        }
    }
}

#[test]
fn more_requests_than_the_ring_holds_all_complete() {
    let directory = directory();
    let file = scratch(&directory);
    let bytes: Vec<u8> = (0..3000 * 64u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    file.write_all_at(&bytes, 0).unwrap();
    let handle = buffered(&file);
    for engine in engines() {
        for (name, run) in [EXECUTORS[0], EXECUTORS[1]] {
            let (handle, bytes) = (Arc::clone(&handle), bytes.clone());
            println!("{engine:?}, {name}");
            run(Box::pin(async move {
                let bufs: Vec<_> = (0..3000).map(|_| zeroed(64)).collect();
                let reads = bufs
                    .iter()
                    .zip(0..)
                    .map(|(buf, i)| engine.read(Arc::clone(&handle), i * 64, buf.clone().into()));
                let results = futures::future::join_all(reads).await;
                assert!(results.iter().all(Result::is_ok));
                for (buf, expect) in bufs.into_iter().zip(bytes.chunks(64)) {
                    assert_eq!(buf.to_vec(), expect);
                }
            }));
        }
    }
}

#[test]
fn many_buffers_and_the_end_of_the_file() {
    let directory = directory();
    let file = scratch(&directory);
    let mut rng = rng();
    let bytes = random_bytes(&mut rng, 2 * BLOCK + 1000);
    file.write_all_at(&bytes, 0).unwrap();
    for handle in [Some(buffered(&file)), direct(&directory)].into_iter().flatten() {
        for engine in engines() {
            // More buffers than one call takes, some of them beyond the end.
            let piece = if handle.is_direct() { BLOCK } else { 7 };
            let iov: IoVec = (0..1500).map(|_| buf_of(&vec![0xee; piece])).collect();
            exec::block_on(engine.read(Arc::clone(&handle), 0, iov.clone())).unwrap();
            let seen = iov.to_vec();
            let inside = bytes.len().min(seen.len());
            assert!(seen[..inside] == bytes[..inside]);
            assert!(seen[inside..].iter().all(|byte| *byte == 0));
            // A read that starts beyond the end.
            let buf = buf_of(&[0xee; BLOCK]);
            exec::block_on(engine.read(Arc::clone(&handle), 1 << 20, buf.clone().into())).unwrap();
            assert!(buf.is_zero());
        }
    }
    let iov: IoVec = (0..1500).map(|i| buf_of(&[u8::try_from(i % 256).unwrap(); 7])).collect();
    for engine in engines() {
        let handle = buffered(&file);
        exec::block_on(engine.write(handle, 100, iov.clone(), Durability::Cached)).unwrap();
        let mut seen = vec![0; 1500 * 7];
        file.read_exact_at(&mut seen, 100).unwrap();
        assert!(seen == iov.to_vec());
        file.write_all_at(&bytes, 0).unwrap();
    }
}

#[test]
fn reads_that_the_page_cache_holds_are_inline_and_the_rest_is_told() {
    let directory = directory();
    let file = scratch(&directory);
    file.write_all_at(&[5; 4 * BLOCK], 0).unwrap();
    let handle = buffered(&file);
    let iov: IoVec = zeroed(4 * BLOCK).into();
    assert_eq!(io::read_cached(&handle, 0, &iov), Ok(4 * BLOCK));
    assert!(iov.to_vec().iter().all(|byte| *byte == 5));
    // Beyond the end there is nothing to wait for either.
    assert_eq!(io::read_cached(&handle, 1 << 20, &iov), Ok(4 * BLOCK));
    assert!(iov.is_zero());
    let short: IoVec = buf_of(&[9; 100]).into();
    assert_eq!(io::write_cached(&handle, 10, &short), Ok(100));
    let long: IoVec = zeroed(io::INLINE_WRITE_MAX + 1).into();
    assert_eq!(io::write_cached(&handle, 0, &long), Ok(0));
}

#[test]
fn errors_are_those_of_the_system() {
    let directory = directory();
    let file = scratch(&directory);
    file.write_all_at(&[5; 4 * BLOCK], 0).unwrap();
    let read_only = File::open(directory.path().join("scratch")).unwrap();
    let handle = Arc::new(Handle::buffered(OwnedFd::from(read_only)));
    for engine in engines() {
        let iov: IoVec = zeroed(BLOCK).into();
        let write = engine.write(Arc::clone(&handle), 0, iov, Durability::Stable);
        assert_eq!(exec::block_on(write), Err(Error::Os(libc::EBADF)));
        if let Some(handle) = direct(&directory) {
            // Memory at an odd address is refused, not bounced: alignment is the layer's business.
            let odd: IoVec = zeroed(BLOCK + 1).slice(1, BLOCK).into();
            let write = engine.write(handle, 0, odd, Durability::Cached);
            assert_eq!(exec::block_on(write), Err(Error::Os(libc::EINVAL)));
        }
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Arc::new(Handle::buffered(full.into()));
        let write = engine.write(full, 0, zeroed(BLOCK).into(), Durability::Cached);
        assert_eq!(exec::block_on(write), Err(Error::NO_SPACE));
    }
}

#[test]
fn space_is_given_and_taken() {
    let directory = directory();
    let file = scratch(&directory);
    for engine in engines() {
        let handle = buffered(&file);
        file.write_all_at(&[5; 64 * BLOCK], 0).unwrap();
        let range = ByteRange::new(16 << 12, 16 << 12).unwrap();
        let punch = engine.fallocate(Arc::clone(&handle), range, Fallocate::PunchHole);
        if exec::block_on(punch) == Err(Error::Os(libc::EOPNOTSUPP)) {
            continue;
        }
        let mut seen = vec![1; 16 * BLOCK];
        file.read_exact_at(&mut seen, range.offset()).unwrap();
        assert!(seen.iter().all(|byte| *byte == 0));
        file.write_all_at(&[6; 16 * BLOCK], range.offset()).unwrap();
        let zero = engine.fallocate(Arc::clone(&handle), range, Fallocate::ZeroRange);
        if exec::block_on(zero).is_ok() {
            file.read_exact_at(&mut seen, range.offset()).unwrap();
            assert!(seen.iter().all(|byte| *byte == 0));
        }
        exec::block_on(engine.sync(Arc::clone(&handle))).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 12);
    }
}

/// A read that cannot complete before something is written to the returned end of its pipe.
fn read_from_pipe(
    buf: &IoBuf,
) -> (impl Future<Output = Result<(), Error>> + Send + 'static, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let handle = Arc::new(Handle::buffered(reader.into()));
    (Engine::IoUring.read(handle, 0, buf.clone().into()), writer)
}

/// Waits until nobody else holds the buffer.
async fn released(mut buf: IoBuf) -> block_core::OwnedBuf {
    for _ in 0..10_000 {
        match buf.try_into_owned() {
            Ok(owned) => return owned,
            Err(shared) => buf = shared,
        }
        pool_pause().await;
    }
    panic!("the buffer is never released");
}

/// Lets the executor look at its ring, and others run.
async fn pool_pause() {
    let (tx, rx) = futures::channel::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1));
        tx.send(()).unwrap();
    });
    rx.await.unwrap();
}

async fn dropped_in_flight() {
    let buf = buf_of(&[7; 64]);
    {
        let (read, mut writer) = read_from_pipe(&buf);
        let mut read = Box::pin(read);
        assert!(futures::poll!(&mut read).is_pending());
        pool_pause().await;
        assert!(futures::poll!(&mut read).is_pending(), "nothing was written yet");
        drop(read);
        pool_pause().await;
        let buf = buf.clone();
        // In flight: the kernel's handle and the two here.
        let buf = buf.try_into_owned().unwrap_err();
        assert_eq!(buf.to_vec(), [7; 64]);
        writer.write_all(&[8; 64]).unwrap();
    }
    let bytes = released(buf).await;
    assert_eq!(bytes[..], [8; 64]);
}

#[test]
fn a_dropped_operation_keeps_its_buffers_until_the_kernel_is_done() {
    if !Engine::IoUring.is_available() {
        return;
    }
    for (name, run) in EXECUTORS {
        println!("{name}");
        run(Box::pin(dropped_in_flight()));
    }
}

#[test]
fn block_on_waits_for_what_its_ring_holds() {
    if !Engine::IoUring.is_available() {
        return;
    }
    let buf = zeroed(64);
    let (read, mut writer) = read_from_pipe(&buf);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        writer.write_all(&[3; 64]).unwrap();
    });
    exec::block_on(async move {
        let mut read = Box::pin(read);
        assert!(futures::poll!(&mut read).is_pending());
    });
    // Nothing is left in the ring, so the buffer is free and full.
    assert_eq!(buf.try_into_owned().unwrap()[..], [3; 64]);
    late.join().unwrap();
}

#[test]
fn a_request_begun_under_block_on_can_be_finished_elsewhere() {
    if !Engine::IoUring.is_available() {
        return;
    }
    let buf = zeroed(64);
    let (read, mut writer) = read_from_pipe(&buf);
    let (begun_tx, begun_rx) = std::sync::mpsc::channel();
    let (done_tx, done_rx) = futures::channel::oneshot::channel();
    let elsewhere = std::thread::spawn(move || {
        let read: Pin<Box<dyn Future<Output = _> + Send>> = begun_rx.recv().unwrap();
        writer.write_all(&[4; 64]).unwrap();
        let result = futures::executor::block_on(read);
        done_tx.send(result).unwrap();
    });
    let result = exec::block_on(async move {
        let mut read: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(read);
        assert!(futures::poll!(&mut read).is_pending());
        begun_tx.send(read).unwrap();
        done_rx.await.unwrap()
    });
    elsewhere.join().unwrap();
    assert_eq!(result, Ok(()));
    assert_eq!(buf.try_into_owned().unwrap()[..], [4; 64]);
}

#[test]
fn requests_of_detached_tasks_finish_on_the_background_thread() {
    for engine in engines() {
        let directory = directory();
        let file = scratch(&directory);
        file.write_all_at(&[5; 16 * BLOCK], 0).unwrap();
        let handle = buffered(&file);
        let (tx, rx) = std::sync::mpsc::channel();
        exec::block_on(async {
            for index in 0..16 {
                let (handle, tx) = (Arc::clone(&handle), tx.clone());
                exec::spawn_detached(Box::pin(async move {
                    for _ in 0..50 {
                        let buf = zeroed(BLOCK);
                        let read =
                            engine.read(Arc::clone(&handle), index << 12, buf.clone().into());
                        read.await.unwrap();
                        assert_eq!(buf.to_vec(), [5; BLOCK]);
                    }
                    tx.send(index).unwrap();
                }));
            }
        });
        let mut done: Vec<u64> = rx.iter().take(16).collect();
        done.sort_unstable();
        assert_eq!(done, (0..16).collect::<Vec<_>>());
    }
}

#[test]
fn a_nested_block_on_leaves_the_outer_one_working() {
    let directory = directory();
    let file = scratch(&directory);
    file.write_all_at(&[5; 16 * BLOCK], 0).unwrap();
    for engine in engines() {
        let handle = buffered(&file);
        exec::block_on(async {
            let buf = zeroed(BLOCK);
            let mut outer = pin!(engine.read(Arc::clone(&handle), 0, buf.clone().into()));
            // A thread of the pool may be that quick; a ring is not before it is entered.
            let first = futures::poll!(&mut outer);
            assert!(first.is_pending() || engine == Engine::Threads);
            let inner = zeroed(BLOCK);
            let read = engine.read(Arc::clone(&handle), 4096, inner.clone().into());
            exec::block_on(read).unwrap();
            assert_eq!(inner.to_vec(), [5; BLOCK]);
            if first.is_pending() {
                outer.await.unwrap();
            }
            assert_eq!(buf.to_vec(), [5; BLOCK]);
        });
    }
}

#[test]
fn a_future_that_never_sleeps_does_not_starve_its_requests() {
    let directory = directory();
    let file = scratch(&directory);
    file.write_all_at(&[5; BLOCK], 0).unwrap();
    for engine in engines() {
        let handle = buffered(&file);
        let buf = zeroed(BLOCK);
        let mut read = Box::pin(engine.read(handle, 0, buf.clone().into()));
        let spinning = std::future::poll_fn(move |cx: &mut Context<'_>| {
            let polled = read.as_mut().poll(cx);
            cx.waker().wake_by_ref();
            polled
        });
        exec::block_on(spinning).unwrap();
        assert_eq!(buf.to_vec(), [5; BLOCK]);
    }
}
