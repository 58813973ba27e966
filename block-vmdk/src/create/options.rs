//! What a new image is to be: the builder, its options as texts, and which of them go together.
//!
//! Invariant: an image is laid out only from options that [`CreateOptions::check`] has passed, and
//! every refusal names the option and its value.

use block_core::driver::Prealloc;
use block_core::error::Problem;
use block_core::range::{MAX_LEN, to_u64};
use block_core::registry::CreateOption;
use block_core::{OpenError, Options};

use super::layout::HOSTED_SECTORS_MAX;
use super::names::Names;
use crate::descriptor::{
    AdapterType, CreateType, ExtentKind, NewDescriptor, NewExtent, Parent, Quoted,
};
use crate::error::FORMAT;
use crate::open::EXTENTS_MAX;
use crate::spec::sparse::ZeroedGrains;
use crate::units::{ContentId, SectorCount};

/// The options by name, for help.
pub(crate) const OPTIONS: &[CreateOption] = &[
    option("size", "<size>", "Virtual disk size", None),
    option(
        "adapter_type",
        "<str>",
        "Virtual adapter: ide (default), lsilogic, buslogic, legacyESX",
        None,
    ),
    option("backing_file", "<str>", "File name of the backing file", None),
    option("backing_fmt", "<str>", "Format of the backing file: vmdk", None),
    option("compat6", BOOL, "Make an image for virtual hardware of version 6", Some("off")),
    option("hwversion", "<str>", "Version of the virtual hardware", Some("undefined")),
    option("toolsversion", "<str>", "Version of the tools in the guest", None),
    option(
        "subformat",
        "<str>",
        "Layout of the files: monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, \
         twoGbMaxExtentFlat, streamOptimized, vmfs, vmfsSparse",
        None,
    ),
    option("zeroed_grain", BOOL, "Let grains of zeroes take no space", None),
    option("preallocation", "<str>", "What is allocated of flat files: off, falloc, full", None),
];

const BOOL: &str = "<bool (on/off)>";

const fn option(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    default: Option<&'static str>,
) -> CreateOption {
    CreateOption { name, value, help, default }
}

/// Sectors of an extent of an image that is split: 2 GiB.
const SPLIT_SECTORS: u64 = 4 << 20;
/// Longest extent of ESX, whose header has 32 bits for it.
const COWD_SECTORS_MAX: u64 = 0xffff_ffff;

/// Version of the virtual hardware, where nobody says another.
const HW_VERSION: &str = "4";
/// Version of the virtual hardware of `compat6`.
const HW_VERSION_6: &str = "6";
/// What stands for a version that nobody has said.
const HW_VERSION_UNDEFINED: &str = "undefined";
/// Version of the tools that stands for tools that VMware's programs do not manage.
const TOOLS_VERSION: &str = "2147483647";

/// What a new image is to be.
///
/// ```
/// use block_vmdk::create::CreateOptions;
/// use block_vmdk::descriptor::{AdapterType, CreateType};
///
/// let flat = CreateOptions::new(1 << 30)
///     .create_type(CreateType::MonolithicFlat)
///     .adapter(AdapterType::LsiLogic);
/// assert!(flat.check().is_ok());
/// let error = flat.zeroed_grains().check().unwrap_err();
/// assert_eq!(error.to_string(), "Invalid option 'zeroed_grain=on': contradicts a flat subformat");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    pub(crate) size: u64,
    pub(crate) create_type: CreateType,
    pub(crate) adapter: AdapterType,
    pub(crate) hw_version: String,
    pub(crate) tools_version: String,
    pub(crate) zeroed_grains: ZeroedGrains,
    pub(crate) preallocation: Prealloc,
    pub(crate) backing: Option<Backing>,
}

/// The backing file of a new image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    pub(crate) name: String,
    pub(crate) cid: ContentId,
}

