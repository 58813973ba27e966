//! Pieces in flight: read, searched for zeroes and compressed on all processors, handed out in order.
//!
//! Invariants: pieces in flight or waiting to be taken are at most `in_flight`, and each has one
//! [`Buffers`]; after an error nothing begins. Both passes use this, so that a cluster is the same in both.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use block_core::range::{to_u64, to_usize};
use block_core::{Cancel, OwnedBuf};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, StreamExt, try_unfold};

use super::StreamError;
use super::list::Stored;
use super::source::{Disk, Piece, Scanner};
use crate::compress::codec::Codec;
use crate::compress::{Encoding, codec};

/// Shortest piece, so that what a piece costs vanishes beside its bytes.
const MIN_PIECE_BYTES: u64 = 256 << 10;
/// Bytes that are looked at together.
const BLOCK: usize = 256;

/// How the pieces of a disk are made.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) disk: Disk,
    pub(super) cluster_size: u64,
    /// How data is compressed, if it is.
    pub(super) encoding: Option<Encoding>,
    pub(super) keep: Keep,
}

/// What of a piece is wanted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// How long its clusters are.
    Lengths,
    /// Their bytes too.
    Bytes,
}

/// Memory of one piece: its bytes, and what of them was compressed.
pub(super) struct Buffers {
    plain: OwnedBuf,
    packed: Vec<u8>,
}

/// A piece that is finished: its data clusters.
pub(super) struct Finished {
    piece: Piece,
    cluster_size: u64,
    pub(super) stored: Vec<Stored>,
    buffers: Buffers,
}

impl Finished {
    /// Where it ends on the disk.
    pub(super) fn end(&self) -> u64 {
        self.piece.end
    }

    /// The clusters and their bytes as the file holds them, where they were kept.
    pub(super) fn clusters(&self) -> impl Iterator<Item = (Stored, &[u8])> + Send {
        let mut packed = self.buffers.packed.as_slice();
        self.stored.iter().map(move |stored| {
            let bytes = if stored.len == self.cluster_size {
                let at = to_usize(stored.cluster * self.cluster_size - self.piece.start);
                self.buffers.plain.get(at..at + to_usize(stored.len))
            } else {
                let (first, rest) =
                    packed.split_at_checked(to_usize(stored.len)).unwrap_or_default();
                packed = rest;
                Some(first)
            };
            (*stored, bytes.unwrap_or_default())
        })
    }
}

/// The pieces of one pass.
pub(super) struct Pieces {
    work: Work,
    scan: Option<BoxStream<'static, Result<Piece, StreamError>>>,
    running: FuturesOrdered<BoxFuture<'static, Result<Finished, StreamError>>>,
    /// Finished, and not taken yet.
    ready: VecDeque<Result<Finished, StreamError>>,
    free: Vec<Buffers>,
    piece_bytes: u64,
    in_flight: usize,
    cancel: Cancel,
}

impl Pieces {
    /// A pass over the disk whose buffers take `memory_bytes`, or what one piece takes if that is more.
    pub(super) fn new(work: Work, memory_bytes: u64, cancel: Cancel) -> Self {
        let piece_bytes = work.cluster_size.max(MIN_PIECE_BYTES);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let affordable = to_usize(memory_bytes / (2 * piece_bytes));
        let disk = work.disk.clone();
        let scanner = Scanner::new(disk, work.cluster_size, piece_bytes, cancel.clone());
        let scan = try_unfold(scanner, |mut scanner| async move {
            Ok(scanner.next().await?.map(|piece| (piece, scanner)))
        });
        Self {
            work,
            scan: Some(scan.boxed()),
            running: FuturesOrdered::new(),
            ready: VecDeque::new(),
            free: Vec::new(),
            piece_bytes,
            // One is read and one waits for each that is compressed.
            in_flight: affordable.clamp(1, 2 * threads + 1),
            cancel,
        }
    }

