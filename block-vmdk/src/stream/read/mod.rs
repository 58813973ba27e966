//! Reading a streamOptimized image from its first byte to its last, once.
//!
//! # What is checked
//! Every marker; that no grain comes twice; that each zlib stream is that of its grain; that the tables and the
//! directory name what came and where it stood; that the footer is the header again; that nothing is missing at the
//! end. Grains may come in any order. Images whose tables stand at the front, as QEMU writes them, are read too: they
//! end where all grains have come that the tables name.
//!
//! # Invariants
//! * Memory has a bound, whatever the stream says: see [`StreamReader::memory_bytes`].
//! * What is given before an error is as it stood in the stream. Only the end says that it was everything.

mod front;
mod input;
mod ledger;
mod parse;
mod target;

pub use target::ReadInto;

use block_core::job::stream::MEMORY_BYTES;
use block_core::range::{SECTOR_SIZE, to_u64, to_usize};
use block_core::{Alignment, Error, IoBuf, OwnedBuf, cpu};
use futures::io::AsyncRead;
use futures::stream::{Stream, TryStreamExt, try_unfold};

use crate::compress::{COMPRESSED_GRAIN_SECTORS_MAX, InflateError, inflate};
use crate::descriptor::{Descriptor, DescriptorError};
use crate::spec::marker::MarkerError;
use crate::spec::sparse::{GrainDirectory, HEADER_LEN, HeaderError, SparseHeader};
use crate::units::{Sector, SectorCount};
use front::Front;
use input::Input;
use ledger::Ledger;
use parse::{Batch, Parser, Tables};

