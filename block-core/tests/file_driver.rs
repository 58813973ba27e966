//! Promises of the `file` driver: it holds what was written, whatever the engine, the cache mode and
//! the executor; it knows its holes; it reopens, truncates and creates.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc, ReopenOptions};
use block_core::info::InfoValue;
use block_core::io::{Engine, exec};
use block_core::proto::file::{self, FileFactory, HostDeviceFactory};
use block_core::range::{to_u64, to_usize};
use block_core::registry::OpenContext;
use block_core::request::status::{StatusDetail, StatusFlags};
use block_core::{
    Alignment, ByteRange, Error, IoBuf, IoVec, Node, OpenError, OpenFlags, Options, OwnedBuf,
    Problem, Registry, RequestFlags,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        // Not /tmp, which may be a file system without direct I/O or holes.
        Self { directory: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn with_bytes(bytes: &[u8]) -> Self {
        let fixture = Self::new();
        std::fs::write(fixture.path(), bytes).unwrap();
        fixture
    }

    fn options(&self) -> Options {
        Options::filename(self.path().to_str().unwrap()).with("driver", "file")
    }

    fn open(&self, flags: OpenFlags) -> Node {
        exec::block_on(open(self.options(), flags)).unwrap()
    }
}

async fn open(options: Options, flags: OpenFlags) -> Result<Node, OpenError> {
    let registry = Registry::new().with(FileFactory).with(HostDeviceFactory);
    OpenContext::new(Arc::new(registry), flags).open(options).await
}

fn direct(flags: OpenFlags) -> OpenFlags {
    OpenFlags { direct: true, ..flags }
}

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

fn buf_of(bytes: &[u8]) -> IoBuf {
    OwnedBuf::copy_of(bytes, Alignment::PAGE).unwrap().into_shared()
}

fn zeroed(len: usize) -> IoBuf {
    IoBuf::zeroed(len, Alignment::PAGE).unwrap()
}

fn read(node: &Node, offset: u64, len: usize) -> Vec<u8> {
    let buf = zeroed(len);
    exec::block_on(node.read(range(offset, to_u64(len)), buf.clone().into())).unwrap();
    buf.try_into_owned().unwrap().to_vec()
}

fn write(node: &Node, offset: u64, bytes: &[u8], flags: RequestFlags) {
    let iov = buf_of(bytes).into();
    exec::block_on(node.write(range(offset, to_u64(bytes.len())), iov, flags)).unwrap();
}

/// Whether the directory's file system has direct I/O; most tests of it are pointless without.
fn has_direct(fixture: &Fixture) -> bool {
    exec::block_on(open(fixture.options(), direct(OpenFlags::READ_ONLY))).is_ok()
}

/// Random requests of any alignment, one at a time, against bytes in memory.
async fn random_requests(options: Options, flags: OpenFlags, path: PathBuf, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model = std::fs::read(&path).unwrap();
    let node = open(options, flags).await.unwrap();
    for _ in 0..150 {
        let offset = rng.random_range(0..300_000u64);
        let len = if rng.random_bool(0.1) { 200_000 } else { rng.random_range(1..20_000u64) };
        let range = range(offset, len);
        let (start, end) = (to_usize(offset), to_usize(offset + len));
        let old_len = model.len();
        match rng.random_range(0..10) {
            0..3 => {
                let buf = zeroed(to_usize(len));
                // A read that begins beyond the end is the layer's to answer.
                if start < old_len {
                    node.read(range, buf.clone().into()).await.unwrap();
                    let seen = buf.try_into_owned().expect("somebody holds the buffer");
                    let inside = end.min(old_len) - start;
                    assert!(seen[..inside] == model[start..start + inside], "{range}");
                    assert!(seen[inside..].iter().all(|byte| *byte == 0), "{range}");
                }
            }
            3..6 => {
                let mut bytes = vec![0; to_usize(len)];
                rng.fill(&mut bytes[..]);
                model.resize(old_len.max(end), 0);
                model[start..end].copy_from_slice(&bytes);
                let flags =
                    if rng.random_bool(0.2) { RequestFlags::FUA } else { RequestFlags::empty() };
                node.write(range, buf_of(&bytes).into(), flags).await.unwrap();
            }
            6..8 => {
                model.resize(old_len.max(end), 0);
                model[start..end].fill(0);
                let unmap = rng.random_bool(0.5);
                let flags = if unmap { RequestFlags::MAY_UNMAP } else { RequestFlags::empty() };
                node.write_zeroes(range, flags).await.unwrap();
            }
            8 => {
                model.resize(end, 0);
                node.truncate(offset + len, Exactness::Exact, Prealloc::Off).await.unwrap();
            }
            _ => node.flush().await.unwrap(),
        }
        assert_eq!(node.len(), to_u64(model.len()));
    }
    node.close().await.unwrap();
    assert!(std::fs::read(&path).unwrap() == model);
}

#[test]
fn it_holds_what_was_written_by_every_way() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for engine in ["threads", "native"] {
        for flags in [OpenFlags::READ_WRITE, direct(OpenFlags::READ_WRITE)] {
            let fixture = Fixture::with_bytes(&[7; 100_001]);
            let unavailable = engine == "io_uring" && !Engine::IoUring.is_available();
            if unavailable || flags.direct && !has_direct(&fixture) {
                continue;
            }
            for executor in 0..4 {
                let seed = rng.random();
                println!("{engine}, {flags:?}, executor {executor}, seed {seed}");
                let options = fixture.options().with("aio", engine);
                let work = random_requests(options, flags, fixture.path(), seed);
                match executor {
                    0 => exec::block_on(work),
                    1 => futures::executor::block_on(work),
                    2 => tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .build()
                        .unwrap()
                        .block_on(async { tokio::spawn(work).await.unwrap() }),
                    _ => smol::block_on(smol::spawn(work)),
                }
            }
        }
    }
}

