//! Disks made from the format's descriptions alone, to start tests from.
//!
//! [`Shape::make`] gives all files of a disk whose grains hold what the test asks for. There is no damage
//! and no lost space in them by construction; the checker and `qemu-img` have the last word in the tests.
//! The part of a last grain that is behind the end of its extent holds junk, which no guest may see.
//!
//! What the format does not allow together is a panic: the test asked for the impossible.

mod sesparse;
mod stream;
mod tables;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use block_core::range::{to_u64, to_usize};

use super::Files;
use super::sparse::SECTOR;

/// The descriptor, or the only file.
pub const NAME: &str = "v.vmdk";

/// What is behind the end of an extent in its last grain.
pub const SLACK: u8 = 0xa5;

/// What a disk is like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The layout of its files.
    pub subformat: Subformat,
    /// Length of the disk in bytes: whole sectors.
    pub size: u64,
    /// Length of a grain; flat disks too are filled grain by grain.
    pub grain_sectors: u64,
    /// Entries of a grain table of a hosted extent.
    pub gtes_per_gt: u64,
    /// Version in the header of hosted extents; `None`: the lowest that there is for the rest.
    pub version: Option<u32>,
    /// Whether entries of hosted extents may stand for zeroes.
    pub zeroed_grains: ZeroedGrains,
    /// Which redundant tables hosted extents have.
    pub redundant: Redundant,
    /// Which grain tables there are.
    pub tables: Tables,
    /// How grains follow each other in the file.
    pub placement: Placement,
    /// Whether the last grain of a file is all there.
    pub tail: Tail,
    /// Name and content id of the parent.
    pub backing: Option<(String, u32)>,
    /// The content id.
    pub cid: u32,
    /// How the lines of the descriptor end.
    pub line_ends: LineEnds,
}

/// The layout of a disk's files. Lengths of extents are in sectors; together they are the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are those of the format")]
pub enum Subformat {
    MonolithicSparse,
    TwoGbSparse(Vec<u64>),
    MonolithicFlat,
    TwoGbFlat(Vec<u64>),
    Vmfs,
    /// `vmfsSparse`, with COWD extents.
    Cowd(Vec<u64>),
    StreamOptimized(Directory),
    SeSparse,
}

/// Where the grain directory of a streamOptimized file is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Directory {
    /// Before the grains, at a place that the header names.
    InHeader,
    /// Behind them, at a place that the footer names.
    InFooter,
}

/// Whether entries may stand for zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "plain words")]
pub enum ZeroedGrains {
    No,
    Yes,
}

/// Which redundant tables there are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Redundant {
    /// None, and no directory.
    None,
    /// One for each primary table.
    Kept,
    /// Every second one is missing.
    Holes,
    /// All of them, whether there is a primary table or not.
    Spare,
}

/// Which grain tables there are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Tables {
    /// All, before the grains.
    Preallocated,
    /// Those that map something, among the grains.
    OnDemand,
}

/// How grains follow each other in the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "plain words")]
pub enum Placement {
    Ascending,
    Descending,
}

/// Whether the last grain of a file is all there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Tail {
    /// It is.
    Whole,
    /// The file ends in its middle; the rest reads as zeroes.
    Short,
}

/// How the lines of the descriptor end.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "plain words")]
pub enum LineEnds {
    Lf,
    CrLf,
}

/// What a grain holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grain {
    /// These bytes, as many as the disk has of the grain.
    Data(Vec<u8>),
    /// Zeroes that take no space.
    Zero,
    /// Nothing, where the guest has unmapped it: an entry that only seSparse has.
    Unmapped,
}

/// A grain's part of the disk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct GrainPlace {
    /// Number of its extent.
    pub extent: usize,
    /// First byte of the disk.
    pub offset: u64,
    /// Length in bytes; the last one of an extent may be shorter than others.
    pub len: u64,
}

