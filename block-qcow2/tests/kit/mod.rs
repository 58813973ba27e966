//! What the games on qcow2 images share: setups, worlds that an image lives in, and the judges.
//!
//! A [`Setup`] says what an image is like at the start; a [`World`] has the files, of whatever kind the
//! test needs, and opens the image in them. [`judge`] looks at the files once the image is closed.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its part")]
#![allow(clippy::expect_used, reason = "helpers of tests")]

pub mod setups;

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::format::raw::RawFactory;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::registry::OpenContext;
use block_core::{Alignment, Error, Node, OpenError, Options, Registry, RequestFlags};
use block_qcow2::Qcow2Factory;
use block_testkit::campaign::seeded;
use block_testkit::given::{Given, NoFiles};
use block_testkit::model::disk::Source;
use block_testkit::model::frozen::Frozen;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::naive::qcow2::{Image, Report};
use block_testkit::op::{Op, contents};
use block_testkit::play::{Played, failures};
use futures::future::BoxFuture;

pub use setups::{Setup, setups};

/// The files of an image.
#[derive(Clone)]
pub struct World {
    pub image: Arc<dyn BlockDriver>,
    pub data: Option<Arc<dyn BlockDriver>>,
    pub backing: Option<Arc<dyn BlockDriver>>,
    options: Options,
}

impl World {
    /// The image of `setup` in these files; the backing file is made.
    pub fn new(
        setup: &Setup,
        image: Arc<dyn BlockDriver>,
        data: Option<Arc<dyn BlockDriver>>,
    ) -> Self {
        let backing = setup.backing_contents();
        let backing = backing.map(|bytes| memory(&bytes));
        let data = data.filter(|_| setup.shape.data_file.is_some());
        Self { image, data, backing, options: setup.open_options() }
    }

    /// Opens the image for writing, discards passed down.
    pub fn open(&self) -> BoxFuture<'static, Result<Node, OpenError>> {
        self.open_with(OpenFlags::READ_WRITE)
    }

    /// Opens the image.
    pub fn open_with(&self, flags: OpenFlags) -> BoxFuture<'static, Result<Node, OpenError>> {
        let image = Given("given-image", Arc::clone(&self.image));
        let mut registry =
            Registry::new().with(Qcow2Factory).with(RawFactory).with(NoFiles).with(image);
        let mut options = self.options.clone();
        options.set("driver", "qcow2");
        options.set("file.driver", "given-image");
        if let Some(data) = &self.data {
            registry = registry.with(Given("given-data", Arc::clone(data)));
            options.set("data-file.driver", "given-data");
        }
        if let Some(backing) = &self.backing {
            registry = registry.with(Given("given-backing", Arc::clone(backing)));
            options.set("backing.driver", "given-backing");
        }
        OpenContext::new(Arc::new(registry), flags).open(options)
    }
}

/// A disk in memory that holds `bytes`.
pub fn memory(bytes: &[u8]) -> Arc<dyn BlockDriver> {
    Arc::new(MemDriver::from_bytes(bytes).expect("memory"))
}

/// A closed image as the naive reader finds it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What the guest sees.
    pub contents: Vec<u8>,
    /// What each snapshot holds, by name.
    pub snapshots: BTreeMap<String, Vec<u8>>,
    /// What the checker found.
    pub report: Report,
    /// Whether the image is marked dirty.
    pub dirty: bool,
}

/// Reads and checks the image in these bytes.
pub fn judge(setup: &Setup, made: &Made) -> Result<Judged, String> {
    let bad = |error: block_testkit::naive::qcow2::BadImage| format!("naive reader: {error}");
    let backing = setup.backing_contents().unwrap_or_default();
    let image = Image::open(&made.file).map_err(bad)?;
    let image = image.with_data_file(&made.data).with_backing(&backing);
    let mut snapshots = BTreeMap::new();
    for snapshot in image.snapshots().map_err(bad)? {
        let contents = image.snapshot_contents(&snapshot).map_err(bad)?;
        snapshots.insert(snapshot.name, contents);
    }
    Ok(Judged {
        contents: image.contents().map_err(bad)?,
        snapshots,
        report: image.check().map_err(bad)?,
        dirty: image.header().incompatible_features & 1 != 0,
    })
}

