//! Writing an image to where nothing can be written twice: a pipe, an upload.
//!
//! # How
//! The header comes first in the file and names the places of the tables, so everything must be known
//! before the first byte goes out. Therefore the source is read twice. The measure pass finds out which
//! clusters hold data and, where they are compressed, how long each becomes. The write pass compresses
//! again, which gives the same bytes, and writes header, refcount table, refcount blocks, L1 table, L2
//! tables and then the data in the guest's order, each byte once.
//!
//! # Invariants
//! * The bytes depend on the source and the options only, not on processors, memory or time.
//! * A source that changes between the passes ends the write with [`StreamError::Changed`], if what it
//!   changed to needs other tables. What was written so far is the start of an image and no image.
//! * The buffers take at most the bytes that were asked for (or one piece), whatever the size of the disk;
//!   the list of clusters has a limit of its own: 34 MiB hold one TiB of compressed data in clusters of
//!   64 KiB, 2.1 MiB in clusters of 2 MiB, 544 MiB in clusters of 4 KiB. Without compression it is 2 MiB
//!   for a TiB in clusters of 64 KiB. Holes take nothing.
//! * When it returns, with whatever result, no request of it is in flight.
//!
//! What is not here: backing files, data files, bitmaps and snapshots in the image; encryption.

mod layout;
mod list;
mod pieces;
mod write;

use block_core::error::Problem;
use block_core::job::copy::Watch;
use block_core::job::stream::{self, Disk, Forward, MEMORY_BYTES, Report};
use block_core::{Cancel, Node, OpenError};
use futures::io::AsyncWrite;

use crate::compress::{Encoding, Window};
use crate::create::{CreateOptions, Plan, first_cluster};
use crate::spec::header::Compression;
use layout::StreamLayout;
use list::{ClusterList, Full, Lengths};
use pieces::{ClusterPieces, Keep, Work};
use write::Image;

/// Bytes of the list of clusters, unless others are asked for.
const LIST_BYTES: u64 = 512 << 20;

/// Writes the contents of one disk, or several joined, as a qcow2 image to a sink that only goes forward.
///
/// ```
/// use std::sync::Arc;
///
/// use block_core::proto::mem::MemDriver;
/// use block_core::job::copy::Progress;
/// use block_core::{Cancel, Node};
/// use block_qcow2::compress::Window;
/// use block_qcow2::create::CreateOptions;
/// use block_qcow2::stream::{StreamError, StreamWriter};
///
/// # fn main() -> Result<(), StreamError> {
/// # let disk = MemDriver::from_bytes(&[7; 300_000]).map_err(block_core::job::stream::StreamError::Memory)?;
/// let source = Node::new(Arc::new(disk), Default::default());
/// let writer = StreamWriter::new(source)
///     .options(CreateOptions::new(0).cluster_size(4096))
///     .compressed(None, Window::Small);
/// futures::executor::block_on(async {
///     let cancel = Cancel::new();
///     let measured = writer.measure(&cancel, |_: Progress| {}).await?;
///     // An upload can say now how long it will be, and begin again if it fails.
///     let mut body = Vec::new();
///     measured.write_to(&mut body, &cancel, |_: Progress| {}).await?;
///     assert_eq!(body.len() as u64, measured.file_len());
///     assert!(body.starts_with(b"QFI\xfb") && body.len() < 100_000);
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StreamWriter {
    disk: Disk,
    options: CreateOptions,
    compress: Compress,
    memory_bytes: u64,
    list_bytes: u64,
}

/// Whether clusters are compressed, and how hard.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Compress {
    No,
    Yes { level: Option<u32>, window: Window },
}

/// A disk that was measured: how long its image is, and the way to write it.
///
/// It can be written more than once; the bytes are the same each time.
#[derive(Debug)]
pub struct Measured {
    disk: Disk,
    work: Work,
    plan: Plan,
    layout: StreamLayout,
    list: ClusterList,
    header: Vec<u8>,
    memory_bytes: u64,
}

