//! Writing metadata to the image file.

use block_core::range::to_u64;
use block_core::{Alignment, ByteRange, Node, OwnedBuf, RequestFlags, Result};

use crate::units::HostOffset;

/// Writes `bytes` at `offset`. They are copied, so that the caller may change them meanwhile.
pub(crate) async fn write_bytes(file: &Node, offset: HostOffset, bytes: &[u8]) -> Result<()> {
    let range = ByteRange::new(offset.bytes(), to_u64(bytes.len()))?;
    let buf = OwnedBuf::copy_of(bytes, Alignment::PAGE)?;
    file.write(range, buf.into_shared().into(), RequestFlags::empty()).await
}

/// The words of a table as they stand in the file.
pub(crate) fn encode_words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
