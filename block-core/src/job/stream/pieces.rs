//! Pieces in flight: read and packed on all processors, handed out in order.
//!
//! Invariants: pieces in flight or waiting to be taken are at most `in_flight`, and each has one
//! [`Buffers`]; after an error nothing begins.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, StreamExt, try_unfold};

use super::StreamError;
use super::source::{Disk, Piece, Scanner};
use crate::buf::OwnedBuf;
use crate::cancel::Cancel;
use crate::cpu;
use crate::range::{to_u64, to_usize};

/// Shortest piece, so that what a piece costs vanishes beside its bytes.
const MIN_PIECE_BYTES: u64 = 256 << 10;
/// Bytes that are looked at together.
const BLOCK: usize = 256;

/// What a format makes of the data of a piece.
pub trait Pack: Send + Sync + 'static {
    /// What it makes. Its memory is used again for other pieces.
    type Packed: Send + 'static;

    /// Pieces begin at multiples of this many bytes, and end at one or at the end of the disk.
    fn unit(&self) -> u64;

    /// Memory for what comes of a piece of up to so many bytes.
    fn memory(&self, piece_bytes: usize) -> Self::Packed;

    /// Packs a piece; runs on a thread of [`cpu`]. `plain` is whole units, with zeroes behind the end of the disk;
    /// `packed` holds what was made of another piece.
    fn pack(&self, piece: Piece, plain: &[u8], packed: &mut Self::Packed);
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Memory of one piece: its bytes, and what was made of them.
struct Buffers<P> {
    plain: OwnedBuf,
    packed: P,
}

/// A piece that is packed.
pub struct Finished<P> {
    piece: Piece,
    buffers: Buffers<P>,
}

impl<P> Finished<P> {
    /// Where it is on the disk.
    pub fn piece(&self) -> Piece {
        self.piece
    }

    /// Its bytes, from its start on.
    pub fn plain(&self) -> &[u8] {
        &self.buffers.plain
    }

    /// What was made of them.
    pub fn packed(&self) -> &P {
        &self.buffers.packed
    }
}

/// The pieces of one pass over a disk.
pub struct Pieces<P: Pack> {
    disk: Disk,
    pack: Arc<P>,
    scan: Option<BoxStream<'static, Result<Piece, StreamError>>>,
    /// The scanner begins nothing more.
    stop: Arc<AtomicBool>,
    running: FuturesOrdered<BoxFuture<'static, Result<Finished<P::Packed>, StreamError>>>,
    /// Finished, and not taken yet.
    ready: VecDeque<Result<Finished<P::Packed>, StreamError>>,
    free: Vec<Buffers<P::Packed>>,
    piece_bytes: u64,
    in_flight: usize,
    cancel: Cancel,
}

impl<P: Pack> Pieces<P> {
    /// A pass over the disk whose buffers take `memory_bytes`, or what one piece takes if that is more. Looks at
    /// `cancel` before each piece.
    pub fn new(disk: Disk, pack: P, memory_bytes: u64, cancel: Cancel) -> Self {
        let unit = pack.unit();
        let piece_bytes = MIN_PIECE_BYTES.next_multiple_of(unit);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let affordable = to_usize(memory_bytes / (2 * piece_bytes));
        let stop = Arc::new(AtomicBool::new(false));
        let scanner =
            Scanner::new(disk.clone(), unit, piece_bytes, cancel.clone(), Arc::clone(&stop));
        let scan = try_unfold(scanner, |mut scanner| async move {
            Ok(scanner.next().await?.map(|piece| (piece, scanner)))
        });
        Self {
            disk,
            pack: Arc::new(pack),
            scan: Some(scan.boxed()),
            stop,
            running: FuturesOrdered::new(),
            ready: VecDeque::new(),
            free: Vec::new(),
            piece_bytes,
            // One is read and one waits for each that is packed.
            in_flight: affordable.clamp(1, 2 * threads + 1),
            cancel,
        }
    }