    /// The next piece in order; `None` at the end. After an error the rest is waited for by
    /// [`Pieces::drain`].
    pub(super) async fn next(&mut self) -> Option<Result<Finished, StreamError>> {
        poll_fn(|cx| {
            self.advance(cx);
            match self.ready.pop_front() {
                Some(piece) => Poll::Ready(Some(piece)),
                None if self.scan.is_none() && self.running.is_empty() => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Runs `other` to its end while the pieces go on.
    pub(super) async fn during<T>(&mut self, other: impl Future<Output = T> + Send) -> T {
        let mut other = std::pin::pin!(other);
        poll_fn(|cx| {
            self.advance(cx);
            other.as_mut().poll(cx)
        })
        .await
    }

    /// Takes back the memory of a piece.
    pub(super) fn recycle(&mut self, piece: Finished) {
        self.free.push(piece.buffers);
    }

    /// Begins nothing more and waits for what is in flight.
    pub(super) async fn drain(&mut self) {
        self.scan = None;
        self.ready.clear();
        while self.running.next().await.is_some() {}
    }

    /// Begins pieces and takes those that are finished, as far as that goes without waiting.
    fn advance(&mut self, cx: &mut Context<'_>) {
        loop {
            while let Poll::Ready(Some(piece)) = self.running.poll_next_unpin(cx) {
                if piece.is_err() {
                    self.scan = None;
                }
                self.ready.push_back(piece);
            }
            if self.running.len() + self.ready.len() >= self.in_flight {
                return;
            }
            let Some(scan) = &mut self.scan else { return };
            if self.cancel.is_cancelled() {
                self.scan = None;
                self.running.push_back(Box::pin(async { Err(StreamError::Cancelled) }));
                continue;
            }
            match scan.poll_next_unpin(cx) {
                Poll::Ready(Some(found)) => self.begin(found),
                Poll::Ready(None) => self.scan = None,
                Poll::Pending => return,
            }
        }
    }

    fn begin(&mut self, found: Result<Piece, StreamError>) {
        let begun = found.and_then(|piece| Ok((piece, self.buffers()?)));
        self.running.push_back(match begun {
            Ok((piece, buffers)) => Box::pin(finish(self.work.clone(), piece, buffers)),
            Err(error) => {
                self.scan = None;
                Box::pin(async { Err(error) })
            }
        });
    }

    fn buffers(&mut self) -> Result<Buffers, StreamError> {
        if let Some(buffers) = self.free.pop() {
            return Ok(buffers);
        }
        let align = self.work.disk.memory_alignment();
        let plain = OwnedBuf::zeroed(to_usize(self.piece_bytes), align);
        // Compressed clusters are shorter than they were, one by one and together.
        let packed = match (self.work.encoding, self.work.keep) {
            (None, _) => 0,
            (Some(_), Keep::Lengths) => self.work.cluster_size,
            (Some(_), Keep::Bytes) => self.piece_bytes,
        };
        let packed = Vec::with_capacity(to_usize(packed));
        Ok(Buffers { plain: plain.map_err(StreamError::Memory)?, packed })
    }
}

/// Reads a piece and finds out how its clusters are stored.
async fn finish(work: Work, piece: Piece, buffers: Buffers) -> Result<Finished, StreamError> {
    let Buffers { plain, packed } = buffers;
    let offset = piece.start;
    let shared = plain.into_shared();
    let part = shared.slice(0, to_usize(piece.end - piece.start));
    let read = work.disk.read(offset, &part).await;
    drop(part);
    read.map_err(|error| StreamError::Read { offset, error })?;
    let align = work.disk.memory_alignment();
    // A request that keeps its handle for longer costs a copy.
    let plain =
        shared.try_into_owned().or_else(|shared| OwnedBuf::copy_of(&shared.to_vec(), align));
    let buffers = Buffers { plain: plain.map_err(StreamError::Memory)?, packed };
    let store = move |codec: &mut Codec| Ok(store(codec, &work, piece, buffers));
    codec::on_pool(store).await.map_err(|error| StreamError::Compress { offset, error })
}

/// Classifies the clusters of a piece that was read, and compresses them.
fn store(codec: &mut Codec, work: &Work, piece: Piece, mut buffers: Buffers) -> Finished {
    let size = to_usize(work.cluster_size);
    let len = to_usize(piece.end - piece.start);
    let whole = len.next_multiple_of(size);
    let Buffers { plain, packed } = &mut buffers;
    // The last cluster of the disk goes on with zeroes.
    if let Some(tail) = plain.get_mut(len..whole) {
        tail.fill(0);
    }
    packed.clear();
    let mut stored = Vec::new();
    let first = piece.start / work.cluster_size;
    for (cluster, bytes) in (first..).zip(plain.get(..whole).unwrap_or_default().chunks(size)) {
        if is_zero(bytes) {
            continue;
        }
        let len = match work.encoding {
            None => None,
            Some(encoding) => compress(codec, encoding, bytes, packed, work.keep),
        };
        stored.push(Stored { cluster, len: len.map_or(work.cluster_size, to_u64) });
    }
    Finished { piece, cluster_size: work.cluster_size, stored, buffers }
}

/// Compresses a cluster to the end of `packed`, where it stays if it is to be kept; `None` if it does
/// not become shorter.
fn compress(
    codec: &mut Codec,
    encoding: Encoding,
    bytes: &[u8],
    packed: &mut Vec<u8>,
    keep: Keep,
) -> Option<usize> {
    let start = packed.len();
    packed.resize(start + bytes.len() - 1, 0);
    let place = packed.get_mut(start..).unwrap_or_default();
    let len = codec.compress(encoding, bytes, place).filter(|len| (1..bytes.len()).contains(len));
    packed.truncate(match keep {
        Keep::Lengths => start,
        Keep::Bytes => start + len.unwrap_or(0),
    });
    len
}

/// Whether every byte is zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}
