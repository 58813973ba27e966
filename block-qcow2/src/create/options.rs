//! What a new image is to be: the builder, its options as texts, and which of them go together.
//!
//! Invariant: an image is laid out only from options that [`CreateOptions::check`] has passed, and
//! every refusal names the option and its value.

use block_core::driver::Prealloc;
use block_core::error::Problem;
use block_core::range::{Alignment, MAX_LEN};
use block_core::registry::CreateOption;
use block_core::{OpenError, Options};

use super::layout::{Layout, Mapped};
use crate::geometry::{DataLocation, Geometry, L2Format, Version};
use crate::geometry::{
    MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS, MIN_CLUSTER_BITS_EXTENDED,
};
use crate::spec::FORMAT;
use crate::spec::header::{Compression, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES};

/// The options by name, for help.
pub(crate) const OPTIONS: &[CreateOption] = &[
    option("encryption", BOOL, "Encrypt the image: off", None),
    option("cluster_size", "<size>", "Cluster size, 512 to 2M", Some("65536")),
    option("extended_l2", BOOL, "Allocate parts of clusters (extended L2 tables)", Some("off")),
    option("preallocation", "<str>", "What is allocated: off, metadata, falloc, full", None),
    option("compression_type", "<str>", "How clusters are compressed: zlib, zstd", Some("zlib")),
    option("size", "<size>", "Virtual disk size", None),
    option("compat", "<str>", "Version of the format: v2 (0.10) or v3 (1.1)", None),
    option("backing_file", "<str>", "File name of the backing file", None),
    option("backing_fmt", "<str>", "Format of the backing file", None),
    option("data_file", "<str>", "File name of an external file for the data", None),
    option("data_file_raw", BOOL, "Keep the data file readable as a raw image", None),
    option("lazy_refcounts", BOOL, "Update refcounts lazily", Some("off")),
    option("refcount_bits", "<num>", "Width of a refcount in bits, 1 to 64", Some("16")),
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

/// First byte that no table entry can refer to.
const MAX_HOST_OFFSET: u64 = 1 << 56;

/// What a new image is to be.
///
/// ```
/// use block_core::proto::mem::MemDriver;
/// use block_core::{Node, OpenError};
/// use block_qcow2::create::{CreateOptions, create_on};
///
/// # fn main() -> Result<(), OpenError> {
/// let file = Node::new(std::sync::Arc::new(MemDriver::new(0)), Default::default());
/// let options = CreateOptions::new(1 << 30).cluster_size(1 << 20).extended_l2();
/// futures::executor::block_on(create_on(&file, None, &options))?;
/// assert!(file.len() < 4 << 20); // header, refcount table and block, L1 table
///
/// let options = CreateOptions::new(1 << 30).cluster_size(1000);
/// let err = futures::executor::block_on(create_on(&file, None, &options)).unwrap_err();
/// assert_eq!(err.to_string(), "Invalid option 'cluster_size=1000': must be a power of two");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    pub(crate) size: u64,
    pub(crate) cluster_size: u64,
    pub(crate) version: Version,
    pub(crate) refcount_bits: u64,
    pub(crate) lazy_refcounts: bool,
    pub(crate) extended_l2: bool,
    pub(crate) compression: Compression,
    pub(crate) preallocation: Prealloc,
    pub(crate) data_file: Option<String>,
    pub(crate) data_file_raw: bool,
    pub(crate) backing: Option<Backing>,
}

/// The backing file of a new image, as its header names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    pub(crate) name: String,
    pub(crate) format: String,
}

/// What follows from options that go together.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) geometry: Geometry,
    /// Length of the disk, in whole sectors.
    pub(crate) disk_len: u64,
    pub(crate) layout: Layout,
}