#[test]
fn direct_requests_are_aligned_as_the_limits_say() {
    let fixture = Fixture::with_bytes(&[7; 16384]);
    if !has_direct(&fixture) {
        return;
    }
    let node = fixture.open(direct(OpenFlags::READ_WRITE));
    let limits = node.limits();
    assert!(limits.request_alignment.bytes() >= 512 && limits.request_alignment.is_power_of_two());
    // The driver itself passes on what it gets: what is misaligned, the kernel refuses.
    let driver = Arc::clone(node.driver());
    let odd = IoVec::from(zeroed(4097)).slice(1, 4096);
    let refused = exec::block_on(Arc::clone(&driver).preadv(range(0, 4096), odd));
    assert_eq!(refused, Err(Error::Os(libc::EINVAL)));
    let short = IoVec::from(zeroed(100));
    let refused = exec::block_on(driver.preadv(range(0, 100), short));
    assert_eq!(refused, Err(Error::Os(libc::EINVAL)));
    // The layer above it aligns.
    assert_eq!(read(&node, 3, 100), [7; 100]);
    let plain = fixture.open(OpenFlags { force_share: true, ..OpenFlags::READ_ONLY });
    assert_eq!(plain.limits().request_alignment, Alignment::ONE);
}

#[test]
fn holes_are_found_and_made() {
    let fixture = Fixture::new();
    let file = std::fs::File::create(fixture.path()).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[1; 65536], 256 << 10).unwrap();
    drop(file);
    let node = fixture.open(OpenFlags::READ_WRITE);
    let status = |offset, detail| {
        let all = range(offset, (1 << 20) - offset);
        let status = exec::block_on(node.block_status(all, detail)).unwrap();
        (status.len, status.is_data(), status.is_zero())
    };
    let zeroes = StatusDetail::Zeroes;
    if status(0, zeroes) == (1 << 20, true, false) {
        println!("a file system that does not know its holes");
        return;
    }
    assert_eq!(status(0, zeroes), (256 << 10, false, true));
    assert_eq!(status(256 << 10, zeroes), (64 << 10, true, false));
    assert_eq!(status(320 << 10, zeroes), (704 << 10, false, true));
    assert_eq!(status(300 << 10, zeroes), (20 << 10, true, false));
    assert_eq!(status(0, StatusDetail::Allocation), (1 << 20, true, false));
    let last = exec::block_on(node.block_status(range(0, 1 << 30), zeroes)).unwrap();
    assert!(!last.flags.contains(StatusFlags::EOF));

    let discard = node.discard(range(256 << 10, 64 << 10));
    exec::block_on(discard).unwrap();
    assert_eq!(status(0, zeroes), (1 << 20, false, true));
    assert_eq!(std::fs::metadata(fixture.path()).unwrap().blocks(), 0);
}

#[test]
fn zeroes_keep_their_space_unless_they_may_give_it_back() {
    let fixture = Fixture::with_bytes(&[5; 1 << 20]);
    let node = fixture.open(OpenFlags::READ_WRITE);
    exec::block_on(node.flush()).unwrap();
    let blocks = || std::fs::metadata(fixture.path()).unwrap().blocks() * 512;
    let full = blocks();
    assert!(full >= 1 << 20);
    exec::block_on(node.write_zeroes(range(0, 512 << 10), RequestFlags::empty())).unwrap();
    assert!(blocks() >= 1 << 20, "zeroes without MAY_UNMAP gave space back");
    let fast = RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK;
    match exec::block_on(node.write_zeroes(range(512 << 10, 256 << 10), fast)) {
        Ok(()) => assert!(blocks() <= full - (256 << 10)),
        Err(err) => assert_eq!(err, Error::Unsupported),
    }
    assert_eq!(read(&node, 0, 512 << 10), vec![0; 512 << 10]);
    assert_eq!(read(&node, 768 << 10, 256 << 10), vec![5; 256 << 10]);
}