impl Shape {
    /// A disk of one file with grains of 64 KiB, and nothing special.
    pub fn new(size: u64) -> Self {
        Self {
            subformat: Subformat::MonolithicSparse,
            size,
            grain_sectors: 128,
            gtes_per_gt: 512,
            version: None,
            zeroed_grains: ZeroedGrains::No,
            redundant: Redundant::Kept,
            tables: Tables::Preallocated,
            placement: Placement::Ascending,
            tail: Tail::Whole,
            backing: None,
            cid: 0x1234_abcd,
            line_ends: LineEnds::Lf,
        }
    }

    /// Bytes of a grain.
    pub fn grain_size(&self) -> u64 {
        self.grain_sectors * SECTOR
    }

    /// Lengths of the extents in sectors.
    pub fn extents(&self) -> Vec<u64> {
        use Subformat::{Cowd, TwoGbFlat, TwoGbSparse};
        match &self.subformat {
            TwoGbSparse(extents) | TwoGbFlat(extents) | Cowd(extents) => extents.clone(),
            _ => vec![self.size / SECTOR],
        }
    }

    /// The grains of the disk, in its order. Their numbers are the keys of what [`Shape::make`] takes.
    pub fn grains(&self) -> Vec<GrainPlace> {
        let (mut places, mut start) = (Vec::new(), 0);
        for (extent, sectors) in self.extents().into_iter().enumerate() {
            let len = sectors * SECTOR;
            for at in (0..len).step_by(to_usize(self.grain_size())) {
                let len = self.grain_size().min(len - at);
                places.push(GrainPlace { extent, offset: start + at, len });
            }
            start += len;
        }
        places
    }

    /// A disk that holds nothing.
    pub fn empty(&self) -> Files {
        self.make(&BTreeMap::new())
    }

    /// A disk of these grains, by their numbers.
    ///
    /// # Panics
    /// If the format does not allow it.
    pub fn make(&self, grains: &BTreeMap<u64, Grain>) -> Files {
        let sectors: u64 = self.extents().iter().sum();
        assert_eq!(sectors * SECTOR, self.size, "the extents together are the disk");
        let mut files = Files::new();
        let (mut first, mut lines) = (0, String::new());
        for (number, sectors) in self.extents().into_iter().enumerate() {
            let count = sectors.div_ceil(self.grain_sectors);
            let here = grains.range(first..first + count);
            let here = here.map(|(at, grain)| (*at - first, grain)).collect();
            let extent = ExtentShape { shape: self, sectors, grains: here };
            let name = self.file_name(number);
            let embedded = (name == NAME).then(|| self.text(&self.line(sectors, NAME)));
            let bytes = extent.bytes(embedded.as_deref());
            // Writing to memory cannot fail.
            let _ = writeln!(lines, "{}", self.line(sectors, &name));
            files.insert(name, bytes);
            first += count;
        }
        assert!(grains.range(first..).next().is_none(), "grains beyond the end");
        if !files.contains_key(NAME) {
            files.insert(NAME.to_owned(), self.text(lines.trim_end()).into_bytes());
        }
        files
    }

    fn file_name(&self, number: usize) -> String {
        match self.subformat {
            Subformat::MonolithicSparse | Subformat::StreamOptimized(_) => NAME.to_owned(),
            Subformat::TwoGbSparse(_) => format!("v-s{:03}.vmdk", number + 1),
            Subformat::TwoGbFlat(_) => format!("v-f{:03}.vmdk", number + 1),
            Subformat::MonolithicFlat | Subformat::Vmfs => "v-flat.vmdk".to_owned(),
            Subformat::Cowd(_) => format!("v-delta{:03}.vmdk", number + 1),
            Subformat::SeSparse => "v-sesparse.vmdk".to_owned(),
        }
    }

    /// The line of an extent.
    fn line(&self, sectors: u64, name: &str) -> String {
        let (kind, offset) = match self.subformat {
            Subformat::MonolithicSparse
            | Subformat::StreamOptimized(_)
            | Subformat::TwoGbSparse(_) => ("SPARSE", ""),
            Subformat::MonolithicFlat | Subformat::TwoGbFlat(_) => ("FLAT", " 0"),
            Subformat::Vmfs => ("VMFS", ""),
            Subformat::Cowd(_) => ("VMFSSPARSE", ""),
            Subformat::SeSparse => ("SESPARSE", ""),
        };
        format!("RW {sectors} {kind} \"{name}\"{offset}")
    }