/// Why a stream was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What the stream starts with is no header of a sparse extent.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// It is a sparse extent, and none that is read forward.
    #[error("the image is not streamOptimized: {field} is {value:#x}")]
    NotAStream {
        /// The field that says so, in the format's words.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The descriptor cannot be used.
    #[error("descriptor: {0}")]
    Descriptor(#[from] DescriptorError),
    /// The image has a parent, which a stream cannot name.
    #[error("the image has a parent, whose contents are not in the stream")]
    Parent,
    /// A marker is none of this extent.
    #[error("marker at byte {offset}: {error}")]
    Marker {
        /// Where it is in the stream.
        offset: u64,
        /// What is wrong with it.
        error: MarkerError,
    },
    /// A marker is where none of its kind may be.
    #[error("{what} at byte {offset}: {problem}")]
    Order {
        /// Where it is in the stream.
        offset: u64,
        /// What it is the marker of.
        what: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// A grain's zlib stream is not that of a grain.
    #[error("grain at byte {offset}: {error}")]
    Grain {
        /// Where its marker is in the stream.
        offset: u64,
        /// What is wrong with it.
        error: InflateError,
    },
    /// A grain came twice.
    #[error("grain {grain:#x} comes again at sector {sector:#x}")]
    Repeated {
        /// Its number.
        grain: u64,
        /// Where it came again, in the stream.
        sector: u64,
    },
    /// Tables and grains contradict each other.
    #[error("table at sector {sector:#x}: {problem}")]
    Table {
        /// Where the table is in the stream.
        sector: u64,
        /// What is wrong.
        problem: TableProblem,
    },
    /// The footer is not the header with the place of the grain directory.
    #[error("footer at byte {offset}: {field} is not that of the header or of what came")]
    Footer {
        /// Where it is in the stream.
        offset: u64,
        /// The field that differs.
        field: &'static str,
    },
    /// The stream ended too early.
    #[error("the stream ends at byte {offset}, inside of {what}")]
    Truncated {
        /// Where it ended.
        offset: u64,
        /// What it should have gone on with.
        what: &'static str,
    },
    /// Something follows the end.
    #[error("the stream goes on at byte {offset}, behind its end")]
    Trailing {
        /// Where it goes on.
        offset: u64,
    },
    /// What has to be kept of the stream does not fit into what it may take.
    #[error("checking the stream needs more than {budget} bytes of memory")]
    Memory {
        /// Bytes that it may take.
        budget: u64,
    },
    /// There is no memory for a buffer, or the thread that inflates has gone.
    #[error("{0}")]
    Buffer(Error),
    /// The source gave no more.
    #[error("error while reading the stream at byte {offset}: {error}")]
    Source {
        /// Bytes that came before.
        offset: u64,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The target could not be written.
    #[error("error while writing at byte {offset}: {error}")]
    Write {
        /// Offset in the target.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The target's compressed clusters are longer than the grains that come.
    #[error("compressed clusters of {cluster} bytes cannot be made of grains of {grain} bytes")]
    Clusters {
        /// Bytes of a cluster.
        cluster: u64,
        /// Bytes of a grain.
        grain: u64,
    },
    /// The caller cancelled it.
    #[error("cancelled")]
    Cancelled,
}

/// How a table contradicts what came.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableProblem {
    /// An entry names a sector where no grain stands that it may name.
    #[error("no grain for it stands at sector {0:#x}")]
    NoGrain(u64),
    /// An entry names the grain of another entry.
    #[error("the grain at sector {0:#x} is not that of its entry")]
    OtherGrain(u64),
    /// A grain of the table came before it, and it does not name it.
    #[error("it leaves out a grain that came")]
    GrainLeftOut,
    /// There is one for these grains already.
    #[error("it is the second grain table {0}")]
    Second(u64),
    /// Grains came, and no table for them.
    #[error("grain table {0} is missing")]
    Missing(u64),
    /// The directory names another place than that where the table came.
    #[error("grain table {0} stands elsewhere")]
    Elsewhere(u64),
    /// It ends beyond the part of the file where it has to be.
    #[error("it is not before the first grain")]
    Place,
}

/// A part of the disk and what is there. What no piece covers is zero.
#[derive(Clone, Debug)]
pub struct GrainPiece {
    /// Where it starts on the disk, in bytes.
    pub offset: u64,
    /// Its bytes, which end with the disk at the latest.
    pub data: IoBuf,
}

/// A streamOptimized image that is read from a source that only goes forward.
pub struct StreamReader<R> {
    input: Input<R>,
    header: SparseHeader,
    descriptor: Option<Descriptor>,
    front: Option<Front>,
    memory_bytes: u64,
}

impl<R: AsyncRead + Unpin + Send + 'static> StreamReader<R> {
    /// Reads what stands before the grains.
    pub async fn open(source: R) -> Result<Self, ReadError> {
        Self::with_memory(source, MEMORY_BYTES).await
    }

    /// Like [`StreamReader::open`], with at most so many bytes (64 MiB if nothing is said) for the buffers, or those
    /// of one piece, and as many for what has to be remembered of the stream: enough for a TiB of grains, where the
    /// tables come behind them, and for half as much where they stand at the front and twice.
    pub async fn with_memory(source: R, memory_bytes: u64) -> Result<Self, ReadError> {
        let mut input = Input::new(source);
        let header = SparseHeader::parse(input.take(HEADER_LEN, "the header").await?)?;
        check_is_stream(&header)?;
        let descriptor_end = header.descriptor().map_or(1, |d| d.start.0 + d.count.0);
        let front = match header.grain_directory() {
            GrainDirectory::InFooter => {
                // Only the descriptor is kept.
                let (end, first) = (descriptor_end, header.overhead().0.max(descriptor_end));
                let front = Front::read(&mut input, Sector(end), memory_bytes).await?;
                let rest = SectorCount(first - end).bytes().unwrap_or_default();
                input.skip(rest, "what stands before the grains").await?;
                front
            }
            GrainDirectory::At(_) => {
                let end = header.overhead().0.max(descriptor_end);
                Front::read(&mut input, Sector(end), memory_bytes).await?
            }
        };
        let descriptor = match header.descriptor() {
            None => None,
            Some(place) => Some(Descriptor::parse(front.bytes(place)?)?),
        };
        if descriptor.as_ref().is_some_and(Descriptor::has_parent) {
            return Err(ReadError::Parent);
        }
        let front = match header.grain_directory() {
            GrainDirectory::InFooter => None,
            GrainDirectory::At(gd) => Some(front.with_tables(gd, &header)?),
        };
        Ok(Self { input, header, descriptor, front, memory_bytes })
    }

    /// Length of the disk in bytes.
    pub fn disk_len(&self) -> u64 {
        self.header.capacity().bytes().unwrap_or_default()
    }

    /// The descriptor, if there is one.
    pub fn descriptor(&self) -> Option<&Descriptor> {
        self.descriptor.as_ref()
    }

    /// Bytes of a grain: pieces begin at a multiple of it, and end at one or with the disk.
    pub fn grain_bytes(&self) -> u64 {
        self.header.grain_size().bytes().unwrap_or_default()
    }

    /// What the stream holds, in its order, each piece some grains that follow one another on the disk. After the
    /// last one everything was checked. Grains are inflated on all processors, a bounded number ahead.
    pub fn into_pieces(self) -> impl Stream<Item = Result<GrainPiece, ReadError>> + Send {
        let (grain, capacity) = (self.header.grain_size(), self.header.capacity());
        let batch_bytes = parse::batch_bytes(grain);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        // What comes of a batch, and what it comes from.
        let affordable = to_usize(self.memory_bytes / (3 * to_u64(batch_bytes)));
        let in_flight = affordable.clamp(1, 2 * threads + 1);
        let tables = match self.front {
            Some(front) => Tables::Front(front),
            None => Tables::Behind(None),
        };
        let ledger = Ledger::new(&self.header, self.memory_bytes);
        let parser = Parser { input: self.input, header: self.header, tables, ledger };
        let batches = try_unfold(parser, |mut parser| async move {
            Ok(parser.next().await?.map(|batch| (batch, parser)))
        });
        batches
            .map_ok(move |batch| async move {
                let inflated = cpu::run(move || Ok(inflate_batch(&batch, grain, capacity)));
                inflated.await.map_err(ReadError::Buffer)?
            })
            .try_buffered(in_flight)
    }
}

impl<R> std::fmt::Debug for StreamReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReader").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Refuses what is not written forward.
fn check_is_stream(header: &SparseHeader) -> Result<(), ReadError> {
    let refuse = |field, value| Err(ReadError::NotAStream { field, value });
    if !header.is_compressed() {
        return refuse("compressAlgorithm", 0);
    }
    if !header.has_markers() {
        return refuse("flags (markers)", 0);
    }
    let grain = header.grain_size().0;
    if grain > COMPRESSED_GRAIN_SECTORS_MAX {
        return refuse("grainSize", grain);
    }
    Ok(())
}

/// Inflates grains that follow one another on the disk.
fn inflate_batch(
    batch: &Batch,
    grain: SectorCount,
    capacity: SectorCount,
) -> Result<GrainPiece, ReadError> {
    let grain_bytes = to_usize(grain.0 * SECTOR_SIZE);
    let count = batch.grains.len();
    let mut data =
        OwnedBuf::zeroed(count * grain_bytes, Alignment::PAGE).map_err(ReadError::Buffer)?;
    let mut lba = batch.lba;
    for (stored, dst) in batch.grains.iter().zip(data.chunks_mut(grain_bytes)) {
        let needed = to_usize(capacity.0.saturating_sub(lba.0).min(grain.0) * SECTOR_SIZE);
        let src = batch.bytes.get(stored.range.clone()).unwrap_or_default();
        let inflated = inflate(src, dst, needed);
        inflated.map_err(|error| ReadError::Grain { offset: stored.offset, error })?;
        lba.0 += grain.0;
    }
    let offset = batch.lba.0 * SECTOR_SIZE;
    let inside = to_usize(capacity.0.saturating_sub(batch.lba.0).saturating_mul(SECTOR_SIZE));
    let data = data.into_shared();
    let data = if inside < data.len() { data.slice(0, inside) } else { data };
    Ok(GrainPiece { offset, data })
}
