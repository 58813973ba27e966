//! Writing streamOptimized images to where nothing can be written twice, and reading them from where nothing can be
//! read twice: pipes, uploads, downloads.
//!
//! # The layout
//! Header, descriptor, and from sector 128 on the grains that hold data, in the guest's order. A grain is a marker
//! and a zlib stream. Behind the grains of a grain table stands its marker and the table; behind the last table the
//! grain directory, the footer (the header again, with the place of the grain directory) and the end-of-stream
//! marker, each behind its own. Tables without a grain are left out. The format's version is 3, as VMware's tools
//! write it.
//!
//! # Invariants
//! * The bytes depend on the source, the content id and the options only, not on processors, memory or time.
//! * Memory has a bound: the buffers take at most the bytes that were asked for (or one piece), and the grain
//!   directory 4 bytes for each 32 MiB of the disk.
//! * A grain that is all zero is not stored, whether the source knows it or not.
//! * When a writer or a reader returns, with whatever result, no request of it is in flight.
//!
//! What is not here: backing files. A reader of one grain out of many is [`crate::compress::GrainReader`].

mod pack;
mod read;
mod write;

pub use read::{GrainPiece, ReadError, ReadInto, StreamReader, TableProblem};

use block_core::error::Problem;
use block_core::job::copy::Watch;
use block_core::job::stream::{Disk, Forward, MEMORY_BYTES, Pieces, Report, StreamError};
use block_core::{Cancel, Node, OpenError};
use futures::io::AsyncWrite;

use crate::compress::Level;
use crate::create::{
    CreateOptions, GRAIN_SECTORS, NAMELESS, Plan, embedded_descriptor, new_content_id,
    stream_header,
};
use crate::descriptor::CreateType;
use crate::spec::sparse::GrainDirectory;
use crate::units::{ContentId, SectorCount};
use pack::Grains;
use write::Image;

/// Sectors of a grain: 64 KiB.
const GRAIN: SectorCount = SectorCount(GRAIN_SECTORS);

/// Writes the contents of one disk, or several joined, as a streamOptimized VMDK to a sink that only goes forward.
///
/// ```
/// use std::sync::Arc;
///
/// use block_core::job::copy::Progress;
/// use block_core::proto::mem::MemDriver;
/// use block_core::{Cancel, Node};
/// use block_vmdk::stream::{StreamWriter, WriteError};
///
/// # fn main() -> Result<(), WriteError> {
/// # let disk = MemDriver::from_bytes(&[7; 300_000]).map_err(block_core::job::stream::StreamError::Memory)?;
/// let source = Node::new(Arc::new(disk), Default::default());
/// futures::executor::block_on(async {
///     let mut body = Vec::new();
///     let writer = StreamWriter::new(source);
///     writer.write_to(&mut body, &Cancel::new(), |_: Progress| {}).await?;
///     assert!(body.starts_with(b"KDMV") && body.len() < 100_000);
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StreamWriter {
    disk: Disk,
    options: CreateOptions,
    name: String,
    cid: Option<ContentId>,
    level: Level,
    memory_bytes: u64,
}

/// Why an image was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image cannot be, or not as a stream.
    #[error(transparent)]
    Options(#[from] OpenError),
    /// Grains begin in the first 2^32 sectors of the file, and this one would not.
    #[error(
        "the image is too long: the grain at byte {offset} would stand beyond 2 TiB of the file"
    )]
    TooLong {
        /// Offset of the grain on the disk.
        offset: u64,
    },
    /// The source, the sink or the caller ended it.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl StreamWriter {
    /// The contents of `source`, in whole sectors, in an image as [`CreateOptions::new`] makes it but for its
    /// subformat, with a new content id.
    pub fn new(source: Node) -> Self {
        let mut disk = Disk::default();
        disk.push(source);
        Self {
            disk,
            options: CreateOptions::new(0).create_type(CreateType::StreamOptimized),
            name: NAMELESS.to_owned(),
            cid: None,
            level: Level::default(),
            memory_bytes: MEMORY_BYTES,
        }
    }

    /// With the contents of `source` behind what is there.
    #[must_use]
    pub fn followed_by(mut self, source: Node) -> Self {
        self.disk.push(source);
        self
    }

    /// Compressed this hard.
    #[must_use]
    pub fn level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// With this content id, so that the same disk makes the same image.
    #[must_use]
    pub fn content_id(self, cid: ContentId) -> Self {
        Self { cid: Some(cid), ..self }
    }

    /// In an image with these options; its size is that of the source. Other subformats and backing files are refused
    /// when it is written.
    #[must_use]
    pub fn options(self, options: CreateOptions) -> Self {
        Self { options, ..self }
    }

    /// With this name for the file, which stands in the descriptor and which nobody opens by it.
    #[must_use]
    pub fn file_name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// With buffers of at most so many bytes (64 MiB if nothing is said), or those of one piece.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        Self { memory_bytes: bytes, ..self }
    }

    /// Writes the image to `sink`, from the first byte to the last, and flushes it; gives the number of bytes. The
    /// sink is not closed.
    ///
    /// Looks at `cancel` before each piece; `watch` hears of every piece. On an error what was written is no image,
    /// and pieces in flight are waited for.
    pub async fn write_to(
        self,
        sink: impl AsyncWrite + Unpin + Send,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<u64, WriteError> {
        let head = Head::new(&self)?;
        let report = Report { base: 0, total: self.disk.len() };
        let grains = Grains { level: self.level };
        let mut pieces = Pieces::new(self.disk, grains, self.memory_bytes, cancel.clone());
        let image = Image::new(Forward::new(sink, &mut watch), head);
        let written = image.write(&mut pieces, report).await;
        pieces.drain().await;
        written
    }
}

/// What stands before the grains.
#[derive(Clone, Debug)]
struct Head {
    descriptor: Vec<u8>,
    capacity: SectorCount,
}

impl Head {
    fn new(writer: &StreamWriter) -> Result<Self, OpenError> {
        let options = CreateOptions { size: writer.disk.len(), ..writer.options.clone() };
        let plan = checked(&options)?;
        let cid = match writer.cid {
            Some(cid) => cid,
            None => new_content_id()?,
        };
        let descriptor = embedded_descriptor(&plan, &writer.name, cid)?;
        // What can be refused is refused before the source is read.
        stream_header(plan.sectors, GrainDirectory::InFooter)?;
        Ok(Self { descriptor, capacity: plan.sectors })
    }
}

/// Whether an image with these options can be written as a stream.
pub fn check_options(options: &CreateOptions) -> Result<(), OpenError> {
    checked(options).map(drop)
}

/// Refuses options of an image that is not written forward, or not alone.
fn checked(options: &CreateOptions) -> Result<Plan, OpenError> {
    let refuse = |option, value: &str| {
        let problem = Problem::Contradicts("an image that is written as a stream");
        Err(OpenError::OptionValue { option, value: value.to_owned(), problem })
    };
    if options.create_type != CreateType::StreamOptimized {
        return refuse("subformat", options.create_type.name());
    }
    match &options.backing {
        Some(backing) => refuse("backing_file", &backing.name),
        None => options.plan(),
    }
}