/// Why an image did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The image cannot be, or not as a stream.
    #[error(transparent)]
    Options(#[from] OpenError),
    /// The list of clusters does not fit into what it may take.
    #[error(
        "the list of data clusters needs more than {budget} bytes of memory; larger clusters \
         need fewer"
    )]
    ListMemory {
        /// Bytes that it may take.
        budget: u64,
    },
    /// The source was not the same in both passes.
    #[error("the source changed while it was being converted, at byte {offset}")]
    Changed {
        /// Offset on the disk of the first cluster that needs other tables.
        offset: u64,
    },
    /// The source, the sink or the caller ended it.
    #[error(transparent)]
    Stream(#[from] stream::StreamError),
}

impl StreamError {
    /// Whether the reader of the stream went away.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_broken_pipe())
    }
}

impl StreamWriter {
    /// The contents of `source`, in whole sectors, plain, in an image as [`CreateOptions::new`] makes it.
    pub fn new(source: Node) -> Self {
        let mut disk = Disk::default();
        disk.push(source);
        Self {
            disk,
            options: CreateOptions::new(0),
            compress: Compress::No,
            memory_bytes: MEMORY_BYTES,
            list_bytes: LIST_BYTES,
        }
    }

    /// With the contents of `source` behind what is there.
    #[must_use]
    pub fn followed_by(mut self, source: Node) -> Self {
        self.disk.push(source);
        self
    }

    /// In an image with these options; its size is that of the source. Preallocation, data files and
    /// backing files are refused when it is measured.
    #[must_use]
    pub fn options(self, options: CreateOptions) -> Self {
        Self { options, ..self }
    }

    /// With compressed clusters, by the method of the options, at this level (`None`: the method's
    /// default) and in this window. What does not become shorter is stored plain.
    #[must_use]
    pub fn compressed(self, level: Option<u32>, window: Window) -> Self {
        Self { compress: Compress::Yes { level, window }, ..self }
    }

