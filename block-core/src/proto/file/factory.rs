//! Options of `file` and `host_device`: `filename`, `aio`, `locking`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::create::create_recorded;
use super::lock::{Claims, ImageLock, Locking};
use super::reopen::claims_of;
use super::source::{Access, FileKind, Source, refused};
use super::{FileDriver, Hints};
use crate::driver::{BlockDriver, Prealloc};
use crate::error::{OpenError, Problem};
use crate::io::{Engine, pool};
use crate::made::MadeFiles;
use crate::options::Options;
use crate::registry::{CreateOption, DriverFactory, OpenContext};

/// Opens `file`: a regular file or, named by its path alone, a device.
pub struct FileFactory;

/// Opens `host_device`: a device, and nothing else.
pub struct HostDeviceFactory;

#[async_trait]
impl DriverFactory for FileFactory {
    fn name(&self) -> &'static str {
        "file"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["file"]
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        Ok(Arc::new(open("file:", options, &context).await?))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        CREATE_OPTIONS
    }

    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        create("file:", options, context.made).await
    }
}

#[async_trait]
impl DriverFactory for HostDeviceFactory {
    fn name(&self) -> &'static str {
        "host_device"
    }

    fn schemes(&self) -> &'static [&'static str] {
        &["host_device"]
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let driver = open("host_device:", options, &context).await?;
        if driver.kind != FileKind::Device {
            return Err(refused(&driver.path, crate::error::Error::Os(libc::ENOTBLK)));
        }
        Ok(Arc::new(driver))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        CREATE_OPTIONS
    }

    /// Makes nothing: a device must be there, and long enough.
    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        let name = options.peek("filename").unwrap_or_default().to_owned();
        self.open(Options::filename(name), context.clone()).await?;
        create("host_device:", options, context.made).await
    }
}

const CREATE_OPTIONS: &[CreateOption] = &[
    CreateOption {
        name: "nocow",
        value: "<bool (on/off)>",
        help: "No copy-on-write in the file system (btrfs only)",
        default: None,
    },
    CreateOption {
        name: "extent_size_hint",
        value: "<size>",
        help: "Unit in which the file system should allocate, 0 for its own choice",
        default: None,
    },
    CreateOption { name: "size", value: "<size>", help: "Length of the file", default: None },
    CreateOption {
        name: "preallocation",
        value: "<str>",
        help: "Preallocation mode (off, falloc, full)",
        default: None,
    },
];

async fn create(scheme: &str, mut options: Options, made: MadeFiles) -> Result<(), OpenError> {
    let missing =
        |option: &str| OpenError::Option { option: option.to_owned(), problem: Problem::Missing };
    let filename = options.take("filename").ok_or_else(|| missing("filename"))?;
    let len = options.take_size("size")?.ok_or_else(|| missing("size"))?;
    let prealloc = match options.take("preallocation") {
        None => Prealloc::Off,
        Some(name) => match name.as_str() {
            "off" => Prealloc::Off,
            "falloc" => Prealloc::Falloc,
            "full" => Prealloc::Full,
            _ => {
                let (option, problem) = ("preallocation", Problem::Unknown);
                return Err(OpenError::OptionValue { option, value: name, problem });
            }
        },
    };
    let extent_size = match options.take_size("extent_size_hint")?.map(u32::try_from) {
        None => None,
        Some(Ok(bytes)) => Some(bytes),
        Some(Err(_)) => {
            let (option, problem) = ("extent_size_hint", Problem::Above(u32::MAX.into()));
            return Err(OpenError::Option { option: option.to_owned(), problem });
        }
    };
    let hints = Hints { extent_size, no_cow: options.take_bool("nocow")?.unwrap_or(false) };
    options.finish()?;
    let path = filename.strip_prefix(scheme).unwrap_or(&filename);
    create_recorded(Path::new(path), len, prealloc, hints, made).await
}

async fn open(
    scheme: &str,
    mut options: Options,
    context: &OpenContext,
) -> Result<FileDriver, OpenError> {
    let filename = options.take("filename").ok_or_else(|| OpenError::Option {
        option: "filename".to_owned(),
        problem: Problem::Missing,
    })?;
    let path = PathBuf::from(filename.strip_prefix(scheme).unwrap_or(&filename));
    let engine = take_engine(&mut options, context.default_aio)?;
    let locking = take_locking(&mut options)?;
    options.finish()?;
    let flags = context.flags;
    let access = Access { writable: flags.writable, direct: flags.direct };
    // Who writes cannot let others do as they please.
    let claims = if flags.force_share && !access.writable {
        Claims::ANYTHING_GOES
    } else {
        claims_of(access)
    };
    let shown = path.clone();
    let opened =
        pool::run(move || Ok(open_blocking(filename, path, engine, access, locking, claims)));
    opened.await.unwrap_or_else(|error| Err(refused(&shown, error)))
}

fn open_blocking(
    filename: String,
    path: PathBuf,
    engine: Engine,
    access: Access,
    locking: Locking,
    claims: Claims,
) -> Result<FileDriver, OpenError> {
    let source = Source::open(&path, access)?;
    let lock_fd = source.fd.try_clone().map_err(|err| refused(&path, err.into()))?;
    let lock = ImageLock::acquire(lock_fd, &path, locking, claims)?;
    let shown = path.clone();
    FileDriver::new(filename, path, engine, source, lock).map_err(|error| refused(&shown, error))
}

fn take_engine(options: &mut Options, default: Option<&str>) -> Result<Engine, OpenError> {
    match options.take("aio").as_deref().or(default) {
        None => Ok(Engine::best()),
        Some("threads") => Ok(Engine::Threads),
        // What `native` stands for elsewhere is an older interface to the same.
        Some("native") => Ok(Engine::best()),
        Some("io_uring") if Engine::IoUring.is_available() => Ok(Engine::IoUring),
        Some(value @ "io_uring") if !Engine::IoUring.is_built() => {
            let problem = Problem::NotBuilt("io-uring");
            Err(OpenError::OptionValue { option: "aio", value: value.to_owned(), problem })
        }
        Some("io_uring") => Err(OpenError::Unsupported {
            driver: "file",
            what: "aio=io_uring (the system refuses it)",
        }),
        Some(_) => Err(unknown("aio")),
    }
}

fn take_locking(options: &mut Options) -> Result<Locking, OpenError> {
    match options.take("locking").as_deref() {
        None | Some("auto") => Ok(Locking::Auto),
        Some("on") => Ok(Locking::On),
        Some("off") => Ok(Locking::Off),
        Some(_) => Err(unknown("locking")),
    }
}

fn unknown(option: &str) -> OpenError {
    OpenError::Option { option: option.to_owned(), problem: Problem::Unknown }
}