    /// The next piece in order; `None` at the end. After an error the rest is waited for by
    /// [`Pieces::drain`].
    pub async fn next(&mut self) -> Option<Result<Finished<P::Packed>, StreamError>> {
        poll_fn(|cx| {
            self.advance(cx);
            match self.ready.pop_front() {
                Some(piece) => Poll::Ready(Some(piece)),
                None if !self.is_scanning() && self.running.is_empty() => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Runs `other` to its end while the pieces go on.
    pub async fn during<T>(&mut self, other: impl Future<Output = T> + Send) -> T {
        let mut other = std::pin::pin!(other);
        poll_fn(|cx| {
            self.advance(cx);
            other.as_mut().poll(cx)
        })
        .await
    }

    /// Takes back the memory of a piece.
    pub fn recycle(&mut self, piece: Finished<P::Packed>) {
        self.free.push(piece.buffers);
    }

    /// Begins nothing more and waits for what is in flight.
    pub async fn drain(&mut self) {
        self.stop();
        self.ready.clear();
        while self.running.next().await.is_some() {}
        if let Some(mut scan) = self.scan.take() {
            // The answer that it waits for.
            drop(scan.next().await);
        }
    }

    /// Begins pieces and takes those that are finished, as far as that goes without waiting.
    fn advance(&mut self, cx: &mut Context<'_>) {
        loop {
            while let Poll::Ready(Some(piece)) = self.running.poll_next_unpin(cx) {
                if piece.is_err() {
                    self.stop();
                }
                self.ready.push_back(piece);
            }
            if self.running.len() + self.ready.len() >= self.in_flight {
                return;
            }
            if !self.is_scanning() {
                return;
            }
            let Some(scan) = &mut self.scan else { return };
            if self.cancel.is_cancelled() {
                self.stop();
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
            Ok((piece, buffers)) => {
                Box::pin(finish(self.disk.clone(), Arc::clone(&self.pack), piece, buffers))
            }
            Err(error) => {
                self.stop();
                Box::pin(async { Err(error) })
            }
        });
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether there may be pieces that were not begun.
    fn is_scanning(&self) -> bool {
        self.scan.is_some() && !self.stop.load(Ordering::Relaxed)
    }

    fn buffers(&mut self) -> Result<Buffers<P::Packed>, StreamError> {
        if let Some(buffers) = self.free.pop() {
            return Ok(buffers);
        }
        let len = to_usize(self.piece_bytes);
        let plain = OwnedBuf::zeroed(len, self.disk.memory_alignment());
        let packed = self.pack.memory(len);
        Ok(Buffers { plain: plain.map_err(StreamError::Memory)?, packed })
    }
}

impl<P: Pack> std::fmt::Debug for Pieces<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let in_flight = self.running.len();
        f.debug_struct("Pieces").field("in_flight", &in_flight).finish_non_exhaustive()
    }
}

/// Reads a piece and packs it.
async fn finish<P: Pack>(
    disk: Disk,
    pack: Arc<P>,
    piece: Piece,
    buffers: Buffers<P::Packed>,
) -> Result<Finished<P::Packed>, StreamError> {
    let Buffers { plain, mut packed } = buffers;
    let offset = piece.start;
    let len = to_usize(piece.end - piece.start);
    let shared = plain.into_shared();
    let part = shared.slice(0, len);
    let read = disk.read(offset, &part).await;
    drop(part);
    read.map_err(|error| StreamError::Read { offset, error })?;
    let align = disk.memory_alignment();
    // A request that keeps its handle for longer costs a copy.
    let plain =
        shared.try_into_owned().or_else(|shared| OwnedBuf::copy_of(&shared.to_vec(), align));
    let mut plain = plain.map_err(StreamError::Memory)?;
    let work = move || {
        let whole = to_usize(to_u64(len).next_multiple_of(pack.unit()));
        // The last unit of the disk goes on with zeroes.
        if let Some(tail) = plain.get_mut(len..whole) {
            tail.fill(0);
        }
        pack.pack(piece, plain.get(..whole).unwrap_or_default(), &mut packed);
        Ok(Finished { piece, buffers: Buffers { plain, packed } })
    };
    cpu::run(work).await.map_err(|error| StreamError::Pack { offset, error })
}