    /// With buffers of at most so many bytes (64 MiB if nothing is said), or those of one piece.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        Self { memory_bytes: bytes, ..self }
    }

    /// With at most so many bytes (512 MiB if nothing is said) for the list of clusters; see
    /// [the module](self) for what a disk needs. What it does not hold is an error of the measure pass.
    #[must_use]
    pub fn list_bytes(self, bytes: u64) -> Self {
        Self { list_bytes: bytes, ..self }
    }

    /// Reads the disk and finds out how long its image is. Looks at `cancel` before each piece; `watch`
    /// hears of every piece.
    pub async fn measure(
        self,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<Measured, StreamError> {
        let report = Report { base: 0, total: self.disk.len() };
        self.measure_pass(cancel, &mut watch, report).await
    }

    /// Measures and writes the image; gives its length. See [`Measured::write_to`]. To `watch` the two
    /// passes are twice the length of the disk.
    pub async fn write_to(
        self,
        sink: impl AsyncWrite + Unpin + Send,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<u64, StreamError> {
        let len = self.disk.len();
        let report = Report { base: 0, total: len.saturating_mul(2) };
        let measured = self.measure_pass(cancel, &mut watch, report).await?;
        let report = Report { base: len, ..report };
        measured.write_pass(sink, cancel, &mut watch, report).await
    }

    async fn measure_pass(
        self,
        cancel: &Cancel,
        watch: &mut dyn Watch,
        report: Report,
    ) -> Result<Measured, StreamError> {
        let options = CreateOptions { size: self.disk.len(), ..self.options };
        check_options(&options)?;
        let plan = options.check()?;
        // What can be refused is refused before the source is read.
        first_cluster(&options, &plan)?;
        let (encoding, lengths) = match self.compress {
            Compress::No => (None, Lengths::Uniform),
            Compress::Yes { level, window } => {
                (Some(encoding(options.compression, level, window)?), Lengths::Own)
            }
        };
        let cluster_size = plan.geometry.cluster_size();
        let work = Work { cluster_size, encoding, keep: Keep::Lengths };
        let disk = self.disk;
        let mut pieces = ClusterPieces::new(disk.clone(), work, self.memory_bytes, cancel.clone());
        let mut list = ClusterList::new(cluster_size, lengths, self.list_bytes);
        let filled = fill(&mut list, &mut pieces, watch, report).await;
        pieces.drain().await;
        filled?;

        let layout = StreamLayout::new(plan.geometry, plan.disk_len, &list);
        let plan = Plan { layout: layout.tables, ..plan };
        options.check_file(plan.geometry, plan.layout.clusters())?;
        check_payloads(&options, &plan, encoding.is_some())?;
        let header = first_cluster(&options, &plan)?;
        let work = Work { keep: Keep::Bytes, ..work };
        let memory_bytes = self.memory_bytes;
        Ok(Measured { disk, work, plan, layout, list, header, memory_bytes })
    }
}

impl Measured {
    /// Length of the image in bytes.
    pub fn file_len(&self) -> u64 {
        self.layout.tables.len()
    }

    /// Writes the image to `sink`, from the first byte to the last, and flushes it; gives the number of
    /// bytes, which is [`Measured::file_len`]. The sink is not closed.
    ///
    /// Looks at `cancel` before each piece. On an error what was written is no image, and pieces in
    /// flight are waited for.
    pub async fn write_to(
        &self,
        sink: impl AsyncWrite + Unpin + Send,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<u64, StreamError> {
        let report = Report { base: 0, total: self.disk.len() };
        self.write_pass(sink, cancel, &mut watch, report).await
    }

    async fn write_pass(
        &self,
        sink: impl AsyncWrite + Unpin + Send,
        cancel: &Cancel,
        watch: &mut dyn Watch,
        report: Report,
    ) -> Result<u64, StreamError> {
        let (geometry, layout) = (self.plan.geometry, self.layout);
        let (list, header, work) = (&self.list, &self.header, self.work);
        let image = Image { geometry, layout, list, work, header };
        let disk = self.disk.clone();
        let mut pieces = ClusterPieces::new(disk, work, self.memory_bytes, cancel.clone());
        let written = image.write(Forward::new(sink, watch), &mut pieces, report).await;
        pieces.drain().await;
        written
    }
}

/// Puts the data clusters of all pieces into the list.
async fn fill(
    list: &mut ClusterList,
    pieces: &mut ClusterPieces,
    watch: &mut dyn Watch,
    report: Report,
) -> Result<(), StreamError> {
    report.tell(watch, 0);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        for stored in &piece.packed().stored {
            let pushed = list.push(*stored);
            pushed.map_err(|Full { budget }| StreamError::ListMemory { budget })?;
        }
        report.tell(watch, piece.piece().end);
        pieces.recycle(piece);
    }
    Ok(())
}

/// How to compress, if the method has such a level.
fn encoding(
    compression: Compression,
    level: Option<u32>,
    window: Window,
) -> Result<Encoding, OpenError> {
    Encoding::new(compression, level, window).map_err(|problem| {
        let value = level.unwrap_or_default().to_string();
        OpenError::OptionValue { option: "compression_level", value, problem }
    })
}

/// Refuses options that name another file, or space that no pipe has.
fn check_options(options: &CreateOptions) -> Result<(), OpenError> {
    let refuse = |option: &'static str, value: &str| {
        let value = value.to_owned();
        let problem = Problem::Contradicts("an image that is written as a stream");
        Err(OpenError::OptionValue { option, value, problem })
    };
    if let Some(name) = &options.data_file {
        return refuse("data_file", name);
    }
    if let Some(backing) = &options.backing {
        return refuse("backing_file", &backing.name);
    }
    match options.preallocation_name() {
        "off" => Ok(()),
        name => refuse("preallocation", name),
    }
}

/// Refuses a file so long that the entry of a compressed cluster cannot say where it stands.
fn check_payloads(
    options: &CreateOptions,
    plan: &Plan,
    is_compressed: bool,
) -> Result<(), OpenError> {
    let max = plan.geometry.max_payload_offset();
    if is_compressed && plan.layout.len() > max {
        let (value, problem) = (options.size.to_string(), Problem::Above(max));
        return Err(OpenError::OptionValue { option: "size", value, problem });
    }
    Ok(())
}
