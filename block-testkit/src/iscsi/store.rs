//! What a medium holds: blocks in chunks, of which only those exist that hold something.
//!
//! Invariants: a chunk that exists has a mapped block; a chunk without data is zeroes. What the data of
//! a chunk says of blocks that are not mapped means nothing.

use std::collections::BTreeMap;

use block_core::range::{to_u64, to_usize};

/// Blocks of a chunk: as many as a word has bits.
const CHUNK: u64 = 64;

#[derive(Clone, Debug, Default)]
struct Chunk {
    mapped: u64,
    data: Option<Box<[u8]>>,
}

/// Blocks of one length.
#[derive(Clone, Debug)]
pub(super) struct Store {
    block: usize,
    chunks: BTreeMap<u64, Chunk>,
}

/// A part of a range that lies in one chunk.
#[derive(Copy, Clone)]
struct Piece {
    chunk: u64,
    /// Number of its first block in the chunk.
    first: u64,
    count: u64,
}

impl Piece {
    fn mask(self) -> u64 {
        let ones = if self.count == CHUNK { u64::MAX } else { (1 << self.count) - 1 };
        ones << self.first
    }
}

fn pieces(lba: u64, count: u64) -> impl Iterator<Item = Piece> {
    let end = lba + count;
    let mut at = lba;
    std::iter::from_fn(move || {
        let (chunk, first) = (at / CHUNK, at % CHUNK);
        let count = (CHUNK - first).min(end - at);
        at += count;
        (count > 0).then_some(Piece { chunk, first, count })
    })
}

impl Store {
    pub(super) fn new(block: u32) -> Self {
        Self { block: to_usize(block.into()), chunks: BTreeMap::new() }
    }

    fn bytes(&self, blocks: u64) -> usize {
        to_usize(blocks) * self.block
    }

    /// The blocks `[lba, lba + count)`; those that are not mapped read as `unmapped`.
    pub(super) fn read(&self, lba: u64, count: u64, unmapped: u8) -> Vec<u8> {
        let len = self.bytes(count);
        let mut out = Vec::with_capacity(len);
        self.append(lba * to_u64(self.block), len, unmapped, &mut out);
        out
    }

    /// Appends the bytes `[offset, offset + len)` to `out`; blocks that are not mapped read as
    /// `unmapped`.
    pub(super) fn append(&self, offset: u64, len: usize, unmapped: u8, out: &mut Vec<u8>) {
        let block = to_u64(self.block);
        let (mut at, end) = (offset, offset + to_u64(len));
        while at < end {
            let lba = at / block;
            let (number, first) = (lba / CHUNK, lba % CHUNK);
            let chunk = self.chunks.get(&number);
            let (data, mapped) =
                chunk.map_or((None, 0), |chunk| (chunk.data.as_deref(), chunk.mapped));
            // How many blocks from here on are mapped, or are not, as this one.
            let bits = mapped >> first;
            let is_mapped = bits & 1 != 0;
            let alike = if is_mapped { bits.trailing_ones() } else { bits.trailing_zeros() };
            let alike = u64::from(alike).min(CHUNK - first);
            let stop = end.min((lba + alike) * block);
            let piece = to_usize(stop - at);
            match data {
                Some(data) if is_mapped => {
                    let start = to_usize(at - number * CHUNK * block);
                    out.extend_from_slice(&data[start..start + piece]);
                }
                _ => out.resize(out.len() + piece, if is_mapped { 0 } else { unmapped }),
            }
            at = stop;
        }
    }

    /// Writes and maps the whole blocks of `data` from `lba` on.
    pub(super) fn write(&mut self, lba: u64, mut data: &[u8]) {
        let (block, chunk_len) = (self.block, self.bytes(CHUNK));
        for piece in pieces(lba, to_u64(data.len() / block)) {
            let (now, later) = data.split_at(to_usize(piece.count) * block);
            let chunk = self.chunks.entry(piece.chunk).or_default();
            chunk.mapped |= piece.mask();
            let start = to_usize(piece.first) * block;
            let to = chunk.data.get_or_insert_with(|| vec![0; chunk_len].into());
            to[start..start + now.len()].copy_from_slice(now);
            data = later;
        }
    }

    /// Writes `block` to each of `count` blocks and maps them.
    pub(super) fn fill(&mut self, lba: u64, count: u64, block: &[u8]) {
        if block.iter().any(|byte| *byte != 0) {
            for piece in pieces(lba, count) {
                let data = block.repeat(to_usize(piece.count));
                self.write(piece.chunk * CHUNK + piece.first, &data);
            }
            return;
        }
        for piece in pieces(lba, count) {
            let len = self.block;
            let chunk = self.chunks.entry(piece.chunk).or_default();
            chunk.mapped |= piece.mask();
            chunk.clear(piece, len);
        }
    }

    /// Forgets `count` blocks. Costs what there is, not what there could be.
    pub(super) fn unmap(&mut self, lba: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = lba + count;
        for (number, chunk) in self.chunks.range_mut(lba / CHUNK..end.div_ceil(CHUNK)) {
            let first = lba.max(number * CHUNK) - number * CHUNK;
            let last = end.min((number + 1) * CHUNK) - number * CHUNK;
            chunk.mapped &= !Piece { chunk: *number, first, count: last - first }.mask();
        }
        self.chunks.retain(|_, chunk| chunk.mapped != 0);
    }

    /// Forgets everything from block `lba` on.
    pub(super) fn truncate(&mut self, lba: u64) {
        let end = self.chunks.last_key_value().map_or(0, |(number, _)| (number + 1) * CHUNK);
        self.unmap(lba, end.saturating_sub(lba));
    }

    /// Whether block `lba` is mapped, and how many blocks from there on, up to `limit`, are the same.
    pub(super) fn run(&self, lba: u64, limit: u64) -> (bool, u64) {
        let mapped = self.is_mapped(lba);
        let mut next = lba;
        while next < limit && self.is_mapped(next) == mapped {
            let chunk = next / CHUNK;
            let whole = if mapped { u64::MAX } else { 0 };
            next = match self.chunks.range(chunk..).next() {
                // Nothing until the next chunk that exists, or the end.
                None => limit,
                Some((number, _)) if *number > chunk => number * CHUNK,
                Some((_, chunk)) if chunk.mapped == whole => (next / CHUNK + 1) * CHUNK,
                Some(_) => next + 1,
            };
        }
        (mapped, next.min(limit) - lba)
    }

    pub(super) fn is_mapped(&self, lba: u64) -> bool {
        let chunk = self.chunks.get(&(lba / CHUNK));
        chunk.is_some_and(|chunk| chunk.mapped >> (lba % CHUNK) & 1 != 0)
    }

    /// Bytes of memory that the contents take.
    pub(super) fn memory(&self) -> u64 {
        let data = |chunk: &Chunk| chunk.data.as_ref().map_or(0, |data| to_u64(data.len()));
        self.chunks.values().map(data).sum()
    }
}

impl Chunk {
    /// Makes zeroes of a piece; of everything, if nothing else is mapped.
    fn clear(&mut self, piece: Piece, block: usize) {
        if self.mapped & !piece.mask() == 0 {
            self.data = None;
        }
        if let Some(data) = &mut self.data {
            let start = to_usize(piece.first) * block;
            data[start..start + to_usize(piece.count) * block].fill(0);
        }
    }
}
