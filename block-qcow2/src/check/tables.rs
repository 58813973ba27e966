//! Tables of words, read in pieces and without reading the holes of the file.

use block_core::metadata::bytes::read_bytes;
use block_core::range::{to_u64, to_usize};
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Node, Result};

/// Bytes that are read at once.
const CHUNK: u64 = 256 << 10;

/// A piece of a table: the index of its first word, and its bytes.
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) bytes: Vec<u8>,
}

impl Piece {
    /// The words.
    pub(super) fn words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        crate::mapping::words(&self.bytes)
    }
}

/// A walk over the words of a table; those in holes and beyond the end of the file are zero and
/// skipped, a chunk at least.
pub(super) struct TableReader<'a> {
    file: &'a Node,
    start: u64,
    at: u64,
    end: u64,
    /// Up to here the file is known to hold data.
    data_end: u64,
}

impl<'a> TableReader<'a> {
    /// A walk over `len` bytes from `start` on.
    pub(super) fn new(file: &'a Node, start: u64, len: u64) -> Self {
        let end = start.saturating_add(len).min(file.len());
        Self { file, start, at: start, end, data_end: start }
    }

    /// The next piece, if there is one.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>> {
        while self.at < self.end {
            let rest = ByteRange::from_bounds(self.at, self.end)?;
            if self.at >= self.data_end {
                let status = self.file.block_status(rest, StatusDetail::Zeroes).await?;
                // What is skipped is whole chunks, so that no entry is cut.
                let covered = if status.len >= rest.len() { rest.len() } else { status.len };
                if status.is_zero() && (covered == rest.len() || covered >= CHUNK) {
                    self.at +=
                        if covered == rest.len() { covered } else { covered / CHUNK * CHUNK };
                    continue;
                }
                self.data_end = self.at + covered.max(1);
            }
            let range = rest.first(CHUNK);
            let mut bytes = read_bytes(self.file, range).await?.to_vec();
            // The file may end within a word.
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            let first = (self.at - self.start) / 8;
            self.at += range.len();
            return Ok(Some(Piece { first, bytes }));
        }
        Ok(None)
    }
}

/// The whole of a table of at most a few MiB.
pub(super) async fn read_all(file: &Node, start: u64, len: u64) -> Result<Vec<u64>> {
    let count = to_usize(len / 8);
    let mut all = Vec::new();
    let no_memory = |_| block_core::Error::NoMemory { bytes: to_u64(count) * 8 };
    all.try_reserve_exact(count).map_err(no_memory)?;
    all.resize(count, 0);
    let mut reader = TableReader::new(file, start, len);
    while let Some(piece) = reader.next().await? {
        let places = all.iter_mut().skip(to_usize(piece.first));
        places.zip(piece.words()).for_each(|(place, word)| *place = word);
    }
    Ok(all)
}
