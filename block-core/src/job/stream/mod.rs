//! Writing images to where nothing can be written twice: what the formats share.
//!
//! A disk is cut into pieces of data ([`Disk`]); several of them are read and packed at once on all processors
//! ([`Pieces`]), and what comes out goes to a sink in order ([`Forward`]). The formats say what packing is, and what
//! stands before, between and behind the data.
//!
//! # Invariants
//! * What comes out depends on the disk and the format's options only, not on processors, memory or time.
//! * The buffers take at most the bytes that were asked for (or one piece), whatever the size of the disk.
//! * After [`Pieces::drain`] no request of it is in flight.

mod pieces;
mod sink;
mod source;

pub use pieces::{Finished, Pack, Pieces, is_zero};
pub use sink::Forward;
pub use source::{Disk, Piece};

use crate::error::Error;
use crate::job::copy::{Progress, Watch};

/// Bytes of all buffers, unless others are asked for.
pub const MEMORY_BYTES: u64 = 64 << 20;

/// Why a stream did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// There is no memory for the buffers.
    #[error("{0}")]
    Memory(Error),
    /// The source could not say how it is stored.
    #[error("error while reading block status at offset {offset}: {error}")]
    Status {
        /// Offset on the disk.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The source could not be read.
    #[error("error while reading at byte {offset}: {error}")]
    Read {
        /// Offset on the disk, of the piece that failed.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// What was read could not be packed: the thread has gone.
    #[error("error while compressing at byte {offset}: {error}")]
    Pack {
        /// Offset on the disk, of the piece that failed.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The sink took no more.
    #[error("{error}")]
    Sink {
        /// Bytes that were handed over before.
        offset: u64,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The caller cancelled it.
    #[error("cancelled")]
    Cancelled,
}

impl StreamError {
    /// Whether the reader of the stream went away.
    pub fn is_broken_pipe(&self) -> bool {
        let broken = std::io::ErrorKind::BrokenPipe;
        matches!(self, Self::Sink { error, .. } if error.kind() == broken)
    }
}

/// How far the passes over a disk are.
#[derive(Copy, Clone, Debug)]
pub struct Report {
    /// Bytes that were done before this pass.
    pub base: u64,
    /// Bytes of all passes.
    pub total: u64,
}

impl Report {
    /// The pass is done up to `end` of the disk.
    pub fn tell(self, watch: &mut dyn Watch, end: u64) {
        watch.progress(Progress { done: self.base.saturating_add(end), total: self.total });
    }
}
