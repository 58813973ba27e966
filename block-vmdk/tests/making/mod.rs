//! What the tests of new images share: making them by the options of a command line, and storage that
//! hands out named files from memory.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{Alignment, ByteRange, IoBuf, Node, OpenError, Options, Registry};
use block_testkit::peer::ImageDir;
use block_vmdk::VmdkFactory;

pub fn context(flags: OpenFlags) -> OpenContext {
    let registry = Registry::new().with(VmdkFactory).with(RawFactory).with(FileFactory);
    OpenContext::new(Arc::new(registry), flags)
}

/// The options of a command line.
pub fn options(text: &str) -> Options {
    let mut all = Options::new();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap();
        all.set(name, value);
    }
    all
}

/// Makes the image at `path`.
pub fn create_at(path: &str, text: &str, context: OpenContext) -> Result<(), OpenError> {
    let factory = Arc::clone(context.registry.get("vmdk").unwrap());
    block_on(factory.create(options(text).with("filename", path), context))
}

/// Makes the image `name`.
pub fn create(dir: &ImageDir, name: &str, text: &str) -> Result<(), OpenError> {
    create_at(dir.path(name).to_str().unwrap(), text, context(OpenFlags::READ_WRITE))
}

/// Opens the image at `path`.
pub fn open(path: &Path, flags: OpenFlags) -> Result<Node, OpenError> {
    let options = Options::filename(path.to_str().unwrap()).with("driver", "vmdk");
    block_on(context(flags).open(options))
}

/// All that a node holds.
pub fn contents(node: &Node) -> Vec<u8> {
    let len = usize::try_from(node.len()).unwrap();
    let buf = IoBuf::zeroed(len, Alignment::ONE).unwrap();
    buf.fill(0xee);
    block_on(node.read(ByteRange::up_to(node.len()), buf.clone().into())).unwrap();
    buf.to_vec()
}

/// Writes `len` bytes of `byte`.
pub fn write(node: &Node, offset: u64, len: usize, byte: u8) {
    let buf = IoBuf::zeroed(len, Alignment::PAGE).unwrap();
    buf.fill(byte);
    let range = ByteRange::new(offset, u64::try_from(len).unwrap()).unwrap();
    block_on(node.write(range, buf.into(), Default::default())).unwrap();
}

type Maker = dyn Fn(&str) -> Arc<dyn BlockDriver> + Send + Sync;

/// Disks by name, in place of the protocol `file`.
#[derive(Clone)]
pub struct Disks {
    made: Arc<Mutex<BTreeMap<String, Arc<dyn BlockDriver>>>>,
    maker: Arc<Maker>,
}

impl Disks {
    /// Disks that `maker` makes when they are first asked for.
    pub fn new(maker: impl Fn(&str) -> Arc<dyn BlockDriver> + Send + Sync + 'static) -> Self {
        Self { made: Arc::default(), maker: Arc::new(maker) }
    }

    /// The disk of this name, made if need be.
    pub fn disk(&self, name: &str) -> Arc<dyn BlockDriver> {
        let mut made = self.made.lock().unwrap();
        let new = || (self.maker)(name);
        Arc::clone(made.entry(name.to_owned()).or_insert_with(new))
    }

    /// A context whose files are these disks.
    pub fn context(&self, flags: OpenFlags) -> OpenContext {
        let registry = Registry::new().with(VmdkFactory).with(RawFactory).with(self.clone());
        OpenContext::new(Arc::new(registry), flags)
    }
}

#[async_trait]
impl DriverFactory for Disks {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn open(
        &self,
        mut options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let name = options.take("filename").unwrap_or_default();
        options.finish()?;
        Ok(self.disk(&name))
    }

    async fn create(&self, options: Options, _: OpenContext) -> Result<(), OpenError> {
        let node = Node::new(self.disk(options.peek("filename").unwrap()), Default::default());
        if !node.capabilities().has_zero_init {
            return Ok(());
        }
        let failed = |error| OpenError::Request { what: "emptying", error };
        node.truncate(0, Exactness::Exact, Prealloc::Off).await.map_err(failed)
    }
}