impl Judged {
    /// Fails unless there is no error and no leak.
    pub fn clean(&self) -> Result<(), String> {
        if self.dirty {
            return Err("the image is still marked dirty".to_owned());
        }
        if self.report.is_clean() { Ok(()) } else { Err(format!("naive check: {}", self.report)) }
    }

    /// Fails if there are errors; leaks are no errors.
    pub fn no_errors(&self) -> Result<(), String> {
        if self.report.errors() == 0 {
            Ok(())
        } else {
            Err(format!("naive check: {}", self.report))
        }
    }

    /// Fails if there is damage that a crash must not leave. Version 2 has no dirty bit, so COPIED flags
    /// may be wrong where that harms nobody.
    pub fn survived(&self, setup: &Setup) -> Result<(), String> {
        match setup.shape.version {
            2 if self.report.dangers() == 0 => Ok(()),
            _ => self.no_errors(),
        }
    }

    /// Fails unless the snapshots are these.
    pub fn holds(&self, snapshots: &[(String, Frozen)]) -> Result<(), String> {
        let names: Vec<_> = snapshots.iter().map(|(name, _)| name).collect();
        if self.snapshots.len() != names.len() {
            return Err(format!("snapshots {:?}, not {names:?}", self.snapshots.keys()));
        }
        for (name, frozen) in snapshots {
            let found = self.snapshots.get(name).ok_or(format!("snapshot {name} is gone"))?;
            frozen.check(found).map_err(|at| format!("snapshot {name} is wrong at {at:#x}"))?;
        }
        Ok(())
    }
}

/// The operations that failed and may not.
pub fn unexpected(setup: &Setup, ops: &[Op], played: &[Played]) -> Vec<String> {
    let may_fail = |op: &Op, error: Error| match op {
        // What an image of this shape cannot do.
        Op::Truncate { .. } => error == Error::Unsupported && setup.shape.version == 2,
        // A cluster cannot be referred to once more. Applying counts the references of the snapshot
        // before it drops those of the disk.
        Op::Snapshot(_) if setup.shape.refcount_order <= 2 && error.errno() == 22 => true,
        Op::Snapshot(_) => error == Error::Unsupported,
        // Not in a data file; and not where the disk's length has changed, so that it ends elsewhere.
        Op::Write { flags, .. } if flags.contains(RequestFlags::COMPRESSED) => {
            error == Error::Invalid
                || (error == Error::Unsupported && setup.shape.data_file.is_some())
        }
        Op::Zero { flags, .. } if flags.contains(RequestFlags::NO_FALLBACK) => {
            error == Error::Unsupported
        }
        _ => false,
    };
    failures(ops, played, may_fail)
}

/// Random operations on an image of `setup`, up to `most`. Lengths are whole sectors, as images have them.
pub fn ops(setup: &Setup, seed: u64, most: usize) -> Vec<Op> {
    let mut ops = seeded(&setup.space().ops(most), seed);
    for op in &mut ops {
        if let Op::Truncate { len } = op {
            *len = len.next_multiple_of(512);
        }
    }
    ops
}

/// The bytes that `op` writes to the whole of a cluster.
pub fn cluster_bytes(op: u32, index: u64, cluster: u64) -> Vec<u8> {
    let range = block_core::ByteRange::new(index * cluster, cluster).expect("a range");
    contents(op, range)
}

/// Known bytes from the start of the disk.
pub fn known(bytes: &[u8]) -> Source {
    Source::Bytes(0, bytes.into())
}

/// The number as an alignment.
pub fn alignment(bytes: u64) -> Alignment {
    Alignment::new(bytes).expect("an alignment")
}

/// The length of `bytes` as a number of the disk.
pub fn index(offset: u64) -> usize {
    to_usize(offset)
}
