//! What the games on VMDK disks share: setups, worlds that the files of a disk live in, and the judges.
//!
//! A [`Setup`] says what a disk is like at the start; a [`World`] has the files, of whatever kind the test
//! needs, and opens the disk in them. [`judge`] looks at the files once the disk is closed.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its part")]
#![allow(clippy::expect_used, reason = "helpers of tests")]

pub mod setups;

use std::sync::Arc;

use block_core::budget::MemoryBudget;
use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::registry::OpenContext;
use block_core::{Alignment, Error, Node, OpenError, Options, Registry, RequestFlags};
use block_testkit::campaign::seeded;
use block_testkit::given::{Given, NoFiles};
use block_testkit::model::disk::Source;
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::naive::vmdk::{Files, Image, Report};
use block_testkit::op::Op;
use block_testkit::play::{Played, failures};
use block_vmdk::VmdkFactory;
use futures::future::BoxFuture;

pub use setups::{Setup, setups};

/// Protocols by which the files of a disk are given: the descriptor, or the only file, first.
const GIVEN: [&str; 6] = ["given-0", "given-1", "given-2", "given-3", "given-4", "given-5"];

/// The files of a disk, open as drivers.
#[derive(Clone)]
pub struct World {
    /// The descriptor, or the only file; then the extents in their order.
    pub files: Vec<Arc<dyn BlockDriver>>,
    pub base: Option<Arc<dyn BlockDriver>>,
    options: Options,
    budget: Option<u64>,
}

impl World {
    /// The disk of `setup` in these files; the parent is made.
    pub fn new(setup: &Setup, files: Vec<Arc<dyn BlockDriver>>) -> Self {
        assert!(files.len() <= GIVEN.len(), "{} files", files.len());
        let base = setup.base().map(|bytes| memory(&bytes));
        Self { files, base, options: setup.open_options(), budget: setup.budget }
    }

    /// Opens the disk for writing, discards passed down.
    pub fn open(&self) -> BoxFuture<'static, Result<Node, OpenError>> {
        self.open_with(OpenFlags::READ_WRITE)
    }

    /// Opens the disk.
    pub fn open_with(&self, flags: OpenFlags) -> BoxFuture<'static, Result<Node, OpenError>> {
        let mut registry = Registry::new().with(VmdkFactory).with(NoFiles);
        let mut options = self.options.clone();
        options.set("driver", "vmdk");
        for (number, file) in self.files.iter().enumerate() {
            registry = registry.with(Given(GIVEN[number], Arc::clone(file)));
            let option = match number {
                0 => "file.driver".to_owned(),
                number => format!("extents.{}.driver", number - 1),
            };
            options.set(option, GIVEN[number]);
        }
        if let Some(base) = &self.base {
            registry = registry.with(Given("given-base", Arc::clone(base)));
            options.set("backing.driver", "vmdk");
            options.set("backing.file.driver", "given-base");
        }
        let mut context = OpenContext::new(Arc::new(registry), flags);
        if let Some(budget) = self.budget {
            context.budget = MemoryBudget::new(budget);
        }
        context.open(options)
    }
}

/// A disk in memory that holds `bytes`.
pub fn memory(bytes: &[u8]) -> Arc<dyn BlockDriver> {
    Arc::new(MemDriver::from_bytes(bytes).expect("memory"))
}

/// The files of a disk in the order in which a [`World`] takes them, as disks of one kind.
pub struct Disks<D>(pub Vec<(String, Arc<D>)>);

impl<D> Disks<D> {
    /// One disk for each file.
    pub fn new(files: Files, make: impl Fn(Vec<u8>) -> Arc<D>) -> Self {
        let mut all: Vec<_> = files.into_iter().collect();
        // Extents have numbers in their names.
        all.sort_by_key(|(name, _)| (name != NAME, name.clone()));
        Self(all.into_iter().map(|(name, bytes)| (name, make(bytes))).collect())
    }

    /// What the files hold.
    pub fn bytes(&self, bytes: impl Fn(&D) -> Vec<u8>) -> Files {
        self.0.iter().map(|(name, disk)| (name.clone(), bytes(disk))).collect()
    }

    /// The world that they make.
    pub fn world(&self, setup: &Setup, below: impl Fn(Arc<D>) -> Arc<dyn BlockDriver>) -> World {
        World::new(setup, self.0.iter().map(|(_, disk)| below(Arc::clone(disk))).collect())
    }
}

