//! Writing the files of a new image.
//!
//! Invariant: a file that starts as an image does is whole, and so are the files that it names.

use async_trait::async_trait;
use block_core::driver::Prealloc;
use block_core::error::Problem;
use block_core::metadata::new_file::{
    Emptied, clear, close, flush, grow, seal, write, write_words,
};
use block_core::range::{to_u64, to_usize};
use block_core::{Node, OpenError};

use super::layout::{COWD_GRAIN_SECTORS, DESCRIPTOR, Embedded, HostedLayout};
use super::names::Names;
use super::options::{CreateOptions, Plan, refuse};
use super::stream;
use crate::descriptor::{CreateType, DESCRIPTOR_BYTES_MAX, ExtentKind, NewDescriptor};
use crate::error::bad_field;
use crate::extent::geometry::SECTOR;
use crate::spec::cowd::CowdHeader;
use crate::units::{ContentId, Sector, SectorCount};

/// Bytes of a flat file that are written in any case: who opens it with O_DIRECT learns its alignment
/// there, and not from a hole.
const FIRST_BLOCK: u64 = 4096;

/// Makes the files of a new image's extents.
#[async_trait]
pub trait ExtentFiles: Send + Sync {
    /// Makes the file of this plain name, which is to be beside the descriptor, and opens it for writing.
    /// What it holds does not matter. It is closed when it is written.
    async fn make(&self, name: &str) -> Result<Node, OpenError>;
}

/// Makes `file`, which is writable, an image that reads as zeroes, in place of what it held. `name` is
/// its path or its name; the extents that are not inside are made by `files`.
///
/// When it fails, `file` holds no image. It is not closed.
pub async fn create_on(
    file: &Node,
    name: &str,
    files: &dyn ExtentFiles,
    options: &CreateOptions,
) -> Result<(), OpenError> {
    let plan = options.plan()?;
    let names = Names::of_image(name)?;
    let cid = new_content_id()?;
    let descriptor = descriptor(&plan, &names, cid)?;
    let text = descriptor.to_bytes();
    check_len(&plan, &text)?;
    match plan.create_type {
        CreateType::MonolithicSparse => {
            let layout = HostedLayout::new(plan.sectors, Embedded::Yes);
            write_hosted(file, &layout, &plan, &text).await
        }
        CreateType::StreamOptimized => stream::write(file, plan.sectors, &text).await,
        _ => {
            // What names the old extents goes before they do.
            let emptied = clear("descriptor", file, 0, Prealloc::Off).await?;
            for extent in &descriptor.extents {
                let node = files.make(extent.file_name.as_str()).await?;
                let made = write_extent(&node, &plan, extent.sectors).await;
                made.and(close(&node).await)?;
            }
            write_text(file, &text, emptied).await
        }
    }
}

/// Refuses names that would make the descriptor longer than it may be, before anything is made.
pub(super) fn check_descriptor(plan: &Plan, names: &Names) -> Result<(), OpenError> {
    check_len(plan, &descriptor(plan, names, ContentId::NO_PARENT)?.to_bytes())
}

/// The names of the extents of an image.
pub(super) fn extent_names(plan: &Plan, names: &Names) -> Result<Vec<String>, OpenError> {
    let extents = descriptor(plan, names, ContentId::NO_PARENT)?.extents;
    Ok(extents.iter().map(|extent| extent.file_name.as_str().to_owned()).collect())
}

/// The descriptor that stands inside of an image of this name and content id.
pub(crate) fn embedded_descriptor(
    plan: &Plan,
    name: &str,
    cid: ContentId,
) -> Result<Vec<u8>, OpenError> {
    let text = descriptor(plan, &Names::of_image(name)?, cid)?.to_bytes();
    check_len(plan, &text)?;
    Ok(text)
}

/// A content id for a new image.
pub(crate) fn new_content_id() -> Result<ContentId, OpenError> {
    ContentId::random().map_err(|error| OpenError::Request { what: "content id", error })
}

/// Bytes of a descriptor that is a file of its own, of an image of this name; 0 if it stands inside.
pub(crate) fn descriptor_len(plan: &Plan, name: &str) -> Result<u64, OpenError> {
    if !plan.has_own_extents() {
        return Ok(0);
    }
    let text = descriptor(plan, &Names::of_image(name)?, ContentId::NO_PARENT)?.to_bytes();
    Ok(to_u64(text.len()))
}