#[test]
fn zeroes_beyond_the_end_grow_the_file_to_exactly_there() {
    for flags in [OpenFlags::READ_WRITE, direct(OpenFlags::READ_WRITE)] {
        let fixture = Fixture::with_bytes(&[5; 4096]);
        if flags.direct && !has_direct(&fixture) {
            continue;
        }
        let node = fixture.open(flags);
        exec::block_on(node.write_zeroes(range(2048, 1 << 20), RequestFlags::empty())).unwrap();
        assert_eq!(node.len(), 2048 + (1 << 20));
        node_equals(&node, &fixture.path(), |bytes| {
            bytes[..2048].iter().all(|b| *b == 5) && bytes[2048..].iter().all(|b| *b == 0)
        });
    }
}

fn node_equals(node: &Node, path: &Path, holds: impl Fn(&[u8]) -> bool) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(node.len(), to_u64(bytes.len()));
    assert!(holds(&bytes));
    assert!(read(node, 0, bytes.len()) == bytes);
}

#[test]
fn truncate_preallocates_as_asked() {
    let fixture = Fixture::with_bytes(&[5; 4096]);
    let node = fixture.open(OpenFlags::READ_WRITE);
    let blocks = || std::fs::metadata(fixture.path()).unwrap().blocks() * 512;
    let truncate = |len, prealloc| {
        exec::block_on(node.truncate(len, Exactness::Exact, prealloc)).map(|()| node.len())
    };
    assert_eq!(truncate(1 << 20, Prealloc::Off), Ok(1 << 20));
    assert!(blocks() < 64 << 10);
    assert_eq!(truncate(2 << 20, Prealloc::Falloc), Ok(2 << 20));
    assert!(blocks() >= 1 << 20);
    assert_eq!(truncate(3 << 20, Prealloc::Full), Ok(3 << 20));
    assert!(blocks() >= 2 << 20);
    assert_eq!(truncate(4 << 20, Prealloc::Metadata), Err(Error::Unsupported));
    assert_eq!(node.len(), 3 << 20);
    assert_eq!(truncate(1000, Prealloc::Off), Ok(1000));
    node_equals(&node, &fixture.path(), |bytes| bytes == [5; 1000]);
}

#[test]
fn reopening_changes_mode_and_cache_and_can_be_dropped() {
    let fixture = Fixture::with_bytes(&[5; 8192]);
    let node = fixture.open(OpenFlags::READ_ONLY);
    let driver = node.driver();
    let refused = exec::block_on(Arc::clone(driver).pwritev(
        range(0, 3),
        buf_of(&[1; 3]).into(),
        RequestFlags::empty(),
    ));
    assert_eq!(refused, Err(Error::ReadOnly));
    let prepare = |options: ReopenOptions| {
        let driver = Arc::clone(driver);
        exec::block_on(async move { driver.reopen_prepare(&options).await })
    };
    let writable = ReopenOptions { read_only: Some(false), ..ReopenOptions::default() };
    let state = prepare(writable).unwrap();
    assert!(driver.is_read_only(), "prepared, not yet made");
    driver.reopen_abort(state);
    assert!(driver.is_read_only());
    // The aborted one left no lock: another reader comes in.
    drop(fixture.open(OpenFlags::READ_ONLY));

    driver.reopen_commit(prepare(writable).unwrap());
    assert!(!driver.is_read_only());
    let writes = Arc::clone(driver).pwritev(range(0, 3), buf_of(&[1; 3]).into(), RequestFlags::FUA);
    exec::block_on(writes).unwrap();
    let second = exec::block_on(open(fixture.options(), OpenFlags::READ_ONLY));
    assert!(matches!(second, Err(OpenError::Locked { .. })));
    if has_direct(&Fixture::with_bytes(&[0; 4096])) {
        let direct = ReopenOptions { direct: Some(true), ..ReopenOptions::default() };
        driver.reopen_commit(prepare(direct).unwrap());
        assert!(driver.limits().request_alignment.bytes() >= 512);
        assert!(!driver.is_read_only());
    }
    let back = ReopenOptions { read_only: Some(true), direct: Some(false), no_flush: None };
    driver.reopen_commit(prepare(back).unwrap());
    assert_eq!(driver.limits().request_alignment, Alignment::ONE);
    drop(fixture.open(OpenFlags::READ_ONLY));
    assert_eq!(read(&node, 0, 4), [1, 1, 1, 5]);
}

