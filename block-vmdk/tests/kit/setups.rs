//! The disks that games start from.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::{ByteRange, Options, RequestFlags};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{
    Grain, GrainPlace, LineEnds, NAME, Placement, Redundant, SLACK, Shape, Subformat, Tables, Tail,
    ZeroedGrains,
};
use block_testkit::op::{Discards, OpSpace, Reopens, contents};
use block_testkit::play::Discarded;
use parking_lot::Mutex;

/// Name and content id of the parent.
pub const BASE: (&str, u32) = ("base.vmdk", 0xbac_c1d);

/// A disk at the start, and how it is opened.
#[derive(Clone, Debug)]
pub struct Setup {
    pub name: &'static str,
    pub shape: Shape,
    /// What is in it.
    pub filled: Filled,
    /// Length of the parent.
    pub backing: Option<u64>,
    /// Options for opening it.
    pub options: &'static [(&'static str, &'static str)],
    /// Bytes that its tables may take in memory.
    pub budget: Option<u64>,
    /// Its only file is on a device, which has so much room behind what the file needs, and junk there.
    pub room: Option<u64>,
    /// Request alignment of its files.
    pub align: u64,
    /// Longest request.
    pub max_request: u64,
}

/// What is in a disk at the start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Filled {
    /// Nothing.
    Empty,
    /// Grains of every kind that the format allows.
    Mixed,
}

/// Extents of `total` bytes together: odd lengths, one of them very short.
fn odd(total: u64) -> Vec<u64> {
    let sectors = total / 512;
    let first = sectors * 2 / 5 + 3;
    let second = (sectors / 3) | 1;
    vec![first, 5, second, sectors - first - second - 5]
}

fn of(name: &'static str, grain_sectors: u64, size: u64) -> Setup {
    let shape = Shape { grain_sectors, ..Shape::new(size) };
    let max_request = (size / 3).min(1 << 18).max(2 * shape.grain_size()).min(size);
    Setup {
        name,
        shape,
        filled: Filled::Empty,
        backing: None,
        options: &[],
        budget: None,
        room: None,
        align: 1,
        max_request,
    }
}

impl Setup {
    fn mixed(mut self) -> Self {
        self.filled = Filled::Mixed;
        self
    }

    fn zeroed(mut self) -> Self {
        self.shape.zeroed_grains = ZeroedGrains::Yes;
        self
    }

    fn tables(mut self, gtes_per_gt: u64, redundant: Redundant, tables: Tables) -> Self {
        self.shape = Shape { gtes_per_gt, redundant, tables, ..self.shape };
        self
    }

    fn on(mut self, subformat: Subformat) -> Self {
        self.shape.subformat = subformat;
        self
    }

    fn split(self) -> Self {
        let extents = odd(self.shape.size);
        self.on(Subformat::TwoGbSparse(extents))
    }

    fn cowd(self) -> Self {
        let sectors = self.shape.size / 512;
        self.on(Subformat::Cowd(vec![sectors]))
    }

    fn over(mut self, len: u64) -> Self {
        self.backing = Some(len);
        self.shape.backing = Some((BASE.0.to_owned(), BASE.1));
        self
    }

    /// With memory for a few small tables only.
    fn tiny(mut self) -> Self {
        self.budget = Some(64);
        self
    }

    fn on_device(mut self, room: u64) -> Self {
        self.room = Some(room);
        self
    }

    fn by(mut self, align: u64) -> Self {
        self.align = align;
        self
    }
}

/// All of them.
pub fn setups() -> Vec<Setup> {
    let mut setups = hosted();
    setups.extend(split());
    setups.extend(cowd());
    setups.extend(flat());
    setups
}

