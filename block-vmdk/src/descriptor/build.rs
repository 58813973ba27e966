//! The text of a new descriptor: the settings, in the order, that VMware's programs and others expect.
//!
//! Invariant: what [`NewDescriptor::to_bytes`] gives is parsed by [`super::Descriptor::parse`] to what the
//! fields say. Texts that come from elsewhere are [`Quoted`]: none of them ends early or adds a line.

use std::fmt::{self, Write};

use super::{Access, CreateType, Extent, ExtentKind};
use crate::units::{ContentId, Geometry, Sector, SectorCount};

/// Longest text between quotes, in bytes.
const QUOTED_MAX: usize = 1023;

/// A text that can stand between quotes: no quotes, no control characters, at most 1023 bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Quoted(String);

impl Quoted {
    /// `text`, if it can stand between quotes.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let plain = !text.chars().any(|c| c == '"' || c.is_control());
        (plain && text.len() <= QUOTED_MAX).then_some(Self(text))
    }

    /// The text without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The virtual adapter that a disk is made for.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names are those of the format")]
pub enum AdapterType {
    #[default]
    Ide,
    BusLogic,
    LsiLogic,
    LegacyEsx,
}

impl AdapterType {
    const NAMES: [(&'static str, Self); 4] = [
        ("ide", Self::Ide),
        ("buslogic", Self::BusLogic),
        ("lsilogic", Self::LsiLogic),
        ("legacyESX", Self::LegacyEsx),
    ];

    /// Its name in descriptors.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, own)| *own == self);
        found.map_or("", |(name, _)| name)
    }

    /// The adapter of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(own, _)| *own == name);
        found.map(|(_, adapter)| *adapter)
    }

    /// How a disk of `sectors` looks behind it: 16 heads on IDE, 255 otherwise. Sectors that fill no
    /// cylinder are not counted.
    pub fn geometry(self, sectors: SectorCount) -> Geometry {
        let heads = if self == Self::Ide { 16 } else { 255 };
        let cylinders = sectors.0 / (u64::from(heads) * 63);
        Geometry { cylinders, heads, sectors: 63 }
    }
}

/// An extent of a new disk: the guest may write it, and it starts where its file starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewExtent {
    /// Its length.
    pub sectors: SectorCount,
    /// What its file is.
    pub kind: ExtentKind,
    /// Name of its file.
    pub file_name: Quoted,
}

impl From<&NewExtent> for Extent {
    fn from(new: &NewExtent) -> Self {
        Self {
            access: Access::ReadWrite,
            sectors: new.sectors,
            kind: new.kind,
            file_name: new.file_name.as_str().as_bytes().to_vec(),
            offset: (new.kind == ExtentKind::Flat).then_some(Sector(0)),
        }
    }
}

/// The image that a new one shows where it holds nothing itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Its name as it is to stand in the descriptor.
    pub name: Quoted,
    /// Its content id.
    pub cid: ContentId,
}

/// What a new descriptor says.
///
/// ```
/// use block_vmdk::descriptor::{AdapterType, CreateType, Descriptor, ExtentKind};
/// use block_vmdk::descriptor::{NewDescriptor, NewExtent, Quoted};
/// use block_vmdk::units::{ContentId, SectorCount};
///
/// # fn main() -> Option<()> {
/// let new = NewDescriptor {
///     create_type: CreateType::MonolithicFlat,
///     cid: ContentId(0x4f2a_3d1c),
///     parent: None,
///     extents: vec![NewExtent {
///         sectors: SectorCount(20480),
///         kind: ExtentKind::Flat,
///         file_name: Quoted::new("disk-flat.vmdk")?,
///     }],
///     adapter: AdapterType::LsiLogic,
///     hw_version: Quoted::new("4")?,
///     tools_version: Quoted::new("2147483647")?,
/// };
/// let descriptor = Descriptor::parse(&new.to_bytes()).ok()?;
/// assert_eq!(descriptor.capacity(), SectorCount(20480));
/// assert_eq!(descriptor.value("ddb.geometry.heads"), Some(&b"255"[..]));
/// # Some(())
/// # }
/// # main().unwrap();
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewDescriptor {
    /// How the files are laid out.
    pub create_type: CreateType,
    /// The content id.
    pub cid: ContentId,
    /// The parent, if there is one.
    pub parent: Option<Parent>,
    /// The extents, in the order in which they make up the disk.
    pub extents: Vec<NewExtent>,
    /// The adapter that the disk is made for.
    pub adapter: AdapterType,
    /// Version of the virtual hardware that the disk is made for.
    pub hw_version: Quoted,
    /// Version of the tools in the guest.
    pub tools_version: Quoted,
}

impl NewDescriptor {
    /// The text.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = self.header();
        text.push_str("\n# Extent description\n");
        let mut bytes = text.into_bytes();
        for extent in &self.extents {
            bytes.extend(Extent::from(extent).to_line());
            bytes.push(b'\n');
        }
        bytes.extend(self.data_base().into_bytes());
        bytes
    }

    /// The settings of the disk. Readers that look for the first `CID=` find it before that of the parent.
    fn header(&self) -> String {
        let mut text = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n".to_owned();
        let parent_cid = self.parent.as_ref().map_or(ContentId::NO_PARENT, |parent| parent.cid);
        line(&mut text, format_args!("CID={}", self.cid));
        line(&mut text, format_args!("parentCID={parent_cid}"));
        line(&mut text, format_args!("createType=\"{}\"", self.create_type.name()));
        if let Some(parent) = &self.parent {
            line(&mut text, format_args!("parentFileNameHint=\"{}\"", parent.name));
        }
        text
    }

    /// The settings of the virtual hardware.
    fn data_base(&self) -> String {
        let total = self.extents.iter().fold(0, |sum: u64, e| sum.saturating_add(e.sectors.0));
        let geometry = self.adapter.geometry(SectorCount(total));
        let mut text = "\n# The Disk Data Base\n#DDB\n\n".to_owned();
        let mut entry = |name: &str, value: &dyn fmt::Display| {
            line(&mut text, format_args!("ddb.{name} = \"{value}\""));
        };
        entry("virtualHWVersion", &self.hw_version);
        entry("geometry.cylinders", &geometry.cylinders);
        entry("geometry.heads", &geometry.heads);
        entry("geometry.sectors", &geometry.sectors);
        entry("adapterType", &self.adapter.name());
        entry("toolsVersion", &self.tools_version);
        text
    }
}

