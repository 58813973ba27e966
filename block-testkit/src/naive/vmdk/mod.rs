//! VMDK disks read and checked the slow way, from the descriptions of the format alone.
//!
//! A disk is a descriptor file and its extents, or one file that has both: [`Files`] maps names to bytes.
//! [`Image`] reads guest contents and says where every grain is; [`Image::check`] looks at all that the
//! tables refer to. Extents are flat (FLAT, VMFS), empty (ZERO), or have grain tables: hosted (SPARSE, with
//! streamOptimized), COWD (VMFSSPARSE) and seSparse (SESPARSE).
//!
//! Bytes beyond the end of an extent's file read as zeroes. The parent is given as its guest contents; it
//! shows at the same guest offset, and beyond its end there are zeroes.
//!
//! In seSparse tables an entry of type 1 is a grain that the guest has unmapped. It hides the parent and
//! reads as zeroes, as one of type 2 does; `qemu-img` reads both alike.
//!
//! Limits, so that bad input costs neither unbounded memory nor time: [`MAX_CONTENTS`] bytes a read,
//! [`MAX_WORK`] entries a check.

mod check;
mod error;
pub mod make;
mod read;
mod sparse;
mod stream;
mod text;

pub use check::{MAX_FINDINGS, MAX_WORK, Report};
pub use error::BadImage;
pub use read::{MAX_CONTENTS, MAX_PIECES, Piece, Place};
pub use sparse::{Area, Entry, Kind, Sparse};
pub use text::{Access, ExtentLine, Text};

use std::collections::BTreeMap;

use block_core::Problem;
use block_core::range::{MAX_LEN, to_u64};

use super::bytes::Bytes;
use error::field;
use sparse::SECTOR;

/// The files of a disk, by their names.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What the guest sees of the disk whose descriptor, or whose only file, is `name`.
pub fn contents(files: &Files, name: &str, backing: Option<&[u8]>) -> Result<Vec<u8>, BadImage> {
    let mut image = Image::open(files, name)?;
    if let Some(backing) = backing {
        image = image.with_backing(backing);
    }
    image.contents()
}

/// A disk whose files are in memory.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    text: Option<Text>,
    extents: Vec<Extent<'a>>,
    backing: Option<Bytes<'a>>,
}

/// A part of the disk.
#[derive(Clone, Debug)]
pub struct Extent<'a> {
    /// Its file; `None` where it has none.
    pub name: Option<String>,
    /// What a guest may do with it.
    pub access: Access,
    /// First sector of the disk.
    pub start: u64,
    /// Length in sectors.
    pub sectors: u64,
    /// Where its bytes are.
    pub content: Content<'a>,
}

/// Where the bytes of an extent are.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Nowhere: they are zeroes.
    Zero,
    /// One behind the other in a file.
    Flat {
        /// The file.
        file: Raw<'a>,
        /// The extent's first sector in it.
        offset: u64,
    },
    /// In grains.
    Sparse(Sparse<'a>),
}

/// A file without structure.
#[derive(Copy, Clone, Debug)]
pub struct Raw<'a>(Bytes<'a>);