fn hosted() -> Vec<Setup> {
    use Redundant::{Holes, Kept, None, Spare};
    use Tables::{OnDemand, Preallocated};
    let mut short = of("4k short tail", 8, 300 << 10).mixed().tables(16, Kept, Preallocated);
    short.shape = Shape {
        tail: Tail::Short,
        placement: Placement::Descending,
        line_ends: LineEnds::CrLf,
        ..short.shape
    };
    vec![
        of("4k", 8, (300 << 10) + 1536),
        of("4k zeroed", 8, 300 << 10).zeroed().mixed(),
        of("4k holes", 8, 300 << 10).tables(8, Holes, OnDemand).mixed(),
        of("4k spare", 8, (200 << 10) + 512).tables(8, Spare, OnDemand).zeroed(),
        of("4k lone tables", 8, 300 << 10).tables(16, None, OnDemand).mixed(),
        of("8k empty directory", 16, 400 << 10).tables(4, Kept, OnDemand).zeroed(),
        of("8k by sectors", 16, (500 << 10) + 512).tables(8, Kept, Preallocated).by(512).mixed(),
        of("16k holes by sectors", 32, 600 << 10).tables(4, Holes, OnDemand).by(512).zeroed(),
        of("4k tiny", 8, 300 << 10).tables(2, Kept, Preallocated).tiny().mixed(),
        of("4k tiny, empty directory", 8, 300 << 10).tables(1, Holes, OnDemand).tiny(),
        of("4k on a device", 8, 200 << 10).tables(8, Kept, OnDemand).on_device(900 << 10).mixed(),
        of("4k on a full device", 8, 300 << 10).on_device(100 << 10).zeroed().mixed(),
        of("64k", 128, (1 << 20) + 1536).mixed(),
        of("64k zeroed by pages", 128, 1 << 20).zeroed().by(4096),
        of("64k by pages", 128, (1 << 20) + 512).by(4096).mixed(),
        of("128k", 256, (2 << 20) + 5120).tables(4, Kept, OnDemand).zeroed().mixed(),
        short,
        of("4k shorter backing", 8, 300 << 10).over(77 << 10).tables(8, Kept, OnDemand),
        of("4k longer backing", 8, (200 << 10) + 1024).over(400 << 10).zeroed().mixed(),
        of("4m longer backing", 8192, (9 << 20) + 512).over(10 << 20).mixed(),
        of("64k backing", 128, (700 << 10) + 512).over(500 << 10).mixed(),
    ]
}

fn split() -> Vec<Setup> {
    use Redundant::{Holes, Kept};
    use Tables::{OnDemand, Preallocated};
    vec![
        of("split 4k", 8, 300 << 10).split().tables(8, Kept, Preallocated),
        of("split 4k zeroed", 8, 300 << 10).split().zeroed().mixed(),
        of("split 8k by sectors", 16, 400 << 10).split().by(512).mixed(),
        of("split 4k tiny", 8, 300 << 10).split().tables(2, Kept, OnDemand).tiny().zeroed(),
        of("split 64k", 128, (1 << 20) + 512).split().mixed(),
        of("split 64k, holes", 128, 1 << 20).split().tables(2, Holes, OnDemand).zeroed(),
        of("split shorter backing", 8, 300 << 10).split().over(200 << 10).mixed(),
        of("split longer backing", 16, 300 << 10).split().over(400 << 10).tables(4, Kept, OnDemand),
        of("split 64k backing", 128, 1 << 20).split().over(900 << 10).zeroed().mixed(),
    ]
}

fn cowd() -> Vec<Setup> {
    use Redundant::None;
    use Tables::{OnDemand, Preallocated};
    let pieces = |setup: Setup| {
        let extents = odd(setup.shape.size);
        setup.on(Subformat::Cowd(extents))
    };
    vec![
        of("cowd", 1, 100 << 10).cowd().tables(512, None, OnDemand),
        of("cowd two tables", 1, 5 << 19).cowd().tables(512, None, OnDemand).mixed(),
        of("cowd preallocated", 1, 100 << 10).cowd().tables(512, None, Preallocated).mixed(),
        of("cowd 4k", 8, 300 << 10).cowd().tables(512, None, OnDemand).mixed(),
        of("cowd 64k by sectors", 128, 1 << 20).cowd().tables(512, None, OnDemand).by(512),
        pieces(of("cowd pieces", 4, 200 << 10)).tables(512, None, OnDemand).mixed(),
        of("cowd backing", 1, 100 << 10).cowd().tables(512, None, OnDemand).over(77 << 10),
        pieces(of("cowd pieces, longer backing", 8, 200 << 10))
            .tables(512, None, OnDemand)
            .over(300 << 10)
            .mixed(),
    ]
}

fn flat() -> Vec<Setup> {
    let split = |setup: Setup| {
        let extents = odd(setup.shape.size);
        setup.on(Subformat::TwoGbFlat(extents))
    };
    vec![
        of("flat", 8, (300 << 10) + 512).on(Subformat::MonolithicFlat).mixed(),
        of("flat by pages", 8, 304 << 10).on(Subformat::MonolithicFlat).by(4096).mixed(),
        of("vmfs", 8, 100 << 10).on(Subformat::Vmfs),
        split(of("split flat", 8, 300 << 10)).mixed(),
        split(of("split flat by sectors", 8, 200 << 10)).by(512),
    ]
}

