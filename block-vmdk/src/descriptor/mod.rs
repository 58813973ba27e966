//! The text descriptor: which extents a disk has, its content id and that of its parent.
//!
//! A [`Descriptor`] keeps every line as it was read (unknown lines, comments, order, line ends), so
//! `parse(x).to_bytes() == x` up to the first NUL byte, where the text of an embedded descriptor
//! ends. Settings are found by their whole name: `CID` is never the end of `parentCID`. Blank lines
//! mean nothing, wherever they stand.
//!
//! Bytes that are not UTF-8 are kept too: a descriptor may be in any encoding that has ASCII in it.

mod build;
mod error;
mod extent;
mod line;

pub use build::{AdapterType, NewDescriptor, NewExtent, Parent, Quoted};
pub use error::{DescriptorError, LineProblem};
pub use extent::{Access, Extent, ExtentKind};

use crate::units::{ContentId, SectorCount};
use line::{Line, Meaning, lines};

/// Longest descriptor in bytes.
pub const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;

const VERSION: &str = "version";
const CID: &str = "CID";
const PARENT_CID: &str = "parentCID";
const CREATE_TYPE: &str = "createType";
/// The setting that names the parent.
pub(crate) const PARENT_HINT: &str = "parentFileNameHint";

/// Further values of `createType`: their extents are of the kinds that the others have.
const OTHER_TYPES: [&str; 5] =
    ["fullDevice", "partitionedDevice", "custom", "vmfsThin", "vmfsEagerZeroedThick"];

/// How the files of a disk are laid out.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are those of the format")]
pub enum CreateType {
    MonolithicSparse,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    StreamOptimized,
    Vmfs,
    VmfsSparse,
    SeSparse,
}

impl CreateType {
    const NAMES: [(&'static str, Self); 8] = [
        ("monolithicSparse", Self::MonolithicSparse),
        ("monolithicFlat", Self::MonolithicFlat),
        ("twoGbMaxExtentSparse", Self::TwoGbMaxExtentSparse),
        ("twoGbMaxExtentFlat", Self::TwoGbMaxExtentFlat),
        ("streamOptimized", Self::StreamOptimized),
        ("vmfs", Self::Vmfs),
        ("vmfsSparse", Self::VmfsSparse),
        ("seSparse", Self::SeSparse),
    ];

    /// Its name in descriptors.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(name, _)| name)
    }

    /// The type of this name.
    pub fn of_name(name: &[u8]) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(own, _)| own.as_bytes() == name);
        found.map(|(_, kind)| *kind)
    }
}

/// A descriptor that was read. See the module for what it keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    lines: Vec<Line>,
    extents: Vec<Extent>,
    capacity: SectorCount,
    cid: Option<ContentId>,
    parent_cid: Option<ContentId>,
}

