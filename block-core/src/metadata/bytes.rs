//! Metadata as bytes: what is read and written as it stands in the file, past every cache of tables.

use crate::buf::OwnedBuf;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::request::status::StatusDetail;

/// Reads `range` of `node`; what is beyond the end is zero.
pub async fn read_bytes(node: &Node, range: ByteRange) -> Result<OwnedBuf> {
    let align = node.limits().opt_mem_alignment;
    let buf = OwnedBuf::zeroed(to_usize(range.len()), align)?.into_shared();
    if !range.is_empty() {
        node.read(range, buf.clone().into()).await?;
    }
    // A request that keeps its handle for longer costs a copy.
    buf.try_into_owned().or_else(|shared| OwnedBuf::copy_of(&shared.to_vec(), align))
}

/// Reads `len` bytes at `offset` of `node`.
///
/// # Errors
/// [`Error::Corrupt`], which names `what` and `offset`, if the node ends before.
pub async fn read_inside(
    node: &Node,
    what: &'static str,
    offset: u64,
    len: u64,
) -> Result<OwnedBuf> {
    let truncated = Error::Corrupt { what, value: offset };
    let range = ByteRange::new(offset, len).map_err(|_| truncated)?;
    if range.end() > node.len() {
        return Err(truncated);
    }
    read_bytes(node, range).await
}

/// Whether all of `range` is known to read as zeroes, so that it need not be read. Nothing is known of what
/// is beyond the end.
pub async fn is_hole(node: &Node, range: ByteRange) -> Result<bool> {
    let status = node.block_status(range, StatusDetail::Zeroes).await?;
    Ok(status.is_zero() && status.len >= range.len())
}

/// Writes `bytes` at `offset` of `node`. They are copied, so that the caller may change them meanwhile.
pub async fn write_bytes(node: &Node, offset: u64, bytes: &[u8]) -> Result<()> {
    let range = ByteRange::new(offset, to_u64(bytes.len()))?;
    let buf = OwnedBuf::copy_of(bytes, Alignment::PAGE)?;
    node.write(range, buf.into_shared().into(), RequestFlags::empty()).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::executor::block_on;

    use super::*;
    use crate::node::NodeOptions;
    use crate::proto::mem::MemDriver;

    /// A read that goes beyond the end is an error, or zeroes, as the caller wants; a hole there is none.
    #[test]
    fn the_end_of_the_file_is_the_callers_affair() {
        let node = Node::new(Arc::new(MemDriver::new(1 << 20)), NodeOptions::default());
        block_on(write_bytes(&node, (1 << 20) - 2, &[1, 2])).unwrap();
        let beyond = ByteRange::new((1 << 20) - 1, 3).unwrap();
        assert_eq!(*block_on(read_bytes(&node, beyond)).unwrap(), [2, 0, 0]);
        let refused = block_on(read_inside(&node, "table", beyond.offset(), 3)).map(|_| ());
        assert_eq!(refused, Err(Error::Corrupt { what: "table", value: beyond.offset() }));
        let holes = [(0, 1 << 19, true), (1 << 19, 1 << 19, false), (1 << 20, 512, false)];
        for (offset, len, expected) in holes {
            let range = ByteRange::new(offset, len).unwrap();
            assert_eq!(block_on(is_hole(&node, range)), Ok(expected), "{range}");
        }
    }
}
