//! What is done to a file that becomes an image, or a part of one, whatever stands in it.
//!
//! The order makes the file an image last: [`clear`], then everything but the first sector, then [`seal`].
//! **Invariant:** between the two the file has no first sector, so that a crash leaves no image.
//! Every function takes `what` the bytes are for, in the format's words, for the error.

use crate::driver::{Exactness, Prealloc};
use crate::error::{Error, OpenError, Result};
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::{ByteRange, SECTOR_SIZE, to_u64};

use super::bytes::write_bytes;

/// Bytes of a table that are written at once.
const CHUNK: u64 = 1 << 20;

/// Whether a file is empty now, or has kept its length and contents.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Emptied {
    /// It has no bytes, and what it grows by reads as zeroes.
    Yes,
    /// It is what it was: a device, for one.
    No,
}

/// Cuts `node` to nothing, if what it then grows by reads as zeroes.
pub async fn empty(what: &'static str, node: &Node) -> Result<Emptied, OpenError> {
    if !node.capabilities().has_zero_init {
        return Ok(Emptied::No);
    }
    match node.truncate(0, Exactness::Exact, Prealloc::Off).await {
        Ok(()) => Ok(Emptied::Yes),
        Err(Error::Unsupported) => Ok(Emptied::No),
        failed => named(what, failed).map(|()| Emptied::Yes),
    }
}

/// Makes `node` so long, all of it zeroes: after this it is no image.
///
/// A device keeps its length; so much of it is zero.
pub async fn clear(
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
            zero(what, node, 0, SECTOR_SIZE.min(node.len())).await?;
            flush(node).await?;
            zero(what, node, 0, len).await?;
        }
    }
    Ok(emptied)
}

/// Makes `node` at least so long; what is added is zero.
pub async fn grow(
    what: &'static str,
    node: &Node,
    len: u64,
    prealloc: Prealloc,
) -> Result<(), OpenError> {
    named(what, node.truncate(len, Exactness::AtLeast, prealloc).await)
}

/// Makes `len` bytes from `offset` on zero.
pub async fn zero(what: &'static str, node: &Node, offset: u64, len: u64) -> Result<(), OpenError> {
    let range = named(what, ByteRange::new(offset, len).map_err(Error::from))?;
    named(what, node.write_zeroes(range, RequestFlags::empty()).await)
}

/// Writes `bytes` at `offset`; nothing where there are none.
pub async fn write(
    what: &'static str,
    node: &Node,
    offset: u64,
    bytes: &[u8],
) -> Result<(), OpenError> {
    if bytes.is_empty() {
        return Ok(());
    }
    named(what, write_bytes(node, offset, bytes).await)
}

/// Writes a table of `count` words, each `N` bytes that `word` makes of its index.
pub async fn write_words<const N: usize>(
    what: &'static str,
    node: &Node,
    offset: u64,
    count: u64,
    word: impl Fn(u64) -> [u8; N] + Send,
) -> Result<(), OpenError> {
    let size = to_u64(N);
    let mut done = 0;
    while done < count {
        let end = count.min(done + CHUNK / size);
        let bytes: Vec<u8> = (done..end).flat_map(&word).collect();
        write(what, node, offset + done * size, &bytes).await?;
        done = end;
    }
    Ok(())
}

/// Writes the `first` sector, after all that was written before is stable, and makes it stable.
pub async fn seal(what: &'static str, node: &Node, first: &[u8]) -> Result<(), OpenError> {
    flush(node).await?;
    write(what, node, 0, first).await?;
    flush(node).await
}

/// Makes all that was written stable.
pub async fn flush(node: &Node) -> Result<(), OpenError> {
    named("flush", node.flush().await)
}

/// Closes `node`.
pub async fn close(node: &Node) -> Result<(), OpenError> {
    named("closing a file", node.close().await)
}

fn named<T>(what: &'static str, result: Result<T>) -> Result<T, OpenError> {
    result.map_err(|error| OpenError::Request { what, error })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::executor::block_on;

    use super::*;
    use crate::node::NodeOptions;
    use crate::proto::mem::MemDriver;

    fn node(bytes: &[u8]) -> Node {
        let driver = MemDriver::from_bytes(bytes).unwrap();
        Node::new(Arc::new(driver), NodeOptions::default())
    }

    fn contents(node: &Node) -> Vec<u8> {
        let read = super::super::bytes::read_bytes(node, ByteRange::up_to(node.len()));
        block_on(read).unwrap().to_vec()
    }

    #[test]
    fn a_file_is_emptied_and_sealed() {
        let node = node(&[7; 5000]);
        let emptied = block_on(clear("file", &node, 1024, Prealloc::Off));
        assert_eq!(emptied.unwrap(), Emptied::Yes);
        assert_eq!(contents(&node), [0; 1024]);
        block_on(write("rest", &node, SECTOR_SIZE, &[])).unwrap();
        block_on(seal("first", &node, &[1; 512])).unwrap();
        assert_eq!(contents(&node), [[1; 512], [0; 512]].concat());
    }

    /// A table longer than what is written at once is whole, in any width.
    #[test]
    fn tables_are_written_in_pieces() {
        let count = CHUNK / 4 + 3;
        let node = node(&[]);
        block_on(grow("file", &node, 16 + count * 4, Prealloc::Off)).unwrap();
        let word = |n: u64| u32::try_from(n).unwrap().to_be_bytes();
        block_on(write_words("table", &node, 16, count, word)).unwrap();
        let expected = [0; 16].into_iter().chain((0..count).flat_map(word));
        assert!(contents(&node).into_iter().eq(expected));
    }

    #[test]
    fn an_error_says_what_the_bytes_are_for() {
        let node = node(&[0; 512]);
        let failed = block_on(zero("table", &node, u64::MAX, 2));
        assert!(matches!(failed, Err(OpenError::Request { what: "table", .. })), "{failed:?}");
    }
}
