//! Block devices: a loop device, where the test may make one (it takes root).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc, ReopenOptions};
use block_core::io::exec;
use block_core::proto::file::{self, FileFactory, HostDeviceFactory};
use block_core::range::to_usize;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, OpenFlags, Options, OwnedBuf, Registry,
    RequestFlags,
};

const LEN: u64 = 4 << 20;

/// A loop device over a file of [`LEN`] bytes of the value 5; gone when dropped.
struct Loop {
    device: String,
    _directory: tempfile::TempDir,
}

impl Loop {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("backing");
        std::fs::write(&path, vec![5; to_usize(LEN)]).unwrap();
        Self::over(&path, directory)
    }

    fn over(path: &Path, directory: tempfile::TempDir) -> Option<Self> {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(path).output().ok()?;
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        if !made.status.success() || device.is_empty() {
            println!("no loop device can be made here: the promises of devices are not tested");
            return None;
        }
        Some(Self { device, _directory: directory })
    }

    fn open(&self, driver: &str, flags: OpenFlags) -> Result<Node, OpenError> {
        let registry = Registry::new().with(FileFactory).with(HostDeviceFactory);
        let options = Options::filename(&self.device).with("driver", driver);
        exec::block_on(OpenContext::new(Arc::new(registry), flags).open(options))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").arg("-d").arg(&self.device).status());
    }
}

fn read(node: &Node, offset: u64, len: u64) -> Vec<u8> {
    let buf = IoBuf::zeroed(to_usize(len), Alignment::PAGE).unwrap();
    let range = ByteRange::new(offset, len).unwrap();
    exec::block_on(node.read(range, buf.clone().into())).unwrap();
    buf.to_vec()
}

/// A file system in memory, too small for the device over it; gone when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let small = ["-t", "tmpfs", "-o", "size=512k", "small"];
        let mounted = Command::new("mount").args(small).arg(directory.path()).status().ok()?;
        if !mounted.success() {
            println!("nothing can be mounted here: full file systems are not tested");
            return None;
        }
        Some(Self(directory))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_write_that_fails_has_made_the_file_longer_all_the_same() {
    let Some(small) = Small::new() else { return };
    let path = small.0.path().join("file");
    std::fs::write(&path, [5; 512]).unwrap();
    let registry = Registry::new().with(FileFactory);
    let options = Options::filename(path.to_str().unwrap()).with("driver", "file");
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    let node = exec::block_on(context.open(options)).unwrap();
    let bytes = OwnedBuf::copy_of(&vec![6; 1 << 20], Alignment::PAGE).unwrap().into_shared();
    let range = |offset, len| ByteRange::new(offset, len).unwrap();
    let write = node.write(range(512, 1 << 20), bytes.into(), RequestFlags::empty());
    assert_eq!(exec::block_on(write), Err(Error::NO_SPACE));
    let grown = std::fs::metadata(&path).unwrap().len();
    assert!(grown > 512);
    // What is known to be behind the end is not zeroed byte by byte.
    exec::block_on(node.write_zeroes(range(512, grown), RequestFlags::MAY_UNMAP)).unwrap();
    assert_eq!(read(&node, 512, grown), vec![0; to_usize(grown)]);
    exec::block_on(node.close()).unwrap();
}

#[test]
fn the_loss_of_a_write_that_another_one_hears_of_stays_known() {
    let Some(small) = Small::new() else { return };
    let path = small.0.path().join("backing");
    std::fs::File::create(&path).unwrap().set_len(LEN).unwrap();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(device) = Loop::over(&path, directory) else { return };
    let node = device.open("host_device", OpenFlags::READ_WRITE).unwrap();
    let bytes = OwnedBuf::copy_of(&vec![6; 1 << 20], Alignment::PAGE).unwrap().into_shared();
    let range = |offset, len| ByteRange::new(offset, len).unwrap();
    let write = node.write(range(0, 1 << 20), bytes.clone().into(), RequestFlags::empty());
    exec::block_on(write).unwrap();
    // Half of it finds no room, and whoever has the device open is told of that once.
    let other = std::fs::File::open(&device.device).unwrap();
    assert!(other.sync_all().is_err());
    let stable = node.write(range(2 << 20, 512), bytes.slice(0, 512).into(), RequestFlags::FUA);
    assert!(exec::block_on(stable).is_err());
    for _ in 0..2 {
        assert!(exec::block_on(node.flush()).is_err());
    }
    assert!(exec::block_on(node.close()).is_err());
}

/// A file system of a disk that takes more than there is room for behind it; gone when dropped.
struct Thin {
    directory: tempfile::TempDir,
    _device: Loop,
    _small: Small,
}

impl Thin {
    fn new() -> Option<Self> {
        let small = Small::new()?;
        let path = small.0.path().join("backing");
        std::fs::File::create(&path).unwrap().set_len(LEN).unwrap();
        let [unused, directory] =
            [(); 2].map(|()| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let device = Loop::over(&path, unused)?;
        let mut made = Command::new("mkfs.ext4");
        made.args(["-q", "-O", "^has_journal"]).arg(&device.device);
        assert!(made.status().expect("apt-get install e2fsprogs").success());
        let mounted = Command::new("mount").arg(&device.device).arg(directory.path()).status();
        assert!(mounted.unwrap().success());
        Some(Self { directory, _device: device, _small: small })
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.directory.path()).status());
    }
}