    fn text(&self, lines: &str) -> String {
        let create_type = match self.subformat {
            Subformat::MonolithicSparse => "monolithicSparse",
            Subformat::TwoGbSparse(_) => "twoGbMaxExtentSparse",
            Subformat::MonolithicFlat => "monolithicFlat",
            Subformat::TwoGbFlat(_) => "twoGbMaxExtentFlat",
            Subformat::Vmfs => "vmfs",
            Subformat::Cowd(_) => "vmfsSparse",
            Subformat::StreamOptimized(_) => "streamOptimized",
            Subformat::SeSparse => "seSparse",
        };
        let parent = self.backing.as_ref().map_or(u32::MAX, |(_, cid)| *cid);
        let hint =
            self.backing.as_ref().map(|(name, _)| format!("parentFileNameHint=\"{name}\"\n"));
        let cylinders = self.size / SECTOR / (16 * 63);
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent:08x}\n\
             createType=\"{create_type}\"\n{}\n# Extent description\n{lines}\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"16\"\n\
             ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n",
            self.cid,
            hint.unwrap_or_default()
        );
        match self.line_ends {
            LineEnds::Lf => text,
            LineEnds::CrLf => text.replace('\n', "\r\n"),
        }
    }
}

/// One extent and what it holds, by the numbers of its own grains.
struct ExtentShape<'a> {
    shape: &'a Shape,
    sectors: u64,
    grains: BTreeMap<u64, &'a Grain>,
}

impl ExtentShape<'_> {
    fn bytes(&self, embedded: Option<&str>) -> Vec<u8> {
        match self.shape.subformat {
            Subformat::MonolithicFlat | Subformat::TwoGbFlat(_) | Subformat::Vmfs => self.flat(),
            Subformat::MonolithicSparse | Subformat::TwoGbSparse(_) => self.hosted(embedded),
            Subformat::Cowd(_) => self.cowd(),
            Subformat::StreamOptimized(directory) => self.stream(directory, embedded),
            Subformat::SeSparse => self.sesparse(),
        }
    }

    fn flat(&self) -> Vec<u8> {
        assert!(self.shape.backing.is_none(), "a flat disk with a parent");
        let mut file = vec![0; to_usize(self.sectors * SECTOR)];
        for (number, grain) in &self.grains {
            if let Grain::Data(bytes) = grain {
                self.check_data(*number, bytes);
                put(&mut file, number * self.shape.grain_size(), bytes);
            }
        }
        file
    }

    /// Bytes of the disk that a grain of this extent has.
    fn grain_len(&self, number: u64) -> u64 {
        let start = number * self.shape.grain_sectors;
        self.shape.grain_sectors.min(self.sectors - start) * SECTOR
    }

    fn check_data(&self, number: u64, bytes: &[u8]) {
        assert_eq!(to_u64(bytes.len()), self.grain_len(number), "bytes of grain {number}");
    }

    /// The grains in the order in which they are placed.
    fn placed(&self) -> Vec<(u64, &Grain)> {
        let mut all: Vec<_> = self.grains.iter().map(|(number, grain)| (*number, *grain)).collect();
        if self.shape.placement == Placement::Descending {
            all.reverse();
        }
        all
    }
}

/// Puts bytes at `offset` of the file, which becomes as long as they need.
fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = to_usize(offset);
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
}

/// A number of 32 bits.
fn half(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

/// Appends whole sectors of zeroes; the first one.
fn append(file: &mut Vec<u8>, sectors: u64) -> u64 {
    let start = to_u64(file.len()).div_ceil(SECTOR);
    file.resize(to_usize((start + sectors) * SECTOR), 0);
    start
}
