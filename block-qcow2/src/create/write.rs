//! Writing the structures of a new image, table by table.
//!
//! Invariant: every entry that is written is that of a cluster which is referenced exactly once.

use block_core::driver::Prealloc;
use block_core::error::Problem;
use block_core::metadata::new_file::{
    Emptied, clear, empty, flush, grow, seal, write, write_words, zero,
};
use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use block_core::{Node, OpenError};

use super::options::{CreateOptions, Plan};
use crate::geometry::{DataLocation, Geometry, L2Format, Version};
use crate::spec::entry::{Copied, encode_l1, encode_plain};
use crate::spec::extension::{Extensions, known_feature_names};
use crate::spec::header::{Compression, CryptMethod, Features, Header, Table};
use crate::spec::refcount::set_refcount;
use crate::units::HostOffset;

/// Bytes of a data file that are written in any case.
const FIRST_BLOCK: u64 = 4096;
/// Smallest cluster whose header has room for the names of feature bits beside everything else.
const MIN_CLUSTER_WITH_NAMES: u64 = 4096;

/// Makes `file`, which is writable, an image that reads as zeroes, in place of what it held. `data` is
/// the data file, where the options name one; it is made as long as the disk.
///
/// When it fails, `file` holds no image. It is not closed.
pub async fn create_on(
    file: &Node,
    data: Option<&Node>,
    options: &CreateOptions,
) -> Result<(), OpenError> {
    let plan = options.check()?;
    let header = first_cluster(options, &plan)?;
    if data.is_some() != options.data_file.is_some() {
        let (option, problem) = ("data_file".to_owned(), Problem::Missing);
        return Err(OpenError::Option { option, problem });
    }
    let new = NewImage { file, options, plan };
    new.clear().await?;
    if let Some(data) = data {
        new.make_data(data).await?;
    }
    new.write_refcounts().await?;
    new.write_l1().await?;
    new.write_l2().await?;

    let (sector, rest) = header.split_at(header.len().min(to_usize(SECTOR_SIZE)));
    write("header", file, SECTOR_SIZE, rest).await?;
    seal("header", file, sector).await
}

/// The used bytes of the first cluster; fails if the names do not fit.
pub(crate) fn first_cluster(options: &CreateOptions, plan: &Plan) -> Result<Vec<u8>, OpenError> {
    let (geometry, layout) = (plan.geometry, plan.layout);
    // The options bound both counts far below 2^32.
    let count = |entries: u64| u32::try_from(entries).unwrap_or(u32::MAX);
    let mut header = Header {
        geometry,
        disk_len: plan.disk_len,
        crypt_method: CryptMethod::None,
        compression: options.compression,
        features: Features {
            data_file: options.data_file.is_some(),
            compression_type: options.compression != Compression::Deflate,
            extended_l2: options.extended_l2,
            lazy_refcounts: options.lazy_refcounts,
            raw_data_file: options.data_file_raw,
            ..Features::default()
        },
        l1: Table { offset: layout.l1_offset(), count: count(layout.l1_entries) },
        refcount_table: Table {
            offset: layout.refcount_table_offset(),
            count: count(layout.refcount_table),
        },
        snapshots: Table { offset: HostOffset::new(0), count: 0 },
        unknown_compatible: 0,
        unknown_autoclear: 0,
        backing_name: None,
        additional: Vec::new(),
    };
    let named =
        geometry.version() == Version::V3 && geometry.cluster_size() >= MIN_CLUSTER_WITH_NAMES;
    let extensions = Extensions {
        backing_format: options.backing.as_ref().map(|backing| backing.format.clone()),
        feature_names: if named { known_feature_names() } else { Vec::new() },
        data_file: options.data_file.clone(),
        ..Extensions::default()
    };
    let backing_name = options.backing.as_ref().map(|backing| backing.name.as_bytes());
    header.encode(&extensions, backing_name)
}

/// An image in the making.
struct NewImage<'a> {
    file: &'a Node,
    options: &'a CreateOptions,
    plan: Plan,
}