fn check_len(plan: &Plan, text: &[u8]) -> Result<(), OpenError> {
    let embedded = DESCRIPTOR.count.bytes().unwrap_or(0);
    let max = if plan.has_own_extents() { to_u64(DESCRIPTOR_BYTES_MAX) } else { embedded };
    let value = to_u64(text.len());
    if value > max {
        return Err(bad_field("length of the descriptor", value, Problem::Above(max)));
    }
    Ok(())
}

fn descriptor(plan: &Plan, names: &Names, cid: ContentId) -> Result<NewDescriptor, OpenError> {
    let bad_name = || refuse("filename", names, Problem::NotPlainName);
    plan.descriptor(names, cid).ok_or_else(bad_name)
}

/// Writes a descriptor that is a file of its own, to a file without one.
async fn write_text(file: &Node, text: &[u8], emptied: Emptied) -> Result<(), OpenError> {
    const WHAT: &str = "descriptor";
    let mut text = text.to_vec();
    match emptied {
        Emptied::Yes => grow(WHAT, file, to_u64(text.len()), Prealloc::Off).await?,
        // A device goes on behind the text, with nothing that could be taken for more of it.
        Emptied::No => {
            let needed = (text.len() + 1).next_multiple_of(to_usize(SECTOR));
            let there = to_usize(file.len().min(to_u64(DESCRIPTOR_BYTES_MAX)));
            text.resize(needed.max(there), 0);
        }
    }
    let (first, rest) = text.split_at(text.len().min(to_usize(SECTOR)));
    write(WHAT, file, SECTOR, rest).await?;
    seal(WHAT, file, first).await
}

async fn write_extent(node: &Node, plan: &Plan, sectors: SectorCount) -> Result<(), OpenError> {
    match plan.kind() {
        ExtentKind::Flat | ExtentKind::Vmfs => write_flat(node, sectors, plan.preallocation).await,
        ExtentKind::VmfsSparse => write_cowd(node, plan, sectors).await,
        _ => {
            let layout = HostedLayout::new(sectors, Embedded::No);
            write_hosted(node, &layout, plan, &[]).await
        }
    }
}

async fn write_flat(
    node: &Node,
    sectors: SectorCount,
    preallocation: Prealloc,
) -> Result<(), OpenError> {
    const WHAT: &str = "flat extent";
    let len = bytes(sectors);
    clear(WHAT, node, len, preallocation).await?;
    if preallocation != Prealloc::Full {
        write(WHAT, node, 0, &vec![0; to_usize(len.min(FIRST_BLOCK))]).await?;
    }
    flush(node).await
}

/// Writes a hosted extent, with all of its tables; `text` is the descriptor that stands inside.
async fn write_hosted(
    node: &Node,
    layout: &HostedLayout,
    plan: &Plan,
    text: &[u8],
) -> Result<(), OpenError> {
    let header = layout.header(plan.zeroed_grains)?;
    clear("sparse extent", node, bytes(layout.overhead()), Prealloc::Off).await?;
    for gd in [layout.redundant_gd(), layout.gd()] {
        let entry = |index: u64| entry(layout.table(gd, index)).to_le_bytes();
        let at = gd.0 * SECTOR;
        write_words("grain directory", node, at, layout.gd_entries, entry).await?;
    }
    write("descriptor", node, DESCRIPTOR.start.0 * SECTOR, text).await?;
    seal("header", node, &header.to_bytes()).await
}

/// Writes an ESX extent: its tables are made when they are needed.
async fn write_cowd(node: &Node, plan: &Plan, sectors: SectorCount) -> Result<(), OpenError> {
    let geometry = plan.adapter.geometry(sectors);
    let root = plan.is_root().then_some(geometry);
    let grain = SectorCount(COWD_GRAIN_SECTORS);
    let header = CowdHeader::new(sectors, grain, root)?;
    clear("sparse extent", node, header.free_sector().0 * SECTOR, Prealloc::Off).await?;
    seal("header", node, &header.to_bytes()).await
}

/// A place as an entry holds it. The options bound all of them below 2^32.
fn entry(sector: Sector) -> u32 {
    u32::try_from(sector.0).unwrap_or(u32::MAX)
}

/// A length in bytes. The options bound all of them.
fn bytes(sectors: SectorCount) -> u64 {
    sectors.0.saturating_mul(SECTOR)
}