impl CreateOptions {
    /// A disk of `size` bytes, rounded up to whole sectors, in an image of version 3 with 64 KiB
    /// clusters and 16-bit refcounts.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            cluster_size: 64 << 10,
            version: Version::V3,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Deflate,
            preallocation: Prealloc::Off,
            data_file: None,
            data_file_raw: false,
            backing: None,
        }
    }

    /// With clusters of `bytes`: a power of two from 512 to 2 MiB.
    #[must_use]
    pub fn cluster_size(self, bytes: u64) -> Self {
        Self { cluster_size: bytes, ..self }
    }

    /// In this version of the format.
    #[must_use]
    pub fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// With refcounts of `bits`: a power of two from 1 to 64; version 2 has 16.
    #[must_use]
    pub fn refcount_bits(self, bits: u64) -> Self {
        Self { refcount_bits: bits, ..self }
    }

    /// With refcounts that are brought up to date lazily (version 3).
    #[must_use]
    pub fn lazy_refcounts(self) -> Self {
        Self { lazy_refcounts: true, ..self }
    }

    /// With extended L2 entries (version 3, clusters of at least 16 KiB).
    #[must_use]
    pub fn extended_l2(self) -> Self {
        Self { extended_l2: true, ..self }
    }

    /// With this method for compressed clusters; version 2 has deflate.
    #[must_use]
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// With this much allocated. An image with a backing file takes it only with extended L2 entries,
    /// whose subclusters can show the backing file all the same.
    #[must_use]
    pub fn preallocation(self, preallocation: Prealloc) -> Self {
        Self { preallocation, ..self }
    }

    /// With guest data in the file of this name (version 3).
    #[must_use]
    pub fn data_file(self, name: impl Into<String>) -> Self {
        Self { data_file: Some(name.into()), ..self }
    }

    /// With guest data in the file of this name, at the guest's offsets: alone it is a raw image.
    /// Implies metadata preallocation; not with a backing file.
    #[must_use]
    pub fn raw_data_file(self, name: impl Into<String>) -> Self {
        Self { data_file: Some(name.into()), data_file_raw: true, ..self }
    }

    /// On top of the backing file `name`, which is of this `format`.
    #[must_use]
    pub fn backing(self, name: impl Into<String>, format: impl Into<String>) -> Self {
        Self { backing: Some(Backing { name: name.into(), format: format.into() }), ..self }
    }

    /// The options as texts, by the names that `create` has for them; `size` must be among them.
    ///
    /// Fails on what is missing, unknown or has no such value.
    pub fn from_options(mut options: Options) -> Result<Self, OpenError> {
        let new = Self::take(&mut options)?;
        options.finish()?;
        Ok(new)
    }

    /// Takes the options of [`OPTIONS`].
    pub(crate) fn take(options: &mut Options) -> Result<Self, OpenError> {
        let missing = |option: &str| OpenError::Option {
            option: option.to_owned(),
            problem: Problem::Missing,
        };
        let encrypted = options.take_bool("encryption")?.unwrap_or(false);
        if encrypted || options.iter().any(|(name, _)| name.starts_with("encrypt.")) {
            return Err(OpenError::Unsupported { driver: FORMAT, what: "encryption" });
        }
        let size = options.take_size("size")?.ok_or_else(|| missing("size"))?;
        let default = Self::new(size);
        let backing = match (options.take("backing_file"), options.take("backing_fmt")) {
            (None, None) => None,
            (Some(name), Some(format)) => Some(Backing { name, format }),
            (None, Some(_)) => return Err(missing("backing_file")),
            (Some(_), None) => return Err(missing("backing_fmt")),
        };
        Ok(Self {
            cluster_size: options.take_size("cluster_size")?.unwrap_or(default.cluster_size),
            version: take_named(options, "compat", &VERSIONS)?.unwrap_or(default.version),
            refcount_bits: match options.take("refcount_bits") {
                None => default.refcount_bits,
                Some(text) => text
                    .parse()
                    .map_err(|_| refuse("refcount_bits", text.as_str(), Problem::Unknown))?,
            },
            lazy_refcounts: options.take_bool("lazy_refcounts")?.unwrap_or(false),
            extended_l2: options.take_bool("extended_l2")?.unwrap_or(false),
            compression: take_named(options, "compression_type", &COMPRESSIONS)?
                .unwrap_or(default.compression),
            preallocation: take_named(options, "preallocation", &PREALLOCATIONS)?
                .unwrap_or(default.preallocation),
            data_file: options.take("data_file"),
            data_file_raw: options.take_bool("data_file_raw")?.unwrap_or(false),
            backing,
            ..default
        })
    }

    /// Whether the options go together, and what follows from them.
    pub(crate) fn check(&self) -> Result<Plan, OpenError> {
        let geometry = self.geometry()?;
        self.check_version()?;
        self.check_compression()?;
        self.check_files()?;
        let disk_len = self.disk_len()?;
        let layout = Layout::new(geometry, disk_len, self.mapped());
        self.check_tables(geometry, layout)?;
        Ok(Plan { geometry, disk_len, layout })
    }

    /// The geometry, if cluster size and refcount width exist.
    pub(crate) fn geometry(&self) -> Result<Geometry, OpenError> {
        let min = if self.extended_l2 { MIN_CLUSTER_BITS_EXTENDED } else { MIN_CLUSTER_BITS };
        let (min, max) = (1 << min, 1 << MAX_CLUSTER_BITS);
        let cluster_bits = logarithm("cluster_size", self.cluster_size, min, max)?;
        let max = 1 << MAX_REFCOUNT_ORDER;
        let refcount_order = logarithm("refcount_bits", self.refcount_bits, 1, max)?;
        let l2_format = if self.extended_l2 { L2Format::Extended } else { L2Format::Standard };
        let location = match self.data_file {
            Some(_) => DataLocation::DataFile,
            None => DataLocation::Image,
        };
        Geometry::new(self.version, cluster_bits, refcount_order, l2_format, location)
    }

    /// Length of the disk in whole sectors.
    pub(crate) fn disk_len(&self) -> Result<u64, OpenError> {
        if self.size > MAX_LEN {
            return Err(refuse("size", self.size, Problem::Above(MAX_LEN)));
        }
        Ok(Alignment::SECTOR.round_up(self.size))
    }

    fn check_version(&self) -> Result<(), OpenError> {
        let v2 = Problem::Contradicts("compat=0.10");
        if self.version == Version::V3 {
            return Ok(());
        }
        if self.refcount_bits != 16 {
            return Err(refuse("refcount_bits", self.refcount_bits, v2));
        }
        if self.compression != Compression::Deflate {
            return Err(refuse("compression_type", self.compression.name(), v2));
        }
        if let Some(name) = &self.data_file {
            return Err(refuse("data_file", name.as_str(), v2));
        }
        for (name, set) in
            [("lazy_refcounts", self.lazy_refcounts), ("extended_l2", self.extended_l2)]
        {
            if set {
                return Err(refuse(name, "on", v2));
            }
        }
        Ok(())
    }

    /// Nobody here could open an image whose method is not built in. Any image may have the format's own.
    fn check_compression(&self) -> Result<(), OpenError> {
        match self.compression.missing_feature() {
            Some(feature) if self.compression != Compression::Deflate => {
                let problem = Problem::NotBuilt(feature);
                Err(refuse("compression_type", self.compression.name(), problem))
            }
            _ => Ok(()),
        }
    }

    fn check_files(&self) -> Result<(), OpenError> {
        if let Some("") = self.data_file.as_deref() {
            return Err(refuse("data_file", "", Problem::Missing));
        }
        if self.data_file_raw && self.data_file.is_none() {
            let problem = Problem::Contradicts("an image without data_file");
            return Err(refuse("data_file_raw", "on", problem));
        }
        let Some(backing) = &self.backing else { return Ok(()) };
        if backing.name.is_empty() || backing.format.is_empty() {
            let option = if backing.name.is_empty() { "backing_file" } else { "backing_fmt" };
            return Err(refuse(option, "", Problem::Missing));
        }
        if self.data_file_raw {
            return Err(refuse("data_file_raw", "on", Problem::Contradicts("backing_file")));
        }
        if self.preallocation != Prealloc::Off && !self.extended_l2 {
            let problem = Problem::Contradicts("backing_file without extended_l2");
            return Err(refuse("preallocation", self.preallocation_name(), problem));
        }
        Ok(())
    }

    /// Refuses disks whose tables would be larger than any reader takes.
    fn check_tables(&self, geometry: Geometry, layout: Layout) -> Result<(), OpenError> {
        let max_len = (MAX_L1_BYTES / 8).saturating_mul(geometry.l2_coverage());
        if layout.l1_entries > MAX_L1_BYTES / 8 {
            return Err(refuse("size", self.size, Problem::Above(max_len)));
        }
        let data = if layout.l2_tables > 0 { self.size.div_ceil(self.cluster_size) } else { 0 };
        self.check_file(geometry, layout.clusters().max(data))
    }

    /// Refuses a file of so many clusters that refcounts or entries do not reach its end.
    pub(crate) fn check_file(&self, geometry: Geometry, clusters: u64) -> Result<(), OpenError> {
        // Which of the two limits is met depends on the widths: the message says the file's length.
        let max_blocks = MAX_REFCOUNT_TABLE_BYTES / 8;
        let covered = max_blocks.saturating_mul(geometry.refcounts_per_block());
        let max_clusters = covered.min(MAX_HOST_OFFSET / geometry.cluster_size());
        if clusters > max_clusters {
            let max_len = max_clusters.saturating_mul(geometry.cluster_size());
            return Err(refuse("size", self.size, Problem::Above(max_len)));
        }
        Ok(())
    }

    /// How much is allocated: what was asked for, and what a raw data file needs.
    pub(crate) fn allocated(&self) -> Prealloc {
        match self.preallocation {
            Prealloc::Off if self.data_file_raw => Prealloc::Metadata,
            other => other,
        }
    }

    /// The preallocation as options name it.
    pub(crate) fn preallocation_name(&self) -> &'static str {
        let named = PREALLOCATIONS.iter().find(|(_, value)| *value == self.preallocation);
        named.map_or("", |(name, _)| name)
    }

    fn mapped(&self) -> Mapped {
        match (self.allocated(), &self.data_file) {
            (Prealloc::Off, _) => Mapped::Nothing,
            (_, Some(_)) => Mapped::Tables,
            (_, None) => Mapped::All,
        }
    }
}