/// The setup of this name.
pub fn setup(name: &str) -> Setup {
    setups().into_iter().find(|setup| setup.name == name).expect("a setup")
}

/// Contents and file of a parent of this length. Games ask for them again and again.
fn parent(len: u64) -> (Arc<[u8]>, Arc<[u8]>) {
    type Parents = BTreeMap<u64, (Arc<[u8]>, Arc<[u8]>)>;
    static MADE: Mutex<Parents> = Mutex::new(BTreeMap::new());
    let make = || {
        let bytes = contents(0, ByteRange::up_to(len));
        let shape = Shape { cid: BASE.1, grain_sectors: 8, ..Shape::new(len) };
        let data = |place: GrainPlace| {
            let (start, end) = (place.offset, place.offset + place.len);
            Grain::Data(bytes[super::index(start)..super::index(end)].to_vec())
        };
        let grains = (0..).zip(shape.grains()).map(|(at, place)| (at, data(place)));
        let file = shape.make(&grains.collect()).remove(NAME).expect("one file");
        (bytes.into(), file.into())
    };
    MADE.lock().entry(len).or_insert_with(make).clone()
}

impl Setup {
    /// The options for opening it.
    pub fn open_options(&self) -> Options {
        let options = self.options.iter();
        options.fold(Options::new(), |all, (name, value)| all.with(*name, *value))
    }

    /// What the parent holds.
    pub fn backing_contents(&self) -> Option<Arc<[u8]>> {
        Some(parent(self.backing?).0)
    }

    /// The parent's file.
    pub fn base(&self) -> Option<Arc<[u8]>> {
        Some(parent(self.backing?).1)
    }

    /// Its files.
    pub fn make(&self) -> Files {
        let mut files = self.shape.make(&self.grains());
        if let (Some(room), Some(file)) = (self.room, files.get_mut(NAME)) {
            file.resize(file.len() + super::index(room), SLACK);
        }
        files
    }

    /// Whether there may be no room for all grains.
    pub fn may_fill(&self) -> bool {
        self.room.is_some_and(|room| room < self.shape.size * 2)
    }

    /// Whether grains are allocated at all.
    pub fn is_flat(&self) -> bool {
        use Subformat::{MonolithicFlat, TwoGbFlat, Vmfs};
        matches!(self.shape.subformat, MonolithicFlat | TwoGbFlat(_) | Vmfs)
    }

    /// What a discard leaves of this disk.
    pub fn discarded(&self) -> Discarded {
        // Flat extents pass it on, and the file does what it likes.
        if self.is_flat() { Discarded::Anything } else { Discarded::OldOrZero }
    }

    fn grains(&self) -> BTreeMap<u64, Grain> {
        let zeroes = self.shape.zeroed_grains == ZeroedGrains::Yes;
        let grains = (0u64..).zip(self.shape.grains());
        let grain = |at: u64, range: ByteRange| match (self.filled, at % 8) {
            (Filled::Empty, _) => None,
            (_, 0 | 5 | 6) => Some(Grain::Data(contents(0, range))),
            (_, 1) if zeroes => Some(Grain::Zero),
            _ => None,
        };
        let grains = grains.filter_map(|(at, place)| {
            let range = ByteRange::new(place.offset, place.len).expect("a range");
            Some((at, grain(at, range)?))
        });
        // Whole tables are left without grains.
        grains.filter(|(at, _)| at % 64 < 40).collect()
    }

    /// Random operations on it.
    pub fn space(&self) -> OpSpace {
        let (grain, size) = (self.shape.grain_size(), self.shape.size);
        let mut edges = vec![512, grain, grain * 3, grain * self.shape.gtes_per_gt];
        let mut end = 0;
        for extent in self.shape.extents() {
            end += extent * 512;
            edges.push(end);
        }
        edges.retain(|edge| *edge < size);
        OpSpace {
            max_request: self.max_request,
            zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK,
            discards: Discards::Sometimes,
            reopens: Reopens::Sometimes,
            ..OpSpace::new(size, &edges)
        }
    }
}
