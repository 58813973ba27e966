//! Where the system refuses io_uring, as containers do, everything works on threads; where it refuses
//! threads, what was left behind is done by whoever wakes it.
//!
//! The tests are behind a filter of system calls; the first runs this very program again for it.
#![cfg(feature = "io-uring")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use block_core::io::{Engine, exec};
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, IoBuf, Node, OpenError, OpenFlags, Options, Registry, RequestFlags,
};
use block_testkit::exec::yield_now;
use futures::FutureExt;
use futures::channel::oneshot;

const BEHIND_THE_FILTER: &str = "BLOCK_CORE_TEST_BEHIND_FILTER";

fn open(path: &str, aio: Option<&str>, direct: bool) -> Result<Node, OpenError> {
    let mut options = Options::filename(path).with("driver", "file");
    if let Some(aio) = aio {
        options.set("aio", aio);
    }
    let registry = Arc::new(Registry::new().with(FileFactory));
    let flags = OpenFlags { direct, ..OpenFlags::READ_WRITE };
    exec::block_on(OpenContext::new(registry, flags).open(options))
}

async fn writes_then_reads(node: Node) {
    let range = |i: u64| ByteRange::new(i * 4096, 4096).unwrap();
    let buf = || IoBuf::zeroed(4096, Alignment::PAGE).unwrap();
    let writes = (0..100u8).map(|i| {
        let buf = buf();
        buf.fill(i);
        node.write(range(u64::from(i)), buf.into(), RequestFlags::FUA)
    });
    assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    node.flush().await.unwrap();
    for i in 0..100u8 {
        let buf = buf();
        node.read(range(u64::from(i)), buf.clone().into()).await.unwrap();
        assert!(buf.to_vec().iter().all(|byte| *byte == i));
    }
    node.close().await.unwrap();
}

#[test]
fn without_io_uring_all_goes_to_threads() {
    if std::env::var_os(BEHIND_THE_FILTER).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "without_io_uring_all_goes_to_threads", "--nocapture"]);
        again.env(BEHIND_THE_FILTER, "1");
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe { again.pre_exec(refuse_io_uring) };
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}\n{error}");
        return;
    }
    assert!(!Engine::IoUring.is_available(), "the filter does not filter");
    assert_eq!(Engine::best(), Engine::Threads);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![0; 100 * 4096]).unwrap();
    let path = path.to_str().unwrap();
    assert!(matches!(open(path, Some("io_uring"), false), Err(OpenError::Unsupported { .. })));
    for direct in [false, true] {
        for aio in [None, Some("native")] {
            let node = match open(path, aio, direct) {
                Ok(node) => node,
                // A file system without direct I/O.
                Err(OpenError::File { .. }) if direct => continue,
                Err(err) => panic!("{err}"),
            };
            exec::block_on(writes_then_reads(node));
            let node = open(path, aio, direct).unwrap();
            futures::executor::block_on(writes_then_reads(node));
        }
    }
}

#[test]
fn without_threads_a_detached_task_that_wakes_itself_is_done() {
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap();
    // Of this thread only.
    refuse([u32::try_from(libc::SYS_clone).unwrap(), clone3, clone3]).unwrap();
    assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "the filter does not filter");
    let (done, end) = oneshot::channel();
    exec::spawn_detached(Box::pin(async move {
        for _ in 0..3 {
            yield_now().await;
        }
        done.send(()).unwrap();
    }));
    assert_eq!(end.now_or_never(), Some(Ok(())));
}

fn refuse_io_uring() -> std::io::Result<()> {
    refuse([425, 426, 427])
}

/// Makes these system calls of the calling thread, and of those that it starts, fail with `EPERM` from now
/// on.
fn refuse(calls: [u32; 3]) -> std::io::Result<()> {
    let statement = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let program = [
        statement(LOAD_WORD, 0, 0, 0),
        statement(JUMP_IF_EQUAL, calls[0], 3, 0),
        statement(JUMP_IF_EQUAL, calls[1], 2, 0),
        statement(JUMP_IF_EQUAL, calls[2], 1, 0),
        statement(RETURN, ALLOW, 0, 0),
        statement(RETURN, REFUSE, 0, 0),
    ];
    let length = libc::c_ushort::try_from(program.len()).unwrap_or_default();
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: both calls take plain numbers and, the second, a filter that lives until it returns.
    let results = unsafe {
        let unprivileged = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        (unprivileged, libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter))
    };
    if results == (0, 0) { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with `EPERM`.
const REFUSE: u32 = 0x0005_0001;