#[test]
fn preallocation_that_finds_no_room_in_the_end_fails() {
    let Some(thin) = Thin::new() else { return };
    let path = thin.directory.path().join("new");
    exec::block_on(file::create(&path, 2 << 20, Prealloc::Full)).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    let path = thin.directory.path().join("old");
    std::fs::write(&path, [5; 512]).unwrap();
    let registry = Registry::new().with(FileFactory);
    let options = Options::filename(path.to_str().unwrap()).with("driver", "file");
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    let node = exec::block_on(context.open(options)).unwrap();
    let longer = node.truncate(2 << 20, Exactness::Exact, Prealloc::Full);
    exec::block_on(longer).unwrap_err();
    assert_eq!((node.len(), std::fs::metadata(&path).unwrap().len()), (512, 512));
    let _ = exec::block_on(node.close());
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded() {
    let Some(device) = Loop::new() else { return };
    for flags in [OpenFlags::READ_WRITE, OpenFlags { direct: true, ..OpenFlags::READ_WRITE }] {
        let node = device.open("host_device", flags).unwrap();
        assert_eq!(node.driver().name(), "host_device");
        assert_eq!(node.len(), LEN);
        assert!(!node.capabilities().has_zero_init);
        let range = |offset, len| ByteRange::new(offset, len).unwrap();
        let bytes = OwnedBuf::copy_of(&[6; 1000], Alignment::PAGE).unwrap().into_shared();
        let write = node.write(range(1001, 1000), bytes.clone().into(), RequestFlags::FUA);
        exec::block_on(write).unwrap();
        assert_eq!(read(&node, 1001, 1000), [6; 1000]);
        assert_eq!(read(&node, 1000, 1), [5]);
        exec::block_on(node.flush()).unwrap();

        let zeroes = node.write_zeroes(range(10_000, 100_000), RequestFlags::empty());
        exec::block_on(zeroes).unwrap();
        let unmap = node.write_zeroes(range(1 << 20, 1 << 20), RequestFlags::MAY_UNMAP);
        exec::block_on(unmap).unwrap();
        assert_eq!(read(&node, 10_000, 100_000), vec![0; 100_000]);
        assert_eq!(read(&node, 1 << 20, 1 << 20), vec![0; 1 << 20]);
        assert_eq!(read(&node, 9_999, 1), [5]);
        exec::block_on(node.discard(range(3 << 20, 1 << 20))).unwrap();

        // It has the length that it has.
        let beyond = node.write(range(LEN, 1000), bytes.into(), RequestFlags::empty());
        assert!(exec::block_on(beyond).is_err());
        let truncate =
            |len, exactness| exec::block_on(node.truncate(len, exactness, Prealloc::Off));
        assert_eq!(truncate(LEN, Exactness::Exact), Ok(()));
        assert_eq!(truncate(1000, Exactness::AtLeast), Ok(()));
        assert_eq!(truncate(1000, Exactness::Exact), Err(Error::Unsupported));
        assert_eq!(truncate(LEN + 512, Exactness::AtLeast), Err(Error::Invalid));
        assert_eq!(node.len(), LEN);
        exec::block_on(node.close()).unwrap();
        // For the second round.
        let fill = OwnedBuf::copy_of(&vec![5; to_usize(LEN)], Alignment::PAGE).unwrap();
        let node = device.open("file", OpenFlags::READ_WRITE).unwrap();
        let iov = fill.into_shared().into();
        exec::block_on(node.write(range(0, LEN), iov, RequestFlags::empty())).unwrap();
        exec::block_on(node.close()).unwrap();
    }
}

#[test]
fn creating_on_a_device_needs_its_room() {
    let Some(device) = Loop::new() else { return };
    let path = Path::new(&device.device);
    exec::block_on(file::create(path, LEN - 512, Prealloc::Off)).unwrap();
    let err = exec::block_on(file::create(path, LEN + 512, Prealloc::Off)).unwrap_err();
    assert!(matches!(err, OpenError::Text { what: "length", .. }), "{err}");
}

#[test]
fn a_failed_flush_stays_failed_until_the_device_is_opened_again() {
    let Some(small) = Small::new() else { return };
    // A device that takes four times as much as there is room for behind it.
    let path = small.0.path().join("backing");
    std::fs::File::create(&path).unwrap().set_len(LEN).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Loop::over(&path, directory) else { return };
    let node = device.open("host_device", OpenFlags::READ_WRITE).unwrap();
    let fill = OwnedBuf::copy_of(&vec![5; to_usize(LEN)], Alignment::PAGE).unwrap();
    let all = ByteRange::new(0, LEN).unwrap();
    let write = node.write(all, fill.into_shared().into(), RequestFlags::empty());
    exec::block_on(write).unwrap();
    let driver = Arc::clone(node.driver());
    let flush = || exec::block_on(Arc::clone(&driver).flush_to_disk());
    assert!(flush().is_err(), "the device had room for everything");
    // The kernel would say that all is well now.
    assert!(flush().is_err());
    let reopened = exec::block_on(async {
        Arc::clone(&driver).reopen_prepare(&ReopenOptions::default()).await
    });
    driver.reopen_commit(reopened.unwrap());
    assert_eq!(flush(), Ok(()));
}