/// A closed disk as the naive reader finds it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What the guest sees.
    pub contents: Vec<u8>,
    /// What the checker found.
    pub report: Report,
    /// The content id.
    pub cid: Option<u32>,
    /// The content id of the parent as the descriptor has it.
    pub parent: Option<u32>,
    /// The descriptor but for the content id.
    pub text: Vec<u8>,
}

/// Reads and checks the disk in these files.
pub fn judge(setup: &Setup, files: &Files) -> Result<Judged, String> {
    let bad = |error: block_testkit::naive::vmdk::BadImage| format!("naive reader: {error}");
    let backing = setup.backing_contents();
    let backing = backing.as_deref().unwrap_or_default();
    let image = Image::open(files, NAME).map_err(bad)?.with_backing(backing);
    Ok(Judged {
        contents: image.contents().map_err(bad)?,
        report: image.check().map_err(bad)?,
        cid: image.text().and_then(|text| text.cid()),
        parent: image.text().and_then(|text| text.parent_cid()),
        text: descriptor(files),
    })
}

/// The descriptor without the digits of its content id.
fn descriptor(files: &Files) -> Vec<u8> {
    let file = files.get(NAME).expect("the descriptor");
    let mut text = match file.starts_with(b"KDMV") {
        true => embedded(file).iter().copied().take_while(|byte| *byte != 0).collect(),
        false => file.clone(),
    };
    if let Some(at) = text.windows(5).position(|bytes| bytes == b"\nCID=") {
        let digits = text[at + 5..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        text.drain(at + 5..at + 5 + digits);
    }
    text
}

/// The area of the descriptor in a file that the naive reader takes; text may fill all of it.
fn embedded(file: &[u8]) -> &[u8] {
    let field = |at: usize| to_usize(u64::from_le_bytes(file[at..at + 8].try_into().unwrap()));
    // descriptorOffset and descriptorSize.
    match (field(28), field(36)) {
        (0, _) => &[],
        (start, sectors) => {
            let start = start.saturating_mul(512);
            let end = start.saturating_add(sectors.saturating_mul(512));
            // An area without sectors may be anywhere.
            file.get(start..end).unwrap_or_default()
        }
    }
}

impl Judged {
    /// Fails unless there is no error, and the files are closed.
    pub fn clean(&self) -> Result<(), String> {
        if self.report.unclean {
            return Err("a file is still marked as not closed".to_owned());
        }
        if self.report.stale > 0 {
            return Err(format!("{} headers have a stale free sector", self.report.stale));
        }
        self.no_errors()
    }

    /// Fails if there is damage that a crash must not leave.
    pub fn no_errors(&self) -> Result<(), String> {
        if self.report.errors() == 0 {
            Ok(())
        } else {
            Err(format!("naive check: {}", self.report))
        }
    }

    /// Fails unless the descriptor says what that of `before` says, but for the content id.
    pub fn same_text(&self, before: &Self) -> Result<(), String> {
        if self.text == before.text { Ok(()) } else { Err("the descriptor has changed".to_owned()) }
    }
}

/// The operations that failed and may not.
pub fn unexpected(ops: &[Op], played: &[Played]) -> Vec<String> {
    let may_fail = |op: &Op, error: Error| match op {
        Op::Zero { flags, .. } if flags.contains(RequestFlags::NO_FALLBACK) => {
            error == Error::Unsupported
        }
        _ => false,
    };
    failures(ops, played, may_fail)
}

/// Random operations on a disk of `setup`, up to `most`.
pub fn ops(setup: &Setup, seed: u64, most: usize) -> Vec<Op> {
    seeded(&setup.space().ops(most), seed)
}

/// Whether the operation writes bytes of the guest.
pub fn writes(op: &Op) -> bool {
    matches!(op, Op::Write { .. } | Op::WriteZeroData { .. }) && !op.range().is_empty()
}

/// Whether the operation changes nothing that the guest sees.
pub fn only_looks(op: &Op) -> bool {
    matches!(op, Op::Read { .. } | Op::Flush | Op::Reopen) || op.range().is_empty()
}

/// Whether the operation may take grains away.
pub fn frees(op: &Op) -> bool {
    matches!(op, Op::Zero { .. } | Op::Discard { .. })
}

/// Known bytes from the start of the disk.
pub fn known(bytes: &[u8]) -> Source {
    Source::Bytes(0, bytes.into())
}

/// The number as an alignment.
pub fn alignment(bytes: u64) -> Alignment {
    Alignment::new(bytes).expect("an alignment")
}

/// A number of the disk as one of memory.
pub fn index(offset: u64) -> usize {
    to_usize(offset)
}