const VERSIONS: [(&str, Version); 4] =
    [("1.1", Version::V3), ("v3", Version::V3), ("0.10", Version::V2), ("v2", Version::V2)];

const COMPRESSIONS: [(&str, Compression); 2] =
    [("zlib", Compression::Deflate), ("zstd", Compression::Zstd)];

const PREALLOCATIONS: [(&str, Prealloc); 4] = [
    ("off", Prealloc::Off),
    ("metadata", Prealloc::Metadata),
    ("falloc", Prealloc::Falloc),
    ("full", Prealloc::Full),
];

/// Takes the option `name`, one of the names in `values`.
fn take_named<T: Copy>(
    options: &mut Options,
    name: &'static str,
    values: &[(&str, T)],
) -> Result<Option<T>, OpenError> {
    let Some(text) = options.take(name) else { return Ok(None) };
    let found = values.iter().find(|(known, _)| *known == text);
    found.map(|(_, value)| Some(*value)).ok_or_else(|| refuse(name, &text, Problem::Unknown))
}

/// The logarithm of an option's value, which must be a power of two in `min..=max`.
fn logarithm(option: &'static str, value: u64, min: u64, max: u64) -> Result<u32, OpenError> {
    let problem = if !value.is_power_of_two() {
        Problem::NotPowerOfTwo
    } else if value < min {
        Problem::Below(min)
    } else if value > max {
        Problem::Above(max)
    } else {
        return Ok(value.ilog2());
    };
    Err(refuse(option, value, problem))
}

fn refuse(option: &'static str, value: impl ToString, problem: Problem) -> OpenError {
    OpenError::OptionValue { option, value: value.to_string(), problem }
}
