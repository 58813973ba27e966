//! Files in memory under the names that the tools give them: a protocol `file` whose files are sparse
//! memory, or disks that a test can crash.
//!
//! Invariants: a name is a whole text, there are no directories; a disk that can crash is never longer than
//! [`CRASH_LEN_MAX`], since its bytes are held more than once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use block_core::driver::{Exactness, Prealloc, ReopenOptions, ReopenState};
use block_core::info::DriverInfo;
use block_core::proto::mem::MemDriver;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};
use block_core::request::status::{DriverStatus, StatusDetail};
use block_core::{
    BlockDriver, BlockLimits, ByteRange, Capabilities, Error, IoVec, OpenError, Options,
    RequestFlags, Result,
};
use block_testkit::disk::crash::CrashDisk;
use parking_lot::Mutex;

/// Longest disk that can crash, in bytes.
pub(crate) const CRASH_LEN_MAX: u64 = 128 << 20;

/// What the files are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Sparse memory.
    Memory,
    /// Disks that remember what is not stable.
    Crash,
}

/// A file.
#[derive(Clone)]
enum File {
    Memory(Arc<MemDriver>),
    Crash(Arc<CrashDisk>),
}

/// The files of one run.
pub(crate) struct Files {
    kind: Kind,
    files: Mutex<BTreeMap<String, File>>,
}

impl Files {
    /// No file yet.
    pub(crate) fn new(kind: Kind) -> Arc<Self> {
        Arc::new(Self { kind, files: Mutex::default() })
    }

    /// Files in memory that hold these bytes.
    pub(crate) fn holding(files: &BTreeMap<String, Vec<u8>>) -> Result<Arc<Self>> {
        let mut made = BTreeMap::new();
        for (name, bytes) in files {
            made.insert(name.clone(), File::Memory(Arc::new(MemDriver::from_bytes(bytes)?)));
        }
        Ok(Arc::new(Self { kind: Kind::Memory, files: Mutex::new(made) }))
    }

    /// The disks that can crash, by name.
    pub(crate) fn crash_disks(&self) -> Vec<(String, Arc<CrashDisk>)> {
        let files = self.files.lock();
        let disks = files.iter().filter_map(|(name, file)| match file {
            File::Crash(disk) => Some((name.clone(), Arc::clone(disk))),
            File::Memory(_) => None,
        });
        disks.collect()
    }

    /// Makes everything stable, as who makes an image does before anybody relies on it.
    pub(crate) async fn settle(&self) {
        for (_, disk) in self.crash_disks() {
            // It never fails.
            let _ = disk.flush_to_disk().await;
        }
    }

    fn find(&self, name: &str) -> Result<File, OpenError> {
        let found = self.files.lock().get(name).cloned();
        let (path, error) = (PathBuf::from(name), Error::Os(libc::ENOENT));
        found.ok_or(OpenError::File { path, error })
    }

    fn make(&self, name: &str) -> File {
        let file = match self.kind {
            Kind::Memory => File::Memory(Arc::new(MemDriver::new(0))),
            Kind::Crash => File::Crash(CrashDisk::new(Vec::new())),
        };
        self.files.lock().insert(name.to_owned(), file.clone());
        file
    }
}

/// Opens and makes [`Files`] by the name `file`.
pub(crate) struct FilesFactory(pub(crate) Arc<Files>);

/// The name of a file among the options.
fn take_name(options: &mut Options) -> Result<String, OpenError> {
    let name = options.take("filename").ok_or_else(|| OpenError::Option {
        option: "filename".to_owned(),
        problem: block_core::error::Problem::Missing,
    })?;
    Ok(name.strip_prefix("file:").unwrap_or(&name).to_owned())
}

#[async_trait]
impl DriverFactory for FilesFactory {
    fn name(&self) -> &'static str {
        "file"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["file"]
    }

    async fn open(
        &self,
        mut options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let name = take_name(&mut options)?;
        // They have no meaning in memory.
        for option in ["aio", "locking"] {
            drop(options.take(option));
        }
        options.finish()?;
        let (inner, len_max): (Arc<dyn BlockDriver>, _) = match self.0.find(&name)? {
            File::Memory(disk) => (disk, u64::MAX),
            File::Crash(disk) => (disk, CRASH_LEN_MAX),
        };
        let read_only = AtomicBool::new(!context.flags.writable);
        Ok(Arc::new(OpenFile { name, inner, read_only, len_max }))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        const OPTIONS: &[CreateOption] = &[
            CreateOption { name: "size", value: "<size>", help: "Length", default: None },
            CreateOption { name: "preallocation", value: "<str>", help: "None", default: None },
        ];
        OPTIONS
    }

    async fn create(&self, mut options: Options, _: OpenContext) -> Result<(), OpenError> {
        let name = take_name(&mut options)?;
        let len = options.take_size("size")?.unwrap_or(0);
        drop(options.take("preallocation"));
        options.finish()?;
        if self.0.kind == Kind::Crash && len > CRASH_LEN_MAX {
            let error = Error::Os(libc::EFBIG);
            return Err(OpenError::File { path: PathBuf::from(name), error });
        }
        let disk: Arc<dyn BlockDriver> = match self.0.make(&name) {
            File::Memory(disk) => disk,
            File::Crash(disk) => disk,
        };
        let made = disk.truncate(len, Exactness::Exact, Prealloc::Off).await;
        made.map_err(|error| OpenError::Request { what: "length", error })
    }
}

/// A file that is open, with its name.
struct OpenFile {
    name: String,
    inner: Arc<dyn BlockDriver>,
    read_only: AtomicBool,
    len_max: u64,
}

impl OpenFile {
    fn inner(&self) -> Arc<dyn BlockDriver> {
        Arc::clone(&self.inner)
    }

    fn allow(&self, end: u64) -> Result<()> {
        if end > self.len_max { Err(Error::Os(libc::EFBIG)) } else { Ok(()) }
    }
}

#[async_trait]
impl BlockDriver for OpenFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn limits(&self) -> BlockLimits {
        self.inner.limits()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    fn info(&self) -> DriverInfo {
        DriverInfo { filename: Some(self.name.clone()), ..self.inner.info() }
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.inner().preadv(range, iov).await
    }

    fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        self.inner.read_now(range, iov)
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.allow(range.end())?;
        self.inner().pwritev(range, iov, flags).await
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        self.allow(range.end())?;
        self.inner().pwrite_zeroes(range, flags).await
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        self.inner().pdiscard(range).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<DriverStatus> {
        self.inner().block_status(range, detail).await
    }

    async fn flush_to_os(self: Arc<Self>) -> Result<()> {
        self.inner().flush_to_os().await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.inner().flush_to_disk().await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.allow(len)?;
        self.inner().truncate(len, exactness, prealloc).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        Ok(Box::new(options.read_only))
    }

    fn reopen_commit(&self, state: ReopenState) {
        if let Ok(read_only) = state.downcast::<Option<bool>>()
            && let Some(read_only) = *read_only
        {
            self.read_only.store(read_only, Ordering::Release);
        }
    }
}