#[test]
fn options_are_checked_and_the_engine_is_shown() {
    let fixture = Fixture::with_bytes(&[5; 8192]);
    let try_open = |options| exec::block_on(open(options, OpenFlags::READ_ONLY));
    for (name, value) in [("aio", "fibers"), ("locking", "maybe"), ("bogus", "1")] {
        let err = try_open(fixture.options().with(name, value)).unwrap_err();
        let expect = OpenError::Option { option: name.to_owned(), problem: Problem::Unknown };
        assert_eq!(err, expect);
    }
    let err = try_open(Options::new().with("driver", "file")).unwrap_err();
    assert_eq!(err.to_string(), "Invalid option 'filename': is missing");
    let err = try_open(Options::filename("/nonexistent/x").with("driver", "file")).unwrap_err();
    assert_eq!(err.to_string(), "Could not open '/nonexistent/x': No such file or directory");
    let not_a_device = fixture.options().with("driver", "host_device");
    assert!(matches!(try_open(not_a_device), Err(OpenError::File { .. })));

    let node = try_open(fixture.options().with("aio", "threads")).unwrap();
    let aio = |node: &Node| node.driver().info().specific;
    assert_eq!(aio(&node), [("aio", InfoValue::Text("threads".to_owned()))]);
    let node = try_open(fixture.options()).unwrap();
    let best = Engine::best().name().to_owned();
    assert_eq!(aio(&node), [("aio", InfoValue::Text(best))]);
    // `file:` may stand before the path.
    let named = format!("file:{}", fixture.path().display());
    let node = try_open(Options::filename(named).with("driver", "file")).unwrap();
    assert_eq!(node.len(), 8192);
}

#[test]
fn an_invalidated_cache_looks_again() {
    let fixture = Fixture::with_bytes(&[5; 8192]);
    let node = fixture.open(OpenFlags { force_share: true, ..OpenFlags::READ_ONLY });
    std::fs::write(fixture.path(), [6; 100_000]).unwrap();
    assert_eq!(node.driver().len(), 8192);
    exec::block_on(Arc::clone(node.driver()).invalidate_cache()).unwrap();
    assert_eq!(node.driver().len(), 100_000);
}

#[test]
fn creating_replaces_and_respects_locks() {
    let fixture = Fixture::with_bytes(&[5; 8192]);
    let path = fixture.path();
    let create = |len, prealloc| exec::block_on(file::create(&path, len, prealloc));
    {
        let _user = fixture.open(OpenFlags::READ_ONLY);
        assert!(matches!(create(100, Prealloc::Off), Err(OpenError::Locked { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), [5; 8192], "a locked image was touched");
    }
    create(100, Prealloc::Off).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 100]);
    create(1 << 20, Prealloc::Off).unwrap();
    let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!((1..1 << 20).contains(&allocated), "the first block and little else: {allocated}");
    create(1 << 20, Prealloc::Falloc).unwrap();
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
    std::fs::remove_file(&path).unwrap();
    create(1 << 20, Prealloc::Full).unwrap();
    assert!(std::fs::read(&path).unwrap() == vec![0; 1 << 20]);
    let nowhere = fixture.directory.path().join("no/such/place");
    let err = exec::block_on(file::create(&nowhere, 1, Prealloc::Off)).unwrap_err();
    assert!(matches!(err, OpenError::File { error: Error::Os(libc::ENOENT), .. }));
}

#[test]
fn requests_beside_each_other_do_not_disturb() {
    let fixture = Fixture::with_bytes(&[0; 1 << 20]);
    for flags in [OpenFlags::READ_WRITE, direct(OpenFlags::READ_WRITE)] {
        if flags.direct && !has_direct(&fixture) {
            continue;
        }
        let node = fixture.open(flags);
        let writes = (0..256u64).map(|i| {
            let buf = buf_of(&[u8::try_from(i).unwrap(); 4096]);
            node.write(range(i * 4096, 4096), buf.into(), RequestFlags::empty())
        });
        let results = exec::block_on(futures::future::join_all(writes));
        assert!(results.iter().all(Result::is_ok));
        write(&node, 100, b"overwritten", RequestFlags::FUA);
        let bytes = std::fs::read(fixture.path()).unwrap();
        assert_eq!(&bytes[100..111], b"overwritten");
        for (index, chunk) in bytes.chunks(4096).enumerate().skip(1) {
            assert!(chunk.iter().all(|byte| usize::from(*byte) == index));
        }
    }
}
