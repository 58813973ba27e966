//! Gives an overlay another backing file without changing what it reads as.
//!
//! # How it runs
//! A scanner looks for what the overlay does not hold. There the old and the new backing file are read
//! side by side, a bounded number of pieces at once, and clusters in which they differ are written to
//! the overlay as the old one has them. Then, with everything stable, the header is changed.
//!
//! # Invariants
//! * The overlay reads the same before, during and after the job; whatever ends it early leaves the
//!   old backing file in the header.
//! * What reads the same from both backing files is not written.
//! * Compressed data is written in whole clusters: one that the overlay holds in part is written as it
//!   reads.
//! * The buffers together take at most `memory_bytes`, or two clusters for each piece in flight, if
//!   that is more.
//! * When `rebase` returns, with whatever result, no request of it is in flight.

mod piece;
mod scan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{StreamExt, try_unfold};

use crate::cancel::Cancel;
use crate::error::{Error, OpenError};
use crate::flags::{RequestFlags, Support};
use crate::node::Node;
use crate::range::{Alignment, to_u64};

use super::copy::{MIN_PIECE_BYTES, PIECE_BYTES, Progress};
use scan::{Part, Scanner};

/// The backing file that an overlay is to have.
#[derive(Clone, Debug, Default)]
pub struct NewBacking {
    /// It, opened; `None`: the overlay shall stand alone.
    pub node: Option<Node>,
    /// A node of the overlay's present chain that is the same image as `node`, if there is one: what no
    /// layer above it holds need not be compared.
    pub in_chain: Option<Node>,
    /// Its name, as it shall stand in the header.
    pub name: Option<String>,
    /// Its format, as it shall stand in the header.
    pub format: Option<String>,
}

/// How to rebase.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct RebaseOptions {
    /// Pieces in flight, at least 1.
    pub parallel: usize,
    /// Bytes that all buffers together may take.
    pub memory_bytes: u64,
    /// Flags of every write to the overlay; zero writes never have `COMPRESSED`.
    pub write_flags: RequestFlags,
}

impl Default for RebaseOptions {
    fn default() -> Self {
        Self { parallel: 8, memory_bytes: 64 << 20, write_flags: RequestFlags::empty() }
    }
}

/// What a rebase did with the bytes of the overlay; their sum is its length.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Rebased {
    /// Held by the overlay already, or the same by what is known of the chain.
    pub skipped: u64,
    /// Compared, or known to be zero in both, and the same.
    pub same: u64,
    /// Written to the overlay.
    pub written: u64,
}

impl Rebased {
    fn total(&self) -> u64 {
        self.skipped + self.same + self.written
    }
}

/// Which of the three images an error is about.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Image {
    /// The overlay.
    Overlay,
    /// The backing file that it has.
    OldBacking,
    /// The backing file that it gets.
    NewBacking,
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Overlay => "the image",
            Self::OldBacking => "the old backing file",
            Self::NewBacking => "the new backing file",
        })
    }
}