fn line(text: &mut String, args: fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{args}");
}

#[cfg(test)]
mod tests {
    use super::super::Descriptor;
    use super::*;
    use proptest::prelude::*;

    fn quoted(text: &str) -> Quoted {
        Quoted::new(text).unwrap()
    }

    fn plain() -> NewDescriptor {
        let extent = |number: u32| NewExtent {
            sectors: SectorCount(4_194_304),
            kind: ExtentKind::Sparse,
            file_name: quoted(&format!("a b-s00{number}.vmdk")),
        };
        NewDescriptor {
            create_type: CreateType::TwoGbMaxExtentSparse,
            cid: ContentId(0xab),
            parent: Some(Parent { name: quoted("p.vmdk"), cid: ContentId(7) }),
            extents: vec![extent(1), extent(2)],
            adapter: AdapterType::Ide,
            hw_version: quoted("4"),
            tools_version: quoted("2147483647"),
        }
    }

    #[test]
    fn the_text_has_all_settings_in_their_order() {
        let expected = "# Disk DescriptorFile\n\
            version=1\n\
            encoding=\"UTF-8\"\n\
            CID=000000ab\n\
            parentCID=00000007\n\
            createType=\"twoGbMaxExtentSparse\"\n\
            parentFileNameHint=\"p.vmdk\"\n\
            \n\
            # Extent description\n\
            RW 4194304 SPARSE \"a b-s001.vmdk\"\n\
            RW 4194304 SPARSE \"a b-s002.vmdk\"\n\
            \n\
            # The Disk Data Base\n\
            #DDB\n\
            \n\
            ddb.virtualHWVersion = \"4\"\n\
            ddb.geometry.cylinders = \"8322\"\n\
            ddb.geometry.heads = \"16\"\n\
            ddb.geometry.sectors = \"63\"\n\
            ddb.adapterType = \"ide\"\n\
            ddb.toolsVersion = \"2147483647\"\n";
        let bytes = plain().to_bytes();
        assert_eq!(std::str::from_utf8(&bytes), Ok(expected));
    }

    #[test]
    fn texts_that_would_end_early_are_refused() {
        for text in ["a\"b", "a\nRW 1 FLAT", "a\rb", "a\0b", "\u{85}", &"x".repeat(1024)] {
            assert_eq!(Quoted::new(text), None, "{text:?}");
        }
        assert!(Quoted::new("x".repeat(1023)).is_some());
        assert_eq!(quoted("").as_str(), "");
    }

    #[test]
    fn adapters_have_names_and_geometries() {
        for (name, adapter) in AdapterType::NAMES {
            assert_eq!((adapter.name(), AdapterType::of_name(name)), (name, Some(adapter)));
        }
        assert_eq!(AdapterType::of_name("IDE"), None);
        let of = |adapter: AdapterType| adapter.geometry(SectorCount(20_971_520));
        let ide = Geometry { cylinders: 20805, heads: 16, sectors: 63 };
        let scsi = Geometry { cylinders: 1305, heads: 255, sectors: 63 };
        assert_eq!(of(AdapterType::Ide), ide);
        assert_eq!(of(AdapterType::LegacyEsx), scsi);
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed(
            cid: u32,
            parent in prop::option::of(("[^\"\\p{Cc}]{1,40}", any::<u32>())),
            sizes in prop::collection::vec(0..1u64 << 40, 1..4),
            name in "[^\"\\p{Cc}]{1,40}",
            flat: bool,
        ) {
            let kind = if flat { ExtentKind::Flat } else { ExtentKind::VmfsSparse };
            let extents = sizes.iter().map(|size| NewExtent {
                sectors: SectorCount(*size),
                kind,
                file_name: quoted(&name),
            });
            let new = NewDescriptor {
                cid: ContentId(cid),
                parent: parent.map(|(name, cid)| Parent {
                    name: quoted(&name),
                    cid: ContentId(cid),
                }),
                extents: extents.collect(),
                hw_version: quoted(&name),
                ..plain()
            };
            let parsed = Descriptor::parse(&new.to_bytes()).unwrap();
            let expected: Vec<_> = new.extents.iter().map(Extent::from).collect();
            prop_assert_eq!(parsed.extents(), &expected[..]);
            prop_assert_eq!(parsed.content_id(), Some(new.cid));
            let hint = new.parent.as_ref().map(|parent| parent.name.as_str().trim());
            let parsed_hint = parsed.value("parentFileNameHint");
            let parsed_hint = parsed_hint.map(|hint| std::str::from_utf8(hint).unwrap().trim());
            prop_assert_eq!(parsed_hint, hint);
            prop_assert_eq!(parsed.create_type(), Ok(new.create_type));
        }
    }
}
