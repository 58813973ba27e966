//! Copies the contents of one or more nodes, one after the other, into a target node.
//!
//! # How it runs
//! A scanner asks the sources how they are stored and cuts them into pieces; up to `parallel` pieces
//! are in flight, each of which is read as a whole, searched for zeroes, and written. What reads as
//! zeroes is never read, and written only where the target is not known to read as zeroes already.
//!
//! # Invariants
//! * The buffers together take at most `memory_bytes` (or one smallest piece for each request in
//!   flight, if that is more), whatever the size of the disks.
//! * Pieces cover the target once, in order, without gap or overlap; a piece never crosses from one
//!   source to the next, but for the one cluster of a compressed copy that two or more sources share.
//! * Compressed data is written in whole clusters: a cluster that is all zero becomes a zero write or
//!   nothing, any other one is written as a whole, whatever the sparse size. Where the sources end inside
//!   of a cluster, the rest of it is read from the target.
//! * With [`WriteOrder::InOrder`] writes begin in order of offset.
//! * When `copy` returns, with whatever result, no request of it is in flight.
//! * `Cancel::done` never passes a byte that is not yet in the target.
//!
//! Not here: making, growing and flushing the target; clocks, which the caller
//! brings where it wants a rate kept ([`Watch::before_write`]).

mod offload;
mod pipeline;
mod runs;
mod salvage;
mod scan;
#[cfg(test)]
mod tests;
mod write;

pub use runs::{Run, Runs};

use futures::future::BoxFuture;

use crate::cancel::Cancel;
use crate::error::Error;
use crate::flags::{RequestFlags, Support};
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::range::{Alignment, ByteRange, MAX_LEN};

/// Most pieces in flight.
pub const MAX_PARALLEL: usize = 16;

/// Length of a piece of compressed data where the memory allows it, in bytes.
///
/// Long, so that the file driver hands its write to the thread pool and inflating goes on meanwhile.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Length of a piece of plain data where the memory allows it, in bytes.
///
/// Long enough that the cost of a request vanishes beside that of its bytes, short enough that what
/// was read is still in the processor's cache when it is written, and that the file driver writes it
/// inline ([`INLINE_WRITE_MAX`](crate::io::INLINE_WRITE_MAX)): there is nothing to compute meanwhile, and
/// two processors in the page cache hinder each other.
pub const PLAIN_PIECE_BYTES: u64 = 256 << 10;

/// Shortest length to which a small memory budget cuts pieces, in bytes.
pub const MIN_PIECE_BYTES: u64 = 64 << 10;

/// Most bytes of zero runs that one piece looks for: longer runs are found only if they fill pieces.
pub const MAX_SPARSE_BYTES: u64 = 16 << 20;

/// One disk to copy.
#[derive(Clone, Debug)]
pub struct CopySource {
    /// The disk.
    pub node: Node,
    /// How many bytes of the target it fills. What it has beyond is left out, what it lacks is zero.
    pub len: u64,
    /// Which of its layers are copied.
    pub layers: Layers,
}

impl CopySource {
    /// The first `len` bytes of what `node` reads as.
    pub fn new(node: Node, len: u64) -> Self {
        Self { node, len, layers: Layers::All }
    }
}

/// Which layers of a chain of backing files are copied.
#[derive(Clone, Debug)]
pub enum Layers {
    /// All of them: the target gets what the node reads as.
    All,
    /// Those above this node, which is one of the chain: what none of them holds is left out, because
    /// the target has it from elsewhere.
    Above(Node),
}

/// What becomes of bytes that a source cannot give.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum OnReadError {
    /// The copy fails.
    #[default]
    Fail,
    /// They are zero in the target, no more of them than the source's alignment demands, and
    /// [`Watch::unreadable`] hears of them.
    Salvage,
}

/// In which order writes begin.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum WriteOrder {
    /// In order of offset, so that a target that allocates lays its clusters out in order.
    #[default]
    InOrder,
    /// As reads complete.
    Any,
}

/// What the target holds before the copy.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum TargetContents {
    /// Anything: zeroes have to be written.
    #[default]
    Unknown,
    /// It reads as zeroes all over: zeroes need not be written.
    Zeroes,
}

/// What becomes of zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Sparseness {
    /// They are written as data: the target is fully allocated.
    Full,
    /// Areas that the source knows to be zero, and runs inside of its data of at least this many
    /// bytes (at least 512, cut at the length of a piece), become zero writes, or nothing where the
    /// target reads as zeroes already.
    Holes {
        /// Shortest run inside of data.
        min_bytes: u64,
    },
}

