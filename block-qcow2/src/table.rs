//! Reading tables while an image is opened: bounded, and with errors that name the table.

use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, Node, OpenError};

use crate::metadata_io::read_bytes;
use crate::spec::bad_field;
use crate::units::HostOffset;

/// Bytes that are read at once.
const CHUNK: u64 = 256 << 10;

/// Reads `len` bytes at `offset`, as far as the file has them.
pub(crate) async fn read_table(
    node: &Node,
    what: &'static str,
    offset: HostOffset,
    len: u64,
) -> Result<Vec<u8>, OpenError> {
    let failed = |error| OpenError::Request { what, error };
    let end = offset.bytes().saturating_add(len).min(node.len());
    let start = offset.bytes().min(end);
    let range = ByteRange::from_bounds(start, end).map_err(|e| failed(e.into()))?;
    Ok(read_bytes(node, range).await.map_err(failed)?.to_vec())
}

/// Reads the first `count` 64-bit words of a table.
pub(crate) async fn read_words(
    node: &Node,
    what: &'static str,
    offset: HostOffset,
    count: u64,
) -> Result<Vec<u64>, OpenError> {
    let mut all = Vec::new();
    let bytes = count.saturating_mul(8);
    let no_memory = |_| OpenError::Request { what, error: Error::NoMemory { bytes } };
    all.try_reserve_exact(to_usize(count)).map_err(no_memory)?;
    while to_u64(all.len()) < count {
        let done = to_u64(all.len()) * 8;
        let chunk = read_table(node, what, offset.plus(done), CHUNK.min(bytes - done)).await?;
        let before = all.len();
        all.extend(crate::mapping::words(&chunk));
        if all.len() == before {
            let problem = Problem::Truncated(node.len());
            return Err(bad_field(what, offset.bytes(), problem));
        }
    }
    Ok(all)
}

/// Walks a table whose entries have different lengths.
pub(crate) struct EntryReader<'a> {
    node: &'a Node,
    what: &'static str,
    /// Offset of the first byte of `window`.
    at: HostOffset,
    /// Where the table ends at the latest.
    end: u64,
    window: Vec<u8>,
    /// Bytes of the window that are behind.
    used: usize,
}

impl<'a> EntryReader<'a> {
    /// A walk over the bytes from `offset` on, at most `len`.
    pub(crate) fn new(node: &'a Node, what: &'static str, offset: HostOffset, len: u64) -> Self {
        Self {
            node,
            what,
            at: offset,
            end: offset.bytes().saturating_add(len).min(node.len()),
            window: Vec::new(),
            used: 0,
        }
    }

    /// Whether the whole table is behind.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at.bytes().saturating_add(to_u64(self.used)) >= self.end
    }

    /// The next entry, as `parse` makes it from the bytes that `len_of` says it has.
    pub(crate) async fn next_entry<T>(
        &mut self,
        fixed: usize,
        len_of: impl Fn(&[u8]) -> Result<Option<usize>, OpenError>,
        parse: impl Fn(&[u8]) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let Some(len) = len_of(self.bytes(fixed).await?)? else {
            return Err(self.truncated());
        };
        let entry = parse(self.bytes(len).await?);
        self.used += len;
        entry
    }

    /// The next `len` bytes without passing them; fewer at the end, where padding may be missing.
    async fn bytes(&mut self, len: usize) -> Result<&[u8], OpenError> {
        if self.window.len().saturating_sub(self.used) < len {
            self.at = self.at.plus(to_u64(self.used));
            self.used = 0;
            let room = self.end.saturating_sub(self.at.bytes());
            let wanted = CHUNK.max(to_u64(len)).min(room);
            self.window = read_table(self.node, self.what, self.at, wanted).await?;
        }
        let rest = self.window.get(self.used..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest))
    }

    fn truncated(&self) -> OpenError {
        let at = self.at.bytes().saturating_add(to_u64(self.used));
        bad_field(self.what, at, Problem::Truncated(self.end))
    }
}