impl Raw<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Image<'a> {
    /// The disk whose descriptor, or whose only file, is `name`; only headers are read.
    pub fn open(files: &'a Files, name: &str) -> Result<Self, BadImage> {
        let bytes = file(files, name)?;
        let Some(sparse) = Sparse::open(bytes)? else {
            return Self::of_text(files, name, bytes);
        };
        let text = match sparse.descriptor {
            None => None,
            Some(area) => {
                let (start, len) = area.bytes();
                let text = sparse.file.slice(start, len);
                if to_u64(text.len()) != len {
                    let problem = Problem::Truncated(sparse.file.len());
                    return Err(field("descriptorOffset", area.start, problem));
                }
                Some(Text::parse(text)?)
            }
        };
        check_len(sparse.capacity)?;
        let extent = Extent {
            name: Some(name.to_owned()),
            access: Access::ReadWrite,
            start: 0,
            sectors: sparse.capacity,
            content: Content::Sparse(sparse),
        };
        Ok(Self { text, extents: vec![extent], backing: None })
    }

    fn of_text(files: &'a Files, name: &str, bytes: &'a [u8]) -> Result<Self, BadImage> {
        if !bytes.trim_ascii_start().starts_with(b"#") && !bytes.starts_with(b"version") {
            return Err(BadImage::NotVmdk { name: name.to_owned() });
        }
        let text = Text::parse(bytes)?;
        let mut extents = Vec::new();
        let mut start = 0u64;
        for line in text.extents() {
            let extent = Extent::of_line(files, name, line, start)?;
            start = start.saturating_add(extent.sectors);
            check_len(start)?;
            extents.push(extent);
        }
        Ok(Self { text: Some(text), extents, backing: None })
    }

    /// With the guest contents of the parent, which may be shorter or longer than the disk.
    #[must_use]
    pub fn with_backing(mut self, contents: &'a [u8]) -> Self {
        self.backing = Some(Bytes::new(contents));
        self
    }

    /// The descriptor; an extent of a disk of several has none.
    pub fn text(&self) -> Option<&Text> {
        self.text.as_ref()
    }

    /// The extents, in the order of the disk.
    pub fn extents(&self) -> &[Extent<'a>] {
        &self.extents
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        let end = self.extents.last().map_or(0, |last| last.start.saturating_add(last.sectors));
        end.saturating_mul(SECTOR)
    }

    /// Whether the disk has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Extent<'a> {
    fn of_line(
        files: &'a Files,
        descriptor: &str,
        line: &ExtentLine,
        start: u64,
    ) -> Result<Self, BadImage> {
        let name = line.name.as_deref().map(|name| beside(descriptor, name));
        let bytes = || file(files, name.as_deref().unwrap_or_default());
        let content = match line.kind.as_str() {
            "ZERO" => Content::Zero,
            "FLAT" | "VMFS" => {
                Content::Flat { file: Raw(Bytes::new(bytes()?)), offset: line.offset }
            }
            kind @ ("SPARSE" | "VMFSSPARSE" | "SESPARSE") => {
                let sparse = Sparse::open(bytes()?)?;
                let wanted = match kind {
                    "SPARSE" => Kind::Hosted,
                    "VMFSSPARSE" => Kind::Cowd,
                    _ => Kind::SeSparse,
                };
                let sparse = sparse.filter(|sparse| sparse.kind == wanted);
                let not = || BadImage::NotVmdk { name: name.clone().unwrap_or_default() };
                let sparse = sparse.ok_or_else(not)?;
                if sparse.capacity < line.sectors {
                    let problem = Problem::Contradicts("the length in the descriptor");
                    return Err(field("capacity", sparse.capacity, problem));
                }
                Content::Sparse(sparse)
            }
            kind => return Err(BadImage::Unsupported { kind: kind.to_owned() }),
        };
        Ok(Self { name, access: line.access, start, sectors: line.sectors, content })
    }
}

impl Area {
    /// Where it starts and how long it is, in bytes.
    fn bytes(self) -> (u64, u64) {
        (self.start.saturating_mul(SECTOR), self.count.saturating_mul(SECTOR).min(1 << 20))
    }
}

/// The name that the descriptor `descriptor` means by `name`.
fn beside(descriptor: &str, name: &str) -> String {
    match descriptor.rsplit_once('/') {
        Some((directory, _)) => format!("{directory}/{name}"),
        None => name.to_owned(),
    }
}

/// A disk longer than any that the field's tools take is a damaged one.
fn check_len(sectors: u64) -> Result<(), BadImage> {
    let limit = MAX_LEN / SECTOR;
    if sectors > limit {
        return Err(BadImage::TooLarge { what: "sectors of the disk", value: sectors, limit });
    }
    Ok(())
}

fn file<'a>(files: &'a Files, name: &str) -> Result<&'a [u8], BadImage> {
    let found = files.get(name).ok_or_else(|| BadImage::NoFile { name: name.to_owned() })?;
    Ok(found)
}