impl Descriptor {
    /// Reads a descriptor; what follows a NUL byte is padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        if text.len() > DESCRIPTOR_BYTES_MAX {
            return Err(DescriptorError::TooLong { len: text.len() });
        }
        let mut extents = Vec::new();
        let mut parsed = Vec::new();
        for (number, line) in (1..).zip(lines(text)) {
            let at_line = |problem| DescriptorError::Line { number, problem };
            if let Some(extent) = Extent::parse(&line.text).map_err(at_line)? {
                extents.push(extent);
            }
            parsed.push(line);
        }
        let capacity = extents
            .iter()
            .try_fold(SectorCount(0), |sum, extent| sum.plus(extent.sectors))
            .ok_or(DescriptorError::TooLarge)?;
        let mut descriptor = Self { lines: parsed, extents, capacity, cid: None, parent_cid: None };
        descriptor.check_version()?;
        descriptor.cid = descriptor.id_of(CID)?;
        descriptor.parent_cid = descriptor.id_of(PARENT_CID)?;
        descriptor.only(CREATE_TYPE)?;
        Ok(descriptor)
    }

    /// The text, byte for byte as it was read but for what was set since.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(Line::bytes).collect()
    }

    /// The extents, in the order in which they make up the disk.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Length of the disk: all extents together.
    pub fn capacity(&self) -> SectorCount {
        self.capacity
    }

    /// The first setting of this name (whole, upper and lower case alike), without its quotes.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.settings(name).next().map(|(_, value)| value)
    }

    /// How the files are laid out.
    pub fn create_type(&self) -> Result<CreateType, DescriptorError> {
        let value =
            self.value(CREATE_TYPE).ok_or(DescriptorError::Missing { name: CREATE_TYPE })?;
        CreateType::of_name(value).ok_or_else(|| bad_value(CREATE_TYPE, value))
    }

    /// Refuses a `createType` that no VMware product knows; what the types mean, the extent lines say.
    pub fn check_create_type(&self) -> Result<(), DescriptorError> {
        let value =
            self.value(CREATE_TYPE).ok_or(DescriptorError::Missing { name: CREATE_TYPE })?;
        let known = CreateType::of_name(value).is_some()
            || OTHER_TYPES.iter().any(|name| name.as_bytes() == value);
        if known { Ok(()) } else { Err(bad_value(CREATE_TYPE, value)) }
    }

    /// The content id.
    pub fn content_id(&self) -> Option<ContentId> {
        self.cid
    }

    /// The content id that the parent had when this image was made; none if there is no parent.
    pub fn parent_content_id(&self) -> Option<ContentId> {
        self.parent_cid.filter(|id| *id != ContentId::NO_PARENT)
    }

    /// Whether there is a parent.
    pub fn has_parent(&self) -> bool {
        self.parent_content_id().is_some()
    }

    /// Changes the content id, and nothing else. Fails if the descriptor has none.
    pub fn set_content_id(&mut self, id: ContentId) -> Result<(), DescriptorError> {
        self.set(CID, &id.to_string())?;
        self.cid = Some(id);
        Ok(())
    }

    /// Changes the parent's content id, and nothing else. Fails if the descriptor has none.
    pub fn set_parent_content_id(&mut self, id: ContentId) -> Result<(), DescriptorError> {
        self.set(PARENT_CID, &id.to_string())?;
        self.parent_cid = Some(id);
        Ok(())
    }

    /// Gives the image a parent, or another one, and changes nothing else. Fails if the descriptor has no
    /// setting for the parent's content id.
    pub fn set_parent(&mut self, hint: &Quoted, id: ContentId) -> Result<(), DescriptorError> {
        self.set_parent_content_id(id)?;
        if let Some(line) = self.lines.iter_mut().find(|line| line.is_setting(PARENT_HINT)) {
            line.replace_with_text(hint.as_str());
            return Ok(());
        }
        let of = |name| self.lines.iter().position(|line| line.is_setting(name));
        let before = of(CREATE_TYPE).or_else(|| of(PARENT_CID)).unwrap_or(0);
        if let Some(line) = self.lines.get_mut(before) {
            let added = line.followed_by(format!("{PARENT_HINT}=\"{hint}\""));
            self.lines.insert(before + 1, added);
        }
        Ok(())
    }

    /// Takes the image's parent away, and changes nothing else.
    pub fn remove_parent(&mut self) -> Result<(), DescriptorError> {
        if self.parent_cid.is_some() {
            self.set_parent_content_id(ContentId::NO_PARENT)?;
        }
        self.lines.retain(|line| !line.is_setting(PARENT_HINT));
        Ok(())
    }

    fn set(&mut self, name: &'static str, value: &str) -> Result<(), DescriptorError> {
        let found = self.lines.iter_mut().find(|line| line.is_setting(name));
        let line = found.ok_or(DescriptorError::Missing { name })?;
        line.replace_value(value);
        Ok(())
    }

    fn settings(&self, name: &str) -> impl Iterator<Item = (&Line, &[u8])> {
        let value = move |line| match Line::meaning(line) {
            Meaning::Setting { name: own, value } if own.eq_ignore_ascii_case(name.as_bytes()) => {
                Some((line, value))
            }
            _ => None,
        };
        self.lines.iter().filter_map(value)
    }

    /// The value of a setting that may stand there once only.
    fn only(&self, name: &'static str) -> Result<Option<&[u8]>, DescriptorError> {
        let mut found = self.settings(name);
        let first = found.next().map(|(_, value)| value);
        match found.next() {
            None => Ok(first),
            Some(_) => Err(DescriptorError::Repeated { name }),
        }
    }

    fn check_version(&self) -> Result<(), DescriptorError> {
        match self.only(VERSION)? {
            Some(b"1" | b"2" | b"3") => Ok(()),
            Some(value) => Err(bad_value(VERSION, value)),
            None => Err(DescriptorError::Missing { name: VERSION }),
        }
    }

    fn id_of(&self, name: &'static str) -> Result<Option<ContentId>, DescriptorError> {
        let Some(value) = self.only(name)? else {
            return Ok(None);
        };
        let id = std::str::from_utf8(value).ok().and_then(ContentId::parse);
        id.map(Some).ok_or_else(|| bad_value(name, value))
    }
}

/// Whether `head`, perhaps cut, starts like a descriptor: nothing but blank lines and comments
/// before `version=` 1, 2 or 3.
pub(crate) fn starts_a_descriptor(head: &[u8]) -> bool {
    for line in lines(head) {
        match line.meaning() {
            Meaning::Nothing => {}
            Meaning::Setting { name, value } => {
                return name.eq_ignore_ascii_case(VERSION.as_bytes())
                    && matches!(value, b"1" | b"2" | b"3");
            }
            Meaning::Other => return false,
        }
    }
    false
}

fn bad_value(name: &'static str, value: &[u8]) -> DescriptorError {
    DescriptorError::Value { name, value: value.escape_ascii().to_string() }
}

#[cfg(test)]
mod tests;
