//! What one run has of its own: files, target, counters, and the drivers that lead to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::proto::file::FileFactory;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};
use block_core::{BlockDriver, Cancel, OpenError, Options, Registry, Result};
use block_iscsi::factory::IscsiFactory;
use block_testkit::disk::tap::{Call, Kind, Tap, Tapped, Verdict};
use block_tools::open::drivers;
use parking_lot::Mutex;

use crate::files::{self, Files, FilesFactory};
use crate::filter::Names;
use crate::matrix::Config;
use crate::target::{self, Local, LocalConnector};

/// Everything around the words of one run.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) names: Names,
    /// Files in memory, where the configuration has them.
    pub(crate) files: Option<Arc<Files>>,
    /// The target, where the configuration has one.
    pub(crate) target: Option<Arc<Local>>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) registry: Arc<Registry>,
}

/// Where the names of files in memory begin.
const MEMORY_DIR: &str = "/iotests";

/// Whether requests to files are counted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Counting {
    /// They go straight to the driver.
    Off,
    /// They pass a tap.
    On,
}

impl World {
    /// The world of a configuration. `scratch` is an empty directory, for real files; `len` is the length of
    /// the disk.
    pub(crate) fn new(
        config: Config,
        scratch: Option<PathBuf>,
        len: u64,
        counting: Counting,
    ) -> Result<Self, String> {
        let dir = match &scratch {
            Some(path) => path.to_str().ok_or("the directory's name is no text")?.to_owned(),
            None => MEMORY_DIR.to_owned(),
        };
        let files = match config.protocol.family {
            "file" => None,
            "crash" => Some(Files::new(files::Kind::Crash)),
            _ => Some(Files::new(files::Kind::Memory)),
        };
        let is_iscsi = config.protocol.family == "iscsi";
        let driver = config.format.driver;
        let target = match is_iscsi {
            true => Some(Local::new(config.protocol.name, target::unit_len(driver, len))?),
            false => None,
        };
        let image = if is_iscsi { target::URL.to_owned() } else { format!("{dir}/t.{driver}") };
        let requests = Arc::new(Requests::default());
        let registry = registry(files.as_ref(), target.as_ref(), &requests, counting);
        let names = Names { image, dir, driver };
        Ok(Self { config, names, files, target, requests, registry })
    }
}

/// The tools' drivers, with those of this world in place of `file` and `iscsi`.
fn registry(
    files: Option<&Arc<Files>>,
    target: Option<&Arc<Local>>,
    requests: &Arc<Requests>,
    counting: Counting,
) -> Arc<Registry> {
    let mut registry = drivers();
    registry = match (files, counting) {
        (None, Counting::Off) => registry,
        (None, Counting::On) => registry.with(Counted(FileFactory, Arc::clone(requests))),
        (Some(files), Counting::Off) => registry.with(FilesFactory(Arc::clone(files))),
        (Some(files), Counting::On) => {
            registry.with(Counted(FilesFactory(Arc::clone(files)), Arc::clone(requests)))
        }
    };
    if let Some(target) = target {
        let connector = Arc::new(LocalConnector(Arc::clone(target)));
        registry = registry.with(IscsiFactory::new(connector));
    }
    Arc::new(registry)
}

/// Registry over other files than a world's own, for images that a crash has left.
pub(crate) fn registry_over(files: &Arc<Files>) -> Arc<Registry> {
    Arc::new(drivers().with(FilesFactory(Arc::clone(files))))
}

/// How many requests of each kind went to files.
#[derive(Default)]
pub(crate) struct Requests {
    counts: Mutex<BTreeMap<String, u64>>,
    /// What is cancelled once so many more writes have come.
    cancel: Mutex<Option<(u64, Cancel)>>,
}

impl Requests {
    /// Cancels `cancel` when `after` more writes have come.
    pub(crate) fn cancel_after(&self, after: u64, cancel: &Cancel) {
        *self.cancel.lock() = Some((after, cancel.clone()));
    }

    /// The counts since the last call.
    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.counts.lock())
    }
}

#[async_trait]
impl Tap for Requests {
    async fn before(&self, call: &Call) -> Verdict {
        *self.counts.lock().entry(call.kind.to_string()).or_default() += 1;
        if let Some((left, cancel)) =
            self.cancel.lock().as_mut().filter(|_| call.kind == Kind::Write)
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                cancel.cancel();
            }
        }
        Verdict::Pass
    }
}

/// A protocol whose requests are counted.
struct Counted<F>(F, Arc<Requests>);

#[async_trait]
impl<F: DriverFactory> DriverFactory for Counted<F> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn schemes(&self) -> &'static [&'static str] {
        self.0.schemes()
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let driver = self.0.open(options, context).await?;
        Ok(Tapped::new(driver, Arc::clone(&self.1)))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        self.0.create_options()
    }

    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        self.0.create(options, context).await
    }
}