impl CreateOptions {
    /// A disk of `size` bytes, rounded up to whole sectors, in one sparse file (monolithicSparse), for IDE.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            create_type: CreateType::MonolithicSparse,
            adapter: AdapterType::default(),
            hw_version: HW_VERSION.to_owned(),
            tools_version: TOOLS_VERSION.to_owned(),
            zeroed_grains: ZeroedGrains::No,
            preallocation: Prealloc::Off,
            backing: None,
        }
    }

    /// With files laid out like this; [`CreateType::SeSparse`] cannot be made.
    #[must_use]
    pub fn create_type(self, create_type: CreateType) -> Self {
        Self { create_type, ..self }
    }

    /// For this virtual adapter.
    #[must_use]
    pub fn adapter(self, adapter: AdapterType) -> Self {
        Self { adapter, ..self }
    }

    /// For virtual hardware of this version.
    #[must_use]
    pub fn hw_version(self, version: impl Into<String>) -> Self {
        Self { hw_version: version.into(), ..self }
    }

    /// For a guest with tools of this version.
    #[must_use]
    pub fn tools_version(self, version: impl Into<String>) -> Self {
        Self { tools_version: version.into(), ..self }
    }

    /// With entries for grains of zeroes, in an image of hosted sparse extents. A streamOptimized image does
    /// not change by it: nothing is written to it later.
    #[must_use]
    pub fn zeroed_grains(self) -> Self {
        Self { zeroed_grains: ZeroedGrains::Yes, ..self }
    }

    /// With this much allocated of flat extents; no other takes anything but [`Prealloc::Off`].
    #[must_use]
    pub fn preallocation(self, preallocation: Prealloc) -> Self {
        Self { preallocation, ..self }
    }

    /// On top of the VMDK image `name`, whose content id is `cid`; not for flat extents.
    #[must_use]
    pub fn backing(self, name: impl Into<String>, cid: ContentId) -> Self {
        Self { backing: Some(Backing { name: name.into(), cid }), ..self }
    }

    /// The options as texts, by the names that `create` has for them; `size` must be among them. The content id
    /// of the backing file is not known yet.
    ///
    /// Fails on what is missing, unknown or has no such value.
    pub fn from_options(mut options: Options) -> Result<Self, OpenError> {
        let new = Self::take(&mut options)?;
        options.finish()?;
        Ok(new)
    }

    /// Takes the options of [`OPTIONS`]. The content id of the backing file is not known yet.
    pub(crate) fn take(options: &mut Options) -> Result<Self, OpenError> {
        let missing = |option: &str| OpenError::Option {
            option: option.to_owned(),
            problem: Problem::Missing,
        };
        let size = options.take_size("size")?.ok_or_else(|| missing("size"))?;
        let mut new = Self::new(size);
        if let Some(name) = options.take("subformat") {
            let known = CreateType::of_name(name.as_bytes()).filter(|t| *t != CreateType::SeSparse);
            new.create_type = known.ok_or_else(|| refuse("subformat", name, Problem::Unknown))?;
        }
        if let Some(name) = options.take("adapter_type") {
            let known = AdapterType::of_name(&name);
            new.adapter = known.ok_or_else(|| refuse("adapter_type", name, Problem::Unknown))?;
        }
        if let Some(name) = options.take("preallocation") {
            let known = PREALLOCATIONS.iter().find(|(known, _)| *known == name);
            let (_, value) =
                known.ok_or_else(|| refuse("preallocation", name, Problem::Unknown))?;
            new.preallocation = *value;
        }
        if options.take_bool("zeroed_grain")?.unwrap_or(false) {
            new.zeroed_grains = ZeroedGrains::Yes;
        }
        let compat6 = options.take_bool("compat6")?.unwrap_or(false);
        let version = options.take("hwversion").filter(|version| version != HW_VERSION_UNDEFINED);
        match (compat6, version) {
            (true, Some(_)) => {
                return Err(refuse("compat6", "on", Problem::Contradicts("hwversion")));
            }
            (true, None) => new.hw_version = HW_VERSION_6.to_owned(),
            (false, Some(version)) => new.hw_version = version,
            (false, None) => {}
        }
        if let Some(version) = options.take("toolsversion") {
            new.tools_version = version;
        }
        new.backing = match (options.take("backing_file"), options.take("backing_fmt")) {
            (None, None) => None,
            (Some(name), Some(format)) => {
                check_backing_format(format)?;
                Some(Backing { name, cid: ContentId::NO_PARENT })
            }
            (None, Some(_)) => return Err(missing("backing_file")),
            (Some(_), None) => return Err(missing("backing_fmt")),
        };
        Ok(new)
    }

    /// Whether the options go together. An image is not made from others.
    pub fn check(&self) -> Result<(), OpenError> {
        self.plan().map(drop)
    }

    /// What follows from options that go together.
    pub(crate) fn plan(&self) -> Result<Plan, OpenError> {
        self.check_subformat()?;
        let quoted = |option, text: &str| {
            Quoted::new(text).ok_or_else(|| refuse(option, text, Problem::NotText))
        };
        let parent = match &self.backing {
            None => None,
            Some(backing) if backing.name.is_empty() => {
                return Err(refuse("backing_file", "", Problem::Missing));
            }
            Some(backing) => {
                Some(Parent { name: quoted("backing_file", &backing.name)?, cid: backing.cid })
            }
        };
        Ok(Plan {
            create_type: self.create_type,
            sectors: self.sectors()?,
            adapter: self.adapter,
            hw_version: quoted("hwversion", &self.hw_version)?,
            tools_version: quoted("toolsversion", &self.tools_version)?,
            zeroed_grains: self.zeroed_grains,
            preallocation: self.preallocation,
            parent,
        })
    }

    fn check_subformat(&self) -> Result<(), OpenError> {
        let zeroed = self.zeroed_grains == ZeroedGrains::Yes;
        let preallocated = self.preallocation != Prealloc::Off;
        let flat = Problem::Contradicts("a flat subformat");
        match self.create_type {
            CreateType::SeSparse => {
                Err(refuse("subformat", self.create_type.name(), Problem::Unknown))
            }
            CreateType::MonolithicFlat | CreateType::TwoGbMaxExtentFlat | CreateType::Vmfs => {
                match &self.backing {
                    Some(backing) => Err(refuse("backing_file", &backing.name, flat)),
                    None if zeroed => Err(refuse("zeroed_grain", "on", flat)),
                    None => Ok(()),
                }
            }
            CreateType::VmfsSparse if zeroed => {
                let problem = Problem::Contradicts("subformat=vmfsSparse");
                Err(refuse("zeroed_grain", "on", problem))
            }
            _ if preallocated => {
                let problem = Problem::Contradicts("a sparse subformat");
                Err(refuse("preallocation", self.preallocation_name(), problem))
            }
            _ => Ok(()),
        }
    }

    /// Length of the disk, which the extents of its layout can have.
    fn sectors(&self) -> Result<SectorCount, OpenError> {
        let max = match self.create_type {
            CreateType::MonolithicSparse | CreateType::StreamOptimized => HOSTED_SECTORS_MAX,
            CreateType::TwoGbMaxExtentSparse | CreateType::TwoGbMaxExtentFlat => {
                SPLIT_SECTORS * to_u64(EXTENTS_MAX)
            }
            CreateType::VmfsSparse => COWD_SECTORS_MAX,
            CreateType::MonolithicFlat | CreateType::Vmfs | CreateType::SeSparse => MAX_LEN / 512,
        };
        let sectors = SectorCount::of_bytes(self.size);
        if sectors.0 > max {
            return Err(refuse("size", self.size, Problem::Above(max * 512)));
        }
        Ok(sectors)
    }

    fn preallocation_name(&self) -> &'static str {
        let named = PREALLOCATIONS.iter().find(|(_, value)| *value == self.preallocation);
        named.map_or("metadata", |(name, _)| name)
    }
}

