//! Disks with everything in them, and the damages that are done to them by name.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::ops::Range;
use std::sync::Arc;

use block_core::ability::{CheckReport, Finding, Repair};
use block_core::driver::BlockDriver;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::{to_u64, to_usize};
use block_core::{Node, OpenError, Result};
use block_testkit::check::check_node;
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{Directory, NAME, Redundant, Shape, Subformat, Tables};
use futures::executor::block_on;

use super::kit::setups::{Filled, setup};
use super::kit::{Disks, Setup};

const SECTOR: u64 = 512;

/// Guest grains that hold data in every sample.
pub const DATA: u64 = 0;
pub const NEXT: u64 = 5;
pub const THIRD: u64 = 6;
/// A guest grain that holds nothing.
pub const EMPTY: u64 = 2;

/// The samples.
pub fn samples() -> Vec<Sample> {
    let names = [
        "4k zeroed",
        "4k short tail",
        "8k by sectors",
        "64k",
        "4k holes",
        "4k lone tables",
        "128k",
        "4k longer backing",
        "split 64k",
        "cowd 4k",
        "cowd pieces",
        "cowd preallocated",
    ];
    let mut setups: Vec<_> = names.into_iter().map(setup).collect();
    setups.push(stream("stream", Directory::InFooter));
    setups.push(stream("stream, directory in the header", Directory::InHeader));
    setups.into_iter().map(Sample::of).collect()
}

/// The sample of this name.
pub fn sample(name: &str) -> Sample {
    samples().into_iter().find(|sample| sample.setup.name == name).unwrap()
}

fn stream(name: &'static str, directory: Directory) -> Setup {
    let mut setup = setup("4k");
    setup.name = name;
    setup.filled = Filled::Mixed;
    setup.shape = Shape {
        subformat: Subformat::StreamOptimized(directory),
        redundant: Redundant::None,
        tables: Tables::OnDemand,
        gtes_per_gt: 16,
        ..setup.shape
    };
    setup
}

/// A disk, and the file of it that is damaged.
#[derive(Clone)]
pub struct Sample {
    pub setup: Setup,
    pub files: Files,
    /// The first sparse extent, or the first flat one.
    pub name: String,
}

impl Sample {
    pub fn of(setup: Setup) -> Self {
        let files = setup.make();
        let name = files.keys().find(|name| files.len() == 1 || *name != NAME).unwrap().clone();
        Self { setup, files, name }
    }

    pub fn file(&self) -> &[u8] {
        &self.files[&self.name]
    }

    pub fn file_mut(&mut self) -> &mut Vec<u8> {
        self.files.get_mut(&self.name).unwrap()
    }

    pub fn sectors(&self) -> u64 {
        to_u64(self.file().len()).div_ceil(SECTOR)
    }

    pub fn take(&self, at: u64, len: usize) -> u64 {
        take(self.file(), at, len)
    }

