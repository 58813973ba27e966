//! What is done to the file of a new image, whatever stands in it.

use block_core::driver::{Exactness, Prealloc};
use block_core::range::to_u64;
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, OpenError, RequestFlags};

/// Bytes that storage writes as a whole or not at all.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a table that are written at once.
const CHUNK: u64 = 1 << 20;

/// Whether a file is empty now, or has kept its length and contents.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Emptied {
    Yes,
    No,
}

/// Makes `node` so long, all of it zeroes: after this it is no image.
///
/// A device keeps its length; so much of it is zero.
pub(super) async fn clear(
    what: &'static str,
    node: &Node,
    len: u64,
    prealloc: Prealloc,
) -> Result<Emptied, OpenError> {
    let emptied = empty(what, node).await?;
    match emptied {
        Emptied::Yes => {
            // Nothing old comes back beside the new.
            flush(node).await?;
            grow(what, node, len, prealloc).await?;
        }
        Emptied::No => {
            // The first sector goes first.
            zero(what, node, 0, SECTOR.min(node.len())).await?;
            flush(node).await?;
            zero(what, node, 0, len).await?;
        }
    }
    Ok(emptied)
}

/// Writes the `first` sector, after all that was written before is stable, and makes it stable.
pub(super) async fn seal(what: &'static str, node: &Node, first: &[u8]) -> Result<(), OpenError> {
    flush(node).await?;
    write(what, node, 0, first).await?;
    flush(node).await
}

/// Writes a table of `count` 32-bit words.
pub(super) async fn write_words(
    what: &'static str,
    node: &Node,
    offset: u64,
    count: u64,
    word: impl Fn(u64) -> u32 + Send,
) -> Result<(), OpenError> {
    let mut done = 0;
    while done < count {
        let end = count.min(done + CHUNK / 4);
        let bytes: Vec<u8> = (done..end).flat_map(|i| word(i).to_le_bytes()).collect();
        write(what, node, offset + done * 4, &bytes).await?;
        done = end;
    }
    Ok(())
}

/// Writes `bytes` at `offset`.
pub(super) async fn write(
    what: &'static str,
    node: &Node,
    offset: u64,
    bytes: &[u8],
) -> Result<(), OpenError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let failed = |error| OpenError::Request { what, error };
    let range = ByteRange::new(offset, to_u64(bytes.len())).map_err(|e| failed(e.into()))?;
    let buf = IoBuf::zeroed(bytes.len(), Alignment::PAGE).map_err(failed)?;
    buf.copy_from(0, bytes);
    node.write(range, buf.into(), RequestFlags::empty()).await.map_err(failed)
}

/// Makes all that was written stable.
pub(super) async fn flush(node: &Node) -> Result<(), OpenError> {
    node.flush().await.map_err(|error| OpenError::Request { what: "flush", error })
}

/// Closes a file of the new image.
pub(super) async fn close(node: &Node) -> Result<(), OpenError> {
    node.close().await.map_err(|error| OpenError::Request { what: "closing a file", error })
}

/// Cuts a node to nothing, if what it then grows by reads as zeroes.
async fn empty(what: &'static str, node: &Node) -> Result<Emptied, OpenError> {
    if !node.capabilities().has_zero_init {
        return Ok(Emptied::No);
    }
    match node.truncate(0, Exactness::Exact, Prealloc::Off).await {
        Ok(()) => Ok(Emptied::Yes),
        Err(Error::Unsupported) => Ok(Emptied::No),
        Err(error) => Err(OpenError::Request { what, error }),
    }
}

/// Makes a file longer; what is added is zero.
pub(super) async fn grow(
    what: &'static str,
    node: &Node,
    len: u64,
    prealloc: Prealloc,
) -> Result<(), OpenError> {
    let grown = node.truncate(len, Exactness::AtLeast, prealloc).await;
    grown.map_err(|error| OpenError::Request { what, error })
}

async fn zero(what: &'static str, node: &Node, offset: u64, len: u64) -> Result<(), OpenError> {
    let failed = |error| OpenError::Request { what, error };
    let range = ByteRange::new(offset, len).map_err(|error| failed(error.into()))?;
    node.write_zeroes(range, RequestFlags::empty()).await.map_err(failed)
}
