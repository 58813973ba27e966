//! Writing metadata to the image file.

use block_core::metadata::bytes;
use block_core::{Node, Result};

use crate::units::HostOffset;

/// Writes `bytes` at `offset`. They are copied, so that the caller may change them meanwhile.
pub(crate) async fn write_bytes(file: &Node, offset: HostOffset, bytes: &[u8]) -> Result<()> {
    bytes::write_bytes(file, offset.bytes(), bytes).await
}

/// The words of a table as they stand in the file.
pub(crate) fn encode_words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