/// Whether data is copied inside of the storage where that can be.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Offload {
    /// All data passes through memory.
    #[default]
    Never,
    /// Where both ends can (`copy_file_range`); the rest passes through memory. No zeroes are looked for
    /// inside of what the storage copies, and it is copied as it is found, whatever the write order.
    WherePossible,
}

/// How to copy.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CopyOptions {
    /// Pieces in flight: 1 to [`MAX_PARALLEL`].
    pub parallel: usize,
    /// In which order writes begin.
    pub order: WriteOrder,
    /// What becomes of zeroes.
    pub sparseness: Sparseness,
    /// What the target holds before.
    pub target: TargetContents,
    /// Bytes that all buffers together may take.
    pub memory_bytes: u64,
    /// What becomes of bytes that cannot be read.
    pub on_read_error: OnReadError,
    /// Flags of every write to the target; zero writes have `MAY_UNMAP` too, and never `COMPRESSED`.
    pub write_flags: RequestFlags,
    /// Whether data is copied inside of the storage. Not with flags that a copy cannot have.
    pub offload: Offload,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            parallel: 8,
            order: WriteOrder::InOrder,
            sparseness: Sparseness::Holes { min_bytes: 4096 },
            target: TargetContents::Unknown,
            memory_bytes: 64 << 20,
            on_read_error: OnReadError::Fail,
            write_flags: RequestFlags::empty(),
            offload: Offload::Never,
        }
    }
}

/// What a [`Progress`] counts.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Counted {
    /// All bytes of the target.
    #[default]
    Everything,
    /// Those that have to be read from a source, or written as zeroes to a target that is to be fully
    /// allocated. The sources are asked how they are stored before the copy begins.
    Data,
}

/// How far a copy is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of the target that are done, not necessarily from its start. More than `total` if a source
    /// has changed since it was counted.
    pub done: u64,
    /// Bytes to do.
    pub total: u64,
}

/// What a copy did with the bytes of the target; their sum is its length.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Written as data.
    pub data: u64,
    /// Written as zeroes.
    pub zeroes: u64,
    /// Not written, because the target reads as zeroes already.
    pub skipped: u64,
    /// Not written, because no layer that is copied holds it.
    pub below: u64,
}

/// A part of a source that could not be read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// Index of the source.
    pub source_index: usize,
    /// Where in the source.
    pub range: ByteRange,
    /// Why.
    pub error: Error,
}

/// Who watches a copy; a closure that takes [`Progress`] does.
pub trait Watch: Send {
    /// Called at the start and after every piece.
    fn progress(&mut self, progress: Progress);

    /// What it counts.
    fn counted(&self) -> Counted {
        Counted::default()
    }

    /// With [`OnReadError::Salvage`]: these bytes could not be read and become zero.
    fn unreadable(&mut self, part: Unreadable) {
        let _ = part;
    }

    /// Called when `bytes` of data are about to be written; they are written when the future ends. How
    /// a rate is kept by those who have a clock.
    fn before_write(&mut self, bytes: u64) -> Option<BoxFuture<'static, ()>> {
        let _ = bytes;
        None
    }
}

impl<F: FnMut(Progress) + Send> Watch for F {
    fn progress(&mut self, progress: Progress) {
        self(progress);
    }
}

