//! The content id of an image that a new one is made on.
//!
//! Only the file with the descriptor is opened: neither its extents nor its own parent.

use block_core::error::Problem;
use block_core::options::OpenFlags;
use block_core::range::{to_u64, to_usize};
use block_core::registry::{BACKING_FILE, OpenContext};
use block_core::{Alignment, ByteRange, IoBuf, Node, OpenError, Options};

use super::options::refuse;
use crate::descriptor::{DESCRIPTOR_BYTES_MAX, Descriptor};
use crate::probe::{FileKind, probe};
use crate::spec::sparse::SparseHeader;
use crate::units::ContentId;

/// The content id of the image `name`, which counts from where the new image `image` will be.
pub(super) async fn content_id(
    context: &OpenContext,
    image: &str,
    name: &str,
) -> Result<ContentId, OpenError> {
    let path = context.resolve_beside(image, name)?;
    let protocol = context.registry.protocol_of(&path)?;
    let flags = OpenFlags { writable: false, ..context.flags };
    let reading = OpenContext { flags, ..context.clone() };
    let child = |source| OpenError::Child {
        role: BACKING_FILE,
        name: name.to_owned(),
        source: Box::new(source),
    };
    let opened = reading.open(Options::filename(path).with("driver", protocol)).await;
    let node = opened.map_err(child)?;
    let found = descriptor_of(&node).await.map_err(child);
    let closed = super::file::close(&node).await;
    let id = found?.and_then(|descriptor| descriptor.content_id());
    closed?;
    // With the id of no parent, the new image would have none.
    let usable = id.filter(|id| *id != ContentId::NO_PARENT);
    let problem = Problem::Contradicts("backing_fmt: it is no VMDK image with a content id");
    usable.ok_or_else(|| refuse("backing_file", name, problem))
}

/// The descriptor in the file `node`; `None` if there is none.
async fn descriptor_of(node: &Node) -> Result<Option<Descriptor>, OpenError> {
    let longest = to_u64(DESCRIPTOR_BYTES_MAX);
    let head = read(node, ByteRange::up_to(node.len().min(512))).await?;
    let place = match probe(&head) {
        Some(FileKind::Descriptor) => Some(ByteRange::up_to(node.len().min(longest))),
        Some(FileKind::HostedSparse) => embedded(&head, node.len()),
        _ => None,
    };
    let Some(place) = place else { return Ok(None) };
    Ok(Descriptor::parse(&read(node, place).await?).ok())
}

/// Where the descriptor is in a sparse extent of `len` bytes that starts with `head`.
fn embedded(head: &[u8], len: u64) -> Option<ByteRange> {
    let header = SparseHeader::parse(head).ok()?;
    header.check_file_len(len).ok()?;
    let place = header.descriptor()?;
    ByteRange::new(place.start.offset()?, place.count.bytes()?).ok()
}

async fn read(node: &Node, range: ByteRange) -> Result<Vec<u8>, OpenError> {
    let failed = |error| OpenError::Request { what: "descriptor", error };
    let buf = IoBuf::zeroed(to_usize(range.len()), Alignment::PAGE).map_err(failed)?;
    node.read(range, buf.clone().into()).await.map_err(failed)?;
    Ok(buf.to_vec())
}
