//! Reading and writing metadata of an extent's file.

use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, OwnedBuf, RequestFlags, Result};

/// Reads `len` bytes at `offset`; an error that names `what` if the file ends before.
pub(crate) async fn read_inside(
    node: &Node,
    what: &'static str,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>> {
    let truncated = Error::Corrupt { what, value: offset };
    let range = ByteRange::new(offset, len).map_err(|_| truncated)?;
    if range.end() > node.len() {
        return Err(truncated);
    }
    read_bytes(node, range).await
}

/// Reads `range`; what is beyond the end of the file is zero.
pub(crate) async fn read_bytes(node: &Node, range: ByteRange) -> Result<Vec<u8>> {
    let buf = IoBuf::zeroed(to_usize(range.len()), Alignment::PAGE)?;
    node.read(range, buf.clone().into()).await?;
    Ok(buf.to_vec())
}

/// Writes `bytes` at `offset`. They are copied, so that the caller may change them meanwhile.
pub(crate) async fn write_bytes(node: &Node, offset: u64, bytes: &[u8]) -> Result<()> {
    let range = ByteRange::new(offset, to_u64(bytes.len()))?;
    let buf = OwnedBuf::copy_of(bytes, Alignment::PAGE)?;
    node.write(range, buf.into_shared().into(), RequestFlags::empty()).await
}

/// 32-bit little-endian words.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes))
}

/// 64-bit little-endian words.
pub(crate) fn long_words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes))
}