/// Why a rebase did not come to its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RebaseError {
    /// The overlay's format has no backing files, or cannot change them.
    #[error("changing the backing file is not supported by '{driver}'")]
    Unsupported {
        /// The overlay's driver.
        driver: &'static str,
    },
    /// `COMPRESSED` is among the write flags, and the overlay cannot.
    #[error("compressed writes are not supported by '{driver}'")]
    NoCompression {
        /// The overlay's driver.
        driver: &'static str,
    },
    /// There is no memory for the buffers.
    #[error("{0}")]
    Memory(Error),
    /// An image could not say how it is stored.
    #[error("error while reading block status of {image} at offset {offset}: {error}")]
    Status {
        /// Which.
        image: Image,
        /// Where.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// A backing file could not be read.
    #[error("error while reading from {image} at offset {offset}: {error}")]
    Read {
        /// Which.
        image: Image,
        /// Where.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The overlay could not be written.
    #[error("error while writing to the image at offset {offset}: {error}")]
    Write {
        /// Where.
        offset: u64,
        /// Why.
        error: Error,
    },
    /// The overlay could not be flushed.
    #[error("error while flushing: {0}")]
    Flush(Error),
    /// The header could not be changed.
    #[error(transparent)]
    Header(OpenError),
    /// The caller cancelled it; the overlay still has its old backing file.
    #[error("cancelled")]
    Cancelled,
}

/// Rebases `overlay`, which must be writable and have its present backing file open, onto `backing`.
///
/// The node goes on reading through the old backing file until it is opened again.
pub async fn rebase(
    overlay: &Node,
    backing: &NewBacking,
    options: RebaseOptions,
    cancel: &Cancel,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Rebased, RebaseError> {
    let driver = Arc::clone(overlay.driver());
    let header =
        driver.as_rebase().ok_or_else(|| RebaseError::Unsupported { driver: driver.name() })?;
    if options.write_flags.contains(RequestFlags::COMPRESSED)
        && overlay.capabilities().compressed_write != Support::Native
    {
        return Err(RebaseError::NoCompression { driver: driver.name() });
    }
    let (name, format) = (backing.name.as_deref(), backing.format.as_deref());
    header.check_backing(name, format).await.map_err(RebaseError::Header)?;
    let rebased = copy_differences(overlay, backing, options, cancel, &mut progress).await?;
    overlay.flush().await.map_err(RebaseError::Flush)?;
    header.change_backing(name, format).await.map_err(RebaseError::Header)?;
    overlay.flush().await.map_err(RebaseError::Flush)?;
    Ok(rebased)
}

/// Makes the overlay hold everything in which the two backing files differ.
async fn copy_differences(
    overlay: &Node,
    backing: &NewBacking,
    options: RebaseOptions,
    cancel: &Cancel,
    progress: &mut (impl FnMut(Progress) + Send),
) -> Result<Rebased, RebaseError> {
    let job = Arc::new(Job::new(overlay, backing, &options));
    let total = overlay.len();
    progress(Progress { done: 0, total });
    let scanner = Scanner::new(Arc::clone(&job));
    let parts = try_unfold(scanner, Scanner::next);
    let work = parts.map(|found| {
        let job = Arc::clone(&job);
        async move {
            match found? {
                Part::Settled(range) => Ok(Rebased { skipped: range.len(), ..Rebased::default() }),
                Part::Compare(range) => piece::settle(&job, range).await,
                Part::Mixed(range) => piece::settle_mixed(&job, range).await,
            }
        }
    });
    let mut work = std::pin::pin!(work.buffer_unordered(options.parallel.max(1)));
    let mut sum = Rebased::default();
    let mut failed = None;
    // To the end whatever happens, so that nothing is left in flight.
    while let Some(result) = work.next().await {
        match result {
            Ok(part) => {
                sum.skipped += part.skipped;
                sum.same += part.same;
                sum.written += part.written;
            }
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
        if cancel.is_cancelled() {
            failed.get_or_insert(RebaseError::Cancelled);
        }
        if failed.is_some() {
            job.stop.store(true, Ordering::Relaxed);
        }
        progress(Progress { done: sum.total(), total });
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(sum),
    }
}

/// What all parts of a rebase share.
struct Job {
    overlay: Node,
    old: Option<Node>,
    new: Option<Node>,
    in_chain: Option<Node>,
    /// Differences are written in whole units of this.
    cluster: Alignment,
    /// Longest piece; a multiple of a cluster.
    piece_bytes: u64,
    write_flags: RequestFlags,
    /// Whether parts that are compared have to be whole clusters.
    whole_clusters: bool,
    /// Nothing more is begun.
    stop: AtomicBool,
}

impl Job {
    fn new(overlay: &Node, backing: &NewBacking, options: &RebaseOptions) -> Self {
        let cluster_size = overlay.driver().info().cluster_size.and_then(Alignment::new);
        let mut cluster = cluster_size.unwrap_or(Alignment::PAGE).max(Alignment::SECTOR);
        let whole_clusters = options.write_flags.contains(RequestFlags::COMPRESSED);
        if whole_clusters {
            cluster = overlay.limits().compressed_write_alignment.unwrap_or(cluster);
        }
        // Two buffers for each piece.
        let share = options.memory_bytes / to_u64(options.parallel.max(1)) / 2;
        let piece_bytes = cluster.round_down(share.clamp(MIN_PIECE_BYTES, PIECE_BYTES));
        let old = overlay.backing();
        Self {
            overlay: overlay.clone(),
            in_chain: backing.in_chain.clone().filter(|_| old.is_some()),
            old,
            new: backing.node.clone(),
            cluster,
            piece_bytes: piece_bytes.max(cluster.bytes()),
            // The overlay reads as it did, so nothing becomes dirty.
            write_flags: options.write_flags | RequestFlags::WRITE_UNCHANGED,
            whole_clusters,
            stop: AtomicBool::new(false),
        }
    }
}
