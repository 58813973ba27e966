//! Reading metadata from the image file, and writing it there.

use block_core::metadata::bytes;
use block_core::{ByteRange, Node, OwnedBuf, Result};

use crate::reload::from_below;
use crate::units::HostOffset;

/// The bytes of `range`.
pub(crate) async fn read_bytes(file: &Node, range: ByteRange) -> Result<OwnedBuf> {
    from_below(bytes::read_bytes(file, range).await)
}

/// Writes `bytes` at `offset`. They are copied, so that the caller may change them meanwhile.
pub(crate) async fn write_bytes(file: &Node, offset: HostOffset, bytes: &[u8]) -> Result<()> {
    from_below(bytes::write_bytes(file, offset.bytes(), bytes).await)
}

/// The words of a table as they stand in the file.
pub(crate) fn encode_words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Makes what was written to `file` stable.
pub(crate) async fn flush(file: &Node) -> Result<()> {
    from_below(file.flush().await)
}