/// Why a copy did not come to its end.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyError {
    /// A number in the options or the sources cannot be.
    #[error("{what} must be {min} to {max}, not {value}")]
    Option {
        /// Which.
        what: &'static str,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
        /// Its value.
        value: u64,
    },
    /// `COMPRESSED` is among the write flags, and the target cannot.
    #[error("compressed writes are not supported by '{driver}'")]
    NoCompression {
        /// The target's driver.
        driver: &'static str,
    },
    /// There is no memory for the buffers.
    #[error("{0}")]
    Memory(Error),
    /// A source could not say how it is stored.
    #[error("error while reading block status at offset {offset}: {error}")]
    Status {
        /// Index of the source.
        source_index: usize,
        /// Offset in the source.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// A source could not be read.
    #[error("error while reading at byte {offset}: {error}")]
    Read {
        /// Index of the source.
        source_index: usize,
        /// Offset in the source, of the piece that failed.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The target could not be written.
    #[error("error while writing at byte {offset}: {error}")]
    Write {
        /// Offset in the target, of the run that failed.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The caller cancelled it.
    #[error("cancelled after {done} bytes")]
    Cancelled {
        /// Every byte below this is in the target.
        done: u64,
    },
}

/// Copies `sources`, joined in order, to the start of `target`, which must be long enough.
///
/// Looks at `cancel` between pieces and then ends with [`CopyError::Cancelled`]; `cancel.done()` says
/// up to where everything is in the target. On an error pieces in flight are waited for, those
/// not yet begun are left out. `watch` hears of every piece. The target is not flushed.
pub async fn copy(
    sources: Vec<CopySource>,
    target: &Node,
    options: CopyOptions,
    cancel: &Cancel,
    watch: impl Watch,
) -> Result<Copied, CopyError> {
    let total = check(&sources, target, &options)?;
    let plan = Plan::new(&sources, target, &options);
    let pipeline = pipeline::Pipeline::new(sources, target.clone(), plan, total, cancel.clone());
    pipeline.run(watch).await
}

/// The options in the form in which the parts of a copy use them.
#[derive(Copy, Clone, Debug)]
struct Plan {
    options: CopyOptions,
    /// Longest piece of data; a multiple of the grain.
    piece_bytes: u64,
    /// Pieces begin and end at multiples of this, so that the target need not read to pad them.
    grain: Alignment,
    /// With compressed writes: what they are whole multiples of. It divides the grain.
    cluster: Option<Alignment>,
    /// Alignment of the buffers in memory.
    memory: Alignment,
}

/// No finer than file systems allocate, so that scattered zeroes do not make tiny requests.
const MIN_GRAIN: Alignment = Alignment::PAGE;

impl Plan {
    fn new(sources: &[CopySource], target: &Node, options: &CopyOptions) -> Self {
        let share = options.memory_bytes / crate::range::to_u64(options.parallel);
        let piece_bytes = match share.checked_ilog2() {
            Some(log) => (1 << log).clamp(MIN_PIECE_BYTES, PIECE_BYTES),
            None => MIN_PIECE_BYTES,
        };
        let limits = target.limits();
        let compressed = options.write_flags.contains(RequestFlags::COMPRESSED);
        let cluster = compressed.then(|| compressed_unit(&limits));
        let piece_bytes = match cluster {
            Some(cluster) => cluster.round_down(piece_bytes).max(cluster.bytes()),
            None => piece_bytes,
        };
        let mut grain = limits.request_alignment.max(MIN_GRAIN);
        let mut memory = limits.opt_mem_alignment.max(Alignment::PAGE);
        for source in sources {
            let limits = source.node.limits();
            grain = grain.max(limits.request_alignment);
            memory = memory.max(limits.opt_mem_alignment);
        }
        // Alignments of more than a piece are left to the padding of the request layer.
        grain = grain.min(Alignment::new(piece_bytes).unwrap_or(MIN_GRAIN));
        if let Some(cluster) = cluster.filter(|cluster| !cluster.is_aligned(grain.bytes())) {
            grain = cluster;
        }
        Self { options: *options, piece_bytes, grain, cluster, memory }
    }
}

/// Whole clusters, and whole blocks where these are larger.
fn compressed_unit(limits: &BlockLimits) -> Alignment {
    let block = limits.request_alignment;
    match limits.compressed_write_alignment {
        Some(cluster) if !cluster.is_aligned(block.bytes()) => cluster,
        _ => block,
    }
}

/// Refuses options that cannot be; gives the length of all sources together.
fn check(sources: &[CopySource], target: &Node, options: &CopyOptions) -> Result<u64, CopyError> {
    let within = |what, value, min, max| {
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(CopyError::Option { what, min, max, value })
        }
    };
    let parallel = crate::range::to_u64(options.parallel);
    within("parallel", parallel, 1, crate::range::to_u64(MAX_PARALLEL))?;
    if let Sparseness::Holes { min_bytes } = options.sparseness {
        within("sparse size", min_bytes, 512, MAX_SPARSE_BYTES)?;
    }
    if options.write_flags.contains(RequestFlags::COMPRESSED)
        && target.capabilities().compressed_write != Support::Native
    {
        return Err(CopyError::NoCompression { driver: target.driver().name() });
    }
    let total = sources.iter().fold(0u64, |sum, source| sum.saturating_add(source.len));
    within("length of all sources", total, 0, MAX_LEN)
}
