//! Extent lines: `ACCESS SECTORS TYPE "file name" [OFFSET]`.

use super::error::LineProblem;
use crate::units::{Sector, SectorCount};

/// Longest file name in bytes.
const NAME_MAX: usize = 4095;

/// What a guest may do with an extent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read.
    ReadOnly,
    /// Nothing.
    None,
}

/// What the file of an extent is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ExtentKind {
    /// The bytes as they are, from an offset on.
    Flat,
    /// A hosted sparse extent.
    Sparse,
    /// No file: all zeroes.
    Zero,
    /// The bytes as they are, on VMFS.
    Vmfs,
    /// A sparse extent of ESX (COWD).
    VmfsSparse,
    /// A space-efficient sparse extent of ESX.
    SeSparse,
    /// A mapped raw device.
    VmfsRdm,
    /// A raw device.
    VmfsRaw,
}

impl Access {
    const NAMES: [(&'static str, Self); 3] =
        [("RW", Self::ReadWrite), ("RDONLY", Self::ReadOnly), ("NOACCESS", Self::None)];
}

impl ExtentKind {
    const NAMES: [(&'static str, Self); 8] = [
        ("FLAT", Self::Flat),
        ("SPARSE", Self::Sparse),
        ("ZERO", Self::Zero),
        ("VMFS", Self::Vmfs),
        ("VMFSSPARSE", Self::VmfsSparse),
        ("SESPARSE", Self::SeSparse),
        ("VMFSRDM", Self::VmfsRdm),
        ("VMFSRAW", Self::VmfsRaw),
    ];

    /// Its name in descriptors.
    pub fn name(self) -> &'static str {
        name_of(&Self::NAMES, self)
    }
}

/// An extent of the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// What a guest may do with it.
    pub access: Access,
    /// Its length.
    pub sectors: SectorCount,
    /// What its file is.
    pub kind: ExtentKind,
    /// Name of its file as it stands in the descriptor; empty for [`ExtentKind::Zero`].
    pub file_name: Vec<u8>,
    /// Where in the file it starts; flat extents have one.
    pub offset: Option<Sector>,
}

impl Extent {
    /// Reads a line; `None` if it is no extent line, which its first word tells.
    pub(super) fn parse(line: &[u8]) -> Result<Option<Self>, LineProblem> {
        let (first, rest) = word(line);
        let Some(access) = of_name(&Access::NAMES, first) else {
            return Ok(None);
        };
        let (sectors_text, rest) = word(rest);
        let bad_sectors = || LineProblem::Sectors(text(sectors_text));
        let sectors = number(sectors_text).map(SectorCount);
        let sectors = sectors.filter(|s| s.bytes().is_some()).ok_or_else(bad_sectors)?;
        let (kind_text, rest) = word(rest);
        let bad_kind = || LineProblem::Kind(text(kind_text));
        let kind = of_name(&ExtentKind::NAMES, kind_text).ok_or_else(bad_kind)?;
        let (file_name, rest) = match kind {
            ExtentKind::Zero => (&[][..], rest),
            _ => quoted(rest).ok_or(LineProblem::FileName)?,
        };
        let (offset_text, rest) = word(rest);
        let offset = parse_offset(kind, offset_text)?;
        // A device may be described further; nothing else has anything to add.
        let may_add = !matches!(kind, ExtentKind::Zero | ExtentKind::Sparse);
        if !rest.trim_ascii().is_empty() && !may_add {
            return Err(LineProblem::Excess(text(rest)));
        }
        Ok(Some(Self { access, sectors, kind, file_name: file_name.to_vec(), offset }))
    }

    /// The line that says this, without a line end.
    pub fn to_line(&self) -> Vec<u8> {
        let access = name_of(&Access::NAMES, self.access);
        let mut line = format!("{access} {} {}", self.sectors.0, self.kind.name()).into_bytes();
        if self.kind != ExtentKind::Zero {
            line.extend_from_slice(b" \"");
            line.extend_from_slice(&self.file_name);
            line.push(b'"');
        }
        if let Some(offset) = self.offset {
            line.extend_from_slice(format!(" {}", offset.0).as_bytes());
        }
        line
    }
}

fn parse_offset(kind: ExtentKind, word: &[u8]) -> Result<Option<Sector>, LineProblem> {
    if word.is_empty() {
        return match kind {
            ExtentKind::Flat => Err(LineProblem::NoOffset),
            _ => Ok(None),
        };
    }
    let offset = number(word).map(Sector).filter(|s| s.offset().is_some());
    match offset {
        Some(_) if kind == ExtentKind::Zero => Err(LineProblem::Excess(text(word))),
        Some(offset) => Ok(Some(offset)),
        None => Err(LineProblem::Offset(text(word))),
    }
}

fn of_name<T: Copy>(names: &[(&str, T)], name: &[u8]) -> Option<T> {
    let found = names.iter().find(|(own, _)| own.as_bytes().eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value)
}

fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    let found = names.iter().find(|(_, own)| *own == value);
    found.map_or("", |(name, _)| name)
}

/// The first word, and what follows it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace);
    line.split_at(end.unwrap_or(line.len()))
}

/// The text in quotes that `line` starts with, and what follows it.
fn quoted(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_start().strip_prefix(b"\"")?;
    let end = line.iter().position(|b| *b == b'"')?;
    let (name, rest) = line.split_at_checked(end)?;
    let fits = (1..=NAME_MAX).contains(&name.len());
    fits.then_some((name, rest.get(1..)?))
}

/// Decimal digits and nothing else.
fn number(word: &[u8]) -> Option<u64> {
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(word).ok().filter(|_| digits)?;
    text.parse().ok()
}

fn text(bytes: &[u8]) -> String {
    bytes.trim_ascii().escape_ascii().to_string()
}