    pub fn put32(&mut self, at: u64, value: u64) {
        let bytes = u32::try_from(value).unwrap().to_le_bytes();
        self.put(at, &bytes);
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = to_usize(at);
        self.file_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn is_cowd(&self) -> bool {
        self.file().starts_with(b"COWD")
    }

    pub fn is_stream(&self) -> bool {
        matches!(self.setup.shape.subformat, Subformat::StreamOptimized(_))
    }

    /// Whether the place of the directory is in the footer.
    pub fn has_footer(&self) -> bool {
        self.setup.shape.subformat == Subformat::StreamOptimized(Directory::InFooter)
    }

    /// The sector of the directory.
    pub fn gd(&self) -> u64 {
        match (self.is_cowd(), self.take(56, 8)) {
            (true, _) => self.take(20, 4),
            (_, u64::MAX) => self.take((self.sectors() - 2) * SECTOR + 56, 8),
            (_, sector) => sector,
        }
    }

    /// The sector of the redundant directory.
    pub fn rgd(&self) -> Option<u64> {
        (!self.is_cowd() && self.take(8, 4) & 2 != 0).then(|| self.take(48, 8))
    }

    pub fn grain(&self) -> u64 {
        self.setup.shape.grain_sectors
    }

    pub fn gtes(&self) -> u64 {
        if self.is_cowd() { 4096 } else { self.take(44, 4) }
    }

    /// Where the entry of a table is in the directory at this sector.
    pub fn gde(&self, directory: u64, table: u64) -> u64 {
        directory * SECTOR + table * 4
    }

    pub fn table(&self, directory: u64, table: u64) -> u64 {
        self.take(self.gde(directory, table), 4)
    }

    /// Number of tables.
    pub fn tables(&self) -> u64 {
        let capacity = if self.is_cowd() { self.take(12, 4) } else { self.take(12, 8) };
        capacity.div_ceil(self.grain() * self.gtes())
    }

    /// Where the entry of a grain is in the tables of this directory.
    pub fn gte(&self, directory: u64, grain: u64) -> Option<u64> {
        let table = self.table(directory, grain / self.gtes());
        (table != 0).then(|| table * SECTOR + grain % self.gtes() * 4)
    }

    /// The sector of a grain.
    pub fn host(&self, grain: u64) -> u64 {
        self.take(self.gte(self.gd(), grain).unwrap(), 4)
    }

    /// Sets an entry in both copies.
    pub fn set(&mut self, grain: u64, value: u64) {
        for directory in std::iter::once(self.gd()).chain(self.rgd()) {
            if let Some(at) = self.gte(directory, grain) {
                self.put32(at, value);
            }
        }
    }

    /// Sets an entry in the primary copy.
    pub fn set_primary(&mut self, grain: u64, value: u64) {
        let at = self.gte(self.gd(), grain).unwrap();
        self.put32(at, value);
    }

    /// The redundant directory, where the table of a grain has a copy.
    pub fn copy_of(&self, grain: u64) -> Option<u64> {
        let rgd = self.rgd()?;
        self.gte(rgd, grain).map(|_| rgd)
    }

    /// Bytes of the disk that a grain of the first extent is.
    pub fn guest(&self, grain: u64) -> Range<u64> {
        let place = self.setup.shape.grains()[to_usize(grain)];
        place.offset..place.offset + place.len
    }

    /// Bytes of the disk that a table of the first extent maps.
    pub fn guest_table(&self, table: u64) -> Range<u64> {
        let len = self.gtes() * self.grain() * SECTOR;
        let end = self.setup.shape.extents()[0] * SECTOR;
        table * len..(table * len + len).min(end)
    }
}

pub fn take(bytes: &[u8], at: u64, len: usize) -> u64 {
    let mut word = [0; 8];
    let at = to_usize(at);
    word[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(word)
}

/// What a damage costs the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    Nothing,
    Guest(Range<u64>),
}

/// A damage by name. `None` where a sample cannot have it.
pub struct Damage {
    pub name: &'static str,
    pub apply: fn(&mut Sample) -> Option<Lost>,
}

fn damage(name: &'static str, apply: fn(&mut Sample) -> Option<Lost>) -> Damage {
    Damage { name, apply }
}

/// What becomes of a grain whose entry is wrong in both copies.
fn grain_lost(s: &Sample, grain: u64) -> Option<Lost> {
    Some(Lost::Guest(s.guest(grain)))
}

pub fn damages() -> Vec<Damage> {
    let mut all = entries();
    all.extend(places());
    all.extend(copies());
    all.extend(marks());
    all.extend(footers());
    all
}

/// Entries of tables.
fn entries() -> Vec<Damage> {
    vec![
        damage("grain beyond the end", |s| {
            s.set(DATA, s.sectors() + 8 * s.grain());
            grain_lost(s, DATA)
        }),
        damage("grain beyond what an entry can say", |s| {
            s.set(DATA, u64::from(u32::MAX));
            grain_lost(s, DATA)
        }),
        damage("grain beyond the end, where nothing was", |s| {
            s.set(EMPTY, u64::from(u32::MAX) / 2);
            Some(Lost::Nothing)
        }),
        damage("grain over the header", |s| {
            // Sector 1 may stand for zeroes; a grain of one sector does not reach the descriptor.
            let over = if s.is_cowd() { 3 } else { 2 };
            (!(s.grain() < 4 && s.is_cowd() && over > 3)).then_some(())?;
            s.set(DATA, over);
            (s.file().starts_with(b"COWD") || s.files.len() == 1).then_some(())?;
            grain_lost(s, DATA)
        }),
        damage("grain over the directory", |s| {
            s.set(NEXT, s.gd());
            grain_lost(s, NEXT)
        }),
        damage("grain over its table", |s| {
            let table = s.table(s.gd(), NEXT / s.gtes());
            s.set(NEXT, table);
            grain_lost(s, NEXT)
        }),
        damage("grain of another", |s| {
            let host = s.host(DATA);
            s.set(NEXT, host);
            grain_lost(s, NEXT)
        }),
        damage("grain of a later one", |s| {
            let host = s.host(NEXT);
            s.set(DATA, host);
            grain_lost(s, DATA)
        }),
        damage("grain of three", |s| {
            let host = s.host(DATA);
            s.set(NEXT, host);
            s.set(THIRD, host);
            Some(Lost::Guest(s.guest(NEXT).start..s.guest(THIRD).end))
        }),
        damage("half over another", |s| {
            (!s.is_stream() && s.grain() > 1).then_some(())?;
            let host = s.host(DATA);
            s.set(NEXT, host + s.grain() / 2);
            grain_lost(s, NEXT)
        }),
        damage("beyond the end in the primary table", |s| {
            s.copy_of(DATA)?;
            s.set_primary(DATA, u64::from(u32::MAX) - 5);
            Some(Lost::Nothing)
        }),
        damage("grain of another in the primary table", |s| {
            s.copy_of(NEXT)?;
            let host = s.host(NEXT);
            s.set_primary(DATA, host);
            Some(Lost::Nothing)
        }),
        damage("over metadata in the primary table", |s| {
            s.copy_of(DATA)?;
            s.set_primary(DATA, s.gd());
            Some(Lost::Nothing)
        }),
        damage("a grain's marker", |s| {
            s.is_stream().then_some(())?;
            let at = s.host(DATA) * SECTOR;
            s.put(at, &[9]);
            grain_lost(s, DATA)
        }),
        damage("a grain's length", |s| {
            s.is_stream().then_some(())?;
            let at = s.host(DATA) * SECTOR + 8;
            s.put(at, &[0xff, 0xff, 0xff]);
            grain_lost(s, DATA)
        }),
    ]
}

/// Places of tables.
fn places() -> Vec<Damage> {
    vec![
        damage("table beyond the end", |s| {
            let at = s.gde(s.gd(), 0);
            let lost = lost_table(s, 0);
            s.put32(at, s.sectors() + 100);
            lost
        }),
        damage("table over the directory", |s| {
            let at = s.gde(s.gd(), 0);
            let lost = lost_table(s, 0);
            s.put32(at, s.gd());
            lost
        }),
        damage("table over the header", |s| {
            let at = s.gde(s.gd(), 0);
            let lost = lost_table(s, 0);
            // A stream has the marker before it.
            s.put32(at, if s.is_cowd() { 1 } else { 1 + u64::from(s.is_stream()) });
            (s.is_cowd() || s.files.len() == 1).then_some(())?;
            lost
        }),
        damage("table of another", |s| {
            (s.tables() > 1 && s.rgd().is_some()).then_some(())?;
            let at = s.gde(s.gd(), 0);
            let other = s.table(s.gd(), 1);
            let lost = lost_table(s, 0)?;
            (other != 0 && lost == Lost::Nothing).then_some(())?;
            s.put32(at, other);
            Some(lost)
        }),
        damage("later table of another", |s| {
            (s.tables() > 1 && s.table(s.gd(), 1) != 0).then_some(())?;
            let at = s.gde(s.gd(), 1);
            let lost = lost_table(s, 1);
            let first = s.table(s.gd(), 0);
            s.put32(at, first);
            lost
        }),
        damage("table in a grain", |s| {
            s.copy_of(DATA)?;
            let at = s.gde(s.gd(), 0);
            let host = s.host(NEXT);
            s.put32(at, host);
            Some(Lost::Nothing)
        }),
        damage("redundant table beyond the end", |s| {
            let rgd = s.rgd()?;
            s.put32(s.gde(rgd, 0), s.sectors() + 100);
            Some(Lost::Nothing)
        }),
        damage("redundant table is the primary one", |s| {
            let rgd = s.rgd()?;
            let first = s.table(s.gd(), 0);
            s.put32(s.gde(rgd, 0), first);
            Some(Lost::Nothing)
        }),
        damage("redundant table in a grain", |s| {
            let rgd = s.rgd()?;
            let host = s.host(NEXT);
            s.put32(s.gde(rgd, 0), host);
            Some(Lost::Nothing)
        }),
        damage("no table", |s| {
            s.copy_of(DATA)?;
            let at = s.gde(s.gd(), 0);
            s.put32(at, 0);
            Some(Lost::Nothing)
        }),
        damage("redundant directory beyond the end", |s| {
            s.rgd()?;
            s.put(48, &(1u64 << 40).to_le_bytes());
            Some(Lost::Nothing)
        }),
        damage("redundant directory over the primary one", |s| {
            s.rgd()?;
            let gd = s.gd();
            s.put(48, &gd.to_le_bytes());
            Some(Lost::Nothing)
        }),
        damage("directory beyond the end", |s| {
            let rgd = s.rgd()?;
            // All of the disk is in both copies.
            (0..s.tables())
                .all(|n| (s.table(s.gd(), n) == 0) == (s.table(rgd, n) == 0))
                .then_some(())?;
            s.put(56, &(1u64 << 40).to_le_bytes());
            Some(Lost::Nothing)
        }),
        damage("a directory of zeroes", |s| {
            let rgd = s.rgd()?;
            (0..s.tables())
                .all(|n| (s.table(s.gd(), n) == 0) == (s.table(rgd, n) == 0))
                .then_some(())?;
            let at = s.gd() * SECTOR;
            let len = to_usize((s.tables() * 4).next_multiple_of(SECTOR));
            s.put(at, &vec![0; len]);
            Some(Lost::Nothing)
        }),
    ]
}

/// What is lost where the primary table of this number is.
fn lost_table(s: &Sample, table: u64) -> Option<Lost> {
    match s.rgd().map(|rgd| s.table(rgd, table)) {
        Some(copy) if copy != 0 => Some(Lost::Nothing),
        _ => Some(Lost::Guest(s.guest_table(table))),
    }
}

/// Copies that differ.
fn copies() -> Vec<Damage> {
    vec![
        damage("redundant entry beyond the end", |s| {
            let rgd = s.copy_of(DATA)?;
            let at = s.gte(rgd, DATA)?;
            s.put32(at, u64::from(u32::MAX));
            Some(Lost::Nothing)
        }),
        damage("redundant entry 0", |s| {
            let rgd = s.copy_of(DATA)?;
            let at = s.gte(rgd, DATA)?;
            s.put32(at, 0);
            Some(Lost::Nothing)
        }),
        damage("a redundant table of junk", |s| {
            let rgd = s.copy_of(DATA)?;
            let at = s.table(rgd, 0) * SECTOR;
            s.put(at, &[0xee; 32]);
            Some(Lost::Nothing)
        }),
        damage("a primary table of junk", |s| {
            s.copy_of(DATA)?;
            let at = s.table(s.gd(), 0) * SECTOR;
            s.put(at, &[0xee; 32]);
            Some(Lost::Nothing)
        }),
    ]
}

/// What a writer that was cut off leaves.
fn marks() -> Vec<Damage> {
    vec![
        damage("not closed", |s| {
            (!s.is_stream() && !s.is_cowd()).then(|| s.put(72, &[1]))?;
            Some(Lost::Nothing)
        }),
        damage("not closed, redundant entry behind", |s| {
            let rgd = s.copy_of(DATA)?;
            let at = s.gte(rgd, DATA)?;
            s.put32(at, 0);
            s.put(72, &[1]);
            Some(Lost::Nothing)
        }),
        damage("space at the end", |s| {
            (!s.is_stream()).then_some(())?;
            let len = s.file().len() + to_usize(3 * s.grain() * SECTOR);
            s.file_mut().resize(len, 0x77);
            Some(Lost::Nothing)
        }),
        damage("a grain that nothing refers to", |s| {
            (!s.is_stream()).then_some(())?;
            s.set(DATA, 0);
            grain_lost(s, DATA)
        }),
        damage("first free sector behind", |s| {
            s.is_cowd().then(|| s.put32(28, 5))?;
            Some(Lost::Nothing)
        }),
        damage("COWD not closed", |s| {
            s.is_cowd().then(|| s.put32(1648, 1))?;
            Some(Lost::Nothing)
        }),
    ]
}

/// The end of a stream.
fn footers() -> Vec<Damage> {
    vec![
        damage("footer's marker", |s| footer(s, 12, &[7])),
        damage("footer's magic", |s| footer(s, 512, b"XXXX")),
        damage("footer's capacity", |s| footer(s, 512 + 12, &[9, 9])),
        damage("footer's descriptor, none", |s| footer(s, 512 + 28, &[0; 16])),
        damage("footer's descriptor, elsewhere", |s| footer(s, 512 + 28, &[2])),
        damage("header's descriptor, none", |s| {
            s.has_footer().then(|| s.put(28, &[0; 16]))?;
            Some(Lost::Nothing)
        }),
        damage("header's descriptor, elsewhere", |s| {
            s.has_footer().then(|| s.put(28, &[2]))?;
            Some(Lost::Nothing)
        }),
        damage("footer's overHead, too little", |s| footer(s, 512 + 64, &[1, 0])),
        damage("footer's overHead, too much", |s| footer(s, 512 + 64, &[0, 1])),
        damage("header's overHead, too little", |s| {
            s.has_footer().then(|| s.put(64, &[1, 0]))?;
            Some(Lost::Nothing)
        }),
        damage("header's overHead, at the second table", |s| {
            s.has_footer().then_some(())?;
            // The footer says where the first one's grains begin; other grains begin behind it.
            let marker = s.table(s.gd(), 0) - 1;
            s.put(64, &(marker + 1 + s.gtes() / 128).to_le_bytes());
            Some(Lost::Nothing)
        }),
        damage("footer's directory", |s| footer(s, 512 + 56, &[0xff; 8])),
        damage("footer's flags", |s| footer(s, 512 + 8, &[5])),
        damage("end of the stream", |s| footer(s, 1024 + 12, &[1])),
        damage("end of the stream, later", |s| footer(s, 1024 + 400, &[1])),
        damage("no footer", |s| {
            s.has_footer().then_some(())?;
            let len = s.file().len() - 1536;
            s.file_mut().truncate(len);
            Some(Lost::Nothing)
        }),
        damage("bytes behind the end", |s| {
            s.has_footer().then_some(())?;
            s.file_mut().extend([0xab; 5000]);
            Some(Lost::Nothing)
        }),
        damage("zeroes behind the end", |s| {
            s.has_footer().then_some(())?;
            s.file_mut().extend([0; 1 << 16]);
            Some(Lost::Nothing)
        }),
        damage("a table's marker", |s| {
            s.has_footer().then_some(())?;
            let at = (s.table(s.gd(), 0) - 1) * SECTOR;
            s.put(at + 12, &[9]);
            Some(Lost::Nothing)
        }),
    ]
}

fn footer(s: &mut Sample, at: u64, bytes: &[u8]) -> Option<Lost> {
    s.has_footer().then_some(())?;
    let start = (s.sectors() - 3) * SECTOR;
    s.put(start + at, bytes);
    Some(Lost::Nothing)
}

/// A check of the disk in these files: what it reports and says, and what the files are afterwards.
pub fn check_files(
    setup: &Setup,
    files: &Files,
    repair: Repair,
) -> std::result::Result<Checked, OpenError> {
    let disks = Disks::new(files.clone(), |bytes| Arc::new(MemDriver::from_bytes(&bytes).unwrap()));
    let node = open_for_check(setup, &disks)?;
    let result = block_on(check_node(&node, repair));
    let files = disks.bytes(|disk| disk.to_bytes());
    Ok(Checked { result, files })
}

/// What a check did.
pub struct Checked {
    pub result: Result<(CheckReport, Vec<Finding>)>,
    pub files: Files,
}

impl Checked {
    pub fn done(self) -> (CheckReport, Vec<Finding>, Files) {
        let (report, found) = self.result.expect("a check that ends");
        (report, found, self.files)
    }
}

/// Opens the disk for a check, as the tool does.
pub fn open_for_check<D: BlockDriver>(
    setup: &Setup,
    disks: &Disks<D>,
) -> std::result::Result<Node, OpenError> {
    let flags = OpenFlags { no_backing: true, no_io: true, check: true, ..OpenFlags::READ_WRITE };
    block_on(disks.world(setup, |disk| -> Arc<dyn BlockDriver> { disk }).open_with(flags))
}