impl NewImage<'_> {
    /// Gives the file its length, all of it zeroes: after this it is no image.
    async fn clear(&self) -> Result<(), OpenError> {
        const WHAT: &str = "image file";
        let layout = self.plan.layout;
        // The last of the tables ends with its last entry, where nothing follows it.
        let last = layout.l1_offset().plus(layout.l1_entries * 8);
        let tables = if layout.l2_tables > 0 { layout.data_offset() } else { last }.bytes();
        let len = if layout.data > 0 { layout.len() } else { tables };
        match clear(WHAT, self.file, tables, Prealloc::Off).await? {
            Emptied::Yes => grow(WHAT, self.file, len, space_of(self.options.allocated())).await,
            Emptied::No => zero(WHAT, self.file, tables, len - tables).await,
        }
    }

    /// Makes the data file as long as the disk.
    async fn make_data(&self, data: &Node) -> Result<(), OpenError> {
        const WHAT: &str = "data file";
        let len = self.plan.disk_len;
        match empty(WHAT, data).await? {
            Emptied::Yes => grow(WHAT, data, len, space_of(self.options.allocated())).await?,
            // What is not mapped is not shown, whatever it holds.
            Emptied::No if self.options.allocated() == Prealloc::Off => {}
            Emptied::No => zero(WHAT, data, 0, len).await?,
        }
        if self.options.allocated() != Prealloc::Full {
            // Who opens it with O_DIRECT learns its alignment there, and not from a hole.
            let first = vec![0; to_usize(len.min(FIRST_BLOCK))];
            write(WHAT, data, 0, &first).await?;
        }
        flush(data).await
    }

    /// Writes the refcount table and the blocks: one for each cluster of the file.
    async fn write_refcounts(&self) -> Result<(), OpenError> {
        let (geometry, layout) = (self.plan.geometry, self.plan.layout);
        let blocks = layout.refcount_blocks_offset();
        let size = geometry.cluster_size();
        let table = layout.refcount_table_offset();
        let block = |index: u64| blocks.plus(index * size).bytes().to_be_bytes();
        write_words("refcount table", self.file, table.bytes(), layout.refcount_blocks, block)
            .await?;

        let full = block_of_ones(geometry, geometry.refcounts_per_block());
        let mut rest = layout.clusters();
        let mut at = blocks.bytes();
        while rest >= geometry.refcounts_per_block() {
            write("refcount block", self.file, at, &full).await?;
            rest -= geometry.refcounts_per_block();
            at += size;
        }
        if rest > 0 {
            write("refcount block", self.file, at, &block_of_ones(geometry, rest)).await?;
        }
        Ok(())
    }

    /// Writes the L1 table, where it has entries that are not zero.
    async fn write_l1(&self) -> Result<(), OpenError> {
        let (size, layout) = (self.plan.geometry.cluster_size(), self.plan.layout);
        let tables = layout.l2_offset();
        let entry = |index: u64| encode_l1(tables.plus(index * size), Copied::Yes).to_be_bytes();
        write_words("L1 table", self.file, layout.l1_offset().bytes(), layout.l2_tables, entry)
            .await
    }

    /// Writes the L2 tables: an entry for each cluster of the disk.
    async fn write_l2(&self) -> Result<(), OpenError> {
        let Plan { geometry, layout, disk_len } = self.plan;
        if layout.l2_tables == 0 {
            return Ok(());
        }
        let first = match geometry.data_location() {
            DataLocation::Image => layout.data_offset(),
            DataLocation::DataFile => HostOffset::new(0),
        };
        // Subclusters are not allocated yet: what is below shows until they are written. A raw data
        // file shows itself.
        let subclusters = match (geometry.l2_format(), self.options.data_file_raw) {
            (L2Format::Standard, _) => 1,
            (L2Format::Extended, false) => 0,
            (L2Format::Extended, true) => u32::MAX,
        };
        let words = to_u64(geometry.l2_entry_words());
        let word = |index: u64| {
            let host = first.plus(index / words * geometry.cluster_size());
            let entry = encode_plain(geometry, Some(host), subclusters, 0, Copied::Yes);
            if index.is_multiple_of(words) { entry.0.to_be_bytes() } else { entry.1.to_be_bytes() }
        };
        let count = disk_len.div_ceil(geometry.cluster_size()) * words;
        write_words("L2 table", self.file, layout.l2_offset().bytes(), count, word).await
    }
}

/// A refcount block whose first `count` refcounts are 1.
fn block_of_ones(geometry: Geometry, count: u64) -> Vec<u8> {
    let mut block = vec![0; to_usize(geometry.cluster_size())];
    for index in 0..count {
        // A block holds as many as there are, and any width holds 1.
        let _ = set_refcount(geometry, &mut block, index, 1);
    }
    block
}

/// How much of a file is allocated for data of an image that has this much allocated.
fn space_of(preallocation: Prealloc) -> Prealloc {
    match preallocation {
        Prealloc::Off | Prealloc::Metadata => Prealloc::Off,
        space => space,
    }
}