/// Options that go together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) create_type: CreateType,
    /// Length of the disk.
    pub(crate) sectors: SectorCount,
    pub(crate) adapter: AdapterType,
    pub(crate) zeroed_grains: ZeroedGrains,
    pub(crate) preallocation: Prealloc,
    hw_version: Quoted,
    tools_version: Quoted,
    parent: Option<Parent>,
}

impl Plan {
    /// The lengths of the extents; a disk of no length has one.
    pub(crate) fn extents(&self) -> impl Iterator<Item = SectorCount> + use<> {
        let total = self.sectors.0;
        let longest = match self.create_type {
            CreateType::TwoGbMaxExtentSparse | CreateType::TwoGbMaxExtentFlat => SPLIT_SECTORS,
            _ => total,
        };
        let count = if total == 0 { 1 } else { total.div_ceil(longest) };
        (0..count).map(move |index| SectorCount((total - index * longest).min(longest)))
    }

    /// Whether the extents are files beside the descriptor.
    pub(crate) fn has_own_extents(&self) -> bool {
        let one =
            matches!(self.create_type, CreateType::MonolithicSparse | CreateType::StreamOptimized);
        !one
    }

    /// Whether there is no parent.
    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// What the files of the extents are.
    pub(crate) fn kind(&self) -> ExtentKind {
        match self.create_type {
            CreateType::MonolithicFlat | CreateType::TwoGbMaxExtentFlat => ExtentKind::Flat,
            CreateType::Vmfs => ExtentKind::Vmfs,
            CreateType::VmfsSparse => ExtentKind::VmfsSparse,
            CreateType::SeSparse => ExtentKind::SeSparse,
            CreateType::MonolithicSparse
            | CreateType::TwoGbMaxExtentSparse
            | CreateType::StreamOptimized => ExtentKind::Sparse,
        }
    }

    /// The descriptor of an image of these names.
    pub(super) fn descriptor(&self, names: &Names, cid: ContentId) -> Option<NewDescriptor> {
        let extents = (1..).zip(self.extents()).map(|(number, sectors)| {
            let file_name = names.extent(self.create_type, number)?;
            Some(NewExtent { sectors, kind: self.kind(), file_name })
        });
        Some(NewDescriptor {
            create_type: self.create_type,
            cid,
            parent: self.parent.clone(),
            extents: extents.collect::<Option<_>>()?,
            adapter: self.adapter,
            hw_version: self.hw_version.clone(),
            tools_version: self.tools_version.clone(),
        })
    }
}

const PREALLOCATIONS: [(&str, Prealloc); 3] =
    [("off", Prealloc::Off), ("falloc", Prealloc::Falloc), ("full", Prealloc::Full)];

fn check_backing_format(format: String) -> Result<(), OpenError> {
    if format == FORMAT {
        return Ok(());
    }
    let problem = Problem::Contradicts("the format vmdk, which a backing file must have, too");
    Err(refuse("backing_fmt", format, problem))
}

pub(super) fn refuse(option: &'static str, value: impl ToString, problem: Problem) -> OpenError {
    OpenError::OptionValue { option, value: value.to_string(), problem }
}
